//! Addresses are types; ranges are closed.

use core::fmt;
use ioasis_uapi::{Errno, Error, Result};

/// An I/O virtual address: what a device puts on the bus.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Iova(pub u64);

/// An output address of a page table: an address in one simulated physical space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pa(pub u64);

impl fmt::Debug for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "iova {:#x}", self.0)
    }
}

impl fmt::Debug for Pa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pa {:#x}", self.0)
    }
}

/// A closed, non-empty range of IOVAs. `last + 1` may not exist.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct IovaRange {
    start: Iova,
    last: Iova,
}

impl IovaRange {
    /// Every IOVA there is.
    pub const ALL: Self = Self { start: Iova(0), last: Iova(u64::MAX) };

    /// The range of `length` bytes from `start`.
    ///
    /// # Errors
    ///
    /// `EINVAL` if `length` is zero, `EOVERFLOW` if the range passes the end of the address space.
    pub fn new(start: Iova, length: u64) -> Result<Self> {
        let Some(span) = length.checked_sub(1) else {
            return Err(Error::new(Errno::EINVAL, "length is zero"));
        };
        let Some(last) = start.0.checked_add(span) else {
            return Err(Error::at(Errno::EOVERFLOW, "range wraps", start.0));
        };
        Ok(Self { start, last: Iova(last) })
    }

    /// The range from `start` to `last`, both included.
    ///
    /// # Errors
    ///
    /// `EINVAL` if `last` lies before `start`.
    pub fn closed(start: Iova, last: Iova) -> Result<Self> {
        if last < start {
            return Err(Error::at(Errno::EINVAL, "range ends before it starts", last.0));
        }
        Ok(Self { start, last })
    }

    /// The first IOVA.
    #[must_use]
    pub const fn start(self) -> Iova {
        self.start
    }

    /// The last IOVA, which belongs to the range.
    #[must_use]
    pub const fn last(self) -> Iova {
        self.last
    }

    /// Bytes minus one: the length of [`IovaRange::ALL`] does not fit 64 bits.
    #[must_use]
    pub const fn span(self) -> u64 {
        self.last.0 - self.start.0
    }

    /// Whether `other` lies wholly inside.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.last <= self.last
    }

    /// What both ranges share, if anything.
    #[must_use]
    pub fn intersect(self, other: Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let last = self.last.min(other.last);
        (start <= last).then_some(Self { start, last })
    }
}

impl fmt::Debug for IovaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}, {:#x}]", self.start.0, self.last.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_may_end_at_the_last_address_and_not_pass_it() {
        assert_eq!(IovaRange::new(Iova(u64::MAX), 1).map(IovaRange::last), Ok(Iova(u64::MAX)));
        assert_eq!(IovaRange::new(Iova(u64::MAX), 2).unwrap_err().errno, Errno::EOVERFLOW);
        assert_eq!(IovaRange::new(Iova(0), 0).unwrap_err().errno, Errno::EINVAL);
    }
}
