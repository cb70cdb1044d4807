//! pread, pwrite and mmap where the regions of a device lie, read and write of queues.

use ioasis_iommufd::{ClientFile, Destination};
use std::sync::Arc;

use ioasis_sys::because;
use ioasis_sys::notify::{Answer, Notification};
use ioasis_sys::process::Thread;
use ioasis_uapi::{Errno, Error, Result};
use ioasis_vfio::{DeviceFile, REGION_SHIFT, region_index};

use super::behind::Config;
use super::client::Caller;
use super::regions::Wanted;
use super::verify::{self, Maps, Mode, Shares, Words};
use super::{Decision, File};
use crate::doorbell::{Coming, Doorbells};
use crate::files::Opened;
use crate::filter::number;
use crate::task::{low, signed};
use crate::trace::{self, Map, Way};
use crate::trap::{Mapping, Traps};
use crate::view::Stores;

/// Most bytes moved in one step; a call for more is a worker's.
const STEP: u64 = 1 << 16;
/// linux/mman.h.
const MAP_PRIVATE: u32 = 0x2;
const MAP_ANONYMOUS: u32 = 0x20;

/// A file of ours that is read, written or mapped.
struct Target {
    fd: i32,
    opened: Arc<Opened<File>>,
    mode: Mode,
}

impl Target {
    /// The file of ours behind a descriptor; `None` if it is none.
    ///
    /// # Errors
    ///
    /// `EBADF` if the caller has no such descriptor.
    fn of(caller: &Caller<'_>, fd: i32) -> Result<Option<Self>> {
        let Some((opened, file)) = caller.opened_as(fd)? else { return Ok(None) };
        let flags = rustix::fs::fcntl_getfl(&file);
        let mode = flags.map(Mode::of).map_err(because("a descriptor cannot be looked at"))?;
        Ok(Some(Self { fd, opened, mode }))
    }

    fn traced(&self) -> trace::File<'_> {
        let kind = super::ioctl::kind(&self.opened.file);
        trace::File { fd: self.fd, path: &self.opened.look.path, kind }
    }

    /// The device it is, to be read or written.
    ///
    /// # Errors
    ///
    /// `ESPIPE` for a file without a node, which has no places (`ksys_pread64`, fs/read_write.c); `EBADF` if it was not
    /// opened for that; `EINVAL` for a file that has neither read nor write (`vfs_read`).
    fn device(&self, way: Way) -> Result<&DeviceFile> {
        if matches!(self.opened.file, File::Made(_) | File::Kvm { .. }) {
            return Err(Error::new(Errno::ESPIPE, "the file has no places"));
        }
        self.mode.admit(way)?;
        match &self.opened.file {
            File::Device { device, .. } => Ok(device),
            _ => Err(Error::new(Errno::EINVAL, "the file has no regions")),
        }
    }

    /// Writes the line of an access that is refused before the device is asked.
    fn refuse(&self, caller: &Caller<'_>, (way, piece): (Way, Piece), error: Error) -> Decision {
        if let Some(trace) = &caller.server.trace {
            let (region, offset) = place(piece.offset);
            let access = trace::Access { way, region, offset, bytes: &[], length: piece.length };
            trace.access(caller.task.process.pid(), self.traced(), &access, Err(error));
        }
        Decision::error(error.errno)
    }
}

/// What becomes of a call on a file of ours, whatever the kernel would say of the file behind it.
fn answered(result: Result<u64>) -> Decision {
    match result {
        Ok(moved) => Decision::Answer(Answer::Value(moved.cast_signed())),
        Err(error) => Decision::error(error.errno),
    }
}

/// pread64 and pwrite64.
pub(super) fn access(caller: &Caller<'_>, call: &Notification) -> Result<Decision> {
    let [fd, address, length, offset, ..] = call.args;
    if offset.cast_signed() < 0 {
        // EINVAL, whatever the file is.
        return Ok(Decision::CONTINUE);
    }
    if let Some(decision) = queue_at(caller, call)? {
        return Ok(decision);
    }
    let Some(target) = Target::of(caller, signed(fd))? else { return Ok(Decision::CONTINUE) };
    let way = if call.number == number::PREAD64 { Way::Read } else { Way::Write };
    let judged =
        target.device(way).and_then(|device| Ok((device, verify::one(address, length, offset)?)));
    let (device, most) = match judged {
        Ok(judged) => judged,
        Err(error) => {
            return Ok(target.refuse(caller, (way, Piece { address, length, offset }), error));
        }
    };
    if most > STEP {
        caller.may_wait()?;
    }
    see_closes_before(caller, way);
    let piece = Piece { address, length: most, offset };
    Ok(answered(transfer(caller, &target, device, (way, piece))))
}

/// A store can make the device reach for a peer, which must not be there once its last descriptor was closed.
fn see_closes_before(caller: &Caller<'_>, way: Way) {
    if matches!(way, Way::Write) {
        caller.see_closes();
    }
}

/// preadv, pwritev and their second versions, of a program whose vectors consist of `words`.
pub(super) fn vectored(caller: &Caller<'_>, call: &Notification, words: Words) -> Result<Decision> {
    let [fd, vector, count, offset, _, flags] = call.args;
    if offset.cast_signed() < 0 {
        // EINVAL, or a call without an offset.
        return Ok(Decision::CONTINUE);
    }
    let Some(target) = Target::of(caller, signed(fd))? else { return Ok(Decision::CONTINUE) };
    let is_read = matches!(call.number, number::PREADV | number::PREADV2);
    let way = if is_read { Way::Read } else { Way::Write };
    let has_flags = matches!(call.number, number::PREADV2 | number::PWRITEV2);
    let flags = if has_flags { low(flags) } else { 0 };
    let judged = target.device(way).and_then(|device| {
        let pieces = verify::pieces(caller, vector, count, words)?;
        let total = verify::several(&pieces, offset, flags)?;
        Ok((device, pieces, total))
    });
    let (device, pieces, total) = match judged {
        Ok(judged) => judged,
        Err(error) => {
            let piece = Piece { address: vector, length: count, offset };
            return Ok(target.refuse(caller, (way, piece), error));
        }
    };
    if total > STEP {
        caller.may_wait()?;
    }
    see_closes_before(caller, way);
    Ok(answered(one_by_one(caller, &target, device, (way, offset, &pieces))))
}

/// Each piece is a call of its own, as for every driver without `read_iter` (`do_loop_readv_writev`, fs/read_write.c).
fn one_by_one(
    caller: &Caller<'_>,
    target: &Target,
    device: &DeviceFile,
    (way, offset, pieces): (Way, u64, &[(u64, u64)]),
) -> Result<u64> {
    let mut total = 0;
    for &(address, length) in pieces.iter().filter(|piece| piece.1 != 0) {
        let piece = Piece { address, length, offset: offset + total };
        match transfer(caller, target, device, (way, piece)) {
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
    Ok(total)
}

/// pread and pwrite of a file that has positions, or has none (`ksys_pread64`, fs/read_write.c).
fn queue_at(caller: &Caller<'_>, call: &Notification) -> Result<Option<Decision>> {
    let [fd, address, length, offset, ..] = call.args;
    let Some((queue, _)) = caller.queue(signed(fd))? else { return Ok(None) };
    let Some(file) = queue.file.queue().filter(|file| file.is_seekable()) else {
        return Err(Error::at(Errno::ESPIPE, "a queue has no positions", offset));
    };
    let moved = match call.number {
        number::PREAD64 => file.read_at(caller, address, (offset, length)),
        _ => file.write(caller, address, length),
    };
    Ok(Some(Decision::Answer(Answer::Value(moved?.cast_signed()))))
}

/// read and write of a queue.
pub(super) fn queue(caller: &Caller<'_>, call: &Notification) -> Result<Decision> {
    let [fd, address, length, ..] = call.args;
    if call.number == number::READ && length == 0 {
        return read_of_nothing(caller, signed(fd));
    }
    let turn = if call.number == number::READ { Way::Read } else { Way::Write };
    move_records(caller, signed(fd), turn, &[(address, length)])
}

/// A read of no bytes: Linux's queues judge it, and a FUSE file is not asked about it (fs/fuse/file.c, fuse_direct_io).
fn read_of_nothing(caller: &Caller<'_>, fd: i32) -> Result<Decision> {
    let (_, identity) = caller.identified(fd)?;
    let file = caller.server.queues.get(identity);
    let Some(queue) = file.as_deref().and_then(ClientFile::queue) else {
        return Ok(Decision::CONTINUE);
    };
    let moved = queue.read_to(0, 0, &mut Nowhere)?;
    Ok(Decision::Answer(Answer::Value(moved.cast_signed())))
}

/// Where nothing is put.
struct Nowhere;

impl Destination for Nowhere {
    fn put(&mut self, at: u64, _: &[u8]) -> Result<()> {
        Err(Error::at(Errno::EFAULT, "a read of nothing has no room", at))
    }
}

/// readv and writev of a queue, each piece a call of its own.
pub(super) fn queue_vectored(caller: &Caller<'_>, call: &Notification) -> Result<Decision> {
    let [fd, vector, count, ..] = call.args;
    // Whose file it is comes first: other files' vectors are the kernel's business.
    if caller.queue(signed(fd))?.is_none() {
        return Ok(Decision::CONTINUE);
    }
    let pieces = verify::pieces(caller, vector, count, Words::Long)?;
    let turn = if call.number == number::READV { Way::Read } else { Way::Write };
    move_records(caller, signed(fd), turn, &pieces)
}

fn move_records(caller: &Caller<'_>, fd: i32, way: Way, pieces: &[(u64, u64)]) -> Result<Decision> {
    let Some((queue, theirs)) = caller.queue(fd)? else { return Ok(Decision::CONTINUE) };
    let Some(file) = queue.file.queue() else { return Ok(Decision::CONTINUE) };
    let mut total = 0;
    for &(address, length) in pieces {
        let moved = match way {
            Way::Read => queue.read(file, caller, (address, length)),
            Way::Write => file.write(caller, address, length),
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
#[derive(Clone, Copy, Debug)]
struct Piece {
    address: u64,
    length: u64,
    offset: u64,
}

/// Moves one piece, in steps that end where the device's aligned accesses do.
fn transfer(
    caller: &Caller<'_>,
    target: &Target,
    device: &DeviceFile,
    (way, piece): (Way, Piece),
) -> Result<u64> {
    let mut first = Vec::new();
    let result = device.span(piece.offset, piece.length).and_then(|length| {
        let mut moved = 0;
        while moved < length {
            let offset = piece.offset + moved;
            let part = (length - moved).min(STEP - offset % STEP);
            let address = piece.address + moved;
            let mut bytes = vec![0; usize::try_from(part).expect("a step")];
            step(caller, device, (way, address, offset), &mut bytes)?;
            if moved == 0 {
                first = bytes;
            }
            moved += part;
        }
        Ok(moved)
    });
    if let (File::Device { config, .. }, Way::Write) = (&target.opened.file, way)
        && Config::is_at(piece.offset)
    {
        config.update(device);
    }
    if let Some(trace) = &caller.server.trace {
        let (region, offset) = place(piece.offset);
        let access = trace::Access { way, region, offset, bytes: &first, length: piece.length };
        trace.access(
            caller.task.process.pid(),
            target.traced(),
            &access,
            result.map(u64::cast_signed),
        );
    }
    result
}

/// Moves a step's bytes. The device has done what lies before a byte of the caller's that cannot be read, and the call
/// fails all the same (`vfio_pci_core_do_io_rw`, drivers/vfio/pci/vfio_pci_rdwr.c).
fn step(
    caller: &Caller<'_>,
    device: &DeviceFile,
    (way, address, offset): (Way, u64, u64),
    bytes: &mut [u8],
) -> Result<()> {
    let thread = &caller.task.thread;
    match way {
        Way::Read => {
            device.read(offset, bytes)?;
            caller.put(address, bytes)
        }
        Way::Write => {
            let readable = thread.read_prefix(address, bytes)?;
            let whole = whole_accesses(offset, readable, bytes.len());
            if whole > 0 {
                device.write(offset, &bytes[..whole])?;
            }
            if whole == bytes.len() {
                return Ok(());
            }
            Err(Error::at(Errno::EFAULT, "cannot be read", address + readable as u64))
        }
    }
}

/// How many of the first `readable` of `length` bytes at `offset` the aligned accesses of 8, 4, 2 and 1 bytes cover that
/// end among them.
fn whole_accesses(offset: u64, readable: usize, length: usize) -> usize {
    let mut done = 0;
    while done < readable {
        let at = offset + done as u64;
        let fits = |width: usize| at.is_multiple_of(width as u64) && length - done >= width;
        let width = [8, 4, 2].into_iter().find(|&width| fits(width)).unwrap_or(1);
        if done + width > readable {
            break;
        }
        done += width;
    }
    done
}

/// Region and offset within it.
fn place(offset: u64) -> (u32, u64) {
    (region_index(offset).unwrap_or(0), offset & ((1 << REGION_SHIFT) - 1))
}

/// mmap of a region. What may be mapped is, by the kernel: the file holds the pages.
pub(super) fn mmap(caller: &Caller<'_>, call: &Notification) -> Result<Decision> {
    let [_, length, protection, flags, fd, offset] = call.args;
    if low(flags) & MAP_ANONYMOUS != 0 {
        return Ok(Decision::CONTINUE);
    }
    let Some(target) = Target::of(caller, signed(fd))? else { return Ok(Decision::CONTINUE) };
    let wanted = Wanted { offset, length, protection, flags: low(flags) };
    let mut result = map(&target, wanted);
    let traps = caller.server.machine.view.stores == Stores::Trapped;
    let mapping = traps.then(|| trapped(&target, wanted)).flatten();
    if let (Ok(()), Some(mapping)) = (&result, mapping) {
        // Threads are seized one by one, and one that executes a program lets none be seized until it has.
        caller.may_wait()?;
        let (task, is_trapped) = (caller.task, !mapping.trapped.is_empty());
        let pid = task.process.pid();
        // What keeps from watching the doorbells keeps from nothing else.
        let doorbells = doorbells(&target, wanted);
        let coming = doorbells.and_then(|doorbells| comes(caller, doorbells));
        if Traps::runs_a_machine(pid) {
            let why = "the process runs a virtual machine, whose stores the kernel makes";
            doorbells.inspect(|doorbells| are_polled(caller, doorbells, why));
        } else if is_trapped || coming.is_some() {
            let is_executing = || caller.server.tasks.is_another_executing(task);
            let traps = &caller.server.traps;
            let prepared = traps.prepare((task.tid, pid), mapping, coming, is_executing);
            if let (Err(error), Some(doorbells)) = (&prepared, doorbells) {
                let why = match error.errno {
                    Errno::EINVAL => "the process is traced by another, or forbids being looked at",
                    _ => error.why,
                };
                are_polled(caller, doorbells, why);
            }
            if is_trapped {
                result = prepared;
            }
        }
        // One that was killed meanwhile maps nothing.
        if let Err(error) = &result
            && caller.is_there()
        {
            caller.server.explain_untrapped(task, error);
        }
    }
    if let Some(trace) = &caller.server.trace {
        let (region, offset) = place(offset);
        let map = Map { region, offset, length, protection, flags };
        trace.mmap(caller.task.process.pid(), target.traced(), map, result);
    }
    Ok(result.map_or_else(|error| Decision::error(error.errno), |()| Decision::CONTINUE))
}

/// The doorbells of a device that has some in the mapping.
fn doorbells(target: &Target, wanted: Wanted) -> Option<&Arc<Doorbells>> {
    let File::Device { doorbells: Some(doorbells), .. } = &target.opened.file else { return None };
    doorbells.has_shared(wanted.offset, wanted.length).then_some(doorbells)
}

/// Says that the caller is about to map doorbells, or to move them; nothing where its stores cannot be told.
pub(super) fn comes(caller: &Caller<'_>, doorbells: &Arc<Doorbells>) -> Option<Coming> {
    let Ok(mm) = caller.task.thread.mm() else {
        doorbells.give_up();
        return None;
    };
    let Some(coming) = doorbells.comes(&mm) else {
        are_polled(
            caller,
            doorbells,
            "too many descriptors are in use, or too many processes map them",
        );
        return None;
    };
    if is_filtered(caller) {
        are_polled(caller, doorbells, "the process has a seccomp filter of its own");
        return None;
    }
    Some(coming)
}

/// Says so in the trace, once a device.
fn are_polled(caller: &Caller<'_>, doorbells: &Doorbells, why: &str) {
    if let Some(trace) = caller.server.trace.as_ref().filter(|_| doorbells.is_news()) {
        let pid = caller.task.process.pid();
        trace.note(&format!("[pid {pid}] doorbells of an idle device are found by polling: {why}"));
    }
}

/// Whether the caller has more seccomp filters than we, who have one as it has: another may end it for a call that it did not
/// make by itself.
fn is_filtered(caller: &Caller<'_>) -> bool {
    let count = |thread: &Thread| {
        let status = thread.status().ok()?;
        let text = String::from_utf8_lossy(&status);
        let line = text.lines().find_map(|line| line.strip_prefix("Seccomp_filters:"))?;
        line.trim().parse::<u32>().ok()
    };
    let own = rustix::thread::gettid().as_raw_pid().unsigned_abs();
    let ours = Thread::open(own).ok().and_then(|own| count(&own));
    match (count(&caller.task.thread), ours) {
        (Some(theirs), Some(ours)) => theirs > ours,
        _ => true,
    }
}

/// The mapping, if there are pages in it that concern a tracer.
fn trapped(target: &Target, wanted: Wanted) -> Option<Mapping> {
    let File::Device { device, .. } = &target.opened.file else { return None };
    let Wanted { offset, length, protection, .. } = wanted;
    let trapped = device.trapped(offset, length);
    let trapped_loads = device.trapped_loads(offset, length);
    let concerns = !trapped.is_empty() || doorbells(target, wanted).is_some();
    concerns.then_some(Mapping { offset, length, protection, trapped, trapped_loads })
}

/// Judges a mapping of a file of ours.
fn map(target: &Target, wanted: Wanted) -> Result<()> {
    let maps = match &target.opened.file {
        File::Device { .. } if target.opened.look.rdev == (0, 0) => Maps::NoCode,
        File::Device { .. } | File::Iommufd { .. } => Maps::Yes,
        File::Container(_) | File::Group(_) | File::Kvm { .. } => Maps::No,
        // Only a dma-buf has mmap, and VFIO's and the mock's refuse it.
        File::Made(made) if made.memory().is_some() => Maps::NoCode,
        File::Made(_) => Maps::No,
    };
    let shares = verify::mmap(wanted, target.mode, maps)?;
    match &target.opened.file {
        File::Device { device, .. } => {
            // A descriptor that cannot write makes no shared mapping, whatever the flags say (`do_mmap`), and the drivers
            // ask for one.
            let flags = if shares == Shares::Yes { wanted.flags } else { MAP_PRIVATE };
            device.mmap(wanted.offset, wanted.length, flags)
        }
        File::Iommufd { regions, .. } => regions.mmap(wanted, shares),
        _ => Err(Error::at(Errno::EINVAL, "the file cannot be mapped", wanted.offset)),
    }
}

#[cfg(test)]
mod tests {
    use super::whole_accesses;

    #[test]
    fn what_is_written_before_an_unreadable_byte_ends_with_a_whole_access() {
        for (offset, readable, length, whole) in [
            (0, 12, 32, 8),
            (4, 12, 32, 12),
            (4, 11, 32, 4),
            (1, 6, 16, 3),
            (0, 12, 12, 12),
            (0, 3, 4, 0),
            (0, 3, 3, 3),
            (7, 0, 9, 0),
        ] {
            assert_eq!(
                whole_accesses(offset, readable, length),
                whole,
                "{offset} {readable} {length}"
            );
        }
    }
}
