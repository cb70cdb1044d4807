//! Partitionable endpoints: what error handling of POWER (EEH) freezes and recovers, here a group.
//! Linux: `arch/powerpc/kernel/eeh.c`, `arch/powerpc/platforms/powernv/eeh-powernv.c`.
//!
//! A frozen endpoint reads ones and does no DMA. An access that the IOMMU refuses freezes both.
//!
//! `Pe::devices` is a leaf lock, not held while devices are reset.

use std::fmt::Debug;
use std::sync::Weak;
use std::sync::atomic::{AtomicU8, Ordering};

use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;

bitflags::bitflags! {
    /// What of an endpoint is stopped.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Frozen: u8 {
        /// Loads give ones, stores are lost.
        const MMIO = 1 << 0;
        /// The IOMMU refuses its accesses.
        const DMA = 1 << 1;
    }
}

/// The devices of an endpoint, as whoever has them knows them.
pub trait PeDevices: Debug + Send + Sync {
    /// Resets all of them, as a hot reset of their bus does.
    ///
    /// # Errors
    ///
    /// What a device that does not come back answers.
    fn hot_reset(&self) -> Result<()>;
}

/// A partitionable endpoint.
#[derive(Debug, Default)]
pub(super) struct Pe {
    frozen: AtomicU8,
    devices: Mutex<Option<Weak<dyn PeDevices>>>,
}

impl Pe {
    /// What of it is stopped.
    #[inline]
    pub(super) fn frozen(&self) -> Frozen {
        Frozen::from_bits_truncate(self.frozen.load(Ordering::Acquire))
    }

    /// Stops all of it. DMA that has begun goes on.
    pub(super) fn freeze(&self) {
        self.frozen.store(Frozen::all().bits(), Ordering::Release);
    }

    /// Lets `what` go on.
    pub(super) fn thaw(&self, what: Frozen) {
        self.frozen.fetch_and(!what.bits(), Ordering::AcqRel);
    }

    /// Who resets its devices.
    pub(super) fn set_devices(&self, devices: Weak<dyn PeDevices>) {
        *self.devices.lock() = Some(devices);
    }

    /// Resets its devices, if somebody has them.
    pub(super) fn hot_reset(&self) -> Result<()> {
        let devices = self.devices.lock().clone();
        match devices.and_then(|devices| devices.upgrade()) {
            Some(devices) => devices.hot_reset(),
            None => Ok(()),
        }
    }
}
