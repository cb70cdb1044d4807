//! How a device moves to another run: it stops, its state is saved as bytes, and loaded there.
//!
//! A model implements [`Migration`]; [`Function`](crate::Function) stops it and frames what it saves
//! (`stream`). The bytes may come from anybody. Invariant: a state that is refused changes
//! nothing, and one that is taken leaves the model as its own commands could have.

mod state;
pub(crate) mod stream;

use std::fmt::Debug;
use std::io;

use ioasis_uapi::Result;

use crate::bus::Bus;
pub(crate) use state::bad;
pub use state::{Reader, Writer};
pub use stream::{HEADER_BYTES, STREAM_MAX};

/// What a device can do on its way, beyond stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// There are states in which it starts no DMA but is not stopped yet: `RUNNING_P2P`.
    pub p2p: bool,
    /// The stream can begin while it runs: `PRE_COPY`.
    pub pre_copy: bool,
}

impl Abilities {
    /// Everything.
    pub const ALL: Self = Self { p2p: true, pre_copy: true };
}

/// A model that can move to another run.
///
/// It is saved and loaded while it is stopped: nothing polls it, and it reaches neither memory nor
/// interrupts.
pub trait Migration: Debug {
    /// Whose state it is; at most 16 bytes of ASCII.
    fn name(&self) -> &'static str;

    /// Which layout [`save`](Self::save) writes. [`load`](Self::load) reads it and all before it.
    fn version(&self) -> u32;

    /// Bytes of the longest state it can have, or about as many; the same at every call.
    fn most_bytes(&self) -> usize;

    /// What it can do on the way; the same at every call.
    fn abilities(&self) -> Abilities {
        Abilities::ALL
    }

    /// Writes the state: all that a reset would take away, BAR pages included. What configuration
    /// space and the MSI-X structures hold is not of it.
    ///
    /// # Errors
    ///
    /// `EFAULT` when a BAR page cannot be reached.
    fn save(&mut self, bus: &Bus<'_>, state: &mut Writer) -> Result<()>;

    /// Takes over a state that was saved as `version`: the device is then as it was, and stopped.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a state that such a device cannot be in, or that is of another one: nothing has
    /// changed then. `EFAULT` when a BAR page cannot be reached.
    fn load(&mut self, bus: &Bus<'_>, version: u32, state: &mut Reader<'_>) -> Result<()>;

    /// It is about to stand still: what is outside of it, as an image, goes to whoever loads its
    /// state.
    ///
    /// # Errors
    ///
    /// What the system answers; the device goes on then.
    fn hand_over(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// It is about to move again: what is outside of it is its own from now on.
    ///
    /// # Errors
    ///
    /// `EBUSY` when somebody else has it.
    fn take_over(&mut self) -> Result<()> {
        Ok(())
    }

    /// It runs for the first time since it was loaded. An interrupt that was sent before may have
    /// been lost with the program that it was sent to: what the program has not answered is sent
    /// once more.
    ///
    /// # Errors
    ///
    /// `EFAULT` when a BAR page cannot be reached.
    fn remind(&mut self, bus: &Bus<'_>) -> Result<()> {
        let _ = bus;
        Ok(())
    }
}
