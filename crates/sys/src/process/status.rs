//! What `/proc/PID` says about a process.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use ioasis_uapi::{Errno, Error, Result};
use rustix::fs::{AtFlags, Mode, OFlags};

use super::{Process, Thread, gone, open_file_at};
use crate::because;

/// Who a process runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Real user id.
    pub uid: u32,
    /// Real group id.
    pub gid: u32,
    /// Effective capabilities: bit n is capability n of linux/capability.h.
    pub capabilities: u64,
}

impl Credentials {
    /// `CAP_IPC_LOCK` of linux/capability.h.
    pub const IPC_LOCK: u32 = 14;
    /// `CAP_SYS_RESOURCE` of linux/capability.h.
    pub const SYS_RESOURCE: u32 = 24;
    /// `CAP_SYS_ADMIN` of linux/capability.h.
    pub const SYS_ADMIN: u32 = 21;
    /// `CAP_SYS_RAWIO` of linux/capability.h.
    pub const SYS_RAWIO: u32 = 17;

    /// Those that a `/proc/PID/status` tells, with ids of the user namespace of whoever opened it.
    #[must_use]
    pub fn of_status(status: &[u8]) -> Option<Self> {
        let first = |key| field(status, key)?.split_ascii_whitespace().next();
        Some(Self {
            uid: first("Uid:")?.parse().ok()?,
            gid: first("Gid:")?.parse().ok()?,
            capabilities: u64::from_str_radix(first("CapEff:")?, 16).ok()?,
        })
    }

    /// Whether capability number `capability` is effective.
    #[must_use]
    pub const fn has(&self, capability: u32) -> bool {
        self.capabilities & (1 << capability) != 0
    }
}

impl Thread {
    /// User, group and effective capabilities.
    ///
    /// # Errors
    ///
    /// `ESRCH` when the thread is gone.
    pub fn credentials(&self) -> Result<Credentials> {
        Credentials::of_status(&self.status()?).ok_or(gone(self.tid()))
    }

    /// The text of its `/proc/PID/status`.
    ///
    /// # Errors
    ///
    /// `ESRCH` when the thread is gone.
    pub fn status(&self) -> Result<Vec<u8>> {
        text(self.proc(), "status", STATUS_MAX)
    }

    /// Which user namespace it is in, as device and inode: its capabilities are for that one and those inside it.
    ///
    /// # Errors
    ///
    /// `ESRCH` when the thread is gone, `EACCES` when it is not ours to look at.
    pub fn user_namespace(&self) -> Result<(u64, u64)> {
        let stat = rustix::fs::statat(self.proc(), "ns/user", AtFlags::empty())
            .map_err(because("the user namespace of a process cannot be looked at"))?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// `RLIMIT_MEMLOCK` in bytes; `None` when unlimited.
    ///
    /// # Errors
    ///
    /// `ESRCH` when the thread is gone.
    pub fn memlock_limit(&self) -> Result<Option<u64>> {
        let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: 1. a null limit to set only reads, and `limit` is a local struct rlimit64.
        let answer = unsafe {
            libc::prlimit64(
                self.tid().cast_signed(),
                libc::RLIMIT_MEMLOCK,
                std::ptr::null(),
                &raw mut limit,
            )
        };
        // prlimit(2) has no form by descriptor: its answer counts only if the number is still the thread's.
        if !self.is_alive() {
            return Err(gone(self.tid()));
        }
        if answer == 0 {
            return Ok((limit.rlim_cur != libc::RLIM64_INFINITY).then_some(limit.rlim_cur));
        }
        // prlimit wants equal user ids or CAP_SYS_RESOURCE; the text is for everybody.
        let limits = string(text(self.proc(), "limits", TEXT_MAX)?);
        let line = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max locked memory"))
            .ok_or(gone(self.tid()))?;
        Ok(line.split_whitespace().next().and_then(|value| value.parse().ok()))
    }
}

impl Process {
    /// The program file, as the process's own root names it.
    ///
    /// # Errors
    ///
    /// `ESRCH` when the process is gone, `EACCES` when it is not ours to look at.
    pub fn exe(&self) -> Result<PathBuf> {
        let link = rustix::fs::readlinkat(self.proc(), "exe", Vec::new())
            .map_err(because("no program file"))?;
        Ok(PathBuf::from(OsString::from_vec(link.into_bytes())))
    }

    /// The name in `/proc/PID/comm`, at most 15 bytes.
    ///
    /// # Errors
    ///
    /// `ESRCH` when the process is gone.
    pub fn comm(&self) -> Result<String> {
        Ok(self.read_proc("comm")?.trim_end_matches('\n').to_owned())
    }

    /// Time of the start in clock ticks since boot: with the pid it names a process for good.
    ///
    /// # Errors
    ///
    /// `ESRCH` when the process is gone.
    pub fn start_time(&self) -> Result<u64> {
        let stat = self.read_proc("stat")?;
        // The name, field 2, may hold spaces and parentheses; start time is field 22 (proc_pid_stat(5)).
        let after_name = stat.rsplit_once(") ").map(|(_, rest)| rest);
        let start = after_name
            .and_then(|rest| rest.split_whitespace().nth(19))
            .and_then(|value| value.parse().ok());
        start.ok_or(gone(self.pid()))
    }

    /// Every thread, by number.
    ///
    /// # Errors
    ///
    /// `ESRCH` when the process is gone.
    pub fn threads(&self) -> Result<Vec<u32>> {
        let fd = rustix::fs::openat(
            self.proc(),
            "task",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|_| gone(self.pid()))?;
        let entries = rustix::fs::Dir::new(fd).map_err(because("the threads cannot be listed"))?;
        Ok(entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str().ok()?.parse().ok())
            .collect())
    }

    fn read_proc(&self, path: &str) -> Result<String> {
        Ok(string(text(self.proc(), path, TEXT_MAX)?))
    }
}

/// Bytes of a file of /proc that has no list in it.
const TEXT_MAX: usize = 1 << 16;
/// More than a status text with every group there can be (`NGROUPS_MAX`).
const STATUS_MAX: usize = 1 << 20;

/// The text of the file `path` below a directory of /proc: no more than `most` bytes are read.
///
/// # Errors
///
/// `E2BIG` when it is longer; `ESRCH` when the process is gone, `EACCES` when it is not ours to
/// look at.
pub fn text(directory: impl AsFd, path: &str, most: usize) -> Result<Vec<u8>> {
    use std::io::Read;
    let file = std::fs::File::from(open_file_at(directory, path, OFlags::RDONLY)?);
    // Most are shorter, and then read by one call.
    let mut text = Vec::with_capacity(4096);
    let read = file.take(most as u64 + 1).read_to_end(&mut text);
    read.map_err(|_| Error::new(Errno::ESRCH, "the process is gone"))?;
    if text.len() > most {
        return Err(Error::at(Errno::E2BIG, "a text of /proc is too long", most as u64));
    }
    Ok(text)
}

fn string(text: Vec<u8>) -> String {
    String::from_utf8(text)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// The thread group of the thread `tid`, whose folder in /proc is `proc`.
pub(super) fn group(proc: &OwnedFd, tid: u32) -> Result<u32> {
    let status = text(proc, "status", STATUS_MAX)?;
    field(&status, "Tgid:").and_then(|value| value.trim().parse().ok()).ok_or(gone(tid))
}

/// What follows `key` on its line. Names in a status text are escaped, so that no line is
/// another's.
fn field<'a>(status: &'a [u8], key: &str) -> Option<&'a str> {
    let mut lines = status.split(|&byte| byte == b'\n');
    let value = lines.find_map(|line| line.strip_prefix(key.as_bytes()))?;
    std::str::from_utf8(value).ok()
}
