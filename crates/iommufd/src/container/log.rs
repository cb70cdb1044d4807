//! The dirty log of a container: DIRTY_PAGES, and UNMAP_DMA with GET_DIRTY_BITMAP.
//!
//! The type1 driver does not ask the hardware: whatever a group's devices can reach is dirty each
//! time it is read, for a device may have written it. Only emulated devices, which pin what they
//! use, are tracked by the page.

use std::collections::BTreeSet;

use ioasis_iommupt::Iova;
use ioasis_iommupt::IovaRange;
use ioasis_uapi::Result;
use ioasis_uapi::vfio as abi;

use super::argument::{read, read_tail};
use super::type1::{DIRTY_BITMAP_SIZE_MAX, Type1};
use crate::Client;
use crate::inject::step;

/// First address that is no process's on x86-64: `TASK_SIZE_MAX`.
const TASK_SIZE_MAX: u64 = 0x7fff_ffff_f000;
/// Pages one mapping may have while they are logged, `DIRTY_BITMAP_PAGES_MAX`.
const LOGGED_PAGES_MAX: u64 = (1 << 31) - 1;

/// Bytes of a bitmap of `bits` bits, in whole words.
fn bitmap_bytes(bits: u64) -> u64 {
    bits.div_ceil(64) * 8
}

/// Checks where a bitmap is to go, for `size` bytes of IOVA.
fn check_bitmap(bitmap: &abi::Bitmap, size: u64) -> Result<()> {
    if bitmap.data.checked_add(bitmap.size).is_none_or(|end| end > TASK_SIZE_MAX) {
        return refuse!(EINVAL, "the bitmap is outside the process's addresses", bitmap.data);
    }
    let pages = size.checked_shr(bitmap.pgsize.trailing_zeros()).unwrap_or(0);
    if pages == 0 || bitmap.size > DIRTY_BITMAP_SIZE_MAX || bitmap.size < bitmap_bytes(pages) {
        return refuse!(EINVAL, "the bitmap's size does not suit the range", bitmap.size);
    }
    Ok(())
}

/// The bitmap that follows an UNMAP_DMA.
pub(super) fn read_bitmap(
    client: &dyn Client,
    arg: u64,
    unmap: &abi::IommuType1DmaUnmap,
) -> Result<abi::Bitmap> {
    let needed = size_of::<abi::IommuType1DmaUnmap>() + size_of::<abi::Bitmap>();
    if u64::from(unmap.argsz) < needed as u64 {
        return refuse!(EINVAL, "argsz leaves no room for the bitmap", u64::from(unmap.argsz));
    }
    let bitmap = read_tail(client, arg.wrapping_add(size_of_val(unmap) as u64))?;
    check_bitmap(&bitmap, unmap.size)?;
    Ok(bitmap)
}

/// Pages known to be dirty where no IOMMU shows the mapping to devices, which would make all of it
/// dirty.
#[derive(Debug, Default)]
pub(super) struct DirtyLog {
    /// Pages, by their IOVA, of emulated devices.
    pages: BTreeSet<u64>,
    /// Where mappings begin of which all is dirty until it is read: a group that could write them
    /// left.
    whole: BTreeSet<u64>,
}

impl DirtyLog {
    /// The mappings in `range` are gone.
    pub(super) fn forget(&mut self, range: IovaRange) {
        if self.pages.is_empty() && self.whole.is_empty() {
            return;
        }
        let outside = |at: &u64| !(range.start().0..=range.last().0).contains(at);
        self.pages.retain(outside);
        self.whole.retain(outside);
    }

    /// Bits of the 64 pages from `first` on.
    fn word(&self, first: u64, page: u64) -> u64 {
        let pages = self.pages.range(first..=first.saturating_add(64 * page - 1));
        pages.fold(0, |bits, at| bits | 1 << ((at - first) / page))
    }
}

impl Type1 {
    /// A device that has no IOMMU writes, or pins, the page at `iova`.
    pub(super) fn mark_dirty(&mut self, iova: u64) {
        if self.logging {
            self.dirty.pages.insert(iova);
        }
    }

    /// A group that could write every mapping leaves.
    pub(super) fn everything_is_dirty(&mut self) {
        if self.logging {
            let starts = self.ioas().ranges_in(IovaRange::ALL).into_iter();
            self.dirty.whole = starts.map(|mapping| mapping.start().0).collect();
        }
    }

    /// The bits of a mapping were read: only what is pinned stays dirty.
    fn clean(&mut self, mapping: IovaRange) {
        self.dirty.forget(mapping);
        let pinned = self.pinned_pages(mapping);
        self.dirty.pages.extend(pinned);
    }

    /// Whether the log is on and has this page size.
    pub(super) fn check_logging(&self, bitmap: &abi::Bitmap) -> Result<()> {
        if !self.logging || bitmap.pgsize != self.page_size_min() {
            return refuse!(EINVAL, "no log is kept, or not by this page size", bitmap.pgsize);
        }
        Ok(())
    }

    /// Whether a mapping of `size` bytes can be made while the log is on.
    pub(super) fn check_loggable(&self, size: u64) -> Result<()> {
        if !self.logging {
            return Ok(());
        }
        step("a dirty log")?;
        if size / self.page_size_min() > LOGGED_PAGES_MAX {
            return refuse!(EINVAL, "the mapping is too large to be logged", size);
        }
        Ok(())
    }

    pub(super) fn dirty_pages(&mut self, client: &dyn Client, arg: u64) -> Result<i64> {
        if !self.is_v2() {
            return refuse!(EACCES, "only a v2 container keeps a log");
        }
        let cmd: abi::IommuType1DirtyBitmap =
            read(client, arg, size_of::<abi::IommuType1DirtyBitmap>())?;
        match cmd.flags {
            abi::IOMMU_DIRTY_PAGES_FLAG_START => {
                if !self.logging {
                    let ranges = self.ioas().ranges_in(IovaRange::ALL);
                    self.logging = true;
                    let fits =
                        ranges.iter().try_for_each(|range| self.check_loggable(range.span() + 1));
                    self.logging = fits.is_ok();
                    fits?;
                    self.clean(IovaRange::ALL);
                }
                Ok(0)
            }
            abi::IOMMU_DIRTY_PAGES_FLAG_STOP => {
                self.logging = false;
                self.dirty = DirtyLog::default();
                Ok(0)
            }
            abi::IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP => self.get_bitmap(client, arg, cmd.argsz),
            flags => refuse!(EINVAL, "not exactly one known flag", u64::from(flags)),
        }
    }

    fn get_bitmap(&mut self, client: &dyn Client, arg: u64, argsz: u32) -> Result<i64> {
        let head = size_of::<abi::IommuType1DirtyBitmap>();
        let needed = head + size_of::<abi::IommuType1DirtyBitmapGet>();
        if u64::from(argsz) < needed as u64 {
            return refuse!(EINVAL, "argsz leaves no room for the range", u64::from(argsz));
        }
        let get: abi::IommuType1DirtyBitmapGet = read_tail(client, arg.wrapping_add(head as u64))?;
        if get.size == 0 {
            return refuse!(EINVAL, "size is zero");
        }
        let range = IovaRange::new(Iova(get.iova), get.size)?;
        check_bitmap(&get.bitmap, get.size)?;
        let page = self.page_size_min();
        if get.bitmap.pgsize != page {
            return refuse!(EINVAL, "the log is kept by the smallest page size", get.bitmap.pgsize);
        }
        if !get.iova.is_multiple_of(page) || !get.size.is_multiple_of(page) {
            return refuse!(EINVAL, "the range is not page aligned", get.iova);
        }
        if !self.logging {
            return refuse!(EINVAL, "no log is kept: START comes first");
        }
        if let Some(cut) = self.ioas().cut_by(range) {
            return refuse!(EINVAL, "the range cuts a mapping", cut.0);
        }
        for mapping in self.ioas().ranges_in(range) {
            self.report(client, mapping, get.iova, &get.bitmap)?;
            self.clean(mapping);
        }
        Ok(0)
    }

    /// Removes the mappings of `range` one by one, each with its bits written first; returns the
    /// bytes.
    pub(super) fn remove_logged(
        &mut self,
        client: &dyn Client,
        range: IovaRange,
        base: u64,
        bitmap: abi::Bitmap,
        pid: u32,
    ) -> Result<u64> {
        let mut bytes: u64 = 0;
        for mapping in self.ioas().ranges_in(range) {
            self.report(client, mapping, base, &bitmap)?;
            bytes = bytes.wrapping_add(self.remove(mapping, pid)?);
        }
        Ok(bytes)
    }

    /// Writes the bits of one mapping: all set when devices reach it, else those of the log. Whole
    /// words are written; of the first, the bits that belong to what lies before the mapping stay.
    fn report(
        &self,
        client: &dyn Client,
        mapping: IovaRange,
        base: u64,
        bitmap: &abi::Bitmap,
    ) -> Result<()> {
        let page_lg2 = bitmap.pgsize.trailing_zeros();
        let bits = (mapping.span() >> page_lg2) + 1;
        let first = (mapping.start().0 - base) >> page_lg2;
        let shift = first % 64;
        let mut at = bitmap.data.wrapping_add(first / 64 * 8);
        let mut kept: u64 = 0;
        if shift > 0 {
            let mut word = [0; 8];
            client.read(at, &mut word)?;
            kept = u64::from_ne_bytes(word) & ((1 << shift) - 1);
        }
        let all = self.is_mapped() || self.dirty.whole.contains(&mapping.start().0);
        let bits_of =
            |first: u64| if all { u64::MAX } else { self.dirty.word(first, bitmap.pgsize) };
        // The first word begins `shift` pages before the mapping; of those none is in the log's
        // answer.
        let mut next = mapping.start().0.wrapping_sub(shift << page_lg2);
        let mut left = bits + shift;
        let mut chunk = [0_u8; 4096];
        let mut head = Some((kept, shift));
        while left > 0 {
            let words = usize::try_from(left.div_ceil(64).min(512)).expect("a chunk is small");
            for word in chunk[..words * 8].chunks_exact_mut(8) {
                let (kept, shift) = head.take().unwrap_or((0, 0));
                let end = if left >= 64 { u64::MAX } else { (1 << left) - 1 };
                let value = kept | (bits_of(next) & end & (u64::MAX << shift));
                next = next.wrapping_add(64 << page_lg2);
                word.copy_from_slice(&value.to_ne_bytes());
                left = left.saturating_sub(64);
            }
            client.write(at, &chunk[..words * 8])?;
            at = at.wrapping_add(words as u64 * 8);
        }
        Ok(())
    }
}
