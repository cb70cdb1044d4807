//! Virtio devices as their drivers find them.

mod disk;
mod driver;
mod transport;
