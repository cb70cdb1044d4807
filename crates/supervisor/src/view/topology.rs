//! Where the functions of the run hang: below root ports on bus 0 of their domain, beside a host bridge.
//!
//! Every bus but bus 0 has a root port of its own. Domain 0 has a host bridge at 0000:00:00.0, unless a device of the run sits
//! there; it is alone in group 0, unless a device has that. Groups of root ports are numbered after all others.
//! docs/machine.md says who gives way to whom.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use ioasis_pci::{Bridge, Opening};
use ioasis_uapi::{Errno, Error, Result};

use super::{Bar, Bdf, Device, Options, Sriov};

/// A bridge of the run.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) address: Bdf,
    /// The bus below a root port; the host bridge has none.
    pub(super) secondary: Option<u8>,
    pub(super) bridge: Bridge,
    pub(super) group: u32,
    /// Which IOMMU translates for what is below it.
    pub(super) iommu: usize,
    /// Its windows, as the last lines of its `resource` file.
    pub(super) windows: [Bar; 4],
}

/// The bridges of the run, by address.
#[derive(Clone, Debug, Default)]
pub(super) struct Topology {
    pub(super) bridges: Vec<Placed>,
    /// The port above each bus, by domain and bus.
    ports: BTreeMap<(u32, u8), Bdf>,
}

impl Topology {
    /// The bridges that `devices` need. Functions of the host, in `host`, keep their addresses.
    ///
    /// # Errors
    ///
    /// `ENOSPC` when bus 0 has no room for another root port.
    pub(super) fn new(devices: &[Device], options: &Options, host: &BTreeSet<Bdf>) -> Result<Self> {
        let mut topology = Self::default();
        let all: Vec<Bdf> = devices.iter().map(Device::address).collect();
        let mut slots = Slots::new(all.iter().chain(host).copied());
        let mut groups = Groups::new(devices, &options.kept.groups);
        let root = Bdf { domain: 0, bus: 0, slot: 0, function: 0 };
        if slots.is_free(root) {
            topology.bridges.push(Placed {
                address: root,
                secondary: None,
                bridge: Bridge::host(),
                group: groups.take_zero(),
                iommu: 0,
                windows: [Bar::default(); 4],
            });
        }
        let buses: BTreeSet<_> =
            all.iter().filter(|bdf| bdf.bus != 0).map(|bdf| (bdf.domain, bdf.bus)).collect();
        let kept = &options.kept.buses;
        let later = buses.into_iter().filter(|bus| !kept.contains_key(bus));
        for (domain, bus) in kept.keys().copied().chain(later) {
            let port = slots.take(domain)?;
            topology.ports.insert((domain, bus), port);
            let below: Vec<_> = devices
                .iter()
                .filter(|device| {
                    let address = device.address();
                    (address.domain, address.bus) == (domain, bus)
                })
                .collect();
            topology.bridges.push(root_port(port, bus, &below, groups.next(), options));
        }
        Ok(topology)
    }

    /// The directory of a function, below /sys.
    pub(super) fn directory(&self, address: Bdf) -> String {
        let root = format!("devices/pci{:04x}:00", address.domain);
        match self.ports.get(&(address.domain, address.bus)) {
            Some(port) => format!("{root}/{port}/{address}"),
            None => format!("{root}/{address}"),
        }
    }

    /// The directories of the buses below /sys, each with the name of its bus.
    pub(super) fn buses(&self, devices: &[Device]) -> BTreeMap<String, String> {
        let addresses = devices.iter().map(Device::address);
        let addresses = addresses.chain(self.bridges.iter().map(|placed| placed.address));
        let roots = addresses.map(|address| {
            let bus = format!("{:04x}:00", address.domain);
            (format!("devices/pci{bus}"), bus)
        });
        let below = self.ports.iter().map(|(&(domain, bus), &port)| {
            (self.directory(port), format!("{domain:04x}:{bus:02x}"))
        });
        roots.chain(below).collect()
    }
}

/// Numbers that no device's group has.
struct Groups {
    used: BTreeSet<u32>,
    next: u32,
}

impl Groups {
    fn new(devices: &[Device], kept: &BTreeSet<u32>) -> Self {
        // Virtual functions come later, and change no number.
        let others = devices.iter().filter(|device| !matches!(device.sriov, Sriov::Virtual(_)));
        let mut used: BTreeSet<u32> = others.map(|device| device.group).collect();
        let next = if kept.is_empty() { used.last() } else { kept.last() };
        let next = next.copied();
        used.extend(kept);
        let next = next.map_or(1, |last: u32| last.saturating_add(1));
        Self { used, next }
    }

    fn take_zero(&mut self) -> u32 {
        if self.used.contains(&0) { self.next() } else { 0 }
    }

    fn next(&mut self) -> u32 {
        // A device in the very last group leaves none after it: then one before.
        while self.next == 0 || self.used.contains(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        self.used.insert(self.next);
        self.next
    }
}

/// Slots of bus 0, by domain.
struct Slots {
    /// Those where another function sits, of the run or of the host.
    foreign: BTreeSet<(u32, u8)>,
    ports: BTreeSet<Bdf>,
}

impl Slots {
    fn new(functions: impl Iterator<Item = Bdf>) -> Self {
        let on_bus_0 = functions.filter(|bdf| bdf.bus == 0);
        let foreign = on_bus_0.map(|bdf| (bdf.domain, bdf.slot)).collect();
        Self { foreign, ports: BTreeSet::new() }
    }

    fn is_free(&self, address: Bdf) -> bool {
        !self.foreign.contains(&(address.domain, address.slot)) && !self.ports.contains(&address)
    }

    /// The lowest slot from 1 that is free; when all have a port, the next function of the lowest.
    fn take(&mut self, domain: u32) -> Result<Bdf> {
        let places = (0..8)
            .flat_map(|function| (1..32).map(move |slot| Bdf { domain, bus: 0, slot, function }));
        let port = places.into_iter().find(|&place| self.is_free(place));
        let full = Error::at(
            Errno::ENOSPC,
            "bus 0 has no room for another root port: let devices share buses",
            domain.into(),
        );
        let port = port.ok_or(full)?;
        self.ports.insert(port);
        Ok(port)
    }
}

// `IORESOURCE_*` (linux/ioport.h) as `pci_read_bridge_io` and its siblings set them.
const IO_WINDOW: u64 = 0x101;
const MEMORY_WINDOW: u64 = 0x200;
const PREFETCHABLE_WINDOW: u64 = 0x10_2201;
const IORESOURCE_IO: u64 = 0x100;
const IORESOURCE_MEM: u64 = 0x200;
const FOUR_GIB: u64 = 1 << 32;

fn root_port(address: Bdf, bus: u8, below: &[&Device], group: u32, options: &Options) -> Placed {
    // Room for virtual functions is there before they are.
    let bars = || {
        below.iter().flat_map(|device| {
            let of_functions = match &device.sriov {
                Sriov::Physical(physical) => &physical.bars[..],
                Sriov::None | Sriov::Virtual(_) => &[],
            };
            device.bars.iter().chain(of_functions)
        })
    };
    let window = |unit: u64, wanted: &dyn Fn(&&Bar) -> bool| {
        let start = bars().filter(wanted).map(|bar| bar.start).min()?;
        let last = bars().filter(wanted).map(|bar| bar.last).max()?;
        Some(start / unit * unit..=last / unit * unit + (unit - 1))
    };
    let memory = |bar: &&Bar| bar.flags & IORESOURCE_MEM != 0;
    let opening = Opening {
        io: window(1 << 12, &|bar| bar.flags & IORESOURCE_IO != 0),
        memory: window(1 << 20, &|bar| memory(bar) && bar.last < FOUR_GIB),
        prefetchable: window(1 << 20, &|bar| memory(bar) && bar.last >= FOUR_GIB),
    };
    let line = |window: &Option<RangeInclusive<u64>>, flags| {
        let window = window.as_ref();
        window.map_or(Bar::default(), |w| Bar { start: *w.start(), last: *w.end(), flags })
    };
    let windows = [
        line(&opening.io, IO_WINDOW),
        line(&opening.memory, MEMORY_WINDOW),
        line(&opening.prefetchable, PREFETCHABLE_WINDOW),
        Bar::default(),
    ];
    let kept = options.kept.buses.get(&(address.domain, bus)).copied().unwrap_or_default();
    let iommu = below.first().map_or(kept, |device| device.iommu).min(options.iommus.len() - 1);
    let domain = u16::try_from(address.domain).unwrap_or(0);
    let place = ioasis_pci::Bdf::new(domain, 0, address.slot, address.function);
    let place = place.expect("a slot is below 32");
    let bridge = Bridge::root_port(place, bus, &opening);
    Placed { address, secondary: Some(bus), bridge, group, iommu, windows }
}

#[cfg(test)]
mod tests {
    use super::super::Kept;
    use super::super::tests::device;
    use super::*;

    fn topology(devices: &[(&str, u32)], host: &[&str]) -> Result<Topology> {
        let devices: Vec<_> = (0..)
            .zip(devices)
            .map(|(vfio, &(bdf, group))| Device { group, ..device(bdf, vfio) })
            .collect();
        let host = host.iter().map(|bdf| Bdf::parse(bdf).expect("an address")).collect();
        Topology::new(&devices, &Options::default(), &host)
    }

    /// Address, bus below and group of each bridge.
    fn bridges(topology: &Topology) -> Vec<(String, Option<u8>, u32)> {
        let seen = |placed: &Placed| (placed.address.to_string(), placed.secondary, placed.group);
        topology.bridges.iter().map(seen).collect()
    }

    fn bridge(bdf: &str, below: Option<u8>, group: u32) -> (String, Option<u8>, u32) {
        (bdf.to_owned(), below, group)
    }

    #[test]
    fn a_port_is_above_each_bus_and_its_group_after_all_of_devices() {
        let found = topology(&[("0000:01:00.0", 1), ("0000:02:00.0", 7), ("0000:02:00.1", 7)], &[]);
        let found = found.unwrap();
        let expected = [
            bridge("0000:00:00.0", None, 0),
            bridge("0000:00:01.0", Some(1), 8),
            bridge("0000:00:02.0", Some(2), 9),
        ];
        assert_eq!(bridges(&found), expected);
        let directory = |bdf: &str| found.directory(Bdf::parse(bdf).unwrap());
        assert_eq!(directory("0000:02:00.1"), "devices/pci0000:00/0000:00:02.0/0000:02:00.1");
        assert_eq!(directory("0000:00:02.0"), "devices/pci0000:00/0000:00:02.0");
    }

    #[test]
    fn a_port_stays_what_it_was_when_a_device_goes() {
        let devices = ["0000:01:00.0", "0000:02:00.0", "0000:03:00.0"];
        let devices: Vec<_> = (0..).zip(devices).map(|(vfio, bdf)| device(bdf, vfio)).collect();
        let options = Options { kept: Kept::of(&devices), ..Options::default() };
        let none = BTreeSet::new();
        let all = bridges(&Topology::new(&devices, &options, &none).unwrap());
        for gone in 0..devices.len() {
            let mut left = devices.clone();
            left.remove(gone);
            let found = Topology::new(&left, &options, &none).unwrap();
            assert_eq!(bridges(&found), all, "without the device {gone}");
        }
        assert_eq!(bridges(&Topology::new(&[], &options, &none).unwrap()), all);
    }

    #[test]
    fn bridges_give_way_to_devices() {
        let devices = [("0000:00:00.0", 0), ("0000:00:01.3", 2), ("0000:05:00.0", 3)];
        let found = topology(&devices, &[]).unwrap();
        assert_eq!(bridges(&found), [bridge("0000:00:02.0", Some(5), 4)]);
        let found = topology(&[("0000:01:00.0", 0)], &[]).unwrap();
        let expected = [bridge("0000:00:00.0", None, 1), bridge("0000:00:01.0", Some(1), 2)];
        assert_eq!(bridges(&found), expected, "group 0 is the device's");
    }

    #[test]
    fn bridges_give_way_to_the_functions_of_the_host() {
        let host = ["0000:00:00.0", "0000:00:01.0", "0000:00:02.7", "0000:01:00.0"];
        let found = topology(&[("0000:01:00.0", 1)], &host).unwrap();
        assert_eq!(bridges(&found), [bridge("0000:00:03.0", Some(1), 2)]);
    }

    #[test]
    fn each_domain_has_a_root_bus_and_ports_of_its_own() {
        let found = topology(&[("0000:01:00.0", 1), ("0001:01:00.0", 2)], &[]).unwrap();
        let expected = [
            bridge("0000:00:00.0", None, 0),
            bridge("0000:00:01.0", Some(1), 3),
            bridge("0001:00:01.0", Some(1), 4),
        ];
        assert_eq!(bridges(&found), expected);
    }

    #[test]
    fn more_buses_than_slots_share_slots_until_there_is_no_room() {
        let names: Vec<String> = (1..=255).map(|bus| format!("0000:{bus:02x}:00.0")).collect();
        let devices =
            |count: usize| names[..count].iter().map(|name| (name.as_str(), 1)).collect::<Vec<_>>();
        let found = topology(&devices(33), &[]).unwrap();
        let last = found.bridges.last().unwrap();
        assert_eq!(
            (last.address.to_string(), last.secondary),
            ("0000:00:02.1".to_owned(), Some(33))
        );
        assert!(topology(&devices(248), &[]).is_ok());
        assert_eq!(topology(&devices(249), &[]).unwrap_err().errno, Errno::ENOSPC);
    }
}
