//! Taking areas away.

use std::sync::{Arc, Weak};

use ioasis_iommupt::{Iova, IovaRange};
use ioasis_uapi::{Errno, Error, Result};

use super::{Ioas, IoasAccess, PastUnmap, Space, wait_for_dma};
use crate::Importer;
use crate::hw::domain::Domain;
use crate::pages::GivenBack;

/// What an unmap did: bytes gone, also when it was refused half way.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Unmapped {
    /// Bytes unmapped.
    pub bytes: u64,
    /// `ENOENT` at an area that lies only partly in the range, `EBUSY` at one a hardware queue
    /// reads, `EDEADLOCK` at one whose accesses do not let go.
    pub result: Result<()>,
}

/// Rounds of asking accesses to let go of an area before giving up, as in `iopt_unmap_iova_range`.
const NOTIFY_ROUNDS: u32 = 100;

/// So many areas, and all there are, go without the tree being kept in order, and its memory with
/// them.
const TREE_AT_ONCE: usize = 64;

enum Stop {
    End,
    Refused(Error),
    /// Accesses hold pages of the area at this range.
    Held(IovaRange),
}

/// Areas that can go.
struct Clean {
    /// From the first to the last of them.
    range: IovaRange,
    bytes: u64,
    areas: usize,
}

impl Ioas {
    /// Removes every area that lies in `range`; `pid` is who asks. When it returns, no device
    /// reaches the memory.
    pub(crate) fn unmap(&self, range: IovaRange, pid: u32) -> Unmapped {
        let mut bytes: u64 = 0;
        let mut waiting: Option<(IovaRange, u32)> = None;
        loop {
            let mut space = self.lock();
            // Most unmaps are of one area.
            if let Some(gone) = space.remove_just(range, pid) {
                return Unmapped { bytes: bytes.wrapping_add(gone), result: Ok(()) };
            }
            let (clean, stop) = space.scan_unmap(range);
            if let Some(Clean { range, bytes: gone, areas }) = clean {
                bytes = bytes.wrapping_add(gone);
                space.drop_areas(range, areas);
                space.remember_unmap(PastUnmap { range, pid });
            }
            let held = match stop {
                Stop::End => return Unmapped { bytes, result: Ok(()) },
                Stop::Refused(error) => return Unmapped { bytes, result: Err(error) },
                Stop::Held(held) => held,
            };
            let round = match waiting {
                Some((area, round)) if area == held => round + 1,
                _ => 0,
            };
            if round > NOTIFY_ROUNDS {
                let error = Error::at(
                    Errno::EDEADLOCK,
                    "an access does not unpin the area",
                    held.start().0,
                );
                return Unmapped { bytes, result: Err(error) };
            }
            waiting = Some((held, round));
            if let Some(area) = space.areas.at_mut(held.start()) {
                area.prevent_access = true;
            }
            let accesses: Vec<Arc<dyn IoasAccess>> = space.accesses.clone();
            drop(space);
            accesses.iter().for_each(|access| access.notify_unmap(held));
        }
    }

    /// Removes the area at just `range` and says how long it was, if there is one and nothing keeps
    /// it.
    pub(crate) fn unmap_just(&self, range: IovaRange, pid: u32) -> Option<u64> {
        self.lock().remove_just(range, pid)
    }

    /// This IOAS as one who maps dma-bufs.
    pub(crate) fn importer(ioas: &Arc<Self>) -> Weak<dyn Importer> {
        let weak: Weak<Self> = Arc::downgrade(ioas);
        weak
    }

    /// Removes everything.
    pub(crate) fn unmap_all(&self, pid: u32) -> Unmapped {
        self.unmap(IovaRange::ALL, pid)
    }
}

/// Takes `range` from the devices: when it returns, none reaches what was there.
fn clear_domains(domains: &[Arc<Domain>], range: IovaRange) {
    domains.iter().for_each(|domain| domain.clear(range));
    wait_for_dma(domains, &[range]);
}

impl Importer for Ioas {
    fn invalidate(&self, key: u128) {
        let mut space = self.lock();
        let space = &mut *space;
        let mut cleared = Vec::new();
        for area in space.areas.iter().filter(|area| area.pages.revoke(key)) {
            space.domains.iter().for_each(|domain| domain.clear(area.range));
            cleared.push(area.range);
        }
        if !cleared.is_empty() {
            space.wait_for_dma(&cleared);
        }
    }
}

impl Space {
    #[inline]
    fn remove_just(&mut self, range: IovaRange, pid: u32) -> Option<u64> {
        let Self { areas, domains, .. } = self;
        let gone = areas.remove_free(range, |area| {
            clear_domains(domains, range);
            area.unfill();
        });
        if !gone {
            return None;
        }
        self.remember_unmap(PastUnmap { range, pid });
        // An area is not the whole space.
        Some(range.span() + 1)
    }

    /// The areas from the start of `range` that can go, as one range and a number of bytes, and
    /// what stops there.
    fn scan_unmap(&self, range: IovaRange) -> (Option<Clean>, Stop) {
        let mut clean: Option<Clean> = None;
        for area in self.areas.overlapping(range) {
            let at = area.range.start().0;
            if area.locks > 0 {
                return (
                    clean,
                    Stop::Refused(Error::at(Errno::EBUSY, "a hardware queue reads the area", at)),
                );
            }
            if !range.contains(area.range) {
                let error = Error::at(Errno::ENOENT, "the range covers only part of an area", at);
                return (clean, Stop::Refused(error));
            }
            if area.accesses > 0 {
                return (clean, Stop::Held(area.range));
            }
            let before = clean.take();
            let start = before.as_ref().map_or(area.range.start(), |clean| clean.range.start());
            clean = Some(Clean {
                range: IovaRange::closed(start, area.range.last()).expect("areas ascend"),
                // Areas that were never pinned may cover the whole space.
                bytes: before.as_ref().map_or(0, |clean| clean.bytes).wrapping_add(area.length()),
                areas: before.map_or(0, |clean| clean.areas) + 1,
            });
            if area.range.last() == range.last() {
                break;
            }
        }
        (clean, Stop::End)
    }

    /// Removes the `count` areas inside `range`, which cuts none: first from the devices, then for
    /// good.
    fn drop_areas(&mut self, range: IovaRange, count: usize) {
        clear_domains(&self.domains, range);
        if count == self.areas.len() && count >= TREE_AT_ONCE {
            self.areas.unfill_all();
            return;
        }
        let mut back = GivenBack::default();
        let mut next = Some(range.start());
        while let Some(start) = next.filter(|start| *start <= range.last()) {
            // The next area often begins where this one ends.
            let found = self.areas.remove(start).or_else(|| {
                let rest = IovaRange::closed(start, range.last()).expect("start is inside");
                let start = self.areas.first(rest)?.range.start();
                self.areas.remove(start)
            });
            let Some(mut area) = found else { return };
            next = area.range.last().0.checked_add(1).map(Iova);
            area.unfill_into(&mut back);
        }
    }
}
