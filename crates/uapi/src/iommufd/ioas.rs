//! I/O address spaces: allocation, allowed ranges, mapping, copying, unmapping.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{
    CMD_IOAS_ALLOC, CMD_IOAS_ALLOW_IOVAS, CMD_IOAS_CHANGE_PROCESS, CMD_IOAS_COPY,
    CMD_IOAS_IOVA_RANGES, CMD_IOAS_MAP, CMD_IOAS_MAP_FILE, CMD_IOAS_NOIOMMU_GET_PA, CMD_IOAS_UNMAP,
    io,
};

/// Argument of [`IOAS_ALLOC`]: creates an empty I/O address space.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IoasAlloc {
    /// Size of this struct in bytes.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// Out: ID of the created IOAS.
    pub out_ioas_id: u32,
}

const _: () = assert!(size_of::<IoasAlloc>() == 12);

/// Ioctl that creates an IOAS, with [`IoasAlloc`].
pub const IOAS_ALLOC: u32 = io(CMD_IOAS_ALLOC);

/// A closed range of IOVAs.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IovaRange {
    /// First IOVA.
    pub start: u64,
    /// Last IOVA, included.
    pub last: u64,
}

const _: () = assert!(size_of::<IovaRange>() == 16);

/// Argument of [`IOAS_IOVA_RANGES`]: asks which IOVAs may be mapped.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IoasIovaRanges {
    /// Size of this struct in bytes.
    pub size: u32,
    /// The IOAS asked about.
    pub ioas_id: u32,
    /// In: entries the array at `allowed_iovas` holds; out: ranges the IOAS has.
    pub num_iovas: u32,
    /// Must be 0.
    pub __reserved: u32,
    /// Client address of an array of [`IovaRange`] to be filled.
    pub allowed_iovas: u64,
    /// Out: bytes every mapped IOVA and length must be a multiple of; 1 to the page size.
    pub out_iova_alignment: u64,
}

const _: () = assert!(size_of::<IoasIovaRanges>() == 32);

/// Ioctl that lists the mappable IOVAs, with [`IoasIovaRanges`].
pub const IOAS_IOVA_RANGES: u32 = io(CMD_IOAS_IOVA_RANGES);

/// Argument of [`IOAS_ALLOW_IOVAS`]: replaces the list of ranges that must stay mappable.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IoasAllowIovas {
    /// Size of this struct in bytes.
    pub size: u32,
    /// The IOAS the list belongs to.
    pub ioas_id: u32,
    /// Entries in the array at `allowed_iovas`.
    pub num_iovas: u32,
    /// Must be 0.
    pub __reserved: u32,
    /// Client address of an array of [`IovaRange`].
    pub allowed_iovas: u64,
}

const _: () = assert!(size_of::<IoasAllowIovas>() == 24);

/// Ioctl that sets the ranges attaching may not take away, with [`IoasAllowIovas`].
pub const IOAS_ALLOW_IOVAS: u32 = io(CMD_IOAS_ALLOW_IOVAS);

/// Map at the given IOVA instead of a chosen one.
pub const IOAS_MAP_FIXED_IOVA: u32 = 1 << 0;

/// Devices may write to the mapping.
pub const IOAS_MAP_WRITEABLE: u32 = 1 << 1;

/// Devices may read from the mapping.
pub const IOAS_MAP_READABLE: u32 = 1 << 2;

/// Argument of [`IOAS_MAP`]: maps client memory.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IoasMap {
    /// Size of this struct in bytes.
    pub size: u32,
    /// `IOAS_MAP_*` bits.
    pub flags: u32,
    /// The IOAS to map into.
    pub ioas_id: u32,
    /// Must be 0.
    pub __reserved: u32,
    /// Client address of the first byte.
    pub user_va: u64,
    /// Bytes to map.
    pub length: u64,
    /// In with [`IOAS_MAP_FIXED_IOVA`], otherwise out: first IOVA of the mapping.
    pub iova: u64,
}

const _: () = assert!(size_of::<IoasMap>() == 40);

/// Ioctl that maps client memory, with [`IoasMap`].
pub const IOAS_MAP: u32 = io(CMD_IOAS_MAP);

/// Argument of [`IOAS_NOIOMMU_GET_PA`]: where an IOVA leads that a device without an IOMMU uses.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IoasNoiommuGetPa {
    /// Size of this struct in bytes.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// The IOAS that maps it.
    pub ioas_id: u32,
    /// Must be 0.
    pub __reserved: u32,
    /// The IOVA asked about.
    pub iova: u64,
    /// In: how many bytes are of interest, at least one; out: how many of them follow each other
    /// physically.
    pub length: u64,
    /// Out: physical address of the byte at `iova`.
    pub out_phys: u64,
}

const _: () = assert!(size_of::<IoasNoiommuGetPa>() == 40);

/// Ioctl that shows physical addresses to the user of a device without an IOMMU, with
/// [`IoasNoiommuGetPa`]; from Linux 7.3 on.
pub const IOAS_NOIOMMU_GET_PA: u32 = io(CMD_IOAS_NOIOMMU_GET_PA);

/// Argument of [`IOAS_MAP_FILE`]: maps part of a memfd or of a supported dma-buf.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IoasMapFile {
    /// Size of this struct in bytes.
    pub size: u32,
    /// `IOAS_MAP_*` bits.
    pub flags: u32,
    /// The IOAS to map into.
    pub ioas_id: u32,
    /// Descriptor of the file.
    pub fd: i32,
    /// Offset into the file, in bytes.
    pub start: u64,
    /// Bytes to map.
    pub length: u64,
    /// In with [`IOAS_MAP_FIXED_IOVA`], otherwise out: first IOVA of the mapping.
    pub iova: u64,
}

const _: () = assert!(size_of::<IoasMapFile>() == 40);

/// Ioctl that maps part of a file, with [`IoasMapFile`].
pub const IOAS_MAP_FILE: u32 = io(CMD_IOAS_MAP_FILE);

/// Argument of [`IOAS_COPY`]: maps again what another (or the same) IOAS maps, sharing its pins.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IoasCopy {
    /// Size of this struct in bytes.
    pub size: u32,
    /// `IOAS_MAP_*` bits.
    pub flags: u32,
    /// The IOAS to map into.
    pub dst_ioas_id: u32,
    /// The IOAS to copy from.
    pub src_ioas_id: u32,
    /// Bytes to copy.
    pub length: u64,
    /// In with [`IOAS_MAP_FIXED_IOVA`], otherwise out: first IOVA of the created mapping.
    pub dst_iova: u64,
    /// First IOVA of the source.
    pub src_iova: u64,
}

const _: () = assert!(size_of::<IoasCopy>() == 40);

/// Ioctl that copies a mapping between IOASes, with [`IoasCopy`].
pub const IOAS_COPY: u32 = io(CMD_IOAS_COPY);

/// Argument of [`IOAS_UNMAP`]: removes every mapping inside a range.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IoasUnmap {
    /// Size of this struct in bytes.
    pub size: u32,
    /// The IOAS to unmap from.
    pub ioas_id: u32,
    /// First IOVA.
    pub iova: u64,
    /// In: bytes to unmap, `u64::MAX` from IOVA 0 for all; out: bytes unmapped.
    pub length: u64,
}

const _: () = assert!(size_of::<IoasUnmap>() == 24);

/// Ioctl that removes mappings, with [`IoasUnmap`].
pub const IOAS_UNMAP: u32 = io(CMD_IOAS_UNMAP);

/// Argument of [`IOAS_CHANGE_PROCESS`]: moves the charge for pinned memory to the calling process.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IoasChangeProcess {
    /// Size of this struct in bytes.
    pub size: u32,
    /// Must be 0.
    pub __reserved: u32,
}

const _: () = assert!(size_of::<IoasChangeProcess>() == 8);

/// Ioctl that recharges pinned file mappings to the caller, with [`IoasChangeProcess`].
pub const IOAS_CHANGE_PROCESS: u32 = io(CMD_IOAS_CHANGE_PROCESS);
