//! /proc/PID/fdinfo/N of our files: the kernel's text of the file behind, as Linux would write it of ours.
//!
//! DIFFERS: the text is that of the open; in Linux every read from its start makes it anew.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use ioasis_sys::process;
use rustix::fs::{AtFlags, Mode, OFlags};

use super::client::Caller;
use super::judge::may_see;
use super::open::{on_exec, text_file};
use super::{Decision, File, Gift, Line, Server};
use crate::filter::O_ACCMODE;
use crate::resolve::Seen;
use crate::task::OpenCall;
use crate::view;

/// `O_APPEND` (asm-generic/fcntl.h), with which every file of ours is open.
const O_APPEND: u32 = 0o2000;

/// The answer to an open of an fdinfo file, if it is of one of our files. As with /proc/PID/status, its path says only where
/// to look for the file that it may be.
pub(super) fn answer(
    caller: &Caller<'_>,
    open: &OpenCall<'_>,
    (found, seen): (&OwnedFd, Seen),
) -> Option<Decision> {
    let server = caller.server;
    if open.flags & O_ACCMODE != 0 || !seen.is_in_own_procfs() || !mentions_fdinfo(&open.path) {
        return None;
    }
    let path = rustix::fs::readlink(format!("/proc/self/fd/{}", found.as_raw_fd()), Vec::new());
    let path = path.ok()?.into_string().ok()?;
    let (directory, number) = path.rsplit_once('/')?;
    let number: u32 = number.parse().ok()?;
    let directory_name = view::status::directory(directory.as_bytes(), "fdinfo")?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory =
        rustix::fs::open(format!("/proc/{directory_name}"), flags, Mode::empty()).ok()?;
    let name = format!("fdinfo/{number}");
    if !Seen::at(directory.as_fd(), &*name, AtFlags::SYMLINK_NOFOLLOW).ok()?.is(&seen) {
        return None;
    }
    let behind = Seen::at(directory.as_fd(), format!("fd/{number}"), AtFlags::empty()).ok()?;
    let opened = server.files.get(behind.dev, behind.ino)?;
    let kernels = process::text(&directory, &name, view::status::TEXT_MAX).ok()?;
    let shown = shown(std::str::from_utf8(&kernels).ok()?, server, &opened.file);
    if !caller.is_there() {
        return None;
    }
    // Of what keeps the program from it the kernel tells.
    let own = caller.task.process.pid().to_string();
    if directory_name.split('/').next() != Some(&own) && !may_see(caller, found.as_fd()) {
        return None;
    }
    let file = text_file(caller, shown.as_bytes()).ok()?;
    Some(Decision::Give(Gift { file, on_exec: on_exec(open.flags), line: Line::None }))
}

/// Whether a path may lead to such a file; by a name that a program gave it, it is the kernel's.
fn mentions_fdinfo(path: &[u8]) -> bool {
    let digits = path.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let rest = &path[..path.len() - digits];
    digits > 0 && (rest.is_empty() || rest.ends_with(b"fdinfo/"))
}

/// The text of a device's file at its start (`seq_show`, fs/proc/fd.c; `vfio_device_show_fdinfo`).
fn shown(kernels: &str, server: &Server, file: &File) -> String {
    let mut text: String = kernels.lines().filter(|line| !is_own_lock(line)).map(line).collect();
    if let File::Device { device, .. } = file
        && let Some(directory) = server.directories.get(device.device().name())
    {
        text += &format!("vfio-device-syspath: /sys/{directory}\n");
    }
    text
}

/// Whether a line is that of a lock on one byte, by which open files are told apart ([`crate::files`]). A program's own lies
/// elsewhere, or on more.
fn is_own_lock(line: &str) -> bool {
    let range = || line.rsplit(' ').take(2).collect::<Vec<_>>();
    line.starts_with("lock:")
        && line.contains(" OFDLCK ")
        && matches!(range()[..], [a, b] if a == b)
}

fn line(kernels: &str) -> String {
    let flags = kernels.strip_prefix("flags:\t").and_then(|text| u32::from_str_radix(text, 8).ok());
    match flags {
        Some(flags) => format!("flags:\t0{:o}\n", flags & !O_APPEND),
        None if kernels.starts_with("pos:\t") => "pos:\t0\n".to_owned(),
        None => format!("{kernels}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_number_can_be_such_a_file() {
        for path in [&b"/proc/1/fdinfo/3"[..], b"fdinfo/77", b"12"] {
            assert!(mentions_fdinfo(path), "{path:?}");
        }
        for path in [&b"/proc/1/fdinfo/"[..], b"/etc/fd3", b"/dev/vfio/1", b""] {
            assert!(!mentions_fdinfo(path), "{path:?}");
        }
    }

    #[test]
    fn a_file_is_at_its_start_and_does_not_append() {
        assert_eq!(line("pos:\t9223372036854775807"), "pos:\t0\n");
        assert_eq!(line("flags:\t02102002"), "flags:\t02100002\n");
        assert_eq!(line("mnt_id:\t27"), "mnt_id:\t27\n");
        assert!(is_own_lock("lock:\t1: OFDLCK ADVISORY  WRITE -1 00:28:4 1 1"));
        assert!(!is_own_lock("lock:\t1: POSIX  ADVISORY  WRITE 7 00:28:4 0 EOF"));
    }
}
