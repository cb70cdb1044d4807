//! What the view has under /dev.

use std::collections::BTreeSet;
use std::os::unix::fs::FileTypeExt as _;

use super::tree::Dir;
use super::{ContainerNode, Device, GroupKind, Node, Options, Registration};

/// Major and minor number of /dev/vfio/vfio (drivers/vfio/container.c: a misc device with a fixed minor).
pub(crate) const CONTAINER: (u32, u32) = (MISC, 196);
/// Major number of /dev/iommu and /dev/vfio/vfio (`MISC_MAJOR`, linux/major.h).
pub(crate) const MISC: u32 = 10;

/// Name of a group's node in /dev/vfio (drivers/vfio/group.c).
pub(super) fn group_name(device: &Device) -> String {
    match device.group_kind {
        GroupKind::Iommu | GroupKind::Emulated => device.group.to_string(),
        GroupKind::NoIommu => format!("noiommu-{}", device.group),
    }
}

/// One device of every group.
pub(super) fn groups(devices: &[Device]) -> impl Iterator<Item = &Device> {
    one_of_each(devices.iter())
}

/// One device of every group that has a node, which is as long as VFIO has one of its devices (drivers/vfio/group.c,
/// `vfio_device_set_group`, `vfio_device_remove_group`).
pub(super) fn groups_with_node(devices: &[Device]) -> impl Iterator<Item = &Device> {
    let known = devices.iter().filter(|device| device.registration != Registration::Absent);
    one_of_each(known)
}

fn one_of_each<'a>(devices: impl Iterator<Item = &'a Device>) -> impl Iterator<Item = &'a Device> {
    let mut seen = BTreeSet::new();
    devices.filter(move |device| seen.insert(device.group))
}

pub(super) fn plan(dev: &mut Dir, devices: &[Device], options: &Options) {
    dev.node("iommu", Node::Iommu, 0o660, Some((MISC, options.iommu_minor)));
    let vfio = dev.dir("vfio");
    if options.container != ContainerNode::Absent {
        vfio.node("vfio", Node::VfioContainer, 0o666, Some(CONTAINER));
    }
    vfio.dir("devices");
    for device in groups_with_node(devices) {
        let node = match device.group_kind {
            GroupKind::Iommu | GroupKind::Emulated => Node::Group(device.group),
            GroupKind::NoIommu => Node::NoIommuGroup(device.group),
        };
        let number = (options.group_major, device.group);
        vfio.node(&group_name(device), node, 0o600, Some(number));
    }
    for device in with_cdev(devices) {
        let (name, node) = (cdev_name(device), Node::Cdev(device.vfio));
        vfio.dir("devices").node(&name, node, 0o600, Some(device.cdev));
    }
    links(dev.kept("char"), devices, options);
    pseudo_terminals(dev);
}

/// The devices that an IOMMU translates for.
pub(super) fn behind_iommu(devices: &[Device]) -> impl Iterator<Item = &Device> {
    devices.iter().filter(|device| device.group_kind == GroupKind::Iommu)
}

/// Whether a device has a node of its own: on POWER none has, and before Linux 7.3 none without an
/// IOMMU.
pub(super) fn has_cdev(device: &Device) -> bool {
    device.cdev.0 != 0
}

/// The devices that are registered with vfio and do DMA of their own.
pub(super) fn registered(devices: &[Device]) -> impl Iterator<Item = &Device> {
    let own = devices.iter().filter(|device| device.group_kind != GroupKind::Emulated);
    own.filter(|device| device.registration == Registration::Registered)
}

fn with_cdev(devices: &[Device]) -> impl Iterator<Item = &Device> {
    registered(devices).filter(|device| has_cdev(device))
}

/// What vfio calls a device (drivers/vfio/vfio_main.c, `vfio_device_set_noiommu_and_name`).
pub(super) fn cdev_name(device: &Device) -> String {
    let alone = device.group_kind == GroupKind::NoIommu && has_cdev(device);
    format!("{}vfio{}", if alone { "noiommu-" } else { "" }, device.vfio)
}

/// /dev/char, as udev fills it.
fn links(char: &mut Dir, devices: &[Device], options: &Options) {
    let mut link =
        |(major, minor): (u32, u32), target: String| char.link(&format!("{major}:{minor}"), target);
    if options.container != ContainerNode::Absent {
        link(CONTAINER, "../vfio/vfio".to_owned());
    }
    link((MISC, options.iommu_minor), "../iommu".to_owned());
    for device in groups_with_node(devices) {
        link((options.group_major, device.group), format!("../vfio/{}", group_name(device)));
    }
    for device in with_cdev(devices) {
        link(device.cdev, format!("../vfio/devices/{}", cdev_name(device)));
    }
}

/// Opening /dev/ptmx looks for a devpts mounted beside it, on the very mount it was opened through
/// (fs/devpts/inode.c), which a bind mount of that node alone cannot give. So it is reached through the whole of the
/// host's /dev. Where ptmx is a link to pts/ptmx, as in a container, it is kept like any other entry.
fn pseudo_terminals(dev: &mut Dir) {
    let is_node =
        std::fs::symlink_metadata("/dev/ptmx").is_ok_and(|meta| meta.file_type().is_char_device());
    if is_node {
        dev.whole(".host");
        dev.link("ptmx", ".host/ptmx");
    }
}
