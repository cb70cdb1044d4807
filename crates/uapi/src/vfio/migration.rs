//! Migration: device states, the data stream, and the deprecated first interface.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::io;

/// Data of [`DEVICE_FEATURE_MIGRATION`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DeviceFeatureMigration {
    /// `MIGRATION_*` bits.
    pub flags: u64,
}

const _: () = assert!(size_of::<DeviceFeatureMigration>() == 8);

/// States STOP, STOP_COPY and RESUMING are served.
pub const MIGRATION_STOP_COPY: u64 = 1 << 0;

/// State RUNNING_P2P is served too.
pub const MIGRATION_P2P: u64 = 1 << 1;

/// State PRE_COPY is served too.
pub const MIGRATION_PRE_COPY: u64 = 1 << 2;

/// Feature: which migration states there are, with [`DeviceFeatureMigration`].
pub const DEVICE_FEATURE_MIGRATION: u32 = 1;

/// Data of [`DEVICE_FEATURE_MIG_DEVICE_STATE`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DeviceFeatureMigState {
    /// One of `DEVICE_STATE_*`.
    pub device_state: u32,
    /// Out: descriptor of the data stream a transition opened, otherwise -1.
    pub data_fd: i32,
}

const _: () = assert!(size_of::<DeviceFeatureMigState>() == 8);

/// Feature: get or change the state, with [`DeviceFeatureMigState`].
pub const DEVICE_FEATURE_MIG_DEVICE_STATE: u32 = 2;

/// Failed; only a reset leaves it.
pub const DEVICE_STATE_ERROR: u32 = 0;

/// Neither state nor memory changes.
pub const DEVICE_STATE_STOP: u32 = 1;

/// Runs.
pub const DEVICE_STATE_RUNNING: u32 = 2;

/// Stopped, its state can be read.
pub const DEVICE_STATE_STOP_COPY: u32 = 3;

/// Stopped, its state can be written.
pub const DEVICE_STATE_RESUMING: u32 = 4;

/// Runs, but starts no DMA to other devices.
pub const DEVICE_STATE_RUNNING_P2P: u32 = 5;

/// Runs while its state can be read.
pub const DEVICE_STATE_PRE_COPY: u32 = 6;

/// As PRE_COPY, but starts no DMA to other devices.
pub const DEVICE_STATE_PRE_COPY_P2P: u32 = 7;

/// Number of states.
pub const DEVICE_STATE_NR: u32 = 8;

/// Argument of [`MIG_GET_PRECOPY_INFO`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct PrecopyInfo {
    /// In: bytes the caller provides, this struct included; out: bytes needed.
    pub argsz: u32,
    /// Out: [`PRECOPY_INFO_REINIT`] or 0, once the client opted in.
    pub flags: u32,
    /// Out: bytes of first data left.
    pub initial_bytes: u64,
    /// Out: bytes changed since they were read.
    pub dirty_bytes: u64,
}

const _: () = assert!(size_of::<PrecopyInfo>() == 24);

/// There is first data again.
pub const PRECOPY_INFO_REINIT: u32 = 1 << 0;

/// Ioctl on the data stream that estimates what is left, with [`PrecopyInfo`].
pub const MIG_GET_PRECOPY_INFO: u32 = io(21);

/// Data of [`DEVICE_FEATURE_MIG_DATA_SIZE`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DeviceFeatureMigDataSize {
    /// Out: bytes STOP_COPY is estimated to stream.
    pub stop_copy_length: u64,
}

const _: () = assert!(size_of::<DeviceFeatureMigDataSize>() == 8);

/// Feature: estimate of the stream, with [`DeviceFeatureMigDataSize`].
pub const DEVICE_FEATURE_MIG_DATA_SIZE: u32 = 9;

#[expect(non_upper_case_globals, reason = "the C name")]
/// Feature: opt in to [`PrecopyInfo::flags`]; no data.
pub const DEVICE_FEATURE_MIG_PRECOPY_INFOv2: u32 = 12;

/// Front of the region of the deprecated first interface.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DeviceMigrationInfo {
    /// `DEVICE_STATE_V1_*` bits.
    pub device_state: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Bytes left to save.
    pub pending_bytes: u64,
    /// Where in the region the data lies, in bytes.
    pub data_offset: u64,
    /// Bytes of data there.
    pub data_size: u64,
}

const _: () = assert!(size_of::<DeviceMigrationInfo>() == 32);

/// First interface: stopped.
pub const DEVICE_STATE_V1_STOP: u32 = 0;

/// First interface: running.
pub const DEVICE_STATE_V1_RUNNING: u32 = 1 << 0;

/// First interface: saving.
pub const DEVICE_STATE_V1_SAVING: u32 = 1 << 1;

/// First interface: resuming.
pub const DEVICE_STATE_V1_RESUMING: u32 = 1 << 2;

/// The `DEVICE_STATE_V1_*` bits.
pub const DEVICE_STATE_MASK: u32 =
    DEVICE_STATE_V1_RUNNING | DEVICE_STATE_V1_SAVING | DEVICE_STATE_V1_RESUMING;
