//! The threads that receive calls. Each receives a call and answers it itself: nothing is handed over where nothing
//! waits.
//!
//! One of them waits in the kernel. A second one there makes every call dearer: the listener wakes all who wait
//! (`recv_wait_event`, kernel/seccomp.c, queues them without `WQ_FLAG_EXCLUSIVE`), so that one of two is woken for
//! nothing. Who has a call that may wait for a device, a file system or memory of the caller's says so first
//! ([`Pool::may_wait`]): the call is *away* from there on, and another thread receives in its place. What waits without
//! having said so (a page that a userfaultfd or a FUSE file holds back) is noticed by the monitor, which looks every
//! [`TICK`] as long as calls arrive and does the same for it. After that the pool is wary for a while: a call is away
//! from the start unless somebody else waits for the next one, so that no second one has to be noticed.
//!
//! A process can keep as many threads as its share allows ([`share`]); its further calls are parked, each in its
//! notification slot and without a thread, and go on when one of its calls ends. So a process that blocks delays itself.
//! What is bounded, and by what:
//!
//! - threads by [`THREADS`], half of which only go to processes that have none, so that 512 processes that block all
//!   they can leave as many others a thread each; the kernel's own limits are the caller's error, `EAGAIN`;
//! - parked calls by [`PARKED`], of which a process gets a quarter of those that are left; the next one is `EAGAIN`;
//! - slots by the sum of both, so that there is always one to receive into.
//!
//! A program waits for the receiver that its call wakes, and a signal that comes before the call is
//! received ends it with EINTR: receivers take short turns, so that they get a processor at once
//! that others compute on.
//!
//! Nothing here waits for a client. `Pool::state` is a leaf lock.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use ioasis_sys::notify::Notification;
use ioasis_sys::sync::{Condvar, Mutex, MutexGuard, Woken};
use ioasis_uapi::{Errno, Error, Result};

use crate::closer::is_asleep;

/// Threads at once.
const THREADS: usize = 1024;
/// Calls without a thread at once.
const PARKED: usize = 2048;
/// Slots that the pool takes at most.
pub(crate) const SLOTS: usize = THREADS + PARKED;
/// Threads that are always there: one receives, the others take its place where the system has no more of them.
const KEPT: usize = 3;
/// How long a thread beyond them stays without work.
const IDLE: Duration = Duration::from_secs(2);
/// How often the monitor looks: twice with the same call means that it waits. Most calls take a few microseconds.
const TICK: Duration = Duration::from_millis(4);
/// Looks without a call after which the monitor sleeps until the next one.
const QUIET: u32 = 10;
/// Looks after which a call that computes counts as one that waits. A thread that is merely kept from running by others
/// would not be helped by another.
const COMPUTES: u32 = 3;
/// How long the pool is wary after a call that waited without having said so.
const WARY: Duration = Duration::from_secs(10);
/// Threads that receive at once while it is.
const RECEIVERS_WHEN_WARY: usize = 2;

/// How many threads a process may keep, where `away` calls have one in all.
fn share(away: usize) -> usize {
    ((THREADS / 2).saturating_sub(away) / 16).max(1)
}

/// How many calls of a process may be parked, where `parked` are in all.
fn parking_share(parked: usize) -> usize {
    PARKED.saturating_sub(parked).div_ceil(4)
}

/// What one thread has in hand.
#[derive(Debug, Default)]
pub(crate) struct Hand {
    /// The thread's number, for the monitor's look.
    tid: u32,
    /// The call that it has received; 0 for none, and once the call is away.
    call: AtomicU64,
    /// The process that made it, or 0 as long as that is not known.
    owner: AtomicU32,
    /// How many calls it has received.
    received: AtomicU64,
    /// What is guarded by the pool's lock.
    noted: Mutex<Noted>,
}

/// Guarded by the pool's lock besides its own, which nobody else takes.
#[derive(Debug, Default)]
struct Noted {
    /// The process on whose share its call is away.
    away: Option<u32>,
    /// The call and the count that the monitor saw last, and how often it saw that call.
    seen: (u64, u64),
    times: u32,
}

/// What a thread does next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It receives.
    Receive,
    /// It answers a call that was parked in this slot.
    Parked(u32, Notification),
    /// It ends.
    End,
}

/// What becomes of a call of a process that has calls away.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admitted {
    /// It is answered now.
    Now,
    /// It waits in its slot; the next is received into another.
    Parked { instead: u32 },
}

/// All threads that receive.
pub(crate) struct Pool {
    state: Mutex<State>,
    /// A receiver is wanted.
    wanted: Condvar,
    /// How many have the office to receive, the one that is with a call it has not called away included.
    receivers: AtomicUsize,
    /// How many there should be.
    target: AtomicUsize,
    /// How many wait in the kernel.
    receiving: AtomicUsize,
    /// Processes that have calls away.
    blocked: AtomicUsize,
    is_wary: AtomicBool,
    is_monitor_asleep: AtomicBool,
    monitor: OnceLock<Thread>,
    /// A thread's life.
    life: OnceLock<Arc<dyn Fn() + Send + Sync>>,
}

struct State {
    hands: Vec<Arc<Hand>>,
    threads: usize,
    /// Threads without work, those included that have not begun.
    resting: usize,
    /// How many of those are wanted as receivers.
    wanted: usize,
    /// By process.
    away: HashMap<u32, Away>,
    calls_away: usize,
    parked: usize,
    /// Slots that hold no call.
    free: Vec<u32>,
    wary_until: Option<Instant>,
}

#[derive(Default)]
struct Away {
    calls: usize,
    parked: VecDeque<(u32, Notification)>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        let State { threads, calls_away, parked, .. } = &*state;
        write!(f, "Pool({threads} threads, {calls_away} calls away, {parked} parked)")
    }
}

impl Pool {
    /// No threads yet, and the slots to receive into.
    pub(crate) fn new(slots: impl Iterator<Item = u32>) -> Self {
        let free: Vec<u32> = slots.take(SLOTS).collect();
        assert_eq!(free.len(), SLOTS, "a slot for every call");
        let state = State {
            hands: Vec::new(),
            threads: 0,
            resting: 0,
            wanted: 0,
            away: HashMap::new(),
            calls_away: 0,
            parked: 0,
            free,
            wary_until: None,
        };
        Self {
            state: Mutex::new(state),
            wanted: Condvar::new(),
            receivers: AtomicUsize::new(0),
            target: AtomicUsize::new(1),
            receiving: AtomicUsize::new(0),
            blocked: AtomicUsize::new(0),
            is_wary: AtomicBool::new(false),
            is_monitor_asleep: AtomicBool::new(false),
            monitor: OnceLock::new(),
            life: OnceLock::new(),
        }
    }

    /// Starts the threads; each lives by `life`, which begins with [`Pool::enter`].
    ///
    /// # Errors
    ///
    /// `EAGAIN` if the system has no thread left.
    pub(crate) fn start(self: &Arc<Self>, life: impl Fn() + Send + Sync + 'static) -> Result<()> {
        let none = |_| Error::new(Errno::EAGAIN, "no thread to receive with");
        assert!(self.life.set(Arc::new(life)).is_ok(), "a pool is started once");
        let pool = Arc::clone(self);
        let monitor = std::thread::Builder::new().name("monitor".to_owned());
        let monitor = monitor.spawn(move || pool.watch()).map_err(none)?;
        assert!(self.monitor.set(monitor.thread().clone()).is_ok(), "a pool is started once");
        let mut state = self.state.lock();
        for _ in 0..KEPT {
            self.add_thread(&mut state).map_err(none)?;
        }
        self.promote(&mut state).map_err(none)
    }

    /// The calling thread is one of the pool's from here on. It has something to do next.
    pub(crate) fn enter(&self) -> (Arc<Hand>, u32, Next) {
        ioasis_sys::turns::take_short_turns();
        let tid = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        let hand = Arc::new(Hand { tid, ..Hand::default() });
        let mut state = self.state.lock();
        state.hands.push(Arc::clone(&hand));
        let slot = state.free.pop().expect("a slot for every thread");
        let next = self.rest(&hand, state);
        (hand, slot, next)
    }

    /// The thread is about to wait for a call in the kernel, by `wait`.
    pub(crate) fn receive<R>(&self, wait: impl FnOnce() -> R) -> R {
        self.receiving.fetch_add(1, Ordering::AcqRel);
        let received = wait();
        self.receiving.fetch_sub(1, Ordering::AcqRel);
        received
    }

    /// The thread has received the call `id`.
    pub(crate) fn received(&self, hand: &Hand, id: u64) {
        hand.owner.store(0, Ordering::Relaxed);
        hand.received.store(hand.received.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        hand.call.store(id, Ordering::SeqCst);
        if self.is_monitor_asleep.load(Ordering::SeqCst)
            && self.is_monitor_asleep.swap(false, Ordering::SeqCst)
            && let Some(monitor) = self.monitor.get()
        {
            monitor.unpark();
        }
    }

    /// The call in hand was made by the process `owner`. While the pool is wary it is away, unless others receive.
    pub(crate) fn begin(&self, hand: &Hand, owner: u32) {
        hand.owner.store(owner, Ordering::Relaxed);
        if self.is_wary.load(Ordering::Relaxed) && self.receiving.load(Ordering::Acquire) == 0 {
            // Without another thread, this call is as any before something waited.
            let _ = self.may_wait(hand);
        }
    }

    /// Whether the call of process `owner` in `slot` is answered now.
    ///
    /// # Errors
    ///
    /// `EAGAIN` when the process has as many calls parked as it may.
    pub(crate) fn admit(&self, owner: u32, slot: u32, call: &Notification) -> Result<Admitted> {
        if self.blocked.load(Ordering::Acquire) == 0 {
            return Ok(Admitted::Now);
        }
        let mut state = self.state.lock();
        let (limit, room) = (share(state.calls_away), parking_share(state.parked));
        let Some(away) = state.away.get_mut(&owner).filter(|away| away.calls >= limit) else {
            return Ok(Admitted::Now);
        };
        if away.parked.len() >= room {
            return Err(Error::new(Errno::EAGAIN, "the process has too many calls that wait"));
        }
        away.parked.push_back((slot, *call));
        state.parked += 1;
        Ok(Admitted::Parked { instead: state.free.pop().expect("a slot for every thread") })
    }

    /// The call in hand may wait: another thread receives from here on. Nothing happens if one does already.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if there is no other thread.
    pub(crate) fn may_wait(&self, hand: &Hand) -> Result<()> {
        let id = hand.call.load(Ordering::Acquire);
        let mut state = self.state.lock();
        self.call_away(&mut state, hand, id)
    }

    /// The call in hand has been answered.
    pub(crate) fn done(&self, hand: &Hand) -> Next {
        if hand.call.swap(0, Ordering::AcqRel) != 0 {
            let surplus =
                self.receivers.load(Ordering::Relaxed) > self.target.load(Ordering::Relaxed);
            if !surplus {
                return Next::Receive;
            }
            let state = self.state.lock();
            if self.receivers.load(Ordering::Relaxed) <= self.target.load(Ordering::Relaxed) {
                return Next::Receive;
            }
            self.receivers.fetch_sub(1, Ordering::AcqRel);
            return self.rest_after(hand, state);
        }
        let mut state = self.state.lock();
        if let Some((slot, call)) = self.end_away(&mut state, hand) {
            return Next::Parked(slot, call);
        }
        if self.receivers.load(Ordering::Relaxed) < self.target.load(Ordering::Relaxed) {
            self.receivers.fetch_add(1, Ordering::AcqRel);
            return Next::Receive;
        }
        self.rest_after(hand, state)
    }

    /// The call in `slot` has been answered: the slot is free.
    pub(crate) fn release(&self, slot: u32) {
        self.state.lock().free.push(slot);
    }

    fn rest_after(&self, hand: &Hand, mut state: MutexGuard<'_, State>) -> Next {
        state.resting += 1;
        self.rest(hand, state)
    }

    /// Waits until a receiver is wanted; too long without, the thread ends.
    fn rest(&self, hand: &Hand, mut state: MutexGuard<'_, State>) -> Next {
        loop {
            if state.wanted > 0 {
                state.wanted -= 1;
                state.resting -= 1;
                return Next::Receive;
            }
            let (locked, woken) = self.wanted.wait_timeout(state, IDLE);
            state = locked;
            if woken == Woken::TimedOut && state.wanted == 0 && state.threads > KEPT {
                state.threads -= 1;
                state.resting -= 1;
                state.hands.retain(|other| !std::ptr::eq(&raw const **other, hand));
                return Next::End;
            }
        }
    }

    /// Makes the call `id`, if `hand` still has it, one that a receiver is not bothered with.
    fn call_away(&self, state: &mut State, hand: &Hand, id: u64) -> Result<()> {
        if id == 0
            || hand.call.compare_exchange(id, 0, Ordering::AcqRel, Ordering::Acquire).is_err()
        {
            return Ok(());
        }
        self.receivers.fetch_sub(1, Ordering::AcqRel);
        if self.receivers.load(Ordering::Relaxed) < self.target.load(Ordering::Relaxed)
            && self.promote(state).is_err()
            && self.receivers.load(Ordering::Relaxed) == 0
        {
            self.receivers.fetch_add(1, Ordering::AcqRel);
            hand.call.store(id, Ordering::Release);
            return Err(Error::new(Errno::EAGAIN, "no other thread is left to receive with"));
        }
        let owner = hand.owner.load(Ordering::Relaxed);
        hand.noted.lock().away = Some(owner);
        state.away.entry(owner).or_default().calls += 1;
        state.calls_away += 1;
        self.blocked.store(state.away.len(), Ordering::Release);
        Ok(())
    }

    /// The call that was away has ended: another of the same process may go on in its place.
    fn end_away(&self, state: &mut State, hand: &Hand) -> Option<(u32, Notification)> {
        let mut noted = hand.noted.lock();
        let owner = noted.away.expect("a call that is not in hand is away");
        let away = state.away.get_mut(&owner).expect("it is counted");
        if let Some(parked) = away.parked.pop_front() {
            state.parked -= 1;
            return Some(parked);
        }
        noted.away = None;
        away.calls -= 1;
        state.calls_away -= 1;
        if away.calls == 0 {
            state.away.remove(&owner);
        }
        self.blocked.store(state.away.len(), Ordering::Release);
        None
    }

    /// One more receiver.
    fn promote(&self, state: &mut State) -> std::io::Result<()> {
        if state.resting <= state.wanted {
            self.add_thread(state)?;
        }
        state.wanted += 1;
        self.receivers.fetch_add(1, Ordering::AcqRel);
        self.wanted.notify_one();
        Ok(())
    }

    fn add_thread(&self, state: &mut State) -> std::io::Result<()> {
        if state.threads >= THREADS {
            return Err(std::io::ErrorKind::WouldBlock.into());
        }
        let life = Arc::clone(self.life.get().expect("the pool was started"));
        std::thread::Builder::new().name("receiver".to_owned()).spawn(move || life())?;
        state.threads += 1;
        state.resting += 1;
        Ok(())
    }
}

/// The monitor.
impl Pool {
    fn watch(&self) {
        let mut quiet = 0;
        loop {
            std::thread::sleep(TICK);
            quiet = if self.look() { 0 } else { quiet + 1 };
            if quiet >= QUIET {
                self.is_monitor_asleep.store(true, Ordering::SeqCst);
                let has_call = |hand: &Arc<Hand>| hand.call.load(Ordering::SeqCst) != 0;
                if !self.state.lock().hands.iter().any(has_call) {
                    std::thread::park();
                }
                self.is_monitor_asleep.store(false, Ordering::SeqCst);
                quiet = 0;
            }
        }
    }

    /// Looks at every thread; whether there was anything to be seen.
    fn look(&self) -> bool {
        let (mut is_busy, now) = (false, Instant::now());
        let mut state = self.state.lock();
        for hand in state.hands.clone() {
            let seen = (hand.call.load(Ordering::SeqCst), hand.received.load(Ordering::Relaxed));
            let mut noted = hand.noted.lock();
            is_busy |= seen.0 != 0 || seen != noted.seen;
            noted.times = if seen.0 != 0 && seen == noted.seen { noted.times + 1 } else { 0 };
            noted.seen = seen;
            let times = noted.times;
            drop(noted);
            if times > 0 {
                // Without another thread it is tried again at the next look.
                let _ = self.call_away(&mut state, &hand, seen.0);
                if times >= COMPUTES || is_asleep(hand.tid) {
                    state.wary_until = Some(now + WARY);
                }
            }
        }
        let is_wary = state.wary_until.is_some_and(|until| now < until);
        let before = self.is_wary.swap(is_wary, Ordering::AcqRel);
        self.target.store(if is_wary { RECEIVERS_WHEN_WARY } else { 1 }, Ordering::Relaxed);
        if is_wary && !before {
            while self.receivers.load(Ordering::Relaxed) < RECEIVERS_WHEN_WARY
                && self.promote(&mut state).is_ok()
            {}
        }
        is_busy || is_wary
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// Longer than anything takes that does not hang.
    const LIMIT: Duration = Duration::from_secs(60);

    type Body = Box<dyn FnOnce(&Pool, &Hand) + Send>;

    /// A pool whose calls arrive by a channel.
    struct Rig {
        pool: Arc<Pool>,
        arrive: Sender<(u64, u32)>,
        bodies: Arc<Mutex<HashMap<u64, Body>>>,
        refused: Receiver<u64>,
        last: AtomicU64,
    }

    fn notification(id: u64) -> Notification {
        Notification { id, tid: 0, arch: 0, number: 0, args: [0; 6] }
    }

    impl Rig {
        fn new() -> Self {
            let pool = Arc::new(Pool::new(0..u32::try_from(SLOTS).expect("some thousands")));
            let (arrive, arrived) = channel::<(u64, u32)>();
            let (refuse, refused) = channel();
            let bodies: Arc<Mutex<HashMap<u64, Body>>> = Arc::default();
            let (arrived, refuse) = (Mutex::new(arrived), Mutex::new(refuse));
            let life = {
                let (pool, bodies) = (Arc::clone(&pool), Arc::clone(&bodies));
                move || {
                    let run = |hand: &Hand, id| {
                        let body = bodies.lock().remove(&id).expect("a call is answered once");
                        body(&pool, hand);
                    };
                    let (hand, mut slot, mut next) = pool.enter();
                    loop {
                        match next {
                            Next::End => return pool.release(slot),
                            Next::Parked(parked, call) => {
                                run(&hand, call.id);
                                pool.release(parked);
                            }
                            Next::Receive => {
                                let Ok((id, owner)) = pool.receive(|| arrived.lock().recv()) else {
                                    return;
                                };
                                pool.received(&hand, id);
                                match pool.admit(owner, slot, &notification(id)) {
                                    Ok(Admitted::Now) => {
                                        pool.begin(&hand, owner);
                                        run(&hand, id);
                                    }
                                    Ok(Admitted::Parked { instead }) => slot = instead,
                                    Err(_) => {
                                        bodies.lock().remove(&id);
                                        refuse.lock().send(id).expect("somebody listens");
                                    }
                                }
                            }
                        }
                        next = pool.done(&hand);
                    }
                }
            };
            pool.start(life).expect("threads");
            Self { pool, arrive, bodies, refused, last: AtomicU64::new(0) }
        }

        fn call(&self, owner: u32, body: impl FnOnce(&Pool, &Hand) + Send + 'static) {
            let id = self.last.fetch_add(1, Ordering::SeqCst) + 1;
            self.bodies.lock().insert(id, Box::new(body));
            self.arrive.send((id, owner)).expect("the pool receives");
        }

        /// A call that waits until the sender is dropped, and says so where it `declares` it.
        fn stuck(&self, owner: u32, declares: bool) -> Sender<()> {
            let (let_go, held) = channel::<()>();
            self.call(owner, move |pool, hand| {
                if declares {
                    pool.may_wait(hand).expect("a thread");
                }
                assert!(held.recv().is_err());
            });
            let_go
        }

        /// A call that answers at once.
        fn quick(&self, owner: u32) -> Receiver<()> {
            let (tell, done) = channel();
            self.call(owner, move |_, _| tell.send(()).expect("somebody waits"));
            done
        }

        fn answers(&self, owner: u32) {
            assert_eq!(self.quick(owner).recv_timeout(LIMIT), Ok(()));
        }

        fn ends_empty(&self) {
            let start = Instant::now();
            while !format!("{:?}", self.pool).ends_with(" 0 calls away, 0 parked)") {
                assert!(start.elapsed() < LIMIT, "{:?}", self.pool);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    #[test]
    fn a_call_that_waits_keeps_no_other_whether_it_says_so_or_not() {
        let rig = Rig::new();
        for declares in [true, false] {
            let held: Vec<_> = (0..8).map(|_| rig.stuck(7, declares)).collect();
            rig.answers(8);
            rig.answers(7);
            drop(held);
            rig.answers(8);
            rig.ends_empty();
        }
    }

    #[test]
    fn beyond_its_share_a_process_waits_for_itself_alone() {
        let rig = Rig::new();
        let limit = share(0);
        let held: Vec<_> = (0..=limit).map(|_| rig.stuck(7, true)).collect();
        let parked = rig.quick(7);
        rig.answers(8);
        assert!(parked.try_recv().is_err(), "it has no thread");
        drop(held);
        assert_eq!(parked.recv_timeout(LIMIT), Ok(()));
        rig.ends_empty();
    }

    #[test]
    fn a_process_that_goes_on_calling_is_refused_and_others_are_not() {
        let rig = Rig::new();
        let held: Vec<_> = (0..share(0)).map(|_| rig.stuck(7, true)).collect();
        rig.answers(8);
        let waiting: Vec<_> = (0..PARKED).map(|_| rig.quick(7)).collect();
        let refused = rig.refused.recv_timeout(LIMIT).expect("the last is too many");
        assert!(refused > u64::try_from(share(0)).expect("small"));
        let other: Vec<_> = (0..share(0)).map(|_| rig.stuck(9, true)).collect();
        rig.answers(8);
        drop((held, other));
        let answered = waiting.iter().filter(|call| call.recv_timeout(LIMIT).is_ok());
        let answered = answered.count();
        assert!((PARKED / 8..PARKED / 4).contains(&answered), "{answered} of {PARKED}");
        rig.ends_empty();
    }

    #[test]
    fn five_hundred_processes_that_block_leave_a_thread_to_the_next() {
        let rig = Rig::new();
        let held: Vec<_> =
            (0..500).flat_map(|owner| [rig.stuck(owner, true), rig.stuck(owner, true)]).collect();
        rig.answers(1000);
        let blocked = rig.stuck(1000, true);
        rig.answers(1001);
        drop((held, blocked));
        rig.ends_empty();
    }
}
