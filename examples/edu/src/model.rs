//! The teaching device of QEMU (1234:11e8), for which many courses have a driver. QEMU's docs/specs/edu.rst is its manual.
//!
//! Registers, in the first page of BAR 0 (1 MiB); below 0x80 an access has 4 bytes, from there on 4 or 8:
//!
//! | offset | register |
//! |---|---|
//! | 0x00 | identification, 0x010000ed; read-only |
//! | 0x04 | liveness: reads the complement of what was stored |
//! | 0x08 | factorial: a store begins to compute that of the value, a load gives it |
//! | 0x20 | status: 0x01 computes (read-only), 0x80 raise an interrupt (0x01) when done |
//! | 0x24 | interrupt status: what raised the interrupt; read-only |
//! | 0x60 | interrupt raise: the value is added to the interrupt status; write-only |
//! | 0x64 | interrupt acknowledge: the value is taken out of the interrupt status; write-only |
//! | 0x80 | DMA source, 0x88 destination, 0x90 count |
//! | 0x98 | DMA command: 0x01 runs, 0x02 from the device to memory, 0x04 raise an interrupt (0x100) when done |
//!
//! The device has 4 KiB of its own for DMA, at 0x40000 of its own addresses. Memory it reaches by the bits of `dma_mask` alone.
//!
//! Where QEMU ends with an error, for a transfer that passes the end of those 4 KiB, nothing is moved here. The result of a
//! transfer that faults is as if it were done, as in QEMU; the trace of a run tells. A program that maps the page and cannot
//! be trapped loads registers, and stores nothing.

use ioasis::pci::{
    Bar, BarKind, Bus, Description, Ids, Line, Model, ModelError, ModelInfo, OptionInfo, Options,
    PAGE_SIZE, Pages, Progress, Result, Segment, Vectors,
};

const IDENTIFICATION: u64 = 0x00;
const LIVENESS: u64 = 0x04;
const FACTORIAL: u64 = 0x08;
const STATUS: u64 = 0x20;
const IRQ_STATUS: u64 = 0x24;
const IRQ_RAISE: u64 = 0x60;
const IRQ_ACKNOWLEDGE: u64 = 0x64;
const DMA_SOURCE: u64 = 0x80;
const DMA_DESTINATION: u64 = 0x88;
const DMA_COUNT: u64 = 0x90;
const DMA_COMMAND: u64 = 0x98;

const VERSION: u32 = 0x0100_00ed;
const COMPUTING: u32 = 0x01;
const FACTORIAL_IRQ: u32 = 0x80;
const FACTORIAL_DONE: u32 = 0x01;
const DMA_DONE: u32 = 0x100;

const RUN: u64 = 0x01;
const TO_MEMORY: u64 = 0x02;
const DMA_IRQ: u64 = 0x04;

const BUFFER: u64 = 0x4_0000;
const BUFFER_BYTES: usize = 4096;
const BAR_BYTES: u64 = 1 << 20;

/// What `--device edu` makes.
pub const INFO: ModelInfo = ModelInfo {
    name: "edu",
    summary: "QEMU's teaching device (1234:11e8)",
    options: &[OptionInfo {
        name: "dma_mask",
        meaning: "the bits of an address of memory that it sends",
        accepted: "a number, decimal or with 0x",
        default: "0xfffffff",
    }],
    create,
};

fn create(options: &Options<'_>) -> std::result::Result<Box<dyn Model>, ModelError> {
    let dma_mask = options.parsed("dma_mask", 0x0fff_ffff, |text| {
        let hexadecimal = text.strip_prefix("0x").map(|digits| u64::from_str_radix(digits, 16));
        hexadecimal.unwrap_or_else(|| text.parse()).ok()
    })?;
    let registers = Registers::default();
    Ok(Box::new(Edu { dma_mask, registers, buffer: Box::new([0; BUFFER_BYTES]) }))
}

#[derive(Debug, Default)]
struct Registers {
    liveness: u32,
    factorial: u32,
    status: u32,
    irq_status: u32,
    source: u64,
    destination: u64,
    count: u64,
    command: u64,
}

#[derive(Debug)]
struct Edu {
    dma_mask: u64,
    registers: Registers,
    buffer: Box<[u8; BUFFER_BYTES]>,
}

impl Model for Edu {
    fn description(&self) -> Description {
        let mut description = Description::new(Ids {
            vendor: 0x1234,
            device: 0x11e8,
            subsystem_vendor: 0x1af4,
            subsystem_device: 0x1100,
            class: 0x00_ff_00,
            revision: 0x10,
        });
        description.bars[0] = Some(Bar {
            size: BAR_BYTES,
            kind: BarKind::Memory32,
            prefetchable: false,
            mappable: vec![Pages::trapped(0..PAGE_SIZE)],
        });
        description.vectors = Vectors { intx: true, msi: 1, msix: 0 };
        description
    }

    fn reset(&mut self, bus: &Bus<'_>) -> Result<()> {
        self.registers = Registers::default();
        self.buffer.fill(0);
        bus.pages(0).fill(0, PAGE_SIZE as usize, 0)?;
        self.show(bus)
    }

    fn load(&mut self, _: &Bus<'_>, _: usize, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let value = if is_access(offset, bytes.len()) { self.register(offset) } else { u64::MAX };
        bytes.copy_from_slice(&value.to_le_bytes()[..bytes.len()]);
        Ok(())
    }

    fn store(&mut self, bus: &Bus<'_>, _: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        if is_access(offset, bytes.len()) {
            let mut value = [0; 8];
            value[..bytes.len()].copy_from_slice(bytes);
            self.set(bus, offset, u64::from_le_bytes(value))?;
        }
        self.show(bus)
    }

    fn poll(&mut self, bus: &Bus<'_>) -> Result<Progress> {
        let computes = self.registers.status & COMPUTING != 0;
        let runs = self.registers.command & RUN != 0;
        if !computes && !runs {
            return Ok(Progress::Idle);
        }
        if computes {
            self.registers.factorial = factorial(self.registers.factorial);
            self.registers.status &= !COMPUTING;
        }
        if runs {
            self.transfer(bus);
            self.registers.command &= !RUN;
        }
        self.show(bus)?;
        if computes && self.registers.status & FACTORIAL_IRQ != 0 {
            self.raise(bus, FACTORIAL_DONE)?;
        }
        if runs && self.registers.command & DMA_IRQ != 0 {
            self.raise(bus, DMA_DONE)?;
        }
        Ok(Progress::Worked)
    }
}

fn is_access(offset: u64, width: usize) -> bool {
    width == 4 || offset >= DMA_SOURCE && width == 8
}

/// `value`! modulo 2^32, which is 0 from 34 on: a driver may ask for any.
fn factorial(value: u32) -> u32 {
    (1..=value.min(34)).fold(1, u32::wrapping_mul)
}

impl Edu {
    /// What a load of the register at `offset` gives.
    fn register(&self, offset: u64) -> u64 {
        let registers = &self.registers;
        let word = match offset {
            IDENTIFICATION => VERSION,
            LIVENESS => registers.liveness,
            FACTORIAL => registers.factorial,
            STATUS => registers.status,
            IRQ_STATUS => registers.irq_status,
            DMA_SOURCE => return registers.source,
            DMA_DESTINATION => return registers.destination,
            DMA_COUNT => return registers.count,
            DMA_COMMAND => return registers.command,
            _ => return u64::MAX,
        };
        word.into()
    }

    fn set(&mut self, bus: &Bus<'_>, offset: u64, value: u64) -> Result<()> {
        let word = (value & 0xffff_ffff) as u32;
        let registers = &mut self.registers;
        let transfers = registers.command & RUN != 0;
        match offset {
            LIVENESS => registers.liveness = !word,
            FACTORIAL if registers.status & COMPUTING == 0 => {
                registers.factorial = word;
                registers.status |= COMPUTING;
            }
            STATUS => {
                registers.status = registers.status & !FACTORIAL_IRQ | word & FACTORIAL_IRQ;
            }
            IRQ_RAISE => self.raise(bus, word)?,
            IRQ_ACKNOWLEDGE => {
                registers.irq_status &= !word;
                if registers.irq_status == 0 {
                    bus.set_line(Line::Deasserted);
                }
            }
            DMA_SOURCE if !transfers => registers.source = value,
            DMA_DESTINATION if !transfers => registers.destination = value,
            DMA_COUNT if !transfers => registers.count = value,
            DMA_COMMAND if !transfers => registers.command = value & (RUN | TO_MEMORY | DMA_IRQ),
            _ => {}
        }
        Ok(())
    }

    fn raise(&mut self, bus: &Bus<'_>, cause: u32) -> Result<()> {
        self.registers.irq_status |= cause;
        // The result, then the interrupt that announces it.
        self.show(bus)?;
        if self.registers.irq_status != 0 {
            // Both: which of them is heard is the program's choice.
            bus.set_line(Line::Asserted);
            bus.raise(0);
        }
        Ok(())
    }

    fn transfer(&mut self, bus: &Bus<'_>) {
        let Registers { source, destination, count, command, .. } = self.registers;
        let to_memory = command & TO_MEMORY != 0;
        let (inside, iova) = if to_memory { (source, destination) } else { (destination, source) };
        let Ok(length) = usize::try_from(count) else { return };
        let start = inside.checked_sub(BUFFER).and_then(|start| usize::try_from(start).ok());
        let piece = start.and_then(|start| self.buffer.get_mut(start..start.checked_add(length)?));
        let Some(piece) = piece else { return };
        let memory = [Segment { iova: iova & self.dma_mask, length }];
        // A fault is for people: the device has no register for it.
        let _ = if to_memory { bus.write(&memory, piece) } else { bus.read(&memory, piece) };
    }

    /// Has the page show what loads give.
    fn show(&self, bus: &Bus<'_>) -> Result<()> {
        let page = bus.pages(0);
        for offset in [IDENTIFICATION, LIVENESS, FACTORIAL, STATUS, IRQ_STATUS] {
            page.store_u32(offset, (self.register(offset) & 0xffff_ffff) as u32)?;
        }
        for offset in [DMA_SOURCE, DMA_DESTINATION, DMA_COUNT, DMA_COMMAND] {
            page.store_u64(offset, self.register(offset))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
