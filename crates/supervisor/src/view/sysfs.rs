//! What the view has under /sys, apart from the devices' own directories.

use std::collections::BTreeSet;

use ioasis_iommufd::Params;

use super::dev::{
    CONTAINER, behind_iommu, cdev_name, group_name, groups, groups_with_node, has_cdev, registered,
};
use super::tree::{Dir, Host};
use super::{
    Bdf, ContainerNode, Device, FaultInjection, GroupKind, HostPci, Iommu, Machine, Node, Options,
    PowerControl, Registers, Reserved, Sriov, function,
};

/// The PCI functions of the host. There are none where there is no PCI bus.
pub(super) fn host_functions() -> BTreeSet<Bdf> {
    let Ok(listing) = std::fs::read_dir("/sys/bus/pci/devices") else { return BTreeSet::new() };
    let names = listing.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| Bdf::parse(&name)).collect()
}

pub(super) fn plan(sys: &mut Dir, machine: &Machine<'_>) {
    let Machine { devices, options, topology } = *machine;
    bus(sys, machine);
    modules(sys, devices, options);
    iommu_groups(sys, machine);
    classes(sys, machine);
    iommus(sys, machine);
    if options.fault_injection == FaultInjection::Present {
        fault_injection(sys);
    }
    for device in devices {
        function::plan_device(sys, machine, device);
    }
    for placed in &topology.bridges {
        function::plan_bridge(sys, machine, placed);
    }
    for (directory, bus) in topology.buses(devices) {
        pci_bus(sys, &directory, &bus, options.host_pci);
    }
}

/// /sys/kernel/debug/fail* (Documentation/fault-injection/fault-injection.rst), as far as tests set it.
fn fault_injection(sys: &mut Dir) {
    sys.kept("kernel");
    let debug = sys.dir("kernel/debug");
    for (name, settings) in [
        ("fail_iommufd", &["verbose"][..]),
        ("fail_page_alloc", &["ignore-gfp-highmem", "ignore-gfp-wait", "verbose"]),
        ("failslab", &["ignore-gfp-wait", "verbose"]),
    ] {
        for setting in settings {
            debug.dir(name).node(setting, Node::FaultSetting, 0o600, None);
        }
    }
}

/// /sys/bus/pci (Documentation/ABI/testing/sysfs-bus-pci).
fn bus(sys: &mut Dir, machine: &Machine<'_>) {
    let Machine { devices, options, topology } = *machine;
    sys.kept("bus");
    let pci = sys.dir("bus/pci");
    pci.writable("drivers_autoprobe", if options.autoprobe { "1\n" } else { "0\n" });
    pci.write_only("drivers_probe");
    pci.write_only("rescan");
    pci.write_only("uevent");
    pci.writable("resource_alignment", "\n");
    pci.dir("slots");
    let bound = devices.iter().map(|device| (device.address(), device.driver.as_deref()));
    let bridges = topology
        .bridges
        .iter()
        .map(|placed| (placed.address, placed.secondary.map(|_| function::PORT_DRIVER)));
    for (address, driver) in bound.chain(bridges) {
        let (name, directory) = (address.to_string(), topology.directory(address));
        pci.dir("devices").link(&name, format!("../../../{directory}"));
        if let Some(driver) = driver {
            let driver = pci.dir("drivers").dir(driver);
            driver.link(&name, format!("../../../../{directory}"));
        }
    }
    let others = options.drivers.iter().cloned().chain(["vfio-pci".to_owned()]);
    let names: Vec<String> = pci.dir("drivers").entries.keys().cloned().chain(others).collect();
    for name in names {
        let driver = pci.dir("drivers").dir(&name);
        if driver.entries.contains_key("bind") {
            continue;
        }
        for file in ["bind", "unbind", "new_id", "remove_id", "uevent"] {
            driver.write_only(file);
        }
        if name != function::PORT_DRIVER {
            driver.link("module", format!("../../../../module/{}", name.replace('-', "_")));
        }
    }
    pci.dir("devices");
    if options.host_pci == HostPci::Shown {
        for name in ["bus/pci", "bus/pci/devices", "bus/pci/drivers", "bus/pci/slots"] {
            sys.dir(name).host = Host::Kept;
        }
    }
}

/// /sys/module: that the modules are there, and their parameters; those that nothing here reads have the defaults of Linux.
fn modules(sys: &mut Dir, devices: &[Device], options: &Options) {
    let has_sriov = devices.iter().any(|device| matches!(device.sriov, Sriov::Physical(_)));
    sys.kept("module");
    let mut module = |name: &str, parameters: &[(&str, &str)]| {
        let module = sys.dir("module").dir(name);
        module.attribute("initstate", "live\n");
        module.attribute("refcnt", "1\n");
        module.attribute("taint", "\n");
        module.write_only("uevent");
        module.dir("holders");
        for &(parameter, value) in parameters {
            module.dir("parameters").writable(parameter, format!("{value}\n"));
        }
    };
    module("vfio", &[]);
    module("vfio_pci_core", &[]);
    module(
        "vfio_pci",
        &[
            ("disable_denylist", "N"),
            ("disable_idle_d3", "N"),
            ("disable_vga", "N"),
            ("enable_sriov", if has_sriov { "Y" } else { "N" }),
            ("nointxmask", "N"),
        ],
    );
    module("iommufd", &[]);
    let type1 = options.container == ContainerNode::Type1;
    let spapr = options.iommus.iter().any(|iommu| iommu.registers == Registers::Spapr);
    let type1 = type1 && !spapr;
    if type1 {
        module("vfio_iommu_type1", &[]);
    } else if spapr {
        module("vfio_iommu_spapr_tce", &[]);
        sys.dir("module/vfio_iommu_spapr_tce").attribute("version", "0.1\n");
    }
    for (number, (module, name)) in (0_u32..).zip(Params::NAMES) {
        if type1 || module != "vfio_iommu_type1" {
            sys.dir("module").dir(module).dir("parameters").parameter(name, number);
        }
    }
    for driver in options.drivers.iter().filter(|&driver| driver != "vfio-pci") {
        let name = driver.replace('-', "_");
        let module = sys.dir("module").dir(&name);
        module.attribute("initstate", "live\n");
        module.attribute("refcnt", "0\n");
        let link = format!("../../../bus/pci/drivers/{driver}");
        module.dir("drivers").link(&format!("pci:{driver}"), link);
    }
    let link = "../../../bus/pci/drivers/vfio-pci";
    sys.dir("module/vfio_pci/drivers").link("pci:vfio-pci", link);
}

/// /sys/kernel/iommu_groups (drivers/iommu/iommu.c).
fn iommu_groups(sys: &mut Dir, machine: &Machine<'_>) {
    let Machine { devices, options, topology } = *machine;
    sys.kept("kernel");
    let all = sys.dir("kernel/iommu_groups");
    if options.host_pci == HostPci::Shown {
        all.host = Host::Kept;
    }
    for device in groups(devices) {
        let group = all.dir(&device.group.to_string());
        match device.group_kind {
            GroupKind::Iommu => {
                let members = devices.iter().filter(|member| member.group == device.group);
                group.attribute("reserved_regions", reserved_regions(members));
                let iommu = &options.iommus[device.iommu];
                group.writable("type", domain_type(iommu));
                if iommu.registers == Registers::Spapr {
                    // iommu_register_group: the PCI domain and the endpoint's number.
                    group.attribute("name", format!("domain0-pe{:x}\n", device.group));
                }
            }
            GroupKind::NoIommu | GroupKind::Emulated => {
                group.attribute("name", "vfio-noiommu\n");
                group.attribute("reserved_regions", "");
                group.writable("type", "unknown\n");
            }
        }
    }
    for placed in &topology.bridges {
        let group = all.dir(&placed.group.to_string());
        // A bridge has what its IOMMU keeps from all devices.
        let same = devices.iter().find(|device| device.iommu == placed.iommu);
        group.attribute("reserved_regions", reserved_regions(same.into_iter()));
        group.writable("type", domain_type(&options.iommus[placed.iommu]));
    }
    let grouped = devices.iter().map(|device| (device.address(), device.group));
    let bridges = topology.bridges.iter().map(|placed| (placed.address, placed.group));
    for (address, group) in grouped.chain(bridges) {
        let members = all.dir(&format!("{group}/devices"));
        members.link(&address.to_string(), format!("../../../../{}", topology.directory(address)));
    }
}

/// What the devices of a group cannot use: ascending, those of one kind that overlap as one
/// (drivers/iommu/iommu.c, `iommu_insert_resv_region`).
fn reserved_regions<'a>(devices: impl Iterator<Item = &'a Device>) -> String {
    let mut all: Vec<_> = devices.flat_map(|device| device.reserved.iter().cloned()).collect();
    all.sort();
    let mut shown: Vec<Reserved> = Vec::new();
    for region in all {
        let over = |other: &&mut Reserved| other.kind == region.kind && region.start <= other.last;
        match shown.iter_mut().find(over) {
            Some(other) => other.last = other.last.max(region.last),
            None => shown.push(region),
        }
    }
    let line = |text: String, Reserved { start, last, kind }: &Reserved| {
        text + &format!("{start:#018x} {last:#018x} {kind}\n")
    };
    shown.iter().fold(String::new(), line)
}

/// What Linux chooses for devices that nobody asked about: lazy on x86, strict elsewhere (drivers/iommu/Kconfig).
fn domain_type(iommu: &Iommu) -> &'static str {
    match iommu.registers {
        Registers::Intel { .. } | Registers::Amd { .. } => "DMA-FQ\n",
        Registers::Plain => "DMA\n",
        // A platform domain, which iommu_group_show_type has no word for.
        Registers::Spapr => "unknown\n",
    }
}

/// A directory with the files every device of a class has, and the link to it from /sys/class and /sys/dev/char.
fn class_device(
    sys: &mut Dir,
    path: &str,
    class: &str,
    name: &str,
    node: Option<((u32, u32), &str)>,
) {
    let depth = path.split('/').count();
    let device = sys.dir(path);
    let mut uevent = String::new();
    if let Some(((major, minor), devname)) = node {
        uevent = format!("MAJOR={major}\nMINOR={minor}\nDEVNAME={devname}\n");
        device.attribute("dev", format!("{major}:{minor}\n"));
    }
    device.writable("uevent", uevent);
    device.link("subsystem", format!("{}class/{class}", "../".repeat(depth)));
    device.power(PowerControl::On);
    sys.kept("class").dir(class).link(name, format!("../../{path}"));
    if let Some(((major, minor), _)) = node {
        sys.kept("dev/char").link(&format!("{major}:{minor}"), format!("../../{path}"));
    }
}

/// /sys/class/{vfio,vfio-dev,misc} and the devices behind them.
fn classes(sys: &mut Dir, machine: &Machine<'_>) {
    let Machine { devices, options, .. } = *machine;
    sys.kept("devices/virtual/misc");
    sys.kept("class/misc");
    if options.container != ContainerNode::Absent {
        let node = Some((CONTAINER, "vfio/vfio"));
        class_device(sys, "devices/virtual/misc/vfio", "misc", "vfio", node);
    }
    class_device(
        sys,
        "devices/virtual/misc/iommu",
        "misc",
        "iommu",
        Some(((10, options.iommu_minor), "iommu")),
    );
    sys.dir("class").dir("vfio");
    sys.dir("class").dir("vfio-dev");
    for device in groups_with_node(devices) {
        let name = group_name(device);
        let node = ((options.group_major, device.group), &*format!("vfio/{name}"));
        class_device(sys, &format!("devices/virtual/vfio/{name}"), "vfio", &name, Some(node));
    }
    for device in registered(devices) {
        let name = cdev_name(device);
        let path = format!("{}/vfio-dev/{name}", machine.directory(device));
        let node = format!("vfio/devices/{name}");
        let node = has_cdev(device).then_some((device.cdev, &*node));
        class_device(sys, &path, "vfio-dev", &name, node);
        sys.dir(&path).link("device", format!("../../../{}", device.bdf));
    }
}

/// /sys/class/iommu and the IOMMUs behind it.
fn iommus(sys: &mut Dir, machine: &Machine<'_>) {
    let Machine { devices, options, topology } = *machine;
    sys.dir("class").dir("iommu");
    for (index, iommu) in options.iommus.iter().enumerate() {
        let path = format!("devices/virtual/iommu/{}", iommu.name);
        class_device(sys, &path, "iommu", &iommu.name, None);
        registers(sys.dir(&path), iommu);
        let members = sys.dir(&path).dir("devices");
        let behind = behind_iommu(devices).map(|device| (device.address(), device.iommu));
        let bridges = topology.bridges.iter().map(|placed| (placed.address, placed.iommu));
        for (address, _) in behind.chain(bridges).filter(|&(_, iommu)| iommu == index) {
            let directory = topology.directory(address);
            let below = directory.strip_prefix("devices/").unwrap_or(&directory);
            members.link(&address.to_string(), format!("../../../../{below}"));
        }
    }
}

fn registers(dir: &mut Dir, iommu: &Iommu) {
    match iommu.registers {
        // drivers/iommu/intel/iommu.c, intel_iommu_attrs
        Registers::Intel { address, cap, ecap } => {
            let intel = dir.dir("intel-iommu");
            intel.attribute("address", format!("{address:x}\n"));
            intel.attribute("cap", format!("{cap:x}\n"));
            intel.attribute("ecap", format!("{ecap:x}\n"));
            intel.attribute("version", "1:0\n");
            // Capability register, ND: 2^(4 + 2 * ND) domains.
            intel.attribute("domains_supported", format!("{}\n", 1_u64 << (4 + 2 * (cap & 7))));
            intel.attribute("domains_used", "1\n");
        }
        // drivers/iommu/amd/init.c, amd_iommu_attrs
        Registers::Amd { cap, features } => {
            let amd = dir.dir("amd-iommu");
            amd.attribute("cap", format!("{cap:x}\n"));
            amd.attribute("features", format!("{features:x}:0\n"));
        }
        Registers::Plain => {}
        // arch/powerpc/kernel/iommu.c, spapr_tce_iommu_attrs
        Registers::Spapr => drop(dir.dir("spapr-tce-iommu")),
    }
}

/// A bus, in the directory of the bridge above it, beside what the host has in a directory of that name.
fn pci_bus(sys: &mut Dir, directory: &str, bus: &str, host_pci: HostPci) {
    let is_root = directory.split('/').count() == 2;
    let dir = sys.dir(directory);
    if is_root {
        let hosts = std::fs::exists(format!("/sys/{directory}/pci_bus")).unwrap_or(false);
        if hosts && host_pci == HostPci::Shown {
            return;
        }
        dir.writable("uevent", "");
        dir.power(PowerControl::On);
    }
    sys.kept("class");
    let class = sys.dir("class/pci_bus");
    if host_pci == HostPci::Shown {
        class.host = Host::Kept;
    }
    class_device(sys, &format!("{directory}/pci_bus/{bus}"), "pci_bus", bus, None);
    let dir = sys.dir(&format!("{directory}/pci_bus/{bus}"));
    let name = directory.rsplit('/').next().unwrap_or(directory);
    dir.link("device", format!("../../../{name}"));
    dir.write_only("rescan");
}
