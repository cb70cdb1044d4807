//! One suite for every format: what any page table must do, against a model made of plain lists.

extern crate std;

use alloc::sync::Arc;
use alloc::vec::Vec;

use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};

use crate::format::{Format, all_sizes, low_bits};
use crate::{
    Config, Counted, Dirty, Iova, IovaRange, Pa, PageTable, Prot, Reader, Run, TableWriter, Writer,
};
use ioasis_uapi::Errno;

fn config() -> Config {
    Config::new(Arc::new(Counted::default()))
}

fn made<F: Format>() -> (Writer<F>, Arc<Reader<F>>) {
    PageTable::<F>::new(config()).expect("an empty table")
}

fn range(start: u64, length: u64) -> IovaRange {
    IovaRange::new(Iova(start), length).expect("a range")
}

const RW: Prot = Prot::READ.union(Prot::WRITE);

/// A number that the end of the last range fits.
type Wide = u128;

/// What is mapped, as a list, and what was written to, as a list.
#[derive(Clone, Debug, Default)]
struct Model {
    /// Start, length, output address, permissions.
    mapped: Vec<(Wide, Wide, Wide, Prot)>,
    written: Vec<Wide>,
}

impl Model {
    fn overlaps(&self, start: Wide, length: Wide) -> bool {
        self.mapped.iter().any(|&(at, bytes, ..)| start < at + bytes && at < start + length)
    }

    fn find(&self, iova: Wide) -> Option<(Wide, Prot, Wide)> {
        self.mapped
            .iter()
            .find(|&&(at, bytes, ..)| at <= iova && iova < at + bytes)
            .map(|&(at, bytes, pa, prot)| (pa + (iova - at), prot, at + bytes - iova))
    }

    /// Removes a range and returns the runs that were there.
    fn unmap(&mut self, start: Wide, length: Wide) -> Vec<(Wide, Wide, Wide)> {
        let end = start + length;
        let mut kept = Vec::new();
        let mut gone = Vec::new();
        for &(at, bytes, pa, prot) in &self.mapped {
            let (low, high) = (start.clamp(at, at + bytes), end.clamp(at, at + bytes));
            for (from, to) in [(at, low), (high, at + bytes)] {
                if from < to {
                    kept.push((from, to - from, pa + (from - at), prot));
                }
            }
            if low < high {
                gone.push((low, high - low, pa + (low - at)));
            }
        }
        self.mapped = kept;
        self.written.retain(|&iova| iova < start || iova >= end);
        merged(gone)
    }

    /// Everything, merged.
    fn runs(&self) -> Vec<(Wide, Wide, Wide)> {
        merged(self.mapped.iter().map(|&(at, length, pa, _)| (at, length, pa)).collect())
    }
}

fn merged(mut runs: Vec<(Wide, Wide, Wide)>) -> Vec<(Wide, Wide, Wide)> {
    runs.sort_unstable();
    let mut all: Vec<(Wide, Wide, Wide)> = Vec::new();
    for (iova, length, pa) in runs {
        match all.last_mut() {
            Some(before) if before.0 + before.1 == iova && before.2 + before.1 == pa => {
                before.1 += length;
            }
            _ => all.push((iova, length, pa)),
        }
    }
    all
}

fn wide(iova: Iova, run: Run) -> (Wide, Wide, Wide) {
    (iova.0.into(), run.length.into(), run.pa.0.into())
}

fn narrow(address: Wide) -> u64 {
    u64::try_from(address).expect("an address")
}

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
    Trim,
}

/// An address: a multiple of the `size`th leaf size near the bottom or the top of the aperture, plus pages.
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

fn steps() -> impl Strategy<Value = Step> {
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

    fn step(&mut self, step: Step) {
        let last = self.writer.aperture().last().0;
        let place = |place: Place| place.address::<F>(last);
        let span = |at: Place, length: Length| {
            let at = place(at);
            range(at, length.bytes::<F>(at, last))
        };
        match step {
            Step::Map { at, runs, prot } => self.map(place(at), &runs, prot),
            Step::Unmap { at, length } => self.unmap(span(at, length)),
            Step::Clear { at, length } => {
                let range = span(at, length);
                assert_eq!(self.writer.cut(range.start()), Ok(()));
                if let Some(after) = range.last().0.checked_add(1) {
                    assert_eq!(self.writer.cut(Iova(after)), Ok(()));
                }
                self.writer.clear(range);
                self.model.unmap(range.start().0.into(), bytes(range));
            }
            Step::Cut { at } => assert_eq!(self.writer.cut(Iova(place(at))), Ok(())),
            Step::Protect { at, length, prot } => {
                let range = span(at, length);
                assert_eq!(self.writer.protect(range, prot), Ok(()));
                let written = self.model.written.clone();
                for (iova, length, pa) in self.model.unmap(range.start().0.into(), bytes(range)) {
                    self.model.mapped.push((iova, length, pa, prot));
                }
                self.model.written = written;
            }
            Step::Translate { at, length, need } => self.translate(span(at, length), need),
            Step::ReadDirty { at, length, dirty } => self.read_dirty(span(at, length), dirty),
            Step::SetDirty { at, length } => self.set_dirty(span(at, length)),
            Step::Trim => {
                self.writer.trim();
            }
        }
    }

    fn map(&mut self, at: u64, runs: &[(Place, Length)], prot: Prot) {
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
        if start + total - 1 > last.into() {
            assert_eq!(mapped.expect_err("past the aperture").errno, Errno::ERANGE);
        } else if self.model.overlaps(start, total) {
            assert_eq!(mapped.expect_err("over a mapping").errno, Errno::EADDRINUSE);
        } else {
            assert_eq!(mapped, Ok(()));
            let mut iova = start;
            for run in list {
                self.model.mapped.push((iova, run.length.into(), run.pa.0.into(), prot));
                iova += Wide::from(run.length);
            }
        }
    }

    fn unmap(&mut self, range: IovaRange) {
        let mut old = Vec::new();
        let unmapped = self.writer.unmap(range, &mut |iova, run| old.push(wide(iova, run)));
        assert_eq!(unmapped, Ok(()));
        let expected = self.model.unmap(range.start().0.into(), bytes(range));
        assert_eq!(old, expected, "old runs are merged and ascending");
    }

    fn translate(&mut self, range: IovaRange, need: Prot) {
        let (iova, at) = (range.start(), Wide::from(range.start().0));
        let length = range.span() + 1;
        assert_eq!(
            self.reader.iova_to_phys(iova),
            self.model.find(at).map(|(pa, ..)| Pa(narrow(pa)))
        );
        let found = self.reader.translate(iova, length, need);
        let Some((pa, prot, _)) = self.model.find(at) else {
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
                Some((next, prot, rest)) if next == pa + expected && prot.contains(need) => {
                    expected += rest;
                }
                _ => break,
            }
        }
        let length = expected.min(length.into());
        assert_eq!(found, Ok(Run { pa: Pa(narrow(pa)), length: narrow(length) }));
        if need.contains(Prot::WRITE) {
            self.model.written.extend([at, at + length - 1]);
        }
    }

    fn set_dirty(&mut self, range: IovaRange) {
        self.writer.set_dirty(range);
        let (start, end) = (Wide::from(range.start().0), Wide::from(range.last().0) + 1);
        for &(at, length, ..) in &self.model.mapped {
            let (low, high) = (start.max(at), end.min(at + length));
            if low < high {
                self.model.written.extend([low, high - 1]);
            }
        }
    }

    fn read_dirty(&mut self, range: IovaRange, dirty: Dirty) {
        let mut found: Vec<IovaRange> = Vec::new();
        self.writer.read_dirty(range, dirty, &mut |range| found.push(range));
        for pair in found.windows(2) {
            assert!(pair[0].last().0 + 1 < pair[1].start().0, "found is merged and ascending");
        }
        for &part in &found {
            assert!(range.contains(part), "nothing outside is reported");
        }
        let inside = |ranges: &[IovaRange], iova: Wide| {
            ranges
                .iter()
                .any(|range| (range.start().0.into()..=range.last().0.into()).contains(&iova))
        };
        for &iova in &self.model.written {
            if inside(&[range], iova) {
                assert!(inside(&found, iova), "a write to {iova:#x} is lost");
            }
        }
        if dirty == Dirty::Clear {
            self.model.written.retain(|&iova| !inside(&[range], iova));
            let mut again = 0;
            self.writer.read_dirty(range, Dirty::Keep, &mut |_| again += 1);
            assert_eq!(again, 0, "what was cleared is clean");
        }
    }

    fn finish(mut self) {
        for &(at, length, pa, _) in &self.model.mapped {
            for (iova, pa) in [(at, pa), (at + length - 1, pa + length - 1)] {
                let found = self.reader.iova_to_phys(Iova(narrow(iova)));
                assert_eq!(found, Some(Pa(narrow(pa))));
            }
        }
        let mut old = Vec::new();
        let all = self.writer.unmap(IovaRange::ALL, &mut |iova, run| old.push(wide(iova, run)));
        assert_eq!(all, Ok(()));
        assert_eq!(old, self.model.runs());
        self.writer.trim();
        let root = 1 << F::ROOT_ITEMS_LG2.saturating_sub(F::ITEMS_LG2);
        assert_eq!(self.writer.tables(), root, "only the root is left");
    }
}

fn bytes(range: IovaRange) -> Wide {
    Wide::from(range.span()) + 1
}

/// Random sequences of all operations agree with the model.
pub(crate) fn sequences<F: Format>() {
    let cases = std::env::var("IOASIS_SEQUENCES").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let mut runner =
        TestRunner::new(Cases { failure_persistence: None, ..Cases::with_cases(cases) });
    runner
        .run(&prop::collection::vec(steps(), 1..40), |steps| {
            let mut pair = Pair::<F>::new();
            for step in steps {
                pair.step(step);
            }
            pair.finish();
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{}: {error}", F::NAME));
}

/// Fails every table allocation of a mapping in turn.
pub(crate) fn nothing_is_left_of_a_failed_map<F: Format>() {
    let page = 1_u64 << F::GRANULE_LG2;
    let start = low_bits(F::item_lg2(1).min(F::IOVA_LG2 - 1)) + 1 - page;
    let runs: Vec<Run> = (0..4).map(|n| Run { pa: Pa(n * 4 * page), length: page }).collect();
    for tables_max in 1..64 {
        let Ok((mut writer, reader)) = PageTable::<F>::new(Config { tables_max, ..config() })
        else {
            continue;
        };
        let before = writer.tables();
        match writer.map(Iova(start), &runs, RW) {
            Ok(()) => return assert!(writer.tables() <= tables_max),
            Err(error) => assert_eq!(error.errno, Errno::ENOMEM),
        }
        assert_eq!(writer.tables(), before, "tables are given back");
        for page_nr in 0..4 {
            assert_eq!(reader.iova_to_phys(Iova(start + page_nr * page)), None);
        }
    }
    panic!("{}: four pages take fewer than 64 tables", F::NAME);
}

/// Fails the split of the largest leaf.
pub(crate) fn a_failed_split_changes_no_translation<F: Format>() {
    let lg2 = (all_sizes::<F>() & low_bits(F::IOVA_LG2.min(52))).ilog2();
    let page = 1_u64 << F::GRANULE_LG2;
    for tables_max in 1..64 {
        let Ok((mut writer, reader)) = PageTable::<F>::new(Config { tables_max, ..config() })
        else {
            continue;
        };
        let Ok(()) = writer.map(Iova(0), &[Run { pa: Pa(0), length: 1 << lg2 }], RW) else {
            continue;
        };
        let done = writer.unmap(range(page, page), &mut |_, _| {});
        let hole = reader.iova_to_phys(Iova(page));
        match done {
            Ok(()) => return assert_eq!(hole, None),
            Err(error) => assert_eq!((error.errno, hole), (Errno::ENOMEM, Some(Pa(page)))),
        }
        assert_eq!(reader.iova_to_phys(Iova(2 * page)), Some(Pa(2 * page)));
    }
    panic!("{}: a split takes fewer than 64 tables", F::NAME);
}

/// A write through a leaf of any size is found by a range that only touches the leaf, at its other end.
pub(crate) fn a_write_is_found_from_every_part_of_its_leaf<F: Format>() {
    let page = 1_u64 << F::GRANULE_LG2;
    for lg2 in
        (F::GRANULE_LG2 + 1..F::IOVA_LG2.min(42)).filter(|lg2| all_sizes::<F>() >> lg2 & 1 == 1)
    {
        let (mut writer, reader) = made::<F>();
        let length = 1_u64 << lg2;
        writer.map(Iova(0), &[Run { pa: Pa(0), length }], RW).expect("one leaf");
        for (written, asked) in [(0, length - page), (length - page, 0)] {
            let answer = reader.translate(Iova(written), page, RW);
            assert_eq!(answer.expect("it is mapped").pa, Pa(written));
            let mut found = Vec::new();
            writer.read_dirty(range(asked, page), Dirty::Keep, &mut |range| found.push(range));
            assert_eq!(found, [range(asked, page)], "{}: leaf of {length:#x}", F::NAME);
            writer.read_dirty(IovaRange::ALL, Dirty::Clear, &mut |_| {});
        }
    }
}

/// The first and the last page of the aperture can be mapped, and nothing beyond.
pub(crate) fn the_aperture_ends_where_it_says<F: Format>() {
    let (mut writer, reader) = made::<F>();
    let page = 1_u64 << F::GRANULE_LG2;
    let last = writer.aperture().last().0;
    let top = last - (page - 1);
    let run = Run { pa: Pa(low_bits(F::OA_LG2) & !(page - 1)), length: page };
    for iova in [0, top] {
        assert_eq!(writer.map(Iova(iova), &[run], RW), Ok(()));
        assert_eq!(reader.iova_to_phys(Iova(iova + (page - 1))), Some(Pa(low_bits(F::OA_LG2))));
    }
    let beyond = writer.map(Iova(top), &[run, run], RW);
    assert_eq!(beyond.expect_err("past the end").errno, Errno::ERANGE);
    if last < u64::MAX {
        let fault = reader.translate(Iova(last + 1), 1, Prot::READ).expect_err("past the end");
        assert_eq!(fault.iova, Iova(last + 1));
    }
    let run = Run { pa: Pa(0), length: 2 * page };
    let beyond = writer.map(Iova(top), &[run], RW);
    assert_eq!(beyond.expect_err("past the end").errno, Errno::ERANGE);
}

/// Addresses, lengths and output addresses that no format takes.
pub(crate) fn bad_arguments_have_their_errno<F: Format>() {
    let (mut writer, _) = made::<F>();
    let page = 1_u64 << F::GRANULE_LG2;
    let mut errno = |iova: u64, pa: u64, length: u64| {
        let run = Run { pa: Pa(pa), length };
        writer.map(Iova(iova), &[run], RW).expect_err("refused").errno
    };
    assert_eq!(errno(1, 0, page), Errno::EINVAL);
    assert_eq!(errno(0, 1, page), Errno::EINVAL);
    assert_eq!(errno(0, 0, page / 2), Errno::EINVAL);
    assert_eq!(errno(0, 0, 0), Errno::EINVAL);
    assert_eq!(errno(0, u64::MAX - page + 1, 2 * page), Errno::ERANGE);
    if F::OA_LG2 < 64 {
        assert_eq!(errno(0, 1 << F::OA_LG2, page), Errno::ERANGE);
    }
    let half = writer.unmap(range(page / 2, page), &mut |_, _| {});
    assert_eq!(half.expect_err("refused").errno, Errno::EINVAL);
}

/// A gibibyte, or 64 tables' worth, of smallest leaves takes exactly the tables that hold them.
pub(crate) fn tables_are_the_minimum<F: Format>() {
    let page = 1_u64 << F::GRANULE_LG2;
    let config = Config { page_sizes: page, ..config() };
    let (mut writer, _) = PageTable::<F>::new(config).expect("an empty table");
    let before = writer.tables();
    let length = (4 << F::item_lg2(1)).min(low_bits(F::IOVA_LG2) & !(page - 1));
    writer.map(Iova(0), &[Run { pa: Pa(0), length }], RW).expect("mapped");
    let below = [0, 4, 5, 6, 7, 8];
    assert_eq!(writer.tables(), before + below[F::TOP_LEVEL as usize]);
    writer.clear(range(0, length));
    writer.trim();
    assert_eq!(writer.tables(), before);
}

/// Instantiates the suite for the formats named.
macro_rules! suite {
    ($($name:ident: $format:ty;)*) => {$(
        mod $name {
            use crate::suite;

            #[test]
            fn sequences_agree_with_the_model() {
                suite::sequences::<$format>();
            }

            #[test]
            fn nothing_is_left_of_a_failed_map() {
                suite::nothing_is_left_of_a_failed_map::<$format>();
            }

            #[test]
            fn a_write_is_found_from_every_part_of_its_leaf() {
                suite::a_write_is_found_from_every_part_of_its_leaf::<$format>();
            }

            #[test]
            fn a_failed_split_changes_no_translation() {
                suite::a_failed_split_changes_no_translation::<$format>();
            }

            #[test]
            fn the_aperture_ends_where_it_says() {
                suite::the_aperture_ends_where_it_says::<$format>();
            }

            #[test]
            fn bad_arguments_have_their_errno() {
                suite::bad_arguments_have_their_errno::<$format>();
            }

            #[test]
            fn tables_are_the_minimum() {
                suite::tables_are_the_minimum::<$format>();
            }
        }
    )*};
}

mod instances {
    crate::every::for_every_format!(suite);
}
