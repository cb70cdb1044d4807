//! The memory of another process, through the memory itself.

use std::os::fd::{AsFd, OwnedFd};

use ioasis_uapi::{Errno, Error, Result};
use rustix::fs::OFlags;

use super::{Thread, Vma, open_file_at};
use crate::errno::last_errno;

/// The memory of a process, as Linux's mm: a process gets another one when it executes a program, and none when it
/// ends. An `Mm` stays with the one it was opened for, and that lives as long as any process uses it.
///
/// Its pages are read and written through `/proc/TID/mem`, which asks nobody who is not there: of a page that only the
/// program itself can give (userfaultfd) it says at once that it cannot be had. Reading a mapped file may wait for the
/// file's file system, with the mmap lock of the memory held, so that the program could not unmap anything meanwhile
/// (mm/gup.c, `get_user_page_vma_remote` faults without `FAULT_FLAG_ALLOW_RETRY`): [`Thread::touch`] waits without it.
///
/// `mem` writes what the program itself may only read, where the pages are its own copy (`FOLL_FORCE`, mm/memory.c
/// `__access_remote_vm`). It never writes the pages of a file that others see, unless the program has that mapped
/// shared and writable: a forced write of anything else is refused or makes a private copy (mm/gup.c,
/// `check_vma_flags`). So a write can harm nobody but the program.
#[derive(Debug)]
pub struct Mm {
    /// `/proc/TID/maps`, which belongs to the mm and not to the thread.
    pub(super) maps: OwnedFd,
    /// `/proc/TID/mem`, likewise.
    mem: OwnedFd,
}

impl Mm {
    /// The memory of the thread with the folder `proc` in /proc, which keeps it meanwhile.
    pub(super) fn open(proc: impl AsFd) -> Result<Self> {
        let proc = proc.as_fd();
        let mm = Self {
            maps: open_file_at(proc, "maps", OFlags::RDONLY)?,
            mem: open_file_at(proc, "mem", OFlags::RDWR)?,
        };
        if mm.is_live() { Ok(mm) } else { Err(ended()) }
    }

    /// The same of a thread that may be executing another program.
    pub(super) fn of_running(proc: OwnedFd) -> Result<Self> {
        let mm = Self::open(&proc)?;
        let after = Self::open(&proc)?;
        if mm.text()? == after.text()? { Ok(mm) } else { Err(ended()) }
    }

    /// Copies `buf.len()` bytes from `address`.
    ///
    /// # Errors
    ///
    /// `EFAULT` unless all of them can be read, with the first address that cannot and why.
    pub fn read(&self, address: u64, buf: &mut [u8]) -> Result<()> {
        let got = self.read_prefix(address, buf)?;
        if got == buf.len() { Ok(()) } else { Err(self.explain(address, got)) }
    }

    /// Copies as many bytes from `address` as can be read before the first that cannot, and says how many.
    ///
    /// # Errors
    ///
    /// `EFAULT` when no process has this memory any more.
    pub fn read_prefix(&self, address: u64, buf: &mut [u8]) -> Result<usize> {
        self.each(address, buf.len(), |done, at| rustix::io::pread(&self.mem, &mut buf[done..], at))
    }

    /// Copies `buf` to `address`, whatever the mapping permits now: what may be written was decided before.
    ///
    /// # Errors
    ///
    /// `EFAULT` unless all of it can be written, with the first address that cannot and why; what lies before it may
    /// have changed.
    pub fn write(&self, address: u64, buf: &[u8]) -> Result<()> {
        let done = self
            .each(address, buf.len(), |done, at| rustix::io::pwrite(&self.mem, &buf[done..], at))?;
        if done == buf.len() { Ok(()) } else { Err(self.explain(address, done)) }
    }

    /// Repeats a copy until `length` bytes are done or no more can be. It may stop early, after 2 GiB for instance.
    fn each(
        &self,
        address: u64,
        length: usize,
        mut copy: impl FnMut(usize, u64) -> rustix::io::Result<usize>,
    ) -> Result<usize> {
        let mut done = 0;
        while done < length {
            let Some(at) = address.checked_add(done as u64) else { break };
            match copy(done, at) {
                Ok(0) => return Err(Error::at(Errno::EFAULT, ENDED, at)),
                Ok(count) => done += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Why the byte `done` behind `address` could not be copied.
    #[cold]
    fn explain(&self, address: u64, done: usize) -> Error {
        let Some(at) = address.checked_add(done as u64) else {
            return Error::at(Errno::EFAULT, "the range wraps", address);
        };
        let why = match self.vmas(at, at).as_deref() {
            Ok([]) => "nothing is mapped there: never, or no more since munmap or mremap",
            Ok([vma, ..]) if vma.inode != 0 => {
                "mapped, but the page is not there: its file ends before it, or was truncated"
            }
            Ok(_) => "mapped, but only the program itself can give the page (userfaultfd)",
            Err(_) => ENDED,
        };
        Error::at(Errno::EFAULT, why, at)
    }

    /// Whether the program itself may read, or write, all of `address..=last` by what is mapped there now, with the
    /// first address where it may not.
    fn permits(&self, address: u64, last: u64, mut allows: impl FnMut(&Vma) -> bool) -> Result<()> {
        let refused = |at| Err(Error::at(Errno::EFAULT, NOT_SO, at));
        let mut next = address;
        for vma in
            &self.vmas(address, last).map_err(|_| Error::at(Errno::EFAULT, ENDED, address))?
        {
            if vma.start > next || !allows(vma) {
                return refused(next);
            }
            if vma.last >= last {
                return Ok(());
            }
            next = vma.last + 1;
        }
        refused(next)
    }
}

/// Times a page that the program gives and takes away again is asked for.
const TRIES: u32 = 8;

impl Thread {
    /// Copies `buf.len()` bytes from `address`, as a system call of the thread would: what it may not read is `EFAULT`,
    /// a page that only the program can give is waited for.
    ///
    /// # Errors
    ///
    /// `EFAULT` unless all of them can be read, with the first address that cannot.
    pub fn read(&self, address: u64, buf: &mut [u8]) -> Result<()> {
        let got = self.read_prefix(address, buf)?;
        if got == buf.len() {
            return Ok(());
        }
        Err(match address.checked_add(got as u64) {
            Some(at) => Error::at(Errno::EFAULT, NOT_SO, at),
            None => Error::at(Errno::EFAULT, "the range wraps", address),
        })
    }

    /// Copies as many bytes from `address` as can be read before the first that cannot, and says how many.
    ///
    /// By number, since that asks what the program itself may read and costs no more: 1.5 us for 64 bytes. `mem` would
    /// also read what it may not (`PROT_NONE`).
    ///
    /// # Errors
    ///
    /// `EFAULT` when the thread is gone or its memory not ours to look at.
    pub fn read_prefix(&self, address: u64, buf: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let Some(at) = address.checked_add(done as u64) else { break };
            let answer = read_by_number(self.tid(), at, &mut buf[done..]);
            if !self.is_alive() {
                // They may be another's bytes: nobody sees them.
                buf.fill(0);
                return Err(Error::at(Errno::EFAULT, ENDED, address));
            }
            match answer {
                Ok(0) | Err(Errno::EFAULT) => break,
                Ok(count) => done += count,
                Err(Errno::EPERM) => {
                    let why = "the process does not let its memory be reached";
                    return Err(Error::at(Errno::EFAULT, why, at));
                }
                Err(_) => return Err(Error::at(Errno::EFAULT, ENDED, at)),
            }
        }
        Ok(done)
    }

    /// Makes the pages of `length` bytes from `address` come, as far as the program itself may read them, and waits for
    /// them without keeping the program from anything. What they hold is looked at by nobody.
    pub fn touch(&self, address: u64, length: usize) {
        let pages = address / PAGE..(address.saturating_add(length as u64)).div_ceil(PAGE);
        let mut at = pages.start;
        while at < pages.end && self.is_alive() {
            let count = (pages.end - at).min(TOUCHED);
            let touched = touch_by_number(self.tid(), at * PAGE, count);
            // A page that cannot be had ends the call, and is passed over.
            at += touched.max(1);
        }
    }

    /// Copies `buf` to `address`, as a system call of the thread would: what it may not write is `EFAULT`, a page that
    /// only the program can give is waited for.
    ///
    /// # Errors
    ///
    /// `EFAULT` unless all of it can be written, with the first address that cannot; what lies before it may have
    /// changed.
    pub fn write(&self, address: u64, buf: &[u8]) -> Result<()> {
        self.write_to(address, buf, |vma| vma.inode != 0)
    }

    /// The same, where `may_wait` says of a mapping whether a page of it may come from a file
    /// system that takes its time.
    ///
    /// # Errors
    ///
    /// As for [`write`](Self::write).
    pub fn write_to(
        &self,
        address: u64,
        buf: &[u8],
        may_wait: impl Fn(&Vma) -> bool,
    ) -> Result<()> {
        let Some(span) = (buf.len() as u64).checked_sub(1) else { return Ok(()) };
        let Some(last) = address.checked_add(span) else {
            return Err(Error::at(Errno::EFAULT, "the range wraps", address));
        };
        let mm = self.mm().map_err(|error| Error::at(Errno::EFAULT, error.why, address))?;
        // What lies before the first address that may not be written is written.
        let mut waits = false;
        let refused = mm.permits(address, last, |vma| {
            waits |= may_wait(vma);
            vma.prot.write
        });
        let refused = refused.err();
        let length = refused.and_then(|error| error.at).map_or(buf.len() as u64, |at| at - address);
        let buf = &buf[..usize::try_from(length).expect("at most all of it")];
        // A page that the program gives is asked for below.
        if waits {
            self.touch(address, buf.len());
        }
        for _ in 0..TRIES {
            match mm.write(address, buf) {
                Ok(()) => return refused.map_or(Ok(()), Err),
                // The read makes the page come.
                Err(Error { at: Some(at), .. }) if self.read_prefix(at, &mut [0]) == Ok(1) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::at(Errno::EFAULT, "a page is taken away as often as it is given", address))
    }

    /// Finds out whether [`write`](Self::write) of `length` bytes would be permitted, by what is
    /// mapped there now.
    ///
    /// # Errors
    ///
    /// `EFAULT`, with the first address that may not be written.
    pub fn may_write(&self, address: u64, length: usize) -> Result<()> {
        let Some(span) = (length as u64).checked_sub(1) else { return Ok(()) };
        let Some(last) = address.checked_add(span) else {
            return Err(Error::at(Errno::EFAULT, "the range wraps", address));
        };
        let mm = self.mm().map_err(|error| Error::at(Errno::EFAULT, error.why, address))?;
        mm.permits(address, last, |vma| vma.prot.write)
    }
}

/// Pages touched by one call: `UIO_MAXIOV` of linux/uio.h.
const TOUCHED: u64 = 1024;
const PAGE: u64 = 4096;

/// Reads a byte of each of `count` pages from `address` and forgets it; says how many were there.
fn touch_by_number(tid: u32, address: u64, count: u64) -> u64 {
    let byte = |page: u64| {
        let at = usize::try_from(address + page * PAGE).expect("64-bit addresses");
        libc::iovec { iov_base: std::ptr::without_provenance_mut(at), iov_len: 1 }
    };
    let remote: Vec<libc::iovec> = (0..count).map(byte).collect();
    let mut bytes = [0_u8; 1024];
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: remote.len() };
    // SAFETY: 1. `local` is a buffer of ours, at least as long as there are pages; 2. the kernel checks the remote
    // addresses in the other process, none of our memory is reached through them.
    let touched = unsafe {
        let count = remote.len() as libc::c_ulong;
        libc::process_vm_readv(tid.cast_signed(), &raw const local, 1, remote.as_ptr(), count, 0)
    };
    u64::try_from(touched).unwrap_or(0)
}

/// One process_vm_readv(2), which waits for pages that the program itself must give.
fn read_by_number(tid: u32, address: u64, buf: &mut [u8]) -> Result<usize, Errno> {
    let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let start = usize::try_from(address).expect("64-bit addresses");
    let remote =
        libc::iovec { iov_base: std::ptr::without_provenance_mut(start), iov_len: buf.len() };
    // SAFETY: 1. `local` is a buffer we hold exclusively, and a read writes nothing else. 2. The remote address is the
    // other process's: the kernel checks it there, none of our memory is reached through it.
    let answer = unsafe {
        libc::process_vm_readv(tid.cast_signed(), &raw const local, 1, &raw const remote, 1, 0)
    };
    usize::try_from(answer).map_err(|_| last_errno())
}

const ENDED: &str = "the process has ended or executed another program";
const NOT_SO: &str = "not mapped, or not with this access";

fn ended() -> Error {
    Error::new(Errno::ESRCH, ENDED)
}
