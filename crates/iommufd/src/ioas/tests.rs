use super::*;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::testing::{ACCOUNT, BASE, RW, TestClient, TestMachine};
use crate::{
    AddressSpace, Bound, Context, CopyRequest, Extents, Importer, MapRequest, Memory, Segment,
};

/// A dma-buf that can be revoked.
#[derive(Debug)]
struct Buffer {
    memory: Memory,
    revoked: AtomicBool,
    importers: Mutex<Vec<Weak<dyn Importer>>>,
}

impl Buffer {
    fn revoke(&self) {
        self.revoked.store(true, Ordering::Release);
        let importers = std::mem::take(&mut *self.importers.lock());
        let importers = importers.iter().filter_map(Weak::upgrade);
        importers.for_each(|importer| importer.invalidate(self.key()));
    }
}

impl AddressSpace for Buffer {
    fn key(&self) -> u128 {
        self.memory.key()
    }

    fn pin(&self, address: u64, length: u64, need: Prot) -> Result<Extents> {
        self.memory.pin(BASE + address, length, need)
    }

    fn kind(&self) -> Kind {
        Kind::DmaBuf
    }

    fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    fn import(&self, importer: Weak<dyn Importer>) {
        self.importers.lock().push(importer);
    }
}

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
    let buffer = Arc::new(Buffer {
        memory: client.memory.clone(),
        revoked: AtomicBool::new(false),
        importers: Mutex::default(),
    });
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
