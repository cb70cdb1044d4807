//! Published: a value that threads read without a lock or a locked instruction, and that can be taken away.
//!
//! A reader notes in a place of its own what it is about to read, and looks whether it is published still. Whoever takes the value
//! away orders all other threads, as [`Sections`] does it, and looks at every place: then either the note is seen, and
//! waited for, or the reader sees that the value is gone. A value is dropped by whoever took it away, when nobody reads it.

#![expect(
    unsafe_code,
    reason = "who may read what a pointer leads to is what this module is about"
)]

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::quiesce::{Sections, wait_until};

/// A value, or none, that many read and few replace.
pub struct Published<T> {
    /// Of `Arc::into_raw`; null for none.
    pointer: AtomicPtr<T>,
    sections: &'static Sections,
    owns: PhantomData<Arc<T>>,
}

impl<T> Published<T> {
    /// No value. Readers note what they read in the slots of `sections`.
    #[must_use]
    pub const fn empty(sections: &'static Sections) -> Self {
        Self { pointer: AtomicPtr::new(ptr::null_mut()), sections, owns: PhantomData }
    }

    /// The value. It lives as long as the guard, which should be dropped soon: whoever takes the value away waits.
    ///
    /// # Panics
    ///
    /// If the thread holds six values already.
    #[inline]
    pub fn load(&self) -> Option<Held<'_, T>> {
        let mut pointer = self.pointer.load(Ordering::Acquire);
        if pointer.is_null() {
            return None;
        }
        let places = &self.sections.slot().hazards;
        let free = places.iter().find(|place| place.load(Ordering::Relaxed).is_null());
        let place = free.expect("a thread holds few values at once");
        loop {
            place.store(pointer.cast(), Ordering::Release);
            self.sections.order();
            let now = self.pointer.load(Ordering::Acquire);
            if now == pointer {
                return Some(Held { pointer, place, published: PhantomData, thread: PhantomData });
            }
            if now.is_null() {
                place.store(ptr::null_mut(), Ordering::Release);
                return None;
            }
            pointer = now;
        }
    }

    /// The value, for longer.
    #[must_use]
    pub fn get(&self) -> Option<Arc<T>> {
        self.load().map(|held| held.to_arc())
    }

    /// Publishes another value, or none, and returns what was there before.
    #[must_use = "the old value goes when this is dropped, which waits for its readers"]
    pub fn swap(&self, value: Option<Arc<T>>) -> Retired<T> {
        let new = value.map_or(ptr::null_mut(), |value| Arc::into_raw(value).cast_mut());
        let old = self.pointer.swap(new, Ordering::AcqRel);
        // SAFETY: 1. a pointer in a cell is one of `Arc::into_raw`, whose count is the cell's. 2. It was taken out of the cell, so
        // that count is ours now. 3. `Retired` gives it up only when no place names it: before, a reader may use it.
        let old = (!old.is_null()).then(|| unsafe { Arc::from_raw(old) });
        Retired { old, sections: self.sections }
    }
}

impl<T> Drop for Published<T> {
    fn drop(&mut self) {
        let pointer = *self.pointer.get_mut();
        if !pointer.is_null() {
            // SAFETY: 1. as in `swap`. 2. Readers borrow the cell, so there is none.
            drop(unsafe { Arc::from_raw(pointer) });
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Published<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Published").field(&self.get()).finish()
    }
}

/// A value that is being read.
#[must_use = "the value is let go at once"]
pub struct Held<'a, T> {
    pointer: *mut T,
    place: &'a AtomicPtr<()>,
    published: PhantomData<&'a Published<T>>,
    /// The place is the thread's.
    thread: PhantomData<*const ()>,
}

impl<T> Held<'_, T> {
    /// The value, for longer.
    #[must_use]
    pub fn to_arc(&self) -> Arc<T> {
        // SAFETY: 1. the pointer is one of `Arc::into_raw`. 2. Its count is not given up while `place` names it, so it is at
        // least one, and the one added here is the new `Arc`'s.
        unsafe {
            Arc::increment_strong_count(self.pointer);
            Arc::from_raw(self.pointer)
        }
    }
}

impl<T> Deref for Held<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: 1. the value was published after `place` named it, and is not dropped while `place` does. 2. It is shared:
        // nobody has it for writing.
        unsafe { &*self.pointer }
    }
}

impl<T> Drop for Held<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.place.store(ptr::null_mut(), Ordering::Release);
    }
}

impl<T: fmt::Debug> fmt::Debug for Held<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// A value that is published no more. Dropping it waits until nobody reads it.
#[derive(Debug)]
pub struct Retired<T> {
    old: Option<Arc<T>>,
    sections: &'static Sections,
}

impl<T> Retired<T> {
    /// The value.
    #[must_use]
    pub fn value(&self) -> Option<&Arc<T>> {
        self.old.as_ref()
    }
}

impl<T> Drop for Retired<T> {
    fn drop(&mut self) {
        let Some(old) = &self.old else { return };
        let pointer = Arc::as_ptr(old).cast_mut().cast();
        let own = &self.sections.slot().hazards;
        let itself = own.iter().any(|place| place.load(Ordering::Relaxed) == pointer);
        assert!(!itself, "nobody takes away what he reads");
        self.sections.order_others();
        self.sections.each_slot(|slot| {
            for place in &slot.hazards {
                if place.load(Ordering::Acquire) == pointer {
                    wait_until(|| place.load(Ordering::Acquire) != pointer);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU64};
    use std::time::Duration;

    /// Says when it is dropped.
    struct Canary(Arc<AtomicU64>);

    impl Drop for Canary {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_value_that_was_taken_away_lives_until_its_reader_lets_go() {
        let dropped = Arc::new(AtomicU64::new(0));
        let cell = Published::empty(Sections::of_process());
        assert!(cell.load().is_none());
        drop(cell.swap(Some(Arc::new(Canary(Arc::clone(&dropped))))));
        let held = cell.load().expect("published");
        std::thread::scope(|scope| {
            let taker = scope.spawn(|| drop(cell.swap(None)));
            std::thread::sleep(Duration::from_millis(20));
            assert!(!taker.is_finished(), "it waits for the reader");
            assert_eq!(held.0.load(Ordering::SeqCst), 0);
            drop(held);
        });
        assert!(cell.load().is_none());
        assert_eq!(dropped.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_value_kept_for_longer_outlives_its_cell() {
        let dropped = Arc::new(AtomicU64::new(0));
        let cell = Published::empty(Sections::of_process());
        drop(cell.swap(Some(Arc::new(Canary(Arc::clone(&dropped))))));
        let kept = cell.get().expect("published");
        drop(cell);
        assert_eq!(dropped.load(Ordering::SeqCst), 0);
        drop(kept);
        assert_eq!(dropped.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_thread_may_hold_several_values() {
        let cells = [1, 2, 3].map(|number| {
            let cell = Published::empty(Sections::of_process());
            drop(cell.swap(Some(Arc::new(number))));
            cell
        });
        let held = cells.each_ref().map(|cell| cell.load().expect("published"));
        assert_eq!(held.each_ref().map(|held| **held), [1, 2, 3]);
        drop(held);
        assert_eq!(cells.map(|cell| *cell.load().expect("published")), [1, 2, 3]);
    }

    /// Each value is spoilt when it is dropped; readers look at it for as long as they hold it.
    #[test]
    fn no_reader_sees_a_value_that_was_dropped() {
        const GOOD: u64 = 0x600d;
        struct Word(AtomicU64);
        impl Drop for Word {
            fn drop(&mut self) {
                self.0.store(0xbad, Ordering::SeqCst);
            }
        }
        let cell: Published<Word> = Published::empty(Sections::of_process());
        let stop = AtomicBool::new(false);
        // However the system shares its processors out, readers meet values.
        let seen = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        while !stop.load(Ordering::Relaxed) {
                            let Some(word) = cell.load() else { continue };
                            let good = (0..16).all(|_| word.0.load(Ordering::Relaxed) == GOOD);
                            assert!(good, "a value was dropped while it was read");
                            seen.fetch_add(1, Ordering::Relaxed);
                        }
                    })
                })
                .collect();
            for turn in 0.. {
                let is_met = seen.load(Ordering::Relaxed) > 0;
                if turn >= 20_000 && (is_met || readers.iter().any(|reader| reader.is_finished())) {
                    break;
                }
                let word = (turn % 3 != 0).then(|| Arc::new(Word(AtomicU64::new(GOOD))));
                drop(cell.swap(word));
            }
            stop.store(true, Ordering::Relaxed);
            readers.into_iter().for_each(|reader| reader.join().expect("no panic"));
        });
    }
}
