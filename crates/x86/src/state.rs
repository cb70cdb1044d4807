//! A thread's registers.

use iced_x86::Register;

/// Bytes of the largest vector register.
pub const VECTOR: usize = 64;

/// What an instruction reads and changes besides memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15: in the order of their numbers.
    pub general: [u64; 16],
    /// RIP.
    pub ip: u64,
    /// RFLAGS.
    pub flags: u64,
    /// Where FS begins.
    pub fs_base: u64,
    /// Where GS begins.
    pub gs_base: u64,
    /// The vector registers by number, for an instruction that uses them; empty else.
    pub vectors: Vec<[u8; VECTOR]>,
    /// Which vector registers have been written, a bit each.
    pub written: u32,
}

pub(crate) const RAX: usize = 0;
pub(crate) const RCX: usize = 1;
pub(crate) const RDX: usize = 2;
pub(crate) const RBX: usize = 3;
pub(crate) const RSP: usize = 4;
pub(crate) const RSI: usize = 6;
pub(crate) const RDI: usize = 7;

/// The lowest `width` bytes of a word.
pub(crate) const fn mask(width: usize) -> u64 {
    if width >= 8 { u64::MAX } else { (1 << (width * 8)) - 1 }
}

/// `value`, a number of `width` bytes, with its sign in every bit above.
pub(crate) const fn sign_extended(value: u64, width: usize) -> u64 {
    let above = 64 - width * 8;
    ((value << above).cast_signed() >> above).cast_unsigned()
}

const fn is_high(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

impl State {
    /// The value of a general register of any width.
    pub(crate) fn get(&self, register: Register) -> u64 {
        let whole = self.general[register.full_register().number()];
        if is_high(register) { whole >> 8 & 0xff } else { whole & mask(register.size()) }
    }

    /// Sets a general register: 4 bytes clear the upper half, fewer leave the rest.
    pub(crate) fn set(&mut self, register: Register, value: u64) {
        let whole = &mut self.general[register.full_register().number()];
        *whole = match register.size() {
            8 => value,
            4 => value & mask(4),
            2 => *whole & !mask(2) | value & mask(2),
            _ if is_high(register) => *whole & !0xff00 | (value & 0xff) << 8,
            _ => *whole & !0xff | value & 0xff,
        };
    }

    /// The lowest `width` bytes of the register `index`, in the sizes an address or a counter has.
    pub(crate) fn low(&self, index: usize, width: usize) -> u64 {
        self.general[index] & mask(width)
    }

    /// Sets them as an instruction with addresses of that width does.
    pub(crate) fn set_low(&mut self, index: usize, width: usize, value: u64) {
        let whole = &mut self.general[index];
        *whole = match width {
            2 => *whole & !mask(2) | value & mask(2),
            _ => value & mask(width),
        };
    }

    /// Sets the flags of `which` as `flags` has them.
    pub(crate) fn set_flags(&mut self, which: u64, flags: u64) {
        self.flags = self.flags & !which | flags & which;
    }
}
