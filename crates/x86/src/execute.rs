//! Instructions on general registers and memory.

use iced_x86::{ConditionCode, Mnemonic, Register};

use crate::alu::{self, CARRY, OVERFLOW, Outcome, PARITY, SIGN, STATUS, Shift, ZERO};
use crate::operand::Place;
use crate::space::Space;
use crate::state::{RAX, RBX, RCX, RDX, RSP, State, mask, sign_extended};
use crate::{Bus, Done, Failure, Instruction, Memory, Mode, strings, vector};

/// An instruction on its way: registers as they will be, and the memory they lead to.
pub(crate) struct Machine<'a> {
    pub(crate) state: State,
    pub(crate) space: Space<'a>,
    pub(crate) instruction: Instruction,
}

impl Instruction {
    /// Does the instruction on the registers in `state`, which change only if it succeeds.
    ///
    /// # Errors
    ///
    /// [`Failure::Unknown`] before anything was touched; [`Failure::Fault`] where the thread itself
    /// would have faulted.
    pub fn execute(
        &self,
        state: &mut State,
        bus: &mut dyn Bus,
        memory: &mut dyn Memory,
    ) -> Result<Done, Failure> {
        let space = Space { bus, memory };
        let mut machine = Machine { state: state.clone(), space, instruction: *self };
        if strings::is_string(&self.decoded) {
            let done = strings::execute(&mut machine)?;
            *state = machine.state;
            return Ok(done);
        }
        machine.state.ip = self.decoded.next_ip();
        machine.step()?;
        if self.mode == Mode::Bits32 {
            machine.state.ip &= mask(4);
        }
        *state = machine.state;
        Ok(Done::Whole)
    }
}

type Step = Result<(), Failure>;

impl Machine<'_> {
    fn step(&mut self) -> Step {
        use Mnemonic as M;
        if vector::uses(&self.instruction.decoded) {
            return vector::execute(self);
        }
        match self.mnemonic() {
            M::Mov | M::Movnti => self.mov(|value, _, _| value),
            M::Movzx => self.mov(|value, _, _| value),
            M::Movsx | M::Movsxd => self.mov(|value, from, _| sign_extended(value, from)),
            M::Movbe => self.mov(|value, _, to| value.swap_bytes() >> (64 - to * 8)),
            M::Add | M::Adc | M::Sub | M::Sbb | M::And | M::Or | M::Xor => self.arithmetic(),
            M::Cmp | M::Test => self.compare(),
            M::Inc | M::Dec | M::Neg | M::Not => self.unary(),
            M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr => self.shift(),
            M::Shld | M::Shrd => self.double_shift(),
            M::Shlx | M::Shrx | M::Sarx | M::Rorx => self.shift_elsewhere(),
            M::Bt | M::Bts | M::Btr | M::Btc => self.bit(),
            M::Xchg => self.exchange(),
            M::Xadd => self.exchange_add(),
            M::Cmpxchg => self.compare_exchange(),
            M::Cmpxchg8b | M::Cmpxchg16b => self.compare_exchange_pair(),
            M::Imul | M::Mul => self.multiply(),
            M::Andn => self.and_not(),
            M::Popcnt | M::Lzcnt | M::Tzcnt => self.count_bits(),
            M::Push => self.push_operand(),
            M::Pop => self.pop_operand(),
            M::Call | M::Jmp => self.jump(),
            // Neither loads nor stores what its memory holds.
            M::Clflush | M::Clflushopt | M::Clwb => Ok(()),
            M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 | M::Prefetchw => Ok(()),
            M::Seto | M::Setno | M::Setb | M::Setae | M::Sete | M::Setne | M::Setbe | M::Seta => {
                self.set_on_condition()
            }
            M::Sets | M::Setns | M::Setp | M::Setnp | M::Setl | M::Setge | M::Setle | M::Setg => {
                self.set_on_condition()
            }
            M::Cmovo | M::Cmovno | M::Cmovb | M::Cmovae | M::Cmove | M::Cmovne | M::Cmovbe => {
                self.move_on_condition()
            }
            M::Cmova | M::Cmovs | M::Cmovns | M::Cmovp | M::Cmovnp | M::Cmovl | M::Cmovge => {
                self.move_on_condition()
            }
            M::Cmovle | M::Cmovg => self.move_on_condition(),
            _ => Err(Failure::Unknown),
        }
    }

    fn mnemonic(&self) -> Mnemonic {
        self.instruction.decoded.mnemonic()
    }

    fn place(&self, index: u32) -> Result<Place, Failure> {
        self.instruction.place(index, &self.state)
    }

    /// Operand `index` as a number of `width` bytes.
    fn read(&mut self, place: Place, width: usize) -> Result<u64, Failure> {
        match place {
            Place::Register(register) if register.is_gpr() => Ok(self.state.get(register)),
            Place::Register(_) => Err(Failure::Unknown),
            Place::Memory(address) => self.space.load(address, width),
            Place::Immediate(value) => Ok(value & mask(width)),
        }
    }

    fn write(&mut self, place: Place, width: usize, value: u64) -> Step {
        match place {
            Place::Register(register) if register.is_gpr() => {
                self.state.set(register, value);
                Ok(())
            }
            Place::Memory(address) => self.space.store(address, width, value),
            _ => Err(Failure::Unknown),
        }
    }

    /// The widths of the first operands; nothing else has been looked at when it fails.
    fn width(&self, index: u32) -> Result<usize, Failure> {
        match self.instruction.width(index) {
            width @ (1 | 2 | 4 | 8) => Ok(width),
            _ => Err(Failure::Unknown),
        }
    }

    fn set_flags(&mut self, Outcome { flags, which, .. }: Outcome) {
        self.state.set_flags(which, flags);
    }

    fn carry(&self) -> bool {
        self.state.flags & CARRY != 0
    }

    /// Copies the second operand to the first; `convert` has the widths of both.
    fn mov(&mut self, convert: fn(u64, usize, usize) -> u64) -> Step {
        let (to, to_width) = (self.place(0)?, self.width(0)?);
        let from = self.place(1)?;
        let from_width = match from {
            Place::Immediate(_) => to_width,
            _ => self.width(1)?,
        };
        let value = self.read(from, from_width)?;
        self.write(to, to_width, convert(value, from_width, to_width))
    }

    fn arithmetic(&mut self) -> Step {
        let width = self.width(0)?;
        let (to, from) = (self.place(0)?, self.place(1)?);
        let (left, right) = (self.read(to, width)?, self.read(from, width)?);
        let outcome = match self.mnemonic() {
            Mnemonic::Add => alu::add(left, right, false, width),
            Mnemonic::Adc => alu::add(left, right, self.carry(), width),
            Mnemonic::Sub => alu::subtract(left, right, false, width),
            Mnemonic::Sbb => alu::subtract(left, right, self.carry(), width),
            Mnemonic::And => alu::logic(left & right, width),
            Mnemonic::Or => alu::logic(left | right, width),
            _ => alu::logic(left ^ right, width),
        };
        self.write(to, width, outcome.value)?;
        self.set_flags(outcome);
        Ok(())
    }

    fn compare(&mut self) -> Step {
        let width = self.width(0)?;
        let (left, right) = (self.place(0)?, self.place(1)?);
        let (left, right) = (self.read(left, width)?, self.read(right, width)?);
        let outcome = match self.mnemonic() {
            Mnemonic::Cmp => alu::subtract(left, right, false, width),
            _ => alu::logic(left & right, width),
        };
        self.set_flags(outcome);
        Ok(())
    }

    fn unary(&mut self) -> Step {
        let width = self.width(0)?;
        let to = self.place(0)?;
        let value = self.read(to, width)?;
        let mut outcome = match self.mnemonic() {
            Mnemonic::Inc => alu::add(value, 1, false, width),
            Mnemonic::Dec => alu::subtract(value, 1, false, width),
            Mnemonic::Neg => alu::subtract(0, value, false, width),
            _ => Outcome { value: !value & mask(width), flags: 0, which: 0 },
        };
        if matches!(self.mnemonic(), Mnemonic::Inc | Mnemonic::Dec) {
            outcome.which &= !CARRY;
        }
        self.write(to, width, outcome.value)?;
        self.set_flags(outcome);
        Ok(())
    }

    fn shift(&mut self) -> Step {
        let width = self.width(0)?;
        let (to, by) = (self.place(0)?, self.place(1)?);
        let kind = match self.mnemonic() {
            Mnemonic::Shr => Shift::Right,
            Mnemonic::Sar => Shift::Arithmetic,
            Mnemonic::Rol => Shift::RotateLeft,
            Mnemonic::Ror => Shift::RotateRight,
            Mnemonic::Rcl => Shift::CarryLeft,
            Mnemonic::Rcr => Shift::CarryRight,
            _ => Shift::Left,
        };
        let (value, count) = (self.read(to, width)?, self.read(by, 1)?);
        let outcome = alu::shift(kind, value, count, width, self.carry());
        self.write(to, width, outcome.value)?;
        self.set_flags(outcome);
        Ok(())
    }

    fn double_shift(&mut self) -> Step {
        let width = self.width(0)?;
        let (to, fill, by) = (self.place(0)?, self.place(1)?, self.place(2)?);
        let (value, fill) = (self.read(to, width)?, self.read(fill, width)?);
        let count = self.read(by, 1)?;
        let left = self.mnemonic() == Mnemonic::Shld;
        let outcome = alu::double_shift(left, value, fill, count, width);
        self.write(to, width, outcome.value)?;
        self.set_flags(outcome);
        Ok(())
    }

    /// SHLX and its siblings: to another register, and no flag changes.
    fn shift_elsewhere(&mut self) -> Step {
        let width = self.width(0)?;
        let (to, from, by) = (self.place(0)?, self.place(1)?, self.place(2)?);
        let kind = match self.mnemonic() {
            Mnemonic::Shlx => Shift::Left,
            Mnemonic::Shrx => Shift::Right,
            Mnemonic::Sarx => Shift::Arithmetic,
            _ => Shift::RotateRight,
        };
        let (value, count) = (self.read(from, width)?, self.read(by, width)?);
        let outcome = alu::shift(kind, value, count, width, false);
        self.write(to, width, outcome.value)
    }

    /// A bit of memory whose number is in a register may lie anywhere around the operand (Intel SDM
    /// 2, BT).
    fn bit(&mut self) -> Step {
        let width = self.width(0)?;
        let (mut base, number) = (self.place(0)?, self.place(1)?);
        let bits = (width * 8) as u64;
        let value = self.read(number, width)?;
        if let (Place::Memory(address), Place::Register(_)) = (base, number) {
            let number = sign_extended(value, width).cast_signed();
            // Bytes from the operand to the one that holds the bit.
            let bytes = number.div_euclid(bits.cast_signed()).wrapping_mul(bits.cast_signed()) / 8;
            let moved = address.wrapping_add_signed(bytes);
            let small = self.instruction.mode == Mode::Bits32;
            base = Place::Memory(if small { moved & mask(4) } else { moved });
        }
        let bit = 1 << (value % bits);
        let old = self.read(base, width)?;
        let new = match self.mnemonic() {
            Mnemonic::Bts => Some(old | bit),
            Mnemonic::Btr => Some(old & !bit),
            Mnemonic::Btc => Some(old ^ bit),
            _ => None,
        };
        if let Some(new) = new {
            self.write(base, width, new)?;
        }
        self.state.set_flags(CARRY, u64::from(old & bit != 0));
        Ok(())
    }

    fn exchange(&mut self) -> Step {
        let width = self.width(0)?;
        let (first, second) = (self.place(0)?, self.place(1)?);
        let (old, new) = (self.read(first, width)?, self.read(second, width)?);
        self.write(first, width, new)?;
        self.write(second, width, old)
    }

    fn exchange_add(&mut self) -> Step {
        let width = self.width(0)?;
        let (to, from) = (self.place(0)?, self.place(1)?);
        let (old, more) = (self.read(to, width)?, self.read(from, width)?);
        let outcome = alu::add(old, more, false, width);
        self.write(from, width, old)?;
        self.write(to, width, outcome.value)?;
        self.set_flags(outcome);
        Ok(())
    }

    /// Memory is stored to in either case, as the processor does.
    fn compare_exchange(&mut self) -> Step {
        let width = self.width(0)?;
        let (to, from) = (self.place(0)?, self.place(1)?);
        let (old, new) = (self.read(to, width)?, self.read(from, width)?);
        let expected = self.state.low(RAX, width);
        let outcome = alu::subtract(expected, old, false, width);
        if old == expected {
            self.write(to, width, new)?;
        } else {
            self.write(to, width, old)?;
            let accumulator = [Register::AL, Register::AX, Register::EAX, Register::RAX];
            self.state.set(accumulator[width.ilog2() as usize], old);
        }
        self.set_flags(outcome);
        Ok(())
    }

    fn compare_exchange_pair(&mut self) -> Step {
        let Place::Memory(address) = self.place(0)? else { return Err(Failure::Unknown) };
        let half = if self.mnemonic() == Mnemonic::Cmpxchg8b { 4 } else { 8 };
        let mut bytes = [0; 16];
        self.space.read(address, &mut bytes[..half * 2])?;
        let word = |at: usize| {
            let mut word = [0; 8];
            word[..half].copy_from_slice(&bytes[at..at + half]);
            u64::from_le_bytes(word)
        };
        let old = (word(0), word(half));
        let equal = old == (self.state.low(RAX, half), self.state.low(RDX, half));
        if equal {
            let new = (self.state.low(RBX, half), self.state.low(RCX, half));
            bytes[..half].copy_from_slice(&new.0.to_le_bytes()[..half]);
            bytes[half..half * 2].copy_from_slice(&new.1.to_le_bytes()[..half]);
        }
        self.space.write(address, &bytes[..half * 2])?;
        if !equal {
            self.state.set_low(RAX, half, old.0);
            self.state.set_low(RDX, half, old.1);
        }
        self.state.set_flags(ZERO, if equal { ZERO } else { 0 });
        Ok(())
    }

    fn multiply(&mut self) -> Step {
        let width = self.width(0)?;
        let signed = self.mnemonic() == Mnemonic::Imul;
        let product = if signed { alu::multiply_signed } else { alu::multiply };
        let count = self.instruction.decoded.op_count();
        if count == 1 {
            let from = self.place(0)?;
            let (low, high, says) =
                product(self.read(from, width)?, self.state.low(RAX, width), width);
            let (lower, upper) = match width {
                1 => (Register::AL, Register::AH),
                2 => (Register::AX, Register::DX),
                4 => (Register::EAX, Register::EDX),
                _ => (Register::RAX, Register::RDX),
            };
            self.state.set(lower, low);
            self.state.set(upper, high);
            self.state.set_flags(CARRY | OVERFLOW, alu::of_product(says));
            return Ok(());
        }
        let to = self.place(0)?;
        let (left, right) = (self.place(count - 2)?, self.place(count - 1)?);
        let (left, right) = (self.read(left, width)?, self.read(right, width)?);
        let (low, _, says) = product(left, right, width);
        self.write(to, width, low)?;
        self.state.set_flags(CARRY | OVERFLOW, alu::of_product(says));
        Ok(())
    }

    fn and_not(&mut self) -> Step {
        let width = self.width(0)?;
        let (to, not, and) = (self.place(0)?, self.place(1)?, self.place(2)?);
        let value = !self.read(not, width)? & self.read(and, width)?;
        self.write(to, width, value)?;
        let mut outcome = alu::logic(value, width);
        outcome.which &= !PARITY;
        self.set_flags(outcome);
        Ok(())
    }

    fn count_bits(&mut self) -> Step {
        let width = self.width(0)?;
        let (to, from) = (self.place(0)?, self.place(1)?);
        let value = self.read(from, width)?;
        let bits = (width * 8) as u64;
        let (count, which) = match self.mnemonic() {
            Mnemonic::Popcnt => (u64::from(value.count_ones()), STATUS),
            Mnemonic::Lzcnt => (u64::from(value.leading_zeros()) - (64 - bits), CARRY | ZERO),
            _ => (u64::from(value.trailing_zeros()).min(bits), CARRY | ZERO),
        };
        let flags = if which == STATUS {
            if value == 0 { ZERO } else { 0 }
        } else {
            let is_empty = if value == 0 { CARRY } else { 0 };
            is_empty | if count == 0 { ZERO } else { 0 }
        };
        self.write(to, width, count)?;
        self.state.set_flags(which, flags);
        Ok(())
    }

    /// Moves the stack pointer by what the instruction pushes or pops; returns where it stands
    /// then.
    fn move_stack(&mut self) -> u64 {
        let width = self.instruction.stack_width();
        let moved = self.instruction.decoded.stack_pointer_increment();
        let pointer = self.state.low(RSP, width).wrapping_add_signed(moved.into());
        self.state.set_low(RSP, width, pointer);
        self.state.low(RSP, width)
    }

    fn pushed_bytes(&self) -> Result<usize, Failure> {
        let moved = self.instruction.decoded.stack_pointer_increment().unsigned_abs();
        match moved {
            2 | 4 | 8 => Ok(moved as usize),
            _ => Err(Failure::Unknown),
        }
    }

    fn push_operand(&mut self) -> Step {
        let width = self.pushed_bytes()?;
        let from = self.place(0)?;
        let value = self.read(from, width)?;
        let at = self.move_stack();
        self.space.store(at, width, value)
    }

    fn pop_operand(&mut self) -> Step {
        let width = self.pushed_bytes()?;
        let stack = self.state.low(RSP, self.instruction.stack_width());
        let mut to = self.place(0)?;
        if let Place::Memory(_) = to {
            to = Place::Memory(self.instruction.popped_address(0, &self.state)?);
        }
        let value = self.space.load(stack, width)?;
        self.move_stack();
        self.write(to, width, value)
    }

    /// A near jump or call whose target memory holds.
    fn jump(&mut self) -> Step {
        let Place::Memory(address) = self.place(0)? else { return Err(Failure::Unknown) };
        let width = self.width(0)?;
        if width != self.instruction.stack_width() {
            return Err(Failure::Unknown);
        }
        let target = self.space.load(address, width)?;
        if self.mnemonic() == Mnemonic::Call {
            let back = self.state.ip;
            let at = self.move_stack();
            self.space.store(at, width, back)?;
        }
        self.state.ip = target;
        Ok(())
    }

    fn set_on_condition(&mut self) -> Step {
        let to = self.place(0)?;
        let value = u64::from(self.holds());
        self.write(to, 1, value)
    }

    /// Loads in either case, and clears the upper half of a register of 8 bytes in either case.
    fn move_on_condition(&mut self) -> Step {
        let width = self.width(0)?;
        let (to, from) = (self.place(0)?, self.place(1)?);
        let (old, new) = (self.read(to, width)?, self.read(from, width)?);
        let value = if self.holds() { new } else { old };
        self.write(to, width, value)
    }

    fn holds(&self) -> bool {
        let is = |flag: u64| self.state.flags & flag != 0;
        let less = is(SIGN) != is(OVERFLOW);
        match self.instruction.decoded.condition_code() {
            ConditionCode::None => false,
            ConditionCode::o => is(OVERFLOW),
            ConditionCode::no => !is(OVERFLOW),
            ConditionCode::b => is(CARRY),
            ConditionCode::ae => !is(CARRY),
            ConditionCode::e => is(ZERO),
            ConditionCode::ne => !is(ZERO),
            ConditionCode::be => is(CARRY) || is(ZERO),
            ConditionCode::a => !is(CARRY) && !is(ZERO),
            ConditionCode::s => is(SIGN),
            ConditionCode::ns => !is(SIGN),
            ConditionCode::p => is(PARITY),
            ConditionCode::np => !is(PARITY),
            ConditionCode::l => less,
            ConditionCode::ge => !less,
            ConditionCode::le => less || is(ZERO),
            ConditionCode::g => !less && !is(ZERO),
        }
    }
}
