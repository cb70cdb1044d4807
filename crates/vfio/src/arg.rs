//! The argument of a VFIO ioctl: its first version is copied, `argsz` is checked, later bytes are
//! ignored.

use std::sync::Arc;

use ioasis_iommufd::inject::step;
use ioasis_sys::eventfd::EventFd;
use ioasis_uapi::{Errno, Error, Result};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::Client;

/// A page of the client.
const PAGE: u64 = 4096;

/// Copies the first `size` bytes of the struct at `address` and checks that `argsz`, its first
/// field, covers them.
///
/// # Errors
///
/// `EFAULT`; `EINVAL` when `argsz` is smaller than `size`.
pub(crate) fn first<T: FromBytes + IntoBytes + Immutable>(
    client: &dyn Client,
    address: u64,
    size: usize,
) -> Result<T> {
    let arg = copy::<T>(client, address, size)?;
    check_argsz(argsz(arg.as_bytes()), size)?;
    Ok(arg)
}

/// Copies the first `size` bytes of the struct at `address`; the rest is zero.
///
/// # Errors
///
/// `EFAULT`.
pub(crate) fn copy<T: FromZeros + IntoBytes + FromBytes>(
    client: &dyn Client,
    address: u64,
    size: usize,
) -> Result<T> {
    let mut arg = T::new_zeroed();
    client.read(address, &mut arg.as_mut_bytes()[..size])?;
    Ok(arg)
}

/// Writes back the first `size` bytes.
///
/// # Errors
///
/// `EFAULT`.
pub(crate) fn write<T: IntoBytes + Immutable>(
    client: &dyn Client,
    address: u64,
    arg: &T,
    size: usize,
) -> Result<()> {
    client.write(address, &arg.as_bytes()[..size])
}

/// The eventfd behind the caller's `fd`.
///
/// # Errors
///
/// `EBADF` if the caller has no such fd, `EINVAL` if it is no eventfd.
pub(crate) fn eventfd(client: &dyn Client, fd: i32) -> Result<Arc<EventFd>> {
    step("an eventfd")?;
    client.eventfd(fd).map(Arc::new)
}

/// # Errors
///
/// `EINVAL` when `argsz` is smaller than `size`.
pub(crate) fn check_argsz(argsz: u32, size: usize) -> Result<()> {
    match usize::try_from(argsz) {
        Ok(argsz) if argsz >= size => Ok(()),
        _ => Err(Error::at(Errno::EINVAL, "argsz is too small", argsz.into())),
    }
}

/// Checks that the bytes from `known` to `size` of a struct are zero.
///
/// # Errors
///
/// `EFAULT` for a byte that cannot be read, `E2BIG` for one that is set, whichever comes first.
pub(crate) fn check_tail(
    client: &dyn Client,
    address: u64,
    known: usize,
    size: usize,
) -> Result<()> {
    let mut at = known;
    let mut chunk = [0; 256];
    while at < size {
        let start = address.wrapping_add(at as u64);
        // A page at a time at most, so that set bytes are found before memory that is not there.
        let room = usize::try_from(PAGE - start % PAGE).unwrap_or(1);
        let length = room.min(chunk.len()).min(size - at);
        client.read(start, &mut chunk[..length])?;
        if chunk[..length].iter().any(|&byte| byte != 0) {
            return Err(Error::at(Errno::E2BIG, "unknown fields are set", at as u64));
        }
        at += length;
    }
    Ok(())
}

fn argsz(arg: &[u8]) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&arg[..4]);
    u32::from_ne_bytes(field)
}

/// A string of the client, without its final zero, of at most `limit` bytes with it.
///
/// # Errors
///
/// `EFAULT` if it cannot be read to its end, `EINVAL` if it is longer.
pub(crate) fn string(client: &dyn Client, address: u64, limit: usize) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut at = address;
    while text.len() < limit {
        // Up to the end of a page at a time: the string may end just before memory that is not
        // there.
        let room = usize::try_from(PAGE - at % PAGE).unwrap_or(1);
        let mut chunk = vec![0; room.min(limit - text.len())];
        client.read(at, &mut chunk)?;
        if let Some(end) = chunk.iter().position(|&byte| byte == 0) {
            text.extend_from_slice(&chunk[..end]);
            return Ok(text);
        }
        at = at.wrapping_add(chunk.len() as u64);
        text.append(&mut chunk);
    }
    Err(Error::at(Errno::EINVAL, "string is longer than a page", address))
}
