//! Interrupts: what SET_IRQS sets up, and where a function's interrupts go.
//!
//! A message is one load of a list and one write to an eventfd. The pin is a level: it is masked
//! when it is heard, and heard again when it is unmasked while still asserted. Linux:
//! `drivers/vfio/pci/vfio_pci_intrs.c`.

mod look;
mod pin;
mod set;

use std::fmt::{self, Debug};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use ioasis_pci::{Function, Heard, Irq, IrqMode, Line, Refusal, Witness};
use ioasis_sys::eventfd::EventFd;
use ioasis_sys::sync::Mutex;
use ioasis_uapi::vfio;

use crate::watch::Watch;
pub use look::{IrqLook, VectorLook};
use pin::Pin;

/// Which interrupt a device sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptKind {
    /// The line interrupt.
    Intx,
    /// A message.
    Msi,
    /// A message of the MSI-X table.
    Msix,
    /// The error eventfd.
    Error,
    /// The request eventfd: the device is wanted back.
    Request,
}

/// Is told what devices do by themselves, by their own threads.
pub trait DeviceWatcher: Debug + Send + Sync {
    /// The device called `device` signalled one of the program's eventfds.
    fn interrupt(&self, device: &str, kind: InterruptKind, vector: u16);

    /// It was reset.
    fn reset(&self, device: &str);

    /// It could not do something, for another reason than a translation.
    fn refused(&self, device: &str, refusal: &Refusal);
}

/// The interrupts of one device.
pub(crate) struct Interrupts {
    /// One SET_IRQS at a time.
    gate: Mutex<Gate>,
    /// The eventfds of MSI or MSI-X; empty while neither is enabled. Changed under `gate`.
    messages: ArcSwap<Messages>,
    /// Whether those are of MSI-X. Changed under `gate`, before `messages` are.
    msix: AtomicBool,
    /// A leaf.
    pin: Arc<Pin>,
    /// What removes the device; used once.
    removal: OnceLock<Removal>,
    vanished: AtomicBool,
    /// Who is told, and the device's name.
    watcher: OnceLock<(String, Arc<dyn DeviceWatcher>)>,
    counts: Counts,
}

/// How often eventfds of the program were signalled since the device was made.
#[derive(Debug, Default)]
struct Counts {
    intx: AtomicU64,
    /// By vector, of MSI and MSI-X.
    messages: Box<[AtomicU64]>,
    error: AtomicU64,
    request: AtomicU64,
}

/// Removes a device for the reason in words.
pub(crate) type Removal = Box<dyn Fn(&str) + Send + Sync>;

type Messages = Vec<Option<Arc<EventFd>>>;

#[derive(Debug, Default)]
struct Gate {
    mode: Mode,
    /// INTx: an eventfd of the program that unmasks it.
    unmask: Option<Watch>,
    error: Option<Arc<EventFd>>,
    request: Option<Arc<EventFd>>,
}

/// The kind of interrupt that is enabled, by its index in the interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Off,
    Intx,
    Msi,
    Msix,
}

impl Mode {
    fn index(self) -> Option<u32> {
        match self {
            Self::Off => None,
            Self::Intx => Some(vfio::PCI_INTX_IRQ_INDEX),
            Self::Msi => Some(vfio::PCI_MSI_IRQ_INDEX),
            Self::Msix => Some(vfio::PCI_MSIX_IRQ_INDEX),
        }
    }
}

impl Debug for Interrupts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interrupts").field("gate", &self.gate).finish_non_exhaustive()
    }
}

impl Interrupts {
    /// None enabled.
    pub(crate) fn new(function: &Function) -> Self {
        let vectors = function.vectors();
        let messages = (0..vectors.msi.max(vectors.msix)).map(|_| AtomicU64::new(0)).collect();
        Self {
            counts: Counts { messages, ..Counts::default() },
            gate: Mutex::new(Gate::default()),
            messages: ArcSwap::from_pointee(Messages::new()),
            msix: AtomicBool::new(false),
            pin: Arc::new(Pin::default()),
            removal: OnceLock::new(),
            vanished: AtomicBool::new(false),
            watcher: OnceLock::new(),
        }
    }

    /// Has `removal` called, on a thread of its own, when the device is no more.
    pub(crate) fn remove_by(&self, removal: Removal) {
        assert!(self.removal.set(removal).is_ok(), "one removes it");
    }

    /// The device that is no more is another one now.
    pub(crate) fn forget_removal(&self) {
        self.vanished.store(false, Ordering::Release);
    }

    /// Tells `watcher` from now on what the device called `name` does.
    pub(crate) fn watch(&self, name: &str, watcher: Arc<dyn DeviceWatcher>) {
        assert!(self.watcher.set((name.to_owned(), watcher)).is_ok(), "one watcher is told");
    }

    fn told(&self, kind: InterruptKind, vector: u16) {
        if let Some((name, watcher)) = self.watcher.get() {
            watcher.interrupt(name, kind, vector);
        }
    }

    /// The device was reset.
    pub(crate) fn told_reset(&self) {
        if let Some((name, watcher)) = self.watcher.get() {
            watcher.reset(name);
        }
    }

    /// The number of interrupts at `index`: none for one that does not exist.
    pub(crate) fn count(function: &Function, index: u32) -> u32 {
        let vectors = function.vectors();
        match index {
            vfio::PCI_INTX_IRQ_INDEX => u32::from(vectors.intx),
            vfio::PCI_MSI_IRQ_INDEX => vectors.msi.into(),
            vfio::PCI_MSIX_IRQ_INDEX => vectors.msix.into(),
            // In Linux 7.2 of PCI Express functions only, which all of these are.
            vfio::PCI_ERR_IRQ_INDEX | vfio::PCI_REQ_IRQ_INDEX => 1,
            _ => 0,
        }
    }

    /// The command register may have changed its INTx-disable bit.
    pub(crate) fn command_changed(&self, function: &Function) {
        self.pin.set_disabled(function.intx_disabled());
    }

    /// Takes everything down: the device file is closed.
    pub(crate) fn close(&self, function: &Function) {
        let mut gate = self.gate.lock();
        let old = std::mem::take(&mut *gate);
        self.messages.store(Arc::default());
        self.pin.close();
        function.set_irq_mode(IrqMode::Off);
        drop(gate);
        drop(old);
    }

    /// The eventfds that tell a program its device is going away.
    pub(crate) fn removal_triggers(&self) -> Vec<Arc<EventFd>> {
        let gate = self.gate.lock();
        gate.request.iter().chain(&gate.error).cloned().collect()
    }

    /// Fires them.
    pub(crate) fn signal_removal(&self) {
        let _unheard = self.signal_request();
        let _unheard = self.signal_error();
    }

    /// Fires the eventfd by which the device is wanted back.
    pub(crate) fn signal_request(&self) -> Heard {
        let request = self.gate.lock().request.clone();
        self.fire(request, InterruptKind::Request, &self.counts.request)
    }

    /// Fires the eventfd for errors.
    pub(crate) fn signal_error(&self) -> Heard {
        let error = self.gate.lock().error.clone();
        self.fire(error, InterruptKind::Error, &self.counts.error)
    }

    fn fire(&self, trigger: Option<Arc<EventFd>>, kind: InterruptKind, count: &AtomicU64) -> Heard {
        let Some(trigger) = trigger else { return Heard::No };
        trigger.signal();
        count.fetch_add(1, Ordering::Relaxed);
        self.told(kind, 0);
        Heard::Yes
    }
}

impl Witness for Interrupts {
    fn refused(&self, refusal: &Refusal) {
        // A message that nobody asked for is not missed.
        if matches!(refusal, Refusal::Message { .. }) && self.messages.load().is_empty() {
            return;
        }
        if let Some((name, watcher)) = self.watcher.get() {
            watcher.refused(name, refusal);
        }
    }

    fn vanished(&self, why: &str) {
        if let Some(removal) = self.removal.get()
            && !self.vanished.swap(true, Ordering::AcqRel)
        {
            removal(why);
        }
    }
}

impl Irq for Interrupts {
    fn raise(&self, vector: u16) -> Heard {
        let messages = self.messages.load();
        let Some(Some(trigger)) = messages.get(usize::from(vector)) else { return Heard::No };
        trigger.signal();
        if let Some(count) = self.counts.messages.get(usize::from(vector)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let msix = self.msix.load(Ordering::Relaxed);
        self.told(if msix { InterruptKind::Msix } else { InterruptKind::Msi }, vector);
        Heard::Yes
    }

    fn set_line(&self, line: Line) {
        if self.pin.set_line(line) == Heard::Yes {
            self.counts.intx.fetch_add(1, Ordering::Relaxed);
            self.told(InterruptKind::Intx, 0);
        }
    }
}
