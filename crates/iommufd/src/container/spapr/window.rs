//! Windows as a container asks for them. Linux: `pnv_pci_ioda2_get_table_size` in
//! `arch/powerpc/platforms/powernv/pci-ioda.c`, `pnv_pci_ioda2_table_alloc_pages` in
//! `pci-ioda-tce.c`.

use std::sync::Arc;

use ioasis_iommupt::Quiesce;
use ioasis_uapi::Result;

use super::Spapr;
use super::charge::Charge;
use crate::Client;
use crate::client::PAGE_SIZE;
use crate::hw::tce::{self, WINDOWS, Window};

/// lg2 of the pages that Linux's allocator gives at most: `ARCH_FORCE_MAX_ORDER` of POWER with
/// pages of 4 KiB.
pub(super) const MAX_PAGE_ORDER: u32 = 12;

/// `IOMMU_PAGE_SHIFT_4K`.
const PAGE_LG2: u32 = PAGE_SIZE.trailing_zeros();
/// lg2 of the bytes of a TCE.
const TCE_LG2: u32 = 3;
/// Bits of an address that a table translates at most.
const TABLE_LG2: u32 = 55;

/// A window and what it costs.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) window: Arc<Window>,
    _charge: Charge,
}

/// What a table would look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// lg2 of the bytes that the window translates: a table has at least a page of TCEs.
    pub(super) lg2: u32,
    /// lg2 of the bytes of one of its tables.
    level_lg2: u32,
    /// Bytes of all its tables, and of the copy with process addresses.
    pub(super) bytes: u64,
}

impl Shape {
    /// The shape of a window of `size` bytes; none for what Linux has no shape for.
    pub(super) fn new(page_lg2: u32, size: u64, levels: u32, levels_max: u32) -> Option<Self> {
        if levels == 0 || levels > levels_max || !size.is_power_of_two() {
            return None;
        }
        let lg2 = size.ilog2();
        // A window smaller than a page: the kernel's shifts run over, and give nothing.
        let entries_lg2 = lg2.checked_sub(page_lg2)?;
        let mut size = PAGE_SIZE.max(1 << (entries_lg2 + TCE_LG2).min(63));
        let level_lg2 = (entries_lg2.div_ceil(levels) + TCE_LG2).max(PAGE_LG2);
        let level = 1_u64 << level_lg2.min(63);
        let mut bytes: u64 = 0;
        for _ in 0..levels {
            bytes = bytes.saturating_add(size.next_multiple_of(level));
            size = ((size / level) << TCE_LG2).max(level);
        }
        let lg2 = page_lg2 + entries_lg2.max(PAGE_LG2 - TCE_LG2);
        Some(Self { lg2, level_lg2, bytes: bytes.saturating_mul(2) })
    }
}

impl Spapr {
    /// Makes a window; returns where it begins. `tce_iommu_create_window`.
    ///
    /// # Errors
    ///
    /// `ENOSPC` with two there; `EINVAL` for pages the IOMMU does not have, a size that is no power
    /// of two, levels it does not have, and what its addresses do not reach; `ENOMEM` over the
    /// caller's limit, and for a table that is larger than memory comes in one piece.
    pub(super) fn create_window(
        &mut self,
        client: &dyn Client,
        page_lg2: u32,
        size: u64,
        levels: u32,
    ) -> Result<u64> {
        let Some(number) = self.tables.iter().position(Option::is_none) else {
            return refuse!(ENOSPC, "both windows are there", WINDOWS as u64);
        };
        let (group, spapr) = self.first_group()?;
        let sizes = group.iommu().page_sizes;
        if sizes.checked_shr(page_lg2).unwrap_or(0) & 1 == 0 {
            return refuse!(EINVAL, "the IOMMU has no such pages", page_lg2.into());
        }
        let Some(shape) = Shape::new(page_lg2, size, levels, spapr.levels) else {
            return refuse!(
                EINVAL,
                "the size is no power of two of at least a page, or there are no such levels",
                size
            );
        };
        // DIFFERS: what fails from here on takes the charge back; Linux keeps it for ever.
        let charge = Charge::new(&self.machine, client, shape.bytes / PAGE_SIZE)?;
        if (shape.level_lg2 - TCE_LG2) * levels + page_lg2 >= TABLE_LG2 {
            return refuse!(EINVAL, "the table would translate more bits than there are", size);
        }
        if shape.level_lg2 > PAGE_LG2 + MAX_PAGE_ORDER {
            return refuse!(ENOMEM, "a table of one level is too large: more levels help", size);
        }
        let users = Arc::clone(&self.users);
        let window = Arc::new(Window::new(number, page_lg2, shape.lg2, users)?);
        self.windows.set(number, Some(Arc::clone(&window)));
        self.tables[number] = Some(Table { window, _charge: charge });
        Ok(tce::start_of(number))
    }

    /// Makes the window that is there without being asked for, the first time one is needed.
    ///
    /// # Errors
    ///
    /// `ENODEV` without a group, and as [`create_window`](Self::create_window).
    pub(super) fn create_default_window(&mut self, client: &dyn Client) -> Result<()> {
        if !self.default_pending {
            return Ok(());
        }
        let Ok((_, spapr)) = self.first_group() else {
            return refuse!(ENODEV, "the container has no group");
        };
        self.create_window(client, PAGE_LG2, spapr.window.into(), 1)?;
        self.default_pending = false;
        Ok(())
    }

    /// Takes the window that `start` lies in away, with all that is mapped there.
    ///
    /// # Errors
    ///
    /// `EINVAL` where there is none.
    pub(super) fn remove_window(&mut self, start: u64, pid: u32) -> Result<()> {
        let Some(number) = self.table_at(start) else {
            return refuse!(EINVAL, "no window is there", start);
        };
        self.clear_table(number, pid);
        self.windows.set(number, None);
        self.users.wait();
        self.tables[number] = None;
        self.registered.sweep();
        Ok(())
    }

    /// The number of the window that `iova` lies in.
    pub(super) fn table_at(&self, iova: u64) -> Option<usize> {
        self.tables.iter().position(|table| {
            table.as_ref().is_some_and(|table| {
                let range = table.window.range;
                range.start().0 <= iova && iova <= range.last().0
            })
        })
    }

    /// Unmaps all that a window shows.
    pub(super) fn clear_table(&self, number: usize, pid: u32) {
        if let Some(table) = &self.tables[number] {
            let gone = self.ioas.unmap(table.window.range, pid);
            gone.result.expect("no access and no queue is on a container's IOAS");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of both copies, as pnv_pci_ioda2_get_table_size counts them with pages of 4 KiB.
    #[test]
    fn a_window_costs_what_linux_counts() {
        let bytes = |page_lg2, lg2: u32, levels| {
            Shape::new(page_lg2, 1 << lg2, levels, 5).map(|shape| shape.bytes)
        };
        // 2 GiB in pages of 4 KiB: 2^19 TCEs, 4 MiB, twice.
        assert_eq!(bytes(12, 31, 1), Some(8 << 20));
        // In two levels: 10 bits each, tables of 8 KiB; 4 MiB of leaves and one table above.
        assert_eq!(bytes(12, 31, 2), Some(2 * ((4 << 20) + (8 << 10))));
        // Five levels of 4 bits: never less than a page each, 1024 leaves' tables, 2, 1, 1, 1.
        assert_eq!(bytes(12, 31, 5), Some(2 * ((4 << 20) + (8 << 10) + 3 * 4096)));
        // A window of a page is a table of a page.
        assert_eq!(bytes(12, 12, 1), Some(2 * 4096));
        assert_eq!(bytes(30, 40, 1), Some(2 * 8192));
        for (page_lg2, lg2, levels) in [(16, 15, 1), (12, 31, 0), (12, 31, 6)] {
            assert_eq!(bytes(page_lg2, lg2, levels), None);
        }
        assert_eq!(Shape::new(12, 3 << 30, 1, 5), None, "no power of two");
        assert_eq!(Shape::new(12, 0, 1, 5), None);
        assert!(bytes(12, 63, 1).is_some(), "and no overflow");
    }
}
