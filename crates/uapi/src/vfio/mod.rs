//! `linux/vfio.h`: containers, groups, devices.
//!
//! Names are the C names without `vfio_` or `VFIO_`. These differ: a field called `type` in C is
//! `type_`; a union of names for one `u32` has one name here, [`PciDependentDevice::id`] and
//! [`DeviceGfxPlaneInfo::plane`]; padding that C leaves unnamed is a field `__padding`, to be
//! written as 0. The function-like macros `VFIO_DEVICE_STATE_VALID`, `_IS_ERROR` and `_SET_ERROR`
//! of the deprecated first migration interface are left out.
//!
//! In every struct `argsz` is the size the caller provides; what follows a struct, if anything, its
//! first line says. Addresses in fields are the client's; C pointers are `u64`, as on every 64-bit
//! machine.

mod container;
mod device;
mod feature;
mod group;
mod irq;
mod migration;
mod pci;
mod region;
mod spapr;

// The header is one flat name space, and so is this module.
pub use container::*;
pub use device::*;
pub use feature::*;
pub use group::*;
pub use irq::*;
pub use migration::*;
pub use pci::*;
pub use region::*;
pub use spapr::*;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What [`GET_API_VERSION`] returns.
pub const API_VERSION: u32 = 0;
/// Extension: the type 1 IOMMU.
pub const TYPE1_IOMMU: u32 = 1;
/// Extension: the SPAPR TCE IOMMU.
pub const SPAPR_TCE_IOMMU: u32 = 2;
/// Extension: the type 1 IOMMU without unmapping parts of a mapping.
#[expect(non_upper_case_globals, reason = "the C name")]
pub const TYPE1v2_IOMMU: u32 = 3;
/// Extension: DMA is coherent with caches whatever the device asks for.
pub const DMA_CC_IOMMU: u32 = 4;
/// Extension: error handling of SPAPR.
pub const EEH: u32 = 5;
/// Extension that was two-stage translation; never served.
pub const __RESERVED_TYPE1_NESTING_IOMMU: u32 = 6;
/// Extension: the SPAPR TCE IOMMU with preregistered memory.
#[expect(non_upper_case_globals, reason = "the C name")]
pub const SPAPR_TCE_v2_IOMMU: u32 = 7;
/// Extension: no IOMMU, no isolation.
pub const NOIOMMU_IOMMU: u32 = 8;
/// Extension: [`DMA_UNMAP_FLAG_ALL`].
pub const UNMAP_ALL: u32 = 9;
/// Extension: [`DMA_MAP_FLAG_VADDR`] and [`DMA_UNMAP_FLAG_VADDR`].
pub const UPDATE_VADDR: u32 = 10;

/// Type of every VFIO ioctl number, bits 15:8.
pub const TYPE: u32 = b';' as u32;
/// Lowest command number.
pub const BASE: u32 = 100;

/// Starts every entry of a capability chain; the capability's own data follows.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct InfoCapHeader {
    /// Which capability; numbers belong to the ioctl.
    pub id: u16,
    /// Version of the capability.
    pub version: u16,
    /// Offset of the next capability in bytes from the start of the ioctl's argument, 0 at the end.
    pub next: u32,
}

const _: () = assert!(size_of::<InfoCapHeader>() == 8);

/// `_IO(VFIO_TYPE, VFIO_BASE + command)`: an ioctl number without direction and size.
const fn io(command: u32) -> u32 {
    (TYPE << 8) | (BASE + command)
}
