//! What the drivers of the kinds have in common: walking a guest's table, requests one by one,
//! flags they all judge.

use ioasis_iommupt::nested::GuestLeaf;
use ioasis_iommupt::{Context, Format, Iova, Prot};
use ioasis_uapi::{Errno, Error, Result};

use crate::hw::iommu::Iommu;
use crate::hw::ops::{Invalidated, ReadWord, UserArray, UserData, Walked};

/// Follows a table in format `F` from its root. Devices' requests are unprivileged, and neither
/// kind of guest context that says otherwise (PMR of a PASID, PRIVCFG of a stream table entry) is
/// served.
pub(super) fn walk_table<F: Format>(
    root: u64,
    context: Context,
    iova: u64,
    read: ReadWord<'_>,
) -> Walked {
    let word = |address| read(address).ok_or(());
    let leaf = GuestLeaf::<F>::find(root, Iova(iova), word, |_, _| ());
    let Ok(GuestLeaf { word, under, level, .. }) = leaf else { return Walked::Fault };
    // Not remembered, as hardware does not: the guest sets the flag and tries again.
    if F::is_flagless(under, Prot::READ, context) {
        return Walked::Fault;
    }
    let passes = |&need: &Prot| F::missing(under, level, need, context).is_empty();
    let prot = [Prot::READ, Prot::WRITE].into_iter().filter(passes).collect();
    Walked::Leaf { ipa: F::oa(word, level), lg2: F::leaf_lg2(word, level), prot }
}

/// Carries out each request of type `kind`.
pub(super) fn each_request(
    requests: &UserArray<'_>,
    kind: u32,
    carry_out: impl FnMut(u32) -> Result<()>,
) -> Invalidated {
    if requests.kind != kind {
        let why = "the object takes invalidations of another type";
        return Invalidated::refused(Error::at(Errno::EINVAL, why, u64::from(requests.kind)));
    }
    Invalidated::each(requests.entries, carry_out)
}

/// What every driver of a known kind says to flags and data of a paging HWPT.
///
/// # Errors
///
/// `EOPNOTSUPP`.
pub(super) fn check_paging(iommu: &Iommu, flags: u32, data: Option<&UserData<'_>>) -> Result<()> {
    if let Some(data) = data {
        return refuse!(EOPNOTSUPP, "a HWPT on an IOAS takes no data", u64::from(data.kind));
    }
    if flags & ioasis_uapi::iommufd::HWPT_ALLOC_NEST_PARENT != 0 && !iommu.nesting {
        return refuse!(EOPNOTSUPP, "the device's IOMMU cannot translate in two stages");
    }
    Ok(())
}

/// What the drivers say that ask for PASIDs when a page table is made for them; VT-d's and the
/// SMMUv3's do not.
///
/// # Errors
///
/// `EOPNOTSUPP`.
pub(super) fn check_pasids(iommu: &Iommu, flags: u32) -> Result<()> {
    if flags & ioasis_uapi::iommufd::HWPT_ALLOC_PASID != 0 && iommu.pasid_bits == 0 {
        return refuse!(EOPNOTSUPP, "the device's IOMMU has no PASIDs");
    }
    Ok(())
}
