//! Context: one open of `/dev/iommu`.
//!
//! The file and everything that was made through it hold the context; when the last of them goes,
//! what is left is destroyed, holders before what they hold. Linux: `drivers/iommu/iommufd/main.c`.
//!
//! Lock order: `Context::settings` and `Context::groups` are taken alone, or before `Table::slots`.

mod access;
mod bound;
pub(crate) mod files;
mod library;
mod look;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use ioasis_iommupt::{Iova, IovaRange, Prot};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;

pub use access::AccessHandle;
pub use bound::Bound;
pub use library::HwptFlags;
pub use look::{HwptLook, ObjectKind, ObjectLook, QueueLook};

use crate::account::{Mode, Rule};
use crate::client::{Account, Kind};
use crate::device::DeviceGroup;
use crate::hw::endpoint::Endpoint;
use crate::hw::group::Group;
use crate::hw::machine::Machine;
use crate::hw::ops::UserData;
use crate::hwpt::{Hwpt, Origin};
use crate::inject::step;
use crate::ioas::{Ioas, MapRequest, Place, map_pages};
use crate::object::{Head, Held, Reservation, Table};

#[derive(Debug)]
struct Settings {
    /// The IOAS that VFIO container calls act on.
    vfio_ioas: Option<u32>,
    no_iommu: bool,
}

/// One open of `/dev/iommu`, and all its objects.
#[derive(Debug)]
pub struct Context {
    machine: Arc<Machine>,
    token: u64,
    objects: Arc<Table>,
    settings: Mutex<Settings>,
    /// Pages are charged against the process's sum. Written with the settings locked.
    per_process: AtomicBool,
    groups: Mutex<Vec<Weak<DeviceGroup>>>,
}

/// What to copy, and how.
#[derive(Clone, Copy, Debug)]
pub struct CopyRequest {
    /// The IOAS to copy from.
    pub source: u32,
    /// What to copy.
    pub range: IovaRange,
    /// Where it goes.
    pub place: Place,
    /// What devices may do.
    pub prot: Prot,
}

impl Context {
    /// An open of `/dev/iommu` on `machine`.
    #[must_use]
    pub fn new(machine: &Arc<Machine>) -> Arc<Self> {
        Arc::new(Self {
            machine: Arc::clone(machine),
            token: machine.token(),
            objects: Arc::default(),
            settings: Mutex::new(Settings { vfio_ioas: None, no_iommu: false }),
            per_process: AtomicBool::new(false),
            groups: Mutex::default(),
        })
    }

    /// The machine it was opened on.
    #[must_use]
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    pub(crate) fn objects(&self) -> &Arc<Table> {
        &self.objects
    }

    /// Against which sum pages are charged.
    #[must_use]
    pub fn account_mode(&self) -> Mode {
        if self.per_process.load(Ordering::Acquire) { Mode::Process } else { Mode::User }
    }

    /// Chooses the sum pages are charged against.
    ///
    /// # Errors
    ///
    /// `EBUSY` once there is any object.
    pub fn set_account_mode(&self, mode: Mode) -> Result<()> {
        let _settings = self.settings.lock();
        if !self.objects.is_empty() {
            return refuse!(EBUSY, "the accounting mode is fixed once there are objects");
        }
        self.per_process.store(mode == Mode::Process, Ordering::Release);
        Ok(())
    }

    /// [`set_account_mode`](Self::set_account_mode) with a value that may be none: that is refused
    /// after `EBUSY`.
    pub(crate) fn choose_account_mode(&self, mode: Option<Mode>) -> Result<()> {
        match mode {
            Some(mode) => self.set_account_mode(mode),
            None if !self.objects.is_empty() => self.set_account_mode(self.account_mode()),
            None => refuse!(EINVAL, "the accounting mode is 0 (user) or 1 (process)"),
        }
    }

    /// Makes `account` pay for every page mapped through this context.
    ///
    /// # Errors
    ///
    /// `EINVAL` when something other than files is mapped, `ENOMEM` over its limits; nothing has
    /// changed then.
    pub fn change_process(&self, account: Account) -> Result<()> {
        let ioases = self.objects.all::<Ioas>();
        Ioas::change_process(&self.machine, &ioases, account)
    }

    /// Makes an IOAS and returns its id.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn alloc_ioas(&self) -> Result<u32> {
        let reservation = self.objects.reserve()?;
        let id = reservation.id();
        let ioas = self.make_ioas(&reservation)?;
        reservation.publish(ioas);
        Ok(id)
    }

    pub(crate) fn make_ioas(&self, reservation: &Reservation) -> Result<Arc<Ioas>> {
        step("an IOAS")?;
        Ok(Arc::new(Ioas::new(&self.machine, Head::new(reservation.id()))))
    }

    pub(crate) fn ioas(&self, id: u32) -> Result<Held<Ioas>> {
        self.objects.get(id)
    }

    /// Maps memory into the IOAS `id` and returns where.
    ///
    /// # Errors
    ///
    /// `ENOENT` without the IOAS; `EINVAL` for no bytes, misaligned or over reserved ranges;
    /// `EOVERFLOW`; `EEXIST`; `ENOSPC`; `EFAULT` and `ENOMEM` of pinning.
    pub fn map(&self, id: u32, request: MapRequest) -> Result<Iova> {
        let ioas = self.ioas(id)?;
        self.map_in(ioas.arc(), request)
    }

    #[inline]
    pub(crate) fn map_in(&self, ioas: &Arc<Ioas>, request: MapRequest) -> Result<Iova> {
        // iopt_alloc_user_pages adds the whole length, where the type1 driver adds one less.
        let end = request.address.checked_add(request.length);
        if request.space.kind() == Kind::User && end.is_none() {
            return refuse!(EOVERFLOW, "the mapped memory wraps", request.address);
        }
        let rule = Rule::iommufd(self.account_mode(), &request.account);
        map_pages(&self.machine, ioas, request, rule)
    }

    /// Maps again, into the IOAS `id`, what another maps; pages are shared.
    ///
    /// # Errors
    ///
    /// `ENOENT` without the IOASes or where the source maps nothing, `EPERM` when more is asked
    /// than the pages grant, else as [`map`](Self::map).
    pub fn copy(&self, id: u32, request: CopyRequest) -> Result<Iova> {
        let slices = self.ioas(request.source)?.slices(request.range)?;
        let ioas = self.ioas(id)?;
        for slice in slices.iter().filter(|slice| slice.pages.kind() == Kind::DmaBuf) {
            slice.pages.import(Ioas::importer(ioas.arc()));
        }
        ioas.map_slices(slices, request.place, request.prot)
    }

    /// Destroys an object.
    ///
    /// # Errors
    ///
    /// `ENOENT` without it, `EBUSY` while something uses it.
    pub fn destroy(&self, id: u32) -> Result<()> {
        let object = self.objects.remove(id)?;
        self.forget_compat_ioas(id);
        object.retire();
        Ok(())
    }

    /// The file was closed by everybody: destroys the objects of a program's own, which may hold
    /// the context.
    pub fn close(&self) {
        for id in self.objects.holders_of_context() {
            // Busy means that a call in progress uses it, which nobody waits for.
            let _in_use = self.destroy(id);
        }
    }

    /// The object `id` is gone: if it was the IOAS of VFIO container calls, they have none. Linux:
    /// `iommufd_ioas_destroy`.
    fn forget_compat_ioas(&self, id: u32) {
        let mut settings = self.settings.lock();
        if settings.vfio_ioas == Some(id) {
            settings.vfio_ioas = None;
        }
    }

    /// Lets go of a HWPT that a device was attached to; an automatic one goes when it was the last.
    pub(crate) fn put_hwpt(&self, hwpt: Held<Hwpt>) {
        if hwpt.origin != Origin::Automatic {
            return;
        }
        let ioas = hwpt.ioas.clone();
        let mut hwpts = ioas.hwpts.lock();
        if let Some(hwpt) = self.objects.remove_held(hwpt) {
            hwpt.leave(&mut hwpts);
            drop(hwpts);
            drop(hwpt);
        }
    }

    /// Makes a HWPT on an IOAS for the IOMMU of a device, without telling anybody its id yet.
    pub(crate) fn make_hwpt(
        &self,
        ioas: &Held<Ioas>,
        device: &Endpoint,
        flags: u32,
        data: Option<&UserData<'_>>,
    ) -> Result<(Reservation, Arc<Hwpt>)> {
        let reservation = self.objects.reserve()?;
        let head = Head::new(reservation.id());
        let mut hwpts = ioas.hwpts.lock();
        let hwpt = Hwpt::paging(head, ioas.clone(), device, flags, data, Origin::Client)?;
        hwpt.join(&mut hwpts)?;
        Ok((reservation, hwpt))
    }

    /// Undoes [`make_hwpt`](Self::make_hwpt).
    pub(crate) fn abort_hwpt(hwpt: &Hwpt) {
        let mut hwpts = hwpt.ioas.hwpts.lock();
        hwpt.leave(&mut hwpts);
    }

    /// `group` as this context sees it.
    fn group(&self, group: &Arc<Group>) -> Arc<DeviceGroup> {
        let mut groups = self.groups.lock();
        groups.retain(|known| known.strong_count() > 0);
        let known =
            groups.iter().filter_map(Weak::upgrade).find(|known| Arc::ptr_eq(known.group(), group));
        known.unwrap_or_else(|| {
            let made = DeviceGroup::new(group);
            groups.push(Arc::downgrade(&made));
            made
        })
    }

    /// Whether a device of `group` is bound here: `PCI_HOT_RESET` asks.
    #[must_use]
    pub fn has_group(&self, group: &Arc<Group>) -> bool {
        let groups = self.groups.lock();
        groups.iter().filter_map(Weak::upgrade).any(|known| Arc::ptr_eq(known.group(), group))
    }

    /// Makes sure that VFIO container calls have an IOAS: a group was set on this file.
    ///
    /// # Errors
    ///
    /// `EINVAL` in no-iommu mode, `ENOMEM`.
    pub fn compat_create_ioas(&self) -> Result<()> {
        let mut settings = self.settings.lock();
        if settings.no_iommu {
            return refuse!(EINVAL, "the file is in no-iommu mode");
        }
        if settings.vfio_ioas.is_none() {
            settings.vfio_ioas = Some(self.alloc_ioas()?);
        }
        Ok(())
    }

    /// The IOAS that VFIO container calls act on.
    ///
    /// # Errors
    ///
    /// `ENODEV` when there is none.
    pub fn compat_ioas_id(&self) -> Result<u32> {
        match self.settings.lock().vfio_ioas {
            Some(id) => Ok(id),
            None => refuse!(
                ENODEV,
                "the file has no IOAS for VFIO calls: set a group, or IOMMU_VFIO_IOAS"
            ),
        }
    }

    pub(crate) fn compat_ioas(&self) -> Result<Held<Ioas>> {
        let id = self.compat_ioas_id()?;
        // Destroyed between the two steps is as good as never set.
        self.ioas(id)
            .map_err(|error| ioasis_uapi::Error { errno: ioasis_uapi::Errno::ENODEV, ..error })
    }

    /// Chooses the IOAS that VFIO container calls act on.
    ///
    /// # Errors
    ///
    /// `ENOENT` without the IOAS.
    pub fn set_compat_ioas(&self, id: u32) -> Result<()> {
        let mut settings = self.settings.lock();
        let ioas = self.ioas(id)?;
        settings.vfio_ioas = Some(ioas.id());
        Ok(())
    }

    /// Leaves VFIO container calls without an IOAS.
    pub fn clear_compat_ioas(&self) {
        self.settings.lock().vfio_ioas = None;
    }

    /// A no-iommu group was set on this file.
    ///
    /// # Errors
    ///
    /// `EINVAL` when VFIO container calls have an IOAS.
    pub fn compat_set_no_iommu(&self) -> Result<()> {
        let mut settings = self.settings.lock();
        if settings.vfio_ioas.is_some() {
            return refuse!(EINVAL, "the file serves groups with an IOMMU");
        }
        settings.no_iommu = true;
        Ok(())
    }

    /// Whether a no-iommu group was set on this file.
    #[must_use]
    pub fn is_no_iommu(&self) -> bool {
        self.settings.lock().no_iommu
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Holders first: each round destroys what nobody holds any more.
        loop {
            let mut destroyed = false;
            for id in self.objects.ids() {
                if let Ok(object) = self.objects.remove(id) {
                    object.retire();
                    destroyed = true;
                }
            }
            if !destroyed {
                return;
            }
        }
    }
}
