//! Nested translation: a first stage that a guest owns, in guest memory, over a second stage of
//! ours.
//!
//! Every table of the first stage lies at an address that the second stage translates, and so does
//! what its leaves lead to (VT-d 3.8, AMD IOMMU 2.2.6, SMMUv3 3.4, RISC-V privileged 21.5). The
//! guest's words are read once, judged, and then used; the walk takes at most one step a level,
//! whatever they say. Accessed and dirty bits of the guest's tables are left alone: what was
//! written is told by the second stage.

use core::fmt::Debug;
use core::marker::PhantomData;

use crate::format::{Context, Entry, Format, low_bits};
use crate::walk::output;
use crate::{Iova, Pa, Prot, Run, TableReader};

/// Where the guest's tables lie, behind the second stage.
pub trait TableMemory {
    /// The word at `pa`, which is a multiple of 8; nothing where no memory is.
    fn word(&self, pa: Pa) -> Option<u64>;
}

/// Levels of any format.
const LEVELS_MAX: usize = 8;

/// Which of the two translations failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The guest's.
    First,
    /// Ours, while a table of the guest was read.
    SecondOfTable,
    /// Ours, at the address the guest's leaf leads to.
    SecondOfLeaf,
}

/// Why it failed. In the manuals' fault records, for the first stage:
///
/// | | SMMUv3 7.3 | RISC-V IOMMU, fault queue | AMD 2.5.3, I/O page fault | VT-d 7.1.3 |
/// |---|---|---|---|---|
/// | `Address` | F_TRANSLATION | page fault | PR clear | address not canonical |
/// | `Empty` | F_TRANSLATION | page fault | PR clear | entry not present |
/// | `Reserved` | F_TRANSLATION, F_ADDR_SIZE | page fault | RZ set | reserved field set |
/// | `Permission` | F_PERMISSION | page fault | PE set | access right; U/S clear |
/// | `Flag` | F_ACCESS, F_PERMISSION | page fault | | |
/// | `Unreadable` | F_WALK_EABT | access fault | | table address |
///
/// In the second stage RISC-V calls a page fault a guest page fault, and SMMUv3 sets S2 in the same
/// records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The input address is none that the format translates.
    Address,
    /// Nothing is mapped.
    Empty,
    /// A reserved bit is set, or a reserved encoding used.
    Reserved,
    /// Not granted: what is missing; with [`Prot::PRIVILEGED`], by the guest to an unprivileged
    /// request.
    Permission(Prot),
    /// The leaf's accessed or dirty flag is clear, and nobody is to set it.
    Flag,
    /// There is no memory where the second stage says the table is.
    Unreadable,
}

/// What a fault record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedFault {
    /// The translation that failed.
    pub stage: Stage,
    /// The level at which that translation stopped; level 0 holds only leaves.
    pub level: u32,
    /// The address the device used.
    pub iova: Iova,
    /// The guest's address that the second stage was asked for.
    pub ipa: Option<u64>,
    /// Why.
    pub cause: Cause,
}

/// A guest's first stage in format `F`.
#[derive(Clone, Copy, Debug)]
pub struct Nested<F: Format> {
    root: u64,
    context: Context,
    format: PhantomData<fn() -> F>,
}

impl<F: Format> Nested<F> {
    /// With the root at the guest's address `root`. Bits below the root's size are ignored: the
    /// fields that guests write it to have none, or treat them as zero (VT-d 9.6, SMMUv3 5.4).
    #[must_use]
    pub const fn new(root: u64) -> Self {
        let root = root & !low_bits(F::ROOT_ITEMS_LG2 + 3);
        Self { root, context: Context::all(), format: PhantomData }
    }

    /// With what the guest's context says besides the root.
    #[must_use]
    pub const fn with_context(self, context: Context) -> Self {
        Self { context, ..self }
    }

    /// The longest contiguous run within one leaf of the first stage that starts at `iova`, at most
    /// `length` bytes, all of it granting `need` in both stages.
    ///
    /// # Errors
    ///
    /// The first fault on the way.
    pub fn translate(
        &self,
        iova: Iova,
        length: u64,
        need: Prot,
        second: &dyn TableReader,
        memory: &dyn TableMemory,
    ) -> Result<Run, NestedFault> {
        let (ipa, rest) = self.first(iova, need, second, memory)?;
        second.translate(Iova(ipa), length.min(rest), need).map_err(|fault| NestedFault {
            stage: Stage::SecondOfLeaf,
            level: fault.level,
            iova,
            ipa: Some(fault.iova.0),
            cause: missing(fault.missing),
        })
    }

    /// Walks the guest's tables to the guest's address behind `iova` and the bytes to the end of
    /// the leaf.
    fn first(
        &self,
        iova: Iova,
        need: Prot,
        second: &dyn TableReader,
        memory: &dyn TableMemory,
    ) -> Result<(u64, u64), NestedFault> {
        let fault =
            |level, cause| NestedFault { stage: Stage::First, level, iova, ipa: None, cause };
        let leaf =
            GuestLeaf::<F>::find(self.root, iova, |at| read(at, iova, second, memory), fault)?;
        if F::is_flagless(leaf.under, need, self.context) {
            return Err(fault(leaf.level, Cause::Flag));
        }
        let lacking = F::missing(leaf.under, leaf.level, need, self.context);
        if !lacking.is_empty() {
            return Err(fault(leaf.level, Cause::Permission(lacking)));
        }
        let inside = low_bits(F::leaf_lg2(leaf.word, leaf.level));
        let rest = (inside - (iova.0 & inside)).saturating_add(1);
        Ok((output::<F>(leaf.word, leaf.level, iova.0), rest))
    }
}

/// The leaf of a guest's table that an address leads to.
#[derive(Clone, Copy, Debug)]
pub struct GuestLeaf<F: Format> {
    /// The leaf's word.
    pub word: u64,
    /// The same with what the pointers above it take away ([`Format::under`]).
    pub under: u64,
    /// Where it is held.
    pub level: u32,
    format: PhantomData<fn() -> F>,
}

impl<F: Format> GuestLeaf<F> {
    /// Follows the table whose root lies at the guest's address `root`. `read` reads a word of it
    /// by its guest address; what it is granted is for the caller to judge.
    ///
    /// # Errors
    ///
    /// What `read` says, or `fault` makes of the level where the walk ends and the cause.
    pub fn find<E>(
        root: u64,
        iova: Iova,
        mut read: impl FnMut(u64) -> Result<u64, E>,
        fault: impl Fn(u32, Cause) -> E,
    ) -> Result<Self, E> {
        if !translated::<F>(iova.0) {
            return Err(fault(F::TOP_LEVEL, Cause::Address));
        }
        let mut table = root;
        let mut pointers = [0; LEVELS_MAX];
        for level in (0..=F::TOP_LEVEL).rev() {
            let word = read(table.wrapping_add((F::index(iova.0, level) as u64) << 3))?;
            let entry = F::decode(word, level);
            if entry != Entry::Empty && F::reserved(word, level) {
                return Err(fault(level, Cause::Reserved));
            }
            match entry {
                Entry::Empty => return Err(fault(level, Cause::Empty)),
                Entry::Table(address) => {
                    pointers[level as usize] = word;
                    table = address;
                }
                Entry::Leaf => {
                    let above = level as usize + 1..=F::TOP_LEVEL as usize;
                    let under =
                        pointers[above].iter().fold(word, |leaf, &word| F::under(leaf, word));
                    return Ok(Self { word, under, level, format: PhantomData });
                }
            }
        }
        // A pointer at level 0: no format has one.
        Err(fault(0, Cause::Reserved))
    }
}

/// Whether the format translates this address: nothing above its highest bit, or that bit repeated.
fn translated<F: Format>(iova: u64) -> bool {
    let above = iova & !low_bits(F::IOVA_LG2);
    above == 0 || (F::SIGN_EXTENDED && above == !low_bits(F::IOVA_LG2))
}

/// Reads a word of a guest's table.
fn read(
    at: u64,
    iova: Iova,
    second: &dyn TableReader,
    memory: &dyn TableMemory,
) -> Result<u64, NestedFault> {
    let fault = |level, cause| NestedFault {
        stage: Stage::SecondOfTable,
        level,
        iova,
        ipa: Some(at),
        cause,
    };
    let run = second
        .translate(Iova(at), 8, Prot::READ)
        .map_err(|error| fault(error.level, missing(error.missing)))?;
    // An aligned word lies in one page of any format.
    let word = if run.length < 8 { None } else { memory.word(run.pa) };
    word.ok_or(fault(0, Cause::Unreadable))
}

fn missing(prot: Prot) -> Cause {
    if prot.is_empty() { Cause::Empty } else { Cause::Permission(prot) }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::fmt::{AmdV1, AmdV2, ArmS1, ArmS2, Sv48, Sv48x4, VtdFs, VtdSs};
    use crate::{Config, Counted, PageTable, Reader, Writer};
    use alloc::sync::Arc;
    use core::cell::Cell;
    use core::ops::BitAndAssign as _;
    use std::collections::BTreeMap;

    const RW: Prot = Prot::READ.union(Prot::WRITE);
    /// The guest's memory begins here in the output space.
    const BASE: u64 = 1 << 32;
    const GUEST: u64 = 1 << 20;

    /// Words by output address; reads outside the guest's memory fail the test.
    #[derive(Default)]
    struct Words {
        words: BTreeMap<u64, u64>,
        reads: Cell<u32>,
    }

    impl TableMemory for Words {
        fn word(&self, pa: Pa) -> Option<u64> {
            assert!((BASE..BASE + GUEST).contains(&pa.0) && pa.0.is_multiple_of(8), "{pa:?}");
            self.reads.set(self.reads.get() + 1);
            Some(self.words.get(&(pa.0 - BASE)).copied().unwrap_or(0))
        }
    }

    fn second<F: Format>() -> (Writer<F>, Arc<Reader<F>>) {
        let config = Config::new(Arc::new(Counted::default()));
        let (mut writer, reader) = PageTable::<F>::new(config).expect("an empty table");
        let all = Prot::READ | Prot::WRITE | Prot::EXEC;
        let run = Run { pa: Pa(BASE), length: GUEST };
        writer.map(Iova(0), &[run], all).expect("mapped");
        (writer, reader)
    }

    /// Tables at 0x1_0000, 0x2_0000, .. and a leaf of the smallest size at the end.
    fn guest<F: Format>(iova: u64, leaf: u64, prot: Prot) -> Words {
        let mut words = BTreeMap::new();
        let mut table = 0x1_0000;
        for level in (1..=F::TOP_LEVEL).rev() {
            let at = table + ((F::index(iova, level) as u64) << 3);
            table += 0x1_0000;
            words.insert(at, F::table(table, level));
        }
        let attrs = F::attrs(prot).expect("the format can say it");
        let at = table + ((F::index(iova, 0) as u64) << 3);
        words.insert(at, F::leaf(leaf, 0, F::GRANULE_LG2, attrs));
        Words { words, reads: Cell::new(0) }
    }

    fn both_stages<S1: Format, S2: Format>() {
        let (mut writer, reader) = second::<S2>();
        let (iova, page) = (0x12_3456_7000, 1 << S1::GRANULE_LG2);
        let words = guest::<S1>(iova, 0x8_0000, Prot::READ);
        let nested = Nested::<S1>::new(0x1_0000);
        let ask = |iova, need| nested.translate(Iova(iova), 64, need, &*reader, &words);
        let found = ask(iova + 8, Prot::READ);
        assert_eq!(found, Ok(Run { pa: Pa(BASE + 0x8_0008), length: 64 }));
        assert_eq!(words.reads.get(), S1::TOP_LEVEL + 1, "one read a level");
        let end = ask(iova + page - 8, Prot::READ);
        assert_eq!(end.map(|run| run.length), Ok(8), "a run ends with the first stage's leaf");
        let fault = ask(iova, RW).expect_err("read-only in the first stage");
        assert_eq!((fault.stage, fault.level), (Stage::First, 0));
        assert_eq!(fault.cause, Cause::Permission(Prot::WRITE));
        let fault = ask(iova + (1 << S1::item_lg2(1)), RW).expect_err("not mapped");
        assert_eq!((fault.stage, fault.level, fault.cause), (Stage::First, 1, Cause::Empty));
        let fault = ask(1 << 60, Prot::READ).expect_err("no such address");
        assert_eq!((fault.stage, fault.cause), (Stage::First, Cause::Address));
        let mut take = |start, fails: Stage| {
            let page = crate::IovaRange::new(Iova(start), 1 << 16).expect("a page");
            writer.unmap(page, &mut |_, _| {}).expect("unmapped");
            let fault = ask(iova, Prot::READ).expect_err("taken away");
            assert_eq!((fault.stage, fault.cause), (fails, Cause::Empty));
            assert_eq!(fault.ipa.map(|ipa| ipa >> 16), Some(start >> 16));
            assert_eq!(fault.iova, Iova(iova));
        };
        take(0x8_0000, Stage::SecondOfLeaf);
        take(0x2_0000, Stage::SecondOfTable);
    }

    #[test]
    fn faults_name_the_stage_the_level_and_the_address() {
        both_stages::<VtdFs, VtdSs>();
        both_stages::<AmdV2, AmdV1>();
        both_stages::<ArmS1, ArmS2>();
        both_stages::<Sv48, Sv48x4>();
    }

    /// A guest that keeps its leaf to privileged requests.
    fn kept_for_the_privileged<S1: Format, S2: Format>() {
        let (_writer, reader) = second::<S2>();
        let words = guest::<S1>(0, 0x8_0000, RW | Prot::PRIVILEGED);
        let ask = |need, context| {
            let nested = Nested::<S1>::new(0x1_0000).with_context(context);
            nested.translate(Iova(0), 64, need, &*reader, &words)
        };
        let fault = ask(Prot::READ, Context::all()).expect_err("unprivileged");
        assert_eq!((fault.stage, fault.level), (Stage::First, 0));
        let Cause::Permission(missing) = fault.cause else { panic!("{fault:?}") };
        assert!(missing.contains(Prot::PRIVILEGED), "{missing:?}");
        let privileged = Prot::READ | Prot::PRIVILEGED;
        assert!(ask(privileged, Context::all()).is_ok(), "the second stage knows no privileges");
    }

    #[test]
    fn what_a_guest_keeps_for_the_privileged_is_not_for_others() {
        kept_for_the_privileged::<VtdFs, VtdSs>();
        kept_for_the_privileged::<AmdV2, AmdV1>();
        kept_for_the_privileged::<ArmS1, ArmS2>();
        kept_for_the_privileged::<Sv48, Sv48x4>();
    }

    /// Flags that the guest set or not, where its context says that the IOMMU does not set them.
    fn flags<S1: Format, S2: Format>(flags: u64, need: Prot, expected: Option<Cause>) {
        let (_writer, reader) = second::<S2>();
        let mut words = guest::<S1>(0, 0x8_0000, RW);
        words.words.last_entry().expect("the leaf").into_mut().bitand_assign(!flags);
        let ask = |context| {
            let nested = Nested::<S1>::new(0x1_0000).with_context(context);
            nested.translate(Iova(0), 64, need, &*reader, &words).map_err(|fault| fault.cause)
        };
        assert!(ask(Context::all()).is_ok(), "the IOMMU would set them");
        assert_eq!(ask(Context::OPEN | Context::WRITE_PROTECT).err(), expected);
    }

    #[test]
    fn a_clear_flag_that_nobody_sets_faults() {
        const NONE: u64 = 0;
        let read_only = Some(Cause::Permission(Prot::WRITE));
        // AF is bit 10; a page that DBM alone makes writable is read-only.
        flags::<ArmS1, ArmS2>(1 << 10, Prot::READ, Some(Cause::Flag));
        flags::<ArmS1, ArmS2>(NONE, Prot::READ, None);
        flags::<ArmS1, ArmS2>(NONE, RW, read_only);
        // A is bit 6; D is clear in a page that was not written.
        flags::<Sv48, Sv48x4>(1 << 6, Prot::READ, Some(Cause::Flag));
        flags::<Sv48, Sv48x4>(NONE, Prot::READ, None);
        flags::<Sv48, Sv48x4>(NONE, RW, Some(Cause::Flag));
        // VT-d and AMD always set them.
        flags::<VtdFs, VtdSs>(1 << 5, RW, None);
        flags::<AmdV2, AmdV1>(1 << 5, RW, None);
    }

    #[test]
    fn a_guests_pointers_keep_others_off_what_is_below() {
        // U/S is bit 2 of a PDE, R/W bit 1.
        for (bit, missing) in [(2, Prot::PRIVILEGED), (1, Prot::WRITE)] {
            let (_writer, reader) = second::<VtdSs>();
            let mut words = guest::<VtdFs>(0, 0x8_0000, RW);
            words.words.get_mut(&0x3_0000).expect("a pointer").bitand_assign(!(1 << bit));
            let nested = Nested::<VtdFs>::new(0x1_0000);
            let fault = nested.translate(Iova(0), 64, RW, &*reader, &words).expect_err("kept off");
            assert_eq!((fault.level, fault.cause), (0, Cause::Permission(missing)));
        }
    }

    #[test]
    fn only_whole_words_are_read_whatever_the_root_is() {
        let (_writer, reader) = second::<VtdSs>();
        let memory = Words::default();
        let fault = Nested::<VtdFs>::new(0x1_0004).translate(Iova(0), 1, RW, &*reader, &memory);
        assert_eq!(fault.expect_err("nothing is mapped").cause, Cause::Empty);
        assert_eq!(memory.reads.get(), 1);
    }

    fn hostile<S1: Format, S2: Format>() {
        let (_writer, reader) = second::<S2>();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for round in 0..20_000 {
            let mut memory = Words::default();
            let iova = next() & low_bits(S1::IOVA_LG2);
            // A chain of words that are likely to be followed, damaged in one bit or more.
            let mut table = 0x1000;
            for level in (0..=S1::TOP_LEVEL).rev() {
                let at = table + ((S1::index(iova, level) as u64) << 3);
                table = next() & (GUEST - 1) & !0xfff;
                let word = match (round + u64::from(level)) % 4 {
                    0 => next(),
                    1 => S1::table(table, level) ^ 1 << (next() & 63),
                    _ => S1::table(table, level),
                };
                memory.words.insert(at & (GUEST - 1), word);
            }
            let nested = Nested::<S1>::new(0x1000);
            let found = nested.translate(Iova(iova), 4096, Prot::READ, &*reader, &memory);
            assert!(memory.reads.get() <= S1::TOP_LEVEL + 1, "at most one read a level");
            if let Ok(run) = found {
                assert!(run.pa.0 >= BASE && run.pa.0 + run.length <= BASE + GUEST, "{run:?}");
            }
        }
    }

    #[test]
    fn a_hostile_guest_neither_loops_nor_reads_outside_its_memory() {
        hostile::<VtdFs, VtdSs>();
        hostile::<VtdFs<5>, VtdSs<5>>();
        hostile::<AmdV2, AmdV1>();
        hostile::<ArmS1, ArmS2>();
        hostile::<ArmS1<16, 52>, ArmS2<16, 52>>();
        hostile::<Sv48, Sv48x4>();
    }
}
