//! Function reset and hot reset.

use std::sync::Arc;

use ioasis_iommufd::inject::step;
use ioasis_uapi::vfio::{self, PciDependentDevice, PciHotReset, PciHotResetInfo};
use ioasis_uapi::{Errno, Error, Result};
use zerocopy::IntoBytes;

use crate::device::{Open, Opens};
use crate::{Client, Device, Group, VfioFile, arg};

const MIN: usize = size_of::<PciHotResetInfo>();

/// Which reset call tells the affected devices apart.
fn by_id(opens: &Opens, device: &Device) -> bool {
    matches!(opens[device.slot()], Open::Cdev(_))
}

fn no_reset() -> Error {
    Error::new(Errno::ENODEV, "the device sits on a root bus, which cannot be reset")
}

/// Answers DEVICE_GET_PCI_HOT_RESET_INFO: the devices a reset of this one's bus reaches.
///
/// # Errors
///
/// `EFAULT`; `EINVAL` when `argsz` is too small; `ENODEV` without a bus reset; `ENOSPC`, with the
/// count written, when the array is too small.
pub(crate) fn info(client: &dyn Client, device: &Device, address: u64) -> Result<()> {
    let mut header: PciHotResetInfo = arg::first(client, address, MIN)?;
    header.flags = 0;
    let set = device.set();
    if !set.can_reset() {
        return Err(no_reset());
    }
    let devices = set.on_bus();
    header.count = u32::try_from(devices.len()).unwrap_or(u32::MAX);
    let room = usize::try_from(header.argsz).unwrap_or(usize::MAX) - MIN;
    if devices.len() > room / size_of::<PciDependentDevice>() {
        arg::write(client, address, &header, MIN)?;
        return Err(Error::at(Errno::ENOSPC, "the array is too small", header.count.into()));
    }
    step("a list of devices")?;
    let opens = set.opens().lock();
    let mut owned = true;
    let entries: Vec<_> = devices
        .iter()
        .map(|other| {
            let id = if by_id(&opens, device) {
                id(&opens, device, other)
            } else {
                other.group().number()
            };
            owned &= id != vfio::PCI_DEVID_NOT_OWNED;
            let bdf = other.bdf();
            PciDependentDevice { id, segment: bdf.domain(), bus: bdf.bus(), devfn: bdf.devfn() }
        })
        .collect();
    if by_id(&opens, device) {
        header.flags |= vfio::PCI_HOT_RESET_FLAG_DEV_ID;
        if owned {
            header.flags |= vfio::PCI_HOT_RESET_FLAG_DEV_ID_OWNED;
        }
    }
    drop(opens);
    client.write(address.wrapping_add(MIN as u64), entries.as_bytes())?;
    arg::write(client, address, &header, MIN)
}

/// The id of `other` in the iommufd `device` is bound to. Linux: `vfio_iommufd_get_dev_id`.
fn id(opens: &Opens, device: &Device, other: &Device) -> u32 {
    // `vfio_find_device_in_devset`
    let is_vfio = device.set().has(other) && other.is_registered();
    let Some(context) = opens[device.slot()].context().filter(|_| is_vfio) else {
        return vfio::PCI_DEVID_NOT_OWNED;
    };
    match opens[other.slot()].bound() {
        Some(bound) if Arc::ptr_eq(bound.context(), context) => bound.id(),
        _ if context.has_group(other.endpoint().group()) => vfio::PCI_DEVID_OWNED,
        _ => vfio::PCI_DEVID_NOT_OWNED,
    }
}

/// Answers DEVICE_PCI_HOT_RESET: proof of ownership is the group fds of all affected devices or,
/// for a device opened through its cdev, the iommufd they are all bound to.
///
/// # Errors
///
/// `EFAULT`; `EINVAL` for a malformed call, or when not all affected devices are owned; `ENODEV`
/// without a bus reset; `EBADF` for a closed fd.
pub(crate) fn hot(client: &dyn Client, device: &Device, address: u64) -> Result<()> {
    let header: PciHotReset = arg::first(client, address, MIN)?;
    if header.flags != 0 {
        return Err(Error::at(Errno::EINVAL, "unknown flags", header.flags.into()));
    }
    let set = device.set();
    let by_id = by_id(&set.opens().lock(), device);
    if by_id == (header.count != 0) {
        return Err(Error::at(
            Errno::EINVAL,
            "group fds go with a group-opened device",
            header.count.into(),
        ));
    }
    if !set.can_reset() {
        return Err(no_reset());
    }
    let groups = groups(client, device, address, header.count as usize)?;
    let devices = set.on_bus();
    if devices.iter().any(|other| !other.is_registered()) {
        return Err(Error::new(Errno::EINVAL, "an affected device has no VFIO driver"));
    }
    let opens = set.opens().lock();
    // `vfio_pci_dev_set_resettable`: what is reset together is opened together.
    if !devices.iter().all(|other| set.has(other)) {
        return Err(Error::new(
            Errno::EINVAL,
            "virtual functions on the bus, or this one, are not reset with it",
        ));
    }
    let owned = devices.iter().all(|other| {
        if by_id {
            id(&opens, device, other) != vfio::PCI_DEVID_NOT_OWNED
        } else {
            groups.iter().any(|group| Arc::ptr_eq(group, other.group()))
        }
    });
    if !owned {
        return Err(Error::new(Errno::EINVAL, "an affected device is not the caller's"));
    }
    devices.iter().try_for_each(|other| other.reset())
}

/// The groups behind the fds of the call.
fn groups(
    client: &dyn Client,
    device: &Device,
    address: u64,
    count: usize,
) -> Result<Vec<Arc<Group>>> {
    if count > device.set().on_bus().len() {
        return Err(Error::at(Errno::EINVAL, "more groups than affected devices", count as u64));
    }
    step("a list of groups")?;
    let mut fds = vec![0_i32; count];
    if count != 0 {
        client.read(address.wrapping_add(MIN as u64), fds.as_mut_bytes())?;
    }
    let group = |&fd: &i32| match client.vfio_file(fd)? {
        VfioFile::Group(file) => Ok(Arc::clone(file.group())),
        VfioFile::Device(_) => Err(Error::new(Errno::EINVAL, "the fd is no group")),
    };
    fds.iter().map(group).collect()
}
