//! Linux's IOMMUFD and VFIO interface, byte for byte.
//!
//! Layouts, ioctl numbers, flags and errnos of `linux/iommufd.h` and `linux/vfio.h`, nothing else:
//! no logic, no I/O. Names are the C names without their prefix: `struct iommu_ioas_map` is
//! [`iommufd::IoasMap`], `struct vfio_iommu_type1_dma_map` is [`vfio::IommuType1DmaMap`],
//! `VFIO_DMA_MAP_FLAG_READ` is [`vfio::DMA_MAP_FLAG_READ`].
#![no_std]

mod error;
pub mod iommufd;
pub mod vfio;

pub use error::{Errno, Error, Result};
