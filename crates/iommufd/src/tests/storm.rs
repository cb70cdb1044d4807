//! Eight threads that issue any command while four devices do DMA.
//!
//! Every page of memory holds one word over and over, and never another while it can be reached: a
//! device that reads a mixture has seen a torn mapping, and one that reads `GONE`, or changes what
//! holds it, used a page after its unmap had returned.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use ioasis_iommupt::{Iova, IovaRange, Prot};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::iommufd as abi;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::tests::rig::{ARG, BASE, TestClient, TestMachine};
use crate::{
    AccessHandle, AccessKind, AccessUser, Bound, Context, Endpoint, Iommu, IommuKind, Segment,
};

const PAGE: u64 = 4096;
const THREADS: u64 = 8;
const DEVICES: usize = 4;
/// What a page holds that nobody may reach.
const GONE: u64 = 0xdead_dead_dead_dead;
/// What devices write.
const WRITTEN: u64 = 0xaaaa_aaaa_aaaa_aaaa;

fn word_of(page: u64) -> u64 {
    0x0101_0101_0101_0101 * (page + 1)
}

/// Numbers for one thread.
struct Random(u64);

impl Random {
    fn below(&mut self, count: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % count
    }
}

/// What all threads share.
struct Storm {
    machine: TestMachineParts,
    context: Arc<Context>,
    ioases: [u32; 2],
    bound: [Mutex<Option<Bound>>; DEVICES],
    access: AccessHandle,
    rounds: u64,
    stop: AtomicBool,
    accepted: AtomicU64,
    reached: AtomicU64,
}

struct TestMachineParts {
    machine: Arc<crate::Machine>,
    endpoints: [Arc<Endpoint>; DEVICES],
}

/// Pins nothing for long.
#[derive(Debug)]
struct Loose;

impl AccessUser for Loose {
    fn unmap(&self, _range: IovaRange) {
        thread::yield_now();
    }
}

/// A client of one thread, which gets no files.
struct Caller(TestClient);

impl Caller {
    fn new(index: u64) -> Self {
        let mut client = TestClient::new();
        client.account.pid = 100 + u32::try_from(index).unwrap();
        Self(client)
    }

    /// Fills page `page` of its memory with a word.
    fn fill(&self, page: u64, word: u64) {
        self.0.memory.write(BASE + page * PAGE, [word; 512].as_bytes()).unwrap();
    }

    fn read(&self, page: u64) -> [u64; 512] {
        let mut words = [0; 512];
        self.0.memory.read(BASE + page * PAGE, words.as_mut_bytes()).unwrap();
        words
    }
}

impl Storm {
    fn new(kind: IommuKind, rounds: u64) -> Self {
        let machine = TestMachine::with(Iommu::new(kind));
        let context = Context::new(&machine.machine);
        let ioases = [0, 1].map(|_| context.alloc_ioas().unwrap());
        let shared = machine.group();
        let endpoints: [Arc<Endpoint>; DEVICES] = std::array::from_fn(|device| match device {
            0 | 1 => machine.endpoint_in(&shared),
            _ => machine.endpoint(),
        });
        let bound = std::array::from_fn(|device: usize| {
            Mutex::new(Some(context.bind(&endpoints[device]).unwrap()))
        });
        let access = context.create_access(AccessKind::Pins(Arc::new(Loose))).unwrap();
        Self {
            machine: TestMachineParts { machine: machine.machine, endpoints },
            context,
            ioases,
            bound,
            access,
            rounds,
            stop: AtomicBool::new(false),
            accepted: AtomicU64::new(0),
            reached: AtomicU64::new(0),
        }
    }

    fn call<T>(&self, caller: &Caller, ioctl: u32, mut cmd: T) -> Option<T>
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        let done = caller.0.call(&self.context, ioctl, &mut cmd);
        self.accepted.fetch_add(u64::from(done.is_ok()), Ordering::Relaxed);
        done.ok().map(|_| cmd)
    }

    fn ioas(&self, random: &mut Random) -> u32 {
        self.ioases[usize::from(random.below(2) == 1)]
    }

    /// Where thread `index` maps what it watches.
    fn slot(index: u64) -> u64 {
        (16 + index * 2) * PAGE
    }

    fn map(&self, caller: &Caller, ioas_id: u32, iova: u64, page: u64, pages: u64) -> bool {
        let cmd = abi::IoasMap {
            size: 40,
            flags: abi::IOAS_MAP_FIXED_IOVA | abi::IOAS_MAP_READABLE | abi::IOAS_MAP_WRITEABLE,
            ioas_id,
            __reserved: 0,
            user_va: BASE + page * PAGE,
            length: pages * PAGE,
            iova,
        };
        self.call(caller, abi::IOAS_MAP, cmd).is_some()
    }

    fn unmap(&self, caller: &Caller, ioas_id: u32, iova: u64, pages: u64) -> bool {
        let cmd = abi::IoasUnmap { size: 24, ioas_id, iova, length: pages * PAGE };
        self.call(caller, abi::IOAS_UNMAP, cmd).is_some()
    }

    /// Maps a page of its own, lets devices at it, unmaps it, and watches it from then on.
    fn watch(&self, caller: &Caller, index: u64, random: &mut Random) {
        let (ioas, iova, page) = (self.ioas(random), Self::slot(index), 1);
        caller.fill(page, word_of(index));
        if !self.map(caller, ioas, iova, page, 1) {
            return;
        }
        (0..random.below(4)).for_each(|_| thread::yield_now());
        if !self.unmap(caller, ioas, iova, 1) {
            // An access holds it for now. Nobody else unmaps here.
            while !self.unmap(caller, ioas, iova, 1) {
                thread::yield_now();
            }
        }
        caller.fill(page, GONE);
        (0..random.below(4)).for_each(|_| thread::yield_now());
        assert!(caller.read(page).iter().all(|word| *word == GONE), "written after the unmap");
    }

    /// Any command on what all threads share.
    fn any(&self, caller: &Caller, random: &mut Random) {
        let ioas = self.ioas(random);
        let page = random.below(8);
        match random.below(12) {
            0 | 1 => drop(self.map(caller, ioas, page * PAGE, 4 + page % 4, 1 + page % 2)),
            2 => drop(self.unmap(caller, ioas, page * PAGE, 1 + page % 3)),
            3 => {
                let flags = abi::IOAS_MAP_FIXED_IOVA | abi::IOAS_MAP_READABLE;
                let cmd = abi::IoasCopy {
                    size: 40,
                    flags,
                    dst_ioas_id: self.ioas(random),
                    src_ioas_id: ioas,
                    length: PAGE,
                    dst_iova: random.below(8) * PAGE,
                    src_iova: page * PAGE,
                };
                self.call(caller, abi::IOAS_COPY, cmd);
            }
            4 => {
                let made = self.call(
                    caller,
                    abi::IOAS_ALLOC,
                    abi::IoasAlloc { size: 12, ..Default::default() },
                );
                // Two of the threads that are told one id may destroy it.
                let id = made.map_or(3 + random.below(30), |made| u64::from(made.out_ioas_id));
                let id = u32::try_from(id).unwrap();
                self.call(caller, abi::DESTROY, abi::Destroy { size: 8, id });
            }
            5 => {
                let id = u32::try_from(9 + random.below(20)).unwrap();
                self.call(caller, abi::DESTROY, abi::Destroy { size: 8, id });
            }
            6 => self.page_table(caller, ioas, random),
            7 => {
                let cmd = abi::IoasIovaRanges {
                    size: 32,
                    ioas_id: ioas,
                    num_iovas: 4,
                    allowed_iovas: ARG + 256,
                    ..Default::default()
                };
                self.call(caller, abi::IOAS_IOVA_RANGES, cmd);
            }
            8 => {
                let range = Iova(Self::slot(random.below(THREADS)));
                if self.access.pin(range, PAGE, Prot::READ).is_ok() {
                    self.access.unpin(range, PAGE).unwrap();
                }
            }
            9 => {
                let mut bytes = [0; 16];
                // Of an IOAS it may be detached from at any moment.
                let _read = self.access.read(Iova(page * PAGE + 8), &mut bytes);
            }
            10 => match random.below(3) {
                0 => self.access.detach(),
                _ => drop(self.access.attach(ioas)),
            },
            _ => self.device(random),
        }
    }

    fn page_table(&self, caller: &Caller, ioas: u32, random: &mut Random) {
        let device = usize::try_from(random.below(DEVICES as u64)).unwrap();
        let Some(dev_id) = self.bound[device].lock().as_ref().map(Bound::id) else { return };
        let flags = [0, abi::HWPT_ALLOC_DIRTY_TRACKING, abi::HWPT_ALLOC_NEST_PARENT];
        let flags = flags[usize::try_from(random.below(3)).unwrap()];
        let cmd = abi::HwptAlloc { size: 48, flags, dev_id, pt_id: ioas, ..Default::default() };
        let Some(made) = self.call(caller, abi::HWPT_ALLOC, cmd) else { return };
        let hwpt_id = made.out_hwpt_id;
        if let Some(bound) = &*self.bound[device].lock() {
            let _ours_or_anothers = bound.replace(hwpt_id);
        }
        let cmd = abi::HwptGetDirtyBitmap {
            size: 48,
            hwpt_id,
            flags: 0,
            __reserved: 0,
            iova: 0,
            length: 16 * PAGE,
            page_size: PAGE,
            data: ARG + 512,
        };
        self.call(caller, abi::HWPT_GET_DIRTY_BITMAP, cmd);
        let type_ = abi::VIOMMU_TYPE_ARM_SMMUV3;
        let cmd = abi::ViommuAlloc { size: 40, type_, dev_id, hwpt_id, ..Default::default() };
        if let Some(made) = self.call(caller, abi::VIOMMU_ALLOC, cmd) {
            let viommu_id = made.out_viommu_id;
            let virt_id = random.below(4);
            let cmd = abi::VdeviceAlloc { size: 24, viommu_id, dev_id, out_vdevice_id: 0, virt_id };
            if let Some(made) = self.call(caller, abi::VDEVICE_ALLOC, cmd) {
                self.call(caller, abi::DESTROY, abi::Destroy { size: 8, id: made.out_vdevice_id });
            }
            self.call(caller, abi::DESTROY, abi::Destroy { size: 8, id: viommu_id });
        }
        self.call(caller, abi::DESTROY, abi::Destroy { size: 8, id: hwpt_id });
    }

    fn device(&self, random: &mut Random) {
        let device = usize::try_from(random.below(DEVICES as u64)).unwrap();
        let mut bound = self.bound[device].lock();
        let ioas = self.ioas(random);
        match &*bound {
            None => *bound = Some(self.context.bind(&self.machine.endpoints[device]).unwrap()),
            Some(_) if random.below(8) == 0 => *bound = None,
            Some(bound) => {
                // Refused where it or its group is attached elsewhere.
                let _changed = match random.below(4) {
                    0 => {
                        bound.detach();
                        Ok(0)
                    }
                    1 => bound.replace(ioas),
                    _ => bound.attach(ioas),
                };
            }
        }
    }

    fn caller(&self, index: u64) {
        let caller = Caller::new(index);
        let mut random = Random(index);
        (4..10).for_each(|page| caller.fill(page, word_of(page)));
        for _ in 0..self.rounds {
            if random.below(3) == 0 {
                self.watch(&caller, index, &mut random);
            } else {
                self.any(&caller, &mut random);
            }
        }
    }

    /// Reads every page there may be, and writes into those that are watched.
    fn dma(&self, device: usize) {
        let mut words = [0_u64; 512];
        let mut turn = device as u64;
        while !self.stop.load(Ordering::Relaxed) {
            turn += 1;
            let iova = turn % 34 * PAGE;
            let endpoint = &self.machine.endpoints[device];
            let segment = Segment { iova: Iova(iova), length: 4096 };
            if endpoint.read([segment], words.as_mut_bytes()).is_ok() {
                self.reached.fetch_add(1, Ordering::Relaxed);
                // What another device writes is the only mixture that may be.
                let first = words.iter().find(|word| **word != WRITTEN).unwrap_or(&WRITTEN);
                assert!(words.iter().all(|word| word == first || *word == WRITTEN), "torn");
                assert_ne!(*first, GONE, "read after the unmap");
            }
            if iova >= 16 * PAGE {
                let segment = Segment { iova: Iova(iova + turn % 500 * 8), length: 8 };
                let _nobody_may_be_there = endpoint.write([segment], &WRITTEN.to_ne_bytes());
            }
        }
    }

    fn run(self) {
        thread::scope(|scope| {
            let devices: Vec<_> = (0..DEVICES)
                .map(|device| {
                    scope.spawn({
                        let storm = &self;
                        move || storm.dma(device)
                    })
                })
                .collect();
            let callers: Vec<_> = (0..THREADS)
                .map(|index| {
                    scope.spawn({
                        let storm = &self;
                        move || storm.caller(index)
                    })
                })
                .collect();
            let callers: Vec<_> = callers.into_iter().map(|caller| caller.join()).collect();
            self.stop.store(true, Ordering::Relaxed);
            devices.into_iter().for_each(|device| device.join().unwrap());
            callers.into_iter().for_each(|caller| caller.unwrap());
        });
        let Self { machine, context, bound, access, accepted, reached, .. } = self;
        assert!(accepted.into_inner() > 0 && reached.into_inner() > 0);
        drop((access, bound, context));
        assert_eq!(machine.machine.ledger.processes(), []);
        assert_eq!(machine.machine.phys.windows(), 0);
    }
}

/// Rounds of each thread.
fn rounds() -> u64 {
    std::env::var("IOASIS_SEQUENCES").map_or(400, |count| count.parse().expect("a number"))
}

#[test]
fn eight_threads_of_commands_beside_four_devices_tear_nothing_and_use_nothing_too_late() {
    for kind in [IommuKind::Vtd, IommuKind::Smmuv3] {
        Storm::new(kind, rounds() / 2).run();
    }
}
