//! The notification loop.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ioasis_sys::notify::{Answer, Listener};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::launch::Launched;
use crate::run::Notes;
use crate::watchdog::Shared;

/// Answers the client's system calls.
#[derive(Debug)]
pub(crate) struct Server {
    listener: Listener,
    shared: Arc<Shared>,
    files: OwnedFd,
    notes: Arc<Notes>,
}

impl Server {
    pub(crate) fn new(
        launched: &Launched,
        shared: &Arc<Shared>,
        notes: &Arc<Notes>,
    ) -> Result<Self> {
        let listener = launched.listener.try_clone()?;
        listener.wake_synchronously();
        let files = launched
            .files
            .try_clone()
            .map_err(|_| Error::new(Errno::EMFILE, "too many open files"))?;
        Ok(Self { listener, shared: Arc::clone(shared), files, notes: Arc::clone(notes) })
    }

    pub(crate) fn files_dev(&self) -> u64 {
        rustix::fs::fstat(&self.files).map_or(0, |stat| stat.st_dev)
    }

    pub(crate) fn closes(&self) -> &OwnedFd {
        &self.files
    }

    pub(crate) fn drain(&self) {}
    pub(crate) fn close_all(&self) {}

    pub(crate) fn receive_in_a_thread(server: &Arc<Self>) -> Result<()> {
        let server = Arc::clone(server);
        std::thread::Builder::new()
            .name("receiver".to_owned())
            .spawn(move || server.receive())
            .map(drop)
            .map_err(|_| Error::new(Errno::EAGAIN, "no thread"))
    }

    fn receive(&self) {
        loop {
            match self.shared.slots.receive(&self.listener, 0) {
                Ok(call) => {
                    let _ = self.listener.answer(call.id, Answer::Continue);
                    self.shared.slots.clear(0);
                }
                Err(_) if self.is_over() => return,
                Err(_) => {}
            }
        }
    }

    fn is_over(&self) -> bool {
        let mut polled = [PollFd::new(&self.listener, PollFlags::empty())];
        let _ = rustix::event::poll(&mut polled, Some(&Timespec::default()));
        polled[0].revents().contains(PollFlags::HUP)
    }
}
