//! A driver's side of a port: memory, registers, a ring each way, and a port that is polled by
//! hand.

use std::sync::Arc;

use ioasis_sys::mapping::Mapping;

use crate::bus::{Bus, Dma, Irq, Session, Wires};
use crate::fake::{Interrupts, Memory, Told};
use crate::gate::Permissions;
use crate::model::igb::registers::{IVAR, RCTL, TCTL};
use crate::model::igb::ring::{receive, transmit};
use crate::model::{Model, Progress, create};
use crate::refusal::Witness;

/// Where the fake memory begins, and how much there is.
pub(super) const MEMORY: u64 = 0x10_0000;
pub(super) const MEMORY_BYTES: usize = 4 << 20;
/// Reads work here and writes fault.
pub(super) const READ_ONLY: u64 = MEMORY + (3 << 20);
pub(super) const TRANSMIT_RING: u64 = MEMORY;
pub(super) const RECEIVE_RING: u64 = MEMORY + 0x1_0000;
/// Where the first buffer of the receive ring lies; they are 2 KiB.
pub(super) const BUFFERS: u64 = MEMORY + (1 << 20);
pub(super) const DATA: u64 = MEMORY + (2 << 20);

pub(super) const ENTRIES: u32 = 16;
const ENABLE: u32 = 1 << 25;

/// DTYP data, DEXT, EOP, RS and IFCS.
pub(super) const WHOLE: u32 = 3 << 20 | 1 << 29 | 1 << 24 | 1 << 27 | 1 << 25;

/// A port, and a driver for it.
#[derive(Debug)]
pub(super) struct Rig {
    model: Box<dyn Model>,
    pub(super) memory: Arc<Memory>,
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) pages: Arc<Mapping>,
    session: Session,
    wires: Wires,
    pub(super) sent: u32,
    /// Descriptors that were given and taken back.
    pub(super) given: u32,
    pub(super) taken: u32,
}

impl Rig {
    /// A port after power-on, bus mastering on.
    pub(super) fn new(options: &[(&str, &str)]) -> Self {
        let owned: Vec<_> =
            options.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let mut model = create("igb", &owned).expect("good options");
        let mapping = |bytes| Some(Arc::new(Mapping::anonymous(bytes).expect("memory")));
        let memory = Arc::new(Memory::new(MEMORY, MEMORY_BYTES));
        memory.set_read_only_from(READ_ONLY);
        let interrupts = Arc::new(Interrupts::default());
        let session = Session {
            dma: Arc::clone(&memory) as Arc<dyn Dma>,
            irq: Arc::clone(&interrupts) as Arc<dyn Irq>,
            witness: Arc::new(Told::default()) as Arc<dyn Witness>,
            pages: [mapping(128 << 10), None, None, mapping(16 << 10), None, None],
            doorbells: None,
        };
        let wires = Wires::new(&model.description());
        wires.gate.set(Permissions { master: true, memory: true, ..Permissions::default() });
        model.reset(&Bus::new(&session, &wires)).expect("pages are there");
        let pages = Arc::clone(session.pages[0].as_ref().expect("BAR 0"));
        Self { model, memory, interrupts, pages, session, wires, sent: 0, given: 0, taken: 0 }
    }

    /// A port with rings, set up and given receive buffers as drivers do it.
    pub(super) fn ready(options: &[(&str, &str)]) -> Self {
        let mut rig = Self::new(options);
        rig.store(0, 1 << 6);
        rig.rings();
        rig
    }

    /// The rings of both ways, on, with all but one receive descriptor given; frames of every
    /// address are taken.
    pub(super) fn rings(&mut self) {
        self.store(RCTL, 0);
        self.store(TCTL, 0);
        for (registers, ring) in [(transmit(0), TRANSMIT_RING), (receive(0), RECEIVE_RING)] {
            self.memory.put(ring, &[0; 16 * ENTRIES as usize]);
            self.share(registers, u32::try_from(ring).expect("low"));
            self.share(registers + 4, 0);
            self.share(registers + 8, ENTRIES * 16);
            self.share(registers + 0x10, 0);
            self.share(registers + 0x18, 0);
            self.share(registers + 0x28, ENABLE);
        }
        self.share(receive(0) + 0xc, 1 << 25 | 2);
        (self.sent, self.given, self.taken) = (0, 0, 0);
        self.store(TCTL, 1 << 1 | 1 << 3);
        // On, every address, the check sequence stripped.
        self.store(RCTL, 1 << 1 | 1 << 3 | 1 << 4 | 1 << 15 | 1 << 26);
        for _ in 1..ENTRIES {
            self.give();
        }
    }

    /// Vectors 0 and 1 for what queue 0 receives and has sent.
    pub(super) fn vectors(&mut self) {
        self.store(0x1514, 1 << 4);
        self.store(IVAR, 0x8180);
        self.store(0x1524, 3);
    }

    /// Polls until there is nothing to do.
    pub(super) fn poll(&mut self) {
        for _ in 0..10_000 {
            if self.poll_once() != Progress::Worked {
                return;
            }
        }
        panic!("the port is never done");
    }

    pub(super) fn poll_once(&mut self) -> Progress {
        let bus = Bus::new(&self.session, &self.wires);
        self.model.poll(&bus).expect("pages are there")
    }

    /// A store to a trapped page.
    pub(super) fn store(&mut self, register: u64, value: u32) {
        self.store_bytes(register, &value.to_le_bytes());
    }

    pub(super) fn store_bytes(&mut self, register: u64, bytes: &[u8]) {
        let bus = Bus::new(&self.session, &self.wires);
        self.model.store(&bus, 0, register, bytes).expect("pages are there");
    }

    /// A store to a shared page.
    pub(super) fn share(&self, register: u64, value: u32) {
        self.pages.store_u32(register, value).expect("mapped");
    }

    /// A load of a trapped page.
    pub(super) fn load(&mut self, register: u64) -> u32 {
        let bus = Bus::new(&self.session, &self.wires);
        let mut bytes = [0; 4];
        self.model.load(&bus, 0, register, &mut bytes).expect("pages are there");
        u32::from_le_bytes(bytes)
    }

    pub(super) fn power_on(&mut self) {
        self.model.reset(&Bus::new(&self.session, &self.wires)).expect("pages are there");
    }

    /// Gives the next receive descriptor, with the buffer that is its own.
    pub(super) fn give(&mut self) {
        let index = u64::from(self.given % ENTRIES);
        let buffer = BUFFERS + 2048 * index;
        self.memory.put(RECEIVE_RING + 16 * index, &[buffer.to_le_bytes(), [0; 8]].concat());
        self.given += 1;
        self.share(receive(0) + 0x18, self.given % ENTRIES);
    }

    /// The next frame that was received whole in one descriptor: status and bytes.
    pub(super) fn take(&mut self) -> Option<(u32, Vec<u8>)> {
        let index = u64::from(self.taken % ENTRIES);
        let back = self.memory.get(RECEIVE_RING + 16 * index, 16);
        let status = u32::from_le_bytes(back[8..12].try_into().expect("four"));
        if status & 1 == 0 || self.taken == self.given {
            return None;
        }
        let length = u16::from_le_bytes([back[12], back[13]]);
        self.taken += 1;
        Some((status, self.memory.get(BUFFERS + 2048 * index, length.into())))
    }

    /// The numbers of the frames that came.
    pub(super) fn take_numbers(&mut self) -> Vec<u8> {
        std::iter::from_fn(|| self.take()).map(|(_, frame)| frame[11]).collect()
    }

    /// Puts a transmit descriptor in, without telling.
    pub(super) fn describe(&mut self, low: u64, command: u32, status: u32) {
        let at = TRANSMIT_RING + 16 * u64::from(self.sent % ENTRIES);
        let words = [command.to_le_bytes(), status.to_le_bytes()].concat();
        self.memory.put(at, &[&low.to_le_bytes()[..], &words].concat());
        self.sent += 1;
    }

    pub(super) fn ring_transmit(&self) {
        self.share(transmit(0) + 0x18, self.sent % ENTRIES);
    }

    /// Sends a frame from one descriptor.
    pub(super) fn send(&mut self, frame: &[u8]) {
        let at = DATA + 0x1000 * u64::from(self.sent % ENTRIES);
        self.memory.put(at, frame);
        let length = u32::try_from(frame.len()).expect("short");
        self.describe(at, WHOLE | length, length << 14);
        self.ring_transmit();
    }

    pub(super) fn raised(&self) -> Vec<u16> {
        std::mem::take(&mut self.interrupts.raised.lock())
    }
}

/// A frame that is no other.
pub(super) fn frame(to: [u8; 6], number: u8, length: usize) -> Vec<u8> {
    let mut frame = to.to_vec();
    frame.extend([2, 0, 0, 0, 0, number, 0x88, 0xb5]);
    frame.extend((14..length).map(|at| at.to_le_bytes()[0] ^ number));
    frame
}

pub(super) const SOMEBODY: [u8; 6] = [0x02, 1, 2, 3, 4, 5];
