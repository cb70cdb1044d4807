//! A guest whose page tables hold anything.
//!
//! [`run`] takes bytes for the words of a guest's first stage, walks them over a second stage in
//! each pair of formats that hardware nests, and checks that every walk ends after one read a
//! level, reads aligned words of the guest's memory only and leads nowhere else. It also asks every
//! format what it makes of the words. The fuzz target and the tests share it.
//!
//! An input: which pair, how many words, the address of the root, the words, then requests:
//! address, permissions, lg2 of the length. The word at an address is the one with the number of
//! the address, modulo their count, so that whatever a word points to is there.

use std::cell::Cell;
use std::sync::Arc;

use ioasis_iommupt::fmt::{
    AmdV1, AmdV2, ArmS1, ArmS2, Sv39, Sv39x4, Sv48, Sv48x4, Sv57, Sv57x4, VtdFs, VtdSs,
};
use ioasis_iommupt::nested::{Cause, Nested, NestedFault, Stage, TableMemory};
use ioasis_iommupt::{
    Config, Context, Counted, Entry, Format, Iova, IovaRange, Pa, PageTable, Prot, Run,
};

/// Where the guest's memory begins in the output space.
const BASE: u64 = 1 << 32;
/// Bytes of it, from the guest's address 0.
const GUEST: u64 = 1 << 22;
/// The guest may only read this half, and nothing is here.
const READ_ONLY: u64 = GUEST / 2;
const HOLE: u64 = GUEST / 4;
const HOLE_LENGTH: u64 = 1 << 16;

/// The rest of an input; zeroes when it ran out.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn word(&mut self) -> u64 {
        let mut bytes = [0; 8];
        bytes.fill_with(|| self.byte());
        u64::from_le_bytes(bytes)
    }
}

/// What a device asks for.
struct Request {
    iova: u64,
    need: Prot,
    /// What the guest's context says of it.
    context: Context,
    length: u64,
}

/// The guest's memory.
struct Words {
    words: Vec<u64>,
    reads: Cell<u32>,
}

impl TableMemory for Words {
    fn word(&self, pa: Pa) -> Option<u64> {
        assert!((BASE..BASE + GUEST).contains(&pa.0), "{pa:?} is not the guest's");
        assert!(pa.0.is_multiple_of(8), "{pa:?} is no word");
        let inside = pa.0 - BASE;
        assert!(!(HOLE..HOLE + HOLE_LENGTH).contains(&inside), "{pa:?} is a hole");
        self.reads.set(self.reads.get() + 1);
        let number = usize::try_from(inside / 8).expect("few");
        Some(self.words[number % self.words.len()])
    }
}

/// Does what `input` says and returns how many requests were translated.
///
/// # Panics
///
/// If a walk reads or leads outside the guest's memory, takes more steps than levels, or a format
/// contradicts itself.
#[must_use]
pub fn run(input: &[u8]) -> u32 {
    let mut input = Input(input);
    let pair = usize::from(input.byte()) % PAIRS.len();
    let count = usize::from(input.byte()) % 64 + 1;
    let root = input.word();
    let words: Vec<u64> = (0..count).map(|_| input.word()).collect();
    let mut requests = Vec::new();
    while !input.0.is_empty() && requests.len() < 64 {
        let iova = input.word();
        // What is done, by whom; and, inverted, so that zeroes allow everything, a context.
        let asked = u32::from(input.byte());
        let who = if asked >> 3 & 1 == 1 { Prot::PRIVILEGED } else { Prot::empty() };
        let need = Prot::from_bits_truncate(asked & 0b111) | who;
        let context = Context::from_bits_truncate(!asked >> 4 & 0b1111);
        let length = 1 << (input.byte() % 63);
        requests.push(Request { iova, need, context, length });
    }
    PAIRS[pair](root, Words { words, reads: Cell::new(0) }, &requests)
}

/// A pair of formats, driven by an input.
type Pair = fn(u64, Words, &[Request]) -> u32;

/// Those that hardware nests: VT-d 3.8, AMD IOMMU 2.2.6, SMMUv3 3.4, RISC-V privileged 21.5.
const PAIRS: &[Pair] = &[
    nest::<VtdFs<4>, VtdSs<4>>,
    nest::<VtdFs<5>, VtdSs<5>>,
    nest::<VtdFs<4>, VtdSs<3>>,
    nest::<AmdV2<4>, AmdV1<4>>,
    nest::<AmdV2<5>, AmdV1<6>>,
    nest::<AmdV2<4>, AmdV1<3>>,
    nest::<Sv39, Sv39x4>,
    nest::<Sv48, Sv48x4>,
    nest::<Sv57, Sv57x4>,
    nest::<ArmS1<12>, ArmS2<12>>,
    nest::<ArmS1<14>, ArmS2<14>>,
    nest::<ArmS1<16>, ArmS2<16>>,
    nest::<ArmS1<12, 52>, ArmS2<12, 52>>,
    nest::<ArmS1<14, 52>, ArmS2<14, 52>>,
    nest::<ArmS1<16, 52>, ArmS2<16, 52>>,
    nest::<ArmS1<12>, ArmS2<16>>,
    nest::<ArmS1<16, 52>, ArmS2<12>>,
];

fn nest<S1: Format, S2: Format>(root: u64, words: Words, requests: &[Request]) -> u32 {
    for &word in &words.words {
        judge::<S1>(word);
        judge::<S2>(word);
    }
    let config = Config::new(Arc::new(Counted::default()));
    let (mut writer, reader) = PageTable::<S2>::new(config).expect("there is memory");
    let all = Prot::READ | Prot::WRITE | Prot::EXEC;
    let half = |start, prot| (Iova(start), [Run { pa: Pa(BASE + start), length: GUEST / 2 }], prot);
    for (iova, runs, prot) in [half(0, all), half(READ_ONLY, Prot::READ | Prot::EXEC)] {
        writer.map(iova, &runs, prot).expect("it fits every format");
    }
    let hole = IovaRange::new(Iova(HOLE), HOLE_LENGTH).expect("a range");
    writer.unmap(hole, &mut |_, _| {}).expect("there is memory");

    let mut translated = 0;
    for request in requests {
        words.reads.set(0);
        let nested = Nested::<S1>::new(root).with_context(request.context);
        let ask = || {
            let iova = Iova(request.iova);
            nested.translate(iova, request.length, request.need, &*reader, &words)
        };
        let found = ask();
        assert!(words.reads.get() <= S1::TOP_LEVEL + 1, "more reads than levels");
        match found {
            Ok(run) => {
                translated += 1;
                check_run(run, request);
            }
            Err(fault) => check_fault::<S1, S2>(fault, request),
        }
        assert_eq!(found, ask(), "the same words say the same");
    }
    translated
}

fn check_run(run: Run, request: &Request) {
    assert!(run.length > 0 && run.length <= request.length, "{run:?}");
    assert!(
        run.pa.0 >= BASE && run.pa.0 + run.length <= BASE + GUEST,
        "{run:?} is not the guest's"
    );
    if request.need.contains(Prot::WRITE) {
        assert!(run.pa.0 + run.length <= BASE + READ_ONLY, "{run:?} is read-only");
    }
}

fn check_fault<S1: Format, S2: Format>(fault: NestedFault, request: &Request) {
    assert_eq!(fault.iova, Iova(request.iova));
    let top = if fault.stage == Stage::First { S1::TOP_LEVEL } else { S2::TOP_LEVEL };
    assert!(fault.level <= top, "{fault:?}");
    assert_eq!(fault.ipa.is_some(), fault.stage != Stage::First, "{fault:?}");
    if let Cause::Permission(missing) = fault.cause {
        assert!(!missing.is_empty(), "{fault:?}");
        let privileged = request.need.contains(Prot::PRIVILEGED);
        assert!(!(privileged && missing.contains(Prot::PRIVILEGED)), "{fault:?}");
    }
}

/// A format's word of a word, at every level.
fn judge<F: Format>(word: u64) {
    for level in 0..=F::TOP_LEVEL {
        let entry = F::decode(word, level);
        let reserved = F::reserved(word, level);
        let _ = (F::under(word, word), F::is_dirty(word));
        match entry {
            Entry::Empty => {}
            Entry::Table(address) => {
                assert!(address.is_multiple_of(1 << 11), "{}: {word:#x} at {level}", F::NAME);
            }
            Entry::Leaf => {
                let lg2 = F::leaf_lg2(word, level);
                let oa = F::oa(word, level);
                if reserved {
                    continue;
                }
                assert!(F::sizes(level) >> lg2 & 1 == 1, "{}: {word:#x} at {level}", F::NAME);
                let need = Prot::READ | Prot::WRITE;
                let missing = F::missing(word, level, need, Context::all());
                assert!(
                    (need | Prot::PRIVILEGED).contains(missing),
                    "{}: {word:#x} at {level}",
                    F::NAME
                );
                let _ = F::is_flagless(word, need, Context::all());
                let again = F::leaf(oa, level, lg2, F::attrs_of(word, level));
                assert_eq!(
                    (F::oa(again, level), F::leaf_lg2(again, level)),
                    (oa, lg2),
                    "{}",
                    F::NAME
                );
                assert_eq!(F::prot(again, level), F::prot(word, level), "{}: {word:#x}", F::NAME);
                assert!(F::is_dirty(F::make_dirty(word)), "{}: {word:#x}", F::NAME);
                assert!(!F::is_dirty(F::make_clean(word)), "{}: {word:#x}", F::NAME);
                assert_eq!(F::oa(F::make_dirty(word), level), oa, "{}: {word:#x}", F::NAME);
            }
        }
    }
}
