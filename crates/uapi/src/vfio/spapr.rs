//! The SPAPR TCE IOMMU of POWER servers, and its error handling.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::io;

/// Dynamic DMA windows of the platform.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IommuSpaprTceDdwInfo {
    /// Bitmap of page sizes in bytes.
    pub pgsizes: u64,
    /// Windows.
    pub max_dynamic_windows_supported: u32,
    /// Levels a table may have.
    pub levels: u32,
}

const _: () = assert!(size_of::<IommuSpaprTceDdwInfo>() == 16);

/// `ddw` is meaningful.
pub const IOMMU_SPAPR_INFO_DDW: u32 = 1 << 0;

/// Argument of [`IOMMU_SPAPR_TCE_GET_INFO`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IommuSpaprTceInfo {
    /// In: bytes the caller provides, this struct included; out: bytes needed.
    pub argsz: u32,
    /// Out: [`IOMMU_SPAPR_INFO_DDW`] or 0.
    pub flags: u32,
    /// Out: bus address of the 32-bit window.
    pub dma32_window_start: u32,
    /// Out: bytes of the 32-bit window.
    pub dma32_window_size: u32,
    /// Out: dynamic windows.
    pub ddw: IommuSpaprTceDdwInfo,
}

const _: () = assert!(size_of::<IommuSpaprTceInfo>() == 32);

/// Container ioctl that describes the windows, with [`IommuSpaprTceInfo`].
pub const IOMMU_SPAPR_TCE_GET_INFO: u32 = io(12);

/// The error to inject with [`EEH_PE_INJECT_ERR`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct EehPeErr {
    /// Type of the error.
    pub type_: u32,
    /// Function of the error.
    pub func: u32,
    /// Address.
    pub addr: u64,
    /// Mask of the address.
    pub mask: u64,
}

const _: () = assert!(size_of::<EehPeErr>() == 24);

/// Argument of [`EEH_PE_OP`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct EehPeOp {
    /// In: bytes the caller provides, this struct included; out: bytes needed.
    pub argsz: u32,
    /// Must be 0.
    pub flags: u32,
    /// One of `EEH_PE_*`.
    pub op: u32,
    /// Not a field in C: the padding that aligns the next field to 8 bytes.
    pub __padding: u32,
    /// The one member of a union in C.
    pub err: EehPeErr,
}

const _: () = assert!(size_of::<EehPeOp>() == 40);

/// Operation: stop error handling.
pub const EEH_PE_DISABLE: u32 = 0;

/// Operation: start error handling.
pub const EEH_PE_ENABLE: u32 = 1;

/// Operation: let a frozen endpoint do I/O.
pub const EEH_PE_UNFREEZE_IO: u32 = 2;

/// Operation: let a frozen endpoint do DMA.
pub const EEH_PE_UNFREEZE_DMA: u32 = 3;

/// Operation: return one of `EEH_PE_STATE_*`.
pub const EEH_PE_GET_STATE: u32 = 4;

/// State: works.
pub const EEH_PE_STATE_NORMAL: u32 = 0;

/// State: in reset.
pub const EEH_PE_STATE_RESET: u32 = 1;

/// State: DMA and I/O stopped.
pub const EEH_PE_STATE_STOPPED: u32 = 2;

/// State: DMA stopped.
pub const EEH_PE_STATE_STOPPED_DMA: u32 = 4;

/// State: gone.
pub const EEH_PE_STATE_UNAVAIL: u32 = 5;

/// Operation: end the reset.
pub const EEH_PE_RESET_DEACTIVATE: u32 = 5;

/// Operation: hot reset.
pub const EEH_PE_RESET_HOT: u32 = 6;

/// Operation: fundamental reset.
pub const EEH_PE_RESET_FUNDAMENTAL: u32 = 7;

/// Operation: configure.
pub const EEH_PE_CONFIGURE: u32 = 8;

/// Operation: inject an error.
pub const EEH_PE_INJECT_ERR: u32 = 9;

/// Container ioctl of error handling, with [`EehPeOp`].
pub const EEH_PE_OP: u32 = io(21);

/// Argument of [`IOMMU_SPAPR_REGISTER_MEMORY`] and [`IOMMU_SPAPR_UNREGISTER_MEMORY`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IommuSpaprRegisterMemory {
    /// In: bytes the caller provides, this struct included; out: bytes needed.
    pub argsz: u32,
    /// Must be 0.
    pub flags: u32,
    /// Client address of the first byte.
    pub vaddr: u64,
    /// Bytes.
    pub size: u64,
}

const _: () = assert!(size_of::<IommuSpaprRegisterMemory>() == 24);

/// Container ioctl that pins client memory, with [`IommuSpaprRegisterMemory`].
pub const IOMMU_SPAPR_REGISTER_MEMORY: u32 = io(17);

/// Container ioctl that unpins client memory, with [`IommuSpaprRegisterMemory`].
pub const IOMMU_SPAPR_UNREGISTER_MEMORY: u32 = io(18);

/// Argument of [`IOMMU_SPAPR_TCE_CREATE`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IommuSpaprTceCreate {
    /// In: bytes the caller provides, this struct included; out: bytes needed.
    pub argsz: u32,
    /// Must be 0.
    pub flags: u32,
    /// log2 of the page size in bytes.
    pub page_shift: u32,
    /// Must be 0.
    pub __resv1: u32,
    /// Bytes.
    pub window_size: u64,
    /// Levels of the table.
    pub levels: u32,
    /// Must be 0.
    pub __resv2: u32,
    /// Out: bus address of the window.
    pub start_addr: u64,
}

const _: () = assert!(size_of::<IommuSpaprTceCreate>() == 40);

/// Container ioctl that creates a window, with [`IommuSpaprTceCreate`].
pub const IOMMU_SPAPR_TCE_CREATE: u32 = io(19);

/// Argument of [`IOMMU_SPAPR_TCE_REMOVE`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IommuSpaprTceRemove {
    /// In: bytes the caller provides, this struct included; out: bytes needed.
    pub argsz: u32,
    /// Must be 0.
    pub flags: u32,
    /// Bus address of the window.
    pub start_addr: u64,
}

const _: () = assert!(size_of::<IommuSpaprTceRemove>() == 16);

/// Container ioctl that removes a window, with [`IommuSpaprTceRemove`].
pub const IOMMU_SPAPR_TCE_REMOVE: u32 = io(20);
