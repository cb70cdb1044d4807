//! Regions: what a device's memory looks like through its descriptor.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{InfoCapHeader, io};

/// The region can be read.
pub const REGION_INFO_FLAG_READ: u32 = 1 << 0;

/// The region can be written.
pub const REGION_INFO_FLAG_WRITE: u32 = 1 << 1;

/// The region can be mapped.
pub const REGION_INFO_FLAG_MMAP: u32 = 1 << 2;

/// The capability chain is there.
pub const REGION_INFO_FLAG_CAPS: u32 = 1 << 3;

/// Argument of [`DEVICE_GET_REGION_INFO`]; the capability chain may follow.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct RegionInfo {
    /// In: bytes the caller provides, this struct included; out: bytes needed.
    pub argsz: u32,
    /// Out: `REGION_INFO_FLAG_*` bits.
    pub flags: u32,
    /// The region asked about.
    pub index: u32,
    /// Out: offset of the first capability in bytes, 0 without.
    pub cap_offset: u32,
    /// Out: bytes of the region, 0 if it does not exist.
    pub size: u64,
    /// Out: where the region starts on the device descriptor, in bytes.
    pub offset: u64,
}

const _: () = assert!(size_of::<RegionInfo>() == 32);

/// Device ioctl that describes a region, with [`RegionInfo`].
pub const DEVICE_GET_REGION_INFO: u32 = io(8);

/// Capability [`RegionInfoCapSparseMmap`].
pub const REGION_INFO_CAP_SPARSE_MMAP: u16 = 1;

/// A part of a region that can be mapped.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct RegionSparseMmapArea {
    /// Bytes from the start of the region.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

const _: () = assert!(size_of::<RegionSparseMmapArea>() == 16);

/// Only parts can be mapped; `nr_areas` [`RegionSparseMmapArea`] follow.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct RegionInfoCapSparseMmap {
    /// Number, version and successor of the capability.
    pub header: InfoCapHeader,
    /// Areas that follow.
    pub nr_areas: u32,
    /// Must be 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<RegionInfoCapSparseMmap>() == 16);

/// Capability [`RegionInfoCapType`].
pub const REGION_INFO_CAP_TYPE: u16 = 2;

/// What a device-specific region is.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct RegionInfoCapType {
    /// Number, version and successor of the capability.
    pub header: InfoCapHeader,
    /// One of `REGION_TYPE_*`, or a vendor with [`REGION_TYPE_PCI_VENDOR_TYPE`].
    pub type_: u32,
    /// One of the type's `REGION_SUBTYPE_*`.
    pub subtype: u32,
}

const _: () = assert!(size_of::<RegionInfoCapType>() == 16);

/// The low bits are a PCI vendor ID.
pub const REGION_TYPE_PCI_VENDOR_TYPE: u32 = 1 << 31;

/// The bits of the vendor ID.
pub const REGION_TYPE_PCI_VENDOR_MASK: u32 = 0xffff;

/// Graphics.
pub const REGION_TYPE_GFX: u32 = 1;

/// Channel I/O.
pub const REGION_TYPE_CCW: u32 = 2;

/// The first migration interface, no longer served.
pub const REGION_TYPE_MIGRATION_DEPRECATED: u32 = 3;

/// Intel: the OpRegion.
pub const REGION_SUBTYPE_INTEL_IGD_OPREGION: u32 = 1;

/// Intel: configuration space of the host bridge.
pub const REGION_SUBTYPE_INTEL_IGD_HOST_CFG: u32 = 2;

/// Intel: configuration space of the LPC bridge.
pub const REGION_SUBTYPE_INTEL_IGD_LPC_CFG: u32 = 3;

/// NVIDIA: memory over NVLink2, no longer served.
pub const REGION_SUBTYPE_NVIDIA_NVLINK2_RAM: u32 = 1;

/// IBM: shootdown register of an NPU, no longer served.
pub const REGION_SUBTYPE_IBM_NVLINK2_ATSD: u32 = 1;

/// Graphics: [`RegionGfxEdid`].
pub const REGION_SUBTYPE_GFX_EDID: u32 = 1;

/// Front of the region that gives a virtual display its EDID.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct RegionGfxEdid {
    /// Offset of the EDID in bytes, read-only.
    pub edid_offset: u32,
    /// Bytes an EDID may have, read-only.
    pub edid_max_size: u32,
    /// Bytes of the EDID.
    pub edid_size: u32,
    /// Widest mode in pixels, 0 for any, read-only.
    pub max_xres: u32,
    /// Highest mode in pixels, 0 for any, read-only.
    pub max_yres: u32,
    /// [`DEVICE_GFX_LINK_STATE_UP`] or [`DEVICE_GFX_LINK_STATE_DOWN`].
    pub link_state: u32,
}

const _: () = assert!(size_of::<RegionGfxEdid>() == 24);

/// The display is on.
pub const DEVICE_GFX_LINK_STATE_UP: u32 = 1;

/// The display is off.
pub const DEVICE_GFX_LINK_STATE_DOWN: u32 = 2;

/// Channel I/O: halt and clear commands.
pub const REGION_SUBTYPE_CCW_ASYNC_CMD: u32 = 1;

/// Channel I/O: subchannel information block.
pub const REGION_SUBTYPE_CCW_SCHIB: u32 = 2;

/// Channel I/O: channel reports.
pub const REGION_SUBTYPE_CCW_CRW: u32 = 3;

/// The first migration interface.
pub const REGION_SUBTYPE_MIGRATION_DEPRECATED: u32 = 1;

/// Capability without data: the BAR can be mapped with the MSI-X table inside.
pub const REGION_INFO_CAP_MSIX_MAPPABLE: u16 = 3;

/// Capability [`RegionInfoCapNvlink2Ssatgt`], no longer served.
pub const REGION_INFO_CAP_NVLINK2_SSATGT: u16 = 4;

/// Where GPU memory lies on the system bus.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct RegionInfoCapNvlink2Ssatgt {
    /// Number, version and successor of the capability.
    pub header: InfoCapHeader,
    /// Compressed address.
    pub tgt: u64,
}

const _: () = assert!(size_of::<RegionInfoCapNvlink2Ssatgt>() == 16);

/// Capability [`RegionInfoCapNvlink2Lnkspd`], no longer served.
pub const REGION_INFO_CAP_NVLINK2_LNKSPD: u16 = 5;

/// Speed of an NVLink2.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct RegionInfoCapNvlink2Lnkspd {
    /// Number, version and successor of the capability.
    pub header: InfoCapHeader,
    /// The firmware's code for the speed.
    pub link_speed: u32,
    /// Padding, 0.
    pub __pad: u32,
}

const _: () = assert!(size_of::<RegionInfoCapNvlink2Lnkspd>() == 16);
