//! How much work an operation is: the words of tables it reads and writes, counted in place of
//! time.
//!
//! A page is a walk down the levels and a few words at the end, whatever else is mapped, whatever
//! happened before. What is more than that belongs to what is asked for: a word a leaf that is
//! mapped, unmapped or harvested, a table's words for a table that is made.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{RW, config, range};
use crate::fmt::{AmdV1, ArmS1, Sv48, VtdFs, VtdSs};
use crate::format::Format;
use crate::sync::atomic::words;
use crate::{Config, Dirty, Iova, IovaRange, Pa, PageTable, Prot, Reader, Run, Writer};

/// A table that maps `count` leaves of `leaf` bytes, one in each `apart` bytes.
struct Space<F: Format> {
    writer: Writer<F>,
    reader: Arc<Reader<F>>,
    leaf: u64,
    apart: u64,
    count: u64,
}

/// The most words that one of a kind of operation touches.
type Most = Vec<(&'static str, u64)>;

impl<F: Format> Space<F> {
    fn new(leaf: u64, apart: u64, count: u64) -> Self {
        let config = Config { page_sizes: leaf, ..config() };
        let (writer, reader) = PageTable::<F>::new(config).expect("an empty table");
        let mut space = Self { writer, reader, leaf, apart, count };
        (0..count).for_each(|n| space.map(n));
        space
    }

    fn span(&self, n: u64) -> IovaRange {
        range(n * self.apart, self.leaf)
    }

    fn map(&mut self, n: u64) {
        // Pages are not contiguous, so that nothing is larger than it is asked to be.
        let run = Run { pa: Pa(2 * n * self.leaf), length: self.leaf };
        self.writer.map(Iova(n * self.apart), &[run], RW).expect("mapped");
    }

    /// Does everything that is done to one leaf, to leaves all over the space.
    fn most(&mut self) -> Most {
        let mut most: Most = Vec::new();
        let step = (self.count / 500).max(1) | 1;
        for n in (0..self.count).step_by(usize::try_from(step).expect("few")) {
            let (iova, span) = (Iova(n * self.apart), self.span(n));
            let mut note = |what, words: u64| match most.iter_mut().find(|(of, _)| *of == what) {
                Some((_, most)) => *most = (*most).max(words),
                None => most.push((what, words)),
            };
            let reader = Arc::clone(&self.reader);
            note("read", words(|| assert!(reader.translate(iova, 8, Prot::READ).is_ok())));
            note("write", words(|| assert!(reader.translate(iova, 8, RW).is_ok())));
            let mut found = 0;
            note(
                "harvest",
                words(|| self.writer.read_dirty(span, Dirty::Clear, &mut |_| found += 1)),
            );
            assert_eq!(found, 1);
            note("protect", words(|| assert!(self.writer.protect(span, Prot::READ).is_ok())));
            let unmapped = |writer: &mut Writer<F>| writer.unmap(span, &mut |_, _| {}).is_ok();
            note("unmap", words(|| assert!(unmapped(&mut self.writer))));
            note("map", words(|| self.map(n)));
        }
        most
    }
}

/// Words that one leaf takes in a format of `levels`: a walk for each thing that is looked at, a
/// line of leaves for the harvest.
fn is_within_the_order<F: Format>(most: &Most) {
    let levels = u64::from(F::TOP_LEVEL) + 1;
    for &(what, words) in most {
        let order = match what {
            "read" => levels,
            // The walk, the exchange, and a walk to the table of each level for its mark.
            "write" => levels + 1 + levels * levels,
            _ => 6 * levels + 8,
        };
        assert!(words <= order, "{}: {what} touches {words} words, more than {order}", F::NAME);
    }
}

const GIB: u64 = 1 << 30;

fn a_leaf_is_as_much_work_in_a_tebibyte<F: Format>() {
    let page = 1_u64 << F::GRANULE_LG2;
    let large = 1_u64 << F::item_lg2(1);
    // Every large leaf; and a page in each of as many places, each in a table of its own.
    let small = Space::<F>::new(large, large, GIB / large).most();
    let whole = Space::<F>::new(large, large, 1024 * GIB / large).most();
    is_within_the_order::<F>(&small);
    assert_eq!(small, whole, "{}: large leaves", F::NAME);
    let small = Space::<F>::new(page, large, GIB / large).most();
    let sparse = Space::<F>::new(page, 32 * large, 32 * GIB / large).most();
    is_within_the_order::<F>(&small);
    is_within_the_order::<F>(&sparse);
    for ((what, small), (_, sparse)) in small.iter().zip(&sparse) {
        assert!(sparse <= small, "{}: {what} touches {sparse} words, {small} in 1 GiB", F::NAME);
    }
}

#[test]
fn one_leaf_is_as_much_work_in_a_tebibyte_as_in_a_gibibyte() {
    a_leaf_is_as_much_work_in_a_tebibyte::<VtdSs>();
    a_leaf_is_as_much_work_in_a_tebibyte::<AmdV1>();
    a_leaf_is_as_much_work_in_a_tebibyte::<VtdFs>();
    a_leaf_is_as_much_work_in_a_tebibyte::<Sv48>();
    a_leaf_is_as_much_work_in_a_tebibyte::<ArmS1>();
}

/// Pages of a window that is mapped, holed and mapped again, over and over.
struct Churn<F: Format> {
    writer: Writer<F>,
    reader: Arc<Reader<F>>,
    /// Where each page leads; nothing where a hole is.
    pages: Vec<Option<u64>>,
    random: u64,
}

/// What a generation of churn took.
#[derive(Clone, Copy, Debug)]
struct Generation {
    /// Words touched, and how many pages were unmapped and mapped again.
    words: u64,
    pages: u64,
    /// Calls.
    calls: u64,
}

impl<F: Format> Churn<F> {
    const PAGE: u64 = 1 << F::GRANULE_LG2;

    fn new(length: u64) -> Self {
        let (writer, reader) = super::made::<F>();
        let count = usize::try_from(length / Self::PAGE).expect("few");
        let pages = (0..count).map(|_| None).collect();
        let mut churn = Self { writer, reader, pages, random: 0x9e37_79b9_7f4a_7c15 };
        churn.fill(0, count);
        churn
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % limit
    }

    /// Maps a hole by one run. How far its output addresses are from being aligned as the IOVAs are
    /// decides how large the leaves can be, and differs from hole to hole.
    fn fill(&mut self, first: usize, count: usize) {
        let odd = 1 << self.below(u64::from(2 * F::ITEMS_LG2));
        let (iova, length) = (first as u64 * Self::PAGE, count as u64 * Self::PAGE);
        let pa = iova + odd * Self::PAGE;
        let run = Run { pa: Pa(pa), length };
        self.writer.map(Iova(iova), &[run], RW).expect("a hole");
        for (n, page) in (0..).zip(&mut self.pages[first..first + count]) {
            *page = Some(pa + n * Self::PAGE);
        }
    }

    /// Punches holes of all sizes into what the generation before left, then fills every hole.
    fn generation(&mut self) -> Generation {
        let mut taken = Generation { words: 0, pages: 0, calls: 0 };
        let all = self.pages.len() as u64;
        for _ in 0..256 {
            let limit = 1 << self.below(u64::from(F::ITEMS_LG2) + 2);
            let count = 1 + self.below(limit);
            let first = self.below(all - count);
            let span = range(first * Self::PAGE, count * Self::PAGE);
            let done = words(|| self.writer.unmap(span, &mut |_, _| {}).expect("there is memory"));
            self.is_within_the_order("unmap", done, count);
            let at = usize::try_from(first).expect("few");
            let gone = &mut self.pages[at..at + usize::try_from(count).expect("few")];
            taken.pages += gone.iter().flatten().count() as u64;
            gone.fill(None);
            taken.words += done;
            taken.calls += 1;
        }
        let mut at = 0;
        while let Some(hole) = self.pages[at..].iter().position(Option::is_none) {
            let first = at + hole;
            let count = self.pages[first..].iter().take_while(|page| page.is_none()).count();
            let done = words(|| self.fill(first, count));
            self.is_within_the_order("map", done, count as u64);
            taken.words += done;
            taken.calls += 1;
            at = first + count;
        }
        taken
    }

    /// A few words a level; a few for each page; and for each edge the tables that a split makes at
    /// most.
    fn is_within_the_order(&self, what: &str, words: u64, pages: u64) {
        let levels = u64::from(F::TOP_LEVEL) + 1;
        // Tables made or emptied: those of the pages, and at both edges one a level.
        let tables = (pages >> F::ITEMS_LG2) + 2 * levels;
        let order = 8 * levels + 3 * pages + 3 * (tables << F::ITEMS_LG2);
        assert!(words <= order, "{}: {what} of {pages} pages: {words} words", F::NAME);
    }

    fn check(&self) {
        for (n, page) in (0..).zip(&self.pages).step_by(97) {
            assert_eq!(self.reader.iova_to_phys(Iova(n * Self::PAGE)), page.map(Pa));
        }
    }
}

fn churn_costs_the_last_generation_what_it_cost_the_first<F: Format>() {
    let length = 256 << F::item_lg2(1);
    let mut churn = Churn::<F>::new(length);
    let mut taken = Vec::new();
    for _ in 0..64 {
        taken.push(churn.generation());
        churn.check();
        // The root, a table a level, and those of the window; what waits to be swept or for its
        // readers.
        let most = churn.writer.tables.made();
        let least = 256 + F::TOP_LEVEL as usize + 1;
        assert!(most <= least + 3 * 64 + 8, "{}: {most} tables, {least} at least", F::NAME);
    }
    // Words that are touched for each page. The first generations break up what was one leaf.
    let words = |taken: &[Generation]| {
        let sum = |of: fn(&Generation) -> u64| taken.iter().map(of).sum::<u64>();
        sum(|taken| taken.words) * 100 / sum(|taken| taken.pages + taken.calls)
    };
    let (early, late) = (words(&taken[..8]), words(&taken[56..]));
    assert!(late * 100 <= early * 125, "{}: {early} hundredths, then {late}", F::NAME);
}

#[test]
fn the_64th_generation_of_churn_is_as_much_work_as_the_first() {
    churn_costs_the_last_generation_what_it_cost_the_first::<VtdSs>();
    churn_costs_the_last_generation_what_it_cost_the_first::<AmdV1>();
    churn_costs_the_last_generation_what_it_cost_the_first::<Sv48>();
    churn_costs_the_last_generation_what_it_cost_the_first::<ArmS1>();
}
