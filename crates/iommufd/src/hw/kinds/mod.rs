//! The kinds of IOMMU this crate knows. One file is one kind: registers, page-table formats,
//! nesting data, invalidation commands, virtual IOMMUs.

mod amd;
pub(crate) mod cmdqv;
mod driver;
mod noiommu;
mod riscv;
mod smmuv3;
mod spapr;
mod vtd;

use ioasis_iommupt::{Iova, IovaRange};

use super::iommu::{EndpointConfig, Iommu, Kind, ReservedKind, ReservedRegion};
use super::ops::IommuOps;
use super::tce::{self, Spapr};

/// What `kind` does.
fn of(kind: Kind) -> &'static dyn IommuOps {
    match kind {
        Kind::Vtd => &vtd::Vtd,
        Kind::Amd => &amd::Amd,
        Kind::Smmuv3 => &smmuv3::Smmuv3,
        Kind::Riscv => &riscv::Riscv,
        Kind::Spapr => &spapr::SpaprTce,
        Kind::NoIommu => &noiommu::NoIommu,
    }
}

/// Page sizes of 4 KiB, 2 MiB and 1 GiB, which every format has.
const PAGE_SIZES: u64 = (1 << 12) | (1 << 21) | (1 << 30);

/// A host bridge of POWER with everything a current one has (`ibm,supported-tce-sizes` of POWER9).
fn spapr() -> Iommu {
    Iommu {
        kind: Kind::Spapr,
        brought: None,
        aperture: IovaRange::closed(Iova(0), Iova((1 << tce::IOVA_LG2) - 1))
            .expect("an aperture is not empty"),
        page_sizes: PAGE_SIZES | 1 << 16,
        dirty_tracking: false,
        enforce_coherency: false,
        cache_coherent: true,
        pasid_bits: 0,
        nesting: false,
        ats: false,
        pri: false,
        // msi_device_has_isolated_msi: no irq domain of POWER says so.
        isolated_msi: false,
        cmdqv: None,
        spapr: Some(Spapr::default()),
        repeat_invalidations: false,
    }
}

impl Iommu {
    /// An IOMMU of this kind with everything a current one has, translating 48 bits.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        if kind == Kind::Spapr {
            return spapr();
        }
        Self {
            kind,
            brought: None,
            aperture: IovaRange::closed(Iova(0), Iova((1 << 48) - 1))
                .expect("an aperture is not empty"),
            page_sizes: PAGE_SIZES,
            dirty_tracking: true,
            enforce_coherency: matches!(kind, Kind::Vtd | Kind::Amd),
            cache_coherent: true,
            pasid_bits: 20,
            nesting: true,
            ats: true,
            pri: true,
            isolated_msi: true,
            cmdqv: None,
            spapr: None,
            repeat_invalidations: false,
        }
    }

    /// What stands in the place of an IOMMU for devices that have none, all of a machine together:
    /// IOVAs of 64 bits lead through a table that no hardware walks.
    #[must_use]
    pub fn none() -> Self {
        Self {
            aperture: IovaRange::ALL,
            page_sizes: noiommu::page_sizes(),
            dirty_tracking: false,
            pasid_bits: 0,
            nesting: false,
            ats: false,
            pri: false,
            ..Self::new(Kind::NoIommu)
        }
    }

    /// What its driver does.
    #[inline]
    pub(crate) fn ops(&self) -> &'static dyn IommuOps {
        self.brought.unwrap_or_else(|| of(self.kind))
    }

    /// What GET_HW_INFO says of it to a device that is nothing special: the type, and the registers
    /// as bytes.
    #[must_use]
    pub fn registers(&self) -> (u32, Vec<u8>) {
        let default = ioasis_uapi::iommufd::HW_INFO_TYPE_DEFAULT;
        let info = self.ops().hw_info(self, &EndpointConfig::default(), default);
        info.expect("every kind has the default description")
    }

    /// The page sizes that tables of this kind can have leaves of, whatever
    /// [`page_sizes`](Self::page_sizes) says.
    #[must_use]
    pub fn page_sizes_of(kind: Kind) -> u64 {
        match kind {
            Kind::Vtd => vtd::page_sizes(),
            Kind::Amd => amd::page_sizes(),
            Kind::Smmuv3 => smmuv3::page_sizes(),
            Kind::Riscv => riscv::page_sizes(),
            Kind::Spapr => tce::page_sizes(),
            Kind::NoIommu => noiommu::page_sizes(),
        }
    }

    /// The ranges that devices behind this kind of IOMMU cannot use: where interrupts go.
    #[must_use]
    pub fn reserved(&self) -> Vec<ReservedRegion> {
        let region = |start, last, kind| ReservedRegion {
            range: IovaRange::closed(Iova(start), Iova(last)).expect("a region is not empty"),
            kind,
        };
        match self.kind {
            // VT-d 3.14: DMA writes to 0xfeexxxxx are interrupt requests.
            Kind::Vtd => vec![region(0xfee0_0000, 0xfeef_ffff, ReservedKind::Msi)],
            // AMD-Vi 2.1.4, table 3: interrupts, and the HyperTransport range.
            Kind::Amd => vec![
                region(0xfee0_0000, 0xfeef_ffff, ReservedKind::Msi),
                region(0xfd_0000_0000, 0xff_ffff_ffff, ReservedKind::Reserved),
            ],
            // Linux's choice for doorbells that must be mapped: MSI_IOVA_BASE, MSI_IOVA_LENGTH.
            Kind::Smmuv3 => vec![region(0x800_0000, 0x80f_ffff, ReservedKind::SwMsi)],
            // Linux's drivers for RISC-V and POWER name none.
            Kind::Riscv | Kind::Spapr | Kind::NoIommu => Vec::new(),
        }
    }
}
