//! `linux/vfio.h`.
