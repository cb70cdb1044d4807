//! Texts that are read piece by piece and written at once, as those of sysfs.

use ioasis_iommufd::{Destination, Source};
use ioasis_uapi::Result;

/// Bytes of a write that are looked at (`kernfs_fop_write_iter`, fs/kernfs/file.c).
pub(crate) const WRITTEN_MAX: usize = 4096;

/// Hands over `length` bytes of `text` from `offset` on (`simple_read_from_buffer`, fs/libfs.c).
///
/// # Errors
///
/// `EFAULT`.
pub(crate) fn part(text: &str, offset: u64, length: u64, to: &mut dyn Destination) -> Result<u64> {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
    let rest = &text.as_bytes()[start..];
    let count = rest.len().min(usize::try_from(length).unwrap_or(usize::MAX));
    to.put(0, &rest[..count]).map(|()| count as u64)
}

/// What a write of `length` bytes has to say.
///
/// # Errors
///
/// `EFAULT`.
pub(crate) fn written(length: u64, from: &mut dyn Source) -> Result<Vec<u8>> {
    let taken = usize::try_from(length).unwrap_or(WRITTEN_MAX).min(WRITTEN_MAX);
    let mut text = vec![0; taken];
    from.get(0, &mut text)?;
    Ok(text)
}
