use super::*;
use crate::testing::{ACCOUNT, Buffer, RW, TestClient, TestMachine};
use crate::{Bound, Context, CopyRequest, MapRequest, Segment};

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
