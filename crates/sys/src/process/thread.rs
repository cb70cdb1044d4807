//! One thread of another process.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use ioasis_uapi::{Errno, Error, Result};

use super::{Mm, Process, bad_fd, get_fd, gone, open_folder};
use crate::errno::last_errno;
use crate::sync::Arc;

/// A thread, for as long as it lives: when it has ended, all this answers `ESRCH` or `EBADF`.
#[derive(Debug)]
pub struct Thread {
    /// Its number, while it lives. Immutable.
    tid: u32,
    /// A pidfd of the thread; of its thread group before Linux 6.9, which has none for threads. Immutable.
    pidfd: OwnedFd,
    kind: PidfdKind,
    /// `/proc/TID`, opened `O_PATH`. Immutable.
    proc: OwnedFd,
    /// Immutable.
    process: Arc<Process>,
}

/// What a pidfd is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PidfdKind {
    Thread,
    Group,
}

/// `struct pidfd_info` of linux/pidfd.h, its first version.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    /// Real, effective, saved and file system ids, user and group each; then an exit code.
    rest: [u32; 9],
}

const _: () = assert!(size_of::<PidfdInfo>() == 64);

/// `PIDFD_GET_INFO`: `_IOWR(0xff, 11, struct pidfd_info)`, Linux 6.13.
const PIDFD_GET_INFO: libc::c_ulong = 0xc040_ff0b;

impl AsFd for Thread {
    /// The pidfd: readable once the thread has ended, or before Linux 6.9 its thread group.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Thread {
    /// The thread with the number `tid` now.
    ///
    /// Whoever has the number from a notification asks the kernel whether that is still valid once this has returned:
    /// the number may have passed on before.
    ///
    /// # Errors
    ///
    /// `ESRCH` when there is no such thread, `EMFILE`, `ENFILE`.
    pub fn open(tid: u32) -> Result<Self> {
        Self::open_in(tid, |_| None)
    }

    /// The same, with `known` giving the process with a certain id where its handles are there already.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open).
    pub fn open_in(tid: u32, known: impl FnOnce(u32) -> Option<Arc<Process>>) -> Result<Self> {
        let thread_pidfd = pidfd_of_thread(tid)?;
        let proc = open_folder(&format!("/proc/{tid}"))?;
        let pid = match thread_pidfd.as_ref().map(|pidfd| group_by_info(pidfd.as_fd())) {
            Some(Ok(Some(pid))) => pid,
            Some(Err(error)) => return Err(error),
            Some(Ok(None)) | None => super::status::group(&proc, tid)?,
        };
        let process = match known(pid).filter(|process| process.is_alive()) {
            Some(process) => process,
            None => Arc::new(Process::of_group(pid)?),
        };
        let (pidfd, kind) = match thread_pidfd {
            Some(pidfd) => (pidfd, PidfdKind::Thread),
            None => {
                let group = process.as_fd().try_clone_to_owned();
                let group = group.map_err(|_| Error::new(Errno::EMFILE, "too many open files"))?;
                (group, PidfdKind::Group)
            }
        };
        let thread = Self { tid, pidfd, kind, proc, process };
        // Alive after all was opened: then every number above was its own or its process's all the while.
        if thread.is_alive() { Ok(thread) } else { Err(gone(tid)) }
    }

    /// Its number.
    #[must_use]
    pub const fn tid(&self) -> u32 {
        self.tid
    }

    /// Its thread group.
    #[must_use]
    pub const fn process(&self) -> &Arc<Process> {
        &self.process
    }

    /// `/proc/TID`, for paths below it.
    #[must_use]
    pub fn proc(&self) -> BorrowedFd<'_> {
        self.proc.as_fd()
    }

    /// Whether its number is certainly still its own: it has not ended. Before Linux 6.9 the number
    /// may have passed to another thread of the same process, though.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        match self.kind {
            PidfdKind::Thread => !has_ended(self.pidfd.as_fd()),
            PidfdKind::Group => {
                // SAFETY: 1. tgkill(2) takes three integers, and signal 0 sends nothing.
                let answer =
                    unsafe { libc::syscall(libc::SYS_tgkill, self.process.pid(), self.tid, 0) };
                (answer == 0 || last_errno() == Errno::EPERM) && self.process.is_alive()
            }
        }
    }

    /// The memory it has, which all threads of its process share: the `Process` remembers it. To be asked while the
    /// thread waits in a system call that is not an exec, so that it cannot get another.
    ///
    /// # Errors
    ///
    /// `ESRCH` when the thread is gone, `EACCES` when it is not ours to look at.
    pub fn mm(&self) -> Result<Arc<Mm>> {
        let mut current = self.process.mm.lock();
        if let Some(mm) = &*current {
            return Ok(Arc::clone(mm));
        }
        let mm = Arc::new(Mm::open(&self.proc)?);
        *current = Some(Arc::clone(&mm));
        Ok(mm)
    }

    /// A duplicate of its file descriptor `fd`, closed on exec.
    ///
    /// # Errors
    ///
    /// `EBADF` when the thread has no such fd, or is gone; `EPERM` when it forbids being looked at; `EMFILE`.
    pub fn fd(&self, fd: i32) -> Result<OwnedFd> {
        if fd < 0 { Err(bad_fd(fd)) } else { get_fd(self.pidfd.as_fd(), fd) }
    }

    /// Whether [`Thread::fd`] looks into the thread's own table of descriptors, where that is not its process's: from
    /// Linux 6.9 on.
    #[must_use]
    pub fn reaches_own_table(&self) -> bool {
        self.kind == PidfdKind::Thread
    }

    /// Whether this thread and `other` have one memory, as the child of a vfork has its parent's. A kernel without
    /// kcmp(2) does not say: then they have not.
    #[must_use]
    pub fn shares_memory_with(&self, other: &Self) -> bool {
        /// `KCMP_VM` of linux/kcmp.h.
        const KCMP_VM: i32 = 1;
        // SAFETY: 1. kcmp(2) takes five integers and changes nothing.
        let answer = unsafe { libc::syscall(libc::SYS_kcmp, self.tid, other.tid, KCMP_VM, 0, 0) };
        // Both there afterwards: the numbers were theirs.
        answer == 0 && self.is_alive() && other.is_alive()
    }
}

/// Whether the thread behind a pidfd of its own has ended, as poll(2) says: 0.36 us, where a signal
/// of nothing takes 0.56.
fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut polled = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: 1. one struct pollfd, which lives across the call; 2. a timeout of 0 waits for
    // nothing.
    let answer = unsafe { libc::poll(&raw mut polled, 1, 0) };
    answer != 0
}

/// A pidfd of one thread; none before Linux 6.9.
fn pidfd_of_thread(tid: u32) -> Result<Option<OwnedFd>> {
    /// `PIDFD_THREAD` of linux/pidfd.h.
    const PIDFD_THREAD: u32 = libc::O_EXCL.cast_unsigned();
    super::number(tid)?;
    // SAFETY: 1. pidfd_open takes two integers.
    let answer = unsafe { libc::syscall(libc::SYS_pidfd_open, tid, PIDFD_THREAD) };
    match i32::try_from(answer) {
        // SAFETY: 1. a fresh descriptor nobody else knows of.
        Ok(fd @ 0..) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        _ => match last_errno() {
            Errno::EINVAL => Ok(None),
            Errno::ESRCH => Err(gone(tid)),
            errno => Err(Error::at(errno, "no handle of a thread is to be had", tid.into())),
        },
    }
}

/// The thread group of the thread behind `pidfd`; none before Linux 6.13, which does not say.
fn group_by_info(pidfd: BorrowedFd<'_>) -> Result<Option<u32>> {
    let mut info = PidfdInfo::default();
    // SAFETY: 1. the struct is the one whose size the number names, so the kernel writes nothing else.
    let answer = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    if answer == 0 {
        return Ok(Some(info.tgid).filter(|&pid| pid != 0));
    }
    match last_errno() {
        Errno::ESRCH => Err(Error::new(Errno::ESRCH, "the thread is gone")),
        _ => Ok(None),
    }
}
