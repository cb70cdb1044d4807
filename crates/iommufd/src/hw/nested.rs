//! Nested translation: a client's own table, walked by device DMA, over a nest parent.
//!
//! What was walked is remembered, as hardware's IOTLB remembers it: a client that changes its table
//! and does not invalidate goes on seeing the old translation. When an invalidation returns, no DMA
//! uses what it took away: what is walked while it runs is not remembered, and it waits for the
//! sections that were open. The parent's part is looked up anew each time, so that an unmap there
//! counts at once; any change there also takes away all that was walked, for the client's table may
//! lie in what is gone (Linux: `INV_TYPE_S2_VMID_S1_CLEAR`, `CACHE_TAG_NESTING_IOTLB`). A table
//! that no command invalidates (AMD's, in Linux 7.3) is walked each time.
//!
//! The client's table may lie in memory whose pages somebody must give first
//! ([`Backing::may_wait`](crate::Backing::may_wait)). Nobody waits for them inside a section: the
//! walk is made ahead of the translation, outside, and counts if nothing was taken away since
//! ([`Ahead`]).
//!
//! DIFFERS: accessed and dirty bits of the client's table are not set. Its words can lie in private
//! memory of a process, which is reached by copies only: a bit set that way could undo a store of
//! the client's own.
//!
//! `Nested::cache` is a leaf lock, taken inside a section and never held across one.

use std::collections::BTreeMap;
use std::sync::Arc;

use ioasis_iommupt::{Changes, Fault, Iova, Prot, Run};
use ioasis_sys::published::Held;
use ioasis_sys::sync::Mutex;

use super::domain::Domain;
use super::ops::{Invalidated, Iotlb, NestedOps, UserArray, Walked};
use super::phys::{Phys, Window};
use crate::client::Piece;

/// A translation that was walked.
#[derive(Clone, Copy, Debug)]
struct Cached {
    last: u64,
    ipa: u64,
    prot: Prot,
}

/// A walk that was made ahead of the translation that wants it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ahead {
    key: (u32, u64),
    /// First address, and the translation; none: there is none.
    walked: Option<(u64, Cached)>,
    /// What was seen of invalidations and changes before.
    before: (u64, u64),
}

/// Why there is no translation.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Missed {
    /// The tables have none that grants the access.
    Fault(Fault),
    /// It must be walked ahead, outside the section.
    WalkAhead,
}

impl From<Fault> for Missed {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Where a word of a client's table is.
pub(crate) struct Word<'a> {
    /// In the parent.
    pub(crate) at: Iova,
    pub(crate) window: Held<'a, Window>,
    piece: Piece,
}

impl Word<'_> {
    pub(crate) fn read(&self) -> Option<u64> {
        let mut word = [0; 8];
        self.window.backing.read(&[self.piece], &mut word).ok()?;
        Some(u64::from_le_bytes(word))
    }
}

/// Translations kept; beyond, all are forgotten, as hardware may at any time.
const CACHED_MAX: usize = 4096;

/// A client's own table over a nest parent.
#[derive(Debug)]
pub(crate) struct Nested {
    parent: Arc<Domain>,
    /// What was taken out of the parent's table.
    changes: Arc<Changes>,
    ops: Box<dyn NestedOps>,
    cache: Mutex<Cache>,
}

/// What was walked.
#[derive(Debug, Default)]
struct Cache {
    /// By PASID and first address.
    entries: BTreeMap<(u32, u64), Cached>,
    /// Invalidations so far: what was walked before one is not remembered after it.
    invalidations: u64,
    /// How many changes of the parent's table the entries have outlived.
    seen: u64,
}

impl Nested {
    pub(crate) fn new(parent: &Arc<Domain>, ops: Box<dyn NestedOps>) -> Arc<Self> {
        Arc::new(Self::over(parent, ops))
    }

    fn over(parent: &Arc<Domain>, ops: Box<dyn NestedOps>) -> Self {
        let (parent, changes) = (Arc::clone(parent), parent.reader().changes());
        Self { parent, changes, ops, cache: Mutex::default() }
    }

    /// What its words mean.
    pub(crate) fn ops(&self) -> &dyn NestedOps {
        &*self.ops
    }

    /// Carries out requests of HWPT_INVALIDATE. No DMA uses what they took away when it returns.
    pub(crate) fn carry_out(&self, requests: &UserArray<'_>) -> Invalidated {
        let done = self.ops.invalidate(self, requests);
        self.parent.wait_for_nested();
        done
    }

    /// Translates through both stages, as
    /// [`TableReader::translate`](ioasis_iommupt::TableReader::translate) does through one; says
    /// also which address of the parent's that is. Inside a section; `ahead` was walked before it.
    pub(crate) fn translate(
        &self,
        (pasid, iova): (u32, Iova),
        length: u64,
        need: Prot,
        ahead: Option<&Ahead>,
    ) -> Result<(Iova, Run), Missed> {
        let walked = match self.remembered(pasid, iova) {
            Ok(hit) => Some(hit),
            Err(before) => match ahead {
                Some(ahead) if ahead.key == (pasid, iova.0) && ahead.before == before => {
                    ahead.walked
                }
                _ => self.walk_here(pasid, iova, before)?,
            },
        };
        let (first, cached) = walked.ok_or(Fault { iova, level: 0, missing: Prot::empty() })?;
        let missing = need & !cached.prot;
        if !missing.is_empty() {
            return Err(Fault { iova, level: 0, missing }.into());
        }
        let length = length.min(cached.last - iova.0 + 1);
        let ipa = Iova(cached.ipa + (iova.0 - first));
        let run = self.parent.reader().translate(ipa, length, need);
        Ok((ipa, run.map_err(|fault| Fault { iova, ..fault })?))
    }

    /// The translation of `iova` that is remembered, or what was seen of invalidations and changes
    /// before a walk.
    fn remembered(&self, pasid: u32, iova: Iova) -> Result<(u64, Cached), (u64, u64)> {
        let mut cache = self.cache.lock();
        let changes = self.changes.count();
        if cache.seen != changes {
            cache.entries.clear();
            cache.seen = changes;
        }
        let hit = cache.entries.range(..=(pasid, iova.0)).next_back();
        match hit {
            Some((&(of, first), &cached)) if of == pasid && iova.0 <= cached.last => {
                Ok((first, cached))
            }
            _ => Err((cache.invalidations, changes)),
        }
    }

    /// Walks inside a section, unless a word lies where the read may wait for somebody.
    fn walk_here(
        &self,
        pasid: u32,
        iova: Iova,
        before: (u64, u64),
    ) -> Result<Option<(u64, Cached)>, Missed> {
        let mut waits = false;
        let walked = self.walk(pasid, iova, before, &mut |address| {
            let word = self.word(address)?;
            waits |= word.window.backing.may_wait();
            if waits { None } else { word.read() }
        });
        if waits { Err(Missed::WalkAhead) } else { Ok(walked) }
    }

    /// Walks outside of any section: `read` reads a word of the client's table, and notes that it
    /// does.
    pub(crate) fn walk_ahead(
        &self,
        pasid: u32,
        iova: Iova,
        read: &mut dyn FnMut(u64) -> Option<u64>,
    ) -> Ahead {
        let key = (pasid, iova.0);
        match self.remembered(pasid, iova) {
            Ok(hit) => Ahead { key, walked: Some(hit), before: (u64::MAX, 0) },
            Err(before) => Ahead { key, walked: self.walk(pasid, iova, before, read), before },
        }
    }

    fn walk(
        &self,
        pasid: u32,
        iova: Iova,
        before: (u64, u64),
        read: &mut dyn FnMut(u64) -> Option<u64>,
    ) -> Option<(u64, Cached)> {
        let (walked, remembered) = (self.ops.walk(pasid, iova.0, read), self.ops.is_invalidated());
        let Walked::Leaf { ipa, lg2, prot } = walked else { return None };
        let mask = (1 << lg2) - 1;
        let first = iova.0 & !mask;
        let cached = Cached { last: iova.0 | mask, ipa, prot };
        let mut cache = self.cache.lock();
        if remembered && (cache.invalidations, self.changes.count()) == before {
            if cache.entries.len() >= CACHED_MAX {
                cache.entries.clear();
            }
            cache.entries.insert((pasid, first), cached);
        }
        Some((first, cached))
    }

    /// Where the word of the client's table at `address` is, through the parent. Inside a section.
    pub(crate) fn word(&self, address: u64) -> Option<Word<'_>> {
        let at = Iova(address & !7);
        let run = self.parent.reader().translate(at, 8, Prot::READ).ok()?;
        let window = self.parent.machine().phys.hold_window(run.pa)?;
        let piece = Piece { offset: Phys::offset(&window, run.pa), length: 8 };
        Some(Word { at, window, piece })
    }
}

impl Iotlb for Nested {
    fn invalidate(&self, start: u64, last: u64) {
        let mut cache = self.cache.lock();
        cache.invalidations += 1;
        cache.entries.retain(|&(_, first), cached| cached.last < start || last < first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hw::iommu::{EndpointConfig, Iommu, Kind};
    use crate::hw::machine::Machine;
    use crate::hw::ops::ReadWord;
    use ioasis_sys::sync::atomic::{AtomicU64, Ordering};
    use std::sync::Weak;

    /// A table of one page, whose client invalidates it while it is being walked.
    #[derive(Debug)]
    struct Changing {
        page: AtomicU64,
        of: Weak<Nested>,
    }

    impl NestedOps for Changing {
        fn walk(&self, _pasid: u32, _iova: u64, _read: ReadWord<'_>) -> Walked {
            let ipa = self.page.fetch_add(PAGE, Ordering::SeqCst);
            if ipa == 0 {
                self.of.upgrade().expect("it is being walked").invalidate(0, u64::MAX);
            }
            Walked::Leaf { ipa, lg2: 12, prot: Prot::READ }
        }
    }

    const PAGE: u64 = 4096;

    #[test]
    fn what_was_walked_before_an_invalidation_is_not_remembered_after_it() {
        let (machine, iommu) = (Machine::new(), Arc::new(Iommu::new(Kind::Vtd)));
        let parent = Domain::new(&machine, &iommu, &EndpointConfig::default(), 0, None).unwrap();
        let nested = Arc::new_cyclic(|of| {
            let table = Changing { page: AtomicU64::new(0), of: of.clone() };
            Nested::over(&parent, Box::new(table))
        });
        let walk = || {
            let walked = match nested.remembered(0, Iova(0)) {
                Ok(hit) => Some(hit),
                Err(before) => nested.walk_here(0, Iova(0), before).expect("nothing waits"),
            };
            walked.expect("there is a page").1.ipa
        };
        assert_eq!(walk(), 0, "the walk had begun before the invalidation");
        assert_eq!(walk(), PAGE, "it was not remembered");
        assert_eq!(walk(), PAGE, "this one is");
    }
}
