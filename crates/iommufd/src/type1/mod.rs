//! The VFIO container ioctls, on an IOAS.
//!
//! Which file was opened decides the rules, not the code: on `/dev/iommu` they are those of Linux's compatibility layer
//! (`compat`), on `/dev/vfio/vfio` those of the type1 driver ([`Container`]). One IOAS does the work under both.

mod argument;
pub(crate) mod compat;
mod container;
mod exact;
mod log;
mod pins;
#[cfg(test)]
mod sequences;
mod vaddr;

pub use container::{Container, GroupKind, Member};
