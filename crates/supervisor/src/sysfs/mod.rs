//! Attributes in /sys that root writes: which driver a function has, and what is set of it.
//!
//! A write arrives as one of a file of the run's own file system, and is answered as the kernel's store function answers it
//! (drivers/base/bus.c, drivers/pci/pci-driver.c, drivers/pci/pci-sysfs.c), by a thread of its own: it may wait, for a device
//! that is open, and nobody else waits for it. The text that is read is part of the view, which is shown anew after a write.
//!
//! Lock order: `Bus::state` is a leaf. Who changes a function's driver holds the function ([`Bus::hold`]), as Linux holds its
//! `device_lock`, and no lock.

mod bus;
mod config;
mod number;
mod sriov;
mod store;
#[cfg(test)]
mod store_tests;

use std::sync::{Arc, Weak};

use ioasis_iommufd::{ClientFile, Destination, QueueFile, QueueWatcher, Source};
use ioasis_uapi::{Errno, Error, Result};
use ioasis_vfio::Device;

use crate::text;

pub(crate) use bus::Bus;
pub(crate) use config::{Config, Seen, bytes};

/// What a write needs of the run.
pub(crate) trait Host: std::fmt::Debug + Send + Sync {
    /// Functions and drivers.
    fn bus(&self) -> &Bus;

    /// The devices of the machine.
    fn devices(&self) -> &[Arc<Device>];

    /// Lets programs see what is now.
    ///
    /// # Errors
    ///
    /// It cannot be shown.
    fn show(&self) -> Result<()>;

    /// Says on standard error what went wrong.
    fn tell(&self, what: &str);

    /// What is read of the file at `path`.
    fn text(&self, path: &str) -> Option<String>;
}

/// A file that can be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Attribute {
    /// Below /sys/bus/pci.
    Bus(BusFile),
    /// Of the driver with this name.
    Driver(String, DriverFile),
    /// Of the function at this address.
    Function(String, FunctionFile),
}

/// Files of the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BusFile {
    Probe,
    Autoprobe,
}

/// Files of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DriverFile {
    Bind,
    Unbind,
    NewId,
    RemoveId,
}

/// Files of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FunctionFile {
    DriverOverride,
    Reset,
    ResetMethod,
    Enable,
    NumaNode,
    D3coldAllowed,
    BrokenParityStatus,
    PowerControl,
    SriovNumvfs,
    SriovDriversAutoprobe,
    SriovVfMsixCount,
}

impl Attribute {
    /// The file at `path`, if it is one that can be written here.
    pub(crate) fn at(path: &str) -> Option<Self> {
        if let Some(path) = path.strip_prefix("/sys/bus/pci/") {
            let file = match path.strip_prefix("drivers/").and_then(|path| path.split_once('/')) {
                Some((driver, file)) => {
                    let file = match file {
                        "bind" => DriverFile::Bind,
                        "unbind" => DriverFile::Unbind,
                        "new_id" => DriverFile::NewId,
                        "remove_id" => DriverFile::RemoveId,
                        _ => return None,
                    };
                    return Some(Self::Driver(driver.to_owned(), file));
                }
                None if path == "drivers_probe" => BusFile::Probe,
                None if path == "drivers_autoprobe" => BusFile::Autoprobe,
                None => return None,
            };
            return Some(Self::Bus(file));
        }
        let (directory, name) = path.strip_prefix("/sys/devices/pci")?.rsplit_once('/')?;
        let (directory, file) = match (directory.strip_suffix("/power"), name) {
            (Some(directory), "control") => (directory, FunctionFile::PowerControl),
            (None, "driver_override") => (directory, FunctionFile::DriverOverride),
            (None, "reset") => (directory, FunctionFile::Reset),
            (None, "reset_method") => (directory, FunctionFile::ResetMethod),
            (None, "enable") => (directory, FunctionFile::Enable),
            (None, "numa_node") => (directory, FunctionFile::NumaNode),
            (None, "d3cold_allowed") => (directory, FunctionFile::D3coldAllowed),
            (None, "broken_parity_status") => (directory, FunctionFile::BrokenParityStatus),
            (None, "sriov_numvfs") => (directory, FunctionFile::SriovNumvfs),
            (None, "sriov_drivers_autoprobe") => (directory, FunctionFile::SriovDriversAutoprobe),
            (None, "sriov_vf_msix_count") => (directory, FunctionFile::SriovVfMsixCount),
            _ => return None,
        };
        let (_, bdf) = directory.rsplit_once('/')?;
        Some(Self::Function(bdf.to_owned(), file))
    }
}

/// An attribute that is open for writing.
#[derive(Debug)]
pub(crate) struct Writing {
    pub(crate) host: Weak<dyn Host>,
    pub(crate) attribute: Attribute,
    /// Where it lies.
    pub(crate) path: String,
}

impl Writing {
    fn store(&self, text: &[u8]) -> Result<()> {
        let gone = Error::new(Errno::ENODEV, "the run is over");
        let host = self.host.upgrade().ok_or(gone)?;
        store::store(&*host, &self.attribute, text)
    }
}

impl ClientFile for Writing {
    fn name(&self) -> &'static str {
        "/sys/bus/pci"
    }

    fn queue(&self) -> Option<&dyn QueueFile> {
        Some(self)
    }

    fn close(&self) {}
}

impl QueueFile for Writing {
    fn read_to(&self, offset: u64, length: u64, to: &mut dyn Destination) -> Result<u64> {
        let gone = Error::new(Errno::ENODEV, "the run is over");
        let host = self.host.upgrade().ok_or(gone)?;
        let text = host.text(&self.path).ok_or(Error::new(Errno::ENODEV, "the file is gone"))?;
        text::part(&text, offset, length, to)
    }

    fn write_from(&self, length: u64, from: &mut dyn Source) -> Result<u64> {
        if length == 0 {
            return Ok(0);
        }
        let text = text::written(length, from)?;
        self.store(&text).map(|()| text.len() as u64)
    }

    fn is_seekable(&self) -> bool {
        true
    }

    fn stray_write(&self, text: &[u8]) {
        if let (Err(error), Some(host)) = (self.store(text), self.host.upgrade()) {
            let (text, path) = (String::from_utf8_lossy(text), &self.path);
            host.tell(&format!("{:?} was not written to {path}: {error}", text.trim_end()));
        }
    }

    fn is_readable(&self) -> bool {
        false
    }

    fn watch(&self, _: Arc<dyn QueueWatcher>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_says_what_is_written() {
        let function = "/sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0";
        let at = |path: &str| Attribute::at(path);
        let of = |file| Some(Attribute::Function("0000:01:00.0".to_owned(), file));
        assert_eq!(at(&format!("{function}/reset")), of(FunctionFile::Reset));
        assert_eq!(at(&format!("{function}/power/control")), of(FunctionFile::PowerControl));
        assert_eq!(at(&format!("{function}/power/reset")), None);
        assert_eq!(at(&format!("{function}/vendor")), None);
        let bind = Attribute::Driver("vfio-pci".to_owned(), DriverFile::Bind);
        assert_eq!(at("/sys/bus/pci/drivers/vfio-pci/bind"), Some(bind));
        assert_eq!(at("/sys/bus/pci/drivers_probe"), Some(Attribute::Bus(BusFile::Probe)));
        assert_eq!(at("/sys/bus/pci/slots"), None);
    }
}
