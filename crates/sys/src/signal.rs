//! Signals of a process that stands between a terminal and the program it runs.
#![expect(unsafe_code, reason = "signal sets are filled in through pointers")]

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use ioasis_uapi::{Error, Result};

/// A set of signals.
#[derive(Clone, Copy)]
pub struct Set(libc::sigset_t);

impl std::fmt::Debug for Set {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries((1..=64).filter(|&signal| self.contains(signal))).finish()
    }
}

impl Set {
    /// No signal.
    #[must_use]
    pub fn empty() -> Self {
        let mut set = MaybeUninit::uninit();
        // SAFETY: 1. sigemptyset initializes the whole set it is given.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            Self(set.assume_init())
        }
    }

    /// Every signal except those in `but`.
    #[must_use]
    pub fn all_but(but: &[i32]) -> Self {
        let mut set = MaybeUninit::uninit();
        // SAFETY: 1. sigfillset initializes the whole set it is given.
        let mut set = unsafe {
            libc::sigfillset(set.as_mut_ptr());
            set.assume_init()
        };
        for &signal in but {
            // SAFETY: 1. the set is initialized; a number that is no signal is refused, not written.
            unsafe { libc::sigdelset(&raw mut set, signal) };
        }
        Self(set)
    }

    /// Whether `signal` is in the set.
    #[must_use]
    pub fn contains(&self, signal: i32) -> bool {
        // SAFETY: 1. the set is initialized.
        unsafe { libc::sigismember(&raw const self.0, signal) == 1 }
    }

    /// Makes this the set of signals that wait, for the calling thread; returns the one before.
    pub fn block(&self) -> Self {
        let mut old = MaybeUninit::uninit();
        // SAFETY: 1. both sets are valid for the call; 2. SIG_SETMASK with an initialized set cannot fail, so `old`
        // is written.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, old.as_mut_ptr());
            Self(old.assume_init())
        }
    }
}

/// Signals that say that the program itself is broken: blocking them would only hide it.
pub const BROKEN: [i32; 7] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGABRT,
    libc::SIGTRAP,
    libc::SIGSYS,
];

/// A signal that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Its number.
    pub signal: i32,
    /// Whether a process sent it, not the kernel: a terminal's Ctrl-C is the kernel's, and reaches the whole
    /// foreground process group.
    pub by_process: bool,
}

/// Blocked signals, to be read.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Receives the signals of `set`, which must be blocked in every thread.
    ///
    /// # Errors
    ///
    /// `EMFILE`, `ENOMEM`.
    pub fn new(set: &Set) -> Result<Self> {
        // SAFETY: 1. the set is initialized and only read.
        let fd =
            unsafe { libc::signalfd(-1, &raw const set.0, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(Error::new(crate::errno::last_errno(), "signalfd(2) fails"));
        }
        // SAFETY: 1. the kernel made this descriptor for the call above and nobody else knows its number.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next signal, or `None` if none is waiting.
    #[must_use]
    pub fn next(&self) -> Option<Arrived> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        // SAFETY: 1. the buffer is as large as the length says; 2. all bytes of the struct are plain integers, so
        // whatever was read, zeroes included, is a value.
        let (length, info) = unsafe {
            let length =
                libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size_of_val(&info));
            (length, info.assume_init())
        };
        (usize::try_from(length) == Ok(size_of_val(&info))).then(|| Arrived {
            signal: i32::try_from(info.ssi_signo).expect("a signal number"),
            by_process: info.ssi_code <= 0,
        })
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sends `signal` to the process behind `pidfd`, which cannot have become another one.
///
/// # Errors
///
/// `ESRCH` if it is gone, `EPERM` if it is another user's, `EINVAL` for a number that is no signal.
pub fn send(pidfd: impl AsFd, signal: i32) -> Result<()> {
    // SAFETY: 1. a null siginfo is allowed, and the pidfd is open.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if answer == 0 {
        return Ok(());
    }
    Err(Error::new(crate::errno::last_errno(), "the signal cannot be sent"))
}

/// How the parent of this process set its signals, as far as this process has to set them otherwise: a program started
/// here finds them as they were.
#[derive(Clone, Copy, Debug)]
pub struct Inherited {
    blocked: Set,
    /// What SIGCHLD does: where it is ignored, children leave no status.
    child: libc::sighandler_t,
}

impl Inherited {
    /// Notes how they are, for a process with one thread, and lets children leave a status.
    #[must_use]
    pub fn take() -> Self {
        let blocked = Set::empty().block();
        let _ = blocked.block();
        // SAFETY: 1. the default action runs no code.
        let child = unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
        Self { blocked, child }
    }

    /// The program that `command` executes finds them so. The standard library would unblock all signals.
    pub fn restore_in(self, command: &mut std::process::Command) {
        use std::os::unix::process::CommandExt;
        let restore = move || {
            self.blocked.block();
            if self.child == libc::SIG_IGN {
                // SAFETY: 1. to ignore a signal runs no code.
                unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
            }
            Ok(())
        };
        // SAFETY: 1. the closure makes two system calls, which are async-signal-safe, and takes no lock.
        unsafe { command.pre_exec(restore) };
    }
}

/// Ends this process the way another one was ended: by `signal`, without a core dump of its own.
pub fn die_of(signal: i32) -> ! {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let mut only = MaybeUninit::uninit();
    // SAFETY: 1. the limit and the set live across their calls and the set is initialized by sigemptyset; 2. the
    // default action replaces whatever handler there was, so no code of ours runs any more; 3. `_exit` ends the
    // process should the signal not be a fatal one.
    unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
        libc::signal(signal, libc::SIG_DFL);
        libc::sigemptyset(only.as_mut_ptr());
        libc::sigaddset(only.as_mut_ptr(), signal);
        libc::raise(signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, only.as_ptr(), std::ptr::null_mut());
        libc::_exit(128 + signal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_all_signals_but_those_left_out() {
        let set = Set::all_but(&BROKEN);
        assert!(set.contains(libc::SIGTERM) && set.contains(libc::SIGCHLD));
        assert!(!set.contains(libc::SIGSEGV) && !set.contains(libc::SIGABRT));
    }

    #[test]
    fn a_blocked_signal_is_read_with_its_origin() {
        let child = crate::spawn::fork_with(|| {
            let set = Set::all_but(&BROKEN);
            set.block();
            let signals = SignalFd::new(&set).expect("a signalfd");
            let own = rustix::process::getpid();
            let own = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty());
            send(own.expect("a pidfd"), libc::SIGUSR1).expect("ourselves");
            let expected = Some(Arrived { signal: libc::SIGUSR1, by_process: true });
            i32::from(signals.next() != expected || signals.next().is_some())
        });
        assert_eq!(child.expect("fork").wait().expect("a child").code(), Some(0));
    }

    #[test]
    fn a_process_can_die_of_a_signal_that_was_blocked() {
        use std::os::unix::process::ExitStatusExt;
        let child = crate::spawn::fork_with(|| {
            Set::all_but(&[]).block();
            die_of(libc::SIGTERM)
        });
        assert_eq!(child.expect("fork").wait().expect("a child").signal(), Some(libc::SIGTERM));
    }
}
