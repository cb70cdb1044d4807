use super::*;
use crate::tests::rig::{ACCOUNT, BASE, RW, TestClient, TestMachine};
use crate::{Context, MapRequest, Place};

fn mapped(machine: &TestMachine, client: &TestClient, prot: Prot) -> (Arc<Context>, u32) {
    let context = Context::new(&machine.machine);
    let ioas = context.alloc_ioas().unwrap();
    let request = MapRequest {
        space: Arc::new(client.memory.clone()),
        address: BASE,
        length: 0x4000,
        place: Place::Fixed(Iova(0x10_0000)),
        prot,
        account: ACCOUNT,
    };
    context.map(ioas, request).unwrap();
    (context, ioas)
}

fn segment(iova: u64, length: usize) -> Segment {
    Segment { iova: Iova(iova), length }
}

#[test]
fn bytes_arrive_where_the_iova_leads() {
    let (machine, client) = (TestMachine::new(), TestClient::new());
    let (context, ioas) = mapped(&machine, &client, RW);
    let endpoint = machine.endpoint();
    let bound = context.bind(&endpoint).unwrap();
    bound.attach(ioas).unwrap();

    endpoint.write([segment(0x10_0ffe, 4), segment(0x10_3000, 2)], b"abcdef").unwrap();
    let mut seen = [0; 4];
    client.memory.read(BASE + 0xffe, &mut seen).unwrap();
    assert_eq!(&seen, b"abcd");
    client.memory.read(BASE + 0x3000, &mut seen[..2]).unwrap();
    assert_eq!(&seen[..2], b"ef");

    let mut back = [0; 6];
    endpoint.read([segment(0x10_3000, 2), segment(0x10_0ffe, 4)], &mut back).unwrap();
    assert_eq!(&back, b"efabcd");
    drop(bound);
    drop(context);
    machine.assert_clean();
}

#[test]
fn a_device_that_is_not_attached_reaches_nothing() {
    let (machine, client) = (TestMachine::new(), TestClient::new());
    let (context, ioas) = mapped(&machine, &client, RW);
    let endpoint = machine.endpoint();
    let refused = endpoint.write([segment(0x10_0000, 1)], &[1]);
    assert_eq!(refused, Err(DmaFault { iova: Iova(0x10_0000) }));
    let bound = context.bind(&endpoint).unwrap();
    bound.attach(ioas).unwrap();
    endpoint.write([segment(0x10_0000, 1)], &[1]).unwrap();
    bound.detach();
    assert!(endpoint.write([segment(0x10_0000, 1)], &[1]).is_err());
    let reasons: Vec<Reason> =
        machine.machine.faults.take().iter().map(|fault| fault.reason).collect();
    assert_eq!(reasons, [Reason::Blocked, Reason::Blocked]);
}

#[test]
fn what_is_mapped_read_only_is_not_written() {
    let (machine, client) = (TestMachine::new(), TestClient::new());
    let (context, ioas) = mapped(&machine, &client, Prot::READ);
    let endpoint = machine.endpoint();
    let bound = context.bind(&endpoint).unwrap();
    bound.attach(ioas).unwrap();
    assert!(endpoint.write([segment(0x10_0000, 1)], &[1]).is_err());
    endpoint.read([segment(0x10_0000, 1)], &mut [0]).unwrap();
    assert_eq!(machine.machine.faults.take()[0].reason, Reason::Missing(Prot::WRITE));
}

#[test]
fn the_log_says_who_unmapped_what_a_device_still_uses() {
    let (machine, client) = (TestMachine::new(), TestClient::new());
    let (context, ioas) = mapped(&machine, &client, RW);
    let endpoint = machine.endpoint();
    let bound = context.bind(&endpoint).unwrap();
    bound.attach(ioas).unwrap();
    context.ioas(ioas).unwrap().unmap_all(77).result.unwrap();
    assert!(endpoint.read([segment(0x10_2000, 8)], &mut [0; 8]).is_err());
    let fault = machine.machine.faults.take().remove(0);
    assert_eq!(fault.iova, Iova(0x10_2000));
    assert_eq!(fault.reason, Reason::NotMapped);
    assert_eq!(fault.unmapped.map(|(_, pid)| pid), Some(77));
}

/// Memory of which nothing can be reached any more.
#[derive(Debug)]
struct Lost;

impl Backing for Lost {
    fn key(&self) -> u128 {
        1 << 120
    }

    fn read(&self, _: &[Piece], _: &mut [u8]) -> Result<()> {
        Err(ioasis_uapi::Error::new(ioasis_uapi::Errno::EFAULT, "the file was cut"))
    }

    fn write(&self, _: &[Piece], _: &[u8]) -> Result<()> {
        Err(ioasis_uapi::Error::new(ioasis_uapi::Errno::EFAULT, "the page went to somebody else"))
    }
}

/// A space that is all [`Lost`].
#[derive(Debug)]
struct LostSpace;

impl crate::AddressSpace for LostSpace {
    fn key(&self) -> u128 {
        1 << 120
    }

    fn pin(&self, address: u64, length: u64, _: Prot) -> Result<crate::Extents> {
        let backing: Arc<dyn Backing> = Arc::new(Lost);
        Ok(crate::Extents::from_buf([crate::Extent { backing, offset: address, length }]))
    }

    fn kind(&self) -> crate::Kind {
        crate::Kind::User
    }
}

#[test]
fn the_log_says_why_memory_could_not_be_reached_in_the_words_of_its_keeper() {
    let machine = TestMachine::new();
    let context = Context::new(&machine.machine);
    let ioas = context.alloc_ioas().unwrap();
    let request = MapRequest {
        space: Arc::new(LostSpace),
        address: 0,
        length: 0x4000,
        place: Place::Fixed(Iova(0x10_0000)),
        prot: RW,
        account: ACCOUNT,
    };
    context.map(ioas, request).unwrap();
    let endpoint = machine.endpoint();
    let bound = context.bind(&endpoint).unwrap();
    bound.attach(ioas).unwrap();
    let one = [segment(0x10_0000, 8)];
    let two = [segment(0x10_1000, 4), segment(0x10_3000, 4)];
    assert!(endpoint.read(one, &mut [0; 8]).is_err());
    assert!(endpoint.read(two, &mut [0; 8]).is_err());
    assert!(endpoint.write(one, &[0; 8]).is_err());
    let reasons = machine.machine.faults.take();
    let reasons: Vec<_> = reasons.iter().map(|refused| refused.reason.why()).collect();
    assert_eq!(reasons, ["the file was cut", "the file was cut", "the page went to somebody else"]);
}
