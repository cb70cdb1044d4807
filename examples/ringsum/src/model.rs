//! A device that adds up the bytes of buffers in memory (1234:11eb).
//!
//! The driver keeps a ring of descriptors in memory, gives some to the device by storing TAIL, and is sent an interrupt
//! when they are done.
//!
//! Registers, in page 0 of BAR 0:
//!
//! | offset | width | register |
//! |---|---|---|
//! | 0x00 | 64 | RING: where the ring begins; is looked at when CONTROL becomes 1 |
//! | 0x08 | 32 | ENTRIES: descriptors in the ring, a power of two from 2 to 256; is looked at when CONTROL becomes 1 |
//! | 0x0c | 32 | CONTROL: 1 runs the device, 0 stops it |
//! | 0x10 | 32 | STATUS: 0 stopped, 1 runs, 3 halted: ENTRIES was wrong, or the ring could not be reached at FAULT |
//! | 0x18 | 64 | FAULT: the address in the ring that could not be reached |
//! | 0x20 | 32 | TAIL: how many descriptors the driver has given since the device runs; counts on behind the ring's end |
//! | 0x24 | 32 | HEAD: how many of them are done |
//!
//! A descriptor has 32 bytes: the buffer's address (64 bits) and length (32 bits, up to 1 MiB), and behind them what the
//! device writes: STATE (32 bits: 1 done, 2 the buffer could not be reached or is too long) and SUM (64 bits).
//!
//! MSI-X has one vector. Its table is in page 1.

use std::ops::Range;

use ioasis::pci::{
    Bar, BarKind, Bus, Description, Ids, Model, ModelError, ModelInfo, MsixTable, Options, Pages,
    Progress, Result, Segment, Vectors,
};

const RING: u64 = 0x00;
const ENTRIES: u64 = 0x08;
const CONTROL: u64 = 0x0c;
const STATUS: u64 = 0x10;
const FAULT: u64 = 0x18;
const TAIL: u64 = 0x20;
const HEAD: u64 = 0x24;
const REGISTERS: Range<u64> = 0..0x28;

const RUNS: u32 = 1;
const HALTED: u32 = 3;

const DESCRIPTOR: usize = 32;
const DONE: u32 = 1;
const FAILED: u32 = 2;
const LONGEST: u32 = 1 << 20;

/// Page 0 has the registers, page 1 the MSI-X structures.
const BYTES: u64 = 0x2000;
const TABLE: MsixTable =
    MsixTable { table_bar: 0, table_offset: 0x1000, pba_bar: 0, pba_offset: 0x1800 };

/// What `--device ringsum` makes.
pub const INFO: ModelInfo = ModelInfo {
    name: "ringsum",
    summary: "adds up bytes of buffers that a ring in memory lists (1234:11eb)",
    options: &[],
    create,
};

fn create(_: &Options<'_>) -> std::result::Result<Box<dyn Model>, ModelError> {
    Ok(Box::new(RingSum::default()))
}

/// A ring that runs.
#[derive(Clone, Copy, Debug)]
struct Ring {
    address: u64,
    entries: u32,
    /// Descriptors done.
    head: u32,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Stopped,
    Runs(Ring),
    Halted,
}

#[derive(Debug, Default)]
struct RingSum {
    state: State,
}

impl Model for RingSum {
    fn description(&self) -> Description {
        let ids = Ids {
            vendor: 0x1234,
            device: 0x11eb,
            subsystem_vendor: 0x1234,
            subsystem_device: 0,
            class: 0x12_00_00,
            revision: 0,
        };
        let mut description = Description::new(ids);
        description.bars[0] = Some(Bar {
            size: BYTES,
            kind: BarKind::Memory32,
            prefetchable: false,
            mappable: vec![Pages::shared(0..BYTES)],
        });
        description.vectors = Vectors { msix: 1, ..Vectors::default() };
        description.msix = Some(TABLE);
        description
    }

    fn reset(&mut self, bus: &Bus<'_>) -> Result<()> {
        self.state = State::Stopped;
        bus.pages(0).fill(REGISTERS.start, REGISTERS.end as usize, 0)
    }

    fn poll(&mut self, bus: &Bus<'_>) -> Result<Progress> {
        let runs = bus.pages(0).load_u32(CONTROL)? == 1;
        match self.state {
            State::Stopped if runs => self.start(bus),
            State::Runs(ring) if runs => self.work(bus, ring),
            State::Stopped => Ok(Progress::Idle),
            State::Halted if runs => Ok(Progress::Idle),
            State::Runs(_) | State::Halted => self.stop(bus),
        }
    }
}

impl RingSum {
    fn start(&mut self, bus: &Bus<'_>) -> Result<Progress> {
        let registers = bus.pages(0);
        // Each register is loaded once: the program may store to it at any time.
        let (address, entries) = (registers.load_u64(RING)?, registers.load_u32(ENTRIES)?);
        registers.store_u32(TAIL, 0)?;
        registers.store_u32(HEAD, 0)?;
        if !(2..=256).contains(&entries) || !entries.is_power_of_two() {
            return self.halt(bus, 0);
        }
        self.state = State::Runs(Ring { address, entries, head: 0 });
        registers.store_u32(STATUS, RUNS)?;
        Ok(Progress::Worked)
    }

    fn stop(&mut self, bus: &Bus<'_>) -> Result<Progress> {
        self.state = State::Stopped;
        bus.pages(0).store_u32(STATUS, 0)?;
        Ok(Progress::Worked)
    }

    fn halt(&mut self, bus: &Bus<'_>, fault: u64) -> Result<Progress> {
        self.state = State::Halted;
        // The result before the flag that announces it.
        bus.pages(0).store_u64(FAULT, fault)?;
        bus.pages(0).store_u32(STATUS, HALTED)?;
        bus.raise(0);
        Ok(Progress::Worked)
    }

    /// Does one descriptor, so that a reset never waits for long.
    fn work(&mut self, bus: &Bus<'_>, mut ring: Ring) -> Result<Progress> {
        let tail = bus.pages(0).load_u32(TAIL)?;
        let given = tail.wrapping_sub(ring.head);
        if given == 0 || given > ring.entries {
            return Ok(Progress::Idle);
        }
        let place = u64::from(ring.head % ring.entries) * DESCRIPTOR as u64;
        let iova = ring.address.wrapping_add(place);
        let mut descriptor = [0; DESCRIPTOR];
        let slot = [Segment { iova, length: DESCRIPTOR }];
        if let Err(fault) = bus.read(&slot, &mut descriptor) {
            return self.halt(bus, fault.iova);
        }
        let (state, sum) = match sum(bus, &descriptor) {
            Some(sum) => (DONE, sum),
            None => (FAILED, 0),
        };
        descriptor[12..16].copy_from_slice(&state.to_le_bytes());
        descriptor[16..24].copy_from_slice(&sum.to_le_bytes());
        let result = [Segment { iova: iova.wrapping_add(12), length: 12 }];
        if let Err(fault) = bus.write(&result, &descriptor[12..24]) {
            return self.halt(bus, fault.iova);
        }
        ring.head = ring.head.wrapping_add(1);
        self.state = State::Runs(ring);
        bus.pages(0).store_u32(HEAD, ring.head)?;
        bus.raise(0);
        Ok(Progress::Worked)
    }
}

/// The sum of the bytes of a descriptor's buffer; `None` where it cannot be reached.
fn sum(bus: &Bus<'_>, descriptor: &[u8; DESCRIPTOR]) -> Option<u64> {
    let iova = u64::from_le_bytes(descriptor[..8].try_into().expect("eight bytes"));
    let length = u32::from_le_bytes(descriptor[8..12].try_into().expect("four bytes"));
    if length > LONGEST {
        return None;
    }
    let mut bytes = vec![0; length as usize];
    bus.read(&[Segment { iova, length: bytes.len() }], &mut bytes).ok()?;
    Some(bytes.iter().map(|&byte| u64::from(byte)).sum())
}

#[cfg(test)]
mod tests;
