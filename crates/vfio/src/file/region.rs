//! Regions of a device file: reads, writes and mappings by offset. Linux:
//! `drivers/vfio/pci/vfio_pci_rdwr.c`.

use std::ops::Range;

use ioasis_pci::{BARS, Bar, CONFIG_SIZE, PAGE_SIZE, PageKind};
use ioasis_uapi::vfio;
use ioasis_uapi::{Errno, Error, Result};

use super::DeviceFile;

/// A region begins at a multiple of `1 << REGION_SHIFT` of the file: which one, [`region_offset`]
/// says.
pub const REGION_SHIFT: u32 = 40;

const CONFIG: u32 = vfio::PCI_CONFIG_REGION_INDEX;
const ROM: u32 = vfio::PCI_ROM_REGION_INDEX;

/// Linux: `MAP_TYPE` and its shared values.
const MAP_TYPE: u32 = 0xf;
const MAP_SHARED: u32 = 1;
const MAP_SHARED_VALIDATE: u32 = 3;

/// Where region `index` begins: at `(index + 1) << 40`, so that ordinary reads are not intercepted,
/// as Linux's region 0 would have them. Configuration space alone lies where it does on Linux,
/// because DPDK up to 22.11 takes its place for known (`VFIO_GET_REGION_ADDR`,
/// lib/eal/include/rte_vfio.h). It answers at its place by the rule as well, where programs found
/// it before, so the ROM has another.
#[must_use]
pub fn region_offset(index: u32) -> u64 {
    let place = match index {
        CONFIG => u64::from(CONFIG),
        ROM => ROM_PLACE.into(),
        other => u64::from(other) + 1,
    };
    place.checked_shl(REGION_SHIFT).unwrap_or(0)
}

/// Behind the places of all other regions.
const ROM_PLACE: u32 = vfio::PCI_NUM_REGIONS + 1;
const CONFIG_BY_RULE: u32 = CONFIG + 1;

/// The region an offset lies in.
#[must_use]
pub fn region_index(offset: u64) -> Option<u32> {
    match u32::try_from(offset >> REGION_SHIFT).ok()? {
        CONFIG | CONFIG_BY_RULE => Some(CONFIG),
        ROM_PLACE => Some(ROM),
        other => other.checked_sub(1),
    }
}

/// The offset inside its region.
pub(crate) fn region_position(offset: u64) -> u64 {
    offset & ((1 << REGION_SHIFT) - 1)
}

/// What a device reads as that an error froze (EEH).
const ONES: u8 = 0xff;

/// A region that can be read or written.
enum Region {
    Bar(usize),
    Rom,
    Config,
}

impl DeviceFile {
    /// How many of `length` bytes a read or write at `offset` of the file moves: those up to the
    /// region's end.
    ///
    /// # Errors
    ///
    /// `EINVAL` before the file is bound, outside the regions, and past the end of a BAR; `EFAULT`
    /// past the end of configuration space; `ENODEV` after the device was removed.
    pub fn span(&self, offset: u64, length: u64) -> Result<u64> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(region) = self.region(offset, length)? else { return Ok(0) };
        let position = region_position(offset);
        Ok(match region {
            Region::Bar(bar) => self.clip(bar, position, length)?,
            Region::Rom => self.clip_rom(position, length)?,
            Region::Config => check_config(position, length).map(|()| length)?,
        } as u64)
    }

    /// Reads a region at `offset` of the file, at most to its end, and returns the number of bytes.
    ///
    /// # Errors
    ///
    /// `EINVAL` before the file is bound, outside the regions, and past the end of a BAR; `EFAULT`
    /// past the end of configuration space; `EIO` while memory decoding is off; `ENODEV` after the
    /// device was removed.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let Some(region) = self.region(offset, buf.len())? else { return Ok(0) };
        let (function, position) = (self.device.function(), region_position(offset));
        match region {
            Region::Bar(bar) => {
                let length = self.clip(bar, position, buf.len())?;
                if self.device.is_frozen() {
                    buf[..length].fill(ONES);
                } else {
                    function.bar_read(bar, position, &mut buf[..length])?;
                }
                Ok(length)
            }
            Region::Rom => {
                let length = self.clip_rom(position, buf.len())?;
                function.rom_read(position, &mut buf[..length])?;
                Ok(length)
            }
            Region::Config => {
                check_config(position, buf.len())?;
                function.config_read(position, buf)?;
                Ok(buf.len())
            }
        }
    }

    /// Writes a region as [`DeviceFile::read`] reads it.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn write(&self, offset: u64, buf: &[u8]) -> Result<usize> {
        let Some(region) = self.region(offset, buf.len())? else { return Ok(0) };
        let (function, position) = (self.device.function(), region_position(offset));
        match region {
            Region::Bar(bar) => {
                let length = self.clip(bar, position, buf.len())?;
                if !self.device.is_frozen() {
                    function.bar_write(bar, position, &buf[..length])?;
                }
                Ok(length)
            }
            Region::Rom => Err(Error::new(Errno::EINVAL, "the ROM is not written")),
            Region::Config => {
                check_config(position, buf.len())?;
                self.device.write_config(position, buf)?;
                Ok(buf.len())
            }
        }
    }

    /// A load of a trapped page that a program mapped: 1 to 64 bytes at `offset` of the file,
    /// inside one page.
    ///
    /// # Errors
    ///
    /// `EINVAL` before the file is bound and for what is no trapped page; `EIO` while memory
    /// decoding is off; `EFAULT` when the page was truncated; `ENODEV` after the device was
    /// removed.
    pub fn load(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let bar = self.mapped_bar(offset)?;
        if self.device.is_frozen() {
            bytes.fill(ONES);
            return Ok(());
        }
        self.device.function().load(bar, region_position(offset), bytes)
    }

    /// A store to a trapped page that a program mapped. It has acted when this returns.
    ///
    /// # Errors
    ///
    /// As [`DeviceFile::load`].
    pub fn store(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let bar = self.mapped_bar(offset)?;
        if self.device.is_frozen() {
            return Ok(());
        }
        self.device.function().store(bar, region_position(offset), bytes)
    }

    /// The trapped parts of a mapping of `length` bytes at `offset` of the file, by offset in the
    /// file. None outside the BARs.
    #[must_use]
    pub fn trapped(&self, offset: u64, length: u64) -> Vec<Range<u64>> {
        self.parts(offset, length, Bar::trapped)
    }

    /// Those of which loads are trapped as well.
    #[must_use]
    pub fn trapped_loads(&self, offset: u64, length: u64) -> Vec<Range<u64>> {
        self.parts(offset, length, Bar::trapped_loads)
    }

    /// How the page at `offset` of the file reaches the device; nothing where it cannot be mapped.
    #[must_use]
    pub fn page_kind(&self, offset: u64) -> Option<PageKind> {
        let bar = usize::try_from(region_index(offset)?).ok()?;
        self.device.function().bar(bar)?.page_kind(region_position(offset))
    }

    fn parts(
        &self,
        offset: u64,
        length: u64,
        of: impl FnOnce(&Bar, &Range<u64>) -> Vec<Range<u64>>,
    ) -> Vec<Range<u64>> {
        let bar = region_index(offset).and_then(|index| usize::try_from(index).ok());
        let Some(bar) = bar.and_then(|bar| self.device.function().bar(bar)) else {
            return Vec::new();
        };
        let position = region_position(offset);
        let parts = of(bar, &(position..position.saturating_add(length)));
        let begin = offset - position;
        parts.into_iter().map(|part| begin + part.start..begin + part.end).collect()
    }

    fn mapped_bar(&self, offset: u64) -> Result<usize> {
        self.usable()?;
        self.device.present()?;
        match region_index(offset).map(|index| index as usize) {
            Some(bar) if bar < BARS => Ok(bar),
            _ => Err(Error::at(Errno::EINVAL, "not a BAR", offset)),
        }
    }

    /// Whether `length` bytes at `offset` of the file may be mapped with the flags of mmap(2). The
    /// mapping itself is one of the file's memory.
    ///
    /// # Errors
    ///
    /// `EINVAL` before the file is bound, for a private mapping, and for what is no mappable part
    /// of one BAR; `ENODEV` after the device was removed.
    // DIFFERS: a page stays accessible while memory decoding is off, where Linux raises SIGBUS.
    pub fn mmap(&self, offset: u64, length: u64, flags: u32) -> Result<()> {
        // do_mmap, before any file is asked.
        if length == 0 {
            return Err(Error::at(Errno::EINVAL, "nothing is mapped", offset));
        }
        self.usable()?;
        self.device.present()?;
        let refused = |why| Err(Error::at(Errno::EINVAL, why, offset));
        if !matches!(flags & MAP_TYPE, MAP_SHARED | MAP_SHARED_VALIDATE) {
            return refused("a device is mapped shared");
        }
        let bar = match region_index(offset) {
            Some(index) if (index as usize) < BARS => self.device.function().bar(index as usize),
            _ => None,
        };
        let Some(bar) = bar else { return refused("not a BAR") };
        let Some(length) = length.checked_next_multiple_of(PAGE_SIZE) else {
            return refused("longer than any BAR");
        };
        if !bar.is_mappable(region_position(offset), length) {
            return refused("that part of the BAR is not mappable");
        }
        self.touch();
        Ok(())
    }

    /// The region of an access; none when it has no bytes.
    fn region(&self, offset: u64, length: usize) -> Result<Option<Region>> {
        self.usable()?;
        self.device.present()?;
        if length == 0 {
            return Ok(None);
        }
        let region = match region_index(offset) {
            Some(index) if (index as usize) < BARS => Region::Bar(index as usize),
            Some(vfio::PCI_CONFIG_REGION_INDEX) => Region::Config,
            Some(ROM) if self.device.function().rom_size() != 0 => Region::Rom,
            _ => return Err(Error::at(Errno::EINVAL, "no such region, or an empty one", offset)),
        };
        self.touch();
        Ok(Some(region))
    }

    /// The bytes of an access that lie inside the ROM.
    fn clip_rom(&self, position: u64, length: usize) -> Result<usize> {
        let size = self.device.function().rom_size();
        if position >= size {
            return Err(Error::at(Errno::EINVAL, "past the end of the ROM", position));
        }
        Ok(usize::try_from(size - position).unwrap_or(length).min(length))
    }

    /// The bytes of an access that lie inside a BAR.
    fn clip(&self, bar: usize, position: u64, length: usize) -> Result<usize> {
        let function = self.device.function();
        let size = match function.bar(bar) {
            Some(found) if function.bar_address(bar) != 0 => found.size,
            _ => return Err(Error::at(Errno::EINVAL, "no such BAR", bar as u64)),
        };
        if position >= size {
            return Err(Error::at(Errno::EINVAL, "past the end of the BAR", position));
        }
        Ok(usize::try_from(size - position).unwrap_or(length).min(length))
    }
}

fn check_config(position: u64, length: usize) -> Result<()> {
    let fits = usize::try_from(position)
        .ok()
        .and_then(|position| position.checked_add(length))
        .is_some_and(|end| end <= CONFIG_SIZE);
    if fits {
        return Ok(());
    }
    Err(Error::at(Errno::EFAULT, "past the end of configuration space", position))
}
