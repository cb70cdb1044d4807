//! The memory of another process, by address.

use ioasis_uapi::{Errno, Error, Result};

use super::Process;
use crate::errno::last_errno;

/// Most pieces one system call takes: `UIO_MAXIOV` of linux/uio.h.
const MAX_PIECES: usize = 1024;

/// Which way bytes go.
#[derive(Clone, Copy)]
enum Call {
    Read,
    Write,
}

impl Process {
    /// Copies `buf.len()` bytes from `address`.
    ///
    /// # Errors
    ///
    /// `EFAULT` unless all of them can be read, with the first address that cannot.
    pub fn read(&self, address: u64, buf: &mut [u8]) -> Result<()> {
        self.read_vectored(&[(address, buf.len())], buf)
    }

    /// Copies `buf` to `address`.
    ///
    /// # Errors
    ///
    /// `EFAULT` unless all of it can be written, with the first address that cannot; what lies before it may have
    /// changed.
    pub fn write(&self, address: u64, buf: &[u8]) -> Result<()> {
        self.write_vectored(&[(address, buf.len())], buf)
    }

    /// Copies `pieces`, an address and a length each, one after another into `buf`. Pieces that touch become one, and
    /// 1024 of them one system call.
    ///
    /// # Errors
    ///
    /// `EFAULT` unless all of them can be read, with the first address that cannot.
    ///
    /// # Panics
    ///
    /// If the lengths do not add up to `buf.len()`.
    pub fn read_vectored(&self, pieces: &[(u64, usize)], buf: &mut [u8]) -> Result<()> {
        let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
        // SAFETY: 1. `local` is a buffer we hold exclusively, and a read writes nothing else.
        unsafe { self.transfer(Call::Read, local, pieces) }
    }

    /// Copies `buf` to `pieces`, an address and a length each, one after another, as
    /// [`read_vectored`](Self::read_vectored).
    ///
    /// # Errors
    ///
    /// `EFAULT` unless all of it can be written, with the first address that cannot; what lies before it may have
    /// changed.
    ///
    /// # Panics
    ///
    /// If the lengths do not add up to `buf.len()`.
    pub fn write_vectored(&self, pieces: &[(u64, usize)], buf: &[u8]) -> Result<()> {
        let local = libc::iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len: buf.len() };
        // SAFETY: 1. a write only reads `local`, which is a buffer we hold.
        unsafe { self.transfer(Call::Write, local, pieces) }
    }

    /// Copies as many bytes from `address` as can be read before the first that cannot, and says how many.
    ///
    /// # Errors
    ///
    /// `EFAULT` when the process is gone or not ours to look at.
    pub fn read_prefix(&self, address: u64, buf: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let Some(at) = address.checked_add(done as u64) else { break };
            let rest = &mut buf[done..];
            let local = libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() };
            // SAFETY: 1. `local` is a buffer we hold exclusively.
            match unsafe { self.call(Call::Read, local, &[remote(at, rest.len())]) } {
                Ok(0) | Err(Errno::EFAULT) => break,
                Ok(count) => done += count,
                Err(errno) => return Err(failure(errno, at)),
            }
        }
        Ok(done)
    }

    /// # Safety
    ///
    /// `local` must be readable, and for [`Call::Read`] exclusively ours to write.
    unsafe fn transfer(
        &self,
        call: Call,
        local: libc::iovec,
        pieces: &[(u64, usize)],
    ) -> Result<()> {
        let total = pieces.iter().fold(0_usize, |sum, piece| sum.saturating_add(piece.1));
        assert_eq!(total, local.iov_len, "the pieces are as long as the buffer");
        if let &[(address, length)] = pieces {
            if length == 0 {
                return Ok(());
            }
            check_wrap(address, length)?;
            // SAFETY: 1. the caller vouches for `local`.
            return unsafe { self.all(call, local, &mut [remote(address, length)]) };
        }
        let merged = merge(pieces)?;
        let mut done = 0;
        for batch in merged.chunks(MAX_PIECES) {
            let mut batch = batch.to_vec();
            let length = batch.iter().map(|piece| piece.iov_len).sum();
            let part =
                libc::iovec { iov_base: local.iov_base.wrapping_byte_add(done), iov_len: length };
            // SAFETY: 1. `part` lies inside `local`: the batches add up to `local.iov_len`.
            unsafe { self.all(call, part, &mut batch)? };
            done += length;
        }
        Ok(())
    }

    /// Repeats the call until everything is copied: a call may stop early, at a piece or at 2 GiB.
    ///
    /// # Safety
    ///
    /// As for [`transfer`](Self::transfer).
    unsafe fn all(
        &self,
        call: Call,
        mut local: libc::iovec,
        mut pieces: &mut [libc::iovec],
    ) -> Result<()> {
        loop {
            // SAFETY: 1. the caller vouches for `local`, and only its rest is ever passed on.
            let result = unsafe { self.call(call, local, pieces) };
            let first = pieces.first().map_or(0, |piece| piece.iov_base.addr() as u64);
            let mut count = match result {
                Ok(0) => return Err(failure(Errno::EFAULT, first)),
                Ok(count) => count,
                Err(errno) => return Err(failure(errno, first)),
            };
            if count == local.iov_len {
                return Ok(());
            }
            local.iov_base = local.iov_base.wrapping_byte_add(count);
            local.iov_len -= count;
            while let Some(piece) = pieces.first_mut() {
                if count < piece.iov_len {
                    piece.iov_base = piece.iov_base.wrapping_byte_add(count);
                    piece.iov_len -= count;
                    break;
                }
                count -= piece.iov_len;
                pieces = &mut pieces[1..];
            }
        }
    }

    /// One system call; a second one when the thread it was aimed at has ended before its process.
    ///
    /// # Safety
    ///
    /// As for [`transfer`](Self::transfer).
    unsafe fn call(
        &self,
        call: Call,
        local: libc::iovec,
        pieces: &[libc::iovec],
    ) -> Result<usize, Errno> {
        let mut retried = false;
        loop {
            let task = self.task();
            let pid = task.cast_signed();
            let (remote, count) = (pieces.as_ptr(), pieces.len() as libc::c_ulong);
            // SAFETY: 1. the caller vouches for `local`. 2. The remote addresses are the other process's: the kernel
            // checks them there, none of our memory is reached through them.
            let answer = unsafe {
                match call {
                    Call::Read => {
                        libc::process_vm_readv(pid, &raw const local, 1, remote, count, 0)
                    }
                    Call::Write => {
                        libc::process_vm_writev(pid, &raw const local, 1, remote, count, 0)
                    }
                }
            };
            match usize::try_from(answer) {
                Ok(copied) => return Ok(copied),
                Err(_) => match last_errno() {
                    Errno::ESRCH if !retried && self.choose_task(task) => retried = true,
                    errno => return Err(errno),
                },
            }
        }
    }
}

fn remote(address: u64, length: usize) -> libc::iovec {
    let address = usize::try_from(address).expect("64-bit addresses");
    libc::iovec { iov_base: std::ptr::without_provenance_mut(address), iov_len: length }
}

fn check_wrap(address: u64, length: usize) -> Result<()> {
    match address.checked_add(length as u64) {
        Some(_) => Ok(()),
        None => Err(Error::at(Errno::EFAULT, "the range wraps", address)),
    }
}

/// Pieces with the empty ones gone and neighbours joined.
fn merge(pieces: &[(u64, usize)]) -> Result<Vec<libc::iovec>> {
    let mut merged: Vec<libc::iovec> = Vec::with_capacity(pieces.len());
    for &(address, length) in pieces.iter().filter(|piece| piece.1 != 0) {
        check_wrap(address, length)?;
        match merged.last_mut() {
            Some(last) if (last.iov_base.addr() + last.iov_len) as u64 == address => {
                last.iov_len += length
            }
            _ => merged.push(remote(address, length)),
        }
    }
    Ok(merged)
}

#[cold]
fn failure(errno: Errno, address: u64) -> Error {
    let why = match errno {
        Errno::ESRCH => "the process whose memory it is has ended",
        Errno::EPERM => "the process does not let its memory be reached",
        _ => "not mapped, or not with this access",
    };
    Error::at(Errno::EFAULT, why, address)
}
