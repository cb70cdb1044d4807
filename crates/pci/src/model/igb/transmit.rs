//! Transmission (82576 data sheet, 7.2).

use ioasis_uapi::Result;

use super::Igb;
use super::frame::{self, Context};
use super::registers::{BAR, TCTL, TCTL_PAD};
use super::ring::{DESCRIPTOR, QUEUES, WRITE_BACK};
use crate::bus::{Bus, Segment};
use crate::model::Progress;

/// Frames that one poll sends at most: a reset waits for it.
const FRAMES_PER_POLL: usize = 64;
/// Bytes of the longest frame: a jumbo frame with a tag.
pub(super) const LONGEST: usize = 9728;
/// Descriptors of one frame, 7.2.1.
const PIECES: u64 = 40;

// The second quadword of a descriptor: CMD and DTYP of an advanced one (7.2.2), CMD of a legacy one
// (7.2.1.1).
const EXTENDED: u32 = 1 << 29;
const TYPE_SHIFT: u32 = 20;
const TYPE_CONTEXT: u32 = 2;
const TYPE_DATA: u32 = 3;
const END: u32 = 1 << 24;
const REPORT: u32 = 1 << 27;
const TAGGED: u32 = 1 << 30;
/// Legacy: insert a checksum, which nobody but its own driver asks for.
const LENGTH_MASK: u32 = 0xffff;
/// POPTS in an advanced data descriptor: checksums to put in.
const INTERNET_CHECKSUM: u32 = 1 << 8;
const TRANSPORT_CHECKSUM: u32 = 1 << 9;
/// Descriptor done.
const DONE: u32 = 1;
/// TDWBAL: the head is written to memory.
const WRITE_BACK_ON: u32 = 1;

/// What is known of a frame when its last descriptor was read.
struct Wish {
    bytes: Vec<u8>,
    /// Descriptors it takes.
    count: u64,
    command: u32,
    options: u32,
    legacy_tag: Option<u16>,
}

/// What was found at the head of a ring.
enum Found {
    Frame(Wish),
    /// A context, which is to be passed.
    Context(Context, u32),
    /// The rest of a frame was not stored yet, or cannot be reached.
    Nothing,
}

impl Igb {
    /// Sends what waits, queue after queue.
    pub(super) fn transmit(&mut self, bus: &Bus<'_>) -> Result<Progress> {
        let mut progress = Progress::Idle;
        for queue in 0..QUEUES {
            for _ in 0..FRAMES_PER_POLL {
                if !self.leave(bus)? || self.transmit[queue].waiting() == 0 {
                    break;
                }
                if !self.transmit_one(bus, queue)? {
                    break;
                }
                progress = Progress::Worked;
            }
        }
        Ok(progress)
    }

    /// Whether there is room for another frame: brings the one that waits for it on its way.
    fn leave(&mut self, bus: &Bus<'_>) -> Result<bool> {
        let Some(frame) = self.leaving.take() else { return Ok(true) };
        let gone = if self.loops_back() {
            self.deliver(bus, frame.clone())?
        } else {
            let room = self.backend.room() > 0;
            if room {
                self.backend.send(&frame);
            }
            room
        };
        if gone {
            self.statistics.sent(&frame);
        } else {
            self.leaving = Some(frame);
        }
        Ok(gone)
    }

    /// Sends the next frame of a queue, or takes its next context; false when there is none.
    fn transmit_one(&mut self, bus: &Bus<'_>, queue: usize) -> Result<bool> {
        match self.find(bus, queue) {
            Found::Nothing => Ok(false),
            Found::Context(context, command) => {
                self.contexts[queue] = context;
                self.finish(bus, queue, 1, command)
            }
            Found::Frame(wish) => {
                let Wish { mut bytes, count, command, options, legacy_tag } = wish;
                let context = self.contexts[queue];
                let extended = command & EXTENDED != 0;
                if extended && options & TRANSPORT_CHECKSUM != 0 {
                    context.check_transport(&mut bytes);
                }
                if extended && options & INTERNET_CHECKSUM != 0 {
                    context.check_internet(&mut bytes);
                }
                if command & TAGGED != 0 {
                    frame::put_tag(&mut bytes, legacy_tag.unwrap_or(context.tag));
                }
                if self.registers.get(TCTL) & TCTL_PAD != 0 {
                    frame::pad(&mut bytes);
                }
                self.leaving = Some(bytes);
                self.leave(bus)?;
                self.finish(bus, queue, count, command)
            }
        }
    }

    /// Reads the descriptors of the next frame and its memory.
    fn find(&mut self, bus: &Bus<'_>, queue: usize) -> Found {
        let ring = &mut self.transmit[queue];
        let mut bytes = Vec::new();
        let mut first = None;
        for ahead in 0..ring.waiting().min(PIECES) {
            let Some(descriptor) = ring.descriptor(bus, ahead) else { return Found::Nothing };
            let piece = Piece::decode(&descriptor);
            let kind = piece.command >> TYPE_SHIFT & 0xf;
            if piece.command & EXTENDED != 0 && kind == TYPE_CONTEXT && ahead == 0 {
                return Found::Context(Context::decode(&descriptor), piece.command & REPORT);
            }
            let known = piece.command & EXTENDED == 0 || kind == TYPE_DATA;
            let length = (piece.command & LENGTH_MASK) as usize;
            if !known || bytes.len() + length > LONGEST {
                ring.stop();
                return Found::Nothing;
            }
            let start = bytes.len();
            bytes.resize(start + length, 0);
            let from = [Segment { iova: piece.address, length }];
            if length > 0 && bus.read(&from, &mut bytes[start..]).is_err() {
                ring.stop();
                return Found::Nothing;
            }
            let options = *first.get_or_insert(piece.status);
            if piece.command & END != 0 {
                let legacy = piece.command & EXTENDED == 0;
                let legacy_tag =
                    legacy.then(|| u16::try_from(piece.status >> 16).expect("16 bits"));
                let (count, command) = (ahead + 1, piece.command);
                return Found::Frame(Wish { bytes, count, command, options, legacy_tag });
            }
        }
        Found::Nothing
    }

    /// Reports the last of `count` descriptors as done, if that is asked for, and passes them.
    fn finish(&mut self, bus: &Bus<'_>, queue: usize, count: u64, command: u32) -> Result<bool> {
        let ring = &mut self.transmit[queue];
        let reports = command & REPORT != 0;
        if reports && !ring.write(bus, count - 1, 12, &DONE.to_le_bytes()) {
            return Ok(false);
        }
        ring.advance(bus.pages(BAR), count)?;
        if reports {
            let low = bus.pages(BAR).load_u32(ring.registers + WRITE_BACK)?;
            if low & WRITE_BACK_ON != 0 {
                let high = bus.pages(BAR).load_u32(ring.registers + WRITE_BACK + 4)?;
                let iova = u64::from(high) << 32 | u64::from(low & !3);
                let head = u32::try_from(ring.head()).expect("a head has 16 bits");
                // Where nothing can be written, nobody looks.
                let _ = bus.write(&[Segment { iova, length: 4 }], &head.to_le_bytes());
            }
            self.interrupts.sent(queue);
        }
        Ok(true)
    }
}

/// The words of a descriptor.
struct Piece {
    address: u64,
    command: u32,
    status: u32,
}

impl Piece {
    fn decode(bytes: &[u8; DESCRIPTOR]) -> Self {
        let dword = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
        let address = u64::from_le_bytes(bytes[..8].try_into().expect("eight"));
        Self { address, command: dword(8), status: dword(12) }
    }
}
