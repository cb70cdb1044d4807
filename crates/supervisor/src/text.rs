//! Texts that are read piece by piece.

use ioasis_iommufd::Destination;
use ioasis_uapi::Result;

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
