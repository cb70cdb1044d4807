//! Files that are read, written and polled: fault and event queues, settings that are texts.
//!
//! They are files of the run's own file system ([`FileSystem`]) where there is one: files as all others, whose every descriptor
//! is as good as any. Where /dev/fuse does not open they are sockets, at numbers where the filter stops read and write
//! ([`Sockets`]).

mod sockets;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use ioasis_iommufd::{ClientFile, inject};
use ioasis_sys::fuse::Mounted;
use ioasis_uapi::Result;
use rustix::fs::OFlags;

use crate::closer::Closer;
use crate::filter::QueueFds;
use crate::fuse::FileSystem;
use crate::view::DeviceNodes;
pub(crate) use sockets::{Queue, Sockets};

/// All such files of a run.
#[derive(Debug)]
pub(crate) enum Queues {
    /// As files.
    Files(Arc<FileSystem>),
    /// As sockets.
    Sockets(Sockets),
}

impl Queues {
    /// None yet: of the file system, or of sockets at the numbers that the filter was told.
    ///
    /// # Errors
    ///
    /// `EMFILE`; `EAGAIN` if the system has no thread left.
    pub(crate) fn new(
        mounted: Option<(Mounted, DeviceNodes)>,
        fds: Option<QueueFds>,
        closer: &Closer,
    ) -> Result<Self> {
        match mounted {
            Some((mounted, devices)) => {
                FileSystem::start(mounted, devices, closer).map(Self::Files)
            }
            None => Sockets::new(fds, closer).map(Self::Sockets),
        }
    }

    /// The file system, where there is one.
    pub(crate) fn file_system(&self) -> Option<&FileSystem> {
        if let Self::Files(files) = self { Some(files) } else { None }
    }

    /// The sockets, where that is what they are.
    pub(crate) fn sockets(&self) -> Option<&Sockets> {
        if let Self::Sockets(sockets) = self { Some(sockets) } else { None }
    }

    /// What a client is to be given, for `file`.
    ///
    /// # Errors
    ///
    /// `EMFILE`, `ENOMEM`; `file` is closed then.
    pub(crate) fn publish(&self, file: &Arc<dyn ClientFile>, access: OFlags) -> Result<OwnedFd> {
        inject::step("a queue's file").inspect_err(|_| file.close())?;
        match self {
            Self::Files(files) => files.open(file, access),
            Self::Sockets(sockets) => sockets.publish(file).inspect_err(|_| file.close()),
        }
    }

    /// What stands behind the file with this device and inode, if it is one of these.
    pub(crate) fn get(&self, identity: (u64, u64)) -> Option<Arc<dyn ClientFile>> {
        match self {
            Self::Files(files) => files.get(identity),
            Self::Sockets(sockets) => sockets.get(identity).map(|queue| Arc::clone(&queue.file)),
        }
    }

    /// Readable when a client has closed one; files are told to a thread of their own.
    pub(crate) fn closes(&self) -> Option<BorrowedFd<'_>> {
        self.sockets().map(Sockets::closes)
    }

    /// Begins to close what clients have closed.
    pub(crate) fn drain(&self) {
        match self {
            Self::Files(files) => files.drain(),
            Self::Sockets(sockets) => sockets.drain(),
        }
    }

    /// Begins to close every one, whoever has it open.
    pub(crate) fn close_all(&self) {
        match self {
            Self::Files(files) => files.close_all(),
            Self::Sockets(sockets) => sockets.close_all(),
        }
    }
}

#[cfg(test)]
mod tests;
