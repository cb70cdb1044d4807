//! Pins: refusals in the driver's order, and devices that do not let go.

use std::sync::Weak;

use ioasis_iommupt::{IovaRange, Prot};
use ioasis_uapi::Errno;
use zerocopy::IntoBytes;

use super::*;
use crate::Iova;
use crate::tests::rig::{ARG, BASE, TestClient, TestMachine};

const PAGE: u64 = 4096;
const RW: Prot = Prot::READ.union(Prot::WRITE);

/// A device that lets go of what it is told to, or never.
#[derive(Debug)]
struct Device {
    container: Weak<Container>,
    stubborn: bool,
}

impl AccessUser for Device {
    fn unmap(&self, range: IovaRange) {
        if let Some(container) = self.container.upgrade().filter(|_| !self.stubborn) {
            container.unpin(range.start(), (range.span() + 1) / PAGE);
        }
    }
}

struct Fixture {
    machine: TestMachine,
    client: TestClient,
    container: Arc<Container>,
    group: Arc<Group>,
}

impl Fixture {
    fn new() -> Self {
        let machine = TestMachine::new();
        let group = machine.group();
        let container = Container::new(&machine.machine);
        Self { machine, client: TestClient::new(), container, group }
    }

    fn with_driver(number: u32) -> Self {
        let fixture = Self::new();
        let member = Member::new(GroupKind::Emulated, &fixture.group, &[]);
        fixture.container.add_group(&fixture.client.account, member).unwrap();
        fixture.container.ioctl(&fixture.client, abi::SET_IOMMU, number.into()).unwrap();
        fixture
    }

    fn register(&self, stubborn: bool) -> Arc<dyn AccessUser> {
        let device: Arc<dyn AccessUser> =
            Arc::new(Device { container: Arc::downgrade(&self.container), stubborn });
        self.container.register(&device);
        device
    }

    fn map(&self, flags: u32, iova: u64, size: u64) {
        let map = abi::IommuType1DmaMap { argsz: 32, flags, vaddr: BASE + iova, iova, size };
        self.client.memory.write(ARG, map.as_bytes()).unwrap();
        self.container.ioctl(&self.client, abi::IOMMU_MAP_DMA, ARG).unwrap();
    }

    fn unmap_all(&self) {
        let flags = abi::DMA_UNMAP_FLAG_ALL;
        let unmap = abi::IommuType1DmaUnmap { argsz: 24, flags, iova: 0, size: 0 };
        self.client.memory.write(ARG, unmap.as_bytes()).unwrap();
        self.container.ioctl(&self.client, abi::IOMMU_UNMAP_DMA, ARG).unwrap();
    }

    fn pin(&self, iova: u64, pages: u64, need: Prot) -> Result<(), Errno> {
        self.container.pin(Iova(iova), pages, need).map_err(|error| error.errno)
    }

    fn locked(&self) -> u64 {
        self.machine.machine.ledger.process(self.client.account.pid).locked
    }
}

#[test]
fn a_pin_is_refused_in_type1s_order() {
    let bare = Fixture::new();
    assert_eq!(bare.pin(0, 513, RW), Err(Errno::E2BIG));
    assert_eq!(bare.pin(0, 1, RW), Err(Errno::ENOTTY), "no driver");
    assert_eq!(Fixture::with_driver(abi::TYPE1_IOMMU).pin(0, 1, RW), Err(Errno::EACCES));
    let fixture = Fixture::with_driver(abi::TYPE1v2_IOMMU);
    assert_eq!(fixture.pin(0x1000, 0, RW), Err(Errno::EINVAL), "no page");
    assert_eq!(fixture.pin(u64::MAX - 0xfff, 2, RW), Err(Errno::EOVERFLOW));
    fixture.map(3, 0x1000, 0x2000);
    fixture.map(1, 0x3000, 0x1000);
    assert_eq!(fixture.pin(0x1000, 1, RW), Err(Errno::EINVAL), "no device to be told of an unmap");
    let device = fixture.register(false);
    assert_eq!(fixture.pin(0x8000, 1, RW), Err(Errno::EINVAL), "nothing is mapped");
    assert_eq!(fixture.pin(0x1000, 3, RW), Err(Errno::EPERM), "the last page is not writable");
    assert_eq!(fixture.locked(), 0, "the first two are not pinned");
    fixture.pin(0x1000, 3, Prot::READ).unwrap();
    assert_eq!(fixture.locked(), 3);
    fixture.container.unregister(&device);
    fixture.container.unpin(Iova(0x1000), 3);
    assert_eq!(fixture.locked(), 0);
}

#[test]
fn a_page_is_pinned_as_often_as_asked_and_given_back_one_by_one() {
    let fixture = Fixture::with_driver(abi::TYPE1v2_IOMMU);
    let _device = fixture.register(false);
    fixture.map(3, 0x1000, 0x4000);
    fixture.pin(0x1000, 4, RW).unwrap();
    fixture.pin(0x2000, 1, RW).unwrap();
    // Another range than was pinned.
    fixture.container.unpin(Iova(0x2000), 2);
    assert_eq!(fixture.locked(), 3, "the second page has one pin left");
    fixture.container.unpin(Iova(0), 16);
    assert_eq!(fixture.locked(), 0);
    fixture.container.unpin(Iova(0x2000), 1);
}

#[test]
fn a_device_that_does_not_let_go_loses_its_pages() {
    let fixture = Fixture::with_driver(abi::TYPE1v2_IOMMU);
    let _device = fixture.register(true);
    fixture.map(3, 0x1000, 0x2000);
    fixture.pin(0x1000, 2, RW).unwrap();
    fixture.unmap_all();
    fixture.machine.assert_clean();
    fixture.container.unpin(Iova(0x1000), 2);
}

#[test]
fn the_last_group_takes_pins_with_it() {
    let fixture = Fixture::with_driver(abi::TYPE1v2_IOMMU);
    let device = fixture.register(false);
    fixture.map(3, 0x1000, 0x2000);
    fixture.pin(0x1000, 2, RW).unwrap();
    fixture.container.remove_group(&fixture.group);
    fixture.machine.assert_clean();
    fixture.container.unregister(&device);
}

#[test]
fn a_driver_reads_and_writes_across_mappings_where_both_are_granted() {
    let fixture = Fixture::with_driver(abi::TYPE1v2_IOMMU);
    for (flags, iova) in [(3, 0x1000), (3, 0x2000), (1, 0x3000), (2, 0x4000)] {
        fixture.map(flags, iova, 0x1000);
    }
    let write = |iova| fixture.container.write(Iova(iova), b"across").map_err(|error| error.errno);
    write(0x1ffd).unwrap();
    let mut seen = [0; 6];
    fixture.container.read(Iova(0x1ffd), &mut seen).unwrap();
    assert_eq!(&seen, b"across");
    assert_eq!(write(0x3000), Err(Errno::EPERM));
    assert_eq!(write(0x4000), Err(Errno::EPERM), "READ is needed too");
    assert_eq!(write(0x4ffd), Err(Errno::EPERM));
    assert_eq!(write(0x8000), Err(Errno::EINVAL));
    let read = fixture.container.read(Iova(0x4000), &mut seen);
    assert_eq!(read.map_err(|error| error.errno), Err(Errno::EPERM));
    assert_eq!(fixture.locked(), 0);
}
