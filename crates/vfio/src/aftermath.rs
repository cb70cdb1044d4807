//! What a reset of a physical function leaves to do for each of its virtual ones.
//! No locks of its own.

use ioasis_sys::sync::atomic::{AtomicU8, Ordering};

/// How much of the resets that came with a physical function's is left to a thread: one at a time,
/// however many resets there are.
#[derive(Debug, Default)]
pub(crate) struct Aftermath(AtomicU8);

impl Aftermath {
    /// Nothing, a reset that a thread is at, and another one since that thread began.
    const NONE: u8 = 0;
    const ONE: u8 = 1;
    const MORE: u8 = 2;

    /// There was a reset; whether it needs a thread.
    pub(crate) fn begin(&self) -> bool {
        let more = |left| Some(if left == Self::NONE { Self::ONE } else { Self::MORE });
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, more) == Ok(Self::NONE)
    }

    /// The thread did what it had to do; whether that was all.
    pub(crate) fn end(&self) -> bool {
        self.0.fetch_sub(1, Ordering::AcqRel) == Self::ONE
    }
}
