//! Memory of the program itself, for a library user that is its own client.

use std::sync::Arc;

use ioasis_iommupt::Prot;
use ioasis_sys::mapping::Mapping;
use ioasis_uapi::Result;

use crate::client::{AddressSpace, Backing, Extent, Extents, Kind, PAGE_SIZE, Piece};

/// A stretch of memory under addresses of the caller's choice, a VMM's guest RAM for instance.
#[derive(Clone, Debug)]
pub struct Memory {
    start: u64,
    backing: Arc<LocalBacking>,
}

/// The bytes of a [`Memory`].
#[derive(Debug)]
pub(crate) struct LocalBacking {
    mapping: Mapping,
}

impl Memory {
    /// `length` zeroed bytes at `start`; both are rounded to pages by the mapping that asks for
    /// them.
    ///
    /// # Errors
    ///
    /// `EINVAL` when `start` is not page aligned, `ENOMEM`.
    pub fn new(start: u64, length: usize) -> Result<Self> {
        if !start.is_multiple_of(PAGE_SIZE) {
            return refuse!(EINVAL, "the start of the memory is not page aligned", start);
        }
        let backing = Arc::new(LocalBacking { mapping: Mapping::anonymous(length)? });
        Ok(Self { start, backing })
    }

    /// Copies bytes out, as the program itself sees them.
    ///
    /// # Errors
    ///
    /// `EFAULT` outside the memory.
    pub fn read(&self, address: u64, buf: &mut [u8]) -> Result<()> {
        self.backing.mapping.read(self.offset(address, buf.len() as u64)?, buf)
    }

    /// Copies bytes in.
    ///
    /// # Errors
    ///
    /// `EFAULT` outside the memory.
    pub fn write(&self, address: u64, buf: &[u8]) -> Result<()> {
        self.backing.mapping.write(self.offset(address, buf.len() as u64)?, buf)
    }

    fn offset(&self, address: u64, length: u64) -> Result<u64> {
        let offset = address.checked_sub(self.start);
        let fits = |offset: &u64| {
            offset.checked_add(length).is_some_and(|end| end <= self.backing.mapping.len() as u64)
        };
        match offset.filter(fits) {
            Some(offset) => Ok(offset),
            None => refuse!(EFAULT, "the address is outside the memory", address),
        }
    }
}

impl AddressSpace for Memory {
    fn key(&self) -> u128 {
        Backing::key(&*self.backing)
    }

    fn pin(&self, address: u64, length: u64, _need: Prot) -> Result<Extents> {
        let offset = self.offset(address, length)?;
        let backing: Arc<dyn Backing> = Arc::clone(&self.backing) as _;
        Ok(Extents::from_buf([Extent { backing, offset, length }]))
    }

    fn kind(&self) -> Kind {
        Kind::User
    }
}

impl Backing for LocalBacking {
    fn key(&self) -> u128 {
        // The bit above any pointer keeps these apart from keys made of device and inode numbers.
        std::ptr::from_ref(self).addr() as u128 | 1 << 127
    }

    fn may_wait(&self) -> bool {
        false
    }

    fn read(&self, pieces: &[Piece], buf: &mut [u8]) -> Result<()> {
        let mut rest = buf;
        for piece in pieces {
            let (now, later) = rest.split_at_mut(piece.length);
            self.mapping.read(piece.offset, now)?;
            rest = later;
        }
        Ok(())
    }

    fn write(&self, pieces: &[Piece], buf: &[u8]) -> Result<()> {
        let mut rest = buf;
        for piece in pieces {
            let (now, later) = rest.split_at(piece.length);
            self.mapping.write(piece.offset, now)?;
            rest = later;
        }
        Ok(())
    }
}
