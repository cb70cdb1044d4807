//! Sections of translating threads, without a locked instruction, and waiting until they have ended.
//!
//! Every thread has a slot of its own, which it alone writes: a count of sections it ended, how many it is in, and the label
//! of those. To enter is two plain stores, to leave another. Whoever waits says for which labels, so that a section that
//! lasts keeps only those waiting whom it concerns. Between the store that enters and the loads of a page table there would
//! have to be a fence, for a processor lets later loads overtake an earlier store; instead whoever waits makes all other
//! threads of the process pass a fence, by membarrier(2) with `MEMBARRIER_CMD_PRIVATE_EXPEDITED`. After that, either
//! a section's slot is seen, or the section sees the table as it now is.
//!
//! Measured on a 2-core Xeon virtual machine (`cargo bench -p ioasis-sys --bench quiesce`), enter and exit together:
//! 4.6 ns; a store, a fence and a store, without finding the slot, 8.1 ns; two atomic additions, as a reference count
//! does, 12.2 ns on a line no other thread wants. A wait with nobody inside takes 0.2 us in a process with one thread
//! and 0.7 us beside one that runs. Sections begin with every DMA, waits with every unmap. Where a sandbox refuses
//! membarrier, entering makes the fence itself.
//!
//! A wait that interrupts a processor takes 15 us there, most of an unmap. So whoever waits often
//! is believed to go on: after `PATIENT` waits entering makes the fence from then on, and waiting
//! is without a broadcast. The change is announced first, then broadcast: a thread that enters
//! stores that it is inside before it looks whether to make a fence, so that either it makes one,
//! or the broadcast finds its store made.
//!
//! Lock order: the list of free thread numbers is a leaf.

use std::marker::PhantomData;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering, compiler_fence, fence};
use std::time::Duration;

#[cfg(not(ioasis_shuttle))]
use crate::sync::Mutex;

/// Sections that any number of threads enter and leave, and that one can wait for.
#[derive(Debug)]
pub struct Sections {
    /// Segment n holds the slots of `2 << n` threads: slots never move. Filled in once, as threads come.
    segments: [OnceLock<Box<[Slot]>>; SEGMENTS],
    /// Bit n set: segment n is filled in, or about to be.
    present: AtomicU32,
    barrier: Barrier,
    /// Waits that broadcast.
    waits: AtomicU32,
    /// [`PLAIN`], [`ANNOUNCED`], [`FENCED`], in that order.
    entering: AtomicU32,
}

/// Waits after which entering makes the fence.
const PATIENT: u32 = 256;

/// Entering makes no fence.
const PLAIN: u32 = 0;
/// Whoever sees this makes one.
const ANNOUNCED: u32 = 1;
/// Whoever is inside has made one, or its store was seen to be made.
const FENCED: u32 = 2;

/// Threads of a process are fewer than 2 * (2^22 - 1): pids are 22 bits.
const SEGMENTS: usize = 22;
/// Few, for a wait looks at every slot.
const FIRST_SEGMENT_LG2: u32 = 1;

/// What one thread does, on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Slot {
    /// Low 16 bits, how many sections the thread is in; above, how often it was in none again.
    state: AtomicU64,
    /// Whom the sections concern.
    label: AtomicU64,
    /// What it reads of [`Published`](crate::published::Published) values; null where nothing.
    pub(crate) hazards: [AtomicPtr<()>; HAZARDS],
}

/// Published values a thread can hold at once: as many as the line has room for.
pub(crate) const HAZARDS: usize = 6;

const NESTING: u64 = 0xffff;

/// The label of sections that concern everybody.
pub const EVERYBODY: u64 = u64::MAX;

/// Who pays for the fence between entering and reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Barrier {
    /// Whoever waits, by membarrier.
    Membarrier,
    /// Whoever enters.
    Fence,
}

impl Default for Sections {
    fn default() -> Self {
        Self::new()
    }
}

impl Sections {
    /// No thread inside.
    #[must_use]
    pub fn new() -> Self {
        Self::with_barrier(if membarrier_registered() {
            Barrier::Membarrier
        } else {
            Barrier::Fence
        })
    }

    fn with_barrier(barrier: Barrier) -> Self {
        Self {
            segments: [const { OnceLock::new() }; SEGMENTS],
            present: AtomicU32::new(0),
            barrier,
            waits: AtomicU32::new(0),
            entering: AtomicU32::new(PLAIN),
        }
    }

    /// Those of the whole process.
    pub fn of_process() -> &'static Self {
        static SECTIONS: OnceLock<Sections> = OnceLock::new();
        SECTIONS.get_or_init(Self::new)
    }

    /// Opens a section on this thread that lasts as long as the guard.
    #[inline]
    pub fn section(&self, label: u64) -> Section<'_> {
        let slot = self.slot();
        self.open(slot, label);
        Section { slot, thread: PhantomData }
    }

    /// Opens a section on this thread, without a guard. Sections nest; those of different labels concern everybody.
    #[inline]
    pub fn enter(&self, label: u64) {
        self.open(self.slot(), label);
    }

    #[inline]
    fn open(&self, slot: &Slot, label: u64) {
        let value = slot.state.load(Ordering::Relaxed);
        match value & NESTING {
            0 => slot.label.store(label, Ordering::Release),
            NESTING => panic!("sections nest less than 65535 deep"),
            _ if slot.label.load(Ordering::Relaxed) == label => {}
            _ => slot.label.store(EVERYBODY, Ordering::Release),
        }
        slot.state.store(value + 1, Ordering::Release);
        self.order();
    }

    /// What this thread stored before is seen by those who come after [`order_others`](Self::order_others), or it sees what they
    /// stored before.
    #[inline]
    pub(crate) fn order(&self) {
        match self.barrier {
            Barrier::Membarrier => {
                compiler_fence(Ordering::SeqCst);
                if self.entering.load(Ordering::Relaxed) != PLAIN {
                    fence(Ordering::SeqCst);
                }
                compiler_fence(Ordering::SeqCst);
            }
            Barrier::Fence => fence(Ordering::SeqCst),
        }
    }

    /// The other half of [`order`](Self::order), on all other threads.
    pub(crate) fn order_others(&self) {
        fence(Ordering::SeqCst);
        if self.barrier == Barrier::Fence || self.entering.load(Ordering::Acquire) == FENCED {
            return;
        }
        membarrier();
        if self.waits.fetch_add(1, Ordering::Relaxed) == PATIENT {
            self.entering.store(ANNOUNCED, Ordering::SeqCst);
            membarrier();
            self.entering.store(FENCED, Ordering::Release);
        }
    }

    /// Closes the section this thread opened last.
    ///
    /// # Panics
    ///
    /// If it has none open.
    #[inline]
    pub fn exit(&self) {
        self.slot().close();
    }

    /// Returns once every section of a label that `concerns` names, and that was open when the call began, is closed. Stores
    /// made before the call are seen by every section opened after it returns.
    ///
    /// # Panics
    ///
    /// If the calling thread is in a section: it would wait for itself.
    pub fn wait(&self, concerns: impl Fn(u64) -> bool) {
        let own = self.slot().state.load(Ordering::Relaxed);
        assert_eq!(own & NESTING, 0, "nobody waits inside a section");
        self.order_others();
        self.each_slot(|slot| {
            let seen = slot.state.load(Ordering::Acquire);
            if seen & NESTING == 0 {
                return;
            }
            // That of a later section, if this one has ended meanwhile.
            let label = slot.label.load(Ordering::Acquire);
            if label == EVERYBODY || concerns(label) {
                let ended = seen / (NESTING + 1);
                wait_until(|| slot.state.load(Ordering::Acquire) / (NESTING + 1) != ended);
            }
        });
    }

    /// Looks at the slots of all threads that were ever inside.
    #[inline]
    pub(crate) fn each_slot(&self, each: impl Fn(&Slot)) {
        let present = self.present.load(Ordering::Acquire);
        for segment in &self.segments[..(u32::BITS - present.leading_zeros()) as usize] {
            // One that is not filled in yet has nobody inside.
            if let Some(slots) = segment.get() {
                slots.iter().for_each(&each);
            }
        }
    }

    /// The slot of this thread.
    #[inline]
    pub(crate) fn slot(&self) -> &Slot {
        let number = THREAD.with(|thread| thread.0) + (1 << FIRST_SEGMENT_LG2);
        let segment = number.ilog2() - FIRST_SEGMENT_LG2;
        let slots = self.segments[segment as usize].get_or_init(|| {
            self.present.fetch_or(1 << segment, Ordering::Release);
            std::iter::repeat_with(Slot::default).take(1 << (segment + FIRST_SEGMENT_LG2)).collect()
        });
        &slots[(number - (1 << (segment + FIRST_SEGMENT_LG2))) as usize]
    }
}

impl Slot {
    #[inline]
    fn close(&self) {
        let value = self.state.load(Ordering::Relaxed);
        let left = match value & NESTING {
            0 => panic!("a section is closed on the thread that opened it"),
            1 => value + NESTING,
            _ => value - 1,
        };
        self.state.store(left, Ordering::Release);
    }
}

/// A section, closed when dropped.
#[derive(Debug)]
#[must_use = "a section ends where its guard is dropped"]
pub struct Section<'a> {
    slot: &'a Slot,
    /// It stays on its thread.
    thread: PhantomData<*const ()>,
}

impl Drop for Section<'_> {
    #[inline]
    fn drop(&mut self) {
        self.slot.close();
    }
}

/// Waits until `done`, without a lock or a system call at first.
pub(crate) fn wait_until(done: impl Fn() -> bool) {
    let mut turns = 0_u32;
    while !done() {
        turns = turns.saturating_add(1);
        match turns {
            0..100 => std::hint::spin_loop(),
            100..200 => std::thread::yield_now(),
            _ => std::thread::sleep(Duration::from_micros(50)),
        }
    }
}

/// Numbers of threads: the lowest free one, so that slots stay few.
struct ThreadNumber(u32);

#[cfg(not(ioasis_shuttle))]
struct Numbers {
    next: u32,
    free: std::collections::BTreeSet<u32>,
}

#[cfg(not(ioasis_shuttle))]
static NUMBERS: Mutex<Numbers> =
    Mutex::new(Numbers { next: 0, free: std::collections::BTreeSet::new() });

thread_local! {
    static THREAD: ThreadNumber = ThreadNumber::take();
}

#[cfg(ioasis_shuttle)]
impl ThreadNumber {
    /// All of shuttle's threads are one: its locks are not there outside a schedule, and no number comes back.
    fn take() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

#[cfg(not(ioasis_shuttle))]
impl ThreadNumber {
    fn take() -> Self {
        let mut numbers = NUMBERS.lock();
        if let Some(number) = numbers.free.pop_first() {
            return Self(number);
        }
        numbers.next += 1;
        Self(numbers.next - 1)
    }
}

#[cfg(not(ioasis_shuttle))]
impl Drop for ThreadNumber {
    fn drop(&mut self) {
        NUMBERS.lock().free.insert(self.0);
    }
}

mod barrier {
    #![expect(unsafe_code, reason = "membarrier is not in rustix")]

    use std::sync::OnceLock;

    /// `enum membarrier_cmd` of linux/membarrier.h.
    const PRIVATE_EXPEDITED: i32 = 1 << 3;
    const REGISTER_PRIVATE_EXPEDITED: i32 = 1 << 4;

    fn call(command: i32) -> bool {
        // SAFETY: 1. membarrier takes three integers and touches no memory of ours.
        unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
    }

    /// Whether the kernel has it and no sandbox forbids it; asked once per process, which registers it.
    pub(super) fn membarrier_registered() -> bool {
        static REGISTERED: OnceLock<bool> = OnceLock::new();
        *REGISTERED.get_or_init(|| call(REGISTER_PRIVATE_EXPEDITED) && call(PRIVATE_EXPEDITED))
    }

    pub(super) fn membarrier() {
        assert!(call(PRIVATE_EXPEDITED), "a registered process may use membarrier");
    }
}
use barrier::{membarrier, membarrier_registered};

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    fn both() -> [Arc<Sections>; 2] {
        assert!(membarrier_registered(), "the tests want a kernel with membarrier");
        [Barrier::Membarrier, Barrier::Fence]
            .map(|barrier| Arc::new(Sections::with_barrier(barrier)))
    }

    #[test]
    fn a_wait_with_nobody_inside_returns() {
        for sections in both() {
            sections.wait(|label| label == 1);
            sections.enter(1);
            sections.enter(1);
            sections.exit();
            sections.exit();
            sections.wait(|label| label == 1);
        }
    }

    #[test]
    fn a_wait_lasts_until_the_outermost_section_ends() {
        for sections in both() {
            let ended = Arc::new(AtomicBool::new(false));
            sections.enter(1);
            sections.enter(1);
            let waiter = std::thread::spawn({
                let (sections, ended) = (Arc::clone(&sections), Arc::clone(&ended));
                move || {
                    sections.wait(|label| label == 1);
                    assert!(ended.load(Ordering::SeqCst), "the section had not ended");
                }
            });
            sections.exit();
            std::thread::sleep(Duration::from_millis(20));
            assert!(!waiter.is_finished());
            ended.store(true, Ordering::SeqCst);
            sections.exit();
            waiter.join().expect("no panic");
        }
    }

    #[test]
    fn a_section_that_lasts_keeps_only_those_waiting_whom_it_concerns() {
        for sections in both() {
            sections.enter(1);
            std::thread::scope(|scope| {
                scope.spawn(|| sections.wait(|label| label == 2)).join().expect("no panic");
                sections.enter(2);
                let waiters = [1, 2].map(|concerned| {
                    let sections = &sections;
                    scope.spawn(move || sections.wait(|label| label == concerned))
                });
                std::thread::sleep(Duration::from_millis(20));
                sections.exit();
                std::thread::sleep(Duration::from_millis(20));
                assert!(waiters.iter().all(|waiter| !waiter.is_finished()), "both are concerned");
                sections.exit();
            });
        }
    }

    #[test]
    fn who_waits_often_broadcasts_no_more_and_sections_are_seen_all_the_same() {
        let sections = Arc::new(Sections::new());
        assert_eq!(
            sections.barrier,
            Barrier::Membarrier,
            "the tests want a kernel with membarrier"
        );
        for wait in 0..=PATIENT {
            assert_eq!(sections.entering.load(Ordering::SeqCst), PLAIN, "{wait}");
            sections.wait(|_| true);
        }
        assert_eq!(sections.entering.load(Ordering::SeqCst), FENCED);
        let broadcast = sections.waits.load(Ordering::SeqCst);
        let inside = sections.section(1);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| sections.wait(|label| label == 1));
            std::thread::sleep(Duration::from_millis(20));
            assert!(!waiter.is_finished(), "somebody is inside");
            drop(inside);
        });
        assert_eq!(sections.waits.load(Ordering::SeqCst), broadcast);
    }

    #[test]
    fn a_wait_does_not_wait_for_sections_that_began_later() {
        let sections = Arc::new(Sections::new());
        let stop = Arc::new(AtomicBool::new(false));
        let busy = std::thread::spawn({
            let (sections, stop) = (Arc::clone(&sections), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    sections.enter(1);
                    sections.exit();
                }
            }
        });
        for _ in 0..1000 {
            sections.wait(|label| label == 1);
        }
        stop.store(true, Ordering::Relaxed);
        busy.join().expect("no panic");
    }

    /// Readers use what a pointer says under a section; the writer takes it away, waits, and spoils it.
    #[test]
    fn nothing_taken_away_is_used_after_the_wait() {
        const GOOD: usize = 1;
        const SPOILT: usize = 2;
        for sections in both() {
            let cells: Arc<Vec<AtomicUsize>> =
                Arc::new((0..64).map(|_| AtomicUsize::new(GOOD)).collect());
            let current = Arc::new(AtomicUsize::new(0));
            let stop = Arc::new(AtomicBool::new(false));
            let readers: Vec<_> = (0..2)
                .map(|_| {
                    let (sections, cells) = (Arc::clone(&sections), Arc::clone(&cells));
                    let (current, stop) = (Arc::clone(&current), Arc::clone(&stop));
                    std::thread::spawn(move || {
                        while !stop.load(Ordering::Relaxed) {
                            sections.enter(1);
                            let cell = &cells[current.load(Ordering::Relaxed)];
                            let seen = (0..8).all(|_| cell.load(Ordering::Relaxed) == GOOD);
                            sections.exit();
                            assert!(seen, "a cell was spoilt while in use");
                        }
                    })
                })
                .collect();
            for turn in 0..20_000 {
                let (old, next) = (turn % 64, (turn + 1) % 64);
                cells[next].store(GOOD, Ordering::Relaxed);
                current.store(next, Ordering::Release);
                sections.wait(|label| label == 1);
                cells[old].store(SPOILT, Ordering::Relaxed);
            }
            stop.store(true, Ordering::Relaxed);
            for reader in readers {
                reader.join().expect("no panic");
            }
        }
    }

    #[test]
    fn threads_that_ended_leave_their_numbers_to_others() {
        let sections = Arc::new(Sections::new());
        for _ in 0..200 {
            let sections = Arc::clone(&sections);
            std::thread::spawn(move || {
                sections.enter(1);
                sections.exit();
            })
            .join()
            .expect("no panic");
        }
        sections.wait(|label| label == 1);
        let many = sections.segments.iter().filter(|segment| segment.get().is_some()).count();
        assert!(many <= 8, "200 threads, one at a time, need no {many} segments");
    }

    #[test]
    #[should_panic(expected = "nobody waits inside a section")]
    fn waiting_inside_a_section_is_a_broken_promise() {
        let sections = Sections::new();
        sections.enter(1);
        sections.wait(|label| label == 1);
    }
}
