//! Makes the machine that a [`Description`] describes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail, ensure};
use ioasis_iommufd::type1::GroupKind;
use ioasis_iommufd::{self as iommufd, Endpoint, EndpointConfig, Group, IommuKind};
use ioasis_pci::{Bdf, Function, Model, Models, Windows};
use ioasis_supervisor::view;
use ioasis_vfio::{Machine, Placement};

use crate::entry::{Entry, meant};
use crate::machine::{Description, Device, Translation};

/// Whether a machine has the mock hardware of Linux's own IOMMUFD tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MockHardware {
    /// /dev/iommu answers IOMMU_TEST_CMD.
    Present,
    /// As on any machine but a kernel developer's.
    Absent,
}

/// What /sys/class/iommu shows of the IOMMUs of `description`, in their order.
pub(crate) fn in_sysfs(description: &Description) -> Vec<view::Iommu> {
    let all = description.iommus.iter().map(|iommu| &iommu.hardware);
    all.enumerate().map(|(index, hardware)| seen(index, hardware)).collect()
}

fn seen(index: usize, hardware: &iommufd::Iommu) -> view::Iommu {
    let (_, bytes) = hardware.registers();
    let word = |at: usize| {
        let bytes = bytes[at..at + 8].try_into().expect("eight bytes");
        u64::from_le_bytes(bytes)
    };
    let place = index as u64;
    let (name, registers) = match hardware.kind {
        IommuKind::Vtd => {
            let address = 0xfed9_0000 + place * 0x1000;
            let registers = view::Registers::Intel { address, cap: word(8), ecap: word(16) };
            (format!("dmar{index}"), registers)
        }
        IommuKind::Amd => {
            // AMD-Vi 3.2.1: capability 0xf of type 3, revision 1, with EFRSup, CapExt and, for ATS, IotlbSup.
            let cap = 0x180b_640f | if hardware.ats { 1 << 24 } else { 0 };
            (format!("ivhd{index}"), view::Registers::Amd { cap, features: word(0) })
        }
        IommuKind::Smmuv3 => {
            (format!("smmu3.{:#018x}", 0x905_0000 + place * 0x2_0000), view::Registers::Plain)
        }
        IommuKind::Riscv => {
            let address = 0x301_0000 + place * 0x1000;
            (format!("riscv-iommu@{address:x}.iommu"), view::Registers::Plain)
        }
        IommuKind::Spapr => (format!("iommu-phb{index:04x}"), view::Registers::Spapr),
        IommuKind::NoIommu => unreachable!("no description asks for it"),
    };
    view::Iommu { name, registers }
}

/// What a [`Description`] becomes.
#[derive(Debug)]
pub(crate) struct Built {
    /// What all devices share.
    pub(crate) iommu: Arc<iommufd::Machine>,
    /// The devices of the description in its order, behind them all virtual functions.
    pub(crate) devices: Machine,
    /// For every device, in their order, the index of its IOMMU.
    pub(crate) iommu_of: Vec<usize>,
}

/// By address, the drivers of devices that do not start with vfio-pci.
pub(crate) fn drivers(description: &Description) -> BTreeMap<String, Option<String>> {
    let driver = |device: &Device| {
        let (address, driver) = (device.address?, device.driver.clone()?);
        Some((address.to_string(), Some(driver).filter(|name| name != "none")))
    };
    description.devices.iter().filter_map(driver).collect()
}

/// The devices of `description`, which is placed, and what they share.
pub(crate) fn build(
    known: &Models,
    description: &Description,
    mock: MockHardware,
) -> Result<Built> {
    let machine = match mock {
        MockHardware::Present => iommufd::Machine::with_mock_of(description.linux),
        MockHardware::Absent => iommufd::Machine::of(description.linux),
    };
    set_parameters(&machine, description)?;
    check_images(description)?;
    let iommus: Vec<_> =
        description.iommus.iter().map(|iommu| Arc::new(iommu.hardware.clone())).collect();
    let none = Arc::new(iommufd::Iommu::none());
    let behind = |device: &Device| match device.translation {
        Translation::None => &none,
        Translation::Iommu | Translation::Emulated => &iommus[device.iommu],
    };
    let mut groups: BTreeMap<u32, (usize, Arc<Group>)> = BTreeMap::new();
    let mut models = Vec::new();
    for device in &description.devices {
        let address = device.address.context("a device has no address")?;
        let number = device.group.context("a device has no group")?;
        let (iommu, _) = groups
            .entry(number)
            .or_insert_with(|| (device.iommu, Group::new(&machine, behind(device), number)));
        ensure!(
            *iommu == device.iommu,
            "{}: group {number} is behind iommu {iommu}, so {address} cannot be behind iommu {}",
            device.place,
            device.iommu
        );
        device.check(known.list())?;
        let model =
            known.create(&device.model, &device.options).with_context(|| device.place.clone())?;
        models.push((device, address, model));
    }
    let (mut placements, mut virtuals) = (Vec::new(), Vec::new());
    for (device, (function, below)) in description.devices.iter().zip(functions(models)?) {
        let number = device.group.context("a device has no group")?;
        placements.push(placement(description, device, function, &groups[&number].1));
        virtuals.extend(below.into_iter().map(|function| (device, function)));
    }
    let iommu_of = description.devices.iter().chain(virtuals.iter().map(|(device, _)| *device));
    let iommu_of = iommu_of.map(|device| device.iommu).collect();
    for (number, (device, function)) in groups_of_virtual_functions(description).zip(virtuals) {
        check_virtual(device, &function, &placements)?;
        let number = number.with_context(|| {
            format!("{}: no group number is left for its virtual functions", device.place)
        })?;
        let group = Group::new(&machine, behind(device), number);
        placements.push(placement(description, device, function, &group));
    }
    check_kinds(&placements)?;
    let devices = Machine::new(placements);
    create_virtual_functions(description, &devices)?;
    Ok(Built { iommu: machine, devices, iommu_of })
}

/// The virtual functions that are there before anybody asks for them.
fn create_virtual_functions(description: &Description, machine: &Machine) -> Result<()> {
    let wanted = description.devices.iter().zip(machine.devices());
    for (described, device) in wanted.filter(|(described, _)| described.numvfs != 0) {
        let (place, count) = (described.place_of("numvfs"), described.numvfs);
        let total = device.function().sriov().map_or(0, |sriov| sriov.total());
        ensure!(
            count <= total,
            "{place}: numvfs={count} is more than the {total} virtual functions that vfs= gives the device"
        );
        ensure!(
            described.driver.is_none(),
            "{place}: only vfio-pci has virtual functions, so that numvfs= goes with no other driver="
        );
        device
            .create_virtual_functions(count)
            .with_context(|| format!("{place}: virtual functions cannot be enabled"))?;
    }
    Ok(())
}

/// A function that `device` describes, in `group`.
fn placement(
    description: &Description,
    device: &Device,
    function: Function,
    group: &Arc<Group>,
) -> Placement {
    let address = function.address();
    let config = EndpointConfig {
        name: address.to_string().into(),
        requester_id: address.requester_id(),
        reserved: match device.translation {
            Translation::None => Vec::new(),
            Translation::Iommu | Translation::Emulated => {
                description.iommus[device.iommu].reserved.clone()
            }
        },
        pasid_bits: device.pasid_bits,
        ats: device.ats,
        pri: device.pri,
        ..EndpointConfig::default()
    };
    let kind = match device.translation {
        Translation::Iommu => GroupKind::Iommu,
        Translation::None => GroupKind::NoIommu,
        Translation::Emulated => GroupKind::Emulated,
    };
    Placement { function, endpoint: Endpoint::new(group, config), kind }
}

/// A function for each model, in the order given, each with its virtual functions. Their BARs are in the order of the addresses of
/// physical functions: those of one bus lie together.
fn functions(
    models: Vec<(&Device, Bdf, Box<dyn Model>)>,
) -> Result<Vec<(Function, Vec<Function>)>> {
    let mut models: Vec<_> = models.into_iter().enumerate().collect();
    models.sort_by_key(|(_, (_, address, _))| *address);
    let mut windows = Windows::default();
    let made = models.into_iter().map(|(index, (device, address, model))| {
        let made = Function::with_virtual_functions(address, model, &mut windows);
        let made = made.with_context(|| {
            let device = device.place_of("vfs");
            format!("{device}: there is no room for so many virtual functions behind {address}")
        })?;
        Ok((index, made))
    });
    let mut functions: Vec<_> = made.collect::<Result<_>>()?;
    functions.sort_by_key(|(index, _)| *index);
    Ok(functions.into_iter().map(|(_, function)| function).collect())
}

/// Numbers for the groups of virtual functions, behind those that devices and bridges have (`view`): as on a machine where they come
/// last.
fn groups_of_virtual_functions(description: &Description) -> impl Iterator<Item = Option<u32>> {
    let used: BTreeSet<_> = description.devices.iter().filter_map(|device| device.group).collect();
    let addresses = description.devices.iter().filter_map(|device| device.address);
    let buses: BTreeSet<_> = addresses
        .filter(|address| address.bus() != 0)
        .map(|address| (address.domain(), address.bus()))
        .collect();
    // The host bridge takes group 0, or else a number as root ports do.
    let bridges = buses.len() + usize::from(used.contains(&0));
    let bridges = u32::try_from(bridges).ok();
    let first = used.last().copied().unwrap_or(0).checked_add(1);
    let first = first.zip(bridges).and_then(|(first, bridges)| first.checked_add(bridges));
    (0..).map(move |index| first?.checked_add(index))
}

/// A virtual function has its address to itself, and does DMA of its own.
fn check_virtual(device: &Device, function: &Function, placed: &[Placement]) -> Result<()> {
    let (place, address) = (device.place_of("vfs"), function.address());
    ensure!(
        device.translation != Translation::Emulated,
        "{place}: a device with iommu=emulated has no DMA, and no virtual functions"
    );
    let free = placed.iter().all(|other| other.function.address() != address);
    ensure!(free, "{place}: a virtual function would be at {address}, where another function is");
    Ok(())
}

/// Every module parameter, for messages: docs/machine.md says what each is.
const PARAMETERS: [&str; 5] = [
    "vfio_iommu_type1.allow_unsafe_interrupts",
    "vfio_iommu_type1.dma_entry_limit",
    "vfio_iommu_type1.disable_hugepages",
    "vfio.enable_unsafe_noiommu_mode",
    "iommufd.allow_unsafe_interrupts",
];

/// The module parameters as the description has them. A device without an IOMMU can only be there with its parameter on.
fn set_parameters(machine: &iommufd::Machine, description: &Description) -> Result<()> {
    let no_iommu = |device: &Device| device.translation == Translation::None;
    let no_iommu = description.devices.iter().any(no_iommu);
    let params = &machine.params;
    params.enable_unsafe_noiommu_mode.store(no_iommu, Ordering::Relaxed);
    for (module, Entry { key, value, place }) in &description.parameters {
        let param = params.named(module, key);
        let param = param.with_context(|| {
            let given = format!("{module}.{key}");
            let meant = meant(&given, PARAMETERS);
            format!(
                "{place}: there is no parameter {given}{meant}; there are {}",
                PARAMETERS.join(", ")
            )
        })?;
        param
            .set(value.as_bytes())
            .with_context(|| format!("{place}: {module}.{key} cannot be {value:?}"))?;
    }
    ensure!(
        !no_iommu || params.enable_unsafe_noiommu_mode.load(Ordering::Relaxed),
        "a device without an IOMMU needs vfio.enable_unsafe_noiommu_mode"
    );
    Ok(())
}

/// An image that one device writes is no other's: each would keep what it knows of it, and both would lose data.
fn check_images(description: &Description) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let mut seen: Vec<((u64, u64), bool, &Device)> = Vec::new();
    for device in &description.devices {
        let option = |key: &str| device.options.iter().find(|(name, _)| name == key);
        // What is wrong with an image that cannot be looked at, the model says.
        let Some(file) = option("image").and_then(|(_, path)| std::fs::metadata(path).ok()) else {
            continue;
        };
        let reads_only = option("ro").is_some_and(|(_, value)| value == "on");
        let image = (file.dev(), file.ino());
        let user = |&&(other, other_reads_only, _): &&((u64, u64), bool, &Device)| {
            other == image && !(reads_only && other_reads_only)
        };
        if let Some((_, _, other)) = seen.iter().find(user) {
            bail!(
                "{}: the image is that of another device of this machine, {}; give both ro, or one a copy",
                device.place_of("image"),
                other.place_of("image")
            );
        }
        seen.push((image, reads_only, device));
    }
    Ok(())
}

/// One group has one kind of devices.
fn check_kinds(placements: &[Placement]) -> Result<()> {
    for placement in placements {
        let group = placement.endpoint.group().number();
        let mates = placements.iter().filter(|other| other.endpoint.group().number() == group);
        ensure!(
            mates.clone().all(|other| other.kind == placement.kind),
            "group {group} has devices of different kinds: all of a group are behind an IOMMU, or have iommu=none, or iommu=emulated"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_that_messages_name_is_there() {
        let machine = iommufd::Machine::new();
        for name in PARAMETERS {
            let (module, name) = name.split_once('.').expect("a module and a name");
            assert!(machine.params.named(module, name).is_some(), "{module}.{name}");
        }
    }
}
