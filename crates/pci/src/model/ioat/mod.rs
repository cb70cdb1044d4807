//! `ioat`: a DMA engine that copies and fills memory, as the I/OAT (CBDMA) functions of Intel's
//! servers.
//!
//! One channel that works through a chain of descriptors: `registers` is what it looks like,
//! `descriptor` what a program writes to memory, `channel` what is done about it. Facts are those
//! that the drivers of Linux (`drivers/dma/ioat`), of its selftests and of DPDK
//! (`drivers/dma/ioat`) rely on, and the chapters on "Intel QuickData Technology" in the data
//! sheets of the processors that have it.
//!
//! BAR 0 is 16 KiB: the registers in a trapped page, the MSI-X table at 2000h, its pending bits at
//! 3000h. A store to CHANCMD, CHAINADDR or DMACOUNT changes the state that CHANSTS shows before the
//! next load; descriptors are worked through by the worker. A page is memory all the same, and a
//! program that is not trapped stores there: the worker finds what differs from what the page
//! showed last.
//!
//! - The channel does COPY, FILL and NULL. There is no XOR, no P+Q, no DCA and no interrupt pin.
//! - Every error halts the channel. Source memory that cannot be read is a Read Data Error,
//!   destination memory that cannot be written a Write Data Error: those that Linux's driver
//!   recovers from.
//! - DIFFERS: registers that a load of real hardware changes do not change: CHANCTRL bit 8 (In Use)
//!   is never set by a load, ATTNSTATUS follows CHANCTRL bit 0, and INTRCTRL bit 0 stays as it was
//!   stored. A load of a mapped page calls nobody.

mod channel;
mod descriptor;
mod registers;

use ioasis_uapi::Result;

use self::channel::{Channel, Done};
use self::registers::{Register, Registers, WRITABLE};
use super::options::{self, ModelError, OptionInfo, Options};
use super::{After, Model, ModelInfo, Progress};
use crate::bus::Bus;
use crate::description::{Bar, BarKind, Description, Ids, MsixTable, PAGE_SIZE, Pages, Vectors};

/// How `ioasis models` lists it.
pub(super) const INFO: ModelInfo = ModelInfo {
    name: "ioat",
    summary: "a DMA engine that copies and fills memory, as Intel's I/OAT (8086:2021)",
    options: OPTIONS,
    create,
};

const OPTIONS: &[OptionInfo] = &[
    OptionInfo {
        name: "version",
        meaning: "the version of its registers; with 3.4 it is 8086:0b00, of which DPDK expects that it reports errors",
        accepted: "3.2, 3.3 or 3.4",
        default: "3.3",
    },
    OptionInfo {
        name: "transfer",
        meaning: "the most bytes of one descriptor",
        accepted: "a power of two from 4K to 1M",
        default: "1M",
    },
];

/// BAR of the registers and of the MSI-X structures.
const BAR: usize = 0;
const BAR_BYTES: u64 = 16 << 10;
const MSIX_TABLE: u32 = 0x2000;
const MSIX_PENDING: u32 = 0x3000;
/// The channel's interrupt.
const VECTOR: u16 = 0;

/// Base system peripheral, other (PCI Code and ID Assignment 1.11, 1.9).
const CLASS: u32 = 0x08_80_00;
const VERSION_3_4: u8 = 0x34;

/// A poll ends after so many bytes or descriptors, whichever is first: a reset waits for it.
const BYTES_PER_POLL: usize = 1 << 20;
const DESCRIPTORS_PER_POLL: u32 = 256;

fn create(options: &Options<'_>) -> Result<Box<dyn Model>, ModelError> {
    let version = options.parsed("version", 0x33, |text| match text {
        "3.2" => Some(0x32),
        "3.3" => Some(0x33),
        "3.4" => Some(VERSION_3_4),
        _ => None,
    })?;
    let transfer = options.parsed("transfer", 1 << 20, |text| {
        let bytes = options::bytes(text)?;
        (bytes.is_power_of_two() && (4 << 10..=1 << 20).contains(&bytes)).then_some(bytes)
    })?;
    Ok(Box::new(Ioat {
        registers: Registers::new(version, transfer),
        channel: Channel::new(transfer),
    }))
}

/// The function: one channel, and the registers that are not the channel's.
#[derive(Debug)]
struct Ioat {
    registers: Registers,
    channel: Channel,
}

impl Ioat {
    /// What a load gives, with what the channel is in now.
    fn refresh(&mut self) {
        self.registers.refresh(&self.channel);
    }

    /// Brings the page to what a load gives.
    fn show(&mut self, bus: &Bus<'_>) -> Result<()> {
        self.refresh();
        self.registers.show(bus.pages(BAR))
    }

    /// Acts on what was stored to the page past [`Model::store`].
    fn take_page(&mut self, bus: &Bus<'_>) -> Result<Progress> {
        let page = self.registers.read_page(bus.pages(BAR))?;
        let mut progress = Progress::Idle;
        for register in WRITABLE {
            if let Some(value) = self.registers.stored(register, &page) {
                self.act(bus, register, value);
                progress = Progress::Worked;
            }
        }
        Ok(progress)
    }

    /// What a store of `value` to `register` does.
    fn act(&mut self, bus: &Bus<'_>, register: Register, value: u64) {
        match register {
            Register::InterruptControl => {
                self.registers.set_interrupt_control(value);
                self.signal(bus);
            }
            Register::ChannelControl => self.channel.set_control(value),
            Register::ChannelCommand => self.channel.command(value),
            Register::Count => self.channel.set_count(value),
            Register::ChainAddress => self.channel.arm(value),
            Register::CompletionAddress => self.channel.set_completion(value),
            Register::Error => self.channel.clear_errors(value),
            Register::ErrorMask => self.channel.set_error_mask(value),
            Register::CacheControl => self.channel.set_cache_control(value),
        }
    }

    /// Sends the message of an interrupt that is due and was not sent yet.
    fn signal(&mut self, bus: &Bus<'_>) {
        if self.registers.interrupts_enabled() && self.channel.take_interrupt() {
            bus.raise(VECTOR);
        }
    }

    /// Works through the chain as far as one poll may.
    fn work(&mut self, bus: &Bus<'_>) -> Result<()> {
        let mut bytes = 0;
        for _ in 0..DESCRIPTORS_PER_POLL {
            if bytes >= BYTES_PER_POLL || !self.channel.is_active() {
                break;
            }
            let Done { length, report } = self.channel.step(bus);
            bytes += length;
            // CHANSTS says it before memory does, and both before an interrupt.
            self.show(bus)?;
            if report && !self.channel.report(bus) {
                self.show(bus)?;
            }
            self.signal(bus);
        }
        Ok(())
    }
}

impl Model for Ioat {
    fn description(&self) -> Description {
        let registers = Bar {
            size: BAR_BYTES,
            kind: BarKind::Memory64,
            prefetchable: false,
            mappable: vec![Pages::trapped(0..PAGE_SIZE), Pages::shared(PAGE_SIZE..BAR_BYTES)],
        };
        let device = if self.registers.version() == VERSION_3_4 { 0x0b00 } else { 0x2021 };
        Description {
            ids: Ids {
                vendor: 0x8086,
                device,
                subsystem_vendor: 0x8086,
                subsystem_device: 0,
                class: CLASS,
                revision: 4,
            },
            bars: [Some(registers), None, None, None, None, None],
            vectors: Vectors { intx: false, msi: 0, msix: 1 },
            msix: Some(MsixTable {
                table_bar: BAR,
                table_offset: MSIX_TABLE,
                pba_bar: BAR,
                pba_offset: MSIX_PENDING,
            }),
            ..Description::default()
        }
    }

    fn reset(&mut self, bus: &Bus<'_>) -> Result<()> {
        self.registers.reset();
        self.channel.power_on();
        bus.pages(BAR).fill(0, usize::try_from(BAR_BYTES).expect("four pages"), 0)?;
        self.show(bus)
    }

    fn poll(&mut self, bus: &Bus<'_>) -> Result<Progress> {
        let stored = self.take_page(bus)?;
        if self.channel.is_active() {
            self.work(bus)?;
            return Ok(Progress::Worked);
        }
        self.show(bus)?;
        Ok(stored)
    }

    fn load(&mut self, bus: &Bus<'_>, _bar: usize, offset: u64, bytes: &mut [u8]) -> Result<()> {
        if self.take_page(bus)? == Progress::Worked {
            self.show(bus)?;
        }
        self.registers.load(offset, bytes);
        Ok(())
    }

    fn store(&mut self, bus: &Bus<'_>, _bar: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        // What was stored past this came before.
        self.take_page(bus)?;
        self.refresh();
        for register in WRITABLE {
            if let Some(value) = self.registers.merged(register, offset, bytes) {
                self.act(bus, register, value);
            }
        }
        self.show(bus)
    }

    fn after_store(&self, _bar: usize, _offset: u64) -> After {
        if self.channel.is_active() { After::Work } else { After::Settled }
    }
}

#[cfg(test)]
mod tests;
