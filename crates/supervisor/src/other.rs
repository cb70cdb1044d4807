//! The other of the two processes that watch a run, seen from each of them.
//!
//! A client of the same user can stop either (SIGSTOP), and a stopped process cannot help itself. So each looks twice a
//! second, and lets the other go on. Whoever stops both stops the run.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use ioasis_sys::{because, signal};
use ioasis_uapi::{Error, Result};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal};

/// How often each looks.
pub(crate) const LOOK: Duration = Duration::from_millis(500);

/// A process, by handles that stay its own.
#[derive(Debug)]
pub(crate) struct Other {
    pid: u32,
    pidfd: OwnedFd,
    /// Its folder in /proc.
    proc: OwnedFd,
}

impl Other {
    /// The process `pid`, which is this one, its parent or a child that was not reaped: the number is its own.
    ///
    /// # Errors
    ///
    /// `EMFILE`.
    pub(crate) fn open(pid: u32) -> Result<Self> {
        let none = Error::new(ioasis_uapi::Errno::ESRCH, "not a process id");
        let number = Pid::from_raw(pid.cast_signed()).ok_or(none)?;
        let pidfd = rustix::process::pidfd_open(number, PidfdFlags::empty());
        let pidfd = pidfd.map_err(because("no pidfd of a process of the run"))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty());
        Ok(Self { pid, pidfd, proc: proc.map_err(because("no folder in /proc for the run"))? })
    }

    /// Its number, which stays its own until whoever made it has reaped it.
    pub(crate) const fn pid(&self) -> u32 {
        self.pid
    }

    /// Every descriptor of it.
    pub(crate) fn files(&self) -> [BorrowedFd<'_>; 2] {
        [self.pidfd.as_fd(), self.proc.as_fd()]
    }

    /// Whether a signal has stopped it; one that a debugger holds is not stopped.
    pub(crate) fn is_stopped(&self) -> bool {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let Ok(stat) = rustix::fs::openat(&self.proc, "stat", flags, Mode::empty()) else {
            return false;
        };
        let mut text = [0; 64];
        let length = rustix::io::read(stat, &mut text).unwrap_or(0);
        // The state follows a name that may hold anything and is shorter than this.
        let name_end = text[..length].iter().rposition(|&byte| byte == b')');
        name_end.is_some_and(|end| text.get(end + 2) == Some(&b'T'))
    }

    /// Lets it go on, stopped or not.
    pub(crate) fn go_on(&self) {
        let _ = signal::send(&self.pidfd, Signal::CONT.as_raw());
    }
}

impl AsFd for Other {
    /// Readable once it has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_process_is_seen_and_goes_on() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let other = Other::open(child.id()).expect("it runs");
        let becomes = |stopped| {
            let start = std::time::Instant::now();
            while other.is_stopped() != stopped {
                assert!(start.elapsed() < Duration::from_secs(60), "it stays {stopped}");
                std::thread::sleep(Duration::from_millis(2));
            }
        };
        becomes(false);
        signal::send(&other, Signal::STOP.as_raw()).expect("it is ours");
        becomes(true);
        other.go_on();
        becomes(false);
        child.kill().expect("it runs");
        child.wait().expect("it was killed");
        assert!(!other.is_stopped());
    }
}
