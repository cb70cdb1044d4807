//! Dma-bufs: parts of a BAR that another device's IOAS maps by descriptor. Linux:
//! `vfio_pci_dmabuf.c`.
//!
//! A dma-buf is revoked while its BAR does not answer, and for good when its device is closed. What
//! an importer mapped before a revocation stays out of reach after it: it has to map again.

use std::sync::{Arc, Weak};

use ioasis_iommufd::inject::step;
use ioasis_iommufd::{
    AddressSpace, Backing, ClientFile, Extent, Extents, Importer, Kind, OnExec, Piece, Prot,
};
use ioasis_pci::{BARS, Bar, PAGE_SIZE};
use ioasis_sys::sync::Mutex;
use ioasis_sys::sync::atomic::{AtomicU64, Ordering};
use ioasis_uapi::vfio::{DeviceFeatureDmaBuf, RegionDmaRange};
use ioasis_uapi::{Errno, Error, Result};
use zerocopy::{FromZeros, IntoBytes};

use crate::file::region_offset;
use crate::{Client, DeviceFile, arg};

/// `O_CLOEXEC` (asm-generic/fcntl.h).
const O_CLOEXEC: u32 = 0o2_000_000;
/// Linux sets no limit but memory; this is ours.
const RANGES_MAX: u32 = 1 << 16;
/// Keys of dma-bufs: bits 127 to 125 tell other kinds of memory.
const KEY: u128 = 1 << 124;

/// A number no other dma-buf, and no memory of one, has.
fn unique() -> u128 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    KEY | u128::from(NEXT.fetch_add(1, Ordering::Relaxed))
}

/// One dma-buf.
#[derive(Debug)]
pub(crate) struct DmaBuf {
    key: u128,
    file: Arc<DeviceFile>,
    /// Offset in the device file and length of each part.
    ranges: Vec<(u64, u64)>,
    /// What importers map until the next revocation; a leaf.
    pages: Mutex<Option<Arc<Pages>>>,
}

/// The memory of a dma-buf between two revocations.
#[derive(Debug)]
struct Pages {
    key: u128,
    file: Arc<DeviceFile>,
    /// The device's count of revocations when it was mapped.
    revocations: u64,
}

/// Answers GET of DEVICE_FEATURE_DMA_BUF at `address`, after the header was checked, and returns
/// the descriptor.
///
/// # Errors
///
/// `EFAULT`; `EINVAL` without ranges, with flags, for a range that is empty, not made of pages,
/// past the end of the BAR or not mappable; `ENODEV` for what is no BAR; `EOVERFLOW`; `ENOMEM`;
/// `EMFILE`.
pub(crate) fn export(client: &dyn Client, file: &Arc<DeviceFile>, address: u64) -> Result<i64> {
    const HEADER: usize = size_of::<DeviceFeatureDmaBuf>();
    let header: DeviceFeatureDmaBuf = arg::copy(client, address, HEADER)?;
    let DeviceFeatureDmaBuf { region_index, open_flags, flags, nr_ranges } = header;
    if nr_ranges == 0 || flags != 0 {
        return Err(Error::new(Errno::EINVAL, "no ranges, or unknown flags"));
    }
    let function = file.device().function();
    let index = usize::try_from(region_index).unwrap_or(BARS);
    let Some(bar) = function.bar(index) else {
        return Err(Error::at(Errno::ENODEV, "not a BAR", region_index.into()));
    };
    let ranges = read_ranges(client, address.wrapping_add(HEADER as u64), nr_ranges)?;
    check_total(&ranges)?;
    let base = function.bar_address(index);
    ranges.iter().try_for_each(|range| check_range(bar, base, range))?;
    step("a dma-buf")?;
    let start = region_offset(region_index);
    let ranges = ranges.iter().map(|range| (start + range.offset, range.length)).collect();
    let buffer = DmaBuf { key: unique(), file: Arc::clone(file), ranges, pages: Mutex::new(None) };
    let on_exec = if open_flags & O_CLOEXEC == 0 { OnExec::Keep } else { OnExec::Close };
    client.install(Arc::new(buffer), on_exec).map(i64::from)
}

fn read_ranges(client: &dyn Client, address: u64, count: u32) -> Result<Vec<RegionDmaRange>> {
    if count > RANGES_MAX {
        return Err(Error::at(Errno::ENOMEM, "too many ranges", count.into()));
    }
    let count = usize::try_from(count).expect("64-bit usize");
    step("the ranges of a dma-buf")?;
    let mut ranges = vec![RegionDmaRange::new_zeroed(); count];
    client.read(address, ranges.as_mut_bytes())?;
    Ok(ranges)
}

fn check_total(ranges: &[RegionDmaRange]) -> Result<()> {
    let mut total = 0_u64;
    for &RegionDmaRange { offset, length } in ranges {
        if length == 0 || !offset.is_multiple_of(PAGE_SIZE) || !length.is_multiple_of(PAGE_SIZE) {
            return Err(Error::at(Errno::EINVAL, "a range is empty or not made of pages", offset));
        }
        let Some(sum) = total.checked_add(length) else {
            return Err(Error::at(Errno::EINVAL, "the ranges are longer than memory", length));
        };
        total = sum;
    }
    // Linux's DMA_IOVA_USE_SWIOTLB: the highest bit of a size means something else.
    if total >> 63 != 0 {
        return Err(Error::at(Errno::EINVAL, "the ranges are longer than memory", total));
    }
    Ok(())
}

fn check_range(bar: &Bar, base: u64, range: &RegionDmaRange) -> Result<()> {
    let RegionDmaRange { offset, length } = *range;
    if base.checked_add(offset).is_none() {
        return Err(Error::at(Errno::EOVERFLOW, "a range wraps", offset));
    }
    // DIFFERS: registers that only system calls reach are no memory that a device could reach;
    // Linux exports any part of a memory BAR.
    if !bar.is_mappable(offset, length) {
        return Err(Error::at(Errno::EINVAL, "a range is no mappable part of the BAR", offset));
    }
    Ok(())
}

impl ClientFile for DmaBuf {
    fn name(&self) -> &'static str {
        "/dmabuf:"
    }

    fn memory(&self) -> Option<Arc<dyn AddressSpace>> {
        Some(Arc::new(Exported {
            key: self.key,
            file: Arc::clone(&self.file),
            ranges: self.ranges.clone(),
            pages: self.pages(),
        }))
    }

    fn close(&self) {
        *self.pages.lock() = None;
    }
}

impl DmaBuf {
    /// The same for all who map it between two revocations.
    fn pages(&self) -> Arc<Pages> {
        let revocations = self.file.device().revocations();
        let mut pages = self.pages.lock();
        if let Some(pages) = &*pages
            && pages.revocations == revocations
        {
            return Arc::clone(pages);
        }
        let fresh = Arc::new(Pages { key: unique(), file: Arc::clone(&self.file), revocations });
        *pages = Some(Arc::clone(&fresh));
        fresh
    }
}

/// A dma-buf as IOAS_MAP_FILE finds it.
#[derive(Debug)]
struct Exported {
    key: u128,
    file: Arc<DeviceFile>,
    ranges: Vec<(u64, u64)>,
    pages: Arc<Pages>,
}

impl AddressSpace for Exported {
    fn key(&self) -> u128 {
        self.key
    }

    fn pin(&self, address: u64, length: u64, _need: Prot) -> Result<Extents> {
        let &[(start, size)] = self.ranges.as_slice() else {
            return Err(Error::new(Errno::EOPNOTSUPP, "a dma-buf of several ranges is not mapped"));
        };
        if address.checked_add(length).is_none_or(|end| end > size) {
            return Err(Error::at(Errno::EINVAL, "past the end of the dma-buf", address));
        }
        let backing: Arc<dyn Backing> = Arc::clone(&self.pages) as _;
        Ok(Extents::from_buf([Extent { backing, offset: start + address, length }]))
    }

    fn kind(&self) -> Kind {
        Kind::DmaBuf
    }

    fn is_revoked(&self) -> bool {
        self.pages.is_revoked() || !self.file.answers()
    }

    fn import(&self, importer: Weak<dyn Importer>) {
        self.file.device().add_importer(self.key, importer);
    }
}

impl Pages {
    fn is_revoked(&self) -> bool {
        self.file.device().revocations() != self.revocations
    }

    fn check(&self) -> Result<()> {
        if self.is_revoked() {
            return Err(Error::new(Errno::EFAULT, "the dma-buf was revoked after it was mapped"));
        }
        Ok(())
    }
}

impl Backing for Pages {
    fn key(&self) -> u128 {
        self.key
    }

    fn is_device(&self) -> bool {
        true
    }

    fn may_wait(&self) -> bool {
        false
    }

    fn read(&self, pieces: &[Piece], mut buf: &mut [u8]) -> Result<()> {
        self.check()?;
        for piece in pieces {
            let (part, rest) = buf.split_at_mut(piece.length);
            self.file.peer_read(piece.offset, part)?;
            buf = rest;
        }
        Ok(())
    }

    fn write(&self, pieces: &[Piece], mut buf: &[u8]) -> Result<()> {
        self.check()?;
        for piece in pieces {
            let (part, rest) = buf.split_at(piece.length);
            self.file.peer_write(piece.offset, part)?;
            buf = rest;
        }
        Ok(())
    }
}
