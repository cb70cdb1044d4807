//! How many descriptors this process has, and what they may be kept for.
//!
//! Each call that is answered takes a few for a moment, each open file and each thing given to a device keeps some. The
//! kernel hands out the lowest free number (`get_unused_fd_flags`, fs/file.c), so a number says how many are in use. The
//! last quarter is for the moment only: what is to be kept and has a number there is refused ([`keep`]), and its owner is
//! told `EMFILE`. So no client can take those that the answers to others need.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use ioasis_uapi::{Errno, Error, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// As many as a process needs that simulates a large machine, where the limit may be raised.
const WANTED: u64 = 1 << 16;
/// More are of no use: each open file takes memory of the kernel's.
const MOST: u64 = 1 << 20;

/// How many there are; unlimited before [`allow_many`].
static LIMIT: AtomicU32 = AtomicU32::new(u32::MAX);

/// Takes as many as the system gives. The client has the limit that its parent set, since it was forked before.
pub(crate) fn allow_many() {
    let before = getrlimit(Resource::Nofile);
    let hard = before.maximum.unwrap_or(MOST);
    let raised = |limit| Rlimit { current: Some(limit), maximum: Some(limit) };
    // Raising the hard limit takes CAP_SYS_RESOURCE.
    let limit = [hard.max(WANTED), hard]
        .into_iter()
        .find(|&limit| setrlimit(Resource::Nofile, raised(limit)).is_ok())
        .unwrap_or(before.current.unwrap_or(MOST));
    LIMIT.store(u32::try_from(limit.min(MOST)).expect("at most a million"), Ordering::Relaxed);
}

fn number(file: BorrowedFd<'_>) -> u32 {
    file.as_raw_fd().unsigned_abs()
}

/// The descriptor, to be kept longer than a call.
///
/// # Errors
///
/// `EMFILE` if it is one of the last.
pub(crate) fn keep(file: OwnedFd) -> Result<OwnedFd> {
    use std::os::fd::AsFd;
    let limit = LIMIT.load(Ordering::Relaxed);
    if number(file.as_fd()) >= limit - limit / 4 {
        return Err(Error::at(Errno::EMFILE, "too many descriptors are kept", limit.into()));
    }
    Ok(file)
}

/// Whether there are more than enough of them, so that some can be kept to save time. What is kept so stays below a quarter
/// of them, and leaves the next two quarters to what must be kept: with half of 64, the files of two devices came into the
/// last quarter whenever a few calls were answered at once.
pub(crate) fn are_plenty(file: BorrowedFd<'_>) -> bool {
    number(file) < LIMIT.load(Ordering::Relaxed) / 4
}

/// Whether there are so many that what is never needed may take some.
pub(crate) fn are_many() -> bool {
    LIMIT.load(Ordering::Relaxed) >= 1024
}

/// How many files all clients together may have open: each takes up to three descriptors here, and an inotify watch of
/// the user's, of which others may want some.
pub(crate) fn most_files() -> usize {
    let watches = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_watches");
    let watches = watches.ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(8192);
    let most = u64::from(LIMIT.load(Ordering::Relaxed) / 4).min(watches / 2).min(WANTED);
    usize::try_from(most).expect("64-bit usize")
}
