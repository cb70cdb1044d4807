//! One device: a function, its place in the machine, and who has it open.

use std::fmt;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use ioasis_iommufd::inject::step;
use ioasis_iommufd::{Bound, Context, Endpoint, Frozen, Importer, Linux};
use ioasis_pci::{BARS, Bdf, Dma, Function, Session};
use ioasis_sys::eventfd::EventFd;
use ioasis_sys::mapping::Mapping;
use ioasis_sys::sync::Mutex;
use ioasis_sys::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use ioasis_uapi::{Errno, Error, Result};

use crate::aftermath::Aftermath;
use crate::attached::Attached;
use crate::dma::{Traffic, Translated};
use crate::emulated::EmulatedDma;
use crate::ioeventfd::Ioeventfds;
use crate::irq::Interrupts;
use crate::logging::DmaLog;
use crate::migration::Migrating;
use crate::registration::{Driver, Registration};
use crate::token::VfToken;
use crate::{Client, DeviceFile, DeviceMemory, Group};

/// Major number of `/dev/vfio/devices/vfioN`: from the range Linux hands out dynamically.
const CDEV_MAJOR: u32 = 511;

/// A device of the machine.
#[derive(Debug)]
pub struct Device {
    function: Arc<Function>,
    bdf: String,
    index: u32,
    group: Arc<Group>,
    endpoint: Arc<Endpoint>,
    /// Its bytes, for a device of an emulated group.
    emulated: Option<Arc<EmulatedDma>>,
    set: Arc<DeviceSet>,
    slot: usize,
    migrating: Arc<Migrating>,
    log: Arc<DmaLog>,
    interrupts: Arc<Interrupts>,
    ioeventfds: Ioeventfds,
    /// A leaf.
    power: Mutex<Power>,
    /// The BAR pages of the session; a leaf.
    pages: Mutex<Pages>,
    removed: AtomicBool,
    registration: Arc<Registration>,
    /// What it moved.
    traffic: Arc<Traffic>,
    /// How often its BARs were reset or stopped answering.
    revocations: AtomicU64,
    /// Who maps a dma-buf of it, by the key of the buffer; a leaf.
    importers: Mutex<Vec<(u128, Weak<dyn Importer>)>>,
    relation: Relation,
}

pub(crate) type Pages = [Option<Arc<Mapping>>; BARS];

/// Run-time power management. The device wakes for every call, so only the eventfd shows that it
/// slept.
#[derive(Debug, Default)]
struct Power {
    low: bool,
    wakeup: Option<Arc<EventFd>>,
}

/// What SR-IOV makes of a device.
#[derive(Debug)]
pub(crate) enum Relation {
    /// Nothing.
    None,
    /// It can have virtual functions.
    Physical {
        token: VfToken,
        /// In the order of their numbers; set once, with the machine.
        functions: OnceLock<Vec<Weak<Device>>>,
    },
    /// It is one.
    Virtual {
        /// Set once, with the machine.
        physical: OnceLock<Weak<Device>>,
        /// It is on the bus.
        exists: AtomicBool,
        /// What its physical function's resets left to do.
        aftermath: Aftermath,
    },
}

impl Relation {
    pub(crate) fn of(function: &Function) -> Self {
        if function.sriov().is_some() {
            let functions = OnceLock::new();
            Self::Physical { token: VfToken::new(), functions }
        } else if function.is_virtual() {
            Self::Virtual {
                physical: OnceLock::new(),
                exists: AtomicBool::new(false),
                aftermath: Aftermath::default(),
            }
        } else {
            Self::None
        }
    }
}

/// Devices that are opened and reset under one lock. Linux: `vfio_assign_device_set`.
pub(crate) struct DeviceSet {
    devices: OnceLock<Vec<Weak<Device>>>,
    /// All devices that a reset of their bus reaches; a virtual function is in no set with others.
    on_bus: OnceLock<Vec<Weak<Device>>>,
    opens: Mutex<Opens>,
    /// A root bus has no bridge to reset it.
    bus: u8,
}

/// How each device of a set is open, by slot.
pub(crate) type Opens = Vec<Open>;

/// How a device is open.
#[derive(Debug, Default)]
pub(crate) enum Open {
    #[default]
    Closed,
    /// Through its group; bound when the group has an iommufd.
    Group { file: Weak<DeviceFile>, bound: Option<Bound> },
    /// Through its own node.
    Cdev(Attached),
    /// By a file of its own node, whose caller is being told so, which may take as long as it
    /// wants.
    Opening,
    /// No longer, but the driver's close has not ended: the device may be waiting for a page of its
    /// user's.
    Closing,
}

impl Open {
    /// The device's place in an iommufd.
    pub(crate) fn bound(&self) -> Option<&Bound> {
        match self {
            Self::Closed | Self::Opening | Self::Closing => None,
            Self::Group { bound, .. } => bound.as_ref(),
            Self::Cdev(attached) => Some(attached.bound()),
        }
    }

    /// The iommufd it is bound to.
    pub(crate) fn context(&self) -> Option<&Arc<Context>> {
        self.bound().map(Bound::context)
    }
}

impl fmt::Debug for DeviceSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let devices = self.devices();
        let names: Vec<_> = devices.iter().map(|device| device.name()).collect();
        f.debug_struct("DeviceSet").field("bus", &self.bus).field("devices", &names).finish()
    }
}

impl DeviceSet {
    pub(crate) fn new(bus: u8, length: usize) -> Arc<Self> {
        let opens = std::iter::repeat_with(Open::default).take(length).collect();
        let opens = Mutex::new(opens);
        Arc::new(Self { devices: OnceLock::new(), on_bus: OnceLock::new(), opens, bus })
    }

    pub(crate) fn fill(&self, devices: Vec<Weak<Device>>, on_bus: Vec<Weak<Device>>) {
        assert_eq!(devices.len(), self.opens.lock().len(), "every device has its slot");
        assert!(self.devices.set(devices).is_ok(), "a set is filled once");
        assert!(self.on_bus.set(on_bus).is_ok(), "a set is filled once");
    }

    /// The devices that a reset of the bus reaches, as there are now.
    pub(crate) fn on_bus(&self) -> Vec<Arc<Device>> {
        let all = self.on_bus.get().into_iter().flatten().filter_map(Weak::upgrade);
        all.filter(|device| device.is_on_bus()).collect()
    }

    pub(crate) fn has(&self, device: &Device) -> bool {
        self.devices().iter().any(|other| std::ptr::eq(&raw const **other, device))
    }

    pub(crate) fn devices(&self) -> Vec<Arc<Device>> {
        self.devices.get().into_iter().flatten().filter_map(Weak::upgrade).collect()
    }

    pub(crate) fn opens(&self) -> &Mutex<Opens> {
        &self.opens
    }

    pub(crate) fn can_reset(&self) -> bool {
        self.bus != 0
    }
}

/// Where a device belongs; what the machine knows of it.
pub(crate) struct Place {
    pub(crate) index: u32,
    pub(crate) group: Arc<Group>,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) set: Arc<DeviceSet>,
    pub(crate) slot: usize,
}

impl Device {
    pub(crate) fn new(function: Function, place: Place) -> Self {
        let Place { index, group, endpoint, set, slot } = place;
        let function = Arc::new(function);
        Self {
            relation: Relation::of(&function),
            bdf: function.address().to_string(),
            migrating: Migrating::new(&function),
            log: Arc::default(),
            index,
            emulated: group.is_emulated().then(EmulatedDma::new),
            group,
            endpoint,
            set,
            slot,
            interrupts: Arc::new(Interrupts::new(&function)),
            function,
            ioeventfds: Ioeventfds::default(),
            power: Mutex::default(),
            pages: Mutex::default(),
            removed: AtomicBool::new(false),
            registration: Arc::default(),
            traffic: Arc::default(),
            revocations: AtomicU64::new(0),
            importers: Mutex::default(),
        }
    }

    /// Where it sits.
    #[must_use]
    pub fn bdf(&self) -> Bdf {
        self.function.address()
    }

    /// Where it sits, as GET_DEVICE_FD names it: `0000:01:00.0`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.bdf
    }

    /// N of `/dev/vfio/devices/vfioN`.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The name of its node below `/dev/vfio/devices`: `vfio0`, or `noiommu-vfio0`.
    #[must_use]
    pub fn node(&self) -> String {
        let prefix = if self.group.is_no_iommu() { "noiommu-" } else { "" };
        format!("{prefix}vfio{}", self.index)
    }

    /// Major and minor number of its node; before Linux 7.3 a device without an IOMMU has none.
    // DIFFERS: an emulated device has none, which in Linux has one.
    /// On POWER none has: `CONFIG_VFIO_DEVICE_CDEV` depends on `!SPAPR_TCE_IOMMU`.
    #[must_use]
    pub fn cdev(&self) -> Option<(u32, u32)> {
        let power = self.endpoint.iommu().spapr.is_some();
        let physical = !self.group.is_no_iommu() || self.endpoint.linux() >= Linux::V7_3;
        let has = physical && !self.group.is_emulated() && !power;
        has.then_some((CDEV_MAJOR, self.index))
    }

    /// Its group.
    #[must_use]
    pub fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// The PCI function.
    #[must_use]
    pub fn function(&self) -> &Function {
        &self.function
    }

    /// Opens its node in `/dev/vfio/devices`. Any number of opens; one of them may bind.
    ///
    /// # Errors
    ///
    /// `ENODEV` when the device is gone, has no such node or no VFIO driver; `EPERM` for a device
    /// without an IOMMU and a caller without `CAP_SYS_RAWIO`; what [`Client::device_memory`]
    /// answers.
    pub fn open_cdev(self: &Arc<Self>, client: &dyn Client) -> Result<Arc<DeviceFile>> {
        self.present()?;
        if self.cdev().is_none() {
            return Err(Error::new(Errno::ENODEV, "the device has no node of its own"));
        }
        let user = self.registration.enter()?;
        if self.group.is_no_iommu() && !client.account().sys_rawio {
            return Err(Error::new(Errno::EPERM, "a device without an IOMMU needs CAP_SYS_RAWIO"));
        }
        step("the memory of a device")?;
        Ok(DeviceFile::of_cdev(Arc::clone(self), user, client.device_memory(self)?))
    }

    /// The eventfds that tell the device's user it is going away, REQ before ERR. A process that
    /// outlives this one fires them in its place.
    #[must_use]
    pub fn removal_triggers(&self) -> Vec<Arc<EventFd>> {
        self.interrupts.removal_triggers()
    }

    /// # Errors
    ///
    /// `ENODEV` after the device was removed, and for a virtual function that is not there.
    pub(crate) fn present(&self) -> Result<()> {
        if !self.exists() {
            return Err(Error::new(Errno::ENODEV, "there is no such virtual function now"));
        }
        if self.removed.load(Ordering::Acquire) {
            return Err(Error::new(Errno::ENODEV, "the device was removed"));
        }
        Ok(())
    }

    /// Whether a reset of its bus reaches it: a device that was removed leaves the bus with its
    /// last user (`pci_destroy_dev`, after `vfio_unregister_group_dev`).
    fn is_on_bus(&self) -> bool {
        self.exists() && !(self.is_removed() && self.await_users(Instant::now()))
    }

    /// Whether it was removed.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    /// The same, to be changed.
    pub(crate) fn removed(&self) -> &AtomicBool {
        &self.removed
    }

    /// The BAR pages of the session, while there is one.
    pub(crate) fn pages(&self) -> Pages {
        self.pages.lock().clone()
    }

    /// The device as its IOMMU sees it.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Its bytes, if it is emulated.
    pub(crate) fn emulated(&self) -> Option<&Arc<EmulatedDma>> {
        self.emulated.as_ref()
    }

    pub(crate) fn relation(&self) -> &Relation {
        &self.relation
    }

    pub(crate) fn registration(&self) -> &Arc<Registration> {
        &self.registration
    }

    /// The driver it has now.
    #[must_use]
    pub fn driver(&self) -> Driver {
        self.registration.driver()
    }

    /// Whether VFIO has it.
    pub(crate) fn is_registered(&self) -> bool {
        self.exists() && matches!(self.driver(), Driver::Vfio | Driver::Leaving)
    }

    /// Gives a device without a driver one.
    ///
    /// # Errors
    ///
    /// `EBUSY` if it has one, and for one that is not VFIO's while a user owns the group.
    pub fn bind_driver(&self, driver: Driver) -> Result<()> {
        self.registration.bind(driver, self.endpoint.group())?;
        if let Relation::Physical { token, .. } = &self.relation {
            token.renew();
        }
        Ok(())
    }

    /// Takes the driver away. One of VFIO's is [`Driver::Leaving`] from now on, until
    /// [`Device::end_leaving`].
    pub fn unbind_driver(&self) {
        self.registration.unbind(self.endpoint.group());
    }

    /// Whether a driver that is leaving has no user any more, for whom it waits until `deadline`.
    #[must_use]
    pub fn await_users(&self, deadline: Instant) -> bool {
        self.registration.await_users(deadline)
    }

    /// Asks who uses the device to give it back (`vfio_pci_core_request`).
    pub fn request(&self) {
        let _unheard = self.interrupts.signal_request();
    }

    /// The driver has left. A group without another such device is no VFIO group any more.
    ///
    /// # Panics
    ///
    /// If somebody uses the device, or its driver is not leaving.
    pub fn end_leaving(&self) {
        self.registration.end();
        self.group.lose_device();
    }

    pub(crate) fn set(&self) -> &DeviceSet {
        &self.set
    }

    pub(crate) fn slot(&self) -> usize {
        self.slot
    }

    pub(crate) fn interrupts(&self) -> &Interrupts {
        &self.interrupts
    }

    pub(crate) fn ioeventfds(&self) -> &Ioeventfds {
        &self.ioeventfds
    }

    /// Its way to another run.
    pub(crate) fn migrating(&self) -> &Migrating {
        &self.migrating
    }

    /// What it wrote, where that is logged.
    ///
    /// # Errors
    ///
    /// `ENOTTY` for an emulated device: what it writes is marked where it is written.
    pub(crate) fn log(&self) -> Result<&DmaLog> {
        if self.emulated.is_some() {
            return Err(Error::new(Errno::ENOTTY, "an emulated device logs no DMA"));
        }
        Ok(&self.log)
    }

    pub(crate) fn shared_function(&self) -> &Arc<Function> {
        &self.function
    }

    /// The driver's open: the function comes up with nothing of an earlier user in it.
    pub(crate) fn begin(&self, memory: &DeviceMemory) -> Result<()> {
        self.present()?;
        let interrupts = Arc::clone(&self.interrupts);
        let (irq, witness) = (Arc::clone(&interrupts), interrupts);
        let dma: Arc<dyn Dma> = match &self.emulated {
            Some(emulated) => Arc::clone(emulated) as _,
            None => Arc::new(Translated::new(&self.endpoint, &self.log, &self.traffic)),
        };
        step("a thread for a device")?;
        // eeh_dev_open: a new user finds it recovered.
        self.endpoint.group().thaw(Frozen::all());
        let (pages, doorbells) = (memory.pages.clone(), memory.doorbells.clone());
        self.function.open(Session { dma, irq, witness, pages, doorbells })?;
        self.pages.lock().clone_from(&memory.pages);
        self.count_user();
        Ok(())
    }

    /// The driver's close: no DMA, no interrupt and no eventfd after it returns.
    pub(crate) fn end(&self) {
        self.discount_user();
        self.revoke();
        self.leave_low_power();
        self.function.close();
        self.migrating.end();
        self.log.stop();
        // eeh_dev_release
        self.endpoint.group().thaw(Frozen::all());
        if let Some(emulated) = &self.emulated {
            emulated.end();
        }
        self.ioeventfds.close();
        self.interrupts.close(&self.function);
        *self.pages.lock() = Pages::default();
    }

    /// Resets the function.
    pub(crate) fn reset(&self) -> Result<()> {
        self.function.reset()?;
        self.after_reset();
        self.interrupts.told_reset();
        self.reset_virtual_functions();
        Ok(())
    }

    /// Whether an error stopped its registers: loads give ones, stores are lost.
    // DIFFERS: pages of BARs that a program mapped stay what they are, but for those that trap, and
    // configuration space answers.
    pub(crate) fn is_frozen(&self) -> bool {
        self.endpoint.group().frozen().contains(Frozen::MMIO)
    }

    /// Writes to configuration space, with all that follows from it.
    ///
    /// # Errors
    ///
    /// As [`Function::config_write`].
    pub(crate) fn write_config(&self, position: u64, bytes: &[u8]) -> Result<()> {
        let function = &self.function;
        let resets = function.resets();
        function.config_write(position, bytes)?;
        let was_reset = function.resets() != resets;
        if !function.memory_enabled() || was_reset {
            self.revoke();
        }
        if was_reset {
            self.migrating().reset();
            self.interrupts.told_reset();
            self.reset_virtual_functions();
        }
        self.interrupts.command_changed(function);
        Ok(())
    }

    /// Writes to configuration space as whoever owns the machine does, in the pieces that
    /// `pci_write_config` (drivers/pci/pci-sysfs.c) makes of it.
    // DIFFERS: what a VFIO user cannot write, nobody writes.
    ///
    /// # Errors
    ///
    /// `ENODEV` when the device is gone; as [`Function::config_write`].
    pub fn write_config_by_host(&self, position: u64, bytes: &[u8]) -> Result<()> {
        self.present()?;
        let (mut at, mut rest) = (position, bytes);
        while !rest.is_empty() {
            let length = match (at % 4, rest.len()) {
                (0, 4..) => 4,
                (0 | 2, 2..) => 2,
                _ => 1,
            };
            let (piece, after) = rest.split_at(length);
            self.write_config(at, piece)?;
            (at, rest) = (at + length as u64, after);
        }
        Ok(())
    }

    /// Resets the function as whoever owns the machine does, without asking who uses the device.
    ///
    /// # Errors
    ///
    /// `ENODEV` when the device is gone; `EFAULT` when a BAR page cannot be reached.
    pub fn reset_by_host(&self) -> Result<()> {
        self.present()?;
        self.reset()
    }

    /// The pages of a BAR, while the device is open.
    pub(crate) fn bar_pages(&self, bar: usize) -> Option<Arc<Mapping>> {
        self.pages.lock()[bar].clone()
    }

    /// How often what a dma-buf gave away was taken back: by a reset, or because the BARs stopped
    /// answering.
    pub(crate) fn revocations(&self) -> u64 {
        self.revocations.load(Ordering::Acquire)
    }

    /// Takes back what dma-bufs gave away: when this returns no device reaches it.
    pub(crate) fn revoke(&self) {
        self.revocations.fetch_add(1, Ordering::AcqRel);
        let importers = std::mem::take(&mut *self.importers.lock());
        for (key, importer) in importers {
            if let Some(importer) = importer.upgrade() {
                importer.invalidate(key);
            }
        }
    }

    /// `importer` maps the dma-buf `key`: it is told of the next revocation.
    pub(crate) fn add_importer(&self, key: u128, importer: Weak<dyn Importer>) {
        let mut importers = self.importers.lock();
        importers.retain(|(_, importer)| importer.strong_count() > 0);
        importers.push((key, importer));
    }

    /// A reset left the command register and the power state as they are now.
    pub(crate) fn after_reset(&self) {
        self.migrating.reset();
        self.revoke();
        self.interrupts.command_changed(&self.function);
    }

    /// # Errors
    ///
    /// `EINVAL` when it is in low power already.
    pub(crate) fn enter_low_power(&self, wakeup: Option<Arc<EventFd>>) -> Result<()> {
        let mut power = self.power.lock();
        if power.low {
            return Err(Error::new(Errno::EINVAL, "the device is in low power already"));
        }
        *power = Power { low: true, wakeup };
        drop(power);
        self.revoke();
        Ok(())
    }

    pub(crate) fn is_in_low_power(&self) -> bool {
        self.power.lock().low
    }

    pub(crate) fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    pub(crate) fn leave_low_power(&self) {
        *self.power.lock() = Power::default();
    }

    /// An access resumes the device: one that asked to be told is told, and is out of low power.
    pub(crate) fn resume(&self) {
        let mut power = self.power.lock();
        if let Some(wakeup) = power.wakeup.take() {
            wakeup.signal();
            power.low = false;
        }
    }
}
