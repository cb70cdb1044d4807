use super::*;
use crate::device::access::AccessUser;
use crate::tests::rig::{ACCOUNT, BASE, RW, TestClient, TestMachine};
use crate::{Context, MapRequest, Place};
use ioasis_iommupt::IovaRange;
use ioasis_sys::sync::Mutex;
use ioasis_uapi::Errno;
use std::fmt::Debug;

/// Keeps what it was told, and lets go of one pinned range when told so.
#[derive(Debug, Default)]
struct User {
    told: Mutex<Vec<IovaRange>>,
    pinned: Mutex<Option<(std::sync::Weak<Access>, Iova, u64)>>,
}

impl AccessUser for User {
    fn unmap(&self, range: IovaRange) {
        self.told.lock().push(range);
        if let Some((access, iova, length)) = self.pinned.lock().take() {
            access.upgrade().unwrap().unpin(iova, length).unwrap();
        }
    }
}

struct Fixture {
    machine: TestMachine,
    client: TestClient,
    context: Arc<Context>,
    ioas: u32,
}

impl Fixture {
    fn new() -> Self {
        let machine = TestMachine::new();
        let context = Context::new(&machine.machine);
        let ioas = context.alloc_ioas().unwrap();
        Self { machine, client: TestClient::new(), context, ioas }
    }

    fn map(&self, iova: u64, offset: u64, length: u64, prot: Prot) {
        let request = MapRequest {
            space: Arc::new(self.client.memory.clone()),
            address: BASE + offset,
            length,
            place: Place::Fixed(Iova(iova)),
            prot,
            account: ACCOUNT,
        };
        self.context.map(self.ioas, request).unwrap();
    }

    fn unmap(&self, iova: u64, length: u64) -> Result<()> {
        let range = IovaRange::new(Iova(iova), length).unwrap();
        self.context.ioas(self.ioas).unwrap().unmap(range, 1).result
    }

    fn pinned(&self) -> u64 {
        self.machine.machine.ledger.pinned()
    }
}

fn errno<T: Debug>(result: Result<T>) -> Errno {
    result.unwrap_err().errno
}

#[test]
fn bytes_are_read_and_written_at_any_alignment_without_pinning() {
    let fixture = Fixture::new();
    fixture.map(0x1000, 0, 0x2000, RW);
    fixture.map(0x3000, 0x8000, 0x1000, RW);
    let access = fixture.context.create_access(AccessKind::ReadWrite).unwrap();
    assert_eq!(errno(access.read(Iova(0x1000), &mut [0])), Errno::ENOENT, "not attached");
    access.attach(fixture.ioas).unwrap();
    assert_eq!(errno(access.attach(fixture.ioas)), Errno::EINVAL);
    let bytes: Vec<u8> = (0..0x1801_u32).map(|index| index.to_le_bytes()[0]).collect();
    access.write(Iova(0x1fff), &bytes[..0x1801]).unwrap();
    let mut seen = vec![0; 0x1801];
    access.read(Iova(0x1fff), &mut seen).unwrap();
    assert_eq!(seen, bytes);
    let mut behind = [0; 1];
    fixture.client.memory.read(BASE + 0x8000, &mut behind).unwrap();
    assert_eq!(behind[0], bytes[0x1001]);
    assert_eq!(fixture.pinned(), 0);
    assert_eq!(errno(access.read(Iova(0x3800), &mut [0; 0x801])), Errno::ENOENT);
    assert_eq!(errno(access.read(Iova(0x1000), &mut [])), Errno::EINVAL);
    assert_eq!(errno(access.write(Iova(u64::MAX), &[0, 0])), Errno::EOVERFLOW);
}

#[test]
fn permissions_are_those_of_the_mapping() {
    let fixture = Fixture::new();
    fixture.map(0x1000, 0, 0x1000, Prot::READ);
    fixture.map(0x2000, 0, 0x1000, Prot::WRITE);
    let user = Arc::new(User::default());
    let access = fixture.context.create_access(AccessKind::Pins(user)).unwrap();
    access.attach(fixture.ioas).unwrap();
    assert_eq!(errno(access.write(Iova(0x1000), &[1])), Errno::EPERM);
    assert_eq!(errno(access.read(Iova(0x2000), &mut [1])), Errno::EPERM);
    assert_eq!(errno(access.pin(Iova(0x1000), 0x1000, Prot::WRITE)), Errno::EPERM);
    access.write(Iova(0x2000), &[1]).unwrap();
    access.read(Iova(0x1000), &mut [1]).unwrap();
}

#[test]
fn pins_share_pages_with_domains_and_outlive_them() {
    let fixture = Fixture::new();
    fixture.map(0x1000, 0, 0x4000, RW);
    let access =
        fixture.context.create_access(AccessKind::Pins(Arc::new(User::default()))).unwrap();
    access.attach(fixture.ioas).unwrap();
    let runs = access.pin(Iova(0x2000), 0x2000, RW).unwrap();
    assert_eq!(runs.iter().map(|run| run.length).sum::<u64>(), 0x2000);
    access.pin(Iova(0x2000), 0x2000, RW).unwrap();
    assert_eq!(fixture.pinned(), 2);
    let bound = fixture.context.bind(&fixture.machine.endpoint()).unwrap();
    bound.attach(fixture.ioas).unwrap();
    assert_eq!(fixture.pinned(), 4);
    bound.detach();
    assert_eq!(fixture.pinned(), 2);
    assert_eq!(errno(access.unpin(Iova(0x2000), 0x1000)), Errno::EINVAL, "not what was pinned");
    access.unpin(Iova(0x2000), 0x2000).unwrap();
    assert_eq!(fixture.pinned(), 2);
    access.unpin(Iova(0x2000), 0x2000).unwrap();
    assert_eq!(fixture.pinned(), 0);
}

/// Linux: `iopt_area_contig_is_aligned`.
#[test]
fn what_is_pinned_begins_on_a_page_and_ends_anywhere() {
    let fixture = Fixture::new();
    fixture.map(0x1000, 0, 0x2000, RW);
    fixture.map(0x3000, 0x8000, 0x1000, RW);
    let access =
        fixture.context.create_access(AccessKind::Pins(Arc::new(User::default()))).unwrap();
    access.attach(fixture.ioas).unwrap();
    for (start, length, pages) in [
        (0x1000, 1, 1),
        (0x1000, 0xfff, 1),
        (0x1000, 0x1001, 2),
        (0x2000, 0x1234, 2),
        (0x1000, 0x2fff, 3),
    ] {
        let runs = access.pin(Iova(start), length, RW).unwrap();
        let bytes: u64 = runs.iter().map(|run| run.length).sum();
        assert_eq!((bytes, fixture.pinned()), (pages * 0x1000, pages), "whole pages");
        access.unpin(Iova(start), length).unwrap();
        assert_eq!(fixture.pinned(), 0);
    }
    // What is beside it in its page is pinned with it, and once.
    access.pin(Iova(0x1000), 1, RW).unwrap();
    access.pin(Iova(0x1000), 0x800, RW).unwrap();
    assert_eq!(fixture.pinned(), 1);
    access.unpin(Iova(0x1000), 1).unwrap();
    assert_eq!(fixture.pinned(), 1);
    access.unpin(Iova(0x1000), 0x800).unwrap();
    assert_eq!(fixture.pinned(), 0);
    assert_eq!(errno(access.pin(Iova(0x1001), 1, RW)), Errno::EINVAL);
    assert_eq!(errno(access.pin(Iova(0x1fff), 1, RW)), Errno::EINVAL);
    assert_eq!(errno(access.pin(Iova(0x3000), 0x1001, RW)), Errno::ENOENT);
    assert_eq!(fixture.pinned(), 0);
}

#[test]
fn only_whole_pages_of_one_piece_are_pinned_and_a_failure_pins_nothing() {
    let fixture = Fixture::new();
    fixture.map(0x1000, 0, 0x2000, RW);
    let access =
        fixture.context.create_access(AccessKind::Pins(Arc::new(User::default()))).unwrap();
    access.attach(fixture.ioas).unwrap();
    assert_eq!(errno(access.pin(Iova(0x1800), 0x1000, RW)), Errno::EINVAL);
    assert_eq!(errno(access.pin(Iova(0x1000), 0, RW)), Errno::EINVAL);
    assert_eq!(errno(access.pin(Iova(0x1000), 0x3000, RW)), Errno::ENOENT);
    assert_eq!(fixture.pinned(), 0);
    let misaligned = Fixture::new();
    misaligned.map(0x1800, 0x800, 0x800, RW);
    let access =
        misaligned.context.create_access(AccessKind::Pins(Arc::new(User::default()))).unwrap();
    assert_eq!(errno(access.attach(misaligned.ioas)), Errno::EADDRINUSE);
    let reader = misaligned.context.create_access(AccessKind::ReadWrite).unwrap();
    reader.attach(misaligned.ioas).unwrap();
}

#[test]
fn an_unmap_asks_for_pins_and_gives_up_on_who_keeps_them() {
    let fixture = Fixture::new();
    fixture.map(0x1000, 0, 0x1000, RW);
    fixture.map(0x2000, 0, 0x1000, RW);
    let user = Arc::new(User::default());
    let access = fixture.context.create_access(AccessKind::Pins(Arc::clone(&user) as _)).unwrap();
    access.attach(fixture.ioas).unwrap();
    access.pin(Iova(0x1000), 0x1000, RW).unwrap();
    *user.pinned.lock() = Some((Arc::downgrade(access.access.arc()), Iova(0x1000), 0x1000));
    fixture.unmap(0x1000, 0x1000).unwrap();
    assert_eq!(*user.told.lock(), [IovaRange::new(Iova(0x1000), 0x1000).unwrap()]);
    access.pin(Iova(0x2000), 0x1000, RW).unwrap();
    assert_eq!(errno(fixture.unmap(0x2000, 0x1000)), Errno::EDEADLOCK);
    assert_eq!(
        errno(access.pin(Iova(0x2000), 0x1000, RW)),
        Errno::EINVAL,
        "no pin is added meanwhile"
    );
    access.unpin(Iova(0x2000), 0x1000).unwrap();
    fixture.unmap(0x2000, 0x1000).unwrap();
}

#[test]
fn moving_to_another_ioas_asks_for_everything_first() {
    let fixture = Fixture::new();
    fixture.map(0x1000, 0, 0x1000, RW);
    let elsewhere = fixture.context.alloc_ioas().unwrap();
    let user = Arc::new(User::default());
    let access = fixture.context.create_access(AccessKind::Pins(Arc::clone(&user) as _)).unwrap();
    assert_eq!(errno(access.replace(elsewhere)), Errno::ENOENT, "not attached");
    access.attach(fixture.ioas).unwrap();
    access.pin(Iova(0x1000), 0x1000, RW).unwrap();
    *user.pinned.lock() = Some((Arc::downgrade(access.access.arc()), Iova(0x1000), 0x1000));
    assert_eq!(errno(fixture.context.destroy(fixture.ioas)), Errno::EBUSY);
    access.replace(elsewhere).unwrap();
    assert_eq!(*user.told.lock(), [IovaRange::ALL]);
    assert_eq!(fixture.pinned(), 0);
    fixture.context.destroy(fixture.ioas).unwrap();
    assert_eq!(errno(fixture.context.destroy(access.id())), Errno::EBUSY);
    drop(access);
    fixture.context.destroy(elsewhere).unwrap();
}
