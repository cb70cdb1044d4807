//! The model: arrays of bytes, lists of areas, and who holds whom.

use std::collections::{BTreeMap, BTreeSet};

use ioasis_uapi::Errno;

use super::calls::permitted;
use super::memories::AllBytes;
use super::step::{Rw, Space, Stage};
use crate::IommuKind;
use crate::account::{Charges, Rule};

pub(super) const PAGE: u64 = 4096;
/// Pages of each memory that can be mapped.
pub(super) const PAGES: u64 = 68;
/// Bytes before the end of the memory of a client, and of the file.
pub(super) const LENGTH: u64 = PAGES * PAGE;
/// Pages an account may pin under its rule.
pub(super) const LIMIT: u64 = 40;
pub(super) const CONTEXTS: usize = 2;
pub(super) const DEVICES: usize = 4;
pub(super) const GROUPS: usize = 3;
/// The group of each device, and the IOMMU of each group.
pub(super) const GROUP_OF: [usize; DEVICES] = [0, 0, 1, 2];
pub(super) const IOMMU_OF: [usize; GROUPS] = [0, 0, 1];
/// Bits of a PASID, of each device and each IOMMU.
pub(super) const DEVICE_PASIDS: [u32; DEVICES] = [20, 0, 1, 20];
pub(super) const IOMMU_PASIDS: [u32; 2] = [20, 0];
/// Who uses the container: the memory and account of the first client, as another process.
pub(super) const CONTAINER_PID: u32 = 300;
pub(super) const UID: u32 = 1000;
/// Where the client's own tables are: the same page in memory and in the nest parent.
pub(super) const TABLES: u64 = 56;
pub(super) const TABLE_PAGES: u64 = 10;
/// Where they show guest page 0.
pub(super) const GUEST: u64 = 0x40_0000;
pub(super) const GUEST_PAGES: u64 = 24;

pub(super) fn pid(context: usize) -> u32 {
    100 + u32::try_from(context).unwrap() * 100
}

/// Something a map made: what areas are views of.
#[derive(Clone, Debug)]
pub(super) struct Map {
    pub(super) space: Space,
    /// First byte of the first page in the space.
    pub(super) page: u64,
    pub(super) writable: bool,
    pub(super) payer: u32,
    pub(super) rule: Rule,
    /// The client of a container whose memory it is.
    pub(super) process: usize,
    /// Through a dma-buf.
    pub(super) buffer: bool,
    /// What areas show of it no more: the dma-buf was revoked.
    pub(super) revoked: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Area {
    pub(super) start: u64,
    pub(super) length: u64,
    pub(super) map: usize,
    /// Byte of the map's first page.
    pub(super) first: u64,
    pub(super) prot: Rw,
    /// Its pages were pinned when its dma-buf was revoked, and stay so.
    pub(super) kept: bool,
}

impl Area {
    pub(super) fn last(&self) -> u64 {
        self.start + (self.length - 1)
    }

    pub(super) fn hits(&self, start: u64, last: u64) -> bool {
        self.start <= last && start <= self.last()
    }

    pub(super) fn byte(&self, iova: u64) -> u64 {
        self.first + (iova - self.start)
    }

    /// Pages of the map.
    pub(super) fn pages(&self) -> impl Iterator<Item = u64> + use<> {
        self.first / PAGE..=(self.first + self.length - 1) / PAGE
    }
}

/// Who keeps a range from being mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Device(usize),
    Group(usize),
    Domain(usize),
}

#[derive(Clone, Debug, Default)]
pub(super) struct Ioas {
    /// Ascending.
    pub(super) areas: Vec<Area>,
    pub(super) reserved: Vec<(u64, u64, Owner)>,
    pub(super) allowed: Vec<(u64, u64)>,
    pub(super) domains: Vec<usize>,
    pub(super) accesses: Vec<usize>,
    pub(super) small: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Domain {
    pub(super) iommu: usize,
    pub(super) tracks: bool,
    pub(super) nest: bool,
    /// In a processor's own format.
    pub(super) half: bool,
    /// First bytes of dirty pages.
    pub(super) dirty: BTreeSet<u64>,
}

#[derive(Clone, Debug)]
pub(super) struct Hwpt {
    pub(super) ioas: usize,
    pub(super) domain: usize,
    pub(super) auto: bool,
    pub(super) pasid: bool,
    pub(super) fault: Option<u32>,
    /// Parent, virtual IOMMU, and what the table does.
    pub(super) nested: Option<(u32, Option<u32>, Stage)>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Events {
    pub(super) deliver: Vec<(u32, bool)>,
    pub(super) sequence: u32,
}

#[derive(Clone, Debug)]
pub(super) enum Object {
    Ioas(usize),
    Hwpt(Hwpt),
    Device(usize),
    Access,
    Fault,
    Viommu { iommu: usize, parent: u32 },
    Vdevice { viommu: u32, device: usize, virtual_id: u64 },
    Veventq { viommu: u32, depth: u32, events: Events },
}

#[derive(Clone, Debug, Default)]
pub(super) enum Slot {
    #[default]
    Free,
    Tombstone,
    Live(Object),
}

#[derive(Clone, Debug)]
pub(super) struct Attach {
    pub(super) hwpt: u32,
    pub(super) devices: Vec<usize>,
    /// Its virtual id when it pointed the hardware at it.
    pub(super) virtual_id: Option<u64>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Context {
    pub(super) slots: Vec<Slot>,
    pub(super) process_mode: bool,
    pub(super) vfio_ioas: Option<u32>,
    /// By group and PASID.
    pub(super) attaches: BTreeMap<(usize, u32), Attach>,
    /// HWPTs in order of creation.
    pub(super) hwpts: Vec<u32>,
}

#[derive(Clone, Debug)]
pub(super) struct Access {
    pub(super) context: usize,
    pub(super) id: u32,
    pub(super) pins_pages: bool,
    pub(super) ioas: Option<(u32, usize)>,
    /// How often each exact range is pinned, and which pages that holds.
    pub(super) pins: BTreeMap<(u64, u64), u32>,
}

/// A container: `driver` is its version.
#[derive(Clone, Debug, Default)]
pub(super) struct Container {
    pub(super) groups: Vec<usize>,
    pub(super) v1: Option<bool>,
    pub(super) ioas: usize,
    pub(super) domains: Vec<(usize, Vec<usize>)>,
    pub(super) logging: bool,
    /// Where mappings begin whose process address was taken away.
    pub(super) invalid: BTreeSet<u64>,
}

/// A queue file that is open.
#[derive(Clone, Copy, Debug)]
pub(super) struct File {
    pub(super) context: usize,
    pub(super) id: u32,
}

#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) kinds: [IommuKind; 2],
    pub(super) bytes: AllBytes,
    pub(super) maps: Vec<Map>,
    pub(super) ioases: Vec<Ioas>,
    pub(super) domains: Vec<Domain>,
    pub(super) contexts: [Context; CONTEXTS],
    pub(super) bound: [Option<(usize, u32)>; DEVICES],
    pub(super) accesses: Vec<Option<Access>>,
    pub(super) container: Container,
    pub(super) files: Vec<Option<File>>,
    /// Clients that have CAP_IPC_LOCK.
    pub(super) capable: [bool; CONTEXTS],
    /// There is no dma-buf any more.
    pub(super) revoked: bool,
}

pub(super) type Answer<T> = Result<T, Errno>;

/// What is pinned, and what of it each payer pays.
#[derive(Clone, Debug, Default)]
pub(super) struct Pinned {
    pub(super) pages: BTreeSet<(usize, u64)>,
    pub(super) users: BTreeMap<u32, u64>,
    pub(super) processes: BTreeMap<u32, Charges>,
    /// It was pinned before, whatever the limit is.
    before: bool,
}

impl Pinned {
    /// Pins what of these pages is not pinned yet.
    pub(super) fn add(
        &mut self,
        map: usize,
        of: &Map,
        pages: impl Iterator<Item = u64>,
    ) -> Answer<()> {
        let fresh: Vec<u64> = pages.filter(|page| !self.pages.contains(&(map, *page))).collect();
        if fresh.is_empty() {
            return Ok(());
        }
        if fresh.iter().any(|page| of.page + page * PAGE >= LENGTH) {
            return Err(Errno::EFAULT);
        }
        let count = fresh.len() as u64;
        let process = self.processes.entry(of.payer).or_default();
        let sum = match of.rule {
            Rule::None | Rule::Ahead => None,
            Rule::User => Some(self.users.entry(UID).or_default()),
            Rule::Process | Rule::Type1 | Rule::Type1Unlimited => Some(&mut process.locked),
        };
        if let Some(sum) = sum {
            let unlimited = self.before || of.rule == Rule::Type1Unlimited;
            if *sum + count > LIMIT && !unlimited {
                return Err(Errno::ENOMEM);
            }
            *sum += count;
        }
        process.pinned += count;
        if matches!(of.rule, Rule::Type1 | Rule::Type1Unlimited) {
            process.type1 += count;
        }
        self.pages.extend(fresh.into_iter().map(|page| (map, page)));
        Ok(())
    }
}

impl Ioas {
    pub(super) fn index(&self, iova: u64) -> Option<usize> {
        self.areas.iter().position(|area| area.hits(iova, iova))
    }

    /// The areas over a range with the part in it, and whether they cover it.
    pub(super) fn cover(&self, start: u64, last: u64) -> (Vec<(&Area, u64, u64)>, bool) {
        let mut parts = Vec::new();
        let mut next = start;
        for area in self.areas.iter().filter(|area| area.hits(start, last)) {
            if area.start > next {
                return (parts, false);
            }
            let end = area.last().min(last);
            parts.push((area, next, end));
            if end == last {
                return (parts, true);
            }
            next = end + 1;
        }
        (parts, false)
    }
}

impl Model {
    pub(super) fn new(kinds: [IommuKind; 2], bytes: AllBytes) -> Self {
        Self {
            kinds,
            bytes,
            maps: Vec::new(),
            ioases: Vec::new(),
            domains: Vec::new(),
            contexts: std::array::from_fn(|_| Context::default()),
            bound: [None; DEVICES],
            accesses: Vec::new(),
            container: Container::default(),
            files: Vec::new(),
            capable: [false; CONTEXTS],
            revoked: false,
        }
    }

    pub(super) fn object(&self, context: usize, id: u32) -> Option<&Object> {
        let index = usize::try_from(id).unwrap().checked_sub(1)?;
        match self.contexts[context].slots.get(index)? {
            Slot::Live(object) => Some(object),
            Slot::Free | Slot::Tombstone => None,
        }
    }

    pub(super) fn object_mut(&mut self, context: usize, id: u32) -> Option<&mut Object> {
        let index = usize::try_from(id).unwrap().checked_sub(1)?;
        match self.contexts[context].slots.get_mut(index)? {
            Slot::Live(object) => Some(object),
            Slot::Free | Slot::Tombstone => None,
        }
    }

    pub(super) fn objects(&self, context: usize) -> impl Iterator<Item = (u32, &Object)> {
        (1..).zip(&self.contexts[context].slots).filter_map(|(id, slot)| match slot {
            Slot::Live(object) => Some((id, object)),
            Slot::Free | Slot::Tombstone => None,
        })
    }

    pub(super) fn ioas(&self, context: usize, id: u32) -> Answer<usize> {
        match self.object(context, id) {
            Some(Object::Ioas(ioas)) => Ok(*ioas),
            _ => Err(Errno::ENOENT),
        }
    }

    pub(super) fn hwpt(&self, context: usize, id: u32) -> Answer<&Hwpt> {
        match self.object(context, id) {
            Some(Object::Hwpt(hwpt)) => Ok(hwpt),
            _ => Err(Errno::ENOENT),
        }
    }

    pub(super) fn device(&self, context: usize, id: u32) -> Answer<usize> {
        match self.object(context, id) {
            Some(Object::Device(device)) => Ok(*device),
            _ => Err(Errno::ENOENT),
        }
    }

    pub(super) fn viommu(&self, context: usize, id: u32) -> Answer<(usize, u32)> {
        match self.object(context, id) {
            Some(Object::Viommu { iommu, parent }) => Ok((*iommu, *parent)),
            _ => Err(Errno::ENOENT),
        }
    }

    /// The id the next object gets.
    pub(super) fn next_id(&self, context: usize) -> u32 {
        let slots = &self.contexts[context].slots;
        let free = slots.iter().position(|slot| matches!(slot, Slot::Free)).unwrap_or(slots.len());
        u32::try_from(free).unwrap() + 1
    }

    pub(super) fn publish(&mut self, context: usize, object: Object) -> u32 {
        let id = self.next_id(context);
        let index = usize::try_from(id).unwrap() - 1;
        let slots = &mut self.contexts[context].slots;
        if index == slots.len() {
            slots.push(Slot::Free);
        }
        slots[index] = Slot::Live(object);
        id
    }

    pub(super) fn take(&mut self, context: usize, id: u32, with: Slot) -> Object {
        let index = usize::try_from(id).unwrap() - 1;
        match std::mem::replace(&mut self.contexts[context].slots[index], with) {
            Slot::Live(object) => object,
            Slot::Free | Slot::Tombstone => panic!("only a live object is taken"),
        }
    }

    pub(super) fn new_ioas(&mut self) -> usize {
        self.ioases.push(Ioas::default());
        self.ioases.len() - 1
    }

    /// How many keep an object from being destroyed.
    pub(super) fn holders(&self, context: usize, id: u32) -> u32 {
        let mut holders = 0;
        for (_, object) in self.objects(context) {
            holders += match object {
                Object::Hwpt(hwpt) => {
                    let ioas = self.object(context, id).is_some_and(
                        |object| matches!(object, Object::Ioas(ioas) if *ioas == hwpt.ioas),
                    );
                    let nested = hwpt.nested.map_or(0, |(parent, viommu, _)| {
                        u32::from(parent == id) + u32::from(viommu == Some(id))
                    });
                    u32::from(ioas) + u32::from(hwpt.fault == Some(id)) + nested
                }
                Object::Viommu { parent, .. } => u32::from(*parent == id),
                Object::Vdevice { viommu, .. } | Object::Veventq { viommu, .. } => {
                    u32::from(*viommu == id)
                }
                Object::Ioas(_) | Object::Device(_) | Object::Access | Object::Fault => 0,
            };
        }
        let attaches = self.contexts[context].attaches.values();
        holders += u32::try_from(attaches.filter(|attach| attach.hwpt == id).count()).unwrap();
        for access in self.accesses.iter().flatten().filter(|access| access.context == context) {
            // Where it is, and where its pins are.
            holders += 2 * u32::from(access.ioas.is_some_and(|(ioas, _)| ioas == id));
            holders += u32::from(access.id == id);
        }
        holders += u32::from(self.bound.contains(&Some((context, id))));
        let files = self.files.iter().flatten();
        let open = files.filter(|file| file.context == context && file.id == id);
        holders + u32::try_from(open.count()).unwrap()
    }

    /// All IOASes that exist, the container's among them.
    pub(super) fn live_ioases(&self) -> Vec<usize> {
        let mut live = Vec::new();
        for context in 0..CONTEXTS {
            for (_, object) in self.objects(context) {
                if let Object::Ioas(ioas) = object {
                    live.push(*ioas);
                }
            }
        }
        if self.container.v1.is_some() {
            live.push(self.container.ioas);
        }
        live
    }

    /// Everything that is pinned now.
    pub(super) fn pinned(&self) -> Pinned {
        let mut pinned = Pinned { before: true, ..Pinned::default() };
        let mut add = |area: &Area, pages: &mut dyn Iterator<Item = u64>| {
            let map = &self.maps[area.map];
            pinned.add(area.map, map, pages).expect("what is pinned is under the limit");
        };
        for ioas in self.live_ioases() {
            let ioas = &self.ioases[ioas];
            let held = |area: &&Area| !self.maps[area.map].revoked || area.kept;
            if !ioas.domains.is_empty() {
                ioas.areas.iter().filter(held).for_each(|area| add(area, &mut area.pages()));
            }
        }
        for access in self.accesses.iter().flatten() {
            let Some((_, ioas)) = access.ioas else { continue };
            for &(start, length) in access.pins.keys() {
                for (area, from, to) in self.ioases[ioas].cover(start, start + (length - 1)).0 {
                    add(area, &mut (area.byte(from) / PAGE..=area.byte(to) / PAGE));
                }
            }
        }
        pinned.before = false;
        pinned
    }

    /// Fills areas that come to be shown, one after another.
    pub(super) fn fill<'a>(
        &self,
        pinned: &mut Pinned,
        areas: impl Iterator<Item = &'a Area>,
    ) -> Answer<()> {
        let mut shown = areas.filter(|area| !self.maps[area.map].revoked);
        shown.try_for_each(|area| {
            pinned.add(area.map, &self.maps[area.map], area.pages())?;
            // A compatible map may ask for neither; a page table has no such leaf.
            permitted(area.prot)
        })
    }

    /// Memory behind a byte of a map.
    pub(super) fn origin(&self, area: &Area, iova: u64) -> (Space, usize) {
        let map = &self.maps[area.map];
        (map.space, usize::try_from(map.page + area.byte(iova)).unwrap())
    }
}
