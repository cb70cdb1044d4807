//! pread, pwrite and mmap where the regions of a device lie, read and write of queues.

use std::sync::Arc;

use ioasis_sys::notify::{Answer, Notification};
use ioasis_uapi::{Errno, Error, Result};
use ioasis_vfio::{DeviceFile, REGION_SHIFT};

use super::client::Caller;
use super::regions::Wanted;
use super::{Decision, File};
use crate::filter::number;
use crate::task::{low, signed};
use crate::trace::{self, Map, Way};

/// Bytes moved by one call at most: more than any region's registers.
const LIMIT: u64 = 1 << 20;
/// Most pieces of a vectored call (`UIO_MAXIOV`, linux/uio.h).
const MAX_PIECES: u64 = 1024;
/// Neither of a file (linux/mman.h).
const MAP_ANONYMOUS: u32 = 0x20;

/// The device behind a descriptor; `None` if it is no file of ours.
///
/// # Errors
///
/// `EINVAL` for a file of ours without regions: it has neither read nor write (`vfs_read`, fs/read_write.c).
fn device(caller: &Caller<'_>, fd: i32) -> Result<Option<Target>> {
    let Some(opened) = caller.opened(fd)? else { return Ok(None) };
    match &opened.file {
        File::Device { device, .. } => {
            Ok(Some(Target { fd, path: opened.look.path.clone(), device: Arc::clone(device) }))
        }
        _ => Err(Error::new(Errno::EINVAL, "the file has no regions")),
    }
}

struct Target {
    fd: i32,
    path: String,
    device: Arc<DeviceFile>,
}

impl Target {
    fn traced(&self) -> trace::File<'_> {
        trace::File { fd: self.fd, path: &self.path, kind: trace::Kind::Device }
    }
}

/// pread64 and pwrite64.
pub(super) fn access(caller: &Caller<'_>, call: &Notification) -> Result<Decision> {
    let [fd, address, length, offset, ..] = call.args;
    if offset.cast_signed() < 0 {
        return Ok(Decision::CONTINUE);
    }
    if let Some(decision) = queue_at(caller, call)? {
        return Ok(decision);
    }
    let Some(target) = device(caller, signed(fd))? else { return Ok(Decision::CONTINUE) };
    let way = if call.number == number::PREAD64 { Way::Read } else { Way::Write };
    let moved = transfer(caller, &target, way, Piece { address, length, offset })?;
    Ok(Decision::Answer(Answer::Value(moved.cast_signed())))
}

/// preadv, pwritev and their second versions. Each piece is a call of its own, as for every driver without
/// `read_iter` (`do_loop_readv_writev`, fs/read_write.c).
pub(super) fn vectored(caller: &Caller<'_>, call: &Notification) -> Result<Decision> {
    let [fd, vector, count, mut offset, ..] = call.args;
    if offset.cast_signed() < 0 {
        return Ok(Decision::CONTINUE);
    }
    let Some(target) = device(caller, signed(fd))? else { return Ok(Decision::CONTINUE) };
    let is_read = matches!(call.number, number::PREADV | number::PREADV2);
    let way = if is_read { Way::Read } else { Way::Write };
    let mut total = 0;
    for (address, length) in pieces(caller, vector, count)? {
        match transfer(caller, &target, way, Piece { address, length, offset }) {
            Ok(moved) => {
                total += moved;
                offset += moved;
                if moved < length {
                    break;
                }
            }
            Err(error) if total == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(Decision::Answer(Answer::Value(total.cast_signed())))
}

/// Address and length of each `struct iovec`.
fn pieces(caller: &Caller<'_>, vector: u64, count: u64) -> Result<Vec<(u64, u64)>> {
    if count > MAX_PIECES {
        return Err(Error::at(Errno::EINVAL, "too many pieces", count));
    }
    let mut bytes = vec![0; usize::try_from(count * 16).expect("a few pages")];
    caller.task.process.read(vector, &mut bytes)?;
    let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().expect("8 bytes"));
    Ok(bytes.chunks_exact(16).map(|piece| (word(&piece[..8]), word(&piece[8..]))).collect())
}

/// pread and pwrite of a queue, of which only the start is a place.
fn queue_at(caller: &Caller<'_>, call: &Notification) -> Result<Option<Decision>> {
    let [fd, address, length, offset, ..] = call.args;
    if caller.queue(signed(fd))?.is_none() {
        return Ok(None);
    }
    if offset != 0 {
        return Err(Error::at(Errno::ESPIPE, "a queue has no places", offset));
    }
    let turn = if call.number == number::PREAD64 { Turn::ReadStart } else { Turn::Write };
    move_records(caller, signed(fd), turn, &[(address, length)]).map(Some)
}

/// read and write of a queue.
pub(super) fn queue(caller: &Caller<'_>, call: &Notification) -> Result<Decision> {
    let [fd, address, length, ..] = call.args;
    let turn = if call.number == number::READ { Turn::Read } else { Turn::Write };
    move_records(caller, signed(fd), turn, &[(address, length)])
}

/// readv and writev of a queue, each piece a call of its own.
pub(super) fn queue_vectored(caller: &Caller<'_>, call: &Notification) -> Result<Decision> {
    let [fd, vector, count, ..] = call.args;
    // Whose file it is comes first: other files' vectors are the kernel's business.
    if caller.queue(signed(fd))?.is_none() {
        return Ok(Decision::CONTINUE);
    }
    let pieces = pieces(caller, vector, count)?;
    let turn = if call.number == number::READV { Turn::Read } else { Turn::Write };
    move_records(caller, signed(fd), turn, &pieces)
}

/// What is done with a queue.
#[derive(Clone, Copy)]
enum Turn {
    Read,
    ReadStart,
    Write,
}

fn move_records(
    caller: &Caller<'_>,
    fd: i32,
    turn: Turn,
    pieces: &[(u64, u64)],
) -> Result<Decision> {
    let Some((queue, theirs)) = caller.queue(fd)? else { return Ok(Decision::CONTINUE) };
    let Some(file) = queue.file.queue() else { return Ok(Decision::CONTINUE) };
    let mut total = 0;
    for &(address, length) in pieces {
        let moved = match turn {
            Turn::Read => file.read(caller, address, length),
            Turn::ReadStart => file.read_start(caller, address, length),
            Turn::Write => file.write(caller, address, length),
        };
        match moved {
            Ok(moved) => {
                total += moved;
                if moved < length {
                    break;
                }
            }
            Err(error) if total == 0 => return Err(error),
            Err(_) => break,
        }
    }
    queue.settle(&theirs);
    Ok(Decision::Answer(Answer::Value(total.cast_signed())))
}

/// One stretch of the caller's memory and of the file.
#[derive(Clone, Copy)]
struct Piece {
    address: u64,
    length: u64,
    offset: u64,
}

fn transfer(caller: &Caller<'_>, target: &Target, way: Way, piece: Piece) -> Result<u64> {
    let mut bytes = vec![0; usize::try_from(piece.length.min(LIMIT)).expect("within the limit")];
    let result = match way {
        Way::Read => target.device.read(piece.offset, &mut bytes).and_then(|moved| {
            caller.task.process.write(piece.address, &bytes[..moved])?;
            Ok(moved)
        }),
        Way::Write => caller
            .task
            .process
            .read(piece.address, &mut bytes)
            .and_then(|()| target.device.write(piece.offset, &bytes)),
    };
    if let Some(trace) = &caller.server.trace {
        let moved = result.as_ref().map_or(0, |&moved| moved);
        let (region, offset) = place(piece.offset);
        let access =
            trace::Access { way, region, offset, bytes: &bytes[..moved], length: piece.length };
        let result = result.map(|moved| i64::try_from(moved).expect("within the limit"));
        trace.access(caller.task.process.pid(), target.traced(), &access, result);
    }
    result.map(|moved| moved as u64)
}

/// Region and offset within it.
fn place(offset: u64) -> (u32, u64) {
    let region = (offset >> REGION_SHIFT).saturating_sub(1);
    (u32::try_from(region).expect("24 bits are left"), offset & ((1 << REGION_SHIFT) - 1))
}

/// mmap of a region. What may be mapped is, by the kernel: the file holds the pages.
pub(super) fn mmap(caller: &Caller<'_>, call: &Notification) -> Result<Decision> {
    let [_, length, protection, flags, fd, offset] = call.args;
    if low(flags) & MAP_ANONYMOUS != 0 {
        return Ok(Decision::CONTINUE);
    }
    if let Some(File::Iommufd { regions, .. }) =
        caller.opened(signed(fd))?.as_deref().map(|opened| &opened.file)
    {
        let wanted = Wanted { offset, length, protection, flags: low(flags) };
        // EPERM here is the answer, not a task that cannot be looked at.
        return Ok(regions
            .mmap(wanted)
            .map_or_else(|error| Decision::error(error.errno), |()| Decision::CONTINUE));
    }
    let Some(target) = device(caller, signed(fd))? else { return Ok(Decision::CONTINUE) };
    let result = target.device.mmap(offset, length, low(flags));
    if let Some(trace) = &caller.server.trace {
        let (region, offset) = place(offset);
        let map = Map { region, offset, length, protection, flags };
        trace.mmap(caller.task.process.pid(), target.traced(), map, result);
    }
    result?;
    Ok(Decision::CONTINUE)
}
