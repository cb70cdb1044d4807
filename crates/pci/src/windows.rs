//! The address ranges behind which BARs lie on the bus.

use crate::address::Bdf;
use crate::description::{BARS, BarKind, Description};

/// The first address of each range is what a desktop's firmware would choose; only that addresses are not zero and
/// do not overlap matters, because the program never sees the bus.
const MEMORY_32: u64 = 0xc000_0000;
const MEMORY_32_END: u64 = 0xfec0_0000;
const MEMORY_64: u64 = 0x38_0000_0000;
/// A larger BAR lies above 4 GiB, whatever it is: it would leave no room for others below.
const SMALL: u64 = 1 << 26;
const IO: u64 = 0x1000;
const IO_END: u64 = 0x1_0000;
/// What a root port's windows are made of (PCI-to-PCI Bridge Architecture 1.2, 3.2.5): two buses share no such piece.
const MEMORY_PIECE: u64 = 1 << 20;
const IO_PIECE: u64 = 1 << 12;

/// What is left of the machine's bus addresses.
#[derive(Debug)]
pub struct Windows {
    memory_32: u64,
    memory_64: u64,
    io: u64,
    /// Domain and bus of the last function that was placed.
    bus: Option<(u16, u8)>,
}

impl Default for Windows {
    fn default() -> Self {
        Self { memory_32: MEMORY_32, memory_64: MEMORY_64, io: IO, bus: None }
    }
}

impl Windows {
    /// An address for every BAR, aligned to its size; 0, as for an absent BAR, when the range is used up: the
    /// program then sees a BAR that the host left unassigned. Functions of one bus are to come one after the other, so that
    /// nothing of another bus lies between them.
    pub(crate) fn assign(&mut self, address: Bdf, description: &Description) -> [u64; BARS] {
        if self
            .bus
            .replace((address.domain(), address.bus()))
            .is_some_and(|bus| bus != (address.domain(), address.bus()))
        {
            self.memory_32 = self.memory_32.next_multiple_of(MEMORY_PIECE);
            self.memory_64 = self.memory_64.next_multiple_of(MEMORY_PIECE);
            self.io = self.io.next_multiple_of(IO_PIECE);
        }
        self.place(description, 1)
    }

    /// The same for `count` functions like `description`, on the bus of the function that was
    /// placed last: the addresses of the first, which those of the others follow.
    pub(crate) fn assign_virtual(&mut self, description: &Description, count: u16) -> [u64; BARS] {
        self.place(description, count.into())
    }

    fn place(&mut self, description: &Description, count: u64) -> [u64; BARS] {
        let mut addresses = [0; BARS];
        for (address, bar) in addresses.iter_mut().zip(&description.bars) {
            let Some(bar) = bar else { continue };
            let (next, end) = match bar.kind {
                // A bridge has no 64-bit window for memory that is not prefetchable.
                BarKind::Memory64 if bar.prefetchable || bar.size > SMALL => {
                    (&mut self.memory_64, u64::MAX)
                }
                BarKind::Memory32 | BarKind::Memory64 => (&mut self.memory_32, MEMORY_32_END),
                BarKind::Io => (&mut self.io, IO_END),
            };
            let start = next.next_multiple_of(bar.size);
            let size = bar.size.saturating_mul(count);
            if size <= end.saturating_sub(start) {
                *address = start;
                *next = start + size;
            }
        }
        addresses
    }

    /// An address for an expansion ROM of `size` bytes, behind the BARs of its function; 0 when there is no room, or no ROM.
    pub(crate) fn assign_rom(&mut self, size: u64) -> u64 {
        if size == 0 {
            return 0;
        }
        let start = self.memory_32.next_multiple_of(size);
        if size > MEMORY_32_END.saturating_sub(start) {
            return 0;
        }
        self.memory_32 = start + size;
        start
    }
}
