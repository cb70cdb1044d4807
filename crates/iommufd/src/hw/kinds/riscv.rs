//! RISC-V IOMMU: Linux 7.2's driver has no description and no nesting.
//!
//! DIFFERS: dirty tracking, PASIDs and nest parents, which the hardware's manual has, exist unless the machine says otherwise;
//! Linux's driver refuses every flag of HWPT_ALLOC.

use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;

use super::{Hardware, check_pasids};
use crate::hw::iommu::Iommu;

#[derive(Debug)]
pub(super) struct Riscv;

impl Hardware for Riscv {
    fn info(&self, _iommu: &Iommu, _wanted: u32) -> Result<(u32, Vec<u8>)> {
        // A driver without the operation: whatever type is asked for, there is nothing to say.
        Ok((abi::HW_INFO_TYPE_NONE, Vec::new()))
    }

    fn check_flags(&self, iommu: &Iommu, flags: u32) -> Result<()> {
        check_pasids(iommu, flags)
    }
}
