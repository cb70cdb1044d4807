use super::*;
use ioasis_iommupt::Prot;

use crate::tests::rig::{ACCOUNT, Buffer, RW, TestClient, TestMachine};
use crate::{
    Account, AddressSpace, Bound, Context, CopyRequest, Extents, Importer, Kind, MapRequest,
    Memory, Segment,
};

#[test]
fn a_revoked_buffer_is_gone_from_every_copy_of_its_mapping() {
    let (machine, client) = (TestMachine::new(), TestClient::new());
    let context = Context::new(&machine.machine);
    let ioases = [0, 1].map(|_| context.alloc_ioas().unwrap());
    let devices = ioases.map(|ioas| {
        let bound = context.bind(&machine.endpoint()).unwrap();
        bound.attach(ioas).unwrap();
        bound
    });
    let buffer = Buffer::new(&client.memory);
    let request = MapRequest {
        space: Arc::clone(&buffer) as _,
        address: 0,
        length: 0x1000,
        place: Place::Fixed(Iova(0x1000)),
        prot: RW,
        account: ACCOUNT,
    };
    context.map(ioases[0], request).unwrap();
    let range = IovaRange::new(Iova(0x1000), 0x1000).unwrap();
    for (ioas, iova) in [(ioases[0], 0x3000), (ioases[1], 0x1000), (ioases[1], 0x5000)] {
        let place = Place::Fixed(Iova(iova));
        let copy = CopyRequest { source: ioases[0], range, place, prot: RW };
        context.copy(ioas, copy).unwrap();
    }
    let reads = |bound: &Bound, iova| {
        bound.endpoint().read([Segment { iova: Iova(iova), length: 1 }], &mut [0]).is_ok()
    };
    let shown = [(0, 0x1000), (0, 0x3000), (1, 0x1000), (1, 0x5000)];
    assert!(shown.iter().all(|&(device, iova)| reads(&devices[device], iova)));
    buffer.revoke();
    for (device, iova) in shown {
        assert!(!reads(&devices[device], iova), "device {device} at {iova:#x}");
    }
    drop(devices);
    drop(context);
    machine.assert_clean();
}

/// A dma-buf that is revoked right after it was asked whether it is.
#[derive(Debug)]
struct RevokedLate(Arc<Buffer>);

impl AddressSpace for RevokedLate {
    fn key(&self) -> u128 {
        self.0.key()
    }

    fn pin(&self, address: u64, length: u64, need: Prot) -> Result<Extents> {
        self.0.pin(address, length, need)
    }

    fn kind(&self) -> Kind {
        Kind::DmaBuf
    }

    fn is_revoked(&self) -> bool {
        let was = self.0.is_revoked();
        if !was {
            self.0.revoke();
        }
        was
    }

    fn import(&self, importer: Weak<dyn Importer>) {
        self.0.import(importer);
    }
}

#[test]
fn a_buffer_that_is_revoked_while_it_is_mapped_is_out_of_reach() {
    let (machine, client) = (TestMachine::new(), TestClient::new());
    let context = Context::new(&machine.machine);
    let ioas = context.alloc_ioas().unwrap();
    let bound = context.bind(&machine.endpoint()).unwrap();
    bound.attach(ioas).unwrap();
    let request = MapRequest {
        space: Arc::new(RevokedLate(Buffer::new(&client.memory))),
        address: 0,
        length: 0x1000,
        place: Place::Fixed(Iova(0x1000)),
        prot: RW,
        account: ACCOUNT,
    };
    context.map(ioas, request).unwrap();
    let segment = Segment { iova: Iova(0x1000), length: 1 };
    assert!(bound.endpoint().read([segment], &mut [0]).is_err());
    drop(bound);
    drop(context);
    machine.assert_clean();
}

#[test]
fn areas_of_two_payers_and_two_memories_that_go_at_once_give_back_what_each_had() {
    const PAGE: u64 = 0x1000;
    let machine = TestMachine::new();
    let context = Context::new(&machine.machine);
    let ioas = context.alloc_ioas().unwrap();
    let bound = context.bind(&machine.endpoint()).unwrap();
    bound.attach(ioas).unwrap();
    let memories = [0, 1].map(|_| Arc::new(Memory::new(0, 100 * 0x1000).unwrap()));
    let pid = |n: u64| 1 + u32::from(n / 2 % 2 == 1);
    for n in 0..100_u64 {
        let request = MapRequest {
            space: Arc::clone(&memories[usize::from(n / 3 % 2 == 1)]) as _,
            address: n * PAGE,
            length: PAGE,
            place: Place::Fixed(Iova(n * PAGE)),
            prot: RW,
            account: Account { pid: pid(n), ..ACCOUNT },
        };
        context.map(ioas, request).unwrap();
    }
    let pinned = |pid| machine.machine.ledger.process(pid).pinned;
    assert_eq!((pinned(1), pinned(2), machine.machine.phys.windows()), (50, 50, 2));
    let range = IovaRange::new(Iova(0), 21 * PAGE).unwrap();
    context.unmap(ioas, range, 1).unwrap().result.unwrap();
    let left = |one| (21..100).filter(|&n| pid(n) == one).count() as u64;
    assert_eq!((pinned(1), pinned(2)), (left(1), left(2)));
    context.unmap(ioas, IovaRange::ALL, 1).unwrap().result.unwrap();
    assert_eq!((machine.machine.ledger.processes(), machine.machine.phys.windows()), (vec![], 0));
    drop(bound);
    drop(context);
    machine.assert_clean();
}
