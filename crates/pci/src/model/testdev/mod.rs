//! `testdev`: copies 4 KiB from memory into itself, and back. The smallest device that proves a translation.
//!
//! BAR 0 is one page of memory:
//!
//! | offset | width | register |
//! |---|---|---|
//! | 0x00 | 64 | ADDR: where the copy begins; may be written as two halves |
//! | 0x08 | 32 | CMD: writing 3 copies from memory at ADDR into the device, 1 from the device to memory; bit 0 reads 1 until that is done, then bit 31 reads 1 if the memory could not be reached |
//! | 0x10 | 64 | FAULT: the first address that could not be reached, when bit 31 of CMD is set; 0 otherwise |
//! | 0x18 | 32 | PASID: that of the next copies; 0 is none |
//!
//! MSI message 0 is sent when a copy ends. After a reset the device holds zeroes.
//!
//! The page moves to another run with the device, and a copy that was asked for is done there. One with `memory=` or
//! `vfs=` stays; virtual functions move.
//!
//! With `vfs=N` it can have N virtual functions (1234:11ea), each a testdev with registers and a
//! buffer of its own.
//!
//! With `latch=on`, BAR 2 is a page whose first 32-bit word is a latch: a store sets bits in it, and a load takes what is set.
//! With `memory=SIZE`, BAR 4 is memory: large pages of a program's mapping can lie in it.

use ioasis_uapi::Result;

use super::options::{self, ModelError, OptionInfo, Options, VFS, virtual_functions};
use super::{After, Model, ModelInfo, Progress, VirtualFunctions};
use crate::bus::{Bus, Segment};
use crate::description::{Bar, BarKind, Description, Ids, Pages, Vectors};
use crate::migration::{Abilities, Migration, Reader, Writer, bad};

/// How `ioasis models` lists it.
pub(super) const INFO: ModelInfo = ModelInfo {
    name: "testdev",
    summary: "copies 4 KiB from memory into itself and back (1234:11e9)",
    options: &[
        OptionInfo {
            name: "latch",
            meaning: "BAR 2, of a register that a load clears",
            accepted: "on or off",
            default: "off",
        },
        OptionInfo {
            name: "memory",
            meaning: "BAR 4, of plain memory that programs share with it",
            accepted: "a power of two from 4K to 64M",
            default: "none",
        },
        OptionInfo {
            name: "migration",
            meaning: "the migration states it has beyond those that every device has which migrates",
            accepted: "all, p2p, pre-copy, none, or off: it does not migrate",
            default: "all; off with memory=",
        },
        VFS,
    ],
    create,
};

const BYTES: usize = 4096;
const ADDR: u64 = 0x00;
const CMD: u64 = 0x08;
const FAULT: u64 = 0x10;
const PASID: u64 = 0x18;

const CMD_RUN: u32 = 1 << 0;
const CMD_FROM_MEMORY: u32 = 1 << 1;
const CMD_FAULTED: u32 = 1 << 31;

#[derive(Debug)]
struct Testdev {
    buffer: Box<[u8; BYTES]>,
    /// Bits that are set, where there is a latch.
    latch: Option<u32>,
    /// Bytes of BAR 4, where there is one.
    memory: Option<u64>,
    /// `None` when it stays.
    abilities: Option<Abilities>,
    /// Device ID.
    device: u16,
    /// How many virtual functions it can have.
    vfs: u16,
}

const DEVICE: u16 = 0x11e9;
const VF_DEVICE: u16 = 0x11ea;

fn create(options: &Options<'_>) -> Result<Box<dyn Model>, ModelError> {
    let has_latch = options.parsed("latch", false, |text| match text {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    })?;
    let memory = options.parsed("memory", None, |text| {
        let bytes = options::bytes(text)?;
        ((4096..=1 << 26).contains(&bytes) && bytes.is_power_of_two()).then_some(Some(bytes))
    })?;
    let abilities = |p2p, pre_copy| Some(Some(Abilities { p2p, pre_copy }));
    let abilities = options.parsed("migration", Some(Abilities::ALL), |text| match text {
        "all" => abilities(true, true),
        "p2p" => abilities(true, false),
        "pre-copy" => abilities(false, true),
        "none" => abilities(false, false),
        "off" => Some(None),
        _ => None,
    })?;
    let vfs = virtual_functions(options)?;
    let (buffer, latch) = (Box::new([0; BYTES]), has_latch.then_some(0));
    let abilities = abilities.filter(|_| memory.is_none());
    Ok(Box::new(Testdev { buffer, latch, memory, abilities, device: DEVICE, vfs }))
}

impl Model for Testdev {
    fn description(&self) -> Description {
        let page = 0..BYTES as u64;
        let registers = Bar {
            size: page.end,
            kind: BarKind::Memory32,
            prefetchable: false,
            mappable: vec![Pages::shared(page.clone())],
        };
        let latch = Bar {
            size: page.end,
            kind: BarKind::Memory32,
            prefetchable: false,
            mappable: vec![Pages::trapped_loads(page)],
        };
        let memory = self.memory.map(|size| Bar {
            size,
            kind: BarKind::Memory64,
            prefetchable: true,
            mappable: vec![Pages::shared(0..size)],
        });
        Description {
            ids: Ids {
                vendor: 0x1234,
                device: self.device,
                subsystem_vendor: 0x1af4,
                subsystem_device: 0x1100,
                class: 0x00_ff_00,
                revision: 0,
            },
            bars: [Some(registers), None, self.latch.map(|_| latch), None, memory, None],
            vectors: Vectors { intx: false, msi: 1, msix: 0 },
            msix: None,
            ..Description::default()
        }
    }

    fn virtual_functions(&mut self) -> Option<VirtualFunctions> {
        let model = |_| {
            let (buffer, latch) = (Box::new([0; BYTES]), self.latch.map(|_| 0));
            let (memory, abilities) = (self.memory, self.abilities);
            let model = Self { buffer, latch, memory, abilities, device: VF_DEVICE, vfs: 0 };
            Box::new(model) as Box<dyn Model>
        };
        let models: Vec<_> = (0..self.vfs).map(model).collect();
        // Behind the eight functions that a device can have beside them.
        (self.vfs != 0).then_some(VirtualFunctions { offset: 0x80, stride: 1, models })
    }

    fn reset(&mut self, bus: &Bus<'_>) -> Result<()> {
        self.buffer.fill(0);
        self.latch = self.latch.map(|_| 0);
        if let Some(size) = self.memory {
            bus.pages(4).fill(0, usize::try_from(size).expect("at most 64 MiB"), 0)?;
        }
        bus.pages(0).fill(0, BYTES, 0)
    }

    fn load(&mut self, _: &Bus<'_>, _: usize, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let mut word = [0; 8];
        if let (0..4, Some(set)) = (offset, &mut self.latch) {
            let at = usize::try_from(offset).expect("below 4");
            word[..4 - at].copy_from_slice(&set.to_le_bytes()[at..]);
            let taken = bytes.iter().enumerate().map(|(index, _)| 0xff_u64 << (8 * (at + index)));
            *set &= !low(taken.fold(0, |all, byte| all | byte));
        }
        bytes.copy_from_slice(&word[..bytes.len()]);
        Ok(())
    }

    fn store(&mut self, _: &Bus<'_>, _: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        if let (0..4, Some(set)) = (offset, &mut self.latch) {
            for (index, byte) in (offset..4).zip(bytes) {
                *set |= u32::from(*byte) << (8 * index);
            }
        }
        Ok(())
    }

    fn after_store(&self, _: usize, _: u64) -> After {
        After::Settled
    }

    fn poll(&mut self, bus: &Bus<'_>) -> Result<Progress> {
        let registers = bus.pages(0);
        let command = registers.load_u32(CMD)?;
        if command & CMD_RUN == 0 {
            return Ok(Progress::Idle);
        }
        let memory = [Segment { iova: registers.load_u64(ADDR)?, length: BYTES }];
        let pasid = registers.load_u32(PASID)?;
        let copied = if command & CMD_FROM_MEMORY != 0 {
            bus.read_with_pasid(pasid, &memory, &mut *self.buffer)
        } else {
            bus.write_with_pasid(pasid, &memory, &*self.buffer)
        };
        let (status, fault) = match copied {
            Ok(()) => (0, 0),
            Err(fault) => (CMD_FAULTED, fault.iova),
        };
        registers.store_u64(FAULT, fault)?;
        registers.store_u32(CMD, status)?;
        bus.raise(0);
        Ok(Progress::Worked)
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        // A physical function stays with its virtual ones, which move.
        self.abilities.filter(|_| self.vfs == 0).map(|_| self as _)
    }
}

impl Migration for Testdev {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn version(&self) -> u32 {
        1
    }

    fn most_bytes(&self) -> usize {
        BYTES + 32
    }

    fn abilities(&self) -> Abilities {
        self.abilities.expect("it migrates")
    }

    fn save(&mut self, bus: &Bus<'_>, state: &mut Writer) -> Result<()> {
        let registers = bus.pages(0);
        state.flag(self.latch.is_some());
        state.u32(self.latch.unwrap_or(0));
        state.u64(registers.load_u64(ADDR)?);
        state.u32(registers.load_u32(CMD)?);
        state.u64(registers.load_u64(FAULT)?);
        state.u32(registers.load_u32(PASID)?);
        state.bytes(&*self.buffer);
        Ok(())
    }

    fn load(&mut self, bus: &Bus<'_>, _: u32, state: &mut Reader<'_>) -> Result<()> {
        let (has_latch, latch) = (state.flag()?, state.u32()?);
        if has_latch != self.latch.is_some() {
            return bad("the device that was saved has another latch=", has_latch);
        }
        let (address, command) = (state.u64()?, state.u32()?);
        let (fault, pasid) = (state.u64()?, state.u32()?);
        let buffer = state.bytes(BYTES)?;
        state.end()?;
        self.reset(bus)?;
        self.buffer.copy_from_slice(buffer);
        self.latch = has_latch.then_some(latch);
        let registers = bus.pages(0);
        registers.store_u64(ADDR, address)?;
        registers.store_u64(FAULT, fault)?;
        registers.store_u32(PASID, pasid)?;
        registers.store_u32(CMD, command)
    }
}

fn low(word: u64) -> u32 {
    u32::try_from(word & u64::from(u32::MAX)).expect("a half")
}

#[cfg(test)]
mod tests;
