//! Waiting until nobody uses what was taken away.
//!
//! A translating thread enters a section, translates, uses what it got, and leaves. Whoever changed
//! a table waits once, after the change, and then knows that every section still open began after
//! it: no translation made before is used any more. The page table itself waits before it uses the
//! memory of a dropped table again.

use core::fmt::Debug;

use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::spin_loop;

/// Sections of translating threads, and waiting for them.
///
/// `enter` and `exit` come in pairs on one thread and may nest; they should cost no locked
/// instruction. `wait` may be slow. It is never called inside a section, and sections never block
/// on the caller of `wait`.
pub trait Quiesce: Debug + Send + Sync {
    /// Opens a section on this thread.
    fn enter(&self);

    /// Closes the section that this thread opened last.
    fn exit(&self);

    /// Returns once every section that was open when the call began is closed. Stores made before
    /// the call are seen by every section opened after it returns.
    fn wait(&self);
}

/// A section, closed when dropped.
#[derive(Debug)]
#[must_use = "a section ends where its guard is dropped"]
pub struct Section<'a>(&'a dyn Quiesce);

impl<'a> Section<'a> {
    /// Opens a section.
    pub fn enter(quiesce: &'a dyn Quiesce) -> Self {
        quiesce.enter();
        Self(quiesce)
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        self.0.exit();
    }
}

/// Sections counted in one shared word: right everywhere, and slow, for each section costs two
/// locked instructions and `wait` needs a moment without any section. For tests and for programs
/// with one thread.
#[derive(Debug, Default)]
pub struct Counted {
    open: AtomicUsize,
}

impl Quiesce for Counted {
    fn enter(&self) {
        self.open.fetch_add(1, Ordering::SeqCst);
    }

    fn exit(&self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
    }

    fn wait(&self) {
        while self.open.load(Ordering::SeqCst) != 0 {
            spin_loop();
        }
    }
}
