//! The token by which virtual functions are opened. Linux: `struct vfio_pci_vf_token`,
//! `drivers/vfio/pci/vfio_pci_core.c`.
//!
//! Lock order: `VfToken::state` is a leaf.

use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result};
use rustix::rand::GetRandomFlags;

/// A token as the interface has it: the bytes of a UUID, in the order in which it is written.
pub(crate) type Uuid = [u8; 16];

/// What whoever has a physical function gave out for its virtual ones.
#[derive(Debug)]
pub(crate) struct VfToken {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    uuid: Uuid,
    /// Virtual functions that are open.
    users: u32,
}

fn random() -> Uuid {
    let mut uuid = [0; 16];
    // So few bytes come at once and whole.
    let _ = rustix::rand::getrandom(&mut uuid, GetRandomFlags::empty());
    uuid
}

/// Nothing was given where a token is needed.
const MISSING: Error = Error::new(
    Errno::EACCES,
    "the device wants the token of its physical function, and there is none",
);
const WRONG: Error =
    Error::new(Errno::EACCES, "the token is not the one that was set on the physical function");

impl VfToken {
    /// One that nobody knows (`vfio_pci_vf_init`).
    pub(crate) fn new() -> Self {
        Self { state: Mutex::new(State { uuid: random(), users: 0 }) }
    }

    /// Nobody knows it any more: another driver takes the function, or the same anew.
    pub(crate) fn renew(&self) {
        self.set(random());
    }

    pub(crate) fn set(&self, uuid: Uuid) {
        self.state.lock().uuid = uuid;
    }

    /// Whether it opens a virtual function.
    ///
    /// # Errors
    ///
    /// `EACCES` without a token, or with another.
    pub(crate) fn check_virtual(&self, uuid: Option<&Uuid>) -> Result<()> {
        let uuid = uuid.ok_or(MISSING)?;
        if self.state.lock().uuid == *uuid { Ok(()) } else { Err(WRONG) }
    }

    /// Whether it opens the physical function: while virtual ones are open, that takes their token.
    /// Else it is the token from now on.
    ///
    /// # Errors
    ///
    /// `EACCES` without a token, or with another.
    pub(crate) fn check_physical(&self, uuid: Option<&Uuid>) -> Result<()> {
        let mut state = self.state.lock();
        match uuid {
            None if state.users != 0 => Err(MISSING),
            Some(uuid) if state.users != 0 && state.uuid != *uuid => Err(WRONG),
            None => Ok(()),
            Some(uuid) => {
                state.uuid = *uuid;
                Ok(())
            }
        }
    }

    /// A virtual function was opened.
    pub(crate) fn add_user(&self) {
        self.state.lock().users += 1;
    }

    /// It was closed.
    pub(crate) fn drop_user(&self) {
        let mut state = self.state.lock();
        assert!(state.users > 0, "a virtual function that is closed was open");
        state.users -= 1;
    }
}
