//! Destruction of objects, options, and the IOAS behind VFIO compatibility.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{CMD_DESTROY, CMD_OPTION, CMD_VFIO_IOAS, io};

/// Argument of [`DESTROY`]: destroys an object.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Destroy {
    /// Size of this struct in bytes.
    pub size: u32,
    /// ID of the object.
    pub id: u32,
}

const _: () = assert!(size_of::<Destroy>() == 8);

/// Ioctl that destroys any destroyable object, with [`Destroy`].
pub const DESTROY: u32 = io(CMD_DESTROY);

/// Option: whom pinned memory is charged to, 0 the user, 1 the process; object ID 0.
pub const OPTION_RLIMIT_MODE: u32 = 0;

/// Option of one IOAS: 1 allows leaves larger than a page, 0 forbids them.
pub const OPTION_HUGE_PAGES: u32 = 1;

/// Operation: set the option.
pub const OPTION_OP_SET: u16 = 0;

/// Operation: get the option.
pub const OPTION_OP_GET: u16 = 1;

/// Argument of [`OPTION`]: sets or gets one option.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Option {
    /// Size of this struct in bytes.
    pub size: u32,
    /// [`OPTION_RLIMIT_MODE`] or [`OPTION_HUGE_PAGES`].
    pub option_id: u32,
    /// [`OPTION_OP_SET`] or [`OPTION_OP_GET`].
    pub op: u16,
    /// Must be 0.
    pub __reserved: u16,
    /// ID of the object the option belongs to, 0 for a global option.
    pub object_id: u32,
    /// In for set, out for get: the value.
    pub val64: u64,
}

const _: () = assert!(size_of::<Option>() == 24);

/// Ioctl that sets or gets an option, with [`Option`](struct@Option).
pub const OPTION: u32 = io(CMD_OPTION);

/// Operation: get the compatibility IOAS.
pub const VFIO_IOAS_GET: u16 = 0;

/// Operation: make an IOAS the compatibility IOAS.
pub const VFIO_IOAS_SET: u16 = 1;

/// Operation: have no compatibility IOAS.
pub const VFIO_IOAS_CLEAR: u16 = 2;

/// Argument of [`VFIO_IOAS`]: which IOAS the VFIO container ioctls act on.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct VfioIoas {
    /// Size of this struct in bytes.
    pub size: u32,
    /// In for set, out for get: the IOAS.
    pub ioas_id: u32,
    /// One of [`VFIO_IOAS_GET`], [`VFIO_IOAS_SET`], [`VFIO_IOAS_CLEAR`].
    pub op: u16,
    /// Must be 0.
    pub __reserved: u16,
}

const _: () = assert!(size_of::<VfioIoas>() == 12);

/// Ioctl that gets, sets or clears the compatibility IOAS, with [`VfioIoas`].
pub const VFIO_IOAS: u32 = io(CMD_VFIO_IOAS);
