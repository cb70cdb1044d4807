//! No IOMMU: a device without one gets a page table that no hardware walks. Whoever drives the
//! device looks up in it, with IOMMU_IOAS_NOIOMMU_GET_PA, which addresses to give to the device.
//! Linux: `drivers/iommu/iommufd/hwpt_noiommu.c`.

use std::sync::Arc;

use ioasis_iommupt::Quiesce;
use ioasis_iommupt::fmt::AmdV1;
use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;

use crate::hw::format::{paging_table, sizes, table};
use crate::hw::iommu::{EndpointConfig, Iommu};
use crate::hw::ops::{IommuOps, PagingTable, UserData};

#[derive(Debug)]
pub(super) struct NoIommu;

pub(super) fn page_sizes() -> u64 {
    sizes::<AmdV1<6>>()
}

impl IommuOps for NoIommu {
    fn hw_info(&self, _: &Iommu, _: &EndpointConfig, wanted: u32) -> Result<(u32, Vec<u8>)> {
        refuse!(EOPNOTSUPP, "the device has no IOMMU", u64::from(wanted))
    }

    fn alloc_paging(
        &self,
        iommu: &Iommu,
        _device: &EndpointConfig,
        flags: u32,
        data: Option<&UserData<'_>>,
        quiesce: Arc<dyn Quiesce>,
    ) -> Result<PagingTable> {
        // The core keeps FAULT_ID_VALID to itself.
        if flags & !abi::HWPT_FAULT_ID_VALID != 0 || data.is_some() {
            return refuse!(
                EOPNOTSUPP,
                "the table of a device without an IOMMU has no flags and no data",
                u64::from(flags)
            );
        }
        // AMD's format for its many leaf sizes, which make long runs.
        paging_table(iommu, flags, quiesce, |_, config| table::<AmdV1<6>>(config))
    }
}
