//! HWPT_SET_DIRTY_TRACKING and HWPT_GET_DIRTY_BITMAP. Linux: `hw_pagetable.c`, `io_pagetable.c` of
//! `drivers/iommu/iommufd`.

use ioasis_iommupt::{Dirty, Iova, IovaRange};
use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;

use super::call::Call;
use crate::hw::domain::Domain;
use crate::hwpt::Hwpt;
use crate::ioas::dirty::Bitmap;
use crate::object::Held;
use crate::params::Linux;

/// A HWPT that shows an IOAS; a nested one is of another type.
fn paging(call: &Call<'_>, id: u32) -> Result<Held<Hwpt>> {
    let hwpt: Held<Hwpt> = call.context.objects().get(id)?;
    if hwpt.nested.is_some() {
        return refuse!(ENOENT, "the HWPT is nested", u64::from(id));
    }
    Ok(hwpt)
}

fn check_capable(domain: &Domain) -> Result<()> {
    if domain.wants().dirty_tracking {
        Ok(())
    } else {
        refuse!(EOPNOTSUPP, "the HWPT was not made for dirty tracking")
    }
}

pub(super) fn set_tracking(call: &Call<'_>) -> Result<i64> {
    let cmd: abi::HwptSetDirtyTracking = call.decode()?;
    if cmd.flags & !abi::HWPT_DIRTY_TRACKING_ENABLE != 0 {
        return refuse!(EOPNOTSUPP, "unknown flags", u64::from(cmd.flags));
    }
    let hwpt = paging(call, cmd.hwpt_id)?;
    check_capable(&hwpt.domain)?;
    let enable = cmd.flags & abi::HWPT_DIRTY_TRACKING_ENABLE != 0;
    if enable {
        // Whatever was written before is not news.
        hwpt.domain.read_dirty(IovaRange::ALL, Dirty::Clear, &mut |_| {});
    }
    hwpt.domain.set_tracking(enable);
    Ok(0)
}

pub(super) fn get_bitmap(call: &Call<'_>) -> Result<i64> {
    let cmd: abi::HwptGetDirtyBitmap = call.decode()?;
    if cmd.flags & !abi::HWPT_GET_DIRTY_BITMAP_NO_CLEAR != 0 || cmd.__reserved != 0 {
        return refuse!(EOPNOTSUPP, "unknown flags, or __reserved is set", u64::from(cmd.flags));
    }
    let hwpt = paging(call, cmd.hwpt_id)?;
    if cmd.length == 0 && call.context.machine().linux >= Linux::V7_3 {
        return refuse!(EINVAL, "length is zero");
    }
    let Some(last) = cmd.iova.checked_add(cmd.length.wrapping_sub(1)) else {
        return refuse!(EOVERFLOW, "the range wraps, or is empty", cmd.iova);
    };
    let alignment = hwpt.ioas.iova_ranges().1;
    let aligned = |to: u64| (cmd.iova | last.wrapping_add(1)) & (to - 1) == 0;
    if !aligned(alignment) {
        return refuse!(EINVAL, "the range is no multiple of the IOAS alignment", cmd.iova);
    }
    if cmd.page_size == 0 || !aligned(cmd.page_size) {
        return refuse!(
            EINVAL,
            "the range is no multiple of page_size, or that is 0",
            cmd.page_size
        );
    }
    check_capable(&hwpt.domain)?;
    let dirty = if cmd.flags & abi::HWPT_GET_DIRTY_BITMAP_NO_CLEAR != 0 {
        Dirty::Keep
    } else {
        Dirty::Clear
    };
    if let Ok(range) = IovaRange::new(Iova(cmd.iova), cmd.length) {
        // A page size that is no power of two counts as its lowest bit, as in Linux.
        let bitmap = Bitmap { range, page_lg2: cmd.page_size.trailing_zeros(), data: cmd.data };
        hwpt.ioas.read_dirty(&hwpt.domain, bitmap, dirty, call.client);
    }
    Ok(0)
}
