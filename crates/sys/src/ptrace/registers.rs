//! What a thread has in its processor's registers.

use std::sync::OnceLock;

/// The general registers of an x86-64 thread, as `struct user_regs_struct` (asm/user_64.h) lays them out. A thread
/// that runs 32-bit code has its registers in the lower halves.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the processor's register of that name")]
pub struct Registers {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    /// The number of the system call it is in, or all ones.
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub eflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
}

const _: () = assert!(size_of::<Registers>() == size_of::<libc::user_regs_struct>());

impl Registers {
    /// Whether the thread runs 32-bit code: its code segment is Linux's for that (`__USER32_CS`, asm/segment.h).
    #[must_use]
    pub const fn is_32_bit(&self) -> bool {
        self.cs == 0x23
    }
}

/// More than any processor's XSAVE area: 8 KiB of it are AMX tiles.
pub(super) const LARGEST_AREA: usize = 1 << 14;

/// Where `xstate_bv` lies, which says what of the area is not in its initial state (Intel SDM 1, 13.4.2).
const PRESENT: usize = 512;
/// Where the lower 16 bytes of the first 16 registers lie (13.4.1).
const XMM: usize = 160;
/// The state components (13.1).
const SSE: u32 = 1;
const AVX: u32 = 2;
const ZMM_HIGH: u32 = 6;
const HIGH_ZMM: u32 = 7;

/// Bytes of the largest vector register.
pub const VECTOR: usize = 64;

/// The vector registers of a thread, in its XSAVE area.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vectors(Vec<u8>);

/// Part of a register in the area.
struct Part {
    component: u32,
    at: usize,
    within: std::ops::Range<usize>,
}

impl Vectors {
    /// The registers in an area in the standard format.
    pub(super) fn new(area: Vec<u8>) -> Self {
        Self(area)
    }

    pub(super) fn area(&self) -> &[u8] {
        &self.0
    }

    /// How many registers there are, and how many bytes of each.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        let has = |component| offset(component).is_some_and(|at| at < self.0.len());
        if has(HIGH_ZMM) {
            (32, 64)
        } else if has(AVX) {
            (16, 32)
        } else {
            (16, 16)
        }
    }

    /// The bytes of register `index`, zeroes above those it has.
    #[must_use]
    pub fn get(&self, index: usize) -> [u8; VECTOR] {
        let mut bytes = [0; VECTOR];
        for part in parts(index) {
            if self.present() & (1 << part.component) != 0
                && let Some(area) = self.0.get(part.at..part.at + part.within.len())
            {
                bytes[part.within].copy_from_slice(area);
            }
        }
        bytes
    }

    /// Sets register `index`; bytes it does not have are dropped.
    pub fn set(&mut self, index: usize, bytes: &[u8; VECTOR]) {
        for part in parts(index) {
            let end = part.at + part.within.len();
            if end > self.0.len() {
                continue;
            }
            self.make_present(part.component);
            self.0[part.at..end].copy_from_slice(&bytes[part.within]);
        }
    }

    fn present(&self) -> u64 {
        let word = self.0.get(PRESENT..PRESENT + 8).and_then(|bytes| bytes.try_into().ok());
        word.map_or(0, u64::from_le_bytes)
    }

    /// A component that was in its initial state holds zeroes from now on.
    fn make_present(&mut self, component: u32) {
        let present = self.present();
        if present & (1 << component) != 0 {
            return;
        }
        for part in (0..32).flat_map(parts).filter(|part| part.component == component) {
            if let Some(area) = self.0.get_mut(part.at..part.at + part.within.len()) {
                area.fill(0);
            }
        }
        let present = present | 1 << component;
        self.0[PRESENT..PRESENT + 8].copy_from_slice(&present.to_le_bytes());
    }
}

fn parts(index: usize) -> Vec<Part> {
    let part = |component, index: usize, within: std::ops::Range<usize>| {
        let at = offset(component)? + index * within.len();
        Some(Part { component, at, within })
    };
    let found = match index {
        0..16 => [part(SSE, index, 0..16), part(AVX, index, 16..32), part(ZMM_HIGH, index, 32..64)],
        _ => [part(HIGH_ZMM, index - 16, 0..64), None, None],
    };
    found.into_iter().flatten().collect()
}

/// Where a component lies in the standard format, which differs between processors (CPUID leaf 0xd).
fn offset(component: u32) -> Option<usize> {
    static OFFSETS: OnceLock<[Option<usize>; 8]> = OnceLock::new();
    if component == SSE {
        return Some(XMM);
    }
    let offsets = OFFSETS.get_or_init(|| {
        let mut offsets = [None; 8];
        for (component, offset) in (0..).zip(&mut offsets) {
            let leaf = std::arch::x86_64::__cpuid_count(0xd, component);
            *offset = (component >= AVX && leaf.eax != 0).then_some(leaf.ebx as usize);
        }
        offsets
    });
    offsets[component as usize]
}
