//! HWPT: a hardware page table as a client sees it.
//!
//! A paging HWPT shows an IOAS through one [`Domain`]. An automatic one is made when a device is
//! attached to an IOAS and goes with the last device; one made by HWPT_ALLOC stays until it is
//! destroyed. A nested HWPT is a client's own table over a nest parent. Linux:
//! `drivers/iommu/iommufd/hw_pagetable.c`.

pub(crate) mod eventq;
pub(crate) mod faultq;
pub(crate) mod viommu;
mod watchers;

use std::any::Any;
use std::sync::{Arc, OnceLock, Weak};

use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;

use crate::hw::domain::Domain;
use crate::hw::endpoint::Endpoint;
use crate::hw::nested::Nested;
use crate::hw::ops::{AttachTo, UserData};
use crate::inject::step;
use crate::ioas::Ioas;
use crate::object::{Head, Held, Object, Tracked};
use faultq::FaultQueue;
use viommu::Viommu;

/// Who made a HWPT, and so who destroys it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Attaching to an IOAS: it goes with the last device.
    Automatic,
    /// HWPT_ALLOC: it stays until DESTROY.
    Client,
}

/// One hardware page table.
#[derive(Debug)]
pub(crate) struct Hwpt {
    head: Head,
    pub(crate) ioas: Held<Ioas>,
    pub(crate) domain: Arc<Domain>,
    pub(crate) origin: Origin,
    /// May be attached to a PASID, and to a device that has PASIDs attached.
    pub(crate) pasid: bool,
    /// The client's own table, when it is nested: then IOAS and domain are the parent's.
    pub(crate) nested: Option<NestedIn>,
    /// Where page requests go; set before anybody sees the HWPT, if at all.
    pub(crate) faults: OnceLock<Held<FaultQueue>>,
}

/// A client's own table and what it hangs on.
#[derive(Debug)]
pub(crate) struct NestedIn {
    pub(crate) table: Arc<Nested>,
    _parent: Held<Hwpt>,
    viommu: Option<Held<Viommu>>,
}

impl Object for Hwpt {
    fn head(&self) -> &Head {
        &self.head
    }

    fn retire(self: Arc<Self>) {
        if self.nested.is_none() {
            let mut hwpts = self.ioas.hwpts.lock();
            self.leave(&mut hwpts);
        }
    }
}

impl Tracked for Hwpt {
    const ABSENT: &'static str = "no HWPT has this id";
}

/// Flags a paging HWPT may be made with.
const PAGING_FLAGS: u32 = abi::HWPT_ALLOC_NEST_PARENT
    | abi::HWPT_ALLOC_DIRTY_TRACKING
    | abi::HWPT_FAULT_ID_VALID
    | abi::HWPT_ALLOC_PASID;

impl Hwpt {
    /// A HWPT on `ioas` for the IOMMU of `device`, in no table yet and not filled:
    /// [`join`](Self::join) does that.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for flags the IOMMU has no use for, `ENOMEM`.
    pub(crate) fn paging(
        head: Head,
        ioas: Held<Ioas>,
        device: &Endpoint,
        flags: u32,
        data: Option<&UserData<'_>>,
        origin: Origin,
    ) -> Result<Arc<Self>> {
        if flags & !PAGING_FLAGS != 0 {
            return refuse!(EOPNOTSUPP, "unknown HWPT_ALLOC flags", u64::from(flags));
        }
        if flags & abi::HWPT_ALLOC_DIRTY_TRACKING != 0 && !device.tracks_dirty() {
            return refuse!(EOPNOTSUPP, "the device's IOMMU does not track dirty pages");
        }
        if flags & abi::HWPT_FAULT_ID_VALID != 0 && flags & abi::HWPT_ALLOC_NEST_PARENT != 0 {
            return refuse!(EOPNOTSUPP, "a nest parent takes no fault queue");
        }
        step("a HWPT")?;
        let domain = Domain::new(ioas.machine(), device.iommu(), device.config(), flags, data)?;
        Ok(Arc::new(Self {
            head,
            ioas,
            domain,
            origin,
            pasid: flags & abi::HWPT_ALLOC_PASID != 0,
            nested: None,
            faults: OnceLock::new(),
        }))
    }

    /// A client's own table on the nest parent `parent`.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for other flags, without data, or where the hardware has no such thing;
    /// `EINVAL` for a parent that is none or of another IOMMU; and what the hardware makes of the
    /// data.
    pub(crate) fn nested(
        head: Head,
        parent: &Held<Self>,
        device: &Endpoint,
        flags: u32,
        data: &UserData<'_>,
    ) -> Result<Arc<Self>> {
        check_nested(flags, data)?;
        let iommu = device.iommu();
        if !iommu.ops().nests_directly() {
            return refuse!(
                EOPNOTSUPP,
                "the device's IOMMU takes no tables of the client's own on a HWPT"
            );
        }
        if parent.origin == Origin::Automatic || !parent.domain.wants().nest_parent {
            return refuse!(
                EINVAL,
                "the parent was not made as a nest parent",
                u64::from(parent.id())
            );
        }
        if parent.domain.iommu().kind != iommu.kind {
            return refuse!(
                EINVAL,
                "the parent is for another kind of IOMMU",
                u64::from(parent.id())
            );
        }
        step("a nested HWPT")?;
        let ops = iommu.ops().alloc_nested(iommu, flags & !abi::HWPT_FAULT_ID_VALID, data)?;
        let table = Nested::new(&parent.domain, ops);
        Ok(Self::nested_with(head, parent, None, flags, table))
    }

    /// A client's own table in the virtual IOMMU `viommu`.
    ///
    /// # Errors
    ///
    /// As [`nested`](Self::nested), and `EINVAL` for a device behind another IOMMU.
    pub(crate) fn nested_in_viommu(
        head: Head,
        viommu: &Held<Viommu>,
        device: &Endpoint,
        flags: u32,
        data: &UserData<'_>,
    ) -> Result<Arc<Self>> {
        if !Arc::ptr_eq(viommu.iommu(), device.iommu()) {
            return refuse!(EINVAL, "the device is behind another IOMMU than the virtual one");
        }
        check_nested(flags, data)?;
        step("a nested HWPT")?;
        let ops = viommu.ops().alloc_nested(flags & !abi::HWPT_FAULT_ID_VALID, data)?;
        let table = Nested::new(&viommu.parent.domain, ops);
        viommu.add_table(&table);
        Ok(Self::nested_with(head, &viommu.parent, Some(viommu.clone()), flags, table))
    }

    fn nested_with(
        head: Head,
        parent: &Held<Self>,
        viommu: Option<Held<Viommu>>,
        flags: u32,
        table: Arc<Nested>,
    ) -> Arc<Self> {
        Arc::new(Self {
            head,
            ioas: parent.ioas.clone(),
            domain: Arc::clone(&parent.domain),
            origin: Origin::Client,
            pasid: flags & abi::HWPT_ALLOC_PASID != 0,
            nested: Some(NestedIn { table, _parent: parent.clone(), viommu }),
            faults: OnceLock::new(),
        })
    }

    /// Fills the domain and enters the HWPT into the list of its IOAS, whose lock the caller holds.
    ///
    /// # Errors
    ///
    /// As [`Ioas::add_domain`](crate::ioas::Ioas::add_domain).
    pub(crate) fn join(self: &Arc<Self>, hwpts: &mut Vec<Weak<dyn Object>>) -> Result<()> {
        self.ioas.add_domain(&self.domain)?;
        let hwpt: Weak<Self> = Arc::downgrade(self);
        hwpts.push(hwpt);
        Ok(())
    }

    /// Undoes [`join`](Self::join); no device is attached any more.
    pub(crate) fn leave(&self, hwpts: &mut Vec<Weak<dyn Object>>) {
        let id = self.head.id();
        hwpts.retain(|other| other.upgrade().is_some_and(|other| other.head().id() != id));
        self.ioas.remove_domain(&self.domain);
    }

    /// The HWPTs in the list of an IOAS.
    pub(crate) fn listed(hwpts: &[Weak<dyn Object>]) -> Vec<Arc<Self>> {
        let listed = hwpts.iter().filter_map(Weak::upgrade);
        let hwpt = |object: Arc<dyn Object>| {
            let object: Arc<dyn Any + Send + Sync> = object;
            object.downcast().ok()
        };
        listed.filter_map(hwpt).collect()
    }

    /// The virtual IOMMU it is in, when it is nested there.
    pub(crate) fn viommu(&self) -> Option<&Held<Viommu>> {
        self.nested.as_ref()?.viommu.as_ref()
    }

    /// What a driver is told about a device that is attached to this.
    pub(crate) fn attach_to(&self) -> AttachTo {
        match &self.nested {
            None => AttachTo::Paging { dirty_tracking: self.domain.wants().dirty_tracking },
            Some(_) => AttachTo::Nested,
        }
    }

    /// Whether `device`, which has this object id, may translate through the domain.
    ///
    /// # Errors
    ///
    /// `EINVAL` when it is behind another IOMMU, or one that cannot do what the domain was made
    /// for.
    pub(crate) fn check_device(&self, device: &Endpoint, device_id: u32) -> Result<()> {
        let iommu = device.iommu();
        if !Arc::ptr_eq(iommu, self.domain.iommu()) {
            return refuse!(EINVAL, "the device is behind another IOMMU than the HWPT is for");
        }
        let asked = self.nested.is_none() || iommu.ops().judges_nested_attach();
        if asked && self.domain.wants().dirty_tracking && !device.tracks_dirty() {
            return refuse!(EINVAL, "the device does not track dirty pages and the HWPT does");
        }
        if self.faults.get().is_some() {
            iommu.ops().check_faults(device.config())?;
        }
        if let Some(nested) = &self.nested
            && let Some(viommu) = &nested.viommu
            && nested.table.ops().needs_vdevice()
            && viommu.virtual_id(device_id).is_none()
        {
            return refuse!(ENOENT, "the device has no virtual id in the virtual IOMMU");
        }
        Ok(())
    }
}

fn check_nested(flags: u32, data: &UserData<'_>) -> Result<()> {
    if flags & !(abi::HWPT_FAULT_ID_VALID | abi::HWPT_ALLOC_PASID) != 0 || data.length == 0 {
        return refuse!(
            EOPNOTSUPP,
            "a nested HWPT has data, and no flag but FAULT_ID_VALID and PASID",
            u64::from(flags)
        );
    }
    Ok(())
}
