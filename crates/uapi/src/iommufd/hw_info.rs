//! What the IOMMU behind a device can do.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{CMD_GET_HW_INFO, io};

/// VT-d: a nesting parent may hold no read-only mapping.
pub const HW_INFO_VTD_ERRATA_772415_SPR17: u32 = 1 << 0;

/// Registers of a VT-d unit, [`HW_INFO_TYPE_INTEL_VTD`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct HwInfoVtd {
    /// [`HW_INFO_VTD_ERRATA_772415_SPR17`] or 0.
    pub flags: u32,
    /// Must be 0.
    pub __reserved: u32,
    /// Capability register, VT-d 11.4.2.
    pub cap_reg: u64,
    /// Extended capability register, VT-d 11.4.3.
    pub ecap_reg: u64,
}

const _: () = assert!(size_of::<HwInfoVtd>() == 24);

/// The hardware loses invalidations: whoever issues TLBI or CFGI commands and a SYNC does it twice.
/// From Linux 7.3 on.
pub const HW_INFO_ARM_SMMUV3_ERRATA_REPEAT_TLBI_CFGI: u32 = 1 << 0;

/// Registers of an SMMUv3, [`HW_INFO_TYPE_ARM_SMMUV3`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct HwInfoArmSmmuv3 {
    /// [`HW_INFO_ARM_SMMUV3_ERRATA_REPEAT_TLBI_CFGI`] or 0.
    pub flags: u32,
    /// Must be 0.
    pub __reserved: u32,
    /// SMMU_IDR0 to SMMU_IDR5.
    pub idr: [u32; 6],
    /// SMMU_IIDR: implementer and revision.
    pub iidr: u32,
    /// SMMU_AIDR: architecture version.
    pub aidr: u32,
}

const _: () = assert!(size_of::<HwInfoArmSmmuv3>() == 40);

/// Parameters of a Tegra241 CMDQV, [`HW_INFO_TYPE_TEGRA241_CMDQV`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct HwInfoTegra241Cmdqv {
    /// Must be 0.
    pub flags: u32,
    /// Version, PARAM bits 3:0.
    pub version: u8,
    /// log2 of the number of virtual command queues, PARAM bits 7:4.
    pub log2vcmdqs: u8,
    /// log2 of the number of stream ID replacements, PARAM bits 15:12.
    pub log2vsids: u8,
    /// Must be 0.
    pub __reserved: u8,
}

const _: () = assert!(size_of::<HwInfoTegra241Cmdqv>() == 8);

/// Registers of an AMD IOMMU, [`HW_INFO_TYPE_AMD`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct HwInfoAmd {
    /// Extended feature register, MMIO offset 0x30.
    pub efr: u64,
    /// Extended feature 2 register, MMIO offset 0x1a0.
    pub efr2: u64,
}

const _: () = assert!(size_of::<HwInfoAmd>() == 16);

/// Out: the driver reports nothing.
pub const HW_INFO_TYPE_NONE: u32 = 0;

/// In: whatever the driver reports by itself.
pub const HW_INFO_TYPE_DEFAULT: u32 = 0;

/// Data is [`HwInfoVtd`].
pub const HW_INFO_TYPE_INTEL_VTD: u32 = 1;

/// Data is [`HwInfoArmSmmuv3`].
pub const HW_INFO_TYPE_ARM_SMMUV3: u32 = 2;

/// Data is [`HwInfoTegra241Cmdqv`].
pub const HW_INFO_TYPE_TEGRA241_CMDQV: u32 = 3;

/// Data is [`HwInfoAmd`].
pub const HW_INFO_TYPE_AMD: u32 = 4;

/// Capability: dirty pages are tracked.
pub const HW_CAP_DIRTY_TRACKING: u64 = 1 << 0;

/// Capability: PASID requests may ask for execution.
pub const HW_CAP_PCI_PASID_EXEC: u64 = 1 << 1;

/// Capability: PASID requests may be privileged.
pub const HW_CAP_PCI_PASID_PRIV: u64 = 1 << 2;

/// Capability bit that says ATS cannot be used.
pub const HW_CAP_PCI_ATS_NOT_SUPPORTED: u64 = 1 << 3;

/// `data_type` is an input too.
pub const HW_INFO_FLAG_INPUT_TYPE: u32 = 1 << 0;

/// Argument of [`GET_HW_INFO`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct HwInfo {
    /// Size of this struct in bytes.
    pub size: u32,
    /// [`HW_INFO_FLAG_INPUT_TYPE`] or 0.
    pub flags: u32,
    /// The bound device.
    pub dev_id: u32,
    /// In: bytes of the buffer; out: bytes the type has.
    pub data_len: u32,
    /// Client address of the buffer.
    pub data_uptr: u64,
    /// Union of `in_data_type` (with [`HW_INFO_FLAG_INPUT_TYPE`]) and `out_data_type`: one of
    /// `HW_INFO_TYPE_*`.
    #[doc(alias = "in_data_type")]
    #[doc(alias = "out_data_type")]
    pub data_type: u32,
    /// Out: width of a PASID in bits, 0 without PASIDs.
    pub out_max_pasid_log2: u8,
    /// Must be 0.
    pub __reserved: [u8; 3],
    /// Out: `HW_CAP_*` bits.
    pub out_capabilities: u64,
}

const _: () = assert!(size_of::<HwInfo>() == 40);

/// Ioctl that asks about the IOMMU behind a device, with [`HwInfo`].
pub const GET_HW_INFO: u32 = io(CMD_GET_HW_INFO);
