//! The directory of one PCI function (drivers/pci/pci-sysfs.c).

use std::fmt::Write as _;

use super::tree::Dir;
use super::{Device, GroupKind, Options};

/// Lines of a `resource` file: 6 BARs, the ROM and, as with CONFIG_PCI_IOV, 6 VF BARs.
const RESOURCES: usize = 13;

pub(super) fn plan(sys: &mut Dir, device: &Device, options: &Options) {
    sys.kept(&format!("devices/{}", device.address().bridge()));
    let dir = sys.dir(&device.directory());
    identity(dir, device);
    state(dir, device);
    links(dir, device, options);
    link_speed(dir, &device.config);
    dir.power();
    dir.writable("config", device.config.clone());
}

fn identity(dir: &mut Dir, device: &Device) {
    dir.attribute("vendor", format!("{:#06x}\n", device.vendor));
    dir.attribute("device", format!("{:#06x}\n", device.device));
    dir.attribute("subsystem_vendor", format!("{:#06x}\n", device.subsystem_vendor));
    dir.attribute("subsystem_device", format!("{:#06x}\n", device.subsystem_device));
    dir.attribute("class", format!("{:#08x}\n", device.class));
    dir.attribute("revision", format!("{:#04x}\n", device.revision));
    dir.attribute("modalias", format!("{}\n", modalias(device)));
    dir.writable(
        "uevent",
        format!(
            "DRIVER={}\nPCI_CLASS={:04X}\nPCI_ID={:04X}:{:04X}\nPCI_SUBSYS_ID={:04X}:{:04X}\nPCI_SLOT_NAME={}\nMODALIAS={}\n",
            device.driver,
            device.class,
            device.vendor,
            device.device,
            device.subsystem_vendor,
            device.subsystem_device,
            device.bdf,
            modalias(device),
        ),
    );
}

fn modalias(device: &Device) -> String {
    format!(
        "pci:v{:08X}d{:08X}sv{:08X}sd{:08X}bc{:02X}sc{:02X}i{:02X}",
        device.vendor,
        device.device,
        device.subsystem_vendor,
        device.subsystem_device,
        device.class >> 16 & 0xff,
        device.class >> 8 & 0xff,
        device.class & 0xff,
    )
}

fn state(dir: &mut Dir, device: &Device) {
    let mut resource = String::new();
    for index in 0..RESOURCES {
        let bar = device.bars.get(index).copied().unwrap_or_default();
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
    dir.writable("numa_node", format!("{}\n", device.numa_node));
    dir.writable("enable", "0\n");
    dir.writable("driver_override", format!("{}\n", device.driver));
    dir.writable("broken_parity_status", "0\n");
    dir.writable("d3cold_allowed", "1\n");
    dir.writable("msi_bus", "1\n");
    dir.writable("reset_method", "flr\n");
    for name in ["reset", "remove", "rescan"] {
        dir.write_only(name);
    }
}

fn links(dir: &mut Dir, device: &Device, options: &Options) {
    dir.link("subsystem", "../../../bus/pci");
    dir.link("driver", format!("../../../bus/pci/drivers/{}", device.driver));
    dir.link("iommu_group", format!("../../../kernel/iommu_groups/{}", device.group));
    if device.group_kind == GroupKind::Iommu {
        dir.link("iommu", format!("../../virtual/iommu/{}", options.iommus[device.iommu].name));
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
