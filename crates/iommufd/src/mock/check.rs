//! Looking into page tables and pin counts, and making pages dirty.

use ioasis_iommupt::{Iova, IovaRange, Pa, Prot};
use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;

use super::{Mock, Test};
use crate::Extents;
use crate::client::PAGE_SIZE;
use crate::hw::phys::Phys;
use crate::inject::step;

/// Most bits of a dirty bitmap.
const DIRTY_BITS_MAX: u64 = (16 << 20) * 8;

/// A stretch of memory as its backing knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    backing: u128,
    offset: u64,
}

impl Place {
    fn of(phys: &Phys, pa: Pa) -> Option<Self> {
        let window = phys.window(pa);
        let window = window.as_ref()?;
        Some(Self { backing: window.backing.key(), offset: Phys::offset(window, pa) })
    }
}

impl Test<'_> {
    /// Calls `each` with the place of every page of the caller's `length` bytes at `address`, both
    /// page aligned.
    ///
    /// # Errors
    ///
    /// `EFAULT` where nothing is mapped.
    fn each_page(
        &self,
        address: u64,
        length: u64,
        mut each: impl FnMut(Place) -> Result<()>,
    ) -> Result<()> {
        if length == 0 {
            return Ok(());
        }
        let memory = self.call.client.memory();
        let mut each_of = |extents: Extents| {
            extents.into_iter().try_for_each(|extent| {
                let backing = extent.backing.key();
                let mut pages = 0..extent.length / PAGE_SIZE;
                pages.try_for_each(|page| {
                    each(Place { backing, offset: extent.offset + page * PAGE_SIZE })
                })
            })
        };
        match memory.pin(address, length, Prot::READ) {
            Ok(extents) => each_of(extents),
            // Linux looks at page after page: what comes before the hole is judged first.
            Err(_) => (address..address + length)
                .step_by(usize::try_from(PAGE_SIZE).expect("a page is short"))
                .try_for_each(|page| each_of(memory.pin(page, PAGE_SIZE, Prot::READ)?)),
        }
    }

    /// Whether `runs` of physical space are the caller's pages at `address`.
    ///
    /// # Errors
    ///
    /// `EBADE` when they are not, `EFAULT` where nothing is mapped.
    pub(super) fn compare_pages(&self, address: u64, runs: &[ioasis_iommupt::Run]) -> Result<()> {
        let phys = &self.call.context.machine().phys;
        let length = runs.iter().map(|run| run.length).sum();
        let mut pinned = runs.iter().flat_map(|run| {
            (0..run.length / PAGE_SIZE).map(|page| Pa(run.pa.0 + page * PAGE_SIZE))
        });
        self.each_page(address, length, |place| {
            if pinned.next().and_then(|pa| Place::of(phys, pa)) == Some(place) {
                Ok(())
            } else {
                refuse!(EBADE, "the pinned page is not the caller's", address)
            }
        })
    }

    pub(super) fn check_map(&self) -> Result<i64> {
        let body: abi::test::TestCmdCheckMap = self.body();
        let hwpt = self.paging()?;
        let granule = hwpt.domain.page_size_min();
        let end = body.uptr.checked_add(body.length);
        if !(body.iova | body.length | body.uptr).is_multiple_of(granule) || end.is_none() {
            return refuse!(EINVAL, "not a multiple of the mock page size", body.iova);
        }
        let phys = &self.call.context.machine().phys;
        let reader = hwpt.domain.reader();
        let first = body.uptr & !(PAGE_SIZE - 1);
        let last = end.expect("checked before").next_multiple_of(PAGE_SIZE);
        let (mut at, mut left) = (body.uptr, body.length);
        self.each_page(first, last - first, |page| {
            let page_last = at | (PAGE_SIZE - 1);
            while left > 0 && at <= page_last {
                let expected = Place { offset: page.offset + at % PAGE_SIZE, ..page };
                let iova = Iova(body.iova + (at - body.uptr));
                let mapped = reader.iova_to_phys(iova).and_then(|pa| Place::of(phys, pa));
                if mapped != Some(expected) {
                    return refuse!(EINVAL, "the IOVA leads to another page", iova.0);
                }
                at += granule;
                left -= granule;
            }
            Ok(())
        })?;
        Ok(0)
    }

    pub(super) fn check_refs(&self) -> Result<i64> {
        let body: abi::test::TestCmdCheckRefs = self.body();
        if !(body.length | body.uptr).is_multiple_of(PAGE_SIZE)
            || body.uptr.checked_add(body.length).is_none()
        {
            return refuse!(EINVAL, "not a multiple of the page size", body.uptr);
        }
        let phys = &self.call.context.machine().phys;
        self.each_page(body.uptr, body.length, |place| {
            let pins = phys.find(place.backing, place.offset).map_or(0, |pa| self.mock.pins_of(pa));
            if pins == body.refs {
                Ok(())
            } else {
                refuse!(EIO, "the page has another number of pins", u64::from(pins))
            }
        })?;
        Ok(0)
    }

    pub(super) fn dirty(&mut self) -> Result<i64> {
        let mut body: abi::test::TestCmdDirty = self.body();
        let aligned = body.page_size != 0
            && body.iova.is_multiple_of(body.page_size)
            && body.length.is_multiple_of(body.page_size);
        if !aligned || body.length == 0 || body.uptr == 0 {
            return refuse!(EINVAL, "no bitmap of whole pages", body.page_size);
        }
        let bits = body.length / body.page_size;
        if bits > DIRTY_BITS_MAX {
            return refuse!(EOVERFLOW, "the bitmap is too large", bits);
        }
        let hwpt = self.paging()?;
        if !hwpt.domain.is_tracking() {
            return refuse!(EINVAL, "dirty tracking is off");
        }
        step("a bitmap")?;
        let bytes = usize::try_from(bits.div_ceil(8)).expect("at most 16 MiB");
        let mut bitmap = vec![0_u8; bytes];
        self.call.client.read(body.uptr, &mut bitmap)?;
        body.out_nr_dirty = 0;
        for bit in 0..bits {
            let byte = bitmap[usize::try_from(bit / 8).expect("at most 16 MiB")];
            if byte >> (bit % 8) & 1 != 0 {
                let iova = body.iova.wrapping_add(bit * body.page_size);
                hwpt.domain.set_dirty(IovaRange::new(Iova(iova), 1)?);
                body.out_nr_dirty += 1;
            }
        }
        self.reply(&body)?;
        Ok(0)
    }
}

impl Mock {
    /// How many pages objects pin the page at `pa`.
    fn pins_of(&self, pa: Pa) -> u32 {
        let known = self.pages.lock();
        let pins = known.iter().filter_map(std::sync::Weak::upgrade);
        let count = pins.filter(|pages| pages.pins_page(pa)).count();
        u32::try_from(count).expect("fewer objects than ids")
    }
}
