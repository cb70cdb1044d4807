//! The forms of instructions that are done, and random instances of them.

use iced_x86::{
    Code, CpuidFeature, Instruction, MemoryOperand, Mnemonic, OpCodeOperandKind as Operand, OpKind,
    Register,
};
use ioasis_x86::{Mode, State};

use crate::processor::{CODE, DATA, PAGES};
use crate::random::Random;

/// An instruction, and what it finds.
pub(crate) struct Case {
    pub(crate) instruction: Instruction,
    pub(crate) mode: Mode,
    pub(crate) state: State,
    pub(crate) memory: Vec<u8>,
}

/// The mnemonics that are done.
const MNEMONICS: &[Mnemonic] = {
    use Mnemonic as M;
    &[
        M::Mov,
        M::Movnti,
        M::Movzx,
        M::Movsx,
        M::Movsxd,
        M::Movbe,
        M::Add,
        M::Adc,
        M::Sub,
        M::Sbb,
        M::And,
        M::Or,
        M::Xor,
        M::Cmp,
        M::Test,
        M::Inc,
        M::Dec,
        M::Neg,
        M::Not,
        M::Shl,
        M::Sal,
        M::Shr,
        M::Sar,
        M::Rol,
        M::Ror,
        M::Rcl,
        M::Rcr,
        M::Shld,
        M::Shrd,
        M::Shlx,
        M::Shrx,
        M::Sarx,
        M::Rorx,
        M::Bt,
        M::Bts,
        M::Btr,
        M::Btc,
        M::Xchg,
        M::Xadd,
        M::Cmpxchg,
        M::Cmpxchg8b,
        M::Cmpxchg16b,
        M::Imul,
        M::Mul,
        M::Andn,
        M::Popcnt,
        M::Lzcnt,
        M::Tzcnt,
        M::Push,
        M::Pop,
        M::Call,
        M::Jmp,
        M::Seto,
        M::Setno,
        M::Setb,
        M::Setae,
        M::Sete,
        M::Setne,
        M::Setbe,
        M::Seta,
        M::Sets,
        M::Setns,
        M::Setp,
        M::Setnp,
        M::Setl,
        M::Setge,
        M::Setle,
        M::Setg,
        M::Cmovo,
        M::Cmovno,
        M::Cmovb,
        M::Cmovae,
        M::Cmove,
        M::Cmovne,
        M::Cmovbe,
        M::Cmova,
        M::Cmovs,
        M::Cmovns,
        M::Cmovp,
        M::Cmovnp,
        M::Cmovl,
        M::Cmovge,
        M::Cmovle,
        M::Cmovg,
        M::Movsb,
        M::Movsw,
        M::Movsd,
        M::Movsq,
        M::Stosb,
        M::Stosw,
        M::Stosd,
        M::Stosq,
        M::Lodsb,
        M::Lodsw,
        M::Lodsd,
        M::Lodsq,
        M::Cmpsb,
        M::Cmpsw,
        M::Cmpsd,
        M::Cmpsq,
        M::Scasb,
        M::Scasw,
        M::Scasd,
        M::Scasq,
        M::Movaps,
        M::Movapd,
        M::Movdqa,
        M::Movdqu,
        M::Movups,
        M::Movupd,
        M::Lddqu,
        M::Movntps,
        M::Movntpd,
        M::Movntdq,
        M::Movntdqa,
        M::Vmovaps,
        M::Vmovapd,
        M::Vmovdqa,
        M::Vmovdqu,
        M::Vmovups,
        M::Vmovupd,
        M::Vmovdqa32,
        M::Vmovdqa64,
        M::Vlddqu,
        M::Vmovdqu8,
        M::Vmovdqu16,
        M::Vmovdqu32,
        M::Vmovdqu64,
        M::Vmovntps,
        M::Vmovntpd,
        M::Vmovntdq,
        M::Vmovntdqa,
        M::Movss,
        M::Vmovss,
        M::Movd,
        M::Vmovd,
        M::Vmovsd,
        M::Movq,
        M::Vmovq,
        M::Movlps,
        M::Movlpd,
        M::Vmovlps,
        M::Vmovlpd,
        M::Movhps,
        M::Movhpd,
        M::Vmovhps,
        M::Vmovhpd,
    ]
};

/// What every processor of the architecture has.
pub(crate) fn is_basic(feature: &CpuidFeature) -> bool {
    use CpuidFeature as F;
    [
        F::INTEL8086,
        F::INTEL186,
        F::INTEL286,
        F::INTEL386,
        F::INTEL486,
        F::X64,
        F::SSE,
        F::SSE2,
        F::CX8,
        F::CMOV,
    ]
    .contains(feature)
}

/// The forms with a memory operand.
pub(crate) fn supported() -> Vec<Code> {
    Code::values().filter(|&code| MNEMONICS.contains(&code.mnemonic()) && is_done(code)).collect()
}

fn operands(code: Code) -> Vec<Operand> {
    let form = code.op_code();
    (0..form.op_count()).map(|index| form.op_kind(index)).collect()
}

fn is_done(code: Code) -> bool {
    let form = code.op_code();
    let operands = operands(code);
    let has_memory = operands.iter().any(|&kind| is_memory(kind) || is_string(kind));
    // Far jumps, segments, MMX and tables of other registers are not done.
    let other = operands.iter().any(|kind| {
        let name = format!("{kind:?}").to_lowercase();
        ["seg_reg", "mm_", "br", "far", "sibmem", "vsib", "cr_", "dr_", "tr_", "bnd"]
            .iter()
            .any(|part| name.starts_with(part))
    });
    let far = format!("{code:?}");
    has_memory
        && !other
        && !far.contains("1616")
        && !far.contains("1632")
        && !far.contains("1664")
        && (form.mode64() || form.mode32())
        && !far.ends_with("_sae")
        && !far.contains("_Sreg")
        && !far.contains("Jmp_rm16")
        && !far.contains("Call_rm16")
        && !far.contains("Jmpe")
        && !far.contains("Cmpxchg486")
        && !far.contains("Cmpsd_xmm")
        && !far.contains("MVEX")
        && !far.contains("KNC")
}

fn is_memory(kind: Operand) -> bool {
    use Operand as O;
    matches!(
        kind,
        O::mem
            | O::mem_offs
            | O::r8_or_mem
            | O::r16_or_mem
            | O::r32_or_mem
            | O::r64_or_mem
            | O::xmm_or_mem
            | O::ymm_or_mem
            | O::zmm_or_mem
    )
}

fn is_string(kind: Operand) -> bool {
    matches!(kind, Operand::seg_rSI | Operand::es_rDI)
}

/// A random instance of a form; none where registers and modes do not fit.
pub(crate) fn case(code: Code, random: &mut Random, vectors: (usize, usize)) -> Option<Case> {
    let form = code.op_code();
    let mode = match (form.mode64(), form.mode32()) {
        (true, true) if random.one_in(4) => Mode::Bits32,
        (true, _) => Mode::Bits64,
        _ => Mode::Bits32,
    };
    let mut state = state(random, mode, vectors);
    let mut memory = contents(random);
    let size = form.memory_size().size().max(1);
    let target = target(random, code, size);
    if matches!(code.mnemonic(), Mnemonic::Call | Mnemonic::Jmp) {
        // An address that a program may have.
        let at = usize::try_from(target - DATA).expect("it lies there");
        memory[at..at + 8].copy_from_slice(&(random.word() >> 17).to_le_bytes());
    }
    let registers = if mode == Mode::Bits64 { 16 } else { 8 };
    let place = place(random, &mut state, mode, target, code, registers)?;
    let mut instruction = Instruction::new();
    instruction.set_code(code);
    for (index, kind) in (0..).zip(operands(code)) {
        fill(&mut instruction, index, kind, random, mode, vectors, &place)?;
    }
    prefixes(&mut instruction, random);
    string(&mut instruction, &mut state, random, mode, target, size);
    bit_string(&instruction, &mut state, random)?;
    if matches!(code.mnemonic(), Mnemonic::Cmpxchg | Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b)
        && random.one_in(2)
        && ![instruction.memory_base(), instruction.memory_index()]
            .iter()
            .any(|register| [Register::RAX, Register::RDX].contains(&register.full_register()))
    {
        expect(&mut state, &memory, target, size);
    }
    let case = Case { instruction, mode, state, memory };
    (!has_undefined_result(&case)).then_some(case)
}

/// How far a shift or rotation goes.
fn count(case: &Case) -> u64 {
    let last = case.instruction.op_count() - 1;
    let count = match case.instruction.try_immediate(last) {
        Ok(count) => count,
        Err(_) => case.state.general[1],
    };
    count & if case.instruction.memory_size().size() == 8 { 63 } else { 31 }
}

/// SHLD and SHRD of 2 bytes by more than 16.
fn has_undefined_result(case: &Case) -> bool {
    let double = matches!(case.instruction.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd);
    double && case.instruction.memory_size().size() == 2 && count(case) > 16
}

fn state(random: &mut Random, mode: Mode, (count, bytes): (usize, usize)) -> State {
    let mut state = State { ip: CODE, ..State::default() };
    for register in &mut state.general {
        *register = random.value();
        if mode == Mode::Bits32 {
            *register &= 0xffff_ffff;
        }
    }
    // Flags of results and the direction; the interrupt flag and bit 1 are always set.
    state.flags = random.word() & 0xcd5 | 0x202;
    // The stack is in the last page, which is not trapped.
    state.general[4] = DATA + 3 * 4096 + 512 + random.word() % 128 * 8;
    state.vectors = (0..count)
        .map(|_| {
            let mut vector = [0; 64];
            vector[..bytes].fill_with(|| u8::try_from(random.word() & 0xff).expect("a byte"));
            vector
        })
        .collect();
    state
}

fn contents(random: &mut Random) -> Vec<u8> {
    let mut memory: Vec<u8> = (0..PAGES * 512).flat_map(|_| random.word().to_le_bytes()).collect();
    if random.one_in(4) {
        memory.fill(0);
    }
    memory
}

/// Where the operand lies: in the trapped page, often across one of its ends.
fn target(random: &mut Random, code: Code, size: usize) -> u64 {
    let start = DATA + 4096;
    let name = format!("{:?}", code.mnemonic()).to_lowercase();
    let aligned = ["movap", "movdqa", "movnt", "cmpxchg16b"].iter().any(|part| name.contains(part))
        && !name.contains("movnti");
    let address = match random.below(4) {
        0 => start - random.below(size.max(2)) as u64,
        1 => start + 4096 - random.below(size + 1) as u64,
        _ => start + random.word() % 4096,
    };
    if aligned {
        (address & !(size as u64 - 1)).max(start).min(start + 4096 - size as u64)
    } else {
        address
    }
}

const GENERAL: [Register; 16] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RBX,
    Register::RSP,
    Register::RBP,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];
const HALVES: [Register; 16] = [
    Register::EAX,
    Register::ECX,
    Register::EDX,
    Register::EBX,
    Register::ESP,
    Register::EBP,
    Register::ESI,
    Register::EDI,
    Register::R8D,
    Register::R9D,
    Register::R10D,
    Register::R11D,
    Register::R12D,
    Register::R13D,
    Register::R14D,
    Register::R15D,
];

/// A memory operand that leads to `target`; sets the registers it is made of.
fn place(
    random: &mut Random,
    state: &mut State,
    mode: Mode,
    target: u64,
    code: Code,
    count: usize,
) -> Option<MemoryOperand> {
    let wide = mode == Mode::Bits64;
    if operands(code).contains(&Operand::mem_offs) {
        let size = if wide { 8 } else { 4 };
        return Some(MemoryOperand::with_displ(target, size));
    }
    if wide && random.one_in(8) {
        return Some(MemoryOperand::with_base_displ(Register::RIP, target.cast_signed()));
    }
    let small = wide && random.one_in(8);
    let names = if wide && !small { &GENERAL } else { &HALVES };
    let mut segment = Register::None;
    let mut from = target;
    if random.one_in(8) && wide {
        segment = Register::GS;
        state.gs_base = random.word() % 0x1000;
        from -= state.gs_base;
    }
    let base = random.below(count);
    let index = random.below(count);
    let scale = 1_u32 << random.below(4);
    let has_index = index != 4 && index != base && random.one_in(2) && base != 4;
    let mut displacement = match random.below(3) {
        0 => 0,
        1 => i64::try_from(random.word() % 256).ok()? - 128,
        _ => i64::try_from(random.word() % 0x2_0000).ok()? - 0x1_0000,
    };
    if has_index {
        state.general[index] = random.word() % 0x100;
    }
    let offset = if has_index { state.general[index] * u64::from(scale) } else { 0 };
    if base == 4 {
        // The stack stays where it is; what POP adds counts too.
        let pops = if code.mnemonic() == Mnemonic::Pop { pops(code) } else { 0 };
        displacement = from.wrapping_sub(state.general[4] + pops).cast_signed();
    } else {
        state.general[base] = from.wrapping_sub(offset).wrapping_sub(displacement.cast_unsigned());
        if !wide || small {
            state.general[base] &= 0xffff_ffff;
        }
        if small {
            // An address of 4 bytes looks at no more of the register.
            state.general[base] |= random.word() << 32;
        }
    }
    let index = if has_index { names[index] } else { Register::None };
    let size = if displacement == 0 {
        0
    } else if wide && !small {
        8
    } else {
        4
    };
    Some(MemoryOperand::new(names[base], index, scale, displacement, size.min(1), false, segment))
}

fn pops(code: Code) -> u64 {
    match format!("{code:?}") {
        name if name.contains("m16") => 2,
        name if name.contains("m32") => 4,
        _ => 8,
    }
}

fn fill(
    instruction: &mut Instruction,
    index: u32,
    kind: Operand,
    random: &mut Random,
    mode: Mode,
    vectors: (usize, usize),
    place: &MemoryOperand,
) -> Option<()> {
    use Operand as O;
    if is_memory(kind) {
        let memory = Instruction::with1(Code::Not_rm8, *place).ok()?;
        instruction.try_set_op_kind(index, OpKind::Memory).ok()?;
        instruction.set_memory_base(memory.memory_base());
        instruction.set_memory_index(memory.memory_index());
        instruction.set_memory_index_scale(memory.memory_index_scale());
        instruction.set_memory_displ_size(memory.memory_displ_size());
        instruction.set_memory_displacement64(memory.memory_displacement64());
        instruction.set_segment_prefix(place.segment_prefix);
        return Some(());
    }
    let count = if mode == Mode::Bits64 { 16 } else { 8 };
    let number = random.below(count);
    let register = match kind {
        O::r8_reg | O::r8_opcode => byte(random, mode),
        O::r16_reg | O::r16_opcode => word_of(number),
        O::r32_reg | O::r32_opcode | O::r32_vvvv => HALVES[number],
        O::r64_reg | O::r64_opcode | O::r64_vvvv => GENERAL[number],
        O::al => Register::AL,
        O::ax => Register::AX,
        O::eax => Register::EAX,
        O::rax => Register::RAX,
        O::cl => Register::CL,
        O::xmm_reg | O::xmm_vvvv => vector(Register::XMM0, random, mode, vectors, instruction),
        O::ymm_reg => vector(Register::YMM0, random, mode, vectors, instruction),
        O::zmm_reg => vector(Register::ZMM0, random, mode, vectors, instruction),
        O::imm8 => return immediate(instruction, index, OpKind::Immediate8, random.word() & 0xff),
        O::imm8_const_1 => return immediate(instruction, index, OpKind::Immediate8, 1),
        O::imm8sex16 => return signed(instruction, index, OpKind::Immediate8to16, random),
        O::imm8sex32 => return signed(instruction, index, OpKind::Immediate8to32, random),
        O::imm8sex64 => return signed(instruction, index, OpKind::Immediate8to64, random),
        O::imm16 => {
            return immediate(instruction, index, OpKind::Immediate16, random.value() & 0xffff);
        }
        O::imm32 => {
            return immediate(
                instruction,
                index,
                OpKind::Immediate32,
                random.value() & 0xffff_ffff,
            );
        }
        O::imm32sex64 => {
            instruction.try_set_op_kind(index, OpKind::Immediate32to64).ok()?;
            let value = i32::from_le_bytes(random.value().to_le_bytes()[..4].try_into().ok()?);
            return instruction.try_set_immediate_i64(index, value.into()).ok();
        }
        O::seg_rSI | O::es_rDI => return Some(()),
        _ => return None,
    };
    instruction.try_set_op_kind(index, OpKind::Register).ok()?;
    instruction.try_set_op_register(index, register).ok()
}

fn immediate(instruction: &mut Instruction, index: u32, kind: OpKind, value: u64) -> Option<()> {
    instruction.try_set_op_kind(index, kind).ok()?;
    instruction.try_set_immediate_u64(index, value).ok()
}

fn signed(
    instruction: &mut Instruction,
    index: u32,
    kind: OpKind,
    random: &mut Random,
) -> Option<()> {
    instruction.try_set_op_kind(index, kind).ok()?;
    let value = i8::from_le_bytes([random.value().to_le_bytes()[0]]);
    instruction.try_set_immediate_i64(index, value.into()).ok()
}

fn byte(random: &mut Random, mode: Mode) -> Register {
    use Register as R;
    let all = [
        R::AL,
        R::CL,
        R::DL,
        R::BL,
        R::AH,
        R::CH,
        R::DH,
        R::BH,
        R::SPL,
        R::BPL,
        R::SIL,
        R::DIL,
        R::R8L,
        R::R15L,
    ];
    all[random.below(if mode == Mode::Bits64 { all.len() } else { 8 })]
}

fn word_of(number: usize) -> Register {
    use Register as R;
    [
        R::AX,
        R::CX,
        R::DX,
        R::BX,
        R::SP,
        R::BP,
        R::SI,
        R::DI,
        R::R8W,
        R::R9W,
        R::R10W,
        R::R11W,
        R::R12W,
        R::R13W,
        R::R14W,
        R::R15W,
    ][number]
}

fn vector(
    first: Register,
    random: &mut Random,
    mode: Mode,
    (count, _): (usize, usize),
    instruction: &Instruction,
) -> Register {
    let wide = instruction.code().op_code().encoding() == iced_x86::EncodingKind::EVEX;
    let count = if mode == Mode::Bits32 {
        8
    } else if wide {
        count
    } else {
        16
    };
    first + u32::try_from(random.below(count)).expect("below 32")
}

/// LOCK and REP where the form allows it.
fn prefixes(instruction: &mut Instruction, random: &mut Random) {
    let form = instruction.code().op_code();
    if form.can_use_lock_prefix() && instruction.op0_kind() == OpKind::Memory && random.one_in(3) {
        instruction.set_has_lock_prefix(true);
    }
    let is_string = form.op_count() > 0 && operands(instruction.code()).into_iter().any(is_string);
    if is_string && form.can_use_repne_prefix() && random.one_in(3) {
        instruction.set_has_repne_prefix(true);
    } else if is_string && form.can_use_rep_prefix() && random.one_in(2) {
        instruction.set_has_rep_prefix(true);
    }
}

/// Sets up a string: one end, or both, around the target; its counter small.
fn string(
    instruction: &mut Instruction,
    state: &mut State,
    random: &mut Random,
    mode: Mode,
    target: u64,
    size: usize,
) {
    let kinds = operands(instruction.code());
    if !kinds.iter().any(|&kind| is_string(kind)) {
        return;
    }
    let small = mode == Mode::Bits32 || random.one_in(4);
    for (index, kind) in (0..).zip(kinds) {
        let kind = match kind {
            Operand::seg_rSI if small => OpKind::MemorySegESI,
            Operand::seg_rSI => OpKind::MemorySegRSI,
            Operand::es_rDI if small => OpKind::MemoryESEDI,
            Operand::es_rDI => OpKind::MemoryESRDI,
            _ => continue,
        };
        instruction.set_op_kind(index, kind);
    }
    let other = DATA + 64 * size as u64 + random.word() % 256;
    let (source, target) = if random.one_in(2) { (target, other) } else { (other, target) };
    (state.general[6], state.general[7]) = (source, target);
    state.general[1] = random.word() % 40;
    if instruction.op_count() == 2 && !kinds_have_both(instruction) {
        (state.general[6], state.general[7]) =
            if random.one_in(2) { (source, target) } else { (target, source) };
    }
}

fn kinds_have_both(instruction: &Instruction) -> bool {
    operands(instruction.code()).into_iter().filter(|&kind| is_string(kind)).count() == 2
}

/// The number of a bit lies in a register, and the operand moves by it: not too far. None where an
/// address is made of the same register.
fn bit_string(instruction: &Instruction, state: &mut State, random: &mut Random) -> Option<()> {
    use Mnemonic as M;
    let is_bit = matches!(instruction.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc);
    if !is_bit || instruction.op1_kind() != OpKind::Register {
        return Some(());
    }
    let number = instruction.op1_register().full_register();
    let used = [instruction.memory_base(), instruction.memory_index(), Register::RSP];
    if used.iter().any(|register| register.full_register() == number) {
        return None;
    }
    // Up to 64 bytes to either side.
    state.general[number.number()] = (random.word() % 1024).wrapping_sub(512);
    Some(())
}

/// Makes a comparison with memory come out equal.
fn expect(state: &mut State, memory: &[u8], target: u64, size: usize) {
    let at = usize::try_from(target - DATA).expect("it lies there");
    let Some(bytes) = memory.get(at..at + size) else { return };
    let half = if size == 16 { 8 } else { size.min(8) };
    let mut low = state.general[0].to_le_bytes();
    low[..half].copy_from_slice(&bytes[..half]);
    state.general[0] = u64::from_le_bytes(low);
    if size == 16 {
        state.general[2] = u64::from_le_bytes(bytes[8..].try_into().expect("eight bytes"));
    }
}

/// The flags that the manual leaves undefined.
pub(crate) fn undefined_flags(case: &Case) -> u64 {
    use Mnemonic as M;
    const CARRY: u64 = 1;
    const PARITY: u64 = 4;
    const ADJUST: u64 = 0x10;
    const ZERO: u64 = 0x40;
    const SIGN: u64 = 0x80;
    const OVERFLOW: u64 = 0x800;
    let instruction = &case.instruction;
    let bits = instruction.memory_size().size() as u64 * 8;
    match instruction.mnemonic() {
        M::And | M::Or | M::Xor | M::Test => ADJUST,
        M::Andn => ADJUST | PARITY,
        M::Shl | M::Sal | M::Shr | M::Sar | M::Shld | M::Shrd => {
            let beyond = if count(case) >= bits { CARRY } else { 0 };
            match count(case) {
                0 => 0,
                1 => ADJUST | beyond,
                _ => ADJUST | OVERFLOW | beyond,
            }
        }
        M::Rol | M::Ror | M::Rcl | M::Rcr if count(case) > 1 => OVERFLOW,
        M::Bt | M::Bts | M::Btr | M::Btc => OVERFLOW | SIGN | ADJUST | PARITY,
        M::Imul | M::Mul => SIGN | ZERO | ADJUST | PARITY,
        M::Lzcnt | M::Tzcnt => OVERFLOW | SIGN | ADJUST | PARITY,
        _ => 0,
    }
}
