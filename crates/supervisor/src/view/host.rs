//! The host's own PCI functions, which a program does not see, and what hangs below them, which it goes on using.
//!
//! A disk or a network interface of the host keeps its directory, bound below /sys/devices/host instead of below its function: at the
//! same depth, so that its own relative links lead where they led, and with components that are no PCI addresses, since SPDK's scripts
//! and libvirt take a directory of that name for the function. The links to it from /sys/class, /sys/block, /sys/dev and
//! /sys/bus/*/devices are made anew. They are known from the devices, of which there are few, and not looked for among all links: to
//! read those took 5 ms of a start.
//!
//! What is bound is named by its path on the host, found before anything is mounted.

use std::fs;
use std::path::Path;

use super::Bdf;
use super::tree::{Dir, Entry, Host};

const DEVICES: &str = "/sys/devices";
/// Where what hangs below functions goes, below /sys/devices.
const KEPT: &str = "host";
/// Directories of a function that are the function's own (drivers/pci/pci-sysfs.c and the drivers beside it).
const OWN: [&str; 6] = ["power", "msi_irqs", "link", "pci_bus", "iommu", "vfio-dev"];
/// Directories of a device in which no device lies.
const LEAVES: [&str; 8] =
    ["power", "queue", "queues", "mq", "integrity", "holders", "slaves", "statistics"];

/// Hides the host's PCI functions.
pub(super) fn hide(sys: &mut Dir) {
    let listing = Listing::of(Path::new(DEVICES));
    let roots: Vec<String> = listing.directories.into_iter().filter(|name| is_root(name)).collect();
    if roots.is_empty() {
        return;
    }
    let devices = sys.kept("devices");
    let (mut kept, mut links) = (Dir::new(Host::Hidden), Vec::new());
    for root in &roots {
        let place = format!("devices/{KEPT}");
        keep_below(&mut kept, &Path::new(DEVICES).join(root), &place, &mut links);
        match devices.entries.get_mut(root) {
            Some(Entry::Dir(ours)) => ours.host = Host::Hidden,
            _ => drop(devices.entries.insert(root.clone(), Entry::Absent)),
        }
    }
    if !kept.entries.is_empty() {
        devices.entries.insert(KEPT.to_owned(), Entry::Dir(kept));
    }
    if Path::new("/sys/bus/pci_express/devices").exists() {
        // Services of the host's ports.
        sys.kept("bus/pci_express").dir("devices");
    }
    for Link { directory, name, target } in links {
        if !is_hidden(sys, &directory) {
            let up = "../".repeat(directory.split('/').count());
            let link = Entry::Link(format!("{up}{target}"));
            sys.kept(&directory).entries.entry(name).or_insert(link);
        }
    }
}

/// Whether a directory of /sys/devices is a root bus: "pci0000:00".
fn is_root(name: &str) -> bool {
    name.strip_prefix("pci").is_some_and(|bus| bus.contains(':'))
}

/// A component that stands for a function and is no address.
fn token(bdf: &str) -> String {
    bdf.replace([':', '.'], "-")
}

/// Port services carry the address of their port: "0000:00:01.0:pcie001".
fn is_own(name: &str) -> bool {
    OWN.contains(&name) || name.contains(":pcie")
}

/// What is in a directory of sysfs.
#[derive(Debug, Default)]
struct Listing {
    directories: Vec<String>,
    is_device: bool,
    has_node: bool,
    is_partition: bool,
}

impl Listing {
    fn of(path: &Path) -> Self {
        let mut listing = Self::default();
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            match name.as_str() {
                "subsystem" => listing.is_device = true,
                "dev" => listing.has_node = true,
                "partition" => listing.is_partition = true,
                _ if entry.file_type().is_ok_and(|kind| kind.is_dir()) => {
                    listing.directories.push(name);
                }
                _ => {}
            }
        }
        listing
    }
}

/// A link of a directory below /sys to a device that moved.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Link {
    directory: String,
    name: String,
    /// The device's directory, below /sys.
    target: String,
}

/// Adds to `kept` what hangs below the bus or function at `path`, and to `links` the links that lead there. Its place is `place`, below
/// /sys.
fn keep_below(kept: &mut Dir, path: &Path, place: &str, links: &mut Vec<Link>) {
    for name in Listing::of(path).directories {
        let from = path.join(&name);
        if Bdf::parse(&name).is_some() {
            let mut below = Dir::new(Host::Hidden);
            let token = token(&name);
            keep_below(&mut below, &from, &format!("{place}/{token}"), links);
            if !below.entries.is_empty() {
                kept.entries.insert(token, Entry::Dir(below));
            }
        } else if !is_own(&name) {
            find_links(&from, &format!("{place}/{name}"), Above::Device, links);
            kept.entries.insert(name, Entry::Moved(from));
        }
    }
}

/// What a directory lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Above {
    Device,
    /// A directory between devices, as `net` between a card and its interface.
    Between,
}

/// Adds the links that lead to the device at `path` and those below it. Their place is `place`, below /sys.
fn find_links(path: &Path, place: &str, above: Above, links: &mut Vec<Link>) {
    let listing = Listing::of(path);
    if listing.is_device {
        links_of(path, place, &listing, links);
    } else if above == Above::Between {
        return;
    }
    let here = if listing.is_device { Above::Device } else { Above::Between };
    for name in listing.directories.iter().filter(|name| !LEAVES.contains(&name.as_str())) {
        find_links(&path.join(name), &format!("{place}/{name}"), here, links);
    }
}

/// Adds the links that lead to the device at `path`: from its class or bus, and from where its number is looked up.
fn links_of(path: &Path, place: &str, listing: &Listing, links: &mut Vec<Link>) {
    let Ok(subsystem) = fs::read_link(path.join("subsystem")) else { return };
    let mut parts = subsystem.iter().rev().filter_map(|part| part.to_str());
    let (Some(subsystem), Some(kind)) = (parts.next(), parts.next()) else { return };
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return };
    let mut add = |directory: String, name: &str| {
        links.push(Link { directory, name: name.to_owned(), target: place.to_owned() });
    };
    match kind {
        "class" => add(format!("class/{subsystem}"), name),
        "bus" => add(format!("bus/{subsystem}/devices"), name),
        _ => return,
    }
    let is_block = kind == "class" && subsystem == "block";
    if is_block && !listing.is_partition {
        add("block".to_owned(), name);
    }
    if listing.has_node
        && let Ok(number) = fs::read_to_string(path.join("dev"))
    {
        let directory = if is_block { "dev/block" } else { "dev/char" };
        add(directory.to_owned(), number.trim());
    }
}

/// Whether the view shows nothing of the host's in `directory` anyway.
fn is_hidden(sys: &Dir, directory: &str) -> bool {
    let mut dir = sys;
    for name in directory.split('/') {
        match dir.entries.get(name) {
            Some(Entry::Dir(below)) => dir = below,
            _ => return false,
        }
    }
    dir.host == Host::Hidden
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A device directory with its subsystem, its number and other files.
    fn device(path: &Path, subsystem: &str, number: Option<&str>, files: &[&str]) {
        fs::create_dir_all(path).unwrap();
        symlink(format!("../../../../{subsystem}"), path.join("subsystem")).unwrap();
        if let Some(number) = number {
            fs::write(path.join("dev"), format!("{number}\n")).unwrap();
        }
        files.iter().for_each(|file| fs::write(path.join(file), "").unwrap());
    }

    #[test]
    fn what_hangs_below_functions_keeps_its_depth_and_every_link_to_it() {
        let root = std::env::temp_dir().join(format!("ioasis-host-{}", std::process::id()));
        let port = root.join("0000:00:01.1");
        let disk = port.join("0000:01:00.0/nvme/nvme0");
        device(&disk, "class/nvme", Some("240:0"), &[]);
        device(&disk.join("nvme0n1"), "class/block", Some("259:0"), &[]);
        device(&disk.join("nvme0n1/nvme0n1p1"), "class/block", Some("259:1"), &["partition"]);
        fs::create_dir_all(disk.join("nvme0n1/queue/deeper")).unwrap();
        let card = root.join("0000:00:03.0/virtio2");
        device(&card, "bus/virtio", None, &[]);
        device(&card.join("net/eth0"), "class/net", None, &[]);
        for own in ["power", "msi_irqs", "pci_bus", "0000:00:01.1:pcie001"] {
            fs::create_dir_all(port.join(own)).unwrap();
        }
        let (mut kept, mut links) = (Dir::new(Host::Hidden), Vec::new());
        keep_below(&mut kept, &root, "devices/host", &mut links);
        fs::remove_dir_all(&root).unwrap();
        let disk = "devices/host/0000-00-01-1/0000-01-00-0/nvme/nvme0";
        let card = "devices/host/0000-00-03-0/virtio2";
        let mut expected: Vec<Link> = [
            ("class/nvme", "nvme0", disk.to_owned()),
            ("dev/char", "240:0", disk.to_owned()),
            ("class/block", "nvme0n1", format!("{disk}/nvme0n1")),
            ("block", "nvme0n1", format!("{disk}/nvme0n1")),
            ("dev/block", "259:0", format!("{disk}/nvme0n1")),
            ("class/block", "nvme0n1p1", format!("{disk}/nvme0n1/nvme0n1p1")),
            ("dev/block", "259:1", format!("{disk}/nvme0n1/nvme0n1p1")),
            ("bus/virtio/devices", "virtio2", card.to_owned()),
            ("class/net", "eth0", format!("{card}/net/eth0")),
        ]
        .map(|(directory, name, target)| Link {
            directory: directory.to_owned(),
            name: name.to_owned(),
            target,
        })
        .into();
        expected.sort();
        links.sort();
        assert_eq!(links, expected);
        let names = |dir: &Dir| dir.entries.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&kept), ["0000-00-01-1", "0000-00-03-0"]);
        let Some(Entry::Dir(port)) = kept.entries.get("0000-00-01-1") else { panic!("a folder") };
        assert_eq!(names(port), ["0000-01-00-0"], "what is the port's own is not kept");
    }
}
