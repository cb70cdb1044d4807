//! Mapping runs with the largest leaves that fit.

use core::ops::Range;
use core::sync::atomic::Ordering;

use crate::format::{Entry, Format, low_bits};
use crate::page_table::{Place, Writer};
use crate::{Iova, IovaRange, Prot, Run};
use ioasis_uapi::{Errno, Error, Result};

/// Leaves of one size that go to one table.
#[derive(Clone, Copy)]
struct Leaves {
    iova: u64,
    pa: u64,
    /// lg2 of the bytes each maps.
    lg2: u32,
    level: u32,
    count: u64,
    attrs: u64,
}

impl<F: Format> Writer<F> {
    /// Maps `runs`, one after another, from `iova`.
    ///
    /// # Errors
    ///
    /// See [`TableWriter::map`](crate::TableWriter::map); `EOPNOTSUPP` for a `prot` the format cannot say. Nothing
    /// is changed then.
    #[inline]
    pub fn map(&mut self, iova: Iova, runs: &[Run], prot: Prot) -> Result<()> {
        let attrs = F::attrs(prot)?;
        self.check(iova.0, runs)?;
        let mut at = iova.0;
        for run in runs {
            if let Err((done, error)) = self.map_run(at, *run, attrs) {
                self.undo(iova.0, done);
                return Err(error);
            }
            at = at.wrapping_add(run.length);
        }
        Ok(())
    }

    /// Judges addresses and lengths before anything is touched.
    #[inline]
    fn check(&self, iova: u64, runs: &[Run]) -> Result<()> {
        let page = low_bits(F::GRANULE_LG2);
        let (mut merged, mut at, mut wraps) = (iova, iova, false);
        for run in runs {
            let (pa, length) = (run.pa.0, run.length);
            merged |= pa | length;
            let Some(last) = pa.checked_add(length.wrapping_sub(1)) else {
                return Err(Error::at(Errno::ERANGE, "output address too large", pa));
            };
            if length == 0 || last > low_bits(F::OA_LG2) {
                return Err(refuse(pa, length));
            }
            // Ending exactly at 2^64 is fine, going on from there is not.
            if wraps || at.checked_add(length - 1).is_none_or(|last| last > self.shared.last) {
                return Err(Error::at(Errno::ERANGE, "outside the aperture", at));
            }
            (at, wraps) = at.overflowing_add(length);
        }
        if merged & page != 0 {
            return Err(Error::at(Errno::EINVAL, "not a multiple of the page size", merged & page));
        }
        Ok(())
    }

    /// Maps one run; on failure says up to where it came.
    #[inline]
    fn map_run(&mut self, iova: u64, run: Run, attrs: u64) -> Result<(), (u64, Error)> {
        let (mut at, mut pa, mut left) = (iova, run.pa.0, run.length);
        while left > 0 {
            let leaves = self.choose(at, pa, left, attrs);
            self.put(leaves).map_err(|error| (at, error))?;
            let bytes = leaves.count << leaves.lg2;
            at = at.wrapping_add(bytes);
            pa += bytes;
            left -= bytes;
        }
        Ok(())
    }

    /// The largest leaf that fits at `iova`, and how many of them follow each other in one table.
    #[inline]
    fn choose(&self, iova: u64, pa: u64, length: u64, attrs: u64) -> Leaves {
        let aligned = low_bits((iova | pa).trailing_zeros().min(length.ilog2()) + 1);
        let lg2 = (self.sizes & aligned).ilog2();
        let level = (lg2 - F::GRANULE_LG2) / F::ITEMS_LG2;
        // Leaves up to the end of the table, or up to where a larger one becomes possible.
        let end = match low_bits(lg2 + 1) {
            smaller if self.sizes & F::sizes(level) & !smaller != 0 => {
                let next = (self.sizes & !smaller).trailing_zeros();
                if (iova ^ pa) & low_bits(next) == 0 { next } else { F::item_lg2(level + 1) }
            }
            _ => F::item_lg2(level + 1),
        };
        let room = (low_bits(end) - (iova & low_bits(end))) >> lg2;
        // At the root `end` may be 64 or more: its last item then ends with the aperture.
        let count = (length >> lg2).min(room.saturating_add(1));
        Leaves { iova, pa, lg2, level, count, attrs }
    }

    #[inline]
    fn put(&mut self, leaves: Leaves) -> Result<()> {
        let Err(error) = self.try_put(leaves) else { return Ok(()) };
        // An empty table may stand in the way, or hold the memory that is wanted.
        if self.trim() { self.try_put(leaves) } else { Err(error) }
    }

    #[inline]
    fn try_put(&mut self, leaves: Leaves) -> Result<()> {
        let place = self.place(leaves.iova, leaves.level)?;
        self.fill(place, leaves)
    }

    #[inline]
    fn fill(&mut self, place: Place, leaves: Leaves) -> Result<()> {
        let Place { frame, fresh } = place;
        let per_leaf = leaves.lg2 - F::item_lg2(leaves.level);
        let first = F::index(leaves.iova, leaves.level);
        #[expect(clippy::cast_possible_truncation, reason = "a table has at most 2^16 items")]
        let slots = first..first + ((leaves.count as usize) << per_leaf);
        if fresh.is_none() {
            for (slot, word) in slots.clone().zip(&self.table(frame)[slots.clone()]) {
                let word = word.load(Ordering::Relaxed);
                if F::decode(word, leaves.level) != Entry::Empty {
                    let item = (slot - first) as u64;
                    let iova = leaves.iova + (item << F::item_lg2(leaves.level));
                    return Err(Error::at(Errno::EADDRINUSE, "already mapped", iova));
                }
            }
        }
        self.write(frame, slots.clone(), leaves);
        match fresh {
            Some(fresh) => {
                self.link_filled(frame, &fresh, slots);
                if leaves.level == 0 {
                    self.set_hot(leaves.iova, frame);
                }
            }
            None => {
                self.tables.add(frame, u32::try_from(slots.len()).expect("a table has few items"));
            }
        }
        Ok(())
    }

    #[inline]
    fn write(&self, frame: u32, slots: Range<usize>, leaves: Leaves) {
        let words = &self.table(frame)[slots];
        let Leaves { pa, lg2, level, attrs, .. } = leaves;
        let mut oa = pa;
        for word in words {
            word.store(F::leaf(oa, level, lg2, attrs), Ordering::Release);
            oa += 1 << F::item_lg2(level);
        }
    }

    /// Takes back what a failed map did from `start` up to `end`.
    #[cold]
    fn undo(&mut self, start: u64, end: u64) {
        if let Some(last) = end.checked_sub(1)
            && let Ok(range) = IovaRange::closed(Iova(start), Iova(last))
        {
            self.clear(range);
        }
        self.trim();
    }
}

/// Why a run cannot be mapped.
#[cold]
fn refuse(pa: u64, length: u64) -> Error {
    if length == 0 {
        Error::at(Errno::EINVAL, "a run is empty", pa)
    } else {
        Error::at(Errno::ERANGE, "output address too large", pa)
    }
}
