//! Groups: endpoints that the IOMMU cannot tell apart. They share one owner and one attachment.
//!
//! Lock order: `Group::ownership` comes after all other locks of a context; the last claim waits
//! for DMA under it. `Group::attachment` is swapped under the lock of whoever owns the group.
//! `Group::endpoints` is a leaf.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use ioasis_sys::published::{Held, Published};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;
use smallvec::SmallVec;

use super::attachment::Attachment;
use super::endpoint::Endpoint;
use super::iommu::Iommu;
use super::machine::Machine;
use super::pe::{Frozen, Pe, PeDevices};

#[derive(Debug, Default)]
struct Ownership {
    owner: Option<u64>,
    claims: u32,
    kernel_drivers: u32,
}

/// Endpoints the IOMMU cannot tell apart.
#[derive(Debug)]
pub struct Group {
    number: u32,
    token: u64,
    machine: Arc<Machine>,
    iommu: Arc<Iommu>,
    ownership: Mutex<Ownership>,
    attachment: Published<Attachment>,
    /// What transactions with each PASID translate through. Swapped as `attachment` is.
    pasids: ArcSwap<BTreeMap<u32, Arc<Attachment>>>,
    /// A leaf.
    endpoints: Mutex<Vec<Weak<Endpoint>>>,
    pe: Pe,
}

impl Group {
    /// Group `number` behind `iommu`, owned by nobody, all DMA blocked.
    #[must_use]
    pub fn new(machine: &Arc<Machine>, iommu: &Arc<Iommu>, number: u32) -> Arc<Self> {
        machine.has(iommu);
        Arc::new(Self {
            number,
            token: machine.token(),
            machine: Arc::clone(machine),
            iommu: Arc::clone(iommu),
            ownership: Mutex::default(),
            attachment: Published::empty(machine.sections),
            pasids: ArcSwap::default(),
            endpoints: Mutex::default(),
            pe: Pe::default(),
        })
    }

    /// `endpoint` is in it.
    pub(super) fn add(&self, endpoint: &Arc<Endpoint>) {
        let mut endpoints = self.endpoints.lock();
        endpoints.retain(|other| other.strong_count() > 0);
        endpoints.push(Arc::downgrade(endpoint));
    }

    /// The machine it is in.
    pub(super) fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// What transactions with each PASID translate through.
    pub(super) fn pasids(&self) -> Arc<BTreeMap<u32, Arc<Attachment>>> {
        self.pasids.load_full()
    }

    /// What transactions with `pasid` translate through that is attached to that PASID itself.
    pub(super) fn pasid_attachment(&self, pasid: u32) -> Option<Arc<Attachment>> {
        self.pasids.load().get(&pasid).cloned()
    }

    /// Bits of the PASIDs that each of its devices sends, of those that send any.
    fn pasid_widths(&self) -> SmallVec<[u32; 4]> {
        let endpoints = self.endpoints.lock();
        let widths = endpoints.iter().filter_map(Weak::upgrade).map(|one| one.pasid_width());
        widths.filter(|width| *width > 0).collect()
    }

    /// Whether `pasid` is not too wide for any device that sends PASIDs.
    pub(crate) fn all_have(&self, pasid: u32) -> bool {
        self.pasid_widths().into_iter().all(|width| pasid < 1 << width)
    }

    /// Whether any device sends PASIDs.
    pub(crate) fn sends_pasids(&self) -> bool {
        !self.pasid_widths().is_empty()
    }

    /// Its number in `/sys/kernel/iommu_groups`.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The IOMMU it is behind.
    #[must_use]
    pub fn iommu(&self) -> &Arc<Iommu> {
        &self.iommu
    }

    /// A number no one else on the machine has.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.token
    }

    /// A host driver begins to use an endpoint of the group.
    ///
    /// # Errors
    ///
    /// `EBUSY` while a user owns the group.
    pub fn kernel_driver_attached(&self) -> Result<()> {
        let mut ownership = self.ownership.lock();
        if ownership.claims > 0 {
            return refuse!(EBUSY, "a user owns the group", u64::from(self.number));
        }
        ownership.kernel_drivers += 1;
        Ok(())
    }

    /// A host driver let go of an endpoint of the group.
    pub fn kernel_driver_detached(&self) {
        let mut ownership = self.ownership.lock();
        ownership.kernel_drivers = ownership.kernel_drivers.saturating_sub(1);
    }

    /// Whether a host driver uses an endpoint of the group.
    #[must_use]
    pub fn has_kernel_driver(&self) -> bool {
        self.ownership.lock().kernel_drivers > 0
    }

    /// Makes `owner` the only one who attaches this group.
    ///
    /// # Errors
    ///
    /// `EPERM` while somebody else owns it, or a host driver uses it.
    pub(crate) fn claim(&self, owner: u64) -> Result<()> {
        let mut ownership = self.ownership.lock();
        if ownership.kernel_drivers > 0 {
            return refuse!(
                EPERM,
                "a host driver uses a device of the group",
                u64::from(self.number)
            );
        }
        if ownership.claims > 0 && ownership.owner != Some(owner) {
            return refuse!(
                EPERM,
                "another open of /dev/iommu or a container owns the group",
                u64::from(self.number)
            );
        }
        ownership.owner = Some(owner);
        ownership.claims += 1;
        Ok(())
    }

    /// Gives one claim back; with the last, DMA is blocked.
    pub(crate) fn disown(&self) {
        let mut ownership = self.ownership.lock();
        ownership.claims = ownership.claims.checked_sub(1).expect("a claim is given back once");
        if ownership.claims == 0 {
            // Under the lock: the next owner attaches after this, or its attachment would be what
            // is taken away.
            self.attach(None);
            ownership.owner = None;
        }
    }

    /// Whether a user owns the group.
    #[must_use]
    pub fn is_owned(&self) -> bool {
        self.ownership.lock().claims > 0
    }

    /// Makes all endpoints translate through `attachment`, or blocks them. No DMA uses what was
    /// there before when it returns.
    pub(crate) fn attach(&self, attachment: Option<Attachment>) {
        if let Some(new) = &attachment {
            new.domain.users().add(self.token);
        }
        let old = self.attachment.swap(attachment.map(Arc::new));
        if let Some(old) = old.value() {
            self.wait_for_dma(Some(old));
            old.domain.users().remove(self.token);
        }
    }

    /// Makes transactions with `pasid` of all endpoints translate through `attachment`, or blocks
    /// them. The owner of the group calls it, one call at a time. Linux: `__iommu_set_group_pasid`.
    pub(crate) fn attach_pasid(&self, pasid: u32, attachment: Option<Attachment>) {
        let mut pasids = BTreeMap::clone(&self.pasids.load());
        let old = match attachment {
            Some(attachment) => {
                attachment.domain.users().add(self.token);
                pasids.insert(pasid, Arc::new(attachment))
            }
            None => pasids.remove(&pasid),
        };
        self.pasids.store(Arc::new(pasids));
        self.wait_for_dma(old.as_deref());
        if let Some(old) = old {
            old.domain.users().remove(self.token);
        }
    }

    /// Returns when no DMA of the endpoints uses `old` any more, which was taken away.
    fn wait_for_dma(&self, old: Option<&Attachment>) {
        self.machine.sections.wait(|label| label == self.token);
        if let Some(old) = old {
            self.machine.underway.wait(|route, _| route.attachment == old.token);
        }
    }

    /// What the endpoints translate through; nothing while their DMA is frozen.
    pub(crate) fn attachment(&self) -> Option<Arc<Attachment>> {
        if self.frozen().contains(Frozen::DMA) {
            return None;
        }
        self.attachment.get()
    }

    /// [`attachment`](Self::attachment), for as long as the guard lives.
    #[inline]
    pub(crate) fn hold_attachment(&self) -> Option<Held<'_, Attachment>> {
        if self.frozen().contains(Frozen::DMA) {
            return None;
        }
        self.attachment.load()
    }

    /// Whether errors freeze it.
    pub(crate) fn has_eeh(&self) -> bool {
        self.iommu.spapr.is_some_and(|spapr| spapr.eeh)
    }

    /// What of it is frozen.
    #[inline]
    #[must_use]
    pub fn frozen(&self) -> Frozen {
        self.pe.frozen()
    }

    /// Lets what is frozen go on.
    pub fn thaw(&self, what: Frozen) {
        self.pe.thaw(what);
    }

    /// Stops all of it; no DMA of the endpoints goes on when it returns.
    pub(crate) fn freeze(&self) {
        self.pe.freeze();
        let attachment = self.attachment.get();
        self.wait_for_dma(attachment.as_deref());
    }

    /// A transaction was refused: that freezes it, where errors do.
    pub(super) fn failed(&self) {
        if self.has_eeh() {
            self.pe.freeze();
        }
    }

    /// `devices` are in it.
    pub fn set_devices(&self, devices: Weak<dyn PeDevices>) {
        self.pe.set_devices(devices);
    }

    /// Resets its devices.
    pub(crate) fn hot_reset(&self) -> Result<()> {
        self.pe.hot_reset()
    }
}
