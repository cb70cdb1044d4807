//! IOAS: one I/O address space, its areas, and the domains that show them to devices.
//!
//! Invariants: areas are disjoint and overlap no reserved range; every domain maps exactly the
//! areas; the pages of an area are held once while there is any domain. A failed call changes
//! nothing, except that UNMAP keeps what it removed before the area it stopped at, as in Linux.
//! Linux: `drivers/iommu/iommufd/io_pagetable.c`.
//!
//! Lock order: `Ioas::hwpts` -> `Ioas::space` -> `Domain::writer`, `Pages::pins`. `Ioas::space` of
//! two IOASes is never held at once except by CHANGE_PROCESS, which locks them in the order of
//! their ids. It is held while pages are pinned.
//!
//! DIFFERS: Linux lets other calls see an area whose pages are still being pinned (they get EBUSY);
//! here they wait.

mod area;
mod change;
pub(crate) mod dirty;
mod look;
mod map;
mod space;
mod split;
mod unmap;

use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ioasis_iommupt::areas::Ranges;
use ioasis_iommupt::{Iova, IovaRange, Prot, Run};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;
use smallvec::SmallVec;

pub(crate) use area::{Area, Areas};
pub use look::{AreaLook, ReservedLook, SpaceLook};
pub(crate) use map::map_pages;
pub use map::{MapRequest, Place};
use space::{ReservedSet, allow_list};
pub use unmap::Unmapped;

use crate::client::PAGE_SIZE;
use crate::hw::attachment::{Around, Mappings};
use crate::hw::domain::{Domain, LeafMax};
use crate::hw::machine::Machine;
use crate::hw::sections::Users;
use crate::inject::step;
use crate::object::{Head, Object, Tracked};
use crate::pages::{Fill, Pages};

/// A part of a pages object that is to be mapped.
#[derive(Debug)]
pub(crate) struct Slice<P = Arc<Pages>> {
    pub(crate) pages: P,
    pub(crate) start_byte: u64,
    pub(crate) length: u64,
}

/// A range that was unmapped, and by whom; kept for the fault log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PastUnmap {
    pub(crate) range: IovaRange,
    pub(crate) pid: u32,
}

/// Unmaps remembered for the fault log.
const PAST_UNMAPS: usize = 64;

/// How long somebody who only looks waits for a lock that calls hold while they wait for clients.
pub(crate) const LOOK_PATIENCE: Duration = Duration::from_millis(200);

/// Areas of one IOAS. Linux has no limit but the memory charged to the client; ours is taken from
/// the supervisor's.
const AREAS_MAX: usize = 1 << 22;

/// What the lock of an IOAS guards.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) areas: Areas,
    reserved: ReservedSet,
    allowed: Ranges,
    domains: Vec<Arc<Domain>>,
    pub(crate) accesses: Vec<Arc<dyn IoasAccess>>,
    alignment: u64,
    huge_pages: bool,
    /// New mappings use leaves of one page, whatever else the IOAS allows: the type1 driver's
    /// `disable_hugepages`.
    page_leaves: bool,
    past_unmaps: VecDeque<PastUnmap>,
    /// Kept so that a map does not allocate it anew.
    runs: Vec<Run>,
}

/// An access, as the IOAS it is attached to knows it. Linux: `struct iommufd_access`.
pub(crate) trait IoasAccess: Debug + Send + Sync {
    /// A number no other access has.
    fn token(&self) -> u64;

    /// The alignment an IOAS must have while it is attached.
    fn alignment(&self) -> u64;

    /// The user must let go of `range`.
    fn notify_unmap(&self, range: IovaRange);
}

/// One I/O address space.
#[derive(Debug)]
pub(crate) struct Ioas {
    pub(crate) head: Head,
    machine: Arc<Machine>,
    /// Every HWPT on this IOAS, in order of creation; also keeps two attaches from making two auto
    /// domains.
    pub(crate) hwpts: Mutex<Vec<Weak<dyn Object>>>,
    space: Mutex<Space>,
}

impl Ioas {
    /// An empty IOAS.
    #[must_use]
    pub(crate) fn new(machine: &Arc<Machine>, head: Head) -> Self {
        let space = Space {
            areas: Areas::default(),
            reserved: ReservedSet::default(),
            allowed: Ranges::new(),
            domains: Vec::new(),
            accesses: Vec::new(),
            alignment: 1,
            huge_pages: true,
            page_leaves: false,
            past_unmaps: VecDeque::with_capacity(PAST_UNMAPS),
            runs: Vec::new(),
        };
        Self {
            head,
            machine: Arc::clone(machine),
            hwpts: Mutex::default(),
            space: Mutex::new(space),
        }
    }

    /// The machine it belongs to.
    pub(crate) fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    pub(crate) fn lock(&self) -> ioasis_sys::sync::MutexGuard<'_, Space> {
        self.space.lock()
    }

    /// The lock, unless a call that may be waiting for its client has it for longer.
    fn lock_to_look(&self) -> Option<ioasis_sys::sync::MutexGuard<'_, Space>> {
        self.space.try_lock_for(LOOK_PATIENCE)
    }

    pub(crate) fn try_lock(&self) -> Option<ioasis_sys::sync::MutexGuard<'_, Space>> {
        self.space.try_lock()
    }

    /// The pieces of pages behind `range`: what COPY maps again.
    ///
    /// # Errors
    ///
    /// `ENOENT` unless areas cover every byte.
    pub(crate) fn slices(&self, range: IovaRange) -> Result<SmallVec<[Slice; 1]>> {
        step("the source of a copy")?;
        let mut space = self.space.lock();
        let mut slices = SmallVec::new();
        let mut add = |area: &mut Area, part: IovaRange| {
            slices.push(Slice {
                pages: area.pages.share(),
                start_byte: area.byte_at(part.start()),
                length: part.span() + 1,
            });
        };
        // Often the range lies in one area.
        if let Some(area) = space.areas.at_mut(range.start())
            && area.range.contains(range)
        {
            add(area, range);
            return Ok(slices);
        }
        space.cover(range, |_, _| Ok(()))?;
        space.areas.each_mut(range, |area| {
            let part = area.range.intersect(range).expect("an overlapping area overlaps");
            add(area, part);
        });
        Ok(slices)
    }

    /// The ranges that may be mapped, and the alignment a mapping must have.
    #[must_use]
    pub(crate) fn iova_ranges(&self) -> (Vec<IovaRange>, u64) {
        let space = self.space.lock();
        (space.reserved.holes(), space.alignment)
    }

    /// Limits automatic allocation to `ranges`; none lifts the limit.
    ///
    /// # Errors
    ///
    /// `EINVAL` where they overlap each other, `EADDRINUSE` where they hit a reserved range.
    pub(crate) fn allow(&self, ranges: &[IovaRange]) -> Result<()> {
        step("allowed ranges")?;
        let allowed = allow_list(ranges)?;
        let mut space = self.space.lock();
        if let Some(hit) = allowed.iter().find_map(|range| space.reserved.hit(range)) {
            return refuse!(EADDRINUSE, "an allowed range is reserved", hit.start().0);
        }
        space.allowed = allowed;
        Ok(())
    }

    /// Keeps `range` from being mapped, until `owner` takes it back.
    ///
    /// # Errors
    ///
    /// `EADDRINUSE` where an area or an allowed range is.
    pub(crate) fn reserve(&self, range: IovaRange, owner: u64) -> Result<()> {
        self.space.lock().reserve(range, owner)
    }

    /// Gives back all that `owner` reserved.
    pub(crate) fn unreserve(&self, owner: u64) {
        self.space.lock().reserved.remove(owner);
    }

    /// Shows the areas to the devices of `domain`, now and from now on.
    ///
    /// # Errors
    ///
    /// `EINVAL` when its smallest leaf is larger than a page, `EADDRINUSE` when areas or allowed
    /// ranges do not fit it, `EFAULT` and `ENOMEM` of pinning; nothing has changed then.
    pub(crate) fn add_domain(&self, domain: &Arc<Domain>) -> Result<()> {
        step("a domain's place in an IOAS")?;
        let mut space = self.space.lock();
        if domain.page_size_min() > PAGE_SIZE {
            return refuse!(
                EINVAL,
                "the IOMMU's smallest page is larger than 4 KiB",
                domain.page_size_min()
            );
        }
        let alignment = space.alignment.max(domain.page_size_min());
        space.check_alignment(alignment)?;
        let aperture = domain.aperture();
        let outside = [
            aperture.start().0.checked_sub(1).map(|last| (0, last)),
            aperture.last().0.checked_add(1).map(|start| (start, u64::MAX)),
        ];
        for (start, last) in outside.into_iter().flatten() {
            let range = IovaRange::closed(Iova(start), Iova(last))
                .expect("an aperture's complement is a range");
            if let Err(error) = space.reserve(range, domain.token()) {
                space.reserved.remove(domain.token());
                return Err(error);
            }
        }
        if let Err(error) = space.fill_domain(domain) {
            space.reserved.remove(domain.token());
            return Err(error);
        }
        space.alignment = alignment;
        space.domains.push(Arc::clone(domain));
        Ok(())
    }

    /// Takes `domain`, which no device uses any more, off the IOAS.
    pub(crate) fn remove_domain(&self, domain: &Domain) {
        let mut space = self.space.lock();
        let space = &mut *space;
        let at = space.domains.iter().position(|other| other.token() == domain.token());
        space.domains.swap_remove(at.expect("a domain leaves the IOAS it was added to"));
        space.reserved.remove(domain.token());
        if space.domains.is_empty() {
            space.areas.each_mut(IovaRange::ALL, Area::unfill);
        }
        space.alignment = space.natural_alignment();
    }

    /// Whether mappings may use leaves larger than a page.
    #[must_use]
    pub(crate) fn huge_pages(&self) -> bool {
        self.space.lock().huge_pages
    }

    /// Lets mappings use leaves larger than a page, or forbids it.
    ///
    /// # Errors
    ///
    /// Forbidding: `EINVAL` when there are both domains and areas, `EADDRINUSE` when an area is not
    /// page aligned.
    pub(crate) fn set_huge_pages(&self, allowed: bool) -> Result<()> {
        let mut space = self.space.lock();
        if space.huge_pages == allowed {
            return Ok(());
        }
        if !allowed {
            if !space.domains.is_empty() && !space.areas.is_empty() {
                return refuse!(EINVAL, "huge pages cannot be forbidden over existing mappings");
            }
            space.check_alignment(space.alignment.max(PAGE_SIZE))?;
        }
        space.huge_pages = allowed;
        space.alignment = space.natural_alignment();
        Ok(())
    }

    /// Lets mappings made from now on use no leaf larger than a page, or as large a leaf as fits.
    pub(crate) fn limit_leaves(&self, limit: LeafMax) {
        self.space.lock().page_leaves = limit == LeafMax::Page;
    }

    /// How many areas there are.
    #[must_use]
    pub(crate) fn areas(&self) -> usize {
        self.space.lock().areas.len()
    }

    /// The range of the first area that shares an IOVA with `range`.
    pub(crate) fn first_area(&self, range: IovaRange) -> Option<IovaRange> {
        self.space.lock().areas.first(range).map(|area| area.range)
    }

    /// The first IOVA of the area number `nth`.
    #[cfg(feature = "mock")]
    pub(crate) fn nth_area(&self, nth: u32) -> Option<Iova> {
        let nth = usize::try_from(nth).ok()?;
        self.space.lock().areas.iter().nth(nth).map(|area| area.range.start())
    }

    /// The pages of the area that covers exactly `range`.
    pub(crate) fn pages_of(&self, range: IovaRange) -> Option<Arc<Pages>> {
        let mut space = self.space.lock();
        space
            .areas
            .at_mut(range.start())
            .filter(|area| area.range == range)
            .map(|area| area.pages.share())
    }

    /// The ranges of the areas that share an IOVA with `range`, ascending.
    pub(crate) fn ranges_in(&self, range: IovaRange) -> Vec<IovaRange> {
        self.space.lock().areas.overlapping(range).map(|area| area.range).collect()
    }

    /// The range of the area `iova` lies in.
    pub(crate) fn area_at(&self, iova: Iova) -> Option<IovaRange> {
        self.space.lock().areas.at(iova).map(|area| area.range)
    }

    /// The end of `range` that lies inside an area which `range` does not hold whole.
    pub(crate) fn cut_by(&self, range: IovaRange) -> Option<Iova> {
        let space = self.space.lock();
        let cut = |end: Iova, area: &Area| (!range.contains(area.range)).then_some(end);
        match space.areas.at(range.start()) {
            // Often the range is one area: the other end need not be looked for.
            Some(first) if first.range.last() >= range.last() => cut(range.start(), first),
            Some(first) if !range.contains(first.range) => Some(range.start()),
            _ => space.areas.at(range.last()).and_then(|last| cut(range.last(), last)),
        }
    }

    /// The physical address behind `iova`, which devices without an IOMMU are given, and how many
    /// bytes follow it physically in the same area, at most `length`. Linux: `iopt_get_phys`.
    ///
    /// # Errors
    ///
    /// `ENOENT` where nothing is mapped, `EINVAL` for a dma-buf that was revoked, `EOPNOTSUPP`
    /// where the pages are not held for a device without an IOMMU.
    pub(crate) fn noiommu_phys(&self, iova: Iova, length: u64) -> Result<Run> {
        let space = self.space.lock();
        let Some(area) = space.areas.at(iova) else {
            return refuse!(ENOENT, "nothing is mapped there", iova.0);
        };
        let revoked = || refuse!(EINVAL, "the dma-buf mapped there was revoked", iova.0);
        if area.pages.is_revoked() {
            return revoked();
        }
        // DIFFERS: the first page table of an IOAS holds the pages of all areas. In Linux each area
        // knows which one holds its own, which is another where three tables came and one went.
        let holder = space.domains.first().filter(|domain| domain.iommu().is_none());
        let Some(domain) = holder else {
            return refuse!(EOPNOTSUPP, "no device without an IOMMU holds the pages", iova.0);
        };
        let left = area.range.last().0 - iova.0 + 1;
        // A domain maps every area but those whose buffer is revoked at this moment.
        let run = domain.reader().translate(iova, length.min(left), Prot::empty());
        run.or_else(|_| revoked())
    }

    /// What the domains have in common: page sizes, and whether all force snooping. `None` without
    /// a domain.
    pub(crate) fn domains_summary(&self) -> Option<(u64, bool)> {
        let space = self.space.lock();
        space
            .domains
            .iter()
            .map(|domain| (domain.page_sizes(), domain.wants().enforce_coherency))
            .reduce(|(sizes, coherent), (other_sizes, other_coherent)| {
                (sizes & other_sizes, coherent && other_coherent)
            })
    }
}

impl Space {
    /// Returns when no DMA uses what was cleared in the domains before.
    fn wait_for_dma(&self, ranges: &[IovaRange]) {
        wait_for_dma(&self.domains, ranges);
    }

    fn leaf_max(&self) -> LeafMax {
        if self.huge_pages && !self.page_leaves { LeafMax::Format } else { LeafMax::Page }
    }

    /// Fills `domain`, which no device uses yet, with every area.
    fn fill_domain(&mut self, domain: &Arc<Domain>) -> Result<()> {
        let leaf_max = self.leaf_max();
        let first_domain = self.domains.is_empty();
        let Self { areas, runs, .. } = self;
        let filled = areas.try_each_mut(IovaRange::ALL, |area| {
            if area.pages.is_revoked() {
                Ok(())
            } else {
                fill_domain_area(domain, area, runs, leaf_max)
            }
        });
        if filled.is_err() && first_domain {
            areas.each_mut(IovaRange::ALL, Area::unfill);
        }
        filled
    }

    fn reserve(&mut self, range: IovaRange, owner: u64) -> Result<()> {
        step("a reserved range")?;
        if let Some(area) = self.areas.first(range) {
            return refuse!(
                EADDRINUSE,
                "a mapping lies in a range that must be reserved",
                area.range.start().0
            );
        }
        if self.allowed.first(range).is_some() {
            return refuse!(EADDRINUSE, "an allowed range must be reserved", range.start().0);
        }
        self.reserved.add(range, owner);
        Ok(())
    }

    /// The alignment that domains, accesses and options ask for.
    fn natural_alignment(&self) -> u64 {
        let domains = self.domains.iter().map(|domain| domain.page_size_min());
        let accesses = self.accesses.iter().map(|access| access.alignment());
        let option = if self.huge_pages { 1 } else { PAGE_SIZE };
        domains.chain(accesses).fold(option, u64::max)
    }

    /// Sets the alignment to what is asked for now.
    pub(crate) fn relax_alignment(&mut self) {
        self.alignment = self.natural_alignment();
    }

    /// Raises the alignment to `alignment` if it is less.
    pub(crate) fn raise_alignment(&mut self, alignment: u64) -> Result<()> {
        let alignment = self.alignment.max(alignment);
        self.check_alignment(alignment)?;
        self.alignment = alignment;
        Ok(())
    }

    fn check_alignment(&self, alignment: u64) -> Result<()> {
        if alignment <= self.alignment {
            return Ok(());
        }
        let mask = alignment - 1;
        let misaligned = self.areas.iter().find(|area| {
            (area.range.start().0 | area.length() | (area.start_byte % PAGE_SIZE)) & mask != 0
        });
        match misaligned {
            Some(area) => refuse!(
                EADDRINUSE,
                "a mapping is less aligned than is needed",
                area.range.start().0
            ),
            None => Ok(()),
        }
    }

    /// Walks the areas over `range`, with the part of each that lies in it.
    ///
    /// # Errors
    ///
    /// `ENOENT` at the first byte that no area covers, and whatever `each` returns.
    pub(crate) fn cover(
        &self,
        range: IovaRange,
        mut each: impl FnMut(&Area, IovaRange) -> Result<()>,
    ) -> Result<()> {
        let mut next = Some(range.start());
        for area in self.areas.overlapping(range) {
            if next.is_none_or(|next| area.range.start() > next) {
                break;
            }
            let part = area.range.intersect(range).expect("an overlapping area overlaps");
            each(area, part)?;
            next = part.last().0.checked_add(1).map(Iova);
            if part.last() == range.last() {
                return Ok(());
            }
        }
        let gap = next.map_or(u64::MAX, |next| next.0);
        refuse!(ENOENT, "nothing is mapped at the IOVA", gap)
    }

    /// Who unmapped `iova`, as far back as is remembered.
    pub(crate) fn past_unmap(&self, iova: Iova) -> Option<PastUnmap> {
        let hit = |past: &&PastUnmap| past.range.start() <= iova && iova <= past.range.last();
        self.past_unmaps.iter().rev().find(hit).copied()
    }

    fn remember_unmap(&mut self, past: PastUnmap) {
        if self.past_unmaps.len() == PAST_UNMAPS {
            self.past_unmaps.pop_front();
        }
        self.past_unmaps.push_back(past);
    }
}

/// Returns when no DMA uses what was cleared in these domains before, which is what was in
/// `ranges`.
fn wait_for_dma(domains: &[Arc<Domain>], ranges: &[IovaRange]) {
    Users::wait_all(domains.iter().map(|domain| domain.users()));
    if let Some(domain) = domains.first() {
        let tokens = domains.iter().map(|domain| domain.token());
        domain.machine().underway.wait_for_ranges(tokens, ranges);
    }
}

fn fill_domain_area(
    domain: &Domain,
    area: &mut Area,
    runs: &mut Vec<Run>,
    leaf_max: LeafMax,
) -> Result<()> {
    runs.clear();
    if area.filled {
        area.pages.runs(area.start_byte, area.length(), runs);
    } else {
        area.pages.fill(area.start_byte, area.length(), runs)?;
        area.filled = true;
    }
    domain.map(area.range.start(), runs, area.prot, leaf_max)
}

impl Object for Ioas {
    fn head(&self) -> &Head {
        &self.head
    }
}

impl Tracked for Ioas {
    const ABSENT: &'static str = "no IOAS has this id";
}

impl Mappings for Ioas {
    fn around(&self, iova: Iova) -> Option<Around> {
        let space = self.try_lock()?;
        let past = space.past_unmap(iova);
        Some(Around {
            nearest: space.areas.nearest(iova),
            unmapped: past.map(|past| (past.range, past.pid)),
            revoked: space.areas.at(iova).is_some_and(|area| area.pages.was_revoked()),
        })
    }
}

impl Drop for Ioas {
    fn drop(&mut self) {
        let space = self.space.get_mut();
        space.areas.unfill_all();
    }
}

#[cfg(test)]
mod tests;
