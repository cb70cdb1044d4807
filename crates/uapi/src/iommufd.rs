//! `linux/iommufd.h`.
