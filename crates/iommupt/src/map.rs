//! Mapping runs with the largest leaves that fit.

use core::ops::Range;

use crate::format::{Format, low_bits};
use crate::page_table::{Place, Writer};
use crate::sync::atomic::Ordering;
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
        let mut rest = runs;
        while let [run, ..] = rest {
            let mapped = if run.length == Self::PAGE {
                self.map_pages(&mut at, rest, attrs)
            } else {
                self.map_run(&mut at, *run, attrs)
            };
            match mapped {
                Ok(runs) => rest = &rest[runs..],
                Err(error) => {
                    self.undo(iova.0, at);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Bytes of the smallest leaf.
    const PAGE: u64 = 1 << F::GRANULE_LG2;

    /// Judges addresses and lengths before anything is touched.
    #[inline]
    fn check(&self, iova: u64, runs: &[Run]) -> Result<()> {
        let (mut merged, mut highest, mut total) = (iova, 0, 0_u64);
        let mut bad = false;
        for run in runs {
            let (last, wraps) = run.pa.0.overflowing_add(run.length.wrapping_sub(1));
            let (sum, too_long) = total.overflowing_add(run.length);
            merged |= run.pa.0 | run.length;
            highest |= last;
            bad |= wraps | too_long | (run.length == 0);
            total = sum;
        }
        bad |= merged & (Self::PAGE - 1) != 0 || highest > low_bits(F::OA_LG2);
        bad |= iova.checked_add(total.saturating_sub(1)).is_none_or(|last| last > self.shared.last);
        if bad { self.refuse(iova, runs) } else { Ok(()) }
    }

    /// Finds the run that cannot be mapped. A total of exactly 2^64 bytes is refused too: no aperture is so large and no
    /// mapping either.
    #[cold]
    fn refuse(&self, iova: u64, runs: &[Run]) -> Result<()> {
        let mut at = iova;
        for run in runs {
            let (pa, length) = (run.pa.0, run.length);
            if let Some(odd) = [at, pa, length].into_iter().find(|n| n & (Self::PAGE - 1) != 0) {
                return Err(Error::at(Errno::EINVAL, "not a multiple of the page size", odd));
            }
            let Some(span) = length.checked_sub(1) else {
                return Err(Error::at(Errno::EINVAL, "a run is empty", pa));
            };
            if pa.checked_add(span).is_none_or(|last| last > low_bits(F::OA_LG2)) {
                return Err(Error::at(Errno::ERANGE, "output address too large", pa));
            }
            if at.checked_add(span).is_none_or(|last| last > self.shared.last) {
                break;
            }
            at = at.wrapping_add(length);
        }
        Err(Error::at(Errno::ERANGE, "outside the aperture", at))
    }

    /// Maps as many runs of one page as follow each other in one table, and says how many; `at` moves on.
    #[inline]
    fn map_pages(&mut self, at: &mut u64, runs: &[Run], attrs: u64) -> Result<usize> {
        let place = match self.place(*at, 0) {
            Ok(place) => place,
            Err(_) if self.trim() => self.place(*at, 0)?,
            Err(error) => return Err(error),
        };
        let Place { frame, fresh } = place;
        let first = F::index(*at, 0);
        let mut mapped = 0;
        let mut taken = false;
        for (word, run) in self.table(frame)[first..].iter().zip(runs) {
            if run.length != Self::PAGE {
                break;
            }
            // What is not linked yet may hold anything.
            if fresh.is_none() && word.load(Ordering::Relaxed) != 0 {
                taken = true;
                break;
            }
            word.store(F::leaf(run.pa.0, 0, F::GRANULE_LG2, attrs), Ordering::Release);
            mapped += 1;
        }
        match fresh {
            Some(fresh) => {
                self.link_filled(frame, &fresh, first..first + mapped);
                self.set_hot(*at, frame);
            }
            None => self.tables.add(frame, mapped),
        }
        *at = at.wrapping_add((mapped as u64) << F::GRANULE_LG2);
        if taken { Err(Error::at(Errno::EADDRINUSE, "already mapped", *at)) } else { Ok(mapped) }
    }

    /// Maps one run; `at` moves on.
    #[inline]
    fn map_run(&mut self, at: &mut u64, run: Run, attrs: u64) -> Result<usize> {
        let (mut pa, mut left) = (run.pa.0, run.length);
        while left > 0 {
            let leaves = self.choose(*at, pa, left, attrs);
            self.put(leaves)?;
            let bytes = leaves.count << leaves.lg2;
            *at = at.wrapping_add(bytes);
            pa += bytes;
            left -= bytes;
        }
        Ok(1)
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
            let words = &self.table(frame)[slots.clone()];
            let taken = words.iter().fold(0, |all, word| all | word.load(Ordering::Relaxed));
            if taken != 0 {
                return Err(Error::at(Errno::EADDRINUSE, "already mapped", leaves.iova));
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
            None => self.tables.add(frame, slots.len()),
        }
        Ok(())
    }

    #[inline]
    fn write(&self, frame: u32, slots: Range<usize>, leaves: Leaves) {
        let words = &self.table(frame)[slots];
        let Leaves { mut pa, lg2, level, attrs, .. } = leaves;
        // The common cases with constants, so that the loop is a store and an addition.
        if lg2 == F::GRANULE_LG2 {
            for word in words {
                word.store(F::leaf(pa, 0, F::GRANULE_LG2, attrs), Ordering::Release);
                pa += Self::PAGE;
            }
        } else {
            for word in words {
                word.store(F::leaf(pa, level, lg2, attrs), Ordering::Release);
                pa += 1 << F::item_lg2(level);
            }
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
