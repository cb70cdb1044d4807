//! Commands that race for the same objects, under many schedules of their threads.
//!
//! The threads take turns at locks and at the words of page tables. DMA is not among them: its
//! sections belong to threads of the system, and all of these are one.

use std::sync::Arc;

use ioasis_iommupt::{Iova, IovaRange, Prot};
use ioasis_sys::sync::thread;
use ioasis_uapi::iommufd as abi;
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::tests::rig::{ACCOUNT, BASE, Buffer, RW, TestClient, TestMachine};
use crate::{
    AccessHandle, AccessKind, AccessUser, AddressSpace, Bound, Context, CopyRequest, HwptFlags,
    Iommu, IommuKind, MapRequest, Place,
};

const PAGE: u64 = 4096;
/// Schedules of each test, unless `IOASIS_SEQUENCES` says how many.
const SCHEDULES: usize = 1000;

/// Runs `test` under as many schedules: half of them at random, half with few preemptions at the
/// most telling places.
pub(crate) fn check(test: fn()) {
    let count = std::env::var("IOASIS_SEQUENCES");
    let half = count.map_or(SCHEDULES, |count| count.parse().expect("a number")).div_ceil(2);
    let schedulers: [Box<dyn Scheduler + Send>; 2] =
        [Box::new(RandomScheduler::new(half)), Box::new(PctScheduler::new(3, half))];
    for scheduler in schedulers {
        let mut config = shuttle::Config::new();
        // Calls that decode and walk do not fit the default of 32 KiB.
        config.stack_size = 1 << 20;
        shuttle::Runner::new(scheduler, config).run(test);
    }
}

fn map(context: &Context, ioas: u32, space: Arc<dyn AddressSpace>, iova: u64) -> bool {
    let address = if space.kind() == crate::Kind::User { BASE } else { 0 };
    let request = MapRequest {
        space,
        address,
        length: PAGE,
        place: Place::Fixed(Iova(iova)),
        prot: RW,
        account: ACCOUNT,
    };
    context.map(ioas, request).is_ok()
}

fn page(iova: u64) -> IovaRange {
    IovaRange::new(Iova(iova), PAGE).unwrap()
}

fn unmap(context: &Context, ioas: u32, iova: u64) -> bool {
    context.unmap(ioas, page(iova), 1).is_ok_and(|unmapped| unmapped.result.is_ok())
}

fn call<T>(context: &Arc<Context>, ioctl: u32, mut cmd: T) -> Option<T>
where
    T: FromBytes + IntoBytes + Immutable,
{
    TestClient::new().call(context, ioctl, &mut cmd).ok().map(|_| cmd)
}

fn destroy(context: &Arc<Context>, id: u32) -> bool {
    call(context, abi::DESTROY, abi::Destroy { size: 8, id }).is_some()
}

/// What one thread does, whatever comes of it.
fn part<R>(does: impl FnOnce() -> R + Send + 'static) -> Box<dyn FnOnce() + Send> {
    Box::new(move || {
        does();
    })
}

/// Runs `parts` side by side.
fn together(parts: Vec<Box<dyn FnOnce() + Send>>) {
    let threads: Vec<_> = parts.into_iter().map(|part| thread::spawn(part)).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn a_virtual_device_is_made_destroyed_and_unbound_in_any_schedule() {
    check(|| {
        let machine = TestMachine::with(Iommu::new(IommuKind::Smmuv3));
        let context = Context::new(&machine.machine);
        let bound = context.bind(&machine.endpoint()).unwrap();
        let (dev_id, ioas) = (bound.id(), context.alloc_ioas().unwrap());
        let flags = abi::HWPT_ALLOC_NEST_PARENT;
        let cmd = abi::HwptAlloc { size: 48, flags, dev_id, pt_id: ioas, ..Default::default() };
        let hwpt_id = call(&context, abi::HWPT_ALLOC, cmd).unwrap().out_hwpt_id;
        let type_ = abi::VIOMMU_TYPE_ARM_SMMUV3;
        let cmd = abi::ViommuAlloc { size: 40, type_, dev_id, hwpt_id, ..Default::default() };
        let viommu_id = call(&context, abi::VIOMMU_ALLOC, cmd).unwrap().out_viommu_id;
        let [one, other, last] = [0, 1, 2].map(|_| Arc::clone(&context));
        together(vec![
            part(move || {
                let cmd = abi::VdeviceAlloc {
                    size: 24,
                    viommu_id,
                    dev_id,
                    out_vdevice_id: 0,
                    virt_id: 1,
                };
                if let Some(made) = call(&one, abi::VDEVICE_ALLOC, cmd) {
                    destroy(&one, made.out_vdevice_id);
                }
            }),
            part(move || {
                // Whatever has an id by now.
                destroy(&other, 5);
                other.alloc_ioas().unwrap();
            }),
            part(move || {
                drop(bound);
                last.alloc_ioas().unwrap();
            }),
        ]);
        let ioases = context.objects().all::<crate::ioas::Ioas>().len();
        assert!(ioases >= 2, "nobody destroys what others have just made: {ioases}");
        assert!(destroy(&context, viommu_id), "no virtual device is left");
        drop(context);
        machine.assert_clean();
    });
}

#[test]
fn the_last_detach_meets_destroy_attach_and_alloc_in_any_schedule() {
    check(|| {
        let (machine, client) = (TestMachine::new(), TestClient::new());
        let context = Context::new(&machine.machine);
        let ioas = context.alloc_ioas().unwrap();
        let [leaving, coming]: [Bound; 2] =
            [0, 1].map(|_| context.bind(&machine.endpoint()).unwrap());
        let automatic = leaving.attach(ioas).unwrap();
        assert!(map(&context, ioas, Arc::new(client.memory.clone()), PAGE));
        let [one, other] = [0, 1].map(|_| Arc::clone(&context));
        let coming = Arc::new(coming);
        let attached = Arc::clone(&coming);
        together(vec![
            part(move || leaving),
            part(move || destroy(&one, automatic)),
            part(move || attached.attach(ioas).unwrap()),
            part(move || {
                let made = other.alloc_ioas().unwrap();
                // The id of what the last detach took along is given out again, and somebody else
                // destroys that.
                assert!(destroy(&other, made) || made == automatic, "it is nobody else's");
            }),
        ]);
        assert!(coming.is_attached());
        assert!(!destroy(&context, ioas), "a device is attached to it");
        // What the device translates through is what the IOAS fills.
        let domain = &coming.endpoint().attachment(0).unwrap().domain;
        let reaches = || domain.reader().translate(Iova(PAGE), 1, Prot::READ).is_ok();
        assert!(reaches());
        assert!(unmap(&context, ioas, PAGE));
        assert!(!reaches());
        drop((coming, context));
        machine.assert_clean();
    });
}

#[test]
fn maps_copies_and_page_tables_of_two_address_spaces_in_any_schedule() {
    check(|| {
        let (machine, client) = (TestMachine::new(), TestClient::new());
        let context = Context::new(&machine.machine);
        let ioases = [0, 1].map(|_| context.alloc_ioas().unwrap());
        let bound = Arc::new(context.bind(&machine.endpoint()).unwrap());
        let memory: Arc<dyn AddressSpace> = Arc::new(client.memory.clone());
        let copy = move |context: &Context, from: usize| {
            let place = Place::Fixed(Iova(PAGE));
            let (source, range) = (ioases[from], page(PAGE));
            let copy = CopyRequest { source, range, place, prot: Prot::READ };
            let _refused_where_something_is = context.copy(ioases[1 - from], copy);
        };
        let [one, two, three] = [0, 1, 2].map(|_| Arc::clone(&context));
        let device = Arc::clone(&bound);
        together(vec![
            part(move || {
                map(&one, ioases[0], memory, PAGE);
                copy(&one, 0);
                unmap(&one, ioases[0], PAGE);
            }),
            part(move || {
                copy(&two, 1);
                copy(&two, 0);
                unmap(&two, ioases[1], PAGE);
            }),
            part(move || {
                let hwpt = three.alloc_hwpt(ioases[0], &device, HwptFlags::NONE);
                device.attach(ioases[1]).unwrap();
                device.replace(ioases[0]).unwrap();
                destroy(&three, hwpt.unwrap());
                device.detach();
            }),
        ]);
        drop((bound, context));
        machine.assert_clean();
    });
}

/// Lets go of one pin when it is told so.
#[derive(Debug, Default)]
struct Pinner(std::sync::OnceLock<std::sync::Weak<AccessHandle>>);

impl AccessUser for Pinner {
    fn unmap(&self, _range: IovaRange) {
        if let Some(access) = self.0.get().and_then(std::sync::Weak::upgrade) {
            let _not_pinned = access.unpin(Iova(PAGE), PAGE);
        }
    }
}

#[test]
fn an_access_pins_while_its_address_space_changes_in_any_schedule() {
    check(|| {
        let (machine, client) = (TestMachine::new(), TestClient::new());
        let context = Context::new(&machine.machine);
        let ioases = [0, 1].map(|_| context.alloc_ioas().unwrap());
        let pinner = Arc::new(Pinner::default());
        let kind = AccessKind::Pins(Arc::clone(&pinner) as _);
        let access = Arc::new(context.create_access(kind).unwrap());
        pinner.0.set(Arc::downgrade(&access)).unwrap();
        access.attach(ioases[0]).unwrap();
        assert!(map(&context, ioases[0], Arc::new(client.memory.clone()), PAGE));
        let [one, two] = [0, 1].map(|_| Arc::clone(&access));
        let other = Arc::clone(&context);
        together(vec![
            part(move || one.pin(Iova(PAGE), PAGE, Prot::READ)),
            part(move || unmap(&other, ioases[0], PAGE)),
            part(move || two.replace(ioases[1])),
        ]);
        access.detach();
        unmap(&context, ioases[0], PAGE);
        drop(access);
        drop(context);
        machine.assert_clean();
    });
}

#[test]
fn a_buffer_is_revoked_while_it_is_mapped_and_copied_in_any_schedule() {
    check(|| {
        let (machine, client) = (TestMachine::new(), TestClient::new());
        let context = Context::new(&machine.machine);
        let ioases = [0, 1].map(|_| context.alloc_ioas().unwrap());
        let devices = ioases.map(|ioas| {
            let bound = context.bind(&machine.endpoint()).unwrap();
            bound.attach(ioas).unwrap();
            bound
        });
        let buffer = Buffer::new(&client.memory);
        assert!(map(&context, ioases[0], Arc::clone(&buffer) as _, PAGE));
        let [one, two] = [0, 1].map(|_| Arc::clone(&context));
        let (mapped, revoked) = (Arc::clone(&buffer), Arc::clone(&buffer));
        together(vec![
            part(move || map(&one, ioases[1], mapped, 2 * PAGE)),
            part(move || {
                let place = Place::Fixed(Iova(PAGE));
                let (source, range) = (ioases[0], page(PAGE));
                two.copy(ioases[1], CopyRequest { source, range, place, prot: RW }).is_ok()
            }),
            Box::new(move || revoked.revoke()),
        ]);
        for (device, iova) in [(0, PAGE), (1, PAGE), (1, 2 * PAGE)] {
            let domain = &devices[device].endpoint().attachment(0).unwrap().domain;
            let reached = domain.reader().translate(Iova(iova), 1, Prot::READ);
            assert!(reached.is_err(), "device {device} at {iova:#x}");
        }
        drop((devices, context));
        machine.assert_clean();
    });
}
