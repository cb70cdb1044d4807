//! Requests of a disk (5.2.6): a header to read, data, and a status byte to write, cut into
//! descriptors anyhow.
//!
//! A turn takes a batch of a queue. All headers are read in one transfer, or one by one where that
//! fails, so that each request is answered for its own memory; all status bytes are written in one.
//! A status byte that cannot be written stops the device: nothing else could tell the driver.

use std::io;

use super::super::queue::{Chain, Queue, TAKE_MAX, Wrong, length, part};
use super::super::{Stop, dword, quadword};
use super::ID_BYTES;
use crate::bus::{Bus, DmaFault, Segment};
use crate::model::image::{Image, Protection};
use crate::refusal::{ImageAccess, Refusal};

/// Bytes of a sector, whatever the block size.
pub(super) const SECTOR: u64 = 512;
/// Bytes of a data segment at most, and how many there are in a request: together 63.5 MiB, which
/// bounds the time that a reset waits.
pub(super) const SEGMENT_MAX: u64 = 256 << 10;
pub(super) const SEGMENTS_MAX: u16 = 254;
const DATA_MAX: u64 = SEGMENT_MAX * SEGMENTS_MAX as u64;
/// Sectors of a range of discard and write zeroes, 32 MiB, and ranges of a request.
pub(super) const RANGE_MAX: u32 = 1 << 16;
pub(super) const RANGES_MAX: u16 = 16;

/// Bytes after which a turn ends.
const TURN_MAX: u64 = 8 << 20;
/// What a flush counts for.
const FLUSH_WEIGHT: u64 = 1 << 20;
/// Bytes moved at once: as much as stays in a second-level cache between the image and the
/// program's memory.
const CHUNK: u64 = 128 << 10;

const HEADER: u64 = 16;
const RANGE_BYTES: u64 = 16;

// Types, 5.2.6.
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const ZEROES: u32 = 13;

/// The one flag of a range: it may be deallocated.
const UNMAP: u32 = 1;

/// What the status byte says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Ok = 0,
    Error = 1,
    Unsupported = 2,
}

impl From<DmaFault> for Status {
    fn from(_: DmaFault) -> Self {
        Self::Error
    }
}

/// A request's header.
#[derive(Clone, Copy, Debug)]
struct Header {
    kind: u32,
    sector: u64,
}

impl Header {
    fn of(bytes: &[u8]) -> Self {
        Self { kind: dword(bytes, 0), sector: quadword(bytes, 8) }
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug)]
struct Done {
    status: Status,
    /// Bytes of data that were written to memory.
    written: u64,
    /// Bytes that were moved, or could have been in that time.
    weight: u64,
}

/// Does requests; keeps its buffers between turns.
#[derive(Debug)]
pub(super) struct Executor {
    image: Image,
    id: [u8; ID_BYTES],
    chains: Vec<Chain>,
    buffer: Vec<u8>,
}

impl Executor {
    pub(super) fn new(image: Image, id: [u8; ID_BYTES]) -> Self {
        Self { image, id, chains: Vec::new(), buffer: Vec::new() }
    }

    pub(super) fn image(&self) -> &Image {
        &self.image
    }

    pub(super) fn id(&self) -> &[u8; ID_BYTES] {
        &self.id
    }

    /// Returns when all that was written is on the disk.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.image.sync()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.image.bytes()
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.image.protection() == Protection::ReadOnly
    }

    /// Does requests of `queue`, as many as a turn takes. `through`: what was written is on the
    /// disk before it completes.
    pub(super) fn turn(
        &mut self,
        bus: &Bus<'_>,
        queue: &mut Queue,
        through: bool,
    ) -> Result<(), Stop> {
        let mut moved = 0;
        while moved < TURN_MAX {
            let mut chains = std::mem::take(&mut self.chains);
            chains.clear();
            let taken = queue.take(bus, TAKE_MAX, &mut chains);
            let done = taken.and_then(|count| match count {
                0 => Ok(queue.rest(bus)?),
                _ => {
                    moved += self.batch(bus, &chains, queue, through)?;
                    queue.publish(bus)?;
                    Ok(true)
                }
            });
            self.chains = chains;
            if !done? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Does a batch as far as a turn goes, and puts that back; answers how many bytes were moved.
    fn batch(
        &mut self,
        bus: &Bus<'_>,
        chains: &[Chain],
        queue: &mut Queue,
        through: bool,
    ) -> Result<u64, Stop> {
        for chain in chains {
            check(chain)?;
        }
        let headers = read_headers(bus, chains);
        let changes = |header: &Option<Header>| {
            header.is_some_and(|header| matches!(header.kind, OUT | ZEROES))
        };
        let mut statuses = Vec::with_capacity(chains.len());
        let (mut moved, mut wrote) = (0, false);
        for (chain, header) in chains.iter().zip(&headers) {
            if moved >= TURN_MAX {
                break;
            }
            let done = match header {
                Some(header) => self.request(bus, chain, *header),
                None => Done { status: Status::Error, written: 0, weight: 0 },
            };
            wrote |= changes(header) && done.status == Status::Ok;
            moved += done.weight;
            statuses.push(done);
        }
        let (chains, left) = chains.split_at(statuses.len());
        queue.leave(u16::try_from(left.len()).expect("at most a batch"));
        if through && wrote && self.sync(bus).is_err() {
            for (done, _) in statuses.iter_mut().zip(&headers).filter(|(_, header)| changes(header))
            {
                done.status = Status::Error;
            }
        }
        write_statuses(bus, chains, &statuses)?;
        for (chain, done) in chains.iter().zip(&statuses) {
            let bytes = match done.status {
                Status::Ok => done.written + 1,
                _ => 1,
            };
            queue.put(chain.head, u32::try_from(bytes).unwrap_or(u32::MAX));
        }
        Ok(moved)
    }

    fn request(&mut self, bus: &Bus<'_>, chain: &Chain, header: Header) -> Done {
        let room = length(chain.writable()) - 1;
        let done = match header.kind {
            IN => self.read(bus, chain, header.sector, room).map(|()| room),
            OUT => self.write(bus, chain, header.sector).map(|()| 0),
            FLUSH => self.sync(bus).map(|()| 0),
            GET_ID => {
                let bytes = room.min(ID_BYTES as u64);
                let id = &self.id[..usize::try_from(bytes).expect("20 at most")];
                bus.write(&part(chain.writable(), 0, bytes), id)
                    .map_err(Status::from)
                    .map(|()| bytes)
            }
            DISCARD | ZEROES => self.ranges(bus, chain, header.kind).map(|()| 0),
            _ => Err(Status::Unsupported),
        };
        let weight = match header.kind {
            IN => room,
            OUT => length(chain.readable()),
            FLUSH => FLUSH_WEIGHT,
            DISCARD | ZEROES => TURN_MAX,
            _ => 0,
        };
        match done {
            Ok(written) => Done { status: Status::Ok, written, weight },
            Err(status) => Done { status, written: 0, weight: weight.min(FLUSH_WEIGHT) },
        }
    }

    /// Where `bytes` bytes from a sector lie in the image.
    fn extent(&self, sector: u64, bytes: u64) -> Result<u64, Status> {
        let start = sector.checked_mul(SECTOR).ok_or(Status::Error)?;
        let end = start.checked_add(bytes).ok_or(Status::Error)?;
        let whole = bytes.is_multiple_of(SECTOR) && bytes <= DATA_MAX;
        if whole && end <= self.image.bytes() { Ok(start) } else { Err(Status::Error) }
    }

    fn read(
        &mut self,
        bus: &Bus<'_>,
        chain: &Chain,
        sector: u64,
        bytes: u64,
    ) -> Result<(), Status> {
        let start = self.extent(sector, bytes)?;
        self.chunks(chain.writable(), 0, bytes, |image, memory, done, buffer| {
            image.read(start + done, buffer).map_err(|error| {
                told(bus, ImageAccess::Read, (start + done, buffer.len() as u64), &error)
            })?;
            Ok(bus.write(memory, buffer)?)
        })
    }

    fn write(&mut self, bus: &Bus<'_>, chain: &Chain, sector: u64) -> Result<(), Status> {
        let bytes = length(chain.readable()) - HEADER;
        let start = self.extent(sector, bytes)?;
        if self.is_read_only() {
            return Err(Status::Error);
        }
        self.chunks(chain.readable(), HEADER, bytes, |image, memory, done, buffer| {
            bus.read(memory, buffer)?;
            image.write(start + done, buffer).map_err(|error| {
                told(bus, ImageAccess::Write, (start + done, buffer.len() as u64), &error)
            })
        })
    }

    /// Calls `step` for each chunk of `bytes` bytes of `segments` from `skip` on: with its memory,
    /// how much came before, and a buffer of its length.
    fn chunks(
        &mut self,
        segments: &[Segment],
        skip: u64,
        bytes: u64,
        mut step: impl FnMut(&Image, &[Segment], u64, &mut [u8]) -> Result<(), Status>,
    ) -> Result<(), Status> {
        let mut done = 0;
        while done < bytes {
            let now = (bytes - done).min(CHUNK);
            let memory = part(segments, skip + done, now);
            let count = usize::try_from(now).expect("a chunk at most");
            if self.buffer.len() < count {
                self.buffer.resize(count, 0);
            }
            step(&self.image, &memory, done, &mut self.buffer[..count])?;
            done += now;
        }
        Ok(())
    }

    fn sync(&self, bus: &Bus<'_>) -> Result<(), Status> {
        self.image.sync().map_err(|error| told(bus, ImageAccess::Sync, (0, 0), &error))
    }

    /// Discard and write zeroes.
    fn ranges(&self, bus: &Bus<'_>, chain: &Chain, kind: u32) -> Result<(), Status> {
        if self.is_read_only() {
            return Err(Status::Error);
        }
        let bytes = length(chain.readable()) - HEADER;
        let count = bytes / RANGE_BYTES;
        if !bytes.is_multiple_of(RANGE_BYTES) || !(1..=RANGES_MAX.into()).contains(&count) {
            return Err(Status::Error);
        }
        let mut ranges = vec![0; usize::try_from(bytes).expect("256 at most")];
        bus.read(&part(chain.readable(), HEADER, bytes), &mut ranges)?;
        let flags = |range: &[u8]| dword(range, 12);
        let ranges = || ranges.chunks_exact(16);
        let known = if kind == DISCARD { 0 } else { UNMAP };
        if ranges().any(|range| flags(range) & !known != 0) {
            return Err(Status::Unsupported);
        }
        for range in ranges() {
            let (sector, sectors) = (quadword(range, 0), dword(range, 8));
            if sectors > RANGE_MAX {
                return Err(Status::Error);
            }
            let bytes = u64::from(sectors) * SECTOR;
            let extent = (self.extent(sector, bytes)?, bytes);
            if kind == DISCARD || flags(range) & UNMAP != 0 {
                let done = self.image.deallocate(extent.0, extent.1);
                done.map_err(|error| told(bus, ImageAccess::Deallocate, extent, &error))?;
            } else {
                let done = self.image.zero(extent.0, extent.1);
                done.map_err(|error| told(bus, ImageAccess::Write, extent, &error))?;
            }
        }
        Ok(())
    }
}

/// Tells people of an error of the image.
fn told(bus: &Bus<'_>, access: ImageAccess, extent: (u64, u64), error: &io::Error) -> Status {
    bus.tell(&Refusal::image(access, extent, error));
    Status::Error
}

/// A request without a header or a status byte cannot be answered.
fn check(chain: &Chain) -> Result<(), Wrong> {
    let head = u64::from(chain.head);
    if length(chain.readable()) < HEADER {
        return Err(Wrong { why: "a request has no header of 16 bytes", value: head });
    }
    if chain.writable().is_empty() {
        return Err(Wrong { why: "a request has no status byte", value: head });
    }
    Ok(())
}

/// The headers of all requests; `None` for one that cannot be read.
fn read_headers(bus: &Bus<'_>, chains: &[Chain]) -> Vec<Option<Header>> {
    let parts: Vec<_> = chains.iter().map(|chain| part(chain.readable(), 0, HEADER)).collect();
    let all: Vec<Segment> = parts.iter().flatten().copied().collect();
    let mut bytes = vec![0; chains.len() * 16];
    if bus.read(&all, &mut bytes).is_ok() {
        return bytes.chunks_exact(16).map(|bytes| Some(Header::of(bytes))).collect();
    }
    let one = |segments: &[Segment]| {
        let mut bytes = [0; 16];
        bus.read(segments, &mut bytes).is_ok().then(|| Header::of(&bytes))
    };
    parts.iter().map(|segments| one(segments)).collect()
}

/// Writes the status of each request to the last byte that it has for the device.
fn write_statuses(bus: &Bus<'_>, chains: &[Chain], done: &[Done]) -> Result<(), Stop> {
    let last = |chain: &Chain| {
        let segment = chain.writable().last().expect("it was checked");
        Segment { iova: segment.iova + segment.length as u64 - 1, length: 1 }
    };
    let segments: Vec<Segment> = chains.iter().map(last).collect();
    let bytes: Vec<u8> = done.iter().map(|done| done.status as u8).collect();
    Ok(bus.write(&segments, &bytes)?)
}
