//! Makes the machine that a [`Description`] describes.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ioasis_iommufd::type1::GroupKind;
use ioasis_iommufd::{self as iommufd, Endpoint, EndpointConfig, Group, Iommu};
use ioasis_pci::{Function, Windows};
use ioasis_supervisor::view;
use ioasis_vfio::{Machine, Placement};

use crate::machine::{Description, IommuKind};

impl From<IommuKind> for iommufd::IommuKind {
    fn from(kind: IommuKind) -> Self {
        match kind {
            IommuKind::Vtd => Self::Vtd,
        }
    }
}

/// Whether a machine has the mock hardware of Linux's own IOMMUFD tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MockHardware {
    /// /dev/iommu answers IOMMU_TEST_CMD.
    Present,
    /// As on any machine but a kernel developer's.
    Absent,
}

/// What /sys/class/iommu shows of the IOMMU with this index.
pub(crate) fn in_sysfs(index: usize) -> view::Iommu {
    let mut iommus = view::Options::default().iommus;
    view::Iommu { name: format!("dmar{index}"), ..iommus.swap_remove(0) }
}

/// The devices of `description`, which is placed, and what they share.
pub(crate) fn build(
    description: &Description,
    mock: MockHardware,
) -> Result<(Arc<iommufd::Machine>, Machine)> {
    let machine = match mock {
        MockHardware::Present => iommufd::Machine::with_mock(),
        MockHardware::Absent => iommufd::Machine::new(),
    };
    let iommus: Vec<_> =
        description.iommus.iter().map(|iommu| Arc::new(Iommu::new(iommu.kind.into()))).collect();
    let mut groups: BTreeMap<u32, (usize, Arc<Group>)> = BTreeMap::new();
    let mut windows = Windows::default();
    let mut placements = Vec::new();
    for device in &description.devices {
        let address = device.address.context("a device has no address")?;
        let number = device.group.context("a device has no group")?;
        let (iommu, group) = groups
            .entry(number)
            .or_insert_with(|| (device.iommu, Group::new(&machine, &iommus[device.iommu], number)));
        ensure!(
            *iommu == device.iommu,
            "group {number} is behind iommu {iommu}, so {address} cannot be behind iommu {}",
            device.iommu
        );
        let model = ioasis_pci::create(&device.model, &device.options)
            .with_context(|| format!("device {address}"))?;
        let config = EndpointConfig {
            name: address.to_string(),
            requester_id: address.requester_id(),
            reserved: group.iommu().reserved(),
            pasid_bits: 0,
            pasid_exec: false,
            pasid_privileged: false,
            ats: false,
            pri: false,
        };
        placements.push(Placement {
            function: Function::new(address, model, &mut windows),
            endpoint: Endpoint::new(group, config),
            kind: GroupKind::Iommu,
        });
    }
    Ok((machine, Machine::new(placements)))
}
