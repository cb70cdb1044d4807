//! BAR pages as memory that another device reaches: the far end of peer-to-peer DMA.
//!
//! Linux's type1 container maps the pages' physical addresses and never takes them away again
//! (`vaddr_get_pfns`). Here every access asks whether the BAR answers at that moment.
//!
//! What another device writes to a trapped page waits in its memory for the next poll: to call the
//! model would make one device's thread wait for another's, and two that write to each other for
//! ever.
//!
//! DIFFERS: nothing is reached while memory decoding is off, in D3hot, or while nobody has the
//! device open; what was mapped is reached again when the BAR comes back, with another open too.

use std::sync::Arc;

use ioasis_pci::BARS;
use ioasis_sys::mapping::Mapping;
use ioasis_uapi::{Errno, Error, Result};

use super::{DeviceFile, region_index, region_position};
use crate::Device;

impl Device {
    /// Reads BAR pages at `offset` of its files, for another device.
    ///
    /// # Errors
    ///
    /// `EFAULT` when the BAR does not answer, or there are no pages.
    pub fn peer_read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let (pages, position) = self.peer(offset)?;
        pages.read(position, buf)
    }

    /// Writes BAR pages at `offset` of its files, for another device; the device looks at what was
    /// written.
    ///
    /// # Errors
    ///
    /// As [`Device::peer_read`].
    pub fn peer_write(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let (pages, position) = self.peer(offset)?;
        pages.write(position, buf)?;
        self.function().wake();
        Ok(())
    }

    fn peer(&self, offset: u64) -> Result<(Arc<Mapping>, u64)> {
        let silent = |why| Error::at(Errno::EFAULT, why, offset);
        self.present().map_err(|_| silent("the device of that BAR was removed"))?;
        if !self.function().memory_enabled() {
            return Err(silent("that BAR does not decode memory"));
        }
        let bar = region_index(offset).and_then(|bar| usize::try_from(bar).ok());
        let pages = bar.filter(|&bar| bar < BARS).and_then(|bar| self.bar_pages(bar));
        let none = silent("no BAR pages there, or nobody has the device open");
        Ok((pages.ok_or(none)?, region_position(offset)))
    }
}

impl DeviceFile {
    /// Reads BAR pages at `offset` of the file, as long as the device is open through it.
    ///
    /// # Errors
    ///
    /// As [`Device::peer_read`].
    pub fn peer_read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.check_open(offset)?;
        self.device.peer_read(offset, buf)
    }

    /// Writes BAR pages at `offset` of the file, as long as the device is open through it.
    ///
    /// # Errors
    ///
    /// As [`Device::peer_read`].
    pub fn peer_write(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.check_open(offset)?;
        self.device.peer_write(offset, buf)
    }

    /// Whether its BARs answer.
    pub(crate) fn answers(&self) -> bool {
        let usable = self.usable().and_then(|()| self.device.present());
        usable.is_ok() && self.device.function().memory_enabled()
    }

    fn check_open(&self, offset: u64) -> Result<()> {
        let closed = Error::at(Errno::EFAULT, "the device of that BAR is closed", offset);
        self.usable().map_err(|_| closed)
    }
}
