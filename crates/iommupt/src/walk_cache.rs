//! The lowest tables that one thread passed, so that it need not walk to them again.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;

use crate::format::{Entry, Format};
use crate::sync::sized;
use crate::walk::{Reader, output};
use crate::{Iova, Pa};

/// With 4 KiB pages and 512 items, 8 GiB of IOVAs.
const ENTRIES: usize = sized(4096, 8, 2);

/// A level 0 table and what it translates.
#[derive(Clone, Copy)]
struct Passed {
    /// IOVA without the bits that the table resolves; one more than any for none.
    tag: u64,
    table: u64,
}

const NONE: Passed = Passed { tag: u64::MAX, table: 0 };

/// A reader that remembers the way. Like every reader it belongs in a [`Section`](crate::Section).
pub struct WalkCache<F: Format> {
    reader: Arc<Reader<F>>,
    passed: Box<[Passed; ENTRIES]>,
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
        Self { reader, passed: Box::new([NONE; ENTRIES]), seen }
    }

    /// The output address behind `iova`, whatever its permissions.
    #[inline]
    pub fn iova_to_phys(&mut self, iova: Iova) -> Option<Pa> {
        let tag = iova.0 >> F::item_lg2(1);
        let passed = self.passed[slot(tag)];
        if passed.tag == tag && self.reader.changes.count() == self.seen {
            let word = self.reader.arena.load(passed.table, F::index(iova.0, 0));
            // What is empty or broken is the walk's business.
            if F::decode(word, 0) == Entry::Leaf {
                return Some(Pa(output::<F>(word, 0, iova.0)));
            }
        }
        self.walk(iova)
    }

    #[inline(never)]
    fn walk(&mut self, iova: Iova) -> Option<Pa> {
        let seen = self.seen;
        let reader = Arc::clone(&self.reader);
        self.seen = reader.changes.since(seen, |range| self.forget(range));
        let spot = reader.find(iova.0).ok()?;
        if spot.level == 0 && F::TOP_LEVEL > 0 {
            let tag = iova.0 >> F::item_lg2(1);
            self.passed[slot(tag)] = Passed { tag, table: spot.table };
        }
        Some(Pa(output::<F>(spot.word, spot.level, iova.0)))
    }

    fn forget(&mut self, range: crate::IovaRange) {
        let (first, last) = (range.start().0 >> F::item_lg2(1), range.last().0 >> F::item_lg2(1));
        if last - first >= ENTRIES as u64 {
            self.passed.fill(NONE);
            return;
        }
        for tag in first..=last {
            let passed = &mut self.passed[slot(tag)];
            if passed.tag == tag {
                *passed = NONE;
            }
        }
    }
}

#[inline]
const fn slot(tag: u64) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "taken modulo 4096")]
    let slot = tag as usize % ENTRIES;
    slot
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fmt::VtdSs;
    use crate::{Config, Counted, IovaRange, PageTable, Prot, Run};

    #[test]
    fn a_remembered_table_is_forgotten_with_its_memory() {
        let config = Config::new(Arc::new(Counted::default()));
        let (mut writer, reader) = PageTable::<VtdSs>::new(config).expect("an empty table");
        let mut cache = WalkCache::new(reader);
        let run = |pa| Run { pa: Pa(pa), length: 0x1000 };
        let large = IovaRange::new(Iova(0), 1 << 21).expect("a range");
        for pa in [0x5000, 0x6000] {
            writer.map(Iova(0x1000), &[run(pa)], Prot::READ).expect("mapped");
            for _ in 0..2 {
                assert_eq!(cache.iova_to_phys(Iova(0x1234)), Some(Pa(pa + 0x234)));
                assert_eq!(cache.iova_to_phys(Iova(0x2000)), None);
            }
            writer.clear(large);
            // Its memory serves other addresses now.
            for table in 1..100_u64 {
                writer
                    .map(Iova((table << 21) + 0x1000), &[run(0x9000)], Prot::READ)
                    .expect("mapped");
            }
            assert_eq!(cache.iova_to_phys(Iova(0x1234)), None);
            writer.clear(IovaRange::ALL);
        }
    }
}
