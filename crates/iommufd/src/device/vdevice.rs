//! Virtual devices: a device under the id by which a guest knows it. Linux:
//! `drivers/iommu/iommufd/viommu.c`.
//!
//! Lock order: `Device::vdevice` -> `Viommu::state`.

use std::sync::Arc;

use ioasis_uapi::Result;

use super::Device;
use crate::hwpt::viommu::Viommu;
use crate::object::{Head, Held, Object, Tracked};

/// A device under its virtual id in a virtual IOMMU.
#[derive(Debug)]
pub(crate) struct Vdevice {
    head: Head,
    viommu: Held<Viommu>,
    device: Arc<Device>,
    virtual_id: u64,
}

impl Object for Vdevice {
    fn head(&self) -> &Head {
        &self.head
    }

    fn retire(self: Arc<Self>) {
        self.take_id_back();
    }
}

impl Tracked for Vdevice {
    const ABSENT: &'static str = "no virtual device has this id";
}

impl Vdevice {
    /// Gives `device` the id `virtual_id` in `viommu`.
    ///
    /// # Errors
    ///
    /// `ENOENT` when the device is being unbound, `EEXIST` when it has an id or another device has
    /// this one, `EINVAL` and `ENOSPC` where an interface matches stream ids.
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
        viommu.add_device(virtual_id, device.head().id(), device.endpoint())?;
        slot.id = Some(head.id());
        let (viommu, device) = (viommu.clone(), Arc::clone(device));
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
    pub(crate) fn take_id_back(&self) {
        let mut slot = self.device.vdevice.lock();
        self.viommu.remove_device(self.virtual_id);
        slot.id = None;
    }
}
