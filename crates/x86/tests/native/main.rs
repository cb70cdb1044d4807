//! Random instructions of every form that is done, beside the processor.
//!
//! A child stands still in ptrace. For each instruction its registers and its memory are set, it
//! runs the instruction by itself, and what it has then is compared with what
//! [`Instruction::execute`] makes of the same: registers, flags that the manual defines, memory.
//! The page in the middle of the memory is trapped for one and plain for the other.
//!
//! `IOASIS_SEQUENCES` says how many instructions, `IOASIS_SEED` which.

mod forms;
mod processor;
mod random;

use std::collections::BTreeMap;

use iced_x86::{Code, Encoder, Mnemonic};
use ioasis_x86::{Bus, Done, Failure, Fault, Instruction, Memory, Mode, State};

use forms::Case;
use processor::{CODE, DATA, Processor, Ran};
use random::Random;

const PAGE: usize = 4096;
/// The page that is trapped.
const TRAPPED: usize = 1;

/// Memory of which a page is trapped; both halves refuse what is the other's.
struct Half<'a> {
    bytes: &'a mut Vec<u8>,
    trapped: bool,
    touched: u32,
}

impl Half<'_> {
    fn at(&self, address: u64, length: usize) -> Result<std::ops::Range<usize>, Fault> {
        let fault = Fault { address };
        let from = usize::try_from(address.checked_sub(DATA).ok_or(fault)?).map_err(|_| fault)?;
        let inside = from + length <= self.bytes.len();
        let in_trapped = from / PAGE == TRAPPED && (from + length - 1) / PAGE == TRAPPED;
        assert!(length <= 64 && from / PAGE == (from + length - 1) / PAGE, "one page at a time");
        if inside && in_trapped == self.trapped { Ok(from..from + length) } else { Err(fault) }
    }
}

fn is_trapped(address: u64) -> bool {
    address.wrapping_sub(DATA) / PAGE as u64 == TRAPPED as u64
}

impl Bus for Half<'_> {
    fn is_trapped(&self, address: u64) -> bool {
        is_trapped(address)
    }

    fn load(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        let at = self.at(address, bytes.len())?;
        self.touched += 1;
        bytes.copy_from_slice(&self.bytes[at]);
        Ok(())
    }

    fn store(&mut self, address: u64, bytes: &[u8]) -> Result<(), Fault> {
        let at = self.at(address, bytes.len())?;
        self.touched += 1;
        self.bytes[at].copy_from_slice(bytes);
        Ok(())
    }
}

impl Memory for Half<'_> {
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        let at = self.at(address, bytes.len())?;
        bytes.copy_from_slice(&self.bytes[at]);
        Ok(())
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Fault> {
        let at = self.at(address, bytes.len())?;
        self.bytes[at].copy_from_slice(bytes);
        Ok(())
    }
}

/// What an instruction leaves.
#[derive(Debug, PartialEq)]
struct Left {
    state: State,
    memory: Vec<u8>,
}

/// Does a case here; how many calls it took, and how often the trapped page was touched.
fn emulate(case: &Case, code: &[u8]) -> Result<(Left, u32), Failure> {
    let instruction = Instruction::decode(code, CODE, case.mode)?;
    let mut state = case.state.clone();
    let mut plain = case.memory.clone();
    let mut device = case.memory.clone();
    let mut bus = Half { bytes: &mut device, trapped: true, touched: 0 };
    let mut memory = Half { bytes: &mut plain, trapped: false, touched: 0 };
    for _ in 0..1000 {
        if instruction.execute(&mut state, &mut bus, &mut memory)? == Done::Whole {
            let touched = bus.touched;
            plain[TRAPPED * PAGE..][..PAGE].copy_from_slice(&device[TRAPPED * PAGE..][..PAGE]);
            state.written = 0;
            return Ok((Left { state, memory: plain }, touched));
        }
    }
    panic!("{:?} does not end", case.instruction.code());
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(otherwise)
}

fn encode(case: &Case) -> Option<Vec<u8>> {
    let bits = if case.mode == Mode::Bits64 { 64 } else { 32 };
    let mut encoder = Encoder::new(bits);
    encoder.encode(&case.instruction, CODE).ok()?;
    Some(encoder.take_buffer())
}

/// Runs one case on both; how often the device was touched, if the processor knows the instruction.
fn compare(processor: &mut Processor, case: &Case) -> Option<u32> {
    let code = encode(case)?;
    let what = || format!("{:?} {:02x?} in {:?}", case.instruction.code(), code, case.mode);
    let done = emulate(case, &code);
    let (mut ours, touched) = done.unwrap_or_else(|failure| panic!("{}: {failure:?}", what()));
    let (state, memory) = match processor.run(case, &code) {
        Ran::Done(state, memory) => (*state, memory),
        Ran::Unknown => return None,
        Ran::Faulted(signal) => panic!("{}: signal {signal}", what()),
    };
    let mut theirs = Left { state, memory };
    let undefined = forms::undefined_flags(case);
    for left in [&mut ours, &mut theirs] {
        left.state.flags &= 0xcd5 & !undefined;
    }
    if case.mode == Mode::Bits32 {
        // 32-bit code has no others, and the processor may lose them.
        for left in [&mut ours, &mut theirs] {
            left.state.general[8..].fill(0);
            left.state.vectors.iter_mut().skip(8).for_each(|vector| vector.fill(0));
        }
    }
    let (first, second) = (&ours.memory, &theirs.memory);
    let differs = (0..first.len()).find(|&at| first[at] != second[at]);
    assert_eq!(ours.state, theirs.state, "{} of {:x?}", what(), case.state);
    assert_eq!(differs, None, "{}: memory at that offset of {:x?}", what(), case.state);
    Some(touched)
}

#[test]
fn a_random_instruction_does_to_registers_and_memory_what_the_processor_does() {
    let count = number("IOASIS_SEQUENCES", 2000);
    let mut random = Random::new(number("IOASIS_SEED", 0));
    let mut processor = Processor::start();
    let codes = forms::supported();
    let mut known: BTreeMap<Mnemonic, u64> = BTreeMap::new();
    let mut trapped = 0;
    for _ in 0..count {
        let code = codes[random.below(codes.len())];
        let Some(case) = forms::case(code, &mut random, processor.vectors()) else { continue };
        if let Some(touched) = compare(&mut processor, &case) {
            *known.entry(code.mnemonic()).or_default() += 1;
            trapped += u64::from(touched != 0);
        }
    }
    let compared: u64 = known.values().sum();
    println!("{compared} of {count} compared, {trapped} trapped, {} mnemonics", known.len());
    assert!(compared > count / 2 && trapped > count / 3, "{compared}, {trapped} of {count}");
}

#[test]
fn every_form_is_compared_at_least_once_on_a_processor_that_knows_it() {
    let mut random = Random::new(number("IOASIS_SEED", 0) ^ 0x5eed);
    let mut processor = Processor::start();
    let (mut missed, mut found) = (Vec::new(), 0);
    for code in forms::supported() {
        // Some instances have a result that the manual leaves undefined.
        let tries = (0..30).filter(|_| {
            forms::case(code, &mut random, processor.vectors())
                .and_then(|case| compare(&mut processor, &case))
                .is_some()
        });
        if tries.take(3).count() == 0 {
            missed.push(code);
        } else {
            found += 1;
        }
    }
    println!("{found} forms, not {missed:?}");
    // What every 64-bit processor has must have been compared.
    let basic = |code: &&Code| code.cpuid_features().iter().all(forms::is_basic);
    assert_eq!(missed.iter().find(basic), None);
    assert!(found > 400, "{found}");
}
