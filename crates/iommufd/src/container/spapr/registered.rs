//! Memory that processes registered ahead: pinned and charged once, whatever is mapped of it.
//! Linux: `arch/powerpc/mm/book3s64/iommu_api.c`, a list in each address space that all its
//! containers share.
//!
//! Invariant: the regions of one process do not overlap. A region is pinned exactly while a
//! container has it registered or something of it is mapped.
//!
//! Lock order: `Registered::regions` comes after `Container::state` and before `Pages::pins`.

use std::collections::BTreeMap;
use std::sync::Arc;

use ioasis_iommupt::{Prot, Run};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Result};

use super::charge::Charge;
use crate::Client;
use crate::account::Rule;
use crate::client::{AddressSpace, PAGE_SIZE};
use crate::hw::machine::Machine;
use crate::inject::step;
use crate::pages::{Origin, PageRange, Pages};

/// Pages that Linux pins at once: an array of pointers to them fills the largest block of its
/// allocator, 2^12 pages on POWER with pages of 4 KiB (`ARCH_FORCE_MAX_ORDER`).
const PINNED_AT_ONCE: u64 = (PAGE_SIZE << super::window::MAX_PAGE_ORDER) / 8;

/// Pages of all addresses a program can have; no array of Linux's describes more.
const ENTRIES_MAX: u64 = 1 << 35;

/// A registered range of a process's memory.
#[derive(Debug)]
pub(super) struct Region {
    space: Arc<dyn AddressSpace>,
    address: u64,
    entries: u64,
    /// What TCEs may be as large as.
    page_lg2: u32,
    pages: Arc<Pages>,
    _charge: Charge,
}

impl Region {
    /// Its first address.
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// Its bytes.
    pub(super) fn length(&self) -> u64 {
        self.entries * PAGE_SIZE
    }

    /// lg2 of the largest page that a window may have to show it.
    pub(super) fn page_lg2(&self) -> u32 {
        self.page_lg2
    }

    /// What is pinned.
    pub(super) fn pages(&self) -> &Arc<Pages> {
        &self.pages
    }

    /// The least page of what backs `length` bytes from `start`.
    pub(super) fn backing_page_lg2(&self, machine: &Machine, start: u64, length: u64) -> u32 {
        let mut runs = Vec::new();
        self.pages.runs(start, length, &mut runs);
        runs.iter().map(|run| page_lg2_of(machine, *run)).min().unwrap_or(0)
    }

    fn whole(&self) -> PageRange {
        PageRange::of_bytes(0, self.length())
    }

    fn end(&self) -> u64 {
        self.address + self.length()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.pages.release(self.whole());
    }
}

fn page_lg2_of(machine: &Machine, run: Run) -> u32 {
    let window = machine.phys.window(run.pa).expect("what is pinned has a window");
    window.backing.page_lg2()
}

#[derive(Debug)]
struct Entry {
    region: Arc<Region>,
    /// Containers that registered it; with none it goes when nothing of it is mapped.
    used: u32,
}

impl Entry {
    /// Whether something of it is mapped: `mapped` beyond 1.
    fn is_mapped(&self) -> bool {
        self.region.pages.is_held_twice()
    }
}

/// What registering did.
#[derive(Debug)]
pub(super) enum Made {
    /// The range is registered.
    Region(Arc<Region>),
    /// Some pages could not be pinned: that many could, of those that Linux pins at once.
    Short(u64),
}

#[derive(Debug, Default)]
struct Regions {
    /// By process and first address.
    all: BTreeMap<(u128, u64), Entry>,
    /// How many of them no container has registered any more.
    unused: usize,
}

/// The regions of all processes.
#[derive(Debug, Default)]
pub(super) struct Registered {
    regions: Mutex<Regions>,
}

impl Registered {
    /// The region that is just `entries` pages from `address`, used once more: `mm_iommu_get`.
    pub(super) fn get(&self, key: u128, address: u64, entries: u64) -> Option<Arc<Region>> {
        let mut regions = self.regions.lock();
        let Regions { all, unused } = &mut *regions;
        let entry = all.get_mut(&(key, address))?;
        if entry.region.entries != entries {
            return None;
        }
        *unused -= usize::from(entry.used == 0);
        entry.used += 1;
        Some(Arc::clone(&entry.region))
    }

    /// Gives one use back; with the last, and nothing mapped, the region goes: `mm_iommu_put`.
    pub(super) fn put(&self, region: &Arc<Region>) {
        let mut regions = self.regions.lock();
        let Regions { all, unused } = &mut *regions;
        let key = (region.space.key(), region.address);
        let entry = all.get_mut(&key).expect("a region in use is registered");
        entry.used -= 1;
        if entry.used > 0 {
            return;
        }
        if entry.is_mapped() {
            *unused += 1;
        } else {
            all.remove(&key);
        }
    }

    /// Lets go of regions that nobody uses and nothing is mapped of any more.
    // DIFFERS: Linux keeps a region that was unregistered while something of it was mapped, pinned
    // and charged, until the process ends.
    pub(super) fn sweep(&self) {
        let mut regions = self.regions.lock();
        let Regions { all, unused } = &mut *regions;
        if *unused > 0 {
            let before = all.len();
            all.retain(|_, entry| entry.used > 0 || entry.is_mapped());
            *unused -= before - all.len();
        }
    }

    /// The region that holds `length` bytes from `address`: `mm_iommu_lookup`.
    pub(super) fn lookup(&self, key: u128, address: u64, length: u64) -> Option<Arc<Region>> {
        let regions = self.regions.lock();
        let (_, entry) = regions.all.range((key, 0)..=(key, address)).next_back()?;
        let inside = address.checked_add(length).is_some_and(|end| end <= entry.region.end());
        inside.then(|| Arc::clone(&entry.region))
    }

    /// Registers `entries` pages of the caller's memory from `address`: `mm_iommu_new`.
    ///
    /// # Errors
    ///
    /// `ENOMEM` over the caller's limit, for no page and for more than there can be; `EFAULT` where
    /// the first page cannot be pinned; `EINVAL` over another region.
    pub(super) fn new_region(
        &self,
        machine: &Arc<Machine>,
        client: &dyn Client,
        address: u64,
        entries: u64,
    ) -> Result<Made> {
        let charge = Charge::new(machine, client, entries)?;
        step("a registered region")?;
        if entries == 0 || entries > ENTRIES_MAX {
            return refuse!(ENOMEM, "no array describes so many pages", entries);
        }
        let space = client.memory();
        let length = entries * PAGE_SIZE;
        let origin = Origin { space: Arc::clone(&space), address };
        let need = Prot::READ | Prot::WRITE;
        let account = client.account();
        let pages = Pages::new(machine, origin, length, need, account, Rule::Ahead)?;
        if let Err(error) = pages.hold(PageRange::of_bytes(0, length)) {
            let short =
                if error.errno == Errno::EFAULT { short(&*space, address, entries) } else { 0 };
            return if short > 0 { Ok(Made::Short(short)) } else { Err(error) };
        }
        let (pages, page_lg2) = (Arc::new(pages), 0);
        let mut region = Region { space, address, entries, page_lg2, pages, _charge: charge };
        let key = region.space.key();
        let mut regions = self.regions.lock();
        let below = regions.all.range(..(key, region.end())).next_back();
        if let Some((_, other)) =
            below.filter(|((of, _), other)| *of == key && other.region.end() > address)
        {
            let other = other.region.address;
            drop(regions);
            return refuse!(EINVAL, "another registered region overlaps", other);
        }
        region.page_lg2 = page_lg2_of_region(machine, &region);
        let region = Arc::new(region);
        regions.all.insert((key, address), Entry { region: Arc::clone(&region), used: 1 });
        Ok(Made::Region(region))
    }
}

/// How many pages could be pinned of those that Linux pins at once, where not all can.
// pin_user_pages says how many it pinned; mm_iommu_do_alloc takes that number for its own answer,
// and the ioctl answers it.
fn short(space: &dyn AddressSpace, address: u64, entries: u64) -> u64 {
    let need = Prot::READ | Prot::WRITE;
    let pinned = |first: u64, count: u64| {
        count == 0 || space.pin(address + first * PAGE_SIZE, count * PAGE_SIZE, need).is_ok()
    };
    let (mut low, mut high) = (0, entries);
    // All of the first `low` pages can be pinned, not all of the first `high`.
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if pinned(low, middle - low) { low = middle } else { high = middle }
    }
    low % PINNED_AT_ONCE
}

/// `mem->pageshift`: as the range is aligned, and no more than the pages that it is made of.
fn page_lg2_of_region(machine: &Machine, region: &Region) -> u32 {
    let small = PAGE_SIZE.trailing_zeros();
    let mut least = (region.address | region.length()).trailing_zeros();
    let mut runs = Vec::new();
    region.pages.runs(0, region.length(), &mut runs);
    let mut seen = small;
    for run in runs {
        if least == small {
            break;
        }
        // As in Linux, a small page behind a huge one passes for as large; MAP_DMA looks again.
        let lg2 = page_lg2_of(machine, run);
        if lg2 > small {
            seen = lg2;
        }
        least = least.min(seen);
    }
    least
}
