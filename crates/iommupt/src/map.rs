//! Mapping runs with the largest leaves that fit.

use core::ops::Range;

use crate::format::{Format, low_bits};
use crate::page_table::{Place, Writer};
use crate::sync::atomic::{AtomicU64, Ordering};
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

/// Runs that are checked together, before any of them is mapped.
const RUNS_AT_ONCE: usize = 512;

/// What a list that may be mapped consists of.
#[derive(Clone, Copy)]
enum List {
    /// Runs of one page each.
    Pages,
    /// Runs of any length.
    Mixed,
}

impl<F: Format> Writer<F> {
    /// Maps `runs`, one after another, from `iova`.
    ///
    /// # Errors
    ///
    /// See [`TableWriter::map`](crate::TableWriter::map); `EOPNOTSUPP` for a `prot` the format
    /// cannot say. Nothing is changed then.
    #[inline]
    pub fn map(&mut self, iova: Iova, runs: &[Run], prot: Prot) -> Result<()> {
        let attrs = F::attrs(prot)?;
        match runs {
            [run] if self.map_page(iova.0, *run, attrs) => Ok(()),
            _ => self.map_runs(iova.0, runs, attrs),
        }
    }

    /// Maps one page in the table used last; false if anything speaks against it.
    #[inline]
    fn map_page(&mut self, iova: u64, run: Run, attrs: u64) -> bool {
        let Some(frame) = self.hot(iova) else { return false };
        let odd = (iova | run.pa.0) & (Self::PAGE - 1) != 0 || run.length != Self::PAGE;
        if odd || run.pa.0 > low_bits(F::OA_LG2) || iova > self.last {
            return false;
        }
        let word = &self.table(frame)[F::index(iova, 0)];
        if word.load(Ordering::Relaxed) != 0 {
            return false;
        }
        word.store(F::leaf(run.pa.0, 0, F::GRANULE_LG2, attrs), Ordering::Release);
        self.tables.add(frame, 1);
        true
    }

    fn map_runs(&mut self, iova: u64, runs: &[Run], attrs: u64) -> Result<()> {
        let mut at = iova;
        // In parts that are still in the cache when they are mapped.
        for runs in runs.chunks(RUNS_AT_ONCE) {
            // The end of all addresses was passed.
            let checked = if at < iova { Err(outside(at)) } else { self.check(at, runs) };
            let mapped = checked.and_then(|list| match list {
                List::Pages => self.map_list(&mut at, runs, attrs),
                List::Mixed => self.map_mixed(&mut at, runs, attrs),
            });
            if let Err(error) = mapped {
                self.undo(iova, at);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Maps runs of one page each; `at` moves on as far as that went.
    fn map_list(&mut self, at: &mut u64, runs: &[Run], attrs: u64) -> Result<()> {
        let mut rest = runs;
        while !rest.is_empty() {
            let (pages, after) = rest.split_at(Self::room(*at).min(rest.len()));
            self.map_pages(at, pages, attrs)?;
            rest = after;
        }
        Ok(())
    }

    /// Pages from `iova` to the end of its lowest table.
    fn room(iova: u64) -> usize {
        let items_lg2 = if F::TOP_LEVEL == 0 { F::ROOT_ITEMS_LG2 } else { F::ITEMS_LG2 };
        (1 << items_lg2) - F::index(iova, 0)
    }

    /// Maps runs of any length; `at` moves on as far as that went.
    fn map_mixed(&mut self, at: &mut u64, runs: &[Run], attrs: u64) -> Result<()> {
        let mut rest = runs;
        while let [run, after @ ..] = rest {
            let room = rest.len().min(Self::room(*at));
            let pages = rest[..room].iter().take_while(|run| run.length == Self::PAGE).count();
            if pages > 0 {
                self.map_pages(at, &rest[..pages], attrs)?;
                rest = &rest[pages..];
            } else {
                self.map_run(at, *run, attrs)?;
                rest = after;
            }
        }
        Ok(())
    }

    /// Bytes of the smallest leaf.
    const PAGE: u64 = 1 << F::GRANULE_LG2;

    /// Judges addresses and lengths.
    #[inline]
    fn check(&self, iova: u64, runs: &[Run]) -> Result<List> {
        let fits = !(low_bits(F::OA_LG2) & !(Self::PAGE - 1));
        let (odd, merged) = runs.iter().fold((0, iova & (Self::PAGE - 1)), |(odd, merged), run| {
            (odd | (run.length ^ Self::PAGE), merged | (run.pa.0 & fits))
        });
        let span = (runs.len() as u64 * Self::PAGE).saturating_sub(1);
        let inside = iova.checked_add(span).is_some_and(|last| last <= self.last);
        if odd == 0 && merged == 0 && inside {
            return Ok(List::Pages);
        }
        self.check_mixed(iova, runs).map(|()| List::Mixed)
    }

    fn check_mixed(&self, iova: u64, runs: &[Run]) -> Result<()> {
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
        bad |= iova.checked_add(total.saturating_sub(1)).is_none_or(|last| last > self.last);
        if bad { self.refuse(iova, runs) } else { Ok(()) }
    }

    /// Finds the run that cannot be mapped. A total of exactly 2^64 bytes is refused too: no
    /// aperture is so large and no mapping either.
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
            if at.checked_add(span).is_none_or(|last| last > self.last) {
                break;
            }
            at = at.wrapping_add(length);
        }
        Err(outside(at))
    }

    /// Maps runs of one page that one table translates; `at` moves on.
    fn map_pages(&mut self, at: &mut u64, runs: &[Run], attrs: u64) -> Result<()> {
        let place = match self.place(*at, 0) {
            Ok(place) => place,
            Err(_) if self.trim() => self.place(*at, 0)?,
            Err(error) => return Err(error),
        };
        let Place { frame, fresh } = place;
        let first = F::index(*at, 0);
        let words = &self.table(frame)[first..first + runs.len()];
        // What is not linked yet may hold anything.
        if fresh.is_none() && !all_empty(words) {
            return Err(Error::at(Errno::EADDRINUSE, "already mapped", *at));
        }
        for (word, run) in words.iter().zip(runs) {
            word.store(F::leaf(run.pa.0, 0, F::GRANULE_LG2, attrs), Ordering::Release);
        }
        match fresh {
            Some(fresh) => {
                self.link_filled(frame, &fresh, first..first + runs.len());
                self.set_hot(*at, frame);
            }
            None => self.tables.add(frame, runs.len()),
        }
        *at = at.wrapping_add((runs.len() as u64) << F::GRANULE_LG2);
        Ok(())
    }

    /// Maps one run; `at` moves on.
    #[inline]
    fn map_run(&mut self, at: &mut u64, run: Run, attrs: u64) -> Result<()> {
        let (mut pa, mut left) = (run.pa.0, run.length);
        while left > 0 {
            let leaves = self.choose(*at, pa, left, attrs);
            self.put(leaves)?;
            let bytes = leaves.count << leaves.lg2;
            *at = at.wrapping_add(bytes);
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
        if fresh.is_none() && !all_empty(&self.table(frame)[slots.clone()]) {
            return Err(Error::at(Errno::EADDRINUSE, "already mapped", leaves.iova));
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
        let Leaves { pa, lg2, level, attrs, .. } = leaves;
        // The common cases with constants, so that a word is a store and an addition.
        if lg2 == F::GRANULE_LG2 {
            store(words, pa, Self::PAGE, |pa| F::leaf(pa, 0, F::GRANULE_LG2, attrs));
        } else {
            let item = 1 << F::item_lg2(level);
            store(words, pa, item, |pa| F::leaf(pa, level, lg2, attrs));
        }
    }

    /// Takes back what a failed map did from `start` up to `end`.
    #[cold]
    fn undo(&mut self, start: u64, end: u64) {
        // The end may be that of all addresses.
        if start != end
            && let Ok(range) = IovaRange::closed(Iova(start), Iova(end.wrapping_sub(1)))
        {
            self.clear(range);
        }
        self.trim();
    }
}

/// Stores what `leaf` makes of addresses from `pa` on, `step` apart.
#[inline(always)]
fn store(words: &[AtomicU64], pa: u64, step: u64, leaf: impl Fn(u64) -> u64) {
    let mut pa = pa;
    let (chunks, rest) = words.as_chunks::<8>();
    for chunk in chunks {
        for (n, word) in (0..).zip(chunk) {
            word.store(leaf(pa + n * step), Ordering::Release);
        }
        pa += 8 * step;
    }
    for word in rest {
        word.store(leaf(pa), Ordering::Release);
        pa += step;
    }
}

#[cold]
const fn outside(at: u64) -> Error {
    Error::at(Errno::ERANGE, "outside the aperture", at)
}

/// Whether nothing is mapped by these words.
#[inline]
fn all_empty(words: &[AtomicU64]) -> bool {
    let (chunks, rest) = words.as_chunks::<8>();
    let any = rest.iter().fold(0, |any, word| any | word.load(Ordering::Relaxed));
    // Loads that do not wait for each other.
    let any = chunks.iter().fold(any, |any, chunk| {
        let [a, b, c, d, e, f, g, h] = chunk.each_ref().map(|word| word.load(Ordering::Relaxed));
        any | (((a | b) | (c | d)) | ((e | f) | (g | h)))
    });
    any == 0
}

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;
    use alloc::vec::Vec;

    use super::*;
    use crate::fmt::{AmdV1, VtdSs};
    use crate::{Config, Counted, Pa, PageTable};

    const PAGE: u64 = 4096;
    const MANY: u64 = RUNS_AT_ONCE as u64;

    fn pages(count: u64) -> Vec<Run> {
        (0..count).map(|n| Run { pa: Pa(3 * n * PAGE), length: PAGE }).collect()
    }

    /// A list is checked in parts; what the parts before put there has to go.
    fn leaves_nothing<F: Format>(iova: u64, runs: &[Run], errno: Errno) {
        let config = Config::new(Arc::new(Counted::default()));
        let (mut writer, reader) = PageTable::<F>::new(config).expect("an empty table");
        let error = writer.map(Iova(iova), runs, Prot::READ).expect_err("not mapped");
        assert_eq!(error.errno, errno);
        assert_eq!(writer.tables(), 1, "only the root is left");
        for at in [iova, 0, u64::MAX] {
            assert_eq!(reader.iova_to_phys(Iova(at)), None);
        }
    }

    #[test]
    fn a_long_list_with_a_bad_end_leaves_nothing() {
        let mut runs = pages(3 * MANY);
        let last = runs.len() - 1;
        runs[last].length = 5;
        leaves_nothing::<VtdSs>(7 * PAGE, &runs, Errno::EINVAL);
        runs[last] = Run { pa: Pa(1 << 60), length: PAGE };
        leaves_nothing::<VtdSs>(7 * PAGE, &runs, Errno::ERANGE);
    }

    #[test]
    fn a_long_list_past_the_last_address_leaves_nothing() {
        let count = MANY;
        let start = 0_u64.wrapping_sub(count * PAGE);
        leaves_nothing::<AmdV1<6>>(start, &pages(count + 1), Errno::ERANGE);
    }
}
