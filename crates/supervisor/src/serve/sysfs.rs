//! What writes to /sys need of the run, and opens of the files that are written.

use std::sync::{Arc, Weak};

use ioasis_iommufd::ClientFile;
use ioasis_uapi::{Errno, Error, Result};
use ioasis_vfio::Device;

use super::Server;
use crate::fuse::FileSystem;
use crate::sysfs::{self, Attribute, Bus, Config, Host, Seen, Writing};
use crate::watchdog::say;

impl Server {
    /// Lets programs see the devices as they are now.
    ///
    /// For whoever has changed a device, or which there are. May wait for the thread that serves files: not to be called by
    /// it, nor with a lock that it takes.
    ///
    /// # Errors
    ///
    /// What planning a view says; nothing has changed then.
    pub(crate) fn show(&self) -> Result<()> {
        let (machine, files) = (&self.machine, self.queues.file_system());
        let nodes = files.map(FileSystem::devices);
        let plan = || Ok((machine.seen(&self.bus)?, machine.options(&self.bus)));
        let shown = self.live.show(plan, nodes)?;
        if let Some(files) = files {
            files.forget(&shown.names);
        }
        for path in shown.lost {
            say(&format!("ioasis: {path} could not be changed in the program's view\n"));
        }
        Ok(())
    }

    /// The file behind an open of the attribute with this number.
    ///
    /// # Errors
    ///
    /// `EACCES` for one that is not written here.
    pub(super) fn attribute(&self, number: u32) -> Result<Arc<dyn ClientFile>> {
        let known = self.live.attribute(number);
        let known = known.and_then(|path| Some((Attribute::at(&path)?, path)));
        let why = "this attribute cannot be written here";
        let (attribute, path) = known.ok_or(Error::at(Errno::EACCES, why, number.into()))?;
        let host: Weak<dyn Host> = Weak::clone(&self.this) as _;
        Ok(Arc::new(Writing { host, attribute, path }))
    }

    /// The device whose configuration space the file with this number is; none for a bridge's.
    fn configured(&self, number: u32) -> Option<Arc<Device>> {
        let path = self.live.attribute(number)?;
        let bdf = path.strip_suffix("/config")?.rsplit_once('/')?.1;
        let mut devices = self.machine.devices.devices().iter();
        devices.find(|device| device.name() == bdf).cloned()
    }

    /// What is read of that configuration space, unless it is a bridge's, which does not change.
    pub(super) fn config_bytes(&self, number: u32, seen: Seen) -> Option<Result<Vec<u8>>> {
        self.configured(number).map(|device| sysfs::bytes(&device, seen))
    }

    /// The file behind an open of that configuration space for writing.
    ///
    /// # Errors
    ///
    /// `EACCES` for one that is not written here.
    pub(super) fn config(&self, number: u32, seen: Seen) -> Result<Arc<dyn ClientFile>> {
        let device = self.configured(number);
        let device = device.filter(|_| self.queues.file_system().is_some());
        let why = "this configuration space cannot be written here";
        let device = device.ok_or(Error::at(Errno::EACCES, why, number.into()))?;
        let host: Weak<dyn Host> = Weak::clone(&self.this) as _;
        Ok(Arc::new(Config { host, device, seen }))
    }
}

impl Host for Server {
    fn bus(&self) -> &Bus {
        &self.bus
    }

    fn devices(&self) -> &[Arc<Device>] {
        self.machine.devices.devices()
    }

    fn show(&self) -> Result<()> {
        Self::show(self)
    }

    fn tell(&self, what: &str) {
        say(&format!("ioasis: {what}\n"));
    }

    fn text(&self, path: &str) -> Option<String> {
        self.live.text(path)
    }
}
