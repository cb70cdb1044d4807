//! The container (`/dev/vfio/vfio`) and its type 1 IOMMU.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{InfoCapHeader, io};

/// Container ioctl that returns [`API_VERSION`](super::API_VERSION); no argument.
pub const GET_API_VERSION: u32 = io(0);

/// Container ioctl that returns whether the extension given as argument is there.
pub const CHECK_EXTENSION: u32 = io(1);

/// Container ioctl that chooses the IOMMU type given as argument.
pub const SET_IOMMU: u32 = io(2);

/// `iova_pgsizes` is meaningful.
pub const IOMMU_INFO_PGSIZES: u32 = 1 << 0;

/// `cap_offset` is meaningful.
pub const IOMMU_INFO_CAPS: u32 = 1 << 1;

/// Argument of [`IOMMU_GET_INFO`]; the capability chain may follow.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IommuType1Info {
    /// In: bytes the caller provides, this struct included; out: bytes needed.
    pub argsz: u32,
    /// `IOMMU_INFO_*` bits.
    pub flags: u32,
    /// Bitmap of page sizes in bytes.
    pub iova_pgsizes: u64,
    /// Offset of the first capability in bytes, 0 without.
    pub cap_offset: u32,
    /// Padding, 0.
    pub pad: u32,
}

const _: () = assert!(size_of::<IommuType1Info>() == 24);

/// Capability [`IommuType1InfoCapIovaRange`].
pub const IOMMU_TYPE1_INFO_CAP_IOVA_RANGE: u16 = 1;

/// A closed range of IOVAs.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IovaRange {
    /// First IOVA.
    pub start: u64,
    /// Last IOVA, included.
    pub end: u64,
}

const _: () = assert!(size_of::<IovaRange>() == 16);

/// The mappable IOVAs; `nr_iovas` [`IovaRange`] follow.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IommuType1InfoCapIovaRange {
    /// Number, version and successor of the capability.
    pub header: InfoCapHeader,
    /// Ranges that follow.
    pub nr_iovas: u32,
    /// Must be 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<IommuType1InfoCapIovaRange>() == 16);

/// Capability [`IommuType1InfoCapMigration`].
pub const IOMMU_TYPE1_INFO_CAP_MIGRATION: u16 = 2;

/// What dirty page logging can do.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IommuType1InfoCapMigration {
    /// Number, version and successor of the capability.
    pub header: InfoCapHeader,
    /// Must be 0.
    pub flags: u32,
    /// Not a field in C: the padding that aligns the next field to 8 bytes.
    pub __padding: u32,
    /// Bitmap of page sizes in bytes that can be logged.
    pub pgsize_bitmap: u64,
    /// Largest bitmap a call may ask for, in bytes.
    pub max_dirty_bitmap_size: u64,
}

const _: () = assert!(size_of::<IommuType1InfoCapMigration>() == 32);

/// Capability [`IommuType1InfoDmaAvail`].
pub const IOMMU_TYPE1_INFO_DMA_AVAIL: u16 = 3;

/// How many more mappings the container takes.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IommuType1InfoDmaAvail {
    /// Number, version and successor of the capability.
    pub header: InfoCapHeader,
    /// Mappings left.
    pub avail: u32,
}

const _: () = assert!(size_of::<IommuType1InfoDmaAvail>() == 12);

/// Container ioctl that describes the IOMMU, with [`IommuType1Info`].
pub const IOMMU_GET_INFO: u32 = io(12);

/// Devices may read.
pub const DMA_MAP_FLAG_READ: u32 = 1 << 0;

/// Devices may write.
pub const DMA_MAP_FLAG_WRITE: u32 = 1 << 1;

/// Give an existing mapping a new process address.
pub const DMA_MAP_FLAG_VADDR: u32 = 1 << 2;

/// Argument of [`IOMMU_MAP_DMA`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IommuType1DmaMap {
    /// In: bytes the caller provides, this struct included; out: bytes needed.
    pub argsz: u32,
    /// `DMA_MAP_FLAG_*` bits.
    pub flags: u32,
    /// Client address of the first byte.
    pub vaddr: u64,
    /// First IOVA.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
}

const _: () = assert!(size_of::<IommuType1DmaMap>() == 32);

/// Container ioctl that maps client memory, with [`IommuType1DmaMap`].
pub const IOMMU_MAP_DMA: u32 = io(13);

/// Where a dirty bitmap goes.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Bitmap {
    /// Bytes a bit stands for.
    pub pgsize: u64,
    /// Bytes of the bitmap.
    pub size: u64,
    /// Client address of the bitmap; a pointer in C.
    pub data: u64,
}

const _: () = assert!(size_of::<Bitmap>() == 24);

/// Read the dirty bits before unmapping; a [`Bitmap`] follows the argument.
pub const DMA_UNMAP_FLAG_GET_DIRTY_BITMAP: u32 = 1 << 0;

/// Unmap everything; `iova` and `size` are 0.
pub const DMA_UNMAP_FLAG_ALL: u32 = 1 << 1;

/// Forget process addresses, keep mappings.
pub const DMA_UNMAP_FLAG_VADDR: u32 = 1 << 2;

/// Argument of [`IOMMU_UNMAP_DMA`]; a [`Bitmap`] follows with [`DMA_UNMAP_FLAG_GET_DIRTY_BITMAP`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IommuType1DmaUnmap {
    /// In: bytes the caller provides, this struct included; out: bytes needed.
    pub argsz: u32,
    /// `DMA_UNMAP_FLAG_*` bits.
    pub flags: u32,
    /// First IOVA.
    pub iova: u64,
    /// In: bytes to unmap; out: bytes unmapped.
    pub size: u64,
}

const _: () = assert!(size_of::<IommuType1DmaUnmap>() == 24);

/// Container ioctl that unmaps, with [`IommuType1DmaUnmap`].
pub const IOMMU_UNMAP_DMA: u32 = io(14);

/// Container ioctl of the SPAPR IOMMU that starts use; no argument.
pub const IOMMU_ENABLE: u32 = io(15);

/// Container ioctl of the SPAPR IOMMU that ends use; no argument.
pub const IOMMU_DISABLE: u32 = io(16);

/// Start logging.
pub const IOMMU_DIRTY_PAGES_FLAG_START: u32 = 1 << 0;

/// Stop logging.
pub const IOMMU_DIRTY_PAGES_FLAG_STOP: u32 = 1 << 1;

/// Read the log; an [`IommuType1DirtyBitmapGet`] follows the argument.
pub const IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP: u32 = 1 << 2;

/// Argument of [`IOMMU_DIRTY_PAGES`]; an [`IommuType1DirtyBitmapGet`] follows with
/// [`IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IommuType1DirtyBitmap {
    /// In: bytes the caller provides, this struct included; out: bytes needed.
    pub argsz: u32,
    /// One of `IOMMU_DIRTY_PAGES_FLAG_*`.
    pub flags: u32,
}

const _: () = assert!(size_of::<IommuType1DirtyBitmap>() == 8);

/// The range whose dirty bits are read.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IommuType1DirtyBitmapGet {
    /// IOVA of bit 0.
    pub iova: u64,
    /// Bytes of IOVA the bitmap covers.
    pub size: u64,
    /// Where the bits go.
    pub bitmap: Bitmap,
}

const _: () = assert!(size_of::<IommuType1DirtyBitmapGet>() == 40);

/// Container ioctl of dirty page logging, with [`IommuType1DirtyBitmap`].
pub const IOMMU_DIRTY_PAGES: u32 = io(17);
