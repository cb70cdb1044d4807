//! IOMMUFD in user space: address spaces, page tables, accounting, the VFIO container.
//!
//! A [`Machine`] is what all opens share: one simulated physical space, one ledger. A [`Context`] is one open of `/dev/iommu`,
//! a [`Container`](type1::Container) one of `/dev/vfio/vfio`. Devices are [`Endpoint`]s behind an [`Iommu`]; what they do with addresses is
//! [`Endpoint::read`] and [`Endpoint::write`]. Calls come as bytes through `ioctl` or typed through the methods beneath.
//!
//! The crate knows no PCI device and no file descriptor: a VMM gives it memory of its own ([`Memory`]), a supervisor
//! that of other processes ([`Client`]).

/// An error with the errno's C name: `refuse!(EINVAL, "why")` or `refuse!(EINVAL, "why", value)`.
macro_rules! refuse {
    ($errno:ident, $why:expr) => {
        Err(ioasis_uapi::Error::new(ioasis_uapi::Errno::$errno, $why))
    };
    ($errno:ident, $why:expr, $at:expr) => {
        Err(ioasis_uapi::Error::at(ioasis_uapi::Errno::$errno, $why, $at))
    };
}

mod access;
pub mod account;
mod client;
mod cmd;
#[cfg(test)]
mod concurrent;
mod context;
mod device;
mod dirty;
mod dma;
mod domain;
pub mod driver;
mod event;
mod fault;
pub mod faultlog;
mod file;
mod format;
mod hardware;
mod hwpt;
pub mod inject;
mod ioas;
mod iommu;
mod library;
mod machine;
mod memory;
#[cfg(feature = "mock")]
mod mock;
mod nested;
mod object;
mod pages;
mod params;
mod phys;
mod sections;
#[cfg(test)]
mod sequences;
#[cfg(test)]
mod testing;
pub mod type1;
mod viommu;
#[cfg(test)]
mod world;

pub use access::{AccessHandle, AccessKind, AccessUser};
pub use client::{
    Account, AddressSpace, Backing, Client, ClientFile, Extent, Extents, Importer, Kind,
    MappableMemory, OnExec, Piece, QueueFile, QueueWatcher,
};
pub use context::{Context, CopyRequest, MapRequest};
pub use device::{Bound, PageAsk};
pub use dma::{DmaFault, DmaSection, PasidDma, Reached, Segment, Unreached};
pub use ioas::{Place, Unmapped};
pub use ioasis_iommupt::{Dirty, Iova, IovaRange, Pa, Prot, Run};
pub use iommu::{
    Endpoint, EndpointConfig, Group, Iommu, Kind as IommuKind, ReservedKind, ReservedRegion,
    Silence,
};
pub use library::HwptFlags;
pub use machine::Machine;
pub use memory::Memory;
pub use pages::PAGE_SIZE;
pub use params::{Param, Params};
pub use phys::{Phys, Window};
