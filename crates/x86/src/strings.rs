//! MOVS, STOS, LODS, CMPS and SCAS, repeated or not (Intel SDM 2, REP).

use iced_x86::{Instruction, OpKind, Register};

use crate::alu::{self, DIRECTION, Outcome, ZERO};
use crate::execute::Machine;
use crate::operand::is_memory;
use crate::state::{RAX, RCX, RDI, RSI, mask};
use crate::{BATCH, Done, Failure};

/// What a string instruction does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Move,
    Store,
    Load,
    Compare,
    Scan,
}

pub(crate) fn is_string(decoded: &Instruction) -> bool {
    kind(decoded).is_some()
}

fn kind(decoded: &Instruction) -> Option<Kind> {
    use iced_x86::Code as C;
    Some(match decoded.code() {
        C::Movsb_m8_m8 | C::Movsw_m16_m16 | C::Movsd_m32_m32 | C::Movsq_m64_m64 => Kind::Move,
        C::Stosb_m8_AL | C::Stosw_m16_AX | C::Stosd_m32_EAX | C::Stosq_m64_RAX => Kind::Store,
        C::Lodsb_AL_m8 | C::Lodsw_AX_m16 | C::Lodsd_EAX_m32 | C::Lodsq_RAX_m64 => Kind::Load,
        C::Cmpsb_m8_m8 | C::Cmpsw_m16_m16 | C::Cmpsd_m32_m32 | C::Cmpsq_m64_m64 => Kind::Compare,
        C::Scasb_AL_m8 | C::Scasw_AX_m16 | C::Scasd_EAX_m32 | C::Scasq_RAX_m64 => Kind::Scan,
        _ => return None,
    })
}

/// Bytes of an address, which are those of the counter too.
fn address_width(decoded: &Instruction) -> usize {
    let operand =
        (0..decoded.op_count()).map(|index| decoded.op_kind(index)).find(|&kind| is_memory(kind));
    match operand {
        Some(OpKind::MemorySegSI | OpKind::MemoryESDI) => 2,
        Some(OpKind::MemorySegESI | OpKind::MemoryESEDI) => 4,
        _ => 8,
    }
}

/// Does iterations until the string ends, [`BATCH`] are done, or one faults that is not the first.
pub(crate) fn execute(machine: &mut Machine<'_>) -> Result<Done, Failure> {
    let decoded = machine.instruction.decoded;
    let kind = kind(&decoded).ok_or(Failure::Unknown)?;
    let width = address_width(&decoded);
    let repeats = decoded.has_rep_prefix() || decoded.has_repne_prefix();
    if !repeats {
        iterate(machine, kind, width)?;
        return Ok(whole(machine));
    }
    for done in 0..BATCH {
        let left = machine.state.low(RCX, width);
        if left == 0 {
            return Ok(whole(machine));
        }
        match iterate(machine, kind, width) {
            Ok(()) => machine.state.set_low(RCX, width, left - 1),
            Err(failure) if done == 0 => return Err(failure),
            Err(_) => return Ok(Done::Partly),
        }
        let compares = matches!(kind, Kind::Compare | Kind::Scan);
        let is_equal = machine.state.flags & ZERO != 0;
        if left == 1 || compares && is_equal == decoded.has_repne_prefix() {
            return Ok(whole(machine));
        }
    }
    Ok(Done::Partly)
}

fn whole(machine: &mut Machine<'_>) -> Done {
    machine.state.ip = machine.instruction.decoded.next_ip();
    Done::Whole
}

/// One iteration; nothing of it is done when it faults, except what a device has loaded.
fn iterate(machine: &mut Machine<'_>, kind: Kind, width: usize) -> Result<(), Failure> {
    let decoded = machine.instruction.decoded;
    let size = decoded.memory_size().size();
    let address = |wanted: fn(OpKind) -> bool| {
        let index = (0..decoded.op_count()).find(|&index| wanted(decoded.op_kind(index)));
        machine.instruction.address(index.ok_or(Failure::Unknown)?, &machine.state)
    };
    let source = || address(is_source);
    let target = || address(|kind| is_memory(kind) && !is_source(kind));
    let accumulator = machine.state.low(RAX, size);
    let flags = match kind {
        Kind::Move => {
            let (from, to) = (source()?, target()?);
            let value = machine.space.load(from, size)?;
            machine.space.store(to, size, value)?;
            None
        }
        Kind::Store => {
            let to = target()?;
            machine.space.store(to, size, accumulator)?;
            None
        }
        Kind::Load => {
            let from = source()?;
            let value = machine.space.load(from, size)?;
            let registers = [Register::AL, Register::AX, Register::EAX, Register::RAX];
            machine.state.set(registers[size.ilog2() as usize], value);
            None
        }
        Kind::Compare => {
            let (from, to) = (source()?, target()?);
            let left = machine.space.load(from, size)?;
            let right = machine.space.load(to, size)?;
            Some(alu::subtract(left, right, false, size))
        }
        Kind::Scan => {
            let to = target()?;
            let right = machine.space.load(to, size)?;
            Some(alu::subtract(accumulator & mask(size), right, false, size))
        }
    };
    if let Some(Outcome { flags, which, .. }) = flags {
        machine.state.set_flags(which, flags);
    }
    let step = if machine.state.flags & DIRECTION == 0 {
        size as u64
    } else {
        (size as u64).wrapping_neg()
    };
    let moved: &[usize] = match kind {
        Kind::Move | Kind::Compare => &[RSI, RDI],
        Kind::Load => &[RSI],
        Kind::Store | Kind::Scan => &[RDI],
    };
    for &register in moved {
        let value = machine.state.low(register, width).wrapping_add(step);
        machine.state.set_low(register, width, value);
    }
    Ok(())
}

const fn is_source(kind: OpKind) -> bool {
    matches!(kind, OpKind::MemorySegSI | OpKind::MemorySegESI | OpKind::MemorySegRSI)
}
