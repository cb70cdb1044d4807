//! The operands of an instruction.

use iced_x86::{OpKind, Register};

use crate::state::{RSP, State, mask};
use crate::{Failure, Instruction, Mode};

/// Where an operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Register(Register),
    Memory(u64),
    Immediate(u64),
}

impl Instruction {
    /// Operand `index` of an instruction on general registers.
    pub(crate) fn place(&self, index: u32, state: &State) -> Result<Place, Failure> {
        let kind = self.decoded.try_op_kind(index).map_err(|_| Failure::Unknown)?;
        match kind {
            OpKind::Register => {
                let register = self.decoded.op_register(index);
                let known = register.is_gpr() || register.is_vector_register();
                if known { Ok(Place::Register(register)) } else { Err(Failure::Unknown) }
            }
            kind if is_memory(kind) => Ok(Place::Memory(self.address(index, state)?)),
            _ => match self.decoded.try_immediate(index) {
                Ok(value) => Ok(Place::Immediate(value)),
                Err(_) => Err(Failure::Unknown),
            },
        }
    }

    /// The address of memory operand `index`.
    pub(crate) fn address(&self, index: u32, state: &State) -> Result<u64, Failure> {
        let address = self.decoded.try_virtual_address(index, 0, |register, _, _| match register {
            Register::FS => Some(state.fs_base),
            Register::GS => Some(state.gs_base),
            // The others begin at 0, as Linux has them.
            register if register.is_segment_register() => Some(0),
            register if register.is_gpr() => Some(state.get(register)),
            _ => None,
        });
        let address = address.ok_or(Failure::Unknown)?;
        Ok(if self.mode == Mode::Bits32 { address & mask(4) } else { address })
    }

    /// The address as POP has it, which counts from the stack pointer after it has moved (Intel SDM
    /// 2, POP).
    pub(crate) fn popped_address(&self, index: u32, state: &State) -> Result<u64, Failure> {
        let moved = self.decoded.stack_pointer_increment();
        let mut state = state.clone();
        let width = self.stack_width();
        let pointer = state.low(RSP, width).wrapping_add_signed(moved.into());
        state.set_low(RSP, width, pointer);
        self.address(index, &state)
    }

    /// Bytes of the stack pointer, and of a return address.
    pub(crate) const fn stack_width(&self) -> usize {
        match self.mode {
            Mode::Bits64 => 8,
            Mode::Bits32 => 4,
        }
    }

    /// Bytes of operand `index`.
    pub(crate) fn width(&self, index: u32) -> usize {
        match self.decoded.op_kind(index) {
            OpKind::Register => self.decoded.op_register(index).size(),
            kind if is_memory(kind) => self.decoded.memory_size().size(),
            _ => 0,
        }
    }
}

pub(crate) const fn is_memory(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Memory
            | OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemorySegDI
            | OpKind::MemorySegEDI
            | OpKind::MemorySegRDI
            | OpKind::MemoryESDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI
    )
}
