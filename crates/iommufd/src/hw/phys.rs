//! One simulated physical space: what the output addresses of all page tables mean.
//!
//! A [`Pa`] names a window of 1 GiB of one backing (the bits above 30) and a byte in it (the bits
//! below). The window of a page follows from its backing and offset alone, so the same page has the
//! same address wherever it is mapped, and memory that is contiguous in its backing is contiguous
//! here: large leaves fit.
//!
//! A window exists as long as a [`Pages`](crate::pages::Pages) object holds memory in it. Looking
//! one up takes no lock.
//!
//! `Phys::windows` is a leaf lock.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, OnceLock};

use ioasis_iommupt::{Pa, Run};
use ioasis_sys::published::{Held, Published};
use ioasis_sys::quiesce::Sections;
use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;
use smallvec::SmallVec;

use crate::inject::step;
use crate::{Backing, Extent};

/// Bytes of a window, as a power of two.
const WINDOW_LG2: u32 = 30;
const WINDOW: u64 = 1 << WINDOW_LG2;

/// Windows reachable with 48 bits of output address, the least a simulated IOMMU has.
const WINDOWS_MAX: usize = 1 << 18;
const CHUNK: usize = 1 << 9;

/// A window's backing and where in it the window begins.
#[derive(Debug)]
pub struct Window {
    /// What holds the bytes.
    pub backing: Arc<dyn Backing>,
    /// Offset in the backing of the window's first byte.
    pub base: u64,
}

type Chunk = Box<[Published<Window>]>;
type Key = (u128, u64);

#[derive(Debug, Default)]
struct Windows {
    by_key: BTreeMap<Key, usize>,
    /// The window held last, which is held still: maps often come from one stretch of memory.
    last: Option<(Key, usize)>,
    /// Holders and key of each window, by index; no holder: free.
    holders: Vec<(u64, Key)>,
    free: Vec<usize>,
}

/// The simulated physical space of one machine.
#[derive(Debug)]
pub struct Phys {
    chunks: Box<[OnceLock<Chunk>]>,
    windows: Mutex<Windows>,
    sections: &'static Sections,
}

impl Default for Phys {
    fn default() -> Self {
        Self {
            chunks: (0..WINDOWS_MAX / CHUNK).map(|_| OnceLock::new()).collect(),
            windows: Mutex::default(),
            sections: Sections::of_process(),
        }
    }
}

fn index(pa: Pa) -> usize {
    usize::try_from(pa.0 >> WINDOW_LG2).unwrap_or(usize::MAX)
}

impl Phys {
    /// The window `pa` lies in; `None` when nobody holds it.
    #[must_use]
    pub fn window(&self, pa: Pa) -> Option<Arc<Window>> {
        self.cell(index(pa))?.get()
    }

    /// The window `pa` lies in, for as long as the guard lives.
    #[inline]
    pub(crate) fn hold_window(&self, pa: Pa) -> Option<Held<'_, Window>> {
        self.cell(index(pa))?.load()
    }

    /// Where byte `offset` of the backing with this key is; `None` when nobody holds its window.
    #[cfg_attr(not(feature = "mock"), expect(dead_code, reason = "the mock hardware asks"))]
    pub(crate) fn find(&self, backing: u128, offset: u64) -> Option<Pa> {
        let windows = self.windows.lock();
        let index = *windows.by_key.get(&(backing, offset & !(WINDOW - 1)))?;
        Some(Pa(((index as u64) << WINDOW_LG2) | (offset & (WINDOW - 1))))
    }

    /// Which window `pa` lies in, by number.
    #[inline]
    pub(crate) fn place(pa: Pa) -> u64 {
        pa.0 >> WINDOW_LG2
    }

    /// The byte offset of `pa` in the backing of its window.
    #[must_use]
    pub fn offset(window: &Window, pa: Pa) -> u64 {
        window.base + (pa.0 & (WINDOW - 1))
    }

    #[inline]
    fn cell(&self, index: usize) -> Option<&Published<Window>> {
        self.chunks.get(index / CHUNK)?.get()?.get(index % CHUNK)
    }

    /// Takes a hold on the windows of `extent` and appends its output addresses to `runs`, merged
    /// with the last where they touch inside one window.
    ///
    /// # Errors
    ///
    /// `ENOMEM` when the physical space is full; holds taken for runs appended before stay, and
    /// `runs` lists them.
    pub(crate) fn hold_extent(&self, extent: &Extent, runs: &mut SmallVec<[Run; 1]>) -> Result<()> {
        let mut offset = extent.offset;
        let mut left = extent.length;
        while left > 0 {
            let length = left.min(WINDOW - (offset & (WINDOW - 1)));
            runs.push(self.hold_run(&extent.backing, offset, length)?);
            offset = offset.wrapping_add(length);
            left -= length;
        }
        Ok(())
    }

    /// Whether an extent lies in one window.
    #[inline]
    pub(crate) fn is_in_one(extent: &Extent) -> bool {
        extent.length <= WINDOW - (extent.offset & (WINDOW - 1))
    }

    /// The run of a part of a backing that lies in one window, which is held.
    ///
    /// # Errors
    ///
    /// `ENOMEM` when the physical space is full.
    #[inline]
    pub(crate) fn hold_run(
        &self,
        backing: &Arc<dyn Backing>,
        offset: u64,
        length: u64,
    ) -> Result<Run> {
        let window = self.hold(backing, offset & !(WINDOW - 1))?;
        Ok(Run { pa: Pa(((window as u64) << WINDOW_LG2) | (offset & (WINDOW - 1))), length })
    }

    fn hold(&self, backing: &Arc<dyn Backing>, base: u64) -> Result<usize> {
        let key = (backing.key(), base);
        let mut windows = self.windows.lock();
        let windows = &mut *windows;
        if let Some((last, index)) = windows.last
            && last == key
        {
            windows.holders[index].0 += 1;
            return Ok(index);
        }
        let entry = match windows.by_key.entry(key) {
            Entry::Occupied(entry) => {
                let index = *entry.get();
                windows.holders[index].0 += 1;
                windows.last = Some((key, index));
                return Ok(index);
            }
            Entry::Vacant(entry) => entry,
        };
        step("a window of physical space")?;
        let index = match windows.free.pop() {
            Some(index) => index,
            None if windows.holders.len() == WINDOWS_MAX => {
                return refuse!(ENOMEM, "no window of physical space is left");
            }
            None => {
                windows.holders.push((0, key));
                // Room for every index, so that giving one back never allocates.
                windows.free.reserve(windows.holders.len());
                windows.holders.len() - 1
            }
        };
        entry.insert(index);
        windows.holders[index] = (1, key);
        windows.last = Some((key, index));
        let chunk = self.chunks[index / CHUNK]
            .get_or_init(|| (0..CHUNK).map(|_| Published::empty(self.sections)).collect());
        let window = Arc::new(Window { backing: Arc::clone(backing), base });
        // Where a free window was, there was nothing.
        drop(chunk[index % CHUNK].swap(Some(window)));
        Ok(index)
    }

    /// Takes one more hold on the window of `pa`, which has one.
    pub(crate) fn hold_again(&self, pa: Pa) {
        let holders = &mut self.windows.lock().holders[index(pa)].0;
        assert!(*holders > 0, "a held window has a holder");
        *holders += 1;
    }

    /// Gives the hold behind `run` back.
    pub(crate) fn release(&self, run: Run) {
        self.release_times(run.pa, 1);
    }

    /// Gives that many holds on the window of `pa` back.
    pub(crate) fn release_times(&self, pa: Pa, times: u64) {
        let index = index(pa);
        let gone = {
            let mut windows = self.windows.lock();
            let windows = &mut *windows;
            let (holders, key) = &mut windows.holders[index];
            *holders = holders.checked_sub(times).expect("a held window has a holder");
            if *holders > 0 {
                return;
            }
            windows.by_key.remove(key);
            windows.last = windows.last.filter(|(last, _)| last != key);
            windows.free.push(index);
            self.cell(index).expect("a held window has a cell").swap(None)
        };
        drop(gone);
    }

    /// How many windows are held.
    #[must_use]
    pub fn windows(&self) -> usize {
        self.windows.lock().by_key.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AddressSpace;
    use crate::memory::Memory;
    use ioasis_iommupt::Prot;

    fn runs_of(phys: &Phys, memory: &Memory, address: u64, length: u64) -> SmallVec<[Run; 1]> {
        let mut runs = SmallVec::new();
        for extent in memory.pin(address, length, Prot::READ).unwrap() {
            phys.hold_extent(&extent, &mut runs).unwrap();
        }
        runs
    }

    #[test]
    fn the_same_page_has_the_same_address_and_another_has_another() {
        let phys = Phys::default();
        let memory = Memory::new(0x10_0000, 0x4000).unwrap();
        let whole = runs_of(&phys, &memory, 0x10_0000, 0x4000);
        let part = runs_of(&phys, &memory, 0x10_1000, 0x1000);
        assert_eq!(part[0].pa.0, whole[0].pa.0 + 0x1000);
        let other = Memory::new(0x10_0000, 0x4000).unwrap();
        let elsewhere = runs_of(&phys, &other, 0x10_0000, 0x1000);
        assert_ne!(elsewhere[0].pa, whole[0].pa);
        assert_eq!(phys.windows(), 2);
    }

    #[test]
    fn a_window_goes_with_its_last_holder() {
        let phys = Phys::default();
        let memory = Memory::new(0, 0x2000).unwrap();
        let first = runs_of(&phys, &memory, 0, 0x1000);
        let second = runs_of(&phys, &memory, 0x1000, 0x1000);
        phys.release(first[0]);
        assert!(phys.window(second[0].pa).is_some());
        phys.release(second[0]);
        assert!(phys.window(second[0].pa).is_none());
        assert_eq!(phys.windows(), 0);
    }
}
