//! Cutting an area in two: VFIO_TYPE1_IOMMU's partial unmap. Linux: `iopt_area_split`.

use std::sync::Arc;

use ioasis_iommupt::{Iova, IovaRange};
use ioasis_uapi::Result;

use super::{Area, Ioas};
use crate::Kind;
use crate::client::PAGE_SIZE;
use crate::inject::step;
use crate::pages::AreaPages;

impl Ioas {
    /// Makes `last` the last IOVA of the area it lies in; the rest becomes an area of its own. No
    /// area there: nothing to do, and as in Linux nothing where `last` is the first IOVA of the
    /// area either.
    ///
    /// # Errors
    ///
    /// `EBUSY` while an unmap waits for its accesses, `EOPNOTSUPP` for a dma-buf, `EINVAL`
    /// misaligned, pinned by an access, or with large leaves allowed while there are domains.
    pub(crate) fn cut(&self, last: Iova) -> Result<()> {
        let mut space = self.lock();
        let alignment = space.alignment;
        let Some(area) = space.areas.at(last) else { return Ok(()) };
        if area.range.last() == last || area.range.start() == last {
            return Ok(());
        }
        let at = last.0 + 1;
        if area.prevent_access {
            return refuse!(EBUSY, "an unmap waits for the accesses of the area", at);
        }
        if area.pages.kind() == Kind::DmaBuf {
            return refuse!(EOPNOTSUPP, "an area of a dma-buf cannot be cut", at);
        }
        let byte = area.byte_at(Iova(at));
        if !at.is_multiple_of(alignment) || !(byte % PAGE_SIZE).is_multiple_of(alignment) {
            return refuse!(EINVAL, "the cut is no multiple of the IOAS alignment", at);
        }
        if area.accesses > 0 {
            return refuse!(EINVAL, "an access pins the area", at);
        }
        if !space.domains.is_empty() && space.huge_pages {
            return refuse!(EINVAL, "large leaves may cross the cut (huge pages are allowed)", at);
        }
        if area.locks > 0 {
            return refuse!(EINVAL, "a hardware queue reads the area", at);
        }
        space.cut_area(at)
    }

    /// Makes `at` the first IOVA of an area, if it lies inside one. Whoever calls it knows that no
    /// leaf and no access is cut.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn cut_between_leaves(&self, at: Iova) -> Result<()> {
        let mut space = self.lock();
        match space.areas.at(at) {
            Some(area) if area.range.start() < at => space.cut_area(at.0),
            _ => Ok(()),
        }
    }
}

impl super::Space {
    /// Cuts the area around `at` there.
    fn cut_area(&mut self, at: u64) -> Result<()> {
        step("the second half of an area")?;
        let Some(area) = self.areas.at(Iova(at)) else { return Ok(()) };
        let start = area.range.start();
        if area.filled {
            self.domains.iter().try_for_each(|domain| domain.cut(Iova(at)))?;
        }
        self.split_area(start, at)
    }

    fn split_area(&mut self, start: Iova, at: u64) -> Result<()> {
        let area = self.areas.at_mut(start).expect("the area was found before");
        let pages = area.pages.share();
        let halves = [
            (IovaRange::closed(start, Iova(at - 1))?, area.start_byte),
            (IovaRange::closed(Iova(at), area.range.last())?, area.byte_at(Iova(at))),
        ];
        let made = halves.map(|(range, start_byte)| Area {
            range,
            pages: AreaPages::Shared(Arc::clone(&pages)),
            start_byte,
            prot: area.prot,
            filled: area.filled,
            accesses: 0,
            locks: 0,
            prevent_access: false,
        });
        if area.filled {
            // Both halves may show the page that is cut; each holds what it shows before the whole
            // lets go.
            made[0].pages.hold(made[0].page_range())?;
            if let Err(error) = made[1].pages.hold(made[1].page_range()) {
                made[0].pages.release(made[0].page_range());
                return Err(error);
            }
            area.pages.release(area.page_range());
        }
        self.areas.remove(start);
        for half in made {
            self.areas.insert(half).expect("the place of the whole is free");
        }
        Ok(())
    }
}
