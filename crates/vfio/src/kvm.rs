//! KVM_DEV_VFIO: the files a virtual machine may have devices in. Linux: `virt/kvm/vfio.c`.
//!
//! Only the bookkeeping is here: which calls succeed, and whether DMA can bypass the caches, which
//! a virtual machine has to know to let its guest flush them.

use std::sync::Arc;

use ioasis_iommufd::inject::step;
use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result};

use crate::{Client, Device, VfioFile};

/// `KVM_CREATE_DEVICE` of `linux/kvm.h`, on a virtual machine.
pub const KVM_CREATE_DEVICE: u32 = 0xc00c_aee0;
/// `KVM_SET_DEVICE_ATTR`, on a device of a virtual machine.
pub const KVM_SET_DEVICE_ATTR: u32 = 0x4018_aee1;
/// `KVM_GET_DEVICE_ATTR`.
pub const KVM_GET_DEVICE_ATTR: u32 = 0x4018_aee2;
/// `KVM_HAS_DEVICE_ATTR`.
pub const KVM_HAS_DEVICE_ATTR: u32 = 0x4018_aee3;
/// `KVM_DEV_TYPE_VFIO` of `linux/kvm.h`.
pub const KVM_DEV_TYPE_VFIO: u32 = 4;
/// `KVM_CREATE_DEVICE_TEST`.
const CREATE_TEST: u32 = 1;
/// `KVM_DEV_VFIO_FILE`, which is `KVM_DEV_VFIO_GROUP`.
const FILE: u32 = 1;
/// `KVM_DEV_VFIO_FILE_ADD`.
const FILE_ADD: u64 = 1;
/// `KVM_DEV_VFIO_FILE_DEL`.
const FILE_DEL: u64 = 2;

/// `struct kvm_create_device`.
#[derive(Clone, Copy, Debug)]
pub struct KvmCreateDevice {
    /// Which kind of device.
    pub kind: u32,
    /// Whether the caller only asks if it could be made.
    pub is_test: bool,
}

impl KvmCreateDevice {
    /// Where the number of the new descriptor is to be written.
    pub const FD: u64 = 4;

    /// Reads the argument of KVM_CREATE_DEVICE.
    ///
    /// # Errors
    ///
    /// `EFAULT`.
    pub fn read(client: &dyn Client, address: u64) -> Result<Self> {
        let mut bytes = [0; 12];
        client.read(address, &mut bytes)?;
        let [kind, _, flags] = words(&bytes);
        Ok(Self { kind, is_test: flags & CREATE_TEST != 0 })
    }
}

fn words<const BYTES: usize, const WORDS: usize>(bytes: &[u8; BYTES]) -> [u32; WORDS] {
    assert!(BYTES == WORDS * 4, "whole words");
    let (chunks, _) = bytes.as_chunks::<4>();
    std::array::from_fn(|at| u32::from_ne_bytes(chunks[at]))
}

/// The VFIO device of one virtual machine; it has at most one.
#[derive(Debug, Default)]
pub struct KvmDevice {
    files: Mutex<Vec<VfioFile>>,
}

impl KvmDevice {
    /// Answers an ioctl on the device's own descriptor.
    ///
    /// # Errors
    ///
    /// `EFAULT`; `EPERM` for KVM_GET_DEVICE_ATTR, since nothing can be read; `ENOTTY` for another
    /// command; what [`KvmDevice::set_attr`] answers.
    pub fn ioctl(&self, client: &dyn Client, command: u32, address: u64) -> Result<()> {
        match command {
            KVM_SET_DEVICE_ATTR | KVM_HAS_DEVICE_ATTR => {}
            KVM_GET_DEVICE_ATTR => {
                return Err(Error::new(Errno::EPERM, "the VFIO device of KVM has nothing to read"));
            }
            _ => return Err(Error::at(Errno::ENOTTY, "no such command", command.into())),
        }
        let mut bytes = [0; 24];
        client.read(address, &mut bytes)?;
        let [_flags, group, words @ ..] = words::<24, 6>(&bytes);
        let long = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
        let (attr, address) = (long(words[0], words[1]), long(words[2], words[3]));
        match command {
            KVM_HAS_DEVICE_ATTR => Self::has_attr(group, attr),
            _ => self.set_attr(client, group, attr, address),
        }
    }

    /// Answers KVM_HAS_DEVICE_ATTR.
    ///
    /// # Errors
    ///
    /// `ENXIO` for what is none of its attributes.
    pub fn has_attr(group: u32, attr: u64) -> Result<()> {
        if group == FILE && matches!(attr, FILE_ADD | FILE_DEL) {
            return Ok(());
        }
        Err(Error::at(Errno::ENXIO, "the VFIO device of KVM has no such attribute", attr))
    }

    /// Answers KVM_SET_DEVICE_ATTR; `address` leads to the number of a fd.
    ///
    /// # Errors
    ///
    /// `ENXIO` for what is none of its attributes; `EFAULT`; `EBADF` for a closed fd; `EINVAL` for
    /// what is neither a group nor a device; `EEXIST` for one that was added; `ENOENT` for one that
    /// was not.
    pub fn set_attr(&self, client: &dyn Client, group: u32, attr: u64, address: u64) -> Result<()> {
        Self::has_attr(group, attr)?;
        let mut fd = [0; 4];
        client.read(address, &mut fd)?;
        let file = client.vfio_file(i32::from_ne_bytes(fd));
        let mut files = self.files.lock();
        if attr == FILE_ADD {
            let file = file?;
            if files.iter().any(|other| other.is(&file)) {
                return Err(Error::new(Errno::EEXIST, "the file was added before"));
            }
            step("an entry for a file")?;
            files.push(file);
            return Ok(());
        }
        let absent = Error::new(Errno::ENOENT, "the file was not added");
        let file =
            file.map_err(|error| if error.errno == Errno::EINVAL { absent } else { error })?;
        let found = files.iter().position(|other| other.is(&file)).ok_or(absent)?;
        let removed = files.swap_remove(found);
        drop(files);
        drop(removed);
        Ok(())
    }

    /// Whether some device's DMA is not forced to be coherent: the guest's cache flushes are needed
    /// then.
    #[must_use]
    pub fn has_noncoherent_dma(&self) -> bool {
        self.files.lock().iter().any(|file| !file.enforces_coherency())
    }
}

impl VfioFile {
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Group(one), Self::Group(other)) => Arc::ptr_eq(one, other),
            (Self::Device(one), Self::Device(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// Whether the IOMMU can force the DMA of all its devices to be coherent. Linux:
    /// `vfio_file_enforced_coherent`.
    fn enforces_coherency(&self) -> bool {
        let coherent = |device: &Arc<Device>| {
            !device.group().is_no_iommu()
                && !device.group().is_emulated()
                && device.endpoint().iommu().enforce_coherency
        };
        match self {
            Self::Group(file) => file.group().devices().iter().all(coherent),
            Self::Device(file) => coherent(file.device()),
        }
    }
}
