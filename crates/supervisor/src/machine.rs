//! The machine of a run, and how its devices look in the view.

use std::sync::Arc;

use ioasis_iommufd::{ReservedKind, ReservedRegion};
use ioasis_pci::{BARS, BarKind, CONFIG_SIZE};
use ioasis_uapi::{Errno, Error, Result};
use ioasis_vfio::Device;

use crate::view::{self, Bar, GroupKind, Registration, Reserved};

/// What a program is run on.
#[derive(Debug)]
pub struct Machine {
    /// What all opens of /dev/iommu and /dev/vfio/vfio share.
    pub iommu: Arc<ioasis_iommufd::Machine>,
    /// Devices and groups.
    pub devices: ioasis_vfio::Machine,
    /// The files by which a program finds them.
    pub view: view::Options,
    /// For every device, in their order, which of [`view::Options::iommus`] translates for it.
    pub iommu_of: Vec<usize>,
}

/// Opens of every device at once that there is memory for, should a program open its node that often.
const OPENS: u64 = 64;

impl Machine {
    /// The devices as /sys and /dev show them.
    ///
    /// # Errors
    ///
    /// `EIO` if a device does not let its configuration space be read.
    pub(crate) fn seen(&self) -> Result<Vec<view::Device>> {
        let iommu = |index: usize| self.iommu_of.get(index).copied().unwrap_or_default();
        let devices = self.devices.devices().iter().enumerate();
        devices.map(|(index, device)| seen(device, iommu(index))).collect()
    }

    /// Bytes of BAR pages that its files may take.
    pub(crate) fn files_size(&self) -> u64 {
        let bars = self
            .devices
            .devices()
            .iter()
            .flat_map(|device| (0..BARS).filter_map(|bar| device.function().bar(bar)));
        let pages: u64 = bars.flat_map(|bar| bar.areas()).map(|area| area.end - area.start).sum();
        self.view.files_size.max(pages.saturating_mul(OPENS))
    }
}

fn seen(device: &Device, iommu: usize) -> Result<view::Device> {
    let function = device.function();
    let ids = function.ids();
    let mut config = vec![0; CONFIG_SIZE];
    function.config_read(0, &mut config)?;
    let group = device.group();
    let kind = match (group.is_no_iommu(), group.is_emulated()) {
        (true, _) => GroupKind::NoIommu,
        (false, true) => GroupKind::Emulated,
        (false, false) => GroupKind::Iommu,
    };
    let cdev = device.cdev();
    if cdev.is_none() && kind == GroupKind::Iommu {
        return Err(Error::new(Errno::ENODEV, "a device behind an IOMMU has a node of its own"));
    }
    Ok(view::Device {
        bdf: device.name().to_owned(),
        vendor: ids.vendor,
        device: ids.device,
        subsystem_vendor: ids.subsystem_vendor,
        subsystem_device: ids.subsystem_device,
        class: ids.class,
        revision: ids.revision,
        bars: std::array::from_fn(|bar| resource(device, bar)),
        group: group.number(),
        group_kind: kind,
        vfio: device.index(),
        cdev: cdev.unwrap_or((0, device.index())),
        numa_node: -1,
        config,
        driver: Some("vfio-pci".to_owned()),
        driver_override: Some("vfio-pci".to_owned()),
        registration: Registration::Registered,
        iommu,
        reserved: device.endpoint().config().reserved.iter().map(reserved).collect(),
    })
}

fn reserved(region: &ReservedRegion) -> Reserved {
    let kind = match region.kind {
        ReservedKind::Direct => "direct",
        ReservedKind::DirectRelaxable => "direct-relaxable",
        ReservedKind::Reserved => "reserved",
        ReservedKind::Msi | ReservedKind::SwMsi => "msi",
    };
    Reserved { start: region.range.start().0, last: region.range.last().0, kind }
}

// `IORESOURCE_*` (linux/ioport.h); the lowest four bits are those of the BAR itself.
const IO: u64 = 0x100;
const MEM: u64 = 0x200;
const PREFETCH: u64 = 0x2000;
const SIZEALIGN: u64 = 0x4_0000;
const MEM_64: u64 = 0x10_0000;

fn resource(device: &Device, index: usize) -> Bar {
    let Some(bar) = device.function().bar(index) else { return Bar::default() };
    let start = device.function().bar_address(index);
    let prefetch = if bar.prefetchable { PREFETCH | 0x8 } else { 0 };
    let flags = match bar.kind {
        BarKind::Io => IO | 0x1,
        BarKind::Memory32 => MEM | prefetch,
        BarKind::Memory64 => MEM | MEM_64 | 0x4 | prefetch,
    };
    Bar { start, last: start + (bar.size - 1), flags: SIZEALIGN | flags }
}
