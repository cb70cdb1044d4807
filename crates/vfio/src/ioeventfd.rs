//! VFIO_DEVICE_IOEVENTFD: a register that is written when an eventfd is signalled.

use std::sync::Arc;

use ioasis_pci::{BARS, Function};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::vfio::{self, DeviceIoeventfd};
use ioasis_uapi::{Errno, Error, Result};

use crate::file::{region_index, region_position};
use crate::watch::Watch;
use crate::{Client, arg};

/// Linux: `VFIO_PCI_IOEVENTFD_MAX`.
const LIMIT: usize = 1000;

/// The register and value of one ioeventfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Doorbell {
    bar: usize,
    position: u64,
    size: usize,
    data: u64,
}

/// The ioeventfds of one device.
#[derive(Debug, Default)]
pub(crate) struct Ioeventfds(Mutex<Vec<(Doorbell, Watch)>>);

impl Ioeventfds {
    /// Answers DEVICE_IOEVENTFD.
    ///
    /// # Errors
    ///
    /// `EFAULT`; `EINVAL` for a malformed call, a place that is no BAR register or lies in the
    /// MSI-X table, and for 8 bytes; `EEXIST` when the same one is there; `ENODEV` when the one to
    /// remove is not; `ENOSPC` for more than 1000; `EBADF` or `EINVAL` for what is no eventfd.
    pub(crate) fn call(
        &self,
        client: &dyn Client,
        function: &Arc<Function>,
        address: u64,
    ) -> Result<()> {
        /// Up to `fd`.
        const MIN: usize = 28;
        let call: DeviceIoeventfd = arg::first(client, address, MIN)?;
        let size = call.flags & vfio::DEVICE_IOEVENTFD_SIZE_MASK;
        if call.flags & !vfio::DEVICE_IOEVENTFD_SIZE_MASK != 0 {
            return Err(Error::at(Errno::EINVAL, "unknown flags", call.flags.into()));
        }
        if size.count_ones() != 1 || call.fd < -1 {
            return Err(Error::new(Errno::EINVAL, "not exactly one size, or a negative fd"));
        }
        let doorbell = check(function, call.offset, size as usize, call.data)?;
        let mut all = self.0.lock();
        let found = all.iter().position(|(other, _)| *other == doorbell);
        match (found, call.fd) {
            (Some(found), -1) => {
                let removed = all.swap_remove(found);
                drop(all);
                drop(removed);
                Ok(())
            }
            (Some(_), _) => Err(Error::at(Errno::EEXIST, "that ioeventfd exists", call.offset)),
            (None, -1) => Err(Error::at(Errno::ENODEV, "no such ioeventfd", call.offset)),
            (None, _) if all.len() >= LIMIT => {
                Err(Error::at(Errno::ENOSPC, "too many ioeventfds", LIMIT as u64))
            }
            (None, fd) => {
                let eventfd = arg::eventfd(client, fd)?;
                let function = Arc::clone(function);
                let ring = move || doorbell.ring(&function);
                all.push((doorbell, Watch::start(eventfd, Box::new(ring))?));
                Ok(())
            }
        }
    }

    /// Removes all: the device file is closed.
    pub(crate) fn close(&self) {
        let all = std::mem::take(&mut *self.0.lock());
        drop(all);
    }
}

impl Doorbell {
    fn ring(self, function: &Function) {
        let Self { bar, position, size, data } = self;
        function.ring(bar, position, &data.to_le_bytes()[..size]);
    }
}

fn check(function: &Function, offset: u64, size: usize, data: u64) -> Result<Doorbell> {
    let refused = |why| Err(Error::at(Errno::EINVAL, why, offset));
    let position = region_position(offset);
    let end = position + size as u64;
    let bar = match region_index(offset) {
        Some(index) if (index as usize) < BARS => index as usize,
        _ => return refused("not a BAR"),
    };
    if function.bar(bar).is_none_or(|found| end > found.size) {
        return refused("past the end of the BAR");
    }
    if let Some(table) = function.msix_table()
        && bar == table.table_bar
    {
        let start = u64::from(table.table_offset);
        let table_end = start + u64::from(function.vectors().msix) * 16;
        if position < table_end && start < end {
            return refused("inside the MSI-X table");
        }
    }
    if size == 8 {
        return refused("8 bytes are never written");
    }
    Ok(Doorbell { bar, position, size, data })
}
