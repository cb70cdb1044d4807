//! What differs between kinds of IOMMU beyond their page-table words: registers, nesting data, invalidation commands,
//! virtual IOMMUs.
//!
//! One file is one kind. What a kind does not have stays at the default of [`Hardware`], which is Linux's answer for a driver
//! without the operation.

mod amd;
pub(crate) mod cmdqv;
mod riscv;
mod smmuv3;
mod vtd;

use std::fmt::Debug;

use ioasis_iommupt::nested::GuestLeaf;
use ioasis_iommupt::{Context, Format, Iova, Prot};
use ioasis_uapi::{Errno, Error, Result};

use crate::hw::faultlog::Reason;
use crate::hw::iommu::{EndpointConfig, Iommu, Kind};
use crate::hw::nested::Nested;
use crate::hw::ops::{Invalidated, UserArray, UserData};
use crate::hwpt::viommu::{Side, Viommu};
use crate::pages::PAGE_SIZE;

/// A kind of IOMMU.
pub(crate) trait Hardware: Debug + Send + Sync {
    /// The registers GET_HW_INFO shows, under their type; `wanted` is the type asked for, or the default.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for a type this hardware does not have.
    fn info(&self, iommu: &Iommu, wanted: u32) -> Result<(u32, Vec<u8>)>;

    /// Whether a client's own table can hang directly on a nest parent.
    fn nests_directly(&self) -> bool {
        false
    }

    /// Judges HWPT_ALLOC flags that the IOMMU has, one by one, a use for.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for flags that do not go together, or want PASIDs of an IOMMU without where its driver asks for them.
    fn check_flags(&self, iommu: &Iommu, flags: u32) -> Result<()> {
        let _ = (iommu, flags);
        Ok(())
    }

    /// Whether an endpoint may use a HWPT with a fault queue.
    ///
    /// # Errors
    ///
    /// `ENODEV` when the driver wants page requests from it and it has none.
    fn check_faults(&self, endpoint: &EndpointConfig) -> Result<()> {
        let _ = endpoint;
        Ok(())
    }

    /// A client's own table directly on a nest parent.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for data of another type, `EINVAL`, `E2BIG` and `EFAULT` for bad data.
    fn nested(&self, iommu: &Iommu, data: &UserData<'_>) -> Result<Box<dyn Stage1>> {
        let _ = (iommu, data);
        refuse!(EOPNOTSUPP, "the device's IOMMU takes no tables of the client's own on a HWPT")
    }

    /// A client's own table on a virtual IOMMU.
    ///
    /// # Errors
    ///
    /// As [`nested`](Self::nested).
    fn nested_in_viommu(
        &self,
        iommu: &Iommu,
        flags: u32,
        data: &UserData<'_>,
    ) -> Result<Box<dyn Stage1>> {
        let _ = (iommu, flags, data);
        refuse!(EOPNOTSUPP, "the virtual IOMMU takes no tables of the client's own")
    }

    /// Whether virtual IOMMUs of type `kind` exist.
    fn has_viommu(&self, iommu: &Iommu, kind: u32) -> bool {
        let _ = (iommu, kind);
        false
    }

    /// What a virtual IOMMU of type `kind`, which exists, has beside tables. `data` is there if the client sent any.
    ///
    /// # Errors
    ///
    /// What reading the data meets, and `ENOSPC` when the hardware has no more of them.
    fn viommu_side(&self, iommu: &Iommu, kind: u32, data: Option<&UserData<'_>>) -> Result<Side> {
        let _ = (iommu, kind, data);
        Ok(Side::Tables)
    }

    /// The type and bytes of the event that tells a guest of a refused transaction of the device it knows as `virtual_id`.
    fn refused(
        &self,
        virtual_id: u64,
        iova: Iova,
        need: Prot,
        reason: Reason,
    ) -> Option<(u32, Vec<u8>)> {
        let _ = (virtual_id, iova, need, reason);
        None
    }

    /// Carries out invalidations on a nested table.
    fn invalidate_nested(&self, nested: &Nested, requests: &UserArray<'_>) -> Invalidated {
        let _ = (nested, requests);
        Invalidated::refused(Error::new(Errno::EOPNOTSUPP, "the nested table has no invalidations"))
    }

    /// Carries out invalidations on a virtual IOMMU.
    fn invalidate_viommu(&self, viommu: &Viommu, requests: &UserArray<'_>) -> Invalidated {
        let _ = (viommu, requests);
        Invalidated::refused(Error::new(
            Errno::EOPNOTSUPP,
            "the virtual IOMMU has no invalidations",
        ))
    }
}

/// What `kind` does.
pub(crate) fn of(kind: Kind) -> &'static dyn Hardware {
    match kind {
        Kind::Vtd => &vtd::Vtd,
        Kind::Amd => &amd::Amd,
        Kind::Smmuv3 => &smmuv3::Smmuv3,
        Kind::Riscv => &riscv::Riscv,
    }
}

/// Where a client's own table leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Walked {
    /// To a page of the nest parent.
    Leaf {
        /// Address in the nest parent of the page's first byte.
        ipa: u64,
        /// lg2 of its bytes.
        lg2: u32,
        /// What it grants.
        prot: Prot,
    },
    /// Nowhere.
    Fault,
}

/// Reads a word of a client's own table, by its address in the nest parent; `None` where nothing is mapped.
pub(crate) type ReadWord<'a> = &'a mut dyn FnMut(u64) -> Option<u64>;

/// A client's own first stage: where it begins, and what its words mean.
pub(crate) trait Stage1: Debug + Send + Sync {
    /// Follows the table from `iova`, used with `pasid`.
    fn walk(&self, pasid: u32, iova: u64, read: ReadWord<'_>) -> Walked;

    /// Whether a device can be attached only with a virtual id in the virtual IOMMU.
    fn needs_vdevice(&self) -> bool {
        false
    }

    /// Whether it says where each PASID of the device leads, so that the guest has all of them.
    fn has_pasids(&self) -> bool {
        false
    }

    /// Whether a command exists by which the client invalidates what was walked; else nothing is remembered.
    fn is_invalidated(&self) -> bool {
        true
    }
}

/// Where an address leads that is not translated: to itself, page by page.
pub(crate) fn bypass(iova: u64) -> Walked {
    Walked::Leaf {
        ipa: iova & !(PAGE_SIZE - 1),
        lg2: PAGE_SIZE.trailing_zeros(),
        prot: Prot::READ | Prot::WRITE,
    }
}

/// Follows a table in format `F` from its root. Devices' requests are unprivileged, and neither kind of guest context that
/// says otherwise (PMR of a PASID, PRIVCFG of a stream table entry) is served.
pub(crate) fn walk_table<F: Format>(
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
pub(crate) fn each_request(
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

/// What the drivers say that ask for PASIDs when a page table is made for them; VT-d's and the SMMUv3's do not.
///
/// # Errors
///
/// `EOPNOTSUPP`.
fn check_pasids(iommu: &Iommu, flags: u32) -> Result<()> {
    if flags & ioasis_uapi::iommufd::HWPT_ALLOC_PASID != 0 && iommu.pasid_bits == 0 {
        return refuse!(EOPNOTSUPP, "the device's IOMMU has no PASIDs");
    }
    Ok(())
}
