//! Writes that may wait, each in a thread of its own.
//!
//! The thread that takes requests waits for none of them. Whoever is killed while it waits gets its answer at once, so that it
//! ends; what the write began goes on. Another signal interrupts nothing, as in the kernel's store functions.
//!
//! `Writes::state` is a leaf.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ioasis_sys::fuse::{Answer, Connection};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result};

/// Writes at once.
const MOST: usize = 512;
/// How often it is looked whether somebody who got a signal was killed: the kernel tells of the first signal only.
const LOOK: Duration = Duration::from_millis(20);

/// Those that are on their way.
#[derive(Debug)]
pub(super) struct Writes {
    connection: Arc<Connection>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By the number of its request.
    writes: BTreeMap<u64, Write>,
    /// Threads that are at work, whether somebody waits for them or not.
    threads: usize,
    is_watched: bool,
}

#[derive(Clone, Copy, Debug)]
struct Write {
    tid: u32,
    /// Its caller got a signal.
    is_signalled: bool,
}

impl Writes {
    pub(super) fn new(connection: &Arc<Connection>) -> Arc<Self> {
        Arc::new(Self { connection: Arc::clone(connection), state: Mutex::default() })
    }

    /// Answers the request `unique` of thread `tid` with what `write` returns.
    pub(super) fn begin(
        self: &Arc<Self>,
        unique: u64,
        tid: u32,
        write: impl FnOnce() -> Result<u32> + Send + 'static,
    ) {
        let mut state = self.state.lock();
        let full = state.threads >= MOST;
        if !full {
            state.threads += 1;
            state.writes.insert(unique, Write { tid, is_signalled: false });
        }
        drop(state);
        let busy = Error::new(Errno::EAGAIN, "too many writes are on their way");
        if full {
            return self.connection.answer(unique, Err(busy));
        }
        let this = Arc::clone(self);
        let work = move || {
            let done = write();
            this.state.lock().threads -= 1;
            this.end(unique, done);
        };
        let thread = std::thread::Builder::new().name("sysfs-write".to_owned()).spawn(work);
        if thread.is_err() {
            self.state.lock().threads -= 1;
            self.end(unique, Err(busy));
        }
    }

    /// Whoever made the request `unique` got a signal.
    pub(super) fn signalled(self: &Arc<Self>, unique: u64) {
        let mut state = self.state.lock();
        let Some(write) = state.writes.get_mut(&unique) else { return };
        write.is_signalled = true;
        if state.is_watched {
            return;
        }
        let this = Arc::clone(self);
        let watch = move || {
            while this.look() {
                std::thread::sleep(LOOK);
            }
        };
        // Without a thread it waits until the write is done.
        let thread = std::thread::Builder::new().name("sysfs-signals".to_owned()).spawn(watch);
        state.is_watched = thread.is_ok();
    }

    /// Answers those that were killed; whether there is somebody left to look at.
    fn look(&self) -> bool {
        let mut state = self.state.lock();
        let signalled = |(&unique, write): (&u64, &Write)| (unique, write.tid, write.is_signalled);
        let all: Vec<_> =
            state.writes.iter().map(signalled).filter(|&(.., signalled)| signalled).collect();
        state.is_watched = !all.is_empty();
        drop(state);
        for &(unique, tid, _) in &all {
            if is_killed(tid) {
                self.end(unique, Err(Error::new(Errno::EINTR, "the task was killed")));
            }
        }
        !all.is_empty()
    }

    /// Answers a request, unless it has been.
    fn end(&self, unique: u64, done: Result<u32>) {
        if self.state.lock().writes.remove(&unique).is_some() {
            self.connection.answer(unique, done.map(Answer::Written));
        }
    }
}

/// Whether a task that waits has a signal that ends it: whatever that is, each of its threads gets SIGKILL
/// (kernel/signal.c, `complete_signal`).
fn is_killed(tid: u32) -> bool {
    const SIGKILL: u64 = 1 << 8;
    let Ok(status) = std::fs::read_to_string(format!("/proc/{tid}/status")) else { return true };
    let pending = |line: &str| {
        let set = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(set.trim(), 16).ok()
    };
    status.lines().filter_map(pending).any(|set| set & SIGKILL != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_runs_is_not_killed_and_one_that_is_gone_is() {
        assert!(!is_killed(std::process::id()));
        assert!(is_killed(u32::MAX));
    }
}
