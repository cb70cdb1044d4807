//! Taking areas away.

use std::sync::{Arc, Weak};

use ioasis_iommupt::IovaRange;
use ioasis_uapi::{Errno, Error, Result};

use super::{Ioas, PastUnmap, Space};
use crate::Importer;
use crate::access::Access;
use crate::machine::Machine;

/// What an unmap did: bytes gone, also when it was refused half way.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Unmapped {
    /// Bytes unmapped.
    pub bytes: u64,
    /// `ENOENT` at an area that lies only partly in the range, `EBUSY` at one a hardware queue reads, `EDEADLOCK` at one
    /// whose accesses do not let go.
    pub result: Result<()>,
}

/// Rounds of asking accesses to let go of an area before giving up, as in `iopt_unmap_iova_range`.
const NOTIFY_ROUNDS: u32 = 100;

enum Stop {
    End,
    Refused(Error),
    /// Accesses hold pages of the area at this range.
    Held(IovaRange),
}

impl Ioas {
    /// Removes every area that lies in `range`; `pid` is who asks. When it returns, no device reaches the memory.
    pub(crate) fn unmap(&self, range: IovaRange, pid: u32) -> Unmapped {
        let mut bytes = 0;
        let mut waiting: Option<(IovaRange, u32)> = None;
        loop {
            let mut space = self.lock();
            let (clean, stop) = space.scan_unmap(range);
            if let Some((clean, length)) = clean {
                bytes += length;
                space.drop_areas(&self.machine, clean);
                space.remember_unmap(PastUnmap { range: clean, pid });
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
            let accesses: Vec<Arc<Access>> = space.accesses.clone();
            drop(space);
            accesses.iter().for_each(|access| access.notify_unmap(held));
        }
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

impl Importer for Ioas {
    fn invalidate(&self, key: u128) {
        let mut space = self.lock();
        let space = &mut *space;
        let mut cleared = false;
        for area in space.areas.iter().filter(|area| area.pages.revoke(key)) {
            space.domains.iter().for_each(|domain| domain.clear(area.range));
            cleared = true;
        }
        if cleared {
            self.machine.quiesce.wait();
        }
    }
}

impl Space {
    /// The areas from the start of `range` that can go, as one range and a number of bytes, and what stops there.
    fn scan_unmap(&self, range: IovaRange) -> (Option<(IovaRange, u64)>, Stop) {
        let mut clean: Option<(IovaRange, u64)> = None;
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
            let (start, bytes) =
                clean.map_or((area.range.start(), 0), |(range, bytes)| (range.start(), bytes));
            let range = IovaRange::closed(start, area.range.last()).expect("areas ascend");
            clean = Some((range, bytes + area.length()));
        }
        (clean, Stop::End)
    }

    /// Removes the areas inside `range`, which cuts none: first from the devices, then for good.
    pub(super) fn drop_areas(&mut self, machine: &Machine, range: IovaRange) {
        if !self.domains.is_empty() {
            self.domains.iter().for_each(|domain| domain.clear(range));
            machine.quiesce.wait();
        }
        loop {
            let Some(start) = self.areas.first(range).map(|area| area.range.start()) else {
                return;
            };
            self.areas.remove(start).expect("the area is there").unfill();
        }
    }
}
