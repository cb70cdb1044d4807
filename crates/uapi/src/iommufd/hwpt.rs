//! Hardware page tables: allocation, nesting data, dirty tracking, invalidation.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{
    CMD_HWPT_ALLOC, CMD_HWPT_GET_DIRTY_BITMAP, CMD_HWPT_INVALIDATE, CMD_HWPT_SET_DIRTY_TRACKING, io,
};

/// The HWPT may be the parent of nested ones.
pub const HWPT_ALLOC_NEST_PARENT: u32 = 1 << 0;

/// Only devices whose IOMMU tracks dirty pages may attach.
pub const HWPT_ALLOC_DIRTY_TRACKING: u32 = 1 << 1;

/// `fault_id` is meaningful.
pub const HWPT_FAULT_ID_VALID: u32 = 1 << 2;

/// The HWPT may be attached to a PASID.
pub const HWPT_ALLOC_PASID: u32 = 1 << 3;

/// VT-d first stage: supervisor requests are served.
pub const VTD_S1_SRE: u64 = 1 << 0;

/// VT-d first stage: the extended accessed bit is kept.
pub const VTD_S1_EAFE: u64 = 1 << 1;

/// VT-d first stage: write protection binds supervisor requests too.
pub const VTD_S1_WPE: u64 = 1 << 2;

/// Nesting data of a VT-d first-stage table, [`HWPT_DATA_VTD_S1`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct HwptVtdS1 {
    /// `VTD_S1_*` bits.
    pub flags: u64,
    /// Guest physical address of the top table.
    pub pgtbl_addr: u64,
    /// Width of the input address, in bits.
    pub addr_width: u32,
    /// Must be 0.
    pub __reserved: u32,
}

const _: () = assert!(size_of::<HwptVtdS1>() == 24);

/// Nesting data of an SMMUv3 stage 1, [`HWPT_DATA_ARM_SMMUV3`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct HwptArmSmmuv3 {
    /// The first two doublewords of the guest's stream table entry, little-endian.
    pub ste: [u64; 2],
}

const _: () = assert!(size_of::<HwptArmSmmuv3>() == 16);

/// Nesting data of an AMD guest table, [`HWPT_DATA_AMD_GUEST`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct HwptAmdGuest {
    /// The guest's device table entry.
    pub dte: [u64; 4],
}

const _: () = assert!(size_of::<HwptAmdGuest>() == 32);

/// No data: the HWPT follows an IOAS.
pub const HWPT_DATA_NONE: u32 = 0;

/// Data is [`HwptVtdS1`].
pub const HWPT_DATA_VTD_S1: u32 = 1;

/// Data is [`HwptArmSmmuv3`].
pub const HWPT_DATA_ARM_SMMUV3: u32 = 2;

/// Data is [`HwptAmdGuest`].
pub const HWPT_DATA_AMD_GUEST: u32 = 3;

/// Argument of [`HWPT_ALLOC`]: creates a hardware page table.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct HwptAlloc {
    /// Size of this struct in bytes.
    pub size: u32,
    /// `HWPT_ALLOC_*` bits and [`HWPT_FAULT_ID_VALID`].
    pub flags: u32,
    /// The device whose IOMMU the table is for.
    pub dev_id: u32,
    /// The IOAS, parent HWPT or vIOMMU to follow.
    pub pt_id: u32,
    /// Out: ID of the created HWPT.
    pub out_hwpt_id: u32,
    /// Must be 0.
    pub __reserved: u32,
    /// One of `HWPT_DATA_*`.
    pub data_type: u32,
    /// Bytes at `data_uptr`, 0 without data.
    pub data_len: u32,
    /// Client address of the data, 0 without.
    pub data_uptr: u64,
    /// The fault queue, with [`HWPT_FAULT_ID_VALID`].
    pub fault_id: u32,
    /// Must be 0.
    pub __reserved2: u32,
}

const _: () = assert!(size_of::<HwptAlloc>() == 48);

/// Ioctl that creates a HWPT, with [`HwptAlloc`].
pub const HWPT_ALLOC: u32 = io(CMD_HWPT_ALLOC);

/// Turn dirty tracking on; absent, off.
pub const HWPT_DIRTY_TRACKING_ENABLE: u32 = 1;

/// Argument of [`HWPT_SET_DIRTY_TRACKING`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct HwptSetDirtyTracking {
    /// Size of this struct in bytes.
    pub size: u32,
    /// [`HWPT_DIRTY_TRACKING_ENABLE`] or 0.
    pub flags: u32,
    /// The HWPT.
    pub hwpt_id: u32,
    /// Must be 0.
    pub __reserved: u32,
}

const _: () = assert!(size_of::<HwptSetDirtyTracking>() == 16);

/// Ioctl that turns dirty tracking on or off, with [`HwptSetDirtyTracking`].
pub const HWPT_SET_DIRTY_TRACKING: u32 = io(CMD_HWPT_SET_DIRTY_TRACKING);

/// Leave the dirty bits set.
pub const HWPT_GET_DIRTY_BITMAP_NO_CLEAR: u32 = 1;

/// Argument of [`HWPT_GET_DIRTY_BITMAP`]: reads which pages devices wrote.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct HwptGetDirtyBitmap {
    /// Size of this struct in bytes.
    pub size: u32,
    /// The HWPT.
    pub hwpt_id: u32,
    /// [`HWPT_GET_DIRTY_BITMAP_NO_CLEAR`] or 0.
    pub flags: u32,
    /// Must be 0.
    pub __reserved: u32,
    /// IOVA of bit 0.
    pub iova: u64,
    /// Bytes of IOVA the bitmap covers.
    pub length: u64,
    /// Bytes a bit stands for.
    pub page_size: u64,
    /// Client address of the bitmap, an array of `u64`.
    pub data: u64,
}

const _: () = assert!(size_of::<HwptGetDirtyBitmap>() == 48);

/// Ioctl that reads (and clears) dirty bits, with [`HwptGetDirtyBitmap`].
pub const HWPT_GET_DIRTY_BITMAP: u32 = io(CMD_HWPT_GET_DIRTY_BITMAP);

/// Requests are [`HwptVtdS1Invalidate`].
pub const HWPT_INVALIDATE_DATA_VTD_S1: u32 = 0;

/// Requests are [`ViommuArmSmmuv3Invalidate`].
pub const VIOMMU_INVALIDATE_DATA_ARM_SMMUV3: u32 = 1;

/// Only leaves changed; intermediate tables may stay cached.
pub const VTD_INV_FLAGS_LEAF: u32 = 1 << 0;

/// One VT-d first-stage invalidation request.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct HwptVtdS1Invalidate {
    /// First address, a multiple of 4 KiB.
    pub addr: u64,
    /// Pages of 4 KiB; `u64::MAX` with address 0 means everything.
    pub npages: u64,
    /// [`VTD_INV_FLAGS_LEAF`] or 0.
    pub flags: u32,
    /// Must be 0.
    pub __reserved: u32,
}

const _: () = assert!(size_of::<HwptVtdS1Invalidate>() == 24);

/// One SMMUv3 invalidation request.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct ViommuArmSmmuv3Invalidate {
    /// A command of the SMMU's command queue, little-endian.
    pub cmd: [u64; 2],
}

const _: () = assert!(size_of::<ViommuArmSmmuv3Invalidate>() == 16);

/// Argument of [`HWPT_INVALIDATE`]: an array of invalidation requests.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct HwptInvalidate {
    /// Size of this struct in bytes.
    pub size: u32,
    /// The nested HWPT or the vIOMMU.
    pub hwpt_id: u32,
    /// Client address of the requests.
    pub data_uptr: u64,
    /// Type of every request.
    pub data_type: u32,
    /// Bytes between requests.
    pub entry_len: u32,
    /// In: requests; out: requests carried out.
    pub entry_num: u32,
    /// Must be 0.
    pub __reserved: u32,
}

const _: () = assert!(size_of::<HwptInvalidate>() == 32);

/// Ioctl that invalidates caches of a client-owned table, with [`HwptInvalidate`].
pub const HWPT_INVALIDATE: u32 = io(CMD_HWPT_INVALIDATE);
