//! Every command with each of its fallible steps failing in turn: what can be seen stays as it was,
//! and then it succeeds.

use ioasis_uapi::Errno;
use ioasis_uapi::iommufd as abi;

use super::KINDS;
use super::begin::beginning;
use super::memories::AllBytes;
use super::model::{CONTEXTS, DEVICES, GROUP_OF, GUEST, PAGE};
use super::perform::errno;
use super::step::{Call, Change, OnAccess, Reply, Rw, Source, Space, Stage, Step, Table, Type1};
use super::system::System;
use crate::account::Charges;
use crate::{IommuKind, inject};

/// Everything that can be seen without changing it.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// Ids and holders of all objects, as text, and what each IOAS has.
    objects: Vec<String>,
    charges: Vec<(u32, Charges)>,
    windows: usize,
    reached: Vec<Reply>,
    attached: Vec<bool>,
    owned: Vec<bool>,
    files: usize,
    memory: AllBytes,
}

impl System {
    fn seen(&self) -> Seen {
        let mut objects = Vec::new();
        for context in 0..CONTEXTS {
            let table = self.context(context).objects();
            objects.push(format!(
                "{:?} {:?}",
                self.context(context).compat_ioas_id().ok(),
                table.ids()
            ));
            for ioas in table.all::<crate::ioas::Ioas>() {
                let ranges = ioas.ranges_in(ioasis_iommupt::IovaRange::ALL);
                objects.push(format!("{ranges:?} {:?} {}", ioas.iova_ranges(), ioas.huge_pages()));
            }
            for id in table.ids() {
                objects
                    .push(table.inspect(id, |object| object.head().holders().to_string()).unwrap());
            }
        }
        let places = || (0..DEVICES).flat_map(|device| [0, 1].map(|pasid| (device, pasid)));
        let pages = (0..14).map(|page| page * PAGE).chain([GUEST, GUEST + 3 * PAGE]);
        let mut reached = Vec::new();
        for iova in pages {
            for (device, pasid) in places() {
                reached.push(self.dma(device, pasid, (iova, 4), false));
            }
        }
        let attached = places().map(|(device, pasid)| {
            self.bound[device].as_ref().is_some_and(|bound| bound.is_pasid_attached(pasid))
        });
        Seen {
            objects,
            charges: self.machine.ledger.processes(),
            windows: self.machine.phys.windows(),
            reached,
            attached: attached.collect(),
            owned: self.groups.iter().map(|group| group.is_owned()).collect(),
            files: self.files.len()
                + self.actors.iter().map(|actor| actor.made.borrow().len()).sum::<usize>(),
            memory: self.memories.bytes(),
        }
    }
}

/// Fails each point of `step` after `before`; how many there are.
fn fail_each_point(kind: IommuKind, before: Vec<Step>, step: &Step) -> u32 {
    let mut system = System::new([kind, kind]);
    for step in before {
        errno(system.apply(&step)).unwrap_or_else(|errno| panic!("{errno:?} from {step:?}"));
    }
    let seen = system.seen();
    let apply = |system: &mut System| errno(system.apply(step));
    let failed = |system: &mut System, nth, answer| {
        assert_eq!(answer, Err(Errno::ENOMEM), "point {nth} of {step:?}");
        assert_eq!(system.seen(), seen, "point {nth} of {step:?}");
        Ok::<_, Errno>(())
    };
    let (answer, points) = inject::fail_each(&mut system, apply, failed).unwrap();
    answer.unwrap_or_else(|errno| panic!("{errno:?} from {step:?}"));
    system.close(u64::from(points)).unwrap();
    points
}

const BOTH: Rw = Rw { read: true, write: true };

fn call(call: Call) -> Step {
    Step::Call { context: 0, call }
}

fn source(space: Space, page: u64, pages: u64) -> Source {
    Source { space, offset: page * PAGE, length: pages * PAGE }
}

fn attach(device: usize, pt: u32) -> Step {
    Step::Change { device, pasid: 0, pt, change: Change::Attach }
}

/// Two IOASes, 1 and 2, devices 0 and 2 as 3 and 4, device 0 attached to 1, which maps 4 pages in
/// two areas.
fn plain() -> Vec<Step> {
    let mut steps = beginning(0, IommuKind::Vtd);
    steps.push(attach(0, 1));
    for (page, at) in [(0, 0), (4, 2)] {
        let source = source(Space::User(0), page, 2);
        steps.push(call(Call::Map { ioas: 1, source, at: Some(at * PAGE), prot: BOTH }));
    }
    steps
}

fn and(mut steps: Vec<Step>, more: impl IntoIterator<Item = Step>) -> Vec<Step> {
    steps.extend(more);
    steps
}

/// A name, what comes before, the step, and the least number of points it must have.
type Row = (&'static str, Vec<Step>, Step, u32);

fn hwpt(device: u32, pt: u32, flags: u32) -> Call {
    Call::HwptAlloc { device, pt, flags, fault: 0, table: Table::None }
}

fn rows_on_address_spaces() -> Vec<Row> {
    let range = (0, 4 * PAGE);
    let mapped = |ioas, space, page| {
        call(Call::Map { ioas, source: source(space, page, 3), at: Some(8 * PAGE), prot: BOTH })
    };
    let anywhere =
        Call::Map { ioas: 1, source: source(Space::User(0), 6, 1), at: None, prot: BOTH };
    let buffer = |ioas, at| {
        let at = Some(at * PAGE);
        call(Call::MapBuffer { ioas, offset: 0, length: 2 * PAGE, at, prot: BOTH })
    };
    let again = Call::Copy { src: 1, range: (0, 2 * PAGE), dst: 1, at: Some(4 * PAGE), prot: BOTH };
    let buffered = and(
        vec![call(Call::IoasAlloc)],
        [buffer(1, 0), Step::Bind { context: 0, device: 0 }, attach(0, 1)],
    );
    let copy = Call::Copy { src: 1, range, dst: 2, at: Some(4 * PAGE), prot: BOTH };
    let filled = and(plain(), [attach(2, 2)]);
    let file = vec![call(Call::IoasAlloc), mapped(1, Space::File, 0)];
    let paid = and(file.clone(), [Step::Bind { context: 0, device: 0 }, attach(0, 1)]);
    let hugeless = vec![call(Call::IoasAlloc), call(Call::HugePages { ioas: 1, set: Some(0) })];
    vec![
        ("IOAS_ALLOC", plain(), call(Call::IoasAlloc), 2),
        ("IOAS_ALLOW_IOVAS", plain(), call(Call::Allow { ioas: 1, ranges: vec![(0, 0xffff)] }), 1),
        ("IOAS_MAP", plain(), mapped(1, Space::User(0), 6), 4),
        ("IOAS_MAP, anywhere", plain(), call(anywhere), 4),
        ("IOAS_MAP, nothing attached", plain(), mapped(2, Space::User(0), 6), 2),
        ("IOAS_MAP_FILE", plain(), mapped(1, Space::File, 0), 5),
        ("IOAS_MAP_FILE of a dma-buf", plain(), buffer(1, 8), 4),
        ("IOAS_COPY of a dma-buf", buffered, call(again), 2),
        ("IOAS_COPY", plain(), call(copy.clone()), 2),
        ("IOAS_COPY of two areas, filled", filled, call(copy), 4),
        ("IOAS_UNMAP", plain(), call(Call::Unmap { ioas: 1, range }), 0),
        ("IOAS_IOVA_RANGES", plain(), call(Call::Ranges { ioas: 1, room: 8 }), 0),
        ("IOAS_CHANGE_PROCESS", paid, call(Call::ChangeProcess), 2),
        ("OPTION, huge pages", plain(), call(Call::HugePages { ioas: 2, set: Some(0) }), 0),
        ("OPTION, limit", vec![], call(Call::RlimitMode { set: Some(1) }), 0),
        ("VFIO_IOAS", plain(), call(Call::VfioSet { ioas: 2 }), 0),
        ("DESTROY", hugeless, call(Call::Destroy { id: 1 }), 0),
        (
            "DESTROY of a page table",
            and(plain(), [call(hwpt(4, 1, 0))]),
            call(Call::Destroy { id: 6 }),
            0,
        ),
    ]
}

fn rows_on_page_tables() -> Vec<Row> {
    let dirty = abi::HWPT_ALLOC_DIRTY_TRACKING;
    let tracked = and(plain(), [call(hwpt(4, 1, dirty))]);
    let bitmap = Call::GetBitmap { hwpt: 6, range: (0, 4 * PAGE), page_lg2: 12, keep: false };
    let other = and(
        plain(),
        [call(Call::Map {
            ioas: 2,
            source: source(Space::User(0), 9, 2),
            at: Some(PAGE),
            prot: BOTH,
        })],
    );
    let change = |device, pasid, pt, change| Step::Change { device, pasid, pt, change };
    let pasid = abi::HWPT_ALLOC_PASID;
    let pasids = and(
        vec![call(Call::IoasAlloc), Step::Bind { context: 0, device: 0 }],
        [call(hwpt(2, 1, pasid)), call(hwpt(2, 1, pasid)), change(0, 0, 3, Change::Attach)],
    );
    let twice = and(pasids.clone(), [change(0, 1, 3, Change::Attach)]);
    vec![
        ("HWPT_ALLOC, empty", plain(), call(hwpt(4, 2, 0)), 4),
        (
            "HWPT_ALLOC, filled first",
            and(other.clone(), [Step::Detach { device: 0, pasid: 0 }]),
            call(hwpt(4, 1, 0)),
            8,
        ),
        ("HWPT_ALLOC, filled again", plain(), call(hwpt(4, 1, abi::HWPT_ALLOC_NEST_PARENT)), 6),
        (
            "HWPT_SET_DIRTY_TRACKING",
            tracked.clone(),
            call(Call::SetTracking { hwpt: 6, on: true }),
            0,
        ),
        ("HWPT_GET_DIRTY_BITMAP", tracked, call(bitmap), 0),
        ("GET_HW_INFO", plain(), call(Call::HwInfo { device: 4 }), 0),
        ("FAULT_QUEUE_ALLOC", plain(), call(Call::FaultAlloc), 2),
        ("bind", plain(), Step::Bind { context: 0, device: 1 }, 2),
        ("attach to an IOAS", other.clone(), attach(2, 2), 6),
        ("attach to an IOAS that has a page table", plain(), attach(2, 1), 1),
        (
            "attach of a second device",
            and(plain(), [Step::Bind { context: 0, device: 1 }]),
            attach(1, 1),
            1,
        ),
        ("attach to a HWPT", and(plain(), [call(hwpt(4, 1, 0))]), attach(2, 6), 1),
        ("attach of a PASID", pasids, change(0, 1, 4, Change::Attach), 1),
        ("replace by an IOAS", other, change(0, 0, 2, Change::Replace), 6),
        (
            "replace by a HWPT",
            and(plain(), [call(hwpt(4, 2, 0))]),
            change(0, 0, 6, Change::Replace),
            1,
        ),
        ("replace of a PASID", twice, change(0, 1, 4, Change::Replace), 1),
        ("detach", plain(), Step::Detach { device: 0, pasid: 0 }, 0),
        ("unbind", plain(), Step::Unbind { device: 0 }, 0),
    ]
}

fn rows_on_accesses() -> Vec<Row> {
    let begun = beginning(6, IommuKind::Vtd);
    let access = |what| Step::Access { access: 0, what };
    let pin = access(OnAccess::Pin { range: (4 * PAGE, 3 * PAGE), write: true });
    let fresh = and(begun.clone(), [Step::NewAccess { context: 0, pins: true }]);
    let unpin = access(OnAccess::Unpin { range: (PAGE, 2 * PAGE) });
    let read = Step::Access { access: 1, what: OnAccess::Read { range: (5 * PAGE - 8, 16) } };
    vec![
        ("create an access", begun.clone(), Step::NewAccess { context: 0, pins: true }, 1),
        (
            "attach an access",
            fresh,
            Step::Access { access: 2, what: OnAccess::Attach { ioas: 2 } },
            1,
        ),
        ("replace an access", begun.clone(), access(OnAccess::Replace { ioas: 1 }), 1),
        ("pin", begun.clone(), pin, 2),
        ("unpin", begun.clone(), unpin, 0),
        ("read what is not pinned", begun.clone(), read, 1),
        ("detach an access", begun.clone(), access(OnAccess::Detach), 0),
        ("destroy an access", begun, access(OnAccess::Drop), 0),
    ]
}

fn rows_on_containers() -> Vec<Row> {
    let begun = beginning(1, IommuKind::Vtd);
    let type1 = Step::Type1;
    let group = |group| type1(Type1::AddGroup { group });
    let map = type1(Type1::Map { source: source(Space::User(0), 8, 2), at: 9 * PAGE, prot: BOTH });
    let range = (0, 6 * PAGE);
    let full = and(
        vec![call(Call::IoasAlloc), call(Call::VfioSet { ioas: 1 })],
        [
            call(Call::CompatSetIommu { v1: true }),
            call(Call::CompatMap { source: source(Space::User(0), 0, 6), at: 0, prot: BOTH }),
            Step::Bind { context: 0, device: 0 },
            attach(0, 1),
        ],
    );
    let compat_map =
        Call::CompatMap { source: source(Space::User(0), 8, 2), at: 8 * PAGE, prot: BOTH };
    let cut = Call::CompatUnmap { range: (4 * PAGE, 2 * PAGE), all: false };
    vec![
        ("SET_IOMMU", vec![group(0), group(2)], type1(Type1::SetIommu { v1: false }), 4),
        (
            "a group's own table",
            vec![group(0), type1(Type1::SetIommu { v1: false }), map.clone()],
            group(2),
            4,
        ),
        (
            "a group that follows",
            vec![group(0), type1(Type1::SetIommu { v1: false }), map.clone()],
            group(1),
            1,
        ),
        ("MAP_DMA", begun.clone(), map, 4),
        ("UNMAP_DMA", begun.clone(), type1(Type1::Unmap { range, all: false }), 0),
        ("IOMMU_GET_INFO", begun.clone(), type1(Type1::Info), 0),
        ("DIRTY_PAGES, stop", begun.clone(), type1(Type1::Log { start: false }), 0),
        ("DIRTY_PAGES, get", begun.clone(), type1(Type1::GetLog { range }), 0),
        (
            "DIRTY_PAGES, start",
            and(begun.clone(), [type1(Type1::Log { start: false })]),
            type1(Type1::Log { start: true }),
            1,
        ),
        ("leaving a group", begun, type1(Type1::RemoveGroup { group: 0 }), 0),
        ("compatible SET_IOMMU", full.clone(), call(Call::CompatSetIommu { v1: false }), 0),
        ("compatible MAP_DMA", full.clone(), call(compat_map), 5),
        ("compatible UNMAP_DMA that cuts", full.clone(), call(cut), 2),
        ("compatible IOMMU_GET_INFO", full, call(Call::CompatInfo), 0),
    ]
}

/// What comes before a guest's table is attached, and what may follow.
fn rows_on_guests(kind: IommuKind) -> Vec<Row> {
    let begun = beginning(2, kind);
    let parent = begun[..5].to_vec();
    if kind == IommuKind::Vtd {
        let nested = Call::HwptAlloc { device: 2, pt: 3, flags: 0, fault: 0, table: Table::Vtd };
        let invalidate = call(Call::Invalidate { id: 4, everything: true });
        return vec![
            ("HWPT_ALLOC, nested", parent.clone(), call(nested), 2),
            ("attach to a nested HWPT", begun[..6].to_vec(), attach(0, 4), 1),
            ("HWPT_INVALIDATE", begun, invalidate, 0),
        ];
    }
    let smmu = kind == IommuKind::Smmuv3;
    let table = if smmu { Table::Smmu(Stage::Translate) } else { Table::Amd(Stage::Translate) };
    let nested = Call::HwptAlloc { device: 2, pt: 4, flags: 0, fault: 0, table };
    let vdevice = Call::VdeviceAlloc { viommu: 4, device: 2, virtual_id: 1 };
    vec![
        ("VIOMMU_ALLOC", parent, call(Call::ViommuAlloc { device: 2, hwpt: 3 }), 1),
        ("VDEVICE_ALLOC", begun[..6].to_vec(), call(vdevice), 2),
        ("VEVENTQ_ALLOC", begun[..7].to_vec(), call(Call::VeventqAlloc { viommu: 4, depth: 2 }), 2),
        ("HWPT_ALLOC, in a virtual IOMMU", begun[..8].to_vec(), call(nested), 2),
        ("attach to a guest's table", begun[..9].to_vec(), attach(0, 7), 1),
        ("unbind under a virtual IOMMU", begun, Step::Unbind { device: 0 }, 0),
    ]
}

fn fail_all(kind: IommuKind, rows: Vec<Row>) {
    for (name, before, step, least) in rows {
        println!("{kind:?}: {name}");
        let points = fail_each_point(kind, before, &step);
        assert!(points >= least, "{name} has {points} points that fail, {least} were known");
    }
}

#[test]
fn every_failed_step_on_an_address_space_leaves_everything_as_it_was() {
    KINDS.into_iter().for_each(|kind| fail_all(kind, rows_on_address_spaces()));
}

#[test]
fn every_failed_step_on_a_page_table_leaves_everything_as_it_was() {
    KINDS.into_iter().for_each(|kind| fail_all(kind, rows_on_page_tables()));
}

#[test]
fn every_failed_step_of_an_access_leaves_everything_as_it_was() {
    fail_all(IommuKind::Vtd, rows_on_accesses());
}

#[test]
fn every_failed_step_of_a_container_leaves_everything_as_it_was() {
    KINDS.into_iter().for_each(|kind| fail_all(kind, rows_on_containers()));
}

#[test]
fn every_failed_step_of_a_guests_iommu_leaves_everything_as_it_was() {
    for kind in [IommuKind::Vtd, IommuKind::Smmuv3, IommuKind::Amd] {
        fail_all(kind, rows_on_guests(kind));
    }
}

/// How a device is attached says how the group's hardware is.
#[test]
fn a_failed_replacement_leaves_the_whole_group_where_it_was() {
    let before = and(plain(), [Step::Bind { context: 0, device: 1 }, attach(1, 1)]);
    assert_eq!(GROUP_OF[0], GROUP_OF[1]);
    let step = Step::Change { device: 1, pasid: 0, pt: 2, change: Change::Replace };
    assert!(fail_each_point(IommuKind::Vtd, before, &step) >= 4);
}
