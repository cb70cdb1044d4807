//! Atomics that count, for tests of how much work an operation is: words of tables that are read
//! and written, by thread.

extern crate std;

use core::cell::Cell;

pub(crate) use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering, fence};

std::thread_local! {
    static WORDS: Cell<u64> = const { Cell::new(0) };
}

/// How many words this thread read and wrote in `work`.
pub(crate) fn words(work: impl FnOnce()) -> u64 {
    let before = WORDS.get();
    work();
    WORDS.get() - before
}

fn count() {
    WORDS.set(WORDS.get() + 1);
}

#[derive(Debug, zerocopy::FromZeros)]
#[repr(transparent)]
pub(crate) struct AtomicU64(core::sync::atomic::AtomicU64);

impl AtomicU64 {
    pub(crate) const fn new(value: u64) -> Self {
        Self(core::sync::atomic::AtomicU64::new(value))
    }

    #[inline]
    pub(crate) fn load(&self, order: Ordering) -> u64 {
        count();
        self.0.load(order)
    }

    #[inline]
    pub(crate) fn store(&self, value: u64, order: Ordering) {
        count();
        self.0.store(value, order);
    }

    #[inline]
    pub(crate) fn swap(&self, value: u64, order: Ordering) -> u64 {
        count();
        self.0.swap(value, order)
    }

    #[inline]
    pub(crate) fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        count();
        self.0.compare_exchange(current, new, success, failure)
    }

    #[inline]
    pub(crate) fn fetch_update(
        &self,
        set: Ordering,
        fetch: Ordering,
        change: impl FnMut(u64) -> Option<u64>,
    ) -> Result<u64, u64> {
        count();
        self.0.fetch_update(set, fetch, change)
    }
}
