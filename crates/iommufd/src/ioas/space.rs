//! Which IOVAs may not be used, and by whose word.

use ioasis_iommupt::IovaRange;
use ioasis_iommupt::areas::Ranges;
use ioasis_uapi::Result;

/// A range nobody may map, and who says so.
#[derive(Clone, Copy, Debug)]
struct Reserved {
    range: IovaRange,
    owner: u64,
}

/// Reserved ranges; those of different owners may overlap.
#[derive(Debug, Default)]
pub(crate) struct ReservedSet {
    ranges: Vec<Reserved>,
    merged: Ranges,
}

impl ReservedSet {
    pub(crate) fn add(&mut self, range: IovaRange, owner: u64) {
        self.ranges.push(Reserved { range, owner });
        self.merged.insert(range);
    }

    pub(crate) fn remove(&mut self, owner: u64) {
        self.ranges.retain(|reserved| reserved.owner != owner);
        self.merged = self.ranges.iter().map(|reserved| reserved.range).collect();
    }

    /// Each, with who reserved it.
    pub(crate) fn owned(&self) -> impl Iterator<Item = (IovaRange, u64)> {
        self.ranges.iter().map(|reserved| (reserved.range, reserved.owner))
    }

    pub(crate) fn hit(&self, range: IovaRange) -> Option<IovaRange> {
        self.merged.first(range)
    }

    /// All of them, merged.
    pub(crate) fn merged(&self) -> &Ranges {
        &self.merged
    }

    /// The ranges between the reserved ones, ascending: what IOVA_RANGES reports.
    pub(crate) fn holes(&self) -> Vec<IovaRange> {
        let mut holes = Vec::new();
        self.merged.find_hole(IovaRange::ALL, |hole| {
            holes.push(hole);
            None::<()>
        });
        holes
    }
}

/// The set an allow list names.
///
/// # Errors
///
/// `EINVAL` when two of its ranges overlap.
pub(crate) fn allow_list(list: &[IovaRange]) -> Result<Ranges> {
    let mut allowed = Ranges::new();
    for &range in list {
        if allowed.first(range).is_some() {
            return refuse!(EINVAL, "allowed ranges overlap", range.start().0);
        }
        allowed.insert(range);
    }
    Ok(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ioasis_iommupt::Iova;

    fn closed(start: u64, last: u64) -> IovaRange {
        IovaRange::closed(Iova(start), Iova(last)).unwrap()
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
    fn what_two_owners_reserve_stays_until_both_let_go() {
        let mut set = ReservedSet::default();
        set.add(closed(0x1000, 0x2fff), 1);
        set.add(closed(0x2000, 0x3fff), 2);
        set.remove(1);
        assert_eq!(set.hit(closed(0, 0x2fff)), Some(closed(0x2000, 0x3fff)));
    }

    #[test]
    fn neighbours_on_an_allow_list_do_not_overlap() {
        assert!(allow_list(&[closed(0x1000, 0x1fff), closed(0x2000, 0x2fff)]).is_ok());
        assert!(allow_list(&[closed(0x1000, 0x2000), closed(0x2000, 0x2fff)]).is_err());
    }
}
