//! Groups: `/dev/vfio/N`. Linux: `drivers/vfio/group.c`.

use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use ioasis_iommufd as iommufd;
use ioasis_iommufd::PeDevices;
use ioasis_iommufd::inject::step;
use ioasis_iommufd::type1::{GroupKind, Member};
use ioasis_sys::sync::Mutex;
use ioasis_sys::sync::atomic::{AtomicBool, Ordering};
use ioasis_uapi::vfio::{self, GroupStatus};
use ioasis_uapi::{Errno, Error, Result};

use crate::file::Reply;
use crate::name::{self, Match};
use crate::{Client, Device, DeviceFile, Driver, IommuFile, arg};

/// Devices that one IOMMU cannot tell apart, or a device without an IOMMU.
pub struct Group {
    hardware: Arc<iommufd::Group>,
    kind: GroupKind,
    devices: OnceLock<Vec<Weak<Device>>>,
    state: Mutex<State>,
    removed: AtomicBool,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    /// Its one open file exists, or a device opened through it holds it.
    pub(crate) opened: bool,
    /// The last descriptor of that file is gone.
    closed: bool,
    /// Bound cdevs of its devices: they and an open group exclude each other.
    pub(crate) cdevs: u32,
    /// What SET_CONTAINER set.
    pub(crate) iommu: Option<IommuFile>,
    /// Open devices that hold the container.
    pub(crate) users: u32,
    /// How often it lost its last device: a file of before is of no group any more.
    losses: u64,
}

impl PeDevices for Group {
    fn hot_reset(&self) -> Result<()> {
        self.devices().iter().try_for_each(|device| device.reset())
    }
}

/// An open `/dev/vfio/N`.
#[derive(Debug)]
pub struct GroupFile {
    group: Arc<Group>,
    /// [`State::losses`] when it was opened.
    losses: u64,
}

type Handler = fn(&GroupFile, &dyn Client, u64) -> Result<Reply>;

/// The ioctls of a group file, in the order of the header.
const IOCTLS: [(u32, Handler); 4] = [
    (vfio::GROUP_GET_STATUS, GroupFile::get_status),
    (vfio::GROUP_SET_CONTAINER, GroupFile::set_container),
    (vfio::GROUP_UNSET_CONTAINER, GroupFile::unset_container),
    (vfio::GROUP_GET_DEVICE_FD, GroupFile::get_device_fd),
];

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.devices().iter().map(|device| device.bdf()).collect();
        f.debug_struct("Group")
            .field("number", &self.number())
            .field("devices", &names)
            .finish_non_exhaustive()
    }
}

impl Group {
    pub(crate) fn new(hardware: &Arc<iommufd::Group>, kind: GroupKind) -> Arc<Self> {
        Arc::new(Self {
            hardware: Arc::clone(hardware),
            kind,
            devices: OnceLock::new(),
            state: Mutex::default(),
            removed: AtomicBool::new(false),
        })
    }

    pub(crate) fn fill(self: &Arc<Self>, devices: Vec<Weak<Device>>) {
        assert!(self.devices.set(devices).is_ok(), "a group is filled once");
        let group: Weak<Self> = Arc::downgrade(self);
        self.hardware.set_devices(group);
    }

    pub(crate) fn state(&self) -> &Mutex<State> {
        &self.state
    }

    /// Whether somebody owns the DMA of its devices.
    pub(crate) fn is_owned(&self) -> bool {
        self.hardware.is_owned()
    }

    /// Whether it is this group of the IOMMU's, used like this.
    pub(crate) fn is(&self, hardware: &Arc<iommufd::Group>, kind: GroupKind) -> bool {
        Arc::ptr_eq(&self.hardware, hardware) && self.kind == kind
    }

    /// N of `/dev/vfio/N`.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.hardware.number()
    }

    /// The name of its node below `/dev/vfio`: `1`, or `noiommu-1`.
    #[must_use]
    pub fn node(&self) -> String {
        let number = self.number();
        if self.is_no_iommu() { format!("noiommu-{number}") } else { number.to_string() }
    }

    /// Whether its devices have no DMA: their driver moves their bytes.
    #[must_use]
    pub fn is_emulated(&self) -> bool {
        self.kind == GroupKind::Emulated
    }

    /// Whether its devices have no IOMMU.
    #[must_use]
    pub fn is_no_iommu(&self) -> bool {
        self.kind == GroupKind::NoIommu
    }

    /// Its devices.
    #[must_use]
    pub fn devices(&self) -> Vec<Arc<Device>> {
        self.devices.get().into_iter().flatten().filter_map(Weak::upgrade).collect()
    }

    /// Opens `/dev/vfio/N`: one open at a time.
    ///
    /// # Errors
    ///
    /// `ENODEV` when its devices are gone or none has a VFIO driver; `EPERM` for a group without
    /// an IOMMU and a caller without `CAP_SYS_RAWIO`; `EBUSY` when it is open, or one of its
    /// devices is bound through its own node.
    pub fn open(self: &Arc<Self>, client: &dyn Client) -> Result<Arc<GroupFile>> {
        self.present()?;
        if self.is_no_iommu() && !client.account().sys_rawio {
            return Err(Error::new(Errno::EPERM, "a group without an IOMMU needs CAP_SYS_RAWIO"));
        }
        let mut state = self.state.lock();
        if !self.devices().iter().any(|device| device.is_registered()) {
            return Err(Error::new(Errno::ENODEV, "no device of the group has a VFIO driver"));
        }
        if state.cdevs != 0 {
            return Err(Error::new(
                Errno::EBUSY,
                "a device of the group is open through its own node",
            ));
        }
        if state.opened {
            return Err(Error::new(Errno::EBUSY, "the group is open"));
        }
        step("an open group")?;
        state.opened = true;
        state.closed = false;
        Ok(Arc::new(GroupFile { group: Arc::clone(self), losses: state.losses }))
    }

    fn present(&self) -> Result<()> {
        if self.removed.load(Ordering::Acquire) {
            return Err(Error::new(Errno::ENODEV, "the group's devices were removed"));
        }
        if !self.devices().iter().any(|device| device.exists()) {
            return Err(Error::new(Errno::ENODEV, "the group has no device now"));
        }
        Ok(())
    }

    pub(crate) fn remove(&self) {
        self.removed.store(true, Ordering::Release);
    }

    /// A device of it is there again.
    pub(crate) fn come_anew(&self) {
        self.removed.store(false, Ordering::Release);
    }

    /// The group goes with its last device.
    pub(crate) fn remove_if_empty(&self) {
        if self.devices().iter().all(|device| device.present().is_err()) {
            self.remove();
        }
    }

    /// A cdev is about to bind: no group open until [`Group::unblock`].
    ///
    /// # Errors
    ///
    /// `EBUSY` when the group is open.
    pub(crate) fn block(&self) -> Result<()> {
        let mut state = self.state.lock();
        if state.opened {
            return Err(Error::new(Errno::EBUSY, "the group is open"));
        }
        state.cdevs += 1;
        Ok(())
    }

    pub(crate) fn unblock(&self) {
        let mut state = self.state.lock();
        assert!(state.cdevs > 0, "a block is undone once");
        state.cdevs -= 1;
    }

    /// A device opened through this group is closed for good; `held` says whether it held the
    /// container.
    pub(crate) fn device_closed(&self, held: Hold) {
        let mut state = self.state.lock();
        if held == Hold::Container {
            assert!(state.users > 0, "a hold is given back once");
            state.users -= 1;
        }
        if state.closed && state.users == 0 {
            self.release(&mut state);
        }
    }

    /// The group file is gone and no device holds it.
    fn release(&self, state: &mut State) {
        let (cdevs, losses) = (state.cdevs, state.losses);
        let old = std::mem::replace(state, State { cdevs, losses, ..State::default() });
        if let Some(IommuFile::Container(container)) = old.iommu {
            container.remove_group(&self.hardware);
        }
    }

    /// A device lost its driver. With the last, who has the group open has nothing any more
    /// (`vfio_device_remove_group`).
    pub(crate) fn lose_device(&self) {
        let mut state = self.state.lock();
        if self.devices().iter().all(|device| !device.is_registered()) {
            assert_eq!(state.users, 0, "no device of it is open");
            self.release(&mut state);
            state.losses += 1;
        }
    }

    /// The group as a container takes it.
    fn member(&self) -> Member {
        let endpoints: Vec<_> =
            self.devices().iter().map(|device| Arc::clone(device.endpoint())).collect();
        Member::new(self.kind, &self.hardware, &endpoints)
    }
}

/// What an open device keeps of its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// The group file, because of its container.
    Container,
    /// Nothing: the device is bound to an iommufd itself.
    Nothing,
}

impl GroupFile {
    /// Which group.
    #[must_use]
    pub fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// Answers an ioctl.
    ///
    /// # Errors
    ///
    /// `ENOTTY` for a command a group does not have, `ENODEV` after removal; the others are each
    /// command's own.
    pub fn ioctl(&self, client: &dyn Client, command: u32, address: u64) -> Result<Reply> {
        let found = IOCTLS.iter().find(|(code, _)| *code == command);
        let Some((_, handler)) = found else {
            return Err(Error::at(Errno::ENOTTY, "no such ioctl on a group", command.into()));
        };
        self.group.present()?;
        if self.group.state.lock().losses != self.losses {
            return Err(Error::new(Errno::ENODEV, "the group lost its last device"));
        }
        handler(self, client, address)
    }

    /// The last descriptor is gone. With a container, open devices keep the group until they are
    /// closed.
    pub fn close(&self) {
        let mut state = self.group.state.lock();
        if state.losses != self.losses {
            return;
        }
        state.closed = true;
        if state.users == 0 {
            self.group.release(&mut state);
        }
    }

    fn get_status(&self, client: &dyn Client, address: u64) -> Result<Reply> {
        const MIN: usize = size_of::<GroupStatus>();
        let mut status: GroupStatus = arg::first(client, address, MIN)?;
        let state = self.group.state.lock();
        status.flags = if state.iommu.is_some() {
            vfio::GROUP_FLAGS_CONTAINER_SET | vfio::GROUP_FLAGS_VIABLE
        } else if self.group.hardware.is_owned() || self.group.hardware.has_kernel_driver() {
            0
        } else {
            vfio::GROUP_FLAGS_VIABLE
        };
        drop(state);
        arg::write(client, address, &status, MIN)?;
        Ok(Reply::Value(0))
    }

    fn set_container(&self, client: &dyn Client, address: u64) -> Result<Reply> {
        let mut fd = [0; 4];
        client.read(address, &mut fd)?;
        let fd = i32::from_ne_bytes(fd);
        if fd < 0 {
            return Err(Error::new(Errno::EBADF, "the fd is negative"));
        }
        // Whether the fd is open comes first, what is behind it last.
        let file = match client.iommu_file(fd) {
            Err(error) if error.errno == Errno::EBADF => return Err(error),
            file => file,
        };
        let group = &self.group;
        let mut state = group.state.lock();
        if state.iommu.is_some() {
            return Err(Error::new(Errno::EINVAL, "the group has a container"));
        }
        let file = file?;
        match &file {
            IommuFile::Container(container) => {
                container.add_group(&client.account(), group.member())?;
            }
            IommuFile::Iommufd(context) if group.is_no_iommu() => context.compat_set_no_iommu()?,
            IommuFile::Iommufd(context) => context.compat_create_ioas()?,
        }
        state.iommu = Some(file);
        Ok(Reply::Value(0))
    }

    fn unset_container(&self, _client: &dyn Client, _address: u64) -> Result<Reply> {
        let mut state = self.group.state.lock();
        match &state.iommu {
            None => return Err(Error::new(Errno::EINVAL, "the group has no container")),
            Some(IommuFile::Container(_)) if state.users != 0 => {
                return Err(Error::new(Errno::EBUSY, "a device of the group is open"));
            }
            Some(IommuFile::Container(container)) => container.remove_group(&self.group.hardware),
            Some(IommuFile::Iommufd(_)) => {}
        }
        state.iommu = None;
        Ok(Reply::Value(0))
    }

    fn get_device_fd(&self, client: &dyn Client, address: u64) -> Result<Reply> {
        let text = arg::string(client, address, 4096)?;
        let device = self.find(&text)?;
        let mut state = self.group.state.lock();
        let Some(iommu) = state.iommu.clone() else {
            return Err(Error::new(Errno::EINVAL, "the group has no container"));
        };
        let (file, hold) = DeviceFile::of_group(&device, client, &iommu)?;
        if hold == Some(Hold::Container) {
            state.users += 1;
        }
        Ok(Reply::Open(file))
    }

    /// The device a name speaks of, if the name has the token that it needs.
    fn find(&self, text: &[u8]) -> Result<Arc<Device>> {
        let devices = self.group.devices();
        // What is leaving is not found any more (`vfio_device_group_unregister`).
        let found = |device: &&Arc<Device>| device.exists() && device.driver() == Driver::Vfio;
        for device in devices.iter().filter(found) {
            if let Match::Yes { token } = name::parse(text, device.name())? {
                device.check_token(token.as_ref())?;
                return Ok(Arc::clone(device));
            }
        }
        Err(Error::new(Errno::ENODEV, "the group has no such device"))
    }
}
