//! Other processes: their memory, files, mappings and credentials, by handles that cannot pass to somebody else.
//!
//! A number (of a thread, of a process) can be used again, by a process of another user or outside the run. So nothing
//! is kept by number. [`Thread::open`] turns a number into handles: a pidfd of the thread, an open `/proc/TID`, a pidfd
//! and an open `/proc/PID` of its thread group. They count only if the thread is still there after the last of them was
//! opened, which `open` itself makes sure of: a number belongs to its thread until that has ended.
//!
//! Memory is reached through the memory itself ([`Mm`]): the open files `maps` and `mem` hold Linux's mm. They answer
//! `ESRCH` and end of file once that has no user left, and never lead to another one, whatever becomes of the numbers.
//!
//! The three system calls that take a number only are used as follows: `process_vm_readv` to read, `prlimit` to read,
//! `kcmp` to compare, and what they say counts only if the thread is there afterwards ([`Thread::is_alive`]). Nothing is
//! ever written or signalled by number.
//!
//! A `Process` remembers its memory and does not notice when a thread of it executes another program. Whoever keeps one
//! for longer than a call says so by [`Process::executes`], and opens another afterwards.
//!
//! Lock order: `Process::mm` is a leaf.

#![expect(
    unsafe_code,
    reason = "kcmp, process_vm_readv, prlimit, PIDFD_GET_INFO and PROCMAP_QUERY are not in rustix"
)]

mod memory;
mod status;
#[cfg(test)]
mod tests;
mod thread;
mod vma;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use ioasis_uapi::{Errno, Error, Result};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};

use crate::because;
use crate::errno::last_errno;
use crate::sync::{Arc, Mutex};

pub use memory::Mm;
pub use status::{Credentials, text};
pub use thread::Thread;
pub use vma::{Vma, VmaProt};

/// A thread group.
#[derive(Debug)]
pub struct Process {
    /// Thread-group id. Immutable.
    pid: u32,
    /// Immutable.
    pidfd: OwnedFd,
    /// `/proc/PID`, opened `O_PATH`. Immutable.
    proc: OwnedFd,
    /// The memory its threads had when last asked.
    mm: Mutex<Option<Arc<Mm>>>,
    executed: AtomicBool,
}

impl Process {
    /// The process the thread `tid` belongs to.
    ///
    /// # Errors
    ///
    /// `ESRCH` when there is no such thread, `EMFILE`, `ENFILE`.
    pub fn open(tid: u32) -> Result<Arc<Self>> {
        Ok(Arc::clone(Thread::open(tid)?.process()))
    }

    /// Handles of the thread group `pid`: of one that a living thread belongs to.
    fn of_group(pid: u32) -> Result<Self> {
        let pidfd = rustix::process::pidfd_open(number(pid)?, PidfdFlags::empty())
            .map_err(because("the process is gone"))?;
        let proc = open_folder(&format!("/proc/{pid}"))?;
        Ok(Self { pid, pidfd, proc, mm: Mutex::new(None), executed: AtomicBool::new(false) })
    }

    /// Thread-group id.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether its number is still its own: it runs, or has ended and was not reaped yet.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        is_alive(self.pidfd.as_fd())
    }

    /// The memory it has now, reached through whichever of its threads still has it.
    ///
    /// The process may be executing another program meanwhile. Two looks at its mappings, before and after its memory
    /// was opened, must be of one memory; they are taken for that if they say the same.
    ///
    /// # Errors
    ///
    /// `ESRCH` when the process is gone, `EACCES` when it is not ours to look at.
    pub fn mm(&self) -> Result<Arc<Mm>> {
        let mut refused = gone(self.pid);
        for tid in self.threads()? {
            match open_folder_at(&self.proc, &format!("task/{tid}")).and_then(Mm::of_running) {
                Ok(mm) => return Ok(Arc::new(mm)),
                Err(error) if error.errno == Errno::ESRCH => {}
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    /// A duplicate of file descriptor `fd` of its first thread, closed on exec.
    ///
    /// # Errors
    ///
    /// `EBADF` when it has no such fd, or is gone; `EPERM` when it forbids being looked at; `EMFILE`.
    pub fn fd(&self, fd: i32) -> Result<OwnedFd> {
        if fd < 0 { Err(bad_fd(fd)) } else { get_fd(self.pidfd.as_fd(), fd) }
    }

    /// A thread of it is about to execute another program: what is remembered of the memory may soon be wrong.
    pub fn executes(&self) {
        self.executed.store(true, Ordering::Release);
    }

    /// Whether it was said to execute another program.
    #[must_use]
    pub fn has_executed(&self) -> bool {
        self.executed.load(Ordering::Acquire)
    }

    /// `/proc/PID`, for paths below it.
    #[must_use]
    pub fn proc(&self) -> BorrowedFd<'_> {
        self.proc.as_fd()
    }
}

impl AsFd for Process {
    /// The pidfd: readable once the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Whether the process or thread behind `pidfd` is still there.
fn is_alive(pidfd: BorrowedFd<'_>) -> bool {
    // SAFETY: 1. a null siginfo is allowed, signal 0 sends nothing, and the pidfd is open.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            0,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    // One that we may not signal is there.
    answer == 0 || last_errno() != Errno::ESRCH
}

fn open_folder(path: &str) -> Result<OwnedFd> {
    open_folder_at(rustix::fs::CWD, path)
}

fn open_folder_at(at: impl AsFd, path: &str) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(at, path, flags, Mode::empty()).map_err(|number| match number {
        rustix::io::Errno::NOENT | rustix::io::Errno::SRCH => {
            Error::new(Errno::ESRCH, "the process is gone")
        }
        other => because("the folder of a process cannot be opened")(other),
    })
}

fn open_file_at(at: impl AsFd, path: &str, access: OFlags) -> Result<OwnedFd> {
    rustix::fs::openat(at, path, access | OFlags::CLOEXEC, Mode::empty()).map_err(|number| {
        match number {
            rustix::io::Errno::NOENT | rustix::io::Errno::SRCH => {
                Error::new(Errno::ESRCH, "the process is gone")
            }
            other => {
                because("a file of a process cannot be opened: it is not ours to look at")(other)
            }
        }
    })
}

fn number(pid: u32) -> Result<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Error::at(
        Errno::ESRCH,
        "not a process id",
        pid.into(),
    ))
}

fn gone(pid: u32) -> Error {
    Error::at(Errno::ESRCH, "the process is gone", pid.into())
}

fn bad_fd(fd: i32) -> Error {
    Error::at(Errno::EBADF, "the process has no such fd", u64::from(fd.cast_unsigned()))
}

fn get_fd(pidfd: BorrowedFd<'_>, fd: i32) -> Result<OwnedFd> {
    rustix::process::pidfd_getfd(pidfd, fd, PidfdGetfdFlags::empty()).map_err(|number| match number
    {
        rustix::io::Errno::BADF | rustix::io::Errno::SRCH => bad_fd(fd),
        other => because("the fd cannot be duplicated")(other),
    })
}

/// Whether two descriptors of this process are one open file. A kernel without kcmp(2) does not say: then they are not.
#[must_use]
pub fn is_same_file(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    is_open_in(one, std::process::id(), other.as_raw_fd())
}

/// Whether the open file `own` is what descriptor `fd` of the thread `tid` stands for, as long as `tid` is the number of one. A kernel
/// without kcmp(2) does not say, nor does one for a thread that is not ours to look at: then it is not.
#[must_use]
pub fn is_open_in(own: BorrowedFd<'_>, tid: u32, fd: i32) -> bool {
    /// `KCMP_FILE` of linux/kcmp.h.
    const KCMP_FILE: i32 = 0;
    let pid = std::process::id();
    // SAFETY: 1. kcmp(2) takes five integers, looks at descriptors, and changes nothing.
    let answer = unsafe { libc::syscall(libc::SYS_kcmp, pid, tid, KCMP_FILE, own.as_raw_fd(), fd) };
    answer == 0
}
