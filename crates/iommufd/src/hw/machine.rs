//! What all opens of one simulated machine share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ioasis_sys::quiesce::Sections;

use crate::account::Ledger;
use crate::cmd::Extension;
use crate::hw::faultlog::FaultLog;
use crate::hw::phys::Phys;
use crate::hw::underway::Underway;
use crate::params::Params;

/// The physical space, the ledger and the parameters of one simulated machine.
#[derive(Debug)]
pub struct Machine {
    /// What output addresses mean.
    pub phys: Phys,
    /// Who pays for what.
    pub ledger: Ledger,
    /// Module parameters.
    pub params: Params,
    /// DMA that was refused.
    pub faults: FaultLog,
    /// Where DMA is noted while it runs.
    pub(crate) sections: &'static Sections,
    /// Where copies are noted that outlast their section.
    pub(crate) underway: Underway,
    /// What it has beside IOMMUFD.
    extension: Option<Arc<dyn Extension>>,
    tokens: AtomicU64,
}

impl Machine {
    /// An empty machine.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::make(None)
    }

    /// An empty machine with a command of its own.
    #[cfg_attr(not(feature = "mock"), expect(dead_code, reason = "the mock hardware is one"))]
    pub(crate) fn with_extension(extension: Arc<dyn Extension>) -> Arc<Self> {
        Self::make(Some(extension))
    }

    fn make(extension: Option<Arc<dyn Extension>>) -> Arc<Self> {
        Arc::new(Self {
            phys: Phys::default(),
            ledger: Ledger::default(),
            params: Params::default(),
            faults: FaultLog::default(),
            sections: Sections::of_process(),
            underway: Underway::default(),
            extension,
            tokens: AtomicU64::new(1),
        })
    }

    /// What it has beside IOMMUFD.
    pub(crate) fn extension(&self) -> Option<&Arc<dyn Extension>> {
        self.extension.as_ref()
    }

    /// A number no one else on this machine has.
    pub(crate) fn token(&self) -> u64 {
        self.tokens.fetch_add(1, Ordering::Relaxed)
    }
}
