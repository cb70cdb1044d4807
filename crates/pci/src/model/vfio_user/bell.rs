//! What wakes a device whose server has something to say: a thread that waits for its socket and
//! its interrupts, and rings.
//!
//! It rings once and then waits until the device has looked, so that it does not ring on and on.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use ioasis_sys::eventfd::EventFd;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::alarm::Alarm;

/// The thread.
#[derive(Debug)]
pub(super) struct Bell {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    rung: AtomicBool,
    /// The device has looked, or the thread is to stop.
    again: EventFd,
}

impl Bell {
    /// Rings `alarm` when one of `watched` can be read. Without a thread the device finds it when
    /// it next looks.
    pub(super) fn start(alarm: Alarm, watched: [OwnedFd; 2]) -> Option<Self> {
        let again = EventFd::create().ok()?;
        let shared =
            Arc::new(Shared { stop: AtomicBool::new(false), rung: AtomicBool::new(false), again });
        let waits = Arc::clone(&shared);
        let run = move || {
            while !waits.stop.load(Ordering::Acquire) {
                let mut fds = [
                    PollFd::new(&waits.again, PollFlags::IN),
                    PollFd::new(&watched[0], PollFlags::IN),
                    PollFd::new(&watched[1], PollFlags::IN),
                ];
                let only_again = waits.rung.load(Ordering::Acquire);
                let polled = if only_again { &mut fds[..1] } else { &mut fds[..] };
                if rustix::event::poll(polled, None).is_err() {
                    continue;
                }
                if waits.again.take().is_none() && !waits.rung.swap(true, Ordering::AcqRel) {
                    alarm.ring();
                }
            }
        };
        let thread = std::thread::Builder::new().name("vfio-user".into()).spawn(run).ok()?;
        Some(Self { shared, thread: Some(thread) })
    }

    /// The device is about to look: what comes from now on is rung for again.
    pub(super) fn looked(&self) {
        if self.shared.rung.swap(false, Ordering::AcqRel) {
            self.shared.again.signal();
        }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.again.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The eventfds that a server signals: one a vector.
#[derive(Debug)]
pub(super) struct Signals {
    list: OwnedFd,
    eventfds: Vec<EventFd>,
}

impl Signals {
    /// None.
    pub(super) fn new() -> rustix::io::Result<Self> {
        Ok(Self { list: epoll::create(CreateFlags::CLOEXEC)?, eventfds: Vec::new() })
    }

    /// `count` new ones in place of those there are.
    pub(super) fn renew(&mut self, count: usize) -> rustix::io::Result<()> {
        for eventfd in self.eventfds.drain(..) {
            let _ = epoll::delete(&self.list, &eventfd);
        }
        for vector in 0..count {
            let eventfd = EventFd::create().map_err(|_| rustix::io::Errno::MFILE)?;
            let data = EventData::new_u64(vector as u64);
            epoll::add(&self.list, &eventfd, data, EventFlags::IN)?;
            self.eventfds.push(eventfd);
        }
        Ok(())
    }

    pub(super) fn fds(&self) -> Vec<std::os::fd::BorrowedFd<'_>> {
        self.eventfds.iter().map(AsFd::as_fd).collect()
    }

    /// Another descriptor of the list, to be waited for.
    pub(super) fn list(&self) -> rustix::io::Result<OwnedFd> {
        rustix::io::fcntl_dupfd_cloexec(&self.list, 0)
    }

    /// The vectors that were signalled since the last look.
    pub(super) fn take(&self) -> Vec<u16> {
        let mut events = Vec::with_capacity(64);
        let now = Timespec::default();
        if self.eventfds.is_empty()
            || epoll::wait(&self.list, spare_capacity(&mut events), Some(&now)).is_err()
        {
            return Vec::new();
        }
        let vectors = events.iter().filter_map(|event| usize::try_from(event.data.u64()).ok());
        let signalled = |vector: &usize| {
            self.eventfds.get(*vector).is_some_and(|eventfd| eventfd.take().is_some())
        };
        vectors.filter(signalled).filter_map(|vector| u16::try_from(vector).ok()).collect()
    }
}
