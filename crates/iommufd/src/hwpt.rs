//! HWPT: a hardware page table as a client sees it.
//!
//! A paging HWPT shows an IOAS through one [`Domain`]. An automatic one is made when a device is attached to an IOAS and goes with the
//! last device; one made by HWPT_ALLOC stays until it is destroyed. Linux: `drivers/iommu/iommufd/hw_pagetable.c`.

use std::sync::Arc;

use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;

use crate::device::Device;
use crate::domain::{Domain, DomainUse};
use crate::driver::AttachTo;
use crate::inject::step;
use crate::ioas::Ioas;
use crate::object::{Head, Held, Object, Tracked};

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
}

impl Tracked for Hwpt {
    const ABSENT: &'static str = "no HWPT has this id";

    fn head(&self) -> &Head {
        &self.head
    }

    fn of(object: &Object) -> Option<&Arc<Self>> {
        if let Object::Hwpt(hwpt) = object { Some(hwpt) } else { None }
    }
}

/// Flags a paging HWPT may be made with.
const PAGING_FLAGS: u32 = abi::HWPT_ALLOC_NEST_PARENT
    | abi::HWPT_ALLOC_DIRTY_TRACKING
    | abi::HWPT_FAULT_ID_VALID
    | abi::HWPT_ALLOC_PASID;

impl Hwpt {
    /// A HWPT on `ioas` for the IOMMU of `device`, in no table yet and not filled: [`join`](Self::join) does that.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for flags the IOMMU has no use for, `ENOMEM`.
    pub(crate) fn paging(
        head: Head,
        ioas: Held<Ioas>,
        device: &Device,
        flags: u32,
        origin: Origin,
    ) -> Result<Arc<Self>> {
        let iommu = device.endpoint().iommu();
        if flags & !PAGING_FLAGS != 0 {
            return refuse!(EOPNOTSUPP, "unknown HWPT_ALLOC flags", u64::from(flags));
        }
        if flags & abi::HWPT_ALLOC_DIRTY_TRACKING != 0 && !device.endpoint().tracks_dirty() {
            return refuse!(EOPNOTSUPP, "the device's IOMMU does not track dirty pages");
        }
        if flags & abi::HWPT_FAULT_ID_VALID != 0 && flags & abi::HWPT_ALLOC_NEST_PARENT != 0 {
            return refuse!(EOPNOTSUPP, "a nest parent takes no fault queue");
        }
        step("a HWPT")?;
        if flags & abi::HWPT_ALLOC_NEST_PARENT != 0 && !iommu.nesting {
            return refuse!(EOPNOTSUPP, "the device's IOMMU cannot translate in two stages");
        }
        if flags & abi::HWPT_ALLOC_PASID != 0 && iommu.pasid_bits == 0 {
            return refuse!(EOPNOTSUPP, "the device's IOMMU has no PASIDs");
        }
        let wants = DomainUse {
            dirty_tracking: flags & abi::HWPT_ALLOC_DIRTY_TRACKING != 0,
            enforce_coherency: iommu.enforce_coherency,
            nest_parent: flags & abi::HWPT_ALLOC_NEST_PARENT != 0,
        };
        let domain = match device.endpoint().driver() {
            Some(driver) => {
                Domain::with_table(ioas.machine(), iommu, wants, driver.alloc_paging(flags, None)?)
            }
            None => Domain::new(ioas.machine(), iommu, wants)?,
        };
        Ok(Arc::new(Self { head, ioas, domain, origin, pasid: flags & abi::HWPT_ALLOC_PASID != 0 }))
    }

    /// Fills the domain and enters the HWPT into the list of its IOAS, whose lock the caller holds.
    ///
    /// # Errors
    ///
    /// As [`Ioas::add_domain`](crate::ioas::Ioas::add_domain).
    pub(crate) fn join(self: &Arc<Self>, hwpts: &mut Vec<std::sync::Weak<Self>>) -> Result<()> {
        self.ioas.add_domain(&self.domain)?;
        hwpts.push(Arc::downgrade(self));
        Ok(())
    }

    /// Undoes [`join`](Self::join); no device is attached any more.
    pub(crate) fn leave(&self, hwpts: &mut Vec<std::sync::Weak<Self>>) {
        hwpts
            .retain(|other| other.upgrade().is_some_and(|other| other.head.id() != self.head.id()));
        self.ioas.remove_domain(&self.domain);
    }

    /// What a driver is told about a device that is attached to this.
    pub(crate) fn attach_to(&self) -> AttachTo {
        AttachTo::Paging { dirty_tracking: self.domain.wants().dirty_tracking }
    }

    /// Whether `device` may translate through the domain.
    ///
    /// # Errors
    ///
    /// `EINVAL` when it is behind another IOMMU, or one that cannot do what the domain was made for.
    pub(crate) fn check_device(&self, device: &Device) -> Result<()> {
        let iommu = device.endpoint().iommu();
        if !Arc::ptr_eq(iommu, self.domain.iommu()) {
            return refuse!(EINVAL, "the device is behind another IOMMU than the HWPT is for");
        }
        if self.domain.wants().dirty_tracking && !device.endpoint().tracks_dirty() {
            return refuse!(EINVAL, "the device does not track dirty pages and the HWPT does");
        }
        Ok(())
    }
}
