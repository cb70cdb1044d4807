//! Device models: the trait they implement; `list` has those there are.
//!
//! A model knows registers and its device's protocol, nothing else: configuration space, interrupts, who opened it
//! and whose memory it reaches are the business of [`Function`](crate::Function). docs/models.md is the tutorial.

mod igb;
mod image;
mod ioat;
mod list;
mod net;
mod nvme;
pub(crate) mod options;
mod testdev;
mod vfio_user;
mod virtio;

use std::fmt::Debug;

use ioasis_uapi::Result;

use crate::bus::Bus;
use crate::config::IrqMode;
use crate::description::Description;
use crate::migration::Migration;
pub use list::{Models, create, models};
use options::{ModelError, OptionInfo, Options};

/// What a call of [`Model::poll`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Something was done, or is waiting to be: poll again at once.
    Worked,
    /// Nothing to do until something is stored or called, or the model's alarm rings.
    Idle,
    /// Nothing to do now; time alone brings something: poll again and again.
    Waits,
}

/// What a store leaves to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Something, or it is not known: the model is polled at once.
    Work,
    /// Nothing. The model is polled again within some ten microseconds, and then less and less often.
    Settled,
}

/// The virtual functions that a model can have. None is there before it is enabled.
#[derive(Debug)]
pub struct VirtualFunctions {
    /// From the routing ID of the physical function to that of the first.
    pub offset: u16,
    /// From the routing ID of one to that of the next.
    pub stride: u16,
    /// A model for each; they describe themselves alike.
    pub models: Vec<Box<dyn Model>>,
}

/// A device.
///
/// Calls are never concurrent. While no program has the device open there is none but [`Model::description`].
pub trait Model: Debug + Send {
    /// What the function is; the same at every call.
    fn description(&self) -> Description;

    /// Brings the device to its state after power-on, its BAR pages included: at the first open, at a function
    /// reset, and after the last close, when the pages may be gone already.
    ///
    /// # Errors
    ///
    /// `EFAULT` when a BAR page cannot be reached because the program truncated it.
    fn reset(&mut self, bus: &Bus<'_>) -> Result<()>;

    /// The virtual functions it can have (SR-IOV). Asked once, of the model of a physical function.
    fn virtual_functions(&mut self) -> Option<VirtualFunctions> {
        None
    }

    /// Looks at the BAR pages and does what is asked there. Called by the device's worker, soon after every trapped
    /// access and often while there is work; never while memory decoding is off. One call does a bounded amount of
    /// work, because a reset waits for it to return.
    ///
    /// # Errors
    ///
    /// `EFAULT` when a BAR page cannot be reached; the device is then dead until it is reset.
    fn poll(&mut self, bus: &Bus<'_>) -> Result<Progress>;

    /// Brings the interrupt pin to the level its cause has by now, and does nothing else. Called before a masked pin
    /// is heard again: a program that took away the cause with a store to a mapped page must not hear of it once more.
    /// Never while memory decoding is off.
    ///
    /// # Errors
    ///
    /// `EFAULT` as [`Model::poll`].
    fn update_line(&mut self, bus: &Bus<'_>) -> Result<()> {
        let _ = bus;
        Ok(())
    }

    /// Brings what the device keeps to where it is kept, as a disk's cache to the disk: the machine is about to end.
    ///
    /// # Errors
    ///
    /// What the system answers.
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }

    /// A load of `bytes.len()` bytes (1, 2, 4 or 8, aligned) of BAR `bar`, outside its shared pages and the MSI-X
    /// structures: by a system call, or by an instruction on a trapped page. What it gives is in `bytes` before the
    /// program goes on.
    ///
    /// # Errors
    ///
    /// `EFAULT` as [`Model::poll`].
    fn load(&mut self, bus: &Bus<'_>, bar: usize, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let _ = (bus, bar, offset);
        bytes.fill(0);
        Ok(())
    }

    /// A store, of the widths and at the places of [`Model::load`]. It has acted when this returns, and the program goes
    /// on; the worker polls after it.
    ///
    /// # Errors
    ///
    /// `EFAULT` as [`Model::poll`].
    fn store(&mut self, bus: &Bus<'_>, bar: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let _ = (bus, bar, offset, bytes);
        Ok(())
    }

    /// The last close: what the model keeps for its user alone, threads for instance, goes. Follows a [`Model::reset`].
    fn close(&mut self, bus: &Bus<'_>) {
        let _ = bus;
    }

    /// Whether the device is elsewhere, and is to be told what configuration space and interrupts are by
    /// [`Model::set_command`] and [`Model::set_irq_mode`]. What they allow is seen to already.
    fn is_elsewhere(&self) -> bool {
        false
    }

    /// The value of COMMAND: after an open, a reset, and each write that changes it.
    fn set_command(&mut self, bus: &Bus<'_>, command: u16) {
        let _ = (bus, command);
    }

    /// The kind of interrupt that is enabled from now on.
    fn set_irq_mode(&mut self, bus: &Bus<'_>, mode: IrqMode) {
        let _ = (bus, mode);
    }

    /// How it moves to another run; `None` for a device that stays where it is. The same at every call.
    fn migration(&mut self) -> Option<&mut dyn Migration> {
        None
    }

    /// What a store at `offset` has left to be done when [`Model::store`] has returned. Waking the worker takes longer than
    /// most stores: a model whose registers do all of it says so.
    fn after_store(&self, bar: usize, offset: u64) -> After {
        let _ = (bar, offset);
        After::Work
    }
}

/// One kind of device, as `ioasis models` lists it.
#[derive(Clone, Copy, Debug)]
pub struct ModelInfo {
    /// What `--device` calls it: letters, digits, `-` and `_`.
    pub name: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// What can be said about it.
    pub options: &'static [OptionInfo],
    /// Makes one. It is called once a device, before the program runs.
    pub create: fn(&Options<'_>) -> Result<Box<dyn Model>, ModelError>,
}
