//! `linux/iommufd.h`: `/dev/iommu` and its objects.
//!
//! Names are the C names without `iommu_`, `iommufd_`, `IOMMU_` or `IOMMUFD_`. Command numbers keep
//! their `CMD_`, so that [`CMD_IOAS_MAP`] (0x85) is not [`IOAS_MAP`] (the ioctl, 0x3b85). Two names
//! differ: a field called `type` in C is `type_`, and [`HwInfo::data_type`] is a union of two names
//! for one `u32` in C.
//!
//! In every struct `size` is what the caller was built with: shorter than this version's means the
//! missing fields are 0, longer must be 0 beyond. Addresses in fields are the client's.
//! [`struct@Option`] is not the prelude's.

mod fault;
mod hw_info;
mod hwpt;
mod ioas;
mod option;
pub mod test;
mod viommu;

// The header is one flat name space, and so is this module.
pub use fault::*;
pub use hw_info::*;
pub use hwpt::*;
pub use ioas::*;
pub use option::*;
pub use viommu::*;

/// Type of every IOMMUFD ioctl number, bits 15:8.
pub const TYPE: u32 = b';' as u32;

/// Lowest command number.
pub const CMD_BASE: u32 = 0x80;
/// Command number of [`DESTROY`].
pub const CMD_DESTROY: u32 = CMD_BASE;
/// Command number of [`IOAS_ALLOC`].
pub const CMD_IOAS_ALLOC: u32 = 0x81;
/// Command number of [`IOAS_ALLOW_IOVAS`].
pub const CMD_IOAS_ALLOW_IOVAS: u32 = 0x82;
/// Command number of [`IOAS_COPY`].
pub const CMD_IOAS_COPY: u32 = 0x83;
/// Command number of [`IOAS_IOVA_RANGES`].
pub const CMD_IOAS_IOVA_RANGES: u32 = 0x84;
/// Command number of [`IOAS_MAP`].
pub const CMD_IOAS_MAP: u32 = 0x85;
/// Command number of [`IOAS_UNMAP`].
pub const CMD_IOAS_UNMAP: u32 = 0x86;
/// Command number of [`OPTION`].
pub const CMD_OPTION: u32 = 0x87;
/// Command number of [`VFIO_IOAS`].
pub const CMD_VFIO_IOAS: u32 = 0x88;
/// Command number of [`HWPT_ALLOC`].
pub const CMD_HWPT_ALLOC: u32 = 0x89;
/// Command number of [`GET_HW_INFO`].
pub const CMD_GET_HW_INFO: u32 = 0x8a;
/// Command number of [`HWPT_SET_DIRTY_TRACKING`].
pub const CMD_HWPT_SET_DIRTY_TRACKING: u32 = 0x8b;
/// Command number of [`HWPT_GET_DIRTY_BITMAP`].
pub const CMD_HWPT_GET_DIRTY_BITMAP: u32 = 0x8c;
/// Command number of [`HWPT_INVALIDATE`].
pub const CMD_HWPT_INVALIDATE: u32 = 0x8d;
/// Command number of [`FAULT_QUEUE_ALLOC`].
pub const CMD_FAULT_QUEUE_ALLOC: u32 = 0x8e;
/// Command number of [`IOAS_MAP_FILE`].
pub const CMD_IOAS_MAP_FILE: u32 = 0x8f;
/// Command number of [`VIOMMU_ALLOC`].
pub const CMD_VIOMMU_ALLOC: u32 = 0x90;
/// Command number of [`VDEVICE_ALLOC`].
pub const CMD_VDEVICE_ALLOC: u32 = 0x91;
/// Command number of [`IOAS_CHANGE_PROCESS`].
pub const CMD_IOAS_CHANGE_PROCESS: u32 = 0x92;
/// Command number of [`VEVENTQ_ALLOC`].
pub const CMD_VEVENTQ_ALLOC: u32 = 0x93;
/// Command number of [`HW_QUEUE_ALLOC`].
pub const CMD_HW_QUEUE_ALLOC: u32 = 0x94;
/// Command number of [`IOAS_NOIOMMU_GET_PA`], from Linux 7.3 on.
pub const CMD_IOAS_NOIOMMU_GET_PA: u32 = 0x95;

/// `_IO(IOMMUFD_TYPE, command)`: an ioctl number without direction and size.
const fn io(command: u32) -> u32 {
    (TYPE << 8) | command
}
