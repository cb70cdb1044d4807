//! Shared memory that somebody else may cut short.
//!
//! A client can truncate a file we map, punch a hole into it, or fill the file system it lives on. The kernel
//! answers our next touch with SIGBUS. All memory here is therefore touched by the routines of `copy` only, and
//! a SIGBUS inside them becomes `EFAULT`: see there.
//!
//! No reference to mapped memory ever exists. Bytes are copied out once, checked, and the copy is used.

#![expect(unsafe_code, reason = "maps memory and calls the copy routines with addresses inside it")]

mod copy;
#[cfg(test)]
mod tests;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use ioasis_uapi::{Errno, Error, Result};
use rustix::mm::{MapFlags, ProtFlags};

use crate::because;

/// What a [`Mapping`] may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Loads only: enough for a file opened `O_RDONLY`.
    Read,
    /// Loads and stores.
    ReadWrite,
}

/// A shared mapping, unmapped when dropped. Any number of threads may use it at once; what they see of each
/// other's copies is what memory shared with another process shows: bytes in no particular order, except through
/// the single-access loads and stores.
pub struct Mapping {
    base: NonNull<u8>,
    length: usize,
    access: Access,
}

// SAFETY: 1. `base` is an address, not a reference; the memory behind it is only touched by `copy`'s routines, which
// the compiler does not look into, and lives until drop, which needs the only handle.
unsafe impl Send for Mapping {}
// SAFETY: 1. as above: shared use is what the memory is for.
unsafe impl Sync for Mapping {}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mapping({} bytes, {:?})", self.length, self.access)
    }
}

impl Mapping {
    /// Maps `length` bytes of `fd` from `offset`, shared. The mapping may reach past the end of the file; what
    /// lies there answers `EFAULT` until the file grows.
    ///
    /// # Errors
    ///
    /// `EINVAL` when `length` is zero or `offset` no multiple of the file's page size, `EACCES` when `fd` was not
    /// opened for `access`, `EPERM` when a seal forbids it, `ENODEV` for a file that cannot be mapped, `ENOMEM`.
    pub fn file(fd: BorrowedFd<'_>, offset: u64, length: usize, access: Access) -> Result<Self> {
        copy::install();
        // SAFETY: 1. a null hint without MAP_FIXED: the kernel picks addresses nobody uses.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                protection(access),
                MapFlags::SHARED | MapFlags::NORESERVE,
                fd,
                offset,
            )
        };
        Self::mapped(base.map_err(because("the file cannot be mapped"))?, length, access)
    }

    /// Maps `length` bytes of zeroes that only this process and its children share.
    ///
    /// # Errors
    ///
    /// `EINVAL` when `length` is zero, `ENOMEM`.
    pub fn anonymous(length: usize) -> Result<Self> {
        copy::install();
        let access = Access::ReadWrite;
        // SAFETY: 1. a null hint without MAP_FIXED: the kernel picks addresses nobody uses.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                length,
                protection(access),
                MapFlags::SHARED | MapFlags::NORESERVE,
            )
        };
        Self::mapped(base.map_err(because("no memory for a shared mapping"))?, length, access)
    }

    fn mapped(base: *mut core::ffi::c_void, length: usize, access: Access) -> Result<Self> {
        let base =
            NonNull::new(base.cast()).ok_or(Error::new(Errno::ENOMEM, "mapped at address zero"))?;
        Ok(Self { base, length, access })
    }

    /// Bytes mapped.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Never: a mapping has at least one byte.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// What it may be used for.
    #[must_use]
    pub const fn access(&self) -> Access {
        self.access
    }

    /// Copies the bytes from `offset` into `buf`.
    ///
    /// # Errors
    ///
    /// `EFAULT` outside the mapping, or where the file has ended, lost its page or found no space for one. `buf`
    /// may have changed then.
    #[inline]
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let source = self.address(offset, buf.len())?;
        // SAFETY: 1. `address` proved `source..+len` to be inside the mapping. 2. `buf` is exclusively ours and not
        // part of a mapping: those are never lent out as references.
        unsafe { copy::copy(buf.as_mut_ptr(), source, buf.len()) }.map_err(|_| gone(offset))
    }

    /// Copies `buf` to the bytes from `offset`.
    ///
    /// # Errors
    ///
    /// `EFAULT` as for [`read`](Self::read), or when the mapping is read-only. Some of the bytes may have been
    /// written then.
    #[inline]
    pub fn write(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let target = self.address_to_write(offset, buf.len())?;
        // SAFETY: 1. `address_to_write` proved `target..+len` to be inside a writable mapping. 2. `buf` is readable.
        unsafe { copy::copy(target, buf.as_ptr(), buf.len()) }.map_err(|_| gone(offset))
    }

    /// Sets `length` bytes from `offset` to `byte`.
    ///
    /// # Errors
    ///
    /// `EFAULT` as for [`write`](Self::write).
    pub fn fill(&self, offset: u64, length: usize, byte: u8) -> Result<()> {
        let target = self.address_to_write(offset, length)?;
        // SAFETY: 1. `address_to_write` proved `target..+length` to be inside a writable mapping.
        unsafe { copy::fill(target, byte, length) }.map_err(|_| gone(offset))
    }

    /// One 32-bit load, acquire.
    ///
    /// # Errors
    ///
    /// `EINVAL` unless `offset` is a multiple of 4, `EFAULT` as for [`read`](Self::read).
    #[inline]
    pub fn load_u32(&self, offset: u64) -> Result<u32> {
        let source = self.aligned(offset, 4)?;
        // SAFETY: 1. `aligned` proved four mapped bytes at a multiple of four.
        unsafe { copy::load_u32(source) }.map_err(|_| gone(offset))
    }

    /// One 64-bit load, acquire.
    ///
    /// # Errors
    ///
    /// `EINVAL` unless `offset` is a multiple of 8, `EFAULT` as for [`read`](Self::read).
    #[inline]
    pub fn load_u64(&self, offset: u64) -> Result<u64> {
        let source = self.aligned(offset, 8)?;
        // SAFETY: 1. `aligned` proved eight mapped bytes at a multiple of eight.
        unsafe { copy::load_u64(source) }.map_err(|_| gone(offset))
    }

    /// One 32-bit store, release.
    ///
    /// # Errors
    ///
    /// `EINVAL` unless `offset` is a multiple of 4, `EFAULT` as for [`write`](Self::write).
    #[inline]
    pub fn store_u32(&self, offset: u64, value: u32) -> Result<()> {
        self.address_to_write(offset, 4)?;
        let target = self.aligned(offset, 4)?;
        // SAFETY: 1. `aligned` proved four mapped bytes at a multiple of four, `address_to_write` that they are writable.
        unsafe { copy::store_u32(target, value) }.map_err(|_| gone(offset))
    }

    /// One 64-bit store, release.
    ///
    /// # Errors
    ///
    /// `EINVAL` unless `offset` is a multiple of 8, `EFAULT` as for [`write`](Self::write).
    #[inline]
    pub fn store_u64(&self, offset: u64, value: u64) -> Result<()> {
        self.address_to_write(offset, 8)?;
        let target = self.aligned(offset, 8)?;
        // SAFETY: 1. `aligned` proved eight mapped bytes at a multiple of eight, `address_to_write` that they are writable.
        unsafe { copy::store_u64(target, value) }.map_err(|_| gone(offset))
    }

    /// Stores 32 bits and returns what was there, in one step no other access comes between.
    ///
    /// # Errors
    ///
    /// `EINVAL` unless `offset` is a multiple of 4, `EFAULT` as for [`write`](Self::write).
    pub fn swap_u32(&self, offset: u64, value: u32) -> Result<u32> {
        self.address_to_write(offset, 4)?;
        let target = self.aligned(offset, 4)?;
        // SAFETY: 1. `aligned` proved four mapped bytes at a multiple of four, `address_to_write` that they are writable.
        unsafe { copy::swap_u32(target, value) }.map_err(|_| gone(offset))
    }

    #[inline]
    fn address(&self, offset: u64, length: usize) -> Result<*mut u8> {
        let fits = usize::try_from(offset)
            .ok()
            .filter(|&start| start <= self.length && length <= self.length - start);
        let Some(start) = fits else {
            return Err(Error::at(Errno::EFAULT, "outside the mapping", offset));
        };
        // SAFETY: 1. `start` is at most `length`, the size of the one mapping `base` points to.
        Ok(unsafe { self.base.as_ptr().add(start) })
    }

    #[inline]
    fn address_to_write(&self, offset: u64, length: usize) -> Result<*mut u8> {
        if self.access != Access::ReadWrite {
            return Err(Error::at(Errno::EFAULT, "the mapping is read-only", offset));
        }
        self.address(offset, length)
    }

    #[inline]
    fn aligned(&self, offset: u64, size: usize) -> Result<*mut u8> {
        if !offset.is_multiple_of(size as u64) {
            return Err(Error::at(
                Errno::EINVAL,
                "a single access must be naturally aligned",
                offset,
            ));
        }
        self.address(offset, size)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: 1. exactly what `file` or `anonymous` mapped, and no pointer into it outlives `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.length) };
        assert!(unmapped.is_ok(), "a whole mapping can always be unmapped");
    }
}

fn protection(access: Access) -> ProtFlags {
    match access {
        Access::Read => ProtFlags::READ,
        Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
    }
}

#[cold]
fn gone(offset: u64) -> Error {
    Error::at(
        Errno::EFAULT,
        "the file ended, was punched or is out of space under the mapping",
        offset,
    )
}
