//! A function stops, and moves to another run.
//!
//! Who decides what state it is in, VFIO's state machine, calls these one after another and never
//! two at once.

use std::sync::Arc;

use ioasis_uapi::{Errno, Error, Result};

use super::Function;
use crate::bus::Session;
use crate::migration::stream::Origin;
use crate::migration::{Abilities, HEADER_BYTES, Migration};

/// Bytes of the messages that wait, of 2048 vectors.
const PENDING_BYTES: usize = 2 + 256;

/// What a model says of its migration before it is asked to do it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Migrates {
    origin: Origin,
    abilities: Abilities,
    most_bytes: usize,
}

impl Migrates {
    pub(super) fn new(migration: &mut dyn Migration) -> Self {
        let (name, version) = (migration.name(), migration.version());
        Self {
            origin: Origin { name, version },
            abilities: migration.abilities(),
            most_bytes: HEADER_BYTES + PENDING_BYTES + migration.most_bytes(),
        }
    }
}

impl Function {
    /// What it can do on its way to another run; `None` when it cannot go.
    #[must_use]
    pub fn abilities(&self) -> Option<Abilities> {
        self.migrates.map(|migrates| migrates.abilities)
    }

    /// About how long the end of its stream is at most; 0 when it cannot migrate.
    #[must_use]
    pub fn state_bytes(&self) -> usize {
        self.migrates.map_or(0, |migrates| migrates.most_bytes)
    }

    /// Stops the device: when this returns it starts no DMA, sends no interrupt and takes no
    /// command until [`Function::run`] or a reset. A transfer that waits for the program to give a
    /// page fails.
    pub fn stop(&self) {
        let Some(session) = self.session() else { return };
        session.dma.without_waiting(&mut || self.device.stop(&session));
    }

    /// Lets a stopped device go on.
    pub fn run(&self) {
        let Some(session) = self.session() else { return };
        self.device.run(&session);
        self.wake();
    }

    /// Gives up what is outside of a stopped device, as the lock of its image.
    ///
    /// # Errors
    ///
    /// What the system answers; nothing was given up then. `ENOTTY` when it cannot migrate.
    pub fn hand_over(&self) -> Result<()> {
        self.migrate(|migration| {
            migration.hand_over().map_err(|error| {
                let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
                Error::new(errno, "what the device wrote is not on its disk")
            })
        })
    }

    /// Takes what is outside of the device.
    ///
    /// # Errors
    ///
    /// `EBUSY` when somebody else has it. `ENOTTY` when it cannot migrate.
    pub fn take_over(&self) -> Result<()> {
        self.migrate(|migration| migration.take_over())
    }

    /// What a device that runs sends ahead of its state.
    ///
    /// # Errors
    ///
    /// `ENOTTY` when it cannot migrate.
    pub fn announce(&self) -> Result<Vec<u8>> {
        Ok(self.origin()?.announcement())
    }

    /// The state of a stopped device, as the end of a stream.
    ///
    /// # Errors
    ///
    /// `EFAULT` when a BAR page cannot be reached; `ENODEV` when it is not open; `ENOTTY` when it
    /// cannot migrate.
    pub fn save(&self) -> Result<Vec<u8>> {
        let origin = self.origin()?;
        Ok(origin.state(&self.device.save(&*self.opened()?)?))
    }

    /// Looks at the first [`HEADER_BYTES`](crate::migration::HEADER_BYTES) of a stream that is to
    /// be loaded.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the device will not take it; `ENOTTY` when it cannot migrate.
    pub fn check_stream(&self, stream: &[u8]) -> Result<()> {
        self.origin()?.check(stream)
    }

    /// Takes a stream over. The device is stopped, and is then as the one that was saved.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a stream that it will not take, which has changed nothing; `EFAULT` when a BAR
    /// page cannot be reached; `ENODEV` when it is not open; `ENOTTY` when it cannot migrate.
    pub fn load_state(&self, stream: &[u8]) -> Result<()> {
        let (version, state) = self.origin()?.open(stream)?;
        self.device.load_state(&*self.opened()?, version, state)
    }

    fn migrate<T>(&self, act: impl FnOnce(&mut dyn Migration) -> Result<T>) -> Result<T> {
        self.origin()?;
        let mut model = self.device.model();
        act(model.migration().expect("it said so when it was made"))
    }

    fn origin(&self) -> Result<Origin> {
        let stays = Error::new(Errno::ENOTTY, "the device cannot migrate");
        self.migrates.map(|migrates| migrates.origin).ok_or(stays)
    }

    fn opened(&self) -> Result<Arc<Session>> {
        self.session().ok_or(Error::new(Errno::ENODEV, "the device is not open"))
    }
}
