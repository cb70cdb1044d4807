//! What wakes the thread of a device.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};

use crate::bus::Doorbells;

use ioasis_sys::sync::Mutex;

/// Wakes the thread of a device, from anywhere and at any time: a model keeps one to be told of
/// what comes from outside.
#[derive(Clone, Debug, Default)]
pub struct Alarm(Arc<State>);

#[derive(Debug, Default)]
struct State {
    rung: AtomicBool,
    /// The thread that is to wake up, while there is one.
    sleeper: Mutex<Option<Sleeper>>,
}

/// A thread that sleeps by itself, or where it hears of doorbells.
#[derive(Clone, Debug)]
pub(crate) struct Sleeper {
    thread: Thread,
    doorbells: Option<Arc<dyn Doorbells>>,
}

impl Sleeper {
    pub(crate) fn new(thread: Thread, doorbells: Option<Arc<dyn Doorbells>>) -> Self {
        Self { thread, doorbells }
    }

    pub(crate) fn wake(&self) {
        self.thread.unpark();
        if let Some(doorbells) = &self.doorbells {
            doorbells.wake();
        }
    }
}

impl Alarm {
    /// Has the device look at once, or as soon as there is somebody to look.
    pub fn ring(&self) {
        if !self.0.rung.swap(true, Ordering::SeqCst)
            && let Some(sleeper) = &*self.0.sleeper.lock()
        {
            sleeper.wake();
        }
    }

    /// This thread is the one to wake.
    pub(crate) fn watch(&self, doorbells: Option<Arc<dyn Doorbells>>) {
        *self.0.sleeper.lock() = Some(Sleeper::new(thread::current(), doorbells));
    }

    /// Nobody is.
    pub(crate) fn forget(&self) {
        *self.0.sleeper.lock() = None;
    }

    /// Whether it rang and nobody took that.
    pub(crate) fn is_rung(&self) -> bool {
        self.0.rung.load(Ordering::SeqCst)
    }

    /// Whether it rang since this was last asked.
    pub(crate) fn take(&self) -> bool {
        self.0.rung.load(Ordering::Acquire) && self.0.rung.swap(false, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn whoever_sleeps_is_woken_and_hears_of_it_once() {
        let alarm = Alarm::default();
        let rings = alarm.clone();
        let sleeper = thread::spawn(move || {
            alarm.watch(None);
            let begin = Instant::now();
            while !alarm.take() {
                thread::park_timeout(Duration::from_secs(60));
                assert!(begin.elapsed() < Duration::from_secs(50), "it was woken");
            }
            assert!(!alarm.take());
        });
        thread::sleep(Duration::from_millis(20));
        rings.ring();
        sleeper.join().expect("it woke up");
    }
}
