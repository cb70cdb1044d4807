//! Where the registers lie (4.1.4): offsets in the BAR, in the common configuration, and the
//! capabilities that say so.

use crate::description::{VendorCapability, VendorKind};

/// BAR of the registers.
pub(super) const BAR: usize = 4;
/// Bytes of it, of which the last page is shared memory and the others are trapped.
pub(super) const BAR_BYTES: u64 = 0x4000;
pub(super) const COMMON: u64 = 0x0000;
pub(super) const ISR: u64 = 0x1000;
pub(super) const DEVICE: u64 = 0x2000;
pub(super) const NOTIFY: u64 = 0x3000;
/// Bytes from a queue's notification to the next one's.
pub(super) const NOTIFY_STRIDE: u64 = 4;

// Common configuration, 4.1.4.3.
pub(super) const DEVICE_FEATURE_SELECT: u64 = 0x00;
pub(super) const DEVICE_FEATURE: u64 = 0x04;
pub(super) const DRIVER_FEATURE_SELECT: u64 = 0x08;
pub(super) const DRIVER_FEATURE: u64 = 0x0c;
pub(super) const CONFIG_MSIX_VECTOR: u64 = 0x10;
pub(super) const NUM_QUEUES: u64 = 0x12;
pub(super) const DEVICE_STATUS: u64 = 0x14;
pub(super) const CONFIG_GENERATION: u64 = 0x15;
pub(super) const QUEUE_SELECT: u64 = 0x16;
pub(super) const QUEUE_SIZE: u64 = 0x18;
pub(super) const QUEUE_MSIX_VECTOR: u64 = 0x1a;
pub(super) const QUEUE_ENABLE: u64 = 0x1c;
pub(super) const QUEUE_NOTIFY_OFF: u64 = 0x1e;
pub(super) const QUEUE_DESC: u64 = 0x20;
pub(super) const QUEUE_DRIVER: u64 = 0x28;
pub(super) const QUEUE_DEVICE: u64 = 0x30;
pub(super) const QUEUE_RESET: u64 = 0x3a;
/// Bytes of it, which the administration queue's fields end.
pub(super) const COMMON_BYTES: usize = 0x40;

/// A register of the common configuration that a driver stores to: offset and bytes. Those of 8
/// bytes are two of 4.
pub(super) const WRITABLE: [(u64, usize); 16] = [
    (DEVICE_FEATURE_SELECT, 4),
    (DRIVER_FEATURE_SELECT, 4),
    (DRIVER_FEATURE, 4),
    (CONFIG_MSIX_VECTOR, 2),
    (QUEUE_SELECT, 2),
    (QUEUE_SIZE, 2),
    (QUEUE_MSIX_VECTOR, 2),
    (QUEUE_DESC, 4),
    (QUEUE_DESC + 4, 4),
    (QUEUE_DRIVER, 4),
    (QUEUE_DRIVER + 4, 4),
    (QUEUE_DEVICE, 4),
    (QUEUE_DEVICE + 4, 4),
    (QUEUE_ENABLE, 2),
    (QUEUE_RESET, 2),
    (DEVICE_STATUS, 1),
];

// Device status, 2.1.
pub(super) const FEATURES_OK: u8 = 8;
pub(super) const DRIVER_OK: u8 = 4;
pub(super) const NEEDS_RESET: u8 = 64;

// ISR status, 4.1.4.5.
pub(super) const ISR_QUEUE: u8 = 1 << 0;
pub(super) const ISR_CONFIGURATION: u8 = 1 << 1;

/// No vector of MSI-X.
pub(super) const NO_VECTOR: u16 = 0xffff;

// Types of structures, 4.1.4.
const TYPE_COMMON: u8 = 1;
const TYPE_NOTIFY: u8 = 2;
const TYPE_ISR: u8 = 3;
const TYPE_DEVICE: u8 = 4;
const TYPE_PCI: u8 = 5;

/// Bytes of a capability behind ID, next pointer and length.
const STRUCTURE: usize = 13;

/// The capabilities of a device with `queues` queues and so many bytes of configuration.
pub(super) fn capabilities(queues: u16, device_bytes: usize) -> Vec<VendorCapability> {
    let length = |bytes: usize| u32::try_from(bytes).expect("below a page");
    let notify_bytes = usize::from(queues) * 4;
    let mut notify = structure(TYPE_NOTIFY, NOTIFY, length(notify_bytes));
    notify.extend_from_slice(&u32::try_from(NOTIFY_STRIDE).expect("4").to_le_bytes());
    let mut window = structure(TYPE_PCI, 0, 0);
    window[1] = 0;
    window.extend_from_slice(&[0; 4]);
    let plain = |bytes| VendorCapability { bytes, kind: VendorKind::Plain };
    vec![
        plain(structure(TYPE_COMMON, COMMON, length(COMMON_BYTES))),
        plain(structure(TYPE_ISR, ISR, 1)),
        plain(structure(TYPE_DEVICE, DEVICE, length(device_bytes))),
        plain(notify),
        VendorCapability { bytes: window, kind: VendorKind::Window },
    ]
}

/// Type, BAR, id, padding, offset, length.
fn structure(kind: u8, offset: u64, length: u32) -> Vec<u8> {
    let bar = u8::try_from(BAR).expect("below 6");
    let offset = u32::try_from(offset).expect("inside the BAR");
    let mut bytes = vec![kind, bar, 0, 0, 0];
    bytes.extend_from_slice(&offset.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    debug_assert_eq!(bytes.len(), STRUCTURE, "that is what the capability has");
    bytes
}
