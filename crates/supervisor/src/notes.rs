//! What the supervisor tells its watchdog, and how it makes another.
//!
//! `Notes::state` is a leaf.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use ioasis_sys::message;
use ioasis_sys::spawn::{self, Fork};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;

use crate::ending::Ending;
use crate::other::Other;
use crate::removal::{Note, Removal};
use crate::run::OnFaults;
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

    /// Forks another watchdog. Returns its process id.
    pub(crate) fn replace_watchdog(
        &self,
        shared: &Arc<Shared>,
        leftovers: Leftovers,
    ) -> Result<u32> {
        let mut state = self.state.lock();
        let (theirs, ours) = message::pair()?;
        let supervisor = Other::open(std::process::id())?;
        match spawn::fork()? {
            Fork::Child => {
                let removal = std::mem::take(&mut state.0);
                let kept: Vec<_> =
                    removal.files().chain([theirs.as_fd()]).chain(supervisor.files()).collect();
                spawn::close_all_but(&kept);
                let shared = Arc::clone(shared);
                let watchdog = Watchdog {
                    shared,
                    supervisor,
                    notes: theirs,
                    signals: None,
                    removal,
                    leftovers,
                    ending: Ending::new(leftovers, None, Instant::now()),
                    client_has_ended: false,
                    on_faults: OnFaults::Pass,
                    on_user1: OnUser1::Pass,
                };
                let _ = watchdog.watch();
                spawn::exit(0)
            }
            Fork::Parent(child) => {
                state.1 = ours;
                Ok(child.id())
            }
        }
    }
}
