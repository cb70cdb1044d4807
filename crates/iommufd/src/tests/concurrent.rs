//! Commands and DMA at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use ioasis_iommupt::{Iova, IovaRange, Prot};

use crate::tests::rig::{ACCOUNT, BASE, RW, TestClient, TestMachine};
use crate::{Context, CopyRequest, Endpoint, MapRequest, Memory, Place, Segment};

const PAGE: u64 = 4096;

fn map(
    context: &Context,
    ioas: u32,
    memory: &Memory,
    iova: u64,
    address: u64,
) -> ioasis_uapi::Result<Iova> {
    let request = MapRequest {
        space: Arc::new(memory.clone()),
        address,
        length: PAGE,
        place: Place::Fixed(Iova(iova)),
        prot: RW,
        account: ACCOUNT,
    };
    context.map(ioas, request)
}

fn page(iova: u64) -> IovaRange {
    IovaRange::new(Iova(iova), PAGE).unwrap()
}

/// Writes at `iova` until told to stop; returns how many writes arrived.
fn write_for_ever(endpoint: &Endpoint, iova: u64, stop: &AtomicBool) -> u64 {
    let mut arrived = 0;
    while !stop.load(Ordering::Relaxed) {
        let segment = Segment { iova: Iova(iova), length: 8 };
        arrived += u64::from(endpoint.write([segment], &[0xaa; 8]).is_ok());
    }
    arrived
}

#[test]
fn once_an_unmap_has_returned_the_device_writes_there_no_more() {
    let (machine, client) = (TestMachine::new(), TestClient::new());
    let context = Context::new(&machine.machine);
    let ioas = context.alloc_ioas().unwrap();
    let bound = context.bind(&machine.endpoint()).unwrap();
    bound.attach(ioas).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| write_for_ever(bound.endpoint(), 0x1000, &stop)))
            .collect();
        for _ in 0..300 {
            map(&context, ioas, &client.memory, 0x1000, BASE).unwrap();
            thread::yield_now();
            context.unmap(ioas, page(0x1000), 1).unwrap().result.unwrap();
            client.memory.write(BASE, &[0x55; 8]).unwrap();
            thread::yield_now();
            let mut seen = [0; 8];
            client.memory.read(BASE, &mut seen).unwrap();
            assert_eq!(seen, [0x55; 8]);
        }
        stop.store(true, Ordering::Relaxed);
        let arrived: u64 = writers.into_iter().map(|writer| writer.join().unwrap()).sum();
        assert!(arrived > 0, "some writes met the mapping");
    });
}

#[test]
fn once_a_detach_has_returned_the_device_writes_nowhere() {
    let (machine, client) = (TestMachine::new(), TestClient::new());
    let context = Context::new(&machine.machine);
    let ioas = context.alloc_ioas().unwrap();
    let bound = context.bind(&machine.endpoint()).unwrap();
    map(&context, ioas, &client.memory, 0x1000, BASE).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| write_for_ever(bound.endpoint(), 0x1000, &stop));
        for _ in 0..150 {
            bound.attach(ioas).unwrap();
            thread::yield_now();
            bound.detach();
            client.memory.write(BASE, &[0x55; 8]).unwrap();
            thread::yield_now();
            let mut seen = [0; 8];
            client.memory.read(BASE, &mut seen).unwrap();
            assert_eq!(seen, [0x55; 8]);
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
    });
}

/// One thread's share of calls on two IOASes that all threads use.
fn churn(context: &Context, ioases: [u32; 2], memory: &Memory, mut seed: u64, done: &AtomicU64) {
    for _ in 0..300 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let pick = seed >> 33;
        let (from, to) = (ioases[usize::from(pick & 1 != 0)], ioases[usize::from(pick & 2 != 0)]);
        let iova = (1 + (pick >> 2) % 16) * PAGE;
        let range = page(iova);
        // Whatever the others do, each answer is one of those Linux has; what must hold is looked
        // at in the end.
        let accepted = match (pick >> 8) % 4 {
            0 | 1 => map(context, from, memory, iova, BASE + ((pick >> 12) % 16) * PAGE).is_ok(),
            2 => context.unmap(from, range, 1).is_ok_and(|unmapped| unmapped.result.is_ok()),
            _ => {
                let place = Place::Fixed(Iova((1 + (pick >> 16) % 16) * PAGE));
                let request = CopyRequest { source: from, range, place, prot: Prot::READ };
                context.copy(to, request).is_ok()
            }
        };
        done.fetch_add(u64::from(accepted), Ordering::Relaxed);
    }
}

#[test]
fn threads_that_map_copy_and_unmap_beside_dma_leave_nothing_behind() {
    let (machine, client) = (TestMachine::new(), TestClient::new());
    let context = Context::new(&machine.machine);
    let ioases = [context.alloc_ioas().unwrap(), context.alloc_ioas().unwrap()];
    let devices: Vec<_> = (0..2).map(|_| context.bind(&machine.endpoint()).unwrap()).collect();
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for bound in &devices {
            scope.spawn(|| write_for_ever(bound.endpoint(), 0x5000, &stop));
            scope.spawn(|| {
                for turn in 0..100 {
                    // Refused where the other IOAS is attached; attached by nobody else.
                    let _one_of_both = bound.attach(ioases[turn % 2]);
                    let _the_other = bound.replace(ioases[(turn + 1) % 2]);
                    bound.detach();
                }
            });
        }
        let callers: Vec<_> = (0..4)
            .map(|seed| {
                let (context, memory, done) = (&context, &client.memory, &done);
                scope.spawn(move || churn(context, ioases, memory, seed, done))
            })
            .collect();
        callers.into_iter().for_each(|caller| caller.join().unwrap());
        stop.store(true, Ordering::Relaxed);
    });
    assert!(done.load(Ordering::Relaxed) > 0);
    drop(devices);
    drop(context);
    machine.assert_clean();
}

/// Memory whose bytes come when a gate opens, as a client's userfaultfd would have it.
#[derive(Debug, Default)]
struct Slow {
    entered: AtomicBool,
    open: AtomicBool,
}

#[derive(Clone, Debug)]
struct SlowSpace(Arc<Slow>);

impl crate::AddressSpace for SlowSpace {
    fn key(&self) -> u128 {
        crate::Backing::key(&*self.0)
    }

    fn pin(&self, offset: u64, length: u64, _: Prot) -> ioasis_uapi::Result<crate::Extents> {
        let backing = Arc::<Slow>::clone(&self.0) as Arc<dyn crate::Backing>;
        Ok(crate::Extents::from_buf([crate::Extent { backing, offset, length }]))
    }

    fn kind(&self) -> crate::Kind {
        crate::Kind::User
    }
}

impl crate::Backing for Slow {
    fn key(&self) -> u128 {
        7
    }

    fn read(&self, _: &[crate::Piece], _: &mut [u8]) -> ioasis_uapi::Result<()> {
        self.entered.store(true, Ordering::SeqCst);
        while !self.open.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        Ok(())
    }

    fn write(&self, _: &[crate::Piece], _: &[u8]) -> ioasis_uapi::Result<()> {
        Ok(())
    }
}

#[test]
fn memory_that_faults_slowly_keeps_only_its_own_client_waiting() {
    let (machine, client) = (TestMachine::new(), TestClient::new());
    let contexts = [(); 2].map(|()| Context::new(&machine.machine));
    let [(slow_ioas, slow), (ioas, fast)] = contexts.each_ref().map(|context| {
        let ioas = context.alloc_ioas().unwrap();
        let bound = context.bind(&machine.endpoint()).unwrap();
        bound.attach(ioas).unwrap();
        (ioas, bound)
    });
    let gate = Arc::new(Slow::default());
    let request = MapRequest {
        space: Arc::new(SlowSpace(Arc::clone(&gate))),
        address: 0,
        length: PAGE,
        place: Place::Fixed(Iova(0x1000)),
        prot: RW,
        account: ACCOUNT,
    };
    contexts[0].map(slow_ioas, request).unwrap();
    map(&contexts[1], ioas, &client.memory, 0x1000, BASE).unwrap();
    thread::scope(|scope| {
        let dma = scope.spawn(|| {
            slow.endpoint().read([Segment { iova: Iova(0x1000), length: 8 }], &mut [0; 8])
        });
        while !gate.entered.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        let own = scope.spawn(|| contexts[0].unmap(slow_ioas, page(0x1000), 1).unwrap().result);
        // All of these would wait for ever if they waited for the other client.
        contexts[1].unmap(ioas, page(0x1000), 1).unwrap().result.unwrap();
        fast.detach();
        thread::sleep(std::time::Duration::from_millis(20));
        assert!(!own.is_finished(), "the client's own unmap waits for its device");
        gate.open.store(true, Ordering::SeqCst);
        dma.join().unwrap().unwrap();
        own.join().unwrap().unwrap();
    });
}
