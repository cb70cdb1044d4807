//! Ends what clients have closed, where nobody waits for it longer than for an ordinary close.
//!
//! A device waits for the DMA it is doing, and that for the page it reads: one that its program never gives (a
//! userfaultfd, a FUSE file) keeps its close for ever. So neither a receiver nor the main thread closes anything. A
//! [`Closer`] has threads of its own for it: one works, in the order in which the closes began, as the kernel closes
//! the descriptors of a process that ends, and another goes on behind a close that takes longer than [`PATIENCE`].
//!
//! A call whose answer a close may change waits for the closes begun before it ([`Closer::wait`]),
//! so that a program that closed a file and asks again finds it closed; but for [`PATIENCE`] in
//! all, and for a close that is stuck never again. A close whose thread wants nothing but a
//! processor is not stuck, however long the system lets it wait for one.
//!
//! `Inner::state` is a leaf lock; no close runs under it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ioasis_sys::sync::{Condvar, Mutex, MutexGuard, Woken};
use ioasis_uapi::{Errno, Error, Result};

/// How long a close is waited for. The close of a device takes less than 1 ms; on two processors with eight programs
/// at work on each, 20 ms were not enough once in some hundred closes.
const PATIENCE: Duration = Duration::from_millis(500);
/// The same after one was stuck, for [`WARY`]: a program may not make others wait time and again.
const PATIENCE_WHEN_WARY: Duration = Duration::from_millis(20);
const WARY: Duration = Duration::from_secs(10);
/// Threads that are always there, so that a close can be stuck where the system has no more of them.
const KEPT: usize = 2;
/// Threads at once, and so the closes that can be stuck without keeping others; more is queued behind them.
const THREADS: usize = 64;
/// How long a thread beyond [`KEPT`] stays without work.
const IDLE: Duration = Duration::from_secs(2);

type Close = Box<dyn FnOnce() + Send>;

/// Does closes, in the order in which they begin.
#[derive(Clone)]
pub(crate) struct Closer(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// There is more to do, or a thread is stuck.
    begun: Condvar,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    /// Not begun with yet, by number.
    queue: VecDeque<(u64, Close)>,
    /// Begun with.
    running: Vec<Running>,
    /// The number of the next close.
    next: u64,
    threads: usize,
    idle: usize,
    wary_until: Option<Instant>,
}

/// A close that has begun.
struct Running {
    number: u64,
    /// The number of its thread.
    tid: u32,
    /// When it began, or was last seen to compute when it would have been stuck.
    since: Instant,
    /// It waits for something for longer than others wait for it.
    is_stuck: bool,
}

impl fmt::Debug for Closer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.state.lock();
        write!(f, "Closer({} queued, {} running)", state.queue.len(), state.running.len())
    }
}

impl State {
    fn patience(&self, now: Instant) -> Duration {
        let wary = self.wary_until.is_some_and(|until| now < until);
        if wary { PATIENCE_WHEN_WARY } else { PATIENCE }
    }

    /// Finds out which closes are stuck. The system is asked once for each, when its time is over.
    fn judge(&mut self, now: Instant) {
        let patience = self.patience(now);
        let late = |running: &&mut Running| !running.is_stuck && running.since + patience <= now;
        for running in self.running.iter_mut().filter(late) {
            if is_asleep(running.tid) {
                running.is_stuck = true;
            } else {
                running.since = now;
            }
        }
    }

    /// The close that holds up the queue, if one does.
    fn holder(&self) -> Option<&Running> {
        self.running.iter().find(|running| !running.is_stuck)
    }

    /// When it is to be judged.
    fn judged_at(&self, now: Instant) -> Option<Instant> {
        self.holder().map(|running| running.since + self.patience(now))
    }

    /// Whether a close with a number below `end` is waited for.
    fn is_awaited(&self, end: u64) -> bool {
        self.queue.iter().any(|&(number, _)| number < end)
            || self.running.iter().any(|running| running.number < end && !running.is_stuck)
    }

    /// Whether all that is awaited would go on if the system gave it a processor.
    fn is_starved(&self) -> bool {
        match self.holder() {
            Some(running) => !is_asleep(running.tid),
            None => !self.queue.is_empty() && self.threads > self.running.len(),
        }
    }

    /// The next close, unless one is running that is not stuck.
    fn take(&mut self, now: Instant) -> Option<(u64, Close)> {
        self.judge(now);
        if self.holder().is_some() {
            return None;
        }
        let next = self.queue.pop_front()?;
        let tid = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        self.running.push(Running { number: next.0, tid, since: now, is_stuck: false });
        Some(next)
    }

    fn end(&mut self, number: u64, now: Instant) {
        if let Some(at) = self.running.iter().position(|running| running.number == number) {
            let running = self.running.swap_remove(at);
            if running.is_stuck && running.since + PATIENCE <= now {
                self.wary_until = Some(now + WARY);
            }
        }
    }
}

impl Closer {
    /// Nothing to be closed yet.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if the system has no thread left.
    pub(crate) fn new() -> Result<Self> {
        let state = Mutex::new(State::default());
        let inner = Inner { state, begun: Condvar::new(), ended: Condvar::new() };
        let closer = Self(Arc::new(inner));
        for _ in 0..KEPT {
            if !closer.add_thread(&mut closer.0.state.lock()) {
                return Err(Error::new(Errno::EAGAIN, "no thread to close files with"));
            }
        }
        Ok(closer)
    }

    /// Begins a close. It is done once the closes begun before are done or stuck.
    pub(crate) fn begin(&self, close: Close) {
        let mut state = self.0.state.lock();
        let number = state.next;
        state.next += 1;
        state.queue.push_back((number, close));
        self.keep_one_idle(&mut state);
        drop(state);
        self.0.begun.notify_one();
    }

    /// Whether [`Closer::wait`] would wait.
    pub(crate) fn is_busy(&self) -> bool {
        let mut state = self.0.state.lock();
        if state.queue.is_empty() && state.running.is_empty() {
            return false;
        }
        state.judge(Instant::now());
        state.is_awaited(state.next)
    }

    /// Waits for the closes that have begun, except those that are stuck, and no longer than for one of those.
    pub(crate) fn wait(&self) {
        let begun = Instant::now();
        let state = self.0.state.lock();
        let (end, patience) = (state.next, state.patience(begun));
        let mut state = self.wait_until(state, begun + patience, |state| state.is_awaited(end));
        while state.is_awaited(end) && begun.elapsed() < PATIENCE && state.is_starved() {
            let later = Instant::now() + patience;
            state = self.wait_until(state, later, |state| state.is_awaited(end));
        }
    }

    /// Waits for all closes; those that last longer than `limit` are left behind.
    pub(crate) fn finish(&self, limit: Duration) {
        let state = self.0.state.lock();
        let _state = self.wait_until(state, Instant::now() + limit, |state| {
            !state.queue.is_empty() || !state.running.is_empty()
        });
    }

    fn wait_until<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        deadline: Instant,
        goes_on: impl Fn(&State) -> bool,
    ) -> MutexGuard<'a, State> {
        loop {
            let now = Instant::now();
            state.judge(now);
            if now >= deadline || !goes_on(&state) {
                return state;
            }
            let until = state.judged_at(now).map_or(deadline, |at| at.min(deadline));
            state = self.0.ended.wait_timeout(state, until.saturating_duration_since(now)).0;
        }
    }

    /// Where something is queued, a thread without work looks again when the one at work may be stuck.
    fn keep_one_idle(&self, state: &mut State) {
        if !state.queue.is_empty() && state.idle == 0 && state.threads < THREADS {
            // Without it, whoever ends next goes on.
            let _added = self.add_thread(state);
        }
    }

    /// Whether there is one more.
    fn add_thread(&self, state: &mut State) -> bool {
        let closer = self.clone();
        let thread = std::thread::Builder::new().name("closer".to_owned());
        let added = thread.spawn(move || closer.work()).is_ok();
        state.threads += usize::from(added);
        added
    }

    fn work(&self) {
        let inner = &*self.0;
        let mut state = inner.state.lock();
        loop {
            let now = Instant::now();
            if let Some((number, close)) = state.take(now) {
                self.keep_one_idle(&mut state);
                drop(state);
                close();
                state = inner.state.lock();
                state.end(number, Instant::now());
                inner.ended.notify_all();
                continue;
            }
            let judged = state.judged_at(now).filter(|_| !state.queue.is_empty());
            let limit = judged.map_or(IDLE, |at| at.saturating_duration_since(now));
            state.idle += 1;
            let (locked, woken) = inner.begun.wait_timeout(state, limit);
            state = locked;
            state.idle -= 1;
            if woken == Woken::TimedOut && state.queue.is_empty() && state.threads > KEPT {
                state.threads -= 1;
                return;
            }
        }
    }
}

/// Whether a thread of this process waits for something other than a processor.
pub(crate) fn is_asleep(tid: u32) -> bool {
    let stat = std::fs::read(format!("/proc/self/task/{tid}/stat")).unwrap_or_default();
    let name_end = stat.iter().rposition(|&byte| byte == b')').unwrap_or_default();
    matches!(stat.get(name_end + 2), Some(b'S' | b'D'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// A close that lasts until the sender is dropped.
    fn stuck(closer: &Closer) -> Sender<()> {
        let (let_go, held) = channel::<()>();
        closer.begin(Box::new(move || assert!(held.recv().is_err())));
        let_go
    }

    /// A close that says when it is done.
    fn told(closer: &Closer) -> Receiver<()> {
        let (tell, done) = channel();
        closer.begin(Box::new(move || tell.send(()).expect("somebody listens")));
        done
    }

    #[test]
    fn what_was_begun_is_done_when_the_wait_is_over_and_in_order() {
        let closer = Closer::new().expect("threads");
        let order = Arc::new(Mutex::new(Vec::new()));
        for number in 0..100 {
            let order = Arc::clone(&order);
            closer.begin(Box::new(move || order.lock().push(number)));
        }
        closer.finish(Duration::from_secs(60));
        assert_eq!(*order.lock(), (0..100).collect::<Vec<_>>());
        assert!(!closer.is_busy());
    }

    #[test]
    fn a_close_that_never_ends_keeps_no_other_and_is_waited_for_once() {
        let closer = Closer::new().expect("threads");
        let held: Vec<_> = (0..8).map(|_| stuck(&closer)).collect();
        let limit = Duration::from_secs(60);
        assert_eq!(told(&closer).recv_timeout(limit), Ok(()), "it went on behind eight");
        closer.wait();
        while closer.is_busy() {
            closer.wait();
        }
        drop(held);
        closer.finish(limit);
        assert_eq!(format!("{closer:?}"), "Closer(0 queued, 0 running)");
    }

    #[test]
    fn a_close_that_wants_only_a_processor_is_waited_for_though_another_was_stuck() {
        let closer = Closer::new().expect("threads");
        closer.0.state.lock().wary_until = Some(Instant::now() + Duration::from_secs(60));
        let (tell, done) = channel();
        closer.begin(Box::new(move || {
            let begun = Instant::now();
            while begun.elapsed() < 5 * PATIENCE_WHEN_WARY {
                std::hint::spin_loop();
            }
            tell.send(()).expect("somebody listens");
        }));
        closer.wait();
        assert_eq!(done.try_recv(), Ok(()));
    }

    #[test]
    fn the_end_of_a_run_leaves_a_stuck_close_behind() {
        let closer = Closer::new().expect("threads");
        let held = stuck(&closer);
        closer.finish(Duration::from_millis(50));
        assert_eq!(format!("{closer:?}"), "Closer(0 queued, 1 running)");
        drop(held);
    }
}
