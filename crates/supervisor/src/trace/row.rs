//! What a table says of an ioctl.

use super::layout::{Field, Names};

/// One ioctl in a table.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) request: u32,
    pub(super) name: &'static str,
    pub(super) shape: Shape,
}

/// What the third argument of an ioctl is.
#[derive(Debug)]
pub(super) enum Shape {
    /// Not used.
    Nothing,
    /// A number with names.
    Choice(Names),
    /// The address of an `int` that holds a descriptor.
    Fd,
    /// The address of a string.
    Text,
    /// The address of a struct that starts with its size.
    Struct(&'static [Field], Tail),
}

/// The variable part of an ioctl's argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// Nothing follows.
    None,
    /// IOMMU_IOAS_ALLOW_IOVAS: ranges read through a pointer.
    AllowIovas,
    /// IOMMU_IOAS_IOVA_RANGES: ranges written through a pointer.
    IovaRanges,
    /// IOMMU_HWPT_ALLOC: a struct read through a pointer, by data type.
    HwptData,
    /// IOMMU_GET_HW_INFO: a struct written through a pointer, by data type.
    HwInfo,
    /// Capabilities of VFIO_IOMMU_GET_INFO.
    IommuCapabilities,
    /// Capabilities of VFIO_DEVICE_GET_INFO.
    DeviceCapabilities,
    /// Capabilities of VFIO_DEVICE_GET_REGION_INFO.
    RegionCapabilities,
    /// VFIO_IOMMU_UNMAP_DMA with GET_DIRTY_BITMAP.
    UnmapBitmap,
    /// VFIO_IOMMU_DIRTY_PAGES with GET_BITMAP.
    DirtyBitmap,
    /// VFIO_DEVICE_SET_IRQS: eventfds or booleans.
    IrqData,
    /// VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: the devices reset together.
    Dependents,
    /// VFIO_DEVICE_PCI_HOT_RESET: the groups that are owned.
    GroupFds,
    /// VFIO_DEVICE_FEATURE: operation, feature and its struct.
    Feature,
    /// VFIO_DEVICE_BIND_IOMMUFD: a UUID behind a pointer, with TOKEN.
    Token,
}
