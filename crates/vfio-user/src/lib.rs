//! vfio-user: a PCI device in another process, by messages over a Unix stream socket.
//!
//! Written from libvfio-user's specification of the protocol, version 0.1, whose names are kept. A
//! [`Client`] drives a device that a server offers; a [`Server`] offers what implements [`Device`].
//! Both sides ask: the client for registers and interrupts, the server for the client's memory
//! (DMA_READ and DMA_WRITE).
//!
//! Invariants:
//!
//! - **The peer is not trusted.** Every length, flag, index and descriptor is checked against what
//!   was agreed before it is used; a message is at most [`message::MAX_MESSAGE`] bytes with at most
//!   [`message::MAX_FDS`] descriptors.
//! - **No wait is endless**, except for the first byte of a message that nobody owes: an answer,
//!   the rest of a message and room in the socket are waited for as long as the [`Connection`] was
//!   told.
//! - **A connection that broke the protocol is finished.** Whoever waits on it gets the reason, and
//!   so does each later call.
//!
//! Lock order: `Connection::sending` and `Connection::state` are never held together.

mod client;
mod connection;
mod error;
mod listener;
pub mod message;
mod region;
mod server;
#[cfg(test)]
mod tests;
mod version;
mod wire;

pub use client::{Client, IrqInfo, Memory};
pub use connection::Connection;
pub use error::{Error, Result};
pub use listener::Listener;
pub use message::Command;
pub use region::{Area, Region};
pub use rustix::io::Errno;
pub use server::{
    Answer, Device, DeviceInfo, DmaMap, DmaUnmap, IrqData, Peer, Server, SetIrqs, Shutdown,
};
pub use version::Capabilities;
