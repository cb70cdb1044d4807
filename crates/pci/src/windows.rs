//! The address ranges behind which BARs lie on the bus.

use crate::description::{BARS, BarKind, Description};

/// The first address of each range is what a desktop's firmware would choose; only that addresses are not zero and
/// do not overlap matters, because the program never sees the bus.
const MEMORY_32: u64 = 0xc000_0000;
const MEMORY_32_END: u64 = 0xfec0_0000;
const MEMORY_64: u64 = 0x38_0000_0000;
const IO: u64 = 0xc000;
const IO_END: u64 = 0x1_0000;

/// What is left of the machine's bus addresses.
#[derive(Debug)]
pub struct Windows {
    memory_32: u64,
    memory_64: u64,
    io: u64,
}

impl Default for Windows {
    fn default() -> Self {
        Self { memory_32: MEMORY_32, memory_64: MEMORY_64, io: IO }
    }
}

impl Windows {
    /// An address for every BAR, aligned to its size; 0, as for an absent BAR, when the range is used up: the
    /// program then sees a BAR that the host left unassigned.
    pub(crate) fn assign(&mut self, description: &Description) -> [u64; BARS] {
        let mut addresses = [0; BARS];
        for (address, bar) in addresses.iter_mut().zip(&description.bars) {
            let Some(bar) = bar else { continue };
            let (next, end) = match bar.kind {
                BarKind::Memory32 => (&mut self.memory_32, MEMORY_32_END),
                BarKind::Memory64 => (&mut self.memory_64, u64::MAX),
                BarKind::Io => (&mut self.io, IO_END),
            };
            let start = next.next_multiple_of(bar.size);
            if bar.size <= end.saturating_sub(start) {
                *address = start;
                *next = start + bar.size;
            }
        }
        addresses
    }
}
