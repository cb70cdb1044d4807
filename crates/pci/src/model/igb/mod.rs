//! `igb`: a port of Intel's 82576 network controller.
//!
//! One file a chapter of its data sheet: `registers` (8), `phy` with the EEPROM (3.3, 3.5),
//! `interrupts` (7.3), `ring`, `transmit` and `receive` (7.1, 7.2), `frame` for what happens to a
//! frame on the way, `statistics` (8.19). Facts are those that the drivers of Linux
//! (`drivers/net/ethernet/intel/igb`), of its VFIO selftests and of DPDK (`drivers/net/e1000`) use.
//!
//! BAR 0 is 128 KiB. Its first two pages (control, PHY, EEPROM, interrupts) and that of the
//! statistics are trapped, loads too: ICR, EICR and each statistics register are cleared by a load.
//! The others are shared memory: rings, whose tails only move forward, and tables that hold what
//! was stored. BAR 3 holds the MSI-X table. There are no I/O ports, no flash, no pin and no MSI;
//! SR-IOV, time stamps, segmentation, header split, RSS and VMDq are not done: frames come to queue
//! 0.

mod frame;
mod interrupts;
mod phy;
mod receive;
mod registers;
mod ring;
mod statistics;
mod transmit;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use ioasis_uapi::Result;

use self::frame::Context;
use self::interrupts::{CAUSE_LINK, Interrupts, VECTORS};
use self::phy::{Eeprom, Phy};
use self::registers::{BAR, Registers};
use self::ring::{QUEUES, Ring};
use self::statistics::Statistics;
use super::net::{self, Backend};
use super::options::{ModelError, OptionInfo, Options};
use super::{After, Model, ModelInfo, Progress};
use crate::bus::Bus;
use crate::description::{Bar, BarKind, Description, Ids, MsixTable, Pages, Vectors};

/// How `ioasis models` lists it.
pub(super) const INFO: ModelInfo = ModelInfo {
    name: "igb",
    summary: "a port of Intel's 82576 network controller (8086:10c9)",
    options: OPTIONS,
    create,
};

const OPTIONS: &[OptionInfo] = &[
    OptionInfo {
        name: "mac",
        meaning: "the address in its EEPROM",
        accepted: "six bytes as 52:54:00:12:34:56, the first one even",
        default: "02:00:00:76: and a number of its own",
    },
    OptionInfo {
        name: "pair",
        meaning: "connects the two cards of the run that have the same name here",
        accepted: "a name that exactly two cards have",
        default: "none",
    },
    OptionInfo {
        name: "loop",
        meaning: "gives back each frame that is sent",
        accepted: "on or off",
        default: "off",
    },
    OptionInfo {
        name: "rx",
        meaning: "receives the frames of a pcap file, once",
        accepted: "the path of a pcap file of Ethernet frames",
        default: "none",
    },
    OptionInfo {
        name: "tx",
        meaning: "writes the frames that are sent into a pcap file",
        accepted: "the path of a file, which is made or emptied",
        default: "none",
    },
    OptionInfo {
        name: "stream",
        meaning: "sends and receives through a stream socket, as QEMU's -netdev stream does and passt",
        accepted: "the path of a UNIX socket on which somebody listens",
        default: "none",
    },
];

/// Network controller, Ethernet (PCI Code and ID Assignment 1.11, 1.3).
const CLASS: u32 = 0x02_00_00;
const BAR_BYTES: u64 = 128 << 10;
const MSIX_BAR: usize = 3;
const MSIX_BAR_BYTES: u64 = 16 << 10;
const MSIX_PENDING: u32 = 0x2000;

fn create(options: &Options<'_>) -> Result<Box<dyn Model>, ModelError> {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    let mac = match options.parsed("mac", None, |text| address(text).map(Some))? {
        Some(mac) => mac,
        None => {
            let [low, high, ..] = NUMBER.fetch_add(1, Ordering::Relaxed).to_le_bytes();
            [2, 0, 0, 0x76, high, low]
        }
    };
    Ok(Box::new(Igb::new(mac, net::open(options)?)))
}

/// A unicast address.
fn address(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    (parts.next().is_none() && bytes[0] & 1 == 0 && bytes != [0; 6]).then_some(bytes)
}

/// The port.
#[derive(Debug)]
struct Igb {
    mac: [u8; 6],
    registers: Registers,
    phy: Phy,
    eeprom: Eeprom,
    interrupts: Interrupts,
    statistics: Statistics,
    receive: Vec<Ring>,
    transmit: Vec<Ring>,
    contexts: [Context; QUEUES],
    /// A frame that waits for room on its way out, and one on its way in, since when.
    leaving: Option<Vec<u8>>,
    coming: Option<(Instant, Vec<u8>)>,
    backend: Box<dyn Backend>,
    listens: bool,
}

impl Igb {
    fn new(mac: [u8; 6], backend: Box<dyn Backend>) -> Self {
        Self {
            mac,
            registers: Registers::default(),
            phy: Phy::new(backend.is_up()),
            eeprom: Eeprom::new(mac),
            interrupts: Interrupts::default(),
            statistics: Statistics::default(),
            receive: (0..QUEUES).map(|queue| Ring::new(ring::receive(queue))).collect(),
            transmit: (0..QUEUES).map(|queue| Ring::new(ring::transmit(queue))).collect(),
            contexts: [Context::default(); QUEUES],
            leaving: None,
            coming: None,
            backend,
            listens: false,
        }
    }

    /// What CTRL's reset takes away, and what power-on does: all but the PHY's registers.
    fn reset_ports(&mut self, bus: &Bus<'_>) -> Result<()> {
        self.interrupts.reset();
        self.statistics = Statistics::default();
        self.receive.iter_mut().chain(&mut self.transmit).for_each(Ring::reset);
        self.contexts = [Context::default(); QUEUES];
        (self.leaving, self.coming) = (None, None);
        self.listen(false);
        let pages = bus.pages(BAR);
        pages.fill(0, usize::try_from(BAR_BYTES).expect("128 KiB"), 0)?;
        self.registers.reset(pages)?;
        let low = u32::from_le_bytes(self.mac[..4].try_into().expect("four"));
        let high = u32::from(u16::from_le_bytes([self.mac[4], self.mac[5]]));
        pages.store_u32(receive::ADDRESSES, low)?;
        pages.store_u32(receive::ADDRESSES + 4, high | receive::ADDRESS_VALID)?;
        self.registers.set(pages, registers::EECD, Eeprom::control(0))?;
        self.update_status(bus)
    }

    fn listen(&mut self, listens: bool) {
        if self.listens != listens {
            self.listens = listens;
            self.backend.set_running(listens);
        }
    }

    /// Whether what is sent comes back inside the port.
    fn loops_back(&self) -> bool {
        let mac = self.registers.get(registers::RCTL) >> registers::RCTL_LOOPBACK_SHIFT & 3 != 0;
        mac || self.phy.loops_back()
    }

    /// STATUS as CTRL and the cable have it; a change of the link is an interrupt.
    fn update_status(&mut self, bus: &Bus<'_>) -> Result<()> {
        let control = self.registers.get(registers::CTRL);
        let there = self.backend.is_up() || self.phy.loops_back();
        let mut status = registers::STATUS_PLAIN;
        if there && control & registers::CTRL_LINK_UP != 0 {
            status |= registers::STATUS_LINK_UP;
        }
        if control & registers::CTRL_MASTER_DISABLE == 0 {
            status |= registers::STATUS_MASTER;
        }
        let before = self.registers.get(registers::STATUS);
        self.registers.set(bus.pages(BAR), registers::STATUS, status)?;
        if (before ^ status) & registers::STATUS_LINK_UP != 0 {
            self.interrupts.cause(CAUSE_LINK);
        }
        Ok(())
    }

    /// A store of a whole dword to an acting page.
    fn act(&mut self, bus: &Bus<'_>, offset: u64, value: u32) -> Result<()> {
        let pages = bus.pages(BAR);
        let shown = match offset {
            registers::CTRL => return self.control(bus, value),
            registers::STATUS | registers::EEMNGCTL => self.registers.get(offset),
            registers::EECD => Eeprom::control(value),
            registers::EERD => self.eeprom.read(value),
            registers::EEWR => value | registers::WRITTEN,
            registers::MDIC => {
                let done = self.phy.command(value);
                self.registers.set(pages, offset, done)?;
                return self.update_status(bus);
            }
            _ if self.interrupts.set(offset, value) => {
                self.registers.set(pages, offset, self.interrupts.get(offset).unwrap_or(0))?;
                return Ok(());
            }
            _ => value,
        };
        self.registers.set(pages, offset, shown)?;
        if offset == registers::RCTL || offset == registers::TCTL {
            self.look(bus)?;
        }
        Ok(())
    }

    fn control(&mut self, bus: &Bus<'_>, value: u32) -> Result<()> {
        if value & registers::CTRL_PHY_RESET != 0 {
            self.phy.reset();
        }
        if value & registers::CTRL_RESET != 0 {
            return self.reset_ports(bus);
        }
        let kept = value & !registers::CTRL_PHY_RESET;
        self.registers.set(bus.pages(BAR), registers::CTRL, kept)?;
        self.update_status(bus)
    }

    /// Takes what the rings' registers say by now.
    fn look(&mut self, bus: &Bus<'_>) -> Result<()> {
        let receives = self.registers.get(registers::RCTL) & registers::RCTL_ENABLE != 0;
        let transmits = self.registers.get(registers::TCTL) & registers::TCTL_ENABLE != 0;
        for ring in &mut self.receive {
            ring.look(bus.pages(BAR), receives)?;
        }
        for ring in &mut self.transmit {
            ring.look(bus.pages(BAR), transmits)?;
        }
        self.listen(receives);
        Ok(())
    }

    /// Brings the page to what changed by itself.
    fn show(&mut self, bus: &Bus<'_>) -> Result<()> {
        for offset in Interrupts::SHOWN {
            let value = self.interrupts.get(offset).unwrap_or(0);
            if self.registers.get(offset) != value {
                self.registers.set(bus.pages(BAR), offset, value)?;
            }
        }
        self.statistics.show(bus.pages(BAR))
    }

    /// Acts on what was stored to the pages past [`Model::store`].
    fn take_pages(&mut self, bus: &Bus<'_>) -> Result<Progress> {
        let stored = self.registers.stored_past(bus.pages(BAR))?;
        for &(offset, value) in &stored {
            self.act(bus, offset, value)?;
        }
        Ok(if stored.is_empty() { Progress::Idle } else { Progress::Worked })
    }
}

impl Model for Igb {
    fn description(&self) -> Description {
        let memory = |size, mappable| {
            Some(Bar { size, kind: BarKind::Memory32, prefetchable: false, mappable })
        };
        let pages = vec![
            Pages::trapped_loads(0..registers::ACTING),
            Pages::shared(registers::ACTING..statistics::FIRST),
            Pages::trapped_loads(statistics::FIRST..statistics::END),
            Pages::shared(statistics::END..BAR_BYTES),
        ];
        let table = vec![Pages::shared(0..MSIX_BAR_BYTES)];
        Description {
            ids: Ids {
                vendor: 0x8086,
                device: 0x10c9,
                subsystem_vendor: 0x8086,
                subsystem_device: 0xa03c,
                class: CLASS,
                revision: 1,
            },
            bars: [memory(BAR_BYTES, pages), None, None, memory(MSIX_BAR_BYTES, table), None, None],
            vectors: Vectors { intx: false, msi: 0, msix: VECTORS },
            msix: Some(MsixTable {
                table_bar: MSIX_BAR,
                table_offset: 0,
                pba_bar: MSIX_BAR,
                pba_offset: MSIX_PENDING,
            }),
            ..Description::default()
        }
    }

    fn reset(&mut self, bus: &Bus<'_>) -> Result<()> {
        self.backend.attach(bus.alarm());
        self.phy = Phy::new(self.backend.is_up());
        self.reset_ports(bus)
    }

    fn poll(&mut self, bus: &Bus<'_>) -> Result<Progress> {
        self.look(bus)?;
        let mut progress = self.transmit(bus)?;
        let received = self.receive(bus)?;
        if progress == Progress::Idle {
            progress = received;
        }
        self.backend.settle();
        self.interrupts.deliver(bus);
        if progress != Progress::Worked && self.take_pages(bus)? == Progress::Worked {
            progress = Progress::Worked;
        }
        self.show(bus)?;
        Ok(if self.interrupts.waits() { Progress::Worked } else { progress })
    }

    fn load(&mut self, bus: &Bus<'_>, bar: usize, offset: u64, bytes: &mut [u8]) -> Result<()> {
        if bar != BAR {
            bytes.fill(0);
            return Ok(());
        }
        self.update_status(bus)?;
        for (at, byte) in (offset..).zip(bytes.iter_mut()) {
            let start = usize::try_from(at & 3).expect("below 4");
            let dword = at & !3;
            let value = match self.interrupts.get(dword) {
                Some(value) => value,
                None if dword < registers::ACTING => self.registers.get(dword),
                None => self.statistics.peek(dword),
            };
            *byte = value.to_le_bytes()[start];
        }
        // What was loaded of a register that a load clears is gone.
        let end = offset + bytes.len() as u64;
        for dword in (offset & !3..end).step_by(4) {
            self.interrupts.take(dword);
            if (statistics::FIRST..statistics::END).contains(&dword) {
                self.statistics.take(dword);
            }
        }
        self.show(bus)
    }

    fn store(&mut self, bus: &Bus<'_>, bar: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        if bar != BAR || offset >= registers::ACTING {
            return Ok(());
        }
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let room = usize::try_from(4 - (at & 3)).expect("at most 4");
            let (part, after) = rest.split_at(rest.len().min(room));
            let value = self.registers.merged(at, part);
            self.act(bus, at & !3, value)?;
            at += part.len() as u64;
            rest = after;
        }
        self.interrupts.deliver(bus);
        self.show(bus)
    }

    fn after_store(&self, _bar: usize, offset: u64) -> After {
        let starts = matches!(offset & !3, registers::RCTL | registers::TCTL);
        if starts || self.interrupts.waits() { After::Work } else { After::Settled }
    }
}

#[cfg(test)]
mod tests;
