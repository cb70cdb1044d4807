//! Groups and their containers.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ioasis_uapi::Errno;
use ioasis_uapi::vfio::{self, GroupStatus};
use ioasis_vfio::{GroupFile, IommuFile};

use crate::rig::{ARG, BASE, LENGTH, NOWHERE, READ_ONLY, Rig, errno};

const VIABLE: u32 = vfio::GROUP_FLAGS_VIABLE;
const CONTAINER_SET: u32 = vfio::GROUP_FLAGS_CONTAINER_SET;

fn status(rig: &Rig, group: &GroupFile) -> u32 {
    let address = rig.caller.arg(&[8_u32, 0xff]);
    group.ioctl(&rig.caller, vfio::GROUP_GET_STATUS, address).expect("a status");
    rig.caller.get::<GroupStatus>(ARG).flags
}

fn unset(rig: &Rig, group: &GroupFile) -> Option<Errno> {
    errno(group.ioctl(&rig.caller, vfio::GROUP_UNSET_CONTAINER, 0))
}

#[test]
fn a_group_is_open_once() {
    let rig = Rig::new();
    let group = rig.group(0);
    assert_eq!(errno(rig.machine.groups()[0].open(&rig.caller)), Some(Errno::EBUSY));
    group.close();
    rig.group(0);
}

#[test]
fn a_status_is_viable_until_somebody_else_owns_the_group() {
    let rig = Rig::new();
    let group = rig.group(0);
    assert_eq!(status(&rig, &group), VIABLE);
    let fd = rig.caller.add_iommu(IommuFile::Container(rig.hardware.container()));
    rig.set_container(&group, fd).expect("a container");
    assert_eq!(status(&rig, &group), VIABLE | CONTAINER_SET);
    assert_eq!(unset(&rig, &group), None);
    assert_eq!(status(&rig, &group), VIABLE);
    for (address, expected) in [(NOWHERE, Errno::EFAULT), (READ_ONLY, Errno::EINVAL)] {
        let refused = group.ioctl(&rig.caller, vfio::GROUP_GET_STATUS, address);
        assert_eq!(errno(refused), Some(expected));
    }
}

#[test]
fn a_container_is_set_once_and_only_from_what_is_one() {
    let rig = Rig::new();
    let group = rig.group(0);
    let other = rig.caller.add_other();
    let fault = group.ioctl(&rig.caller, vfio::GROUP_SET_CONTAINER, NOWHERE);
    assert_eq!(errno(fault), Some(Errno::EFAULT));
    for (fd, expected) in [(-1, Errno::EBADF), (1000, Errno::EBADF), (other, Errno::EBADFD)] {
        assert_eq!(errno(rig.set_container(&group, fd)), Some(expected), "{fd}");
    }
    let fd = rig.caller.add_iommu(IommuFile::Iommufd(rig.hardware.context()));
    rig.set_container(&group, fd).expect("an iommufd");
    // A closed fd is seen before the container that is set, a wrong one after it.
    for (fd, expected) in [(1000, Errno::EBADF), (other, Errno::EINVAL), (fd, Errno::EINVAL)] {
        assert_eq!(errno(rig.set_container(&group, fd)), Some(expected), "{fd}");
    }
}

#[test]
fn a_container_is_held_by_open_devices_and_an_iommufd_is_not() {
    let rig = Rig::new();
    let group = rig.group_in_container(0);
    let file = rig.device_fd(&group, rig.first().name()).expect("a device");
    assert_eq!(unset(&rig, &group), Some(Errno::EBUSY));
    file.close();
    assert_eq!(unset(&rig, &group), None);
    assert_eq!(unset(&rig, &group), Some(Errno::EINVAL));
    let fd = rig.caller.add_iommu(IommuFile::Iommufd(rig.hardware.context()));
    rig.set_container(&group, fd).expect("an iommufd");
    let file = rig.device_fd(&group, rig.first().name()).expect("a device");
    assert_eq!(unset(&rig, &group), None);
    // The device goes on belonging to the iommufd.
    assert_eq!(status(&rig, &group), 0);
    file.close();
    assert_eq!(status(&rig, &group), VIABLE);
}

#[test]
fn a_device_needs_a_container_with_a_driver() {
    let rig = Rig::new();
    let group = rig.group(0);
    let name = rig.first().name();
    assert_eq!(errno(rig.device_fd(&group, name)), Some(Errno::EINVAL), "no container");
    let container = rig.hardware.container();
    let fd = rig.caller.add_iommu(IommuFile::Container(Arc::clone(&container)));
    rig.set_container(&group, fd).expect("a container");
    assert_eq!(errno(rig.device_fd(&group, name)), Some(Errno::EINVAL), "no driver");
    rig.hardware.set_iommu(&container, &rig.caller);
    rig.device_fd(&group, name).expect("a device");
    assert_eq!(rig.caller.made.load(Ordering::Relaxed), 1, "no file for a refused open");
}

#[test]
fn a_device_is_named_by_its_address() {
    let rig = Rig::with(&[("0000:01:00.0", 1), ("0000:02:00.0", 2)]);
    let group = rig.group_in_container(0);
    let token = "0000:01:00.0 vf_token=00112233-4455-6677-8899-aabbccddeeff";
    let rows = [
        ("0000:02:00.0", Errno::ENODEV),
        ("", Errno::ENODEV),
        ("0000:01:00.0x", Errno::ENODEV),
        ("0000:01:00.0 x", Errno::EINVAL),
        (token, Errno::EINVAL),
    ];
    for (name, expected) in rows {
        assert_eq!(errno(rig.device_fd(&group, name)), Some(expected), "{name:?}");
    }
    let fault = group.ioctl(&rig.caller, vfio::GROUP_GET_DEVICE_FD, NOWHERE);
    assert_eq!(errno(fault), Some(Errno::EFAULT));
    rig.caller.put(BASE, &[b'x'; 4096]);
    let long = group.ioctl(&rig.caller, vfio::GROUP_GET_DEVICE_FD, BASE);
    assert_eq!(errno(long), Some(Errno::EINVAL));
    // A name may end with the last byte of memory.
    let end = BASE + LENGTH as u64 - 13;
    rig.caller.put(end, b"0000:01:00.0\0");
    group.ioctl(&rig.caller, vfio::GROUP_GET_DEVICE_FD, end).expect("a device");
    rig.caller.put(end + 12, b"x");
    let cut = group.ioctl(&rig.caller, vfio::GROUP_GET_DEVICE_FD, end);
    assert_eq!(errno(cut), Some(Errno::EFAULT));
}

#[test]
fn a_device_opened_twice_is_one_file() {
    let rig = Rig::new();
    let (group, first) = rig.open();
    let second = rig.device_fd(&group, rig.first().name()).expect("again");
    assert!(Arc::ptr_eq(&first, &second));
    first.close();
    assert_eq!(errno(first.read(0, &mut [0])), Some(Errno::EINVAL), "closed");
    let third = rig.device_fd(&group, rig.first().name()).expect("a new one");
    assert!(!Arc::ptr_eq(&first, &third));
}

#[test]
fn an_open_device_keeps_its_group_and_container() {
    let rig = Rig::new();
    let (group, file) = rig.open();
    group.close();
    assert_eq!(errno(rig.machine.groups()[0].open(&rig.caller)), Some(Errno::EBUSY));
    file.read(crate::rig::at(7, 0), &mut [0; 4]).expect("the device goes on");
    file.close();
    let group = rig.group(0);
    assert_eq!(status(&rig, &group), VIABLE);
}

#[test]
fn a_device_in_an_iommufd_does_not_keep_its_group() {
    let rig = Rig::new();
    let group = rig.group(0);
    let context = rig.hardware.context();
    let fd = rig.caller.add_iommu(IommuFile::Iommufd(Arc::clone(&context)));
    rig.set_container(&group, fd).expect("an iommufd");
    let file = rig.device_fd(&group, rig.first().name()).expect("a device");
    group.close();
    let group = rig.group(0);
    assert_eq!(status(&rig, &group), 0, "its device belongs to the iommufd");
    assert_eq!(errno(rig.device_fd(&group, rig.first().name())), Some(Errno::EINVAL));
    rig.set_container(&group, fd).expect("the iommufd again");
    let again = rig.device_fd(&group, rig.first().name()).expect("the device again");
    assert!(Arc::ptr_eq(&file, &again));
}

#[test]
fn a_group_without_an_iommu_needs_a_privileged_caller() {
    let rig = Rig::with(&[("0000:01:00.0", Rig::NO_IOMMU)]);
    let group = &rig.machine.groups()[0];
    assert_eq!(group.node(), format!("noiommu-{}", Rig::NO_IOMMU));
    assert_eq!(errno(group.open(&rig.caller)), Some(Errno::EPERM));
    rig.caller.rawio.store(true, Ordering::Relaxed);
    let file = group.open(&rig.caller).expect("a group");
    rig.caller.rawio.store(false, Ordering::Relaxed);
    let fd = rig.caller.add_iommu(IommuFile::Container(rig.hardware.container()));
    assert_eq!(errno(rig.set_container(&file, fd)), Some(Errno::EPERM));
    let context = rig.hardware.context();
    let fd = rig.caller.add_iommu(IommuFile::Iommufd(context));
    rig.set_container(&file, fd).expect("an iommufd");
    assert_eq!(errno(rig.device_fd(&file, rig.first().name())), Some(Errno::EPERM));
    rig.caller.rawio.store(true, Ordering::Relaxed);
    rig.device_fd(&file, rig.first().name()).expect("a device");
}
