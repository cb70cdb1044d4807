//! I/O page faults: the queue, what is read from it and what is written back.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{CMD_FAULT_QUEUE_ALLOC, io};

/// `pasid` is meaningful.
pub const PGFAULT_FLAGS_PASID_VALID: u32 = 1 << 0;

/// Last fault of its group.
pub const PGFAULT_FLAGS_LAST_PAGE: u32 = 1 << 1;

/// The device wants to read.
pub const PGFAULT_PERM_READ: u32 = 1 << 0;

/// The device wants to write.
pub const PGFAULT_PERM_WRITE: u32 = 1 << 1;

/// The device wants to execute, PCIe 10.4.1.
pub const PGFAULT_PERM_EXEC: u32 = 1 << 2;

/// The device asks in privileged mode, PCIe 10.4.1.
pub const PGFAULT_PERM_PRIV: u32 = 1 << 3;

/// One page request, read from a fault queue.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct HwptPgfault {
    /// `PGFAULT_FLAGS_*` bits.
    pub flags: u32,
    /// The faulting device.
    pub dev_id: u32,
    /// The process address space.
    pub pasid: u32,
    /// Page request group index.
    pub grpid: u32,
    /// `PGFAULT_PERM_*` bits.
    pub perm: u32,
    /// Must be 0.
    pub __reserved: u32,
    /// The faulting address.
    pub addr: u64,
    /// Bytes the device hints it will use, 0 without a hint.
    pub length: u32,
    /// Names the group; the response repeats that of the group's last fault.
    pub cookie: u32,
}

const _: () = assert!(size_of::<HwptPgfault>() == 40);

/// Handled, retry: success of PCIe 10.4.2.1.
pub const PAGE_RESP_SUCCESS: u32 = 0;

/// Not handled, do not retry: invalid request of PCIe 10.4.2.1.
pub const PAGE_RESP_INVALID: u32 = 1;

/// One page response, written to a fault queue.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct HwptPageResponse {
    /// The group answered.
    pub cookie: u32,
    /// [`PAGE_RESP_SUCCESS`] or [`PAGE_RESP_INVALID`].
    pub code: u32,
}

const _: () = assert!(size_of::<HwptPageResponse>() == 8);

/// Argument of [`FAULT_QUEUE_ALLOC`]: creates a fault queue.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct FaultAlloc {
    /// Size of this struct in bytes.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// Out: ID of the queue.
    pub out_fault_id: u32,
    /// Out: descriptor faults are read from and responses written to.
    pub out_fault_fd: u32,
}

const _: () = assert!(size_of::<FaultAlloc>() == 16);

/// Ioctl that creates a fault queue, with [`FaultAlloc`].
pub const FAULT_QUEUE_ALLOC: u32 = io(CMD_FAULT_QUEUE_ALLOC);
