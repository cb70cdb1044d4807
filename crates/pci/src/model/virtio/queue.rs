//! Split virtqueues (2.7): rings in the program's memory.
//!
//! Each access of a ring is one transfer, however many requests it is for: the index, then ring
//! entries and the descriptor table together, then all indirect tables. What was read is checked
//! and used; it is never read again.
//!
//! Indices are read and written as the dword that holds the ring's flags too: a copy of two bytes
//! is two moves, and an index that is read between them never was.

use std::sync::atomic::{Ordering, fence};

use smallvec::SmallVec;

use super::registers::NO_VECTOR;
use super::{Stop, dword, quadword};
use crate::bus::{Bus, Segment};
use crate::migration::{Reader, Writer, bad};

/// Entries of a queue at most: its descriptor table is then 4 KiB, read in one go.
pub(super) const ENTRIES_MAX: u16 = 256;
/// Requests taken at once.
pub(super) const TAKE_MAX: u16 = 64;
/// Descriptors of an indirect table at most: 2.7.5.3.1 has no bound of its own for them.
const INDIRECT_MAX: u32 = 1024;

const DESCRIPTOR_BYTES: usize = 16;
const USED_BYTES: usize = 8;

// Descriptor flags, 2.7.5.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// The driver wants no interrupts (2.7.6).
const NO_INTERRUPT: u16 = 1;

/// The driver broke a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) why: &'static str,
    pub(super) value: u64,
}

fn wrong<T>(why: &'static str, value: impl Into<u64>) -> Result<T, Wrong> {
    Err(Wrong { why, value: value.into() })
}

/// A request: the memory of one chain of descriptors, without its empty pieces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    /// Its first descriptor.
    pub(super) head: u16,
    segments: SmallVec<[Segment; 4]>,
    /// How many segments the device may read; it may write the others.
    readable: usize,
    /// A descriptor that the device may write was there.
    writes: bool,
}

impl Chain {
    /// What the device may read.
    pub(super) fn readable(&self) -> &[Segment] {
        &self.segments[..self.readable]
    }

    /// What the device may write.
    pub(super) fn writable(&self) -> &[Segment] {
        &self.segments[self.readable..]
    }

    fn add(&mut self, descriptor: Descriptor) -> Result<(), Wrong> {
        let Descriptor { iova, length, flags, .. } = descriptor;
        if flags & WRITE != 0 {
            self.writes = true;
        } else if self.writes {
            return wrong("a descriptor to read follows one to write", self.head);
        }
        if length == 0 {
            return Ok(());
        }
        if iova.checked_add(length.into()).is_none() {
            return wrong("a descriptor wraps around the end of all addresses", iova);
        }
        self.segments.push(Segment { iova, length: length as usize });
        if flags & WRITE == 0 {
            self.readable = self.segments.len();
        }
        Ok(())
    }
}

/// How many bytes segments have.
pub(super) fn length(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| segment.length as u64).sum()
}

/// The part of `segments` from byte `start` on, `length` bytes of it at most.
pub(super) fn part(segments: &[Segment], start: u64, length: u64) -> SmallVec<[Segment; 4]> {
    let (mut skip, mut left) = (start, length);
    let mut found = SmallVec::new();
    for segment in segments {
        let bytes = segment.length as u64;
        if skip >= bytes {
            skip -= bytes;
            continue;
        }
        if left == 0 {
            break;
        }
        let taken = (bytes - skip).min(left);
        let length = usize::try_from(taken).expect("no longer than its segment");
        found.push(Segment { iova: segment.iova + skip, length });
        left -= taken;
        skip = 0;
    }
    found
}

#[derive(Clone, Copy, Debug)]
struct Descriptor {
    iova: u64,
    length: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    /// Entry `index` of a table, if it has so many.
    fn of(table: &[u8], index: u16) -> Option<Self> {
        let entry = table.chunks_exact(DESCRIPTOR_BYTES).nth(usize::from(index))?;
        let word = |at: usize| u16::from_le_bytes([entry[at], entry[at + 1]]);
        let (iova, length) = (quadword(entry, 0), dword(entry, 8));
        Some(Self { iova, length, flags: word(12), next: word(14) })
    }
}

/// An indirect table: where it lies, and how many bytes it has.
type Table = (u64, u32);

/// Where a queue lies: addresses that the driver wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Areas {
    pub(super) descriptors: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
}

/// What the driver accepted that concerns queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) indirect: bool,
    pub(super) event_index: bool,
}

/// One queue.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) index: u16,
    /// Entries: a power of two.
    pub(super) size: u16,
    pub(super) enabled: bool,
    /// Its vector of MSI-X, or [`NO_VECTOR`].
    pub(super) vector: u16,
    pub(super) areas: Areas,
    pub(super) rules: Rules,
    /// The driver said that there are requests, and not all of them were taken.
    pub(super) kicked: bool,
    /// The driver is to be interrupted.
    pub(super) interrupt: bool,
    next_available: u16,
    next_used: u16,
    /// Entries of the used ring that are not written yet.
    staged: Vec<u8>,
    bytes: Vec<u8>,
}

impl Queue {
    pub(super) fn new(index: u16) -> Self {
        Self {
            index,
            size: ENTRIES_MAX,
            enabled: false,
            vector: NO_VECTOR,
            areas: Areas::default(),
            rules: Rules::default(),
            kicked: false,
            interrupt: false,
            next_available: 0,
            next_used: 0,
            staged: Vec::new(),
            bytes: Vec::new(),
        }
    }

    pub(super) fn save(&self, state: &mut Writer) {
        assert!(self.staged.is_empty(), "what is done is published in the same poll");
        state.u16(self.size);
        state.u16(self.vector);
        state.flag(self.enabled);
        state.flag(self.rules.indirect);
        state.flag(self.rules.event_index);
        let Areas { descriptors, driver, device } = self.areas;
        [descriptors, driver, device].into_iter().for_each(|address| state.u64(address));
        state.u16(self.next_available);
        state.u16(self.next_used);
    }

    /// Queue `index`. Whether it was notified is not known: it looks as if it was.
    pub(super) fn load(index: u16, state: &mut Reader<'_>) -> ioasis_uapi::Result<Self> {
        let (size, vector) = (state.u16()?, state.u16()?);
        let (enabled, indirect, event_index) = (state.flag()?, state.flag()?, state.flag()?);
        let areas = Areas { descriptors: state.u64()?, driver: state.u64()?, device: state.u64()? };
        let (next_available, next_used) = (state.u16()?, state.u16()?);
        if !size.is_power_of_two() || size > ENTRIES_MAX {
            return bad("a queue has a power of two of entries, at most 256", size);
        }
        let rules = Rules { indirect, event_index };
        let fresh = Self::new(index);
        let mut queue = Self { size, vector, areas, rules, next_available, next_used, ..fresh };
        if enabled && let Err(Wrong { why, value }) = queue.enable() {
            return bad(why, value);
        }
        queue.kicked = enabled;
        Ok(queue)
    }

    /// Whether anything was done in it.
    pub(super) fn was_used(&self) -> bool {
        self.enabled && self.next_used != 0
    }

    /// Lets the driver's requests through, or says which area lies where none may.
    pub(super) fn enable(&mut self) -> Result<(), Wrong> {
        let Areas { descriptors, driver, device } = self.areas;
        // 2.7: 16, 2 and 4 bytes.
        let aligned = [(descriptors, 16), (driver, 2), (device, 4)];
        if let Some((address, _)) = aligned.iter().find(|(at, to)| !at.is_multiple_of(*to)) {
            return wrong("an area of the queue is not aligned", *address);
        }
        let entries = u64::from(self.size);
        let ends =
            [(descriptors, 16 * entries), (driver, 6 + 2 * entries), (device, 6 + 8 * entries)];
        if let Some((address, _)) = ends.iter().find(|(at, bytes)| at.checked_add(*bytes).is_none())
        {
            return wrong("an area of the queue wraps around the end of all addresses", *address);
        }
        // A driver notifies of what it has made available, earlier requests too (3.1.1): until then
        // the rings are not read, which a driver that stops without a request may have unmapped.
        self.enabled = true;
        Ok(())
    }

    /// Where `count` entries of `size` bytes of a ring of this queue lie, whose first is `header`
    /// bytes behind `base`.
    fn ring(&self, base: u64, index: u16, count: u16, size: usize) -> SmallVec<[Segment; 4]> {
        let (first, entries) = (index % self.size, self.size);
        let straight = count.min(entries - first);
        let piece = |from: u16, count: u16| Segment {
            iova: base + 4 + u64::from(from) * size as u64,
            length: usize::from(count) * size,
        };
        let mut pieces = SmallVec::new();
        pieces.push(piece(first, straight));
        if straight < count {
            pieces.push(piece(0, count - straight));
        }
        pieces
    }

    /// How many requests the driver has made that were not taken.
    fn available(&self, bus: &Bus<'_>) -> Result<u16, Stop> {
        let index = || -> Result<u16, Stop> {
            let mut header = [0; 4];
            bus.read(&[Segment { iova: self.areas.driver, length: 4 }], &mut header)?;
            Ok(u16::from_le_bytes([header[2], header[3]]))
        };
        let mut seen = index()?;
        // Memory that only the kernel reaches may be copied byte by byte: an index that changed in
        // both is read again.
        if seen >> 8 != self.next_available >> 8 {
            seen = index()?;
        }
        fence(Ordering::Acquire);
        let count = seen.wrapping_sub(self.next_available);
        if count > self.size {
            return Ok(wrong("the available ring has more entries than the queue", seen)?);
        }
        Ok(count)
    }

    /// Takes up to `limit` requests; answers how many. None are left when it is fewer.
    pub(super) fn take(
        &mut self,
        bus: &Bus<'_>,
        limit: u16,
        chains: &mut Vec<Chain>,
    ) -> Result<u16, Stop> {
        let count = self.available(bus)?.min(limit).min(TAKE_MAX);
        if count == 0 {
            return Ok(0);
        }
        let entries = usize::from(count) * 2;
        let table = usize::from(self.size) * DESCRIPTOR_BYTES;
        let mut segments = self.ring(self.areas.driver, self.next_available, count, 2);
        segments.push(Segment { iova: self.areas.descriptors, length: table });
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.resize(entries + table, 0);
        let read = bus.read(&segments, &mut bytes).map_err(Stop::from);
        let (ring, table) = bytes.split_at(entries);
        let taken = read.and_then(|()| self.chains(bus, ring, table, chains));
        self.bytes = bytes;
        taken?;
        self.next_available = self.next_available.wrapping_add(count);
        Ok(count)
    }

    /// Reads the chains that `ring` names.
    fn chains(
        &self,
        bus: &Bus<'_>,
        ring: &[u8],
        table: &[u8],
        chains: &mut Vec<Chain>,
    ) -> Result<(), Stop> {
        let mut tables: SmallVec<[(usize, Table); 8]> = SmallVec::new();
        for entry in ring.chunks_exact(2) {
            let head = u16::from_le_bytes([entry[0], entry[1]]);
            let mut chain = Chain { head, ..Chain::default() };
            if let Some(indirect) = self.walk(table, head, &mut chain)? {
                tables.push((chains.len(), indirect));
            }
            chains.push(chain);
        }
        if tables.is_empty() {
            return Ok(());
        }
        let segments: SmallVec<[Segment; 8]> = tables
            .iter()
            .map(|&(_, (iova, length))| Segment { iova, length: length as usize })
            .collect();
        let total = segments.iter().map(|segment| segment.length).sum();
        let mut bytes = vec![0; total];
        bus.read(&segments, &mut bytes)?;
        let mut rest = &bytes[..];
        for (index, (_, length)) in tables {
            let (table, after) = rest.split_at(length as usize);
            walk_indirect(table, &mut chains[index])?;
            rest = after;
        }
        Ok(())
    }

    /// Adds the chain that begins at `head` of the queue's table; answers the indirect table that
    /// ends it, if one does.
    fn walk(&self, table: &[u8], head: u16, chain: &mut Chain) -> Result<Option<Table>, Wrong> {
        let mut index = head;
        for _ in 0..self.size {
            let Some(descriptor) = Descriptor::of(table, index) else {
                return wrong("a descriptor is none of the queue's", index);
            };
            let Descriptor { iova, length, flags, next } = descriptor;
            if flags & INDIRECT != 0 {
                if !self.rules.indirect {
                    return wrong("an indirect table was not negotiated", index);
                }
                if flags & NEXT != 0 {
                    return wrong("a descriptor follows an indirect table", index);
                }
                let entries = length / 16;
                if !length.is_multiple_of(16) || !(1..=INDIRECT_MAX).contains(&entries) {
                    return wrong("an indirect table has not 1 to 1024 entries: its bytes", length);
                }
                if iova.checked_add(length.into()).is_none() {
                    return wrong("an indirect table wraps around the end of all addresses", iova);
                }
                return Ok(Some((iova, length)));
            }
            chain.add(descriptor)?;
            if flags & NEXT == 0 {
                return Ok(None);
            }
            index = next;
        }
        wrong("a chain is longer than the queue", head)
    }

    /// The last `count` requests that were taken are as if they had not been: they will be taken
    /// again.
    pub(super) fn leave(&mut self, count: u16) {
        self.next_available = self.next_available.wrapping_sub(count);
    }

    /// Gives a request back, with so many bytes written from the first that the device may write
    /// on.
    pub(super) fn put(&mut self, head: u16, written: u32) {
        self.staged.extend_from_slice(&u32::from(head).to_le_bytes());
        self.staged.extend_from_slice(&written.to_le_bytes());
    }

    /// Shows the driver what was given back, and notes whether it wants to be interrupted.
    pub(super) fn publish(&mut self, bus: &Bus<'_>) -> Result<(), Stop> {
        let count = u16::try_from(self.staged.len() / USED_BYTES).expect("at most a queue");
        if count == 0 {
            return Ok(());
        }
        let segments = self.ring(self.areas.device, self.next_used, count, USED_BYTES);
        let written = bus.write(&segments, &self.staged);
        self.staged.clear();
        written?;
        let (old, new) = (self.next_used, self.next_used.wrapping_add(count));
        self.next_used = new;
        fence(Ordering::Release);
        let [low, high] = new.to_le_bytes();
        // Flags are 0: the driver notifies, unless event indices say otherwise.
        bus.write(&[Segment { iova: self.areas.device, length: 4 }], &[0, 0, low, high])?;
        // The index is out before it is read what the driver wants: it stores that before it looks
        // at the index once more.
        fence(Ordering::SeqCst);
        let mut wish = [0; 2];
        let at = self.areas.driver
            + if self.rules.event_index { 4 + 2 * u64::from(self.size) } else { 0 };
        bus.read(&[Segment { iova: at, length: 2 }], &mut wish)?;
        let wish = u16::from_le_bytes(wish);
        self.interrupt |=
            if self.rules.event_index { passed(wish, old, new) } else { wish & NO_INTERRUPT == 0 };
        Ok(())
    }

    /// There was nothing more to take: from now on the driver is to say when there is. Answers
    /// whether there is already.
    pub(super) fn rest(&mut self, bus: &Bus<'_>) -> Result<bool, Stop> {
        if self.rules.event_index {
            let at = self.areas.device + 4 + USED_BYTES as u64 * u64::from(self.size);
            let wish = self.next_available.to_le_bytes();
            bus.write(&[Segment { iova: at, length: 2 }], &wish)?;
            fence(Ordering::SeqCst);
        }
        self.kicked = self.available(bus)? != 0;
        Ok(self.kicked)
    }
}

/// Whether an index that went from `old` to `new` passed the one that is waited for (2.7.10).
fn passed(waited: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(waited).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Adds the descriptors of an indirect table to the chain that it ends.
fn walk_indirect(table: &[u8], chain: &mut Chain) -> Result<(), Wrong> {
    let mut index = 0;
    for _ in 0..table.len() / DESCRIPTOR_BYTES {
        let Some(descriptor) = Descriptor::of(table, index) else {
            return wrong("a descriptor is none of its indirect table's", index);
        };
        if descriptor.flags & INDIRECT != 0 {
            return wrong("an indirect table refers to another", index);
        }
        chain.add(descriptor)?;
        if descriptor.flags & NEXT == 0 {
            return Ok(());
        }
        index = descriptor.next;
    }
    wrong("a chain is longer than its indirect table", chain.head)
}

#[cfg(test)]
mod tests;
