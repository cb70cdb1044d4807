//! The file behind a shared mapping of another process.
//!
//! A client can mount a FUSE file system and be the one that answers for it, or not. So nothing here asks a file system
//! anything before it is known to be one of the kernel's own that live in memory: files are told apart by `statx` with
//! `AT_STATX_DONT_SYNC`, file systems by `/proc/PID/mountinfo` and by `F_GET_SEALS`, which shmem and hugetlbfs have and
//! nothing else has (mm/memfd.c, memfd_file_seals_ptr).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use ioasis_sys::because;
use ioasis_sys::mapping::Access;
use ioasis_sys::process::{Process, Vma};
use ioasis_uapi::Result;
use rustix::fs::{AtFlags, FileType, MemfdFlags, Mode, OFlags, StatxFlags};

use super::FileId;

/// `MFD_HUGE_SHIFT` of linux/memfd.h: the page size follows, as a power of two.
const HUGE_SHIFT: u32 = 26;

/// The kernel's own mounts, which no mountinfo shows: of memfd, shared anonymous and System V memory.
#[derive(Debug)]
pub(super) struct KernelMounts(Vec<u64>);

impl KernelMounts {
    pub(super) fn find() -> Self {
        let huge = |lg2: u32| MemfdFlags::HUGETLB | MemfdFlags::from_bits_retain(lg2 << HUGE_SHIFT);
        let kinds = [MemfdFlags::empty(), huge(21), huge(30)];
        let device = |kind| {
            let fd = rustix::fs::memfd_create("ioasis", MemfdFlags::CLOEXEC | kind).ok()?;
            rustix::fs::fstat(fd).ok().map(|stat| stat.st_dev)
        };
        Self(kinds.into_iter().filter_map(device).collect())
    }

    /// Whether `device` is a file system that keeps its files in memory only, as far as `process` can see one.
    pub(super) fn in_memory(&self, process: &Process, device: u64) -> bool {
        self.0.contains(&device)
            || mountinfo(process).is_some_and(|text| mounted_in_memory(&text, device))
    }
}

fn mountinfo(process: &Process) -> Option<String> {
    use std::io::Read;
    let fd = rustix::fs::openat(
        process.proc(),
        "mountinfo",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()?;
    let mut text = Vec::new();
    std::fs::File::from(fd).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// `36 35 98:0 /root /mnt rw shared:1 - tmpfs source options`: proc_pid_mountinfo(5).
fn mounted_in_memory(mountinfo: &str, device: u64) -> bool {
    mountinfo.lines().any(|line| {
        let number = line.split(' ').nth(2).and_then(|field| field.split_once(':'));
        let is_it = number.is_some_and(|(major, minor)| match (major.parse(), minor.parse()) {
            (Ok(major), Ok(minor)) => rustix::fs::makedev(major, minor) == device,
            _ => false,
        });
        let kind = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next());
        is_it && matches!(kind, Some("tmpfs" | "hugetlbfs" | "ramfs" | "devtmpfs"))
    })
}

/// Which file `fd` is, and whether a regular one, without asking its file system.
pub(super) fn identify(fd: impl AsFd) -> Result<(FileId, bool)> {
    identify_at(fd.as_fd(), "", AtFlags::EMPTY_PATH)
        .map_err(because("nothing is known about the file"))
}

fn identify_at(
    at: BorrowedFd<'_>,
    name: &str,
    flags: AtFlags,
) -> rustix::io::Result<(FileId, bool)> {
    let stat = rustix::fs::statx(
        at,
        name,
        flags | AtFlags::STATX_DONT_SYNC,
        StatxFlags::TYPE | StatxFlags::INO,
    )?;
    let device = rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor);
    let regular = FileType::from_raw_mode(stat.stx_mode.into()).is_file();
    Ok((FileId { device, inode: stat.stx_ino }, regular))
}

/// Opens the file `vma` maps, which lives in memory, if we may: by `/proc/PID/map_files`, which is for
/// CAP_CHECKPOINT_RESTORE, or by an fd the process still has open on it.
pub(super) fn open(process: &Process, vma: &Vma, access: Access) -> Option<OwnedFd> {
    let id = FileId { device: vma.device, inode: vma.inode };
    let name = format!("map_files/{:x}-{:x}", vma.start, vma.last + 1);
    reopen(process.proc(), &name, id, access).or_else(|| open_by_fd(process, id, access))
}

fn open_by_fd(process: &Process, id: FileId, access: Access) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fds = rustix::fs::openat(process.proc(), "fd", flags, Mode::empty()).ok()?;
    let entries = rustix::fs::Dir::read_from(&fds).ok()?;
    entries.flatten().find_map(|entry| {
        let name = entry.file_name().to_str().ok()?;
        identify_at(fds.as_fd(), name, AtFlags::empty())
            .ok()
            .filter(|&found| found == (id, true))?;
        let theirs = process.fd(name.parse().ok()?).ok()?;
        rustix::fs::fcntl_get_seals(&theirs).ok()?;
        let own =
            rustix::fs::openat(rustix::fs::CWD, "/proc/self/fd", flags, Mode::empty()).ok()?;
        reopen(own.as_fd(), &theirs.as_raw_fd().to_string(), id, access)
    })
}

/// Opens what the magic link `name` leads to, provided it is the regular file `id`. It is looked at before it is
/// opened: opening a device or a pipe can have effects.
fn reopen(directory: BorrowedFd<'_>, name: &str, id: FileId, access: Access) -> Option<OwnedFd> {
    identify_at(directory, name, AtFlags::empty()).ok().filter(|&found| found == (id, true))?;
    let mode = match access {
        Access::Read => OFlags::RDONLY,
        Access::ReadWrite => OFlags::RDWR,
    };
    let flags = mode | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = rustix::fs::openat(directory, name, flags, Mode::empty()).ok()?;
    // The link may lead elsewhere by now.
    identify(&fd).ok().filter(|&found| found == (id, true))?;
    Some(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_is_known_by_its_device_and_kind() {
        let text = "36 35 0:57 /root /mnt/a\\040b rw,noatime master:1 shared:2 - tmpfs none rw\n\
            37 35 0:58 / /mnt2 rw - fuse.sshfs server rw\n";
        assert!(mounted_in_memory(text, rustix::fs::makedev(0, 57)));
        assert!(!mounted_in_memory(text, rustix::fs::makedev(0, 58)));
        assert!(!mounted_in_memory(text, rustix::fs::makedev(0, 59)));
        assert!(!mounted_in_memory("garbage\n- tmpfs", 0));
    }
}
