//! The client: a little memory, a few descriptors, no manners.

use std::os::fd::AsFd;
use std::sync::Arc;

use ioasis_iommufd::type1::Container;
use ioasis_iommufd::{
    self as iommufd, Account, AddressSpace, ClientFile, Context, MappableMemory, OnExec,
};
use ioasis_pci::{BARS, Bar};
use ioasis_sys::eventfd::EventFd;
use ioasis_sys::mapping::{Access, Mapping};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result};
use ioasis_vfio::{
    Client, Device, DeviceFile, DeviceMemory, GroupFile, IommuFile, REGION_SHIFT, VfioFile,
};

/// First byte of the client's memory; nothing is below or behind it.
pub(crate) const BASE: u64 = 0x7f00_0000;
/// Bytes of the client's memory.
pub(crate) const LENGTH: usize = 0x10_0000;
/// Descriptors it can have.
const DESCRIPTORS: usize = 32;

/// What a descriptor refers to.
#[derive(Clone, Debug)]
pub(crate) enum File {
    Iommufd(Arc<Context>),
    Container(Arc<Container>),
    Group(Arc<GroupFile>),
    Device(Arc<DeviceFile>),
    Installed(Arc<dyn ClientFile>),
    Event,
}

/// The client.
#[derive(Debug)]
pub(crate) struct Hostile {
    pub(crate) memory: iommufd::Memory,
    /// Pages it may lock.
    memlock_pages: u64,
    pub(crate) files: Mutex<Vec<File>>,
    /// BAR pages of every device file that was made, and pages of virtual IOMMUs.
    pub(crate) pages: Mutex<Vec<Arc<Mapping>>>,
}

impl Hostile {
    pub(crate) fn new(memlock_pages: u64) -> Self {
        Self {
            memlock_pages,
            memory: iommufd::Memory::new(BASE, LENGTH).expect("a little memory"),
            files: Mutex::default(),
            pages: Mutex::default(),
        }
    }

    /// The number of a descriptor of `file`.
    pub(crate) fn add(&self, file: File) -> Option<i32> {
        let mut files = self.files.lock();
        if files.len() == DESCRIPTORS {
            return None;
        }
        files.push(file);
        i32::try_from(files.len() - 1).ok()
    }

    pub(crate) fn file(&self, fd: i32) -> Result<File> {
        let files = self.files.lock();
        let found = usize::try_from(fd).ok().and_then(|index| files.get(index));
        found.cloned().ok_or(Error::new(Errno::EBADF, "no such descriptor"))
    }
}

/// Memory of a virtual IOMMU's that is stored into as BAR pages are, and mapped by nobody.
#[derive(Debug)]
struct Page(Arc<Mapping>);

impl MappableMemory for Page {
    fn offset(&self) -> u64 {
        0
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.0.write(at, bytes)
    }

    fn load(&self, at: u64) -> Result<u32> {
        self.0.load_u32(at)
    }

    fn store(&self, at: u64, value: u32) -> Result<()> {
        self.0.store_u32(at, value)
    }

    fn is_mapped(&self) -> bool {
        false
    }
}

impl iommufd::Client for Hostile {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<()> {
        self.memory.read(address, buf)
    }

    fn write(&self, address: u64, buf: &[u8]) -> Result<()> {
        self.memory.write(address, buf)
    }

    fn memory(&self) -> Arc<dyn AddressSpace> {
        Arc::new(self.memory.clone())
    }

    fn file_memory(&self, fd: i32) -> Result<Arc<dyn AddressSpace>> {
        match self.file(fd)? {
            File::Installed(file) => {
                file.memory().ok_or(Error::new(Errno::EINVAL, "a file without memory"))
            }
            _ => Ok(Arc::new(self.memory.clone())),
        }
    }

    fn account(&self) -> Account {
        Account {
            pid: 1,
            uid: 1,
            memlock_pages: Some(self.memlock_pages),
            ipc_lock: false,
            sys_resource: true,
            sys_rawio: true,
        }
    }

    fn install(&self, file: Arc<dyn ClientFile>, _on_exec: OnExec) -> Result<i32> {
        self.add(File::Installed(Arc::clone(&file))).ok_or_else(|| {
            file.close();
            Error::new(Errno::EMFILE, "no descriptor is left")
        })
    }

    fn mappable(&self, length: u64) -> Result<Arc<dyn MappableMemory>> {
        let page = Arc::new(Mapping::anonymous(usize::try_from(length).expect("a few pages"))?);
        self.pages.lock().push(Arc::clone(&page));
        Ok(Arc::new(Page(page)))
    }

    fn installed(&self, fd: i32) -> Result<Arc<dyn ClientFile>> {
        match self.file(fd)? {
            File::Installed(file) => Ok(file),
            _ => Err(Error::new(Errno::EBADFD, "another kind")),
        }
    }
}

impl Client for Hostile {
    fn iommu_file(&self, fd: i32) -> Result<IommuFile> {
        match self.file(fd)? {
            File::Iommufd(context) => Ok(IommuFile::Iommufd(context)),
            File::Container(container) => Ok(IommuFile::Container(container)),
            _ => Err(Error::new(Errno::EBADFD, "another kind")),
        }
    }

    fn eventfd(&self, fd: i32) -> Result<EventFd> {
        match self.file(fd)? {
            File::Event => EventFd::create(),
            _ => Err(Error::new(Errno::EINVAL, "another kind")),
        }
    }

    fn vfio_file(&self, fd: i32) -> Result<VfioFile> {
        match self.file(fd)? {
            File::Group(file) => Ok(VfioFile::Group(file)),
            File::Device(file) => Ok(VfioFile::Device(file)),
            _ => Err(Error::new(Errno::EINVAL, "another kind")),
        }
    }

    fn device_memory(&self, device: &Device) -> Result<DeviceMemory> {
        let refused = |_| Error::new(Errno::EMFILE, "no file for a device");
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = rustix::fs::memfd_create("device", flags).map_err(refused)?;
        rustix::fs::ftruncate(&file, 10 << REGION_SHIFT).map_err(refused)?;
        let mut pages: [Option<Arc<Mapping>>; BARS] = Default::default();
        for (index, slot) in (0u64..).zip(&mut pages) {
            let bar = device.function().bar(usize::try_from(index).expect("one of six"));
            let Some(end) = bar.and_then(Bar::mappable_end) else { continue };
            let length = usize::try_from(end).expect("a small BAR");
            let offset = (index + 1) << REGION_SHIFT;
            let mapping = Mapping::file(file.as_fd(), offset, length, Access::ReadWrite)?;
            let mapping = Arc::new(mapping);
            self.pages.lock().push(Arc::clone(&mapping));
            *slot = Some(mapping);
        }
        Ok(DeviceMemory { inode: 0, pages, doorbells: None })
    }
}
