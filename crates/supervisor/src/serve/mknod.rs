//! mknod(2) of a device of the run by root of a machine who is not root of the host.
//!
//! Root of the host makes a node with the device's own number, by which it is known ([`numbers`](super::numbers)). For
//! anybody else the kernel refuses every number but 0:0 (`vfs_mknod`, fs/namei.c), and so that one is made, with the
//! task's own rights, and known by device and inode.
//!
//! DIFFERS: stat of such a node says 0:0.

use std::os::fd::AsFd;

use ioasis_sys::because;
use ioasis_sys::notify::{Answer, Notification};
use ioasis_uapi::{Errno, Error, Result};
use rustix::fs::{AtFlags, FileType, Mode};

use super::Decision;
use super::client::Caller;
use super::judge::{TaskRights, umask};
use crate::filter::number;
use crate::resolve::{self, From, Last, Seen, Way};
use crate::task::{low, signed};

/// Nodes known at once.
const NODES: usize = 4096;

/// A device number in the 32 bits that system calls take (`new_decode_dev`, linux/kdev_t.h).
const fn decoded(number: u32) -> (u32, u32) {
    (number >> 8 & 0xfff, number & 0xff | number >> 12 & 0xf_ff00)
}

pub(super) fn mknod(caller: &Caller<'_>, call: &Notification) -> Result<Decision> {
    let [first, second, third, fourth, ..] = call.args;
    let (dirfd, path, mode, number) = match call.number {
        number::MKNOD => (-100, first, low(second), low(third)),
        _ => (signed(first), second, low(third), low(fourth)),
    };
    let server = caller.server;
    let Some(node) = server.own_node_of_number(decoded(number)) else {
        return Ok(Decision::CONTINUE);
    };
    let Ok(task) = TaskRights::of(caller) else { return Ok(Decision::CONTINUE) };
    if !task.make_nodes_elsewhere() {
        return Ok(Decision::CONTINUE);
    }
    caller.may_wait()?;
    let path = caller.task.path(path)?;
    let split = path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    let (parent, name) = path.split_at(split);
    let parent = if parent.is_empty() { b"." } else { parent };
    if matches!(name, b"" | b"." | b"..") {
        return Ok(Decision::CONTINUE);
    }
    let from = From { process: &caller.task.process, tid: caller.task.tid, dirfd };
    let resolved = caller.find(|wait| resolve::resolve(from, parent, Last::Follow, wait))?;
    let Some((directory, seen)) = resolved else { return Ok(Decision::CONTINUE) };
    let way = Way::of(from, parent, Last::Follow).map_err(because("a way cannot be judged"))?;
    let full = Error::at(Errno::ENOSPC, "too many nodes were made", NODES as u64);
    if server.made.lock().len() >= NODES {
        return Err(full);
    }
    let refused = because("a node cannot be made");
    let gone = Error::new(Errno::ESRCH, "the task is gone");
    let umask = Mode::from_raw_mode(umask(caller).ok_or(gone)?);
    let made = task.lend(|| {
        way.go(seen)?;
        rustix::process::umask(umask);
        let mode = Mode::from_raw_mode(mode & 0o7777);
        rustix::fs::mknodat(&directory, name, FileType::CharacterDevice, mode, 0)?;
        Seen::at(directory.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW)
    })?;
    let made = made.map_err(refused)?;
    server.made.lock().insert((made.dev, made.ino), node);
    Ok(Decision::Answer(Answer::Value(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_taken_apart_as_the_kernel_does() {
        assert_eq!(decoded(10 << 8 | 196), (10, 196));
        assert_eq!(decoded(0x0031_ff45), (511, 0x345));
    }
}
