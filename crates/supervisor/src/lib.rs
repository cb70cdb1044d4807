//! Runs a program whose IOMMUFD and VFIO calls are answered here.

pub mod view;
