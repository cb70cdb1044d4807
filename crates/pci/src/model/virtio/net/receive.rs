//! Packets that come in (5.1.6.3, 5.1.6.4).
//!
//! Buffers of the driver are taken in batches and kept until a packet needs them. Packets are
//! written in one transfer for all of a turn; where that fails, chain by chain, and a chain that
//! cannot be written goes back with length 0.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::super::queue::{Chain, Queue, TAKE_MAX, length, part};
use super::super::{Stop, Stopped};
use super::{Card, MRG_RXBUF, of, receive_queue};
use crate::bus::{Bus, Segment};
use crate::model::net::Backend;

/// Packets of a turn.
const TURN: usize = 64;
/// How long a packet that comes when it comes waits for a buffer.
const PATIENCE: Duration = Duration::from_millis(100);

/// What is kept between turns.
#[derive(Debug)]
pub(super) struct Receiver {
    /// Buffers taken from the queue of each pair.
    held: Vec<VecDeque<Chain>>,
    /// The driver has given buffers.
    ready: bool,
    /// A packet that waits for buffers, and since when.
    waiting: Option<(Vec<u8>, Instant)>,
    taken: Vec<Chain>,
    turn: Turn,
}

/// What a turn is to write.
#[derive(Debug, Default)]
struct Turn {
    segments: Vec<Segment>,
    bytes: Vec<u8>,
    chains: Vec<Filled>,
}

/// A chain with the bytes that are for it.
#[derive(Debug)]
struct Filled {
    pair: u16,
    head: u16,
    /// Where its segments and bytes begin in the turn's.
    segments: usize,
    bytes: usize,
    length: usize,
}

/// What becomes of a packet.
enum Fate {
    /// It is in the driver's buffers, or is nobody's.
    Gone,
    /// There are not enough buffers.
    Waits,
}

impl Receiver {
    pub(super) fn new(pairs: u16) -> Self {
        let held = (0..pairs).map(|_| VecDeque::new()).collect();
        Self { held, ready: false, waiting: None, taken: Vec::new(), turn: Turn::default() }
    }

    /// Whether a packet waits that is dropped after a while.
    pub(super) fn is_patient(&self, backend: &dyn Backend) -> bool {
        self.waiting.is_some() && !backend.waits()
    }

    /// Queue `index` was reset: its buffers are the driver's again.
    pub(super) fn forget(&mut self, index: u16) {
        if index.is_multiple_of(2)
            && let Some(held) = self.held.get_mut(usize::from(index / 2))
        {
            held.clear();
        }
    }
}

impl Card {
    /// Moves packets into buffers; answers whether there was anything to do.
    pub(super) fn receive(&mut self, bus: &Bus<'_>, queues: &mut [Queue]) -> Stopped<bool> {
        self.receiver.ready |= (0..self.pairs).any(|pair| queues[receive_queue(pair)].kicked);
        if self.backend.waits() && !self.receiver.ready {
            return Ok(false);
        }
        let mut moved = 0;
        let mut packet = Vec::new();
        while moved < TURN {
            let since = match self.receiver.waiting.take() {
                Some((waiting, since)) => {
                    packet = waiting;
                    since
                }
                None if self.backend.receive(&mut packet) => Instant::now(),
                None => break,
            };
            match self.place(bus, queues, &packet)? {
                Fate::Gone => moved += 1,
                Fate::Waits if since.elapsed() > PATIENCE && !self.backend.waits() => moved += 1,
                Fate::Waits => {
                    self.receiver.waiting = Some((packet, since));
                    break;
                }
            }
        }
        self.write(bus, queues)?;
        Ok(moved > 0)
    }

    /// Puts a packet into buffers of its queue.
    fn place(&mut self, bus: &Bus<'_>, queues: &mut [Queue], packet: &[u8]) -> Stopped<Fate> {
        let pair = steer(packet, self.active);
        let index = receive_queue(pair);
        if packet.len() > super::PACKET_MAX || !self.filter.takes(packet) || !queues[index].enabled
        {
            return Ok(Fate::Gone);
        }
        let header = self.header();
        let needed = (header + packet.len()) as u64;
        let mergeable = self.has(MRG_RXBUF);
        let (mut count, mut room) = (0, 0);
        while room < needed {
            if count == self.receiver.held[usize::from(pair)].len()
                && !self.refill(bus, pair, &mut queues[index]).map_err(of(index))?
            {
                return Ok(Fate::Waits);
            }
            room += length(self.receiver.held[usize::from(pair)][count].writable());
            count += 1;
            if !mergeable {
                break;
            }
        }
        if room < needed {
            // A buffer that is too short stays for a shorter packet.
            return Ok(Fate::Gone);
        }
        let mut bytes = vec![0; header];
        if header == 12 {
            let buffers = u16::try_from(count).expect("a queue at most");
            bytes[10..].copy_from_slice(&buffers.to_le_bytes());
        }
        bytes.extend_from_slice(packet);
        let mut rest = &bytes[..];
        for chain in self.receiver.held[usize::from(pair)].drain(..count) {
            let room = usize::try_from(length(chain.writable())).unwrap_or(usize::MAX);
            let (now, after) = rest.split_at(rest.len().min(room));
            let turn = &mut self.receiver.turn;
            turn.chains.push(Filled {
                pair,
                head: chain.head,
                segments: turn.segments.len(),
                bytes: turn.bytes.len(),
                length: now.len(),
            });
            turn.segments.extend(part(chain.writable(), 0, now.len() as u64));
            turn.bytes.extend_from_slice(now);
            rest = after;
        }
        Ok(Fate::Gone)
    }

    /// Takes more buffers of a queue; answers whether there were any.
    fn refill(&mut self, bus: &Bus<'_>, pair: u16, queue: &mut Queue) -> Result<bool, Stop> {
        let taken = &mut self.receiver.taken;
        taken.clear();
        while queue.kicked && queue.take(bus, TAKE_MAX, taken)? == 0 {
            queue.rest(bus)?;
        }
        let any = !taken.is_empty();
        self.receiver.held[usize::from(pair)].extend(taken.drain(..));
        Ok(any)
    }

    /// Writes what was placed, and gives the buffers back.
    fn write(&mut self, bus: &Bus<'_>, queues: &mut [Queue]) -> Stopped<()> {
        let mut turn = std::mem::take(&mut self.receiver.turn);
        if turn.chains.is_empty() {
            self.receiver.turn = turn;
            return Ok(());
        }
        let all = bus.write(&turn.segments, &turn.bytes).is_ok();
        for (at, filled) in turn.chains.iter().enumerate() {
            let end = turn.chains.get(at + 1).map_or(turn.segments.len(), |next| next.segments);
            let segments = &turn.segments[filled.segments..end];
            let bytes = &turn.bytes[filled.bytes..filled.bytes + filled.length];
            let written = all || bus.write(segments, bytes).is_ok();
            let length = if written { filled.length } else { 0 };
            let length = u32::try_from(length).expect("a packet at most");
            queues[receive_queue(filled.pair)].put(filled.head, length);
        }
        for pair in 0..self.pairs {
            let index = receive_queue(pair);
            queues[index].publish(bus).map_err(of(index))?;
        }
        turn.segments.clear();
        turn.bytes.clear();
        turn.chains.clear();
        self.receiver.turn = turn;
        Ok(())
    }
}

/// The pair for a packet: the same for all packets of a flow, which an IPv4 or IPv6 packet tells by
/// addresses and ports.
fn steer(packet: &[u8], pairs: u16) -> u16 {
    if pairs == 1 {
        return 0;
    }
    let flow = match packet.get(12..14) {
        // Ethernet types; addresses and ports follow each other in a header without options.
        Some([0x08, 0x00]) => packet.get(26..38),
        Some([0x86, 0xdd]) => packet.get(22..58),
        _ => None,
    };
    let hash = flow
        .unwrap_or_default()
        .iter()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    u16::try_from((hash >> 16) % u32::from(pairs)).expect("fewer than there are pairs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_a_flow_go_to_one_pair_and_flows_to_all_of_them() {
        let packet = |port: u16, payload: u8| {
            let mut packet = vec![0; 60];
            packet[12] = 8;
            packet[34..36].copy_from_slice(&port.to_be_bytes());
            packet[50] = payload;
            packet
        };
        let mut used = [0; 4];
        for port in 0..256 {
            let pair = steer(&packet(port, 0), 4);
            assert_eq!(steer(&packet(port, 1), 4), pair);
            used[usize::from(pair)] += 1;
        }
        assert!(used.iter().all(|count| *count > 20), "{used:?}");
        assert_eq!(steer(&[0; 14], 4), steer(&[1; 20], 4), "what is no IP is one flow");
    }
}
