//! Packets that the driver sends (5.1.6.2).

use super::super::Stop;
use super::super::queue::{Queue, TAKE_MAX, Wrong, length};
use super::{Card, PACKET_MAX};
use crate::bus::{Bus, Segment};

impl Card {
    /// Sends a batch, as much as the other end takes; answers whether there was anything to do.
    pub(super) fn transmit(&mut self, bus: &Bus<'_>, queue: &mut Queue) -> Result<bool, Stop> {
        let room = u16::try_from(self.backend.room()).unwrap_or(TAKE_MAX);
        if room == 0 {
            return Ok(false);
        }
        let mut chains = std::mem::take(&mut self.chains);
        chains.clear();
        let taken = queue.take(bus, room, &mut chains);
        let done = taken.and_then(|count| {
            if count == 0 {
                return queue.rest(bus);
            }
            let lengths: Vec<usize> = chains
                .iter()
                .map(|chain| packet_length(length(chain.readable())))
                .collect::<Result<_, _>>()?;
            self.buffer.resize(lengths.iter().sum(), 0);
            let segments: Vec<Segment> =
                chains.iter().flat_map(|chain| chain.readable()).copied().collect();
            let all = bus.read(&segments, &mut self.buffer).is_ok();
            let header = self.header();
            let mut rest = &mut self.buffer[..];
            for (chain, length) in chains.iter().zip(lengths) {
                let (packet, after) = rest.split_at_mut(length);
                // What cannot be read is dropped, as a card drops what it cannot fetch.
                if (all || bus.read(chain.readable(), packet).is_ok()) && length > header {
                    self.backend.send(&packet[header..]);
                }
                queue.put(chain.head, 0);
                rest = after;
            }
            queue.publish(bus)?;
            Ok(true)
        });
        self.chains = chains;
        done
    }
}

fn packet_length(bytes: u64) -> Result<usize, Wrong> {
    let found = usize::try_from(bytes).ok().filter(|bytes| *bytes <= PACKET_MAX + 12);
    found.ok_or(Wrong { why: "a packet is longer than 65535 bytes", value: bytes })
}
