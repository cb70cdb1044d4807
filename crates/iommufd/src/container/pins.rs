//! Devices without DMA of their own on a type1 container: they pin pages of mappings, or read and
//! write them, and are told before those go. Linux: `vfio_iommu_type1_pin_pages`, `_unpin_pages`,
//! `_dma_rw`, `vfio_notify_dma_unmap`.
//!
//! Every page is pinned for itself and counted; a pin of a page is given back one by one.

use std::collections::BTreeMap;

use ioasis_iommupt::{Iova, IovaRange, Prot};
use ioasis_uapi::Result;

use super::type1::Type1;
use crate::client::PAGE_SIZE;
use crate::ioas::Area;
use crate::pages::PageRange;

/// Pages of one call at most: `VFIO_PIN_PAGES_MAX_ENTRIES`.
pub(super) const PIN_PAGES_MAX: u64 = PAGE_SIZE / 8;

/// How often each page is pinned, by its IOVA.
pub(super) type Pins = BTreeMap<u64, u32>;

/// The pages a call is about.
pub(super) fn pages_of(iova: Iova, pages: u64) -> Result<IovaRange> {
    let Some(length) = pages.checked_mul(PAGE_SIZE) else {
        return refuse!(EOVERFLOW, "more pages than there are", pages);
    };
    IovaRange::new(iova, length)
}

fn page_in(area: &Area, page: u64) -> PageRange {
    PageRange::of_bytes(area.byte_at(Iova(page)), PAGE_SIZE)
}

/// The pages of `range`, by their IOVA.
fn each_page(range: IovaRange) -> impl Iterator<Item = u64> {
    (0..=range.span() / PAGE_SIZE).map(move |n| range.start().0 + n * PAGE_SIZE)
}

impl Type1 {
    /// Pins every page of `range`, or none.
    ///
    /// # Errors
    ///
    /// `EACCES` in a v1 container; `EBUSY` while a mapping has no process address; `EINVAL` where
    /// nothing is mapped; `EPERM` without all of `need`; `EFAULT` and `ENOMEM` of pinning.
    pub(super) fn pin(&mut self, range: IovaRange, need: Prot) -> Result<()> {
        self.check_addresses()?;
        for page in each_page(range) {
            if let Err(error) = self.pin_page(page, need) {
                let pinned = each_page(range).take_while(|&done| done < page);
                pinned.for_each(|done| self.unpin_page(done));
                return Err(error);
            }
        }
        each_page(range).for_each(|page| self.mark_dirty(page));
        Ok(())
    }

    fn pin_page(&mut self, page: u64, need: Prot) -> Result<()> {
        let space = self.ioas().lock();
        let area = mapped(space.areas.at(Iova(page)), page)?;
        if !area.prot.contains(need) {
            return refuse!(EPERM, "the mapping does not grant the access", page);
        }
        if !self.pins.contains_key(&page) {
            area.pages.hold(page_in(area, page))?;
        }
        drop(space);
        *self.pins.entry(page).or_default() += 1;
        Ok(())
    }

    /// Gives back one pin of every page of `range` that has one.
    pub(super) fn unpin(&mut self, range: IovaRange) {
        each_page(range).for_each(|page| self.unpin_page(page));
    }

    fn unpin_page(&mut self, page: u64) {
        let Some(count) = self.pins.get_mut(&page) else { return };
        *count -= 1;
        if *count == 0 {
            self.release_page(page);
        }
    }

    fn release_page(&mut self, page: u64) {
        self.pins.remove(&page);
        let space = self.ioas().lock();
        if let Some(area) = space.areas.at(Iova(page)) {
            area.pages.release(page_in(area, page));
        }
    }

    /// The first mapping in `range` that has pinned pages.
    pub(super) fn first_pinned(&self, range: IovaRange) -> Option<IovaRange> {
        let mappings = self.ioas().ranges_in(range).into_iter();
        mappings.into_iter().find(|mapping| self.pinned_in(*mapping).next().is_some())
    }

    fn pinned_in(&self, range: IovaRange) -> impl Iterator<Item = u64> {
        self.pins.range(range.start().0..=range.last().0).map(|(&page, _)| page)
    }

    /// Takes back all pins of `range`: whoever has them does not let go.
    pub(super) fn take_pins(&mut self, range: IovaRange) {
        let pages: Vec<u64> = self.pinned_in(range).collect();
        pages.into_iter().for_each(|page| self.release_page(page));
    }

    /// Pages pinned in `range`, which stay dirty as long as they are.
    pub(super) fn pinned_pages(&self, range: IovaRange) -> Vec<u64> {
        self.pinned_in(range).collect()
    }

    /// Moves bytes at `iova` for a driver that has pinned nothing; `each` gets an area, the first
    /// byte of its pages and how many.
    ///
    /// # Errors
    ///
    /// `EBUSY` while a mapping has no process address; `EINVAL` where nothing is mapped; `EPERM`
    /// without READ, or without WRITE for a `need` of it; `EFAULT` when the memory is gone.
    pub(super) fn access(
        &mut self,
        iova: Iova,
        length: usize,
        need: Prot,
        mut each: impl FnMut(&Area, u64, usize) -> Result<()>,
    ) -> Result<()> {
        self.check_addresses()?;
        let (mut at, mut left) = (iova.0, length as u64);
        while left > 0 {
            let space = self.ioas().lock();
            let area = mapped(space.areas.at(Iova(at)), at)?;
            // A write needs READ too, as in vfio_iommu_type1_dma_rw_chunk.
            if !area.prot.contains(need | Prot::READ) {
                return refuse!(EPERM, "the mapping does not grant the access", at);
            }
            let part = left.min(area.range.last().0 - at + 1);
            each(area, area.byte_at(Iova(at)), usize::try_from(part).expect("part of a buffer"))?;
            drop(space);
            if need.contains(Prot::WRITE) {
                let pages = at / PAGE_SIZE..=(at + part - 1) / PAGE_SIZE;
                pages.for_each(|page| self.mark_dirty(page * PAGE_SIZE));
            }
            at = at.wrapping_add(part);
            left -= part;
        }
        Ok(())
    }

    fn check_addresses(&self) -> Result<()> {
        if !self.invalid.is_empty() {
            return refuse!(EBUSY, "a mapping has no process address for now");
        }
        Ok(())
    }
}

fn mapped(area: Option<&Area>, iova: u64) -> Result<&Area> {
    match area {
        Some(area) => Ok(area),
        None => refuse!(EINVAL, "nothing is mapped at the IOVA", iova),
    }
}
