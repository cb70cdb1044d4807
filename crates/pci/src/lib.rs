//! PCI functions and device models.
//!
//! A [`Function`] is what a program sees of a device: configuration space, BARs, interrupts, reset. Behind it stands
//! a [`Model`], which knows its registers and its protocol only. A function knows no VFIO and no program: it is given
//! a way to memory ([`Dma`]), a way to interrupt ([`Irq`]) and the memory of its mappable BAR pages for the time of
//! a [`Session`], and while there is none it does nothing.

mod address;
mod alarm;
mod bridge;
mod bus;
mod capability;
mod config;
mod description;
pub mod fake;
mod function;
mod gate;
pub mod migration;
mod model;
mod msix;
mod refusal;
mod sriov;
mod windows;
mod worker;

pub use address::{Bdf, NotAnAddress};
pub use alarm::Alarm;
pub use bridge::{Bridge, Opening};
pub use bus::{Bus, Dma, DmaFault, Doorbells, Heard, Irq, Line, Segment, Session};
pub use config::{CONFIG_SIZE, IrqMode};
pub use description::{
    BARS, Bar, BarKind, Description, ExtendedCapability, Ids, MsixTable, OwnCapability, PAGE_SIZE,
    PageKind, Pages, Vectors, VendorCapability, VendorKind,
};
pub use function::Function;
pub use ioasis_sys::mapping::Mapping;
pub use ioasis_uapi::{Errno, Error, Result};
pub use model::options::{ModelError, OptionInfo, Options, bytes};
pub use model::{After, Model, ModelInfo, Models, Progress, VirtualFunctions, create, models};
pub use msix::Handler;
pub use refusal::{Closed, ImageAccess, Refusal, Way, Witness};
pub use sriov::Sriov;
pub use windows::Windows;
