//! Virtual functions that come and go by writes to `sriov_numvfs` (drivers/pci/iov.c,
//! `vfio_pci_core_sriov_configure`).
//!
//! Whoever creates or ends them holds their physical function, and then, one after the other, those
//! that end. A function is known to the bus before it is there, and as long as it is.

use std::sync::Arc;

use ioasis_uapi::{Errno, Error, Result};
use ioasis_vfio::{Device, Driver};

use super::bus::{Bus, VFIO_PCI};
use super::{Host, number, store};

/// A write to `sriov_numvfs` of the function at `bdf`.
///
/// # Errors
///
/// `EINVAL` for what is no number of 16 bits; `ERANGE` for more than there can be; `ENOENT` when
/// the driver is none or not vfio-pci; `EBUSY` when there are some already; `ENOMEM` when their
/// BARs have no room.
pub(super) fn set_numvfs(host: &dyn Host, bdf: &str, text: &[u8]) -> Result<()> {
    let physical = store::device(host, bdf)?;
    let no_sriov = Error::new(Errno::ENODEV, "the function has no SR-IOV");
    let sriov = physical.function().sriov().ok_or(no_sriov)?;
    let count = number::unsigned(text).and_then(|count| u16::try_from(count).ok());
    let count = count.ok_or(Error::new(Errno::EINVAL, "this is no number of 16 bits"))?;
    if count > sriov.total() {
        return Err(Error::at(Errno::ERANGE, "more than sriov_totalvfs", sriov.total().into()));
    }
    let _held = host.bus().hold(bdf)?;
    if count == sriov.enabled() {
        return Ok(());
    }
    if physical.driver() != Driver::Vfio {
        let why = "the function has no driver that can have virtual functions";
        return Err(Error::new(Errno::ENOENT, why));
    }
    if count == 0 {
        return end(host, &physical);
    }
    if sriov.enabled() != 0 {
        let there = sriov.enabled().into();
        return Err(Error::at(Errno::EBUSY, "there are virtual functions: 0 comes first", there));
    }
    create(host.bus(), &physical, count)
}

/// The first `count` virtual functions appear. vfio-pci is the only driver that may have them
/// (`vfio_pci_bus_notifier`), and has them unless the bus offers new functions to nobody.
fn create(bus: &Bus, physical: &Device, count: u16) -> Result<()> {
    let functions: Vec<_> = physical.possible_functions().into_iter().take(count.into()).collect();
    for function in &functions {
        let driver = if bus.autoprobe() {
            function.bind_driver(Driver::Vfio)?;
            Some(VFIO_PCI.to_owned())
        } else {
            None
        };
        bus.add(function, driver);
    }
    physical.create_virtual_functions(count).inspect_err(|_| {
        for function in &functions {
            forget(bus, function);
        }
    })
}

/// A function that nobody has ever seen is not there.
fn forget(bus: &Bus, function: &Device) {
    bus.remove(function.name());
    if function.driver() == Driver::Vfio {
        function.unbind_driver();
        function.end_leaving();
    }
}

/// The virtual functions of a function that is held vanish, each when nobody uses it any more
/// (`sriov_del_vfs`). Nothing happens where there are none.
pub(super) fn end(host: &dyn Host, physical: &Arc<Device>) -> Result<()> {
    let bus = host.bus();
    let mut held = Vec::new();
    for function in physical.virtual_functions() {
        let name = function.name();
        held.push(bus.hold(name)?);
        if bus.function(name).is_some_and(|known| known.driver.is_some()) {
            store::unbind(host, name)?;
        }
        // Without a driver, and held, it is opened by nobody.
        function.leave_bus();
        bus.remove(name);
        host.show()?;
    }
    if physical.function().sriov().is_some_and(|sriov| sriov.enabled() != 0) {
        physical.end_virtual_functions();
    }
    Ok(())
}
