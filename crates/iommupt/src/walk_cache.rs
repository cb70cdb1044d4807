//! The lowest tables that one thread passed, so that it need not walk to them again, as an IOMMU's
//! cache of paging structures keeps them.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;

use crate::format::{Entry, Format};
use crate::sync::sized;
use crate::walk::{Reader, Spot, output};
use crate::{Fault, Iova, IovaRange, Pa, Prot, Run};

/// Tables of level 0: with 4 KiB pages and 512 items, those of 8 GiB.
const LEAF_TABLES: usize = sized(4096, 8, 2);
/// Tables of level 1: those of 512 GiB.
const UPPER_TABLES: usize = sized(512, 4, 2);

/// A table and what it translates.
#[derive(Clone, Copy)]
struct Passed {
    /// IOVA without the bits that the table and those below it resolve; one more than any for none.
    tag: u64,
    table: u64,
}

const NONE: Passed = Passed { tag: u64::MAX, table: 0 };

/// A reader that remembers the way: for a thread that translates far and wide and does little else,
/// where a walk's 8 ns become 5. It has 72 KiB of its own, which are better left to the bytes where
/// those are copied. Like every reader it belongs in a [`Section`](crate::Section).
pub struct WalkCache<F: Format> {
    reader: Arc<Reader<F>>,
    /// Of level 0.
    leaf_tables: Box<[Passed; LEAF_TABLES]>,
    /// Of level 1.
    upper_tables: Box<[Passed; UPPER_TABLES]>,
    /// Whether a table of level 0 was met: where all leaves are larger, none is looked for.
    small: bool,
    /// Changes of the table that are known here.
    seen: u64,
}

impl<F: Format> fmt::Debug for WalkCache<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WalkCache").field("reader", &self.reader).finish_non_exhaustive()
    }
}

impl<F: Format> WalkCache<F> {
    /// Knows no way yet.
    #[must_use]
    pub fn new(reader: Arc<Reader<F>>) -> Self {
        let seen = reader.changes.count();
        let leaf_tables = Box::new([NONE; LEAF_TABLES]);
        let upper_tables = Box::new([NONE; UPPER_TABLES]);
        Self { reader, leaf_tables, upper_tables, small: false, seen }
    }

    /// The output address behind `iova`, whatever its permissions.
    #[inline(always)]
    pub fn iova_to_phys(&mut self, iova: Iova) -> Option<Pa> {
        let output = |spot: Spot| Pa(output::<F>(spot.word, spot.level, iova.0));
        match self.leaf_table(iova.0) {
            Some(spot) => self.reader.descend(spot, iova.0, output).ok(),
            None => {
                let start = self.upper_table(iova.0);
                self.reader.descend(start, iova.0, output).ok()
            }
        }
    }

    /// See [`TableReader::translate`](crate::TableReader::translate).
    ///
    /// # Errors
    ///
    /// The fault, when not even the first byte can be translated.
    #[inline(always)]
    pub fn translate(&mut self, iova: Iova, length: u64, need: Prot) -> Result<Run, Fault> {
        match self.leaf_table(iova.0) {
            Some(spot) => self.reader.translate_from(spot, iova, length, need),
            None => {
                let start = self.upper_table(iova.0);
                self.reader.translate_from(start, iova, length, need)
            }
        }
    }

    /// The walk's last step, if its table is remembered.
    #[inline(always)]
    fn leaf_table(&mut self, iova: u64) -> Option<Spot> {
        if self.reader.changes.count() != self.seen {
            self.catch_up();
        }
        if !self.small {
            return None;
        }
        let tag = iova >> F::item_lg2(1);
        let passed = self.leaf_tables[slot::<LEAF_TABLES>(tag)];
        (passed.tag == tag).then(|| self.step(passed.table, 0, iova))
    }

    /// The walk's last but one step, if its table is remembered, or its first.
    #[inline(always)]
    fn upper_table(&mut self, iova: u64) -> Spot {
        // A table of two levels has nothing to remember.
        if F::TOP_LEVEL < 2 {
            return self.reader.root(iova);
        }
        let tag = iova >> F::item_lg2(2);
        let passed = self.upper_tables[slot::<UPPER_TABLES>(tag)];
        let spot =
            if passed.tag == tag { self.step(passed.table, 1, iova) } else { self.learn(iova) };
        if spot.level == 1
            && let Entry::Table(table) = F::decode(spot.word, 1)
        {
            let tag = iova >> F::item_lg2(1);
            self.leaf_tables[slot::<LEAF_TABLES>(tag)] = Passed { tag, table };
            self.small = true;
        }
        spot
    }

    #[inline(always)]
    fn step(&self, table: u64, level: u32, iova: u64) -> Spot {
        Spot { table, level, word: self.reader.arena.load(table, F::index(iova, level)) }
    }

    #[cold]
    #[inline(never)]
    fn learn(&mut self, iova: u64) -> Spot {
        let Some(table) = self.reader.table_at(iova, 1) else { return self.reader.root(iova) };
        let tag = iova >> F::item_lg2(2);
        self.upper_tables[slot::<UPPER_TABLES>(tag)] = Passed { tag, table };
        self.step(table, 1, iova)
    }

    /// Forgets what was taken back. Only then may a way be followed or remembered.
    #[cold]
    #[inline(never)]
    fn catch_up(&mut self) {
        let reader = Arc::clone(&self.reader);
        self.seen = reader.changes.since(self.seen, |range| {
            forget(&mut self.leaf_tables, F::item_lg2(1), range);
            forget(&mut self.upper_tables, F::item_lg2(2), range);
        });
    }
}

fn forget<const N: usize>(tables: &mut [Passed; N], lg2: u32, range: IovaRange) {
    let (first, last) = (range.start().0 >> lg2, range.last().0 >> lg2);
    if last - first >= N as u64 {
        tables.fill(NONE);
        return;
    }
    for tag in first..=last {
        let passed = &mut tables[slot::<N>(tag)];
        if passed.tag == tag {
            *passed = NONE;
        }
    }
}

#[inline]
const fn slot<const N: usize>(tag: u64) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "taken modulo the number of tables")]
    let slot = tag as usize % N;
    slot
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fmt::VtdSs;
    use crate::{Config, Counted, Dirty, PageTable, Writer};

    const PAGE: u64 = 0x1000;

    fn table() -> (Writer<VtdSs>, Arc<Reader<VtdSs>>) {
        PageTable::new(Config::new(Arc::new(Counted::default()))).expect("an empty table")
    }

    fn page(pa: u64) -> [Run; 1] {
        [Run { pa: Pa(pa), length: PAGE }]
    }

    #[test]
    fn a_remembered_table_is_forgotten_with_its_memory() {
        let (mut writer, reader) = table();
        let mut cache = WalkCache::new(reader);
        let huge = IovaRange::new(Iova(0), 1 << 30).expect("a range");
        for pa in [0x5000, 0x6000] {
            writer.map(Iova(PAGE), &page(pa), Prot::READ).expect("mapped");
            for _ in 0..2 {
                assert_eq!(cache.iova_to_phys(Iova(0x1234)), Some(Pa(pa + 0x234)));
                assert_eq!(cache.iova_to_phys(Iova(0x2000)), None);
            }
            writer.clear(huge);
            // Its memory serves other addresses now.
            for table in 1..100_u64 {
                writer.map(Iova((table << 30) + PAGE), &page(0x9000), Prot::READ).expect("mapped");
            }
            assert_eq!(cache.iova_to_phys(Iova(0x1234)), None);
            writer.clear(IovaRange::ALL);
        }
    }

    #[test]
    fn a_remembered_table_serves_no_address_outside_the_aperture() {
        let (mut writer, reader) = table();
        let mut cache = WalkCache::new(reader);
        writer.map(Iova(PAGE), &page(0x5000), Prot::READ).expect("mapped");
        for high in [1 << 48, 1 << 57, 1 << 63] {
            assert_eq!(cache.iova_to_phys(Iova(0x1234)), Some(Pa(0x5234)));
            for _ in 0..2 {
                assert_eq!(cache.iova_to_phys(Iova(high | 0x1234)), None);
            }
        }
    }

    #[test]
    fn a_write_by_a_remembered_way_checks_and_marks_as_any_does() {
        let (mut writer, reader) = table();
        let mut cache = WalkCache::new(reader);
        let write = Prot::READ | Prot::WRITE;
        writer.map(Iova(PAGE), &page(0x5000), write).expect("mapped");
        writer.map(Iova(2 * PAGE), &page(0x6000), write).expect("mapped");
        writer.map(Iova(3 * PAGE), &page(0x7000), Prot::READ).expect("mapped");
        for _ in 0..3 {
            let run = cache.translate(Iova(0x1800), 3 * PAGE, write);
            assert_eq!(run, Ok(Run { pa: Pa(0x5800), length: 0x1800 }));
            let fault = cache.translate(Iova(0x3000), 1, write).expect_err("read-only");
            assert_eq!((fault.iova, fault.missing), (Iova(0x3000), Prot::WRITE));
            let mut dirty = alloc::vec::Vec::new();
            writer.read_dirty(IovaRange::ALL, Dirty::Clear, &mut |range| dirty.push(range));
            assert_eq!(dirty, [IovaRange::new(Iova(PAGE), 2 * PAGE).expect("a range")]);
        }
    }
}
