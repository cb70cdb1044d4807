//! Feature bits that all devices share (chapter 6).

/// A descriptor may refer to a table of descriptors.
pub(super) const RING_INDIRECT_DESC: u64 = 1 << 28;
/// Each side says from which index on it wants to hear of the other.
pub(super) const RING_EVENT_IDX: u64 = 1 << 29;
/// The driver follows Virtio 1.0 or later.
pub(super) const VERSION_1: u64 = 1 << 32;
/// Addresses are those of the device's IOMMU.
pub(super) const ACCESS_PLATFORM: u64 = 1 << 33;
/// A queue can be reset by itself.
pub(super) const RING_RESET: u64 = 1 << 40;

/// What the transport offers, whatever the device.
pub(super) const TRANSPORT: u64 =
    RING_INDIRECT_DESC | RING_EVENT_IDX | VERSION_1 | ACCESS_PLATFORM | RING_RESET;
