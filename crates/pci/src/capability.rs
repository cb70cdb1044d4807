//! The capabilities of a function: which there are, where they lie, what each bit is and who may write it.

use crate::description::{Description, VendorKind};

// Capability IDs, PCI Code and ID Assignment 1.11, 2.
const ID_POWER_MANAGEMENT: u8 = 0x01;
const ID_MSI: u8 = 0x05;
const ID_VENDOR: u8 = 0x09;
const ID_EXPRESS: u8 = 0x10;
const ID_MSIX: u8 = 0x11;

// Power management, PCI PM 1.2, 3.2.
const PM_CAPABILITIES: usize = 2;
pub(crate) const PM_CONTROL: usize = 4;
const PM_VERSION: u32 = 3;
pub(crate) const PM_STATE: u8 = 3;
pub(crate) const PM_STATE_D3HOT: u8 = 3;
/// Going from D3hot to D0 loses nothing.
const PM_NO_SOFT_RESET: u32 = 1 << 3;

// MSI with a 64-bit address and no mask bits, PCI Local Bus 3.0, 6.8.1.
pub(crate) const MSI_FLAGS: usize = 2;
const MSI_ADDRESS_LOW: usize = 4;
const MSI_ADDRESS_HIGH: usize = 8;
const MSI_DATA: usize = 12;
pub(crate) const MSI_ENABLE: u16 = 1 << 0;
pub(crate) const MSI_QUEUE_SIZE: u16 = 7 << 4;
pub(crate) const MSI_QUEUE_SHIFT: u16 = 4;
const MSI_64: u32 = 1 << 7;

// PCI Express, PCI Express 6.0, 7.5.3.
const EXP_FLAGS: usize = 2;
const EXP_CAPABILITIES: usize = 4;
pub(crate) const EXP_CONTROL: usize = 8;
const EXP_LINK_CAPABILITIES: usize = 12;
const EXP_LINK_STATUS: usize = 18;
const EXP_CAPABILITIES_2: usize = 36;
const EXP_CONTROL_2: usize = 40;
const EXP_LINK_CAPABILITIES_2: usize = 44;
const EXP_LINK_CONTROL_2: usize = 48;
/// Version 2, PCI Express endpoint.
const EXP_VERSION_2: u32 = 2;
const EXP_FLR: u32 = 1 << 28;
/// Role-based error reporting, which every function after 1.0a has.
const EXP_ROLE_BASED: u32 = 1 << 15;
/// The largest payload is 256 bytes.
const EXP_PAYLOAD_256: u32 = 1;
pub(crate) const EXP_CONTROL_FLR: u16 = 1 << 15;
/// Relaxed ordering and no-snoop on, read requests of 512 bytes.
const EXP_CONTROL_VALUE: u32 = 1 << 4 | 1 << 11 | 2 << 12;
/// All of device control, except phantom functions (bit 9).
const EXP_CONTROL_WRITABLE: u32 = 0xffff & !(1 << 9);
/// 8 GT/s, four lanes.
pub(crate) const EXP_LINK: u32 = 3 | 4 << 4;
/// The speeds up to that, as link capabilities 2 list them, and that speed as the target of link control 2.
pub(crate) const EXP_LINK_SPEEDS: u32 = 0b111 << 1;
pub(crate) const EXP_LINK_TARGET: u32 = 3;
/// All of device control 2 except ARI forwarding (bit 5).
const EXP_CONTROL_2_WRITABLE: u32 = 0xffff & !(1 << 5);
/// Completion timeout disable is supported.
const EXP_TIMEOUT_DISABLE: u32 = 1 << 4;

// MSI-X, PCI Local Bus 3.0, 6.8.2.
pub(crate) const MSIX_FLAGS: usize = 2;
const MSIX_TABLE: usize = 4;
const MSIX_PBA: usize = 8;
pub(crate) const MSIX_ENABLE: u16 = 1 << 15;
pub(crate) const MSIX_FUNCTION_MASK: u16 = 1 << 14;

// A window to the BARs, Virtio 1.2, 4.1.4 and 4.1.4.9.
pub(crate) const WINDOW_BAR: usize = 4;
pub(crate) const WINDOW_OFFSET: usize = 8;
pub(crate) const WINDOW_LENGTH: usize = 12;
pub(crate) const WINDOW_DATA: usize = 16;

/// Bytes of ID and next pointer.
const OWN_HEADER: usize = 2;

/// Where capabilities lie: behind the header, in what PCI 2.x had of configuration space.
const ROOM: std::ops::Range<usize> = 0x40..0x100;

/// A capability this crate knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    PowerManagement,
    Msi,
    Express,
    Msix,
    /// The vendor-specific one of this index.
    Vendor(usize),
    /// The same, that is a window to the BARs.
    Window(usize),
    /// The one of this index and ID that nothing is known about.
    Own(usize, u8),
}

/// Where one capability lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capability {
    pub(crate) kind: Kind,
    pub(crate) start: usize,
    length: usize,
}

impl Capability {
    pub(crate) fn contains(&self, offset: usize) -> bool {
        (self.start..self.start + self.length).contains(&offset)
    }
}

/// One register of a capability.
pub(crate) struct Field {
    pub(crate) offset: usize,
    pub(crate) width: usize,
    pub(crate) value: u32,
    pub(crate) writable: u32,
}

impl Field {
    const fn read_only(offset: usize, width: usize, value: u32) -> Self {
        Self { offset, width, value, writable: 0 }
    }

    const fn writable(offset: usize, width: usize, value: u32, writable: u32) -> Self {
        Self { offset, width, value, writable }
    }
}

/// The capabilities of a function, in the order of its chain.
pub(crate) fn chain(description: &Description) -> Vec<Capability> {
    let mut chain = vec![Capability { kind: Kind::PowerManagement, start: 0x40, length: 8 }];
    if description.vectors.msi != 0 {
        chain.push(Capability { kind: Kind::Msi, start: 0x50, length: 14 });
    }
    chain.push(Capability { kind: Kind::Express, start: 0x70, length: 60 });
    if description.vectors.msix != 0 {
        chain.push(Capability { kind: Kind::Msix, start: 0xb0, length: 12 });
    }
    for (index, vendor) in description.vendor.iter().enumerate() {
        let kind = match vendor.kind {
            VendorKind::Plain => Kind::Vendor(index),
            VendorKind::Window => Kind::Window(index),
        };
        let length = vendor.length();
        let start = free(&chain, length);
        chain.push(Capability { kind, start, length });
    }
    for (index, own) in description.own.iter().enumerate() {
        let length = OWN_HEADER + own.bytes.len();
        let start = free(&chain, length);
        chain.push(Capability { kind: Kind::Own(index, own.id), start, length });
    }
    chain
}

/// The first dword from which `length` bytes are free.
///
/// # Panics
///
/// If there is none: a model has more capabilities than fit.
fn free(chain: &[Capability], length: usize) -> usize {
    let apart = |start: usize| {
        move |other: &Capability| {
            start + length <= other.start || other.start + other.length <= start
        }
    };
    let mut starts = ROOM.step_by(4).filter(|start| start + length <= ROOM.end);
    let found = starts.find(|&start| chain.iter().all(apart(start)));
    found.expect("capabilities fit into the first 256 bytes")
}

impl Kind {
    pub(crate) const fn id(self) -> u8 {
        match self {
            Self::PowerManagement => ID_POWER_MANAGEMENT,
            Self::Msi => ID_MSI,
            Self::Express => ID_EXPRESS,
            Self::Msix => ID_MSIX,
            Self::Vendor(_) | Self::Window(_) => ID_VENDOR,
            Self::Own(_, id) => id,
        }
    }

    /// The registers after ID and next pointer; what is not listed reads 0.
    pub(crate) fn fields(self, description: &Description) -> Vec<Field> {
        match self {
            // PME bits stay 0: nobody would hear one.
            Self::PowerManagement => vec![
                Field::read_only(PM_CAPABILITIES, 2, PM_VERSION),
                Field::read_only(PM_CONTROL, 2, PM_NO_SOFT_RESET),
            ],
            Self::Msi => {
                let capable = u32::from(description.vectors.msi).ilog2() << 1;
                vec![
                    Field::writable(MSI_FLAGS, 2, capable | MSI_64, 0xff),
                    Field::writable(MSI_ADDRESS_LOW, 4, 0, !0),
                    Field::writable(MSI_ADDRESS_HIGH, 4, 0, !0),
                    Field::writable(MSI_DATA, 2, 0, 0xffff),
                ]
            }
            Self::Express => vec![
                Field::read_only(EXP_FLAGS, 2, EXP_VERSION_2),
                Field::read_only(EXP_CAPABILITIES, 4, EXP_FLR | EXP_ROLE_BASED | EXP_PAYLOAD_256),
                Field::writable(EXP_CONTROL, 2, EXP_CONTROL_VALUE, EXP_CONTROL_WRITABLE),
                Field::read_only(EXP_LINK_CAPABILITIES, 4, EXP_LINK),
                Field::read_only(EXP_LINK_STATUS, 2, EXP_LINK),
                Field::read_only(EXP_CAPABILITIES_2, 4, EXP_TIMEOUT_DISABLE),
                Field::writable(EXP_CONTROL_2, 2, 0, EXP_CONTROL_2_WRITABLE),
                Field::read_only(EXP_LINK_CAPABILITIES_2, 4, EXP_LINK_SPEEDS),
                Field::read_only(EXP_LINK_CONTROL_2, 2, EXP_LINK_TARGET),
            ],
            Self::Msix => {
                let table = description.msix.expect("vectors are in a table");
                let (table, pending) = table.registers();
                vec![
                    Field::read_only(MSIX_FLAGS, 2, u32::from(description.vectors.msix) - 1),
                    Field::read_only(MSIX_TABLE, 4, table),
                    Field::read_only(MSIX_PBA, 4, pending),
                ]
            }
            Self::Vendor(index) => vendor_fields(description, index),
            Self::Own(index, _) => {
                let bytes = description.own[index].bytes.iter();
                let field =
                    |(offset, byte): (usize, &u8)| Field::read_only(offset, 1, (*byte).into());
                (OWN_HEADER..).zip(bytes).map(field).collect()
            }
            Self::Window(index) => {
                let mut fields = vendor_fields(description, index);
                fields.push(Field::writable(WINDOW_BAR, 1, 0, 0xff));
                fields.extend(
                    [WINDOW_OFFSET, WINDOW_LENGTH, WINDOW_DATA]
                        .map(|offset| Field::writable(offset, 4, 0, !0)),
                );
                fields
            }
        }
    }
}

/// Length and bytes of a vendor-specific capability.
fn vendor_fields(description: &Description, index: usize) -> Vec<Field> {
    let vendor = &description.vendor[index];
    let length = u8::try_from(vendor.length()).expect("it fits into 256 bytes");
    let bytes = [length].into_iter().chain(vendor.bytes.iter().copied());
    (2..).zip(bytes).map(|(offset, byte)| Field::read_only(offset, 1, byte.into())).collect()
}
