//! Device: an endpoint bound to a context, and what it is attached to.
//!
//! The devices of one group are attached together: the first one attaches the group, the others follow and only add
//! their reserved ranges. Linux: `drivers/iommu/iommufd/device.c`.
//!
//! Lock order: `Ioas::hwpts` -> `DeviceGroup::attaches` -> `Ioas::space`.

pub(crate) mod access;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use ioasis_iommupt::Iova;
use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result};

use crate::hw::iommu::{Attachment, Endpoint, Group, Guest};
use crate::hw::ops::{AttachTo, Driver};
use crate::hwpt::faultq::PageRequest;
use crate::hwpt::viommu::{Vdevice, Viommu};
use crate::hwpt::{Hwpt, Origin};
use crate::inject::step;
use crate::ioas::Ioas;
use crate::object::{Head, Held, Object, Table, Tracked};
use crate::open::Context;

/// The requester ID itself, without a PASID.
pub(crate) const NO_PASID: u32 = 0;

/// What the devices of a group have attached under one PASID.
#[derive(Debug)]
struct Attach {
    hwpt: Held<Hwpt>,
    /// The hardware's attachment.
    token: u64,
    /// Devices that asked for it.
    devices: Vec<Arc<Device>>,
}

/// A group, as one context sees it.
#[derive(Debug)]
pub(crate) struct DeviceGroup {
    group: Arc<Group>,
    attaches: Mutex<BTreeMap<u32, Attach>>,
}

impl DeviceGroup {
    pub(crate) fn new(group: &Arc<Group>) -> Arc<Self> {
        Arc::new(Self { group: Arc::clone(group), attaches: Mutex::default() })
    }

    pub(crate) fn group(&self) -> &Arc<Group> {
        &self.group
    }
}

/// An endpoint bound to a context.
#[derive(Debug)]
pub(crate) struct Device {
    head: Head,
    endpoint: Arc<Endpoint>,
    group: Arc<DeviceGroup>,
    pub(crate) vdevice: Mutex<VdeviceSlot>,
}

/// The virtual device of a device.
#[derive(Debug, Default)]
pub(crate) struct VdeviceSlot {
    /// Its object id.
    pub(crate) id: Option<u32>,
    /// None is made any more.
    pub(crate) unbinding: bool,
}

impl Tracked for Device {
    const ABSENT: &'static str = "no device has this id";

    fn head(&self) -> &Head {
        &self.head
    }

    fn of(object: &Object) -> Option<&Arc<Self>> {
        if let Object::Device(device) = object { Some(device) } else { None }
    }
}

/// Whether an attachment is the first or takes the place of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Attach,
    Replace,
}

impl Device {
    pub(crate) fn new(head: Head, endpoint: &Arc<Endpoint>, group: Arc<DeviceGroup>) -> Arc<Self> {
        endpoint.set_device_id(head.id());
        Arc::new(Self { head, endpoint: Arc::clone(endpoint), group, vdevice: Mutex::default() })
    }

    pub(crate) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    pub(crate) fn is_attached(&self, pasid: u32) -> bool {
        let attaches = self.group.attaches.lock();
        attaches.get(&pasid).is_some_and(|attach| attach.has(self))
    }

    fn check_pasid(&self, attaches: &BTreeMap<u32, Attach>, hwpt: &Hwpt, pasid: u32) -> Result<()> {
        let other_uses = if pasid == NO_PASID {
            attaches.keys().any(|&other| other != NO_PASID)
        } else {
            if !hwpt.pasid {
                return refuse!(
                    EINVAL,
                    "the HWPT was not made for PASIDs",
                    u64::from(hwpt.head().id())
                );
            }
            let rid = attaches.get(&NO_PASID);
            if rid.is_some_and(|attach| !attach.hwpt.pasid) {
                return refuse!(EINVAL, "the device's own HWPT was not made for PASIDs");
            }
            false
        };
        if other_uses && !hwpt.pasid {
            return refuse!(
                EINVAL,
                "the device has PASIDs attached and the HWPT was not made for PASIDs"
            );
        }
        Ok(())
    }

    /// What the hardware says to `hwpt` under `pasid`. A device without PASIDs is asked nothing about them, for it can send none:
    /// the group notes the attachment all the same. Linux: `iommu_attach_device_pasid`, `__iommu_set_group_pasid`.
    fn check_hardware(&self, hwpt: &Hwpt, pasid: u32, change: Change) -> Result<()> {
        let group = &self.group.group;
        if pasid == NO_PASID {
            return hwpt.check_device(self);
        }
        let kind = hwpt.domain.iommu().kind;
        if kind != group.iommu().kind {
            return refuse!(EINVAL, "the HWPT is for another kind of IOMMU");
        }
        if change == Change::Attach && !group.all_have(pasid) {
            return refuse!(EINVAL, "the PASID is wider than the device sends", u64::from(pasid));
        }
        if group.sends_pasids() { hwpt.check_device(self) } else { Ok(()) }
    }

    /// Points the hardware at `hwpt`; returns the attachment's number.
    ///
    /// # Errors
    ///
    /// What the device's driver refuses; nothing has changed then.
    fn switch(self: &Arc<Self>, pasid: u32, hwpt: &Hwpt) -> Result<u64> {
        if let Some(driver) = self.driver_of(pasid) {
            driver.attach(pasid, hwpt.attach_to())?;
        }
        // A device table entry, context or stream that changes takes what was walked for it along.
        if let Some(nested) = &hwpt.nested {
            nested.table.invalidate(0, u64::MAX);
        }
        let token = self.endpoint.machine().token();
        let faults = hwpt.faults.get().map(|queue| Arc::clone(queue.arc()));
        self.switch_to(
            pasid,
            Some(Attachment {
                token,
                domain: Arc::clone(&hwpt.domain),
                nested: hwpt.nested.as_ref().map(|nested| Arc::clone(&nested.table)),
                faults,
                guest: hwpt.viommu().map(|viommu| self.guest_of(viommu, pasid)),
                ioas: Arc::downgrade(hwpt.ioas.arc()),
            }),
        );
        Ok(token)
    }

    /// The device as the guest of `viommu` will know it.
    fn guest_of(&self, viommu: &Held<Viommu>, pasid: u32) -> Guest {
        let before = self.endpoint.attachment(pasid);
        let same = before.as_ref().and_then(|before| before.guest.as_ref());
        let same = same.filter(|guest| guest.viommu.as_ptr() == Arc::as_ptr(viommu.arc()));
        let virtual_id = match same {
            // mock_domain_nop_attach looks only when the virtual IOMMU is another.
            Some(guest) if self.endpoint.driver().is_some() => guest.virtual_id,
            _ => viommu.virtual_id(self),
        };
        Guest { viommu: Arc::downgrade(viommu.arc()), virtual_id }
    }

    /// Who answers for the IOMMU, where that is asked about this PASID.
    fn driver_of(&self, pasid: u32) -> Option<&Arc<dyn Driver>> {
        let asked = pasid == NO_PASID || self.endpoint.pasid_width() > 0;
        self.endpoint.driver().filter(|_| asked)
    }

    fn switch_to(&self, pasid: u32, attachment: Option<Attachment>) {
        if pasid == NO_PASID {
            self.group.group.attach(attachment);
        } else {
            self.group.group.attach_pasid(pasid, attachment);
        }
    }

    /// Queues a page request where the HWPT attached under its PASID has a fault queue, and waits for no answer; says whether it has.
    pub(crate) fn post_page_request(&self, request: &PageAsk) -> bool {
        // A guest that has the device's own tables has its PASIDs too.
        let own =
            || self.endpoint.attachment(NO_PASID).filter(|attachment| attachment.nested.is_some());
        let attachment = self.endpoint.attachment(request.pasid).or_else(own);
        let Some(attachment) = attachment else { return false };
        let Some(queue) = &attachment.faults else { return false };
        queue.post(PageRequest {
            attachment: attachment.token,
            device: self.head.id(),
            pasid: request.pasid,
            group: request.group,
            iova: request.iova,
            perm: request.perm,
        });
        true
    }

    /// Tells the guest that owns the device of an event; `event` makes its bytes from the device's virtual id.
    ///
    /// # Errors
    ///
    /// `ENOENT` when the device has no virtual id, `EOPNOTSUPP` when nobody listens.
    pub(crate) fn report_event(
        &self,
        objects: &Table,
        kind: u32,
        event: impl FnOnce(u64) -> Vec<u8>,
    ) -> Result<()> {
        let id = self.vdevice.lock().id;
        let Some(id) = id else {
            return refuse!(ENOENT, "the device has no virtual id");
        };
        let vdevice: Held<Vdevice> = objects.get(id)?;
        let (viommu, virtual_id) = vdevice.identity();
        viommu.report(kind, &event(virtual_id))
    }

    fn attach_hwpt(self: &Arc<Self>, pasid: u32, hwpt: &Held<Hwpt>) -> Result<()> {
        step("an attachment")?;
        let mut attaches = self.group.attaches.lock();
        let current = attaches.get(&pasid);
        if current.is_some_and(|attach| attach.has(self)) {
            return refuse!(EBUSY, "the device is attached already");
        }
        if current.is_some_and(|attach| !Arc::ptr_eq(attach.hwpt.arc(), hwpt.arc())) {
            return refuse!(EINVAL, "the group is attached to another HWPT");
        }
        let first = current.is_none();
        if pasid == NO_PASID {
            self.endpoint.reserve_in(&hwpt.ioas)?;
        }
        if first {
            let switched = self
                .check_pasid(&attaches, hwpt, pasid)
                .and_then(|()| self.check_hardware(hwpt, pasid, Change::Attach))
                .and_then(|()| self.switch(pasid, hwpt));
            let token = switched.inspect_err(|_| {
                if pasid == NO_PASID {
                    hwpt.ioas.unreserve(self.endpoint.token());
                }
            })?;
            attaches.insert(pasid, Attach { hwpt: hwpt.clone(), token, devices: Vec::new() });
        }
        let attach = attaches.get_mut(&pasid).expect("the group is attached");
        attach.devices.push(Arc::clone(self));
        Ok(())
    }

    /// Moves the whole group to `hwpt`; returns what it was attached to before.
    fn replace_hwpt(self: &Arc<Self>, pasid: u32, hwpt: &Held<Hwpt>) -> Result<Option<Held<Hwpt>>> {
        step("an attachment")?;
        let mut attaches = self.group.attaches.lock();
        let Some(attach) = attaches.get(&pasid).filter(|attach| attach.has(self)) else {
            return refuse!(EINVAL, "the device is not attached");
        };
        if Arc::ptr_eq(attach.hwpt.arc(), hwpt.arc()) {
            return Ok(None);
        }
        let moves = pasid == NO_PASID && !Arc::ptr_eq(attach.hwpt.ioas.arc(), hwpt.ioas.arc());
        let reserved = if moves { reserve_all(&attach.devices, &hwpt.ioas) } else { Ok(()) };
        reserved?;
        let switched = self
            .check_pasid(&attaches, hwpt, pasid)
            .and_then(|()| self.check_hardware(hwpt, pasid, Change::Replace))
            .and_then(|()| self.switch(pasid, hwpt));
        let attach = attaches.get_mut(&pasid).expect("the attachment was found before");
        let token = switched.inspect_err(|_| {
            if moves {
                attach
                    .devices
                    .iter()
                    .for_each(|device| hwpt.ioas.unreserve(device.endpoint.token()));
            }
        })?;
        let old = std::mem::replace(&mut attach.hwpt, hwpt.clone());
        cancel(&old, std::mem::replace(&mut attach.token, token));
        if moves {
            attach.devices.iter().for_each(|device| old.ioas.unreserve(device.endpoint.token()));
        }
        Ok(Some(old))
    }

    fn detach_hwpt(&self, pasid: u32) -> Option<Held<Hwpt>> {
        let mut attaches = self.group.attaches.lock();
        let attach = attaches.get_mut(&pasid).filter(|attach| attach.has(self))?;
        attach.devices.retain(|device| device.head.id() != self.head.id());
        let hwpt = attach.hwpt.clone();
        if attach.devices.is_empty() {
            if let Some(driver) = self.driver_of(pasid) {
                driver.attach(pasid, AttachTo::Blocked).expect("a driver lets a device be blocked");
            }
            self.switch_to(pasid, None);
            cancel(&hwpt, attach.token);
            attaches.remove(&pasid);
        }
        if pasid == NO_PASID {
            hwpt.ioas.unreserve(self.endpoint.token());
        }
        Some(hwpt)
    }
}

/// Answers the page requests that came through an attachment which is gone.
fn cancel(hwpt: &Hwpt, token: u64) {
    if let Some(queue) = hwpt.faults.get() {
        queue.cancel(token);
    }
}

fn reserve_all(devices: &[Arc<Device>], ioas: &Ioas) -> Result<()> {
    for (index, device) in devices.iter().enumerate() {
        if let Err(error) = device.endpoint.reserve_in(ioas) {
            devices[..index].iter().for_each(|done| ioas.unreserve(done.endpoint.token()));
            return Err(error);
        }
    }
    Ok(())
}

impl Attach {
    fn has(&self, device: &Device) -> bool {
        self.devices.iter().any(|other| other.head.id() == device.head.id())
    }
}

/// A page that a device asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageAsk {
    /// The PASID it used; 0 is none.
    pub pasid: u32,
    /// The device's own number for requests that belong together.
    pub group: u32,
    /// The address.
    pub iova: Iova,
    /// `PGFAULT_PERM_*` bits of what it wanted.
    pub perm: u32,
}

/// A page table to attach to.
enum Target {
    Ioas(Held<Ioas>),
    Hwpt(Held<Hwpt>),
    Other,
}

/// A device bound to a context. Dropping it detaches and unbinds.
#[derive(Debug)]
pub struct Bound {
    context: Arc<Context>,
    device: Held<Device>,
}

impl Bound {
    pub(crate) fn new(context: &Arc<Context>, device: &Arc<Device>) -> Self {
        Self { context: Arc::clone(context), device: Held::new(device) }
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
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
    /// `ENOENT` without such an object, `EINVAL` for one of another type or a HWPT that does not fit the device, `EBUSY` when attached already,
    /// `EADDRINUSE` over reserved ranges, `EFAULT` and `ENOMEM` of filling.
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
    /// `EINVAL` for a PASID wider than the device sends or a page table not made for PASIDs, else as [`attach`](Self::attach).
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

    /// Queues a page request for the client, and waits for no answer; says whether there is a queue.
    #[must_use]
    pub fn post_page_request(&self, request: &PageAsk) -> bool {
        self.device.post_page_request(request)
    }

    /// Tells the guest that owns the device of an event; `event` makes its bytes from the device's virtual id.
    ///
    /// # Errors
    ///
    /// `ENOENT` when the device has no virtual id, `EOPNOTSUPP` when nobody listens.
    pub fn report_event(&self, kind: u32, event: impl FnOnce(u64) -> Vec<u8>) -> Result<()> {
        self.device.report_event(self.context.objects(), kind, event)
    }

    fn change(&self, pasid: u32, pt_id: u32, change: Change) -> Result<u32> {
        let target = self.context.objects().inspect(pt_id, |object| match object {
            Object::Ioas(ioas) => Target::Ioas(Held::new(ioas)),
            Object::Hwpt(hwpt) => Target::Hwpt(Held::new(hwpt)),
            _ => Target::Other,
        })?;
        match target {
            Target::Hwpt(hwpt) => self.change_to(pasid, &hwpt, change).map(|()| hwpt.id()),
            Target::Ioas(ioas) => self.change_to_ioas(pasid, &ioas, change),
            Target::Other => refuse!(EINVAL, "the object is no page table", u64::from(pt_id)),
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
        let candidates: Vec<Arc<Hwpt>> = hwpts.iter().filter_map(Weak::upgrade).collect();
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
        let hwpt = Hwpt::paging(head, ioas.clone(), &self.device, 0, None, Origin::Automatic)?;
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
        reservation.publish(Object::Hwpt(hwpt));
        drop(hwpts);
        if let Some(old) = old {
            self.context.put_hwpt(old);
        }
        Ok(held.id())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let pasids: Vec<u32> = self.device.group.attaches.lock().keys().copied().collect();
        pasids.into_iter().for_each(|pasid| self.detach_pasid(pasid));
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
        self.device.group.group.disown();
    }
}

#[cfg(test)]
mod tests;
