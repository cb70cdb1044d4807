//! Locks: the only ones this workspace uses, so that a test can put another scheduler behind all of them.
//!
//! With `--cfg ioasis_shuttle` every lock and thread here is shuttle's, which runs a test under many schedules
//! chosen by a seed. It is a `cfg` and no cargo feature because features add up across a build: one crate that
//! asked for it would change the type of everybody's locks.
//!
//! A debug build checks the order in which locks are taken (`order.rs`).
//!
//! Poisoning is not surfaced. A release build aborts on panic, so no thread ever sees a poisoned lock; in a test
//! build the panic itself fails the test.
#![cfg_attr(
    not(ioasis_shuttle),
    expect(clippy::disallowed_types, reason = "this is the one place that chooses them")
)]

#[cfg_attr(any(not(debug_assertions), ioasis_shuttle), path = "unchecked.rs")]
mod order;

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

#[cfg(ioasis_shuttle)]
use shuttle::sync as imp;
#[cfg(not(ioasis_shuttle))]
use std::sync as imp;

use order::{Class, Held};

pub use imp::atomic;
pub use std::sync::{Arc, LazyLock, OnceLock, Weak};

#[cfg(ioasis_shuttle)]
pub use shuttle::thread;
#[cfg(not(ioasis_shuttle))]
pub use std::thread;

/// Mutual exclusion.
pub struct Mutex<T: ?Sized> {
    class: Class,
    lock: imp::Mutex<T>,
}

/// Unlocks its [`Mutex`] when dropped.
#[must_use = "the lock is released at once"]
pub struct MutexGuard<'a, T: ?Sized> {
    guard: imp::MutexGuard<'a, T>,
    held: Held,
}

impl<T> Mutex<T> {
    /// An unlocked mutex around `value`.
    #[track_caller]
    pub const fn new(value: T) -> Self {
        Self { class: Class::here(), lock: imp::Mutex::new(value) }
    }

    /// The value, without the lock.
    pub fn into_inner(self) -> T {
        self.lock.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Waits until no other thread holds the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        // How the standard library waits, ThreadSanitizer does not see: it is not instrumented there.
        #[cfg(ioasis_tsan)]
        loop {
            if let Some(guard) = self.try_lock() {
                return guard;
            }
            thread::yield_now();
        }
        #[cfg(not(ioasis_tsan))]
        {
            self.class.check();
            let guard = self.lock.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            MutexGuard { guard, held: self.class.hold() }
        }
    }

    /// The lock, if no other thread holds it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let guard = match self.lock.try_lock() {
            Ok(guard) => guard,
            Err(imp::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(imp::TryLockError::WouldBlock) => return None,
        };
        Some(MutexGuard { guard, held: self.class.hold() })
    }

    /// The lock, if whoever holds it lets go of it within `patience`. For who only looks, and must not wait for a call that
    /// waits for its client.
    pub fn try_lock_for(&self, patience: Duration) -> Option<MutexGuard<'_, T>> {
        let begun = std::time::Instant::now();
        loop {
            if let Some(guard) = self.try_lock() {
                return Some(guard);
            }
            if begun.elapsed() >= patience {
                return None;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The value, through the only reference there is.
    pub fn get_mut(&mut self) -> &mut T {
        self.lock.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl<T: Default> Default for Mutex<T> {
    #[track_caller]
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.try_lock() {
            Some(guard) => f.debug_tuple("Mutex").field(&&*guard).finish(),
            None => f.write_str("Mutex(locked)"),
        }
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Many readers or one writer.
pub struct RwLock<T: ?Sized> {
    class: Class,
    lock: imp::RwLock<T>,
}

/// A reader's hold on a [`RwLock`].
#[must_use = "the lock is released at once"]
pub struct RwLockReadGuard<'a, T: ?Sized> {
    guard: imp::RwLockReadGuard<'a, T>,
    _held: Held,
}

/// The writer's hold on a [`RwLock`].
#[must_use = "the lock is released at once"]
pub struct RwLockWriteGuard<'a, T: ?Sized> {
    guard: imp::RwLockWriteGuard<'a, T>,
    _held: Held,
}

impl<T> RwLock<T> {
    /// An unlocked lock around `value`.
    #[track_caller]
    pub const fn new(value: T) -> Self {
        Self { class: Class::here(), lock: imp::RwLock::new(value) }
    }

    /// The value, without the lock.
    pub fn into_inner(self) -> T {
        self.lock.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl<T: ?Sized> RwLock<T> {
    /// Waits until there is no writer. Not to be taken twice by one thread: a writer may wait in between.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.class.check();
        let guard = self.lock.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        RwLockReadGuard { guard, _held: self.class.hold() }
    }

    /// Waits until there is neither reader nor writer.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.class.check();
        let guard = self.lock.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        RwLockWriteGuard { guard, _held: self.class.hold() }
    }

    /// The value, through the only reference there is.
    pub fn get_mut(&mut self) -> &mut T {
        self.lock.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl<T: Default> Default for RwLock<T> {
    #[track_caller]
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: ?Sized> Deref for RwLockReadGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T: ?Sized> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T: ?Sized> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.lock.try_read() {
            Ok(guard) => f.debug_tuple("RwLock").field(&&*guard).finish(),
            Err(_) => f.write_str("RwLock(locked)"),
        }
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLockReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLockWriteGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Waits, with the lock released, until another thread says that something changed.
#[derive(Default)]
pub struct Condvar(imp::Condvar);

/// Why a wait with a limit came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// Notified, or for no reason at all: check the condition.
    Notified,
    /// The time is over.
    TimedOut,
}

impl Condvar {
    /// A condition nobody waits for.
    #[must_use]
    pub const fn new() -> Self {
        Self(imp::Condvar::new())
    }

    /// Releases the lock, waits for a notification, takes the lock again. May return without one.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        let MutexGuard { guard, held } = guard;
        let class = held.class();
        drop(held);
        let guard = self.0.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner());
        class.check();
        MutexGuard { guard, held: class.hold() }
    }

    /// Waits as long as `condition` holds.
    pub fn wait_while<'a, T>(
        &self,
        mut guard: MutexGuard<'a, T>,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> MutexGuard<'a, T> {
        while condition(&mut guard) {
            guard = self.wait(guard);
        }
        guard
    }

    /// Waits for a notification, but no longer than `limit`.
    pub fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        limit: Duration,
    ) -> (MutexGuard<'a, T>, Woken) {
        let MutexGuard { guard, held } = guard;
        let class = held.class();
        drop(held);
        let (guard, result) =
            self.0.wait_timeout(guard, limit).unwrap_or_else(|poisoned| poisoned.into_inner());
        class.check();
        (
            MutexGuard { guard, held: class.hold() },
            if result.timed_out() { Woken::TimedOut } else { Woken::Notified },
        )
    }

    /// Wakes one waiting thread.
    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    /// Wakes all waiting threads.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

impl fmt::Debug for Condvar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Condvar")
    }
}

#[cfg(all(test, not(ioasis_shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_lock_whose_holder_panicked_still_opens() {
        let lock = Arc::new(Mutex::new(1));
        let other = Arc::clone(&lock);
        let panicked = thread::spawn(move || {
            let _guard = other.lock();
            std::panic::resume_unwind(Box::new("on purpose"));
        })
        .join();
        assert!(panicked.is_err());
        *lock.lock() += 1;
        assert_eq!(*lock.lock(), 2);
    }

    #[test]
    fn try_lock_does_not_wait_for_the_holder() {
        let lock = Mutex::new(());
        let held = lock.lock();
        assert!(thread::scope(|scope| scope
            .spawn(|| lock.try_lock().is_none())
            .join()
            .expect("no panic")));
        drop(held);
        assert!(lock.try_lock().is_some());
    }

    #[test]
    fn a_waiter_sees_what_the_notifier_changed() {
        let pair = Arc::new((Mutex::new(false), Condvar::new()));
        let other = Arc::clone(&pair);
        let notifier = thread::spawn(move || {
            *other.0.lock() = true;
            other.1.notify_all();
        });
        assert!(*pair.1.wait_while(pair.0.lock(), |ready| !*ready));
        notifier.join().expect("no panic");
    }

    #[test]
    fn a_wait_ends_with_its_limit() {
        let (lock, condvar) = (Mutex::new(()), Condvar::new());
        let mut guard = lock.lock();
        loop {
            let (again, woken) = condvar.wait_timeout(guard, Duration::from_millis(1));
            guard = again;
            if woken == Woken::TimedOut {
                break;
            }
        }
        drop(guard);
        assert!(lock.try_lock().is_some());
    }

    #[test]
    fn two_readers_hold_the_lock_at_once() {
        let lock = RwLock::new(7);
        let first = lock.read();
        let second = thread::scope(|scope| scope.spawn(|| *lock.read()).join().expect("no panic"));
        assert_eq!(*first, second);
    }
}

#[cfg(all(test, ioasis_shuttle))]
mod tests {
    use super::*;

    #[test]
    fn increments_under_a_lock_are_not_lost_in_any_schedule() {
        shuttle::check_random(
            || {
                let lock = Arc::new(Mutex::new(0));
                let other = Arc::clone(&lock);
                let adder = thread::spawn(move || *other.lock() += 1);
                *lock.lock() += 1;
                adder.join().expect("no panic");
                assert_eq!(*lock.lock(), 2);
            },
            100,
        );
    }
}
