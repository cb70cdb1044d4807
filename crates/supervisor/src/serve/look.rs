//! How our files look: fstat and the links in /proc/PID/fd say what Linux says of the device nodes.

use std::os::fd::{AsRawFd, OwnedFd};

use ioasis_sys::fuse::{Owner, Time};
use ioasis_sys::notify::{Answer, Notification};
use ioasis_uapi::{Errno, Result};
use rustix::fs::Stat;

use super::client::Caller;
use super::{Decision, Server};
use crate::filter::{AT_STATX_DONT_SYNC, number};
use crate::resolve::{self, From, Last, Seen};
use crate::task::{low, signed};
use crate::view;

/// Bytes of `struct stat` on x86_64 (asm/stat.h).
const STAT: usize = 144;
/// Bytes of `struct statx` (linux/stat.h).
const STATX: usize = 256;
/// `STATX_BASIC_STATS`.
const BASIC: u32 = 0x7ff;
/// `AT_SYMLINK_NOFOLLOW` of linux/fcntl.h.
const AT_SYMLINK_NOFOLLOW: u32 = 0x100;
/// `S_IFCHR`, and what the nodes' permissions are.
const CHARACTER_DEVICE: u32 = 0o020_600;
/// The same of an anonymous inode.
const ANONYMOUS: u32 = 0o600;

/// fstat, newfstatat and statx of a descriptor, and statx of the link to one that does not wait for file systems.
pub(super) fn stat(caller: &Caller<'_>, call: &Notification) -> Result<Decision> {
    let [fd, path, third, _, fifth, _] = call.args;
    let (file, identity) = if call.number == number::FSTAT || is_empty(caller, path) {
        caller.identified(signed(fd))?
    } else {
        let flags = low(third);
        let followed = flags & AT_STATX_DONT_SYNC != 0 && flags & AT_SYMLINK_NOFOLLOW == 0;
        let linked = call.number == number::STATX && followed;
        match linked.then(|| behind_link(caller, signed(fd), path)).transpose()?.flatten() {
            Some(behind) => behind,
            None => return Ok(Decision::CONTINUE),
        }
    };
    let server = caller.server;
    let of_file = |file: &OwnedFd| {
        rustix::fs::fstat(file).map(of_own).map_err(ioasis_sys::because("a file is gone"))
    };
    let shown = if let Some(opened) = server.files.get(identity.0, identity.1) {
        let rdev = opened.look.rdev;
        let own = Shown { rdev, ..of_file(&opened.own()?)? };
        match rdev {
            (0, 0) => own,
            _ => as_node(server, Shown { mode: CHARACTER_DEVICE, ..own }),
        }
    } else if is_anonymous(server, identity) {
        of_file(&file)?
    } else {
        return Ok(Decision::CONTINUE);
    };
    let (address, bytes) = match call.number {
        number::FSTAT => (path, stat_bytes(&shown).to_vec()),
        number::NEWFSTATAT => (third, stat_bytes(&shown).to_vec()),
        _ => (fifth, statx_bytes(&shown).to_vec()),
    };
    caller.task.write(address, &bytes)?;
    Ok(Decision::Answer(Answer::Value(0)))
}

/// The file behind the link in /proc/PID/fd that `path` leads to. What the supervisor and the watchdog hold, Linux has in no
/// process.
fn behind(caller: &Caller<'_>, from: From<'_>, path: &[u8]) -> Result<Option<(OwnedFd, Seen)>> {
    let behind = caller.find(|wait| resolve::behind_descriptor_link(from, path, wait))?;
    let Some((file, seen)) = behind else { return Ok(None) };
    let split = path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    let directory = if split == 0 { b"." } else { &path[..split] };
    let find = |wait| resolve::resolve(from, directory, Last::Follow, wait);
    let Some((directory, _)) = caller.find(find)? else { return Ok(None) };
    let link = format!("/proc/self/fd/{}", directory.as_raw_fd());
    let directory = rustix::fs::readlink(link, Vec::new());
    let directory = directory.map_err(ioasis_sys::because("a directory of /proc is gone"))?;
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    let own = [std::process::id().to_string(), parent.to_string()];
    let is_own = |part: &[u8]| own.iter().any(|pid| pid.as_bytes() == part);
    let ours = directory.as_bytes().split(|&byte| byte == b'/').any(is_own);
    Ok((!ours).then_some((file, seen)))
}

/// The file behind such a link, if it is ours. As its name ([`readlink`]), its number is told to whoever can name the process.
fn behind_link(
    caller: &Caller<'_>,
    dirfd: i32,
    path: u64,
) -> Result<Option<(OwnedFd, (u64, u64))>> {
    let path = caller.task.path(path)?;
    let from = From { process: &caller.task.process, tid: caller.task.tid, dirfd };
    let Some((file, seen)) = behind(caller, from, &path)? else { return Ok(None) };
    let (server, identity) = (caller.server, (seen.dev, seen.ino));
    let ours = seen.dev == server.files.dev() || server.queues.get(identity).is_some();
    Ok(ours.then_some((file, identity)))
}

/// What is shown of a file; other fields are those of an empty one.
#[derive(Clone, Copy, Debug)]
struct Shown {
    dev: u64,
    ino: u64,
    mode: u32,
    owner: Owner,
    rdev: (u32, u32),
    /// Of the last access, of the last change of its content, of the last change of anything.
    times: [Time; 3],
}

/// An anonymous file of this identity and owner.
fn of_own(own: Stat) -> Shown {
    let time = |seconds| Time { seconds, nanoseconds: 0 };
    Shown {
        dev: own.st_dev,
        ino: own.st_ino,
        mode: ANONYMOUS,
        owner: Owner { uid: own.st_uid, gid: own.st_gid },
        rdev: (0, 0),
        times: [own.st_atime, own.st_mtime, own.st_ctime].map(time),
    }
}

/// `own` as its node, which is one file with it on Linux.
fn as_node(server: &Server, own: Shown) -> Shown {
    let Some(files) = server.queues.file_system() else { return own };
    let Some(of) = files.devices().with_number(own.rdev) else { return own };
    let (dev, rdev) = (files.dev(), own.rdev);
    Shown { dev, ino: of.node, mode: of.mode, owner: of.owner, rdev, times: of.times }
}

/// Whether it is a queue, which Linux has no type of file for (`alloc_anon_inode`, fs/libfs.c).
fn is_anonymous(server: &Server, identity: (u64, u64)) -> bool {
    let file = server.queues.get(identity);
    file.is_some_and(|file| file.queue().is_some_and(|queue| !queue.is_seekable()))
}

/// Whether `address` leads to an empty path; Linux 6.11 takes none at all for one.
fn is_empty(caller: &Caller<'_>, address: u64) -> bool {
    let mut first = [1];
    address == 0 || caller.task.read(address, &mut first).is_ok() && first == [0]
}

fn stat_bytes(of: &Shown) -> [u8; STAT] {
    let mut bytes = [0; STAT];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &of.dev.to_ne_bytes());
    put(8, &of.ino.to_ne_bytes());
    put(16, &1_u64.to_ne_bytes()); // st_nlink
    put(24, &of.mode.to_ne_bytes());
    put(28, &of.owner.uid.to_ne_bytes());
    put(32, &of.owner.gid.to_ne_bytes());
    put(40, &u64::from(view::encoded(of.rdev)).to_ne_bytes());
    put(56, &4096_u64.to_ne_bytes()); // st_blksize
    for (at, time) in [72, 88, 104].into_iter().zip(of.times) {
        put(at, &time.seconds.to_ne_bytes());
        put(at + 8, &u64::from(time.nanoseconds).to_ne_bytes());
    }
    bytes
}

fn statx_bytes(of: &Shown) -> [u8; STATX] {
    let mut bytes = [0; STATX];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    let dev = (rustix::fs::major(of.dev), rustix::fs::minor(of.dev));
    put(0, &BASIC.to_ne_bytes());
    put(4, &4096_u32.to_ne_bytes()); // stx_blksize
    put(16, &1_u32.to_ne_bytes()); // stx_nlink
    put(20, &of.owner.uid.to_ne_bytes());
    put(24, &of.owner.gid.to_ne_bytes());
    put(28, &of.mode.to_ne_bytes()[..2]);
    put(32, &of.ino.to_ne_bytes());
    for (at, time) in [64, 112, 96].into_iter().zip(of.times) {
        put(at, &time.seconds.to_ne_bytes());
        put(at + 8, &time.nanoseconds.to_ne_bytes());
    }
    for (at, number) in [(128, of.rdev.0), (132, of.rdev.1), (136, dev.0), (140, dev.1)] {
        put(at, &number.to_ne_bytes());
    }
    bytes
}

/// readlink and readlinkat of a link in /proc/PID/fd.
pub(super) fn readlink(caller: &Caller<'_>, call: &Notification) -> Result<Decision> {
    let [first, second, third, fourth, ..] = call.args;
    let (dirfd, path, buffer, size) = match call.number {
        number::READLINK => (-100, first, second, third),
        _ => (signed(first), second, third, fourth),
    };
    let path = caller.task.path(path)?;
    let from = From { process: &caller.task.process, tid: caller.task.tid, dirfd };
    let Some((_, behind)) = behind(caller, from, &path)? else { return Ok(Decision::CONTINUE) };
    let (dev, inode) = (behind.dev, behind.ino);
    let server = caller.server;
    let name = server.files.get(dev, inode).map(|opened| opened.look.path.clone());
    let name = name.or_else(|| Some(server.queues.get((dev, inode))?.name().to_owned()));
    let Some(name) = name else { return Ok(Decision::CONTINUE) };
    let size = signed(size);
    if size <= 0 {
        return Ok(Decision::Answer(Answer::Error(Errno::EINVAL)));
    }
    let text = name.as_bytes();
    let text = &text[..text.len().min(usize::try_from(size).expect("positive"))];
    caller.task.write(buffer, text)?;
    Ok(Decision::Answer(Answer::Value(text.len().try_into().expect("a short text"))))
}
