//! What the supervisor tells its watchdog, and how it makes another.
//!
//! `Notes::state` is a leaf.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ioasis_sys::spawn::{self, Fork};
use ioasis_sys::sync::Mutex;
use ioasis_sys::{because, message};
use ioasis_uapi::{Error, Result};
use rustix::process::PidfdFlags;

use crate::removal::{Note, Removal};
use crate::watchdog::{Leftovers, OnUser1, Shared, Watchdog};

/// The supervisor's line to its watchdog, and the list that the next watchdog would need.
#[derive(Debug)]
pub(crate) struct Notes {
    state: Mutex<(Removal, OwnedFd)>,
}

impl Notes {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { state: Mutex::new((Removal::default(), socket)) }
    }

    /// Tells the watchdog. One that is dead is replaced soon, with all that was ever told.
    pub(crate) fn tell(&self, note: Note) {
        let mut state = self.state.lock();
        let _ = note.send(&state.1);
        state.0.keep(note);
    }

    pub(crate) fn socket(&self) -> Result<OwnedFd> {
        let state = self.state.lock();
        state
            .1
            .try_clone()
            .map_err(|_| Error::new(ioasis_uapi::Errno::EMFILE, "too many open files"))
    }

    /// Forks another watchdog. Returns the socket to watch it by, and its process id.
    pub(crate) fn replace_watchdog(
        &self,
        shared: &Arc<Shared>,
        leftovers: Leftovers,
    ) -> Result<(OwnedFd, u32)> {
        let mut state = self.state.lock();
        let (theirs, ours) = message::pair()?;
        let supervisor =
            rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
                .map_err(because("no pidfd of this process"))?;
        match spawn::fork()? {
            Fork::Child => {
                let removal = std::mem::take(&mut state.0);
                let kept: Vec<_> =
                    removal.files().chain([theirs.as_fd(), supervisor.as_fd()]).collect();
                spawn::close_all_but(&kept);
                let shared = Arc::clone(shared);
                let watchdog = Watchdog {
                    shared,
                    supervisor,
                    notes: theirs,
                    signals: None,
                    removal,
                    leftovers,
                    on_user1: OnUser1::Pass,
                };
                let _ = watchdog.watch();
                spawn::exit(0)
            }
            Fork::Parent(child) => {
                state.1 = ours;
                drop(state);
                Ok((self.socket()?, child.id()))
            }
        }
    }
}
