//! Interrupts (82576 data sheet, 7.3): causes in ICR, vectors in EICR, and what lets a message out.
//!
//! A cause of a queue sets the bit of the vector that IVAR names for it; the others set ICR, and
//! the vector of IVAR_MISC if IMS lets them. A vector's message is sent when its bit comes, EIMS
//! lets it and EITR's interval since the last one is over. Without GPIE's Multiple MSI-X the only
//! message is that of vector 0, for causes that IMS lets.
//!
//! A load of ICR or EICR clears it.

use std::time::{Duration, Instant};

use crate::bus::Bus;

use super::registers::{
    EIAC, EIAM, EICR, EICS, EIMC, EIMS, EITR, GPIE, ICR, ICS, IMC, IMS, IVAR, IVAR_MISC,
};

/// Vectors of MSI-X.
pub(super) const VECTORS: u16 = 10;

// ICR, 8.8.9.
pub(super) const CAUSE_SENT: u32 = 1 << 0;
pub(super) const CAUSE_LINK: u32 = 1 << 2;
pub(super) const CAUSE_RECEIVED: u32 = 1 << 7;
const CAUSE_ASSERTED: u32 = 1 << 31;

const IVAR_VALID: u32 = 1 << 7;
/// GPIE, 8.8.8.
const GPIE_MULTIPLE: u32 = 1 << 4;
const GPIE_AUTO_MASK: u32 = 1 << 30;
/// EITR, 8.8.14: microseconds in bits 14:2.
const EITR_SHIFT: u32 = 2;
const EITR_MASK: u32 = 0x1fff;
const EITRS: usize = 25;
const IVARS: usize = 8;

/// The registers, and what is due.
#[derive(Debug, Default)]
pub(super) struct Interrupts {
    causes: u32,
    mask: u32,
    vectors: u32,
    vector_mask: u32,
    auto_clear: u32,
    auto_mask: u32,
    general: u32,
    allocation: [u32; IVARS],
    other: u32,
    interval: [u32; EITRS],
    /// Vectors whose bit came and whose message was not sent.
    due: u32,
    sent: [Option<Instant>; VECTORS as usize],
}

fn place(base: u64, offset: u64, count: usize) -> Option<usize> {
    let index = usize::try_from(offset.checked_sub(base)? / 4).ok()?;
    (index < count).then_some(index)
}

impl Interrupts {
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// What a load of an interrupt register gives; `None` for another register.
    pub(super) fn get(&self, offset: u64) -> Option<u32> {
        Some(match offset {
            ICR => {
                let asserted = if self.causes & self.mask != 0 { CAUSE_ASSERTED } else { 0 };
                self.causes | asserted
            }
            IMS => self.mask,
            EICR => self.vectors,
            EIMS => self.vector_mask,
            EIAC => self.auto_clear,
            EIAM => self.auto_mask,
            GPIE => self.general,
            IVAR_MISC => self.other,
            ICS | IMC | EICS | EIMC => 0,
            _ => match (place(IVAR, offset, IVARS), place(EITR, offset, EITRS)) {
                (Some(index), _) => self.allocation[index],
                (_, Some(index)) => self.interval[index],
                _ => return None,
            },
        })
    }

    /// The registers that may have changed by themselves.
    pub(super) const SHOWN: [u64; 5] = [ICR, IMS, EICR, EIMS, IMC];

    /// A load was made: it takes what it gave.
    pub(super) fn take(&mut self, offset: u64) {
        match offset {
            ICR => self.causes = 0,
            EICR => self.clear_vectors(u32::MAX),
            _ => {}
        }
    }

    fn clear_vectors(&mut self, vectors: u32) {
        self.vectors &= !vectors;
        self.due &= !vectors;
    }

    /// A store; false for another register.
    pub(super) fn set(&mut self, offset: u64, value: u32) -> bool {
        match offset {
            ICR => self.causes &= !value,
            ICS => self.cause(value),
            IMS => {
                self.mask |= value;
                if self.causes & value != 0 {
                    self.other_vector();
                }
            }
            IMC => self.mask &= !value,
            EICS => self.raise(value),
            EIMS => {
                self.due |= self.vectors & value & !self.vector_mask;
                self.vector_mask |= value;
            }
            EIMC => self.vector_mask &= !value,
            EICR => self.clear_vectors(value),
            EIAC => self.auto_clear = value,
            EIAM => self.auto_mask = value,
            GPIE => self.general = value,
            IVAR_MISC => self.other = value,
            _ => match (place(IVAR, offset, IVARS), place(EITR, offset, EITRS)) {
                (Some(index), _) => self.allocation[index] = value,
                // Bit 31 says that the counter is not to be changed; there is none.
                (_, Some(index)) => self.interval[index] = value & 0x7fff_ffff,
                _ => return false,
            },
        }
        true
    }

    fn raise(&mut self, vectors: u32) {
        self.vectors |= vectors;
        self.due |= vectors;
    }

    fn is_multiple(&self) -> bool {
        self.general & GPIE_MULTIPLE != 0
    }

    fn other_vector(&mut self) {
        let entry = self.other >> 8 & 0xff;
        if !self.is_multiple() {
            self.due |= 1;
        } else if entry & IVAR_VALID != 0 {
            self.raise(1 << (entry & 0x1f));
        }
    }

    /// A cause that is no queue's.
    pub(super) fn cause(&mut self, causes: u32) {
        self.causes |= causes;
        if causes & self.mask != 0 {
            self.other_vector();
        }
    }

    /// Queue `queue` received, or has written back what it sent: `shift` is the place of its kind
    /// in IVAR (8.8.13).
    fn queue(&mut self, queue: usize, shift: usize, cause: u32) {
        if !self.is_multiple() {
            return self.cause(cause);
        }
        let entry = self.allocation[queue & 7] >> ((queue & 8) * 2 + shift) & 0xff;
        if entry & IVAR_VALID != 0 {
            self.raise(1 << (entry & 0x1f));
        }
    }

    pub(super) fn received(&mut self, queue: usize) {
        self.queue(queue, 0, CAUSE_RECEIVED);
    }

    pub(super) fn sent(&mut self, queue: usize) {
        self.queue(queue, 8, CAUSE_SENT);
    }

    /// Whether a message waits for its interval.
    pub(super) fn waits(&self) -> bool {
        self.is_multiple() && self.due & self.vector_mask != 0
    }

    /// Sends what is due.
    pub(super) fn deliver(&mut self, bus: &Bus<'_>) {
        if self.due == 0 {
            return;
        }
        if !self.is_multiple() {
            self.due = 0;
            if self.causes & self.mask != 0 {
                bus.raise(0);
            }
            return;
        }
        for vector in 0..VECTORS {
            let bit = 1 << vector;
            if self.due & self.vector_mask & bit == 0 || !self.interval_is_over(vector) {
                continue;
            }
            self.due &= !bit;
            self.vectors &= !(self.auto_clear & bit);
            if self.general & GPIE_AUTO_MASK != 0 {
                self.vector_mask &= !(self.auto_mask & bit);
            }
            bus.raise(vector);
        }
    }

    fn interval_is_over(&mut self, vector: u16) -> bool {
        let vector = usize::from(vector);
        let microseconds = self.interval[vector] >> EITR_SHIFT & EITR_MASK;
        let now = Instant::now();
        let interval = Duration::from_micros(microseconds.into());
        let over = self.sent[vector].is_none_or(|last| now.duration_since(last) >= interval);
        if over {
            self.sent[vector] = Some(now);
        }
        over
    }
}
