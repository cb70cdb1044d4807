//! Threads for calls that may take long, made as they are needed.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ioasis_sys::sync::{Condvar, Mutex, Woken};

/// Threads at once. A call that finds all of them busy waits for one.
const THREADS: usize = 256;
/// How long a thread waits for another call before it ends.
const IDLE: Duration = Duration::from_secs(2);

type Job = Box<dyn FnOnce() + Send>;

/// A pool of threads.
#[derive(Clone, Default)]
pub(crate) struct Workers {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state.lock();
        write!(f, "Workers({} jobs, {} threads)", state.jobs.len(), state.threads)
    }
}

impl Workers {
    /// Does `job` in a thread; in this one if the system has no thread left.
    pub(crate) fn submit(&self, job: Job) {
        let mut state = self.shared.state.lock();
        state.jobs.push_back(job);
        if state.idle >= state.jobs.len() || state.threads >= THREADS {
            drop(state);
            self.shared.more.notify_one();
            return;
        }
        state.threads += 1;
        drop(state);
        let shared = Arc::clone(&self.shared);
        let builder = std::thread::Builder::new().name("worker".to_owned());
        if builder.spawn(move || shared.work()).is_err() {
            self.shared.state.lock().threads -= 1;
            let job = self.shared.state.lock().jobs.pop_back();
            if let Some(job) = job {
                job();
            }
        }
    }
}

impl Shared {
    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = self.state.lock();
                continue;
            }
            state.idle += 1;
            let (locked, woken) = self.more.wait_timeout(state, IDLE);
            state = locked;
            state.idle -= 1;
            if woken == Woken::TimedOut && state.jobs.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    #[test]
    fn jobs_that_wait_for_each_other_all_run() {
        let workers = Workers::default();
        let barrier = Arc::new(Barrier::new(9));
        for _ in 0..8 {
            let barrier = Arc::clone(&barrier);
            workers.submit(Box::new(move || {
                barrier.wait();
            }));
        }
        barrier.wait();
    }
}
