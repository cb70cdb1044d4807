//! Bound: a device of a context, for whoever drives it.
//!
//! Attaching to an IOAS attaches to an automatic HWPT of it, which is made when there is none that
//! suits the device and goes with the last device. Linux: `drivers/iommu/iommufd/device.c`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ioasis_uapi::{Errno, Error, Result};

use super::Context;
use crate::device::vdevice::Vdevice;
use crate::device::{Change, Device, DeviceGroup, PageAsk};
use crate::hw::endpoint::Endpoint;
use crate::hw::iommu::NO_PASID;
use crate::hw::ops::EventSink;
use crate::hwpt::{Hwpt, Origin};
use crate::inject::step;
use crate::ioas::Ioas;
use crate::object::{Head, Held, Object};

/// A device bound to a context. Dropping it detaches and unbinds.
#[derive(Debug)]
pub struct Bound {
    context: Arc<Context>,
    device: Held<Device>,
}

impl Bound {
    fn new(context: &Arc<Context>, device: &Arc<Device>) -> Self {
        Self { context: Arc::clone(context), device: Held::new(device) }
    }

    /// The device's object id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.device.id()
    }

    /// The context it is bound to.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// The hardware's view of the device.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        self.device.endpoint()
    }

    /// Whether it is attached without a PASID.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.device.is_attached(NO_PASID)
    }

    /// Attaches to an IOAS or HWPT; returns the id of the HWPT used.
    ///
    /// # Errors
    ///
    /// `ENOENT` without such an object, `EINVAL` for one of another type or a HWPT that does not
    /// fit the device, `EBUSY` when attached already, `EADDRINUSE` over reserved ranges, `EFAULT`
    /// and `ENOMEM` of filling.
    pub fn attach(&self, pt_id: u32) -> Result<u32> {
        self.change(NO_PASID, pt_id, Change::Attach)
    }

    /// Moves from what it is attached to, with its whole group, in one step.
    ///
    /// # Errors
    ///
    /// `EINVAL` when not attached, else as [`attach`](Self::attach); the old attachment stays.
    pub fn replace(&self, pt_id: u32) -> Result<u32> {
        self.change(NO_PASID, pt_id, Change::Replace)
    }

    /// Detaches, if attached. No DMA reaches memory when it returns.
    pub fn detach(&self) {
        self.detach_pasid(NO_PASID);
    }

    /// Attaches one PASID. A device that sends none takes any, to no effect.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a PASID wider than the device sends or a page table not made for PASIDs, else
    /// as [`attach`](Self::attach).
    pub fn attach_pasid(&self, pasid: u32, pt_id: u32) -> Result<u32> {
        self.change(pasid, pt_id, Change::Attach)
    }

    /// Moves one PASID.
    ///
    /// # Errors
    ///
    /// As [`attach_pasid`](Self::attach_pasid), and `EINVAL` when the PASID is not attached.
    pub fn replace_pasid(&self, pasid: u32, pt_id: u32) -> Result<u32> {
        self.change(pasid, pt_id, Change::Replace)
    }

    /// Whether the PASID is attached.
    #[must_use]
    pub fn is_pasid_attached(&self, pasid: u32) -> bool {
        self.device.is_attached(pasid)
    }

    /// Detaches one PASID, if attached.
    pub fn detach_pasid(&self, pasid: u32) {
        if let Some(hwpt) = self.device.detach_hwpt(pasid) {
            self.context.put_hwpt(hwpt);
        }
    }

    /// Queues a page request for the client, and waits for no answer; says whether there is a
    /// queue.
    #[must_use]
    pub fn post_page_request(&self, request: &PageAsk) -> bool {
        self.device.post_page_request(request)
    }

    /// Tells the guest that owns the device of an event; `event` makes its bytes from the device's
    /// virtual id.
    ///
    /// # Errors
    ///
    /// `ENOENT` when the device has no virtual id, `EOPNOTSUPP` when nobody listens.
    pub fn report_event(&self, kind: u32, event: impl FnOnce(u64) -> Vec<u8>) -> Result<()> {
        let id = self.device.vdevice.lock().id;
        let Some(id) = id else {
            return refuse!(ENOENT, "the device has no virtual id");
        };
        let vdevice: Held<Vdevice> = self.context.objects().get(id)?;
        let (viommu, virtual_id) = vdevice.identity();
        viommu.report(kind, &event(virtual_id))
    }

    fn change(&self, pasid: u32, pt_id: u32, change: Change) -> Result<u32> {
        let object = self.context.objects().any(pt_id)?;
        if let Some(hwpt) = object.as_a::<Hwpt>() {
            return self.change_to(pasid, &hwpt, change).map(|()| hwpt.id());
        }
        match object.as_a::<Ioas>() {
            Some(ioas) => self.change_to_ioas(pasid, &ioas, change),
            None => refuse!(EINVAL, "the object is no page table", u64::from(pt_id)),
        }
    }

    fn change_to(&self, pasid: u32, hwpt: &Held<Hwpt>, change: Change) -> Result<()> {
        match change {
            Change::Attach => self.device.arc().attach_hwpt(pasid, hwpt),
            Change::Replace => {
                let old = self.device.arc().replace_hwpt(pasid, hwpt)?;
                if let Some(old) = old {
                    self.context.put_hwpt(old);
                }
                Ok(())
            }
        }
    }

    /// Attaches to an automatic HWPT of `ioas` that suits the device, making one if there is none.
    fn change_to_ioas(&self, pasid: u32, ioas: &Held<Ioas>, change: Change) -> Result<u32> {
        let mut hwpts = ioas.hwpts.lock();
        let candidates = Hwpt::listed(&hwpts);
        let mut old = None;
        for hwpt in candidates.iter().filter(|hwpt| hwpt.origin == Origin::Automatic) {
            let held = Held::new(hwpt);
            let attached = match change {
                Change::Attach => self.device.arc().attach_hwpt(pasid, &held),
                Change::Replace => {
                    self.device.arc().replace_hwpt(pasid, &held).map(|replaced| old = replaced)
                }
            };
            match attached {
                // It does not suit the device; every other error is the client's.
                Err(Error { errno: Errno::EINVAL, .. }) => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    drop(hwpts);
                    if let Some(old) = old {
                        self.context.put_hwpt(old);
                    }
                    return Ok(held.id());
                }
            }
        }
        let reservation = self.context.objects().reserve()?;
        let head = Head::new(reservation.id());
        let hwpt = Hwpt::paging(head, ioas.clone(), self.endpoint(), 0, None, Origin::Automatic)?;
        let held = Held::new(&hwpt);
        if change == Change::Attach {
            // Attached before it is filled, so that the device's reserved ranges are judged first.
            self.device.arc().attach_hwpt(pasid, &held)?;
            if let Err(error) = hwpt.join(&mut hwpts) {
                self.device.detach_hwpt(pasid);
                return Err(error);
            }
        } else {
            hwpt.join(&mut hwpts)?;
            match self.device.arc().replace_hwpt(pasid, &held) {
                Ok(replaced) => old = replaced,
                Err(error) => {
                    hwpt.leave(&mut hwpts);
                    return Err(error);
                }
            }
        }
        reservation.publish(hwpt);
        drop(hwpts);
        if let Some(old) = old {
            self.context.put_hwpt(old);
        }
        Ok(held.id())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.device.attached_pasids().into_iter().for_each(|pasid| self.detach_pasid(pasid));
        let vdevice = {
            let mut slot = self.device.vdevice.lock();
            slot.unbinding = true;
            slot.id
        };
        if let Some(id) = vdevice {
            self.context.evict_vdevice(id, &self.device);
        }
        let object = self.context.objects().evict(self.device.id());
        drop(object);
        if !self.endpoint().iommu().is_none() {
            self.endpoint().group().disown();
        }
    }
}

impl Context {
    /// Binds a device: from then on it is this context that attaches it.
    ///
    /// # Errors
    ///
    /// `EINVAL` when its DMA is not coherent, `EPERM` when its interrupts are not isolated or
    /// somebody else owns its group.
    pub fn bind(self: &Arc<Self>, endpoint: &Arc<Endpoint>) -> Result<Bound> {
        let iommu = endpoint.iommu();
        if iommu.is_none() {
            return self.bind_alone(endpoint);
        }
        if !iommu.cache_coherent {
            return refuse!(EINVAL, "the device's DMA is not cache coherent");
        }
        let params = &self.machine.params;
        let unsafe_allowed = params.iommufd_allow_unsafe_interrupts.load(Ordering::Relaxed);
        if !iommu.isolated_msi && !unsafe_allowed {
            return refuse!(
                EPERM,
                "the group's interrupts are not isolated (allow_unsafe_interrupts is off)"
            );
        }
        step("a device")?;
        let group = self.group(endpoint.group());
        endpoint.group().claim(self.token)?;
        let reservation = match self.objects.reserve() {
            Ok(reservation) => reservation,
            Err(error) => {
                endpoint.group().disown();
                return Err(error);
            }
        };
        let device = Device::new(Head::new(reservation.id()), endpoint, group);
        let bound = Bound::new(self, &device);
        reservation.publish(device);
        Ok(bound)
    }

    /// Binds a device without an IOMMU, of which nothing is asked and which nobody owns: it is a
    /// group of its own, that [`has_group`](Self::has_group) does not know. Linux:
    /// `iommufd_bind_noiommu`.
    fn bind_alone(self: &Arc<Self>, endpoint: &Arc<Endpoint>) -> Result<Bound> {
        step("a device")?;
        let group = DeviceGroup::new(endpoint.group());
        let reservation = self.objects.reserve()?;
        let device = Device::new(Head::new(reservation.id()), endpoint, group);
        let bound = Bound::new(self, &device);
        reservation.publish(device);
        Ok(bound)
    }

    /// Destroys the virtual device of a device that is unbound; its id stays taken.
    fn evict_vdevice(&self, id: u32, device: &Device) {
        // Gone if DESTROY has just taken it, whose id may be another object's by now.
        let of_device = |vdevice: &Vdevice| vdevice.is_of(device);
        if let Some(object) = self.objects.entomb(id, of_device) {
            object.retire();
        }
    }
}

#[cfg(test)]
mod tests;
