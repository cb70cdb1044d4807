//! Access: memory behind IOVAs for a device that has no DMA of its own, a mediated one for
//! instance.
//!
//! An access reads and writes through an IOAS, or pins pages and keeps their addresses. Before an
//! area goes, every access of the IOAS is told, and must unpin before it returns. Linux:
//! `drivers/iommu/iommufd/device.c`, from `iommufd_access_create` on.
//!
//! Lock order: `Access::state` -> `Ioas::space` -> `Pages::pins`. [`AccessUser::unmap`] is called
//! with none of them held.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use ioasis_iommupt::{Iova, IovaRange, Prot, Run};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;

use crate::client::{Kind, PAGE_SIZE};
use crate::inject::step;
use crate::ioas::{Area, Ioas, IoasAccess, Space};
use crate::object::{Head, Held, Object, Tracked};
use crate::pages::{PageRange, Way};

/// Whoever pins pages through an access.
pub trait AccessUser: Debug + Send + Sync {
    /// `range` is about to be unmapped: every pin that touches it must be gone when this returns.
    fn unmap(&self, range: IovaRange);
}

/// What an access may do.
#[derive(Clone, Debug)]
pub enum AccessKind {
    /// Reads and writes; any alignment.
    ReadWrite,
    /// Pins pages too; the IOAS is page aligned while it is attached.
    Pins(Arc<dyn AccessUser>),
    /// Pins on behalf of a hardware queue: areas it reads cannot be unmapped.
    Queue,
}

#[derive(Debug, Default)]
struct State {
    /// Where pins and accesses go; `None` while detached or changing.
    ioas: Option<Held<Ioas>>,
    /// Where pins are given back.
    unpin: Option<Held<Ioas>>,
    /// How often each exact range is pinned.
    pins: BTreeMap<(u64, u64), u32>,
}

/// A way to memory behind IOVAs.
#[derive(Debug)]
pub(crate) struct Access {
    head: Head,
    token: u64,
    kind: AccessKind,
    state: Mutex<State>,
}

impl Object for Access {
    fn head(&self) -> &Head {
        &self.head
    }

    fn retire(self: Arc<Self>) {
        self.detach();
    }
}

impl Tracked for Access {
    const ABSENT: &'static str = "no access has this id";
}

impl IoasAccess for Access {
    fn token(&self) -> u64 {
        self.token
    }

    fn alignment(&self) -> u64 {
        match self.kind {
            AccessKind::ReadWrite => 1,
            AccessKind::Pins(_) | AccessKind::Queue => PAGE_SIZE,
        }
    }

    fn notify_unmap(&self, range: IovaRange) {
        if let AccessKind::Pins(user) = &self.kind {
            user.unmap(range);
        }
    }
}

fn range_of(iova: Iova, length: u64) -> Result<IovaRange> {
    IovaRange::new(iova, length)
}

impl Access {
    pub(crate) fn new(head: Head, token: u64, kind: AccessKind) -> Arc<Self> {
        Arc::new(Self { head, token, kind, state: Mutex::default() })
    }

    fn locks_areas(&self) -> bool {
        matches!(self.kind, AccessKind::Queue)
    }

    /// Makes `ioas` the address space, or none.
    ///
    /// # Errors
    ///
    /// `EBUSY` while another change is under way, `EADDRINUSE` when the mappings there are less
    /// aligned than needed.
    pub(crate) fn change_ioas(self: &Arc<Self>, ioas: Option<Held<Ioas>>) -> Result<()> {
        if ioas.is_some() {
            step("an access's place in an IOAS")?;
        }
        let mut state = self.state.lock();
        let current = state.ioas.as_ref().map(|ioas| ioas.head.id());
        if current != state.unpin.as_ref().map(|ioas| ioas.head.id()) {
            return refuse!(EBUSY, "the access is being moved to another IOAS");
        }
        if let (Some(old), Some(to)) = (&state.ioas, &ioas)
            && Arc::ptr_eq(old.arc(), to.arc())
        {
            return Ok(());
        }
        let old = state.ioas.take();
        if let Some(ioas) = &ioas {
            let mut space = ioas.lock();
            if let Err(error) = space.raise_alignment(self.alignment()) {
                drop(space);
                state.ioas = old;
                return Err(error);
            }
            space.accesses.push(Arc::clone(self) as Arc<dyn IoasAccess>);
        }
        if let Some(old) = &old {
            drop(state);
            self.notify_unmap(IovaRange::ALL);
            state = self.state.lock();
            let mut space = old.lock();
            space.accesses.retain(|access| access.token() != self.token);
            space.relax_alignment();
        }
        state.ioas.clone_from(&ioas);
        state.unpin = ioas;
        drop(state);
        drop(old);
        Ok(())
    }

    /// Whether it is attached, and not on its way elsewhere.
    pub(crate) fn is_attached(&self) -> bool {
        self.state.lock().ioas.is_some()
    }

    /// Leaves its IOAS, if it has one.
    pub(crate) fn detach(self: &Arc<Self>) {
        if self.state.lock().ioas.is_some() {
            // Detaching raises no alignment and so is refused only while another change runs.
            let _detached_by_the_other = self.change_ioas(None);
        }
    }

    /// Pins the pages of `length` bytes from `iova`, which begin on a page, and returns where the
    /// pages are.
    ///
    /// # Errors
    ///
    /// `EINVAL` for no bytes, bytes that do not begin on a page or go on within one in the next
    /// area, or a dma-buf; `EOVERFLOW` past the end; `ENOENT` where nothing is mapped or the access
    /// is not attached; `EPERM` without the permission; `EFAULT` and `ENOMEM` of pinning.
    pub(crate) fn pin(&self, iova: Iova, length: u64, need: Prot) -> Result<Vec<Run>> {
        let range = range_of(iova, length)?;
        let mut state = self.state.lock();
        let State { ioas: Some(ioas), pins, .. } = &mut *state else {
            return refuse!(ENOENT, "the access is not attached");
        };
        let mut space = ioas.lock();
        let mut runs = Vec::new();
        let mut done: Option<Iova> = None;
        let pinned = space.cover(range, |area, part| {
            pin_area(area, part, part.last() == range.last(), need, &mut runs)?;
            done = Some(part.last());
            Ok(())
        });
        match pinned {
            Ok(()) => {
                space.count_access(range, self.locks_areas(), Count::Add);
                *pins.entry((range.start().0, range.last().0)).or_default() += 1;
                Ok(runs)
            }
            Err(error) => {
                if let Some(last) = done {
                    let part = IovaRange::closed(range.start(), last).expect("areas ascend");
                    space.release_pages(part);
                }
                Err(error)
            }
        }
    }

    /// Gives back what [`pin`](Self::pin) was called with.
    ///
    /// # Errors
    ///
    /// `EINVAL` unless exactly this range is pinned.
    pub(crate) fn unpin(&self, iova: Iova, length: u64) -> Result<()> {
        let range = range_of(iova, length)?;
        let mut state = self.state.lock();
        let key = (range.start().0, range.last().0);
        let Some(count) = state.pins.get_mut(&key) else {
            return refuse!(EINVAL, "the access did not pin exactly this range", iova.0);
        };
        *count -= 1;
        if *count == 0 {
            state.pins.remove(&key);
        }
        let ioas = state.unpin.as_ref().expect("pins are in an IOAS");
        let mut space = ioas.lock();
        space.release_pages(range);
        space.count_access(range, self.locks_areas(), Count::Remove);
        Ok(())
    }

    /// Fills `buf` from `iova`.
    ///
    /// # Errors
    ///
    /// As [`pin`](Self::pin), without the rule of whole pages.
    pub(crate) fn read(&self, iova: Iova, buf: &mut [u8]) -> Result<()> {
        let mut rest = buf;
        self.copy(iova, rest.len(), Prot::READ, |area, part, length| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(length);
            rest = later;
            area.pages.read(area.byte_at(part.start()), now)
        })
    }

    /// Writes `buf` to `iova`.
    ///
    /// # Errors
    ///
    /// As [`pin`](Self::pin), without the rule of whole pages.
    pub(crate) fn write(&self, iova: Iova, buf: &[u8], way: Way) -> Result<()> {
        let mut rest = buf;
        self.copy(iova, rest.len(), Prot::WRITE, |area, part, length| {
            let (now, later) = rest.split_at(length);
            rest = later;
            area.pages.write(area.byte_at(part.start()), now, way)
        })
    }

    /// The first IOVA of the area number `nth` of its address space.
    #[cfg(feature = "mock")]
    pub(crate) fn nth_area(&self, nth: u32) -> Option<Iova> {
        self.state.lock().ioas.as_ref()?.nth_area(nth)
    }

    fn copy(
        &self,
        iova: Iova,
        length: usize,
        need: Prot,
        mut each: impl FnMut(&Area, IovaRange, usize) -> Result<()>,
    ) -> Result<()> {
        let range = range_of(iova, length as u64)?;
        let state = self.state.lock();
        let Some(ioas) = &state.ioas else {
            return refuse!(ENOENT, "the access is not attached");
        };
        ioas.lock().cover(range, |area, part| {
            check_access(area, need)?;
            let length = usize::try_from(part.span() + 1).expect("a part of a buffer fits memory");
            each(area, part, length)
        })
    }
}

fn check_access(area: &Area, need: Prot) -> Result<()> {
    let at = area.range.start().0;
    if area.prevent_access {
        return refuse!(EINVAL, "an unmap waits for the accesses of the area", at);
    }
    // WRITE asks for the write permission alone, as in check_area_prot.
    let asked = if need.contains(Prot::WRITE) { Prot::WRITE } else { Prot::READ };
    if !area.prot.contains(asked) || (asked == Prot::WRITE && !area.pages.writable()) {
        return refuse!(EPERM, "the mapping does not grant the access", at);
    }
    if area.pages.kind() == Kind::DmaBuf {
        return refuse!(EINVAL, "device memory of a dma-buf cannot be accessed", at);
    }
    Ok(())
}

/// Pins the pages of an area from `part` on, whole; those of the last area may end anywhere. Linux:
/// `iopt_area_contig_is_aligned`.
fn pin_area(
    area: &Area,
    part: IovaRange,
    is_last: bool,
    need: Prot,
    runs: &mut Vec<Run>,
) -> Result<()> {
    let start = area.byte_at(part.start());
    let length = part.span() + 1;
    let begins = start.is_multiple_of(PAGE_SIZE);
    if area.prevent_access || !begins || !(is_last || length.is_multiple_of(PAGE_SIZE)) {
        return refuse!(
            EINVAL,
            "what is pinned begins on a page, goes on on the next, and is of an area that stays",
            part.start().0
        );
    }
    check_access(area, need)?;
    area.pages.hold_runs(start, length.next_multiple_of(PAGE_SIZE), runs)
}

#[derive(Clone, Copy, Debug)]
enum Count {
    Add,
    Remove,
}

impl Space {
    /// Counts an access, or one less, on every area over `range`.
    fn count_access(&mut self, range: IovaRange, locks: bool, count: Count) {
        self.areas.each_mut(range, |area| {
            let counter = if locks { &mut area.locks } else { &mut area.accesses };
            match count {
                Count::Add => *counter += 1,
                Count::Remove => *counter -= 1,
            }
        });
    }

    fn release_pages(&mut self, range: IovaRange) {
        for area in self.areas.overlapping(range) {
            let part = area.range.intersect(range).expect("an overlapping area overlaps");
            area.pages.release(PageRange::of_bytes(area.byte_at(part.start()), part.span() + 1));
        }
    }
}
