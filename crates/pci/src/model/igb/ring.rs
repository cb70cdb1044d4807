//! A ring of descriptors (82576 data sheet, 7.1.5 and 7.2.2), as its registers in a shared page
//! describe it.
//!
//! The program stores base, length and head while the queue is off, turns it on, and moves the
//! tail. The pages are looked at before each piece of work; a head that differs from what was shown
//! is a store of the program's, which begins anew.

use ioasis_sys::mapping::Mapping;
use ioasis_uapi::Result;

use crate::bus::{Bus, Segment};

/// Queues of each direction.
pub(super) const QUEUES: usize = 16;
/// Bytes of a descriptor.
pub(super) const DESCRIPTOR: usize = 16;

// Registers of a queue, from where it begins.
const BASE: u64 = 0x00;
const LENGTH: u64 = 0x08;
pub(super) const SPLIT: u64 = 0x0c;
const HEAD: u64 = 0x10;
const TAIL: u64 = 0x18;
const CONTROL: u64 = 0x28;
pub(super) const WRITE_BACK: u64 = 0x38;
/// RXDCTL and TXDCTL: the queue is on.
const ENABLE: u32 = 1 << 25;

/// Bytes of the largest ring, 8.10.7: LEN has bits 19:7.
const LENGTH_MASK: u32 = 0x000f_ff80;
/// Descriptors that are fetched at once.
const BATCH: u64 = 32;

/// Where the registers of queue `queue` begin; those of the first four lie apart.
pub(super) const fn receive(queue: usize) -> u64 {
    if queue < 4 { 0x2800 + 0x100 * queue as u64 } else { 0xc000 + 0x40 * queue as u64 }
}

/// The same for transmission.
pub(super) const fn transmit(queue: usize) -> u64 {
    receive(queue) + if queue < 4 { 0x1000 } else { 0x2000 }
}

/// One ring.
#[derive(Debug)]
pub(super) struct Ring {
    /// Where its registers begin.
    pub(super) registers: u64,
    base: u64,
    entries: u64,
    head: u64,
    tail: u64,
    on: bool,
    /// A descriptor or its memory could not be reached: nothing is done until it is begun anew.
    broken: bool,
    /// Descriptors from the head on that were fetched.
    fetched: std::collections::VecDeque<[u8; DESCRIPTOR]>,
}

impl Ring {
    pub(super) fn new(registers: u64) -> Self {
        let fetched = std::collections::VecDeque::new();
        Self { registers, base: 0, entries: 0, head: 0, tail: 0, on: false, broken: false, fetched }
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new(self.registers);
    }

    /// Takes what the page says by now; `on` is whether the direction as a whole is. Whether there
    /// is work.
    pub(super) fn look(&mut self, page: &Mapping, on: bool) -> Result<bool> {
        let enabled = on && page.load_u32(self.registers + CONTROL)? & ENABLE != 0;
        if !enabled {
            self.on = false;
            return Ok(false);
        }
        let base = page.load_u64(self.registers + BASE)? & !0x7f;
        let length = page.load_u32(self.registers + LENGTH)? & LENGTH_MASK;
        let entries = u64::from(length) / DESCRIPTOR as u64;
        let head = u64::from(page.load_u32(self.registers + HEAD)?) & 0xffff;
        if !self.on || (base, entries, head) != (self.base, self.entries, self.head) {
            (self.base, self.entries, self.head, self.on, self.broken) =
                (base, entries, head, true, false);
            self.fetched.clear();
        }
        self.tail = u64::from(page.load_u32(self.registers + TAIL)?) & 0xffff;
        Ok(self.waiting() > 0)
    }

    /// Descriptors between head and tail; none of a ring that cannot be.
    pub(super) fn waiting(&self) -> u64 {
        if !self.on || self.broken || self.head >= self.entries || self.tail > self.entries {
            return 0;
        }
        (self.tail + self.entries - self.head) % self.entries
    }

    /// Where the descriptor `ahead` of the head lies.
    fn address(&self, ahead: u64) -> u64 {
        let index = (self.head + ahead) % self.entries.max(1);
        self.base.wrapping_add(index * DESCRIPTOR as u64)
    }

    /// The descriptor `ahead` of the head, which is one that waits; `None` when it cannot be read.
    pub(super) fn descriptor(&mut self, bus: &Bus<'_>, ahead: u64) -> Option<[u8; DESCRIPTOR]> {
        while self.fetched.len() as u64 <= ahead {
            let first = self.fetched.len() as u64;
            // Up to the end of the ring, where the next ones begin at its start.
            let index = (self.head + first) % self.entries;
            let count = (self.waiting() - first).min(self.entries - index).min(BATCH);
            let mut bytes = vec![0; usize::try_from(count).ok()? * DESCRIPTOR];
            let from = [Segment { iova: self.address(first), length: bytes.len() }];
            if count == 0 || bus.read(&from, &mut bytes).is_err() {
                self.broken = true;
                return None;
            }
            let pieces = bytes.chunks_exact(DESCRIPTOR);
            self.fetched
                .extend(pieces.map(|piece| <[u8; DESCRIPTOR]>::try_from(piece).expect("16")));
        }
        self.fetched.get(usize::try_from(ahead).ok()?).copied()
    }

    /// Writes a descriptor back, or a part of it; false when it cannot be.
    pub(super) fn write(&mut self, bus: &Bus<'_>, ahead: u64, within: u64, bytes: &[u8]) -> bool {
        let to = [Segment { iova: self.address(ahead) + within, length: bytes.len() }];
        let written = bus.write(&to, bytes).is_ok();
        self.broken |= !written;
        written
    }

    /// Stops until the queue is begun anew.
    pub(super) fn stop(&mut self) {
        self.broken = true;
    }

    /// Moves the head past `count` descriptors and shows it.
    pub(super) fn advance(&mut self, page: &Mapping, count: u64) -> Result<()> {
        self.head = (self.head + count) % self.entries.max(1);
        for _ in 0..count {
            self.fetched.pop_front();
        }
        let shown = u32::try_from(self.head).expect("a head has 16 bits");
        page.store_u32(self.registers + HEAD, shown)
    }

    pub(super) fn head(&self) -> u64 {
        self.head
    }
}
