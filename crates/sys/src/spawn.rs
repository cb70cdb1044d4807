//! Processes made by fork(2), where the child goes on with this program's state.
#![expect(
    unsafe_code,
    reason = "fork(2) copies a process in the middle of whatever it does, and a child's memory is reached"
)]

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use ioasis_uapi::{Errno, Error, Result};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, WaitIdStatus};

/// A child process.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: OwnedFd,
}

/// Which of the two processes this is after a fork.
#[derive(Debug)]
pub enum Fork {
    /// The one that called.
    Parent(Child),
    /// The copy.
    Child,
}

/// Makes a copy of the calling process. Only the calling thread exists in the copy: in a process with several, the
/// copy must not take any lock that another thread may hold (the allocator's are handled by libc).
///
/// # Errors
///
/// `EAGAIN` or `ENOMEM`.
pub fn fork() -> Result<Fork> {
    // SAFETY: 1. memory is copied, not shared, and every object in it stays valid for the thread that goes on;
    // 2. libc's fork handlers leave its own locks usable in the child.
    let pid = unsafe { libc::fork() };
    match pid {
        0 => Ok(Fork::Child),
        1.. => {
            let pid = Pid::from_raw(pid).expect("fork returned a process id");
            let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
                .map_err(crate::because("a pidfd of the child cannot be had"))?;
            Ok(Fork::Parent(Child { pid, pidfd }))
        }
        _ => Err(Error::new(crate::errno::last_errno(), "fork(2) fails")),
    }
}

/// Runs `child` in a copy of the calling process, which ends with the status it returns and runs no destructor.
/// The same caution as for [`fork`] applies.
///
/// # Errors
///
/// `EAGAIN` or `ENOMEM`.
pub fn fork_with(child: impl FnOnce() -> i32) -> Result<Child> {
    match fork()? {
        Fork::Parent(made) => Ok(made),
        Fork::Child => exit(child()),
    }
}

/// Ends the process at once: no destructors, no exit handlers.
pub fn exit(status: i32) -> ! {
    // SAFETY: 1. _exit(2) does not return and touches no memory.
    unsafe { libc::_exit(status) }
}

/// Whether the calling process has exactly one thread, so that a fork copies a consistent state.
#[must_use]
pub fn is_single_threaded() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1)
}

impl Child {
    /// Its process id, which stays its own until it has been waited for.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Waits for it to end, and reaps it.
    ///
    /// # Errors
    ///
    /// `ECHILD` if it was reaped already.
    pub fn wait(&self) -> Result<ExitStatus> {
        loop {
            match rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED)
            {
                Ok(Some(status)) => return Ok(exit_status(&status)),
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(raw) => return Err(crate::because("the child cannot be waited for")(raw)),
            }
        }
    }

    /// Copies `buf.len()` bytes from `address` of its memory by process_vm_readv(2). Its number is its own until it is
    /// reaped, so nobody else's are reached.
    ///
    /// # Errors
    ///
    /// `EFAULT` unless all of them can be read, `ESRCH` once it has ended.
    pub fn read_memory(&self, address: u64, buf: &mut [u8]) -> Result<()> {
        let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
        let remote = remote(address, buf.len());
        let pid = self.pid.as_raw_nonzero().get();
        // SAFETY: 1. `local` is a buffer we hold exclusively; 2. the kernel checks the remote address in the child.
        let copied =
            unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
        whole(copied, buf.len())
    }

    /// Copies `buf` to `address` of its memory by process_vm_writev(2), as [`read_memory`](Self::read_memory).
    ///
    /// # Errors
    ///
    /// `EFAULT` unless all of it can be written, `ESRCH` once it has ended.
    pub fn write_memory(&self, address: u64, buf: &[u8]) -> Result<()> {
        let local = libc::iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len: buf.len() };
        let remote = remote(address, buf.len());
        let pid = self.pid.as_raw_nonzero().get();
        // SAFETY: 1. a write only reads `local`, a buffer we hold; 2. the kernel checks the remote address in the child.
        let copied =
            unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) };
        whole(copied, buf.len())
    }

    /// Ends it with `SIGKILL`; nothing happens if it has ended already.
    pub fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
    }
}

fn remote(address: u64, length: usize) -> libc::iovec {
    let address = usize::try_from(address).expect("64-bit addresses");
    libc::iovec { iov_base: std::ptr::without_provenance_mut(address), iov_len: length }
}

fn whole(copied: isize, length: usize) -> Result<()> {
    match usize::try_from(copied) {
        Ok(copied) if copied == length => Ok(()),
        Ok(_) => Err(Error::new(Errno::EFAULT, "not all of the child's memory is there")),
        Err(_) => Err(Error::new(crate::errno::last_errno(), "the child's memory is not reached")),
    }
}

impl AsFd for Child {
    /// Readable once the child has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// A child of the calling thread that has ended; the main thread's are also those that were left to this process. It
/// stays a zombie until [`reap`].
///
/// # Errors
///
/// `ECHILD` if there is no child at all.
pub fn ended() -> Result<Option<(u32, ExitStatus)>> {
    match peek(libc::P_ALL, 0)? {
        // It stopped, for a tracer that is another thread of this process, and hides those behind it.
        Some((_, None)) => {
            let ends = children().into_iter().filter_map(|pid| {
                let (pid, status) = peek(libc::P_PID, pid).ok()??;
                Some((pid, status?))
            });
            Ok({ ends }.next())
        }
        found => Ok(found.and_then(|(pid, status)| Some((pid, status?)))),
    }
}

/// The first child that has ended or stopped, and how it ended. Nothing is taken.
fn peek(which: libc::idtype_t, pid: libc::id_t) -> Result<Option<(u32, Option<ExitStatus>)>> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WNOTHREAD;
    // SAFETY: 1. `info` is valid for the call; 2. its bytes are plain integers, so zeroes are a value.
    let (result, info) = unsafe {
        let result = libc::waitid(which, pid, info.as_mut_ptr(), options);
        (result, info.assume_init())
    };
    if result != 0 {
        return Err(Error::new(crate::errno::last_errno(), "there are no children"));
    }
    // SAFETY: 1. waitid(2) filled in the fields of a child's status, or left the zeroes there.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let Ok(pid @ 1..) = u32::try_from(pid) else { return Ok(None) };
    Ok(Some((pid, end(info.si_code, status))))
}

/// How a child ended, from `si_code` and `si_status` of waitid(2); `None` if it did not.
pub(crate) fn end(code: i32, status: i32) -> Option<ExitStatus> {
    let raw = match code {
        libc::CLD_EXITED => (status & 0xff) << 8,
        libc::CLD_DUMPED => status | 0x80,
        libc::CLD_KILLED => status,
        _ => return None,
    };
    Some(ExitStatus::from_raw(raw))
}

/// The children of the calling thread.
fn children() -> Vec<u32> {
    let text = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Reaps the ended child `pid`.
pub fn reap(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let _ = rustix::process::waitid(WaitId::Pid(pid), options);
    }
}

/// Waits for the child `pid` to end. It stays a zombie until [`reap`].
///
/// # Errors
///
/// `ECHILD` if the calling process has no such child.
pub fn wait_for(pid: u32) -> Result<ExitStatus> {
    let gone = Error::at(Errno::from_raw(libc::ECHILD), "no such child", pid.into());
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(gone)?;
    loop {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        match rustix::process::waitid(WaitId::Pid(pid), options) {
            Ok(Some(status)) if status.stopped() || status.trapped() => {
                // A tracer has it; whoever that is goes on with it.
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            Ok(Some(status)) => return Ok(exit_status(&status)),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return Err(gone),
        }
    }
}

/// Closes every descriptor from 3 on that an executed program would inherit. This program opens all of its own with
/// `FD_CLOEXEC`, so what this closes was handed to it for somebody else.
pub fn close_inherited() {
    for fd in open_descriptors().into_iter().filter(|&fd| fd > 2) {
        // SAFETY: 1. fcntl(2) with F_GETFD touches no memory; 2. no object of this program owns a descriptor without
        // FD_CLOEXEC beyond the standard three, so nobody uses the number afterwards.
        unsafe {
            let flags = libc::fcntl(fd, libc::F_GETFD);
            if flags >= 0 && flags & libc::FD_CLOEXEC == 0 {
                libc::close(fd);
            }
        }
    }
}

/// Closes every descriptor from 3 on except `kept`, in a process that was forked to do one thing: whatever else it
/// inherited must neither be used nor dropped.
pub fn close_all_but(kept: &[BorrowedFd<'_>]) {
    let mut kept: Vec<u32> = kept
        .iter()
        .filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok())
        .filter(|&fd| fd > 2)
        .collect();
    kept.sort_unstable();
    let mut first = 3;
    for &fd in kept.iter().chain([&u32::MAX]) {
        if first < fd {
            let last = if fd == u32::MAX { u32::MAX } else { fd - 1 };
            // SAFETY: 1. close_range(2) touches no memory; 2. the caller uses only the descriptors it kept, and ends
            // the process without dropping others.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
        first = fd.saturating_add(1);
    }
}

fn open_descriptors() -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn exit_status(status: &WaitIdStatus) -> ExitStatus {
    let core = if status.dumped() { 0x80 } else { 0 };
    ExitStatus::from_raw(match status.terminating_signal() {
        Some(signal) => signal | core,
        None => (status.exit_status().unwrap_or(0) & 0xff) << 8,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_descriptors_that_were_kept_stay_open() {
        let child = fork_with(|| {
            let (kept, closed) = crate::message::pair().expect("sockets");
            let before = open_descriptors().contains(&closed.as_raw_fd());
            close_all_but(&[kept.as_fd()]);
            let mut left = open_descriptors();
            left.retain(|&fd| rustix::fs::fstat(kept.as_fd()).is_ok() && fd > 2);
            // The listing itself had a descriptor, which is gone.
            left.retain(|fd| std::fs::metadata(format!("/proc/self/fd/{fd}")).is_ok());
            exit(i32::from(!before || left != [kept.as_raw_fd()]))
        });
        assert_eq!(child.expect("fork").wait().expect("a child").code(), Some(0));
    }

    #[test]
    fn a_child_that_ended_is_found_with_its_status_and_reaped_once() {
        let child = fork_with(|| {
            let inner = fork_with(|| 7).expect("fork");
            let found = loop {
                if let Some(found) = ended().expect("a child exists") {
                    break found;
                }
            };
            assert_eq!(ended().expect("not reaped yet"), Some(found));
            reap(found.0);
            assert_eq!(ended().map_err(|error| error.errno), Err(Errno::from_raw(libc::ECHILD)));
            i32::from(found != (inner.id(), ExitStatus::from_raw(7 << 8)))
        });
        assert_eq!(child.expect("fork").wait().expect("a child").code(), Some(0));
    }
}
