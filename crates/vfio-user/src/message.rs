//! The messages: numbers, flags and layouts, all little-endian and without padding.

use std::fmt;

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The version that is spoken here: major 0, minor up to 1.
pub const MAJOR: u16 = 0;
/// The newest minor version.
pub const MINOR: u16 = 1;

/// Descriptors one message may bring: the most that QEMU lets a peer say (`VFIO_USER_MAX_MAX_FDS`).
pub const MAX_FDS: usize = 16;
/// Bytes of data that one READ or WRITE moves, which is the specification's default.
pub const MAX_DATA: usize = 1 << 20;
/// Bytes of a whole message: the most data, and room for what stands before it.
pub const MAX_MESSAGE: usize = MAX_DATA + 4096;

/// What a message asks for, or answers.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Command(pub u16);

impl Command {
    /// Versions and capabilities are agreed on.
    pub const VERSION: Self = Self(1);
    /// Memory that the device may reach.
    pub const DMA_MAP: Self = Self(2);
    /// Memory that it may not reach any more.
    pub const DMA_UNMAP: Self = Self(3);
    /// How many regions and interrupts there are.
    pub const DEVICE_GET_INFO: Self = Self(4);
    /// One region.
    pub const DEVICE_GET_REGION_INFO: Self = Self(5);
    /// Descriptors that stand for stores to a region.
    pub const DEVICE_GET_REGION_IO_FDS: Self = Self(6);
    /// One kind of interrupt.
    pub const DEVICE_GET_IRQ_INFO: Self = Self(7);
    /// What an interrupt does.
    pub const DEVICE_SET_IRQS: Self = Self(8);
    /// A load of a region.
    pub const REGION_READ: Self = Self(9);
    /// A store to a region.
    pub const REGION_WRITE: Self = Self(10);
    /// The device reads memory; asked by the server.
    pub const DMA_READ: Self = Self(11);
    /// The device writes memory; asked by the server.
    pub const DMA_WRITE: Self = Self(12);
    /// The device as after power-on.
    pub const DEVICE_RESET: Self = Self(13);
    /// Stores to regions, many in one message.
    pub const REGION_WRITE_MULTI: Self = Self(15);
    /// A feature of VFIO's.
    pub const DEVICE_FEATURE: Self = Self(16);
    /// State of the device, out of it.
    pub const MIG_DATA_READ: Self = Self(17);
    /// State of the device, into it.
    pub const MIG_DATA_WRITE: Self = Self(18);

    /// Its name in the specification; `None` for a number that has none.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::VERSION => "VERSION",
            Self::DMA_MAP => "DMA_MAP",
            Self::DMA_UNMAP => "DMA_UNMAP",
            Self::DEVICE_GET_INFO => "DEVICE_GET_INFO",
            Self::DEVICE_GET_REGION_INFO => "DEVICE_GET_REGION_INFO",
            Self::DEVICE_GET_REGION_IO_FDS => "DEVICE_GET_REGION_IO_FDS",
            Self::DEVICE_GET_IRQ_INFO => "DEVICE_GET_IRQ_INFO",
            Self::DEVICE_SET_IRQS => "DEVICE_SET_IRQS",
            Self::REGION_READ => "REGION_READ",
            Self::REGION_WRITE => "REGION_WRITE",
            Self::DMA_READ => "DMA_READ",
            Self::DMA_WRITE => "DMA_WRITE",
            Self::DEVICE_RESET => "DEVICE_RESET",
            Self::REGION_WRITE_MULTI => "REGION_WRITE_MULTI",
            Self::DEVICE_FEATURE => "DEVICE_FEATURE",
            Self::MIG_DATA_READ => "MIG_DATA_READ",
            Self::MIG_DATA_WRITE => "MIG_DATA_WRITE",
            _ => return None,
        })
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "message {}", self.0),
        }
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The four bits of [`Header::flags`] that say whether it is a command (0) or a reply (1).
pub const TYPE_MASK: u32 = 0xf;
/// A reply.
pub const TYPE_REPLY: u32 = 1;
/// A command that wants no reply.
pub const NO_REPLY: u32 = 1 << 4;
/// A reply that says what went wrong.
pub const ERROR: u32 = 1 << 5;

/// What every message begins with.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Chosen by who sends the command, and repeated by the reply.
    pub id: U16,
    /// The command.
    pub command: U16,
    /// Bytes of the message, with this header.
    pub size: U32,
    /// Kind of the message.
    pub flags: U32,
    /// With [`ERROR`]: an errno, or 0.
    pub error: U32,
}

/// Bytes of a [`Header`].
pub const HEADER: usize = size_of::<Header>();

/// Body of VERSION; JSON with its NUL follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Version {
    /// Incompatible with any other.
    pub major: U16,
    /// Compatible with all before it.
    pub minor: U16,
}

bitflags! {
    /// How a range of memory may be reached.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DmaAccess: u32 {
        /// The device may read it.
        const READ = 1 << 0;
        /// The device may write it.
        const WRITE = 1 << 1;
    }
}

/// Body of DMA_MAP.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DmaMapBody {
    /// Bytes of this struct.
    pub argsz: U32,
    /// [`DmaAccess`].
    pub flags: U32,
    /// Where in the descriptor's file it begins.
    pub offset: U64,
    /// Where the device finds it.
    pub address: U64,
    /// Bytes.
    pub size: U64,
}

/// A DMA_UNMAP of everything there is.
pub const UNMAP_ALL: u32 = 1 << 1;
/// A DMA_UNMAP that asks which pages the device wrote.
pub const UNMAP_GET_DIRTY: u32 = 1 << 0;

/// Body of DMA_UNMAP, and of its reply.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DmaUnmapBody {
    /// Room for the reply.
    pub argsz: U32,
    /// [`UNMAP_ALL`].
    pub flags: U32,
    /// Where it begins.
    pub address: U64,
    /// Bytes.
    pub size: U64,
}

/// The device can be reset.
pub const DEVICE_RESETS: u32 = 1 << 0;
/// It is a PCI device.
pub const DEVICE_PCI: u32 = 1 << 1;

/// Body of DEVICE_GET_INFO and of its reply.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DeviceInfoBody {
    /// Room for the reply; in the reply, what it takes.
    pub argsz: U32,
    /// [`DEVICE_RESETS`] and [`DEVICE_PCI`].
    pub flags: U32,
    /// Regions.
    pub regions: U32,
    /// Kinds of interrupts.
    pub irqs: U32,
}

/// It can be read.
pub const REGION_READABLE: u32 = 1 << 0;
/// It can be written.
pub const REGION_WRITABLE: u32 = 1 << 1;
/// It, or a part of it, can be mapped.
pub const REGION_MMAP: u32 = 1 << 2;
/// Capabilities follow.
pub const REGION_CAPS: u32 = 1 << 3;
/// The capability that lists what can be mapped.
pub const CAP_SPARSE_MMAP: u16 = 1;

/// Body of DEVICE_GET_REGION_INFO and of its reply.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RegionInfoBody {
    /// Room for the reply; in the reply, what it takes.
    pub argsz: U32,
    /// What can be done with it.
    pub flags: U32,
    /// Which one.
    pub index: U32,
    /// Where in this struct the first capability stands; 0 for none.
    pub cap_offset: U32,
    /// Bytes.
    pub size: U64,
    /// Where in the descriptor's file it begins.
    pub offset: U64,
}

/// What every capability begins with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CapHeader {
    /// Which one.
    pub id: U16,
    /// Its version.
    pub version: U16,
    /// Where in the [`RegionInfoBody`] the next one stands; 0 for none.
    pub next: U32,
}

/// Body of DEVICE_GET_IRQ_INFO and of its reply.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IrqInfoBody {
    /// Room for the reply; in the reply, what it takes.
    pub argsz: U32,
    /// VFIO's `IRQ_INFO` flags.
    pub flags: U32,
    /// Which kind.
    pub index: U32,
    /// How many of it.
    pub count: U32,
}

/// Nothing follows.
pub const IRQ_DATA_NONE: u32 = 1 << 0;
/// A byte an interrupt follows: whether it is meant.
pub const IRQ_DATA_BOOL: u32 = 1 << 1;
/// A descriptor an interrupt comes along, or none at all, which takes them away.
pub const IRQ_DATA_EVENTFD: u32 = 1 << 2;
/// Interrupts are masked.
pub const IRQ_MASK: u32 = 1 << 3;
/// Interrupts are unmasked.
pub const IRQ_UNMASK: u32 = 1 << 4;
/// Interrupts are sent, or told by whom they are heard.
pub const IRQ_TRIGGER: u32 = 1 << 5;

/// Body of DEVICE_SET_IRQS.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IrqSetBody {
    /// Bytes of this struct and what follows.
    pub argsz: U32,
    /// One kind of data and one action.
    pub flags: U32,
    /// Which kind.
    pub index: U32,
    /// The first of them.
    pub start: U32,
    /// How many.
    pub count: U32,
}

/// What REGION_READ and REGION_WRITE and their replies begin with; data follows.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct RegionAccess {
    /// Where in the region.
    pub offset: U64,
    /// Which region.
    pub region: U32,
    /// Bytes.
    pub count: U32,
}

/// What DMA_READ and DMA_WRITE and their replies begin with; data follows.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct DmaTransfer {
    /// Where the device finds it.
    pub address: U64,
    /// Bytes.
    pub count: U64,
}

/// One store of REGION_WRITE_MULTI, whose body begins with their number in 8 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MultiWrite {
    /// Where, and how much of `data`.
    pub access: RegionAccess,
    /// The bytes, the first `count` of them.
    pub data: [u8; 8],
}

/// The most stores of one REGION_WRITE_MULTI.
pub const MAX_WRITES: usize = 4096;

/// The feature's number, in [`FeatureBody::flags`].
pub const FEATURE_MASK: u32 = 0xffff;
/// The feature's data is wanted.
pub const FEATURE_GET: u32 = 1 << 16;
/// The feature's data follows.
pub const FEATURE_SET: u32 = 1 << 17;
/// Whether there is such a feature.
pub const FEATURE_PROBE: u32 = 1 << 18;
/// Migration: which ways there are.
pub const FEATURE_MIGRATION: u32 = 1;
/// Migration: the device's state.
pub const FEATURE_MIG_DEVICE_STATE: u32 = 2;
/// Dirty pages are noted from now on.
pub const FEATURE_DMA_LOGGING_START: u32 = 6;
/// They are not noted any more.
pub const FEATURE_DMA_LOGGING_STOP: u32 = 7;
/// Which pages were written.
pub const FEATURE_DMA_LOGGING_REPORT: u32 = 8;

/// What DEVICE_FEATURE and its reply begin with; the feature's data follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FeatureBody {
    /// Room for the reply.
    pub argsz: U32,
    /// Feature and what to do.
    pub flags: U32,
}

/// Data of [`FEATURE_MIG_DEVICE_STATE`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DeviceState {
    /// VFIO's number of the state.
    pub state: U32,
    /// Unused here: data goes by messages.
    pub data_fd: U32,
}

/// What the DMA_LOGGING features begin with; ranges of two 64-bit words follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DmaLogging {
    /// Bytes a bit stands for.
    pub page_size: U64,
    /// Ranges.
    pub ranges: U32,
    /// Zero.
    pub reserved: U32,
}

/// What MIG_DATA_READ and MIG_DATA_WRITE begin with; data follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MigrationData {
    /// Room for the reply.
    pub argsz: U32,
    /// Bytes.
    pub size: U32,
}

/// Indices of regions and interrupts of a PCI device, as VFIO numbers them.
pub mod pci {
    /// BARs are regions 0 to 5.
    pub const BARS: u32 = 6;
    /// The expansion ROM.
    pub const ROM: u32 = 6;
    /// Configuration space.
    pub const CONFIG: u32 = 7;
    /// Regions of a PCI device, VGA's included.
    pub const REGIONS: u32 = 9;
    /// The interrupt pin.
    pub const INTX: u32 = 0;
    /// MSI.
    pub const MSI: u32 = 1;
    /// MSI-X.
    pub const MSIX: u32 = 2;
    /// Errors.
    pub const ERR: u32 = 3;
    /// The device is wanted back.
    pub const REQ: u32 = 4;
    /// Kinds of interrupts.
    pub const IRQS: u32 = 5;
}
