//! Virtual IOMMUs, their devices, event queues and hardware queues.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{CMD_HW_QUEUE_ALLOC, CMD_VDEVICE_ALLOC, CMD_VEVENTQ_ALLOC, CMD_VIOMMU_ALLOC, io};

/// Reserved.
pub const VIOMMU_TYPE_DEFAULT: u32 = 0;

/// An SMMUv3.
pub const VIOMMU_TYPE_ARM_SMMUV3: u32 = 1;

/// An SMMUv3 with NVIDIA's command queue extension.
pub const VIOMMU_TYPE_TEGRA241_CMDQV: u32 = 2;

/// Data of a [`VIOMMU_TYPE_TEGRA241_CMDQV`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct ViommuTegra241Cmdqv {
    /// Out: offset to give mmap for the interface's page 0.
    pub out_vintf_mmap_offset: u64,
    /// Out: bytes to map.
    pub out_vintf_mmap_length: u64,
}

const _: () = assert!(size_of::<ViommuTegra241Cmdqv>() == 16);

/// Argument of [`VIOMMU_ALLOC`]: creates a virtual IOMMU.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct ViommuAlloc {
    /// Size of this struct in bytes.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// One of `VIOMMU_TYPE_*`.
    pub type_: u32,
    /// The device whose IOMMU backs it.
    pub dev_id: u32,
    /// The nesting parent.
    pub hwpt_id: u32,
    /// Out: ID of the vIOMMU.
    pub out_viommu_id: u32,
    /// Bytes at `data_uptr`.
    pub data_len: u32,
    /// Must be 0.
    pub __reserved: u32,
    /// Client address of the type's data.
    pub data_uptr: u64,
}

const _: () = assert!(size_of::<ViommuAlloc>() == 40);

/// Ioctl that creates a vIOMMU, with [`ViommuAlloc`].
pub const VIOMMU_ALLOC: u32 = io(CMD_VIOMMU_ALLOC);

/// Argument of [`VDEVICE_ALLOC`]: gives a device its identity on a vIOMMU.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct VdeviceAlloc {
    /// Size of this struct in bytes.
    pub size: u32,
    /// The vIOMMU.
    pub viommu_id: u32,
    /// The device.
    pub dev_id: u32,
    /// Out: ID of the vDevice.
    pub out_vdevice_id: u32,
    /// The device's number on the vIOMMU: stream ID, AMD device ID or requester ID.
    pub virt_id: u64,
}

const _: () = assert!(size_of::<VdeviceAlloc>() == 24);

/// Ioctl that creates a vDevice, with [`VdeviceAlloc`].
pub const VDEVICE_ALLOC: u32 = io(CMD_VDEVICE_ALLOC);

/// Events were lost.
pub const VEVENTQ_FLAG_LOST_EVENTS: u32 = 1 << 0;

/// Precedes every event read from a vEVENTQ.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct VeventHeader {
    /// [`VEVENTQ_FLAG_LOST_EVENTS`] or 0.
    pub flags: u32,
    /// Index of the event, 0 to `i32::MAX`, then 0 again; a gap counts lost events.
    pub sequence: u32,
}

const _: () = assert!(size_of::<VeventHeader>() == 8);

/// Reserved.
pub const VEVENTQ_TYPE_DEFAULT: u32 = 0;

/// Events are [`VeventArmSmmuv3`].
pub const VEVENTQ_TYPE_ARM_SMMUV3: u32 = 1;

/// Events are [`VeventTegra241Cmdqv`].
pub const VEVENTQ_TYPE_TEGRA241_CMDQV: u32 = 2;

/// An SMMUv3 event.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct VeventArmSmmuv3 {
    /// The event record, little-endian, with the virtual stream ID.
    pub evt: [u64; 4],
}

const _: () = assert!(size_of::<VeventArmSmmuv3>() == 32);

/// A Tegra241 CMDQV interrupt.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct VeventTegra241Cmdqv {
    /// A bit for every logical queue in error, little-endian.
    pub lvcmdq_err_map: [u64; 2],
}

const _: () = assert!(size_of::<VeventTegra241Cmdqv>() == 16);

/// Argument of [`VEVENTQ_ALLOC`]: creates an event queue.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct VeventqAlloc {
    /// Size of this struct in bytes.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// The vIOMMU.
    pub viommu_id: u32,
    /// One of `VEVENTQ_TYPE_*`; a vIOMMU has one queue of a type.
    pub type_: u32,
    /// Events the queue holds.
    pub veventq_depth: u32,
    /// Out: ID of the queue.
    pub out_veventq_id: u32,
    /// Out: descriptor events are read from.
    pub out_veventq_fd: u32,
    /// Must be 0.
    pub __reserved: u32,
}

const _: () = assert!(size_of::<VeventqAlloc>() == 32);

/// Ioctl that creates an event queue, with [`VeventqAlloc`].
pub const VEVENTQ_ALLOC: u32 = io(CMD_VEVENTQ_ALLOC);

/// Reserved.
pub const HW_QUEUE_TYPE_DEFAULT: u32 = 0;

/// A virtual command queue of a Tegra241.
pub const HW_QUEUE_TYPE_TEGRA241_CMDQV: u32 = 1;

/// Argument of [`HW_QUEUE_ALLOC`]: hands a guest's queue to hardware.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct HwQueueAlloc {
    /// Size of this struct in bytes.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// The vIOMMU.
    pub viommu_id: u32,
    /// One of `HW_QUEUE_TYPE_*`.
    pub type_: u32,
    /// Number of the queue within its type.
    pub index: u32,
    /// Out: ID of the queue.
    pub out_hw_queue_id: u32,
    /// Guest physical address of the queue.
    pub nesting_parent_iova: u64,
    /// Bytes of the queue.
    pub length: u64,
}

const _: () = assert!(size_of::<HwQueueAlloc>() == 40);

/// Ioctl that creates a hardware queue, with [`HwQueueAlloc`].
pub const HW_QUEUE_ALLOC: u32 = io(CMD_HW_QUEUE_ALLOC);
