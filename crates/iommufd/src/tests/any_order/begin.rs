//! How programs begin, so that what follows goes far.

use ioasis_uapi::iommufd as abi;

use super::model::{PAGE, TABLE_PAGES, TABLES};
use super::step::{Call, Change, OnAccess, Rw, Source, Space, Stage, Step, Table, Type1};
use crate::IommuKind;

/// How many beginnings there are.
pub(super) const BEGINNINGS: usize = 8;

const BOTH: Rw = Rw { read: true, write: true };

fn call(call: Call) -> Step {
    Step::Call { context: 0, call }
}

fn ioas(context: usize) -> Step {
    Step::Call { context, call: Call::IoasAlloc }
}

fn bind(context: usize, device: usize) -> Step {
    Step::Bind { context, device }
}

fn source(page: u64, pages: u64) -> Source {
    Source { space: Space::User(0), offset: page * PAGE, length: pages * PAGE }
}

/// Maps pages of the client at the IOVA that is their offset.
fn map(ioas: u32, page: u64, pages: u64) -> Step {
    let at = Some(page * PAGE);
    call(Call::Map { ioas, source: source(page, pages), at, prot: BOTH })
}

fn hwpt(device: u32, pt: u32, flags: u32, fault: u32, table: Table) -> Step {
    call(Call::HwptAlloc { device, pt, flags, fault, table })
}

fn attach(device: usize, pasid: u32, pt: u32) -> Step {
    Step::Change { device, pasid, pt, change: Change::Attach }
}

/// Beginning number `number`; object ids are those the steps before get.
pub(super) fn beginning(number: usize, kind: IommuKind) -> Vec<Step> {
    match number {
        0 => vec![ioas(0), ioas(0), ioas(1), bind(0, 0), bind(0, 2), bind(1, 3)],
        1 => container(),
        2 | 3 => nested(kind),
        4 => vec![
            ioas(0),
            bind(0, 3),
            call(Call::FaultAlloc),
            map(1, 0, 4),
            hwpt(2, 1, abi::HWPT_FAULT_ID_VALID, 3, Table::None),
            attach(3, 0, 4),
        ],
        5 => vec![
            ioas(0),
            call(Call::VfioSet { ioas: 1 }),
            call(Call::CompatSetIommu { v1: true }),
            call(Call::CompatMap { source: source(0, 12), at: 0, prot: BOTH }),
            bind(0, 0),
            attach(0, 0, 1),
        ],
        6 => {
            let range = (PAGE, 2 * PAGE);
            let access = |access, what| Step::Access { access, what };
            vec![
                ioas(0),
                ioas(0),
                Step::NewAccess { context: 0, pins: true },
                Step::NewAccess { context: 0, pins: false },
                map(1, 0, 8),
                access(0, OnAccess::Attach { ioas: 1 }),
                access(1, OnAccess::Attach { ioas: 1 }),
                access(0, OnAccess::Pin { range, write: true }),
            ]
        }
        _ => {
            let dirty = if kind == IommuKind::Amd { 0 } else { abi::HWPT_ALLOC_DIRTY_TRACKING };
            let flags = abi::HWPT_ALLOC_PASID | dirty;
            vec![
                ioas(0),
                bind(0, 0),
                bind(0, 1),
                map(1, 0, 8),
                hwpt(2, 1, flags, 0, Table::None),
                attach(0, 0, 4),
                attach(0, 1, 4),
                attach(1, 1, 4),
                call(Call::SetTracking { hwpt: 4, on: true }),
            ]
        }
    }
}

fn container() -> Vec<Step> {
    let type1 = Step::Type1;
    vec![
        type1(Type1::AddGroup { group: 0 }),
        type1(Type1::SetIommu { v1: false }),
        type1(Type1::Map { source: source(0, 6), at: 0, prot: BOTH }),
        type1(Type1::AddGroup { group: 2 }),
        type1(Type1::Log { start: true }),
        ioas(0),
        bind(0, 2),
    ]
}

/// A guest with tables of its own.
fn nested(kind: IommuKind) -> Vec<Step> {
    let dirty = if kind == IommuKind::Smmuv3 { 0 } else { abi::HWPT_ALLOC_DIRTY_TRACKING };
    let at = Some(TABLES * PAGE);
    let prot = Rw { read: true, write: false };
    let tables = call(Call::Map { ioas: 1, source: source(TABLES, TABLE_PAGES), at, prot });
    let mut steps = vec![
        ioas(0),
        bind(0, 0),
        map(1, 0, 12),
        // Read-only: the model knows what the tables say, and no device is to change that.
        tables,
        hwpt(2, 1, abi::HWPT_ALLOC_NEST_PARENT | dirty, 0, Table::None),
    ];
    let table = match kind {
        IommuKind::Vtd => {
            steps.extend([hwpt(2, 3, 0, 0, Table::Vtd), attach(0, 0, 4)]);
            return steps;
        }
        IommuKind::Smmuv3 => Table::Smmu(Stage::Translate),
        IommuKind::Amd | IommuKind::Riscv | IommuKind::Spapr | IommuKind::NoIommu => {
            Table::Amd(Stage::Translate)
        }
    };
    steps.extend([
        call(Call::ViommuAlloc { device: 2, hwpt: 3 }),
        call(Call::VdeviceAlloc { viommu: 4, device: 2, virtual_id: 1 }),
        call(Call::VeventqAlloc { viommu: 4, depth: 2 }),
        hwpt(2, 4, 0, 0, table),
        attach(0, 0, 7),
    ]);
    steps
}
