//! Virtio devices as their drivers find them.

mod disk;
pub(super) mod driver;
mod transport;
