//! Random calls on a container of version 2, beside a flat map of TCEs, the registered ranges and a
//! sum of charges. Each call is first made with its first, second, third fallible step failing.
//!
//! What a map or unmap that failed for want of memory left of its own range is taken from the
//! devices: nothing may be there that was not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ioasis_uapi::vfio as abi;
use ioasis_uapi::{Errno, Result};
use proptest::prelude::*;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::window::Shape;
use crate::container::{Container, Driver, GroupKind, Member};
use crate::tests::rig::{ACCOUNT, ARG, BASE, SIZE, TestClient, TestMachine};
use crate::{Account, Endpoint, Frozen, Iommu, IommuKind, Iova, Segment, inject};

const PAGE: u64 = 4096;
/// Pages of memory that are registered and mapped: the last of the client's, and some behind them.
const PAGES: u64 = 12;
const BEHIND: u64 = 3;
/// Where they begin.
const FIRST: u64 = BASE + SIZE as u64 - (PAGES - BEHIND) * PAGE;
/// Where the struct of a call is: not among them.
const STRUCT: u64 = ARG - 0x10_0000;
/// Where the second window begins.
const SECOND: u64 = 1 << 59;
/// Pages of each window that are looked at.
const SEEN: u64 = 6;
/// Pages the process may lock: the default window's table, and little more.
const LIMIT: u64 = 2048 + 40;

#[derive(Clone, Debug)]
enum Step {
    Register {
        first: u64,
        count: u64,
    },
    Unregister {
        first: u64,
        count: u64,
    },
    Create {
        page_lg2: u32,
        lg2: u32,
        levels: u32,
    },
    Remove {
        number: u64,
    },
    Map {
        number: u64,
        at: u64,
        first: u64,
        count: u64,
        flags: u32,
    },
    Unmap {
        number: u64,
        at: u64,
        count: u64,
    },
    /// The second group comes, or goes.
    Group,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let page = 0..PAGES;
    let count = 0..4_u64;
    let step = prop_oneof![
        3 => (page.clone(), count.clone())
            .prop_map(|(first, count)| Step::Register { first, count }),
        2 => (page.clone(), count.clone())
            .prop_map(|(first, count)| Step::Unregister { first, count }),
        2 => (prop_oneof![Just(12_u32), Just(13), Just(16)], 12..20_u32, 0..3_u32)
            .prop_map(|(page_lg2, lg2, levels)| Step::Create { page_lg2, lg2, levels }),
        1 => (0..3_u64).prop_map(|number| Step::Remove { number }),
        6 => (0..2_u64, 0..SEEN, page, count.clone(), 0..5_u32).prop_map(
            |(number, at, first, count, flags)| Step::Map { number, at, first, count, flags }
        ),
        3 => (0..2_u64, 0..SEEN, count)
            .prop_map(|(number, at, count)| Step::Unmap { number, at, count }),
        1 => Just(Step::Group),
    ];
    prop::collection::vec(step, 1..40)
}

/// What the container should be.
#[derive(Clone, Debug, Default)]
struct Model {
    enabled: bool,
    process: bool,
    pending: bool,
    /// lg2 of page and window, and pages charged.
    windows: [Option<(u32, u32, u64)>; 2],
    /// IOVA page to memory page and whether it may be written.
    tces: BTreeMap<u64, (u64, bool)>,
    /// First page to count, and whether the container has it still.
    regions: BTreeMap<u64, (u64, bool)>,
    both: bool,
}

impl Model {
    fn locked(&self) -> u64 {
        let windows: u64 = self.windows.iter().flatten().map(|(_, _, pages)| pages).sum();
        windows + self.regions.values().map(|(count, _)| count).sum::<u64>()
    }

    fn charge(&self, pages: u64) -> Result<(), Errno> {
        if self.locked() + pages > LIMIT { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    fn is_mapped(&self, first: u64, count: u64) -> bool {
        self.tces.values().any(|&(page, _)| first <= page && page < first + count)
    }

    /// Regions that nobody has and nothing is mapped of are gone.
    fn sweep(&mut self) {
        let mapped: BTreeSet<u64> = self.tces.values().map(|&(page, _)| page).collect();
        self.regions.retain(|&first, &mut (count, own)| {
            own || mapped.range(first..first + count).next().is_some()
        });
    }

    fn register(&mut self, first: u64, count: u64) -> Result<i64, Errno> {
        self.process = true;
        match self.regions.get_mut(&first) {
            Some((there, true)) if *there == count => return Err(Errno::EBUSY),
            Some((there, own)) if *there == count => {
                *own = true;
                self.enabled = true;
                return Ok(0);
            }
            _ => {}
        }
        self.charge(count)?;
        if count == 0 {
            return Err(Errno::ENOMEM);
        }
        let there = (PAGES - BEHIND).saturating_sub(first).min(count);
        if there == 0 {
            return Err(Errno::EFAULT);
        }
        if there < count {
            return Ok(i64::try_from(there).unwrap());
        }
        let overlaps = |(&other, &(length, _)): (&u64, &(u64, bool))| {
            other < first + count && first < other + length
        };
        if self.regions.iter().any(overlaps) {
            return Err(Errno::EINVAL);
        }
        self.regions.insert(first, (count, true));
        self.enabled = true;
        Ok(0)
    }

    fn unregister(&mut self, first: u64, count: u64) -> Result<i64, Errno> {
        if !self.process {
            return Err(Errno::EPERM);
        }
        match self.regions.get_mut(&first) {
            Some((there, own)) if *own && *there == count => *own = false,
            _ => return Err(Errno::ENOENT),
        }
        if !self.is_mapped(first, count) {
            self.regions.remove(&first);
        }
        Ok(0)
    }

    fn create(&mut self, page_lg2: u32, lg2: u32, levels: u32) -> Result<i64, Errno> {
        let number = self.windows.iter().position(Option::is_none).ok_or(Errno::ENOSPC)?;
        if page_lg2 == 13 {
            return Err(Errno::EINVAL);
        }
        let shape = Shape::new(page_lg2, 1 << lg2, levels, 5).ok_or(Errno::EINVAL)?;
        let pages = shape.bytes / PAGE;
        self.charge(pages)?;
        // A table has at least a page of TCEs.
        self.windows[number] = Some((page_lg2, lg2.max(page_lg2 + 9), pages));
        Ok(i64::try_from(number).unwrap())
    }

    fn default_window(&mut self) -> Result<(), Errno> {
        if self.pending {
            self.create(12, 31, 1)?;
            self.pending = false;
        }
        Ok(())
    }

    fn remove(&mut self, number: u64) -> Result<i64, Errno> {
        self.process = true;
        if self.pending && number == 0 {
            self.pending = false;
            return Ok(0);
        }
        let at = usize::try_from(number).unwrap();
        if self.windows.get(at).is_none_or(Option::is_none) {
            return Err(Errno::EINVAL);
        }
        self.windows[at] = None;
        self.tces.retain(|&iova, _| (iova >= SECOND / PAGE) != (number == 1));
        self.sweep();
        Ok(0)
    }

    fn map(&mut self, step: &Step) -> Result<i64, Errno> {
        let &Step::Map { number, at, first, count, flags } = step else { unreachable!() };
        if !self.enabled {
            return Err(Errno::EPERM);
        }
        if flags > 3 {
            return Err(Errno::EINVAL);
        }
        self.default_window()?;
        let (page_lg2, pages) = self.window(number, at)?;
        let each = (1 << page_lg2) / PAGE;
        if !(count | (FIRST / PAGE + first)).is_multiple_of(each) || flags == 0 {
            return Err(Errno::EINVAL);
        }
        if !at.is_multiple_of(each) {
            return Ok(1);
        }
        if at + count > pages {
            return Err(Errno::EINVAL);
        }
        let start = start(number) / PAGE + at;
        for page in 0..count {
            let inside = |(&other, &(length, _)): (&u64, &(u64, bool))| {
                other <= first + page && first + page < other + length
            };
            if each > 1 || !self.regions.iter().any(inside) {
                self.tces.retain(|&iova, _| iova < start || start + page <= iova);
                self.sweep();
                return Err(Errno::EINVAL);
            }
            self.tces.insert(start + page, (first + page, flags & 2 != 0));
            // What was there before may have been the last of a region; the page that comes next
            // may be of it.
            self.sweep();
        }
        Ok(0)
    }

    fn window(&self, number: u64, at: u64) -> Result<(u32, u64), Errno> {
        match self.windows[usize::try_from(number).unwrap()] {
            Some((page_lg2, lg2, _)) if at < (1 << lg2) / PAGE => Ok((page_lg2, (1 << lg2) / PAGE)),
            _ => Err(Errno::ENXIO),
        }
    }

    fn unmap(&mut self, number: u64, at: u64, count: u64) -> Result<i64, Errno> {
        if !self.enabled {
            return Err(Errno::EPERM);
        }
        self.default_window()?;
        let (page_lg2, pages) = self.window(number, at)?;
        let each = (1 << page_lg2) / PAGE;
        if !count.is_multiple_of(each) {
            return Err(Errno::EINVAL);
        }
        if !at.is_multiple_of(each) || at + count > pages {
            return Ok(1);
        }
        let start = start(number) / PAGE + at;
        self.tces.retain(|&iova, _| iova < start || start + count <= iova);
        self.sweep();
        Ok(0)
    }

    fn perform(&mut self, step: &Step) -> Result<i64, Errno> {
        match *step {
            Step::Register { first, count } => self.register(first, count),
            Step::Unregister { first, count } => self.unregister(first, count),
            Step::Create { page_lg2, lg2, levels } => {
                self.process = true;
                self.default_window()?;
                self.create(page_lg2, lg2, levels)
            }
            Step::Remove { number } => self.remove(number),
            Step::Map { .. } => self.map(step),
            Step::Unmap { number, at, count } => self.unmap(number, at, count),
            Step::Group => {
                if self.both {
                    self.tces.clear();
                    self.sweep();
                }
                self.both = !self.both;
                Ok(0)
            }
        }
    }
}

fn start(number: u64) -> u64 {
    number << 59
}

struct System {
    machine: TestMachine,
    client: TestClient,
    container: Arc<Container>,
    endpoints: [Arc<Endpoint>; 2],
}

impl System {
    fn new() -> Self {
        let machine = TestMachine::with(Iommu::new(IommuKind::Spapr));
        let endpoints = [machine.endpoint(), machine.endpoint()];
        let container = Container::new(&machine.machine);
        let mut client = TestClient::new();
        client.account = Account { memlock_pages: Some(LIMIT), ..ACCOUNT };
        let system = Self { machine, client, container, endpoints };
        system.add(0).unwrap();
        system.container.ioctl(&system.client, abi::SET_IOMMU, 7).unwrap();
        for page in 0..PAGES - BEHIND {
            let byte = [u8::try_from(page + 1).unwrap()];
            system.client.memory.write(FIRST + page * PAGE, &byte).unwrap();
        }
        system
    }

    fn add(&self, number: usize) -> Result<()> {
        let endpoint = &self.endpoints[number];
        let member =
            Member::new(GroupKind::Iommu, endpoint.group(), std::slice::from_ref(endpoint));
        self.container.add_group(&self.client.account, member)
    }

    fn call<T: FromBytes + IntoBytes + Immutable>(&self, code: u32, cmd: &mut T) -> Result<i64> {
        self.client.memory.write(STRUCT, cmd.as_bytes()).unwrap();
        let answer = self.container.ioctl(&self.client, code, STRUCT);
        self.client.memory.read(STRUCT, cmd.as_mut_bytes()).unwrap();
        answer
    }

    fn perform(&self, step: &Step, both: bool) -> Result<i64> {
        let range = |code, first: u64, count: u64| {
            let (vaddr, size) = (FIRST + first * PAGE, count * PAGE);
            self.call(code, &mut abi::IommuSpaprRegisterMemory { argsz: 24, flags: 0, vaddr, size })
        };
        match *step {
            Step::Register { first, count } => {
                range(abi::IOMMU_SPAPR_REGISTER_MEMORY, first, count)
            }
            Step::Unregister { first, count } => {
                range(abi::IOMMU_SPAPR_UNREGISTER_MEMORY, first, count)
            }
            Step::Create { page_lg2, lg2, levels } => {
                let mut cmd = abi::IommuSpaprTceCreate {
                    argsz: 40,
                    page_shift: page_lg2,
                    window_size: 1 << lg2,
                    levels,
                    ..Default::default()
                };
                self.call(abi::IOMMU_SPAPR_TCE_CREATE, &mut cmd)
                    .map(|_| i64::from(cmd.start_addr == SECOND))
            }
            Step::Remove { number } => {
                let (argsz, start_addr) = (16, start(number));
                let mut cmd = abi::IommuSpaprTceRemove { argsz, start_addr, ..Default::default() };
                self.call(abi::IOMMU_SPAPR_TCE_REMOVE, &mut cmd)
            }
            Step::Map { number, at, first, count, flags } => {
                let (iova, vaddr) = (start(number) + at * PAGE, FIRST + first * PAGE);
                let size = count * PAGE;
                self.call(
                    abi::IOMMU_MAP_DMA,
                    &mut abi::IommuType1DmaMap { argsz: 32, flags, vaddr, iova, size },
                )
            }
            Step::Unmap { number, at, count } => {
                let (iova, size) = (start(number) + at * PAGE, count * PAGE);
                self.call(
                    abi::IOMMU_UNMAP_DMA,
                    &mut abi::IommuType1DmaUnmap { argsz: 24, flags: 0, iova, size },
                )
            }
            Step::Group if both => {
                self.container.remove_group(self.endpoints[1].group());
                Ok(0)
            }
            Step::Group => self.add(1).map(|()| 0),
        }
    }

    /// The memory page that a device reads at an IOVA page, and whether it may write there.
    fn reached(&self, number: usize, iova: u64) -> Option<(u64, bool)> {
        let endpoint = &self.endpoints[number];
        let segment = [Segment { iova: Iova(iova * PAGE), length: 1 }];
        let mut byte = [0];
        let read = endpoint.read(segment, &mut byte);
        endpoint.group().thaw(Frozen::all());
        read.ok()?;
        let written = endpoint.write(segment, &byte);
        endpoint.group().thaw(Frozen::all());
        Some((u64::from(byte[0]) - 1, written.is_ok()))
    }

    /// Makes the model say what a call that failed for want of memory left behind.
    fn follow(&self, model: &mut Model, step: &Step) {
        let state = self.container.state.lock();
        let Some(Driver::Spapr(spapr)) = &state.driver else { panic!("the driver stays") };
        if model.pending && !spapr.default_pending {
            model.default_window().expect("it was made");
        }
        drop(state);
        model.process |=
            matches!(step, Step::Register { .. } | Step::Create { .. } | Step::Remove { .. });
        if let Step::Map { number, at, count, .. } | Step::Unmap { number, at, count } = *step {
            let start = start(number) / PAGE + at;
            for page in start..start + count {
                if self.reached(0, page).is_none() {
                    model.tces.remove(&page);
                }
            }
            model.sweep();
        }
    }

    fn check(&self, model: &Model, step: &Step) -> Result<(), TestCaseError> {
        let locked = self.machine.machine.ledger.process(ACCOUNT.pid).locked;
        prop_assert_eq!(locked, model.locked(), "locked after {:?}: {:?}", step, model);
        for iova in (0..SEEN + 4).chain((0..SEEN + 4).map(|page| SECOND / PAGE + page)) {
            let expected = model.tces.get(&iova).copied();
            prop_assert_eq!(self.reached(0, iova), expected, "{:#x} after {:?}", iova, step);
            let second = expected.filter(|_| model.both);
            prop_assert_eq!(self.reached(1, iova), second, "{:#x} of the second", iova);
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn any_calls_do_what_a_flat_map_of_tces_says(steps in steps()) {
        let mut world = (Model { pending: true, ..Model::default() }, System::new());
        for step in &steps {
            let both = world.0.both;
            let (answer, _) = inject::fail_each(
                &mut world,
                |(_, system)| system.perform(step, both),
                |(model, system), _, answer| {
                    prop_assert_eq!(answer.map_err(|error| error.errno), Err(Errno::ENOMEM));
                    system.follow(model, step);
                    system.check(model, step)
                },
            )?;
            let (model, system) = &mut world;
            let expected = model.perform(step);
            prop_assert_eq!(answer.map_err(|error| error.errno), expected, "{:?}", step);
            system.check(model, step)?;
        }
        let System { machine, container, .. } = world.1;
        drop(container);
        machine.assert_clean();
    }
}
