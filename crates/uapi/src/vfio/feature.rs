//! Device features: VF token, low power, DMA logging, bus mastering, dma-buf export.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::io;

/// The bits of `flags` that name the feature.
pub const DEVICE_FEATURE_MASK: u32 = 0xffff;

/// Read the feature.
pub const DEVICE_FEATURE_GET: u32 = 1 << 16;

/// Write the feature.
pub const DEVICE_FEATURE_SET: u32 = 1 << 17;

/// Ask whether the feature is served.
pub const DEVICE_FEATURE_PROBE: u32 = 1 << 18;

/// Argument of [`DEVICE_FEATURE`]; the feature's data follows.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DeviceFeature {
    /// In: bytes the caller provides, this struct included; out: bytes needed.
    pub argsz: u32,
    /// A feature number and `DEVICE_FEATURE_*` bits.
    pub flags: u32,
}

const _: () = assert!(size_of::<DeviceFeature>() == 8);

/// Device ioctl that reads, writes or probes a feature, with [`DeviceFeature`].
pub const DEVICE_FEATURE: u32 = io(17);

/// Feature: the token shared with virtual functions, 16 bytes.
pub const DEVICE_FEATURE_PCI_VF_TOKEN: u32 = 0;

/// Feature: let the device sleep; no data.
pub const DEVICE_FEATURE_LOW_POWER_ENTRY: u32 = 3;

/// Data of [`DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DeviceLowPowerEntryWithWakeup {
    /// Signalled when the device wakes.
    pub wakeup_eventfd: i32,
    /// Must be 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<DeviceLowPowerEntryWithWakeup>() == 8);

/// Feature: let the device sleep and hear of its waking, with [`DeviceLowPowerEntryWithWakeup`].
pub const DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP: u32 = 4;

/// Feature: keep the device awake; no data.
pub const DEVICE_FEATURE_LOW_POWER_EXIT: u32 = 5;

/// Data of [`DEVICE_FEATURE_DMA_LOGGING_START`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DeviceFeatureDmaLoggingControl {
    /// In: bytes a bit should stand for; out: bytes the device chose.
    pub page_size: u64,
    /// Ranges at `ranges`.
    pub num_ranges: u32,
    /// Must be 0.
    pub __reserved: u32,
    /// Client address of an array of [`DeviceFeatureDmaLoggingRange`].
    pub ranges: u64,
}

const _: () = assert!(size_of::<DeviceFeatureDmaLoggingControl>() == 24);

/// A range whose writes are logged.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DeviceFeatureDmaLoggingRange {
    /// First IOVA.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
}

const _: () = assert!(size_of::<DeviceFeatureDmaLoggingRange>() == 16);

/// Feature: log the device's writes, with [`DeviceFeatureDmaLoggingControl`].
pub const DEVICE_FEATURE_DMA_LOGGING_START: u32 = 6;

/// Feature: stop logging; no data.
pub const DEVICE_FEATURE_DMA_LOGGING_STOP: u32 = 7;

/// Data of [`DEVICE_FEATURE_DMA_LOGGING_REPORT`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DeviceFeatureDmaLoggingReport {
    /// IOVA of bit 0.
    pub iova: u64,
    /// Bytes of IOVA the bitmap covers.
    pub length: u64,
    /// Bytes a bit stands for.
    pub page_size: u64,
    /// Client address of the bitmap, an array of `u64`; bits are only ever set.
    pub bitmap: u64,
}

const _: () = assert!(size_of::<DeviceFeatureDmaLoggingReport>() == 32);

/// Feature: read and clear the log, with [`DeviceFeatureDmaLoggingReport`].
pub const DEVICE_FEATURE_DMA_LOGGING_REPORT: u32 = 8;

/// Operation: the device may not start DMA.
pub const DEVICE_FEATURE_CLEAR_MASTER: u32 = 0;

/// Operation: the device may start DMA.
pub const DEVICE_FEATURE_SET_MASTER: u32 = 1;

/// Data of [`DEVICE_FEATURE_BUS_MASTER`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DeviceFeatureBusMaster {
    /// [`DEVICE_FEATURE_CLEAR_MASTER`] or [`DEVICE_FEATURE_SET_MASTER`].
    pub op: u32,
}

const _: () = assert!(size_of::<DeviceFeatureBusMaster>() == 4);

/// Feature: bus mastering where the device has no control of its own, with
/// [`DeviceFeatureBusMaster`].
pub const DEVICE_FEATURE_BUS_MASTER: u32 = 10;

/// Feature: export parts of a region as a dma-buf, with [`DeviceFeatureDmaBuf`].
pub const DEVICE_FEATURE_DMA_BUF: u32 = 11;

/// A part of a region.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct RegionDmaRange {
    /// Bytes from the start of the region.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

const _: () = assert!(size_of::<RegionDmaRange>() == 16);

/// Data of [`DEVICE_FEATURE_DMA_BUF`]; `nr_ranges` [`RegionDmaRange`] follow.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DeviceFeatureDmaBuf {
    /// The region.
    pub region_index: u32,
    /// Flags of open(2) for the descriptor.
    pub open_flags: u32,
    /// Must be 0.
    pub flags: u32,
    /// Ranges that follow.
    pub nr_ranges: u32,
}

const _: () = assert!(size_of::<DeviceFeatureDmaBuf>() == 16);

/// Data of [`DEVICE_FEATURE_ZPCI_ERROR`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct DeviceFeatureZpciErr {
    /// Client address of a buffer, as long as the zpci capability of DEVICE_GET_INFO says.
    pub data: u64,
}

const _: () = assert!(size_of::<DeviceFeatureZpciErr>() == 8);

/// Feature: the error that s390's firmware reported of a PCI function, with
/// [`DeviceFeatureZpciErr`]; from Linux 7.3 on.
pub const DEVICE_FEATURE_ZPCI_ERROR: u32 = 13;
