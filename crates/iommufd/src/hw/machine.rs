//! What all opens of one simulated machine share.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ioasis_sys::quiesce::Sections;
use ioasis_sys::sync::Mutex;

use super::faultlog::FaultLog;
use super::iommu::Iommu;
use super::phys::Phys;
use super::underway::Underway;
use crate::account::Ledger;
use crate::params::{Linux, Params};

/// The physical space, the ledger and the parameters of one simulated machine.
#[derive(Debug)]
pub struct Machine {
    /// Whose rules hold where those of two kernels differ.
    pub linux: Linux,
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
    /// What the storeys above keep here, each its own, made when it is first asked for.
    kept: Mutex<Vec<Arc<dyn Any + Send + Sync>>>,
    /// The IOMMUs are host bridges of POWER: the container is an SPAPR one.
    spapr: AtomicBool,
    /// One of them has EEH.
    eeh: AtomicBool,
    tokens: AtomicU64,
}

impl Machine {
    /// An empty machine that follows the newest kernel's rules.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::of(Linux::default())
    }

    /// An empty machine that follows the rules of `linux`.
    #[must_use]
    pub fn of(linux: Linux) -> Arc<Self> {
        Self::with(linux, Vec::new())
    }

    /// An empty machine to which a program added something.
    pub(crate) fn with(linux: Linux, added: Vec<Box<dyn Any + Send + Sync>>) -> Arc<Self> {
        Arc::new(Self {
            linux,
            phys: Phys::default(),
            ledger: Ledger::default(),
            params: Params::default(),
            faults: FaultLog::default(),
            sections: Sections::of_process(),
            underway: Underway::default(),
            added,
            kept: Mutex::default(),
            spapr: AtomicBool::new(false),
            eeh: AtomicBool::new(false),
            tokens: AtomicU64::new(1),
        })
    }

    /// What a program added of type `T`.
    #[inline]
    pub(crate) fn added<T: 'static>(&self) -> Option<&T> {
        self.added.iter().find_map(|added| added.downcast_ref())
    }

    /// What a storey above keeps here of type `T`; empty when nobody has asked before.
    pub(crate) fn kept<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        let mut kept = self.kept.lock();
        let found = kept.iter().find_map(|one| Arc::clone(one).downcast().ok());
        found.unwrap_or_else(|| {
            let made = Arc::new(T::default());
            kept.push(Arc::<T>::clone(&made));
            made
        })
    }

    /// There is a group behind such an IOMMU.
    pub(super) fn has(&self, iommu: &Iommu) {
        if let Some(spapr) = iommu.spapr {
            self.spapr.store(true, Ordering::Relaxed);
            self.eeh.fetch_or(spapr.eeh, Ordering::Relaxed);
        }
    }

    /// Whether the container is an SPAPR one.
    pub(crate) fn is_spapr(&self) -> bool {
        self.spapr.load(Ordering::Relaxed)
    }

    /// Whether errors freeze what made them: `eeh_enabled`.
    pub(crate) fn has_eeh(&self) -> bool {
        self.eeh.load(Ordering::Relaxed)
    }

    /// A number no one else on this machine has.
    pub(crate) fn token(&self) -> u64 {
        self.tokens.fetch_add(1, Ordering::Relaxed)
    }
}
