//! What the cable of a network card leads to, whatever the card is.

mod files;
mod pair;
mod stream;

use std::collections::VecDeque;
use std::fmt::Debug;

use crate::alarm::Alarm;
use crate::model::options::{ModelError, Options};

/// Packets that wait, oldest first.
type Packets = VecDeque<Vec<u8>>;

/// Bytes of a packet at most.
const PACKET_MAX: usize = 0xffff;
/// Packets that wait in one direction at most.
const WAITING_MAX: usize = 512;

/// The other end of a card.
pub(in crate::model) trait Backend: Debug + Send {
    /// How many packets it takes now.
    fn room(&self) -> usize {
        WAITING_MAX
    }

    /// Takes a packet.
    fn send(&mut self, packet: &[u8]);

    /// Puts the next packet for the card into `packet`, if there is one.
    fn receive(&mut self, packet: &mut Vec<u8>) -> bool;

    /// Whether the cable leads somewhere.
    fn is_up(&self) -> bool {
        true
    }

    /// Whether its packets keep until the driver has given buffers, rather than come when they come:
    /// none of them is dropped.
    fn waits(&self) -> bool {
        false
    }

    /// Whether packets come without the alarm's ringing, so that they must be looked for.
    fn is_silent(&self) -> bool {
        false
    }

    /// The driver runs, or does not: what comes while it does not is lost.
    fn set_running(&mut self, running: bool);

    /// What wakes the card's thread.
    fn attach(&mut self, alarm: Alarm) {
        let _ = alarm;
    }

    /// A turn is over.
    fn settle(&mut self) {}
}

/// What the options ask for.
pub(in crate::model) fn open(options: &Options<'_>) -> Result<Box<dyn Backend>, ModelError> {
    let model = options.model();
    let files = options.text("rx").is_some() || options.text("tx").is_some();
    let loops = options.switch("loop")?;
    let wanted = [
        (loops, "loop"),
        (files, "rx and tx"),
        (options.text("pair").is_some(), "pair"),
        (options.text("stream").is_some(), "stream"),
    ];
    let wanted: Vec<&str> = wanted.iter().filter(|(is, _)| *is).map(|(_, name)| *name).collect();
    if wanted.len() > 1 {
        let list = wanted.join(" and ");
        return Err(ModelError::new(format!("{model}: {list} exclude each other")));
    }
    if let Some(name) = options.text("pair") {
        return match name.is_empty() {
            true => Err(options.refuse("pair")),
            false => Ok(Box::new(pair::End::open(model, name)?)),
        };
    }
    if let Some(path) = options.text("stream") {
        return Ok(Box::new(stream::Stream::connect(model, path)?));
    }
    if files {
        return Ok(Box::new(files::Files::open(model, options.text("rx"), options.text("tx"))?));
    }
    let packets = Packets::new();
    Ok(if loops { Box::new(Loop { packets }) } else { Box::new(Nothing) })
}

/// A cable that leads nowhere.
#[derive(Debug)]
struct Nothing;

impl Backend for Nothing {
    fn send(&mut self, _packet: &[u8]) {}

    fn receive(&mut self, _packet: &mut Vec<u8>) -> bool {
        false
    }

    fn is_up(&self) -> bool {
        false
    }

    fn set_running(&mut self, _running: bool) {}
}

/// A plug that gives back what it is sent.
#[derive(Debug)]
struct Loop {
    packets: Packets,
}

impl Backend for Loop {
    fn room(&self) -> usize {
        WAITING_MAX - self.packets.len()
    }

    fn send(&mut self, packet: &[u8]) {
        self.packets.push_back(packet.to_vec());
    }

    fn receive(&mut self, packet: &mut Vec<u8>) -> bool {
        let next = self.packets.pop_front();
        next.map(|next| *packet = next).is_some()
    }

    fn set_running(&mut self, _running: bool) {
        self.packets.clear();
    }
}
