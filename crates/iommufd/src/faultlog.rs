//! DMA that was refused, remembered for people. Linux reports it to nobody but the kernel log.

use std::collections::VecDeque;

use ioasis_iommupt::{Iova, IovaRange, Prot};
use ioasis_sys::sync::Mutex;

/// One refused access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedDma {
    /// The device's name.
    pub device: String,
    /// The address it used.
    pub iova: Iova,
    /// What it wanted to do.
    pub need: Prot,
    /// Why not.
    pub reason: Reason,
    /// The mapping nearest to the address, if there is any.
    pub nearest: Option<IovaRange>,
    /// The range around the address that was unmapped last, and the process that unmapped it.
    pub unmapped: Option<(IovaRange, u32)>,
}

/// Why DMA was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The device is attached to nothing.
    Blocked,
    /// Nothing is mapped there.
    NotMapped,
    /// The mapping does not grant these permissions.
    Missing(Prot),
    /// The memory behind the mapping is gone.
    MemoryGone,
}

/// How many are remembered.
const KEPT: usize = 256;

#[derive(Debug, Default)]
struct Ring {
    refused: VecDeque<RefusedDma>,
    total: u64,
}

/// The most recent refusals.
#[derive(Debug, Default)]
pub struct FaultLog {
    ring: Mutex<Ring>,
}

impl FaultLog {
    pub(crate) fn record(&self, refused: RefusedDma) {
        let mut ring = self.ring.lock();
        if ring.refused.len() == KEPT {
            ring.refused.pop_front();
        }
        ring.refused.push_back(refused);
        ring.total += 1;
    }

    /// Takes what is remembered, oldest first.
    pub fn take(&self) -> Vec<RefusedDma> {
        self.ring.lock().refused.drain(..).collect()
    }

    /// How many there were, remembered or not.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.ring.lock().total
    }
}
