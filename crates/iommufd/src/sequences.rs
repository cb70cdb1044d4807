//! Random sequences of commands on one machine, compared with a model of arrays after every step.
//!
//! Each step is first made to fail at its first, second, third fallible point and so on; the model must not have moved
//! then. What is compared: the answer, what every device reads at every page, and what the ledger says.

use std::collections::BTreeSet;
use std::sync::Arc;

use ioasis_iommupt::{Iova, IovaRange, Prot};
use ioasis_uapi::{Errno, Result};
use proptest::prelude::*;

use crate::testing::{ACCOUNT, BASE, TestClient, TestMachine};
use crate::{Account, Bound, Context, CopyRequest, Endpoint, MapRequest, Place, Segment, inject};

pub(crate) const PAGE: u64 = 4096;
/// Pages of IOVA that are looked at.
pub(crate) const PAGES: u64 = 24;
const IOASES: usize = 3;
const DEVICES: usize = 3;
/// Pages all may pin together.
const LIMIT: u64 = 20;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Pieces {
    pub(crate) at: u64,
    pub(crate) pages: u64,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Map { ioas: usize, to: Pieces, from: u64, write: bool },
    Unmap { ioas: usize, range: Pieces },
    UnmapAll { ioas: usize },
    Copy { from: usize, range: Pieces, to: usize, at: u64, write: bool },
    Attach { device: usize, ioas: usize },
    Replace { device: usize, ioas: usize },
    Detach { device: usize },
    Renew { ioas: usize },
}

pub(crate) fn pieces() -> impl Strategy<Value = Pieces> {
    (0..PAGES, 1..8_u64).prop_map(|(at, pages)| Pieces { at, pages: pages.min(PAGES - at) })
}

fn step() -> impl Strategy<Value = Step> {
    let (ioas, device) = (0..IOASES, 0..DEVICES);
    prop_oneof![
        4 => (ioas.clone(), pieces(), 0..16_u64, any::<bool>())
            .prop_map(|(ioas, to, from, write)| Step::Map { ioas, to, from, write }),
        2 => (ioas.clone(), pieces()).prop_map(|(ioas, range)| Step::Unmap { ioas, range }),
        1 => ioas.clone().prop_map(|ioas| Step::UnmapAll { ioas }),
        2 => (ioas.clone(), pieces(), ioas.clone(), 0..PAGES, any::<bool>())
            .prop_map(|(from, range, to, at, write)| Step::Copy { from, range, to, at, write }),
        2 => (device.clone(), ioas.clone()).prop_map(|(device, ioas)| Step::Attach { device, ioas }),
        1 => (device.clone(), ioas.clone()).prop_map(|(device, ioas)| Step::Replace { device, ioas }),
        1 => device.prop_map(|device| Step::Detach { device }),
        1 => ioas.prop_map(|ioas| Step::Renew { ioas }),
    ]
}

/// A view of one MAP: pages `first..first + pages` of it at page `at`.
#[derive(Clone, Copy, Debug)]
struct ModelArea {
    at: u64,
    pages: u64,
    map: usize,
    first: u64,
}

#[derive(Clone, Debug, Default)]
struct Model {
    areas: [Vec<ModelArea>; IOASES],
    attached: [Option<usize>; DEVICES],
    /// Source page and permission of each MAP ever made.
    maps: Vec<(u64, bool)>,
}

impl Model {
    fn overlaps(&self, ioas: usize, at: u64, pages: u64) -> bool {
        self.areas[ioas].iter().any(|area| area.at < at + pages && at < area.at + area.pages)
    }

    /// Pages that are pinned: of each map what an IOAS with a device shows.
    fn pinned(&self) -> u64 {
        let mut pinned = BTreeSet::new();
        for (ioas, areas) in self.areas.iter().enumerate() {
            if self.attached.contains(&Some(ioas)) {
                let pages = |area: &ModelArea| {
                    (area.first..area.first + area.pages)
                        .map(|page| (area.map, page))
                        .collect::<Vec<_>>()
                };
                pinned.extend(areas.iter().flat_map(pages));
            }
        }
        pinned.len() as u64
    }

    /// What a device reads at a page: the source page.
    fn shown(&self, ioas: usize, page: u64) -> Option<u64> {
        let area =
            self.areas[ioas].iter().find(|area| area.at <= page && page < area.at + area.pages)?;
        Some(self.maps[area.map].0 + area.first + (page - area.at))
    }

    fn under_limit(self, old: &mut Self) -> Result<(), Errno> {
        if self.pinned() > LIMIT {
            return Err(Errno::ENOMEM);
        }
        *old = self;
        Ok(())
    }

    fn apply(&mut self, step: Step) -> Result<(), Errno> {
        let mut next = self.clone();
        match step {
            Step::Map { ioas, to, from, write } => {
                if self.overlaps(ioas, to.at, to.pages) {
                    return Err(Errno::EEXIST);
                }
                next.maps.push((from, write));
                let map = next.maps.len() - 1;
                next.areas[ioas].push(ModelArea { at: to.at, pages: to.pages, map, first: 0 });
                next.under_limit(self)
            }
            Step::Unmap { ioas, range } => self.unmap(ioas, range),
            Step::UnmapAll { ioas } => {
                self.areas[ioas].clear();
                Ok(())
            }
            Step::Copy { from, range, to, at, write } => {
                next.areas[to].extend(self.copied(from, range, to, at, write)?);
                next.under_limit(self)
            }
            Step::Attach { device, ioas } => match self.attached[device] {
                Some(_) => Err(Errno::EBUSY),
                None => {
                    next.attached[device] = Some(ioas);
                    next.under_limit(self)
                }
            },
            Step::Replace { device, ioas } => match self.attached[device] {
                None => {
                    // A page table is made and filled before it turns out that there is nothing to replace.
                    next.attached[device] = Some(ioas);
                    Err(if next.pinned() > LIMIT { Errno::ENOMEM } else { Errno::EINVAL })
                }
                Some(old) => {
                    // Both are filled for a moment.
                    next.attached[device] = Some(ioas);
                    let mut both = next.clone();
                    let others = self.attached.iter().flatten();
                    let all: BTreeSet<usize> = others.copied().chain([old, ioas]).collect();
                    both.attached = std::array::from_fn(|index| all.iter().nth(index).copied());
                    if both.pinned() > LIMIT {
                        return Err(Errno::ENOMEM);
                    }
                    *self = next;
                    Ok(())
                }
            },
            Step::Detach { device } => {
                self.attached[device] = None;
                Ok(())
            }
            Step::Renew { ioas } => {
                if self.attached.contains(&Some(ioas)) {
                    return Err(Errno::EBUSY);
                }
                self.areas[ioas].clear();
                Ok(())
            }
        }
    }

    fn copied(
        &self,
        from: usize,
        range: Pieces,
        to: usize,
        at: u64,
        write: bool,
    ) -> Result<Vec<ModelArea>, Errno> {
        let mut made = Vec::new();
        let mut page = range.at;
        while page < range.at + range.pages {
            let inside = |area: &&ModelArea| area.at <= page && page < area.at + area.pages;
            let area = self.areas[from].iter().find(inside).ok_or(Errno::ENOENT)?;
            let pages = (area.at + area.pages - page).min(range.at + range.pages - page);
            let first = area.first + (page - area.at);
            made.push(ModelArea { at: at + (page - range.at), pages, map: area.map, first });
            page += pages;
        }
        if self.overlaps(to, at, range.pages) {
            return Err(Errno::EEXIST);
        }
        if write && made.iter().any(|area| !self.maps[area.map].1) {
            return Err(Errno::EPERM);
        }
        Ok(made)
    }

    fn unmap(&mut self, ioas: usize, range: Pieces) -> Result<(), Errno> {
        let areas = &mut self.areas[ioas];
        areas.sort_by_key(|area| area.at);
        let end = range.at + range.pages;
        let mut removed = 0;
        loop {
            let hit = |area: &ModelArea| area.at < end && range.at < area.at + area.pages;
            let Some(index) = areas.iter().position(hit) else { break };
            let area = areas[index];
            if area.at < range.at || area.at + area.pages > end {
                return Err(Errno::ENOENT);
            }
            areas.remove(index);
            removed += 1;
        }
        if removed == 0 { Err(Errno::ENOENT) } else { Ok(()) }
    }
}

struct System {
    machine: TestMachine,
    client: TestClient,
    context: Arc<Context>,
    ioases: [u32; IOASES],
    devices: Vec<(Arc<Endpoint>, Bound)>,
}

impl System {
    fn new() -> Self {
        let (machine, client) = (TestMachine::new(), TestClient::new());
        for page in 0..32_u8 {
            client.memory.write(BASE + u64::from(page) * PAGE, &[page]).unwrap();
        }
        let context = Context::new(&machine.machine);
        let ioases = std::array::from_fn(|_| context.alloc_ioas().unwrap());
        let devices = (0..DEVICES)
            .map(|_| {
                let endpoint = machine.endpoint();
                let bound = context.bind(&endpoint).unwrap();
                (endpoint, bound)
            })
            .collect();
        Self { machine, client, context, ioases, devices }
    }

    fn account() -> Account {
        Account { memlock_pages: Some(LIMIT), ..ACCOUNT }
    }

    fn apply(&mut self, step: Step) -> Result<()> {
        let prot = |write| if write { Prot::READ | Prot::WRITE } else { Prot::READ };
        match step {
            Step::Map { ioas, to, from, write } => {
                let request = MapRequest {
                    space: Arc::new(self.client.memory.clone()),
                    address: BASE + from * PAGE,
                    length: to.pages * PAGE,
                    place: Place::Fixed(Iova(to.at * PAGE)),
                    prot: prot(write),
                    account: Self::account(),
                };
                self.context.map(self.ioases[ioas], request).map(|_| ())
            }
            Step::Unmap { ioas, range } => self.unmap(ioas, range_of(range)),
            Step::UnmapAll { ioas } => {
                let held = self.context.ioas(self.ioases[ioas])?;
                held.unmap_all(1).result
            }
            Step::Copy { from, range, to, at, write } => {
                let request = CopyRequest {
                    source: self.ioases[from],
                    range: range_of(range),
                    place: Place::Fixed(Iova(at * PAGE)),
                    prot: prot(write),
                };
                self.context.copy(self.ioases[to], request).map(|_| ())
            }
            Step::Attach { device, ioas } => {
                self.devices[device].1.attach(self.ioases[ioas]).map(|_| ())
            }
            Step::Replace { device, ioas } => {
                self.devices[device].1.replace(self.ioases[ioas]).map(|_| ())
            }
            Step::Detach { device } => {
                self.devices[device].1.detach();
                Ok(())
            }
            Step::Renew { ioas } => {
                // Allocated first, so that a failure leaves the old one.
                let renewed = self.context.alloc_ioas()?;
                if let Err(error) = self.context.destroy(self.ioases[ioas]) {
                    self.context.destroy(renewed).unwrap();
                    return Err(error);
                }
                self.ioases[ioas] = renewed;
                Ok(())
            }
        }
    }

    fn unmap(&self, ioas: usize, range: IovaRange) -> Result<()> {
        let unmapped = self.context.ioas(self.ioases[ioas])?.unmap(range, 1);
        unmapped.result?;
        if unmapped.bytes == 0 { refuse!(ENOENT, "nothing was mapped") } else { Ok(()) }
    }

    fn check(&self, model: &Model) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.machine.machine.ledger.user(ACCOUNT.uid), model.pinned());
        for (index, (endpoint, bound)) in self.devices.iter().enumerate() {
            prop_assert_eq!(bound.is_attached(), model.attached[index].is_some());
            for page in 0..PAGES + 8 {
                let mut byte = [0xff];
                let segment = Segment { iova: Iova(page * PAGE), length: 1 };
                let read = endpoint.read([segment], &mut byte).ok().map(|()| u64::from(byte[0]));
                let expected = model.attached[index].and_then(|ioas| model.shown(ioas, page));
                prop_assert_eq!(read, expected, "device {} page {}", index, page);
            }
        }
        for (ioas, areas) in model.areas.iter().enumerate() {
            prop_assert_eq!(self.context.ioas(self.ioases[ioas]).unwrap().areas(), areas.len());
        }
        Ok(())
    }
}

pub(crate) fn range_of(pieces: Pieces) -> IovaRange {
    IovaRange::new(Iova(pieces.at * PAGE), pieces.pages * PAGE).unwrap()
}

/// More points than any step has.
const POINTS: u32 = 200;

fn run(steps: &[Step]) -> Result<(), TestCaseError> {
    let (mut system, mut model) = (System::new(), Model::default());
    for &step in steps {
        let mut nth = 0;
        let answer = loop {
            nth += 1;
            prop_assert!(nth < POINTS, "a step has no end of points that fail");
            inject::arm(nth);
            let answer = system.apply(step);
            if inject::disarm() > 0 {
                break answer;
            }
            prop_assert_eq!(
                answer.map_err(|error| error.errno),
                Err(Errno::ENOMEM),
                "point {} of {:?}",
                nth,
                step
            );
            system.check(&model)?;
        };
        let expected = model.apply(step);
        prop_assert_eq!(answer.map_err(|error| error.errno), expected, "{:?}", step);
        system.check(&model)?;
    }
    let System { machine, devices, context, .. } = system;
    drop(context);
    drop(devices);
    machine.assert_clean();
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_sequence_of_commands_does_what_arrays_would(steps in proptest::collection::vec(step(), 1..40)) {
        run(&steps)?;
    }
}
