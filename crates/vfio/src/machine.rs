//! The devices and groups of one simulated machine.

use std::collections::BTreeMap;
use std::sync::Arc;

use ioasis_iommufd::Endpoint;
use ioasis_iommufd::type1::GroupKind;
use ioasis_pci::Function;
use ioasis_sys::sync::thread;

use crate::device::{DeviceSet, Place};
use crate::{Device, DeviceWatcher, Group, sriov};

/// A function and where it belongs.
#[derive(Debug)]
pub struct Placement {
    /// The function; its address places it on a bus.
    pub function: Function,
    /// The function as its IOMMU sees it. The number of its group is N of `/dev/vfio/N`.
    pub endpoint: Arc<Endpoint>,
    /// Whether it uses that IOMMU. Devices of one group agree.
    pub kind: GroupKind,
}

/// Is told the name of a device that is no more, and why.
pub type Farewell = dyn Fn(&str, &str) + Send + Sync;

/// What programs find under `/dev/vfio`.
#[derive(Debug)]
pub struct Machine {
    devices: Vec<Arc<Device>>,
    groups: Vec<Arc<Group>>,
}

impl Machine {
    /// A machine with these devices; the first is vfio0.
    ///
    /// # Panics
    ///
    /// If two functions have one address, or two groups one number, or a group has devices with and
    /// without an IOMMU.
    #[must_use]
    pub fn new(placements: Vec<Placement>) -> Self {
        let mut groups = BTreeMap::new();
        let mut buses: BTreeMap<_, usize> = BTreeMap::new();
        for Placement { function, endpoint, kind } in &placements {
            let hardware = endpoint.group();
            let made =
                groups.entry(hardware.number()).or_insert_with(|| Group::new(hardware, *kind));
            assert!(made.is(hardware, *kind), "devices of group {} agree", hardware.number());
            *buses.entry(place_of_set(function)).or_default() += 1;
        }
        let sets: BTreeMap<_, _> =
            buses.into_iter().map(|(bus, length)| (bus, DeviceSet::new(bus.1, length))).collect();
        let mut slots = BTreeMap::new();
        let mut devices: Vec<Arc<Device>> = Vec::new();
        for (index, Placement { function, endpoint, .. }) in placements.into_iter().enumerate() {
            let bdf = function.address();
            assert!(devices.iter().all(|device| device.bdf() != bdf), "{bdf} is placed twice");
            let bus = place_of_set(&function);
            let slot: &mut usize = slots.entry(bus).or_default();
            let place = Place {
                index: u32::try_from(index).expect("fewer devices than addresses"),
                group: Arc::clone(&groups[&endpoint.group().number()]),
                endpoint,
                set: Arc::clone(&sets[&bus]),
                slot: *slot,
            };
            *slot += 1;
            devices.push(Arc::new(Device::new(function, place)));
        }
        for (place, set) in sets {
            let members = devices.iter().filter(|device| place_of_set(device.function()) == place);
            let on_bus = devices.iter().filter(|device| {
                let bdf = device.bdf();
                (bdf.domain(), bdf.bus()) == (place.0, place.1)
            });
            set.fill(members.map(Arc::downgrade).collect(), on_bus.map(Arc::downgrade).collect());
        }
        sriov::relate(&devices);
        for group in groups.values() {
            let members = devices.iter().filter(|device| Arc::ptr_eq(device.group(), group));
            group.fill(members.map(Arc::downgrade).collect());
        }
        Self { devices, groups: groups.into_values().collect() }
    }

    /// The devices, in the order of their numbers.
    #[must_use]
    pub fn devices(&self) -> &[Arc<Device>] {
        &self.devices
    }

    /// Tells `watcher` from now on what the devices do by themselves.
    ///
    /// # Panics
    ///
    /// If there is a watcher already.
    pub fn watch(&self, watcher: &Arc<dyn DeviceWatcher>) {
        for device in &self.devices {
            device.interrupts().watch(device.name(), Arc::clone(watcher));
        }
    }

    /// Has a device that is no more removed, and `tell` told before that: its name, and why.
    ///
    /// # Panics
    ///
    /// If that was said before.
    pub fn remove_vanished(&self, tell: &Arc<Farewell>) {
        for device in &self.devices {
            let (weak, tell) = (Arc::downgrade(device), Arc::clone(tell));
            device.interrupts().remove_by(Box::new(move |why| {
                let Some(device) = weak.upgrade() else { return };
                tell(device.name(), why);
                // Its own thread says so, and its removal waits for that thread.
                let removal = move || {
                    let _was_there = device.remove();
                };
                let _ = thread::Builder::new().name("vfio-removal".into()).spawn(removal);
            }));
        }
    }

    /// The groups, in the order of their numbers.
    #[must_use]
    pub fn groups(&self) -> &[Arc<Group>] {
        &self.groups
    }

    /// Surprise removal of every device: REQ and ERR eventfds fire, DMA ends, and every later call
    /// on a group or device answers `ENODEV`.
    pub fn remove_all(&self) {
        for device in &self.devices {
            let _was_there = device.remove();
        }
        for group in &self.groups {
            group.remove();
        }
    }
}

/// Domain and bus of a function. On a root bus, which cannot be reset, every device is for itself,
/// and so is a virtual function, which never is the first one of its bus.
fn place_of_set(function: &Function) -> (u16, u8, u8) {
    let bdf = function.address();
    let is_alone = bdf.bus() == 0 || function.is_virtual();
    (bdf.domain(), bdf.bus(), if is_alone { bdf.devfn() } else { 0 })
}
