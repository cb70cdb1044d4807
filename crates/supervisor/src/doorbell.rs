//! Stores to a device's shared pages, told while nobody looks: its doorbells.
//!
//! A program that stores to a page that is plain shared memory makes no system call. While a device
//! is busy its thread looks; while it is not, every mapping of the pages is write-protected by a
//! userfaultfd of the program's own memory ([`Userfault`]), and the first store wakes the thread,
//! which lifts the protection and looks.
//!
//! A program's memory that maps the pages is a [`Space`] here. It can be trusted to tell of every
//! store when it has a userfaultfd, which the tracer makes its thread ask for before the first mmap
//! returns (`trap`), and no call is under way that may map the pages anew or somewhere else. As
//! long as one cannot be trusted, because it is a fork's, its process is traced by another or is a
//! virtual machine's, the device's thread looks, less and less often.
//!
//! Which mappings there are the kernel says, whenever one may have come. One that goes needs no
//! help: a protection that is refused has them looked up again.
//!
//! Lock order: `Doorbells::spaces`, `watched` and `thread` are leaves, not held during a call on a
//! program's memory. A program can make such a call wait, and waits itself then: only the device's
//! own thread makes one, and the program's tracer.

use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::Duration;

use ioasis_sys::eventfd::EventFd;
use ioasis_sys::process::{self, Mm};
use ioasis_sys::sync::Mutex;
use ioasis_sys::userfault::Userfault;
use ioasis_uapi::{Errno, Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::descriptors;

/// Those of one open device.
#[derive(Debug)]
pub(crate) struct Doorbells {
    /// Of the file: `st_dev` and inode.
    file: (u64, u64),
    /// Its shared pages, by offset in the file.
    shared: Vec<Range<u64>>,
    spaces: Mutex<Vec<Arc<Space>>>,
    /// What is protected now.
    watched: Mutex<Vec<Arc<Space>>>,
    /// Ends the wait of the device's thread, once a program has mapped a page.
    wake: OnceLock<EventFd>,
    /// Until then that thread is parked.
    thread: Mutex<Option<Thread>>,
    /// That thread waits, or is about to.
    waits: AtomicBool,
    /// There were more memories than are kept here, or one that could not be opened: nothing is
    /// watched any more.
    crowded: AtomicBool,
    /// It was said that stores are looked for.
    told: AtomicBool,
}

/// Memories that are kept of one device: each holds descriptors of ours.
const SPACES: usize = 16;
const PAGE: u64 = 4096;

/// One memory that maps the pages, or may.
#[derive(Debug)]
struct Space {
    mm: Arc<Mm>,
    fault: OnceLock<Userfault>,
    /// Reasons for which a store may not be told: calls under way, and what has no end.
    unsure: AtomicU32,
    /// It may have been forked without a word.
    is_blind: AtomicBool,
    /// There may be a mapping that `ranges` does not have.
    stale: AtomicBool,
    /// Where the pages are mapped and registered. Only the device's thread asks for them.
    ranges: Mutex<Vec<(u64, u64)>>,
}

/// A mapping of the pages that a thread of a program is about to make or to move. When it is
/// dropped before it is [`settled`] the program's stores are looked for as long as its memory is
/// used.
///
/// [`settled`]: Coming::settled
#[derive(Debug)]
pub(crate) struct Coming {
    doorbells: Arc<Doorbells>,
    space: Arc<Space>,
    is_settled: bool,
}

/// Doorbells that a process has mapped, as its tracer remembers them.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    doorbells: std::sync::Weak<Doorbells>,
    mm: Arc<Mm>,
}

impl Doorbells {
    /// Of the file `inode` of the file system `device`, whose `shared` pages, ascending, are
    /// doorbells.
    pub(crate) fn new(file: (u64, u64), shared: Vec<Range<u64>>) -> Arc<Self> {
        Arc::new(Self {
            file,
            shared,
            spaces: Mutex::default(),
            watched: Mutex::default(),
            wake: OnceLock::new(),
            thread: Mutex::default(),
            waits: AtomicBool::new(false),
            crowded: AtomicBool::new(false),
            told: AtomicBool::new(false),
        })
    }

    /// Whether some of `length` bytes at `offset` of the file are shared pages.
    pub(crate) fn has_shared(&self, offset: u64, length: u64) -> bool {
        let end = offset.saturating_add(length);
        self.shared.iter().any(|range| range.start < end && offset < range.end)
    }

    /// A thread with this memory is about to make a mapping of the pages, or to move one. Said
    /// before the kernel goes on with that. Nothing where stores are looked for whatever is mapped.
    pub(crate) fn comes(self: &Arc<Self>, mm: &Arc<Mm>) -> Option<Coming> {
        if self.wake.get().is_none() {
            // What is kept to save time must leave enough for what must be kept.
            match EventFd::create().ok().filter(|made| descriptors::are_plenty(made.as_fd())) {
                Some(made) => drop(self.wake.set(made)),
                None => self.give_up(),
            }
        }
        if self.crowded.load(Ordering::SeqCst) {
            return None;
        }
        let space = self.space(mm);
        space.unsure.fetch_add(1, Ordering::SeqCst);
        ioasis_pci::Doorbells::wake(&**self);
        Some(Coming { doorbells: Arc::clone(self), space, is_settled: false })
    }

    /// Stores by programs with the memory `mm` are not told from here on.
    fn lose(&self, mm: &Arc<Mm>) {
        self.space(mm).unsure.fetch_add(1, Ordering::SeqCst);
        ioasis_pci::Doorbells::wake(self);
    }

    /// They are again.
    fn regain(&self, mm: &Arc<Mm>) {
        self.space(mm).unsure.fetch_sub(1, Ordering::SeqCst);
    }

    /// Some program has, or may have, mappings of which nothing more can be known.
    pub(crate) fn give_up(&self) {
        self.crowded.store(true, Ordering::SeqCst);
        ioasis_pci::Doorbells::wake(self);
    }

    /// Says something about how stores are found, the first time.
    pub(crate) fn is_news(&self) -> bool {
        !self.told.swap(true, Ordering::Relaxed)
    }

    fn space(&self, mm: &Arc<Mm>) -> Arc<Space> {
        if self.spaces.lock().len() >= SPACES {
            self.prune();
        }
        let mut spaces = self.spaces.lock();
        if let Some(known) = spaces.iter().find(|space| Arc::ptr_eq(&space.mm, mm)) {
            return Arc::clone(known);
        }
        let space = Arc::new(Space {
            mm: Arc::clone(mm),
            fault: OnceLock::new(),
            unsure: AtomicU32::new(0),
            is_blind: AtomicBool::new(false),
            stale: AtomicBool::new(true),
            ranges: Mutex::default(),
        });
        if spaces.len() < SPACES {
            spaces.push(Arc::clone(&space));
        } else {
            self.crowded.store(true, Ordering::SeqCst);
        }
        space
    }

    /// Forgets memories that nobody uses any more; answers with those that are left.
    fn prune(&self) -> Vec<Arc<Space>> {
        let known = self.spaces.lock().clone();
        let is_over = |space: &Arc<Space>| !space.mm.is_live();
        let (over, live): (Vec<_>, Vec<_>) = known.into_iter().partition(is_over);
        if over.iter().any(|space| space.is_blind.load(Ordering::SeqCst)) {
            // Whoever was forked off it may still have the mappings.
            self.crowded.store(true, Ordering::SeqCst);
        }
        if !over.is_empty() {
            // One that has come meanwhile is kept.
            let is_kept = |space: &Arc<Space>| !over.iter().any(|other| Arc::ptr_eq(space, other));
            self.spaces.lock().retain(is_kept);
        }
        live
    }

    /// Write-protects the pages in all of `spaces`, as far as that goes: into `done` goes what was
    /// protected.
    fn protect(&self, spaces: &[Arc<Space>], done: &mut Vec<Arc<Space>>) -> bool {
        for space in spaces {
            if !space.is_sure() {
                return false;
            }
            done.push(Arc::clone(space));
            match space.protect(self) {
                Ok(()) => {}
                // Nobody uses that memory any more.
                Err(error) if error.errno == Errno::ESRCH => {}
                Err(_) => {
                    // What somebody else has registered stays so: it is not tried again.
                    space.unsure.fetch_add(1, Ordering::SeqCst);
                    return false;
                }
            }
        }
        spaces.iter().all(|space| space.is_sure())
    }
}

impl ioasis_pci::Doorbells for Doorbells {
    fn watch(&self) -> bool {
        if let Some(wake) = self.wake.get() {
            let _ = wake.take();
        }
        self.thread.lock().get_or_insert_with(thread::current);
        self.waits.store(true, Ordering::SeqCst);
        if self.crowded.load(Ordering::SeqCst) {
            self.waits.store(false, Ordering::SeqCst);
            self.spaces.lock().clear();
            return false;
        }
        let live = self.prune();
        let mut done = Vec::with_capacity(live.len());
        let all = self.protect(&live, &mut done) && !self.crowded.load(Ordering::SeqCst);
        *self.watched.lock() = done;
        if !all {
            self.waits.store(false, Ordering::SeqCst);
            ioasis_pci::Doorbells::release(self);
        }
        all
    }

    fn wait(&self, limit: Duration) -> bool {
        let watched = self.watched.lock().clone();
        let faults = watched.iter().filter_map(|space| space.fault.get());
        let Some(wake) = self.wake.get() else {
            thread::park_timeout(limit);
            return !self.waits.load(Ordering::SeqCst);
        };
        let mut fds = vec![PollFd::new(wake, PollFlags::IN)];
        fds.extend(faults.map(|fault| PollFd::new(fault, PollFlags::IN)));
        let limit = Timespec {
            tv_sec: limit.as_secs().cast_signed(),
            tv_nsec: limit.subsec_nanos().into(),
        };
        // A signal is as good as a wake.
        rustix::event::poll(&mut fds, Some(&limit)) != Ok(0)
    }

    fn release(&self) {
        self.waits.store(false, Ordering::SeqCst);
        for space in std::mem::take(&mut *self.watched.lock()) {
            space.release();
        }
    }

    fn wake(&self) {
        if self.waits.swap(false, Ordering::SeqCst) {
            self.wake.get().inspect(|wake| wake.signal());
            if let Some(thread) = &*self.thread.lock() {
                thread.unpark();
            }
        }
    }
}

impl Space {
    /// Whether every store would be told.
    fn is_sure(&self) -> bool {
        self.unsure.load(Ordering::SeqCst) == 0 && self.fault.get().is_some()
    }

    fn protect(&self, doorbells: &Doorbells) -> Result<()> {
        let fault = self.fault.get().ok_or(Error::new(Errno::EINVAL, "no userfaultfd"))?;
        // Mappings that have gone since are found out once; a program that goes on and on is looked
        // at instead.
        for _ in 0..3 {
            if self.stale.swap(false, Ordering::SeqCst) {
                let found = self.find(doorbells, fault)?;
                *self.ranges.lock() = found;
            }
            let ranges = self.ranges.lock().clone();
            let done = ranges.iter().try_for_each(|&(start, length)| fault.protect(start, length));
            match done {
                Err(error) if error.errno == Errno::ENOENT => {
                    self.stale.store(true, Ordering::SeqCst);
                }
                other => return other,
            }
        }
        Err(Error::new(Errno::EAGAIN, "its mappings come and go"))
    }

    /// Where the shared pages are mapped, all of which are registered from here on.
    fn find(&self, doorbells: &Doorbells, fault: &Userfault) -> Result<Vec<(u64, u64)>> {
        let mut found = Vec::new();
        for vma in self.mm.vmas(0, u64::MAX)? {
            if (vma.device, vma.inode) != doorbells.file || !vma.shared {
                continue;
            }
            let mapped = vma.offset..vma.offset.saturating_add(vma.last - vma.start + 1);
            for shared in &doorbells.shared {
                let (from, to) = (shared.start.max(mapped.start), shared.end.min(mapped.end));
                if from >= to {
                    continue;
                }
                let range = (vma.start + (from - mapped.start), to - from);
                match fault.register(range.0, range.1) {
                    Ok(()) => found.push(range),
                    // Nobody can ever store there.
                    Err(error) if error.errno == Errno::EPERM => {}
                    // It has just gone.
                    Err(error) if error.errno == Errno::EINVAL => {
                        self.stale.store(true, Ordering::SeqCst);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(found)
    }

    fn release(&self) {
        let Some(fault) = self.fault.get() else { return };
        for &(start, length) in &*self.ranges.lock() {
            if fault.release(start, length).is_ok() {
                continue;
            }
            // The kernel has stopped at a page that is another's now; what was unmapped needs no
            // release.
            for page in 0..length / PAGE {
                let _ = fault.release(start + page * PAGE, PAGE);
            }
        }
    }
}

impl Coming {
    /// The memory that is to have the mapping.
    pub(crate) fn watched(&self) -> Watched {
        let doorbells = Arc::downgrade(&self.doorbells);
        Watched { doorbells, mm: Arc::clone(&self.space.mm) }
    }

    /// Whether a userfaultfd is missing.
    pub(crate) fn lacks_fault(&self) -> bool {
        self.space.fault.get().is_none()
    }

    /// The one that a thread with this memory has asked for.
    pub(crate) fn give(&self, fault: Userfault) {
        let _ = self.space.fault.set(fault);
    }

    /// Whether nothing has been said yet about how stores to these doorbells are found.
    pub(crate) fn is_news(&self) -> bool {
        self.doorbells.is_news()
    }

    /// The call has failed.
    pub(crate) fn failed(mut self) {
        self.is_settled = true;
        let mut spaces = self.doorbells.spaces.lock();
        if self.space.unsure.fetch_sub(1, Ordering::SeqCst) == 1 && self.lacks_fault() {
            spaces.retain(|space| !Arc::ptr_eq(space, &self.space));
        }
    }

    /// The call has returned: what is mapped now is found out before the device rests.
    pub(crate) fn settled(mut self) {
        self.is_settled = true;
        self.space.stale.store(true, Ordering::SeqCst);
        self.space.unsure.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        if !self.is_settled {
            self.space.is_blind.store(true, Ordering::SeqCst);
        }
    }
}

impl Watched {
    /// A process with the memory of the thread `child` was forked off one with this: it has the
    /// mappings, and they are not registered.
    pub(crate) fn forked(&self, child: u32) -> Option<Self> {
        let doorbells = self.doorbells.upgrade()?;
        if doorbells.crowded.load(Ordering::SeqCst) {
            return None;
        }
        match process::Thread::open(child).and_then(|thread| thread.mm()) {
            Ok(mm) => {
                doorbells.lose(&mm);
                Some(Self { doorbells: self.doorbells.clone(), mm })
            }
            Err(error) => {
                if error.errno != Errno::ESRCH {
                    doorbells.give_up();
                }
                None
            }
        }
    }

    /// Nobody traces the process any more, so that it may fork without a word.
    pub(crate) fn let_go(&self) {
        if let Some(doorbells) = self.doorbells.upgrade() {
            doorbells.space(&self.mm).is_blind.store(true, Ordering::SeqCst);
            doorbells.lose(&self.mm);
        }
    }

    /// Nobody traces the process for a while, so that it may fork without a word.
    pub(crate) fn lose(&self) {
        if let Some(doorbells) = self.doorbells.upgrade() {
            doorbells.lose(&self.mm);
        }
    }

    /// That while is over, and nothing was forked.
    pub(crate) fn regain(&self) {
        if let Some(doorbells) = self.doorbells.upgrade() {
            doorbells.regain(&self.mm);
        }
    }

    /// Whether the memory of the thread `tid` has the mappings.
    pub(crate) fn are_mapped_by(&self, tid: u32) -> bool {
        let Some(doorbells) = self.doorbells.upgrade() else { return false };
        let vmas = process::Thread::open(tid).and_then(|thread| thread.mm()?.vmas(0, u64::MAX));
        vmas.is_ok_and(|vmas| vmas.iter().any(|vma| (vma.device, vma.inode) == doorbells.file))
    }

    /// Whether the thread `child` has the memory of the process `parent`.
    pub(crate) fn is_borrowed(child: u32, parent: u32) -> bool {
        let (Ok(child), Ok(parent)) = (process::Thread::open(child), process::Thread::open(parent))
        else {
            return false;
        };
        child.shares_memory_with(&parent)
    }

    /// Whether the device is still open.
    pub(crate) fn is_there(&self) -> bool {
        self.doorbells.strong_count() > 0
    }

    /// Whether both are of one device.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.doorbells.ptr_eq(&other.doorbells)
    }
}
