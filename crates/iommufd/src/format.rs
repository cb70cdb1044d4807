//! Which page-table format an IOMMU walks.

use std::sync::Arc;

use ioasis_iommupt::fmt::VtdSs;
use ioasis_iommupt::{Config, PageTable, Quiesce, TableWriter};
use ioasis_sys::quiesce::Sections;
use ioasis_uapi::Result;

use crate::iommu::{Iommu, Kind};

/// An empty page table in the format of `iommu`.
pub(crate) fn make_table(
    iommu: &Iommu,
    quiesce: &Arc<dyn Quiesce>,
) -> Result<Box<dyn TableWriter>> {
    let config = Config {
        tables_max: TABLES_MAX,
        page_sizes: iommu.page_sizes,
        iova_lg2: u64::BITS - iommu.aperture.last().0.leading_zeros(),
        quiesce: Arc::clone(quiesce),
    };
    match iommu.kind {
        Kind::Vtd | Kind::Amd | Kind::Smmuv3 | Kind::Riscv => {
            let (writer, _) = PageTable::<VtdSs>::new(config)?;
            Ok(Box::new(writer))
        }
    }
}

/// Tables of 4 KiB one domain may have: 4 GiB, which map 2 TiB as single pages. Linux charges them to the client; ours
/// are taken from the supervisor's memory.
const TABLES_MAX: usize = 1 << 20;

/// Sections of translating threads, as the page tables know them.
#[derive(Debug, Default)]
pub(crate) struct DmaSections(Sections);

impl Quiesce for DmaSections {
    fn enter(&self) {
        self.0.enter();
    }

    fn exit(&self) {
        self.0.exit();
    }

    fn wait(&self) {
        self.0.wait();
    }
}
