//! The translations that one requester keeps.
//!
//! A requester is one thread's view of one device: its address space, and one more for each PASID.
//! A hit costs a load of the table's change count and one or two entries; no locked instruction.
//! What an unmap, a change of permission or a harvest of dirty state took back is forgotten before
//! the next lookup, so with one [`Quiesce::wait`](crate::Quiesce::wait) after the change no
//! translation made before it is used any more. Lookup and use of what it returned belong in one
//! [`Section`](crate::Section).
//!
//! It is for emulators whose threads own their devices, and whose addresses come again: a hit takes
//! 2 ns, a walk 6 to 8. It has 256 KiB of its own.
//!
//! An entry that grants writing was marked dirty when it was made, and is forgotten when that mark
//! is taken.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use crate::sync::sized;
use crate::{Changes, Fault, Iova, IovaRange, Pa, Prot, Run, TableReader};
use ioasis_uapi::{Errno, Error, Result};

/// Entries for leaves of less than [`LARGE_LG2`], and as many for larger ones.
const ENTRIES: usize = sized(4096, 8, 2);
const SMALL_LG2: u32 = 12;
const LARGE_LG2: u32 = 21;
/// Address spaces of one requester: their number stands in the low bits of a tag.
const SPACES_MAX: usize = 1 << 11;
/// No page of any space has this tag: the bit is above every space's number.
const NOTHING: u64 = 1 << 11;

/// The part of a leaf that lies in one page of the slot's size.
#[derive(Clone, Copy)]
struct Entry {
    /// Page of the IOVA and number of the address space.
    tag: u64,
    /// Output address minus IOVA.
    offset: u64,
    last: u64,
    prot: Prot,
}

const EMPTY: Entry = Entry { tag: NOTHING, offset: 0, last: 0, prot: Prot::empty() };

/// One PASID's page table.
struct Space {
    pasid: u32,
    reader: Arc<dyn TableReader>,
    changes: Arc<Changes>,
    seen: u64,
}

/// Names an address space of a requester, for lookups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceId(u16);

/// Translations of one requester.
pub struct Iotlb {
    small: Box<[Entry; ENTRIES]>,
    large: Box<[Entry; ENTRIES]>,
    spaces: Vec<Option<Space>>,
}

impl fmt::Debug for Iotlb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pasids: Vec<u32> = self.spaces.iter().flatten().map(|space| space.pasid).collect();
        f.debug_struct("Iotlb").field("pasids", &pasids).finish_non_exhaustive()
    }
}

impl Default for Iotlb {
    fn default() -> Self {
        Self::new()
    }
}

impl Iotlb {
    /// No address space yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            small: Box::new([EMPTY; ENTRIES]),
            large: Box::new([EMPTY; ENTRIES]),
            spaces: Vec::new(),
        }
    }

    /// Gives `pasid` a page table; 0 is what requests without a PASID use. Another table of that
    /// PASID is detached.
    ///
    /// # Errors
    ///
    /// `ENOSPC` beyond 2048 address spaces.
    pub fn attach(&mut self, pasid: u32, reader: Arc<dyn TableReader>) -> Result<SpaceId> {
        self.detach(pasid);
        let changes = reader.changes();
        let seen = changes.count();
        let place = self.spaces.iter().position(Option::is_none).unwrap_or(self.spaces.len());
        if place >= SPACES_MAX {
            return Err(Error::at(Errno::ENOSPC, "too many address spaces", pasid.into()));
        }
        if place == self.spaces.len() {
            self.spaces.push(None);
        }
        self.spaces[place] = Some(Space { pasid, reader, changes, seen });
        Ok(SpaceId(u16::try_from(place).expect("fewer than 2^11")))
    }

    /// Takes `pasid`'s page table away and forgets its translations.
    pub fn detach(&mut self, pasid: u32) {
        let of = |space: &Option<Space>| space.as_ref().is_some_and(|space| space.pasid == pasid);
        if let Some(place) = self.spaces.iter().position(of) {
            self.forget(place as u64, IovaRange::ALL);
            self.spaces[place] = None;
        }
    }

    /// Forgets `pasid`'s translations.
    pub fn invalidate_pasid(&mut self, pasid: u32) {
        for place in 0..self.spaces.len() {
            if self.spaces[place].as_ref().is_some_and(|space| space.pasid == pasid) {
                self.forget(place as u64, IovaRange::ALL);
            }
        }
    }

    /// Forgets the translations of `range` in one address space.
    pub fn invalidate_range(&mut self, space: SpaceId, range: IovaRange) {
        self.forget(space.0.into(), range);
    }

    /// Forgets everything that came from `domain`'s page table, whatever the PASID.
    pub fn invalidate_domain(&mut self, domain: &Arc<dyn TableReader>) {
        let changes = domain.changes();
        for place in 0..self.spaces.len() {
            let of = |space: &Space| Arc::ptr_eq(&space.changes, &changes);
            if self.spaces[place].as_ref().is_some_and(of) {
                self.forget(place as u64, IovaRange::ALL);
            }
        }
    }

    /// What [`TableReader::translate`] would return, except that the run may end with a page of 4
    /// KiB or 2 MiB.
    ///
    /// # Errors
    ///
    /// The fault, when not even the first byte can be translated.
    ///
    /// # Panics
    ///
    /// If `space` was detached.
    #[inline]
    pub fn translate(
        &mut self,
        space: SpaceId,
        iova: Iova,
        length: u64,
        need: Prot,
    ) -> Result<Run, Fault> {
        let number = u64::from(space.0);
        let current = match &self.spaces[usize::from(space.0)] {
            Some(space) => space.changes.count() == space.seen,
            None => panic!("the address space is attached"),
        };
        if current {
            let large = &self.large[slot(iova.0, LARGE_LG2)];
            if let Some(run) = large.hit(tag(iova.0, LARGE_LG2, number), iova.0, length, need) {
                return Ok(run);
            }
            let small = &self.small[slot(iova.0, SMALL_LG2)];
            if let Some(run) = small.hit(tag(iova.0, SMALL_LG2, number), iova.0, length, need) {
                return Ok(run);
            }
        }
        self.miss(space, iova, length, need)
    }

    #[cold]
    #[inline(never)]
    fn miss(&mut self, space: SpaceId, iova: Iova, length: u64, need: Prot) -> Result<Run, Fault> {
        let place = usize::from(space.0);
        self.catch_up(place);
        let current = self.spaces[place].as_ref().expect("the address space is attached");
        let (range, pa) = current.reader.leaf(iova, need)?;
        let (entries, lg2) = if range.span() < (1 << LARGE_LG2) - 1 {
            (&mut self.small, SMALL_LG2)
        } else {
            (&mut self.large, LARGE_LG2)
        };
        let offset = pa.0.wrapping_sub(range.start().0);
        // A slot stands for a page: a smaller leaf could not be found again.
        if range.span() >= (1 << SMALL_LG2) - 1 {
            let tag = tag(iova.0, lg2, space.0.into());
            let old = &mut entries[slot(iova.0, lg2)];
            // What was granted before still is: a change would have been noticed.
            let same = old.tag == tag && !(old.prot ^ need).contains(Prot::PRIVILEGED);
            let prot = if same { old.prot | need } else { need };
            *old = Entry { tag, offset, last: iova.0 | ((1 << lg2) - 1), prot };
        }
        let rest = range.last().0 - iova.0;
        let length = if length.wrapping_sub(1) <= rest { length } else { rest + 1 };
        Ok(Run { pa: Pa(iova.0.wrapping_add(offset)), length })
    }

    /// Forgets what its table took back.
    fn catch_up(&mut self, place: usize) {
        let Some(space) = &self.spaces[place] else { return };
        let changes = Arc::clone(&space.changes);
        let seen = space.seen;
        let seen = changes.since(seen, |range| self.forget(place as u64, range));
        if let Some(space) = &mut self.spaces[place] {
            space.seen = seen;
        }
    }

    fn forget(&mut self, number: u64, range: IovaRange) {
        for (entries, lg2) in [(&mut self.small, SMALL_LG2), (&mut self.large, LARGE_LG2)] {
            let (first, last) = (range.start().0 >> lg2, range.last().0 >> lg2);
            if last - first < ENTRIES as u64 {
                for page in first..=last {
                    let entry = &mut entries[slot(page << lg2, lg2)];
                    if entry.tag == tag(page << lg2, lg2, number) {
                        *entry = EMPTY;
                    }
                }
                continue;
            }
            for entry in entries.iter_mut().filter(|entry| entry.overlaps(number, range)) {
                *entry = EMPTY;
            }
        }
    }
}

impl Entry {
    #[inline(always)]
    fn hit(&self, tag: u64, iova: u64, length: u64, need: Prot) -> Option<Run> {
        // What a privileged request was granted is not for others, nor the other way round.
        let asked = need | Prot::PRIVILEGED;
        if self.tag != tag || iova > self.last || self.prot & asked != need {
            return None;
        }
        let rest = self.last - iova;
        let length = if length.wrapping_sub(1) <= rest { length } else { rest + 1 };
        Some(Run { pa: Pa(iova.wrapping_add(self.offset)), length })
    }

    fn overlaps(&self, number: u64, range: IovaRange) -> bool {
        let page = self.tag & !(2 * NOTHING - 1);
        self.tag & (2 * NOTHING - 1) == number
            && page <= range.last().0
            && range.start().0 <= self.last
    }
}

#[inline]
const fn tag(iova: u64, lg2: u32, number: u64) -> u64 {
    (iova >> lg2 << lg2) | number
}

#[inline]
const fn slot(iova: u64, lg2: u32) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "taken modulo 4096")]
    let slot = (iova >> lg2) as usize % ENTRIES;
    slot
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fmt::{AmdV1, VtdFs, VtdSs};
    use crate::{Config, Counted, Dirty, Format, PageTable, Reader, Writer};

    const RW: Prot = Prot::READ.union(Prot::WRITE);

    fn table<F: Format>() -> (Writer<F>, Arc<Reader<F>>) {
        PageTable::new(Config::new(Arc::new(Counted::default()))).expect("an empty table")
    }

    fn range(start: u64, length: u64) -> IovaRange {
        IovaRange::new(Iova(start), length).expect("a range")
    }

    fn run(pa: u64, length: u64) -> Run {
        Run { pa: Pa(pa), length }
    }

    /// A requester with one table that maps 4 KiB, 64 KiB and 4 MiB.
    fn filled() -> (Writer<AmdV1>, Iotlb, SpaceId) {
        let (mut writer, reader) = table::<AmdV1>();
        writer.map(Iova(0x1000), &[run(0x8000, 0x1000)], RW).expect("mapped");
        writer.map(Iova(0x1_0000), &[run(0x5_0000, 0x1_0000)], RW).expect("mapped");
        writer.map(Iova(0x40_0000), &[run(0x80_0000, 0x40_0000)], Prot::READ).expect("mapped");
        let mut iotlb = Iotlb::new();
        let space = iotlb.attach(0, reader).expect("attached");
        (writer, iotlb, space)
    }

    #[test]
    fn a_hit_says_what_the_table_says() {
        let (_writer, mut iotlb, space) = filled();
        for _ in 0..2 {
            let mut found = |iova, length, need| iotlb.translate(space, Iova(iova), length, need);
            assert_eq!(found(0x1234, 8, RW), Ok(run(0x8234, 8)));
            assert_eq!(found(0x1ff8, 64, RW), Ok(run(0x8ff8, 8)));
            assert_eq!(found(0x1_2345, 1, RW), Ok(run(0x5_2345, 1)));
            assert_eq!(found(0x5f_ffff, 1, Prot::READ), Ok(run(0x9f_ffff, 1)));
            assert_eq!(found(0x60_0000, 1, Prot::READ), Ok(run(0xa0_0000, 1)));
            let fault = found(0x60_0000, 1, RW).expect_err("read-only");
            assert_eq!((fault.iova, fault.missing), (Iova(0x60_0000), Prot::WRITE));
            assert!(found(0x2000, 1, Prot::READ).is_err());
        }
    }

    #[test]
    fn what_a_privileged_request_was_granted_is_not_for_others() {
        let (mut writer, reader) = table::<VtdFs>();
        let pages = [(0, RW | Prot::PRIVILEGED), (0x1000, RW)];
        for (iova, prot) in pages {
            writer.map(Iova(iova), &[run(0x8000, 0x1000)], prot).expect("mapped");
        }
        let mut iotlb = Iotlb::new();
        let space = iotlb.attach(0, reader).expect("attached");
        for _ in 0..2 {
            let mut found = |iova, need| iotlb.translate(space, Iova(iova), 1, need).err();
            assert_eq!(found(0, RW | Prot::PRIVILEGED), None);
            let fault = Fault { iova: Iova(0), level: 0, missing: Prot::PRIVILEGED };
            assert_eq!(found(0, Prot::READ), Some(fault));
            assert_eq!(found(0x1000, RW), None);
            assert_eq!(found(0x1000, RW | Prot::PRIVILEGED), None);
        }
    }

    #[test]
    fn what_was_unmapped_is_not_hit() {
        let (mut writer, mut iotlb, space) = filled();
        for page in 0..16 {
            let at = Iova(0x1_0000 + page * 0x1000);
            assert!(iotlb.translate(space, at, 1, Prot::READ).is_ok());
        }
        writer.unmap(range(0x1_8000, 0x1000), &mut |_, _| {}).expect("unmapped");
        writer.unmap(range(0x40_0000, 0x1000), &mut |_, _| {}).expect("unmapped");
        for page in 0..16 {
            let at = Iova(0x1_0000 + page * 0x1000);
            assert_eq!(iotlb.translate(space, at, 1, Prot::READ).is_ok(), page != 8);
        }
        assert!(iotlb.translate(space, Iova(0x40_0000), 1, Prot::READ).is_err());
        assert!(iotlb.translate(space, Iova(0x40_1000), 1, Prot::READ).is_ok());
    }

    #[test]
    fn more_changes_than_are_kept_forget_everything() {
        let (mut writer, mut iotlb, space) = filled();
        assert!(iotlb.translate(space, Iova(0x1000), 1, Prot::READ).is_ok());
        writer.unmap(range(0x1000, 0x1000), &mut |_, _| {}).expect("unmapped");
        for _ in 0..100 {
            writer.clear(range(0x1_0000_0000, 0x1000));
        }
        assert!(iotlb.translate(space, Iova(0x1000), 1, Prot::READ).is_err());
    }

    #[test]
    fn a_hit_never_forgets_to_mark_what_it_writes() {
        let (mut writer, mut iotlb, space) = filled();
        let all = IovaRange::ALL;
        for _ in 0..3 {
            assert!(iotlb.translate(space, Iova(0x1000), 1, Prot::READ).is_ok());
            let mut dirty = Vec::new();
            writer.read_dirty(all, Dirty::Clear, &mut |range| dirty.push(range));
            assert_eq!(dirty, []);
            for _ in 0..2 {
                assert!(iotlb.translate(space, Iova(0x1000), 1, RW).is_ok());
            }
            writer.read_dirty(all, Dirty::Clear, &mut |range| dirty.push(range));
            assert_eq!(dirty, [range(0x1000, 0x1000)]);
        }
    }

    #[test]
    fn a_permission_taken_back_is_not_hit() {
        let (mut writer, mut iotlb, space) = filled();
        assert!(iotlb.translate(space, Iova(0x1000), 1, RW).is_ok());
        writer.protect(range(0x1000, 0x1000), Prot::READ).expect("protected");
        assert!(iotlb.translate(space, Iova(0x1000), 1, RW).is_err());
        assert!(iotlb.translate(space, Iova(0x1000), 1, Prot::READ).is_ok());
    }

    #[test]
    fn pasids_and_domains_are_kept_apart() {
        let (_one, mut iotlb, plain) = filled();
        let (mut writer, reader) = table::<VtdSs>();
        writer.map(Iova(0x1000), &[run(0x3000, 0x1000)], RW).expect("mapped");
        let domain: Arc<dyn TableReader> = reader;
        let seven = iotlb.attach(7, Arc::clone(&domain)).expect("attached");
        let eight = iotlb.attach(8, Arc::clone(&domain)).expect("attached");
        for _ in 0..2 {
            let mut found = |space| iotlb.translate(space, Iova(0x1000), 1, RW).map(|run| run.pa);
            assert_eq!(found(plain), Ok(Pa(0x8000)));
            assert_eq!([found(seven), found(eight)], [Ok(Pa(0x3000)); 2]);
        }
        let kept = |iotlb: &Iotlb| iotlb.small.iter().filter(|entry| entry.tag != NOTHING).count();
        // All three share a slot: the last one stands there.
        assert_eq!(kept(&iotlb), 1);
        iotlb.invalidate_pasid(7);
        assert_eq!(kept(&iotlb), 1);
        iotlb.invalidate_domain(&domain);
        assert_eq!(kept(&iotlb), 0);
        assert!(iotlb.translate(eight, Iova(0x1000), 1, RW).is_ok());
        iotlb.invalidate_range(eight, range(0x1000, 1));
        assert_eq!(kept(&iotlb), 0);
        iotlb.detach(8);
        assert_eq!(iotlb.attach(9, domain), Ok(eight), "a place is used again");
    }
}
