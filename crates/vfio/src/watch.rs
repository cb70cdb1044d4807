//! A thread that acts when a program signals one of its eventfds. Linux: `drivers/vfio/virqfd.c`.
//!
//! DIFFERS: Linux acts in the program's write, before that returns (`virqfd_wakeup`); here the
//! kernel wakes the thread, which acts as soon as it runs. Nobody but the kernel is in a write to
//! an eventfd, KVM's among them. Writes that come before it runs are one action. As in Linux the
//! count is taken then, one of it from a semaphore; what was there before the watch began is acted
//! on at once, and stays.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ioasis_iommufd::inject::step;
use ioasis_sys::because;
use ioasis_sys::eventfd::EventFd;
use ioasis_sys::sync::thread;
use ioasis_uapi::{Errno, Error, Result};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

/// Watches an eventfd until it is dropped; no action runs after that.
#[derive(Debug)]
pub(crate) struct Watch {
    eventfd: Arc<EventFd>,
    stop: Arc<EventFd>,
    thread: Option<thread::JoinHandle<()>>,
}

/// What an event is of.
const STOP: u64 = 0;
const SIGNAL: u64 = 1;

impl Watch {
    /// Runs `action` now, if `eventfd` was signalled before, and after each signal; signals that
    /// come together run it once.
    ///
    /// # Errors
    ///
    /// `EMFILE` or `EAGAIN` when there is no fd or no thread.
    pub(crate) fn start(eventfd: Arc<EventFd>, action: Box<dyn Fn() + Send>) -> Result<Self> {
        step("an eventfd that ends a watch")?;
        let stop = Arc::new(EventFd::create()?);
        step("a list of eventfds to wait for")?;
        let list = list(&stop, &eventfd).map_err(because("an eventfd cannot be waited for"))?;
        // As vfio_virqfd_enable, which looks and takes nothing. A write that comes now is an event
        // besides.
        if eventfd.is_signalled() {
            action();
        }
        let watched = Arc::clone(&eventfd);
        step("a thread for an eventfd")?;
        let thread = thread::Builder::new()
            .name("vfio-eventfd".into())
            .spawn(move || run(&list, &watched, &*action))
            .map_err(|_| Error::new(Errno::EAGAIN, "no thread for an eventfd"))?;
        Ok(Self { eventfd, stop, thread: Some(thread) })
    }

    /// The program's eventfd.
    pub(crate) fn eventfd(&self) -> &EventFd {
        &self.eventfd
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

/// Where each write to `eventfd` from now on is an event, whatever its count was.
fn list(stop: &EventFd, eventfd: &EventFd) -> rustix::io::Result<OwnedFd> {
    let list = epoll::create(CreateFlags::CLOEXEC)?;
    let each = EventFlags::IN | EventFlags::ET;
    epoll::add(&list, eventfd.as_fd(), EventData::new_u64(SIGNAL), each)?;
    // One whose count is not zero is an event to begin with.
    let mut before = Vec::with_capacity(1);
    epoll::wait(&list, spare_capacity(&mut before), Some(&Timespec::default()))?;
    epoll::add(&list, stop.as_fd(), EventData::new_u64(STOP), EventFlags::IN)?;
    Ok(list)
}

fn run(list: &OwnedFd, eventfd: &EventFd, action: &dyn Fn()) {
    let mut events = Vec::with_capacity(2);
    loop {
        match epoll::wait(list, spare_capacity(&mut events), None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
            Ok(_) => {}
        }
        let of = |kind| events.iter().any(|event| event.data.u64() == kind);
        let (stopped, signalled) = (of(STOP), of(SIGNAL));
        events.clear();
        if stopped {
            return;
        }
        if signalled && eventfd.take().is_some() {
            action();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ioasis_sys::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    fn watched(eventfd: &Arc<EventFd>) -> (Watch, Arc<AtomicU32>) {
        let count = Arc::new(AtomicU32::new(0));
        let seen = Arc::clone(&count);
        let action = Box::new(move || {
            seen.fetch_add(1, Ordering::SeqCst);
        });
        (Watch::start(Arc::clone(eventfd), action).expect("a watch"), count)
    }

    fn until(count: &AtomicU32, wanted: u32) {
        while count.load(Ordering::SeqCst) < wanted {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// vfio_virqfd_enable polls the eventfd and takes nothing from it.
    #[test]
    fn what_was_signalled_before_is_acted_on_at_once_and_stays() {
        let eventfd = Arc::new(EventFd::create().expect("an eventfd"));
        eventfd.signal();
        eventfd.signal();
        let (watch, count) = watched(&eventfd);
        assert_eq!(count.load(Ordering::SeqCst), 1);
        thread::sleep(Duration::from_millis(5));
        assert_eq!((count.load(Ordering::SeqCst), eventfd.is_signalled()), (1, true));
        eventfd.signal();
        until(&count, 2);
        drop(watch);
        assert_eq!(eventfd.take(), None, "the next signal took all");
    }

    /// eventfd_ctx_do_read takes one of a semaphore, and each write is one wake-up.
    #[test]
    fn a_semaphore_gives_one_of_its_count_for_each_write() {
        use rustix::event::{EventfdFlags, eventfd};
        let flags = EventfdFlags::SEMAPHORE | EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        let fd = eventfd(0, flags).expect("an eventfd");
        let eventfd =
            Arc::new(EventFd::from_fd(fd.try_clone().expect("a duplicate")).expect("one"));
        let (watch, count) = watched(&eventfd);
        rustix::io::write(&fd, &5_u64.to_ne_bytes()).expect("written");
        until(&count, 1);
        thread::sleep(Duration::from_millis(5));
        drop(watch);
        assert_eq!(count.load(Ordering::SeqCst), 1);
        let left = std::iter::from_fn(|| eventfd.take()).count();
        assert_eq!(left, 4);
    }

    #[test]
    fn an_action_follows_each_signal_and_none_follows_the_end() {
        let eventfd = Arc::new(EventFd::create().expect("an eventfd"));
        let (watch, count) = watched(&eventfd);
        assert_eq!(count.load(Ordering::SeqCst), 0);
        eventfd.signal();
        until(&count, 1);
        assert!(!eventfd.is_signalled(), "the count was taken");
        eventfd.signal();
        until(&count, 2);
        drop(watch);
        let before = count.load(Ordering::SeqCst);
        eventfd.signal();
        thread::sleep(Duration::from_millis(5));
        assert_eq!(count.load(Ordering::SeqCst), before);
    }
}
