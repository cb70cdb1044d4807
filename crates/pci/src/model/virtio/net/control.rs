//! The control queue (5.1.6.5): a class, a command and its data to read, an acknowledgement to
//! write.

use super::super::Stop;
use super::super::queue::{Chain, Queue, TAKE_MAX, Wrong, length, part};
use super::{CTRL_MAC_ADDR, CTRL_RX, Card, MQ};
use crate::bus::{Bus, Segment};

const ACK_OK: u8 = 0;
const ACK_ERROR: u8 = 1;

const RX: u8 = 0;
const RX_PROMISCUOUS: u8 = 0;
const RX_ALL_GROUPS: u8 = 1;
const ADDRESSES: u8 = 1;
const TABLE_SET: u8 = 0;
const ADDRESS_SET: u8 = 1;
const QUEUE_PAIRS: u8 = 4;
const PAIRS_SET: u8 = 0;

/// Bytes of a command at most: tables with some thousand addresses.
const COMMAND_MAX: u64 = 16 << 10;

impl Card {
    /// Does the commands there are, a batch at most.
    pub(super) fn control(&mut self, bus: &Bus<'_>, queue: &mut Queue) -> Result<(), Stop> {
        let mut chains = Vec::new();
        if queue.take(bus, TAKE_MAX, &mut chains)? == 0 {
            queue.rest(bus)?;
            return Ok(());
        }
        for chain in &chains {
            self.command(bus, chain)?;
            queue.put(chain.head, 1);
        }
        queue.publish(bus)
    }

    fn command(&mut self, bus: &Bus<'_>, chain: &Chain) -> Result<(), Stop> {
        let head = u64::from(chain.head);
        let bytes = length(chain.readable());
        if bytes > COMMAND_MAX {
            return Err(Wrong { why: "a command is longer than 16 KiB", value: bytes }.into());
        }
        let Some(last) = chain.writable().last() else {
            return Err(Wrong { why: "a command has no acknowledgement", value: head }.into());
        };
        let last = Segment { iova: last.iova + last.length as u64 - 1, length: 1 };
        let mut command = vec![0; usize::try_from(bytes).expect("16 KiB at most")];
        let read = bus.read(&part(chain.readable(), 0, bytes), &mut command);
        let done = read.is_ok() && self.obey(&command).is_some();
        Ok(bus.write(&[last], &[if done { ACK_OK } else { ACK_ERROR }])?)
    }

    /// Does a command; `None` when it is none of ours, or was not negotiated.
    fn obey(&mut self, command: &[u8]) -> Option<()> {
        let (&[class, what], data) = command.split_first_chunk()?;
        match (class, what) {
            (RX, RX_PROMISCUOUS) if self.has(CTRL_RX) => {
                self.filter.promiscuous = *data.first()? != 0;
            }
            (RX, RX_ALL_GROUPS) if self.has(CTRL_RX) => {
                self.filter.all_groups = *data.first()? != 0;
            }
            (ADDRESSES, TABLE_SET) if self.has(CTRL_RX) => self.filter.set_tables(data)?,
            (ADDRESSES, ADDRESS_SET) if self.has(CTRL_MAC_ADDR) => {
                self.filter.own = *data.first_chunk()?;
                self.asked = true;
            }
            (QUEUE_PAIRS, PAIRS_SET) if self.has(MQ) => {
                let pairs = u16::from_le_bytes(*data.first_chunk()?);
                if !(1..=self.pairs).contains(&pairs) {
                    return None;
                }
                self.active = pairs;
            }
            _ => return None,
        }
        Some(())
    }
}
