//! Random calls on one container, compared with a model of arrays after every step.
//!
//! Each step is first made to fail at its first, second, third fallible point and so on; the model
//! must not have moved then. What is compared: the errno or the size, what every device reads at
//! every page, who has locked how much, what GET_INFO counts, and the dirty log.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use ioasis_iommupt::{Iova, IovaRange, Prot};
use ioasis_uapi::vfio as abi;
use ioasis_uapi::{Errno, Result};
use proptest::prelude::*;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::container::{Container, GroupKind, Member};
use crate::tests::rig::{ACCOUNT, ARG, BASE, TestClient};
use crate::{
    AccessUser, Endpoint, EndpointConfig, Group, Iommu, IommuKind, Machine, Segment, inject,
};

const PAGE: u64 = 4096;
/// Pages of IOVA that are looked at.
const PAGES: u64 = 24;
/// Pages from here on are outside what the last group's IOMMU translates.
const NARROW: u64 = 16;
const GROUPS: usize = 3;
/// One more, whose device does no DMA.
const EMULATED: usize = GROUPS;
/// Mappings the container may have.
const ENTRIES: u32 = 5;
/// Pages each process may lock.
const LIMIT: u64 = 20;
/// Two processes whose memory has the same bytes.
const PIDS: [u32; 2] = [100, 200];

#[derive(Clone, Copy, Debug)]
struct Pieces {
    at: u64,
    pages: u64,
}

fn pieces() -> impl Strategy<Value = Pieces> {
    (0..PAGES, 1..8_u64).prop_map(|(at, pages)| Pieces { at, pages: pages.min(PAGES - at) })
}

fn range_of(pieces: Pieces) -> IovaRange {
    IovaRange::new(Iova(pieces.at * PAGE), pieces.pages * PAGE).unwrap()
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Add { group: usize },
    Remove { group: usize },
    SetIommu { v2: bool },
    Map { to: Pieces, from: u64, flags: u32, process: usize },
    NewAddress { to: Pieces, process: usize },
    Unmap { range: Pieces },
    UnmapAll,
    TakeAddress { range: Pieces },
    TakeAll,
    UnmapDirty { range: Pieces },
    Log { on: bool },
    Dirty { range: Pieces },
    Pin { range: Pieces, write: bool },
    Unpin { range: Pieces },
    Write { range: Pieces },
}

fn step() -> impl Strategy<Value = Step> {
    let flags = prop_oneof![4 => Just(3_u32), 2 => Just(1_u32), 1 => Just(0_u32)];
    prop_oneof![
        2 => (0..=EMULATED).prop_map(|group| Step::Add { group }),
        1 => (0..=EMULATED).prop_map(|group| Step::Remove { group }),
        3 => prop::bool::weighted(0.7).prop_map(|v2| Step::SetIommu { v2 }),
        8 => (pieces(), 0..16_u64, flags, 0..2_usize)
            .prop_map(|(to, from, flags, process)| Step::Map { to, from, flags, process }),
        3 => (pieces(), 0..2_usize).prop_map(|(to, process)| Step::NewAddress { to, process }),
        4 => pieces().prop_map(|range| Step::Unmap { range }),
        1 => Just(Step::UnmapAll),
        3 => pieces().prop_map(|range| Step::TakeAddress { range }),
        1 => Just(Step::TakeAll),
        2 => pieces().prop_map(|range| Step::UnmapDirty { range }),
        1 => any::<bool>().prop_map(|on| Step::Log { on }),
        3 => pieces().prop_map(|range| Step::Dirty { range }),
        4 => (pieces(), any::<bool>()).prop_map(|(range, write)| Step::Pin { range, write }),
        1 => pieces().prop_map(|range| Step::Unpin { range }),
        1 => pieces().prop_map(|range| Step::Write { range }),
    ]
}

/// One MAP_DMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Area {
    at: u64,
    pages: u64,
    /// The source page that its first page has where it is pinned from now on.
    from: u64,
    write: bool,
    payer: usize,
    invalid: bool,
}

/// What an emulated device wrote or has pinned, and what a group left behind.
#[derive(Clone, Debug, Default)]
struct Log {
    pages: BTreeSet<u64>,
    whole: BTreeSet<u64>,
}

impl Area {
    fn end(self) -> u64 {
        self.at + self.pages
    }

    fn touches(self, range: Pieces) -> bool {
        self.at < range.at + range.pages && range.at < self.end()
    }
}

#[derive(Clone, Debug, Default)]
struct Model {
    members: [bool; GROUPS + 1],
    /// The driver, and whether it is the second version.
    driver: Option<bool>,
    /// Ascending.
    areas: Vec<Area>,
    logging: bool,
    log: Log,
    /// How often each page is pinned.
    pins: BTreeMap<u64, u32>,
    /// The source page of each that a domain or a device holds: a new address does not change it.
    held: BTreeMap<u64, u64>,
}

/// What a call answers: a size, or a word of bits.
type Answer = Result<u64, Errno>;

impl Model {
    /// Pages of a process's mappings, pinned or not.
    fn mapped(&self, process: usize) -> u64 {
        self.areas.iter().filter(|area| area.payer == process).map(|area| area.pages).sum()
    }

    fn locked(&self, process: usize) -> u64 {
        if self.has_domain() {
            return self.mapped(process);
        }
        let pays = |page: &&u64| self.area_at(**page).is_some_and(|area| area.payer == process);
        self.pins.keys().filter(pays).count() as u64
    }

    fn has_domain(&self) -> bool {
        self.driver.is_some() && self.members[..GROUPS].contains(&true)
    }

    fn area_at(&self, page: u64) -> Option<Area> {
        self.areas.iter().find(|area| area.at <= page && page < area.end()).copied()
    }

    /// Whether an emulated device may use the process addresses.
    fn keeps_addresses(&self) -> Result<bool, Errno> {
        self.v2().map(|_| self.members[EMULATED])
    }

    fn has_invalid(&self) -> bool {
        self.areas.iter().any(|area| area.invalid)
    }

    fn is_narrow(&self) -> bool {
        self.driver.is_some() && self.members[GROUPS - 1]
    }

    fn v2(&self) -> Result<bool, Errno> {
        self.driver.ok_or(Errno::EINVAL)
    }

    fn cuts(&self, range: Pieces) -> bool {
        let (start, end) = (range.at, range.at + range.pages);
        let cut = |edge: u64| self.areas.iter().any(|area| area.at < edge && edge < area.end());
        cut(start) || cut(end)
    }

    /// The areas an UNMAP_DMA of `range` is about.
    fn chosen(&self, range: Pieces) -> Result<Vec<Area>, Errno> {
        let mut chosen: Vec<Area> =
            self.areas.iter().copied().filter(|area| area.touches(range)).collect();
        if self.v2()? {
            if self.cuts(range) {
                return Err(Errno::EINVAL);
            }
        } else if chosen.first().is_some_and(|first| first.at < range.at) {
            chosen.clear();
        }
        Ok(chosen)
    }

    fn remove(&mut self, chosen: &[Area]) -> u64 {
        self.areas.retain(|area| !chosen.contains(area));
        chosen.iter().for_each(|area| {
            self.pins.retain(|page, _| !(area.at..area.end()).contains(page));
            self.forget(*area);
        });
        chosen.iter().map(|area| area.pages * PAGE).sum()
    }

    fn forget(&mut self, area: Area) {
        self.log.pages.retain(|page| !(area.at..area.end()).contains(page));
        self.log.whole.remove(&area.at);
    }

    fn take(&mut self, chosen: &[Area]) -> Answer {
        if chosen.iter().any(|area| area.invalid) {
            return Err(Errno::EINVAL);
        }
        for area in self.areas.iter_mut().filter(|area| chosen.contains(area)) {
            area.invalid = true;
        }
        Ok(chosen.iter().map(|area| area.pages * PAGE).sum())
    }

    /// Bits of the pages from `base` on that `chosen` map and that may be dirty.
    fn bits(&self, chosen: &[Area], base: u64) -> u64 {
        let all = self.has_domain();
        let pages = chosen.iter().flat_map(|area| {
            let whole = all || self.log.whole.contains(&area.at);
            (area.at..area.end()).filter(move |page| whole || self.log.pages.contains(page))
        });
        pages.fold(0, |bits, page| bits | 1 << (page - base))
    }

    fn add(&mut self, group: usize) -> Answer {
        // The group's own file knows that it has a container: here it is asked of the container's
        // list.
        if self.members[group] {
            return Ok(0);
        }
        if self.driver.is_some() {
            if self.areas.iter().any(|area| area.invalid) {
                return Err(Errno::EBUSY);
            }
            if group == GROUPS - 1 && self.areas.iter().any(|area| area.end() > NARROW) {
                return Err(Errno::EINVAL);
            }
        }
        let pins = self.driver.is_some() && group != EMULATED && !self.has_domain();
        if pins && (0..2).any(|process| self.mapped(process) > LIMIT) {
            return Err(Errno::ENOMEM);
        }
        self.members[group] = true;
        Ok(0)
    }

    fn leave(&mut self, group: usize) -> Answer {
        let was = std::mem::take(&mut self.members[group]);
        if self.members == [false; GROUPS + 1] {
            *self = Self::default();
        }
        if group == EMULATED {
            // Its device is closed first.
            self.pins.clear();
        } else if was && self.logging {
            self.log.whole = self.areas.iter().map(|area| area.at).collect();
        }
        Ok(0)
    }

    fn pin(&mut self, range: Pieces, write: bool) -> Answer {
        let Some(v2) = self.driver else { return Err(Errno::ENOTTY) };
        if !v2 {
            return Err(Errno::EACCES);
        }
        if self.has_invalid() {
            return Err(Errno::EBUSY);
        }
        let mut next = self.clone();
        for page in range.at..range.at + range.pages {
            let area = self.area_at(page).ok_or(Errno::EINVAL)?;
            if write && !area.write {
                return Err(Errno::EPERM);
            }
            *next.pins.entry(page).or_default() += 1;
            if next.locked(area.payer) > LIMIT {
                return Err(Errno::ENOMEM);
            }
            if self.logging {
                next.log.pages.insert(page);
            }
        }
        *self = next;
        Ok(0)
    }

    fn unpin(&mut self, range: Pieces) -> Answer {
        for page in range.at..range.at + range.pages {
            if let Some(count) = self.pins.get_mut(&page) {
                *count -= 1;
            }
        }
        self.pins.retain(|_, count| *count > 0);
        Ok(0)
    }

    fn write(&mut self, range: Pieces) -> Answer {
        if self.driver.is_none() {
            return Err(Errno::ENOTTY);
        }
        if self.has_invalid() {
            return Err(Errno::EBUSY);
        }
        for page in range.at..range.at + range.pages {
            if !self.area_at(page).ok_or(Errno::EINVAL)?.write {
                return Err(Errno::EPERM);
            }
            if self.logging {
                self.log.pages.insert(page);
            }
        }
        Ok(0)
    }

    /// The bits of `chosen`, which are clean then but for what is pinned.
    fn read_log(&mut self, chosen: &[Area], base: u64) -> u64 {
        let bits = self.bits(chosen, base);
        for area in chosen {
            self.forget(*area);
            let pinned = self.pins.keys().filter(|page| (area.at..area.end()).contains(page));
            self.log.pages.extend(pinned);
        }
        bits
    }

    fn map(&mut self, to: Pieces, from: u64, flags: u32, process: usize) -> Answer {
        self.v2()?;
        if flags == 0 {
            return Err(Errno::EINVAL);
        }
        if self.areas.iter().any(|area| area.touches(to)) {
            return Err(Errno::EEXIST);
        }
        if self.areas.len() == ENTRIES as usize {
            return Err(Errno::ENOSPC);
        }
        if self.is_narrow() && to.at + to.pages > NARROW {
            return Err(Errno::EINVAL);
        }
        if self.has_domain() && self.locked(process) + to.pages > LIMIT {
            return Err(Errno::ENOMEM);
        }
        let write = flags & 2 != 0;
        let area = Area { at: to.at, pages: to.pages, from, write, payer: process, invalid: false };
        self.areas.push(area);
        self.areas.sort_by_key(|area| area.at);
        Ok(0)
    }

    fn new_address(&mut self, to: Pieces, process: usize) -> Answer {
        self.v2()?;
        let Some(found) = self.areas.iter().position(|area| area.touches(to)) else {
            return Err(Errno::ENOENT);
        };
        let area = self.areas[found];
        if !area.invalid || (area.at, area.pages) != (to.at, to.pages) {
            return Err(Errno::EINVAL);
        }
        // An address can only be taken where there is no emulated device, so that all of the
        // mapping is pinned.
        if area.payer != process && self.locked(process) + area.pages > LIMIT {
            return Err(Errno::ENOMEM);
        }
        self.areas[found] = Area { from: 0, payer: process, invalid: false, ..area };
        Ok(0)
    }

    fn apply(&mut self, step: Step) -> Answer {
        let answer = self.call(step);
        for page in 0..PAGES {
            match self.area_at(page) {
                Some(area) if self.has_domain() || self.pins.contains_key(&page) => {
                    self.held.entry(page).or_insert(area.from + (page - area.at));
                }
                _ => drop(self.held.remove(&page)),
            }
        }
        answer
    }

    fn call(&mut self, step: Step) -> Answer {
        match step {
            Step::Add { group } => self.add(group),
            Step::Remove { group } => self.leave(group),
            Step::SetIommu { v2 } => {
                if self.driver.is_some() || self.members == [false; GROUPS + 1] {
                    return Err(Errno::EINVAL);
                }
                self.driver = Some(v2);
                Ok(0)
            }
            Step::Map { to, from, flags, process } => self.map(to, from, flags, process),
            Step::NewAddress { to, process } => self.new_address(to, process),
            Step::Unmap { range } => {
                let chosen = self.chosen(range)?;
                Ok(self.remove(&chosen))
            }
            Step::UnmapAll => {
                self.v2()?;
                let chosen = self.areas.clone();
                Ok(self.remove(&chosen))
            }
            Step::TakeAddress { .. } | Step::TakeAll if self.keeps_addresses()? => {
                Err(Errno::EBUSY)
            }
            Step::TakeAddress { range } => {
                let chosen = self.chosen(range)?;
                self.take(&chosen)
            }
            Step::TakeAll => {
                self.v2()?;
                let chosen = self.areas.clone();
                self.take(&chosen)
            }
            Step::UnmapDirty { range } => {
                self.v2()?;
                if !self.logging {
                    return Err(Errno::EINVAL);
                }
                let chosen = self.chosen(range)?;
                let bits = self.bits(&chosen, range.at);
                self.remove(&chosen);
                Ok(bits)
            }
            Step::Log { on } => {
                if !self.v2()? {
                    return Err(Errno::EACCES);
                }
                if !on {
                    self.log = Log::default();
                } else if !self.logging {
                    self.log = Log { pages: self.pins.keys().copied().collect(), ..Log::default() };
                }
                self.logging = on;
                Ok(0)
            }
            Step::Dirty { range } => {
                if !self.v2()? {
                    return Err(Errno::EACCES);
                }
                if !self.logging || self.cuts(range) {
                    return Err(Errno::EINVAL);
                }
                let chosen: Vec<Area> =
                    self.areas.iter().copied().filter(|area| area.touches(range)).collect();
                Ok(self.read_log(&chosen, range.at))
            }
            Step::Pin { range, write } => self.pin(range, write),
            Step::Unpin { range } => self.unpin(range),
            Step::Write { range } => self.write(range),
        }
    }

    /// The source page that a device of `group` reads at `page`, and whether it may write.
    fn shown(&self, group: usize, page: u64) -> Option<(u64, bool)> {
        let area = self.area_at(page).filter(|_| self.reaches(group))?;
        Some((self.held[&page], area.write))
    }

    /// Whether the group's device reaches anything.
    fn reaches(&self, group: usize) -> bool {
        self.driver.is_some() && self.members[group] && group != EMULATED
    }
}

/// The emulated device: it lets go of what is unmapped.
#[derive(Debug)]
struct Device(Weak<Container>);

impl Device {
    /// More pins than a sequence gives a page.
    const PINS: u32 = 64;
}

impl AccessUser for Device {
    fn unmap(&self, range: IovaRange) {
        let Some(container) = self.0.upgrade() else { return };
        (0..Self::PINS).for_each(|_| container.unpin(range.start(), (range.span() + 1) / PAGE));
    }
}

/// An UNMAP_DMA with room for a bitmap.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct Unmap {
    head: abi::IommuType1DmaUnmap,
    bitmap: abi::Bitmap,
}

/// A DIRTY_PAGES with room for a range.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct DirtyPages {
    head: abi::IommuType1DirtyBitmap,
    get: abi::IommuType1DirtyBitmapGet,
}

/// Where a word of bits goes.
const BITS: u64 = ARG + 0x1000;
const BITMAP: abi::Bitmap = abi::Bitmap { pgsize: PAGE, size: 8, data: BITS };

struct System {
    machine: Arc<Machine>,
    clients: [TestClient; 2],
    container: Arc<Container>,
    groups: Vec<(Arc<Group>, Arc<Endpoint>)>,
    device: Arc<Device>,
}

thread_local! {
    /// Clients whose memory is as at the beginning: fresh memory costs more than a sequence of
    /// calls.
    static CLIENTS: RefCell<Vec<[TestClient; 2]>> = RefCell::default();
}

fn client(pid: u32) -> TestClient {
    let mut client = TestClient::new();
    client.account.pid = pid;
    client.account.memlock_pages = Some(LIMIT);
    for page in 0..32_u8 {
        client.memory.write(BASE + u64::from(page) * PAGE, &[page]).unwrap();
    }
    client
}

impl System {
    fn new() -> Self {
        let machine = Machine::new();
        machine.params.dma_entry_limit.store(ENTRIES, std::sync::atomic::Ordering::Relaxed);
        let clients = CLIENTS.with_borrow_mut(Vec::pop).unwrap_or_else(|| PIDS.map(client));
        let wide = Arc::new(Iommu::new(IommuKind::Vtd));
        let aperture = IovaRange::new(Iova(0), NARROW * PAGE).unwrap();
        let narrow = Arc::new(Iommu { aperture, ..Iommu::new(IommuKind::Amd) });
        let groups = [&wide, &wide, &narrow, &wide].into_iter().zip(1..).map(|(iommu, number)| {
            let group = Group::new(&machine, iommu, number);
            let config = EndpointConfig {
                name: format!("0000:0{number}:00.0").into(),
                requester_id: 0x100,
                ..EndpointConfig::default()
            };
            let endpoint = Endpoint::new(&group, config);
            (group, endpoint)
        });
        let groups = groups.collect();
        let container = Container::new(&machine);
        let device = Arc::new(Device(Arc::downgrade(&container)));
        container.register(&(Arc::clone(&device) as Arc<dyn AccessUser>));
        Self { machine, clients, container, groups, device }
    }

    fn call<T: FromBytes + IntoBytes + Immutable>(&self, code: u32, cmd: &mut T) -> Result<i64> {
        self.call_by(&self.clients[0], code, cmd)
    }

    fn call_by<T: FromBytes + IntoBytes + Immutable>(
        &self,
        client: &TestClient,
        code: u32,
        cmd: &mut T,
    ) -> Result<i64> {
        client.memory.write(ARG, cmd.as_bytes()).unwrap();
        let answer = self.container.ioctl(client, code, ARG);
        client.memory.read(ARG, cmd.as_mut_bytes()).unwrap();
        answer
    }

    fn map(&self, to: Pieces, from: u64, flags: u32, process: usize) -> Result<u64> {
        let (iova, size, vaddr) = (to.at * PAGE, to.pages * PAGE, BASE + from * PAGE);
        let mut cmd = abi::IommuType1DmaMap { argsz: 32, flags, vaddr, iova, size };
        self.call_by(&self.clients[process], abi::IOMMU_MAP_DMA, &mut cmd).map(|_| 0)
    }

    fn unmap(&self, flags: u32, range: Pieces) -> Result<u64> {
        let (iova, size) = (range.at * PAGE, range.pages * PAGE);
        let head = abi::IommuType1DmaUnmap { argsz: 48, flags, iova, size };
        let mut cmd = Unmap { head, bitmap: BITMAP };
        self.clients[0].memory.write(BITS, &[0; 8]).unwrap();
        let answer = self.call(abi::IOMMU_UNMAP_DMA, &mut cmd);
        if answer.is_err() {
            assert_eq!(cmd.head.size, size, "a refused unmap writes nothing back");
        }
        answer?;
        if flags & abi::DMA_UNMAP_FLAG_GET_DIRTY_BITMAP == 0 {
            Ok(cmd.head.size)
        } else {
            self.bits()
        }
    }

    fn bits(&self) -> Result<u64> {
        let mut bits = 0_u64;
        self.clients[0].memory.read(BITS, bits.as_mut_bytes())?;
        Ok(bits)
    }

    fn dirty(&self, flags: u32, range: Pieces) -> Result<u64> {
        let get = abi::IommuType1DirtyBitmapGet {
            iova: range.at * PAGE,
            size: range.pages * PAGE,
            bitmap: BITMAP,
        };
        self.clients[0].memory.write(BITS, &[0; 8]).unwrap();
        let head = abi::IommuType1DirtyBitmap { argsz: 48, flags };
        self.call(abi::IOMMU_DIRTY_PAGES, &mut DirtyPages { head, get })?;
        self.bits()
    }

    fn apply(&self, step: Step) -> Result<u64> {
        let none = Pieces { at: 0, pages: 0 };
        match step {
            Step::Add { group } => {
                let kind = if group == EMULATED { GroupKind::Emulated } else { GroupKind::Iommu };
                let (group, endpoint) = &self.groups[group];
                if self.container.has_group(group) {
                    return Ok(0);
                }
                let member = Member::new(kind, group, std::slice::from_ref(endpoint));
                self.container.add_group(&ACCOUNT, member).map(|()| 0)
            }
            Step::Remove { group } => {
                if group == EMULATED {
                    self.device.unmap(range_of(Pieces { at: 0, pages: PAGES }));
                }
                self.container.remove_group(&self.groups[group].0);
                Ok(0)
            }
            Step::SetIommu { v2 } => {
                let number = if v2 { abi::TYPE1v2_IOMMU } else { abi::TYPE1_IOMMU };
                self.container.ioctl(&self.clients[0], abi::SET_IOMMU, number.into()).map(|_| 0)
            }
            Step::Map { to, from, flags, process } => self.map(to, from, flags, process),
            Step::NewAddress { to, process } => self.map(to, 0, abi::DMA_MAP_FLAG_VADDR, process),
            Step::Unmap { range } => self.unmap(0, range),
            Step::UnmapAll => self.unmap(abi::DMA_UNMAP_FLAG_ALL, none),
            Step::TakeAddress { range } => self.unmap(abi::DMA_UNMAP_FLAG_VADDR, range),
            Step::TakeAll => self.unmap(abi::DMA_UNMAP_FLAG_VADDR | abi::DMA_UNMAP_FLAG_ALL, none),
            Step::UnmapDirty { range } => self.unmap(abi::DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, range),
            Step::Log { on: true } => self.dirty(abi::IOMMU_DIRTY_PAGES_FLAG_START, none),
            Step::Log { on: false } => self.dirty(abi::IOMMU_DIRTY_PAGES_FLAG_STOP, none),
            Step::Dirty { range } => self.dirty(abi::IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP, range),
            Step::Pin { range, write } => {
                let need = if write { Prot::READ | Prot::WRITE } else { Prot::READ };
                self.container.pin(Iova(range.at * PAGE), range.pages, need).map(|()| 0)
            }
            Step::Unpin { range } => {
                self.container.unpin(Iova(range.at * PAGE), range.pages);
                Ok(0)
            }
            Step::Write { range } => self.write(range).map(|()| 0),
        }
    }

    /// Writes to every page of `range`, one byte that it has already.
    fn write(&self, range: Pieces) -> Result<()> {
        (range.at..range.at + range.pages).try_for_each(|page| {
            let (iova, mut byte) = (Iova(page * PAGE), [0]);
            self.container.read(iova, &mut byte)?;
            self.container.write(iova, &byte)
        })
    }

    fn check(&self, model: &Model, turn: u64) -> Result<(), TestCaseError> {
        for (process, pid) in PIDS.into_iter().enumerate() {
            let locked = self.machine.ledger.process(pid).locked;
            prop_assert_eq!(locked, model.locked(process), "process {}", process);
        }
        for (index, (group, endpoint)) in self.groups.iter().enumerate() {
            prop_assert_eq!(self.container.has_group(group), model.members[index]);
            prop_assert_eq!(group.is_owned(), model.members[index] && index != EMULATED);
            // A device that reaches nothing is refused at one page like at another.
            let page = turn % PAGES;
            let pages = if model.reaches(index) { 0..PAGES } else { page..page + 1 };
            for page in pages {
                let mut byte = [0xff];
                let segment = Segment { iova: Iova(page * PAGE), length: 1 };
                let read = endpoint.read([segment], &mut byte).ok().map(|()| u64::from(byte[0]));
                let shown = model.shown(index, page);
                let expected = shown.map(|(source, _)| source);
                prop_assert_eq!(read, expected, "group {} page {}", index, page);
                let source = expected.unwrap_or(0);
                let written = endpoint.write([segment], &[source.to_le_bytes()[0]]).is_ok();
                prop_assert_eq!(written, shown.is_some_and(|(_, write)| write));
            }
        }
        if model.driver.is_some() {
            let mut info = [0_u8; 256];
            info[..4].copy_from_slice(&256_u32.to_ne_bytes());
            self.call(abi::IOMMU_GET_INFO, &mut info).map_err(|error| fail(&error))?;
            let avail = u32::from_ne_bytes(info[64..68].try_into().unwrap());
            prop_assert_eq!(avail as usize, ENTRIES as usize - model.areas.len());
        }
        Ok(())
    }
}

fn fail(error: &ioasis_uapi::Error) -> TestCaseError {
    TestCaseError::fail(error.to_string())
}

fn run(steps: &[Step]) -> Result<(), TestCaseError> {
    let (mut system, mut model) = (System::new(), Model::default());
    for (&step, turn) in steps.iter().zip(0..) {
        let apply = |system: &mut System| system.apply(step).map_err(|error| error.errno);
        let failed = |system: &mut System, nth, answer| {
            prop_assert_eq!(answer, Err(Errno::ENOMEM), "point {} of {:?}", nth, step);
            system.check(&model, turn)
        };
        let (answer, _) = inject::fail_each(&mut system, apply, failed)?;
        prop_assert_eq!(answer, model.apply(step), "{:?}", step);
        system.check(&model, turn)?;
    }
    let System { machine, clients, container, groups, device } = system;
    container.unregister(&(device as Arc<dyn AccessUser>));
    drop(container);
    drop(groups);
    prop_assert_eq!(machine.ledger.processes(), []);
    prop_assert_eq!(machine.phys.windows(), 0);
    CLIENTS.with_borrow_mut(|stock| stock.push(clients));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_sequence_of_container_calls_does_what_arrays_would(
        group in 0..=EMULATED,
        v2 in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        // Most sequences begin with a container that has its driver.
        let begin = [Step::Add { group }, Step::SetIommu { v2 }];
        run(&[&begin[..], &steps].concat())?;
    }

    #[test]
    fn calls_that_come_before_their_time_change_nothing(
        steps in proptest::collection::vec(step(), 1..20),
    ) {
        run(&steps)?;
    }
}
