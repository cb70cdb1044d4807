//! What a person sees of an open /dev/iommu: its objects, as they are at this moment.
//!
//! Whoever looks holds no object, so that none is busy because of it, and waits for no call that
//! may wait for a client: what such a call has is shown as busy.

use std::fmt;
use std::sync::Arc;

use ioasis_iommupt::dump::Style;
use ioasis_iommupt::{IovaRange, Section};

use super::Context;
use crate::account::Mode;
use crate::device::Device;
use crate::device::hw_queue::HwQueue;
use crate::hwpt::eventq::EventQueue;
use crate::hwpt::faultq::FaultQueue;
use crate::hwpt::viommu::Viommu;
use crate::hwpt::{Hwpt, Origin};
use crate::ioas::{Ioas, SpaceLook};
use crate::object::{Object, typed};

/// One object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectLook {
    /// Its id.
    pub id: u32,
    /// How many other objects and calls keep it from being destroyed.
    pub holders: u32,
    /// What it is.
    pub kind: ObjectKind,
}

/// What an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    /// An I/O address space; `None` while a call has it.
    Ioas(Option<SpaceLook>),
    /// A page table.
    Hwpt(HwptLook),
    /// A bound device.
    Device {
        /// What messages call it.
        name: Arc<str>,
        /// PASIDs, 0 for none, with the id of the page table each is attached to; `None` while a
        /// call changes it.
        attached: Option<Vec<(u32, u32)>>,
    },
    /// A queue.
    Queue(QueueLook),
    /// A virtual IOMMU, and the id of its nest parent.
    Viommu(u32),
    /// Something else.
    Other,
}

/// One page table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HwptLook {
    /// The id of its IOAS.
    pub ioas: u32,
    /// Its format.
    pub format: &'static str,
    /// What it can translate.
    pub aperture: IovaRange,
    /// Bit `n` set: leaves of `1 << n` bytes.
    pub page_sizes: u64,
    /// It was made by an attach and goes with the last device.
    pub is_automatic: bool,
    /// It may be attached to PASIDs.
    pub pasid: bool,
    /// Dirty pages can be read.
    pub dirty_tracking: bool,
    /// A client's own tables may lie on it.
    pub nest_parent: bool,
    /// It is a client's own table.
    pub is_nested: bool,
    /// The id of its fault queue.
    pub fault_queue: Option<u32>,
}

/// One queue of a client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueLook {
    /// Page requests: to be read, and read but not answered.
    Fault(Option<(usize, usize)>),
    /// Events of a virtual IOMMU: their type, those to be read, and how many fit.
    Event {
        /// Their type.
        kind: u32,
        /// Entries to be read.
        waiting: Option<usize>,
        /// Events that fit.
        depth: u32,
    },
    /// A queue of the hardware that a guest owns.
    Hardware {
        /// Its number.
        index: u32,
        /// First address in the nest parent, and bytes that are pinned.
        memory: (u64, u64),
    },
}

/// Text up to a limit.
struct Limited {
    text: String,
    limit: usize,
}

impl fmt::Write for Limited {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.text.len() + text.len() > self.limit {
            return Err(fmt::Error);
        }
        self.text.push_str(text);
        Ok(())
    }
}

impl Context {
    /// Its objects, by ascending id, with at most `areas` areas of all address spaces together.
    #[must_use]
    pub fn look(&self, areas: usize) -> Vec<ObjectLook> {
        let seen = self.objects.look(|object| {
            let kind = match typed::<Ioas>(object) {
                Some(ioas) => Err(ioas),
                None => Ok(kind(object)),
            };
            (object.head().id(), object.head().holders(), kind)
        });
        let mut left = areas;
        let look = |(id, holders, kind): (u32, u32, Result<ObjectKind, Arc<Ioas>>)| {
            let kind = kind.unwrap_or_else(|ioas| {
                let space = ioas.look(left);
                left -= space.as_ref().map_or(0, |space| space.areas.len());
                ObjectKind::Ioas(space)
            });
            ObjectLook { id, holders, kind }
        };
        seen.into_iter().map(look).collect()
    }

    /// Against which sum pages are charged, and the IOAS of VFIO container calls.
    #[must_use]
    pub fn look_settings(&self) -> (Mode, Option<u32>) {
        (self.account_mode(), self.compat_ioas_id().ok())
    }

    /// The page table `hwpt` as a tree, at most `limit` bytes of it; whether that is all.
    ///
    /// # Errors
    ///
    /// `ENOENT` without such a page table.
    pub fn dump(&self, hwpt: u32, limit: usize) -> ioasis_uapi::Result<(String, bool)> {
        let domains = self.objects.look(|object| {
            let found = if object.head().id() == hwpt { typed::<Hwpt>(object) } else { None };
            found.map(|found| Arc::clone(&found.domain))
        });
        let Some(domain) = domains.into_iter().flatten().next() else {
            return refuse!(ENOENT, "no HWPT has this id", u64::from(hwpt));
        };
        let mut to = Limited { text: String::new(), limit };
        let _section = Section::enter(domain.users());
        let whole = domain.reader().write_dump(Style::Tree, &mut to).is_ok();
        Ok((to.text, whole))
    }
}

fn kind(object: &Arc<dyn Object>) -> ObjectKind {
    if let Some(hwpt) = typed::<Hwpt>(object) {
        return ObjectKind::Hwpt(table(&hwpt));
    }
    if let Some(device) = typed::<Device>(object) {
        let name = Arc::clone(&device.endpoint().config().name);
        return ObjectKind::Device { name, attached: device.look() };
    }
    if let Some(queue) = typed::<FaultQueue>(object) {
        return ObjectKind::Queue(QueueLook::Fault(queue.look()));
    }
    if let Some(queue) = typed::<EventQueue>(object) {
        let (kind, waiting, depth) = queue.look();
        return ObjectKind::Queue(QueueLook::Event { kind, waiting, depth });
    }
    if let Some(queue) = typed::<HwQueue>(object) {
        let (index, memory) = queue.look();
        return ObjectKind::Queue(QueueLook::Hardware { index, memory });
    }
    match typed::<Viommu>(object) {
        Some(viommu) => ObjectKind::Viommu(viommu.parent.id()),
        None => ObjectKind::Other,
    }
}

fn table(hwpt: &Hwpt) -> HwptLook {
    let (domain, wants) = (&hwpt.domain, hwpt.domain.wants());
    HwptLook {
        ioas: hwpt.ioas.id(),
        format: domain.reader().format_name(),
        aperture: domain.aperture(),
        page_sizes: domain.page_sizes(),
        is_automatic: hwpt.origin == Origin::Automatic,
        pasid: hwpt.pasid,
        dirty_tracking: wants.dirty_tracking,
        nest_parent: wants.nest_parent,
        is_nested: hwpt.nested.is_some(),
        fault_queue: hwpt.faults.get().map(|queue| queue.id()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::rig::{ACCOUNT, BASE, RW, TestClient, TestMachine};
    use crate::{Iova, MapRequest, Place};

    /// A context with a device attached to an IOAS that maps two pages at 0x1000.
    fn mapped(check: impl FnOnce(&Arc<Context>, &crate::Bound, u32)) {
        let (machine, client) = (TestMachine::new(), TestClient::new());
        let context = Context::new(&machine.machine);
        let bound = context.bind(&machine.endpoint()).unwrap();
        let ioas = context.alloc_ioas().unwrap();
        let request = MapRequest {
            space: Arc::new(client.memory.clone()),
            address: BASE,
            length: 0x2000,
            place: Place::Fixed(Iova(0x1000)),
            prot: RW,
            account: ACCOUNT,
        };
        context.map(ioas, request).unwrap();
        bound.attach(ioas).unwrap();
        check(&context, &bound, ioas);
    }

    #[test]
    fn an_address_space_shows_who_mapped_what_where() {
        mapped(|context, bound, ioas| {
            let objects = context.look(100);
            let space = objects.iter().find_map(|object| match &object.kind {
                ObjectKind::Ioas(space) if object.id == ioas => space.clone(),
                _ => None,
            });
            let space = space.expect("nobody has it");
            let [area] = space.areas.as_slice() else { panic!("{space:?}") };
            assert_eq!((area.range.start().0, area.range.last().0), (0x1000, 0x2fff));
            assert_eq!((area.address, area.pid), (Some(BASE), Some(ACCOUNT.pid)));
            assert!(area.filled && space.count == 1 && space.domains == 1);
            let device = objects.iter().find(|object| object.id == bound.id()).expect("bound");
            let ObjectKind::Device { attached: Some(attached), .. } = &device.kind else {
                panic!("{device:?}")
            };
            let [(0, hwpt)] = attached.as_slice() else { panic!("{attached:?}") };
            let is_table = |object: &&ObjectLook| matches!(&object.kind, ObjectKind::Hwpt(hwpt) if hwpt.ioas == ioas);
            assert_eq!(objects.iter().find(is_table).map(|object| object.id), Some(*hwpt));
            let (text, whole) = context.dump(*hwpt, 1 << 16).unwrap();
            assert!(whole && text.contains("0x1000 -> "), "{text}");
            assert!(!context.dump(*hwpt, 30).unwrap().1, "it is cut");
        });
    }

    #[test]
    fn who_looks_keeps_nothing_from_being_destroyed() {
        mapped(|context, bound, ioas| {
            let domain = bound.endpoint().attachment(0).expect("attached");
            let objects = context.look(10);
            bound.detach();
            context.destroy(ioas).unwrap();
            assert!(objects.len() > 2 && domain.token > 0);
        });
    }

    #[test]
    fn an_address_space_that_a_call_has_is_busy_and_not_waited_for() {
        mapped(|context, _, ioas| {
            let held = context.ioas(ioas).unwrap();
            let _space = held.lock();
            let objects = context.look(100);
            let object = objects.iter().find(|object| object.id == ioas).expect("it is there");
            assert_eq!(object.kind, ObjectKind::Ioas(None));
        });
    }

    #[test]
    fn many_areas_are_seen_in_order_and_no_more_than_asked_for() {
        let (machine, client) = (TestMachine::new(), TestClient::new());
        let context = Context::new(&machine.machine);
        let ioas = context.alloc_ioas().unwrap();
        for page in 0..2000_u64 {
            let request = MapRequest {
                space: Arc::new(client.memory.clone()),
                address: BASE,
                length: 0x1000,
                place: Place::Fixed(Iova(page * 0x3000)),
                prot: RW,
                account: ACCOUNT,
            };
            context.map(ioas, request).unwrap();
        }
        let look = |most| match &context.look(most)[0].kind {
            ObjectKind::Ioas(Some(space)) => (space.areas.len(), space.count, space.clone()),
            other => panic!("{other:?}"),
        };
        let (seen, count, space) = look(10_000);
        assert_eq!((seen, count), (2000, 2000));
        assert!(space.areas.is_sorted_by_key(|area| area.range.start()));
        assert_eq!((look(700).0, look(700).1), (700, 2000));
    }

    #[test]
    fn a_walk_shows_the_word_of_each_level_and_marks_nothing() {
        mapped(|_, bound, _| {
            let look = bound.endpoint().look_up(0, Iova(0x1234)).expect("attached");
            assert!(look.nested.is_none() && look.output.is_some());
            let leaf = look.steps.last().expect("words");
            assert!(leaf.fields.iter().any(|field| field.name == "D" && field.of(leaf.word) == 0));
            bound.detach();
            assert!(bound.endpoint().look_up(0, Iova(0x1234)).is_none());
        });
    }
}
