use super::*;
use crate::tests::rig::{BASE, TestClient, TestMachine};
use ioasis_uapi::Errno;
use zerocopy::{FromBytes, Immutable};

struct Fixture {
    machine: TestMachine,
    client: TestClient,
    context: Arc<Context>,
}

impl Fixture {
    fn bare() -> Self {
        let machine = TestMachine::new();
        let context = Context::new(&machine.machine);
        Self { machine, client: TestClient::new(), context }
    }

    fn new() -> Self {
        let fixture = Self::bare();
        fixture.context.compat_create_ioas().unwrap();
        fixture
    }

    fn attach(&self) -> crate::Bound {
        let bound = self.context.bind(&self.machine.endpoint()).unwrap();
        bound.attach(self.context.compat_ioas_id().unwrap()).unwrap();
        bound
    }

    fn call<T: FromBytes + IntoBytes + Immutable>(&self, code: u32, cmd: &mut T) -> Result<i64> {
        self.client.call(&self.context, code, cmd)
    }

    fn map(&self, flags: u32, iova: u64, vaddr: u64, size: u64) -> Result<i64> {
        self.call(
            abi::IOMMU_MAP_DMA,
            &mut abi::IommuType1DmaMap { argsz: 32, flags, vaddr, iova, size },
        )
    }

    /// The answer, and the size in the struct after the call.
    fn unmap(&self, flags: u32, iova: u64, size: u64) -> (Result<i64>, u64) {
        let mut cmd = abi::IommuType1DmaUnmap { argsz: 24, flags, iova, size };
        let answer = self.call(abi::IOMMU_UNMAP_DMA, &mut cmd);
        (answer, cmd.size)
    }

    fn set_iommu(&self, number: u32) -> Result<i64> {
        self.context.ioctl(&self.client, abi::SET_IOMMU, u64::from(number))
    }
}

const RW: u32 = abi::DMA_MAP_FLAG_READ | abi::DMA_MAP_FLAG_WRITE;

fn errno<T: std::fmt::Debug>(result: Result<T>) -> Errno {
    result.unwrap_err().errno
}

#[test]
fn without_an_ioas_calls_are_enodev_after_the_argument_was_judged() {
    let fixture = Fixture::bare();
    assert_eq!(errno(fixture.context.ioctl(&fixture.client, abi::IOMMU_MAP_DMA, 0)), Errno::EFAULT);
    assert_eq!(errno(fixture.map(1 << 31, 0, BASE, 0x1000)), Errno::EINVAL);
    assert_eq!(errno(fixture.map(RW, 0, BASE, 0x1000)), Errno::ENODEV);
    assert_eq!(errno(fixture.unmap(1 << 31, 0, 0x1000).0), Errno::EINVAL);
    assert_eq!(errno(fixture.unmap(abi::DMA_UNMAP_FLAG_ALL, 1, 1).0), Errno::ENODEV);
    let mut info = abi::IommuType1Info { argsz: 15, ..Default::default() };
    assert_eq!(errno(fixture.call(abi::IOMMU_GET_INFO, &mut info)), Errno::EINVAL);
    info.argsz = 16;
    assert_eq!(errno(fixture.call(abi::IOMMU_GET_INFO, &mut info)), Errno::ENODEV);
    assert_eq!(errno(fixture.set_iommu(2)), Errno::EINVAL);
    assert_eq!(errno(fixture.set_iommu(3)), Errno::ENODEV);
    assert_eq!(
        errno(fixture.context.ioctl(&fixture.client, abi::CHECK_EXTENSION, 4)),
        Errno::ENODEV
    );
}

#[test]
fn maps_need_neither_permission_nor_alignment_before_a_device_comes() {
    let fixture = Fixture::new();
    fixture.map(0, 0x10800, BASE + 0x800, 0x10).unwrap();
    assert_eq!(errno(fixture.map(RW, u64::MAX - 0xfff, BASE, 0x2000)), Errno::EOVERFLOW);
    assert_eq!(errno(fixture.map(RW, 0, u64::MAX - 0xfff, 0x2000)), Errno::EOVERFLOW);
    assert_eq!(errno(fixture.map(RW, 0, BASE, 0)), Errno::EINVAL);
    assert_eq!(errno(fixture.map(RW, 0x10000, BASE, 0x1000)), Errno::EEXIST);
}

#[test]
fn a_map_without_permissions_and_a_page_table_exclude_each_other() {
    let fixture = Fixture::new();
    let bound = fixture.attach();
    assert_eq!(errno(fixture.map(0, 0x1000, BASE, 0x1000)), Errno::EINVAL);
    assert_eq!(errno(fixture.map(0, 0x1000, 1, 0x1000)), Errno::EINVAL, "misaligned");
    assert_eq!(errno(fixture.map(0, 0x1000, 0x1000, 0x1000)), Errno::EFAULT, "pinned before");
    assert_eq!(fixture.machine.machine.ledger.pinned(), 0);
    drop(bound);
    fixture.map(0, 0x1000, BASE, 0x1000).unwrap();
    let bound = fixture.context.bind(&fixture.machine.endpoint()).unwrap();
    let ioas = fixture.context.compat_ioas_id().unwrap();
    assert_eq!(errno(bound.attach(ioas)), Errno::EINVAL);
    let made = fixture.context.alloc_hwpt(ioas, &bound, crate::HwptFlags::NONE);
    assert_eq!(errno(made), Errno::EINVAL);
    assert_eq!(fixture.machine.machine.ledger.pinned(), 0);
    assert_eq!(fixture.unmap(0, 0x1000, 0x1000), (Ok(0), 0x1000));
    bound.attach(ioas).unwrap();
}

#[test]
fn v1_cuts_no_area_behind_its_first_byte() {
    let fixture = Fixture::new();
    fixture.set_iommu(abi::TYPE1_IOMMU).unwrap();
    fixture.map(RW, 0x1000, BASE, 0x3000).unwrap();
    let refused = |iova, size, expected| {
        let (answer, went) = fixture.unmap(0, iova, size);
        assert_eq!((errno(answer), went), expected, "{iova:#x} {size:#x}");
    };
    // iopt_area_split does nothing at the first IOVA: the range is judged uncut, and what went is
    // told.
    refused(0x1001, 0x2fff, (Errno::ENOENT, 0));
    refused(0x1000, 1, (Errno::ENOENT, 0));
    refused(0x1001, 0x3000, (Errno::ENOENT, 0));
    // Anywhere else the cut is judged, and size stays what it was.
    refused(0x1002, 0x2ffe, (Errno::EINVAL, 0x2ffe));
    refused(0x1001, 0x100, (Errno::EINVAL, 0x100));
    refused(0x1001, 0x1fff, (Errno::ENOENT, 0));
    assert_eq!(fixture.unmap(0, 0x1000, 0x2000), (Ok(0), 0x2000), "the last call cut it");
    assert_eq!(fixture.unmap(0, 0x3000, 0x1000), (Ok(0), 0x1000));
}

#[test]
fn memory_that_ends_with_all_addresses_wraps_here() {
    let fixture = Fixture::new();
    assert_eq!(errno(fixture.map(RW, 0, u64::MAX - 0xfff, 0x1000)), Errno::EOVERFLOW);
    fixture.map(RW, 0, u64::MAX - 0xfff, 0xfff).unwrap();
    assert_eq!(errno(fixture.map(RW, 0x1000, u64::MAX, 1)), Errno::EOVERFLOW);
}

#[test]
fn v2_keeps_what_it_removed_before_a_cut_map_and_says_how_much() {
    let fixture = Fixture::new();
    fixture.set_iommu(abi::TYPE1v2_IOMMU).unwrap();
    fixture.map(RW, 0x1000, BASE, 0x1000).unwrap();
    fixture.map(RW, 0x2000, BASE, 0x2000).unwrap();
    let (answer, size) = fixture.unmap(0, 0x1000, 0x2000);
    assert_eq!((errno(answer), size), (Errno::ENOENT, 0x1000));
    assert_eq!(fixture.unmap(0, 0x5000, 0x1000), (Ok(0), 0), "nothing there is no error");
    let (answer, _) = fixture.unmap(abi::DMA_UNMAP_FLAG_ALL, 0x1000, 0);
    assert_eq!(errno(answer), Errno::EINVAL);
    assert_eq!(fixture.unmap(abi::DMA_UNMAP_FLAG_ALL, 0, 0), (Ok(0), 0x2000));
}

#[test]
fn everything_but_the_last_byte_is_no_special_range_here() {
    let fixture = Fixture::new();
    fixture.map(RW, u64::MAX - 0xfff, BASE, 0x1000).unwrap();
    fixture.map(RW, 0x1000, BASE, 0x1000).unwrap();
    let (answer, size) = fixture.unmap(0, 0, u64::MAX);
    assert_eq!((errno(answer), size), (Errno::ENOENT, 0x1000));
}

#[test]
fn v1_cuts_maps_at_both_ends_and_the_rest_still_works() {
    let fixture = Fixture::new();
    fixture.set_iommu(abi::TYPE1_IOMMU).unwrap();
    let bound = fixture.attach();
    fixture.map(RW, 0x10_0000, BASE, 0x10_0000).unwrap();
    assert_eq!(fixture.unmap(0, 0x14_0000, 0x1000), (Ok(0), 0x1000));
    let reach = |iova| {
        let segment = crate::Segment { iova: Iova(iova), length: 1 };
        bound.endpoint().read([segment], &mut [0]).is_ok()
    };
    assert!(
        reach(0x13_ffff)
            && !reach(0x14_0000)
            && !reach(0x14_0fff)
            && reach(0x14_1000)
            && reach(0x1f_ffff)
    );
    assert_eq!(fixture.machine.machine.ledger.pinned(), 255);
    assert_eq!(fixture.unmap(0, 0x10_0000, 0x10_0000), (Ok(0), 0xf_f000));
    assert_eq!(fixture.machine.machine.ledger.pinned(), 0);
}

#[test]
fn set_iommu_may_be_repeated_and_v1_wants_nothing_large_mapped() {
    let fixture = Fixture::new();
    fixture.set_iommu(abi::TYPE1v2_IOMMU).unwrap();
    let bound = fixture.attach();
    fixture.map(RW, 0x1000, BASE, 0x1000).unwrap();
    assert_eq!(errno(fixture.set_iommu(abi::TYPE1_IOMMU)), Errno::EINVAL);
    fixture.unmap(abi::DMA_UNMAP_FLAG_ALL, 0, 0).0.unwrap();
    fixture.set_iommu(abi::TYPE1_IOMMU).unwrap();
    fixture.set_iommu(abi::TYPE1v2_IOMMU).unwrap();
    assert!(!fixture.context.compat_ioas().unwrap().huge_pages(), "v2 does not turn them on again");
    drop(bound);
}

#[test]
fn info_always_says_what_it_needs_and_never_shows_half_a_chain() {
    let fixture = Fixture::new();
    let mut bytes = [0xaa_u8; 128];
    for argsz in [16_u32, 20, 24, 40, 71] {
        bytes.fill(0xaa);
        bytes[..4].copy_from_slice(&argsz.to_ne_bytes());
        fixture.call(abi::IOMMU_GET_INFO, &mut bytes).unwrap();
        let info = abi::IommuType1Info::read_from_prefix(&bytes).unwrap().0;
        assert_eq!((info.argsz, info.flags), (72, 3));
        assert!(argsz < 24 || info.cap_offset == 0);
        assert!(
            bytes[argsz as usize..].iter().all(|&byte| byte == 0xaa),
            "nothing beyond argsz is touched"
        );
    }
    bytes[..4].copy_from_slice(&128_u32.to_ne_bytes());
    fixture.call(abi::IOMMU_GET_INFO, &mut bytes).unwrap();
    let info = abi::IommuType1Info::read_from_prefix(&bytes).unwrap().0;
    assert_eq!((info.argsz, info.cap_offset), (72, 24), "argsz goes down, too");
    let avail = abi::IommuType1InfoDmaAvail::read_from_prefix(&bytes[24..]).unwrap().0;
    assert_eq!((avail.header.id, avail.header.next, avail.avail), (3, 40, u32::MAX));
    let ranges = abi::IommuType1InfoCapIovaRange::read_from_prefix(&bytes[40..]).unwrap().0;
    assert_eq!((ranges.header.id, ranges.header.next, ranges.nr_iovas), (1, 0, 1));
}
