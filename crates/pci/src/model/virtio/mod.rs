//! Virtio devices behind PCI, as Virtio 1.2 has them.
//!
//! One file a chapter: `queue` is the split virtqueue (2.7), `transport` the PCI transport (4.1)
//! with its registers in `registers`, `feature` the bits that all devices share (6). A device,
//! [`Device`], knows its own feature bits, its configuration and its requests (5): `blk`, `net`.
//! `legacy` is the interface that a transitional device has beside, `migration` how a device moves to
//! another run.
//!
//! | BAR | pages | what is there |
//! |---|---|---|
//! | 0 | I/O ports | the legacy interface of a transitional device |
//! | 1 | shared | MSI-X table and pending bits |
//! | 4 | 0, trapped | common configuration |
//! | 4 | 1, trapped | ISR status |
//! | 4 | 2, trapped | device-specific configuration |
//! | 4 | 3, shared | notifications: a dword a queue |
//!
//! Rings are read by the bus: a device knows no memory but by I/O virtual address, and each access
//! is translated anew. rust-vmm's virtio-queue is not used here, because it reads memory that is
//! mapped, a word at a time, where an access of ours may be a system call: a batch of requests
//! costs five accesses, whatever their number.

mod blk;
mod feature;
mod legacy;
mod migration;
mod net;
mod queue;
mod registers;
mod transport;

#[cfg(test)]
mod tests;

use std::fmt::Debug;

use self::queue::{Queue, Wrong};
use super::Progress;
use crate::alarm::Alarm;
use crate::bus::{Bus, DmaFault};
use crate::migration::{Reader, Writer};

pub(super) use blk::INFO as BLK;
pub(super) use net::INFO as NET;

/// What a device is, beside its number of queues.
#[derive(Clone, Copy, Debug)]
struct Identity {
    /// Its number (chapter 5).
    id: u16,
    /// Its PCI class.
    class: u32,
}

/// Why a device stops until it is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// A queue could not be reached.
    Fault(DmaFault),
    /// Its driver broke a rule.
    Wrong(Wrong),
}

impl From<DmaFault> for Stop {
    fn from(fault: DmaFault) -> Self {
        Self::Fault(fault)
    }
}

impl From<Wrong> for Stop {
    fn from(wrong: Wrong) -> Self {
        Self::Wrong(wrong)
    }
}

/// The queue because of which a device stops, and why.
type Stopped<T> = Result<T, (u16, Stop)>;

/// What became of a device's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// Nothing.
    None,
    /// The driver changed it by a request.
    Asked,
    /// It changed by itself, and the driver is to hear of it.
    News,
}

/// One kind of device, behind the transport.
trait Device: Debug + Send {
    /// Brings what it keeps to where it is kept.
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }

    fn identity(&self) -> Identity;

    /// Its name as a model.
    fn model(&self) -> &'static str;

    /// How many queues it has.
    fn queues(&self) -> u16;

    /// Its own feature bits.
    fn features(&self) -> u64;

    /// Why it cannot work with these of the bits that it offers, if it cannot.
    fn refuses(&self, features: u64) -> Option<&'static str> {
        let _ = features;
        None
    }

    /// The driver has accepted these bits; requests follow.
    fn start(&mut self, features: u64);

    /// Its configuration, as many bytes as the bits offered give it.
    fn configuration(&self) -> Vec<u8>;

    /// The driver stored a byte of its configuration.
    fn store(&mut self, offset: usize, value: u8) {
        let _ = (offset, value);
    }

    /// Its state after power-on.
    fn reset(&mut self);

    /// How it moves to another run; `None` for a device that stays. The same at every call.
    fn portable(&mut self) -> Option<&mut dyn Portable> {
        None
    }

    /// A queue of it was reset: what was taken from it and not put back is the driver's again.
    fn reset_queue(&mut self, index: u16) {
        let _ = index;
    }

    /// What wakes the device's thread, for what comes from outside.
    fn attach(&mut self, alarm: Alarm) {
        let _ = alarm;
    }

    /// What became of its configuration since this was last asked, other than by [`Device::store`].
    fn change(&mut self) -> Change {
        Change::None
    }

    /// Does requests of the queues that have some, as much as does not keep others waiting. What
    /// was done is put into them, and published.
    fn serve(&mut self, bus: &Bus<'_>, queues: &mut [Queue]) -> Stopped<Progress>;
}

/// A device that moves to another run, behind the transport. Its requests are in the program's
/// memory: none is under way while it stands still.
trait Portable: Debug {
    /// What the device was made with, which a state must be of, and why it is none.
    fn shape(&self) -> Vec<(u64, &'static str)>;

    /// Writes what [`Device::reset`] would take away, and the driver's features do not say.
    fn save(&self, state: &mut Writer);

    /// Reads what [`Portable::save`] wrote, and takes nothing over.
    ///
    /// # Errors
    ///
    /// `EINVAL` for what it cannot be.
    fn check(&self, state: &mut Reader<'_>) -> ioasis_uapi::Result<()>;

    /// Takes over what was checked, after [`Device::start`].
    ///
    /// # Errors
    ///
    /// As [`Portable::check`].
    fn load(&mut self, state: &mut Reader<'_>) -> ioasis_uapi::Result<()>;

    /// As [`Migration::hand_over`](crate::migration::Migration::hand_over).
    fn hand_over(&mut self) -> std::io::Result<()>;

    /// As [`Migration::take_over`](crate::migration::Migration::take_over).
    fn take_over(&mut self) -> std::io::Result<()>;
}

/// A dword out of four bytes at `offset`.
fn dword(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"))
}

/// A quadword out of eight bytes at `offset`.
fn quadword(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"))
}
