//! Page tables for the kinds of IOMMU: which of two stages one is, how large it may grow.

use std::sync::Arc;

use ioasis_iommupt::{Config, Format, PageTable, Quiesce, TableWriter};
use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;

use super::iommu::Iommu;
use super::ops::PagingTable;
use crate::inject::step;

/// Which of two stages a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The only one.
    Single,
    /// The only one, and one that a PASID can have: x86 hardware takes the processor's format
    /// there.
    OfPasid,
    /// The second, below tables of the client's own.
    NestParent,
}

impl Stage {
    /// What HWPT_ALLOC flags ask for. Linux: `intel_iommu_domain_alloc_paging_flags`,
    /// `amd_iommu_domain_alloc_paging_flags`.
    // DIFFERS: Linux takes VT-d's first stage for a HWPT without flags too; a client sees a
    // narrower aperture there.
    fn of(flags: u32) -> Self {
        let has = |flag| flags & flag != 0;
        if has(abi::HWPT_ALLOC_NEST_PARENT) {
            Self::NestParent
        } else if has(abi::HWPT_ALLOC_PASID) && !has(abi::HWPT_ALLOC_DIRTY_TRACKING) {
            Self::OfPasid
        } else {
            Self::Single
        }
    }
}

/// Tables of 4 KiB one domain may have: 4 GiB, which map 2 TiB as single pages. Linux charges them
/// to the client; ours are taken from the supervisor's memory.
pub(crate) const TABLES_MAX: usize = 1 << 20;

/// An empty page table for `iommu`, in the format that `format` chooses for a stage.
///
/// # Errors
///
/// `ENOMEM` without table memory.
pub(crate) fn paging_table(
    iommu: &Iommu,
    flags: u32,
    quiesce: Arc<dyn Quiesce>,
    format: impl FnOnce(Stage, Config) -> Result<Box<dyn TableWriter>>,
) -> Result<PagingTable> {
    step("a domain")?;
    let config = Config {
        tables_max: TABLES_MAX,
        page_sizes: iommu.page_sizes,
        iova_lg2: u64::BITS - iommu.aperture.last().0.leading_zeros(),
        quiesce,
    };
    let writer = format(Stage::of(flags), config)?;
    let aperture = writer.aperture().intersect(iommu.aperture).unwrap_or_else(|| writer.aperture());
    let page_sizes = writer.page_sizes() & iommu.page_sizes;
    Ok(PagingTable { writer, aperture, page_sizes })
}

/// An empty table in format `F`.
///
/// # Errors
///
/// `ENOMEM` without table memory.
pub(crate) fn table<F: Format>(config: Config) -> Result<Box<dyn TableWriter>> {
    let (writer, _) = PageTable::<F>::new(config)?;
    Ok(Box::new(writer))
}

/// Bit `n` set: format `F` has leaves of `1 << n` bytes.
pub(crate) fn sizes<F: Format>() -> u64 {
    (0..=F::TOP_LEVEL).map(F::sizes).fold(0, |all, sizes| all | sizes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hw::iommu::Kind;
    use crate::tests::rig::{ACCOUNT, BASE, RW, TestClient, TestMachine};
    use crate::{Context, HwptFlags, Iova, IovaRange, MapRequest, Place, Segment};

    #[test]
    fn an_amd_vi_translates_the_aperture_it_was_given_up_to_64_bits() {
        for bits in [32, 48, 49, 57, 58, 64] {
            let last = u64::MAX >> (64 - bits);
            let aperture = IovaRange::closed(Iova(0), Iova(last)).unwrap();
            let machine = TestMachine::with(Iommu { aperture, ..Iommu::new(Kind::Amd) });
            let (context, client) = (Context::new(&machine.machine), TestClient::new());
            let bound = context.bind(&machine.endpoint()).unwrap();
            for flags in [HwptFlags::NONE, HwptFlags::DIRTY_TRACKING] {
                let ioas = context.alloc_ioas().unwrap();
                let table = context.alloc_hwpt(ioas, &bound, flags).unwrap();
                if bound.is_attached() { bound.replace(table) } else { bound.attach(table) }
                    .unwrap();
                // Linux leaves out the last page of all (iopt_check_iova): its end is no number.
                let page = (last - 0xfff).min(u64::MAX - 0x1fff);
                let request = |iova| MapRequest {
                    space: Arc::new(client.memory.clone()),
                    address: BASE,
                    length: 0x1000,
                    place: Place::Fixed(Iova(iova)),
                    prot: RW,
                    account: ACCOUNT,
                };
                context.map(ioas, request(page)).unwrap();
                let segment = Segment { iova: Iova(page + 8), length: 4 };
                bound.endpoint().write([segment], b"far!").unwrap();
                let mut seen = [0; 4];
                client.memory.read(BASE + 8, &mut seen).unwrap();
                assert_eq!(&seen, b"far!", "{bits} bits");
                if let Some(beyond) = last.checked_add(1) {
                    assert!(context.map(ioas, request(beyond)).is_err(), "{bits} bits");
                }
            }
        }
    }
}
