//! Calls that the files of a file system answer, and that devices, groups, containers and iommufds have no function for.
//!
//! Behind each file of ours is one of a file system, to which the kernel would do what it is asked: the answers here
//! are those for the operations that are missing in `vfio_device_fops`, `vfio_group_fops`, `vfio_fops` and
//! `iommufd_fops` of Linux.

use ioasis_iommufd::Client as _;
use ioasis_sys::because;
use ioasis_sys::notify::{Answer, Notification};
use ioasis_uapi::{Errno, Error, Result};
use rustix::fs::OFlags;
use std::os::fd::OwnedFd;

use super::access;
use super::client::Caller;
use super::verify::{self, Mode};
use super::{Decision, File};
use crate::files::Opened;
use crate::filter::{MADV_REMOVE, command, number};
use crate::task::{low, signed};
use crate::trace::Way;
use crate::trap::Mapping;

/// linux/fs.h: what the kernel answers for every file by itself, `FS_IOC_FIEMAP`, `FIFREEZE` and `FITHAW`.
const OF_ALL_FILES: [u32; 3] = [0xc020_660b, 0xc004_5877, 0xc004_5878];

const SEEK_SET: u32 = 0;
const SEEK_END: u32 = 2;
const SEEK_LAST: u32 = 4;
const SPLICE_FLAGS: u32 = 0xf;
const SYNC_FLAGS: u32 = 7;
const MREMAP_FLAGS: u64 = 7;
const MREMAP_DONTUNMAP: u64 = 4;
const MAP_SHARED: u32 = 1;
const PAGE: u64 = 4096;

/// `FALLOC_FL_KEEP_SIZE`, and the other bits of the mode (linux/falloc.h): each is one of its own, or none.
const KEEP_SIZE: u32 = 1;
const PUNCH_HOLE: u32 = 2;
const FALLOCATE_WITH_EITHER: [u32; 3] = [0, 0x40, 0x10];
const FALLOCATE_WITHOUT_KEEP_SIZE: [u32; 3] = [0x8, 0x20, 0x80];

/// Whether an ioctl is one that the kernel answers alike for a device and for the file behind it.
pub(super) fn is_of_all_files(command: u32) -> bool {
    OF_ALL_FILES.contains(&command)
}

/// A call on a descriptor.
pub(super) fn file_call(caller: &Caller<'_>, call: &Notification) -> Result<Decision> {
    let [first, second, third, ..] = call.args;
    let fds = match call.number {
        number::SENDFILE => [second, second],
        number::COPY_FILE_RANGE => [first, third],
        _ => [first, first],
    };
    for fd in fds {
        let Some((opened, file)) = caller.opened_as(signed(fd))? else { continue };
        if is_text(&opened.file) {
            continue;
        }
        return Ok(told(caller, call, &opened, answer(caller, call, (&opened.file, &file))));
    }
    Ok(Decision::CONTINUE)
}

/// A file of /proc or /sys, which is a file in Linux too.
fn is_text(file: &File) -> bool {
    matches!(file, File::Made(made) if made.queue().is_some() && made.name().starts_with('/'))
}

/// Writes the line of a call that is refused.
fn told(
    caller: &Caller<'_>,
    call: &Notification,
    opened: &Opened<File>,
    result: Result<Answer>,
) -> Decision {
    match result {
        Ok(answer) => Decision::Answer(answer),
        Err(error) => {
            if let Some(trace) = &caller.server.trace {
                let (pid, path) = (caller.task.process.pid(), &opened.look.path);
                trace.other(pid, name(call.number), path, Err(error));
            }
            Decision::error(error.errno)
        }
    }
}

const fn name(number: u32) -> &'static str {
    match number {
        number::LSEEK => "lseek",
        number::MREMAP => "mremap",
        number::MADVISE => "madvise",
        number::SENDFILE => "sendfile",
        number::FCNTL => "fcntl",
        number::FSYNC => "fsync",
        number::FDATASYNC => "fdatasync",
        number::FTRUNCATE => "ftruncate",
        number::READAHEAD => "readahead",
        number::FSETXATTR => "fsetxattr",
        number::REMAP_FILE_PAGES => "remap_file_pages",
        number::SPLICE => "splice",
        number::SYNC_FILE_RANGE => "sync_file_range",
        number::FALLOCATE => "fallocate",
        number::COPY_FILE_RANGE => "copy_file_range",
        _ => "call",
    }
}

fn answer(
    caller: &Caller<'_>,
    call: &Notification,
    (file, descriptor): (&File, &OwnedFd),
) -> Result<Answer> {
    let refuse = |errno, why| Err(Error::new(errno, why));
    let flags =
        rustix::fs::fcntl_getfl(descriptor).map_err(because("a descriptor cannot be looked at"))?;
    let mode = Mode::of(flags);
    let [first, second, third, fourth, fifth, sixth] = call.args;
    match call.number {
        number::LSEEK => seek(file, second, low(third)),
        number::FCNTL => control(descriptor, flags, (low(second), low(third))),
        // do_ftruncate, fs/open.c.
        number::FTRUNCATE => refuse(Errno::EINVAL, "not a regular file"),
        number::FALLOCATE => allocate(mode, low(second), (third, fourth)),
        // vfs_fsync_range, fs/sync.c.
        number::FSYNC | number::FDATASYNC => refuse(Errno::EINVAL, "the file has no fsync"),
        number::SYNC_FILE_RANGE => sync_range(second, third, low(fourth)),
        number::READAHEAD => {
            mode.admit(Way::Read)?;
            refuse(Errno::EINVAL, "not a regular file")
        }
        // xattr_permission, fs/xattr.c, for the names that a user may set.
        number::FSETXATTR => refuse(Errno::EPERM, "not a regular file"),
        number::SENDFILE => {
            let at = offset(caller, third)?;
            mode.admit(Way::Read)?;
            verify::one(0, fourth, at.unwrap_or(0))?;
            refuse(Errno::EINVAL, "the file has no splice_read")
        }
        number::SPLICE if fifth == 0 => Ok(Answer::Value(0)),
        number::SPLICE if low(sixth) & !SPLICE_FLAGS != 0 => refuse(Errno::EINVAL, "unknown flags"),
        number::SPLICE => {
            offset(caller, second)?;
            mode.admit(Way::Read)?;
            refuse(Errno::EINVAL, "the file has no splice_read")
        }
        number::COPY_FILE_RANGE => {
            offset(caller, second)?;
            offset(caller, fourth)?;
            refuse(Errno::EINVAL, "not a regular file")
        }
        _ => unreachable!("system call {} of descriptor {first}", call.number),
    }
}

/// The offset at `address`, where there is one.
fn offset(caller: &Caller<'_>, address: u64) -> Result<Option<u64>> {
    if address == 0 {
        return Ok(None);
    }
    let mut bytes = [0; 8];
    caller.read(address, &mut bytes)?;
    Ok(Some(u64::from_ne_bytes(bytes)))
}

/// `ksys_lseek`; a dma-buf alone says how long it is (`dma_buf_llseek`, drivers/dma-buf/dma-buf.c).
fn seek(file: &File, offset: u64, whence: u32) -> Result<Answer> {
    if whence > SEEK_LAST {
        return Err(Error::at(Errno::EINVAL, "unknown whence", whence.into()));
    }
    let length = match file {
        File::Made(made) => made.memory().and_then(|memory| memory.length()),
        _ => None,
    };
    match length {
        None => Err(Error::new(Errno::ESPIPE, "the file has no llseek")),
        Some(length) if whence == SEEK_END && offset == 0 => {
            Ok(Answer::Value(length.cast_signed()))
        }
        Some(_) if whence == SEEK_SET && offset == 0 => Ok(Answer::Value(0)),
        Some(_) => Err(Error::at(Errno::EINVAL, "a dma-buf only says how long it is", offset)),
    }
}

/// `do_fcntl`. Our files are open with O_APPEND, so that the kernel writes nothing by itself (`Files::open`); nobody
/// else sees it.
fn control(descriptor: &OwnedFd, flags: OFlags, (command, argument): (u32, u32)) -> Result<Answer> {
    match command {
        command::F_GETFL => Ok(Answer::Value(i64::from((flags - OFlags::APPEND).bits()))),
        command::F_SETFL => {
            let wanted = OFlags::from_bits_retain(argument);
            if wanted.contains(OFlags::DIRECT) {
                return Err(Error::new(Errno::EINVAL, "the file has no direct I/O"));
            }
            rustix::fs::fcntl_setfl(descriptor, wanted | OFlags::APPEND)
                .map_err(because("the flags cannot be set"))?;
            Ok(Answer::Value(0))
        }
        // generic_setlease, fs/locks.c; memfd_fcntl, mm/memfd.c.
        _ => Err(Error::at(Errno::EINVAL, "not a regular file", command.into())),
    }
}

/// `vfs_fallocate`, fs/open.c.
fn allocate(mode: Mode, flags: u32, (offset, length): (u64, u64)) -> Result<Answer> {
    if offset.cast_signed() < 0 || length.cast_signed() <= 0 {
        return Err(Error::at(Errno::EINVAL, "an empty or negative range", length));
    }
    let (keeps, what) = (flags & KEEP_SIZE != 0, flags & !KEEP_SIZE);
    let is_known = FALLOCATE_WITH_EITHER.contains(&what)
        || what == PUNCH_HOLE && keeps
        || FALLOCATE_WITHOUT_KEEP_SIZE.contains(&what) && !keeps;
    if !is_known {
        return Err(Error::at(Errno::EOPNOTSUPP, "unknown mode", flags.into()));
    }
    mode.admit(Way::Write)?;
    Err(Error::new(Errno::ENODEV, "not a regular file"))
}

/// `sync_file_range`, fs/sync.c.
fn sync_range(offset: u64, length: u64, flags: u32) -> Result<Answer> {
    let end = offset.wrapping_add(length);
    if flags & !SYNC_FLAGS != 0 || offset.cast_signed() < 0 || end.cast_signed() < 0 || end < offset
    {
        return Err(Error::at(Errno::EINVAL, "unknown flags or a negative range", offset));
    }
    Err(Error::new(Errno::ESPIPE, "not a regular file"))
}

/// A call on memory, which may be a mapping of a file of ours.
pub(super) fn mapping_call(caller: &Caller<'_>, call: &Notification) -> Result<Decision> {
    let [address, length, third, fourth, ..] = call.args;
    let aligned = |length: u64| length.checked_next_multiple_of(PAGE).unwrap_or(0);
    // What is wrong without a look at the mapping, the kernel says.
    let is_good = address.is_multiple_of(PAGE)
        && match call.number {
            number::MREMAP => aligned(third) != 0 && fourth & !MREMAP_FLAGS == 0,
            number::MADVISE => low(third) == MADV_REMOVE && aligned(length) != 0,
            _ => third == 0 && aligned(length) != 0,
        };
    if !is_good {
        return Ok(Decision::CONTINUE);
    }
    let Some(vma) = caller.task.thread.mm()?.vma(address)? else { return Ok(Decision::CONTINUE) };
    let Some(opened) = caller.server.files.get(vma.device, vma.inode) else {
        return Ok(Decision::CONTINUE);
    };
    let refuse = |errno, why| Err(Error::at(errno, why, address));
    let result = match call.number {
        // Registers are VM_DONTEXPAND and VM_PFNMAP (vfio_pci_core_mmap), which check_prep_vma of mm/mremap.c looks at.
        number::MREMAP if fourth & MREMAP_DONTUNMAP != 0 => {
            refuse(Errno::EINVAL, "registers cannot be in two places")
        }
        number::MREMAP if aligned(third) > aligned(length) => {
            refuse(Errno::EFAULT, "a mapping of registers does not grow")
        }
        number::MREMAP => moves(caller, &opened.file),
        number::MADVISE if !vma.shared => refuse(Errno::EACCES, "not shared"),
        // madvise_remove, mm/madvise.c, by way of vfs_fallocate.
        number::MADVISE => refuse(Errno::ENODEV, "not a regular file"),
        _ => remap(&opened.file, fourth, length).and_then(|_| moves(caller, &opened.file)),
    };
    Ok(told(caller, call, &opened, result))
}

/// The kernel goes on with a call that moves a mapping, or maps another part of the file in its place: stores to doorbells there
/// are to be told as before.
fn moves(caller: &Caller<'_>, file: &File) -> Result<Answer> {
    let File::Device { doorbells: Some(doorbells), .. } = file else { return Ok(Answer::Continue) };
    caller.may_wait()?;
    if let Some(coming) = access::comes(caller, doorbells) {
        let (task, pid) = (caller.task, caller.task.process.pid());
        let is_executing = || caller.server.tasks.is_another_executing(task);
        // Where nothing is told, the device looks.
        let traps = &caller.server.traps;
        let _ = traps.prepare((task.tid, pid), Mapping::default(), Some(coming), is_executing);
    }
    Ok(Answer::Continue)
}

/// `remap_file_pages`, which is an mmap of another part of the file.
fn remap(file: &File, page: u64, length: u64) -> Result<Answer> {
    let Some(offset) = page.checked_mul(PAGE) else {
        return Err(Error::at(Errno::EINVAL, "the range wraps", page));
    };
    match file {
        File::Device { device, .. } => {
            device.mmap(offset, length, MAP_SHARED).map(|()| Answer::Continue)
        }
        _ => Err(Error::at(Errno::ENXIO, "no region has this extent", offset)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errno(result: Result<Answer>) -> Errno {
        result.expect_err("it is refused").errno
    }

    #[test]
    fn a_mode_of_fallocate_is_looked_at_before_the_file_is() {
        let (reads, writes) = (Mode::of(OFlags::RDONLY), Mode::of(OFlags::WRONLY));
        for (mode, flags, range, answer) in [
            (writes, 0, (0, 1), Errno::ENODEV),
            (writes, KEEP_SIZE, (0, 1), Errno::ENODEV),
            (writes, KEEP_SIZE | PUNCH_HOLE, (0, 1), Errno::ENODEV),
            (writes, PUNCH_HOLE, (0, 1), Errno::EOPNOTSUPP),
            (writes, KEEP_SIZE | 0x20, (0, 1), Errno::EOPNOTSUPP),
            (writes, 0x20 | 0x8, (0, 1), Errno::EOPNOTSUPP),
            (writes, 0x100, (0, 1), Errno::EOPNOTSUPP),
            (writes, 0x100, (0, 0), Errno::EINVAL),
            (writes, 0, (u64::MAX, 1), Errno::EINVAL),
            (reads, 0, (0, 1), Errno::EBADF),
            (reads, 0x100, (0, 1), Errno::EOPNOTSUPP),
        ] {
            assert_eq!(errno(allocate(mode, flags, range)), answer, "{flags:#x} {range:?}");
        }
    }

    #[test]
    fn a_range_to_sync_is_looked_at_before_the_file_is() {
        assert_eq!(errno(sync_range(0, 0, 7)), Errno::ESPIPE);
        assert_eq!(errno(sync_range(0, 0, 8)), Errno::EINVAL);
        assert_eq!(errno(sync_range(1 << 62, 1 << 62, 0)), Errno::EINVAL);
        assert_eq!(errno(sync_range(u64::MAX, 1, 0)), Errno::EINVAL);
    }
}
