//! Adding areas: MAP and COPY.

use std::ops::Deref;
use std::sync::Arc;

use ioasis_iommupt::areas::Wanted;
use ioasis_iommupt::{Iova, IovaRange, Prot, Run};
use ioasis_uapi::Result;
use smallvec::SmallVec;

use super::{AREAS_MAX, Area, Ioas, Slice, Space, wait_for_dma};
use crate::account::Rule;
use crate::client::{Account, AddressSpace, Kind, PAGE_SIZE};
use crate::hw::domain::{Domain, LeafMax};
use crate::hw::machine::Machine;
use crate::inject::step;
use crate::pages::{AreaPages, Fill, Origin, PageRange, Pages, PagesWatcher};

/// Where a mapping goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At this IOVA.
    Fixed(Iova),
    /// Wherever there is room.
    Anywhere,
}

/// What to map, and how.
#[derive(Clone, Debug)]
pub struct MapRequest {
    /// The process or file.
    pub space: Arc<dyn AddressSpace>,
    /// First byte.
    pub address: u64,
    /// Bytes.
    pub length: u64,
    /// Where it goes.
    pub place: Place,
    /// What devices may do.
    pub prot: Prot,
    /// Who pays.
    pub account: Account,
}

/// Maps `request` into `ioas`, charged under `rule`.
#[inline]
pub(crate) fn map_pages(
    machine: &Arc<Machine>,
    ioas: &Arc<Ioas>,
    request: MapRequest,
    rule: Rule,
) -> Result<Iova> {
    let kind = request.space.kind();
    if kind == Kind::DmaBuf {
        let end = request.address.checked_add(request.length);
        if end.is_none_or(|end| request.space.length().is_some_and(|length| end > length)) {
            return refuse!(EINVAL, "the dma-buf ends before", request.address);
        }
        // Before it is looked at, so that no revocation is missed.
        request.space.import(Ioas::importer(ioas));
        if request.space.is_revoked() {
            return refuse!(ENODEV, "the dma-buf has been revoked");
        }
    }
    let origin = Origin { space: request.space, address: request.address };
    let pages = Pages::new(machine, origin, request.length, request.prot, request.account, rule)?;
    let start_byte = pages.start_byte();
    let mut pages = AreaPages::Own(pages);
    if let Some(watcher) = machine.added::<Arc<dyn PagesWatcher>>() {
        watcher.made(&pages.share());
    }
    // Whether device memory is accepted is the pages' business; what a leaf says of its memory
    // follows from what it is.
    let mut prot = request.prot & !Prot::MMIO;
    if kind == Kind::DmaBuf {
        prot |= Prot::MMIO;
    }
    ioas.map(Slice { pages, start_byte, length: request.length }, request.place, prot)
}

/// How a mapping looks to devices.
#[derive(Clone, Copy)]
struct View {
    iova: Iova,
    length: u64,
    prot: Prot,
    leaf_max: LeafMax,
}

impl Ioas {
    /// Maps one slice of pages.
    ///
    /// # Errors
    ///
    /// `EINVAL` misaligned, too little aligned for an allocated IOVA, or over a reserved range;
    /// `EOVERFLOW` past the end; `EEXIST` over an area; `ENOSPC` without room; `EPERM` writable
    /// where the pages are not; `EFAULT` and `ENOMEM` of pinning.
    #[inline]
    pub(crate) fn map<P: Fill>(
        &self,
        mut slice: Slice<P>,
        place: Place,
        prot: Prot,
    ) -> Result<Iova> {
        let mut space = self.lock();
        let space = &mut *space;
        let iova = space.place(&slice, place, slice.length)?;
        let range = IovaRange::new(iova, slice.length)?;
        let filled = space.fills(&slice.pages);
        let (alignment, leaf_max) = (space.alignment, space.leaf_max());
        // The area first: that is where two mappings of one IOVA meet. Then what may not be, then
        // the pages.
        let vacancy = space.areas.vacancy(range)?;
        check_slice(&slice, iova, prot, alignment)?;
        let (start_byte, length) = (slice.start_byte, slice.length);
        if filled {
            let view = View { iova, length, prot, leaf_max };
            fill(&mut slice.pages, start_byte, view, &space.domains, &mut space.runs)?;
        }
        vacancy.fill(Area {
            range,
            pages: slice.pages.into(),
            start_byte,
            prot,
            filled,
            accesses: 0,
            locks: 0,
            prevent_access: false,
        });
        Ok(iova)
    }

    /// Maps slices of pages, one after another: all or none.
    ///
    /// # Errors
    ///
    /// As [`map`](Self::map).
    pub(crate) fn map_slices(
        &self,
        mut slices: SmallVec<[Slice; 1]>,
        place: Place,
        prot: Prot,
    ) -> Result<Iova> {
        if slices.len() == 1 {
            return self.map(slices.pop().expect("there is one"), place, prot);
        }
        let slices = slices.as_slice();
        let mut space = self.lock();
        let length = slices.iter().map(|slice| slice.length).sum();
        let first = slices.first().expect("a mapping has pages");
        let iova = space.place(first, place, length)?;
        let whole = IovaRange::new(iova, length)?;
        let (inserted, done) = space.insert_slices(slices, iova, prot);
        let alignment = space.alignment;
        let mapped = inserted.and_then(|()| {
            slices.iter().try_for_each(|slice| check_slice(slice, iova, prot, alignment))?;
            space.fill_slices(slices, iova, prot)
        });
        if let Err(error) = mapped {
            space.forget_areas(whole, done);
            return Err(error);
        }
        Ok(iova)
    }
}

fn check_slice<P: Deref<Target = Pages>>(
    slice: &Slice<P>,
    iova: Iova,
    prot: Prot,
    alignment: u64,
) -> Result<()> {
    if prot.contains(Prot::WRITE) && !slice.pages.writable() {
        return refuse!(EPERM, "the pages were not mapped writable", iova.0);
    }
    let page_offset = slice.start_byte % PAGE_SIZE;
    if !page_offset.is_multiple_of(alignment) {
        return refuse!(
            EINVAL,
            "the memory's place in its page is no multiple of the IOAS alignment",
            page_offset
        );
    }
    Ok(())
}

/// Holds the pages from byte `start_byte` and shows them in every domain, or does neither. `runs`
/// is room for their addresses.
#[inline]
fn fill<P: Fill>(
    pages: &mut P,
    start_byte: u64,
    view: View,
    domains: &[Arc<Domain>],
    runs: &mut Vec<Run>,
) -> Result<()> {
    runs.clear();
    pages.fill(start_byte, view.length, runs)?;
    show(domains, runs, view)
        .inspect_err(|_| pages.unfill(PageRange::of_bytes(start_byte, view.length)))
}

/// Maps `runs` in every domain: in all or in none.
fn show(domains: &[Arc<Domain>], runs: &[Run], view: View) -> Result<()> {
    let View { iova, length, prot, leaf_max } = view;
    for (index, domain) in domains.iter().enumerate() {
        if let Err(error) = domain.map(iova, runs, prot, leaf_max) {
            let range = IovaRange::new(iova, length).expect("the whole was a range");
            domains[..index].iter().for_each(|filled| filled.clear(range));
            wait_for_dma(domains, &[range]);
            return Err(error);
        }
    }
    Ok(())
}

impl Space {
    /// Checks the shape of a mapping that begins with `first` and says where it goes.
    fn place<P: Deref<Target = Pages>>(
        &mut self,
        first: &Slice<P>,
        place: Place,
        length: u64,
    ) -> Result<Iova> {
        step("an area")?;
        if self.areas.len() >= AREAS_MAX {
            return refuse!(ENOMEM, "the IOAS has as many areas as it can hold");
        }
        if length == 0 || !length.is_multiple_of(self.alignment) {
            return refuse!(EINVAL, "length is no multiple of the IOAS alignment", length);
        }
        match place {
            Place::Fixed(iova) => self.check_fixed(iova, length).map(|()| iova),
            Place::Anywhere => {
                let address = first.pages.address_of(first.start_byte);
                let wanted = Wanted { length, address, alignment: self.alignment };
                self.areas.find_free(wanted, &self.allowed, self.reserved.merged())
            }
        }
    }

    fn check_fixed(&self, iova: Iova, length: u64) -> Result<()> {
        if !iova.0.is_multiple_of(self.alignment) {
            return refuse!(EINVAL, "iova is no multiple of the IOAS alignment", iova.0);
        }
        let range = IovaRange::new(iova, length)?;
        if let Some(hit) = self.reserved.hit(range) {
            return refuse!(
                EINVAL,
                "the IOVA range is reserved, or outside the IOMMU's aperture",
                hit.start().0
            );
        }
        Ok(())
    }

    /// Adds an area for each slice, marked as filled where [`fill_slices`](Self::fill_slices) will
    /// fill it; says how many there are also when one is refused.
    fn insert_slices(&mut self, slices: &[Slice], iova: Iova, prot: Prot) -> (Result<()>, usize) {
        let mut next = iova.0;
        for (done, slice) in slices.iter().enumerate() {
            let range = IovaRange::new(Iova(next), slice.length).expect("the whole was a range");
            let inserted = self.areas.insert(Area {
                range,
                pages: AreaPages::Shared(Arc::clone(&slice.pages)),
                start_byte: slice.start_byte,
                prot,
                filled: self.fills(&slice.pages),
                accesses: 0,
                locks: 0,
                prevent_access: false,
            });
            if let Err(error) = inserted {
                return (Err(error), done);
            }
            next = next.wrapping_add(slice.length);
        }
        (Ok(()), slices.len())
    }

    /// Takes the first `count` areas of `range` away, which hold no pages and are in no domain.
    fn forget_areas(&mut self, range: IovaRange, count: usize) {
        let mut next = range.start();
        for _ in 0..count {
            let area = self.areas.remove(next).expect("the area was inserted");
            next = Iova(area.range.last().0.wrapping_add(1));
        }
    }

    /// Whether an area of these pages is held and shown to devices.
    fn fills(&self, pages: &Pages) -> bool {
        !self.domains.is_empty() && !pages.is_revoked()
    }

    /// What [`fills`](Self::fills) said when the area of `slice` was inserted: a dma-buf may be
    /// revoked at any time.
    fn is_filled(&self, slice: &Slice, iova: Iova) -> bool {
        match slice.pages.kind() {
            Kind::DmaBuf => self.areas.at(iova).expect("the area was inserted").filled,
            Kind::User | Kind::File => !self.domains.is_empty(),
        }
    }

    /// Holds the pages of each slice and fills every domain with them: all or none.
    fn fill_slices(&mut self, slices: &[Slice], iova: Iova, prot: Prot) -> Result<()> {
        let mut next = iova.0;
        for (index, slice) in slices.iter().enumerate() {
            if self.is_filled(slice, Iova(next))
                && let Err(error) = self.fill_slice(slice, Iova(next), prot)
            {
                self.empty_slices(&slices[..index], iova);
                return Err(error);
            }
            next = next.wrapping_add(slice.length);
        }
        Ok(())
    }

    /// Undoes [`fill_slice`](Self::fill_slice) for slices that were filled.
    fn empty_slices(&mut self, slices: &[Slice], iova: Iova) {
        let mut next = iova.0;
        for slice in slices {
            let range = IovaRange::new(Iova(next), slice.length).expect("the whole was a range");
            if self.is_filled(slice, Iova(next)) {
                self.domains.iter().for_each(|domain| domain.clear(range));
                self.wait_for_dma(&[range]);
                slice.pages.release(PageRange::of_bytes(slice.start_byte, slice.length));
            }
            next = next.wrapping_add(slice.length);
        }
    }

    fn fill_slice(&mut self, slice: &Slice, iova: Iova, prot: Prot) -> Result<()> {
        let view = View { iova, length: slice.length, prot, leaf_max: self.leaf_max() };
        let mut pages = Arc::clone(&slice.pages);
        fill(&mut pages, slice.start_byte, view, &self.domains, &mut self.runs)
    }
}
