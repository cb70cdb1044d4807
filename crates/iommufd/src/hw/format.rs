//! Which page-table format an IOMMU walks.

use std::sync::Arc;

use ioasis_iommupt::fmt::{AmdV1, AmdV2, ArmS1, ArmS2, Sv48, Sv48x4, VtdFs, VtdSs};
use ioasis_iommupt::{Config, Format, PageTable, Quiesce, TableWriter};
use ioasis_uapi::Result;

use crate::hw::iommu::{Iommu, Kind};

/// Which of two stages a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The only one.
    Single,
    /// The only one, and one that a PASID can have: x86 hardware takes the processor's format there.
    OfPasid,
    /// The second, below tables of the client's own.
    NestParent,
}

/// An empty page table in the format Linux would choose for `iommu`.
pub(crate) fn make_table(
    iommu: &Iommu,
    stage: Stage,
    quiesce: Arc<dyn Quiesce>,
) -> Result<Box<dyn TableWriter>> {
    let config = Config {
        tables_max: TABLES_MAX,
        page_sizes: iommu.page_sizes,
        iova_lg2: u64::BITS - iommu.aperture.last().0.leading_zeros(),
        quiesce,
    };
    match (iommu.kind, stage) {
        (Kind::Vtd, Stage::OfPasid) => table::<VtdFs>(config),
        (Kind::Vtd, _) => table::<VtdSs>(config),
        (Kind::Amd, Stage::OfPasid) => table::<AmdV2>(config),
        // 2.2.3: as many levels as the IOVAs need; five translate 57 bits, six all 64.
        (Kind::Amd, _) => match config.iova_lg2 {
            ..=48 => table::<AmdV1>(config),
            49..=57 => table::<AmdV1<5>>(config),
            _ => table::<AmdV1<6>>(config),
        },
        (Kind::Smmuv3, Stage::NestParent) => table::<ArmS2>(config),
        (Kind::Smmuv3, _) => table::<ArmS1>(config),
        (Kind::Riscv, Stage::NestParent) => table::<Sv48x4>(config),
        (Kind::Riscv, _) => table::<Sv48>(config),
    }
}

/// Bit `n` set: tables of this kind can have leaves of `1 << n` bytes.
pub(crate) fn page_sizes(kind: Kind) -> u64 {
    match kind {
        Kind::Vtd => sizes::<VtdSs>(),
        Kind::Amd => sizes::<AmdV1>(),
        Kind::Smmuv3 => sizes::<ArmS1>() & sizes::<ArmS2>(),
        Kind::Riscv => sizes::<Sv48>() & sizes::<Sv48x4>(),
    }
}

fn sizes<F: Format>() -> u64 {
    (0..=F::TOP_LEVEL).map(F::sizes).fold(0, |all, sizes| all | sizes)
}

fn table<F: Format>(config: Config) -> Result<Box<dyn TableWriter>> {
    let (writer, _) = PageTable::<F>::new(config)?;
    Ok(Box::new(writer))
}

/// Tables of 4 KiB one domain may have: 4 GiB, which map 2 TiB as single pages. Linux charges them to the client; ours
/// are taken from the supervisor's memory.
const TABLES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
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
