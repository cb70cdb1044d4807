//! Who calls: what a group or device file asks of the program behind an ioctl, beyond its memory.

use std::sync::Arc;

use ioasis_iommufd::Context;
use ioasis_iommufd::type1::Container;
use ioasis_pci::{BARS, Doorbells};
use ioasis_sys::eventfd::EventFd;
use ioasis_sys::mapping::Mapping;
use ioasis_uapi::Result;

use crate::{Device, DeviceFile, GroupFile};

/// The task that issued a call on a group or device file.
pub trait Client: ioasis_iommufd::Client {
    /// The open `/dev/iommu` or `/dev/vfio/vfio` behind the caller's `fd`.
    ///
    /// # Errors
    ///
    /// `EBADF` if the caller has no such fd, `EBADFD` if it is a file of another kind.
    fn iommu_file(&self, fd: i32) -> Result<IommuFile>;

    /// The eventfd behind the caller's `fd`.
    ///
    /// # Errors
    ///
    /// `EBADF` if the caller has no such fd, `EINVAL` if it is no eventfd.
    fn eventfd(&self, fd: i32) -> Result<EventFd>;

    /// Whether any program still has `eventfd`, which one of them gave: then the kernel has not
    /// told its driver that it was closed (`EPOLLHUP` in `virqfd_wakeup`). Asked where the answer
    /// decides, for it may take a while.
    fn has_open(&self, eventfd: &EventFd) -> bool {
        let _ = eventfd;
        true
    }

    /// The open group or device behind the caller's `fd`.
    ///
    /// # Errors
    ///
    /// `EBADF` if the caller has no such fd, `EINVAL` if it is a file of another kind.
    fn vfio_file(&self, fd: i32) -> Result<VfioFile>;

    /// Makes the file that is to stand behind device fds of `device`, and maps its BAR pages.
    ///
    /// # Errors
    ///
    /// `ENOMEM` or `EMFILE` when the system refuses.
    fn device_memory(&self, device: &Device) -> Result<DeviceMemory>;
}

/// What SET_CONTAINER and BIND_IOMMUFD are given.
#[derive(Clone, Debug)]
pub enum IommuFile {
    /// An open `/dev/iommu`.
    Iommufd(Arc<Context>),
    /// An open `/dev/vfio/vfio`.
    Container(Arc<Container>),
}

/// A group or a device, as KVM and PCI_HOT_RESET are given them.
#[derive(Clone, Debug)]
pub enum VfioFile {
    /// An open `/dev/vfio/N`.
    Group(Arc<GroupFile>),
    /// An open device.
    Device(Arc<DeviceFile>),
}

/// The memory a device file shares with its users: BAR `index` lies at
/// [`region_offset`](crate::region_offset) of the file.
#[derive(Debug)]
pub struct DeviceMemory {
    /// The number of that file, by which its maker finds it again.
    pub inode: u64,
    /// What the file maps: for every BAR with mappable ranges, from its offset 0 to the end of the
    /// last range.
    pub pages: [Option<Arc<Mapping>>; BARS],
    /// What tells of stores to those.
    pub doorbells: Option<Arc<dyn Doorbells>>,
}
