//! What all opens of one simulated machine share.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ioasis_sys::quiesce::Sections;

use super::faultlog::FaultLog;
use super::phys::Phys;
use super::underway::Underway;
use crate::account::Ledger;
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
    /// What a program added to it, for the storeys above: each finds its own by its type.
    added: Vec<Box<dyn Any + Send + Sync>>,
    tokens: AtomicU64,
}

impl Machine {
    /// An empty machine.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::with(Vec::new())
    }

    /// An empty machine to which a program added something.
    pub(crate) fn with(added: Vec<Box<dyn Any + Send + Sync>>) -> Arc<Self> {
        Arc::new(Self {
            phys: Phys::default(),
            ledger: Ledger::default(),
            params: Params::default(),
            faults: FaultLog::default(),
            sections: Sections::of_process(),
            underway: Underway::default(),
            added,
            tokens: AtomicU64::new(1),
        })
    }

    /// What a program added of type `T`.
    #[inline]
    pub(crate) fn added<T: 'static>(&self) -> Option<&T> {
        self.added.iter().find_map(|added| added.downcast_ref())
    }

    /// A number no one else on this machine has.
    pub(crate) fn token(&self) -> u64 {
        self.tokens.fetch_add(1, Ordering::Relaxed)
    }
}
