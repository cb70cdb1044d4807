//! AMD-Vi. Manual: *AMD I/O Virtualization Technology (IOMMU) Specification*. Linux:
//! `drivers/iommu/amd/{iommufd,nested}.c`.

use std::sync::Arc;

use ioasis_iommupt::fmt::{AmdV1, AmdV2};
use ioasis_iommupt::{Context, Quiesce};
use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;
use zerocopy::IntoBytes;

use super::driver::{check_paging, check_pasids, walk_table};
use crate::hw::format::{Stage, paging_table, sizes, table};
use crate::hw::iommu::{EndpointConfig, Iommu};
use crate::hw::ops::{IommuOps, NestedOps, PagingTable, ReadWord, UserData, ViommuOps, Walked};

#[derive(Debug)]
pub(super) struct Amd;

/// A virtual IOMMU.
#[derive(Debug)]
struct AmdViommu;

pub(super) fn page_sizes() -> u64 {
    sizes::<AmdV1>()
}

/// 2.2.2.1, table 7: the fields of a guest's device table entry that guest translation uses.
#[derive(Debug)]
struct GuestTables {
    valid: bool,
    /// Guest translation; without it the second stage alone counts.
    translates: bool,
    gcr3: u64,
    /// Levels of the GCR3 table beyond the first.
    glx: u32,
    five_levels: bool,
}

/// 2.2.6.3: a GCR3 table indexes nine bits of a PASID a level.
const GCR3_LG2: u32 = 9;
const GCR3_VALID: u64 = 1;
const GCR3_ADDRESS: u64 = 0xf_ffff_ffff_f000;

impl NestedOps for GuestTables {
    fn walk(&self, pasid: u32, iova: u64, read: ReadWord<'_>) -> Walked {
        if !self.valid {
            return Walked::Fault;
        }
        if !self.translates {
            return Walked::bypass(iova);
        }
        let mut table = self.gcr3;
        for level in (0..=self.glx).rev() {
            let index = u64::from(pasid >> (GCR3_LG2 * level)) & ((1 << GCR3_LG2) - 1);
            match read(table.wrapping_add(index * 8)) {
                Some(word) if word & GCR3_VALID != 0 => table = word & GCR3_ADDRESS,
                _ => return Walked::Fault,
            }
        }
        if self.five_levels {
            walk_table::<AmdV2<5>>(table, Context::all(), iova, read)
        } else {
            walk_table::<AmdV2>(table, Context::all(), iova, read)
        }
    }

    fn has_pasids(&self) -> bool {
        self.valid && self.translates
    }

    // Linux 7.3 has no command for it.
    fn is_invalidated(&self) -> bool {
        false
    }
}

impl IommuOps for Amd {
    fn hw_info(&self, iommu: &Iommu, _: &EndpointConfig, wanted: u32) -> Result<(u32, Vec<u8>)> {
        if wanted != abi::HW_INFO_TYPE_DEFAULT && wanted != abi::HW_INFO_TYPE_AMD {
            return refuse!(EOPNOTSUPP, "the IOMMU is an AMD-Vi", u64::from(wanted));
        }
        Ok((abi::HW_INFO_TYPE_AMD, registers(iommu).as_bytes().to_vec()))
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
        // DIFFERS: Linux 7.3 makes such page tables and attaches none to a PASID, for want of a
        // set_dev_pasid.
        check_pasids(iommu, flags)?;
        // amd_iommu_domain_alloc_paging_flags: PASIDs take guest tables, the others host tables.
        let host = abi::HWPT_ALLOC_DIRTY_TRACKING | abi::HWPT_ALLOC_NEST_PARENT;
        if flags & abi::HWPT_ALLOC_PASID != 0 && flags & host != 0 {
            return refuse!(
                EOPNOTSUPP,
                "an AMD-Vi has no tables for PASIDs that track dirty pages or are nest parents",
                u64::from(flags)
            );
        }
        paging_table(iommu, flags, quiesce, |stage, config| match stage {
            Stage::OfPasid => table::<AmdV2>(config),
            // 2.2.3: as many levels as the IOVAs need; five translate 57 bits, six all 64.
            Stage::Single | Stage::NestParent => match config.iova_lg2 {
                ..=48 => table::<AmdV1>(config),
                49..=57 => table::<AmdV1<5>>(config),
                _ => table::<AmdV1<6>>(config),
            },
        })
    }

    // Any type, as in Linux 7.3.
    fn has_viommu(&self, iommu: &Iommu, _kind: u32) -> bool {
        iommu.nesting
    }

    fn viommu_init(
        &self,
        _iommu: &Iommu,
        _kind: u32,
        _data: Option<&UserData<'_>>,
    ) -> Result<Box<dyn ViommuOps>> {
        Ok(Box::new(AmdViommu))
    }
}

impl ViommuOps for AmdViommu {
    // DIFFERS: Linux 7.3 has the code for nesting in a virtual IOMMU of AMD's and does not offer it
    // yet.
    fn alloc_nested(&self, _flags: u32, data: &UserData<'_>) -> Result<Box<dyn NestedOps>> {
        if data.kind != abi::HWPT_DATA_AMD_GUEST {
            return refuse!(
                EOPNOTSUPP,
                "an AMD-Vi nests guest device table entries only",
                u64::from(data.kind)
            );
        }
        let guest: abi::HwptAmdGuest = data.read(data.kind, size_of::<abi::HwptAmdGuest>())?;
        parse(&guest.dte)
    }
}

fn field(word: u64, last: u32, first: u32) -> u64 {
    (word >> first) & ((1 << (last - first + 1)) - 1)
}

/// Checks as `validate_gdte_nested` does.
fn parse(dte: &[u64; 4]) -> Result<Box<dyn NestedOps>> {
    let (valid, translates) = (dte[0] & 1 != 0, field(dte[0], 55, 55) != 0);
    // Mode (bits 11:9) and the host's root (bits 51:12) are the host's.
    if field(dte[0], 11, 9) != 0 || field(dte[0], 51, 12) != 0 {
        return refuse!(EINVAL, "the guest's device table entry has a host table", dte[0]);
    }
    let gcr3 =
        field(dte[0], 60, 58) << 12 | field(dte[1], 31, 16) << 15 | field(dte[1], 63, 43) << 31;
    if valid && translates && gcr3 == 0 {
        return refuse!(EINVAL, "the guest's device table entry has no GCR3 table", dte[1]);
    }
    let levels = field(dte[2], 55, 54);
    if levels > 1 {
        return refuse!(EINVAL, "guest tables have 4 or 5 levels", levels);
    }
    let glx = field(dte[0], 57, 56);
    if glx == 3 {
        return refuse!(EINVAL, "GLX 3 is reserved", glx);
    }
    let glx = u32::try_from(glx).expect("two bits");
    Ok(Box::new(GuestTables { valid, translates, gcr3, glx, five_levels: levels == 1 }))
}

/// 3.4.10 and 3.4.22: the extended feature registers.
fn registers(iommu: &Iommu) -> abi::HwInfoAmd {
    // GTSup and GIOSup; in the second register GCR3TRPMode.
    let (guest, efr2) = if iommu.nesting { (1 << 4 | 1 << 48, 1 << 3) } else { (0, 0) };
    let pasid = if iommu.pasid_bits > 0 { u64::from(iommu.pasid_bits - 1) << 32 } else { 0 };
    let dirty = if iommu.dirty_tracking { 1 << 49 | 1 << 52 } else { 0 };
    let pri = if iommu.pri { 1 << 1 } else { 0 };
    // Invalidate all, 6 levels of host tables and 5 of guest tables, GCR3 tables of 3 levels.
    let efr = pri | 1 << 6 | guest | 2 << 10 | 1 << 12 | 2 << 14 | pasid | dirty;
    abi::HwInfoAmd { efr, efr2 }
}
