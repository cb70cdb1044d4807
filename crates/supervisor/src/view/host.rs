//! The host's own PCI functions, which a program does not see, and what hangs below them, which it goes on using.
//!
//! A disk or a network interface of the host keeps its directory, bound below /sys/devices/host instead of below its function: at the
//! same depth, so that its own relative links lead where they led, and with components that are no PCI addresses, since SPDK's scripts
//! and libvirt take a directory of that name for the function. Links to it from /sys/class, /sys/block, /sys/dev and /sys/bus/*/devices
//! are made anew; those that led to a function itself are left out.
//!
//! What is bound is named by its path on the host, found before anything is mounted.

use std::fs::{self, DirEntry};
use std::path::Path;

use super::Bdf;
use super::tree::{Dir, Entry, Host};

const DEVICES: &str = "/sys/devices";
/// Where what hangs below functions goes, below /sys/devices.
const KEPT: &str = "host";
/// Directories of a function that are the function's own (drivers/pci/pci-sysfs.c and the drivers beside it).
const OWN: [&str; 8] =
    ["power", "msi_irqs", "link", "pci_bus", "iommu", "vfio-dev", "wakeup", "virtfn"];

/// Hides the host's PCI functions.
pub(super) fn hide(sys: &mut Dir) {
    let roots: Vec<String> = names(DEVICES).filter(|name| is_root(name)).collect();
    if roots.is_empty() {
        return;
    }
    let devices = sys.kept("devices");
    let mut kept = Dir::new(Host::Hidden);
    for root in &roots {
        keep_below(&mut kept, Path::new(DEVICES).join(root).as_path());
        match devices.entries.get_mut(root) {
            Some(Entry::Dir(ours)) => ours.host = Host::Hidden,
            _ => drop(devices.entries.insert(root.clone(), Entry::Absent)),
        }
    }
    if kept.entries.is_empty() {
        return;
    }
    devices.entries.insert(KEPT.to_owned(), Entry::Dir(kept));
    lead_there(sys);
}

fn names(path: impl AsRef<Path>) -> impl Iterator<Item = String> {
    entries(path).filter_map(|entry| entry.file_name().into_string().ok())
}

fn entries(path: impl AsRef<Path>) -> impl Iterator<Item = DirEntry> {
    fs::read_dir(path).into_iter().flatten().flatten()
}

/// Whether a directory of /sys/devices is a root bus: "pci0000:00".
fn is_root(name: &str) -> bool {
    name.strip_prefix("pci").is_some_and(|bus| bus.contains(':'))
}

/// A component that stands for a function and is no address.
fn token(bdf: &str) -> String {
    bdf.replace([':', '.'], "-")
}

/// Adds to `kept` what hangs below the bus or function at `path`.
fn keep_below(kept: &mut Dir, path: &Path) {
    for entry in entries(path).filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if Bdf::parse(&name).is_some() {
            let mut below = Dir::new(Host::Hidden);
            keep_below(&mut below, &entry.path());
            if !below.entries.is_empty() {
                kept.entries.insert(token(&name), Entry::Dir(below));
            }
        } else if !is_own(&name) {
            kept.entries.insert(name, Entry::Moved(entry.path()));
        }
    }
}

/// Port services carry the address of their port: "0000:00:01.0:pcie001".
fn is_own(name: &str) -> bool {
    OWN.contains(&name) || name.contains(":pcie")
}

/// Makes the links anew that lead below the host's functions.
fn lead_there(sys: &mut Dir) {
    let mut directories = vec!["block".to_owned(), "dev/block".to_owned(), "dev/char".to_owned()];
    directories.extend(names("/sys/class").map(|class| format!("class/{class}")));
    let buses = names("/sys/bus").filter(|bus| bus != "pci");
    directories.extend(buses.map(|bus| format!("bus/{bus}/devices")));
    for directory in directories {
        let path = format!("/sys/{directory}");
        let links: Vec<_> = entries(&path).filter_map(|entry| leads(&entry)).collect();
        if links.is_empty() || is_hidden(sys, &directory) {
            continue;
        }
        let dir = sys.kept(&directory);
        for (name, link) in links {
            dir.entries.entry(name).or_insert(link);
        }
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

/// What becomes of a link of the host's, if it leads to a function or below one.
fn leads(entry: &DirEntry) -> Option<(String, Entry)> {
    if !entry.file_type().ok()?.is_symlink() {
        return None;
    }
    let target = fs::read_link(entry.path()).ok()?.into_os_string().into_string().ok()?;
    let link = moved(&target)?.map_or(Entry::Absent, Entry::Link);
    Some((entry.file_name().into_string().ok()?, link))
}

/// Where a link to `target` leads now; `None` when that has nothing to do with a function, `Some(None)` when it leads nowhere any more.
fn moved(target: &str) -> Option<Option<String>> {
    let (up, below) = target.split_once("devices/pci")?;
    let mut parts = below.split('/');
    if !is_root(&format!("pci{}", parts.next()?)) {
        return None;
    }
    let mut path = format!("{up}devices/{KEPT}");
    let mut own = None;
    for part in parts {
        let is_function = own.is_none() && Bdf::parse(part).is_some();
        if !is_function && own.is_none() {
            own = Some(is_own(part));
        }
        path.push('/');
        path.push_str(&if is_function { token(part) } else { part.to_owned() });
    }
    // A function itself, or a directory of its own.
    Some((own == Some(false)).then_some(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_below_a_function_leads_to_where_that_is_now_at_the_same_depth() {
        for (target, expected) in [
            (
                "../../devices/pci0000:00/0000:00:02.0/virtio1/block/vda",
                Some(Some("../../devices/host/0000-00-02-0/virtio1/block/vda")),
            ),
            (
                "../../../devices/pci0000:00/0000:00:01.1/0000:01:00.0/nvme/nvme0",
                Some(Some("../../../devices/host/0000-00-01-1/0000-01-00-0/nvme/nvme0")),
            ),
            ("../../devices/pci0000:00/QEMU0002:00", Some(Some("../../devices/host/QEMU0002:00"))),
            ("../../devices/pci0000:00/0000:00:02.0", Some(None)),
            ("../../devices/pci0000:00/pci_bus/0000:00", Some(None)),
            ("../../devices/pci0000:00/0000:00:01.0/0000:00:01.0:pcie001", Some(None)),
            ("../../devices/pci10000:e0/10000:e0:06.0/iommu/ivhd0", Some(None)),
            ("../../devices/virtual/net/lo", None),
            ("../../devices/pcie-something/x", None),
        ] {
            let expected = expected.map(|link| link.map(str::to_owned));
            assert_eq!(moved(target), expected, "{target}");
            if let Some(Some(link)) = moved(target) {
                assert_eq!(link.matches('/').count(), target.matches('/').count(), "{target}");
            }
        }
    }
}
