//! The interrupt pin: a level that is heard once and then masked.

use std::sync::Arc;

use ioasis_pci::{Heard, Line};
use ioasis_sys::eventfd::EventFd;
use ioasis_sys::sync::Mutex;

use super::look::VectorLook;

/// INTx of one device.
#[derive(Debug, Default)]
pub(crate) struct Pin(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// SET_IRQS enabled INTx.
    active: bool,
    trigger: Option<Arc<EventFd>>,
    /// The device holds its line.
    asserted: bool,
    masked: bool,
    /// The command register disables INTx.
    disabled: bool,
}

impl State {
    /// Signals the program, unless the command register says not to.
    fn send(&self) -> Heard {
        match &self.trigger {
            Some(trigger) if self.active && !self.disabled => {
                trigger.signal();
                Heard::Yes
            }
            _ => Heard::No,
        }
    }

    /// What the interrupt controller does with a line: the first assertion masks it and is heard.
    fn hear(&mut self) -> Heard {
        if self.active && self.asserted && !self.masked && !self.disabled {
            self.masked = true;
            return self.send();
        }
        Heard::No
    }

    /// A line still asserted is heard again at once, and stays masked.
    fn unmask(&mut self) {
        if self.masked && !self.disabled {
            self.masked = false;
            self.hear();
        }
    }
}

impl Pin {
    /// INTx is enabled, masked if the command register disables it.
    pub(super) fn enable(&self, trigger: Option<Arc<EventFd>>) {
        let mut state = self.0.lock();
        state.active = true;
        state.trigger = trigger;
        state.masked = state.disabled;
        state.hear();
    }

    pub(super) fn disable(&self) {
        let mut state = self.0.lock();
        state.active = false;
        state.masked = false;
        state.trigger = None;
    }

    /// What a person sees of it.
    pub(super) fn look(&self) -> VectorLook {
        let state = self.0.lock();
        VectorLook {
            is_armed: state.trigger.is_some(),
            is_unread: state.trigger.as_ref().is_some_and(|trigger| trigger.is_signalled()),
            is_masked: Some(state.masked),
            is_pending: Some(state.asserted),
            count: 0,
        }
    }

    /// The device file is closed: nothing of its user stays.
    pub(super) fn close(&self) {
        *self.0.lock() = State::default();
    }

    pub(super) fn set_trigger(&self, trigger: Option<Arc<EventFd>>) {
        self.0.lock().trigger = trigger;
    }

    pub(super) fn mask(&self) {
        self.0.lock().masked = true;
    }

    pub(super) fn unmask(&self) {
        self.0.lock().unmask();
    }

    /// Signals without the device: a program testing its loop.
    pub(super) fn loop_back(&self) {
        self.0.lock().send();
    }

    pub(super) fn set_line(&self, line: Line) -> Heard {
        let mut state = self.0.lock();
        state.asserted = line == Line::Asserted;
        state.hear()
    }

    pub(super) fn set_disabled(&self, disabled: bool) {
        let mut state = self.0.lock();
        if state.disabled == disabled {
            return;
        }
        state.disabled = disabled;
        if disabled {
            state.masked = true;
        } else {
            state.unmask();
        }
    }
}
