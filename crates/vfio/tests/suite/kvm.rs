//! What KVM is told of groups and devices.

use ioasis_uapi::Errno;
use ioasis_vfio::{
    KVM_CREATE_DEVICE, KVM_GET_DEVICE_ATTR, KVM_HAS_DEVICE_ATTR, KVM_SET_DEVICE_ATTR, KvmDevice,
    VfioFile,
};

use crate::rig::{BASE, NOWHERE, Rig, errno};

const FILE: u32 = 1;
const ADD: u64 = 1;
const DEL: u64 = 2;

fn set(rig: &Rig, kvm: &KvmDevice, attr: u64, fd: i32) -> Option<Errno> {
    let address = rig.caller.arg(&fd);
    errno(kvm.set_attr(&rig.caller, FILE, attr, address))
}

#[test]
fn a_file_is_added_once_and_removed_once() {
    let rig = Rig::new();
    let (group, file) = rig.open();
    let kvm = KvmDevice::default();
    let fds = [rig.caller.add_group(&group), rig.caller.add_vfio(VfioFile::Device(file))];
    for fd in fds {
        assert_eq!(set(&rig, &kvm, DEL, fd), Some(Errno::ENOENT));
        assert_eq!(set(&rig, &kvm, ADD, fd), None);
        assert_eq!(set(&rig, &kvm, ADD, fd), Some(Errno::EEXIST));
        assert_eq!(set(&rig, &kvm, DEL, fd), None);
        assert_eq!(set(&rig, &kvm, ADD, fd), None, "again");
    }
    // Another descriptor of the same file is the same file.
    let again = rig.caller.add_group(&group);
    assert_eq!(set(&rig, &kvm, ADD, again), Some(Errno::EEXIST));
}

#[test]
fn what_is_no_vfio_file_is_refused() {
    let rig = Rig::new();
    let kvm = KvmDevice::default();
    let other = rig.caller.add_other();
    assert_eq!(set(&rig, &kvm, ADD, 1000), Some(Errno::EBADF));
    assert_eq!(set(&rig, &kvm, DEL, 1000), Some(Errno::EBADF));
    assert_eq!(set(&rig, &kvm, ADD, other), Some(Errno::EINVAL));
    assert_eq!(set(&rig, &kvm, DEL, other), Some(Errno::ENOENT));
    assert_eq!(errno(kvm.set_attr(&rig.caller, FILE, ADD, NOWHERE)), Some(Errno::EFAULT));
}

#[test]
fn an_attribute_that_is_none_is_refused_before_its_argument_is_read() {
    let rig = Rig::new();
    let kvm = KvmDevice::default();
    for (group, attr) in [(0, ADD), (2, ADD), (FILE, 0), (FILE, 3), (FILE, u64::MAX)] {
        assert_eq!(errno(KvmDevice::has_attr(group, attr)), Some(Errno::ENXIO), "{group} {attr}");
        let refused = kvm.set_attr(&rig.caller, group, attr, NOWHERE);
        assert_eq!(errno(refused), Some(Errno::ENXIO), "{group} {attr}");
    }
    KvmDevice::has_attr(FILE, ADD).expect("ADD");
    KvmDevice::has_attr(FILE, DEL).expect("DEL");
}

#[test]
fn dma_is_coherent_when_every_iommu_can_force_it() {
    for (group, noncoherent) in [(1, false), (Rig::NO_IOMMU, true)] {
        let rig = Rig::with(&[("0000:01:00.0", group)]);
        rig.caller.rawio.store(true, std::sync::atomic::Ordering::Relaxed);
        let kvm = KvmDevice::default();
        assert!(!kvm.has_noncoherent_dma(), "no files");
        let fd = rig.caller.add_group(&rig.group(0));
        assert_eq!(set(&rig, &kvm, ADD, fd), None);
        assert_eq!(kvm.has_noncoherent_dma(), noncoherent, "group {group}");
    }
}

#[test]
fn a_call_on_the_devices_descriptor_is_decoded() {
    let rig = Rig::new();
    let kvm = KvmDevice::default();
    let fd = rig.caller.arg(&rig.caller.add_group(&rig.group(0)));
    let attribute = |group: u32, attr: u64| {
        let mut bytes = [0; 24];
        bytes[4..8].copy_from_slice(&group.to_ne_bytes());
        bytes[8..16].copy_from_slice(&attr.to_ne_bytes());
        bytes[16..].copy_from_slice(&fd.to_ne_bytes());
        rig.caller.put(BASE, &bytes);
        BASE
    };
    let call = |command, address| errno(kvm.ioctl(&rig.caller, command, address));
    assert_eq!(call(KVM_HAS_DEVICE_ATTR, attribute(FILE, ADD)), None);
    assert_eq!(call(KVM_HAS_DEVICE_ATTR, attribute(FILE, 9)), Some(Errno::ENXIO));
    assert_eq!(call(KVM_SET_DEVICE_ATTR, attribute(FILE, ADD)), None);
    assert_eq!(call(KVM_SET_DEVICE_ATTR, attribute(FILE, ADD)), Some(Errno::EEXIST));
    assert_eq!(call(KVM_SET_DEVICE_ATTR, NOWHERE), Some(Errno::EFAULT));
    assert_eq!(call(KVM_GET_DEVICE_ATTR, NOWHERE), Some(Errno::EPERM));
    assert_eq!(call(KVM_CREATE_DEVICE, NOWHERE), Some(Errno::ENOTTY));
}
