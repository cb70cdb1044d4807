//! The group (`/dev/vfio/N`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::io;

/// Every device of the group is free to be used.
pub const GROUP_FLAGS_VIABLE: u32 = 1 << 0;

/// The group has a container.
pub const GROUP_FLAGS_CONTAINER_SET: u32 = 1 << 1;

/// Argument of [`GROUP_GET_STATUS`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct GroupStatus {
    /// In: bytes the caller provides, this struct included; out: bytes needed.
    pub argsz: u32,
    /// `GROUP_FLAGS_*` bits.
    pub flags: u32,
}

const _: () = assert!(size_of::<GroupStatus>() == 8);

/// Group ioctl that reports its state, with [`GroupStatus`].
pub const GROUP_GET_STATUS: u32 = io(3);

/// Group ioctl that joins a container; the argument points to its descriptor, an `i32`.
pub const GROUP_SET_CONTAINER: u32 = io(4);

/// Group ioctl that leaves the container; no argument.
pub const GROUP_UNSET_CONTAINER: u32 = io(5);

/// Group ioctl that opens a device; the argument points to its name, a C string.
pub const GROUP_GET_DEVICE_FD: u32 = io(6);
