//! What a model sees of the machine: DMA through its IOMMU, interrupts, and the memory of its BAR pages.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ioasis_sys::mapping::Mapping;

use crate::alarm::Alarm;
use crate::description::{BARS, Description};
use crate::gate::Gate;
use crate::msix::Msix;
use crate::refusal::{Closed, Refusal, Way, Witness};

/// One piece of a scattered transfer, by the address the device puts on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// I/O virtual address.
    pub iova: u64,
    /// Bytes.
    pub length: usize,
}

/// A transfer that the IOMMU, or the memory behind it, refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaFault {
    /// The first address that could not be reached.
    pub iova: u64,
}

/// Memory as this device reaches it. Every call translates anew; nothing is remembered between two calls.
pub trait Dma: Debug + Send + Sync {
    /// Fills `buf` from `segments`, one after another; their lengths add up to `buf.len()`.
    ///
    /// # Errors
    ///
    /// The first address that faulted; bytes before it may have been copied.
    fn read(&self, segments: &[Segment], buf: &mut [u8]) -> Result<(), DmaFault>;

    /// Writes `buf` to `segments`, one after another; their lengths add up to `buf.len()`.
    ///
    /// # Errors
    ///
    /// The first address that faulted; bytes before it may have been written.
    fn write(&self, segments: &[Segment], buf: &[u8]) -> Result<(), DmaFault>;

    /// [`read`](Self::read), with a PASID that is not 0. Without an IOMMU that knows PASIDs, nothing is reached.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    fn read_with_pasid(
        &self,
        pasid: u32,
        segments: &[Segment],
        buf: &mut [u8],
    ) -> Result<(), DmaFault> {
        let _ = (pasid, buf);
        Err(first(segments))
    }

    /// [`write`](Self::write), with a PASID that is not 0.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    fn write_with_pasid(
        &self,
        pasid: u32,
        segments: &[Segment],
        buf: &[u8],
    ) -> Result<(), DmaFault> {
        let _ = (pasid, buf);
        Err(first(segments))
    }

    /// Does `stop`, which waits for the device to finish what it does. Transfers that wait for the program meanwhile, because it
    /// should give a page, fail instead: it may be the program that waits.
    fn without_waiting(&self, stop: &mut dyn FnMut()) {
        stop();
    }
}

/// A fault at the first address of all.
fn first(segments: &[Segment]) -> DmaFault {
    DmaFault { iova: segments.first().map_or(0, |segment| segment.iova) }
}

/// The level of the interrupt pin (INTA), which a device holds until its cause is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// The device asks for service.
    Asserted,
    /// It does not.
    Deasserted,
}

/// Whether somebody heard an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Somebody did.
    Yes,
    /// Nobody did: no handler, or a mask.
    No,
}

/// Interrupts as this device raises them. Which kind is enabled, and whether a vector is masked, is not the
/// model's business: it raises its message and keeps its pin at the right level, and one of them is heard.
pub trait Irq: Debug + Send + Sync {
    /// Sends the message of MSI or MSI-X vector `vector`; dropped while neither kind is enabled.
    fn raise(&self, vector: u16) -> Heard;

    /// The pin changed its level. Heard only while INTx is enabled and neither masked nor disabled; the level is
    /// to be remembered, because unmasking a pin that is still asserted signals again.
    fn set_line(&self, line: Line);
}

/// What programs have mapped of a device's BAR pages, as far as it can tell of stores. Only the device's thread calls what
/// is not [`Doorbells::wake`].
pub trait Doorbells: Debug + Send + Sync {
    /// From now on the next store to a page ends [`Doorbells::wait`], and has not happened before
    /// [`Doorbells::release`]. False where somebody could store without that: nothing has changed then, and the pages
    /// must be looked at again and again.
    fn watch(&self) -> bool;

    /// Waits for a store or for a wake; false when there was none for so long.
    fn wait(&self, limit: Duration) -> bool;

    /// Ends what [`Doorbells::watch`] began.
    fn release(&self);

    /// Ends the wait of now, or the next one if `watch` has begun.
    fn wake(&self);
}

/// What a function is given for the time between the first open and the last close of its device file.
#[derive(Clone, Debug)]
pub struct Session {
    /// Its way to memory.
    pub dma: Arc<dyn Dma>,
    /// Its way to interrupt.
    pub irq: Arc<dyn Irq>,
    /// Who is told of what it could not do.
    pub witness: Arc<dyn Witness>,
    /// A mapping for every BAR that has mappable ranges, from offset 0 of the BAR to the end of its last mappable
    /// range at least, shared with the program.
    pub pages: [Option<Arc<Mapping>>; BARS],
    /// What tells of stores to them; without it they are looked at again and again.
    pub doorbells: Option<Arc<dyn Doorbells>>,
}

/// What stands between a model and the bus.
#[derive(Debug)]
pub(crate) struct Wires {
    /// What configuration space lets through.
    pub(crate) gate: Gate,
    /// The level of the interrupt pin.
    pub(crate) line: AtomicBool,
    pub(crate) msix: Msix,
    /// The device stands still for migration. Set under the lock of the model.
    pub(crate) stopped: AtomicBool,
    /// Its physical function was reset while it was at work: it sends nothing until whoever has the
    /// model next has reset it too.
    pub(crate) reset_due: AtomicBool,
    /// What wakes the thread that polls the model.
    pub(crate) alarm: Alarm,
}

impl Wires {
    pub(crate) fn new(description: &Description) -> Self {
        let (gate, line) = (Gate::default(), AtomicBool::new(false));
        let (stopped, reset_due) = (AtomicBool::new(false), AtomicBool::new(false));
        let (msix, alarm) = (Msix::new(description), Alarm::default());
        Self { gate, line, msix, stopped, reset_due, alarm }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Whether it sends nothing, whatever COMMAND says.
    fn is_quiet(&self) -> bool {
        self.is_stopped() || self.reset_due.load(Ordering::Acquire)
    }

    /// Whether a message that waits for its vector could be sent.
    pub(crate) fn may_send(&self) -> bool {
        self.gate.may_send() && !self.is_quiet()
    }

    /// Why the device sends nothing; `None` when it may.
    fn silence(&self) -> Option<Closed> {
        if !self.gate.may_master() {
            return Some(self.gate.silence());
        }
        self.is_quiet().then_some(Closed::Stopped)
    }
}

/// The bus as a model sees it during one call.
#[derive(Debug)]
pub struct Bus<'a> {
    session: &'a Session,
    wires: &'a Wires,
}

impl<'a> Bus<'a> {
    pub(crate) fn new(session: &'a Session, wires: &'a Wires) -> Self {
        Self { session, wires }
    }

    /// Fills `buf` from `segments`; see [`Dma::read`].
    ///
    /// # Errors
    ///
    /// The first address that faulted: the first of all while bus mastering is off.
    pub fn read(&self, segments: &[Segment], buf: &mut [u8]) -> Result<(), DmaFault> {
        self.admit(Way::Read, segments)?;
        self.session.dma.read(segments, buf)
    }

    /// Writes `buf` to `segments`; see [`Dma::write`].
    ///
    /// # Errors
    ///
    /// The first address that faulted: the first of all while bus mastering is off.
    pub fn write(&self, segments: &[Segment], buf: &[u8]) -> Result<(), DmaFault> {
        self.admit(Way::Write, segments)?;
        self.session.dma.write(segments, buf)
    }

    /// [`read`](Self::read), with a PASID; 0 is none.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn read_with_pasid(
        &self,
        pasid: u32,
        segments: &[Segment],
        buf: &mut [u8],
    ) -> Result<(), DmaFault> {
        if pasid == 0 {
            return self.read(segments, buf);
        }
        self.admit(Way::Read, segments)?;
        self.session.dma.read_with_pasid(pasid, segments, buf)
    }

    /// [`write`](Self::write), with a PASID; 0 is none.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub fn write_with_pasid(
        &self,
        pasid: u32,
        segments: &[Segment],
        buf: &[u8],
    ) -> Result<(), DmaFault> {
        if pasid == 0 {
            return self.write(segments, buf);
        }
        self.admit(Way::Write, segments)?;
        self.session.dma.write_with_pasid(pasid, segments, buf)
    }

    fn admit(&self, way: Way, segments: &[Segment]) -> Result<(), DmaFault> {
        let Some(closed) = self.wires.silence() else { return Ok(()) };
        let fault = first(segments);
        self.tell(&Refusal::Dma { way, iova: fault.iova, closed });
        Err(fault)
    }

    /// Tells people what the device could not do. The program learns it from the device's registers.
    pub fn tell(&self, refusal: &Refusal) {
        self.session.witness.refused(refusal);
    }

    /// The device is no more: it is removed, as one that is pulled out of its slot. Returns before that is done. `why` is for
    /// people.
    pub fn vanish(&self, why: &str) {
        self.session.witness.vanished(why);
    }

    /// Sends the message of MSI or MSI-X vector `vector`; a message is a memory write, so none is sent while bus
    /// mastering is off. That of a masked MSI-X vector is pending until it is unmasked, and that of a device which is
    /// stopped until it goes on.
    pub fn raise(&self, vector: u16) {
        let Wires { gate, msix, .. } = self.wires;
        match self.wires.silence() {
            None => msix.raise(self.session, vector, gate.vectors_masked()),
            Some(Closed::Stopped) if msix.is_enabled() => msix.raise(self.session, vector, true),
            Some(closed) => self.tell(&Refusal::Message { vector, closed }),
        }
    }

    /// What wakes the device's thread; good as long as the model.
    #[must_use]
    pub fn alarm(&self) -> Alarm {
        self.wires.alarm.clone()
    }

    /// Whether MSI-X is enabled.
    #[must_use]
    pub fn has_msix(&self) -> bool {
        self.wires.msix.is_enabled()
    }

    /// Whether the message of some MSI-X vector is pending.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        self.wires.msix.is_waiting()
    }

    /// Takes back the message of MSI-X vector `vector` if it is pending: its cause is gone. One that was sent stays sent.
    pub fn withdraw(&self, vector: u16) {
        self.wires.msix.withdraw(self.session, vector);
    }

    /// Sets the level of the interrupt pin; free when it does not change. A device that is stopped asks for nothing, and
    /// says so when it goes on.
    pub fn set_line(&self, line: Line) {
        let asserted = line == Line::Asserted;
        if asserted && self.wires.is_quiet() {
            return;
        }
        if self.wires.line.swap(asserted, Ordering::AcqRel) != asserted {
            self.session.irq.set_line(line);
        }
    }

    /// The memory of BAR `bar`'s mappable ranges, by offset in the BAR. The program writes there at any time.
    ///
    /// # Panics
    ///
    /// If the BAR has no mappable range.
    #[must_use]
    pub fn pages(&self, bar: usize) -> &Mapping {
        let pages = self.session.pages[bar].as_deref();
        pages.expect("a BAR with mappable ranges has pages")
    }
}
