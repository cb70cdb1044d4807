//! What a writer took back, for those who keep translations.
//!
//! A count and the last few ranges. Who keeps translations compares the count before each use,
//! which is one load; when it moved, the ranges say what to forget, or that there were too many to
//! tell.
//!
//! Memory ordering: the writer stores a range, then the count with release, before it asks
//! [`Quiesce::wait`](crate::Quiesce::wait); a section opened after that wait sees the count. A
//! range is overwritten 64 changes later; the writer puts a release fence before it does, and the
//! reader an acquire fence between reading ranges and reading the count again, so that whoever read
//! an overwritten range also sees that it is too late.

use crate::sync::atomic::{AtomicU64, Ordering, fence};
use crate::sync::sized;
use crate::{Iova, IovaRange};

const RANGES: usize = sized(64, 64, 2);

/// The changes of one page table.
#[derive(Debug)]
pub struct Changes {
    count: AtomicU64,
    ranges: [(AtomicU64, AtomicU64); RANGES],
}

impl Default for Changes {
    fn default() -> Self {
        Self {
            count: AtomicU64::new(0),
            ranges: core::array::from_fn(|_| (AtomicU64::new(0), AtomicU64::new(0))),
        }
    }
}

impl Changes {
    /// How many changes there were.
    #[inline]
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Adds a change; only the one writer does.
    #[inline]
    pub(crate) fn add(&self, range: IovaRange) {
        let count = self.count.load(Ordering::Relaxed);
        let (start, last) = &self.ranges[place(count)];
        fence(Ordering::Release);
        start.store(range.start().0, Ordering::Relaxed);
        last.store(range.last().0, Ordering::Relaxed);
        self.count.store(count + 1, Ordering::Release);
    }

    /// Calls `forget` with every range changed since the count was `seen`, or with all there is,
    /// and returns the count that this is up to.
    pub fn since(&self, seen: u64, mut forget: impl FnMut(IovaRange)) -> u64 {
        let count = self.count();
        if count - seen < RANGES as u64 {
            for change in seen..count {
                let (start, last) = &self.ranges[place(change)];
                let (start, last) = (start.load(Ordering::Relaxed), last.load(Ordering::Relaxed));
                // Two halves of different ranges are possible, and are noticed below.
                if let Ok(range) = IovaRange::closed(Iova(start), Iova(last)) {
                    forget(range);
                }
            }
        }
        fence(Ordering::Acquire);
        if self.count.load(Ordering::Relaxed) - seen >= RANGES as u64 {
            forget(IovaRange::ALL);
        }
        count
    }
}

fn place(change: u64) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "taken modulo 64")]
    let place = change as usize % RANGES;
    place
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn range(page: u64) -> IovaRange {
        IovaRange::new(Iova(page << 12), 4096).expect("a page")
    }

    #[test]
    fn changes_are_told_once_until_there_are_too_many() {
        let changes = Changes::default();
        let mut told = Vec::new();
        (0..3).for_each(|page| changes.add(range(page)));
        let seen = changes.since(1, |range| told.push(range));
        assert_eq!((seen, &told[..]), (3, &[range(1), range(2)][..]));
        told.clear();
        (0..64).for_each(|page| changes.add(range(page)));
        let seen = changes.since(seen, |range| told.push(range));
        assert_eq!((seen, &told[..]), (67, &[IovaRange::ALL][..]));
    }
}
