//! Moves between vector registers and memory: SSE, AVX and AVX-512 without masks.

use iced_x86::{EncodingKind, Instruction, Mnemonic, Register};

use crate::execute::Machine;
use crate::operand::Place;
use crate::{Failure, VECTOR};

/// What a move moves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// As many bytes as the register has.
    Whole,
    /// The lowest bytes; those above become zero.
    Lowest(usize),
    /// Bytes 0 to 7, and those above stay.
    Low,
    /// Bytes 8 to 15, and those below stay.
    High,
}

/// Bytes of the smallest vector register, above which only VEX and EVEX instructions write.
const XMM: usize = 16;

fn kind(decoded: &Instruction) -> Option<Kind> {
    use Mnemonic as M;
    Some(match decoded.mnemonic() {
        M::Movaps | M::Movapd | M::Movdqa | M::Movdqu | M::Movups | M::Movupd | M::Lddqu => {
            Kind::Whole
        }
        M::Movntps | M::Movntpd | M::Movntdq | M::Movntdqa => Kind::Whole,
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovdqu | M::Vmovups | M::Vmovupd => Kind::Whole,
        M::Vmovdqa32 | M::Vmovdqa64 | M::Vlddqu => Kind::Whole,
        M::Vmovdqu8 | M::Vmovdqu16 | M::Vmovdqu32 | M::Vmovdqu64 => Kind::Whole,
        M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa => Kind::Whole,
        // The string instruction of this name has other operands.
        M::Movss | M::Vmovss | M::Movd | M::Vmovd => Kind::Lowest(4),
        M::Movsd | M::Vmovsd | M::Movq | M::Vmovq => Kind::Lowest(8),
        M::Movlps | M::Movlpd | M::Vmovlps | M::Vmovlpd => Kind::Low,
        M::Movhps | M::Movhpd | M::Vmovhps | M::Vmovhpd => Kind::High,
        _ => return None,
    })
}

/// Whether it is a move of a vector register.
pub(crate) fn uses(decoded: &Instruction) -> bool {
    let is_vector = |index| decoded.op_register(index).is_vector_register();
    kind(decoded).is_some() && (0..decoded.op_count()).any(is_vector)
}

/// Does a move of a vector register.
pub(crate) fn execute(machine: &mut Machine<'_>) -> Result<(), Failure> {
    let decoded = machine.instruction.decoded;
    let kind = kind(&decoded).ok_or(Failure::Unknown)?;
    if decoded.op_mask() != Register::None {
        return Err(Failure::Unknown);
    }
    let last = decoded.op_count() - 1;
    let to = machine.instruction.place(0, &machine.state)?;
    let from = machine.instruction.place(last, &machine.state)?;
    match (to, from) {
        (Place::Register(to), Place::Memory(address)) => load(machine, kind, to, address),
        (Place::Memory(address), Place::Register(from)) => store(machine, kind, address, from),
        _ => Err(Failure::Unknown),
    }
}

/// How many bytes move.
fn length(kind: Kind, register: Register) -> usize {
    match kind {
        Kind::Whole => register.size(),
        Kind::Lowest(bytes) => bytes,
        Kind::Low | Kind::High => 8,
    }
}

fn get(machine: &Machine<'_>, register: Register) -> Result<[u8; VECTOR], Failure> {
    machine.state.vectors.get(register.number()).copied().ok_or(Failure::Unknown)
}

fn load(machine: &mut Machine<'_>, kind: Kind, to: Register, address: u64) -> Result<(), Failure> {
    let decoded = machine.instruction.decoded;
    let old = get(machine, to)?;
    // With three operands the half that stays is another register's.
    let stays = if decoded.op_count() == 3 { get(machine, decoded.op1_register())? } else { old };
    let mut bytes = [0; VECTOR];
    let length = length(kind, to);
    let place = match kind {
        Kind::Whole | Kind::Lowest(_) => 0..length,
        Kind::Low => {
            bytes[8..16].copy_from_slice(&stays[8..16]);
            0..8
        }
        Kind::High => {
            bytes[..8].copy_from_slice(&stays[..8]);
            8..16
        }
    };
    machine.space.read(address, &mut bytes[place])?;
    if decoded.encoding() == EncodingKind::Legacy {
        bytes[XMM..].copy_from_slice(&old[XMM..]);
    }
    machine.state.vectors[to.number()] = bytes;
    machine.state.written |= 1 << to.number();
    Ok(())
}

fn store(
    machine: &mut Machine<'_>,
    kind: Kind,
    address: u64,
    from: Register,
) -> Result<(), Failure> {
    let bytes = get(machine, from)?;
    let from_byte = if kind == Kind::High { 8 } else { 0 };
    machine.space.write(address, &bytes[from_byte..from_byte + length(kind, from)])
}
