//! The atomics of this crate: the only ones it uses, so that a checker can stand behind all of
//! them.
//!
//! With `--cfg loom` they are loom's, which tries every interleaving and every value that the
//! memory orderings let a load see; with `--cfg ioasis_shuttle` shuttle's, which runs long
//! sequences under many schedules and takes every ordering for the strongest. `schedules` holds the
//! tests for both. In other tests they count the words that are touched (`suite::work`). A `cfg`
//! and no cargo feature, because features add up across a build: one crate that asked for it would
//! change everybody's tables.

#[cfg(all(test, not(any(loom, ioasis_shuttle))))]
pub(crate) mod atomic;

#[cfg(not(any(loom, ioasis_shuttle)))]
pub(crate) use core::hint::spin_loop;
#[cfg(not(any(test, loom, ioasis_shuttle)))]
pub(crate) use core::sync::atomic;
#[cfg(loom)]
pub(crate) use loom::{hint::spin_loop, sync::atomic};
#[cfg(ioasis_shuttle)]
pub(crate) use shuttle::{sync::atomic, thread::yield_now as spin_loop};

/// One of three sizes: what the crate is made with, with shuttle behind the atomics, with loom.
/// Under a checker every atomic costs, and a few of each kind make what is rare happen often.
pub(crate) const fn sized(size: usize, shuttle: usize, loom: usize) -> usize {
    if cfg!(loom) {
        loom
    } else if cfg!(ioasis_shuttle) {
        shuttle
    } else {
        size
    }
}

/// Stores 1 with release. Under loom by a swap: it does not know that a store which a later swap
/// did not read comes after that swap, and would let it be overwritten.
#[inline]
pub(crate) fn raise(mark: &atomic::AtomicU8) {
    if cfg!(loom) {
        mark.swap(1, atomic::Ordering::Release);
    } else {
        mark.store(1, atomic::Ordering::Release);
    }
}
