use super::*;
use crate::tests::rig::ARG;
use crate::{Iova, Linux, Segment};

const BITS: u64 = ARG + 0x1003;

/// A tracked page table of `kind` with 16 pages at 1 MiB, and a device on it.
fn tracked(kind: IommuKind) -> (Fixture, Bound, u32) {
    tracked_on(TestMachine::with(Iommu::new(kind)))
}

fn tracked_on(machine: TestMachine) -> (Fixture, Bound, u32) {
    let fixture = Fixture::on(machine);
    let (bound, ioas) = (fixture.device(), fixture.ioas());
    let mut cmd = abi::HwptAlloc {
        size: 48,
        flags: abi::HWPT_ALLOC_DIRTY_TRACKING,
        dev_id: bound.id(),
        pt_id: ioas,
        ..Default::default()
    };
    fixture.call(abi::HWPT_ALLOC, &mut cmd).unwrap();
    bound.attach(cmd.out_hwpt_id).unwrap();
    fixture.map_at(ioas, 0x10_0000, 0, 0x10000).unwrap();
    (fixture, bound, cmd.out_hwpt_id)
}

fn get(hwpt: u32, iova: u64, length: u64, page_size: u64) -> abi::HwptGetDirtyBitmap {
    abi::HwptGetDirtyBitmap {
        size: 48,
        hwpt_id: hwpt,
        flags: 0,
        __reserved: 0,
        iova,
        length,
        page_size,
        data: BITS,
    }
}

fn bits(fixture: &Fixture, hwpt: u32, flags: u32) -> [u8; 2] {
    fixture.client.memory.write(BITS, &[0; 2]).unwrap();
    let mut cmd = abi::HwptGetDirtyBitmap { flags, ..get(hwpt, 0x10_0000, 0x10000, 4096) };
    fixture.call(abi::HWPT_GET_DIRTY_BITMAP, &mut cmd).unwrap();
    let mut seen = [0; 2];
    fixture.client.memory.read(BITS, &mut seen).unwrap();
    seen
}

fn write(bound: &Bound, iova: u64) {
    bound.endpoint().write([Segment { iova: Iova(iova), length: 1 }], &[1]).unwrap();
}

#[test]
fn what_devices_write_is_read_and_cleared_on_every_format() {
    for kind in [IommuKind::Vtd, IommuKind::Amd, IommuKind::Smmuv3, IommuKind::Riscv] {
        let (fixture, bound, hwpt) = tracked(kind);
        write(&bound, 0x10_0000);
        let mut set =
            abi::HwptSetDirtyTracking { size: 16, flags: 1, hwpt_id: hwpt, __reserved: 9 };
        fixture.call(abi::HWPT_SET_DIRTY_TRACKING, &mut set).unwrap();
        assert_eq!(bits(&fixture, hwpt, 0), [0, 0], "{kind:?}: enabling forgets what was before");
        write(&bound, 0x10_1fff);
        write(&bound, 0x10_f000);
        bound.endpoint().read([Segment { iova: Iova(0x10_3000), length: 1 }], &mut [0]).unwrap();
        let no_clear = abi::HWPT_GET_DIRTY_BITMAP_NO_CLEAR;
        assert_eq!(bits(&fixture, hwpt, no_clear), [0b10, 0x80], "{kind:?}");
        assert_eq!(bits(&fixture, hwpt, 0), [0b10, 0x80]);
        assert_eq!(bits(&fixture, hwpt, 0), [0, 0]);
    }
}

#[test]
fn bits_that_are_set_stay_set() {
    let (fixture, bound, hwpt) = tracked(IommuKind::Vtd);
    write(&bound, 0x10_0000);
    fixture.client.memory.write(BITS - 1, &[0xaa, 0x80, 0x01, 0xaa]).unwrap();
    fixture.call(abi::HWPT_GET_DIRTY_BITMAP, &mut get(hwpt, 0x10_0000, 0x10000, 4096)).unwrap();
    let mut seen = [0; 4];
    fixture.client.memory.read(BITS - 1, &mut seen).unwrap();
    assert_eq!(seen, [0xaa, 0x81, 0x01, 0xaa]);
}

#[test]
fn larger_and_smaller_pages_than_the_leaves_are_counted_by_the_client_s_size() {
    let (fixture, bound, hwpt) = tracked(IommuKind::Vtd);
    write(&bound, 0x10_5000);
    fixture.client.memory.write(BITS, &[0; 32]).unwrap();
    fixture.call(abi::HWPT_GET_DIRTY_BITMAP, &mut get(hwpt, 0x10_0000, 0x10000, 0x4000)).unwrap();
    let mut seen = [0; 32];
    fixture.client.memory.read(BITS, &mut seen).unwrap();
    assert_eq!(seen[..2], [0b10, 0]);
    write(&bound, 0x10_1000);
    fixture.call(abi::HWPT_GET_DIRTY_BITMAP, &mut get(hwpt, 0x10_0000, 0x10000, 512)).unwrap();
    fixture.client.memory.read(BITS, &mut seen).unwrap();
    assert_eq!(seen[1], 0xff, "eight bits for the one page");
}

#[test]
fn gaps_and_bitmaps_that_cannot_be_written_are_no_errors() {
    let (fixture, bound, hwpt) = tracked(IommuKind::Vtd);
    write(&bound, 0x10_0000);
    fixture.call(abi::HWPT_GET_DIRTY_BITMAP, &mut get(hwpt, 0, 0x20_0000, 4096)).unwrap();
    assert_eq!(bits(&fixture, hwpt, 1), [1, 0], "nothing behind the gap was read");
    let mut cmd = abi::HwptGetDirtyBitmap { data: 0, ..get(hwpt, 0x10_0000, 0x10000, 4096) };
    fixture.call(abi::HWPT_GET_DIRTY_BITMAP, &mut cmd).unwrap();
}

#[test]
fn dirty_calls_are_refused_in_linuxs_order() {
    let (fixture, bound, hwpt) = tracked(IommuKind::Vtd);
    let ioas = fixture.ioas();
    let mut plain =
        abi::HwptAlloc { size: 48, dev_id: bound.id(), pt_id: ioas, ..Default::default() };
    fixture.call(abi::HWPT_ALLOC, &mut plain).unwrap();
    let plain = plain.out_hwpt_id;
    let mut refused = [
        (Errno::EOPNOTSUPP, abi::HwptGetDirtyBitmap { flags: 2, ..get(99, 0, 0, 0) }),
        (Errno::EOPNOTSUPP, abi::HwptGetDirtyBitmap { __reserved: 1, ..get(99, 0, 0, 0) }),
        (Errno::ENOENT, get(99, 1, 0, 0)),
        (Errno::ENOENT, get(ioas, 1, 0, 0)),
        (Errno::EINVAL, get(plain, 1, 0, 0)),
        (Errno::EINVAL, get(hwpt, 0, 0, 0x1000)),
        (Errno::EOVERFLOW, get(plain, 0x1000, u64::MAX, 0)),
        (Errno::EINVAL, get(hwpt, 0x800, 0x1000, 0x1000)),
        (Errno::EINVAL, get(hwpt, 0, 0x1000, 0)),
        (Errno::EINVAL, get(hwpt, 0, 0x1000, 0x2000)),
        (Errno::EOPNOTSUPP, get(plain, 0, 0x1000, 0x1000)),
    ];
    for (errno, cmd) in &mut refused {
        let shown = *cmd;
        assert_eq!(fixture.errno(abi::HWPT_GET_DIRTY_BITMAP, cmd), *errno, "{shown:x?}");
    }
    let set =
        |flags, hwpt_id| abi::HwptSetDirtyTracking { size: 16, flags, hwpt_id, __reserved: 0 };
    for (errno, mut cmd) in [
        (Errno::EOPNOTSUPP, set(2, 99)),
        (Errno::ENOENT, set(1, 99)),
        (Errno::EOPNOTSUPP, set(1, plain)),
    ] {
        assert_eq!(fixture.errno(abi::HWPT_SET_DIRTY_TRACKING, &mut cmd), errno);
    }
}

#[test]
fn in_linux_7_2_no_bytes_at_all_are_a_range_that_begins_at_0() {
    let machine = TestMachine::of(Linux::V7_2, Iommu::new(IommuKind::Vtd));
    let (fixture, _bound, hwpt) = tracked_on(machine);
    let mut none = get(hwpt, 0, 0, 0x1000);
    assert_eq!(fixture.call(abi::HWPT_GET_DIRTY_BITMAP, &mut none), Ok(0));
    let mut beyond = get(hwpt, 1, 0, 0x1000);
    assert_eq!(fixture.errno(abi::HWPT_GET_DIRTY_BITMAP, &mut beyond), Errno::EOVERFLOW);
}

#[test]
fn an_iommu_without_dirty_bits_makes_no_tracked_page_table() {
    let iommu = Iommu { dirty_tracking: false, ..Iommu::new(IommuKind::Vtd) };
    let fixture = Fixture::on(TestMachine::with(iommu));
    let (bound, ioas) = (fixture.device(), fixture.ioas());
    let mut cmd = abi::HwptAlloc {
        size: 48,
        flags: abi::HWPT_ALLOC_DIRTY_TRACKING,
        dev_id: bound.id(),
        pt_id: ioas,
        ..Default::default()
    };
    assert_eq!(fixture.errno(abi::HWPT_ALLOC, &mut cmd), Errno::EOPNOTSUPP);
}

/// A device that is writing a byte to memory which makes it wait, and the page table that has seen
/// the write.
struct Writing {
    fixture: Fixture,
    slow: crate::tests::rig::Slow,
    hwpt: u32,
    device: std::thread::JoinHandle<()>,
    _bound: Bound,
}

impl Writing {
    fn begin(slow: crate::tests::rig::Slow) -> Self {
        let fixture = Fixture::new();
        let (bound, ioas) = (fixture.device(), fixture.ioas());
        let request = crate::MapRequest {
            space: Arc::new(slow.clone()),
            address: 0,
            length: 4096,
            place: crate::Place::Fixed(Iova(0)),
            prot: crate::tests::rig::RW,
            account: crate::tests::rig::ACCOUNT,
        };
        fixture.context.map(ioas, request).unwrap();
        let flags = crate::HwptFlags::DIRTY_TRACKING;
        let hwpt = fixture.context.alloc_hwpt(ioas, &bound, flags).unwrap();
        bound.attach(hwpt).unwrap();
        let endpoint = Arc::clone(bound.endpoint());
        let segment = Segment { iova: Iova(0), length: 1 };
        slow.hold();
        let device = std::thread::spawn(move || endpoint.write([segment], &[7]).unwrap());
        slow.until_somebody_waits();
        Self { fixture, slow, hwpt, device, _bound: bound }
    }

    /// How many ranges are dirty, and the byte as it is then.
    fn harvest(context: &Context, slow: &crate::tests::rig::Slow, hwpt: u32) -> (u32, u8) {
        let mut ranges = 0;
        let clear = crate::Dirty::Clear;
        context.read_dirty(hwpt, crate::IovaRange::ALL, clear, &mut |_| ranges += 1).unwrap();
        let mut byte = [0];
        slow.memory().read(0, &mut byte).unwrap();
        (ranges, byte[0])
    }
}

#[test]
fn what_is_reported_dirty_has_been_written() {
    let writing = Writing::begin(crate::tests::rig::Slow::new(4096, false));
    // The bit is set, the byte is not.
    let migrator = std::thread::spawn({
        let (context, slow) = (Arc::clone(&writing.fixture.context), writing.slow.clone());
        let hwpt = writing.hwpt;
        move || Writing::harvest(&context, &slow, hwpt)
    });
    std::thread::sleep(std::time::Duration::from_millis(50));
    writing.slow.give();
    writing.device.join().unwrap();
    assert_eq!(migrator.join().unwrap(), (1, 7), "the bit was taken before the byte was there");
}

#[test]
fn what_is_reported_dirty_while_a_device_waits_is_reported_again() {
    let writing = Writing::begin(crate::tests::rig::Slow::new(4096, true));
    let harvest = || Writing::harvest(&writing.fixture.context, &writing.slow, writing.hwpt);
    assert_eq!([harvest(), harvest()], [(1, 0); 2], "nobody waits for the device");
    writing.slow.give();
    writing.device.join().unwrap();
    assert_eq!([harvest(), harvest()], [(1, 7), (0, 7)], "what it wrote then is told");
}
