//! Commands of the NVM command set (NVMe 1.4, chapter 6).
//!
//! A run of reads, or of writes, is done together: one transfer for the data of all of them, one access of the image
//! for each stretch of neighbouring blocks. What fails is done again piece by piece, so that every command gets the
//! status of its own blocks and its own memory.

use std::io;

use super::super::image::{Image, Protection};
use super::command::Command;
use super::prp;
use super::status::Status;
use crate::bus::{Bus, Segment};
use crate::refusal::{ImageAccess, Refusal};

// Opcodes, figure 346.
pub(super) const FLUSH: u8 = 0x00;
pub(super) const WRITE: u8 = 0x01;
pub(super) const READ: u8 = 0x02;
pub(super) const COMPARE: u8 = 0x05;
pub(super) const WRITE_ZEROES: u8 = 0x08;
pub(super) const DATASET_MANAGEMENT: u8 = 0x09;

/// The one namespace, and the number that means all there are.
pub(super) const NAMESPACE: u32 = 1;
pub(super) const ALL_NAMESPACES: u32 = 0xffff_ffff;

/// log2 of the pages of 4 KiB that one command may transfer (MDTS, figure 251).
pub(super) const MDTS: u8 = 9;
pub(super) const TRANSFER_MAX: u64 = 4096 << MDTS;

/// Bytes moved at once: as much as stays in a second-level cache between the image and the program's memory.
const CHUNK: usize = 128 << 10;
/// Bytes after which a run of commands ends.
const RUN_MAX: u64 = 128 << 10;
/// Bytes moved for one queue before the others, and whoever waits for the controller, have their turn.
pub(super) const TURN_MAX: u64 = 8 << 20;

/// Command dword 12 of Read and Write: force unit access.
const FORCE_UNIT_ACCESS: u32 = 1 << 30;
/// Command dword 12 of Write Zeroes: deallocate.
const WRITE_ZEROES_DEALLOCATE: u32 = 1 << 25;
/// Command dword 11 of Dataset Management: deallocate.
const DATASET_DEALLOCATE: u32 = 1 << 2;
/// Bytes of a Dataset Management range.
const RANGE_BYTES: usize = 16;

/// Whether written data may stay in the page cache when a command completes (feature 06h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteCache {
    /// It may, until a Flush.
    Enabled,
    /// It is on the disk when the command completes.
    Disabled,
}

/// What the commands of a queue need.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'a> {
    pub(super) bus: &'a Bus<'a>,
    pub(super) image: &'a Image,
    pub(super) page_size: u64,
    pub(super) lba_lg2: u32,
    pub(super) write_cache: WriteCache,
}

/// What was done since power-on (SMART, figure 194).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) bytes_read: u64,
    pub(super) bytes_written: u64,
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) media_errors: u64,
}

/// A stretch of blocks and the memory it is copied from or to.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// Index of its command.
    command: usize,
    /// Offset in the image.
    offset: u64,
    memory: Segment,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    /// From the image to memory.
    Read,
    /// From memory to the image.
    Write,
}

/// What stopped a transfer.
#[derive(Debug)]
enum Stop {
    Memory,
    Image(io::Error),
}

impl From<crate::bus::DmaFault> for Stop {
    fn from(_: crate::bus::DmaFault) -> Self {
        Self::Memory
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Image(error)
    }
}

impl Context<'_> {
    /// Tells people that the image could not be reached.
    fn tell(&self, access: ImageAccess, extent: (u64, u64), error: &io::Error) {
        self.bus.tell(&Refusal::image(access, extent, error));
    }

    /// Brings all that was written to the disk.
    fn sync(&self) -> Result<(), Status> {
        self.image.sync().map_err(|error| {
            self.tell(ImageAccess::Sync, (0, 0), &error);
            Status::WRITE_FAULT
        })
    }

    fn deallocate(&self, offset: u64, length: u64) -> Result<(), Status> {
        self.image.deallocate(offset, length).map_err(|error| {
            self.tell(ImageAccess::Deallocate, (offset, length), &error);
            Status::WRITE_FAULT
        })
    }

    fn zero(&self, offset: u64, length: u64) -> Result<(), Status> {
        self.image.zero(offset, length).map_err(|error| {
            self.tell(ImageAccess::Write, (offset, length), &error);
            Status::WRITE_FAULT
        })
    }
}

impl Direction {
    fn access(self) -> ImageAccess {
        match self {
            Self::Read => ImageAccess::Read,
            Self::Write => ImageAccess::Write,
        }
    }

    fn status(self, stop: &Stop) -> Status {
        match (stop, self) {
            (Stop::Memory, _) => Status::DATA_TRANSFER_ERROR,
            (Stop::Image(_), Self::Read) => Status::UNRECOVERED_READ,
            (Stop::Image(_), Self::Write) => Status::WRITE_FAULT,
        }
    }
}

/// Executes I/O commands; keeps its buffers between calls.
#[derive(Debug, Default)]
pub(super) struct Executor {
    pub(super) counters: Counters,
    buffer: Vec<u8>,
    compared: Vec<u8>,
    segments: Vec<Segment>,
    pieces: Vec<Piece>,
    chunk: Vec<Piece>,
}

impl Executor {
    /// Does some of `commands`, at least the first, puts the status of each that was done into `statuses`, and
    /// answers how many bytes were moved, or how many could have been in that time. It stops after much data, and before a command that takes long, so that
    /// completions are not kept waiting.
    pub(super) fn run(
        &mut self,
        context: &Context<'_>,
        commands: &[Command],
        statuses: &mut Vec<Status>,
    ) -> u64 {
        statuses.clear();
        statuses.resize(commands.len(), Status::SUCCESS);
        let mut next = 0;
        let mut moved = 0;
        while let Some(command) = commands.get(next)
            && moved < RUN_MAX
        {
            let direction = match command.opcode {
                FLUSH if next > 0 => break,
                READ => Direction::Read,
                WRITE => Direction::Write,
                _ => {
                    statuses[next] = self.single(context, command).err().unwrap_or(Status::SUCCESS);
                    moved += weight(context, command);
                    next += 1;
                    continue;
                }
            };
            let end = self.gather(context, commands, next, direction, statuses);
            moved += self.pieces.iter().map(|piece| piece.memory.length as u64).sum::<u64>();
            self.transfer(context, direction, statuses);
            moved += force(context, direction, &commands[next..end], &mut statuses[next..end]);
            self.count(direction, context, &commands[next..end], &statuses[next..end]);
            next = end;
        }
        statuses.truncate(next);
        self.counters.media_errors +=
            statuses.iter().filter(|status| is_media_error(**status)).count() as u64;
        moved
    }

    /// A command that is done by itself.
    fn single(&mut self, context: &Context<'_>, command: &Command) -> Result<(), Status> {
        if !command.plain() {
            return Err(Status::INVALID_FIELD);
        }
        match command.opcode {
            FLUSH => flush(context, command),
            COMPARE => self.compare(context, command),
            WRITE_ZEROES => write_zeroes(context, command),
            DATASET_MANAGEMENT => self.manage_dataset(context, command),
            _ => Err(Status::INVALID_OPCODE),
        }
    }

    /// Collects the pieces of the commands from `first` that go in one direction; answers where they end.
    fn gather(
        &mut self,
        context: &Context<'_>,
        commands: &[Command],
        first: usize,
        direction: Direction,
        statuses: &mut [Status],
    ) -> usize {
        self.pieces.clear();
        let mut bytes = 0;
        let mut next = first;
        while let Some(command) = commands.get(next)
            && command.opcode == commands[first].opcode
            && bytes < RUN_MAX
        {
            match self.add(context, command, next, direction) {
                Ok(length) => bytes += length,
                Err(status) => statuses[next] = status,
            }
            next += 1;
        }
        next
    }

    /// Adds the pieces of one command, or none.
    fn add(
        &mut self,
        context: &Context<'_>,
        command: &Command,
        index: usize,
        direction: Direction,
    ) -> Result<u64, Status> {
        if !command.plain() {
            return Err(Status::INVALID_FIELD);
        }
        let (start, length) = extent(context, command)?;
        if length > TRANSFER_MAX {
            return Err(Status::INVALID_FIELD);
        }
        if direction == Direction::Write && context.image.protection() == Protection::ReadOnly {
            return Err(Status::WRITE_PROTECTED);
        }
        self.segments.clear();
        let entries = [command.prp1, command.prp2];
        prp::segments(context.bus, context.page_size, entries, length, &mut self.segments)?;
        let mut offset = start;
        for &memory in &self.segments {
            self.pieces.push(Piece { command: index, offset, memory });
            offset += memory.length as u64;
        }
        Ok(length)
    }

    /// Moves all pieces, a chunk at a time.
    fn transfer(&mut self, context: &Context<'_>, direction: Direction, statuses: &mut [Status]) {
        self.buffer.resize(CHUNK, 0);
        let pieces = std::mem::take(&mut self.pieces);
        let mut chunk = std::mem::take(&mut self.chunk);
        let mut filled = 0;
        for &piece in &pieces {
            let mut rest = piece;
            while rest.memory.length > 0 {
                let taken = rest.memory.length.min(CHUNK - filled);
                chunk.push(Piece { memory: Segment { length: taken, ..rest.memory }, ..rest });
                rest.offset += taken as u64;
                rest.memory.iova = rest.memory.iova.wrapping_add(taken as u64);
                rest.memory.length -= taken;
                filled += taken;
                if filled == CHUNK {
                    self.move_chunk(context, direction, &chunk, statuses);
                    chunk.clear();
                    filled = 0;
                }
            }
        }
        self.move_chunk(context, direction, &chunk, statuses);
        chunk.clear();
        (self.pieces, self.chunk) = (pieces, chunk);
    }

    /// Moves pieces together, and again one by one if that fails.
    fn move_chunk(
        &mut self,
        context: &Context<'_>,
        direction: Direction,
        chunk: &[Piece],
        statuses: &mut [Status],
    ) {
        if chunk.is_empty() || self.move_pieces(context, direction, chunk).is_ok() {
            return;
        }
        for piece in chunk {
            if statuses[piece.command].is_error() {
                continue;
            }
            if let Err(stop) = self.move_pieces(context, direction, std::slice::from_ref(piece)) {
                if let Stop::Image(error) = &stop {
                    let extent = (piece.offset, piece.memory.length as u64);
                    context.tell(direction.access(), extent, error);
                }
                statuses[piece.command] = direction.status(&stop);
            }
        }
    }

    fn move_pieces(
        &mut self,
        context: &Context<'_>,
        direction: Direction,
        pieces: &[Piece],
    ) -> Result<(), Stop> {
        self.segments.clear();
        self.segments.extend(pieces.iter().map(|piece| piece.memory));
        let total = self.segments.iter().map(|segment| segment.length).sum();
        let buffer = &mut self.buffer[..total];
        if direction == Direction::Write {
            context.bus.read(&self.segments, buffer)?;
        }
        let mut at = 0;
        for stretch in pieces.chunk_by(follows) {
            let offset = stretch[0].offset;
            let length = stretch.iter().map(|piece| piece.memory.length).sum::<usize>();
            match direction {
                Direction::Read => context.image.read(offset, &mut buffer[at..at + length])?,
                Direction::Write => context.image.write(offset, &buffer[at..at + length])?,
            }
            at += length;
        }
        if direction == Direction::Read {
            context.bus.write(&self.segments, buffer)?;
        }
        Ok(())
    }

    fn compare(&mut self, context: &Context<'_>, command: &Command) -> Result<(), Status> {
        self.pieces.clear();
        self.add(context, command, 0, Direction::Read)?;
        let pieces = std::mem::take(&mut self.pieces);
        self.buffer.resize(CHUNK, 0);
        self.compared.resize(CHUNK, 0);
        let mut equal = Ok(());
        for piece in &pieces {
            equal = equal.and_then(|()| self.compare_piece(context, piece));
        }
        self.pieces = pieces;
        self.counters.reads += 1;
        equal
    }

    fn compare_piece(&mut self, context: &Context<'_>, piece: &Piece) -> Result<(), Status> {
        let mut done = 0;
        while done < piece.memory.length {
            let length = (piece.memory.length - done).min(CHUNK);
            let (blocks, memory) = (&mut self.buffer[..length], &mut self.compared[..length]);
            let iova = piece.memory.iova.wrapping_add(done as u64);
            let offset = piece.offset + done as u64;
            context.image.read(offset, blocks).map_err(|error| {
                context.tell(ImageAccess::Read, (offset, length as u64), &error);
                Status::UNRECOVERED_READ
            })?;
            let fetched = context.bus.read(&[Segment { iova, length }], memory);
            fetched.map_err(|_| Status::DATA_TRANSFER_ERROR)?;
            if blocks != memory {
                return Err(Status::COMPARE_FAILURE);
            }
            done += length;
        }
        Ok(())
    }

    /// Dataset Management, 6.7: only deallocation does something, the rest are hints.
    fn manage_dataset(&mut self, context: &Context<'_>, command: &Command) -> Result<(), Status> {
        check_namespace(command.namespace)?;
        if command.dword(11) & DATASET_DEALLOCATE == 0 {
            return Ok(());
        }
        if context.image.protection() == Protection::ReadOnly {
            return Err(Status::WRITE_PROTECTED);
        }
        let ranges = (command.dword(10) & 0xff) as usize + 1;
        self.segments.clear();
        let length = ranges * RANGE_BYTES;
        let entries = [command.prp1, command.prp2];
        prp::segments(context.bus, context.page_size, entries, length as u64, &mut self.segments)?;
        self.compared.resize(CHUNK, 0);
        let bytes = &mut self.compared[..length];
        context.bus.read(&self.segments, bytes).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        let (ranges, _) = bytes.as_chunks::<RANGE_BYTES>();
        let extents: Vec<_> =
            ranges.iter().map(|range| dataset_extent(context, range)).collect::<Result<_, _>>()?;
        for (offset, length) in extents {
            context.deallocate(offset, length)?;
        }
        finish_write(context)
    }

    fn count(
        &mut self,
        direction: Direction,
        context: &Context<'_>,
        commands: &[Command],
        statuses: &[Status],
    ) {
        for (command, _) in commands.iter().zip(statuses).filter(|(_, status)| !status.is_error()) {
            let bytes = blocks(command) << context.lba_lg2;
            let Counters { bytes_read, bytes_written, reads, writes, .. } = &mut self.counters;
            let (total, number) = match direction {
                Direction::Read => (bytes_read, reads),
                Direction::Write => (bytes_written, writes),
            };
            *total += bytes;
            *number += 1;
        }
    }
}

/// The bytes that could have been moved in the time of a command that is done by itself: a Flush waits for the disk.
fn weight(context: &Context<'_>, command: &Command) -> u64 {
    match command.opcode {
        FLUSH => TURN_MAX,
        WRITE_ZEROES | COMPARE => blocks(command) << context.lba_lg2,
        _ => RUN_MAX,
    }
}

fn follows(before: &Piece, after: &Piece) -> bool {
    before.offset + before.memory.length as u64 == after.offset
}

fn is_media_error(status: Status) -> bool {
    status == Status::WRITE_FAULT || status == Status::UNRECOVERED_READ
}

/// NLB, bits 15:0 of dword 12, counts from 0.
fn blocks(command: &Command) -> u64 {
    u64::from(command.low(12)) + 1
}

fn check_namespace(namespace: u32) -> Result<(), Status> {
    if namespace == NAMESPACE { Ok(()) } else { Err(Status::INVALID_NAMESPACE) }
}

/// Offset and bytes in the image of the blocks a command names.
fn extent(context: &Context<'_>, command: &Command) -> Result<(u64, u64), Status> {
    check_namespace(command.namespace)?;
    image_extent(context, command.qword(10), blocks(command))
}

fn image_extent(context: &Context<'_>, start: u64, count: u64) -> Result<(u64, u64), Status> {
    let all = context.image.bytes() >> context.lba_lg2;
    if start.checked_add(count).is_none_or(|end| end > all) {
        return Err(Status::LBA_OUT_OF_RANGE);
    }
    Ok((start << context.lba_lg2, count << context.lba_lg2))
}

/// The first block that an I/O command names; 0 for one that names none, or is none.
pub(super) fn first_block(command: &Command) -> u64 {
    match command.opcode {
        READ | WRITE | COMPARE | WRITE_ZEROES => command.qword(10),
        _ => 0,
    }
}

/// A range is context attributes, a length in blocks, and a first block (figure 368).
fn dataset_extent(context: &Context<'_>, range: &[u8; RANGE_BYTES]) -> Result<(u64, u64), Status> {
    let [_, _, _, _, a, b, c, d, start @ ..] = *range;
    let count = u32::from_le_bytes([a, b, c, d]);
    image_extent(context, u64::from_le_bytes(start), u64::from(count))
}

fn flush(context: &Context<'_>, command: &Command) -> Result<(), Status> {
    if command.namespace != ALL_NAMESPACES {
        check_namespace(command.namespace)?;
    }
    context.sync()
}

fn write_zeroes(context: &Context<'_>, command: &Command) -> Result<(), Status> {
    let (offset, length) = extent(context, command)?;
    if context.image.protection() == Protection::ReadOnly {
        return Err(Status::WRITE_PROTECTED);
    }
    if command.dword(12) & WRITE_ZEROES_DEALLOCATE != 0 {
        context.deallocate(offset, length)?;
    } else {
        context.zero(offset, length)?;
    }
    if forces(command) {
        return context.sync();
    }
    finish_write(context)
}

/// Without a write cache, what a command wrote is on the disk when it completes.
fn finish_write(context: &Context<'_>) -> Result<(), Status> {
    match context.write_cache {
        WriteCache::Enabled => Ok(()),
        WriteCache::Disabled => context.sync(),
    }
}

fn forces(command: &Command) -> bool {
    command.dword(12) & FORCE_UNIT_ACCESS != 0
}

/// Brings a run to the disk if one of its commands asks for that, or is a write and the write cache is off; answers
/// the weight of having done so.
fn force(
    context: &Context<'_>,
    direction: Direction,
    commands: &[Command],
    statuses: &mut [Status],
) -> u64 {
    let all = direction == Direction::Write && context.write_cache == WriteCache::Disabled;
    let asks = |command: &Command| all || forces(command);
    if !commands.iter().any(asks) {
        return 0;
    }
    if context.sync().is_err() {
        for (_, status) in commands.iter().zip(statuses).filter(|(command, _)| asks(command)) {
            if !status.is_error() {
                *status = Status::WRITE_FAULT;
            }
        }
    }
    TURN_MAX
}
