//! An eventfd a client handed over: the way an interrupt reaches it.

mod aio;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ioasis_uapi::{Errno, Error, Result};

use rustix::io::ReadWriteFlags;

use crate::because;

/// An eventfd, known to be one.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// Takes over `fd` if it is an eventfd.
    ///
    /// # Errors
    ///
    /// `EINVAL` when it is something else, as `eventfd_ctx_fileget` in Linux's fs/eventfd.c answers.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        use std::os::fd::AsRawFd;
        let link = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())
            .map_err(because("an fd of ours cannot be looked at"))?;
        if link.as_bytes() == b"anon_inode:[eventfd]" {
            Ok(Self(fd))
        } else {
            Err(Error::new(Errno::EINVAL, "the fd is no eventfd"))
        }
    }

    /// An eventfd of our own, with counter zero.
    ///
    /// # Errors
    ///
    /// `EMFILE`, `ENOMEM`.
    pub fn create() -> Result<Self> {
        use rustix::event::{EventfdFlags, eventfd};
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(because("no eventfd to be had"))?;
        Ok(Self(fd))
    }

    /// Adds one to the counter, so that a waiting reader wakes. Never waits: a counter at its end is readable already,
    /// and a device has no one to tell about an interrupt that coalesces.
    pub fn signal(&self) {
        if aio::signal(self.0.as_fd()) || self.at_the_end() {
            return;
        }
        // Without asynchronous I/O a client that fills the counter now can make us wait.
        let written = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
        debug_assert!(
            written.is_ok() || written == Err(rustix::io::Errno::AGAIN),
            "an eventfd takes a one"
        );
    }

    /// The counter, which becomes zero (or less by one for a semaphore); `None` when it is zero.
    #[must_use]
    pub fn take(&self) -> Option<u64> {
        let mut count = [0; 8];
        let mut bufs = [std::io::IoSliceMut::new(&mut count)];
        // The position -1 is a stream's own.
        let read = rustix::io::preadv2(&self.0, &mut bufs, u64::MAX, ReadWriteFlags::NOWAIT);
        (read == Ok(8)).then_some(u64::from_ne_bytes(count))
    }

    /// Whether the counter is not zero.
    #[must_use]
    pub fn is_signalled(&self) -> bool {
        let ready = rustix::event::PollFd::new(&self.0, rustix::event::PollFlags::IN);
        rustix::event::poll(&mut [ready], Some(&rustix::event::Timespec::default())) == Ok(1)
    }

    fn at_the_end(&self) -> bool {
        let ready = rustix::event::PollFd::new(&self.0, rustix::event::PollFlags::OUT);
        rustix::event::poll(&mut [ready], Some(&rustix::event::Timespec::default())) == Ok(0)
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_arrives_once_per_call() {
        let event = EventFd::create().expect("an eventfd");
        assert_eq!(event.take(), None);
        event.signal();
        event.signal();
        assert_eq!(event.take(), Some(2));
        assert_eq!(event.take(), None);
    }

    #[test]
    fn only_an_eventfd_is_taken() {
        let event = EventFd::create().expect("an eventfd");
        assert!(EventFd::from_fd(event.0.try_clone().expect("a duplicate")).is_ok());
        let (reader, _writer) = rustix::pipe::pipe().expect("a pipe");
        assert_eq!(EventFd::from_fd(reader).expect_err("a pipe").errno, Errno::EINVAL);
        let file =
            rustix::fs::memfd_create("anon_inode:[eventfd]", rustix::fs::MemfdFlags::CLOEXEC)
                .expect("a memfd");
        assert_eq!(
            EventFd::from_fd(file).expect_err("a file that borrows the name").errno,
            Errno::EINVAL
        );
    }

    #[test]
    fn a_full_blocking_counter_does_not_stop_the_device() {
        use rustix::event::{EventfdFlags, eventfd};
        let fd = eventfd(0, EventfdFlags::CLOEXEC).expect("a blocking eventfd");
        rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).expect("nearly full");
        let event = EventFd::from_fd(fd).expect("an eventfd");
        event.signal();
        // Where a write stops, eventfd_signal goes on to the last number there is.
        assert_eq!(event.take(), Some(u64::MAX));
    }

    #[test]
    fn a_client_that_fills_the_counter_meanwhile_does_not_stop_the_device() {
        use rustix::event::{EventfdFlags, eventfd};
        use std::sync::Arc;
        use std::sync::atomic::{AtomicBool, Ordering};
        use std::time::{Duration, Instant};
        let fd = eventfd(0, EventfdFlags::CLOEXEC).expect("a blocking eventfd");
        let event = Arc::new(EventFd::from_fd(fd).expect("an eventfd"));
        let over = Arc::new(AtomicBool::new(false));
        let (theirs, stop) = (Arc::clone(&event), Arc::clone(&over));
        let filler = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if !theirs.at_the_end() {
                    let _ = rustix::io::write(&theirs.0, &(u64::MAX - 1).to_ne_bytes());
                }
            }
        });
        let ours = Arc::clone(&event);
        let device = std::thread::spawn(move || {
            for _ in 0..100_000 {
                let _ = ours.take();
                ours.signal();
            }
        });
        let deadline = Instant::now() + Duration::from_secs(60);
        while !device.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        let finished = device.is_finished();
        over.store(true, Ordering::Relaxed);
        // Whoever still waits for room gets it.
        while !filler.is_finished() || !device.is_finished() {
            let _ = event.take();
        }
        assert!(finished, "the device waited for the client");
    }

    #[test]
    fn signals_of_many_batches_all_arrive() {
        let event = EventFd::create().expect("an eventfd");
        for _ in 0..1000 {
            event.signal();
        }
        assert_eq!(event.take(), Some(1000));
    }
}
