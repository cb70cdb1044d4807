//! Memory that a client maps from an open /dev/iommu: pages of a virtual IOMMU.
//!
//! The pages lie in the file itself, at the offset the client is told, so that the kernel maps them. Offsets begin where
//! the filter stops mmap; only a region as a whole can be mapped.
//!
//! DIFFERS: a private mapping of an offset below that is not stopped and maps nothing of ours; Linux answers EINVAL.
//!
//! `Regions::regions` is a leaf lock.

use std::io::BufRead;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use ioasis_iommufd::{MappableMemory, inject};
use ioasis_sys::because;
use ioasis_sys::mapping::{Access, Mapping};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result};
use ioasis_vfio::REGION_SHIFT;
use rustix::fs::FallocateFlags;

use super::verify::Shares;

/// Offsets below are not stopped.
const FAR: u64 = 1 << REGION_SHIFT;

const PAGE: u64 = 4096;
const PROT_EXEC: u64 = 4;

/// The regions of one open file.
#[derive(Debug, Default)]
pub(crate) struct Regions {
    regions: Mutex<Vec<Weak<Region>>>,
}

/// One region.
#[derive(Debug)]
struct Region {
    file: OwnedFd,
    offset: u64,
    length: u64,
    memory: Mapping,
    /// A client was allowed to map it.
    was_mapped: AtomicBool,
}

/// The arguments of one mmap.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) protection: u64,
    pub(super) flags: u32,
}

impl Regions {
    /// Makes a region of `length` bytes, whole pages, in `file`.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `ENOSPC`.
    pub(super) fn make(&self, file: OwnedFd, length: u64) -> Result<Arc<dyn MappableMemory>> {
        inject::step("pages to be mapped by the program")?;
        let mut regions = self.regions.lock();
        regions.retain(|region| region.strong_count() > 0);
        let known = regions.iter().filter_map(Weak::upgrade);
        let offset = known.map(|region| region.offset + region.length).max().unwrap_or(FAR);
        let no_room = because("no memory for the pages of a virtual IOMMU");
        rustix::fs::fallocate(&file, FallocateFlags::empty(), offset, length).map_err(no_room)?;
        let bytes = usize::try_from(length)
            .map_err(|_| Error::at(Errno::ENOMEM, "a region is too large", length))?;
        let memory = Mapping::file(file.as_fd(), offset, bytes, Access::ReadWrite)?;
        let was_mapped = AtomicBool::new(false);
        let region = Arc::new(Region { file, offset, length, memory, was_mapped });
        regions.push(Arc::downgrade(&region));
        Ok(region)
    }

    /// Calls `act` with offset and length of each region, ascending, while none is made.
    pub(super) fn with_extents<T>(&self, act: impl FnOnce(&[(u64, u64)]) -> T) -> T {
        let regions = self.regions.lock();
        let known: Vec<_> = regions.iter().filter_map(Weak::upgrade).collect();
        let mut extents: Vec<_> =
            known.iter().map(|region| (region.offset, region.length)).collect();
        extents.sort_unstable();
        act(&extents)
    }

    /// Judges an mmap. In Linux: `iommufd_fops_mmap`.
    ///
    /// # Errors
    ///
    /// `EINVAL` unless shared, `EPERM` for code, `ENXIO` for anything but one region.
    pub(super) fn mmap(&self, wanted: Wanted, shares: Shares) -> Result<()> {
        if shares == Shares::No {
            return Err(Error::new(Errno::EINVAL, "the mapping is not shared"));
        }
        if wanted.protection & PROT_EXEC != 0 {
            return Err(Error::new(Errno::EPERM, "registers hold no code"));
        }
        let length = wanted.length.checked_next_multiple_of(PAGE);
        let is_it =
            |region: &Arc<Region>| (region.offset, Some(region.length)) == (wanted.offset, length);
        match self.regions.lock().iter().filter_map(Weak::upgrade).find(is_it) {
            Some(region) => {
                region.was_mapped.store(true, Ordering::Release);
                Ok(())
            }
            None => Err(Error::at(Errno::ENXIO, "no region has this extent", wanted.offset)),
        }
    }
}

impl MappableMemory for Region {
    fn offset(&self) -> u64 {
        self.offset
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.memory.write(at, bytes)
    }

    fn load(&self, at: u64) -> Result<u32> {
        self.memory.load_u32(at)
    }

    fn store(&self, at: u64, value: u32) -> Result<()> {
        self.memory.store_u32(at, value)
    }

    fn is_mapped(&self) -> bool {
        self.was_mapped.load(Ordering::Acquire) && is_mapped_by_others(self)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // The pages go with the file at the latest.
        let _ = rustix::fs::fallocate(&self.file, flags, self.offset, self.length);
    }
}

/// Whether a process other than this one maps a part of `region`, as /proc says.
fn is_mapped_by_others(region: &Region) -> bool {
    let Ok(stat) = rustix::fs::fstat(&region.file) else { return false };
    let device = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let Ok(processes) = std::fs::read_dir("/proc") else { return false };
    let own = std::process::id().to_string();
    processes
        .filter_map(std::result::Result::ok)
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.bytes().all(|byte| byte.is_ascii_digit()) && name != own
        })
        .filter_map(|path| std::fs::File::open(path.join("maps")).ok())
        // A program chooses how many lines it has, and what its files are called.
        .any(|maps| {
            let lines = std::io::BufReader::new(maps).split(b'\n').map_while(|line| line.ok());
            lines
                .into_iter()
                .any(|line| shows(&String::from_utf8_lossy(&line), device, stat.st_ino, region))
        })
}

/// Whether a line of /proc/PID/maps is a mapping of `region`, in the file `inode` of `device`.
fn shows(line: &str, device: (u32, u32), inode: u64, region: &Region) -> bool {
    let mut fields = line.split_ascii_whitespace().skip(2);
    let mut field = || fields.next().unwrap_or_default();
    let offset = u64::from_str_radix(field(), 16).unwrap_or_default();
    let of = field().split_once(':').and_then(|(major, minor)| {
        Some((u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?))
    });
    let within = (region.offset..region.offset + region.length).contains(&offset);
    within && of == Some(device) && field().parse() == Ok(inode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::MemfdFlags;

    const RW: u64 = 3;

    fn file() -> OwnedFd {
        let file = rustix::fs::memfd_create("regions-test", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, 2 * FAR).unwrap();
        file
    }

    fn mmap(regions: &Regions, offset: u64, length: u64) -> std::result::Result<(), Errno> {
        let wanted = Wanted { offset, length, protection: RW, flags: 1 };
        regions.mmap(wanted, Shares::Yes).map_err(|error| error.errno)
    }

    #[test]
    fn regions_lie_one_behind_the_other_where_mmap_is_stopped() {
        let (regions, file) = (Regions::default(), file());
        let make = |length| regions.make(file.try_clone().unwrap(), length).unwrap();
        let (first, second) = (make(PAGE), make(2 * PAGE));
        assert_eq!((first.offset(), second.offset()), (FAR, FAR + PAGE));
        assert_eq!(mmap(&regions, FAR, PAGE), Ok(()));
        assert_eq!(mmap(&regions, FAR + PAGE, 2 * PAGE), Ok(()));
    }

    #[test]
    fn only_a_whole_region_is_mapped_and_only_while_it_is_there() {
        let (regions, file) = (Regions::default(), file());
        let region = regions.make(file, 2 * PAGE).unwrap();
        for (offset, length) in [
            (FAR, PAGE),
            (FAR + PAGE, PAGE),
            (FAR, 3 * PAGE),
            (FAR - PAGE, 2 * PAGE),
            (0, u64::MAX),
        ] {
            assert_eq!(
                mmap(&regions, offset, length),
                Err(Errno::ENXIO),
                "{offset:#x} {length:#x}"
            );
        }
        assert_eq!(mmap(&regions, FAR, 2 * PAGE - 1), Ok(()), "mmap(2) rounds up");
        drop(region);
        assert_eq!(mmap(&regions, FAR, 2 * PAGE), Err(Errno::ENXIO));
    }

    #[test]
    fn registers_are_mapped_shared_and_hold_no_code() {
        let regions = Regions::default();
        let _region = regions.make(file(), PAGE).unwrap();
        let wanted = Wanted { offset: FAR, length: PAGE, protection: RW, flags: 1 };
        let code = Wanted { protection: PROT_EXEC, ..wanted };
        for (wanted, shares, answered) in [
            (wanted, Shares::Yes, Ok(())),
            (wanted, Shares::No, Err(Errno::EINVAL)),
            (code, Shares::Yes, Err(Errno::EPERM)),
            (code, Shares::No, Err(Errno::EINVAL)),
        ] {
            let answer = regions.mmap(wanted, shares).map_err(|error| error.errno);
            assert_eq!(answer, answered, "{wanted:?} {shares:?}");
        }
    }

    #[test]
    fn what_is_written_is_in_the_pages_and_goes_with_the_region() {
        let (regions, file) = (Regions::default(), file());
        let region = regions.make(file.try_clone().unwrap(), PAGE).unwrap();
        region.write(8, b"words").unwrap();
        assert!(region.write(PAGE - 1, b"ab").is_err(), "not past its end");
        let mut seen = [0; 5];
        rustix::io::pread(&file, &mut seen, FAR + 8).unwrap();
        assert_eq!(&seen, b"words");
        drop(region);
        rustix::io::pread(&file, &mut seen, FAR + 8).unwrap();
        assert_eq!(seen, [0; 5], "the next one at this place begins with zeroes");
        assert_eq!(regions.make(file, PAGE).unwrap().offset(), FAR);
    }

    #[test]
    fn a_region_counts_as_mapped_as_long_as_another_process_shows_it() {
        let (regions, file) = (Regions::default(), file());
        let region = regions.make(file.try_clone().unwrap(), PAGE).unwrap();
        assert!(!region.is_mapped());
        mmap(&regions, FAR, PAGE).unwrap();
        assert!(!region.is_mapped(), "allowed and not done yet");
        let (ours, theirs) = ioasis_sys::message::pair().unwrap();
        let child = ioasis_sys::spawn::fork_with(|| {
            let page = Mapping::file(file.as_fd(), FAR, 4096, Access::ReadWrite);
            let _ = ioasis_sys::message::send(&theirs, b"mapped", &[]);
            let _ = ioasis_sys::message::receive(&theirs, 1);
            i32::from(page.is_err())
        })
        .unwrap();
        ioasis_sys::message::receive(&ours, 16).unwrap();
        assert!(region.is_mapped());
        ioasis_sys::message::send(&ours, b"x", &[]).unwrap();
        assert!(child.wait().unwrap().success());
        assert!(!region.is_mapped());
    }
}
