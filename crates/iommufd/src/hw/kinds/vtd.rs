//! Intel VT-d in scalable mode. Manual: *Intel Virtualization Technology for Directed I/O
//! Architecture Specification*. Linux: `drivers/iommu/intel/{iommu,nested}.c`.

use std::sync::Arc;

use ioasis_iommupt::fmt::{VtdFs, VtdSs};
use ioasis_iommupt::{Context, Quiesce};
use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;
use zerocopy::IntoBytes;

use super::driver::{check_paging, each_request, walk_table};
use crate::client::PAGE_SIZE;
use crate::hw::format::{Stage, paging_table, sizes, table};
use crate::hw::iommu::{EndpointConfig, Iommu};
use crate::hw::ops::{
    Invalidated, IommuOps, Iotlb, NestedOps, PagingTable, ReadWord, UserArray, UserData, Walked,
};

#[derive(Debug)]
pub(super) struct Vtd;

/// A first-stage table of the client's own.
#[derive(Debug)]
struct FirstStage {
    root: u64,
    five_levels: bool,
}

impl NestedOps for FirstStage {
    fn walk(&self, _pasid: u32, iova: u64, read: ReadWord<'_>) -> Walked {
        if self.five_levels {
            walk_table::<VtdFs<5>>(self.root, Context::all(), iova, read)
        } else {
            walk_table::<VtdFs>(self.root, Context::all(), iova, read)
        }
    }

    fn invalidate(&self, iotlb: &dyn Iotlb, requests: &UserArray<'_>) -> Invalidated {
        each_request(requests, abi::HWPT_INVALIDATE_DATA_VTD_S1, |index| {
            let size = size_of::<abi::HwptVtdS1Invalidate>();
            invalidate(iotlb, requests.read(index, size)?)
        })
    }
}

pub(super) fn page_sizes() -> u64 {
    sizes::<VtdSs>()
}

impl IommuOps for Vtd {
    fn hw_info(&self, iommu: &Iommu, _: &EndpointConfig, wanted: u32) -> Result<(u32, Vec<u8>)> {
        if wanted != abi::HW_INFO_TYPE_DEFAULT && wanted != abi::HW_INFO_TYPE_INTEL_VTD {
            return refuse!(EOPNOTSUPP, "the IOMMU is a VT-d", u64::from(wanted));
        }
        Ok((abi::HW_INFO_TYPE_INTEL_VTD, registers(iommu).as_bytes().to_vec()))
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
        paging_table(iommu, flags, quiesce, |stage, config| match stage {
            Stage::OfPasid => table::<VtdFs>(config),
            Stage::Single | Stage::NestParent => table::<VtdSs>(config),
        })
    }

    fn nests_directly(&self) -> bool {
        true
    }

    fn check_faults(&self, device: &EndpointConfig) -> Result<()> {
        // intel_iommu_enable_iopf
        if !device.pri {
            return refuse!(ENODEV, "the HWPT has a fault queue and the device asks for no pages");
        }
        Ok(())
    }

    fn alloc_nested(
        &self,
        iommu: &Iommu,
        _flags: u32,
        data: &UserData<'_>,
    ) -> Result<Box<dyn NestedOps>> {
        if !iommu.nesting || data.kind != abi::HWPT_DATA_VTD_S1 {
            return refuse!(
                EOPNOTSUPP,
                "a VT-d nests first-stage tables only",
                u64::from(data.kind)
            );
        }
        let table: abi::HwptVtdS1 = data.read(data.kind, size_of::<abi::HwptVtdS1>())?;
        // Linux judges these when the table is installed (`intel_pasid_setup_nested`).
        let five_levels = match table.addr_width {
            48 => false,
            57 => true,
            width => return refuse!(EINVAL, "a first stage has 48 or 57 bits", u64::from(width)),
        };
        if table.flags & !(abi::VTD_S1_SRE | abi::VTD_S1_EAFE | abi::VTD_S1_WPE) != 0 {
            return refuse!(EINVAL, "unknown first-stage flags", table.flags);
        }
        Ok(Box::new(FirstStage { root: table.pgtbl_addr & !(PAGE_SIZE - 1), five_levels }))
    }
}

fn invalidate(iotlb: &dyn Iotlb, request: abi::HwptVtdS1Invalidate) -> Result<()> {
    if request.flags & !abi::VTD_INV_FLAGS_LEAF != 0 || request.__reserved != 0 {
        return refuse!(EOPNOTSUPP, "unknown invalidation flags", u64::from(request.flags));
    }
    let everything = request.npages == u64::MAX;
    if !request.addr.is_multiple_of(PAGE_SIZE) || (everything && request.addr != 0) {
        return refuse!(
            EINVAL,
            "the invalidated address is not page aligned, or not 0 for all",
            request.addr
        );
    }
    let length = request.npages.saturating_mul(PAGE_SIZE);
    let last = request.addr.saturating_add(length).saturating_sub(1);
    iotlb.invalidate(request.addr, last.max(request.addr));
    Ok(())
}

/// 11.4.2 and 11.4.3: the capability registers.
// DIFFERS: Linux 7.3 reports erratum 772415 of all VT-d, and refuses read-only mappings in a nest
// parent; ours does not have it.
fn registers(iommu: &Iommu) -> abi::HwInfoVtd {
    let huge = |lg2: u32, bit: u64| if iommu.page_sizes & (1 << lg2) != 0 { 1 << bit } else { 0 };
    let level4 = 1 << 2;
    // 65536 domains, 4 levels, the width, 2 MiB and 1 GiB leaves, MAMV 9, read and write draining,
    // 1 GiB first-stage leaves and 5 levels there.
    let cap = 6
        | level4 << 8
        | (iommu.iova_bits() - 1) << 16
        | huge(21, 34)
        | huge(30, 35)
        | 9 << 48
        | 3 << 54
        | 1 << 56
        | 1 << 60;
    let pasid =
        if iommu.pasid_bits > 0 { 1 << 40 | u64::from(iommu.pasid_bits - 1) << 35 } else { 0 };
    let nest = if iommu.nesting { 1 << 26 } else { 0 };
    let snoop = if iommu.enforce_coherency { 1 << 7 } else { 0 };
    let dirty = if iommu.dirty_tracking { 1 << 45 } else { 0 };
    let ats = if iommu.ats { 1 << 2 } else { 0 };
    let pri = if iommu.pri { 1 << 29 } else { 0 };
    // Coherent, queued invalidation, interrupt remapping with x2APIC, pass through, supervisor
    // requests and extended accessed flags, scalable mode with both stages.
    let ecap = 1
        | 1 << 1
        | ats
        | 1 << 3
        | 1 << 4
        | 1 << 6
        | snoop
        | nest
        | pri
        | 1 << 31
        | 1 << 34
        | pasid
        | 1 << 43
        | dirty
        | 1 << 46
        | 1 << 47;
    abi::HwInfoVtd { flags: 0, __reserved: 0, cap_reg: cap, ecap_reg: ecap }
}
