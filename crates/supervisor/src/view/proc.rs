//! Files of /proc that tell of the machine as a whole: what was there before sysfs.
//!
//! /proc/devices and /proc/misc name VFIO's numbers beside the host's; /proc/interrupts is the host's without those of its PCI
//! functions; /proc/bus/pci/devices has the functions of the run. Nothing is mounted over them: the kernel would then let nobody mount
//! a procfs in a user namespace of his own. Their opens are answered instead.
//!
//! DIFFERS: the text is that of the open, VFIO's interrupts do not show, and the other files of /proc/bus/pci are the host's.

use std::fmt::Write as _;
use std::fs;

use ioasis_uapi::Result;

use super::topology::Topology;
use super::{Bar, Bdf, ContainerNode, Device, HostPci, Options, dev, function};

/// One of those files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProcFile {
    Devices,
    Misc,
    Interrupts,
    PciDevices,
}

impl ProcFile {
    /// Those that a path may lead to, by its last component.
    pub(crate) fn named(path: &[u8]) -> &'static [Self] {
        match path.rsplit(|&byte| byte == b'/').next() {
            Some(b"devices") => &[Self::Devices, Self::PciDevices],
            Some(b"misc") => &[Self::Misc],
            Some(b"interrupts") => &[Self::Interrupts],
            _ => &[],
        }
    }

    /// Where it lies.
    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::Devices => "/proc/devices",
            Self::Misc => "/proc/misc",
            Self::Interrupts => "/proc/interrupts",
            Self::PciDevices => "/proc/bus/pci/devices",
        }
    }

    /// Its text on the machine; `None` where that is the host's own.
    ///
    /// # Errors
    ///
    /// Those of [`super::View::plan`].
    pub(crate) fn text(self, devices: &[Device], options: &Options) -> Result<Option<String>> {
        let hidden = options.host_pci == HostPci::Hidden;
        if !hidden && matches!(self, Self::Interrupts | Self::PciDevices) {
            return Ok(None);
        }
        if self == Self::PciDevices {
            return pci_devices(devices, options).map(Some);
        }
        let Ok(host) = fs::read_to_string(self.path()) else { return Ok(None) };
        Ok(Some(match self {
            Self::Interrupts => interrupts(&host),
            Self::Misc => {
                let mut ours = vec![(options.iommu_minor, "iommu")];
                if options.container != ContainerNode::Absent {
                    ours.push((dev::CONTAINER.1, "vfio"));
                }
                misc(&host, &ours)
            }
            _ => {
                let mut ours = vec![(options.group_major, "vfio")];
                let cdev = devices.iter().map(|device| device.cdev.0).find(|&major| major != 0);
                ours.extend(cdev.map(|major| (major, "vfio-dev")));
                character_devices(&host, &ours)
            }
        }))
    }
}

/// Character devices, each with its major number (fs/char_dev.c, `chrdev_show`), ours in their places.
fn character_devices(host: &str, ours: &[(u32, &str)]) -> String {
    let (characters, blocks) = host.split_once("\nBlock devices:").unwrap_or((host, ""));
    let mut lines: Vec<(u32, String)> = Vec::new();
    for line in characters.lines().skip(1) {
        let major = line.split_whitespace().next().and_then(|word| word.parse().ok());
        if let Some(major) = major
            && ours.iter().all(|&(ours, _)| ours != major)
        {
            lines.push((major, line.to_owned()));
        }
    }
    lines.extend(ours.iter().map(|&(major, name)| (major, format!("{major:3} {name}"))));
    lines.sort_by_key(|(major, _)| *major);
    let mut text = "Character devices:\n".to_owned();
    for (_, line) in lines {
        let _ = writeln!(text, "{line}");
    }
    let _ = write!(text, "\nBlock devices:{blocks}");
    text
}

/// Misc devices, the newest first (drivers/char/misc.c, `misc_seq_show`).
fn misc(host: &str, ours: &[(u32, &str)]) -> String {
    let mut text = String::new();
    for (minor, name) in ours {
        let _ = writeln!(text, "{minor:3} {name}");
    }
    let is_ours = |line: &str| {
        let mut words = line.split_whitespace();
        let (minor, name) = (words.next(), words.next());
        ours.iter()
            .any(|&(ours, called)| minor == Some(ours.to_string().as_str()) || name == Some(called))
    };
    for line in host.lines().filter(|line| !is_ours(line)) {
        let _ = writeln!(text, "{line}");
    }
    text
}

/// The lines that name no PCI function.
fn interrupts(host: &str) -> String {
    let names_function = |word: &str| {
        let start = word.find(|c: char| c.is_ascii_digit());
        start.is_some_and(|start| Bdf::parse(&word[start..]).is_some())
    };
    let lines = host.lines().filter(|line| !line.split_whitespace().any(names_function));
    lines.fold(String::new(), |text, line| text + line + "\n")
}

/// The functions of the run (drivers/pci/proc.c, `show_device`).
fn pci_devices(devices: &[Device], options: &Options) -> Result<String> {
    let topology = Topology::new(devices, options, &std::collections::BTreeSet::new())?;
    let bound = devices.iter().map(|device| Line {
        address: device.address(),
        ids: (device.vendor, device.device),
        bars: device.bars,
        driver: device.driver.as_deref().unwrap_or_default(),
    });
    let bridges = topology.bridges.iter().map(|placed| Line {
        address: placed.address,
        ids: (placed.bridge.ids.vendor, placed.bridge.ids.device),
        bars: [Bar::default(); 7],
        driver: placed.secondary.map_or("", |_| function::PORT_DRIVER),
    });
    let mut lines: Vec<_> = bound.chain(bridges).collect();
    lines.sort_by_key(|line| line.address);
    let mut text = String::new();
    lines.iter().for_each(|line| line.write(&mut text));
    Ok(text)
}

/// A function as a line of /proc/bus/pci/devices.
struct Line<'a> {
    address: Bdf,
    ids: (u16, u16),
    bars: [Bar; 7],
    driver: &'a str,
}

impl Line<'_> {
    fn write(&self, text: &mut String) {
        /// `PCI_REGION_FLAG_MASK` (linux/pci.h): the bits a BAR itself has.
        const FLAGS: u64 = 0xf;
        let Bdf { bus, slot, function, .. } = self.address;
        let (vendor, device) = self.ids;
        let _ = write!(text, "{bus:02x}{:02x}\t{vendor:04x}{device:04x}\t0", slot << 3 | function);
        for bar in self.bars {
            let _ = write!(text, "\t{:16x}", bar.start | bar.flags & FLAGS);
        }
        for bar in self.bars {
            let size = if bar.start < bar.last { bar.last - bar.start + 1 } else { 0 };
            let _ = write!(text, "\t{size:16x}");
        }
        let _ = writeln!(text, "\t{}", self.driver);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vfio_has_its_numbers_beside_the_hosts() {
        let host = "Character devices:\n  1 mem\n 10 misc\n242 rtc\n\nBlock devices:\n  8 sd\n";
        let text = character_devices(host, &[(242, "vfio"), (511, "vfio-dev")]);
        assert_eq!(
            text,
            "Character devices:\n  1 mem\n 10 misc\n242 vfio\n511 vfio-dev\n\nBlock devices:\n  8 sd\n"
        );
        let text = misc("231 snapshot\n126 rfkill\n196 vfio\n", &[(126, "iommu"), (196, "vfio")]);
        assert_eq!(text, "126 iommu\n196 vfio\n231 snapshot\n");
    }

    #[test]
    fn interrupts_of_the_hosts_functions_are_left_out() {
        let host = "           CPU0\n  4:  1  IO-APIC 4-edge ttyS0\n 36:  9  PCI-MSIX-0000:00:02.0 1-edge virtio1-req.0\n 40:  2  PCI-MSI-10000:e0:06.0 0-edge nvme0q0\nNMI:  0  Non-maskable interrupts\n";
        assert_eq!(
            interrupts(host),
            "           CPU0\n  4:  1  IO-APIC 4-edge ttyS0\nNMI:  0  Non-maskable interrupts\n"
        );
    }
}
