//! userfaultfd(2), as far as it tells of stores: pages of another process's memory are
//! write-protected, the first store to them waits in the kernel and makes the descriptor readable,
//! and lifting the protection lets it go on.
//!
//! The descriptor belongs to the memory that was its maker's. Whoever has got it acts on that
//! memory from any process, until nobody runs in it: then every call is `ESRCH`. When the last
//! duplicate is closed, all protection is lifted.
//!
//! No message is ever read from it: lifting the protection takes those that wait out of its queue,
//! so that it is readable exactly as long as somebody waits.
//!
//! The crate `userfaultfd` needs libclang to build and shakes hands only with descriptors it has
//! made itself.
#![expect(unsafe_code, reason = "the ioctls of userfaultfd(2) are not in rustix")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use ioasis_uapi::{Errno, Error, Result};
use rustix::mm::UserfaultfdFlags;

use crate::because;
use crate::errno::last_errno;

/// Flags of the system call: closed on exec, never waiting to be read, and of stores by the program
/// alone. The kernel's own access to a protected page is `EFAULT` then, and no privilege is asked
/// for (`UFFD_USER_MODE_ONLY`, linux/userfaultfd.h).
pub const FLAGS: u64 = 0x8_0000 | 0x800 | 1;

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    start: u64,
    length: u64,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_writeprotect`.
#[repr(C)]
struct WriteProtect {
    start: u64,
    length: u64,
    mode: u64,
}

const _: () = assert!(size_of::<Api>() == 24);
const _: () = assert!(size_of::<Register>() == 32);
const _: () = assert!(size_of::<WriteProtect>() == 24);

/// `UFFDIO_API`, `UFFDIO_REGISTER` and `UFFDIO_WRITEPROTECT`: `_IOWR(0xaa, ..)`.
const API: libc::c_ulong = 0xc018_aa3f;
const REGISTER: libc::c_ulong = 0xc020_aa00;
const WRITEPROTECT: libc::c_ulong = 0xc018_aa06;
/// `UFFD_API`.
const VERSION: u64 = 0xaa;
/// `UFFD_FEATURE_PAGEFAULT_FLAG_WP` and `UFFD_FEATURE_WP_HUGETLBFS_SHMEM`: pages of tmpfs, whether
/// there yet or not.
const FEATURES: u64 = 1 << 0 | 1 << 12;
/// `UFFDIO_REGISTER_MODE_WP` and `UFFDIO_WRITEPROTECT_MODE_WP`.
const REGISTER_WP: u64 = 1 << 1;
const PROTECT: u64 = 1 << 0;

/// A userfaultfd, its handshake done.
#[derive(Debug)]
pub struct Userfault(OwnedFd);

impl Userfault {
    /// Takes over `fd`, which has just been made with [`FLAGS`].
    ///
    /// # Errors
    ///
    /// `EINVAL` when it is something else, or the kernel cannot protect pages of tmpfs (before Linux 5.19).
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        let link = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())
            .map_err(because("an fd of ours cannot be looked at"))?;
        if link.as_bytes() != b"anon_inode:[userfaultfd]" {
            return Err(Error::new(Errno::EINVAL, "the fd is no userfaultfd"));
        }
        let made = Self(fd);
        let mut api = Api { api: VERSION, features: FEATURES, ioctls: 0 };
        // SAFETY: 1. UFFDIO_API reads and writes a `struct uffdio_api`, which `api` is, during the
        // call.
        unsafe { made.request(API, &raw mut api, "pages of tmpfs cannot be write-protected") }?;
        Ok(made)
    }

    /// One of this process's own memory.
    ///
    /// # Errors
    ///
    /// `ENOSYS` and `EPERM` where there is none to be had, else as [`Userfault::from_fd`].
    pub fn create() -> Result<Self> {
        /// `UFFD_USER_MODE_ONLY`.
        const USER_MODE_ONLY: UserfaultfdFlags = UserfaultfdFlags::from_bits_retain(1);
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK | USER_MODE_ONLY;
        // SAFETY: 1. nothing is registered with it yet, and pages that are get their stores
        // delayed, not changed.
        let fd = unsafe { rustix::mm::userfaultfd(flags) };
        Self::from_fd(fd.map_err(because("no userfaultfd to be had"))?)
    }

    /// Makes the pages ones that can be protected.
    ///
    /// # Errors
    ///
    /// `EPERM` when they can never be stored to, `EBUSY` when they are another userfaultfd's, `EINVAL` when none are
    /// mapped there, `ESRCH`.
    pub fn register(&self, start: u64, length: u64) -> Result<()> {
        let mut asked = Register { start, length, mode: REGISTER_WP, ioctls: 0 };
        // SAFETY: 1. UFFDIO_REGISTER reads and writes a `struct uffdio_register`, which `asked` is,
        // during the call.
        unsafe { self.request(REGISTER, &raw mut asked, "the pages cannot be registered") }
    }

    /// From now on a store to one of the pages waits.
    ///
    /// # Errors
    ///
    /// `ENOENT` when they are not all registered here (any more), `ESRCH`.
    pub fn protect(&self, start: u64, length: u64) -> Result<()> {
        self.write_protect(start, length, PROTECT)
    }

    /// Stores go on, those that wait as well.
    ///
    /// # Errors
    ///
    /// As [`Userfault::protect`].
    pub fn release(&self, start: u64, length: u64) -> Result<()> {
        self.write_protect(start, length, 0)
    }

    fn write_protect(&self, start: u64, length: u64, mode: u64) -> Result<()> {
        let mut asked = WriteProtect { start, length, mode };
        // SAFETY: 1. UFFDIO_WRITEPROTECT reads a `struct uffdio_writeprotect`, which `asked` is,
        // during the call; 2. it changes who may store to pages, not what is in them.
        unsafe { self.request(WRITEPROTECT, &raw mut asked, "the pages cannot be protected") }
    }

    /// # Safety
    ///
    /// `argument` is what `request` takes, valid for reads and writes.
    unsafe fn request<T>(
        &self,
        request: libc::c_ulong,
        argument: *mut T,
        why: &'static str,
    ) -> Result<()> {
        // SAFETY: 1. promised by the caller.
        let answer = unsafe { libc::ioctl(self.0.as_raw_fd(), request, argument) };
        if answer < 0 { Err(Error::new(last_errno(), why)) } else { Ok(()) }
    }
}

impl AsFd for Userfault {
    /// Readable while a store waits.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, Timespec};
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;
    use crate::mapping::{Access, Mapping};

    const PAGE: u64 = 4096;

    fn pages() -> Arc<Mapping> {
        let file = memfd_create("pages", MemfdFlags::CLOEXEC).expect("a memfd");
        rustix::fs::ftruncate(&file, 4 * PAGE).expect("room");
        let length = usize::try_from(4 * PAGE).expect("small");
        Arc::new(Mapping::file(file.as_fd(), 0, length, Access::ReadWrite).expect("mapped"))
    }

    fn address(pages: &Mapping) -> u64 {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("proc");
        let stamp = u64::from_ne_bytes(*b"a stamp!");
        pages.store_u64(0, stamp).expect("mapped");
        let starts = maps.lines().filter(|line| line.contains("memfd:pages"));
        let mut starts = starts.map(|line| line.split('-').next().expect("a start"));
        let reads = |start: &u64| {
            let mut word = [0; 8];
            let own = crate::process::Thread::open(std::process::id()).expect("this process");
            own.read(*start, &mut word).is_ok() && u64::from_ne_bytes(word) == stamp
        };
        let found = starts.find_map(|text| u64::from_str_radix(text, 16).ok().filter(reads));
        pages.store_u64(0, 0).expect("mapped");
        found.expect("it is mapped")
    }

    fn is_readable(fault: &Userfault, wait: Duration) -> bool {
        let limit = Timespec { tv_sec: 0, tv_nsec: wait.as_nanos().try_into().expect("short") };
        let polled = rustix::event::poll(&mut [PollFd::new(fault, PollFlags::IN)], Some(&limit));
        polled == Ok(1)
    }

    #[test]
    fn a_store_to_a_protected_page_waits_and_tells_until_the_protection_is_lifted() {
        let (pages, fault) = (pages(), Userfault::create().expect("a userfaultfd"));
        let start = address(&pages);
        fault.register(start + PAGE, PAGE).expect("registered");
        for round in 1..=50 {
            fault.protect(start + PAGE, PAGE).expect("protected");
            assert!(!is_readable(&fault, Duration::ZERO), "nobody stores yet");
            let theirs = Arc::clone(&pages);
            let storing = std::thread::spawn(move || theirs.store_u32(PAGE, round));
            pages.store_u32(0, round).expect("other pages are as before");
            while !is_readable(&fault, Duration::from_millis(500)) {}
            assert_eq!(pages.load_u32(PAGE), Ok(round - 1), "the store waits");
            fault.release(start + PAGE, PAGE).expect("lifted");
            storing.join().expect("it stores").expect("mapped");
            assert_eq!(pages.load_u32(PAGE), Ok(round));
            assert!(!is_readable(&fault, Duration::ZERO), "nobody waits any more");
        }
    }

    #[test]
    fn what_waits_goes_on_when_the_last_descriptor_is_closed() {
        let (pages, fault) = (pages(), Userfault::create().expect("a userfaultfd"));
        let start = address(&pages);
        fault.register(start, 4 * PAGE).expect("registered");
        fault.protect(start, 4 * PAGE).expect("protected");
        let theirs = Arc::clone(&pages);
        let storing = std::thread::spawn(move || theirs.store_u32(2 * PAGE, 7));
        while !is_readable(&fault, Duration::from_millis(500)) {}
        drop(fault);
        storing.join().expect("it stores").expect("mapped");
        assert_eq!(pages.load_u32(2 * PAGE), Ok(7));
    }

    #[test]
    fn another_file_and_pages_that_are_not_registered_are_refused() {
        let file = memfd_create("[userfaultfd]", MemfdFlags::CLOEXEC).expect("a memfd");
        assert_eq!(Userfault::from_fd(file).unwrap_err().errno, Errno::EINVAL);
        let (pages, fault) = (pages(), Userfault::create().expect("a userfaultfd"));
        let start = address(&pages);
        fault.register(start, PAGE).expect("registered");
        assert_eq!(fault.protect(start + PAGE, PAGE).unwrap_err().errno, Errno::ENOENT);
        let other = Userfault::create().expect("another");
        assert_eq!(other.register(start, PAGE).unwrap_err().errno, Errno::EBUSY);
    }
}
