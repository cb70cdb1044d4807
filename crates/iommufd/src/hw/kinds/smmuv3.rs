//! Arm SMMUv3. Manual: *Arm System Memory Management Unit Architecture Specification, SMMU
//! architecture version 3*. Linux: `drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3-iommufd.c`.

pub(super) mod command;

use std::sync::Arc;

use ioasis_iommupt::fmt::{ArmS1, ArmS2};
use ioasis_iommupt::{Context, Iova, Prot, Quiesce};
use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;
use zerocopy::IntoBytes;

use super::cmdqv::{self, Vintf};
use super::driver::{check_paging, walk_table};
use crate::hw::faultlog::Reason;
use crate::hw::format::{Stage, paging_table, sizes, table};
use crate::hw::iommu::{EndpointConfig, Iommu};
use command::Commands;

use crate::hw::ops::{
    Invalidated, IommuOps, NestedOps, PagingTable, ReadWord, UserArray, UserData, ViommuCore,
    ViommuOps, Walked,
};

#[derive(Debug)]
pub(super) struct Smmuv3;

/// A virtual IOMMU.
#[derive(Debug)]
struct Smmuv3Viommu(Commands);

pub(super) fn page_sizes() -> u64 {
    sizes::<ArmS1>() & sizes::<ArmS2>()
}

/// 5.2: what a stream table entry says about stage 1.
#[derive(Debug)]
enum Stream {
    /// Every transaction is refused.
    Abort,
    /// Stage 2 alone counts.
    Bypass,
    /// Stage 1 through context descriptors.
    Translate {
        descriptors: u64,
        /// lg2 of the number of substreams.
        cdmax: u32,
        format: u64,
    },
}

/// 5.2: the bits of the first two doublewords that a nested entry may set.
const STE0_ALLOWED: u64 = 1 | 7 << 1 | 3 << 4 | 0xf_ffff_ffff_ffc0 | 31 << 59;
const STE1_ALLOWED: u64 = 3 | 3 << 2 | 3 << 4 | 3 << 6 | 1 << 27 | 3 << 28;
const STE0_V: u64 = 1;
/// 5.4: a context descriptor has 64 bytes.
const CD_BYTES: u64 = 64;
const CD_V: u64 = 1 << 31;
const CD_AA64: u64 = 1 << 41;
const CD_AFFD: u64 = 1 << 35;
const CD_PAN: u64 = 1 << 40;
const CD_HD: u64 = 1 << 42;
const CD_HA: u64 = 1 << 43;
const CD_ADDRESS: u64 = 0xf_ffff_ffff_fff0;
/// 5.2: S1FMT 2: two levels, leaf tables of 64 KiB; S1FMT 1: of 4 KiB.
const L1_V: u64 = 1;

/// lg2 of the commands that a command queue holds at most: 6.3.2, IDR1.CMDQS.
pub(super) const CMDQS_LG2: u32 = 19;

pub(super) fn field(word: u64, last: u32, first: u32) -> u64 {
    (word >> first) & ((1 << (last - first + 1)) - 1)
}

impl NestedOps for Stream {
    fn walk(&self, pasid: u32, iova: u64, read: ReadWord<'_>) -> Walked {
        match *self {
            Self::Abort => Walked::Fault,
            Self::Bypass => Walked::bypass(iova),
            Self::Translate { descriptors, cdmax, format } => {
                if u64::from(pasid) >> cdmax != 0 {
                    return Walked::Fault;
                }
                let Some(descriptor) = find_descriptor(descriptors, format, pasid, read) else {
                    return Walked::Fault;
                };
                walk_descriptor(descriptor, iova, read)
            }
        }
    }

    fn needs_vdevice(&self) -> bool {
        matches!(self, Self::Translate { .. })
    }

    fn has_pasids(&self) -> bool {
        matches!(self, Self::Translate { .. })
    }
}

fn find_descriptor(table: u64, format: u64, pasid: u32, read: ReadWord<'_>) -> Option<u64> {
    let leaf_lg2 = match format {
        0 => return Some(table + u64::from(pasid) * CD_BYTES),
        1 => 6,
        2 => 10,
        _ => return None,
    };
    let first = read(table + u64::from(pasid >> leaf_lg2) * 8)?;
    let index = u64::from(pasid) & ((1 << leaf_lg2) - 1);
    (first & L1_V != 0).then_some((first & 0xf_ffff_ffff_f000) + index * CD_BYTES)
}

/// What a context descriptor says besides its table. With HA and HD a clear flag passes, though it
/// stays clear ([`nested`](crate::hw::nested) says why); without, the access faults as the manual
/// has it.
fn context(word: u64) -> Context {
    let mut context = Context::empty();
    context.set(Context::OPEN, word & CD_PAN == 0);
    context.set(Context::ACCESSED, word & (CD_HA | CD_AFFD) != 0);
    // HD without HA counts as neither.
    context.set(Context::DIRTY, word & (CD_HA | CD_HD) == CD_HA | CD_HD);
    context
}

fn walk_descriptor(descriptor: u64, iova: u64, read: ReadWord<'_>) -> Walked {
    let (Some(word), Some(ttb0)) = (read(descriptor), read(descriptor + 8)) else {
        return Walked::Fault;
    };
    let (t0sz, granule) = (field(word, 5, 0), field(word, 7, 6));
    // 48 bits with 4 KiB granules, which is what Linux's guests use; EPD0 set means no table.
    let served = word & CD_V != 0
        && word & CD_AA64 != 0
        && t0sz == 16
        && granule == 0
        && field(word, 14, 14) == 0;
    if !served {
        return Walked::Fault;
    }
    walk_table::<ArmS1>(ttb0 & CD_ADDRESS, context(word), iova, read)
}

impl IommuOps for Smmuv3 {
    fn hw_info(&self, iommu: &Iommu, _: &EndpointConfig, wanted: u32) -> Result<(u32, Vec<u8>)> {
        match wanted {
            abi::HW_INFO_TYPE_DEFAULT | abi::HW_INFO_TYPE_ARM_SMMUV3 => {
                Ok((abi::HW_INFO_TYPE_ARM_SMMUV3, registers(iommu).as_bytes().to_vec()))
            }
            abi::HW_INFO_TYPE_TEGRA241_CMDQV if iommu.cmdqv.is_some() => {
                Ok((wanted, cmdqv::info().as_bytes().to_vec()))
            }
            _ => refuse!(EOPNOTSUPP, "the IOMMU is an SMMUv3", u64::from(wanted)),
        }
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
        // arm_smmu_domain_alloc_paging_flags: a nest parent is a second stage, the others are first
        // stages.
        let first = abi::HWPT_ALLOC_DIRTY_TRACKING | abi::HWPT_ALLOC_PASID;
        if flags & abi::HWPT_ALLOC_NEST_PARENT != 0 && flags & first != 0 {
            return refuse!(
                EOPNOTSUPP,
                "a nest parent of an SMMUv3 has no PASIDs and tracks no dirty pages",
                u64::from(flags)
            );
        }
        paging_table(iommu, flags, quiesce, |stage, config| match stage {
            Stage::NestParent => table::<ArmS2>(config),
            Stage::Single | Stage::OfPasid => table::<ArmS1>(config),
        })
    }

    fn has_viommu(&self, iommu: &Iommu, kind: u32) -> bool {
        let known = match kind {
            abi::VIOMMU_TYPE_ARM_SMMUV3 => true,
            abi::VIOMMU_TYPE_TEGRA241_CMDQV => iommu.cmdqv.is_some(),
            _ => false,
        };
        iommu.nesting && known
    }

    fn viommu_init(
        &self,
        iommu: &Iommu,
        kind: u32,
        data: Option<&UserData<'_>>,
    ) -> Result<Box<dyn ViommuOps>> {
        match &iommu.cmdqv {
            Some(cmdqv) if kind == abi::VIOMMU_TYPE_TEGRA241_CMDQV => {
                Ok(Box::new(Vintf::new(cmdqv, Commands::of(iommu), data)?))
            }
            _ => Ok(Box::new(Smmuv3Viommu(Commands::of(iommu)))),
        }
    }

    fn refused(
        &self,
        virtual_id: u64,
        iova: Iova,
        need: Prot,
        reason: Reason,
    ) -> Option<(u32, Vec<u8>)> {
        // 7.3.13 and 7.3.16: F_TRANSLATION or F_PERMISSION: number and stream id; RnW, and CLASS
        // IN, the device's own address.
        let number = if matches!(reason, Reason::Missing(_)) { 0x13 } else { 0x10 };
        let read = if need.contains(Prot::READ) { 1 << 35 } else { 0 };
        let access = read | 2 << 40;
        let event = abi::VeventArmSmmuv3 { evt: [number | virtual_id << 32, access, iova.0, 0] };
        Some((abi::VEVENTQ_TYPE_ARM_SMMUV3, event.as_bytes().to_vec()))
    }
}

impl ViommuOps for Smmuv3Viommu {
    fn alloc_nested(&self, flags: u32, data: &UserData<'_>) -> Result<Box<dyn NestedOps>> {
        nested_in_viommu(flags, data)
    }

    fn invalidate(&self, viommu: &dyn ViommuCore, requests: &UserArray<'_>) -> Invalidated {
        self.0.invalidate_all(viommu, requests)
    }
}

/// A guest's stream table entry. Linux: `arm_vsmmu_alloc_domain_nested`.
///
/// # Errors
///
/// `EOPNOTSUPP` for flags, `EINVAL` and `EFAULT` for bad data, `EIO` for a bad entry.
pub(super) fn nested_in_viommu(flags: u32, data: &UserData<'_>) -> Result<Box<dyn NestedOps>> {
    if flags != 0 {
        return refuse!(
            EOPNOTSUPP,
            "an SMMUv3 keeps PASIDs in its context descriptors",
            u64::from(flags)
        );
    }
    let entry: abi::HwptArmSmmuv3 =
        data.read(abi::HWPT_DATA_ARM_SMMUV3, size_of::<abi::HwptArmSmmuv3>())?;
    Ok(Box::new(parse(entry.ste)?))
}

/// Checks as `arm_smmu_validate_vste` does.
fn parse(ste: [u64; 2]) -> Result<Stream> {
    if ste[0] & STE0_V == 0 {
        return Ok(Stream::Abort);
    }
    if ste[0] & !STE0_ALLOWED != 0 || ste[1] & !STE1_ALLOWED != 0 {
        return refuse!(EIO, "the stream table entry sets fields that are the host's", ste[0]);
    }
    if field(ste[1], 29, 28) > 1 {
        return refuse!(
            EIO,
            "the stream table entry asks for an ATS mode that is not served",
            ste[1]
        );
    }
    match field(ste[0], 3, 1) {
        0 => Ok(Stream::Abort),
        4 => Ok(Stream::Bypass),
        5 => Ok(Stream::Translate {
            descriptors: ste[0] & 0xf_ffff_ffff_ffc0,
            cdmax: u32::try_from(field(ste[0], 63, 59)).expect("five bits"),
            format: field(ste[0], 5, 4),
        }),
        config => refuse!(
            EIO,
            "the stream table entry's configuration is not stage 1, bypass or abort",
            config
        ),
    }
}

/// 6.3.1 to 6.3.6: the identification registers.
fn registers(iommu: &Iommu) -> abi::HwInfoArmSmmuv3 {
    let dirty = if iommu.dirty_tracking { 2 << 6 } else { 0 };
    let stages = if iommu.nesting { 3 } else { 2 };
    let ats = if iommu.ats { 1 << 10 } else { 0 };
    let pri = if iommu.pri { 1 << 16 } else { 0 };
    // Stages, AArch64 tables, coherent, hardware update of access and dirty, ATS, 16 bits of ASID
    // and VMID, MSI, PRI, two-level context descriptors, little endian, two-level streams.
    let idr0 = stages
        | 2 << 2
        | 1 << 4
        | dirty
        | ats
        | 1 << 12
        | 1 << 13
        | pri
        | 1 << 18
        | 1 << 19
        | 2 << 21
        | 1 << 27;
    let page_queue = if iommu.pri { 19 << 11 } else { 0 };
    let idr1 = 16 | iommu.pasid_bits << 6 | page_queue | 19 << 16 | CMDQS_LG2 << 21;
    // Ranges in invalidation commands.
    let idr3 = 1 << 10;
    // 48 bits of output, granules of 4 KiB.
    let idr5 = 5 | 1 << 4;
    abi::HwInfoArmSmmuv3 {
        flags: if iommu.repeat_invalidations {
            abi::HW_INFO_ARM_SMMUV3_ERRATA_REPEAT_TLBI_CFGI
        } else {
            0
        },
        __reserved: 0,
        idr: [idr0, idr1, 0, idr3, 0, idr5],
        iidr: 0x43b,
        aidr: 2,
    }
}
