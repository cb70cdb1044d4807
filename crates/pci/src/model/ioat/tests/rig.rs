//! A driver's side of the engine: memory, registers, and an engine that is polled by hand.

use std::sync::Arc;

use ioasis_sys::mapping::Mapping;

use crate::bus::{Bus, Dma, Irq, Session, Wires};
use crate::fake::{Interrupts, Memory, Told};
use crate::gate::Permissions;
use crate::model::ioat::descriptor::Descriptor;
use crate::model::ioat::registers::{
    CHAINADDR, CHANCMD, CHANCMP, CHANCTRL, CHANERR, CHANSTS, DMACOUNT, INTRCTRL,
};
use crate::model::{Model, Progress, create};
use crate::refusal::Witness;

/// Where the fake memory begins, and how much there is.
pub(super) const MEMORY: u64 = 0x10_0000;
pub(super) const MEMORY_BYTES: usize = 4 << 20;
/// Reads work here and writes fault.
pub(super) const READ_ONLY: u64 = MEMORY + (3 << 20);
/// Where descriptors, the completion and data go.
pub(super) const RING: u64 = MEMORY;
pub(super) const COMPLETION: u64 = MEMORY + 0x1_0000;
pub(super) const DATA: u64 = MEMORY + (1 << 20);

/// An engine, and a driver for it.
#[derive(Debug)]
pub(super) struct Rig {
    model: Box<dyn Model>,
    pub(super) memory: Arc<Memory>,
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) pages: Arc<Mapping>,
    session: Session,
    wires: Wires,
}

impl Rig {
    /// An engine after power-on, bus mastering on.
    pub(super) fn new(options: &[(&str, &str)]) -> Self {
        let owned: Vec<_> =
            options.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let mut model = create("ioat", &owned).expect("good options");
        let pages = Arc::new(Mapping::anonymous(16 << 10).expect("memory"));
        let memory = Arc::new(Memory::new(MEMORY, MEMORY_BYTES));
        memory.set_read_only_from(READ_ONLY);
        let interrupts = Arc::new(Interrupts::default());
        let session = Session {
            dma: Arc::clone(&memory) as Arc<dyn Dma>,
            irq: Arc::clone(&interrupts) as Arc<dyn Irq>,
            witness: Arc::new(Told::default()) as Arc<dyn Witness>,
            pages: [Some(Arc::clone(&pages)), None, None, None, None, None],
            doorbells: None,
        };
        let wires = Wires::new(&model.description());
        wires.gate.set(Permissions { master: true, memory: true, ..Permissions::default() });
        model.reset(&Bus::new(&session, &wires)).expect("pages are there");
        Self { model, memory, interrupts, pages, session, wires }
    }

    /// An engine that was reset, with interrupts on and a completion address.
    pub(super) fn ready(options: &[(&str, &str)]) -> Self {
        let mut rig = Self::new(options);
        rig.store(INTRCTRL, &[8]);
        rig.store(CHANCMP, &COMPLETION.to_le_bytes());
        rig
    }

    /// Polls until there is nothing to do.
    pub(super) fn poll(&mut self) {
        while self.poll_once() == Progress::Worked {}
    }

    pub(super) fn poll_once(&mut self) -> Progress {
        let bus = Bus::new(&self.session, &self.wires);
        self.model.poll(&bus).expect("pages are there")
    }

    /// A store of a program that is trapped.
    pub(super) fn store(&mut self, register: usize, bytes: &[u8]) {
        let bus = Bus::new(&self.session, &self.wires);
        self.model.store(&bus, 0, register as u64, bytes).expect("pages are there");
    }

    /// A load by a system call; what a mapped load gives must agree.
    pub(super) fn load<const N: usize>(&mut self, register: usize) -> [u8; N] {
        let bus = Bus::new(&self.session, &self.wires);
        let mut bytes = [0; N];
        self.model.load(&bus, 0, register as u64, &mut bytes).expect("pages are there");
        let mut mapped = [0; N];
        self.pages.read(register as u64, &mut mapped).expect("pages are there");
        assert_eq!(bytes, mapped, "the page at {register:#x} shows what a load gives");
        bytes
    }

    pub(super) fn status(&mut self) -> u64 {
        u64::from_le_bytes(self.load(CHANSTS))
    }

    pub(super) fn errors(&mut self) -> u32 {
        u32::from_le_bytes(self.load(CHANERR))
    }

    /// What was written to the completion address last.
    pub(super) fn completion(&self) -> u64 {
        let bytes = self.memory.get(COMPLETION, 8);
        u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
    }

    /// What happens when a program opens the device, and at each function reset.
    pub(super) fn power_on(&mut self) {
        self.model.reset(&Bus::new(&self.session, &self.wires)).expect("pages are there");
    }

    pub(super) fn reset(&mut self) {
        self.store(CHANCMD, &[0x20]);
    }

    pub(super) fn suspend(&mut self) {
        self.store(CHANCMD, &[0x04]);
    }

    pub(super) fn arm(&mut self, address: u64) {
        self.store(CHAINADDR, &address.to_le_bytes());
    }

    pub(super) fn count(&mut self, count: u16) {
        self.store(DMACOUNT, &count.to_le_bytes());
    }

    pub(super) fn control(&mut self, bits: u16) {
        self.store(CHANCTRL, &bits.to_le_bytes());
    }

    /// Puts descriptors into a ring that begins at [`RING`], each linked to the next and the last
    /// to the first.
    pub(super) fn chain(&self, descriptors: &[Descriptor]) {
        for (index, descriptor) in descriptors.iter().enumerate() {
            let next = slot((index + 1) % descriptors.len());
            let linked = Descriptor { next, ..*descriptor };
            self.memory.put(slot(index), &linked.encode());
        }
    }

    /// Arms the ring and does all of these.
    pub(super) fn run(&mut self, descriptors: &[Descriptor]) {
        self.chain(descriptors);
        self.arm(RING);
        self.count(u16::try_from(descriptors.len()).expect("few"));
        self.poll();
    }

    pub(super) fn raised(&self) -> usize {
        std::mem::take(&mut *self.interrupts.raised.lock()).len()
    }
}

/// Where descriptor `index` of the ring lies.
pub(super) fn slot(index: usize) -> u64 {
    RING + 64 * index as u64
}

/// A copy that asks for nothing else.
pub(super) fn copy(source: u64, destination: u64, length: u32) -> Descriptor {
    Descriptor { length, source, destination, ..Descriptor::default() }
}
