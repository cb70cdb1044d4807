//! The PCI bus as its drivers see it: who is bound to what, and who may be.

use std::collections::BTreeMap;
use std::sync::Arc;

use ioasis_sys::sync::{Condvar, Mutex};
use ioasis_uapi::{Errno, Error, Result};
use ioasis_vfio::{Device, Driver as DriverOfDevice};

use crate::view::Settings;

/// The name of VFIO's driver.
pub(crate) const VFIO_PCI: &str = "vfio-pci";

/// Functions and drivers.
#[derive(Debug)]
pub(crate) struct Bus {
    state: Mutex<State>,
    /// A function is held by nobody any more.
    released: Condvar,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) functions: BTreeMap<String, Function>,
    /// In the order in which they were registered.
    pub(super) drivers: Vec<Driver>,
    /// Whether a new function is offered to the drivers.
    pub(super) autoprobe: bool,
    /// How many functions there have been.
    generations: u64,
}

/// What is known of a function here.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    /// Vendor and device, subsystem's vendor and device, class.
    identity: Identity,
    /// The driver that it is bound to.
    pub(crate) driver: Option<String>,
    /// What may be set.
    pub(crate) settings: Settings,
    /// Somebody changes its driver.
    is_held: bool,
    /// How many wait to do so.
    waiting: u32,
    /// No other function, one of before at the same address among them, has this number.
    generation: u64,
}

/// Who waits for one function at most: each has a thread.
const WAITING: u32 = 16;

/// A driver.
#[derive(Clone, Debug)]
pub(super) struct Driver {
    pub(super) name: String,
    /// What it was built for: nothing, in vfio-pci's case (`PCI_DRIVER_OVERRIDE_DEVICE_VFIO` alone).
    table: Vec<Id>,
    /// What it was told.
    pub(super) told: Vec<Id>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    vendor: u32,
    device: u32,
    subsystem_vendor: u32,
    subsystem_device: u32,
    class: u32,
}

/// Functions that a driver is for (`struct pci_device_id`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id {
    vendor: u32,
    device: u32,
    subsystem_vendor: u32,
    subsystem_device: u32,
    class: u32,
    class_mask: u32,
    driver_data: u64,
}

/// `PCI_ANY_ID`.
const ANY: u32 = u32::MAX;

impl Id {
    /// From the numbers that somebody wrote, of which there must be two.
    pub(super) fn of(numbers: &[u64]) -> Option<Self> {
        let word = |at: usize, default| {
            // sscanf keeps the low half.
            let low = |number: &u64| u32::try_from(number & u64::from(u32::MAX));
            numbers.get(at).map_or(default, |number| low(number).expect("32 bits"))
        };
        (numbers.len() >= 2).then(|| Self {
            vendor: word(0, ANY),
            device: word(1, ANY),
            subsystem_vendor: word(2, ANY),
            subsystem_device: word(3, ANY),
            class: word(4, 0),
            class_mask: word(5, 0),
            driver_data: numbers.get(6).copied().unwrap_or_default(),
        })
    }

    /// `pci_match_one_id`.
    fn matches(&self, of: &Identity) -> bool {
        let fits = |wanted: u32, has: u32| wanted == ANY || wanted == has;
        fits(self.vendor, of.vendor)
            && fits(self.device, of.device)
            && fits(self.subsystem_vendor, of.subsystem_vendor)
            && fits(self.subsystem_device, of.subsystem_device)
            && (self.class ^ of.class) & self.class_mask == 0
    }

    fn identity(&self) -> Identity {
        Identity {
            vendor: self.vendor,
            device: self.device,
            subsystem_vendor: self.subsystem_vendor,
            subsystem_device: self.subsystem_device,
            class: self.class,
        }
    }
}

impl Identity {
    fn of(device: &Device) -> Self {
        let ids = device.function().ids();
        Self {
            vendor: ids.vendor.into(),
            device: ids.device.into(),
            subsystem_vendor: ids.subsystem_vendor.into(),
            subsystem_device: ids.subsystem_device.into(),
            class: ids.class,
        }
    }
}

impl Driver {
    /// Whether it may be bound to `function` (`pci_match_device`).
    fn matches(&self, function: &Function) -> bool {
        match &function.settings.driver_override {
            Some(only) => *only == self.name,
            None => {
                let mut ids = self.told.iter().chain(&self.table);
                ids.any(|id| id.matches(&function.identity))
            }
        }
    }

    /// Tells it that it is for others too (`new_id_store`).
    ///
    /// # Errors
    ///
    /// `EINVAL` for fewer than two numbers, and for data of the driver's own that no entry of its table has; `EEXIST` for
    /// what it knows.
    pub(super) fn tell(&mut self, numbers: &[u64]) -> Result<()> {
        let id = Id::of(numbers).ok_or(Error::new(Errno::EINVAL, "fewer than two numbers"))?;
        let known = Error::new(Errno::EEXIST, "the driver knows such functions");
        let checked = numbers.len() != 7;
        if checked && self.table.iter().any(|entry| entry.matches(&id.identity())) {
            return Err(known);
        }
        // Every entry of a table here has none, vfio-pci's own among them.
        if id.driver_data != 0 {
            return Err(Error::at(Errno::EINVAL, "no entry has such data", id.driver_data));
        }
        if checked && self.told.iter().any(|entry| entry.matches(&id.identity())) {
            return Err(known);
        }
        self.told.push(id);
        Ok(())
    }

    /// Takes the first of what it was told back (`remove_id_store`).
    ///
    /// # Errors
    ///
    /// `EINVAL` for fewer than two numbers; `ENODEV` if it was not told so.
    pub(super) fn untell(&mut self, numbers: &[u64]) -> Result<()> {
        let id = Id::of(numbers).ok_or(Error::new(Errno::EINVAL, "fewer than two numbers"))?;
        let fits = |wanted: u32, has: u32| wanted == ANY || wanted == has;
        let at = self.told.iter().position(|told| {
            (told.vendor, told.device) == (id.vendor, id.device)
                && fits(id.subsystem_vendor, told.subsystem_vendor)
                && fits(id.subsystem_device, told.subsystem_device)
                && (told.class ^ id.class) & id.class_mask == 0
        });
        let at = at.ok_or(Error::new(Errno::ENODEV, "the driver was not told so"))?;
        self.told.remove(at);
        Ok(())
    }
}

impl State {
    /// The driver called `name`.
    pub(super) fn driver(&mut self, name: &str) -> Result<&mut Driver> {
        let found = self.drivers.iter_mut().find(|driver| driver.name == name);
        // Root ports are the machine's: who is bound to them does not change.
        found.ok_or(Error::new(Errno::ENODEV, "the driver binds no function of the run"))
    }

    /// Whether the driver called `name` may be bound to the function at `bdf`.
    pub(super) fn matches(&self, name: &str, bdf: &str) -> bool {
        let driver = self.drivers.iter().find(|driver| driver.name == name);
        let function = self.functions.get(bdf);
        driver.zip(function).is_some_and(|(driver, function)| driver.matches(function))
    }
}

/// A function whose driver nobody else changes.
#[derive(Debug)]
pub(super) struct Held<'a> {
    bus: &'a Bus,
    bdf: String,
    generation: u64,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut state = self.bus.state.lock();
        let function = state.functions.get_mut(&self.bdf);
        if let Some(function) = function.filter(|known| known.generation == self.generation) {
            function.is_held = false;
        }
        drop(state);
        self.bus.released.notify_all();
    }
}

impl Bus {
    /// The bus of a machine as it starts. Its devices' drivers become what the machine says.
    ///
    /// # Errors
    ///
    /// `EBUSY`: somebody uses a device already.
    pub(crate) fn new(
        devices: &[Arc<Device>],
        starts: &BTreeMap<String, Option<String>>,
    ) -> Result<Self> {
        let mut drivers: Vec<Driver> = Vec::new();
        let mut functions = BTreeMap::new();
        for device in devices {
            if !device.exists() {
                // A virtual function that comes is without a driver first.
                device.unbind_driver();
                device.end_leaving();
                continue;
            }
            let identity = Identity::of(device);
            let vfio = Some(VFIO_PCI.to_owned());
            let driver = starts.get(device.name()).unwrap_or(&vfio).clone();
            let driver_override = driver.clone().filter(|name| name == VFIO_PCI);
            match driver.as_deref() {
                Some(VFIO_PCI) => {}
                other => {
                    device.unbind_driver();
                    device.end_leaving();
                    if let Some(name) = other {
                        device.bind_driver(DriverOfDevice::Other)?;
                        let entry = [identity.vendor.into(), identity.device.into()];
                        let entry = Id::of(&entry).expect("two numbers");
                        match drivers.iter_mut().find(|driver| driver.name == name) {
                            Some(driver) => driver.table.push(entry),
                            None => drivers.push(Driver {
                                name: name.to_owned(),
                                table: vec![entry],
                                told: Vec::new(),
                            }),
                        }
                    }
                }
            }
            let settings = Settings { driver_override, ..Settings::default() };
            let generation = functions.len() as u64;
            let function =
                Function { identity, driver, settings, is_held: false, waiting: 0, generation };
            functions.insert(device.name().to_owned(), function);
        }
        // A module that is loaded by hand, after those that the devices brought.
        let vfio = Driver { name: VFIO_PCI.to_owned(), table: Vec::new(), told: Vec::new() };
        drivers.push(vfio);
        let generations = functions.len() as u64;
        let state = State { functions, drivers, autoprobe: true, generations };
        Ok(Self { state: Mutex::new(state), released: Condvar::new() })
    }

    /// A virtual function of one that vfio-pci has comes, with a driver or without.
    pub(super) fn add(&self, device: &Device, driver: Option<String>) {
        let driver_override = Some(VFIO_PCI.to_owned());
        let settings = Settings { driver_override, ..Settings::default() };
        let identity = Identity::of(device);
        let mut state = self.state.lock();
        let generation = state.generations;
        state.generations += 1;
        let function =
            Function { identity, driver, settings, is_held: false, waiting: 0, generation };
        state.functions.insert(device.name().to_owned(), function);
    }

    /// A function goes. Who waits to hold it finds it gone.
    pub(super) fn remove(&self, bdf: &str) {
        self.state.lock().functions.remove(bdf);
        self.released.notify_all();
    }

    /// The names of the drivers.
    pub(crate) fn drivers(&self) -> Vec<String> {
        self.state.lock().drivers.iter().map(|driver| driver.name.clone()).collect()
    }

    /// Whether a new function is offered to the drivers.
    pub(crate) fn autoprobe(&self) -> bool {
        self.state.lock().autoprobe
    }

    /// What is known of the function at `bdf`.
    pub(crate) fn function(&self, bdf: &str) -> Option<Function> {
        self.state.lock().functions.get(bdf).cloned()
    }

    /// Looks at everything, or changes it.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock())
    }

    /// Waits until nobody else changes the driver of the function at `bdf`.
    ///
    /// # Errors
    ///
    /// `ENODEV` if there is no such function any more, also if another came in its place meanwhile;
    /// `EAGAIN` if too many wait for it.
    pub(super) fn hold(&self, bdf: &str) -> Result<Held<'_>> {
        let gone = || Error::new(Errno::ENODEV, "no such function");
        let mut state = self.state.lock();
        let function = state.functions.get_mut(bdf).ok_or_else(gone)?;
        let generation = function.generation;
        if function.is_held {
            if function.waiting == WAITING {
                return Err(Error::new(Errno::EAGAIN, "too many wait for the function"));
            }
            function.waiting += 1;
        }
        let waits = function.is_held;
        loop {
            let function = state.functions.get_mut(bdf);
            let same = function.filter(|known| known.generation == generation);
            // The count of one that is gone went with it.
            let function = same.ok_or_else(gone)?;
            if !function.is_held {
                function.is_held = true;
                function.waiting -= u32::from(waits);
                return Ok(Held { bus: self, bdf: bdf.to_owned(), generation });
            }
            state = self.released.wait(state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn driver(name: &str, table: &[&[u64]]) -> Driver {
        let table = table.iter().map(|numbers| Id::of(numbers).unwrap()).collect();
        Driver { name: name.to_owned(), table, told: Vec::new() }
    }

    fn function(driver_override: Option<&str>) -> Function {
        let identity = Identity {
            vendor: 0x1b36,
            device: 0x10,
            subsystem_vendor: 0x1af4,
            subsystem_device: 0x1100,
            class: 0x01_0802,
        };
        let driver_override = driver_override.map(str::to_owned);
        let settings = Settings { driver_override, ..Settings::default() };
        let driver = None;
        Function { identity, driver, settings, is_held: false, waiting: 0, generation: 0 }
    }

    #[test]
    fn who_waits_for_a_function_does_not_get_the_one_that_came_in_its_place() {
        let state =
            State { functions: BTreeMap::new(), drivers: vec![], autoprobe: true, generations: 0 };
        let bus = Bus { state: Mutex::new(state), released: Condvar::new() };
        let put = |generation| {
            let function = Function { generation, ..function(None) };
            bus.with(|state| state.functions.insert("f".to_owned(), function));
        };
        let waiting = || bus.with(|state| state.functions["f"].waiting);
        put(0);
        let held = bus.hold("f").unwrap();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| bus.hold("f").map(drop));
            while waiting() == 0 {
                std::thread::yield_now();
            }
            put(1);
            let next = bus.hold("f").unwrap();
            // What was held of the first is nothing of the second's.
            drop(held);
            assert_eq!(waits.join().unwrap().unwrap_err().errno, Errno::ENODEV);
            assert_eq!(waiting(), 0);
            assert!(bus.with(|state| state.functions["f"].is_held));
            drop(next);
        });
        drop(bus.hold("f").unwrap());
    }

    #[test]
    fn an_override_is_the_only_driver_that_matches() {
        let [nvme, mut vfio] = [driver("nvme", &[&[0x1b36, 0x10]]), driver(VFIO_PCI, &[])];
        assert!(nvme.matches(&function(None)) && !vfio.matches(&function(None)));
        let only = function(Some(VFIO_PCI));
        assert!(!nvme.matches(&only) && vfio.matches(&only));
        vfio.tell(&[0x1b36, 0x10]).unwrap();
        assert!(vfio.matches(&function(None)));
        assert!(!vfio.matches(&function(Some("nvme"))));
    }

    #[test]
    fn a_driver_is_told_once_and_told_back_once() {
        let mut nvme = driver("nvme", &[&[0x1b36, 0x10]]);
        let errno = |done: Result<()>| done.unwrap_err().errno;
        assert_eq!(errno(nvme.tell(&[0x1b36])), Errno::EINVAL);
        assert_eq!(errno(nvme.tell(&[0x1b36, 0x10])), Errno::EEXIST, "its table has it");
        nvme.tell(&[0x8086, 1]).unwrap();
        assert_eq!(errno(nvme.tell(&[0x8086, 1])), Errno::EEXIST);
        assert_eq!(errno(nvme.tell(&[0x8086, 2, 0, 0, 0, 0, 5])), Errno::EINVAL);
        assert_eq!(errno(nvme.untell(&[0x8086])), Errno::EINVAL);
        assert_eq!(errno(nvme.untell(&[0x8086, 2])), Errno::ENODEV);
        nvme.untell(&[0x8086, 1]).unwrap();
        assert_eq!(errno(nvme.untell(&[0x8086, 1])), Errno::ENODEV);
    }

    #[test]
    fn a_class_matches_under_its_mask() {
        let mut vfio = driver(VFIO_PCI, &[]);
        let any = u64::from(ANY);
        vfio.tell(&[any, any, any, any, 0x01_0802, 0xff_ffff]).unwrap();
        assert!(vfio.matches(&function(None)));
        vfio.told.clear();
        vfio.tell(&[any, any, any, any, 0x02_0000, 0xff_0000]).unwrap();
        assert!(!vfio.matches(&function(None)));
    }
}
