//! What writes to /sys need of the run, and opens of the files that are written.

use std::sync::{Arc, Weak};

use ioasis_iommufd::ClientFile;
use ioasis_uapi::{Errno, Error, Result};
use ioasis_vfio::Device;

use super::Server;
use crate::fuse::FileSystem;
use crate::sysfs::{Attribute, Bus, Host, Writing};
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
