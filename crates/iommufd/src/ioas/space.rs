//! Which IOVAs may be used: reserved and allowed ranges, and the search for free ones.
//!
//! Linux: `drivers/iommu/iommufd/io_pagetable.c`.

use ioasis_iommupt::{Iova, IovaRange};
use ioasis_uapi::Result;

use super::area::Areas;
use crate::pages::PAGE_SIZE;

/// A range nobody may map, and who says so.
#[derive(Clone, Copy, Debug)]
struct Reserved {
    range: IovaRange,
    owner: u64,
}

/// Reserved ranges; those of different owners may overlap.
#[derive(Debug, Default)]
pub(crate) struct ReservedSet {
    /// Ascending by first IOVA.
    ranges: Vec<Reserved>,
}

impl ReservedSet {
    pub(crate) fn add(&mut self, range: IovaRange, owner: u64) {
        let at = self.ranges.partition_point(|other| other.range.start() <= range.start());
        self.ranges.insert(at, Reserved { range, owner });
    }

    pub(crate) fn remove(&mut self, owner: u64) {
        self.ranges.retain(|reserved| reserved.owner != owner);
    }

    pub(crate) fn hit(&self, range: IovaRange) -> Option<IovaRange> {
        self.ranges
            .iter()
            .map(|reserved| reserved.range)
            .find(|other| other.intersect(range).is_some())
    }

    /// The ranges between the reserved ones, ascending: what IOVA_RANGES reports.
    pub(crate) fn holes(&self) -> Vec<IovaRange> {
        let mut holes = Vec::new();
        let mut next = Some(0);
        for reserved in &self.ranges {
            let Some(start) = next else { break };
            let (first, last) = (reserved.range.start().0, reserved.range.last().0);
            if first > start {
                holes.push(closed(start, first - 1));
            }
            next = last.checked_add(1).map(|end| end.max(start));
        }
        if let Some(start) = next {
            holes.push(closed(start, u64::MAX));
        }
        holes
    }
}

/// Ranges to which automatic allocation is limited; empty means no limit.
#[derive(Debug, Default)]
pub(crate) struct AllowedSet {
    /// Ascending, disjoint; neighbours stay apart as they were given.
    ranges: Vec<IovaRange>,
}

impl AllowedSet {
    /// Adds one range.
    ///
    /// # Errors
    ///
    /// `EINVAL` when it overlaps one that is there.
    pub(crate) fn add(&mut self, range: IovaRange) -> Result<()> {
        let at = self.ranges.partition_point(|other| other.last() < range.start());
        if self.ranges.get(at).is_some_and(|other| other.start() <= range.last()) {
            return refuse!(EINVAL, "allowed ranges overlap", range.start().0);
        }
        self.ranges.insert(at, range);
        Ok(())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = IovaRange> {
        self.ranges.iter().copied()
    }

    pub(crate) fn hit(&self, range: IovaRange) -> bool {
        self.ranges.iter().any(|other| other.intersect(range).is_some())
    }

    /// The spans a search may use: neighbours merged, clipped so that the first and the last page stay unused.
    fn spans(&self) -> Vec<IovaRange> {
        let usable = closed(PAGE_SIZE, u64::MAX - PAGE_SIZE);
        if self.ranges.is_empty() {
            return vec![usable];
        }
        let mut spans: Vec<IovaRange> = Vec::new();
        for range in self.ranges.iter().filter_map(|range| range.intersect(usable)) {
            match spans.last_mut() {
                Some(last) if last.last().0 + 1 == range.start().0 => {
                    *last = closed(last.start().0, range.last().0);
                }
                _ => spans.push(range),
            }
        }
        spans
    }
}

fn closed(start: u64, last: u64) -> IovaRange {
    IovaRange::closed(Iova(start), Iova(last)).expect("the caller compared start and last")
}

/// What a search for free IOVAs looks for.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    length: u64,
    alignment: u64,
    page_offset: u64,
}

impl Wanted {
    /// The first usable IOVA in `[start, last]`. The page offset is OR-ed in, not added, and a candidate that is the last
    /// byte of the span is refused even for one byte: both as in `__alloc_iova_check_range`.
    fn candidate(self, start: u64, last: u64) -> Option<u64> {
        let aligned = start.checked_add(self.alignment - 1)? & !(self.alignment - 1);
        let candidate = aligned | self.page_offset;
        (candidate < last && last - candidate >= self.length - 1).then_some(candidate)
    }
}

/// The largest alignment a search keeps: a transparent huge page.
const HUGE: u64 = 2 << 20;

/// Finds `length` free bytes of IOVA for memory at `address`, whose alignment is kept so that large leaves fit.
///
/// # Errors
///
/// `EOVERFLOW` for a length of 0 or half the space, `EINVAL` when the address is less aligned than the IOAS demands,
/// `ENOSPC` when there is no room.
pub(crate) fn find_free(
    areas: &Areas,
    reserved: &ReservedSet,
    allowed: &AllowedSet,
    memory: MemoryRange,
    iova_alignment: u64,
) -> Result<Iova> {
    let MemoryRange { address, length } = memory;
    if length == 0 || length >= u64::MAX / 2 {
        return refuse!(EOVERFLOW, "length leaves no room for an allocated IOVA", length);
    }
    let power = length.next_power_of_two();
    let alignment = if address == 0 { power } else { power.min(1 << address.trailing_zeros()) };
    let alignment = alignment.min(HUGE);
    if alignment < iova_alignment {
        return refuse!(EINVAL, "the memory is less aligned than the IOAS demands", address);
    }
    let wanted = Wanted { length, alignment, page_offset: address % PAGE_SIZE };
    let holes = reserved.holes();
    for span in allowed.spans() {
        let Some(start) = wanted.candidate(span.start().0, span.last().0) else { continue };
        let span = closed(start, span.last().0);
        for hole in holes.iter().filter_map(|hole| hole.intersect(span)) {
            if let Some(iova) = find_in_hole(areas, hole, wanted) {
                return Ok(Iova(iova));
            }
        }
    }
    refuse!(ENOSPC, "no free IOVA range is long enough", length)
}

/// Memory that is to be mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemoryRange {
    pub(crate) address: u64,
    pub(crate) length: u64,
}

fn find_in_hole(areas: &Areas, hole: IovaRange, wanted: Wanted) -> Option<u64> {
    let mut start = hole.start().0;
    loop {
        if let Some(area) = areas.at(Iova(start)) {
            start = area.range.last().0.checked_add(1)?;
            if start > hole.last().0 {
                return None;
            }
            continue;
        }
        let last = areas.hole_last(start, hole.last().0);
        if let Some(iova) = wanted.candidate(start, last) {
            return Some(iova);
        }
        if last == hole.last().0 {
            return None;
        }
        start = last + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ioasis_uapi::Errno;

    fn find(
        reserved: &[(u64, u64)],
        allowed: &[(u64, u64)],
        address: u64,
        length: u64,
    ) -> Result<u64> {
        let mut reserved_set = ReservedSet::default();
        reserved.iter().for_each(|&(start, last)| reserved_set.add(closed(start, last), 0));
        let mut allowed_set = AllowedSet::default();
        allowed.iter().for_each(|&(start, last)| allowed_set.add(closed(start, last)).unwrap());
        let memory = MemoryRange { address, length };
        find_free(&Areas::default(), &reserved_set, &allowed_set, memory, 1).map(|iova| iova.0)
    }

    #[test]
    fn page_zero_is_never_chosen() {
        assert_eq!(find(&[], &[], 0, 0x1000), Ok(0x1000));
        assert_eq!(find(&[], &[(0, 0xfff)], 0, 1).unwrap_err().errno, Errno::ENOSPC);
    }

    #[test]
    fn the_alignment_of_the_memory_is_kept_up_to_a_huge_page() {
        assert_eq!(find(&[], &[], 0x4000_0000, 0x4000_0000), Ok(0x20_0000));
        assert_eq!(find(&[], &[], 0x3000, 0x4000_0000), Ok(0x1000));
    }

    #[test]
    fn a_candidate_on_the_last_byte_of_a_span_is_refused() {
        assert_eq!(find(&[], &[(0x1000, 0x1001)], 0x1000, 1), Ok(0x1000));
        assert_eq!(find(&[], &[(0x1000, 0x1000)], 0x1000, 1).unwrap_err().errno, Errno::ENOSPC);
    }

    #[test]
    fn neighbouring_allowed_ranges_serve_one_mapping() {
        assert_eq!(find(&[], &[(0x1000, 0x1fff), (0x2000, 0x2fff)], 0x1000, 0x2000), Ok(0x1000));
    }

    #[test]
    fn reserved_ranges_that_overlap_leave_the_right_holes() {
        let mut set = ReservedSet::default();
        set.add(closed(0x1000, 0x4fff), 1);
        set.add(closed(0x2000, 0x2fff), 2);
        set.add(closed(0xffff_0000, u64::MAX), 3);
        assert_eq!(set.holes(), [closed(0, 0xfff), closed(0x5000, 0xfffe_ffff)]);
        set.remove(3);
        assert_eq!(set.holes(), [closed(0, 0xfff), closed(0x5000, u64::MAX)]);
    }

    #[test]
    fn lengths_of_nothing_and_of_half_the_space_overflow() {
        assert_eq!(find(&[], &[], 0, 0).unwrap_err().errno, Errno::EOVERFLOW);
        assert_eq!(find(&[], &[], 0, u64::MAX / 2).unwrap_err().errno, Errno::EOVERFLOW);
        assert_eq!(find(&[], &[], 0, u64::MAX / 2 - 1), Ok(0x20_0000));
    }
}
