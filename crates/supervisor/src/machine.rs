//! The machine of a run, and how its devices look in the view.

use std::collections::BTreeMap;
use std::sync::Arc;

use ioasis_iommufd::{ReservedKind, ReservedRegion};
use ioasis_pci::{BARS, BarKind, CONFIG_SIZE, Function};
use ioasis_uapi::{Errno, Error, Result};
use ioasis_vfio::{Device, Driver};

use crate::sysfs::Bus;
use crate::view::{self, Bar, GroupKind, PhysicalFunction, Registration, Reserved, Sriov};

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
    /// By address, the drivers of the devices that do not start with vfio-pci: one that does nothing here, or none.
    pub drivers: BTreeMap<String, Option<String>>,
}

/// Opens of every device at once that there is memory for, should a program open its node that often.
const OPENS: u64 = 64;

impl Machine {
    /// The devices as /sys and /dev show them: those that there are.
    ///
    /// # Errors
    ///
    /// `EIO` if a device does not let its configuration space be read.
    pub(crate) fn seen(&self, bus: &Bus) -> Result<Vec<view::Device>> {
        let iommu = |index: usize| self.iommu_of.get(index).copied().unwrap_or_default();
        let devices = self.devices.devices().iter().enumerate();
        let devices = devices.filter(|(_, device)| device.exists() && !device.is_removed());
        devices.map(|(index, device)| seen(device, bus, iommu(index))).collect()
    }

    /// What is the same for every device, as it is now.
    pub(crate) fn options(&self, bus: &Bus) -> view::Options {
        view::Options {
            files_size: self.files_size(),
            drivers: bus.drivers(),
            autoprobe: bus.autoprobe(),
            ..self.view.clone()
        }
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

fn seen(device: &Device, bus: &Bus, iommu: usize) -> Result<view::Device> {
    let function = device.function();
    let known = bus.function(device.name());
    let known = known.ok_or(Error::new(Errno::ENODEV, "a device is not on the bus"))?;
    let registration = match device.driver() {
        Driver::Vfio => Registration::Registered,
        Driver::Leaving => Registration::Unregistering,
        Driver::None | Driver::Other => Registration::Absent,
    };
    let ids = function.ids();
    let config = config(function)?;
    let group = device.group();
    let kind = match (group.is_no_iommu(), group.is_emulated()) {
        (true, _) => GroupKind::NoIommu,
        (false, true) => GroupKind::Emulated,
        (false, false) => GroupKind::Iommu,
    };
    let cdev = device.cdev();
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
        config,
        // The links go first, and what the driver does to let go comes after (`__device_release_driver`).
        driver: known.driver.filter(|_| registration != Registration::Unregistering),
        settings: known.settings,
        registration,
        iommu,
        reserved: device.endpoint().config().reserved.iter().map(reserved).collect(),
        sriov: sriov(device),
    })
}

/// What the host reads of it.
fn config(function: &Function) -> Result<Vec<u8>> {
    if function.is_virtual() {
        return Ok(function.config_of_host());
    }
    let mut config = vec![0; CONFIG_SIZE];
    function.config_read(0, &mut config)?;
    Ok(config)
}

fn sriov(device: &Device) -> Sriov {
    if let Some(physical) = device.physical_function() {
        return Sriov::Virtual(physical.name().to_owned());
    }
    let Some(sriov) = device.function().sriov() else { return Sriov::None };
    let functions = device.virtual_functions().into_iter();
    let functions = functions.filter(|function| !function.is_removed());
    Sriov::Physical(PhysicalFunction {
        total: sriov.total(),
        enabled: sriov.enabled(),
        functions: functions.map(|function| function.name().to_owned()).collect(),
        offset: sriov.offset(),
        stride: sriov.stride(),
        device: sriov.device(),
        bars: std::array::from_fn(|index| {
            let bar = sriov.bar(index).filter(|(_, start)| *start != 0);
            bar.map_or_else(Bar::default, |(bar, start)| {
                range(bar, start, bar.size * u64::from(sriov.total()))
            })
        }),
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
    range(bar, device.function().bar_address(index), bar.size)
}

fn range(bar: &ioasis_pci::Bar, start: u64, size: u64) -> Bar {
    let prefetch = if bar.prefetchable { PREFETCH | 0x8 } else { 0 };
    let flags = match bar.kind {
        BarKind::Io => IO | 0x1,
        BarKind::Memory32 => MEM | prefetch,
        BarKind::Memory64 => MEM | MEM_64 | 0x4 | prefetch,
    };
    Bar { start, last: start + (size - 1), flags: SIZEALIGN | flags }
}
