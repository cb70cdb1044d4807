//! Devices that go while a program has them, and the errors they report. Linux:
//! `vfio_unregister_group_dev` in `drivers/vfio/vfio_main.c`, `vfio_pci_core_request` and
//! `vfio_pci_aer_err_detected` in `drivers/vfio/pci/vfio_pci_core.c`.
//!
//! A device that is asked for is open to nobody new (`ENODEV`), as one whose driver leaves; its
//! user's REQ eventfd is signalled, again every ten seconds, until nobody has it open. One that is
//! pulled out is gone at once: REQ and ERR are signalled, its DMA ends, every call answers
//! `ENODEV`, its pages read all ones. As long as one group file or another device of its group is
//! there the group stays. The virtual functions of a physical one go before it
//! (`vfio_pci_core_unregister_device`).
//!
//! `DeviceSet::opens` is held while a device is marked as removed, so that nobody opens it any
//! more, and not while its session ends: its worker may wait for a page of a program that never
//! gives it. The end of the session is left to a thread then, and nobody waits for it.
//!
//! DIFFERS: Linux waits for a device's user without end; here the time is up some day, and the
//! device is pulled out.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use ioasis_pci::Heard;
use ioasis_sys::sync::atomic::Ordering;
use ioasis_sys::sync::thread;
use ioasis_uapi::{Errno, Error, Result};

use crate::Device;

/// How often a user is asked again: the timeout in `vfio_unregister_group_dev`.
const AGAIN: Duration = Duration::from_secs(10);

/// How long a removal waits for a call that opens or closes a device of its bus, and then for the
/// device's worker: each may wait for its program.
const PATIENCE: Duration = Duration::from_secs(2);

impl Device {
    /// The device vanishes: its user is told, it does no DMA any more, and every call answers
    /// `ENODEV`; its BAR pages read all ones.
    pub(crate) fn remove(&self) {
        // Nobody opens it meanwhile.
        let opens = self.set().opens().lock();
        let is_first = self.mark_removed();
        drop(opens);
        if is_first {
            self.vanish();
        }
    }

    /// Nobody opens it any more; whether it was there. With `DeviceSet::opens` locked.
    fn mark_removed(&self) -> bool {
        !self.removed().swap(true, Ordering::AcqRel)
    }

    /// Tells the program of a device that is marked as removed, and takes the device from it.
    fn vanish(&self) {
        self.interrupts().signal_removal();
        self.cut_off();
    }

    /// Takes DMA, interrupts and pages from it: at once where it does not wait for its program,
    /// and as soon as it does not any more where it does.
    fn cut_off(&self) {
        let function = Arc::clone(self.shared_function());
        function.stop_mastering();
        let pages = self.pages();
        // What answers no more reads all ones, as on the bus. Pages that are gone need not.
        let fill = move || {
            for page in pages.iter().flatten() {
                let _ = page.fill(0, page.len(), 0xff);
            }
        };
        let at_once = fill.clone();
        let (ended, end) = mpsc::channel();
        let close = move || {
            function.close();
            fill();
            let _nobody_waits = ended.send(());
        };
        let started = thread::Builder::new().name("vfio-removal".into()).spawn(close);
        if started.is_err() || end.recv_timeout(PATIENCE).is_err() {
            at_once();
        }
    }

    /// Pulls the device out, and its virtual functions before it.
    ///
    /// # Errors
    ///
    /// `ENODEV` when it was removed, `EBUSY` while a call that opens or closes a device of its bus
    /// waits for its program.
    pub fn pull(&self) -> Result<()> {
        for function in self.virtual_functions() {
            gone(function.pull())?;
        }
        let Some(opens) = self.set().opens().try_lock_for(PATIENCE) else {
            return Err(Error::new(
                Errno::EBUSY,
                "a call that opens or closes it waits for its program",
            ));
        };
        let is_first = self.mark_removed();
        drop(opens);
        if !is_first {
            return Err(Error::new(Errno::ENODEV, "it was removed before"));
        }
        self.vanish();
        self.group().remove_if_empty();
        Ok(())
    }

    /// A virtual function comes to the bus: one that was removed before is another one now. Nobody
    /// has it open.
    pub(crate) fn come_anew(&self) {
        let _opens = self.set().opens().lock();
        self.interrupts().forget_removal();
        self.removed().store(false, Ordering::Release);
        self.group().come_anew();
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

    /// Lets nobody open it any more: its driver is taken away, or begins to leave. So do those of
    /// its virtual functions.
    ///
    /// # Errors
    ///
    /// `ENODEV` when it was removed.
    pub fn begin_removal(&self) -> Result<()> {
        self.present()?;
        for function in self.virtual_functions() {
            function.unbind_driver();
        }
        self.unbind_driver();
        Ok(())
    }

    /// Asks who uses the device to give it back, and removes it once nobody does, or when
    /// `patience` is over; whether nobody did. Its virtual functions go one after the other before
    /// it. After [`begin_removal`](Self::begin_removal).
    ///
    /// # Errors
    ///
    /// `EBUSY` as [`pull`](Self::pull).
    pub fn end_removal(&self, patience: Duration) -> Result<bool> {
        let end = Instant::now() + patience;
        let mut all_released = true;
        for function in self.virtual_functions() {
            all_released &= function.end_removal(end.saturating_duration_since(Instant::now()))?;
        }
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
        gone(self.pull())?;
        Ok(released && all_released)
    }
}

/// What was pulled out before is gone all the same.
fn gone(pulled: Result<()>) -> Result<()> {
    pulled.or_else(|error| if error.errno == Errno::ENODEV { Ok(()) } else { Err(error) })
}
