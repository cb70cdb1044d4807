//! The commands without bytes, for a program that is its own client.
//!
//! What is not here is where it is used: devices at [`Context::bind`], accesses at
//! [`Context::create_access`].

use std::sync::Arc;

use ioasis_iommupt::{Dirty, IovaRange};
use ioasis_uapi::Result;

use super::{Bound, Context};
use crate::hwpt::Hwpt;
use crate::ioas::Unmapped;
use crate::object::Held;

/// What a HWPT is made for: the flags of HWPT_ALLOC a library user may set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HwptFlags(u32);

impl HwptFlags {
    /// Nothing special.
    pub const NONE: Self = Self(0);
    /// Dirty pages can be read.
    pub const DIRTY_TRACKING: Self = Self(ioasis_uapi::iommufd::HWPT_ALLOC_DIRTY_TRACKING);
    /// May be attached to PASIDs.
    pub const PASID: Self = Self(ioasis_uapi::iommufd::HWPT_ALLOC_PASID);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Context {
    /// Removes every mapping that lies in `range` from the IOAS `id`; `pid` is who the fault log
    /// names. When it returns, no device reaches the memory.
    ///
    /// # Errors
    ///
    /// `ENOENT` without the IOAS; what stopped the removal is in the answer.
    pub fn unmap(&self, id: u32, range: IovaRange, pid: u32) -> Result<Unmapped> {
        Ok(self.ioas(id)?.unmap(range, pid))
    }

    /// The ranges of the IOAS `id` that may be mapped, and the alignment a mapping must have.
    ///
    /// # Errors
    ///
    /// `ENOENT` without the IOAS.
    pub fn iova_ranges(&self, id: u32) -> Result<(Vec<IovaRange>, u64)> {
        Ok(self.ioas(id)?.iova_ranges())
    }

    /// Limits automatic allocation in the IOAS `id` to `ranges`; none lifts the limit.
    ///
    /// # Errors
    ///
    /// `ENOENT` without the IOAS, `EINVAL` where ranges overlap, `EADDRINUSE` where they hit a
    /// reserved one.
    pub fn allow_iovas(&self, id: u32, ranges: &[IovaRange]) -> Result<()> {
        self.ioas(id)?.allow(ranges)
    }

    /// Lets mappings of the IOAS `id` use leaves larger than a page, or forbids it.
    ///
    /// # Errors
    ///
    /// `ENOENT` without the IOAS; forbidding: `EINVAL` over existing mappings, `EADDRINUSE` over
    /// misaligned ones.
    pub fn set_huge_pages(&self, id: u32, allowed: bool) -> Result<()> {
        self.ioas(id)?.set_huge_pages(allowed)
    }

    /// Makes a page table on the IOAS `id` for the IOMMU of `device` and returns its object id.
    ///
    /// # Errors
    ///
    /// `ENOENT` without the IOAS, `EOPNOTSUPP` for what the IOMMU cannot do, `EADDRINUSE` where
    /// mappings do not fit it, `EFAULT` and `ENOMEM` of pinning.
    pub fn alloc_hwpt(&self, id: u32, device: &Bound, flags: HwptFlags) -> Result<u32> {
        let ioas = self.ioas(id)?;
        let (reservation, hwpt) = self.make_hwpt(&ioas, device.endpoint(), flags.0, None)?;
        let id = reservation.id();
        reservation.publish(hwpt);
        Ok(id)
    }

    /// Forgets what devices have written through the page table `hwpt` so far.
    ///
    /// # Errors
    ///
    /// `ENOENT` without the page table, `EOPNOTSUPP` when it was not made for dirty tracking.
    pub fn start_dirty_tracking(&self, hwpt: u32) -> Result<()> {
        let hwpt = self.tracked(hwpt)?;
        hwpt.domain.read_dirty(IovaRange::ALL, Dirty::Clear, &mut |_| {});
        hwpt.domain.set_tracking(true);
        Ok(())
    }

    /// Calls `found` for every range inside `range` that devices wrote through the page table
    /// `hwpt`, ascending. The bytes of what is cleared are all there when this returns, and not
    /// before: copy them then.
    ///
    /// # Errors
    ///
    /// As [`start_dirty_tracking`](Self::start_dirty_tracking).
    pub fn read_dirty(
        &self,
        hwpt: u32,
        range: IovaRange,
        dirty: Dirty,
        found: &mut dyn FnMut(IovaRange),
    ) -> Result<()> {
        self.tracked(hwpt)?.domain.read_dirty(range, dirty, found);
        Ok(())
    }

    fn tracked(&self, id: u32) -> Result<Arc<Hwpt>> {
        let hwpt: Held<Hwpt> = self.objects().get(id)?;
        if !hwpt.domain.wants().dirty_tracking {
            return refuse!(EOPNOTSUPP, "the HWPT was not made for dirty tracking", u64::from(id));
        }
        Ok(Arc::clone(hwpt.arc()))
    }
}
