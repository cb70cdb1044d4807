//! The file behind a shared mapping of another process.
//!
//! A client can mount a FUSE file system and be the one that answers for it, or not. So nothing here asks a file system
//! anything before it is known to be one of the kernel's own that live in memory: files are told apart by `statx` with
//! `AT_STATX_DONT_SYNC`, file systems by `/proc/PID/mountinfo` and by `F_GET_SEALS`, which shmem and hugetlbfs have and
//! nothing else has (mm/memfd.c, memfd_file_seals_ptr).

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use ioasis_sys::because;
use ioasis_sys::mapping::Access;
use ioasis_sys::process::{Process, Vma};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;
use rustix::fs::{AtFlags, FileType, MemfdFlags, Mode, OFlags, StatxFlags};

use super::FileId;

/// `MFD_HUGE_SHIFT` of linux/memfd.h: the page size follows, as a power of two.
const HUGE_SHIFT: u32 = 26;

/// Which file systems keep their files in memory only.
#[derive(Debug)]
pub(super) struct MemoryMounts {
    /// Devices of the kernel's own mounts, which no mountinfo shows: of memfd, shared anonymous and
    /// System V memory.
    kernels: Vec<u64>,
    /// What is known of mounts, by the number that no later mount has.
    known: Mutex<BTreeMap<u64, bool>>,
}

/// Mounts known at once.
const KNOWN: usize = 1024;

impl MemoryMounts {
    pub(super) fn find() -> Self {
        let huge = |lg2: u32| MemfdFlags::HUGETLB | MemfdFlags::from_bits_retain(lg2 << HUGE_SHIFT);
        let kinds = [MemfdFlags::empty(), huge(21), huge(30)];
        let device = |kind| {
            let fd = rustix::fs::memfd_create("ioasis", MemfdFlags::CLOEXEC | kind).ok()?;
            rustix::fs::fstat(fd).ok().map(|stat| stat.st_dev)
        };
        Self { kernels: kinds.into_iter().filter_map(device).collect(), known: Mutex::default() }
    }

    /// Whether the file that `vma` maps is on a mount of the kernel's own.
    pub(super) fn are_kernels(&self, vma: &Vma) -> bool {
        self.kernels.contains(&vma.device)
    }

    /// Whether the file that `vma` maps is on one, as far as `process` can see it. Asked of each
    /// mount once, where the kernel says on which mount the file is: from Linux 6.8 on, and to who
    /// may look below `/proc/PID/map_files`.
    pub(super) fn hold(&self, process: &Process, vma: &Vma) -> bool {
        if self.are_kernels(vma) {
            return true;
        }
        let mount = mount_of(process, vma);
        let known = mount.and_then(|mount| self.known.lock().get(&mount).copied());
        if let Some(known) = known {
            return known;
        }
        let told = mountinfo(process).and_then(|text| is_in_memory(text, vma.device));
        if let (Some(mount), Some(told)) = (mount, told) {
            let mut known = self.known.lock();
            if known.len() >= KNOWN {
                known.clear();
            }
            known.insert(mount, told);
        }
        told == Some(true)
    }
}

/// `STATX_MNT_ID_UNIQUE` of linux/stat.h.
const MOUNT_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// The number of the mount that `vma` maps a file of.
fn mount_of(process: &Process, vma: &Vma) -> Option<u64> {
    let name = map_file(vma);
    let flags = AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(process.proc(), name, flags, MOUNT_UNIQUE).ok()?;
    let device = rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor);
    let told = StatxFlags::from_bits_retain(stat.stx_mask).contains(MOUNT_UNIQUE);
    (told && device == vma.device).then_some(stat.stx_mnt_id)
}

/// Below /proc/PID, the link to the file that `vma` maps.
fn map_file(vma: &Vma) -> String {
    format!("map_files/{:x}-{:x}", vma.start, vma.last + 1)
}

/// Bytes of a mountinfo that are looked through: some 150 each of a hundred thousand mounts
/// (fs.mount-max). A program can make them longer; what comes after is not known to be in memory.
const MOUNTINFO_MAX: u64 = 16 << 20;

fn mountinfo(process: &Process) -> Option<impl BufRead + use<>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(process.proc(), "mountinfo", flags, Mode::empty()).ok()?;
    Some(BufReader::new(std::fs::File::from(fd).take(MOUNTINFO_MAX)))
}

/// Whether the file system with this number is in memory, by the first line that names it; none
/// where none does: `36 35 98:0 /root /mnt rw shared:1 - tmpfs source options`,
/// proc_pid_mountinfo(5).
fn is_in_memory(mut mountinfo: impl BufRead, device: u64) -> Option<bool> {
    let mut line = Vec::new();
    while mountinfo.read_until(b'\n', &mut line).is_ok() && line.ends_with(b"\n") {
        let text = String::from_utf8_lossy(&line);
        let number = text.split(' ').nth(2).and_then(|field| field.split_once(':'));
        let is_it = number.is_some_and(|(major, minor)| match (major.parse(), minor.parse()) {
            (Ok(major), Ok(minor)) => rustix::fs::makedev(major, minor) == device,
            _ => false,
        });
        if is_it {
            let kind = text.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next());
            return Some(matches!(kind, Some("tmpfs" | "hugetlbfs" | "ramfs" | "devtmpfs")));
        }
        line.clear();
    }
    None
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
    reopen(process.proc(), &map_file(vma), id, access).or_else(|| open_by_fd(process, id, access))
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
    use ioasis_sys::mapping::Mapping;

    #[test]
    fn a_file_system_is_known_by_its_device_and_kind() {
        let text = "36 35 0:57 /root /mnt/a\\040b rw,noatime master:1 shared:2 - tmpfs none rw\n\
            37 35 0:58 / /mnt2 rw - fuse.sshfs server rw\n";
        let of = |text: &str, device| is_in_memory(text.as_bytes(), device);
        assert_eq!(of(text, rustix::fs::makedev(0, 57)), Some(true));
        assert_eq!(of(text, rustix::fs::makedev(0, 58)), Some(false));
        assert_eq!(of(text, rustix::fs::makedev(0, 59)), None);
        assert_eq!(of("garbage\n- tmpfs", 0), None);
        assert_eq!(of(&text[..62], rustix::fs::makedev(0, 57)), None, "a line cut off");
    }

    #[test]
    fn a_list_of_mounts_is_read_to_a_bound() {
        let line = b"36 35 0:1 / /a rw - tmpfs none rw\n";
        let endless = || BufReader::new(std::io::repeat(b'x').take(u64::MAX));
        let reader = endless().take(MOUNTINFO_MAX);
        assert_eq!(is_in_memory(BufReader::new(reader), rustix::fs::makedev(0, 1)), None);
        let late = endless().take(MOUNTINFO_MAX - 1).chain(&line[..]).take(MOUNTINFO_MAX);
        assert_eq!(is_in_memory(BufReader::new(late), rustix::fs::makedev(0, 1)), None);
        let first = line.chain(endless());
        assert_eq!(is_in_memory(BufReader::new(first), rustix::fs::makedev(0, 1)), Some(true));
    }

    #[test]
    fn what_is_known_of_a_mount_is_what_its_list_says() {
        let path = format!("/dev/shm/ioasis-mounts-{}", std::process::id());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).expect("a tmpfs");
        rustix::fs::unlink(&path).expect("its own");
        rustix::fs::ftruncate(&file, 4096).expect("a size");
        let mapping = Mapping::file(file.as_fd(), 0, 4096, Access::ReadWrite).expect("mapped");
        let own = Process::open(std::process::id()).expect("this process");
        let inode = rustix::fs::fstat(&file).expect("stat").st_ino;
        let vmas = own.mm().expect("memory").vmas(0, u64::MAX).expect("mappings");
        let vma = vmas.into_iter().find(|vma| vma.inode == inode).expect("the mapping");
        let mounts = MemoryMounts::find();
        for _ in 0..2 {
            assert!(mounts.hold(&own, &vma));
        }
        let known = mounts.known.lock().clone();
        // A plain user is not told on which mount a mapped file is.
        assert!(known.is_empty() || known.values().eq([&true]), "{known:?}");
        let elsewhere = Vma { device: rustix::fs::makedev(0xfff, 0xf_ffff), ..vma };
        assert!(!mounts.hold(&own, &elsewhere), "not the device of what is mapped there");
        assert_eq!(*mounts.known.lock(), known);
        drop(mapping);
    }
}
