//! IOMMUFD in user space: address spaces, page tables, accounting, the VFIO container.

mod client;

pub use client::{Account, AddressSpace, Backing, Client, Extent, Piece};
