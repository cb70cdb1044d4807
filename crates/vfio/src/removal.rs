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
//! more, unless a call has it that waits for its program: what such a call opened is closed after
//! it. It is not held while a session ends: a worker may wait for a page of a program that never
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
use crate::device::Pages;

/// How often a user is asked again: the timeout in `vfio_unregister_group_dev`.
const AGAIN: Duration = Duration::from_secs(10);

/// How long a removal waits for a call that opens or closes a device of its bus, and then for the
/// device's worker: each may wait for its program.
const PATIENCE: Duration = Duration::from_secs(2);

impl Device {
    /// The device vanishes: its user is told, it does no DMA any more, and every call answers
    /// `ENODEV`; its BAR pages read all ones. Whether it was there.
    pub(crate) fn remove(self: &Arc<Self>) -> bool {
        let opens = self.set().opens().try_lock_for(PATIENCE);
        let is_first = !self.removed().swap(true, Ordering::AcqRel);
        let some_call_opens = opens.is_none();
        drop(opens);
        if is_first {
            self.interrupts().signal_removal();
            self.cut_off(some_call_opens);
        }
        is_first
    }

    /// Takes DMA, interrupts and pages from it: at once where it does not wait for its program,
    /// and as soon as it does not any more where it does. The same once more after a call that was
    /// opening it, perhaps, when it was marked.
    fn cut_off(self: &Arc<Self>, some_call_opens: bool) {
        self.function().stop_mastering();
        // Those of now: it may be another device by then.
        let pages = self.pages();
        let (ended, end) = mpsc::channel();
        let (device, its_pages) = (Arc::clone(self), pages.clone());
        let close = move || {
            device.function().close();
            fill(&its_pages);
            let _nobody_waits = ended.send(());
            if some_call_opens {
                drop(device.set().opens().lock());
                if device.is_removed() {
                    device.function().close();
                    fill(&device.pages());
                }
            }
        };
        let started = thread::Builder::new().name("vfio-removal".into()).spawn(close);
        if started.is_err() || end.recv_timeout(PATIENCE).is_err() {
            fill(&pages);
        }
    }

    /// Pulls the device out, and its virtual functions before it.
    ///
    /// # Errors
    ///
    /// `ENODEV` when it was removed.
    pub fn pull(self: &Arc<Self>) -> Result<()> {
        for function in self.virtual_functions() {
            let _gone = function.pull();
        }
        if !self.remove() {
            return Err(Error::new(Errno::ENODEV, "it was removed before"));
        }
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
    #[must_use]
    pub fn end_removal(self: &Arc<Self>, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        let mut all_released = true;
        for function in self.virtual_functions() {
            all_released &= function.end_removal(end.saturating_duration_since(Instant::now()));
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
        // Pulled out meanwhile is gone all the same.
        let _gone = self.pull();
        released && all_released
    }
}

/// What answers no more reads all ones, as on the bus. Pages that are gone need not.
fn fill(pages: &Pages) {
    for page in pages.iter().flatten() {
        let _ = page.fill(0, page.len(), 0xff);
    }
}
