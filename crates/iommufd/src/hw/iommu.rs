//! The simulated hardware: IOMMUs, groups, and the endpoints behind them.
//!
//! An [`Endpoint`] is a device as the IOMMU sees it: a requester ID and what it translates through. Endpoints that the IOMMU
//! cannot tell apart share a [`Group`], and with it one owner and one attachment.
//!
//! Lock order: `Group::ownership` comes after all other locks of a context; the last claim waits for DMA under it.
//! `Group::attachment` is swapped under the lock of whoever owns the group.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use ioasis_iommupt::{Iova, IovaRange, Prot};
use ioasis_sys::published::{Held, Published};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;
use smallvec::SmallVec;

use crate::hw::domain::Domain;
use crate::hw::faultlog::Reason;
use crate::hw::kinds::Hardware;
use crate::hw::kinds::cmdqv::Cmdqv;
use crate::hw::machine::Machine;
use crate::hw::nested::Nested;
use crate::hw::ops::Driver;
use crate::hwpt::faultq::FaultQueue;
use crate::hwpt::viommu::Viommu;
use crate::ioas::Ioas;

/// Whose hardware an IOMMU imitates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Intel VT-d, scalable mode.
    Vtd,
    /// AMD-Vi.
    Amd,
    /// Arm SMMUv3.
    Smmuv3,
    /// RISC-V IOMMU.
    Riscv,
}

/// What one simulated IOMMU can do.
#[derive(Clone, Debug)]
pub struct Iommu {
    /// Whose hardware it imitates; chooses the page-table format.
    pub kind: Kind,
    /// IOVAs it can translate.
    pub aperture: IovaRange,
    /// Bit `n` set: leaves of `1 << n` bytes may be used, where the format has them.
    pub page_sizes: u64,
    /// Sets dirty bits.
    pub dirty_tracking: bool,
    /// Can force no-snoop transactions to snoop.
    pub enforce_coherency: bool,
    /// DMA is coherent with the processor's caches; without it no device can be bound.
    pub cache_coherent: bool,
    /// Width of a PASID, 0 without PASIDs.
    pub pasid_bits: u32,
    /// Can translate in two stages.
    pub nesting: bool,
    /// Answers devices that translate ahead (ATS).
    pub ats: bool,
    /// Hands page requests of devices on (PRI).
    pub pri: bool,
    /// Isolates interrupts of different devices.
    pub isolated_msi: bool,
    /// Command queues for guests, beside an SMMUv3.
    pub cmdqv: Option<Cmdqv>,
}

/// Page sizes of 4 KiB, 2 MiB and 1 GiB, which every format has.
const PAGE_SIZES: u64 = (1 << 12) | (1 << 21) | (1 << 30);

impl Iommu {
    /// An IOMMU of this kind with everything a current one has, translating 48 bits.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            aperture: IovaRange::closed(Iova(0), Iova((1 << 48) - 1))
                .expect("an aperture is not empty"),
            page_sizes: PAGE_SIZES,
            dirty_tracking: true,
            enforce_coherency: matches!(kind, Kind::Vtd | Kind::Amd),
            cache_coherent: true,
            pasid_bits: 20,
            nesting: true,
            ats: true,
            pri: true,
            isolated_msi: true,
            cmdqv: None,
        }
    }

    /// What GET_HW_INFO says of it: the type, and the registers as bytes.
    #[must_use]
    pub fn registers(&self) -> (u32, Vec<u8>) {
        let default = ioasis_uapi::iommufd::HW_INFO_TYPE_DEFAULT;
        self.hardware().info(self, default).expect("every kind has the default description")
    }

    /// The page sizes that tables of this kind can have leaves of, whatever [`page_sizes`](Self::page_sizes) says.
    #[must_use]
    pub fn page_sizes_of(kind: Kind) -> u64 {
        crate::hw::format::page_sizes(kind)
    }

    /// The ranges that devices behind this kind of IOMMU cannot use: where interrupts go.
    #[must_use]
    pub fn reserved(&self) -> Vec<ReservedRegion> {
        let region = |start, last, kind| ReservedRegion {
            range: IovaRange::closed(Iova(start), Iova(last)).expect("a region is not empty"),
            kind,
        };
        match self.kind {
            // VT-d 3.14: DMA writes to 0xfeexxxxx are interrupt requests.
            Kind::Vtd => vec![region(0xfee0_0000, 0xfeef_ffff, ReservedKind::Msi)],
            // AMD-Vi 2.1.4, table 3: interrupts, and the HyperTransport range.
            Kind::Amd => vec![
                region(0xfee0_0000, 0xfeef_ffff, ReservedKind::Msi),
                region(0xfd_0000_0000, 0xff_ffff_ffff, ReservedKind::Reserved),
            ],
            // Linux's choice for doorbells that must be mapped: MSI_IOVA_BASE, MSI_IOVA_LENGTH.
            Kind::Smmuv3 => vec![region(0x800_0000, 0x80f_ffff, ReservedKind::SwMsi)],
            // Linux's driver for RISC-V names none.
            Kind::Riscv => Vec::new(),
        }
    }

    /// Bits of an IOVA.
    pub(crate) fn iova_bits(&self) -> u64 {
        u64::from(u64::BITS - self.aperture.last().0.leading_zeros())
    }

    /// What its kind does beyond page tables.
    pub(crate) fn hardware(&self) -> &'static dyn Hardware {
        crate::hw::kinds::of(self.kind)
    }
}

/// Why a range cannot be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservedKind {
    /// Identity mapped by firmware.
    Direct,
    /// Identity mapped by firmware until somebody else owns the device: no obstacle.
    DirectRelaxable,
    /// Not translated.
    Reserved,
    /// Writes there are interrupts.
    Msi,
    /// Where software maps the interrupt doorbell.
    SwMsi,
}

/// A range of IOVAs that a device cannot use for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedRegion {
    /// Which.
    pub range: IovaRange,
    /// Why.
    pub kind: ReservedKind,
}

/// What the endpoints of a group translate through.
#[derive(Debug)]
pub(crate) struct Attachment {
    /// A number no other attachment has.
    pub(crate) token: u64,
    pub(crate) domain: Arc<Domain>,
    /// The client's own table above the domain.
    pub(crate) nested: Option<Arc<Nested>>,
    /// Where page requests go.
    pub(crate) faults: Option<Arc<FaultQueue>>,
    /// Who in a guest is told of refused transactions.
    pub(crate) guest: Option<Guest>,
    /// For the fault log.
    pub(crate) ioas: Weak<Ioas>,
}

/// A device as a guest knows it.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) viommu: Weak<Viommu>,
    /// The virtual id it had when it was attached, and goes by from then on: `iommufd_viommu_get_vdev_id` in the drivers' attach.
    pub(crate) virtual_id: Option<u64>,
}

impl Guest {
    /// Tells the guest that a transaction was refused, if its IOMMU has a word for that and somebody listens.
    pub(crate) fn report(&self, iova: Iova, need: Prot, reason: Reason) {
        let (Some(viommu), Some(virtual_id)) = (self.viommu.upgrade(), self.virtual_id) else {
            return;
        };
        let hardware = viommu.iommu().hardware();
        if let Some((kind, event)) = hardware.refused(virtual_id, iova, need, reason) {
            // Nobody listens: the event is lost, as on hardware whose queue is off.
            let _unheard = viommu.report(kind, &event);
        }
    }
}

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
}

impl Group {
    /// Group `number` behind `iommu`, owned by nobody, all DMA blocked.
    #[must_use]
    pub fn new(machine: &Arc<Machine>, iommu: &Arc<Iommu>, number: u32) -> Arc<Self> {
        Arc::new(Self {
            number,
            token: machine.token(),
            machine: Arc::clone(machine),
            iommu: Arc::clone(iommu),
            ownership: Mutex::default(),
            attachment: Published::empty(machine.sections),
            pasids: ArcSwap::default(),
            endpoints: Mutex::default(),
        })
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
    pub(crate) fn token(&self) -> u64 {
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
            // Under the lock: the next owner attaches after this, or its attachment would be what is taken away.
            self.attach(None);
            ownership.owner = None;
        }
    }

    /// Whether a user owns the group.
    #[must_use]
    pub fn is_owned(&self) -> bool {
        self.ownership.lock().claims > 0
    }

    /// Makes all endpoints translate through `attachment`, or blocks them. No DMA uses what was there before when it returns.
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

    /// Makes transactions with `pasid` of all endpoints translate through `attachment`, or blocks them. The owner of the group
    /// calls it, one call at a time. Linux: `__iommu_set_group_pasid`.
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

    pub(crate) fn attachment(&self) -> Option<Arc<Attachment>> {
        self.attachment.get()
    }

    /// What the endpoints translate through, for as long as the guard lives.
    #[inline]
    pub(crate) fn hold_attachment(&self) -> Option<Held<'_, Attachment>> {
        self.attachment.load()
    }
}

/// How an [`Endpoint`] is made; by default without PASIDs, ATS and PRI.
#[derive(Clone, Debug, Default)]
pub struct EndpointConfig {
    /// What messages call it, a PCI address for instance.
    pub name: Arc<str>,
    /// Bus, device and function as they travel with each transaction.
    pub requester_id: u16,
    /// Ranges it cannot use for memory.
    pub reserved: Vec<ReservedRegion>,
    /// Width of the PASIDs it can send, 0 without.
    pub pasid_bits: u32,
    /// PASIDs with execute permission.
    pub pasid_exec: bool,
    /// PASIDs in privileged mode.
    pub pasid_privileged: bool,
    /// Translates ahead (ATS).
    pub ats: bool,
    /// Asks for pages that are not there (PRI).
    pub pri: bool,
}

/// A device as the IOMMU sees it.
#[derive(Debug)]
pub struct Endpoint {
    config: EndpointConfig,
    token: u64,
    machine: Arc<Machine>,
    group: Arc<Group>,
    /// Who answers for the IOMMU where it is of no kind this crate knows. Immutable.
    driver: Option<Arc<dyn Driver>>,
    /// Object id of the device it is bound as; page requests carry it.
    device: AtomicU32,
    /// How many want it to ask for no pages.
    silenced: AtomicU32,
}

/// As long as it lives the endpoint asks for no pages, and what it asked for is answered with no.
#[derive(Debug)]
pub struct Silence<'a>(&'a Endpoint);

impl Drop for Silence<'_> {
    fn drop(&mut self) {
        self.0.silenced.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Endpoint {
    /// A device in `group`.
    #[must_use]
    pub fn new(group: &Arc<Group>, config: EndpointConfig) -> Arc<Self> {
        Self::make(group, config, None)
    }

    /// A device in `group` whose IOMMU answers through `driver`.
    #[must_use]
    pub fn with_driver(
        group: &Arc<Group>,
        config: EndpointConfig,
        driver: Arc<dyn Driver>,
    ) -> Arc<Self> {
        Self::make(group, config, Some(driver))
    }

    fn make(
        group: &Arc<Group>,
        config: EndpointConfig,
        driver: Option<Arc<dyn Driver>>,
    ) -> Arc<Self> {
        let machine = Arc::clone(&group.machine);
        let endpoint = Arc::new(Self {
            config,
            token: machine.token(),
            machine,
            group: Arc::clone(group),
            driver,
            device: AtomicU32::new(0),
            silenced: AtomicU32::new(0),
        });
        let mut endpoints = group.endpoints.lock();
        endpoints.retain(|other| other.strong_count() > 0);
        endpoints.push(Arc::downgrade(&endpoint));
        drop(endpoints);
        endpoint
    }

    /// Bits of the PASIDs it sends through its IOMMU; 0: none.
    pub(crate) fn pasid_width(&self) -> u32 {
        self.config.pasid_bits.min(self.iommu().pasid_bits).min(20)
    }

    /// Ends what its DMA waits for: a page request that is on its way is refused, and no other is made meanwhile. To be held
    /// while the device is reset or stopped, which would else wait for the client.
    #[must_use]
    pub fn silence(&self) -> Silence<'_> {
        self.silenced.fetch_add(1, Ordering::AcqRel);
        let own = self.group.attachment();
        let pasids = self.group.pasids.load();
        for attachment in own.iter().chain(pasids.values()) {
            if let Some(queue) = &attachment.faults {
                queue.cancel_device(self.device_id());
            }
        }
        Silence(self)
    }

    /// Whether it asks for no pages.
    pub(crate) fn is_silenced(&self) -> bool {
        self.silenced.load(Ordering::Acquire) > 0
    }

    /// Object id of the device it is bound as.
    pub(crate) fn device_id(&self) -> u32 {
        self.device.load(Ordering::Acquire)
    }

    pub(crate) fn set_device_id(&self, id: u32) {
        self.device.store(id, Ordering::Release);
    }

    /// Who answers for an IOMMU of no kind this crate knows.
    pub(crate) fn driver(&self) -> Option<&Arc<dyn Driver>> {
        self.driver.as_ref()
    }

    /// Whether its writes set dirty bits.
    pub(crate) fn tracks_dirty(&self) -> bool {
        match &self.driver {
            Some(driver) => driver.tracks_dirty(),
            None => self.group.iommu.dirty_tracking,
        }
    }

    /// The registers GET_HW_INFO shows, under their type; `wanted` is the type asked for, or the default.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for a type this hardware does not have.
    pub(crate) fn hw_info(&self, wanted: u32) -> Result<(u32, Vec<u8>)> {
        match &self.driver {
            Some(driver) => driver.hw_info(wanted),
            None => self.group.iommu.hardware().info(&self.group.iommu, wanted),
        }
    }

    /// How it was made.
    #[must_use]
    pub fn config(&self) -> &EndpointConfig {
        &self.config
    }

    /// The group it is in.
    #[must_use]
    pub fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// The IOMMU it is behind.
    #[must_use]
    pub fn iommu(&self) -> &Arc<Iommu> {
        &self.group.iommu
    }

    /// What transactions with `pasid`, 0 for none, translate through: what is attached to it, or the guest's table of PASIDs.
    pub(crate) fn attachment(&self, pasid: u32) -> Option<Arc<Attachment>> {
        if pasid == 0 {
            return self.group.attachment();
        }
        let own = self.group.pasids.load().get(&pasid).cloned();
        own.or_else(|| {
            let whole = self.group.attachment()?;
            whole.nested.as_ref()?.has_pasids().then_some(whole)
        })
    }

    /// A number no one else on the machine has: the owner of its reserved ranges.
    pub(crate) fn token(&self) -> u64 {
        self.token
    }

    pub(crate) fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// Ranges that must stay unmapped in whatever it is attached to.
    pub(crate) fn reserved(&self) -> impl Iterator<Item = IovaRange> {
        let binds = |region: &&ReservedRegion| region.kind != ReservedKind::DirectRelaxable;
        self.config.reserved.iter().filter(binds).map(|region| region.range)
    }

    /// Keeps its reserved ranges free in `ioas`.
    ///
    /// # Errors
    ///
    /// `EADDRINUSE` where something is mapped or allowed; nothing is reserved then.
    pub(crate) fn reserve_in(&self, ioas: &Ioas) -> Result<()> {
        for range in self.reserved() {
            if let Err(error) = ioas.reserve(range, self.token) {
                ioas.unreserve(self.token);
                return Err(error);
            }
        }
        Ok(())
    }
}
