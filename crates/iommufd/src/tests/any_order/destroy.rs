//! Everything destroyed in every order: busy while something uses it, and nothing left at the end.

use std::collections::BTreeMap;

use ioasis_uapi::Errno;

use super::begin::beginning;
use super::model::{CONTEXTS, Model, PAGE};
use super::perform::errno;
use super::step::{Call, OnAccess, Range, Rw, Source, Space, Step};
use super::system::System;
use crate::IommuKind;

fn call(call: Call) -> Step {
    Step::Call { context: 0, call }
}

fn destroy(id: u32) -> Vec<Step> {
    vec![call(Call::Destroy { id })]
}

/// An item of what is to go: steps of which the last counts, and those before may have been done.
type Item = Vec<Step>;

/// Calls `each` with every order of `items`.
fn every_order(items: &mut Vec<usize>, from: usize, each: &mut impl FnMut(&[usize])) {
    if from == items.len() {
        return each(items);
    }
    for other in from..items.len() {
        items.swap(from, other);
        every_order(items, from + 1, each);
        items.swap(from, other);
    }
}

/// Does a step on both; the answer they agree on.
fn both(system: &mut System, model: &mut Model, step: &Step, order: &[usize]) -> Result<(), Errno> {
    let answer = errno(system.apply(step));
    let expected = model.apply(step, &answer);
    assert_eq!(answer, expected, "{step:?} in the order {order:?}");
    answer.map(|_| ())
}

/// Takes the items in this order, again and again until none is busy any more.
fn take(kind: IommuKind, before: &[Step], items: &[Item], order: &[usize]) {
    let mut system = System::empty([kind; 2]);
    let mut model = Model::new([kind; 2], BTreeMap::new());
    for step in before {
        both(&mut system, &mut model, step, order).unwrap();
    }
    let mut left: Vec<usize> = order.to_vec();
    let mut done_before = vec![0; items.len()];
    while !left.is_empty() {
        let count = left.len();
        left.retain(|&item| {
            while let Some(step) = items[item].get(done_before[item]) {
                match both(&mut system, &mut model, step, order) {
                    Ok(()) => done_before[item] += 1,
                    // An unbound device takes its virtual device along.
                    Err(Errno::ENOENT) => return false,
                    Err(errno) => {
                        assert_eq!(errno, Errno::EBUSY, "{step:?} in the order {order:?}");
                        return true;
                    }
                }
            }
            false
        });
        assert!(left.len() < count, "items {left:?} are busy for ever in the order {order:?}");
    }
    for context in 0..CONTEXTS {
        assert_eq!(system.context(context).objects().ids(), [], "in the order {order:?}");
    }
    assert_eq!(system.machine.ledger.processes(), [], "in the order {order:?}");
    system.close(0).unwrap();
}

fn take_in_every_order(kind: IommuKind, before: &[Step], items: &[Item]) {
    let mut orders = 0;
    let mut indices: Vec<usize> = (0..items.len()).collect();
    every_order(&mut indices, 0, &mut |order| {
        take(kind, before, items, order);
        orders += 1;
    });
    assert_eq!(orders, (1..=items.len()).product::<usize>());
}

#[test]
fn a_guests_iommu_is_destroyed_in_every_order() {
    let before = beginning(2, IommuKind::Smmuv3);
    let queue = [vec![Step::CloseFile { file: 0 }], destroy(6)].concat();
    let items = [1, 3, 4, 5, 7].map(destroy);
    let mut items = items.to_vec();
    items.extend([queue, vec![Step::Unbind { device: 0 }]]);
    take_in_every_order(IommuKind::Smmuv3, &before, &items);
}

#[test]
fn a_nested_table_an_access_and_its_address_spaces_are_destroyed_in_every_order() {
    let mut before = beginning(2, IommuKind::Vtd);
    let range: Range = (0, 2 * PAGE);
    let prot = Rw { read: true, write: false };
    before.extend([
        Step::NewAccess { context: 0, pins: true },
        Step::Access { access: 0, what: OnAccess::Attach { ioas: 1 } },
        Step::Access { access: 0, what: OnAccess::Pin { range, write: true } },
        call(Call::IoasAlloc),
        call(Call::Copy { src: 1, range, dst: 6, at: Some(0), prot }),
    ]);
    let mut items = [1, 3, 4, 6].map(destroy).to_vec();
    items.push(vec![Step::Access { access: 0, what: OnAccess::Drop }]);
    items.push(vec![Step::Unbind { device: 0 }]);
    take_in_every_order(IommuKind::Vtd, &before, &items);
}

#[test]
fn a_fault_queue_its_table_and_devices_of_two_groups_are_destroyed_in_every_order() {
    let mut before = beginning(4, IommuKind::Riscv);
    let source = Source { space: Space::File, offset: 0, length: PAGE };
    let prot = Rw { read: true, write: true };
    let change = super::step::Change::Attach;
    before.extend([
        Step::Bind { context: 0, device: 0 },
        Step::Change { device: 0, pasid: 0, pt: 1, change },
        call(Call::Map { ioas: 1, source, at: Some(9 * PAGE), prot }),
        call(Call::VfioSet { ioas: 1 }),
    ]);
    let queue = [vec![Step::CloseFile { file: 0 }], destroy(3)].concat();
    let mut items = [1, 4].map(destroy).to_vec();
    items.extend([queue, vec![Step::Unbind { device: 0 }], vec![Step::Unbind { device: 3 }]]);
    // The automatic page table of device 0 cannot be destroyed, and goes with the device.
    items.push(destroy(6));
    take_in_every_order(IommuKind::Riscv, &before, &items);
}
