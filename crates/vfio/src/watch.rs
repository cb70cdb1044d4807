//! A thread that acts when a program signals one of its eventfds. Linux: `drivers/vfio/virqfd.c`.

use std::os::fd::AsFd;
use std::sync::Arc;

use ioasis_iommufd::inject::step;
use ioasis_sys::eventfd::EventFd;
use ioasis_sys::sync::thread;
use ioasis_uapi::{Errno, Error, Result};
use rustix::event::{PollFd, PollFlags, poll};

/// Watches an eventfd until it is dropped; no action runs after that.
#[derive(Debug)]
pub(crate) struct Watch {
    stop: Arc<EventFd>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Watch {
    /// Runs `action` now, if `eventfd` was signalled before, and after each signal; signals that come together run
    /// it once.
    ///
    /// # Errors
    ///
    /// `EMFILE` or `EAGAIN` when there is no fd or no thread.
    pub(crate) fn start(eventfd: Arc<EventFd>, action: Box<dyn Fn() + Send>) -> Result<Self> {
        step("an eventfd that ends a watch")?;
        let stop = Arc::new(EventFd::create()?);
        let stopped = Arc::clone(&stop);
        step("a thread for an eventfd")?;
        let thread = thread::Builder::new()
            .name("vfio-eventfd".into())
            .spawn(move || run(&stopped, &eventfd, &*action))
            .map_err(|_| Error::new(Errno::EAGAIN, "no thread for an eventfd"))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.signal();
        if let Some(thread) = self.thread.take() {
            // It panics only when an action does, which ends the process anyway.
            let _ = thread.join();
        }
    }
}

fn run(stop: &EventFd, eventfd: &EventFd, action: &dyn Fn()) {
    loop {
        let mut ready = [
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(eventfd.as_fd(), PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
            Ok(_) => {}
        }
        if !ready[0].revents().is_empty() {
            return;
        }
        if eventfd.take().is_some() {
            action();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ioasis_sys::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    #[test]
    fn an_action_follows_each_signal_and_none_follows_the_end() {
        let eventfd = Arc::new(EventFd::create().expect("an eventfd"));
        let count = Arc::new(AtomicU32::new(0));
        eventfd.signal();
        let seen = Arc::clone(&count);
        let action = Box::new(move || {
            seen.fetch_add(1, Ordering::SeqCst);
        });
        let watch = Watch::start(Arc::clone(&eventfd), action).expect("a watch");
        while count.load(Ordering::SeqCst) == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        drop(watch);
        let before = count.load(Ordering::SeqCst);
        eventfd.signal();
        thread::sleep(Duration::from_millis(5));
        assert_eq!(count.load(Ordering::SeqCst), before);
    }
}
