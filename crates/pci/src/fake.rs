//! A program's memory and interrupts, and a model that is polled by hand: for tests of models, here
//! and elsewhere.
//!
//! [`Rig`] is a bus without a run. The test is the program: it stores to the model's pages, polls, and looks at memory and
//! at what was raised. Nothing happens between two polls, so that a test is exact.
//!
//! ```
//! use ioasis_pci::fake::Rig;
//!
//! // testdev copies 4 KiB from memory at ADDR into itself when CMD becomes 3.
//! const MEMORY: u64 = 0x10_0000;
//! let mut rig = Rig::new(ioasis_pci::create("testdev", &[])?, MEMORY, 0x4000);
//! rig.memory.put(MEMORY + 0x1000, b"bytes of the program");
//! rig.pages(0).store_u64(0, MEMORY + 0x1000)?;
//! rig.pages(0).store_u32(8, 3)?;
//! rig.poll();
//! assert_eq!(rig.pages(0).load_u32(8), Ok(0), "done, and nothing faulted");
//! assert_eq!(rig.raised(), [0]);
//!
//! // Past the end of memory it faults, and says where.
//! rig.pages(0).store_u64(0, MEMORY + 0x3800)?;
//! rig.pages(0).store_u32(8, 1)?;
//! rig.poll();
//! assert_eq!(rig.pages(0).load_u32(8)? >> 31, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use std::sync::Arc;

use ioasis_sys::mapping::Mapping;
use ioasis_sys::sync::Mutex;

use crate::bus::{Bus, Dma, DmaFault, Heard, Irq, Line, Segment, Session, Wires};
use crate::description::BARS;
use crate::gate::Permissions;
use crate::migration::{Reader, Writer};
use crate::model::{Model, Progress};
use crate::msix::Handler;
use crate::refusal::{Refusal, Witness};

/// Memory that begins somewhere and ends somewhere; its tail may be read-only.
#[derive(Debug)]
pub struct Memory {
    start: u64,
    read_only: AtomicU64,
    bytes: Mutex<Vec<u8>>,
    /// What other address spaces hold, by PASID.
    pasids: Mutex<BTreeMap<u32, Arc<Memory>>>,
}

impl Memory {
    /// `length` zeroes from address `start` on.
    #[must_use]
    pub fn new(start: u64, length: usize) -> Self {
        let bytes = Mutex::new(vec![0; length]);
        let pasids = Mutex::default();
        Self { start, read_only: AtomicU64::new(u64::MAX), bytes, pasids }
    }

    /// Memory of another address space, which is reached with `pasid`: `length` zeroes from address `start` on.
    #[must_use]
    pub fn with_pasid(&self, pasid: u32, start: u64, length: usize) -> Arc<Self> {
        let memory = Arc::new(Self::new(start, length));
        self.pasids.lock().insert(pasid, Arc::clone(&memory));
        memory
    }

    /// What is reached with `pasid`; a fault where there is no such address space.
    fn space(&self, pasid: u32, segments: &[Segment]) -> Result<Arc<Self>, DmaFault> {
        let found = self.pasids.lock().get(&pasid).cloned();
        found.ok_or(DmaFault { iova: segments.first().map_or(0, |segment| segment.iova) })
    }

    /// From here on writes fault.
    pub fn set_read_only_from(&self, iova: u64) {
        self.read_only.store(iova, Ordering::SeqCst);
    }

    fn range(&self, segment: Segment) -> Result<Range<usize>, DmaFault> {
        let fault = DmaFault { iova: segment.iova };
        let start = segment.iova.checked_sub(self.start).ok_or(fault)?;
        let start = usize::try_from(start).map_err(|_| fault)?;
        let all = self.bytes.lock().len();
        let end = start.checked_add(segment.length).filter(|&end| end <= all).ok_or(fault)?;
        Ok(start..end)
    }

    /// Stores as the program does.
    ///
    /// # Panics
    ///
    /// If there is no such memory.
    pub fn put(&self, iova: u64, bytes: &[u8]) {
        let range = self.range(Segment { iova, length: bytes.len() }).expect("in memory");
        self.bytes.lock()[range].copy_from_slice(bytes);
    }

    /// Loads as the program does.
    ///
    /// # Panics
    ///
    /// If there is no such memory.
    #[must_use]
    pub fn get(&self, iova: u64, length: usize) -> Vec<u8> {
        let range = self.range(Segment { iova, length }).expect("in memory");
        self.bytes.lock()[range].to_vec()
    }
}

impl Dma for Memory {
    fn read(&self, segments: &[Segment], buf: &mut [u8]) -> Result<(), DmaFault> {
        let mut rest = buf;
        for &segment in segments {
            let range = self.range(segment)?;
            let (piece, after) = rest.split_at_mut(segment.length);
            piece.copy_from_slice(&self.bytes.lock()[range]);
            rest = after;
        }
        assert!(rest.is_empty(), "lengths add up");
        Ok(())
    }

    fn write(&self, segments: &[Segment], buf: &[u8]) -> Result<(), DmaFault> {
        let mut rest = buf;
        let read_only = self.read_only.load(Ordering::SeqCst);
        for &segment in segments {
            let range = self.range(segment)?;
            if segment.iova + segment.length as u64 > read_only {
                return Err(DmaFault { iova: segment.iova.max(read_only) });
            }
            let (piece, after) = rest.split_at(segment.length);
            self.bytes.lock()[range].copy_from_slice(piece);
            rest = after;
        }
        assert!(rest.is_empty(), "lengths add up");
        Ok(())
    }

    fn read_with_pasid(
        &self,
        pasid: u32,
        segments: &[Segment],
        buf: &mut [u8],
    ) -> Result<(), DmaFault> {
        self.space(pasid, segments)?.read(segments, buf)
    }

    fn write_with_pasid(
        &self,
        pasid: u32,
        segments: &[Segment],
        buf: &[u8],
    ) -> Result<(), DmaFault> {
        self.space(pasid, segments)?.write(segments, buf)
    }
}

/// What was raised, and the level of the pin.
#[derive(Debug, Default)]
pub struct Interrupts {
    /// The vectors, in the order in which they were raised.
    pub raised: Mutex<Vec<u16>>,
    /// The level of the pin.
    pub asserted: AtomicBool,
    /// Nobody hears a message.
    pub deaf: AtomicBool,
}

/// What it was told, as the trace says it.
#[derive(Debug, Default)]
pub struct Told(
    /// In the order in which they were told.
    pub Mutex<Vec<Refusal>>,
);

impl Told {
    /// All of it, once.
    #[must_use]
    pub fn take(&self) -> Vec<Refusal> {
        std::mem::take(&mut self.0.lock())
    }
}

impl Witness for Told {
    fn refused(&self, refusal: &Refusal) {
        self.0.lock().push(*refusal);
    }
}

impl Irq for Interrupts {
    fn raise(&self, vector: u16) -> Heard {
        if self.deaf.load(Ordering::SeqCst) {
            return Heard::No;
        }
        self.raised.lock().push(vector);
        Heard::Yes
    }

    fn set_line(&self, line: Line) {
        self.asserted.store(line == Line::Asserted, Ordering::SeqCst);
    }
}

/// A model with a bus of its own, polled by hand. It may be a bus master, and its memory answers.
#[derive(Debug)]
pub struct Rig {
    model: Box<dyn Model>,
    /// What its DMA reaches.
    pub memory: Arc<Memory>,
    /// What it raised.
    pub interrupts: Arc<Interrupts>,
    /// What it told.
    pub told: Arc<Told>,
    session: Session,
    wires: Wires,
}

impl Rig {
    /// `model` after a reset, with `length` bytes of memory from address `start` on.
    ///
    /// # Panics
    ///
    /// If the model describes a function that cannot exist, or there is no memory for its pages.
    #[must_use]
    pub fn new(model: Box<dyn Model>, start: u64, length: usize) -> Self {
        let description = model.description();
        description.check();
        let mut pages = [const { None }; BARS];
        for (pages, bar) in pages.iter_mut().zip(&description.bars) {
            if let Some(end) = bar.as_ref().and_then(crate::Bar::mappable_end) {
                let bytes = usize::try_from(end).expect("an address space holds it");
                *pages = Some(Arc::new(Mapping::anonymous(bytes).expect("memory")));
            }
        }
        let memory = Arc::new(Memory::new(start, length));
        let (interrupts, told) = (Arc::new(Interrupts::default()), Arc::new(Told::default()));
        let dma: Arc<dyn Dma> = Arc::<Memory>::clone(&memory);
        let irq: Arc<dyn Irq> = Arc::<Interrupts>::clone(&interrupts);
        let witness: Arc<dyn Witness> = Arc::<Told>::clone(&told);
        let session = Session { dma, irq, witness, pages, doorbells: None };
        let wires = Wires::new(&description);
        let mut rig = Self { model, memory, interrupts, told, session, wires };
        rig.set_master(true);
        rig.reset();
        rig
    }

    /// Lets the device do DMA and send messages, or keeps it from that.
    pub fn set_master(&self, master: bool) {
        let on = Permissions { memory: true, io: true, ..Permissions::default() };
        self.wires.gate.set(Permissions { master, ..on });
    }

    /// Enables MSI-X, every vector with a handler.
    pub fn enable_msix(&self) {
        self.wires.msix.set_enabled(Some(&self.session), true);
        for vector in 0..self.model.description().vectors.msix {
            self.wires.msix.set_handler(&self.session, vector, Handler::Present, true);
        }
    }

    /// Resets the model.
    ///
    /// # Panics
    ///
    /// If it fails.
    pub fn reset(&mut self) {
        let bus = Bus::new(&self.session, &self.wires);
        self.model.reset(&bus).expect("pages are there");
        bus.set_line(Line::Deasserted);
    }

    /// Polls until there is nothing to do.
    ///
    /// # Panics
    ///
    /// If there is something to do after a million polls, or a poll fails.
    pub fn poll(&mut self) {
        for _ in 0..1_000_000 {
            if self.poll_once() != Progress::Worked {
                return;
            }
        }
        panic!("the model never rests");
    }

    /// The state of a model that migrates.
    ///
    /// # Panics
    ///
    /// If it does not, or cannot be saved.
    pub fn save(&mut self) -> Vec<u8> {
        let bus = Bus::new(&self.session, &self.wires);
        let mut state = Writer::default();
        let migration = self.model.migration().expect("a model that migrates");
        migration.save(&bus, &mut state).expect("pages are there");
        state.into_bytes()
    }

    /// Has the model take a state of its own version over.
    ///
    /// # Errors
    ///
    /// As [`Migration::load`](crate::migration::Migration::load).
    ///
    /// # Panics
    ///
    /// If the model does not migrate.
    pub fn load_state(&mut self, state: &[u8]) -> ioasis_uapi::Result<()> {
        let bus = Bus::new(&self.session, &self.wires);
        let migration = self.model.migration().expect("a model that migrates");
        let version = migration.version();
        migration.load(&bus, version, &mut Reader::new(state))
    }

    /// What a model does that goes on after it was loaded.
    ///
    /// # Panics
    ///
    /// If it does not migrate.
    pub fn remind(&mut self) {
        let bus = Bus::new(&self.session, &self.wires);
        let migration = self.model.migration().expect("a model that migrates");
        migration.remind(&bus).expect("pages are there");
    }

    /// Polls once.
    ///
    /// # Panics
    ///
    /// If that fails.
    pub fn poll_once(&mut self) -> Progress {
        let bus = Bus::new(&self.session, &self.wires);
        self.model.poll(&bus).expect("pages are there")
    }

    /// A load that the model answers.
    ///
    /// # Panics
    ///
    /// If it fails.
    pub fn load(&mut self, bar: usize, offset: u64, bytes: &mut [u8]) {
        let bus = Bus::new(&self.session, &self.wires);
        self.model.load(&bus, bar, offset, bytes).expect("pages are there");
    }

    /// A store that the model acts on.
    ///
    /// # Panics
    ///
    /// If it fails.
    pub fn store(&mut self, bar: usize, offset: u64, bytes: &[u8]) {
        let bus = Bus::new(&self.session, &self.wires);
        self.model.store(&bus, bar, offset, bytes).expect("pages are there");
    }

    /// The pages of a BAR.
    ///
    /// # Panics
    ///
    /// If none of its pages can be mapped.
    #[must_use]
    pub fn pages(&self, bar: usize) -> &Mapping {
        self.session.pages[bar].as_deref().expect("a BAR with mappable pages")
    }

    /// The vectors raised since this was last asked.
    #[must_use]
    pub fn raised(&self) -> Vec<u16> {
        std::mem::take(&mut self.interrupts.raised.lock())
    }
}
