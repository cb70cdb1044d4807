//! Virtual IOMMUs: the part of a physical one that a guest owns, its devices by their virtual ids, its events.
//!
//! Linux: `drivers/iommu/iommufd/viommu.c`.
//!
//! Lock order: `Device::vdevice` -> `Viommu::state` -> `EventQueue::state`; `Device::vdevice` -> `Table::slots`.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use ioasis_iommupt::{Iova, Pa, Prot};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;

use crate::device::Device;
use crate::device::access::{Access, AccessKind};
use crate::hw::iommu::Iommu;
use crate::hw::kinds::cmdqv::{Vintf, check_vsid};
use crate::hw::nested::Nested;
use crate::hw::ops::{Invalidated, UserArray, ViommuDriver};
use crate::hwpt::Hwpt;
use crate::hwpt::eventq::EventQueue;
use crate::object::{Head, Held, Object, Tracked};
use crate::pages::PAGE_SIZE;

#[derive(Debug, Default)]
struct State {
    /// By virtual id.
    vdevices: BTreeMap<u64, Arc<Device>>,
    queues: Vec<Weak<EventQueue>>,
    tables: Vec<Weak<Nested>>,
}

/// What a virtual IOMMU has beside tables.
#[derive(Debug)]
pub(crate) enum Side {
    /// Nothing.
    Tables,
    /// Command queues that the hardware empties.
    Cmdqv(Vintf),
    /// Who answers where the IOMMU is of no kind this crate knows.
    Driver(Box<dyn ViommuDriver>),
}

/// A slice of an IOMMU for one guest.
#[derive(Debug)]
pub(crate) struct Viommu {
    head: Head,
    iommu: Arc<Iommu>,
    side: Side,
    pub(crate) parent: Held<Hwpt>,
    state: Mutex<State>,
}

impl Tracked for Viommu {
    const ABSENT: &'static str = "no virtual IOMMU has this id";

    fn head(&self) -> &Head {
        &self.head
    }

    fn of(object: &Object) -> Option<&Arc<Self>> {
        if let Object::Viommu(viommu) = object { Some(viommu) } else { None }
    }
}

impl Viommu {
    pub(crate) fn new(head: Head, iommu: &Arc<Iommu>, parent: Held<Hwpt>, side: Side) -> Arc<Self> {
        Arc::new(Self { head, iommu: Arc::clone(iommu), side, parent, state: Mutex::default() })
    }

    /// Who answers where the IOMMU is of no kind this crate knows.
    pub(crate) fn driver(&self) -> Option<&dyn ViommuDriver> {
        if let Side::Driver(driver) = &self.side { Some(&**driver) } else { None }
    }

    /// The interface, where the hardware has command queues for guests.
    pub(crate) fn vintf(&self) -> Option<&Vintf> {
        if let Side::Cmdqv(vintf) = &self.side { Some(vintf) } else { None }
    }

    /// Whether a client has memory of it mapped.
    pub(crate) fn is_mapped(&self) -> bool {
        match &self.side {
            Side::Tables => false,
            Side::Cmdqv(vintf) => vintf.is_mapped(),
            Side::Driver(driver) => driver.is_mapped(),
        }
    }

    /// Whether it has hardware queues of type `kind`.
    pub(crate) fn has_queue(&self, kind: u32) -> bool {
        match &self.side {
            Side::Tables => false,
            Side::Cmdqv(_) => kind == abi::HW_QUEUE_TYPE_TEGRA241_CMDQV,
            Side::Driver(driver) => driver.has_queue(kind),
        }
    }

    /// Returns when no DMA uses what was invalidated before.
    pub(crate) fn wait_for_dma(&self) {
        self.parent.domain.wait_for_nested();
    }

    /// Carries out requests of HWPT_INVALIDATE. No DMA uses what they took away when it returns.
    pub(crate) fn carry_out(&self, requests: &UserArray<'_>) -> Invalidated {
        let Some(driver) = self.driver() else {
            let done = self.iommu.hardware().invalidate_viommu(self, requests);
            self.wait_for_dma();
            return done;
        };
        driver.invalidate(requests, &|virtual_id| {
            let device = self.state.lock().vdevices.get(&virtual_id).cloned()?;
            device.endpoint().driver().cloned()
        })
    }

    /// The IOMMU it is a slice of.
    pub(crate) fn iommu(&self) -> &Arc<Iommu> {
        &self.iommu
    }

    /// Whether a device has this virtual id.
    pub(crate) fn has_vdevice(&self, virtual_id: u64) -> bool {
        self.state.lock().vdevices.contains_key(&virtual_id)
    }

    /// The virtual id of `device`.
    pub(crate) fn virtual_id(&self, device: &Device) -> Option<u64> {
        let state = self.state.lock();
        let mut known = state.vdevices.iter();
        known
            .find(|(_, of)| of.head().id() == device.head().id())
            .map(|(&virtual_id, _)| virtual_id)
    }

    /// Remembers a nested table, whose translations the guest's commands invalidate.
    pub(crate) fn add_table(&self, nested: &Arc<Nested>) {
        let tables = &mut self.state.lock().tables;
        tables.retain(|table| table.strong_count() > 0);
        tables.push(Arc::downgrade(nested));
    }

    /// Forgets what was walked, in all tables, for addresses from `start` to `last`.
    pub(crate) fn invalidate(&self, start: u64, last: u64) {
        let tables: Vec<Arc<Nested>> =
            self.state.lock().tables.iter().filter_map(Weak::upgrade).collect();
        tables.iter().for_each(|table| table.invalidate(start, last));
    }

    /// Adds a queue for events of its type.
    ///
    /// # Errors
    ///
    /// `EEXIST` when there is one.
    pub(crate) fn add_queue(&self, queue: &Arc<EventQueue>) -> Result<()> {
        let queues = &mut self.state.lock().queues;
        queues.retain(|other| other.strong_count() > 0);
        let kind = queue.kind();
        if queues.iter().filter_map(Weak::upgrade).any(|other| other.kind() == kind) {
            return refuse!(
                EEXIST,
                "the virtual IOMMU has a queue for this type of events",
                u64::from(kind)
            );
        }
        queues.push(Arc::downgrade(queue));
        Ok(())
    }

    pub(crate) fn remove_queue(&self, queue: &EventQueue) {
        let id = queue.head().id();
        self.state
            .lock()
            .queues
            .retain(|other| other.upgrade().is_some_and(|other| other.head().id() != id));
    }

    /// Tells the guest of an event.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` when nobody listens.
    pub(crate) fn report(&self, kind: u32, data: &[u8]) -> Result<()> {
        let listens = |queue: &Arc<EventQueue>| queue.kind() == kind;
        let queue = self.state.lock().queues.iter().filter_map(Weak::upgrade).find(listens);
        match queue {
            Some(queue) => {
                queue.push(data);
                Ok(())
            }
            None => refuse!(
                EOPNOTSUPP,
                "the virtual IOMMU has no queue for this type of events",
                u64::from(kind)
            ),
        }
    }
}

/// A device under its virtual id in a virtual IOMMU.
#[derive(Debug)]
pub(crate) struct Vdevice {
    head: Head,
    viommu: Held<Viommu>,
    device: Arc<Device>,
    virtual_id: u64,
}

impl Tracked for Vdevice {
    const ABSENT: &'static str = "no virtual device has this id";

    fn head(&self) -> &Head {
        &self.head
    }

    fn of(object: &Object) -> Option<&Arc<Self>> {
        if let Object::Vdevice(vdevice) = object { Some(vdevice) } else { None }
    }
}

impl Vdevice {
    /// Gives `device` the id `virtual_id` in `viommu`.
    ///
    /// # Errors
    ///
    /// `ENOENT` when the device is being unbound, `EEXIST` when it has an id or another device has this one, `EINVAL` and `ENOSPC`
    /// where an interface matches stream ids.
    pub(crate) fn new(
        head: Head,
        viommu: &Held<Viommu>,
        device: &Arc<Device>,
        virtual_id: u64,
    ) -> Result<Arc<Self>> {
        let mut slot = device.vdevice.lock();
        if slot.unbinding {
            return refuse!(ENOENT, "the device is being unbound");
        }
        if slot.id.is_some() {
            return refuse!(EEXIST, "the device has a virtual id already");
        }
        let mut state = viommu.state.lock();
        if state.vdevices.contains_key(&virtual_id) {
            return refuse!(EEXIST, "another device has this virtual id", virtual_id);
        }
        if viommu.vintf().is_some() {
            check_vsid(virtual_id, state.vdevices.len())?;
        }
        state.vdevices.insert(virtual_id, Arc::clone(device));
        slot.id = Some(head.id());
        let (viommu, device) = (viommu.clone(), Arc::clone(device));
        drop(state);
        drop(slot);
        Ok(Arc::new(Self { head, viommu, device, virtual_id }))
    }

    /// Whether it is that of `device`.
    pub(crate) fn is_of(&self, device: &Device) -> bool {
        std::ptr::eq(Arc::as_ptr(&self.device), device)
    }

    /// The virtual IOMMU and the id in it.
    pub(crate) fn identity(&self) -> (&Held<Viommu>, u64) {
        (&self.viommu, self.virtual_id)
    }

    /// Takes the virtual id away.
    pub(crate) fn retire(&self) {
        let mut slot = self.device.vdevice.lock();
        self.viommu.state.lock().vdevices.remove(&self.virtual_id);
        slot.id = None;
    }
}

/// A queue of the hardware that a guest owns, in memory of the guest's that stays where it is.
#[derive(Debug)]
pub(crate) struct HwQueue {
    head: Head,
    viommu: Held<Viommu>,
    index: u32,
    access: Arc<Access>,
    pinned: (Iova, u64),
}

impl Tracked for HwQueue {
    const ABSENT: &'static str = "no hardware queue has this id";

    fn head(&self) -> &Head {
        &self.head
    }

    fn of(object: &Object) -> Option<&Arc<Self>> {
        if let Object::HwQueue(queue) = object { Some(queue) } else { None }
    }
}

impl HwQueue {
    /// Pins `length` bytes from `base`, an address in the nest parent, and starts queue `index` there.
    ///
    /// # Errors
    ///
    /// `ERANGE` when the pages cannot be counted, `ENOENT` where nothing is mapped, `EFAULT` for memory in pieces, and what the
    /// hardware says to the index.
    pub(crate) fn new(
        head: Head,
        viommu: &Held<Viommu>,
        index: u32,
        base: Iova,
        length: u64,
    ) -> Result<Arc<Self>> {
        let first = Iova(base.0 & !(PAGE_SIZE - 1));
        let offset = base.0 - first.0;
        let pages =
            offset.checked_add(length).and_then(|end| end.checked_next_multiple_of(PAGE_SIZE));
        let Some(pages) = pages else {
            return refuse!(ERANGE, "the queue's pages cannot be counted", length);
        };
        let token = viommu.parent.domain.machine().token();
        let access = Access::new(Head::outside(), token, AccessKind::Queue);
        access.change_ioas(Some(viommu.parent.ioas.clone()))?;
        let pinned = access.pin(first, pages, Prot::READ).and_then(|runs| {
            let in_one_piece =
                runs.windows(2).all(|pair| pair[0].pa.0 + pair[0].length == pair[1].pa.0);
            let start = Pa(runs.first().expect("something is pinned").pa.0 + offset);
            let started = match &viommu.side {
                _ if !in_one_piece => {
                    refuse!(EFAULT, "the queue's memory is not in one piece", base.0)
                }
                Side::Driver(driver) => driver.start_queue(index, start),
                Side::Cmdqv(vintf) => vintf.start(viommu.arc(), index, start, length),
                Side::Tables => unreachable!("a virtual IOMMU of tables has no queues"),
            };
            started.inspect_err(|_| access.unpin(first, pages).expect("it was pinned"))
        });
        if let Err(error) = pinned {
            access.detach();
            return Err(error);
        }
        let viommu = viommu.clone();
        Ok(Arc::new(Self { head, viommu, index, access, pinned: (first, pages) }))
    }

    /// Whether no queue that follows it is in use. Whoever hears so stops it.
    pub(crate) fn may_stop(&self) -> bool {
        match &self.viommu.side {
            Side::Tables => true,
            Side::Cmdqv(vintf) => vintf.may_stop(self.index),
            Side::Driver(driver) => driver.may_stop_queue(self.index),
        }
    }

    /// Stops the queue and lets go of its memory.
    pub(crate) fn stop(&self) {
        match &self.viommu.side {
            Side::Tables => {}
            Side::Cmdqv(vintf) => vintf.stop(self.index),
            Side::Driver(driver) => driver.stop_queue(self.index),
        }
        self.access.unpin(self.pinned.0, self.pinned.1).expect("it was pinned when it started");
        self.access.detach();
    }
}
