//! What GET_HW_INFO says about simulated hardware: the registers of a current machine of each kind.

use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;
use zerocopy::IntoBytes;

use crate::iommu::{Iommu, Kind};

/// The type and the bytes; `wanted` is the default or this hardware's own type.
pub(crate) fn describe(iommu: &Iommu, wanted: u32) -> Result<(u32, Vec<u8>)> {
    let (kind, bytes) = match iommu.kind {
        Kind::Vtd => (abi::HW_INFO_TYPE_INTEL_VTD, vtd(iommu).as_bytes().to_vec()),
        Kind::Amd => (abi::HW_INFO_TYPE_AMD, amd(iommu).as_bytes().to_vec()),
        Kind::Smmuv3 => (abi::HW_INFO_TYPE_ARM_SMMUV3, smmuv3(iommu).as_bytes().to_vec()),
        // Linux 7.2's driver has no description.
        Kind::Riscv => (abi::HW_INFO_TYPE_NONE, Vec::new()),
    };
    if wanted != abi::HW_INFO_TYPE_DEFAULT && (wanted != kind || kind == abi::HW_INFO_TYPE_NONE) {
        return refuse!(
            EOPNOTSUPP,
            "the device's IOMMU has no description of this type",
            u64::from(wanted)
        );
    }
    Ok((kind, bytes))
}

fn bits(iommu: &Iommu) -> u64 {
    u64::from(u64::BITS - iommu.aperture.last().0.leading_zeros())
}

/// VT-d 11.4.2 and 11.4.3: the capability registers.
fn vtd(iommu: &Iommu) -> abi::HwInfoVtd {
    let huge = |lg2: u32, bit: u64| if iommu.page_sizes & (1 << lg2) != 0 { 1 << bit } else { 0 };
    let level4 = 1 << 2;
    // ND 256 domains and more (6), SAGAW, MGAW, SLLPS 2 MiB and 1 GiB, MAMV 9, drain read and write, first-stage 1 GiB and 5 levels.
    let cap = 6
        | level4 << 8
        | (bits(iommu) - 1) << 16
        | huge(21, 34)
        | huge(30, 35)
        | 9 << 48
        | 3 << 54
        | 1 << 56;
    let pasid =
        if iommu.pasid_bits > 0 { 1 << 40 | u64::from(iommu.pasid_bits - 1) << 35 } else { 0 };
    let nest = if iommu.nesting { 1 << 26 } else { 0 };
    let snoop = if iommu.enforce_coherency { 1 << 7 } else { 0 };
    let dirty = if iommu.dirty_tracking { 1 << 45 } else { 0 };
    // Coherent, queued invalidation, interrupt remapping with x2APIC, pass through, scalable mode with both stages.
    let ecap = 1
        | 1 << 1
        | 1 << 3
        | 1 << 4
        | 1 << 6
        | snoop
        | nest
        | pasid
        | 1 << 43
        | dirty
        | 1 << 46
        | 1 << 47;
    abi::HwInfoVtd { flags: 0, __reserved: 0, cap_reg: cap, ecap_reg: ecap }
}

/// AMD-Vi 3.4.10 and 3.4.22: the extended feature registers.
fn amd(iommu: &Iommu) -> abi::HwInfoAmd {
    let guest = if iommu.nesting { 1 << 4 } else { 0 };
    let pasid = if iommu.pasid_bits > 0 { u64::from(iommu.pasid_bits - 1) << 32 } else { 0 };
    let dirty = if iommu.dirty_tracking { 1 << 53 } else { 0 };
    // Invalidate all, 6 levels of host and 4 of guest translation.
    let efr = 1 << 6 | guest | 2 << 10 | pasid | dirty;
    abi::HwInfoAmd { efr, efr2: 0 }
}

/// SMMUv3 6.3.1 to 6.3.6: the identification registers.
fn smmuv3(iommu: &Iommu) -> abi::HwInfoArmSmmuv3 {
    let dirty = if iommu.dirty_tracking { 2 << 6 } else { 0 };
    let stages = if iommu.nesting { 3 } else { 1 };
    // Stage 2 and 1, AArch64 tables, coherent, hardware update of access and dirty, ATS, 16 bits of ASID and VMID, MSI, two-level streams.
    let idr0 = stages | 2 << 2 | 1 << 4 | dirty | 1 << 10 | 1 << 12 | 1 << 13 | 1 << 18 | 1 << 27;
    let idr1 = 16 | iommu.pasid_bits << 6 | 19 << 16 | 19 << 21;
    // 48 bits of output, granules of 4, 16 and 64 KiB.
    let idr5 = 5 | 7 << 4;
    abi::HwInfoArmSmmuv3 {
        flags: 0,
        __reserved: 0,
        idr: [idr0, idr1, 0, 0, 0, idr5],
        iidr: 0x43b,
        aidr: 2,
    }
}
