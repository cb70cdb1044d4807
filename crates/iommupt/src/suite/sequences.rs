//! Random sequences of all operations, each of which may find no more table memory.

extern crate std;

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};

use super::model::{Model, Wide, ends, narrow, pa, wide};
use super::{RW, made, range};
use crate::dump::Style;
use crate::format::{Entry, Format, all_sizes, low_bits};
use crate::unmap::Node;
use crate::walk::frame_of;
use crate::{Dirty, Iova, IovaRange, Pa, Prot, Reader, Run, TableWriter, Writer};
use ioasis_uapi::{Errno, Result};

/// A step of a sequence; places and lengths are chosen among those where formats have edges.
#[derive(Clone, Debug)]
enum Step {
    Map { at: Place, runs: Vec<(Place, Length)>, prot: Prot },
    Unmap { at: Place, length: Length },
    Clear { at: Place, length: Length },
    Cut { at: Place },
    Protect { at: Place, length: Length, prot: Prot },
    Translate { at: Place, length: Length, need: Prot },
    ReadDirty { at: Place, length: Length, dirty: Dirty },
    SetDirty { at: Place, length: Length },
    CutAperture { at: Place },
    Trim,
}

/// An address: a multiple of the `size`th leaf size near the bottom or the top of the aperture,
/// plus pages.
#[derive(Clone, Copy, Debug)]
struct Place {
    size: prop::sample::Index,
    multiple: u64,
    pages: u64,
    high: bool,
}

/// A length: some leaves of one size plus some pages.
#[derive(Clone, Copy, Debug)]
struct Length {
    size: prop::sample::Index,
    leaves: u64,
    pages: u64,
}

impl Place {
    fn address<F: Format>(self, last: u64) -> u64 {
        let size = size_of_leaf::<F>(self.size);
        let offset = (self.multiple * size).wrapping_add(self.pages << F::GRANULE_LG2);
        let page = !low_bits(F::GRANULE_LG2);
        if self.high { (last - offset % (last / 2)) & page } else { (offset % (last / 2)) & page }
    }
}

impl Length {
    fn bytes<F: Format>(self, at: u64, last: u64) -> u64 {
        let size = size_of_leaf::<F>(self.size);
        let bytes = self.leaves * size + (self.pages << F::GRANULE_LG2);
        // A long run of the smallest leaves takes long and shows nothing more than a short one.
        let long = 4 << F::item_lg2(1);
        let bytes = if at & (size - 1) == 0 && self.pages == 0 { bytes } else { bytes.min(long) };
        let room = last.saturating_sub(at).saturating_add(1).max(1 << F::GRANULE_LG2);
        bytes.clamp(1 << F::GRANULE_LG2, room & !low_bits(F::GRANULE_LG2))
    }
}

fn size_of_leaf<F: Format>(index: prop::sample::Index) -> u64 {
    // Terabyte leaves would only test the arithmetic of the model.
    let sizes = all_sizes::<F>() & low_bits(42);
    let nth = index.index(sizes.count_ones() as usize);
    (0..64).map(|lg2| 1_u64 << lg2).filter(|size| sizes & size != 0).nth(nth).expect("a size")
}

fn places() -> impl Strategy<Value = Place> {
    (
        any::<prop::sample::Index>(),
        0..4_u64,
        prop_oneof![Just(0), 0..4_u64, 500..520_u64],
        prop::bool::weighted(0.2),
    )
        .prop_map(|(size, multiple, pages, high)| Place { size, multiple, pages, high })
}

fn lengths() -> impl Strategy<Value = Length> {
    (any::<prop::sample::Index>(), 0..3_u64, prop_oneof![Just(0), 0..4_u64, 500..520_u64])
        .prop_map(|(size, leaves, pages)| Length { size, leaves, pages })
}

fn prots() -> impl Strategy<Value = Prot> {
    prop_oneof![Just(Prot::READ), Just(RW)]
}

/// A step, and how many tables it may have.
fn steps() -> impl Strategy<Value = (Step, usize)> {
    let allowed = prop_oneof![3 => Just(usize::MAX), 1 => 0..6_usize];
    (one_step(), allowed)
}

fn one_step() -> impl Strategy<Value = Step> {
    let dirty = prop_oneof![Just(Dirty::Keep), Just(Dirty::Clear)];
    prop_oneof![
        5 => (places(), prop::collection::vec((places(), lengths()), 1..4), prots())
            .prop_map(|(at, runs, prot)| Step::Map { at, runs, prot }),
        3 => (places(), lengths()).prop_map(|(at, length)| Step::Unmap { at, length }),
        1 => (places(), lengths()).prop_map(|(at, length)| Step::Clear { at, length }),
        1 => places().prop_map(|at| Step::Cut { at }),
        1 => (places(), lengths(), prots())
            .prop_map(|(at, length, prot)| Step::Protect { at, length, prot }),
        3 => (places(), lengths(), prots())
            .prop_map(|(at, length, need)| Step::Translate { at, length, need }),
        2 => (places(), lengths(), dirty)
            .prop_map(|(at, length, dirty)| Step::ReadDirty { at, length, dirty }),
        1 => (places(), lengths()).prop_map(|(at, length)| Step::SetDirty { at, length }),
        1 => places().prop_map(|at| Step::CutAperture { at }),
        1 => Just(Step::Trim),
    ]
}

struct Pair<F: Format> {
    writer: Writer<F>,
    reader: Arc<Reader<F>>,
    model: Model,
}

impl<F: Format> Pair<F> {
    fn new() -> Self {
        let (writer, reader) = made();
        Self { writer, reader, model: Model::default() }
    }

    /// Does a step with `allowed` tables. One that fails for want of them leaves the table as it
    /// was.
    fn step(&mut self, step: Step, allowed: usize) {
        if allowed == usize::MAX {
            return assert!(self.attempt(step).is_ok(), "{}: there is memory", F::NAME);
        }
        self.writer.trim();
        let (before, model) = (self.text(), self.model.clone());
        self.writer.tables.allowed = allowed;
        let done = self.attempt(step);
        self.writer.tables.allowed = usize::MAX;
        if let Err(error) = done {
            assert_eq!(error.errno, Errno::ENOMEM, "{}", F::NAME);
            self.model = model;
            self.writer.trim();
            assert_eq!(self.text(), before, "{}: not as it was", F::NAME);
        }
    }

    fn text(&self) -> String {
        self.reader.dump(Style::Tree).to_string()
    }

    fn attempt(&mut self, step: Step) -> Result<()> {
        let last = self.writer.aperture().last().0;
        let place = |place: Place| place.address::<F>(last);
        let span = |at: Place, length: Length| {
            let at = place(at);
            range(at, length.bytes::<F>(at, last))
        };
        match step {
            Step::Map { at, runs, prot } => return self.map(place(at), &runs, prot),
            Step::Unmap { at, length } => return self.unmap(span(at, length)),
            Step::Clear { at, length } => return self.clear(span(at, length)),
            Step::Cut { at } => return self.writer.cut(Iova(place(at))),
            Step::Protect { at, length, prot } => return self.protect(span(at, length), prot),
            Step::Translate { at, length, need } => self.translate(span(at, length), need),
            Step::ReadDirty { at, length, dirty } => self.read_dirty(span(at, length), dirty),
            Step::SetDirty { at, length } => self.set_dirty(span(at, length)),
            Step::CutAperture { at } => self.cut_aperture(place(at)),
            Step::Trim => {
                self.writer.trim();
                self.check_tables();
            }
        }
        Ok(())
    }

    fn map(&mut self, at: u64, runs: &[(Place, Length)], prot: Prot) -> Result<()> {
        let last = self.writer.aperture().last().0;
        let oa_last = low_bits(F::OA_LG2);
        let mut next = at;
        let list: Vec<Run> = runs
            .iter()
            .map(|&(pa, length)| {
                let pa = pa.address::<F>(oa_last.min(low_bits(60)));
                // A run starts where the one before it ends: only there is it aligned or not.
                let bytes = length.bytes::<F>(pa | next, oa_last).min(oa_last - pa + 1);
                next = next.wrapping_add(bytes);
                Run { pa: Pa(pa), length: bytes }
            })
            .collect();
        let start = Wide::from(at);
        let total: Wide = list.iter().map(|run| Wide::from(run.length)).sum();
        let mapped = self.writer.map(Iova(at), &list, prot);
        let refused = if start + total - 1 > last.into() {
            Some(Errno::ERANGE)
        } else if self.model.overlaps(start, total) {
            Some(Errno::EADDRINUSE)
        } else {
            None
        };
        match (mapped, refused) {
            // Memory may end before what is in the way is found.
            (Err(error), _) if error.errno == Errno::ENOMEM => return Err(error),
            (Err(error), Some(errno)) => assert_eq!(error.errno, errno, "{}", F::NAME),
            (Err(error), None) => panic!("{}: {error:?}", F::NAME),
            (Ok(()), refused) => assert_eq!(refused, None, "{}", F::NAME),
        }
        if refused.is_none() {
            let mut iova = start;
            for run in list {
                self.check_leaves(iova, run);
                self.model.mapped.push((iova, run.length.into(), run.pa.0.into(), prot));
                iova += Wide::from(run.length);
            }
        }
        Ok(())
    }

    /// The leaves are the largest that fit; the first few and the last are looked at.
    fn check_leaves(&self, iova: Wide, run: Run) {
        let (mut at, mut pa, mut left) = (narrow(iova), run.pa.0, run.length);
        let mut looked = 0;
        while left > 0 {
            let fits = |&lg2: &u32| {
                self.writer.page_sizes() >> lg2 & 1 == 1
                    && (at | pa) & low_bits(lg2) == 0
                    && left > low_bits(lg2)
            };
            let lg2 = (0..64).rev().find(fits).expect("a page fits");
            if looked < 20 || left - 1 == low_bits(lg2) {
                let (leaf, _) = self.reader.leaf(Iova(at), Prot::empty()).expect("it is mapped");
                assert_eq!(leaf, range(at, 1 << lg2), "{}: the largest leaf", F::NAME);
            }
            looked += 1;
            (at, pa, left) = (at.wrapping_add(1 << lg2), pa + (1 << lg2), left - (1 << lg2));
        }
    }

    fn unmap(&mut self, range: IovaRange) -> Result<()> {
        let mut old = Vec::new();
        self.writer.unmap(range, &mut |iova, run| old.push(wide(iova, run)))?;
        let (start, end) = ends(range);
        assert_eq!(old, self.model.unmap(start, end - start), "old runs are merged and ascending");
        Ok(())
    }

    fn clear(&mut self, range: IovaRange) -> Result<()> {
        self.writer.cut(range.start())?;
        if let Some(after) = range.last().0.checked_add(1)
            && let Err(error) = self.writer.cut(Iova(after))
        {
            // The first edge is cut and stays so.
            self.check_tables();
            self.writer.tables.allowed = usize::MAX;
            self.writer.cut(Iova(after)).unwrap_or_else(|_| panic!("{error:?} twice"));
        }
        self.writer.clear(range);
        let (start, end) = ends(range);
        self.model.unmap(start, end - start);
        Ok(())
    }

    fn protect(&mut self, range: IovaRange, prot: Prot) -> Result<()> {
        self.writer.protect(range, prot)?;
        let (start, end) = ends(range);
        self.model.protect(start, end - start, prot);
        Ok(())
    }

    fn translate(&mut self, range: IovaRange, need: Prot) {
        let (iova, at) = (range.start(), Wide::from(range.start().0));
        let length = range.span() + 1;
        assert_eq!(self.reader.iova_to_phys(iova), self.model.find(at).map(|(to, ..)| pa(to)));
        let found = self.reader.translate(iova, length, need);
        let Some((to, prot, _)) = self.model.find(at) else {
            assert!(found.expect_err("nothing is mapped").missing.is_empty());
            return;
        };
        if !prot.contains(need) {
            assert_eq!(found.expect_err("not granted").missing, need.difference(prot));
            return;
        }
        let mut expected = 0;
        while expected < Wide::from(length) {
            match self.model.find(at + expected) {
                Some((next, prot, rest)) if next == to + expected && prot.contains(need) => {
                    expected += rest;
                }
                _ => break,
            }
        }
        let length = expected.min(length.into());
        assert_eq!(found, Ok(Run { pa: pa(to), length: narrow(length) }));
        if need.contains(Prot::WRITE) {
            self.soil(at, at + length);
        }
    }

    /// All leaves that a mapped range touches are dirty.
    fn soil(&mut self, start: Wide, end: Wide) {
        let leaf = |at: Wide| {
            let (leaf, _) = self.reader.leaf(Iova(narrow(at)), Prot::empty()).expect("mapped");
            ends(leaf)
        };
        self.model.soil(leaf(start).0, leaf(end - 1).1);
    }

    fn set_dirty(&mut self, range: IovaRange) {
        self.writer.set_dirty(range);
        let (start, end) = ends(range);
        for (low, high) in self.model.parts(start, end) {
            self.soil(low, high);
        }
    }

    fn read_dirty(&mut self, range: IovaRange, dirty: Dirty) {
        let mut found = Vec::new();
        let memory = self.writer.tables.allowed;
        self.writer.read_dirty(range, dirty, &mut |range| found.push(ends(range)));
        let (start, end) = ends(range);
        assert_eq!(found, self.model.dirty_in(start, end), "{}: what is dirty", F::NAME);
        if dirty == Dirty::Clear && memory == usize::MAX {
            self.model.clean(start, end);
        }
        if dirty == Dirty::Clear {
            // Without memory a leaf that straddles an edge stays dirty.
            let mut left = Vec::new();
            self.writer.read_dirty(range, Dirty::Keep, &mut |range| left.push(ends(range)));
            let edges = [start, end - 1].map(|edge| {
                let leaf = self.reader.leaf(Iova(narrow(edge)), Prot::empty());
                leaf.map_or((edge, edge), |(leaf, _)| ends(leaf))
            });
            for &(low, high) in &left {
                assert!(memory < usize::MAX, "{}: what was cleared is clean", F::NAME);
                let straddles = |edge: &(Wide, Wide)| edge.0 <= low && high <= edge.1;
                assert!(edges.iter().any(straddles), "{}: {low:#x} to {high:#x}", F::NAME);
            }
            self.model.clean(start, end);
            left.into_iter().for_each(|(low, high)| self.model.soil(low, high));
        }
    }

    fn cut_aperture(&mut self, at: u64) {
        let last = at | low_bits(F::GRANULE_LG2);
        let mapped = self.model.end() > Wide::from(last) + 1;
        // Small apertures would end most sequences.
        if !mapped && last < self.writer.aperture().last().0 / 2 {
            return;
        }
        match self.writer.cut_aperture(Iova(last)) {
            Ok(()) => assert!(!mapped && self.writer.aperture().last() == Iova(last)),
            Err(error) => assert_eq!((error.errno, mapped), (Errno::EBUSY, true), "{}", F::NAME),
        }
    }

    /// Tables are linked, counted and none is empty; leaves have sizes that the format has.
    fn check_tables(&mut self) {
        self.writer.trim();
        let root = 1 << F::ROOT_ITEMS_LG2.saturating_sub(F::ITEMS_LG2);
        let below = self.tables_below(Writer::<F>::ROOT).1;
        assert_eq!(self.writer.tables(), root + below, "{}: tables are the minimum", F::NAME);
    }

    /// Items that are not empty, and tables, below a table.
    fn tables_below(&self, node: Node) -> (usize, usize) {
        let (mut items, mut tables) = (0, 0);
        for word in self.writer.table(node.frame) {
            let word = word.load(crate::sync::atomic::Ordering::Relaxed);
            match F::decode(word, node.level) {
                Entry::Empty => continue,
                Entry::Leaf => {
                    let lg2 = F::leaf_lg2(word, node.level);
                    let there = F::sizes(node.level) >> lg2 & 1 == 1;
                    assert!(there, "{}: a leaf of 1 << {lg2} bytes", F::NAME);
                }
                Entry::Table(address) => {
                    let frame = frame_of::<F>(address);
                    let below =
                        self.tables_below(Node { frame, level: node.level - 1, base: node.base });
                    assert!(below.0 > 0, "{}: a table is empty", F::NAME);
                    tables += 1 + below.1;
                }
            }
            items += 1;
        }
        (items, tables)
    }

    fn finish(mut self) {
        for &(at, length, to, _) in &self.model.mapped {
            for (iova, to) in [(at, to), (at + length - 1, to + length - 1)] {
                assert_eq!(self.reader.iova_to_phys(Iova(narrow(iova))), Some(pa(to)));
            }
        }
        self.check_tables();
        let mut old = Vec::new();
        let all = self.writer.unmap(IovaRange::ALL, &mut |iova, run| old.push(wide(iova, run)));
        assert_eq!(all, Ok(()));
        assert_eq!(old, self.model.runs());
        self.writer.trim();
        let root = 1 << F::ROOT_ITEMS_LG2.saturating_sub(F::ITEMS_LG2);
        assert_eq!(self.writer.tables(), root, "only the root is left");
    }
}

/// Random sequences of all operations agree with the model.
pub(crate) fn agree<F: Format>() {
    let cases = std::env::var("IOASIS_SEQUENCES").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let mut runner =
        TestRunner::new(Cases { failure_persistence: None, ..Cases::with_cases(cases) });
    runner
        .run(&prop::collection::vec(steps(), 1..40), |steps| {
            let mut pair = Pair::<F>::new();
            for (step, allowed) in steps {
                pair.step(step, allowed);
            }
            pair.finish();
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{}: {error}", F::NAME));
}
