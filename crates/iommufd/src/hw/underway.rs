//! Copies under way outside a section, and who waits for them.
//!
//! A section (`ioasis_sys::quiesce`) says which labels it concerns and nothing more, so that
//! whoever takes anything away waits for all sections of a group. That is right for copies that end
//! by themselves. A copy from or to memory that somebody must give first
//! ([`Backing::may_wait`](crate::Backing::may_wait)) may last for ever: it is noted here, with what
//! it uses, before the section that translated it ends, and happens after.
//!
//! Invariant: whoever took something away and then waited for the sections finds noted every copy
//! that was translated before. He waits for those that use what he took away, and for no other: an
//! unmap for the range of IOVAs of its domains, a detach for the attachment. A harvest of dirty
//! bits waits for none: it marks what is being written once more ([`Underway::written`]).
//!
//! To note and to strike out take 23 ns together. A thread has one of few places, so that threads
//! seldom want the same lock.
//!
//! Lock order: `Place::noted` is a leaf, taken inside a section to note, and never held while a
//! copy lasts.

use std::cell::Cell;

use ioasis_iommupt::IovaRange;
use ioasis_sys::sync::atomic::{AtomicU32, Ordering};
use ioasis_sys::sync::{Condvar, Mutex};
use smallvec::SmallVec;

/// Places of threads; more threads share them.
const PLACES: usize = 32;

/// All copies under way of one machine.
#[derive(Debug, Default)]
pub(crate) struct Underway {
    places: [Place; PLACES],
    /// Bit n set: something was noted in place n, ever.
    used: AtomicU32,
}

/// Where some threads note their copies.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Place {
    /// How many copies are noted; changes under the lock.
    count: AtomicU32,
    noted: Mutex<Noted>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Noted {
    copies: Vec<Entry>,
    /// Copies noted so far.
    numbers: u64,
    waiting: u32,
}

/// One copy, or room for one.
#[derive(Debug, Default)]
struct Entry {
    /// 0: none.
    number: u64,
    thread: usize,
    route: Route,
    /// Kept when the copy ends, so that noting the next allocates nothing.
    ranges: Vec<IovaRange>,
}

/// How a copy came by its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Route {
    /// Token of the attachment.
    pub(crate) attachment: u64,
    /// Token of the domain, whose addresses the ranges are.
    pub(crate) domain: u64,
    /// Through a client's own table, which a guest invalidates.
    pub(crate) nested: bool,
    /// Into memory.
    pub(crate) writes: bool,
}

/// A number that no other thread of the process has.
fn thread_number() -> usize {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(1);
    thread_local! {
        static NUMBER: Cell<usize> = const { Cell::new(0) };
    }
    NUMBER.with(|number| {
        if number.get() == 0 {
            number.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        number.get()
    })
}

impl Underway {
    /// Notes a copy, inside the section that translated it. It may go on until what this returns is
    /// dropped.
    pub(crate) fn note(
        &self,
        route: Route,
        ranges: impl IntoIterator<Item = IovaRange>,
    ) -> NotedCopy<'_> {
        let thread = thread_number();
        let index = thread % PLACES;
        let bit = 1 << index;
        if self.used.load(Ordering::Relaxed) & bit == 0 {
            self.used.fetch_or(bit, Ordering::Release);
        }
        let place = &self.places[index];
        let mut noted = place.noted.lock();
        noted.numbers += 1;
        let number = noted.numbers;
        let free = noted.copies.iter().position(|copy| copy.number == 0);
        let at = free.unwrap_or_else(|| {
            noted.copies.push(Entry::default());
            noted.copies.len() - 1
        });
        let copy = &mut noted.copies[at];
        (copy.number, copy.thread, copy.route) = (number, thread, route);
        copy.ranges.extend(ranges);
        // Release: who sees no copy here has waited for the section that this is inside of, or
        // needs not know.
        place.count.store(place.count.load(Ordering::Relaxed) + 1, Ordering::Release);
        drop(noted);
        NotedCopy { place, at }
    }

    /// The places where something is noted. Most machines never use one.
    #[inline]
    fn places(&self) -> impl Iterator<Item = &Place> {
        let mut used = self.used.load(Ordering::Acquire);
        let next = move || {
            let index = used.trailing_zeros() as usize;
            used &= used.wrapping_sub(1);
            self.places.get(index)
        };
        std::iter::from_fn(next).filter(|place| place.count.load(Ordering::Acquire) > 0)
    }

    /// Returns when every copy has ended that is noted now and that `concerns` names by its route
    /// and ranges.
    ///
    /// # Panics
    ///
    /// If one of them is the calling thread's: it would wait for itself.
    #[inline]
    pub(crate) fn wait(&self, concerns: impl Fn(Route, &[IovaRange]) -> bool) {
        for place in self.places() {
            place.wait(&concerns);
        }
    }

    /// [`wait`](Self::wait) for copies through `domains` that use what was taken out of them in one
    /// of `ranges`.
    pub(crate) fn wait_for_ranges(
        &self,
        domains: impl IntoIterator<Item = u64> + Clone,
        ranges: &[IovaRange],
    ) {
        self.wait(|route, used| {
            let overlaps =
                |used: &IovaRange| ranges.iter().any(|gone| gone.intersect(*used).is_some());
            domains.clone().into_iter().any(|domain| domain == route.domain)
                && used.iter().any(overlaps)
        });
    }

    /// What copies through `domain` are writing inside `range`.
    pub(crate) fn written(&self, domain: u64, range: IovaRange) -> Vec<IovaRange> {
        let mut written = Vec::new();
        for place in self.places() {
            let noted = place.noted.lock();
            let writing = noted.copies.iter().filter(|copy| {
                copy.number != 0 && copy.route.writes && copy.route.domain == domain
            });
            let ranges = writing.flat_map(|copy| &copy.ranges);
            written.extend(ranges.filter_map(|used| used.intersect(range)));
        }
        written
    }
}

impl Place {
    #[cold]
    fn wait(&self, concerns: &dyn Fn(Route, &[IovaRange]) -> bool) {
        let mut noted = self.noted.lock();
        let mut lasting: SmallVec<[(usize, u64); 4]> = SmallVec::new();
        for (at, copy) in noted.copies.iter().enumerate() {
            if copy.number != 0 && concerns(copy.route, &copy.ranges) {
                let own = copy.thread == thread_number();
                assert!(cfg!(ioasis_shuttle) || !own, "nobody waits for a copy of his own");
                lasting.push((at, copy.number));
            }
        }
        if lasting.is_empty() {
            return;
        }
        noted.waiting += 1;
        let mut noted = self.ended.wait_while(noted, |noted| {
            lasting.iter().any(|&(at, number)| noted.copies[at].number == number)
        });
        noted.waiting -= 1;
    }
}

/// A copy that is noted until this is dropped.
#[derive(Debug)]
#[must_use = "a copy is noted as long as it lasts"]
pub(crate) struct NotedCopy<'a> {
    place: &'a Place,
    at: usize,
}

impl NotedCopy<'_> {
    /// It uses `range` too, which was translated in the section that this is called in.
    pub(crate) fn add(&self, range: IovaRange) {
        self.place.noted.lock().copies[self.at].ranges.push(range);
    }
}

impl Drop for NotedCopy<'_> {
    fn drop(&mut self) {
        let mut noted = self.place.noted.lock();
        let copy = &mut noted.copies[self.at];
        copy.number = 0;
        copy.ranges.clear();
        let count = &self.place.count;
        count.store(count.load(Ordering::Relaxed) - 1, Ordering::Release);
        if noted.waiting > 0 {
            self.place.ended.notify_all();
        }
    }
}

#[cfg(all(test, ioasis_shuttle))]
mod tests {
    use super::*;
    use ioasis_iommupt::Iova;
    use ioasis_sys::sync::{Arc, thread};

    fn range(page: u64) -> IovaRange {
        IovaRange::new(Iova(page << 12), 4096).unwrap()
    }

    /// Copies come and go; who waits for one sees the end of just that, and is always woken.
    #[test]
    fn who_waits_for_a_copy_is_woken_when_it_ends_in_any_schedule() {
        crate::tests::schedules::check(|| {
            let all: Arc<(Underway, [AtomicU32; 2])> = Arc::default();
            let (underway, ended) = &*all;
            let route = Route { domain: 1, ..Route::default() };
            // Noted before anything is taken away.
            let [first, second] = [0, 1].map(|page| underway.note(route, [range(page)]));
            thread::scope(|scope| {
                for (page, copy) in [first, second].into_iter().enumerate() {
                    scope.spawn(move || {
                        ended[page].store(1, Ordering::SeqCst);
                        drop(copy);
                        // The place is used again at once.
                        drop(underway.note(route, [range(page as u64)]));
                    });
                }
                for page in 0..2 {
                    scope.spawn(move || {
                        underway.wait_for_ranges([1], &[range(page as u64)]);
                        assert_eq!(ended[page].load(Ordering::SeqCst), 1, "it was under way");
                    });
                }
                scope.spawn(|| underway.wait_for_ranges([1], &[range(2)]));
            });
        });
    }
}
