//! Another process: its memory, files, mappings and credentials.
//!
//! A [`Process`] is held by pidfd and by an open `/proc/PID`, so that its pid being taken by somebody else is noticed:
//! both answer `ESRCH` from the moment it is gone. System calls that take a number only (`process_vm_readv` and
//! `_writev`) are used with [`is_alive`](Process::is_alive) by those who keep a process longer than one notification.
//!
//! Memory is never written through `/proc/PID/mem`: it would write what the process itself may only read.

#![expect(
    unsafe_code,
    reason = "kcmp, process_vm_readv, process_vm_writev, prlimit and PROCMAP_QUERY are not in rustix"
)]

mod memory;
mod status;
#[cfg(test)]
mod tests;
mod vma;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use ioasis_uapi::{Errno, Error, Result};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};

use crate::because;
use crate::errno::last_errno;
use crate::sync::{Arc, Mutex};

pub use status::Credentials;
pub use vma::{Mm, Vma, VmaProt};

/// A thread group.
#[derive(Debug)]
pub struct Process {
    /// Thread-group id. Immutable.
    pid: u32,
    /// Immutable.
    pidfd: OwnedFd,
    /// `/proc/PID`, opened `O_PATH`. Immutable.
    proc: OwnedFd,
    /// The thread whose number memory is reached by: the leader, unless it has ended before the others.
    task: AtomicU32,
    /// The memory it had when last asked.
    mm: Mutex<Option<Arc<Mm>>>,
    /// A pidfd for the thread that asked last, when that was not the leader.
    thread: Mutex<Option<(u32, OwnedFd)>>,
}

impl Process {
    /// The process the thread `tid` belongs to. A number can pass to another process at any time: whoever got it from a
    /// notification asks the kernel whether that is still valid once this has returned.
    ///
    /// # Errors
    ///
    /// `ESRCH` when there is no such thread, `EMFILE`, `ENFILE`.
    pub fn open(tid: u32) -> Result<Self> {
        let pid = status::thread_group(tid)?;
        let number = number(pid)?;
        let pidfd = rustix::process::pidfd_open(number, PidfdFlags::empty())
            .map_err(because("the process is gone"))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty())
            .map_err(|_| Error::at(Errno::ESRCH, "the process is gone", pid.into()))?;
        Ok(Self {
            pid,
            pidfd,
            proc,
            task: AtomicU32::new(pid),
            mm: Mutex::new(None),
            thread: Mutex::new(None),
        })
    }

    /// Thread-group id.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it still runs. A pid cannot pass to another process before this says no.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        // SAFETY: 1. a null siginfo is allowed, signal 0 sends nothing, and the pidfd is open.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                0,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        // A process we may not signal is alive.
        answer == 0 || last_errno() != Errno::ESRCH
    }

    /// Whether it still runs and `tid` is one of its threads.
    #[must_use]
    pub fn has_thread(&self, tid: u32) -> bool {
        // SAFETY: 1. tgkill(2) takes three integers, and signal 0 sends nothing.
        let answer = unsafe { libc::syscall(libc::SYS_tgkill, self.pid, tid, 0) };
        // A thread we may not signal is there. The thread group's number is not another's while this one lives.
        (answer == 0 || last_errno() == Errno::EPERM) && self.is_alive()
    }

    /// A duplicate of file descriptor `fd` of thread `tid`, closed on exec.
    ///
    /// # Errors
    ///
    /// `EBADF` when the thread has no such fd, or is gone; `EPERM` when it forbids being looked at; `EMFILE`.
    pub fn fd(&self, tid: u32, fd: i32) -> Result<OwnedFd> {
        if fd < 0 {
            return Err(bad_fd(fd));
        }
        if tid == self.pid {
            return get_fd(self.pidfd.as_fd(), fd);
        }
        // A thread may have a descriptor table of its own, and may outlive the leader, whose table is then gone.
        let mut cached = self.thread.lock();
        if !matches!(&*cached, Some((owner, pidfd)) if *owner == tid && thread_is_alive(pidfd.as_fd()))
        {
            *cached = Some((tid, self.thread_pidfd(tid)?));
        }
        let Some((_, pidfd)) = &*cached else { return Err(bad_fd(fd)) };
        get_fd(pidfd.as_fd(), fd)
    }

    /// A pidfd of one thread; of the leader on kernels before 6.9, which have none for threads.
    fn thread_pidfd(&self, tid: u32) -> Result<OwnedFd> {
        /// `PIDFD_THREAD` of linux/pidfd.h.
        const PIDFD_THREAD: u32 = libc::O_EXCL.cast_unsigned();
        // SAFETY: 1. pidfd_open takes two integers.
        let answer = unsafe { libc::syscall(libc::SYS_pidfd_open, tid, PIDFD_THREAD) };
        match i32::try_from(answer) {
            // SAFETY: 1. a fresh descriptor nobody else knows of.
            Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            _ if last_errno() == Errno::EINVAL => {
                self.pidfd.try_clone().map_err(|_| Error::new(Errno::EMFILE, "too many open files"))
            }
            _ => Err(Error::at(Errno::EBADF, "the thread is gone", tid.into())),
        }
    }

    /// Opens `path` below `/proc/PID` for reading.
    fn open_proc(&self, path: &str) -> Result<OwnedFd> {
        rustix::fs::openat(&self.proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(because(
                "nothing to be read about the process: it is gone or not ours to look at",
            ))
    }

    /// `/proc/PID`, for paths below it.
    #[must_use]
    pub fn proc(&self) -> BorrowedFd<'_> {
        self.proc.as_fd()
    }

    fn task(&self) -> u32 {
        self.task.load(Ordering::Relaxed)
    }

    /// Chooses another thread to reach the memory by, when the one used so far has ended but not the process.
    fn choose_task(&self, dead: u32) -> bool {
        let Ok(threads) = self.threads() else { return false };
        let other = threads.into_iter().find(|&tid| tid != dead && self.has_memory(tid));
        if let Some(tid) = other {
            self.task.store(tid, Ordering::Relaxed);
        }
        other.is_some()
    }
}

impl AsFd for Process {
    /// The pidfd: readable once the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

fn number(pid: u32) -> Result<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Error::at(
        Errno::ESRCH,
        "not a process id",
        pid.into(),
    ))
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
    /// `KCMP_FILE` of linux/kcmp.h.
    const KCMP_FILE: i32 = 0;
    let pid = std::process::id();
    // SAFETY: 1. kcmp(2) takes five integers and looks at this process's own descriptors, which are open.
    let answer = unsafe {
        libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_FILE, one.as_raw_fd(), other.as_raw_fd())
    };
    answer == 0
}

/// A thread's number may be used again while the process lives.
fn thread_is_alive(pidfd: BorrowedFd<'_>) -> bool {
    let ended = rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN);
    rustix::event::poll(&mut [ended], Some(&rustix::event::Timespec::default())) == Ok(0)
}
