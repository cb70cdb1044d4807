//! Device: an endpoint bound to a context, and what it is attached to.
//!
//! The devices of one group are attached together: the first one attaches the group, the others
//! follow and only add their reserved ranges. Linux: `drivers/iommu/iommufd/device.c`.
//!
//! Lock order: `Ioas::hwpts` -> `DeviceGroup::attaches` -> `Ioas::space`.

pub(crate) mod access;
pub(crate) mod hw_queue;
pub(crate) mod vdevice;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use ioasis_iommupt::Iova;
use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;

use crate::hw::attachment::{Attachment, Guest};
use crate::hw::endpoint::Endpoint;
use crate::hw::group::Group;
use crate::hw::iommu::NO_PASID;
use crate::hw::ops::{AttachTo, Iotlb};
use crate::hw::page_request::{FaultSink, PageRequest};
use crate::hwpt::Hwpt;
use crate::hwpt::viommu::Viommu;
use crate::inject::step;
use crate::ioas::Ioas;
use crate::object::{Head, Held, Object, Tracked};

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

impl Object for Device {
    fn head(&self) -> &Head {
        &self.head
    }
}

impl Tracked for Device {
    const ABSENT: &'static str = "no device has this id";
}

/// Whether an attachment is the first or takes the place of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Attach,
    Replace,
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

impl Device {
    pub(crate) fn new(head: Head, endpoint: &Arc<Endpoint>, group: Arc<DeviceGroup>) -> Arc<Self> {
        endpoint.set_device_id(head.id());
        Arc::new(Self { head, endpoint: Arc::clone(endpoint), group, vdevice: Mutex::default() })
    }

    pub(crate) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The PASIDs of its group that are attached.
    pub(crate) fn attached_pasids(&self) -> Vec<u32> {
        self.group.attaches.lock().keys().copied().collect()
    }

    /// PASIDs of its group that are attached, with the ids of their page tables; `None` while a
    /// call changes them.
    pub(crate) fn look(&self) -> Option<Vec<(u32, u32)>> {
        let attaches = self.group.attaches.try_lock()?;
        Some(attaches.iter().map(|(&pasid, attach)| (pasid, attach.hwpt.id())).collect())
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

    /// What the hardware says to `hwpt` under `pasid`. A device without PASIDs is asked nothing
    /// about them, for it can send none: the group notes the attachment all the same. Linux:
    /// `iommu_attach_device_pasid`, `__iommu_set_group_pasid`.
    fn check_hardware(&self, hwpt: &Hwpt, pasid: u32, change: Change) -> Result<()> {
        if self.endpoint.iommu().is_none() {
            // No driver is asked: any HWPT will do, another IOMMU's too.
            return Ok(());
        }
        let group = &self.group.group;
        if pasid == NO_PASID {
            return hwpt.check_device(&self.endpoint, self.head.id());
        }
        let kind = hwpt.domain.iommu().kind;
        if kind != group.iommu().kind {
            return refuse!(EINVAL, "the HWPT is for another kind of IOMMU");
        }
        if change == Change::Attach && !group.all_have(pasid) {
            return refuse!(EINVAL, "the PASID is wider than the device sends", u64::from(pasid));
        }
        if group.sends_pasids() {
            hwpt.check_device(&self.endpoint, self.head.id())
        } else {
            Ok(())
        }
    }

    /// Points the hardware at `hwpt`; returns the attachment's number.
    ///
    /// # Errors
    ///
    /// What the device's driver refuses; nothing has changed then.
    fn switch(self: &Arc<Self>, pasid: u32, hwpt: &Hwpt) -> Result<u64> {
        if self.endpoint.iommu().is_none() {
            // DIFFERS: its DMA goes nowhere; there is no physical memory to reach.
            return Ok(self.endpoint.machine().token());
        }
        self.tell_hardware(pasid, hwpt.attach_to())?;
        // A device table entry, context or stream that changes takes what was walked for it along.
        if let Some(nested) = &hwpt.nested {
            nested.table.invalidate(0, u64::MAX);
        }
        let token = self.endpoint.machine().token();
        let faults = hwpt.faults.get().map(|queue| Arc::clone(queue.arc()) as Arc<dyn FaultSink>);
        let mappings = Arc::downgrade(hwpt.ioas.arc());
        self.switch_to(
            pasid,
            Some(Attachment {
                token,
                domain: Arc::clone(&hwpt.domain),
                nested: hwpt.nested.as_ref().map(|nested| Arc::clone(&nested.table)),
                faults,
                guest: hwpt.viommu().map(|viommu| self.guest_of(viommu, pasid)),
                mappings,
            }),
        );
        Ok(token)
    }

    /// The device as the guest of `viommu` will know it.
    fn guest_of(&self, viommu: &Held<Viommu>, pasid: u32) -> Guest {
        let before = self.endpoint.attachment(pasid);
        let same = before.as_ref().and_then(|before| before.guest.as_ref());
        let same = same
            .filter(|guest| std::ptr::addr_eq(guest.viommu.as_ptr(), Arc::as_ptr(viommu.arc())));
        let virtual_id = match same {
            Some(guest) if !self.endpoint.iommu().ops().judges_nested_attach() => guest.virtual_id,
            _ => viommu.virtual_id(self.head.id()),
        };
        let viommu: Weak<Viommu> = Arc::downgrade(viommu.arc());
        Guest { viommu, virtual_id }
    }

    /// Tells the IOMMU's driver, where that is asked about this PASID, what the device is about to
    /// translate through.
    fn tell_hardware(&self, pasid: u32, to: AttachTo) -> Result<()> {
        if pasid != NO_PASID && self.endpoint.pasid_width() == 0 {
            return Ok(());
        }
        self.endpoint.iommu().ops().attach(self.endpoint.config(), pasid, to)
    }

    fn switch_to(&self, pasid: u32, attachment: Option<Attachment>) {
        if pasid == NO_PASID {
            self.group.group.attach(attachment);
        } else {
            self.group.group.attach_pasid(pasid, attachment);
        }
    }

    /// Queues a page request where the HWPT attached under its PASID has a fault queue, and waits
    /// for no answer; says whether it has.
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

    /// Attaches the device, with its group if it is the first.
    pub(crate) fn attach_hwpt(self: &Arc<Self>, pasid: u32, hwpt: &Held<Hwpt>) -> Result<()> {
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
            reserve_in(&self.endpoint, &hwpt.ioas)?;
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
    pub(crate) fn replace_hwpt(
        self: &Arc<Self>,
        pasid: u32,
        hwpt: &Held<Hwpt>,
    ) -> Result<Option<Held<Hwpt>>> {
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

    /// Detaches the device; the last one takes the group along. Returns what it was attached to.
    pub(crate) fn detach_hwpt(&self, pasid: u32) -> Option<Held<Hwpt>> {
        let mut attaches = self.group.attaches.lock();
        let attach = attaches.get_mut(&pasid).filter(|attach| attach.has(self))?;
        attach.devices.retain(|device| device.head.id() != self.head.id());
        let hwpt = attach.hwpt.clone();
        if attach.devices.is_empty() {
            if !self.endpoint.iommu().is_none() {
                let blocked = self.tell_hardware(pasid, AttachTo::Blocked);
                blocked.expect("a driver lets a device be blocked");
                self.switch_to(pasid, None);
            }
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

/// Keeps the reserved ranges of `endpoint` free in `ioas`. Linux:
/// `iopt_table_enforce_dev_resv_regions`.
///
/// # Errors
///
/// `EADDRINUSE` where something is mapped or allowed; nothing is reserved then.
fn reserve_in(endpoint: &Endpoint, ioas: &Ioas) -> Result<()> {
    if endpoint.iommu().is_none() {
        return Ok(());
    }
    for range in endpoint.reserved() {
        if let Err(error) = ioas.reserve(range, endpoint.token()) {
            ioas.unreserve(endpoint.token());
            return Err(error);
        }
    }
    Ok(())
}

fn reserve_all(devices: &[Arc<Device>], ioas: &Ioas) -> Result<()> {
    for (index, device) in devices.iter().enumerate() {
        if let Err(error) = reserve_in(&device.endpoint, ioas) {
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
