//! What `/proc/PID` says about a process.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use ioasis_uapi::{Errno, Error, Result};
use rustix::fs::{AtFlags, Mode, OFlags};

use super::Process;
use crate::because;
use crate::errno::last_errno;

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

    /// Whether capability number `capability` is effective.
    #[must_use]
    pub const fn has(&self, capability: u32) -> bool {
        self.capabilities & (1 << capability) != 0
    }
}

impl Process {
    /// User, group and effective capabilities.
    ///
    /// # Errors
    ///
    /// `ESRCH` when the process is gone.
    pub fn credentials(&self) -> Result<Credentials> {
        let status = self.status()?;
        let first = |key| field(&status, key).and_then(|value| value.split_whitespace().next());
        let number = |key| first(key).and_then(|value| value.parse().ok());
        let capabilities = first("CapEff:").and_then(|value| u64::from_str_radix(value, 16).ok());
        match (number("Uid:"), number("Gid:"), capabilities) {
            (Some(uid), Some(gid), Some(capabilities)) => {
                Ok(Credentials { uid, gid, capabilities })
            }
            _ => Err(gone(self.pid())),
        }
    }

    /// Which user namespace it is in, as device and inode: its capabilities are for that one and those inside it.
    ///
    /// # Errors
    ///
    /// `ESRCH` when the process is gone, `EACCES` when it is not ours to look at.
    pub fn user_namespace(&self) -> Result<(u64, u64)> {
        let stat = rustix::fs::statat(self.proc(), "ns/user", AtFlags::empty())
            .map_err(because("the user namespace of a process cannot be looked at"))?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// `RLIMIT_MEMLOCK` in bytes; `None` when unlimited.
    ///
    /// # Errors
    ///
    /// `ESRCH` when the process is gone.
    pub fn memlock_limit(&self) -> Result<Option<u64>> {
        let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: 1. a null limit to set only reads, and `limit` is a local struct rlimit64.
        let answer = unsafe {
            libc::prlimit64(
                self.task().cast_signed(),
                libc::RLIMIT_MEMLOCK,
                std::ptr::null(),
                &raw mut limit,
            )
        };
        if answer == 0 {
            return Ok((limit.rlim_cur != libc::RLIM64_INFINITY).then_some(limit.rlim_cur));
        }
        if last_errno() == Errno::ESRCH {
            return Err(gone(self.pid()));
        }
        // prlimit wants equal user ids or CAP_SYS_RESOURCE; the text is for everybody.
        let limits = self.read_proc("limits")?;
        let line = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max locked memory"))
            .ok_or(gone(self.pid()))?;
        Ok(line.split_whitespace().next().and_then(|value| value.parse().ok()))
    }

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

    /// Whether thread `tid` still has the process's memory: one that has ended has none.
    pub(super) fn has_memory(&self, tid: u32) -> bool {
        self.read_proc(&format!("task/{tid}/status"))
            .is_ok_and(|status| field(&status, "VmSize:").is_some())
    }

    fn status(&self) -> Result<String> {
        self.read_proc("status")
    }

    pub(super) fn read_proc(&self, path: &str) -> Result<String> {
        use std::io::Read;
        let fd = self.open_proc(path).map_err(|error| match error.errno {
            Errno::ENOENT => gone(self.pid()),
            _ => error,
        })?;
        let mut text = Vec::new();
        std::fs::File::from(fd).read_to_end(&mut text).map_err(|_| gone(self.pid()))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// The thread group of thread `tid`.
pub(super) fn thread_group(tid: u32) -> Result<u32> {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).map_err(|_| gone(tid))?;
    field(&status, "Tgid:").and_then(|value| value.trim().parse().ok()).ok_or(gone(tid))
}

fn field<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(key))
}

fn gone(pid: u32) -> Error {
    Error::at(Errno::ESRCH, "the process is gone", pid.into())
}
