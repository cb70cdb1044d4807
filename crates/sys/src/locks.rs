//! Open-file-description locks on image files: they belong to the open file, survive fork, vanish with its last
//! fd, and are seen by QEMU and every other program that asks (fcntl(2), F_OFD_SETLK).

#![expect(
    unsafe_code,
    reason = "fcntl with a struct flock, which rustix offers for process locks only"
)]

use std::os::fd::{AsFd, AsRawFd};

use ioasis_uapi::{Errno, Error, Result};

use crate::errno::last_errno;

/// How a file is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Together with other readers.
    Shared,
    /// Alone.
    Exclusive,
}

/// Who stands in the way of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// This process holds a lock of its own: its pid.
    Process(u32),
    /// The lock belongs to an open file, and no process that has it open could be found.
    Unknown,
}

/// Locks the whole of `file` until its last fd is closed.
///
/// # Errors
///
/// `EBADF` when `file` is not open for what `lock` needs, `EINVAL` or `ENOLCK` where the file system has no locks. A
/// lock somebody else holds is no error but the inner `Err`, with whoever holds it.
pub fn lock(file: impl AsFd, lock: Lock) -> Result<Result<(), Holder>> {
    let fd = file.as_fd().as_raw_fd();
    let mut request = whole_file(lock);
    // SAFETY: 1. `fd` is open, `request` a local struct flock, and F_OFD_SETLK only reads it.
    if unsafe { libc::fcntl(fd, libc::F_OFD_SETLK, &raw mut request) } == 0 {
        return Ok(Ok(()));
    }
    match last_errno() {
        Errno::EAGAIN | Errno::EACCES if is_contended(fd, lock) => Ok(Err(holder(fd, lock))),
        errno => Err(Error::new(errno, "the file cannot be locked")),
    }
}

/// Locks the whole of `file`, or says that somebody else has a lock. Opens nothing, so that it can be asked where no file can be
/// opened.
///
/// # Errors
///
/// As [`lock`].
pub fn try_lock(file: impl AsFd, lock: Lock) -> Result<bool> {
    let mut request = whole_file(lock);
    // SAFETY: 1. the descriptor is open, `request` a local struct flock, and F_OFD_SETLK only reads it.
    if unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_OFD_SETLK, &raw mut request) } == 0 {
        return Ok(true);
    }
    match last_errno() {
        Errno::EAGAIN | Errno::EACCES => Ok(false),
        errno => Err(Error::new(errno, "the file cannot be locked")),
    }
}

/// Gives the lock of `file` up, if it has one.
///
/// # Errors
///
/// `ENOLCK` where the file system has no locks.
pub fn unlock(file: impl AsFd) -> Result<()> {
    let mut request = whole_file(Lock::Shared);
    request.l_type = i16::try_from(libc::F_UNLCK).expect("the lock types are tiny");
    // SAFETY: 1. the descriptor is open, `request` a local struct flock, and F_OFD_SETLK only reads it.
    if unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_OFD_SETLK, &raw mut request) } == 0 {
        return Ok(());
    }
    Err(Error::new(last_errno(), "the lock of the file cannot be given up"))
}

/// Locks one byte of `file`, which need not exist, until its last descriptor and mapping are gone. Readers and writers
/// of a file take the lock that their access mode allows.
///
/// # Errors
///
/// `EBADF` when `file` is not open for what `lock` needs, `EAGAIN` if another open file holds it.
pub fn lock_byte(file: impl AsFd, byte: u32, lock: Lock) -> Result<()> {
    let mut request = at_byte(byte, lock);
    // SAFETY: 1. the descriptor is open, `request` a local struct flock, and F_OFD_SETLK only reads it.
    if unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_OFD_SETLK, &raw mut request) } == 0 {
        return Ok(());
    }
    Err(Error::at(last_errno(), "a byte of the file cannot be locked", byte.into()))
}

/// Whether another open file than `file`, on the same inode, holds a lock on the byte.
#[must_use]
pub fn is_byte_locked(file: impl AsFd, byte: u32) -> bool {
    let mut request = at_byte(byte, Lock::Exclusive);
    // SAFETY: 1. the descriptor is open and `request` a local struct flock, which F_OFD_GETLK overwrites.
    let answered =
        unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_OFD_GETLK, &raw mut request) } == 0;
    answered && i32::from(request.l_type) != libc::F_UNLCK
}

fn at_byte(byte: u32, lock: Lock) -> libc::flock {
    let mut request = whole_file(lock);
    request.l_start = byte.into();
    request.l_len = 1;
    request
}

fn whole_file(lock: Lock) -> libc::flock {
    let kind = match lock {
        Lock::Shared => libc::F_RDLCK,
        Lock::Exclusive => libc::F_WRLCK,
    };
    // SAFETY: 1. an all-zero struct flock is a valid one; OFD locks want l_pid zero.
    let mut request: libc::flock = unsafe { std::mem::zeroed() };
    request.l_type = i16::try_from(kind).expect("the lock types are tiny");
    request.l_whence = i16::try_from(libc::SEEK_SET).expect("zero");
    request
}

/// The lock that conflicts, as the kernel reports it.
fn conflict(fd: i32, lock: Lock) -> Option<libc::flock> {
    let mut request = whole_file(lock);
    // SAFETY: 1. `fd` is open and `request` a local struct flock, which F_OFD_GETLK overwrites.
    let answered = unsafe { libc::fcntl(fd, libc::F_OFD_GETLK, &raw mut request) } == 0;
    (answered && i32::from(request.l_type) != libc::F_UNLCK).then_some(request)
}

fn is_contended(fd: i32, lock: Lock) -> bool {
    conflict(fd, lock).is_some()
}

fn holder(fd: i32, lock: Lock) -> Holder {
    let reported = conflict(fd, lock)
        .and_then(|found| u32::try_from(found.l_pid).ok())
        .filter(|&pid| pid != 0);
    reported.or_else(|| find_by_fdinfo(fd)).map_or(Holder::Unknown, Holder::Process)
}

/// A process with a lock in `/proc/PID/fdinfo/N` on the inode behind `fd`: an OFD lock reports pid -1, so whoever
/// has the file open is looked for.
fn find_by_fdinfo(fd: i32) -> Option<u32> {
    // SAFETY: 1. the caller's fd stays open during this call.
    let inode = rustix::fs::fstat(unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }).ok()?;
    let own = std::process::id();
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(fds) = std::fs::read_dir(process.path().join("fdinfo")) else { continue };
        for info in fds.flatten() {
            let ours = pid == own && info.file_name().to_str() == Some(&fd.to_string());
            let locked =
                std::fs::read_to_string(info.path()).is_ok_and(|text| text.contains("lock:\t"));
            if !ours && locked && same_inode(pid, &info.file_name(), &inode) {
                return Some(pid);
            }
        }
    }
    None
}

fn same_inode(pid: u32, fd: &std::ffi::OsStr, inode: &rustix::fs::Stat) -> bool {
    let path = std::path::Path::new("/proc").join(pid.to_string()).join("fd").join(fd);
    rustix::fs::stat(path)
        .is_ok_and(|found| (found.st_dev, found.st_ino) == (inode.st_dev, inode.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, OpenOptions};

    fn image() -> (std::path::PathBuf, File) {
        use std::sync::atomic::{AtomicU32, Ordering};
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "ioasis-locks-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        let file =
            OpenOptions::new().create_new(true).read(true).write(true).open(&path).expect("a file");
        (path, file)
    }

    fn reopen(path: &std::path::Path) -> File {
        OpenOptions::new().read(true).write(true).open(path).expect("the same file")
    }

    #[test]
    fn a_second_writer_is_told_the_pid() {
        let (path, first) = image();
        assert_eq!(lock(&first, Lock::Exclusive), Ok(Ok(())));
        let second = reopen(&path);
        let own = Holder::Process(std::process::id());
        assert_eq!(lock(&second, Lock::Exclusive), Ok(Err(own)));
        assert_eq!(lock(&second, Lock::Shared), Ok(Err(own)));
        drop(first);
        assert_eq!(lock(&second, Lock::Exclusive), Ok(Ok(())), "the lock went with its last fd");
        std::fs::remove_file(path).expect("cleanup");
    }

    #[test]
    fn readers_share_and_keep_writers_out() {
        let (path, first) = image();
        let second = reopen(&path);
        assert_eq!(lock(&first, Lock::Shared), Ok(Ok(())));
        assert_eq!(lock(&second, Lock::Shared), Ok(Ok(())));
        let third = reopen(&path);
        assert!(matches!(lock(&third, Lock::Exclusive), Ok(Err(Holder::Process(_)))));
        std::fs::remove_file(path).expect("cleanup");
    }

    #[test]
    fn a_lock_that_was_given_up_is_anybodys() {
        let (path, first) = image();
        let second = reopen(&path);
        assert_eq!(try_lock(&first, Lock::Exclusive), Ok(true));
        assert_eq!(try_lock(&first, Lock::Exclusive), Ok(true), "one's own stands in no way");
        assert_eq!(try_lock(&second, Lock::Exclusive), Ok(false));
        assert_eq!(unlock(&first), Ok(()));
        assert_eq!(unlock(&first), Ok(()));
        assert_eq!(try_lock(&second, Lock::Exclusive), Ok(true));
        assert_eq!(try_lock(&first, Lock::Shared), Ok(false));
        std::fs::remove_file(path).expect("cleanup");
    }

    #[test]
    fn a_writer_needs_a_file_open_for_writing() {
        let (path, _file) = image();
        let read_only = File::open(&path).expect("the same file");
        assert_eq!(lock(&read_only, Lock::Exclusive).expect_err("O_RDONLY").errno, Errno::EBADF);
        std::fs::remove_file(path).expect("cleanup");
    }

    #[test]
    fn a_locked_byte_tells_whether_its_open_file_is_still_there() {
        let path = std::env::temp_dir().join(format!("ioasis-locks-{}", std::process::id()));
        let open =
            || File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let (ours, first, second) = (open().unwrap(), open().unwrap(), open().unwrap());
        std::fs::remove_file(&path).unwrap();
        lock_byte(&first, 1, Lock::Exclusive).unwrap();
        lock_byte(&second, 2, Lock::Shared).unwrap();
        assert_eq!(
            lock_byte(&second, 1, Lock::Shared).map_err(|error| error.errno),
            Err(Errno::EAGAIN)
        );
        let copy = first.try_clone().unwrap();
        drop(first);
        assert!(is_byte_locked(&ours, 1) && is_byte_locked(&ours, 2) && !is_byte_locked(&ours, 3));
        drop((copy, second));
        assert!(!is_byte_locked(&ours, 1) && !is_byte_locked(&ours, 2));
    }
}
