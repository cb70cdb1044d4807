//! POWER's host bridges. Linux: `spapr_tce_iommu_ops` in `arch/powerpc/kernel/iommu.c`.
//!
//! Its driver makes no page tables for iommufd: only an SPAPR container maps anything, in windows
//! (`container::spapr`).

use std::sync::Arc;

use ioasis_iommupt::Quiesce;
use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;

use crate::hw::iommu::{EndpointConfig, Iommu};
use crate::hw::ops::{IommuOps, PagingTable, UserData};

#[derive(Debug)]
pub(super) struct SpaprTce;

impl IommuOps for SpaprTce {
    fn hw_info(&self, _: &Iommu, _: &EndpointConfig, _wanted: u32) -> Result<(u32, Vec<u8>)> {
        // A driver without the operation.
        Ok((abi::HW_INFO_TYPE_NONE, Vec::new()))
    }

    fn tracks_dirty(&self, _: &Iommu, _: &EndpointConfig) -> bool {
        false
    }

    // __iommu_paging_domain_alloc_flags and iommufd_hwpt_paging_alloc, of a driver with neither
    // domain_alloc_paging nor domain_alloc_paging_flags.
    fn alloc_paging(
        &self,
        _iommu: &Iommu,
        _device: &EndpointConfig,
        flags: u32,
        _data: Option<&UserData<'_>>,
        _quiesce: Arc<dyn Quiesce>,
    ) -> Result<PagingTable> {
        refuse!(
            EOPNOTSUPP,
            "the IOMMU's driver has no page tables for iommufd: use an SPAPR container",
            flags.into()
        )
    }
}
