//! Areas: which IOVAs show which part of which pages.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::ops::Bound;
use std::sync::Arc;

use ioasis_iommupt::{Iova, IovaRange, Prot};

use crate::pages::{PageRange, Pages};

/// One contiguous piece of a MAP or COPY.
#[derive(Debug)]
pub(crate) struct Area {
    pub(crate) range: IovaRange,
    pub(crate) pages: Arc<Pages>,
    /// Where in `pages` it begins, from the start of the first page.
    pub(crate) start_byte: u64,
    pub(crate) prot: Prot,
    /// The pages of this area are held for the domains of the IOAS.
    pub(crate) filled: bool,
    /// Accesses that hold pages of this area.
    pub(crate) accesses: u32,
    /// Hardware queues that read this area.
    pub(crate) locks: u32,
    /// An unmap waits for the accesses to let go: no pin is added meanwhile.
    pub(crate) prevent_access: bool,
}

impl Area {
    /// The pages this area shows.
    pub(crate) fn page_range(&self) -> PageRange {
        PageRange::of_bytes(self.start_byte, self.length())
    }

    /// Bytes; no area covers the whole 64-bit space.
    pub(crate) fn length(&self) -> u64 {
        self.range.span() + 1
    }

    /// The byte of `pages` behind `iova`, which lies in this area.
    pub(crate) fn byte_at(&self, iova: Iova) -> u64 {
        self.start_byte + (iova.0 - self.range.start().0)
    }
}

/// The areas of one IOAS: disjoint, by first IOVA.
#[derive(Debug, Default)]
pub(crate) struct Areas {
    by_start: BTreeMap<u64, Area>,
}

impl Areas {
    pub(crate) fn is_empty(&self) -> bool {
        self.by_start.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_start.len()
    }

    /// The area `iova` lies in.
    pub(crate) fn at(&self, iova: Iova) -> Option<&Area> {
        let (_, area) = self.by_start.range(..=iova.0).next_back()?;
        (area.range.last() >= iova).then_some(area)
    }

    pub(crate) fn at_mut(&mut self, iova: Iova) -> Option<&mut Area> {
        let (_, area) = self.by_start.range_mut(..=iova.0).next_back()?;
        (area.range.last() >= iova).then_some(area)
    }

    /// The first area that shares an IOVA with `range`.
    pub(crate) fn first(&self, range: IovaRange) -> Option<&Area> {
        self.overlapping(range).next()
    }

    /// Every area that shares an IOVA with `range`, ascending.
    pub(crate) fn overlapping(&self, range: IovaRange) -> impl Iterator<Item = &Area> {
        let start = self.at(range.start()).map_or(range.start().0, |area| area.range.start().0);
        self.by_start
            .range((Bound::Included(start), Bound::Included(range.last().0)))
            .map(|(_, area)| area)
    }

    pub(crate) fn overlapping_mut(&mut self, range: IovaRange) -> impl Iterator<Item = &mut Area> {
        let start = self.at(range.start()).map_or(range.start().0, |area| area.range.start().0);
        self.by_start
            .range_mut((Bound::Included(start), Bound::Included(range.last().0)))
            .map(|(_, area)| area)
    }

    pub(crate) fn iter(&self) -> btree_map::Values<'_, u64, Area> {
        self.by_start.values()
    }

    pub(crate) fn iter_mut(&mut self) -> btree_map::ValuesMut<'_, u64, Area> {
        self.by_start.values_mut()
    }

    pub(crate) fn insert(&mut self, area: Area) {
        let old = self.by_start.insert(area.range.start().0, area);
        assert!(old.is_none(), "areas do not overlap");
    }

    pub(crate) fn remove(&mut self, start: Iova) -> Option<Area> {
        self.by_start.remove(&start.0)
    }

    /// The area nearest to `iova`.
    pub(crate) fn nearest(&self, iova: Iova) -> Option<IovaRange> {
        let below = self.by_start.range(..=iova.0).next_back().map(|(_, area)| area.range);
        let above = self.by_start.range(iova.0..).next().map(|(_, area)| area.range);
        match (below, above) {
            (Some(below), Some(above)) => {
                let under = iova.0.saturating_sub(below.last().0);
                let over = above.start().0 - iova.0;
                Some(if under <= over { below } else { above })
            }
            (one, other) => one.or(other),
        }
    }

    /// Removes and returns the first area.
    pub(crate) fn pop(&mut self) -> Option<Area> {
        self.by_start.pop_first().map(|(_, area)| area)
    }

    /// The last IOVA of the hole that starts at `start`, which is in no area; at most `limit`.
    pub(crate) fn hole_last(&self, start: u64, limit: u64) -> u64 {
        self.by_start.range(start..).next().map_or(limit, |(&next, _)| limit.min(next - 1))
    }
}
