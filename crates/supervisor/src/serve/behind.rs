//! The file behind one of ours: what lies in it, and what somebody did to it that nobody asked us about.
//!
//! It holds the pages that a client may map, of BARs or of a virtual IOMMU, and a copy of a device's configuration
//! space, so that what the filter lets through reads what is there (io_uring, AIO). Nothing else is ever to be in it:
//! [`undo`] frees what is, and gives back what was taken away.
//!
//! Lock order: `Config::pages`, and a [`Regions`](super::regions::Regions)' own lock, before those of the device.

use std::os::fd::{AsFd, OwnedFd};

use ioasis_pci::CONFIG_SIZE;
use ioasis_sys::because;
use ioasis_sys::mapping::{Access, Mapping};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result, vfio};
use ioasis_vfio::{DeviceFile, REGION_SHIFT};
use rustix::fs::{FallocateFlags, SeekFrom};

use super::File;
use super::client::mappable;
use crate::files::{END, Open};

/// Where configuration space lies in a device's file.
const CONFIG: u64 = (vfio::PCI_CONFIG_REGION_INDEX as u64) << REGION_SHIFT;
const CONFIG_BYTES: u64 = CONFIG_SIZE as u64;
const PAGE: u64 = 4096;
/// Of `st_blocks`.
const BLOCK: u64 = 512;

/// A device's configuration space as it was after the last call that could change it, in the device's file.
#[derive(Debug)]
pub(crate) struct Config {
    /// Held from reading the device until the copy is written.
    pages: Mutex<Mapping>,
}

impl Config {
    /// An empty one in `file`.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn new(file: &OwnedFd) -> Result<Self> {
        rustix::fs::fallocate(file, FallocateFlags::empty(), CONFIG, CONFIG_BYTES)
            .map_err(|_| Error::new(Errno::ENOMEM, "no memory for configuration space"))?;
        let pages = Mapping::file(file.as_fd(), CONFIG, CONFIG_SIZE, Access::ReadWrite)?;
        Ok(Self { pages: Mutex::new(pages) })
    }

    /// Whether a read or write at `offset` of the file is one of configuration space.
    pub(super) const fn is_at(offset: u64) -> bool {
        offset >= CONFIG && offset - CONFIG < CONFIG_BYTES
    }

    /// Copies it anew. A device that is not bound yet shows nothing.
    pub(super) fn update(&self, device: &DeviceFile) {
        let pages = self.pages.lock();
        let mut bytes = [0; CONFIG_SIZE];
        if device.read(CONFIG, &mut bytes).is_ok() {
            // A page that was taken away is given back by `undo`.
            let _ = pages.write(0, &bytes);
        }
    }
}

/// Undoes what was done to the file behind `opened` by another way than the calls that we answer; whether anything was.
///
/// # Errors
///
/// `ENOMEM` when what was taken away cannot be had again.
pub(super) fn undo(opened: &Open<File>) -> Result<bool> {
    let own = opened.own()?;
    let undone = match &opened.file {
        File::Device { device, config, .. } => {
            let mut kept = mappable(device.device());
            kept.push((CONFIG, CONFIG_BYTES));
            let undone = leave_only(&own, &kept)?;
            if undone {
                config.update(device);
            }
            undone
        }
        File::Iommufd { regions, .. } => regions.with_extents(|kept| leave_only(&own, kept))?,
        _ => leave_only(&own, &[])?,
    };
    Ok(take_attributes(&own) || undone)
}

/// Leaves the pages of `kept`, offset and length of each, ascending, in `file`, and no others.
fn leave_only(file: &OwnedFd, kept: &[(u64, u64)]) -> Result<bool> {
    let stat = rustix::fs::fstat(file).map_err(because("a file cannot be looked at"))?;
    let too_short = because("a file cannot be made long enough");
    let is_cut = stat.st_size.cast_unsigned() != END;
    if is_cut {
        rustix::fs::ftruncate(file, END).map_err(&too_short)?;
    }
    let pages = |&(offset, length): &(u64, u64)| (offset + length).div_ceil(PAGE) - offset / PAGE;
    let expected = kept.iter().map(pages).sum::<u64>() * (PAGE / BLOCK);
    let gaps = gaps(kept);
    let is_written = |&(start, end): &(u64, u64)| {
        rustix::fs::seek(file, SeekFrom::Data(start)).is_ok_and(|data| data < end)
    };
    if stat.st_blocks.cast_unsigned() == expected && !gaps.iter().any(is_written) {
        return Ok(is_cut);
    }
    // The last page, which has a byte less than others, can be cut off only.
    rustix::fs::ftruncate(file, END - END % PAGE).map_err(&too_short)?;
    rustix::fs::ftruncate(file, END).map_err(&too_short)?;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    for (start, end) in gaps {
        rustix::fs::fallocate(file, punch, start, end - start)
            .map_err(because("a file's pages cannot be freed"))?;
    }
    for &(offset, length) in kept {
        rustix::fs::fallocate(file, FallocateFlags::empty(), offset, length)
            .map_err(|_| Error::at(Errno::ENOMEM, "no memory for the pages of a file", length))?;
    }
    Ok(true)
}

/// What lies between the ranges, as start and end.
fn gaps(kept: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut at = 0;
    let mut gaps = Vec::with_capacity(kept.len() + 1);
    for &(offset, length) in kept {
        let start = offset - offset % PAGE;
        if start > at {
            gaps.push((at, start));
        }
        at = (offset + length).next_multiple_of(PAGE);
    }
    gaps.push((at, END));
    gaps
}

/// Takes away extended attributes, which take memory of the file system too; whether there were any.
fn take_attributes(file: &OwnedFd) -> bool {
    let mut names = [0; 1 << 16];
    let length = rustix::fs::flistxattr(file, &mut names[..]).unwrap_or(0);
    let names = names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    names.filter(|name| rustix::fs::fremovexattr(file, *name).is_ok()).count() > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags};

    fn file(kept: &[(u64, u64)]) -> OwnedFd {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file =
            rustix::fs::open("/dev/shm", flags, Mode::from_raw_mode(0o600)).expect("a tmpfs");
        rustix::fs::ftruncate(&file, END).expect("a length");
        for &(offset, length) in kept {
            rustix::fs::fallocate(&file, FallocateFlags::empty(), offset, length).expect("room");
        }
        file
    }

    fn blocks(file: &OwnedFd) -> u64 {
        rustix::fs::fstat(file).expect("a file").st_blocks.cast_unsigned()
    }

    const KEPT: [(u64, u64); 2] = [(1 << 40, 2 * PAGE), (CONFIG, CONFIG_BYTES)];

    #[test]
    fn a_file_that_nobody_touched_is_left_alone() {
        for kept in [&[][..], &KEPT] {
            let file = file(kept);
            assert!(!leave_only(&file, kept).unwrap());
            if let Some(&(offset, _)) = kept.first() {
                rustix::io::pwrite(&file, b"kept", offset + 4).unwrap();
                assert!(!leave_only(&file, kept).unwrap());
            }
        }
    }

    #[test]
    fn what_is_written_beside_the_pages_is_freed_and_the_pages_keep_their_bytes() {
        let file = file(&KEPT);
        rustix::io::pwrite(&file, b"kept", 1 << 40).unwrap();
        for offset in [0, (1 << 40) - 1, (1 << 40) + 2 * PAGE, CONFIG + CONFIG_BYTES, END - 1] {
            let before = blocks(&file);
            rustix::io::pwrite(&file, b"x", offset).unwrap();
            assert!(blocks(&file) > before, "{offset:#x}");
            assert!(leave_only(&file, &KEPT).unwrap());
            assert_eq!(blocks(&file), before);
            assert!(!leave_only(&file, &KEPT).unwrap(), "nothing is left to undo");
        }
        let mut bytes = [0; 4];
        rustix::io::pread(&file, &mut bytes, 1 << 40).unwrap();
        assert_eq!(&bytes, b"kept");
    }

    #[test]
    fn pages_that_were_taken_away_are_there_again() {
        let file = file(&KEPT);
        let before = blocks(&file);
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, punch, 1 << 40, PAGE).unwrap();
        assert!(leave_only(&file, &KEPT).unwrap());
        assert_eq!(blocks(&file), before);
        rustix::fs::ftruncate(&file, 0).unwrap();
        assert!(leave_only(&file, &KEPT).unwrap());
        let stat = rustix::fs::fstat(&file).unwrap();
        assert_eq!((blocks(&file), stat.st_size.cast_unsigned()), (before, END));
        assert!(!leave_only(&file, &KEPT).unwrap());
    }

    #[test]
    fn a_page_written_in_place_of_one_taken_away_is_noticed() {
        let file = file(&KEPT);
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, punch, 1 << 40, PAGE).unwrap();
        rustix::io::pwrite(&file, b"x", 0).unwrap();
        assert!(leave_only(&file, &KEPT).unwrap());
        assert_eq!(
            rustix::fs::seek(&file, SeekFrom::Data(0)).ok().filter(|&at| at < 1 << 40),
            None
        );
    }

    #[test]
    fn attributes_are_taken_away() {
        let file = file(&[]);
        let flags = rustix::fs::XattrFlags::empty();
        if rustix::fs::fsetxattr(&file, "user.x", b"1", flags) == Err(rustix::io::Errno::OPNOTSUPP)
        {
            // Before Linux 6.6 there are none.
            return;
        }
        assert!(take_attributes(&file));
        assert!(!take_attributes(&file));
    }
}
