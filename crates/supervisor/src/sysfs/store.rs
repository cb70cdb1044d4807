//! What a write does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ioasis_uapi::{Errno, Error, Result};
use ioasis_vfio::{Device, Driver};

use super::bus::{Bus, VFIO_PCI};
use super::{Attribute, BusFile, DriverFile, FunctionFile, Host, number, sriov};
use crate::view::{PowerControl, ResetMethods};

/// How often somebody who uses a device is asked to give it back (`vfio_unregister_group_dev`).
const AGAIN: Duration = Duration::from_secs(10);

/// Writes `text` to an attribute.
///
/// # Errors
///
/// The errno of Linux's store function.
pub(super) fn store(host: &dyn Host, attribute: &Attribute, text: &[u8]) -> Result<()> {
    let done = match attribute {
        Attribute::Bus(BusFile::Autoprobe) => {
            host.bus().with(|state| state.autoprobe = text.first() != Some(&b'0'));
            Ok(())
        }
        Attribute::Bus(BusFile::Probe) => probe(host, &find(host, text)?),
        Attribute::Driver(driver, file) => of_driver(host, driver, *file, text),
        Attribute::Function(bdf, file) => of_function(host, bdf, *file, text),
    };
    done.and_then(|()| host.show())
}

/// The function that a text names (`bus_find_device_by_name`, which takes a newline at its end).
/// One that was removed is on the bus for as long as somebody has it open.
fn find(host: &dyn Host, text: &[u8]) -> Result<String> {
    let bdf = number::line(text).to_owned();
    let device = device(host, &bdf)?;
    if device.is_removed() && device.await_users(Instant::now()) {
        return Err(Error::new(Errno::ENODEV, "the function was removed"));
    }
    Ok(bdf)
}

pub(super) fn device(host: &dyn Host, bdf: &str) -> Result<Arc<Device>> {
    let found = host.devices().iter().find(|device| device.name() == bdf && device.exists());
    found.cloned().ok_or(Error::new(Errno::ENODEV, "no such function"))
}

fn of_driver(host: &dyn Host, driver: &str, file: DriverFile, text: &[u8]) -> Result<()> {
    let bus = host.bus();
    match file {
        DriverFile::Bind => {
            let bdf = find(host, text)?;
            if !bus.with(|state| state.matches(driver, &bdf)) {
                return Err(Error::new(Errno::ENODEV, "the driver is not for this function"));
            }
            let _held = bus.hold(&bdf)?;
            bind(host, &bdf, driver)
        }
        DriverFile::Unbind => {
            let bdf = find(host, text)?;
            let of = |bdf: &str| bus.function(bdf).and_then(|function| function.driver);
            if of(&bdf).as_deref() != Some(driver) {
                return Err(Error::new(Errno::ENODEV, "the function has another driver, or none"));
            }
            let _held = bus.hold(&bdf)?;
            // Somebody else may have taken it away meanwhile, which is what was wanted.
            if of(&bdf).as_deref() == Some(driver) { unbind(host, &bdf) } else { Ok(()) }
        }
        DriverFile::NewId => {
            let numbers = number::hexadecimal(text, 7);
            bus.with(|state| state.driver(driver)?.tell(&numbers))?;
            attach(host, driver);
            Ok(())
        }
        DriverFile::RemoveId => {
            let numbers = number::hexadecimal(text, 6);
            bus.with(|state| state.driver(driver)?.untell(&numbers))
        }
    }
}

/// Offers every function without a driver to `driver` (`driver_attach`).
fn attach(host: &dyn Host, driver: &str) {
    let bus = host.bus();
    let free: Vec<String> = bus.with(|state| {
        let matches = |bdf: &&String| state.matches(driver, bdf);
        state.functions.keys().filter(matches).cloned().collect()
    });
    for bdf in free {
        let Ok(_held) = bus.hold(&bdf) else { continue };
        // One that has a driver keeps it, and what one driver refuses another may take.
        let _ = bind(host, &bdf, driver);
    }
}

/// Offers a function without a driver to each (`bus_rescan_devices_helper`). One that refuses it
/// leaves it to the next; one that cannot be tried, for a user owns the group, ends this: `EINVAL`,
/// whatever it said (`drivers_probe_store`).
fn probe(host: &dyn Host, bdf: &str) -> Result<()> {
    let bus = host.bus();
    let _held = bus.hold(bdf)?;
    let free = bus.function(bdf).is_some_and(|function| function.driver.is_none());
    let candidates: Vec<String> = bus.with(|state| {
        let matches = |name: &String| free && state.matches(name, bdf);
        state.drivers.iter().map(|driver| driver.name.clone()).filter(matches).collect()
    });
    for driver in candidates {
        match bind(host, bdf, &driver) {
            Ok(()) => break,
            Err(Error { errno: Errno::ENODEV, .. }) => {}
            Err(Error { why, .. }) => return Err(Error::new(Errno::EINVAL, why)),
        }
    }
    Ok(())
}

/// Binds a function that is held (`__driver_probe_device`).
fn bind(host: &dyn Host, bdf: &str, driver: &str) -> Result<()> {
    let bus = host.bus();
    let device = device(host, bdf)?;
    if device.is_removed() {
        return Err(Error::new(Errno::ENODEV, "the function was removed"));
    }
    if bus.function(bdf).is_some_and(|function| function.driver.is_some()) {
        return Err(Error::new(Errno::EBUSY, "the function has a driver"));
    }
    let kind = if driver == VFIO_PCI { Driver::Vfio } else { Driver::Other };
    if kind == Driver::Other && device.endpoint().group().is_owned() {
        return Err(Error::new(Errno::EBUSY, "a user owns the group"));
    }
    if !can_probe(bus, &device) {
        let why = "its physical function's virtual ones are offered to nobody";
        return Err(Error::new(Errno::ENODEV, why));
    }
    device.bind_driver(kind)?;
    set_driver(host, bdf, Some(driver.to_owned()));
    Ok(())
}

/// Whether a function may have a driver: a virtual one, whose physical one's
/// `sriov_drivers_autoprobe` is off, only by an override (`pci_device_can_probe`).
fn can_probe(bus: &Bus, device: &Device) -> bool {
    let settings = |device: &Device| bus.function(device.name()).map(|known| known.settings);
    let physical = device.physical_function();
    physical.and_then(|physical| settings(&physical)).is_none_or(|physical| {
        physical.sriov_autoprobe
            || settings(device).is_some_and(|known| known.driver_override.is_some())
    })
}

/// Takes the driver of a function that is held away. VFIO's waits until nobody uses the device any more; before that its
/// virtual functions go (`vfio_pci_core_unregister_device`).
pub(super) fn unbind(host: &dyn Host, bdf: &str) -> Result<()> {
    let device = device(host, bdf)?;
    sriov::end(host, &device)?;
    device.unbind_driver();
    if device.driver() == Driver::Leaving {
        host.show()?;
        while !device.await_users(Instant::now()) {
            device.request();
            if device.await_users(Instant::now() + AGAIN) {
                break;
            }
        }
        device.end_leaving();
    }
    set_driver(host, bdf, None);
    Ok(())
}

fn set_driver(host: &dyn Host, bdf: &str, driver: Option<String>) {
    host.bus().with(|state| {
        if let Some(function) = state.functions.get_mut(bdf) {
            function.driver = driver;
        }
    });
}

fn of_function(host: &dyn Host, bdf: &str, file: FunctionFile, text: &[u8]) -> Result<()> {
    let invalid = |why| Error::new(Errno::EINVAL, why);
    let number = || number::unsigned(text).ok_or(invalid("this is no number"));
    let set = |change: &dyn Fn(&mut crate::view::Settings)| {
        host.bus().with(|state| {
            let function = state.functions.get_mut(bdf);
            let function = function.ok_or(Error::new(Errno::ENODEV, "no such function"))?;
            change(&mut function.settings);
            Ok(())
        })
    };
    match file {
        FunctionFile::DriverOverride => {
            /// A page, without a newline and a NUL (`__device_set_driver_override`, drivers/base/dd.c).
            const LONGEST: usize = 4095;
            if text.len() >= LONGEST {
                return Err(Error::at(Errno::EINVAL, "a name is shorter", text.len() as u64));
            }
            let name = text.split(|&byte| matches!(byte, 0 | b'\n')).next().unwrap_or_default();
            let name = String::from_utf8_lossy(name).into_owned();
            let name = Some(name).filter(|name| !name.is_empty());
            set(&|settings| settings.driver_override.clone_from(&name))
        }
        FunctionFile::Reset => match number()? {
            1 => reset(host, bdf),
            other => Err(Error::at(Errno::EINVAL, "only 1 resets", other)),
        },
        FunctionFile::ResetMethod => {
            let methods = number::words(text).and_then(ResetMethods::parse);
            let methods = methods.ok_or(invalid("the function has no such reset"))?;
            set(&|settings| settings.reset_methods = methods)
        }
        FunctionFile::Enable => {
            let value = number()?;
            let _held = host.bus().hold(bdf)?;
            let function = host.bus().function(bdf);
            let function = function.ok_or(Error::new(Errno::ENODEV, "no such function"))?;
            if function.driver.is_some() {
                return Err(Error::new(Errno::EBUSY, "the function has a driver"));
            }
            let count = match (value, function.settings.enabled) {
                (0, 0) => return Err(Error::new(Errno::EIO, "the function is not enabled")),
                (0, count) => count - 1,
                (_, count) => count.saturating_add(1),
            };
            set(&|settings| settings.enabled = count)
        }
        FunctionFile::NumaNode => {
            let node = number::signed(text).ok_or(invalid("this is no number"))?;
            if node != -1 && !crate::view::is_numa_node(node) {
                return Err(invalid("no such node is online"));
            }
            set(&|settings| settings.numa_node = node)
        }
        FunctionFile::D3coldAllowed => {
            let allowed = number()? != 0;
            set(&|settings| settings.d3cold_allowed = allowed)
        }
        FunctionFile::BrokenParityStatus => {
            let broken = number()? != 0;
            set(&|settings| settings.broken_parity = broken)
        }
        FunctionFile::SriovNumvfs => sriov::set_numvfs(host, bdf, text),
        FunctionFile::SriovDriversAutoprobe => {
            let autoprobe = number::boolean(text).ok_or(invalid("neither yes nor no"))?;
            set(&|settings| settings.sriov_autoprobe = autoprobe)
        }
        FunctionFile::SriovVfMsixCount => match number::signed(text) {
            Some(0..) => Err(Error::new(Errno::EOPNOTSUPP, "vfio-pci shares no vectors out")),
            _ => Err(invalid("this is no number of vectors")),
        },
        FunctionFile::PowerControl => {
            // control_store of drivers/base/power/sysfs.c.
            let control = match number::line(text) {
                "on" => PowerControl::On,
                "auto" => PowerControl::Auto,
                _ => return Err(invalid("neither on nor auto")),
            };
            set(&|settings| settings.power = control)
        }
    }
}

/// Resets a function, whoever uses it (`pci_reset_function`).
fn reset(host: &dyn Host, bdf: &str) -> Result<()> {
    let _held = host.bus().hold(bdf)?;
    let function = host.bus().function(bdf);
    let without =
        function.is_some_and(|function| function.settings.reset_methods == ResetMethods::None);
    if without {
        return Err(Error::new(Errno::ENOTTY, "every kind of reset was taken away"));
    }
    device(host, bdf)?.reset_by_host()
}
