//! Interrupts: what SET_IRQS sets up, and where a function's interrupts go.
//!
//! A message is one load of a list and one write to an eventfd. The pin is a level: it is masked when it is heard,
//! and heard again when it is unmasked while still asserted. Linux: `drivers/vfio/pci/vfio_pci_intrs.c`.

mod pin;
mod set;

use std::sync::Arc;

use arc_swap::ArcSwap;
use ioasis_pci::{Function, Irq, IrqMode, Line};
use ioasis_sys::eventfd::EventFd;
use ioasis_sys::sync::Mutex;
use ioasis_uapi::vfio;

use crate::watch::Watch;
use pin::Pin;

/// The interrupts of one device.
#[derive(Debug)]
pub(crate) struct Interrupts {
    /// One SET_IRQS at a time.
    gate: Mutex<Gate>,
    /// The eventfds of MSI or MSI-X; empty while neither is enabled. Changed under `gate`.
    messages: ArcSwap<Messages>,
    /// A leaf.
    pin: Arc<Pin>,
}

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

impl Interrupts {
    /// None enabled.
    pub(crate) fn new() -> Self {
        Self {
            gate: Mutex::new(Gate::default()),
            messages: ArcSwap::from_pointee(Messages::new()),
            pin: Arc::new(Pin::default()),
        }
    }

    /// The number of interrupts at `index`: none for one that does not exist.
    pub(crate) fn count(function: &Function, index: u32) -> u32 {
        let vectors = function.vectors();
        match index {
            vfio::PCI_INTX_IRQ_INDEX => u32::from(vectors.intx),
            vfio::PCI_MSI_IRQ_INDEX => vectors.msi.into(),
            vfio::PCI_MSIX_IRQ_INDEX => vectors.msix.into(),
            // Every function here is PCI Express, so it can report errors.
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
        for trigger in self.removal_triggers() {
            trigger.signal();
        }
    }
}

impl Irq for Interrupts {
    fn raise(&self, vector: u16) {
        let messages = self.messages.load();
        if let Some(Some(trigger)) = messages.get(usize::from(vector)) {
            trigger.signal();
        }
    }

    fn set_line(&self, line: Line) {
        self.pin.set_line(line);
    }
}
