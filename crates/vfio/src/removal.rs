//! Devices that go while a program has them, and the errors they report. Linux:
//! `vfio_unregister_group_dev` in `drivers/vfio/vfio_main.c`, `vfio_pci_core_request` and
//! `vfio_pci_aer_err_detected` in `drivers/vfio/pci/vfio_pci_core.c`.
//!
//! A device that is asked for is open to nobody new (`ENODEV`), as one whose driver leaves; its
//! user's REQ eventfd is signalled, again every ten seconds, until nobody has it open. One that is
//! pulled out is gone at once: REQ and ERR are signalled, its DMA ends, every call answers
//! `ENODEV`, its pages read all ones. As long as one group file or another device of its group is
//! there the group stays.
//!
//! DIFFERS: Linux waits for a device's user without end; here the time is up some day, and the
//! device is pulled out.

use std::time::{Duration, Instant};

use ioasis_pci::Heard;
use ioasis_sys::sync::atomic::Ordering;
use ioasis_uapi::{Errno, Error, Result};

use crate::Device;

/// How often a user is asked again: the timeout in `vfio_unregister_group_dev`.
const AGAIN: Duration = Duration::from_secs(10);

/// How long a removal waits for a call that opens or closes a device of its bus: such a call may
/// wait for its program.
const PATIENCE: Duration = Duration::from_secs(2);

impl Device {
    /// The device vanishes: its user is told, it does no DMA any more, and every call answers
    /// `ENODEV`; its BAR pages read all ones.
    pub(crate) fn remove(&self) {
        // Nobody opens it meanwhile.
        let _opens = self.set().opens().lock();
        self.vanish();
    }

    /// Whether it was there. With `DeviceSet::opens` locked.
    fn vanish(&self) -> bool {
        if self.removed().swap(true, Ordering::AcqRel) {
            return false;
        }
        self.interrupts().signal_removal();
        self.cut_off();
        true
    }

    /// Pulls the device out.
    ///
    /// # Errors
    ///
    /// `ENODEV` when it was removed, `EBUSY` while a call that opens or closes a device of its bus
    /// waits for its program.
    pub fn pull(&self) -> Result<()> {
        let Some(_opens) = self.set().opens().try_lock_for(PATIENCE) else {
            return Err(Error::new(
                Errno::EBUSY,
                "a call that opens or closes it waits for its program",
            ));
        };
        if !self.vanish() {
            return Err(Error::new(Errno::ENODEV, "it was removed before"));
        }
        self.group().remove_if_empty();
        Ok(())
    }

    /// An uncorrectable error that is not fatal: signals the error eventfd, if there is one.
    ///
    /// # Errors
    ///
    /// `ENODEV` when it was removed.
    pub fn report_error(&self) -> Result<Heard> {
        self.present()?;
        Ok(self.interrupts().signal_error())
    }

    /// Lets nobody open it any more: its driver is taken away, or begins to leave.
    ///
    /// # Errors
    ///
    /// `ENODEV` when it was removed.
    pub fn begin_removal(&self) -> Result<()> {
        self.present()?;
        self.unbind_driver();
        Ok(())
    }

    /// Asks who uses the device to give it back, and removes it once nobody does, or when
    /// `patience` is over; whether nobody did. After [`begin_removal`](Self::begin_removal).
    ///
    /// # Errors
    ///
    /// `EBUSY` as [`pull`](Self::pull).
    pub fn end_removal(&self, patience: Duration) -> Result<bool> {
        let end = Instant::now() + patience;
        let released = loop {
            if self.await_users(Instant::now()) {
                break true;
            }
            self.request();
            if self.await_users(end.min(Instant::now() + AGAIN)) {
                break true;
            }
            if Instant::now() >= end {
                break false;
            }
        };
        match self.pull() {
            // Pulled out meanwhile is gone all the same.
            Ok(()) | Err(Error { errno: Errno::ENODEV, .. }) => Ok(released),
            Err(error) => Err(error),
        }
    }
}
