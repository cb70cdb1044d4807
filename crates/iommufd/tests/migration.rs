//! Migration by a program that knows the library only: no write of a device is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ioasis_iommufd::{
    Account, Context, Dirty, Endpoint, EndpointConfig, Group, HwptFlags, Iommu, IommuKind, Iova,
    IovaRange, Machine, MapRequest, Memory, PAGE_SIZE, Place, Prot, Segment,
};

const PAGES: u64 = 64;
const PAGE: usize = 4096;
const RAM: u64 = PAGES * PAGE_SIZE;
const BYTES: usize = 64 * PAGE;
const DEVICES: u64 = 2;

fn device(group: &Arc<Group>) -> Arc<Endpoint> {
    let config =
        EndpointConfig { name: "device".into(), requester_id: 0, ..EndpointConfig::default() };
    Endpoint::new(group, config)
}

fn copy(from: &Memory, to: &Memory, range: IovaRange) {
    let mut page = [0; PAGE];
    for at in (range.start().0..=range.last().0).step_by(PAGE) {
        from.read(at, &mut page).unwrap();
        to.write(at, &page).unwrap();
    }
}

/// Devices write while their memory is moved; the copy is the original when they have stopped.
fn migrate(kind: IommuKind, huge: bool) {
    let machine = Machine::new();
    let iommu = Arc::new(Iommu::new(kind));
    let group = Group::new(&machine, &iommu, 0);
    let devices = [(); 2].map(|()| device(&group));
    let context = Context::new(&machine);
    let ioas = context.alloc_ioas().unwrap();
    context.set_huge_pages(ioas, huge).unwrap();
    let memory = Arc::new(Memory::new(0, BYTES).unwrap());
    let account = Account {
        pid: 1,
        uid: 0,
        memlock_pages: None,
        ipc_lock: false,
        sys_resource: false,
        sys_rawio: false,
    };
    let (place, prot) = (Place::Fixed(Iova(0)), Prot::READ | Prot::WRITE);
    let space = Arc::clone(&memory) as _;
    let request = MapRequest { space, address: 0, length: RAM, place, prot, account };
    context.map(ioas, request).unwrap();
    let bound = devices.each_ref().map(|device| context.bind(device).unwrap());
    let table = context.alloc_hwpt(ioas, &bound[0], HwptFlags::DIRTY_TRACKING).unwrap();
    bound.iter().for_each(|bound| assert_eq!(bound.attach(table), Ok(table)));

    let all = IovaRange::new(Iova(0), RAM).unwrap();
    let moved = Memory::new(0, BYTES).unwrap();
    let dirty = || {
        let mut ranges = Vec::new();
        context.read_dirty(table, all, Dirty::Clear, &mut |range| ranges.push(range)).unwrap();
        ranges
    };
    context.start_dirty_tracking(table).unwrap();
    let moving = AtomicBool::new(true);
    std::thread::scope(|scope| {
        for (number, device) in (0..).zip(&devices) {
            let moving = &moving;
            scope.spawn(move || {
                let mut sent: u64 = 0;
                while moving.load(Ordering::Acquire) {
                    // Each has its own half of every page; pages come in an order of their own.
                    let page = sent.wrapping_mul(0x9e37_79b9_7f4a_7c15) % PAGES;
                    let iova = Iova(page * PAGE_SIZE + number * (PAGE_SIZE / DEVICES));
                    let segment = Segment { iova, length: 8 };
                    device.write([segment], &sent.to_le_bytes()).unwrap();
                    sent += 1;
                }
            });
        }
        copy(&memory, &moved, all);
        for _ in 0..16 {
            dirty().into_iter().for_each(|range| copy(&memory, &moved, range));
        }
        moving.store(false, Ordering::Release);
    });
    dirty().into_iter().for_each(|range| copy(&memory, &moved, range));
    assert_eq!(dirty(), [], "devices are still");
    let (mut here, mut there) = (vec![0; BYTES], vec![0; BYTES]);
    memory.read(0, &mut here).unwrap();
    moved.read(0, &mut there).unwrap();
    let lost = here.chunks(PAGE).zip(there.chunks(PAGE)).position(|(here, there)| here != there);
    assert_eq!(lost, None, "{kind:?}, huge {huge}: a page of the copy is not the original");
}

#[test]
fn no_write_is_lost_while_memory_is_moved_on_any_format() {
    for kind in [IommuKind::Vtd, IommuKind::Amd, IommuKind::Smmuv3, IommuKind::Riscv] {
        for huge in [false, true] {
            migrate(kind, huge);
        }
    }
}
