//! Interrupts: how many there are and where they go.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::io;

/// The index can signal eventfds.
pub const IRQ_INFO_EVENTFD: u32 = 1 << 0;

/// The index can be masked and unmasked.
pub const IRQ_INFO_MASKABLE: u32 = 1 << 1;

/// Signalling masks the interrupt until it is unmasked.
pub const IRQ_INFO_AUTOMASKED: u32 = 1 << 2;

/// Enabling more vectors needs disabling all first.
pub const IRQ_INFO_NORESIZE: u32 = 1 << 3;

/// Argument of [`DEVICE_GET_IRQ_INFO`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IrqInfo {
    /// In: bytes the caller provides, this struct included; out: bytes needed.
    pub argsz: u32,
    /// Out: `IRQ_INFO_*` bits.
    pub flags: u32,
    /// The interrupt index asked about.
    pub index: u32,
    /// Out: interrupts of the index.
    pub count: u32,
}

const _: () = assert!(size_of::<IrqInfo>() == 16);

/// Device ioctl that describes an interrupt index, with [`IrqInfo`].
pub const DEVICE_GET_IRQ_INFO: u32 = io(9);

/// No data: act on every interrupt of the range.
pub const IRQ_SET_DATA_NONE: u32 = 1 << 0;

/// Data is a `u8` for each: act where it is not 0.
pub const IRQ_SET_DATA_BOOL: u32 = 1 << 1;

/// Data is an eventfd, `i32`, for each, -1 for none.
pub const IRQ_SET_DATA_EVENTFD: u32 = 1 << 2;

/// Mask.
pub const IRQ_SET_ACTION_MASK: u32 = 1 << 3;

/// Unmask.
pub const IRQ_SET_ACTION_UNMASK: u32 = 1 << 4;

/// Signal, or set the eventfd that is signalled.
pub const IRQ_SET_ACTION_TRIGGER: u32 = 1 << 5;

/// Argument of [`DEVICE_SET_IRQS`]; `count` data items follow.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IrqSet {
    /// In: bytes the caller provides, this struct included; out: bytes needed.
    pub argsz: u32,
    /// One of `IRQ_SET_DATA_*` and one of `IRQ_SET_ACTION_*`.
    pub flags: u32,
    /// The interrupt index.
    pub index: u32,
    /// First interrupt.
    pub start: u32,
    /// Interrupts.
    pub count: u32,
}

const _: () = assert!(size_of::<IrqSet>() == 20);

/// Device ioctl that masks, signals and routes interrupts, with [`IrqSet`].
pub const DEVICE_SET_IRQS: u32 = io(10);

/// The `IRQ_SET_DATA_*` bits.
pub const IRQ_SET_DATA_TYPE_MASK: u32 =
    IRQ_SET_DATA_NONE | IRQ_SET_DATA_BOOL | IRQ_SET_DATA_EVENTFD;

/// The `IRQ_SET_ACTION_*` bits.
pub const IRQ_SET_ACTION_TYPE_MASK: u32 =
    IRQ_SET_ACTION_MASK | IRQ_SET_ACTION_UNMASK | IRQ_SET_ACTION_TRIGGER;

/// vfio-ccw region: configuration.
pub const CCW_CONFIG_REGION_INDEX: u32 = 0;

/// Regions of vfio-ccw.
pub const CCW_NUM_REGIONS: u32 = 1;

/// vfio-ccw interrupt: I/O.
pub const CCW_IO_IRQ_INDEX: u32 = 0;

/// vfio-ccw interrupt: channel report.
pub const CCW_CRW_IRQ_INDEX: u32 = 1;

/// vfio-ccw interrupt: the host wants the device back.
pub const CCW_REQ_IRQ_INDEX: u32 = 2;

/// Interrupt indices of vfio-ccw.
pub const CCW_NUM_IRQS: u32 = 3;

/// vfio-ap interrupt: the host wants the device back.
pub const AP_REQ_IRQ_INDEX: u32 = 0;

/// vfio-ap interrupt: the configuration changed.
pub const AP_CFG_CHG_IRQ_INDEX: u32 = 1;

/// Interrupt indices of vfio-ap.
pub const AP_NUM_IRQS: u32 = 2;
