//! Device files: the ioctls of an open device. Linux: `drivers/vfio/vfio_main.c`, `device_cdev.c`.

mod cdev;
mod peer;
mod region;

use std::sync::{Arc, Weak};

use ioasis_iommufd::inject::step;
use ioasis_iommufd::{AccessKind, Bound};
use ioasis_sys::sync::Mutex;
use ioasis_sys::sync::atomic::{AtomicBool, Ordering};
use ioasis_uapi::vfio;
use ioasis_uapi::{Errno, Error, Result};

use crate::device::Open;
use crate::emulated::Memory;
use crate::group::Hold;
use crate::registration::User;
use crate::{Client, Device, DeviceMemory, IommuFile, feature, info, reset};

pub(crate) use region::region_position;
pub use region::{REGION_SHIFT, region_index, region_offset};

/// An open device: everything behind one inode, however many descriptors lead to it.
#[derive(Debug)]
pub struct DeviceFile {
    device: Arc<Device>,
    path: Path,
    memory: DeviceMemory,
    /// The device may be used through this file.
    granted: AtomicBool,
    /// Given back at its close; a leaf.
    user: Mutex<Option<User>>,
    this: Weak<Self>,
}

/// How the file was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    Group(Hold),
    Cdev,
}

/// What an ioctl answers.
#[derive(Clone, Debug)]
pub enum Reply {
    /// This number.
    Value(i64),
    /// A new descriptor of this file: readable, writable and close-on-exec. It may be a file the
    /// caller has already: a device opened twice through its group is one file.
    Open(Arc<DeviceFile>),
}

type Handler = fn(&DeviceFile, &dyn Client, u64) -> Result<i64>;

/// What a call answers that has no number to tell.
fn zero(done: Result<()>) -> Result<i64> {
    done.map(|()| 0)
}

/// The ioctls of a device that may be used, in the order of the header.
const IOCTLS: [(u32, Handler); 12] = [
    (vfio::DEVICE_GET_INFO, |_, client, address| zero(info::device(client, address))),
    (vfio::DEVICE_GET_REGION_INFO, |file, client, address| {
        zero(info::region(client, file.device.function(), address))
    }),
    (vfio::DEVICE_GET_IRQ_INFO, |file, client, address| {
        zero(info::irq(client, file.device.function(), address))
    }),
    (vfio::DEVICE_SET_IRQS, |file, client, address| {
        zero(file.device.interrupts().set(client, file.device.shared_function(), address))
    }),
    (vfio::DEVICE_RESET, |file, _, _| zero(file.reset())),
    (vfio::DEVICE_GET_PCI_HOT_RESET_INFO, |file, client, address| {
        zero(reset::info(client, &file.device, address))
    }),
    (vfio::DEVICE_PCI_HOT_RESET, |file, client, address| {
        zero(reset::hot(client, &file.device, address))
    }),
    (vfio::DEVICE_IOEVENTFD, |file, client, address| {
        zero(file.device.ioeventfds().call(client, file.device.shared_function(), address))
    }),
    (vfio::DEVICE_FEATURE, |file, client, address| feature::call(client, &file.this(), address)),
    (vfio::DEVICE_ATTACH_IOMMUFD_PT, |file, client, address| zero(file.attach(client, address))),
    (vfio::DEVICE_DETACH_IOMMUFD_PT, |file, client, address| zero(file.detach(client, address))),
    (vfio::DEVICE_BIND_IOMMUFD, |file, client, address| zero(file.bind(client, address))),
];

impl DeviceFile {
    /// An open of the device's own node. It can do nothing until it is bound.
    pub(crate) fn of_cdev(device: Arc<Device>, user: User, memory: DeviceMemory) -> Arc<Self> {
        Self::new(device, Path::Cdev, (user, memory))
    }

    /// An open through the group, whose state is locked. Only a first open has a hold on the group.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the container has no IOMMU driver or the device is bound through its own node;
    /// `EPERM` without an IOMMU and `CAP_SYS_RAWIO`; `EBUSY` while the device is being closed; what
    /// binding and attaching answer.
    pub(crate) fn of_group(
        device: &Arc<Device>,
        client: &dyn Client,
        iommu: &IommuFile,
    ) -> Result<(Arc<Self>, Option<Hold>)> {
        device.present()?;
        let user = device.registration().enter()?;
        let mut opens = device.set().opens().lock();
        let open = &mut opens[device.slot()];
        if let Open::Group { file, .. } = &*open {
            let file = file.upgrade().expect("an open device has its file until it is closed");
            return Ok((file, None));
        }
        if matches!(open, Open::Closing) {
            // DIFFERS: Linux waits for the close of a device that an iommufd has.
            return Err(Error::new(Errno::EBUSY, "the device is being closed"));
        }
        assert!(matches!(open, Open::Closed), "an open group excludes bound cdevs");
        let (hold, bound) = claim(device, client, iommu)?;
        step("the memory of a device")?;
        let memory = client.device_memory(device)?;
        open_emulated(device, iommu)?;
        if let Err(error) = device.begin(&memory) {
            device.emulated().inspect(|emulated| emulated.end());
            return Err(error);
        }
        attach_compat(device, bound.as_ref())?;
        let file = Self::new(Arc::clone(device), Path::Group(hold), (user, memory));
        *open = Open::Group { file: Arc::downgrade(&file), bound };
        Ok((file, Some(hold)))
    }

    /// A file that may be used at once if it was opened through its group.
    fn new(device: Arc<Device>, path: Path, (user, memory): (User, DeviceMemory)) -> Arc<Self> {
        let granted = AtomicBool::new(path != Path::Cdev);
        let user = Mutex::new(Some(user));
        Arc::new_cyclic(|this| {
            let this = Weak::clone(this);
            Self { device, path, memory, granted, user, this }
        })
    }

    fn this(&self) -> Arc<Self> {
        self.this.upgrade().expect("a file that is called is alive")
    }

    /// Which device.
    #[must_use]
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// The memory shared with the file's users.
    #[must_use]
    pub fn memory(&self) -> &DeviceMemory {
        &self.memory
    }

    /// Answers an ioctl.
    ///
    /// # Errors
    ///
    /// `EINVAL` before the file is bound, `ENOTTY` for a command it does not have, `ENODEV` after
    /// the device was removed; the others are each command's own.
    pub fn ioctl(&self, client: &dyn Client, command: u32, address: u64) -> Result<Reply> {
        if command != vfio::DEVICE_BIND_IOMMUFD {
            self.usable()?;
        }
        self.device.present()?;
        let cdev_only = [vfio::DEVICE_ATTACH_IOMMUFD_PT, vfio::DEVICE_DETACH_IOMMUFD_PT];
        let hidden = self.path != Path::Cdev && cdev_only.contains(&command);
        let found = IOCTLS.iter().find(|(code, _)| *code == command && !hidden);
        let Some((_, handler)) = found else {
            return Err(Error::at(Errno::ENOTTY, "no such ioctl on a device", command.into()));
        };
        if command != vfio::DEVICE_BIND_IOMMUFD {
            self.touch();
        }
        handler(self, client, address).map(Reply::Value)
    }

    /// The last descriptor and the last mapping are gone: the device is closed if this file had it.
    pub fn close(&self) {
        self.close_device();
        let user = self.user.lock().take();
        // A bind that was under way has either bound it by now, or finds it closed.
        self.close_device();
        drop(user);
    }

    fn is_closed(&self) -> bool {
        self.user.lock().is_none()
    }

    fn close_device(&self) {
        let (opens, slot) = (self.device.set().opens(), self.device.slot());
        let mut held = opens.lock();
        if !self.granted.swap(false, Ordering::AcqRel) {
            return;
        }
        let old = std::mem::replace(&mut held[slot], Open::Closing);
        // Whoever opens the device meanwhile is told that it is busy, and does not wait for it.
        drop(held);
        self.device.end();
        // Detaches and unbinds, before another open can bind.
        drop(old);
        opens.lock()[slot] = Open::Closed;
        match self.path {
            Path::Group(hold) => self.device.group().device_closed(hold),
            Path::Cdev => self.device.group().unblock(),
        }
    }

    /// # Errors
    ///
    /// `EINVAL` before the file is bound.
    fn usable(&self) -> Result<()> {
        if self.granted.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Error::new(Errno::EINVAL, "the device is not bound to an iommufd"))
    }

    /// Every call finds the device awake, and makes its worker look.
    fn touch(&self) {
        self.device.resume();
        self.device.function().wake();
    }

    fn reset(&self) -> Result<()> {
        self.device.reset()
    }
}

/// The first half of a first open: the device is the group's owner's from here on.
fn claim(device: &Device, client: &dyn Client, iommu: &IommuFile) -> Result<(Hold, Option<Bound>)> {
    let no_iommu = device.group().is_no_iommu();
    let unprivileged = no_iommu && !client.account().sys_rawio;
    let refused = Error::new(Errno::EPERM, "a device without an IOMMU needs CAP_SYS_RAWIO");
    match iommu {
        IommuFile::Container(container) if !container.has_iommu() => {
            Err(Error::new(Errno::EINVAL, "the container has no IOMMU: SET_IOMMU comes first"))
        }
        _ if unprivileged => Err(refused),
        IommuFile::Container(_) => Ok((Hold::Container, None)),
        IommuFile::Iommufd(context) if no_iommu && context.compat_ioas_id().is_ok() => {
            Err(Error::new(Errno::EPERM, "the iommufd translates, the device does not"))
        }
        IommuFile::Iommufd(_) if no_iommu || device.group().is_emulated() => {
            Ok((Hold::Nothing, None))
        }
        IommuFile::Iommufd(context) => Ok((Hold::Nothing, Some(context.bind(device.endpoint())?))),
    }
}

/// An emulated device finds its bytes in the container, or by an access object that is attached to
/// the iommufd's container IOAS.
fn open_emulated(device: &Device, iommu: &IommuFile) -> Result<()> {
    let Some(emulated) = device.emulated() else { return Ok(()) };
    let memory = match iommu {
        IommuFile::Container(container) => Memory::Container(Arc::clone(container)),
        IommuFile::Iommufd(context) => {
            let access = context.create_access(AccessKind::Pins(emulated.user()))?;
            access.attach(context.compat_ioas_id()?)?;
            Memory::Access(access)
        }
    };
    emulated.begin(memory);
    Ok(())
}

/// The second half: a device bound to an iommufd by its group is attached to that iommufd's
/// container IOAS.
fn attach_compat(device: &Device, bound: Option<&Bound>) -> Result<()> {
    let Some(bound) = bound else { return Ok(()) };
    let attached = bound.context().compat_ioas_id().and_then(|ioas| bound.attach(ioas));
    if let Err(error) = attached {
        device.end();
        return Err(error);
    }
    Ok(())
}
