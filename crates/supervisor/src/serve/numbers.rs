//! Device numbers of the run: a node that has one is the device, wherever it lies and whoever made it.
//!
//! A number under which the host has a driver of another kind is the host's in every node that the run did not make.

use std::collections::BTreeSet;

use super::Server;
use crate::view::{CONTAINER, ContainerNode, MISC, Node};

/// Numbers that the host's drivers have, unless they are of the kind that answers here.
#[derive(Debug, Default)]
pub(super) struct HostNumbers {
    majors: BTreeSet<u32>,
    misc_minors: BTreeSet<u32>,
}

impl HostNumbers {
    /// As /proc/devices and /proc/misc list them.
    pub(super) fn find() -> Self {
        let text = |path| std::fs::read_to_string(path).unwrap_or_default();
        Self::parse(&text("/proc/devices"), &text("/proc/misc"))
    }

    fn parse(devices: &str, misc: &str) -> Self {
        let others = |text: &str| -> BTreeSet<u32> {
            let fields = text.lines().filter_map(|line| line.trim().split_once(' '));
            let others = fields.filter(|(_, name)| !name.starts_with("vfio") && *name != "iommu");
            others.filter_map(|(number, _)| number.parse().ok()).collect()
        };
        let characters = devices.split("Block devices").next().unwrap_or_default();
        let mut majors = others(characters);
        majors.remove(&MISC);
        Self { majors, misc_minors: others(misc) }
    }

    fn has(&self, (major, minor): (u32, u32)) -> bool {
        self.majors.contains(&major) || major == MISC && self.misc_minors.contains(&minor)
    }
}

impl Server {
    /// What the file of the view with this device and inode stands for.
    pub(super) fn node_of_file(&self, identity: (u64, u64)) -> Option<Node> {
        let files = self.queues.file_system();
        self.live.node(identity).or_else(|| files.and_then(|files| files.node(identity)))
    }

    /// The node that a character device with this number is, where the host has no other driver for it.
    pub(super) fn node_of_number(&self, number: (u32, u32)) -> Option<Node> {
        self.own_node_of_number(number).filter(|_| !self.host_numbers.has(number))
    }

    /// The node of the run with this number.
    pub(super) fn own_node_of_number(&self, (major, minor): (u32, u32)) -> Option<Node> {
        let options = &self.machine.view;
        if (major, minor) == CONTAINER && options.container != ContainerNode::Absent {
            return Some(Node::VfioContainer);
        }
        if (major, minor) == (MISC, options.iommu_minor) {
            return Some(Node::Iommu);
        }
        if major == options.group_major {
            let groups = self.machine.devices.groups();
            let group = groups.iter().find(|group| group.number() == minor)?;
            let of = if group.is_no_iommu() { Node::NoIommuGroup } else { Node::Group };
            return Some(of(minor));
        }
        let devices = self.machine.devices.devices();
        let device = devices.iter().find(|device| device.cdev() == Some((major, minor)))?;
        Some(Node::Cdev(device.index()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_the_hosts_unless_its_driver_is_of_our_kind() {
        let devices = "Character devices:\n 10 misc\n242 nvme-generic\n511 vfio-cdev\n\nBlock devices:\n243 loop\n";
        let host = HostNumbers::parse(devices, "196 vfio\n126 cpu_dma_latency\n");
        for number in [(242, 1), (10, 126)] {
            assert!(host.has(number), "{number:?}");
        }
        for number in [(10, 196), (511, 0), (243, 0), (10, 3)] {
            assert!(!host.has(number), "{number:?}");
        }
    }
}
