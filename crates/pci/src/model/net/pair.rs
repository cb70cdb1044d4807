//! Two cards of a run that are connected with each other.
//!
//! Lock order: `WIRES` -> `Wire::ends`; an end's alarm is rung after its lock is released.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use ioasis_sys::sync::Mutex;

use super::{Backend, Packets, WAITING_MAX};
use crate::alarm::Alarm;
use crate::model::options::ModelError;

/// The wires there are, by name.
static WIRES: Mutex<BTreeMap<String, Weak<Wire>>> = Mutex::new(BTreeMap::new());

#[derive(Debug, Default)]
struct Wire {
    ends: [Mutex<Side>; 2],
}

/// What an end of a wire has.
#[derive(Debug, Default)]
struct Side {
    taken: bool,
    running: bool,
    /// Packets that came for it.
    packets: Packets,
    /// Buffers of packets that it received, to be used again.
    spare: Vec<Vec<u8>>,
    alarm: Option<Alarm>,
}

/// One end of a wire.
#[derive(Debug)]
pub(super) struct End {
    wire: Arc<Wire>,
    side: usize,
}

impl End {
    /// An end of the wire `name` that is not taken.
    pub(super) fn open(model: &str, name: &str) -> Result<Self, ModelError> {
        let mut wires = WIRES.lock();
        wires.retain(|_, wire| wire.strong_count() > 0);
        let wire = match wires.get(name).and_then(Weak::upgrade) {
            Some(wire) => wire,
            None => {
                let wire = Arc::new(Wire::default());
                wires.insert(name.to_owned(), Arc::downgrade(&wire));
                wire
            }
        };
        let free = (0..2).find(|side| !std::mem::replace(&mut wire.ends[*side].lock().taken, true));
        match free {
            Some(side) => Ok(Self { wire, side }),
            None => Err(ModelError::new(format!(
                "{model}: pair={name} is not accepted; two cards have that name already"
            ))),
        }
    }

    fn own(&self) -> &Mutex<Side> {
        &self.wire.ends[self.side]
    }

    fn other(&self) -> &Mutex<Side> {
        &self.wire.ends[1 - self.side]
    }
}

fn ring(alarm: Option<Alarm>) {
    if let Some(alarm) = alarm {
        alarm.ring();
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut own = self.own().lock();
        *own = Side::default();
    }
}

impl Backend for End {
    fn room(&self) -> usize {
        WAITING_MAX - self.other().lock().packets.len()
    }

    fn send(&mut self, packet: &[u8]) {
        let alarm = {
            let mut other = self.other().lock();
            if !other.running {
                return;
            }
            let mut copy = other.spare.pop().unwrap_or_default();
            copy.clear();
            copy.extend_from_slice(packet);
            other.packets.push_back(copy);
            if other.packets.len() == 1 { other.alarm.clone() } else { None }
        };
        ring(alarm);
    }

    fn receive(&mut self, packet: &mut Vec<u8>) -> bool {
        let was_full = {
            let mut own = self.own().lock();
            let was_full = own.packets.len() == WAITING_MAX;
            let Some(next) = own.packets.pop_front() else { return false };
            let used = std::mem::replace(packet, next);
            if used.capacity() > 0 && own.spare.len() < WAITING_MAX {
                own.spare.push(used);
            }
            was_full
        };
        if was_full {
            // Whoever sent waits for room.
            let alarm = self.other().lock().alarm.clone();
            ring(alarm);
        }
        true
    }

    fn is_up(&self) -> bool {
        self.other().lock().taken
    }

    fn set_running(&mut self, running: bool) {
        {
            let mut own = self.own().lock();
            own.running = running;
            own.packets.clear();
        }
        let alarm = self.other().lock().alarm.clone();
        ring(alarm);
    }

    fn attach(&mut self, alarm: Alarm) {
        self.own().lock().alarm = Some(alarm);
    }
}
