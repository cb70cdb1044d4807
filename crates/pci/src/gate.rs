//! What the COMMAND register and the power state allow, readable without a lock.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::refusal::Closed;

const MASTER: u8 = 1 << 0;
const MEMORY: u8 = 1 << 1;
const IO: u8 = 1 << 2;
const INTX_DISABLE: u8 = 1 << 3;
const D3HOT: u8 = 1 << 4;
const VECTORS_MASKED: u8 = 1 << 5;

/// The permissions in force, copied out of configuration space after each write to it.
#[derive(Debug, Default)]
pub(crate) struct Gate(AtomicU8);

/// The same permissions by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Permissions {
    pub(crate) master: bool,
    pub(crate) memory: bool,
    pub(crate) io: bool,
    pub(crate) intx_disable: bool,
    pub(crate) d3hot: bool,
    /// The function mask of MSI-X.
    pub(crate) vectors_masked: bool,
}

impl Gate {
    pub(crate) fn set(&self, permissions: Permissions) {
        let Permissions { master, memory, io, intx_disable, d3hot, vectors_masked } = permissions;
        let bits = [
            (master, MASTER),
            (memory, MEMORY),
            (io, IO),
            (intx_disable, INTX_DISABLE),
            (d3hot, D3HOT),
            (vectors_masked, VECTORS_MASKED),
        ];
        let word = bits.into_iter().filter(|&(on, _)| on).fold(0, |word, (_, bit)| word | bit);
        self.0.store(word, Ordering::Release);
    }

    fn bits(&self) -> u8 {
        self.0.load(Ordering::Acquire)
    }

    /// A function below D0 sends nothing but configuration completions (PCI PM 1.2, 5.4.1).
    pub(crate) fn may_master(&self) -> bool {
        self.bits() & (MASTER | D3HOT) == MASTER
    }

    /// Why the function sends nothing.
    pub(crate) fn silence(&self) -> Closed {
        if self.in_d3hot() { Closed::D3hot } else { Closed::Master }
    }

    /// Why its memory BARs do not answer.
    pub(crate) fn deafness(&self) -> Closed {
        if self.in_d3hot() { Closed::D3hot } else { Closed::Memory }
    }

    pub(crate) fn master_enabled(&self) -> bool {
        self.bits() & MASTER != 0
    }

    pub(crate) fn memory_enabled(&self) -> bool {
        self.bits() & (MEMORY | D3HOT) == MEMORY
    }

    pub(crate) fn io_enabled(&self) -> bool {
        self.bits() & (IO | D3HOT) == IO
    }

    pub(crate) fn intx_disabled(&self) -> bool {
        self.bits() & INTX_DISABLE != 0
    }

    pub(crate) fn vectors_masked(&self) -> bool {
        self.bits() & VECTORS_MASKED != 0
    }

    /// Whether a message that waits for its vector could be sent.
    pub(crate) fn may_send(&self) -> bool {
        self.may_master() && !self.vectors_masked()
    }

    pub(crate) fn in_d3hot(&self) -> bool {
        self.bits() & D3HOT != 0
    }
}
