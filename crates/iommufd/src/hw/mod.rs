//! The simulated hardware: what a machine has before anybody opens a file.
//!
//! It knows no object of a client's and no ioctl.

pub(crate) mod attachment;
pub(crate) mod dma;
pub(crate) mod domain;
pub(crate) mod endpoint;
pub mod faultlog;
pub(crate) mod format;
pub(crate) mod group;
pub(crate) mod iommu;
pub(crate) mod kinds;
pub(crate) mod look;
pub(crate) mod machine;
pub(crate) mod nested;
pub mod ops;
pub(crate) mod page_request;
pub(crate) mod pe;
pub(crate) mod phys;
pub(crate) mod sections;
pub(crate) mod tce;
pub(crate) mod underway;
