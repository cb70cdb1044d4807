//! Fault and event queues: files that are read, written and polled.
//!
//! A client's descriptor is one end of a socket pair, in a range of numbers where read and write are stopped and answered
//! here. What poll(2) says comes from the socket itself: a byte lies in it as long as there is something to read. The
//! other end hangs up when the last descriptor is closed, before the close returns.
//!
//! DIFFERS: a descriptor that was duplicated to a number outside the range reads that byte.
//!
//! Lock order: `Queues::open` is a leaf, never held while a queue is called.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ioasis_iommufd::{ClientFile, QueueFile, QueueWatcher, inject};
use ioasis_sys::because;
use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;
use rustix::event::{Timespec, epoll};
use rustix::fs::fstat;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::filter::QueueFds;

/// A queue that a client has open.
#[derive(Debug)]
pub(crate) struct Queue {
    /// Device and inode of the client's end.
    identity: (u64, u64),
    pub(crate) file: Arc<dyn ClientFile>,
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
pub(crate) struct Queues {
    /// The numbers at which reads and writes are stopped. Immutable.
    pub(crate) fds: Option<QueueFds>,
    /// Says which of our ends hang up. Immutable.
    epoll: OwnedFd,
    open: Mutex<Vec<Arc<Queue>>>,
    /// How many there are.
    count: AtomicUsize,
}

impl Queues {
    /// None yet.
    ///
    /// # Errors
    ///
    /// `EMFILE`.
    pub(crate) fn new(fds: Option<QueueFds>) -> Result<Self> {
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(because("no epoll instance"))?;
        Ok(Self { fds, epoll, open: Mutex::default(), count: AtomicUsize::new(0) })
    }

    /// A queue, and the end that a client is to be given.
    ///
    /// # Errors
    ///
    /// `EMFILE`.
    pub(crate) fn publish(&self, file: &Arc<dyn ClientFile>) -> Result<OwnedFd> {
        inject::step("a queue's sockets")?;
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
        let queue = Queue { identity: (stat.st_dev, stat.st_ino), file: Arc::clone(file), bell };
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

    /// Closes what clients have closed.
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

    /// Closes every queue, whoever has it open.
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
            queue.file.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ioasis_iommufd::Client;
    use rustix::event::{PollFd, PollFlags};

    #[derive(Debug, Default)]
    struct Fake {
        records: AtomicUsize,
        closed: AtomicUsize,
        watcher: Mutex<Option<Arc<dyn QueueWatcher>>>,
    }

    impl ClientFile for Fake {
        fn name(&self) -> &'static str {
            "anon_inode:[fake]"
        }

        fn queue(&self) -> Option<&dyn QueueFile> {
            Some(self)
        }

        fn close(&self) {
            self.closed.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl QueueFile for Fake {
        fn read(&self, _: &dyn Client, _: u64, _: u64) -> Result<u64> {
            Ok(0)
        }

        fn write(&self, _: &dyn Client, _: u64, _: u64) -> Result<u64> {
            Ok(0)
        }

        fn is_readable(&self) -> bool {
            self.records.load(Ordering::SeqCst) > 0
        }

        fn watch(&self, watcher: Arc<dyn QueueWatcher>) {
            *self.watcher.lock() = Some(watcher);
        }
    }

    fn is_readable(end: &OwnedFd) -> bool {
        let mut polled = [PollFd::new(end, PollFlags::IN | PollFlags::OUT)];
        let _ = rustix::event::poll(&mut polled, Some(&Timespec::default()));
        assert!(polled[0].revents().contains(PollFlags::OUT), "a queue can always be written");
        polled[0].revents().contains(PollFlags::IN)
    }

    #[test]
    fn a_queue_polls_readable_as_long_as_there_is_something_to_read() {
        let queues = Queues::new(None).expect("epoll");
        let fake = Arc::new(Fake::default());
        let file: Arc<dyn ClientFile> = Arc::<Fake>::clone(&fake);
        let theirs = queues.publish(&file).expect("a socket");
        let stat = fstat(&theirs).expect("a socket");
        let queue = queues.get((stat.st_dev, stat.st_ino)).expect("it was just published");
        assert!(!is_readable(&theirs));
        for _ in 0..3 {
            fake.records.store(2, Ordering::SeqCst);
            let watcher = fake.watcher.lock().clone().expect("it watches");
            watcher.readable();
            watcher.readable();
            assert!(is_readable(&theirs));
            fake.records.store(1, Ordering::SeqCst);
            queue.settle(&theirs);
            assert!(is_readable(&theirs), "one record is left");
            fake.records.store(0, Ordering::SeqCst);
            queue.settle(&theirs);
            assert!(!is_readable(&theirs));
        }
    }

    #[test]
    fn a_queue_is_closed_with_its_last_descriptor() {
        let queues = Queues::new(None).expect("epoll");
        let fake = Arc::new(Fake::default());
        let file: Arc<dyn ClientFile> = Arc::<Fake>::clone(&fake);
        let theirs = queues.publish(&file).expect("a socket");
        let stat = fstat(&theirs).expect("a socket");
        let copy = theirs.try_clone().expect("a copy");
        drop(theirs);
        queues.drain();
        assert_eq!(fake.closed.load(Ordering::SeqCst), 0);
        drop(copy);
        queues.drain();
        assert_eq!(fake.closed.load(Ordering::SeqCst), 1);
        assert!(queues.get((stat.st_dev, stat.st_ino)).is_none());
        queues.close_all();
        assert_eq!(fake.closed.load(Ordering::SeqCst), 1, "once");
    }
}
