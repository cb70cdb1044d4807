//! Reception (82576 data sheet, 7.1).

use std::time::{Duration, Instant};

use ioasis_uapi::Result;

use super::Igb;
use super::frame;
use super::registers::{
    BAR, CTRL, CTRL_VLAN, MTA, RCTL, RCTL_BROADCAST, RCTL_BUFFER_SHIFT, RCTL_ENABLE, RCTL_LONG,
    RCTL_MULTICAST, RCTL_OFFSET_SHIFT, RCTL_STRIP_CRC, RCTL_UNICAST, RCTL_VLAN_FILTER, RLPML, VFTA,
};
use super::ring::{DESCRIPTOR, SPLIT};
use crate::bus::{Bus, Segment};
use crate::model::Progress;

/// RAL 0 and the others behind it, and the second lot of them (8.10.14).
pub(super) const ADDRESSES: u64 = 0x5400;
const MORE_ADDRESSES: u64 = 0x54e0;
/// RAH: the address counts.
pub(super) const ADDRESS_VALID: u32 = 1 << 31;

/// How long a frame waits for a buffer before it is lost: whoever sent it waits behind it.
const PATIENCE: Duration = Duration::from_millis(100);
/// Frames that one poll takes at most.
const FRAMES_PER_POLL: usize = 64;
/// Bytes of the longest frame without RCTL.LPE, tag and check sequence included.
const LONGEST: usize = 1522;
const CHECK: usize = 4;
/// The queue that frames come to.
const QUEUE: usize = 0;

/// SRRCTL, 8.10.2: KiB of a buffer, the kind of descriptor, and that frames without one are
/// dropped.
const BUFFER_MASK: u32 = 0x7f;
const KIND_SHIFT: u32 = 25;
const KIND_LEGACY: u32 = 0;
const DROPS: u32 = 1 << 31;

// Status of a received frame, 7.1.5: done, its end, and that a tag was taken out of it.
const DONE: u32 = 1 << 0;
const END: u32 = 1 << 1;
const IGNORE_CHECKSUM: u32 = 1 << 2;
const HAD_TAG: u32 = 1 << 3;

impl Igb {
    /// Takes what came by the cable.
    pub(super) fn receive(&mut self, bus: &Bus<'_>) -> Result<Progress> {
        let mut progress = Progress::Idle;
        for _ in 0..FRAMES_PER_POLL {
            let (since, frame) = match self.coming.take() {
                Some(waiting) => waiting,
                None => {
                    let mut frame = Vec::new();
                    if !self.backend.receive(&mut frame) {
                        break;
                    }
                    (Instant::now(), frame)
                }
            };
            if self.loops_back() {
                // The cable is off.
                continue;
            }
            if !self.deliver(bus, frame.clone())? {
                if since.elapsed() < PATIENCE || self.backend.waits() {
                    self.coming = Some((since, frame));
                    break;
                }
                self.statistics.missed();
            }
            progress = Progress::Worked;
        }
        let waits = self.coming.is_some() && !self.backend.waits();
        Ok(match progress {
            Progress::Idle if waits || self.backend.is_silent() => Progress::Waits,
            other => other,
        })
    }

    /// Brings a frame to memory; false when it has to wait for room.
    pub(super) fn deliver(&mut self, bus: &Bus<'_>, mut frame: Vec<u8>) -> Result<bool> {
        let control = self.registers.get(RCTL);
        if control & RCTL_ENABLE == 0 || !self.is_wanted(bus, &frame, control)? {
            return Ok(true);
        }
        let longest = match control & RCTL_LONG != 0 {
            true => bus.pages(BAR).load_u32(RLPML)? as usize,
            false => LONGEST,
        };
        if frame.len() + CHECK > longest {
            self.statistics.oversize();
            return Ok(true);
        }
        let ring = self.receive[QUEUE].registers;
        let split = bus.pages(BAR).load_u32(ring + SPLIT)?;
        let counted = frame.clone();
        let strips = self.registers.get(CTRL) & CTRL_VLAN != 0;
        let tag = if strips { frame::take_tag(&mut frame) } else { None };
        if control & RCTL_STRIP_CRC == 0 {
            frame.extend(frame::check_sequence(&counted));
        }
        let size = buffer_bytes(control, split);
        let needed = frame.len().div_ceil(size).max(1) as u64;
        if self.receive[QUEUE].waiting() < needed {
            let drops = split & DROPS != 0;
            if drops {
                self.statistics.no_buffer();
                self.statistics.missed();
            }
            return Ok(drops);
        }
        let kind = split >> KIND_SHIFT & 7;
        for (index, piece) in frame.chunks(size).enumerate() {
            let last = index as u64 + 1 == needed;
            if !self.fill(bus, index as u64, piece, &Report { kind, last, tag }) {
                return Ok(true);
            }
        }
        self.receive[QUEUE].advance(bus.pages(BAR), needed)?;
        self.statistics.received(&counted);
        self.interrupts.received(QUEUE);
        Ok(true)
    }

    /// Fills the buffer of one descriptor and writes that back.
    fn fill(&mut self, bus: &Bus<'_>, ahead: u64, piece: &[u8], report: &Report) -> bool {
        let ring = &mut self.receive[QUEUE];
        let Some(descriptor) = ring.descriptor(bus, ahead) else { return false };
        let iova = u64::from_le_bytes(descriptor[..8].try_into().expect("eight"));
        if bus.write(&[Segment { iova, length: piece.len() }], piece).is_err() {
            ring.stop();
            return false;
        }
        let written = report.encode(&descriptor, piece.len());
        // What announces the frame is in the second half: it goes last.
        ring.write(bus, ahead, 0, &written[..8]) && ring.write(bus, ahead, 8, &written[8..])
    }

    /// Whether the filters let a frame through (7.1.2).
    fn is_wanted(&self, bus: &Bus<'_>, frame: &[u8], control: u32) -> Result<bool> {
        let Some(to) = frame.get(..6) else { return Ok(false) };
        let to: [u8; 6] = to.try_into().expect("six");
        let pages = bus.pages(BAR);
        if control & RCTL_VLAN_FILTER != 0
            && let Some(tag) = frame::tag(frame)
        {
            let number = u64::from(tag & 0xfff);
            if pages.load_u32(VFTA + number / 32 * 4)? >> (number % 32) & 1 == 0 {
                return Ok(false);
            }
        }
        if to == [0xff; 6] {
            return Ok(control & RCTL_BROADCAST != 0);
        }
        let promiscuous = if to[0] & 1 != 0 { RCTL_MULTICAST } else { RCTL_UNICAST };
        if control & promiscuous != 0 || self.is_own(bus, to)? {
            return Ok(true);
        }
        if to[0] & 1 == 0 {
            return Ok(false);
        }
        // 8.10.13: twelve bits of the address, from which on RCTL.MO says.
        let shift = [4, 3, 2, 0][(control >> RCTL_OFFSET_SHIFT & 3) as usize];
        let hash = u64::from(u16::from_le_bytes([to[4], to[5]])) >> shift & 0xfff;
        Ok(pages.load_u32(MTA + hash / 32 * 4)? >> (hash % 32) & 1 != 0)
    }

    fn is_own(&self, bus: &Bus<'_>, to: [u8; 6]) -> Result<bool> {
        let low = u32::from_le_bytes(to[..4].try_into().expect("four"));
        let high = u32::from(u16::from_le_bytes([to[4], to[5]]));
        for first in [ADDRESSES, MORE_ADDRESSES] {
            let count = if first == ADDRESSES { 16 } else { 8 };
            for index in 0..count {
                let found_high = bus.pages(BAR).load_u32(first + 8 * index + 4)?;
                if found_high & (ADDRESS_VALID | 0xffff) == ADDRESS_VALID | high
                    && bus.pages(BAR).load_u32(first + 8 * index)? == low
                {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

/// Bytes of a buffer: SRRCTL says it in KiB, or leaves it to RCTL.
fn buffer_bytes(control: u32, split: u32) -> usize {
    match (split & BUFFER_MASK) as usize {
        0 => 2048 >> (control >> RCTL_BUFFER_SHIFT & 3),
        kibibytes => kibibytes << 10,
    }
}

/// What is written back.
struct Report {
    kind: u32,
    last: bool,
    tag: Option<u16>,
}

impl Report {
    fn encode(&self, descriptor: &[u8; DESCRIPTOR], length: usize) -> [u8; DESCRIPTOR] {
        let mut status = DONE | IGNORE_CHECKSUM;
        if self.last {
            status |= END;
        }
        if self.tag.is_some() {
            status |= HAD_TAG;
        }
        let length =
            u16::try_from(length).expect("a buffer of at most 127 KiB takes less than a frame");
        let tag = self.tag.unwrap_or(0);
        let mut bytes = *descriptor;
        if self.kind == KIND_LEGACY {
            // The address stays: length, checksum, status, errors, tag.
            bytes[8..10].copy_from_slice(&length.to_le_bytes());
            bytes[10..12].fill(0);
            bytes[12] = u8::try_from(status & 0xff).expect("8 bits");
            bytes[13] = 0;
        } else {
            bytes[..8].fill(0);
            bytes[8..12].copy_from_slice(&status.to_le_bytes());
            bytes[12..14].copy_from_slice(&length.to_le_bytes());
        }
        bytes[14..16].copy_from_slice(&tag.to_le_bytes());
        bytes
    }
}
