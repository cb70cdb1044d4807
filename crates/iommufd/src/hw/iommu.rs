//! What an IOMMU can do, and what a device behind it can: descriptions, fixed when they are made.

use std::any::Any;
use std::sync::Arc;

use ioasis_iommupt::IovaRange;

use super::kinds::cmdqv::Cmdqv;
use super::ops::IommuOps;
use super::tce::Spapr;

/// Whose hardware an IOMMU imitates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Intel VT-d, scalable mode.
    Vtd,
    /// AMD-Vi.
    Amd,
    /// Arm SMMUv3.
    Smmuv3,
    /// RISC-V IOMMU.
    Riscv,
    /// IBM POWER's host bridges: windows of TCEs. Only an SPAPR container maps anything.
    Spapr,
    /// Nobody's: see [`Iommu::none`].
    NoIommu,
}

/// What one simulated IOMMU can do.
#[derive(Clone, Debug)]
pub struct Iommu {
    /// Whose hardware it imitates.
    pub kind: Kind,
    /// What its driver does, where it is of a kind that the program brings along; none: what the
    /// driver of `kind` does.
    pub brought: Option<&'static dyn IommuOps>,
    /// IOVAs it can translate.
    pub aperture: IovaRange,
    /// Bit `n` set: leaves of `1 << n` bytes may be used, where the format has them.
    pub page_sizes: u64,
    /// Sets dirty bits.
    pub dirty_tracking: bool,
    /// Can force no-snoop transactions to snoop.
    pub enforce_coherency: bool,
    /// DMA is coherent with the processor's caches; without it no device can be bound.
    pub cache_coherent: bool,
    /// Width of a PASID, 0 without PASIDs.
    pub pasid_bits: u32,
    /// Can translate in two stages.
    pub nesting: bool,
    /// Answers devices that translate ahead (ATS).
    pub ats: bool,
    /// Hands page requests of devices on (PRI).
    pub pri: bool,
    /// Isolates interrupts of different devices.
    pub isolated_msi: bool,
    /// Command queues for guests, beside an SMMUv3.
    pub cmdqv: Option<Cmdqv>,
    /// What a host bridge of POWER has.
    pub spapr: Option<Spapr>,
    /// An SMMUv3 that may lose a TLBI or CFGI command, so that each is to be issued twice (erratum
    /// T264-SMMU-3). The simulated hardware loses none: GET_HW_INFO says so, from Linux 7.3 on.
    pub repeat_invalidations: bool,
}

impl Iommu {
    /// Whether there is none.
    pub(crate) fn is_none(&self) -> bool {
        self.kind == Kind::NoIommu
    }

    /// Bits of an IOVA.
    pub(crate) fn iova_bits(&self) -> u64 {
        u64::from(u64::BITS - self.aperture.last().0.leading_zeros())
    }
}

/// Why a range cannot be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservedKind {
    /// Identity mapped by firmware.
    Direct,
    /// Identity mapped by firmware until somebody else owns the device: no obstacle.
    DirectRelaxable,
    /// Not translated.
    Reserved,
    /// Writes there are interrupts.
    Msi,
    /// Where software maps the interrupt doorbell.
    SwMsi,
}

/// A range of IOVAs that a device cannot use for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedRegion {
    /// Which.
    pub range: IovaRange,
    /// Why.
    pub kind: ReservedKind,
}

/// The requester ID itself, without a PASID.
pub(crate) const NO_PASID: u32 = 0;

/// How an [`Endpoint`](crate::Endpoint) is made; by default without PASIDs, ATS and PRI.
#[derive(Clone, Debug, Default)]
pub struct EndpointConfig {
    /// What messages call it, a PCI address for instance.
    pub name: Arc<str>,
    /// Bus, device and function as they travel with each transaction.
    pub requester_id: u16,
    /// Ranges it cannot use for memory.
    pub reserved: Vec<ReservedRegion>,
    /// Width of the PASIDs it can send, 0 without.
    pub pasid_bits: u32,
    /// PASIDs with execute permission.
    pub pasid_exec: bool,
    /// PASIDs in privileged mode.
    pub pasid_privileged: bool,
    /// Translates ahead (ATS).
    pub ats: bool,
    /// Asks for pages that are not there (PRI).
    pub pri: bool,
    /// What the operations of its IOMMU keep with it, as `dev_iommu_priv_set` does.
    pub private: Option<Arc<dyn Any + Send + Sync>>,
}
