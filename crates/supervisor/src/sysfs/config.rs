//! The configuration space of a function, as its file in /sys is read and written (drivers/pci/pci-sysfs.c).

use std::sync::{Arc, Weak};

use ioasis_iommufd::{ClientFile, Destination, QueueFile, QueueWatcher, Source};
use ioasis_pci::CONFIG_SIZE;
use ioasis_uapi::{Errno, Error, Result};
use ioasis_vfio::Device;

use super::Host;

/// How much of it somebody reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// All: with CAP_SYS_ADMIN.
    All,
    /// The header that every function has.
    Header,
}

/// An open file.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) host: Weak<dyn Host>,
    pub(crate) device: Arc<Device>,
    pub(crate) seen: Seen,
}

/// Bytes of the header; no function here is a CardBus bridge, which has more.
const HEADER: usize = 64;

/// What is read of the configuration space of `device` (`pci_read_config`).
///
/// # Errors
///
/// The function cannot be read.
pub(crate) fn bytes(device: &Device, seen: Seen) -> Result<Vec<u8>> {
    let function = device.function();
    let mut bytes = if function.is_virtual() {
        function.config_of_host()
    } else {
        let mut bytes = vec![0; CONFIG_SIZE];
        function.config_read(0, &mut bytes)?;
        bytes
    };
    if seen == Seen::Header {
        bytes.truncate(HEADER);
    }
    Ok(bytes)
}

impl ClientFile for Config {
    fn name(&self) -> &'static str {
        "/sys/bus/pci"
    }

    fn queue(&self) -> Option<&dyn QueueFile> {
        Some(self)
    }

    fn close(&self) {}
}

impl QueueFile for Config {
    fn read_to(&self, offset: u64, length: u64, to: &mut dyn Destination) -> Result<u64> {
        let bytes = bytes(&self.device, self.seen)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let count = (bytes.len() - start).min(usize::try_from(length).unwrap_or(usize::MAX));
        to.put(0, &bytes[start..start + count]).map(|()| count as u64)
    }

    fn write_from(&self, length: u64, from: &mut dyn Source) -> Result<u64> {
        self.write_at(0, length, from)
    }

    fn write_at(&self, offset: u64, length: u64, from: &mut dyn Source) -> Result<u64> {
        let size = CONFIG_SIZE as u64;
        if offset >= size {
            // sysfs_kf_bin_write, fs/sysfs/file.c.
            return Err(Error::at(Errno::EFBIG, "beyond configuration space", offset));
        }
        let taken = length.min(size - offset);
        let mut bytes = vec![0; usize::try_from(taken).expect("a page")];
        from.get(0, &mut bytes)?;
        self.device.write_config_by_host(offset, &bytes)?;
        // What is opened without being asked for shows it too.
        if let Some(host) = self.host.upgrade() {
            host.show()?;
        }
        Ok(taken)
    }

    fn is_seekable(&self) -> bool {
        true
    }

    fn is_readable(&self) -> bool {
        false
    }

    fn watch(&self, _: Arc<dyn QueueWatcher>) {}
}
