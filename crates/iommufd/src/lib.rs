//! IOMMUFD in user space: address spaces, page tables, accounting, the VFIO container.
//!
//! A [`Machine`] is what all opens share: one simulated physical space, one ledger. A [`Context`]
//! is one open of `/dev/iommu`, a [`Container`](container::Container) one of `/dev/vfio/vfio`.
//! Devices are [`Endpoint`]s behind an [`Iommu`]; what they do with addresses is [`Endpoint::read`]
//! and [`Endpoint::write`]. Calls come as bytes through `ioctl` or typed through the methods
//! beneath.
//!
//! The crate knows no PCI device and no file descriptor: a VMM gives it memory of its own
//! ([`Memory`], or whatever is an [`AddressSpace`]), a supervisor that of other processes
//! ([`Client`]).
//!
//! # In a VMM
//!
//! ```
//! use std::sync::Arc;
//! use ioasis_iommufd::{
//!     Account, Context, Dirty, Endpoint, EndpointConfig, Group, HwptFlags, Iommu, IommuKind, Iova, IovaRange,
//!     Machine, MapRequest, Memory, Place, Prot, Segment,
//! };
//!
//! // A machine with an AMD-Vi of 32 bits and one device behind it.
//! let machine = Machine::new();
//! let aperture = IovaRange::closed(Iova(0), Iova(0xffff_ffff))?;
//! let iommu = Arc::new(Iommu { aperture, ..Iommu::new(IommuKind::Amd) });
//! let device = Endpoint::new(&Group::new(&machine, &iommu, 0), EndpointConfig {
//!     name: "0000:00:03.0".into(), requester_id: 0x18, reserved: iommu.reserved(),
//!     ..EndpointConfig::default()
//! });
//!
//! // An address space maps the page at 0x3000 of the guest's memory at 0x1_0000.
//! let memory = Arc::new(Memory::new(0, 1 << 20)?);
//! let context = Context::new(&machine);
//! let ioas = context.alloc_ioas()?;
//! context.map(ioas, MapRequest {
//!     space: Arc::clone(&memory) as _, address: 0x3000, length: 0x1000,
//!     place: Place::Fixed(Iova(0x1_0000)), prot: Prot::READ | Prot::WRITE,
//!     account: Account {
//!         pid: 1, uid: 0, memlock_pages: None, ipc_lock: false, sys_resource: false, sys_rawio: false,
//!     },
//! })?;
//!
//! // The device translates through a page table of AMD's that keeps dirty bits.
//! let bound = context.bind(&device)?;
//! let table = context.alloc_hwpt(ioas, &bound, HwptFlags::DIRTY_TRACKING)?;
//! bound.attach(table)?;
//! device.write([Segment { iova: Iova(0x1_0010), length: 5 }], b"hello").expect("it is mapped");
//! let mut seen = [0; 5];
//! memory.read(0x3010, &mut seen)?;
//! assert_eq!(&seen, b"hello");
//!
//! // What it wrote, and nothing else, is dirty; what is not mapped is refused and remembered.
//! let mut dirty = Vec::new();
//! context.read_dirty(table, aperture, Dirty::Clear, &mut |range| dirty.push(range))?;
//! assert_eq!(dirty, [IovaRange::new(Iova(0x1_0000), 0x1000)?]);
//! assert!(device.read([Segment { iova: Iova(0x3000), length: 1 }], &mut [0]).is_err());
//! assert_eq!(machine.faults.take()[0].iova, Iova(0x3000));
//! # Ok::<(), ioasis_uapi::Error>(())
//! ```
//!
//! The example `vmm` migrates a guest whose device goes on writing. Device code that copies by
//! itself borrows translations ([`Endpoint::section`]); the crate `ioasis-vm-memory` does that for
//! code written for vm-memory.
//!
//! A guest's own IOMMU driver is served by the calls a kernel would get: [`Context::ioctl`] takes
//! the bytes of HWPT_ALLOC with a guest's tables, of HWPT_INVALIDATE with the guest's commands, of
//! a fault queue.

/// An error with the errno's C name: `refuse!(EINVAL, "why")` or `refuse!(EINVAL, "why", value)`.
macro_rules! refuse {
    ($errno:ident, $why:expr) => {
        Err(ioasis_uapi::Error::new(ioasis_uapi::Errno::$errno, $why))
    };
    ($errno:ident, $why:expr, $at:expr) => {
        Err(ioasis_uapi::Error::at(ioasis_uapi::Errno::$errno, $why, $at))
    };
}

pub mod account;
mod client;
mod cmd;
pub mod container;
mod device;
mod hw;
mod hwpt;
pub mod inject;
mod ioas;
mod memory;
#[cfg(feature = "mock")]
mod mock;
mod object;
mod open;
mod pages;
mod params;
#[cfg(test)]
mod tests;

pub use client::{
    Account, AddressSpace, Backing, Client, ClientFile, Destination, Extent, Extents, FileAccess,
    Importer, Kind, MappableMemory, OnExec, PAGE_SIZE, Piece, QueueFile, QueueWatcher, Source,
};
pub use container as type1;
pub use device::PageAsk;
pub use device::access::{AccessKind, AccessUser};
pub use hw::dma::{DmaFault, DmaSection, PasidDma, Reached, Segment, Unreached};
pub use hw::endpoint::{Endpoint, Silence};
pub use hw::faultlog;
pub use hw::group::Group;
pub use hw::iommu::{EndpointConfig, Iommu, Kind as IommuKind, ReservedKind, ReservedRegion};
pub use hw::kinds::cmdqv::Cmdqv;
pub use hw::look::{NestedLook, TranslationLook};
pub use hw::machine::Machine;
pub use hw::ops as driver;
pub use hw::pe::{Frozen, PeDevices};
pub use hw::phys::{Phys, Window};
pub use hw::tce::Spapr;
pub use ioas::dirty::Bitmap;
pub use ioas::{AreaLook, MapRequest, Place, ReservedLook, SpaceLook, Unmapped};
pub use ioasis_iommupt::{Dirty, Entry, Field, FieldKind, Iova, IovaRange, Pa, Prot, Run, Step};
pub use memory::Memory;
pub use open::{
    AccessHandle, Bound, Context, CopyRequest, HwptFlags, HwptLook, ObjectKind, ObjectLook,
    QueueLook,
};
pub use params::{Linux, Param, Params};
