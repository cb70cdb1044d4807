//! The device: information, IOMMUFD binding, ioeventfds, display planes.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{InfoCapHeader, io};

/// The device can be reset.
pub const DEVICE_FLAGS_RESET: u32 = 1 << 0;

/// A vfio-pci device.
pub const DEVICE_FLAGS_PCI: u32 = 1 << 1;

/// A vfio-platform device.
pub const DEVICE_FLAGS_PLATFORM: u32 = 1 << 2;

/// A vfio-amba device.
pub const DEVICE_FLAGS_AMBA: u32 = 1 << 3;

/// A vfio-ccw device.
pub const DEVICE_FLAGS_CCW: u32 = 1 << 4;

/// A vfio-ap device.
pub const DEVICE_FLAGS_AP: u32 = 1 << 5;

/// A vfio-fsl-mc device.
pub const DEVICE_FLAGS_FSL_MC: u32 = 1 << 6;

/// `cap_offset` is meaningful.
pub const DEVICE_FLAGS_CAPS: u32 = 1 << 7;

/// A vfio-cdx device.
pub const DEVICE_FLAGS_CDX: u32 = 1 << 8;

/// Argument of [`DEVICE_GET_INFO`]; the capability chain may follow.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DeviceInfo {
    /// In: bytes the caller provides, this struct included; out: bytes needed.
    pub argsz: u32,
    /// `DEVICE_FLAGS_*` bits.
    pub flags: u32,
    /// Highest region index plus 1.
    pub num_regions: u32,
    /// Highest interrupt index plus 1.
    pub num_irqs: u32,
    /// Offset of the first capability in bytes, 0 without.
    pub cap_offset: u32,
    /// Padding, 0.
    pub pad: u32,
}

const _: () = assert!(size_of::<DeviceInfo>() == 24);

/// Device ioctl that describes the device, with [`DeviceInfo`].
pub const DEVICE_GET_INFO: u32 = io(7);

/// `device_api` of a mediated PCI device.
pub const DEVICE_API_PCI_STRING: &str = "vfio-pci";

/// `device_api` of a mediated platform device.
pub const DEVICE_API_PLATFORM_STRING: &str = "vfio-platform";

/// `device_api` of a mediated AMBA device.
pub const DEVICE_API_AMBA_STRING: &str = "vfio-amba";

/// `device_api` of a mediated channel device.
pub const DEVICE_API_CCW_STRING: &str = "vfio-ccw";

/// `device_api` of a mediated adjunct processor.
pub const DEVICE_API_AP_STRING: &str = "vfio-ap";

/// Capability of s390 zPCI: base.
pub const DEVICE_INFO_CAP_ZPCI_BASE: u16 = 1;

/// Capability of s390 zPCI: group.
pub const DEVICE_INFO_CAP_ZPCI_GROUP: u16 = 2;

/// Capability of s390 zPCI: utility string.
pub const DEVICE_INFO_CAP_ZPCI_UTIL: u16 = 3;

/// Capability of s390 zPCI: function path.
pub const DEVICE_INFO_CAP_ZPCI_PFIP: u16 = 4;

/// Capability [`DeviceInfoCapPciAtomicComp`].
pub const DEVICE_INFO_CAP_PCI_ATOMIC_COMP: u16 = 5;

/// 32-bit AtomicOps complete.
pub const PCI_ATOMIC_COMP32: u32 = 1 << 0;

/// 64-bit AtomicOps complete.
pub const PCI_ATOMIC_COMP64: u32 = 1 << 1;

/// 128-bit compare-and-swap completes.
pub const PCI_ATOMIC_COMP128: u32 = 1 << 2;

/// Which PCIe AtomicOps the root completes.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DeviceInfoCapPciAtomicComp {
    /// Number, version and successor of the capability.
    pub header: InfoCapHeader,
    /// `PCI_ATOMIC_COMP*` bits.
    pub flags: u32,
    /// Must be 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<DeviceInfoCapPciAtomicComp>() == 16);

/// Device ioctl that resets the device; no argument.
pub const DEVICE_RESET: u32 = io(11);

/// `token_uuid_ptr` is meaningful.
pub const DEVICE_BIND_FLAG_TOKEN: u32 = 1 << 0;

/// Argument of [`DEVICE_BIND_IOMMUFD`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DeviceBindIommufd {
    /// In: bytes the caller provides, this struct included; out: bytes needed.
    pub argsz: u32,
    /// [`DEVICE_BIND_FLAG_TOKEN`] or 0.
    pub flags: u32,
    /// Descriptor of `/dev/iommu`.
    pub iommufd: i32,
    /// Out: ID of the device object.
    pub out_devid: u32,
    /// Client address of the 16-byte VF token.
    pub token_uuid_ptr: u64,
}

const _: () = assert!(size_of::<DeviceBindIommufd>() == 24);

/// Device ioctl that binds to an iommufd, with [`DeviceBindIommufd`].
pub const DEVICE_BIND_IOMMUFD: u32 = io(18);

/// Attach `pasid`, not the device itself.
pub const DEVICE_ATTACH_PASID: u32 = 1 << 0;

/// Argument of [`DEVICE_ATTACH_IOMMUFD_PT`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DeviceAttachIommufdPt {
    /// In: bytes the caller provides, this struct included; out: bytes needed.
    pub argsz: u32,
    /// [`DEVICE_ATTACH_PASID`] or 0.
    pub flags: u32,
    /// In: the IOAS or HWPT; out: the IOAS or the HWPT attached.
    pub pt_id: u32,
    /// The PASID, with [`DEVICE_ATTACH_PASID`].
    pub pasid: u32,
}

const _: () = assert!(size_of::<DeviceAttachIommufdPt>() == 16);

/// Device ioctl that attaches to a table, or replaces it, with [`DeviceAttachIommufdPt`].
pub const DEVICE_ATTACH_IOMMUFD_PT: u32 = io(19);

/// Detach `pasid`, not the device itself.
pub const DEVICE_DETACH_PASID: u32 = 1 << 0;

/// Argument of [`DEVICE_DETACH_IOMMUFD_PT`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DeviceDetachIommufdPt {
    /// In: bytes the caller provides, this struct included; out: bytes needed.
    pub argsz: u32,
    /// [`DEVICE_DETACH_PASID`] or 0.
    pub flags: u32,
    /// The PASID, with [`DEVICE_DETACH_PASID`].
    pub pasid: u32,
}

const _: () = assert!(size_of::<DeviceDetachIommufdPt>() == 12);

/// Device ioctl that detaches from its table, with [`DeviceDetachIommufdPt`].
pub const DEVICE_DETACH_IOMMUFD_PT: u32 = io(20);

/// Write 1 byte.
pub const DEVICE_IOEVENTFD_8: u32 = 1 << 0;

/// Write 2 bytes.
pub const DEVICE_IOEVENTFD_16: u32 = 1 << 1;

/// Write 4 bytes.
pub const DEVICE_IOEVENTFD_32: u32 = 1 << 2;

/// Write 8 bytes.
pub const DEVICE_IOEVENTFD_64: u32 = 1 << 3;

/// The bits that give the width.
pub const DEVICE_IOEVENTFD_SIZE_MASK: u32 = 0xf;

/// Argument of [`DEVICE_IOEVENTFD`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DeviceIoeventfd {
    /// In: bytes the caller provides, this struct included; out: bytes needed.
    pub argsz: u32,
    /// One of `DEVICE_IOEVENTFD_*`.
    pub flags: u32,
    /// Where on the device descriptor to write, in bytes.
    pub offset: u64,
    /// What to write.
    pub data: u64,
    /// The eventfd, -1 to remove.
    pub fd: i32,
    /// Must be 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<DeviceIoeventfd>() == 32);

/// Device ioctl that writes a register whenever an eventfd fires, with [`DeviceIoeventfd`].
pub const DEVICE_IOEVENTFD: u32 = io(16);

/// Only ask whether the other type bit is served.
pub const GFX_PLANE_TYPE_PROBE: u32 = 1 << 0;

/// The plane as a dma-buf.
pub const GFX_PLANE_TYPE_DMABUF: u32 = 1 << 1;

/// The plane as a region.
pub const GFX_PLANE_TYPE_REGION: u32 = 1 << 2;

/// Argument of [`DEVICE_QUERY_GFX_PLANE`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DeviceGfxPlaneInfo {
    /// In: bytes the caller provides, this struct included; out: bytes needed.
    pub argsz: u32,
    /// `GFX_PLANE_TYPE_*` bits.
    pub flags: u32,
    /// DRM type of the plane asked about.
    pub drm_plane_type: u32,
    /// Out: DRM format.
    pub drm_format: u32,
    /// Out: DRM format modifier.
    pub drm_format_mod: u64,
    /// Out: pixels.
    pub width: u32,
    /// Out: pixels.
    pub height: u32,
    /// Out: bytes of a line.
    pub stride: u32,
    /// Out: bytes, whole pages.
    pub size: u32,
    /// Out: column of the cursor plane.
    pub x_pos: u32,
    /// Out: row of the cursor plane.
    pub y_pos: u32,
    /// Out: column of the hot spot, `u32::MAX` without.
    pub x_hot: u32,
    /// Out: row of the hot spot, `u32::MAX` without.
    pub y_hot: u32,
    /// Out: union of `region_index` and `dmabuf_id`, by the type asked for.
    #[doc(alias = "region_index")]
    #[doc(alias = "dmabuf_id")]
    pub plane: u32,
    /// Must be 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<DeviceGfxPlaneInfo>() == 64);

/// Device ioctl that describes a display plane, with [`DeviceGfxPlaneInfo`].
pub const DEVICE_QUERY_GFX_PLANE: u32 = io(14);

/// Device ioctl that opens the dma-buf whose ID, a `u32`, the argument points to.
pub const DEVICE_GET_GFX_DMABUF: u32 = io(15);
