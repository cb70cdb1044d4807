//! Submission and completion queues (NVMe 1.4, 4.1): rings in the program's memory.
//!
//! The indices kept here are the truth. A doorbell is a number the program wrote into memory it shares with us;
//! it is checked against the ring before it counts.

use super::command::{COMMAND_BYTES, COMPLETION_BYTES, Command, Completion};
use crate::bus::{Bus, DmaFault, Segment};
use crate::migration::{Reader, Writer, bad};
use ioasis_uapi::Result as Loaded;

/// A doorbell holds a value that is no index of its queue, or moves a head past its tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadDoorbell;

/// The value a doorbell was last refused for: it is complained about once, however often it is looked at.
#[derive(Clone, Copy, Debug, Default)]
struct Refused(Option<u32>);

impl Refused {
    fn save(self, state: &mut Writer) {
        state.flag(self.0.is_some());
        state.u32(self.0.unwrap_or(0));
    }

    fn load(state: &mut Reader<'_>) -> Loaded<Self> {
        let (refused, doorbell) = (state.flag()?, state.u32()?);
        Ok(Self(refused.then_some(doorbell)))
    }

    fn refuse(&mut self, doorbell: u32) -> Result<(), BadDoorbell> {
        if self.0.replace(doorbell) == Some(doorbell) { Ok(()) } else { Err(BadDoorbell) }
    }
}

/// A ring of entries; empty when head and tail meet.
#[derive(Clone, Copy, Debug)]
struct Ring {
    base: u64,
    entries: u32,
    head: u32,
    tail: u32,
}

impl Ring {
    fn new(base: u64, entries: u32) -> Self {
        assert!((2..=4096).contains(&entries), "a queue has 2 to 4096 entries");
        Self { base, entries, head: 0, tail: 0 }
    }

    fn save(&self, state: &mut Writer) {
        state.u64(self.base);
        for number in [self.entries, self.head, self.tail] {
            state.u32(number);
        }
    }

    fn load(state: &mut Reader<'_>) -> Loaded<Self> {
        let (base, entries) = (state.u64()?, state.u32()?);
        let (head, tail) = (state.u32()?, state.u32()?);
        if !(2..=4096).contains(&entries) || head >= entries || tail >= entries {
            return bad("a queue has 2 to 4096 entries, and its indices are below that", entries);
        }
        Ok(Self { base, entries, head, tail })
    }

    /// Steps from `from` forward to `to`.
    fn distance(&self, from: u32, to: u32) -> u32 {
        if to >= from { to - from } else { to + self.entries - from }
    }

    fn used(&self) -> u32 {
        self.distance(self.head, self.tail)
    }

    fn advance(&self, index: u32, steps: u32) -> u32 {
        (index + steps) % self.entries
    }

    /// Where `count` entries of `size` bytes from `index` lie: one piece, or two where the ring wraps.
    fn segments(&self, index: u32, count: u32, size: usize) -> ([Segment; 2], usize) {
        let straight = count.min(self.entries - index);
        let piece = |from: u32, entries: u32| Segment {
            iova: self.base.wrapping_add(u64::from(from) * size as u64),
            length: entries as usize * size,
        };
        let wrapped = count - straight;
        ([piece(index, straight), piece(0, wrapped)], if wrapped == 0 { 1 } else { 2 })
    }
}

/// A submission queue.
#[derive(Debug)]
pub(super) struct SubmissionQueue {
    /// The completion queue it completes to.
    pub(super) completion: u16,
    ring: Ring,
    refused: Refused,
    /// Entries as they were copied out of memory.
    bytes: Vec<u8>,
}

impl SubmissionQueue {
    pub(super) fn new(completion: u16, base: u64, entries: u32) -> Self {
        let refused = Refused::default();
        Self { completion, ring: Ring::new(base, entries), refused, bytes: Vec::new() }
    }

    pub(super) fn save(&self, state: &mut Writer) {
        state.u16(self.completion);
        self.ring.save(state);
        self.refused.save(state);
    }

    pub(super) fn load(state: &mut Reader<'_>) -> Loaded<Self> {
        let completion = state.u16()?;
        let ring = Ring::load(state)?;
        Ok(Self { completion, ring, refused: Refused::load(state)?, bytes: Vec::new() })
    }

    /// Takes the tail from its doorbell; answers how many commands wait.
    pub(super) fn take_tail(&mut self, doorbell: u32) -> Result<u32, BadDoorbell> {
        if doorbell < self.ring.entries {
            self.ring.tail = doorbell;
            self.refused = Refused::default();
        } else {
            self.refused.refuse(doorbell)?;
        }
        Ok(self.ring.used())
    }

    /// Copies the next `count` commands out of memory, all in one transfer. They stay in the queue until
    /// [`SubmissionQueue::consume`].
    pub(super) fn fetch(
        &mut self,
        bus: &Bus<'_>,
        count: u32,
        out: &mut Vec<Command>,
    ) -> Result<(), DmaFault> {
        assert!(count <= self.ring.used(), "only what waits is fetched");
        self.bytes.resize(count as usize * COMMAND_BYTES, 0);
        let (segments, pieces) = self.ring.segments(self.ring.head, count, COMMAND_BYTES);
        bus.read(&segments[..pieces], &mut self.bytes)?;
        let (commands, _) = self.bytes.as_chunks::<COMMAND_BYTES>();
        out.clear();
        out.extend(commands.iter().map(Command::decode));
        Ok(())
    }

    /// Takes `count` commands out of the queue.
    pub(super) fn consume(&mut self, count: u32) {
        assert!(count <= self.ring.used(), "only what waits is taken");
        self.ring.head = self.ring.advance(self.ring.head, count);
    }

    /// The head, which completions carry back.
    pub(super) fn head(&self) -> u16 {
        u16::try_from(self.ring.head).expect("a queue has at most 4096 entries")
    }
}

/// The most commands fetched at once.
pub(super) const FETCH_MAX: u32 = 128;

/// A completion queue.
#[derive(Debug)]
pub(super) struct CompletionQueue {
    ring: Ring,
    /// What the phase bit of the next entry is: it changes each time the ring wraps.
    phase: bool,
    /// The vector to raise, when interrupts are enabled for this queue.
    pub(super) vector: Option<u16>,
    /// Submission queues that complete to it.
    pub(super) users: u16,
    refused: Refused,
    /// Entries not written yet.
    staged: Vec<u8>,
}

impl CompletionQueue {
    pub(super) fn new(base: u64, entries: u32, vector: Option<u16>) -> Self {
        let (ring, refused) = (Ring::new(base, entries), Refused::default());
        Self { ring, phase: true, vector, users: 0, refused, staged: Vec::new() }
    }

    pub(super) fn save(&self, state: &mut Writer) {
        assert!(self.staged.is_empty(), "what is added is written in the same poll");
        self.ring.save(state);
        state.flag(self.phase);
        state.flag(self.vector.is_some());
        state.u16(self.vector.unwrap_or(0));
        self.refused.save(state);
    }

    /// A queue that nothing completes to yet.
    pub(super) fn load(state: &mut Reader<'_>) -> Loaded<Self> {
        let (ring, phase) = (Ring::load(state)?, state.flag()?);
        let (interrupts, vector) = (state.flag()?, state.u16()?);
        let vector = interrupts.then_some(vector);
        let refused = Refused::load(state)?;
        Ok(Self { ring, phase, vector, users: 0, refused, staged: Vec::new() })
    }

    /// Takes the head from its doorbell; answers whether it moved.
    pub(super) fn take_head(&mut self, doorbell: u32) -> Result<bool, BadDoorbell> {
        if doorbell == self.ring.head {
            return Ok(false);
        }
        let inside = doorbell < self.ring.entries;
        if !inside || self.ring.distance(self.ring.head, doorbell) > self.ring.used() {
            return self.refused.refuse(doorbell).map(|()| false);
        }
        self.refused = Refused::default();
        self.ring.head = doorbell;
        Ok(true)
    }

    /// Entries that can be added before the ring is full: one always stays empty.
    pub(super) fn free(&self) -> u32 {
        self.ring.entries - 1 - self.ring.used()
    }

    /// Whether the program has completions to take.
    pub(super) fn has_entries(&self) -> bool {
        self.ring.used() != 0
    }

    /// Adds an entry, to be written by [`CompletionQueue::write`].
    pub(super) fn add(&mut self, completion: &Completion) {
        assert!(self.free() > 0, "room was made before the command was taken");
        self.staged.extend_from_slice(&completion.encode(self.phase));
        self.ring.tail = self.ring.advance(self.ring.tail, 1);
        if self.ring.tail == 0 {
            self.phase = !self.phase;
        }
    }

    /// Writes what was added, all in one transfer; answers whether there was anything.
    pub(super) fn write(&mut self, bus: &Bus<'_>) -> Result<bool, DmaFault> {
        if self.staged.is_empty() {
            return Ok(false);
        }
        let count = u32::try_from(self.staged.len() / COMPLETION_BYTES).expect("at most a ring");
        let first = self.ring.advance(self.ring.tail, self.ring.entries - count);
        let (segments, pieces) = self.ring.segments(first, count, COMPLETION_BYTES);
        let written = bus.write(&segments[..pieces], &self.staged);
        self.staged.clear();
        written.map(|()| true)
    }
}

#[cfg(test)]
mod tests;
