//! Areas: which IOVAs show which part of which pages.

use std::convert::Infallible;

use ioasis_iommupt::areas::{Areas as Tree, Ranges, Vacancy, Wanted};
use ioasis_iommupt::{Iova, IovaRange, Prot};
use ioasis_uapi::{Errno, Error};

use crate::pages::{AreaPages, Fill, GivenBack, PageRange};

/// One contiguous piece of a MAP or COPY.
#[derive(Debug)]
pub(crate) struct Area {
    pub(crate) range: IovaRange,
    pub(crate) pages: AreaPages,
    /// Where in `pages` it begins, from the start of the first page.
    pub(crate) start_byte: u64,
    pub(crate) prot: Prot,
    /// The pages of this area are held for the domains of the IOAS.
    pub(crate) filled: bool,
    /// Accesses that hold pages of this area.
    pub(crate) accesses: u32,
    /// Hardware queues that read this area.
    pub(crate) locks: u32,
    /// An unmap waits for the accesses to let go: no pin is added meanwhile.
    pub(crate) prevent_access: bool,
}

// There may be millions.
#[cfg(not(ioasis_shuttle))]
const _: () = assert!(size_of::<Area>() <= 240);

impl Area {
    /// The pages this area shows.
    pub(crate) fn page_range(&self) -> PageRange {
        PageRange::of_bytes(self.start_byte, self.length())
    }

    /// Lets go of the pages that are held for the domains.
    pub(crate) fn unfill(&mut self) {
        if std::mem::take(&mut self.filled) {
            self.pages.unfill(self.page_range());
        }
    }

    /// The same where more areas go: `back` takes what is given back.
    #[inline]
    pub(crate) fn unfill_into(&mut self, back: &mut GivenBack) {
        if std::mem::take(&mut self.filled) {
            self.pages.unfill_into(self.page_range(), back);
        }
    }

    /// Bytes; no area covers the whole 64-bit space.
    pub(crate) fn length(&self) -> u64 {
        self.range.span() + 1
    }

    /// The byte of `pages` behind `iova`, which lies in this area.
    pub(crate) fn byte_at(&self, iova: Iova) -> u64 {
        self.start_byte + (iova.0 - self.range.start().0)
    }
}

/// The areas of one IOAS: disjoint.
#[derive(Debug, Default)]
pub(crate) struct Areas {
    tree: Tree<Area>,
}

impl Areas {
    pub(crate) fn is_empty(&self) -> bool {
        self.tree.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.tree.len()
    }

    /// The area `iova` lies in.
    pub(crate) fn at(&self, iova: Iova) -> Option<&Area> {
        self.tree.get(iova).map(|(_, area)| area)
    }

    pub(crate) fn at_mut(&mut self, iova: Iova) -> Option<&mut Area> {
        self.tree.get_mut(iova).map(|(_, area)| area)
    }

    /// The first area that shares an IOVA with `range`.
    pub(crate) fn first(&self, range: IovaRange) -> Option<&Area> {
        self.tree.first(range).map(|(_, area)| area)
    }

    /// Every area that shares an IOVA with `range`, ascending.
    pub(crate) fn overlapping(&self, range: IovaRange) -> impl Iterator<Item = &Area> {
        self.tree.iter(range).map(|(_, area)| area)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Area> {
        self.overlapping(IovaRange::ALL)
    }

    /// Runs `each` on every area that shares an IOVA with `range`, ascending, until it fails.
    pub(crate) fn try_each_mut<E>(
        &mut self,
        range: IovaRange,
        mut each: impl FnMut(&mut Area) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut left = Some(range);
        while let Some(range) = left {
            let Some(start) = self.first(range).map(|area| area.range.start()) else { break };
            let area = self.at_mut(start).expect("the area is there");
            let next = area.range.last().0.checked_add(1);
            each(area)?;
            left = next.and_then(|next| IovaRange::closed(Iova(next), range.last()).ok());
        }
        Ok(())
    }

    /// Runs `each` on every area that shares an IOVA with `range`, ascending.
    pub(crate) fn each_mut(&mut self, range: IovaRange, mut each: impl FnMut(&mut Area)) {
        let done: Result<(), Infallible> = self.try_each_mut(range, |area| {
            each(area);
            Ok(())
        });
        let Ok(()) = done;
    }

    /// Adds an area where there is none.
    ///
    /// # Errors
    ///
    /// `EEXIST` where there is one, `ENOMEM`.
    pub(crate) fn insert(&mut self, area: Area) -> ioasis_uapi::Result<()> {
        self.vacancy(area.range)?.fill(area);
        Ok(())
    }

    /// A place for an area of `range`.
    ///
    /// # Errors
    ///
    /// As [`insert`](Self::insert).
    #[inline]
    pub(crate) fn vacancy(&mut self, range: IovaRange) -> ioasis_uapi::Result<Vacancy<'_, Area>> {
        match self.tree.vacancy(range) {
            Err(Error { errno: Errno::EEXIST, .. }) => {
                refuse!(EEXIST, "the IOVA range is mapped already", range.start().0)
            }
            vacancy => vacancy,
        }
    }

    /// Lets go of all pages that are held for the domains; the areas go, too, and the memory the
    /// tree took.
    pub(crate) fn unfill_all(&mut self) {
        let mut back = GivenBack::default();
        let mut tree = std::mem::take(&mut self.tree);
        tree.values_mut().for_each(|area| area.unfill_into(&mut back));
    }

    /// Takes the area at just `range` away, if nothing keeps it; whether it did. `before` it goes,
    /// all else is done.
    #[inline]
    pub(crate) fn remove_free(&mut self, range: IovaRange, before: impl FnOnce(&mut Area)) -> bool {
        self.tree.remove_if(range.start(), |area| {
            let free = area.range == range && area.locks == 0 && area.accesses == 0;
            if free {
                before(area);
            }
            free
        })
    }

    pub(crate) fn remove(&mut self, iova: Iova) -> Option<Area> {
        self.tree.remove(iova).map(|(_, area)| area)
    }

    /// The area nearest to `iova`.
    pub(crate) fn nearest(&self, iova: Iova) -> Option<IovaRange> {
        let from = IovaRange::closed(iova, Iova(u64::MAX)).expect("nothing is above the last IOVA");
        let above = self.first(from).map(|area| area.range);
        let below = self.below(iova);
        match (below, above) {
            (Some(below), Some(above)) => {
                let under = iova.0.saturating_sub(below.last().0);
                let over = above.start().0.saturating_sub(iova.0);
                Some(if under < over { below } else { above })
            }
            (one, other) => one.or(other),
        }
    }

    /// The last area that begins before `iova`.
    fn below(&self, iova: Iova) -> Option<IovaRange> {
        let last = Iova(iova.0.checked_sub(1)?);
        let mut found = self.first(IovaRange::closed(Iova(0), last).ok()?)?.range;
        let (mut low, mut high) = (found.last().0, last.0);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            match self.first(IovaRange::closed(Iova(middle), last).ok()?) {
                Some(area) => {
                    found = area.range;
                    low = middle.max(area.range.last().0);
                }
                None => high = middle - 1,
            }
        }
        Some(found)
    }

    /// The IOVA an automatic mapping gets.
    ///
    /// # Errors
    ///
    /// `EOVERFLOW`, `EINVAL`, `ENOSPC` as [`find_free`](ioasis_iommupt::areas::Areas::find_free)
    /// says.
    pub(crate) fn find_free(
        &mut self,
        wanted: Wanted,
        allowed: &Ranges,
        reserved: &Ranges,
    ) -> ioasis_uapi::Result<Iova> {
        self.tree.find_free(wanted, allowed, reserved)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::account::Rule;
    use crate::hw::machine::Machine;
    use crate::pages::{Origin, Pages};
    use crate::tests::rig::{ACCOUNT, BASE, TestClient};

    fn area(client: &TestClient, start: u64, length: u64) -> Area {
        let origin = Origin { space: Arc::new(client.memory.clone()), address: BASE };
        let pages =
            Pages::new(&Machine::new(), origin, length, Prot::READ, ACCOUNT, Rule::User).unwrap();
        Area {
            range: IovaRange::new(Iova(start), length).unwrap(),
            pages: AreaPages::Own(pages),
            start_byte: 0,
            prot: Prot::READ,
            filled: false,
            accesses: 0,
            locks: 0,
            prevent_access: false,
        }
    }

    #[test]
    fn the_nearest_area_is_found_on_either_side() {
        let client = TestClient::new();
        let mut areas = Areas::default();
        assert_eq!(areas.nearest(Iova(0)), None);
        for start in [0x1000, 0x2000, 0x10_0000, u64::MAX - 0xfff] {
            areas.insert(area(&client, start, 0x1000)).unwrap();
        }
        let nearest = |iova| areas.nearest(Iova(iova)).unwrap().start().0;
        assert_eq!(nearest(0), 0x1000);
        assert_eq!(nearest(0x1800), 0x1000);
        assert_eq!(nearest(0x3000), 0x2000);
        assert_eq!(nearest(0xf_0000), 0x10_0000);
        assert_eq!(nearest(0x11_0000), 0x10_0000);
        assert_eq!(nearest(u64::MAX), u64::MAX - 0xfff);
        assert_eq!(nearest(3 << 62), u64::MAX - 0xfff);
        assert_eq!(nearest(1 << 62), 0x10_0000);
    }
}
