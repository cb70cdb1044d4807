//! How our files look: fstat and the links in /proc/PID/fd say what Linux says of the device nodes.

use ioasis_sys::notify::{Answer, Notification};
use ioasis_uapi::{Errno, Result};
use rustix::fs::Stat;

use super::client::Caller;
use super::{Decision, Server};
use crate::filter::number;
use crate::resolve::{self, From};
use crate::task::signed;

/// Bytes of `struct stat` on x86_64 (asm/stat.h).
const STAT: usize = 144;
/// Bytes of `struct statx` (linux/stat.h).
const STATX: usize = 256;
/// `STATX_BASIC_STATS`.
const BASIC: u32 = 0x7ff;
/// `S_IFCHR`, and what the nodes' permissions are.
const CHARACTER_DEVICE: u32 = 0o020_600;
/// The same of an anonymous inode.
const ANONYMOUS: u32 = 0o600;

/// fstat, newfstatat and statx of a descriptor.
pub(super) fn stat(caller: &Caller<'_>, call: &Notification) -> Result<Decision> {
    let [fd, path, third, _, fifth, _] = call.args;
    if call.number != number::FSTAT && !is_empty(caller, path) {
        return Ok(Decision::CONTINUE);
    }
    let (file, identity) = caller.identified(signed(fd))?;
    let server = caller.server;
    let (own, rdev, mode) = if let Some(opened) = server.files.get(identity.0, identity.1) {
        let own =
            rustix::fs::fstat(&opened.own()?).map_err(ioasis_sys::because("a file is gone"))?;
        (own, opened.look.rdev, CHARACTER_DEVICE)
    } else if is_anonymous(server, identity) {
        let own = rustix::fs::fstat(&file).map_err(ioasis_sys::because("a file is gone"))?;
        (own, (0, 0), ANONYMOUS)
    } else {
        return Ok(Decision::CONTINUE);
    };
    let (address, bytes) = match call.number {
        number::FSTAT => (path, stat_bytes(&own, rdev, mode).to_vec()),
        number::NEWFSTATAT => (third, stat_bytes(&own, rdev, mode).to_vec()),
        _ => (fifth, statx_bytes(&own, rdev, mode).to_vec()),
    };
    caller.task.write(address, &bytes)?;
    Ok(Decision::Answer(Answer::Value(0)))
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

fn stat_bytes(own: &Stat, rdev: (u32, u32), mode: u32) -> [u8; STAT] {
    let mut bytes = [0; STAT];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &own.st_dev.to_ne_bytes());
    put(8, &own.st_ino.to_ne_bytes());
    put(16, &1_u64.to_ne_bytes()); // st_nlink
    put(24, &mode.to_ne_bytes());
    put(28, &own.st_uid.to_ne_bytes());
    put(32, &own.st_gid.to_ne_bytes());
    put(40, &encoded(rdev).to_ne_bytes());
    put(56, &4096_u64.to_ne_bytes()); // st_blksize
    for (at, time) in [(72, own.st_atime), (88, own.st_mtime), (104, own.st_ctime)] {
        put(at, &time.to_ne_bytes());
    }
    bytes
}

fn statx_bytes(own: &Stat, rdev: (u32, u32), mode: u32) -> [u8; STATX] {
    let mut bytes = [0; STATX];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    let dev = (rustix::fs::major(own.st_dev), rustix::fs::minor(own.st_dev));
    put(0, &BASIC.to_ne_bytes());
    put(4, &4096_u32.to_ne_bytes()); // stx_blksize
    put(16, &1_u32.to_ne_bytes()); // stx_nlink
    put(20, &own.st_uid.to_ne_bytes());
    put(24, &own.st_gid.to_ne_bytes());
    put(28, &mode.to_ne_bytes()[..2]);
    put(32, &own.st_ino.to_ne_bytes());
    for (at, time) in [(64, own.st_atime), (96, own.st_ctime), (112, own.st_mtime)] {
        put(at, &time.to_ne_bytes());
    }
    for (at, number) in [(128, rdev.0), (132, rdev.1), (136, dev.0), (140, dev.1)] {
        put(at, &number.to_ne_bytes());
    }
    bytes
}

/// A device number as stat(2) gives it (`new_encode_dev`, linux/kdev_t.h).
fn encoded((major, minor): (u32, u32)) -> u64 {
    u64::from(minor & 0xff | major << 8 | (minor & !0xff) << 12)
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
    let behind = caller.find(|wait| resolve::behind_descriptor_link(from, &path, wait))?;
    let Some((_, behind)) = behind else { return Ok(Decision::CONTINUE) };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_number_is_encoded_as_the_kernel_does() {
        assert_eq!(encoded((10, 126)), 10 << 8 | 126);
        assert_eq!(encoded((511, 0x345)), 0x0031_ff45);
    }
}
