//! Groups: status, containers that come and go, several devices, names and tokens, and who excludes whom.

use super::rules::{ATTACHED, Machine, Step, same};

fn attached(steps: &[Step]) -> Vec<Step> {
    [&ATTACHED[..], steps].concat()
}

#[test]
fn a_group_is_opened_once_and_has_one_container() {
    Machine::with(&["testdev"]).answers(&[
        same("open g /dev/vfio/1", "0"),
        same("open h /dev/vfio/1", "EBUSY"),
        same("open c container", "0"),
        same("open o container", "0"),
        same("device g d 0000:01:00.0", "EINVAL"),
        same("setc g 99", "EBADF"),
        same("setc g 0", "EBADFD"),
        same("setc g g", "EBADFD"),
        same("setc g c", "0"),
        same("setc g o", "EINVAL"),
        same("setc g 99", "EBADF"),
        same("setc g 0", "EINVAL"),
        same("close g", "0"),
        same("open g /dev/vfio/1", "0"),
        same("group g", "0 flags=1"),
        same("unsetc g", "EINVAL"),
        same("setc g o", "0"),
    ]);
}

#[test]
fn a_group_and_the_nodes_of_its_devices_exclude_each_other() {
    Machine::with(&["testdev,group=1", "testdev,group=1"]).answers(&[
        same("open i /dev/iommu", "0"),
        same("open v /dev/vfio/devices/vfio0", "0"),
        same("open g /dev/vfio/1", "0"),
        same("bind v i", "EBUSY"),
        same("close g", "0"),
        same("bind v i", "0"),
        same("open g /dev/vfio/1", "EBUSY"),
        same("close v", "0"),
        same("open g /dev/vfio/1", "0"),
        same("open v /dev/vfio/devices/vfio1", "0"),
        same("bind v i", "EBUSY"),
    ]);
}

#[test]
fn every_device_of_a_group_holds_its_container() {
    Machine::with(&["testdev,group=1", "testdev,group=1"]).type1_answers(&attached(&[
        same("device g e 0000:02:00.0", "0"),
        same("unsetc g", "EBUSY"),
        same("close d", "0"),
        same("unsetc g", "EBUSY"),
        // The second device keeps the group and its mappings without the group's descriptor.
        same("map c rw 0x1000 +0 0x1000", "0"),
        same("close g", "0"),
        same("open g /dev/vfio/1", "EBUSY"),
        same("command e 6", "0"),
        same("dma e read 0x1000", "0"),
        same("close e", "0"),
        same("map c rw 0x2000 +0 0x1000", "EINVAL"),
        same("open g /dev/vfio/1", "0"),
    ]));
}

#[test]
fn a_device_is_named_by_its_address_and_needs_no_token() {
    Machine::with(&["testdev"]).answers(&[
        same("open c container", "0"),
        same("open g /dev/vfio/1", "0"),
        same("setc g c", "0"),
        same("set c 3", "0"),
        same("device g d 0000:02:00.0", "ENODEV"),
        same("device g d 0000:01:00", "ENODEV"),
        same("device g d 0000:01:00.0 vf_token=2e8b5f0c-1f1a-4c47-9c6e-3b2f6f0e7a11", "EINVAL"),
        same("device g d 0000:01:00.0 vf_token=2e8b5f0c", "EINVAL"),
        same("device g d 0000:01:00.0 token", "EINVAL"),
        same("device g d 0000:01:00.0", "0"),
        same("device g e 0000:01:00.0", "0"),
    ]);
}

#[test]
fn groups_share_a_container_and_its_mappings() {
    Machine::with(&["testdev", "testdev"]).type1_answers(&attached(&[
        same("map c rw 0x1000 +0 0x2000", "0"),
        same("open h /dev/vfio/2", "0"),
        same("setc h c", "0"),
        same("device h e 0000:02:00.0", "0"),
        same("command d 6", "0"),
        same("command e 6", "0"),
        same("fill +0 5", "0"),
        same("dma e read 0x1000", "0"),
        same("dma e write 0x2000", "0"),
        same("peek +0x1000", "0 0x5"),
        same("status VmLck", "0 8"),
        // The first group leaves; the container and its mappings stay.
        same("close d", "0"),
        same("unsetc g", "0"),
        same("dma e read 0x1000", "0"),
        same("map c rw 0x1000 +0 0x1000", "EEXIST"),
        same("close e", "0"),
        same("unsetc h", "0"),
        same("status VmLck", "0 0"),
    ]));
}

#[test]
fn containers_are_apart() {
    Machine::with(&["testdev", "testdev"]).type1_answers(&attached(&[
        same("open x container", "0"),
        same("open h /dev/vfio/2", "0"),
        same("setc h x", "0"),
        same("set x 1", "0"),
        same("device h e 0000:02:00.0", "0"),
        same("command e 6", "0"),
        same("map c rw 0x1000 +0 0x1000", "0"),
        same("dma e read 0x1000", "0 fault=0x1000"),
        same("map x rw 0x1000 +0x1000 0x1000", "0"),
        same("dma e read 0x1000", "0"),
        same("status VmLck", "0 8"),
        same("unmap x 2 0 0", "0 size=0x1000"),
        same("map c rw 0x1000 +0 0x1000", "EEXIST"),
    ]));
}

#[test]
fn a_container_of_either_kind_serves_groups_in_one_program() {
    Machine::with(&["testdev", "testdev"]).type1_answers(&attached(&[
        same("open i /dev/iommu", "0"),
        same("open h /dev/vfio/2", "0"),
        same("setc h i", "0"),
        same("set i 3", "0"),
        same("device h e 0000:02:00.0", "0"),
        same("info c 512 caps", "0 caps=1 2 3"),
        same("info i 512 caps", "0 caps=1 3"),
    ]));
}

#[test]
fn nodes_of_groups_are_roots_alone() {
    Machine::with(&["testdev"]).answers(&[
        same("mode /dev/vfio/vfio", "0 666"),
        same("mode /dev/vfio/1", "0 600"),
        same("mode /dev/vfio/devices/vfio0", "0 600"),
        same("mode /dev/iommu", "0 660"),
    ]);
}
