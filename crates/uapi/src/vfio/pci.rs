//! What vfio-pci adds: fixed region and interrupt indices, hot reset.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::io;

/// Region: BAR 0.
pub const PCI_BAR0_REGION_INDEX: u32 = 0;

/// Region: BAR 1.
pub const PCI_BAR1_REGION_INDEX: u32 = 1;

/// Region: BAR 2.
pub const PCI_BAR2_REGION_INDEX: u32 = 2;

/// Region: BAR 3.
pub const PCI_BAR3_REGION_INDEX: u32 = 3;

/// Region: BAR 4.
pub const PCI_BAR4_REGION_INDEX: u32 = 4;

/// Region: BAR 5.
pub const PCI_BAR5_REGION_INDEX: u32 = 5;

/// Region: expansion ROM.
pub const PCI_ROM_REGION_INDEX: u32 = 6;

/// Region: configuration space.
pub const PCI_CONFIG_REGION_INDEX: u32 = 7;

/// Region: legacy VGA ports and memory.
pub const PCI_VGA_REGION_INDEX: u32 = 8;

/// Fixed regions; device-specific ones follow.
pub const PCI_NUM_REGIONS: u32 = 9;

/// Interrupt: the INTx pin.
pub const PCI_INTX_IRQ_INDEX: u32 = 0;

/// Interrupt: MSI.
pub const PCI_MSI_IRQ_INDEX: u32 = 1;

/// Interrupt: MSI-X.
pub const PCI_MSIX_IRQ_INDEX: u32 = 2;

/// Interrupt: an uncorrectable error was reported.
pub const PCI_ERR_IRQ_INDEX: u32 = 3;

/// Interrupt: the host wants the device back.
pub const PCI_REQ_IRQ_INDEX: u32 = 4;

/// Interrupt indices of vfio-pci.
pub const PCI_NUM_IRQS: u32 = 5;

/// `id`: owned through another device of its group.
pub const PCI_DEVID_OWNED: u32 = 0;

/// `id`: not owned; -1 in C.
pub const PCI_DEVID_NOT_OWNED: u32 = u32::MAX;

/// A device that a hot reset resets too.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct PciDependentDevice {
    /// Union of `group_id` and, with [`PCI_HOT_RESET_FLAG_DEV_ID`], `devid`.
    #[doc(alias = "group_id")]
    #[doc(alias = "devid")]
    pub id: u32,
    /// PCI segment.
    pub segment: u16,
    /// Bus number.
    pub bus: u8,
    /// Device number in bits 7:3, function in 2:0.
    pub devfn: u8,
}

const _: () = assert!(size_of::<PciDependentDevice>() == 8);

/// The entries carry device IDs, not groups.
pub const PCI_HOT_RESET_FLAG_DEV_ID: u32 = 1 << 0;

/// The caller owns every entry.
pub const PCI_HOT_RESET_FLAG_DEV_ID_OWNED: u32 = 1 << 1;

/// Argument of [`DEVICE_GET_PCI_HOT_RESET_INFO`]; `count` [`PciDependentDevice`] follow.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct PciHotResetInfo {
    /// In: bytes the caller provides, this struct included; out: bytes needed.
    pub argsz: u32,
    /// Out: `PCI_HOT_RESET_FLAG_*` bits.
    pub flags: u32,
    /// Out: devices affected.
    pub count: u32,
}

const _: () = assert!(size_of::<PciHotResetInfo>() == 12);

/// Device ioctl that lists what a hot reset affects, with [`PciHotResetInfo`].
pub const DEVICE_GET_PCI_HOT_RESET_INFO: u32 = io(12);

/// Argument of [`DEVICE_PCI_HOT_RESET`]; `count` group descriptors, `i32`, follow.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct PciHotReset {
    /// In: bytes the caller provides, this struct included; out: bytes needed.
    pub argsz: u32,
    /// Must be 0.
    pub flags: u32,
    /// Descriptors that follow; 0 for a device bound to an iommufd.
    pub count: u32,
}

const _: () = assert!(size_of::<PciHotReset>() == 12);

/// Device ioctl that resets the bus or slot, with [`PciHotReset`].
pub const DEVICE_PCI_HOT_RESET: u32 = io(13);
