//! What a person sees of a device's interrupts.

use std::sync::atomic::Ordering;
use std::time::Duration;

use ioasis_pci::Function;

use super::{Interrupts, Mode};

/// Interrupts of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IrqLook {
    /// Which kind SET_IRQS enabled: intx, msi or msix.
    pub enabled: Option<&'static str>,
    /// Those of that kind, by number.
    pub vectors: Vec<VectorLook>,
    /// The error eventfd.
    pub error: VectorLook,
    /// The request eventfd.
    pub request: VectorLook,
}

/// One interrupt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VectorLook {
    /// It has an eventfd.
    pub is_armed: bool,
    /// That was signalled and not read since.
    pub is_unread: bool,
    /// It is masked; not known while the device opens or closes.
    pub is_masked: Option<bool>,
    /// It waits to be sent, or the line is asserted.
    pub is_pending: Option<bool>,
    /// How often the eventfd was signalled.
    pub count: u64,
}

/// How long a look waits for a call that changes interrupts.
const PATIENCE: Duration = Duration::from_millis(200);

impl Interrupts {
    /// What there is; `None` while a call changes it for longer than a look waits.
    pub(crate) fn look(&self, function: &Function) -> Option<IrqLook> {
        let gate = self.gate.try_lock_for(PATIENCE)?;
        let single = |eventfd: Option<&_>, count: u64| VectorLook {
            is_armed: eventfd.is_some(),
            is_unread: eventfd.is_some_and(ioasis_sys::eventfd::EventFd::is_signalled),
            count,
            ..VectorLook::default()
        };
        let error = single(gate.error.as_deref(), self.counts.error.load(Ordering::Relaxed));
        let request = single(gate.request.as_deref(), self.counts.request.load(Ordering::Relaxed));
        let mode = gate.mode;
        drop(gate);
        let (enabled, vectors) = match mode {
            Mode::Off => (None, Vec::new()),
            Mode::Intx => {
                let count = self.counts.intx.load(Ordering::Relaxed);
                (Some("intx"), vec![VectorLook { count, ..self.pin.look() }])
            }
            Mode::Msi => (Some("msi"), self.messages(None)),
            Mode::Msix => (Some("msix"), self.messages(function.vector_states())),
        };
        Some(IrqLook { enabled, vectors, error, request })
    }

    /// The messages that are enabled; `states` has of each whether it is masked, and pending.
    fn messages(&self, states: Option<Vec<(bool, bool)>>) -> Vec<VectorLook> {
        let messages = self.messages.load();
        let look = |(vector, eventfd): (usize, &Option<_>)| {
            let eventfd: Option<&std::sync::Arc<ioasis_sys::eventfd::EventFd>> = eventfd.as_ref();
            let state = states.as_ref().and_then(|states| states.get(vector));
            let count = self.counts.messages.get(vector);
            VectorLook {
                is_armed: eventfd.is_some(),
                is_unread: eventfd.is_some_and(|eventfd| eventfd.is_signalled()),
                is_masked: state.map(|&(masked, _)| masked),
                is_pending: state.map(|&(_, pending)| pending),
                count: count.map_or(0, |count| count.load(Ordering::Relaxed)),
            }
        };
        messages.iter().enumerate().map(look).collect()
    }
}
