//! RISC-V IOMMU: Linux 7.3's driver has no description and no nesting.
//!
//! DIFFERS: dirty tracking, PASIDs and nest parents, which the hardware's manual has, exist unless
//! the machine says otherwise; Linux's driver refuses every flag of HWPT_ALLOC.

use std::sync::Arc;

use ioasis_iommupt::Quiesce;
use ioasis_iommupt::fmt::{Sv48, Sv48x4};
use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;

use super::driver::{check_paging, check_pasids};
use crate::hw::format::{Stage, paging_table, sizes, table};
use crate::hw::iommu::{EndpointConfig, Iommu};
use crate::hw::ops::{IommuOps, PagingTable, UserData};

#[derive(Debug)]
pub(super) struct Riscv;

pub(super) fn page_sizes() -> u64 {
    sizes::<Sv48>() & sizes::<Sv48x4>()
}

impl IommuOps for Riscv {
    fn hw_info(&self, _: &Iommu, _: &EndpointConfig, _wanted: u32) -> Result<(u32, Vec<u8>)> {
        // A driver without the operation: whatever type is asked for, there is nothing to say.
        Ok((abi::HW_INFO_TYPE_NONE, Vec::new()))
    }

    fn alloc_paging(
        &self,
        iommu: &Iommu,
        _device: &EndpointConfig,
        flags: u32,
        data: Option<&UserData<'_>>,
        quiesce: Arc<dyn Quiesce>,
    ) -> Result<PagingTable> {
        check_paging(iommu, flags, data)?;
        check_pasids(iommu, flags)?;
        paging_table(iommu, flags, quiesce, |stage, config| match stage {
            Stage::NestParent => table::<Sv48x4>(config),
            Stage::Single | Stage::OfPasid => table::<Sv48>(config),
        })
    }
}
