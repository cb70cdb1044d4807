//! Queues without a file system of the run's own.
//!
//! A client's descriptor is one end of a socket pair, in a range of numbers where read and write are stopped and answered
//! here. What poll(2) says comes from the socket itself: a byte lies in it as long as there is something to read. The
//! other end hangs up when the last descriptor is closed, before the close returns.
//!
//! DIFFERS: a descriptor that was duplicated to a number outside the range reads that byte, and there are no more queues than
//! numbers.
//!
//! Lock order: `Sockets::open` is a leaf, never held while a queue is called.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use ioasis_iommufd::{Client, ClientFile, QueueFile, QueueWatcher};
use ioasis_sys::because;
use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;
use rustix::event::{Timespec, epoll};
use rustix::fs::fstat;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::closer::Closer;
use crate::filter::QueueFds;

/// A queue that a client has open.
#[derive(Debug)]
pub(crate) struct Queue {
    /// Device and inode of the client's end.
    identity: (u64, u64),
    pub(crate) file: Arc<dyn ClientFile>,
    /// Where a file with positions is read next.
    position: AtomicU64,
    bell: Arc<Bell>,
}

/// Bytes of a stray write that are looked at.
const STRAY: usize = 4096;

/// Makes the client's end readable.
#[derive(Debug)]
struct Bell {
    ours: OwnedFd,
    /// There is a byte in the client's end, or one is on its way.
    rung: AtomicBool,
}

impl QueueWatcher for Bell {
    fn readable(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            let _ = rustix::net::send(&self.ours, b"x", SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
    }
}

impl Queue {
    /// One read(2) to the caller's `address`.
    ///
    /// # Errors
    ///
    /// Those of the file.
    pub(crate) fn read(
        &self,
        file: &dyn QueueFile,
        client: &dyn Client,
        (address, length): (u64, u64),
    ) -> Result<u64> {
        if !file.is_seekable() {
            return file.read(client, address, length);
        }
        let offset = self.position.load(Ordering::Acquire);
        let read = file.read_at(client, address, (offset, length))?;
        self.position.store(offset + read, Ordering::Release);
        Ok(read)
    }

    /// Hands over what was written to duplicates outside the range, which arrived at our end.
    fn take_strays(&self) {
        let Some(queue) = self.file.queue() else { return };
        let mut bytes = [0; STRAY];
        while let Ok((_, length)) =
            rustix::net::recv(&self.bell.ours, &mut bytes, RecvFlags::DONTWAIT)
            && length > 0
        {
            queue.stray_write(&bytes[..length]);
        }
    }

    /// Takes the byte out of the client's end, unless there still is something to read.
    pub(crate) fn settle(&self, theirs: &OwnedFd) {
        let Some(queue) = self.file.queue() else { return };
        if queue.is_readable() {
            return;
        }
        self.bell.rung.store(false, Ordering::Release);
        let mut byte = [0];
        while rustix::net::recv(theirs, &mut byte, RecvFlags::DONTWAIT)
            .is_ok_and(|(_, got)| got > 0)
        {}
        if queue.is_readable() {
            self.bell.readable();
        }
    }
}

/// Fills the socket of a queue that can never be written, so that poll does not call it writable.
fn fill(theirs: &OwnedFd) {
    // Refused or not: a larger socket takes longer to fill.
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(theirs, 0);
    while rustix::net::send(theirs, &[0; 256], SendFlags::DONTWAIT).is_ok() {}
}

/// All queues of a run.
#[derive(Debug)]
pub(crate) struct Sockets {
    /// The numbers at which reads and writes are stopped. Immutable.
    pub(crate) fds: Option<QueueFds>,
    /// Says which of our ends hang up. Immutable.
    epoll: OwnedFd,
    closer: Closer,
    open: Mutex<Vec<Arc<Queue>>>,
    /// How many there are.
    count: AtomicUsize,
}

impl Sockets {
    /// None yet.
    ///
    /// # Errors
    ///
    /// `EMFILE`.
    pub(crate) fn new(fds: Option<QueueFds>, closer: &Closer) -> Result<Self> {
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(because("no epoll instance"))?;
        let (open, count, closer) = (Mutex::default(), AtomicUsize::new(0), closer.clone());
        Ok(Self { fds, epoll, closer, open, count })
    }

    /// A queue, and the end that a client is to be given.
    ///
    /// # Errors
    ///
    /// `EMFILE`.
    pub(crate) fn publish(&self, file: &Arc<dyn ClientFile>) -> Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                .map_err(because("a queue cannot be made"))?;
        let stat = fstat(&theirs).map_err(because("a queue cannot be looked at"))?;
        let hung_up = epoll::EventFlags::empty();
        epoll::add(&self.epoll, &ours, epoll::EventData::new_u64(stat.st_ino), hung_up)
            .map_err(because("a queue cannot be watched"))?;
        if !file.queue().is_none_or(QueueFile::is_writable) {
            fill(&theirs);
        }
        let bell = Arc::new(Bell { ours, rung: AtomicBool::new(false) });
        let (identity, position) = ((stat.st_dev, stat.st_ino), AtomicU64::new(0));
        let queue = Queue { identity, file: Arc::clone(file), position, bell };
        if let Some(queue_file) = file.queue() {
            queue_file.watch(Arc::clone(&queue.bell) as Arc<dyn QueueWatcher>);
            if queue_file.is_readable() {
                queue.bell.readable();
            }
        }
        self.open.lock().push(Arc::new(queue));
        self.count.fetch_add(1, Ordering::AcqRel);
        Ok(theirs)
    }

    /// The queue with this identity, if it is one of ours.
    pub(crate) fn get(&self, identity: (u64, u64)) -> Option<Arc<Queue>> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.open.lock().iter().find(|queue| queue.identity == identity).cloned()
    }

    /// Readable when a client has closed a queue.
    pub(crate) fn closes(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Begins to close what clients have closed.
    pub(crate) fn drain(&self) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut events = Vec::with_capacity(16);
        let now = Timespec::default();
        let buffer = rustix::buffer::spare_capacity(&mut events);
        if epoll::wait(&self.epoll, buffer, Some(&now)).is_err() {
            return;
        }
        for event in events {
            let inode = event.data.u64();
            self.close(|queue| queue.identity.1 == inode);
        }
    }

    /// Begins to close every queue, whoever has it open.
    pub(crate) fn close_all(&self) {
        self.close(|_| true);
    }

    fn close(&self, is_it: impl Fn(&Queue) -> bool) {
        let mut open = self.open.lock();
        let closed: Vec<_> = open.extract_if(.., |queue| is_it(queue)).collect();
        drop(open);
        self.count.fetch_sub(closed.len(), Ordering::AcqRel);
        for queue in closed {
            queue.take_strays();
            self.closer.begin(Box::new(move || queue.file.close()));
        }
    }
}
