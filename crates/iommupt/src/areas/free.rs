//! Linux's rule for choosing an IOVA (`drivers/iommu/iommufd/io_pagetable.c`, `iopt_alloc_iova`).
//!
//! How long it takes: O(log n) for n areas, amortised, plus the holes that are long enough but lie
//! so that no aligned candidate fits. A hole of `length + align - 1` bytes always holds one, so
//! those are the holes of at least `length` and less than `length + align - 1` bytes below the
//! answer, each looked at once, with at most the branches above it: O(m log n) for m of them, all n
//! at worst; `align` is at most 2 MiB. Where lengths are multiples of their alignment, as those of
//! huge pages are, and areas were chosen by this rule, holes are too and none is looked at in vain.
//! A client that wants them makes each with a call of its own; Linux looks at every area below the
//! answer in any case.

use alloc::vec::Vec;

use super::Areas;
use crate::format::low_bits;
use crate::{Iova, IovaRange};
use ioasis_uapi::{Errno, Error, Result};

/// A page of the system, as the rule knows it.
const PAGE_LG2: u32 = 12;
/// A transparent huge page: the largest alignment that is kept.
const HUGE_PAGE_LG2: u32 = 21;

/// A set of addresses as ascending ranges that neither overlap nor touch: reserved or allowed
/// IOVAs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<IovaRange>);

impl Ranges {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds `range`, merging what overlaps or touches.
    pub fn insert(&mut self, range: IovaRange) {
        let (start, last) = (range.start().0, range.last().0);
        let from =
            self.0.partition_point(|old| old.last().0.checked_add(1).is_some_and(|n| n < start));
        let to = self
            .0
            .partition_point(|old| last.checked_add(1).is_none_or(|after| old.start().0 <= after));
        let joined = self.0[from..to].iter().fold(range, |all, old| {
            let (start, last) = (all.start().min(old.start()), all.last().max(old.last()));
            IovaRange::closed(start, last).expect("the hull of two ranges")
        });
        self.0.splice(from..to, [joined]);
    }

    /// Whether the set is empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl Iterator<Item = IovaRange> + '_ {
        self.0.iter().copied()
    }

    /// The first range that shares an address with `range`.
    #[must_use]
    pub fn first(&self, range: IovaRange) -> Option<IovaRange> {
        let at = self.0.partition_point(|old| old.last() < range.start());
        self.0.get(at).copied().filter(|old| old.start() <= range.last())
    }

    /// Calls `hole` for every part of `range` outside the set, ascending, until it returns
    /// something.
    pub fn find_hole<R>(
        &self,
        range: IovaRange,
        mut hole: impl FnMut(IovaRange) -> Option<R>,
    ) -> Option<R> {
        let mut from = range.start().0;
        let at = self.0.partition_point(|old| old.last() < range.start());
        for old in &self.0[at..] {
            if old.start() > range.last() {
                break;
            }
            if let Some(last) = old.start().0.checked_sub(1)
                && let Ok(free) = IovaRange::closed(Iova(from), Iova(last))
                && let Some(taken) = hole(free)
            {
                return Some(taken);
            }
            from = old.last().0.checked_add(1)?;
        }
        hole(IovaRange::closed(Iova(from), range.last()).ok()?)
    }
}

impl FromIterator<IovaRange> for Ranges {
    fn from_iter<I: IntoIterator<Item = IovaRange>>(ranges: I) -> Self {
        let mut set = Self::new();
        for range in ranges {
            set.insert(range);
        }
        set
    }
}

/// What an IOVA is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Bytes.
    pub length: u64,
    /// Where the memory lies: a virtual address, or the offset inside a file. Its alignment and its
    /// offset inside a page are kept.
    pub address: u64,
    /// The address space's alignment, a power of two.
    pub alignment: u64,
}

/// The order in which the bits of a candidate are made.
#[derive(Clone, Copy)]
struct Fit {
    /// Bytes minus one.
    span: u64,
    /// Alignment minus one.
    mask: u64,
    page_offset: u64,
}

impl Fit {
    /// The candidate in a span of free addresses. One whose only byte would be the last of the span
    /// is refused, as Linux refuses it.
    fn candidate(self, span: IovaRange) -> Option<u64> {
        let start = span.start().0.checked_add(self.mask)? & !self.mask;
        let start = start | self.page_offset;
        let last = span.last().0;
        (start < last && last - start >= self.span).then_some(start)
    }
}

impl<T> Areas<T> {
    /// The IOVA that Linux would choose: the lowest in `allowed` (or anywhere but the first and
    /// last page, if that is empty) outside `reserved` and all areas, aligned as the memory is.
    ///
    /// # Errors
    ///
    /// `EOVERFLOW` for no or too much length, `EINVAL` when the memory is aligned less than the
    /// address space asks, `ENOSPC` when nothing fits.
    pub fn find_free(
        &mut self,
        wanted: Wanted,
        allowed: &Ranges,
        reserved: &Ranges,
    ) -> Result<Iova> {
        let Wanted { length, address, alignment } = wanted;
        if length == 0 || length >= u64::MAX / 2 {
            return Err(Error::at(Errno::EOVERFLOW, "length cannot be aligned", length));
        }
        let mut align = length.next_power_of_two();
        if address != 0 {
            align = align.min(1 << address.trailing_zeros());
        }
        align = align.min(1 << HUGE_PAGE_LG2);
        if align < alignment {
            return Err(Error::at(Errno::EINVAL, "memory is not aligned enough", address));
        }
        let page_offset = address & low_bits(PAGE_LG2);
        let fit = Fit { span: length - 1, mask: align - 1, page_offset };
        let page = 1 << PAGE_LG2;
        let bounds = IovaRange::closed(Iova(page), Iova(u64::MAX - page))?;
        let found = if allowed.is_empty() {
            self.find_in_span(bounds, fit, reserved)
        } else {
            allowed
                .iter()
                .filter_map(|span| span.intersect(bounds))
                .find_map(|span| self.find_in_span(span, fit, reserved))
        };
        found.ok_or(Error::at(Errno::ENOSPC, "no hole is large enough", length))
    }

    fn find_in_span(&mut self, span: IovaRange, fit: Fit, reserved: &Ranges) -> Option<Iova> {
        // The span itself must pass, and the search begins at what passed.
        let from = fit.candidate(span)?;
        let window = IovaRange::closed(Iova(from), span.last()).ok()?;
        self.find_hole(window, fit.span, |hole| {
            reserved.find_hole(hole, |free| fit.candidate(free).map(Iova))
        })
    }
}
