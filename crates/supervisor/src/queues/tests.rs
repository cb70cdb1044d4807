use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use ioasis_iommufd::{Destination, QueueFile, QueueWatcher, Source};
use ioasis_sys::sync::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::fstat;

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
    fn read_to(&self, _: u64, _: u64, _: &mut dyn Destination) -> Result<u64> {
        Ok(0)
    }

    fn write_from(&self, _: u64, _: &mut dyn Source) -> Result<u64> {
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
    let closer = Closer::new().expect("threads");
    let queues = Sockets::new(None, &closer).expect("epoll");
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
    let closer = Closer::new().expect("threads");
    let queues = Sockets::new(None, &closer).expect("epoll");
    let fake = Arc::new(Fake::default());
    let file: Arc<dyn ClientFile> = Arc::<Fake>::clone(&fake);
    let theirs = queues.publish(&file).expect("a socket");
    let stat = fstat(&theirs).expect("a socket");
    let copy = theirs.try_clone().expect("a copy");
    drop(theirs);
    queues.drain();
    closer.wait();
    assert_eq!(fake.closed.load(Ordering::SeqCst), 0);
    drop(copy);
    queues.drain();
    closer.wait();
    assert_eq!(fake.closed.load(Ordering::SeqCst), 1);
    assert!(queues.get((stat.st_dev, stat.st_ino)).is_none());
    queues.close_all();
    closer.wait();
    assert_eq!(fake.closed.load(Ordering::SeqCst), 1, "once");
}
