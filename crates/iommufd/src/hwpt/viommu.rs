//! Virtual IOMMUs: the part of a physical one that a guest owns, its devices by their virtual ids,
//! its events.
//!
//! Linux: `drivers/iommu/iommufd/viommu.c`.
//!
//! Lock order: `Device::vdevice` -> `Viommu::state` -> `EventQueue::state`; `Device::vdevice` ->
//! `Table::slots`.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;

use super::Hwpt;
use super::eventq::EventQueue;
use crate::hw::endpoint::Endpoint;
use crate::hw::iommu::{EndpointConfig, Iommu};
use crate::hw::nested::Nested;
use crate::hw::ops::{EventSink, Invalidated, Iotlb, UserArray, ViommuCore, ViommuOps};
use crate::hw::phys::Phys;
use crate::object::{Head, Held, Object, Tracked};
use crate::params::Linux;

/// A device that a guest knows.
#[derive(Debug)]
struct Known {
    /// The device's object id.
    device: u32,
    endpoint: Arc<Endpoint>,
}

#[derive(Debug, Default)]
struct State {
    /// By virtual id.
    vdevices: BTreeMap<u64, Known>,
    queues: Vec<Weak<EventQueue>>,
    tables: Vec<Weak<Nested>>,
}

/// A slice of an IOMMU for one guest.
#[derive(Debug)]
pub(crate) struct Viommu {
    head: Head,
    iommu: Arc<Iommu>,
    ops: Box<dyn ViommuOps>,
    pub(crate) parent: Held<Hwpt>,
    state: Mutex<State>,
}

impl Object for Viommu {
    fn head(&self) -> &Head {
        &self.head
    }

    fn is_busy(&self) -> bool {
        self.ops.is_mapped()
    }
}

impl Tracked for Viommu {
    const ABSENT: &'static str = "no virtual IOMMU has this id";
}

impl Viommu {
    pub(crate) fn new(
        head: Head,
        iommu: &Arc<Iommu>,
        parent: Held<Hwpt>,
        ops: Box<dyn ViommuOps>,
    ) -> Arc<Self> {
        Arc::new(Self { head, iommu: Arc::clone(iommu), ops, parent, state: Mutex::default() })
    }

    /// What its kind does.
    pub(crate) fn ops(&self) -> &dyn ViommuOps {
        &*self.ops
    }

    /// Carries out requests of HWPT_INVALIDATE. No DMA uses what they took away when it returns.
    pub(crate) fn carry_out(&self, requests: &UserArray<'_>) -> Invalidated {
        let done = self.ops.invalidate(self, requests);
        self.wait_for_dma();
        done
    }

    /// The IOMMU it is a slice of.
    pub(crate) fn iommu(&self) -> &Arc<Iommu> {
        &self.iommu
    }

    /// The virtual id of the device with this object id.
    pub(crate) fn virtual_id(&self, device: u32) -> Option<u64> {
        let state = self.state.lock();
        let mut known = state.vdevices.iter();
        known.find(|(_, of)| of.device == device).map(|(&virtual_id, _)| virtual_id)
    }

    /// Gives a device a virtual id.
    ///
    /// # Errors
    ///
    /// `EEXIST` when another device has this one, `EINVAL` and `ENOSPC` where the hardware matches
    /// ids itself.
    pub(crate) fn add_device(
        &self,
        virtual_id: u64,
        device: u32,
        endpoint: &Arc<Endpoint>,
    ) -> Result<()> {
        let vdevices = &mut self.state.lock().vdevices;
        if vdevices.contains_key(&virtual_id) {
            return refuse!(EEXIST, "another device has this virtual id", virtual_id);
        }
        self.ops.vdevice_init(virtual_id, vdevices.len())?;
        vdevices.insert(virtual_id, Known { device, endpoint: Arc::clone(endpoint) });
        Ok(())
    }

    /// Takes a virtual id away.
    pub(crate) fn remove_device(&self, virtual_id: u64) {
        self.state.lock().vdevices.remove(&virtual_id);
    }

    /// Remembers a nested table, whose translations the guest's commands invalidate.
    pub(crate) fn add_table(&self, nested: &Arc<Nested>) {
        let tables = &mut self.state.lock().tables;
        tables.retain(|table| table.strong_count() > 0);
        tables.push(Arc::downgrade(nested));
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
}

impl Iotlb for Viommu {
    fn invalidate(&self, start: u64, last: u64) {
        let tables: Vec<Arc<Nested>> =
            self.state.lock().tables.iter().filter_map(Weak::upgrade).collect();
        tables.iter().for_each(|table| table.invalidate(start, last));
    }
}

impl EventSink for Viommu {
    fn report(&self, kind: u32, data: &[u8]) -> Result<()> {
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

impl ViommuCore for Viommu {
    fn with_device(&self, virtual_id: u64, with: &mut dyn FnMut(&EndpointConfig)) -> bool {
        let endpoint = {
            let state = self.state.lock();
            state.vdevices.get(&virtual_id).map(|known| Arc::clone(&known.endpoint))
        };
        if let Some(endpoint) = &endpoint {
            with(endpoint.config());
        }
        endpoint.is_some()
    }

    fn phys(&self) -> &Phys {
        &self.parent.domain.machine().phys
    }

    fn linux(&self) -> Linux {
        self.parent.domain.machine().linux
    }

    fn wait_for_dma(&self) {
        self.parent.domain.wait_for_nested();
    }
}
