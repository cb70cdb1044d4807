//! The directory of one PCI function (drivers/pci/pci-sysfs.c).

use std::fmt::Write as _;

use super::topology::Placed;
use super::tree::Dir;
use super::{Bar, Device, GroupKind, Machine, Settings, Sriov};

/// Lines of a `resource` file: 6 BARs, the ROM and, as with CONFIG_PCI_IOV, 6 VF BARs.
const RESOURCES: usize = 13;
/// The driver of root ports (drivers/pci/pcie/portdrv.c).
pub(super) const PORT_DRIVER: &str = "pcieport";

/// A function, as its directory describes it.
struct Function<'a> {
    bdf: String,
    vendor: u16,
    device: u16,
    subsystem_vendor: u16,
    subsystem_device: u16,
    class: u32,
    revision: u8,
    config: &'a [u8],
    settings: &'a Settings,
    driver: Option<&'a str>,
    group: u32,
    iommu: Option<&'a str>,
}

/// The directory of a device.
pub(super) fn plan_device(sys: &mut Dir, machine: &Machine<'_>, device: &Device) {
    let iommu = &*machine.options.iommus[device.iommu].name;
    let function = Function {
        bdf: device.bdf.clone(),
        vendor: device.vendor,
        device: device.device,
        subsystem_vendor: device.subsystem_vendor,
        subsystem_device: device.subsystem_device,
        class: device.class,
        revision: device.revision,
        config: &device.config,
        settings: &device.settings,
        driver: device.driver.as_deref(),
        group: device.group,
        iommu: (device.group_kind == GroupKind::Iommu).then_some(iommu),
    };
    let path = machine.directory(device);
    let mut lines = device.bars.to_vec();
    if let Sriov::Physical(physical) = &device.sriov {
        lines.extend(physical.bars);
    }
    let dir = plan(sys, &path, &function, &lines);
    let only = device.settings.driver_override.as_deref().unwrap_or("(null)");
    dir.writable("driver_override", format!("{only}\n"));
    dir.writable("reset_method", device.settings.reset_methods.text());
    dir.write_only("reset");
    resources(dir, device);
    sriov(dir, device);
}

/// What a physical function says of its virtual ones, and they of it (drivers/pci/iov.c). vfio-pci has no way to share
/// MSI-X vectors out.
fn sriov(dir: &mut Dir, device: &Device) {
    match &device.sriov {
        Sriov::None => {}
        Sriov::Physical(physical) => {
            dir.attribute("sriov_totalvfs", format!("{}\n", physical.total));
            dir.writable("sriov_numvfs", format!("{}\n", physical.enabled));
            dir.attribute("sriov_offset", format!("{}\n", physical.offset));
            dir.attribute("sriov_stride", format!("{}\n", physical.stride));
            dir.attribute("sriov_vf_device", format!("{:x}\n", physical.device));
            let autoprobe = u8::from(device.settings.sriov_autoprobe);
            dir.writable("sriov_drivers_autoprobe", format!("{autoprobe}\n"));
            dir.attribute("sriov_vf_total_msix", "0\n");
            for (index, function) in physical.functions.iter().enumerate() {
                dir.link(&format!("virtfn{index}"), format!("../{function}"));
            }
        }
        Sriov::Virtual(physical) => {
            dir.write_only("sriov_vf_msix_count");
            dir.link("physfn", format!("../{physical}"));
        }
    }
}

/// The directory of a bridge.
pub(super) fn plan_bridge(sys: &mut Dir, machine: &Machine<'_>, placed: &Placed) {
    let (ids, settings) = (placed.bridge.ids, Settings::default());
    let function = Function {
        bdf: placed.address.to_string(),
        vendor: ids.vendor,
        device: ids.device,
        subsystem_vendor: ids.subsystem_vendor,
        subsystem_device: ids.subsystem_device,
        class: ids.class,
        revision: ids.revision,
        config: &placed.bridge.config,
        settings: &settings,
        driver: placed.secondary.map(|_| PORT_DRIVER),
        group: placed.group,
        iommu: Some(&machine.options.iommus[placed.iommu].name),
    };
    let lines =
        if placed.secondary.is_some() { RESOURCES + placed.windows.len() } else { RESOURCES };
    let mut resource = vec![Bar::default(); RESOURCES];
    resource.extend(placed.windows);
    let path = machine.topology.directory(placed.address);
    let dir = plan(sys, &path, &function, &resource[..lines]);
    dir.writable("driver_override", "(null)\n");
    if let Some(bus) = placed.secondary {
        dir.attribute("secondary_bus_number", format!("{bus}\n"));
        dir.attribute("subordinate_bus_number", format!("{bus}\n"));
    }
}

/// The files that every function has, in the directory `path` below /sys.
fn plan<'a>(sys: &'a mut Dir, path: &str, function: &Function<'_>, bars: &[Bar]) -> &'a mut Dir {
    let root: Vec<&str> = path.split('/').take(2).collect();
    sys.kept(&root.join("/"));
    let dir = sys.dir(path);
    identity(dir, function);
    state(dir, function, bars);
    links(dir, path, function);
    link_speed(dir, function.config);
    dir.power(function.settings.power);
    dir.configuration("config", function.config.to_vec());
    dir
}

fn identity(dir: &mut Dir, function: &Function<'_>) {
    dir.attribute("vendor", format!("{:#06x}\n", function.vendor));
    dir.attribute("device", format!("{:#06x}\n", function.device));
    dir.attribute("subsystem_vendor", format!("{:#06x}\n", function.subsystem_vendor));
    dir.attribute("subsystem_device", format!("{:#06x}\n", function.subsystem_device));
    dir.attribute("class", format!("{:#08x}\n", function.class));
    dir.attribute("revision", format!("{:#04x}\n", function.revision));
    dir.attribute("modalias", format!("{}\n", modalias(function)));
    let driver = function.driver.map_or_else(String::new, |name| format!("DRIVER={name}\n"));
    dir.writable(
        "uevent",
        format!(
            "{driver}PCI_CLASS={:04X}\nPCI_ID={:04X}:{:04X}\nPCI_SUBSYS_ID={:04X}:{:04X}\nPCI_SLOT_NAME={}\nMODALIAS={}\n",
            function.class,
            function.vendor,
            function.device,
            function.subsystem_vendor,
            function.subsystem_device,
            function.bdf,
            modalias(function),
        ),
    );
}

fn modalias(function: &Function<'_>) -> String {
    format!(
        "pci:v{:08X}d{:08X}sv{:08X}sd{:08X}bc{:02X}sc{:02X}i{:02X}",
        function.vendor,
        function.device,
        function.subsystem_vendor,
        function.subsystem_device,
        function.class >> 16 & 0xff,
        function.class >> 8 & 0xff,
        function.class & 0xff,
    )
}

fn state(dir: &mut Dir, function: &Function<'_>, bars: &[Bar]) {
    let mut resource = String::new();
    for index in 0..RESOURCES.max(bars.len()) {
        let bar = bars.get(index).copied().unwrap_or_default();
        let _ = writeln!(resource, "{:#018x} {:#018x} {:#018x}", bar.start, bar.last, bar.flags);
    }
    dir.attribute("resource", resource);
    let (mask, list) = online_cpus();
    dir.attribute("local_cpus", format!("{mask}\n"));
    dir.attribute("local_cpulist", format!("{list}\n"));
    dir.attribute("irq", "0\n");
    dir.attribute("power_state", "D0\n");
    dir.attribute("ari_enabled", "0\n");
    dir.attribute("dma_mask_bits", "32\n");
    dir.attribute("consistent_dma_mask_bits", "32\n");
    let settings = function.settings;
    dir.writable("numa_node", format!("{}\n", settings.numa_node));
    dir.writable("enable", format!("{}\n", settings.enabled));
    dir.writable("broken_parity_status", format!("{}\n", u8::from(settings.broken_parity)));
    dir.writable("d3cold_allowed", format!("{}\n", u8::from(settings.d3cold_allowed)));
    dir.writable("msi_bus", "1\n");
    for name in ["remove", "rescan"] {
        dir.write_only(name);
    }
}

/// The BARs as files (`pci_create_attr`): their size, and who may open them.
// DIFFERS: an open of one is EACCES; in Linux root maps them, whoever has the device.
fn resources(dir: &mut Dir, device: &Device) {
    const IORESOURCE_PREFETCH: u64 = 0x2000;
    for (index, bar) in (0_u32..).zip(&device.bars).filter(|(_, bar)| bar.start != 0) {
        let size = bar.last - bar.start + 1;
        dir.resource(&format!("resource{index}"), index, size);
        if bar.flags & IORESOURCE_PREFETCH != 0 {
            dir.resource(&format!("resource{index}_wc"), index, size);
        }
    }
}

fn links(dir: &mut Dir, path: &str, function: &Function<'_>) {
    // From the directory back to /sys.
    let up = "../".repeat(path.split('/').count());
    dir.link("subsystem", format!("{up}bus/pci"));
    if let Some(driver) = function.driver {
        dir.link("driver", format!("{up}bus/pci/drivers/{driver}"));
    }
    dir.link("iommu_group", format!("{up}kernel/iommu_groups/{}", function.group));
    if let Some(iommu) = function.iommu {
        dir.link("iommu", format!("{}virtual/iommu/{iommu}", &up[3..]));
    }
}

/// Speed and width of the link, for a function with a PCI Express capability (PCIe 7.5.3).
fn link_speed(dir: &mut Dir, config: &[u8]) {
    const EXPRESS: u8 = 0x10;
    let Some(at) = capability(config, EXPRESS) else { return };
    let word = |offset: usize| {
        let bytes = config.get(at + offset..at + offset + 2)?;
        Some(u16::from_le_bytes([bytes[0], bytes[1]]))
    };
    // Link capabilities at 0xc, link status at 0x12: speed in bits 3:0, width in bits 9:4.
    let (Some(most), Some(now)) = (word(0xc), word(0x12)) else { return };
    for (name, register) in [("max_link", most), ("current_link", now)] {
        dir.attribute(&format!("{name}_speed"), format!("{}\n", speed(register & 0xf)));
        dir.attribute(&format!("{name}_width"), format!("{}\n", register >> 4 & 0x3f));
    }
}

const fn speed(code: u16) -> &'static str {
    match code {
        1 => "2.5 GT/s PCIe",
        2 => "5.0 GT/s PCIe",
        3 => "8.0 GT/s PCIe",
        4 => "16.0 GT/s PCIe",
        5 => "32.0 GT/s PCIe",
        6 => "64.0 GT/s PCIe",
        _ => "Unknown",
    }
}

/// Where the capability `id` lies in `config`.
fn capability(config: &[u8], id: u8) -> Option<usize> {
    const STATUS: usize = 0x06;
    const CAPABILITY_LIST: u8 = 1 << 4;
    const POINTER: usize = 0x34;
    if config.get(STATUS)? & CAPABILITY_LIST == 0 {
        return None;
    }
    let mut at = usize::from(*config.get(POINTER)? & !3);
    // 48 dwords follow the header; a list that is longer goes in circles.
    for _ in 0..48 {
        if at < 0x40 {
            return None;
        }
        if *config.get(at)? == id {
            return Some(at);
        }
        at = usize::from(*config.get(at + 1)? & !3);
    }
    None
}

/// The online CPUs as sysfs writes them: as a mask and as a list. Every one is near a device of no NUMA node.
fn online_cpus() -> (String, String) {
    let read = |name: &str| std::fs::read_to_string(format!("/sys/devices/system/cpu/{name}"));
    let list = read("online").map_or_else(|_| "0".to_owned(), |text| text.trim().to_owned());
    let possible = read("possible").map_or_else(|_| list.clone(), |text| text.trim().to_owned());
    let width = cpus(&possible).last().map_or(1, |last| last + 1);
    (mask(&cpus(&list), width), list)
}

/// Whether the host has NUMA node `node`.
pub(crate) fn is_numa_node(node: i32) -> bool {
    let online = std::fs::read_to_string("/sys/devices/system/node/online");
    let node = usize::try_from(node);
    online.is_ok_and(|list| node.is_ok_and(|node| cpus(list.trim()).contains(&node)))
}

/// The numbers of a list such as "0-3,8".
fn cpus(list: &str) -> Vec<usize> {
    let mut all = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse(), last.parse::<usize>()) {
            all.extend(first..=last.min(8191));
        }
    }
    all
}

/// A mask of `width` bits, 32 to a group, the highest first, as the kernel's "%*pb" prints it.
fn mask(cpus: &[usize], width: usize) -> String {
    let mut words = vec![0_u32; width.div_ceil(32)];
    for &cpu in cpus.iter().filter(|&&cpu| cpu < width) {
        words[cpu / 32] |= 1 << (cpu % 32);
    }
    let digits = |index: usize| (width - index * 32).min(32).div_ceil(4);
    let groups: Vec<String> = words
        .iter()
        .enumerate()
        .rev()
        .map(|(index, word)| format!("{word:0width$x}", width = digits(index)))
        .collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_printed_in_groups_of_32_bits() {
        assert_eq!(mask(&cpus("0-1"), 2), "3");
        assert_eq!(mask(&cpus("0-3,8"), 12), "10f");
        assert_eq!(mask(&cpus("0,33"), 64), "00000002,00000001");
        assert_eq!(mask(&cpus("32"), 36), "1,00000000");
    }

    #[test]
    fn a_capability_list_that_runs_in_circles_ends() {
        let mut config = vec![0; 256];
        config[0x06] = 0x10;
        config[0x34] = 0x40;
        config[0x40..0x42].copy_from_slice(&[0x01, 0x50]);
        config[0x50..0x52].copy_from_slice(&[0x10, 0x40]);
        assert_eq!(capability(&config, 0x10), Some(0x50));
        assert_eq!(capability(&config, 0x11), None);
    }
}
