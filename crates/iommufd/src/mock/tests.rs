use std::sync::Arc;

use ioasis_uapi::Errno;
use ioasis_uapi::iommufd::{self as abi, test};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::tests::rig::{BASE, TestClient};
use crate::{Context, Machine};

/// An open file on a machine with mock hardware.
struct Rig {
    client: TestClient,
    machine: Arc<Machine>,
    context: Arc<Context>,
    ioas: u32,
}

impl Rig {
    fn new() -> Self {
        let machine = Machine::with_mock();
        let context = Context::new(&machine);
        let ioas = context.alloc_ioas().unwrap();
        Self { client: TestClient::new(), machine, context, ioas }
    }

    fn test<T>(&self, op: u32, id: u32, body: &mut T) -> Result<i64, Errno>
    where
        T: FromBytes + IntoBytes + Immutable + KnownLayout,
    {
        let size = u32::try_from(size_of::<test::TestCmd>()).unwrap();
        let mut cmd = test::TestCmd { size, op, id, ..Default::default() };
        cmd.body.as_mut_bytes()[..size_of::<T>()].copy_from_slice(body.as_bytes());
        let answer = self.client.call(&self.context, test::TEST_CMD, &mut cmd);
        *body = T::read_from_prefix(cmd.body.as_bytes()).unwrap().0;
        answer.map_err(|error| error.errno)
    }

    fn device(&self, dev_flags: u32) -> test::TestCmdMockDomainFlags {
        let mut body = test::TestCmdMockDomainFlags { dev_flags, ..Default::default() };
        self.test(test::TEST_OP_MOCK_DOMAIN_FLAGS, self.ioas, &mut body).unwrap();
        body
    }

    fn map(&self, iova: u64, address: u64, length: u64) {
        let mut cmd = abi::IoasMap {
            size: 40,
            flags: abi::IOAS_MAP_FIXED_IOVA | abi::IOAS_MAP_READABLE | abi::IOAS_MAP_WRITEABLE,
            ioas_id: self.ioas,
            user_va: address,
            length,
            iova,
            ..Default::default()
        };
        self.client.call(&self.context, abi::IOAS_MAP, &mut cmd).unwrap();
    }

    fn refs(&self, uptr: u64, length: u64, refs: u32) -> Result<i64, Errno> {
        let mut body = test::TestCmdCheckRefs { uptr, length, refs, ..Default::default() };
        self.test(test::TEST_OP_MD_CHECK_REFS, 0, &mut body)
    }
}

const IOVA: u64 = test::MOCK_APERTURE_START;

#[test]
fn a_page_table_leads_to_the_callers_own_pages_and_no_others() {
    let rig = Rig::new();
    let device = rig.device(0);
    rig.map(IOVA, BASE, 0x4000);
    let mut check = test::TestCmdCheckMap { iova: IOVA, length: 0x4000, uptr: BASE };
    assert_eq!(rig.test(test::TEST_OP_MD_CHECK_MAP, device.out_hwpt_id, &mut check), Ok(0));
    check.uptr += 0x1000;
    let other = rig.test(test::TEST_OP_MD_CHECK_MAP, device.out_hwpt_id, &mut check);
    assert_eq!(other, Err(Errno::EINVAL));
    check.uptr = BASE + 1;
    let misaligned = rig.test(test::TEST_OP_MD_CHECK_MAP, device.out_hwpt_id, &mut check);
    assert_eq!(misaligned, Err(Errno::EINVAL));
}

#[test]
fn a_page_is_pinned_once_for_each_map_however_many_devices_see_it() {
    let rig = Rig::new();
    assert_eq!(rig.refs(BASE, 0x2000, 0), Ok(0));
    let first = rig.device(0);
    rig.device(0);
    rig.map(IOVA, BASE, 0x2000);
    assert_eq!(rig.refs(BASE, 0x2000, 1), Ok(0));
    rig.map(IOVA + 0x10_0000, BASE, 0x1000);
    assert_eq!(rig.refs(BASE, 0x1000, 2), Ok(0));
    assert_eq!(rig.refs(BASE, 0x2000, 2), Err(Errno::EIO));
    rig.context.destroy(first.out_stdev_id).unwrap();
    assert_eq!(rig.refs(BASE + 0x1000, 0x1000, 1), Ok(0));
}

#[test]
fn closing_the_file_destroys_the_mock_devices_and_all_pins() {
    let Rig { client, machine, context, ioas } = Rig::new();
    let rig = Rig { client, machine: Arc::clone(&machine), context, ioas };
    rig.device(0);
    rig.map(IOVA, BASE, 0x2000);
    assert_eq!(machine.ledger.pinned(), 2);
    rig.context.close();
    drop(rig);
    assert_eq!(machine.ledger.pinned(), 0);
    assert_eq!(machine.phys.windows(), 0);
}

#[test]
fn a_device_without_dirty_tracking_is_not_attached_where_it_is_asked_for() {
    let rig = Rig::new();
    let device = rig.device(0);
    let mut cmd = abi::HwptAlloc {
        size: 48,
        flags: abi::HWPT_ALLOC_DIRTY_TRACKING,
        dev_id: device.out_idev_id,
        pt_id: rig.ioas,
        ..Default::default()
    };
    rig.client.call(&rig.context, abi::HWPT_ALLOC, &mut cmd).unwrap();
    let mut body = test::TestCmdMockDomainFlags {
        dev_flags: test::MOCK_FLAGS_DEVICE_NO_DIRTY,
        ..Default::default()
    };
    let hwpt = cmd.out_hwpt_id;
    let refused = rig.test(test::TEST_OP_MOCK_DOMAIN_FLAGS, hwpt, &mut body);
    assert_eq!(refused, Err(Errno::EINVAL));
    body.dev_flags = 1 << 5;
    let unknown = rig.test(test::TEST_OP_MOCK_DOMAIN_FLAGS, hwpt, &mut body);
    assert_eq!(unknown, Err(Errno::EINVAL));
}

#[test]
fn every_failed_step_of_a_mock_device_leaves_nothing() {
    let mut rig = Rig::new();
    rig.map(IOVA, BASE, 0x2000);
    let make = |rig: &mut Rig| {
        let mut body = test::TestCmdMockDomain::default();
        rig.test(test::TEST_OP_MOCK_DOMAIN, rig.ioas, &mut body)
    };
    let failed = |rig: &mut Rig, _, answer| {
        assert_eq!(answer, Err(Errno::ENOMEM));
        assert_eq!(rig.machine.ledger.pinned(), 0);
        assert_eq!(rig.context.objects().ids(), [rig.ioas]);
        Ok::<_, Errno>(())
    };
    let (answer, steps) = crate::inject::fail_each(&mut rig, make, failed).unwrap();
    assert_eq!((answer, steps > 4), (Ok(0), true));
}

#[test]
fn an_unknown_operation_is_not_supported_and_without_the_hardware_there_is_no_command() {
    let rig = Rig::new();
    let unknown = rig.test(99, 0, &mut test::TestCmdMockDomain::default());
    assert_eq!(unknown, Err(Errno::EOPNOTSUPP));
    let plain = Context::new(&Machine::new());
    let mut cmd = test::TestCmd { size: 72, op: 2, ..Default::default() };
    let refused = rig.client.call(&plain, test::TEST_CMD, &mut cmd).unwrap_err();
    assert_eq!(refused.errno, Errno::ENOTTY);
}

impl Rig {
    fn hwpt(&self, flags: u32, dev_id: u32, pt_id: u32, nested: bool) -> u32 {
        const DATA: u64 = BASE + 0x20_0000;
        self.client.memory.write(DATA, &[0; 8]).unwrap();
        let mut cmd = abi::HwptAlloc { size: 48, flags, dev_id, pt_id, ..Default::default() };
        if nested {
            (cmd.data_type, cmd.data_len, cmd.data_uptr) = (test::HWPT_DATA_SELFTEST, 8, DATA);
        }
        self.client.call(&self.context, abi::HWPT_ALLOC, &mut cmd).unwrap();
        cmd.out_hwpt_id
    }

    fn access(&self, flags: u32) -> u32 {
        let mut body = test::TestCmdCreateAccess { flags, ..Default::default() };
        self.test(test::TEST_OP_CREATE_ACCESS, self.ioas, &mut body).unwrap();
        body.out_access_fd
    }

    fn rw(&self, fd: u32, (iova, length, flags): (u64, u64, u32)) -> Result<i64, Errno> {
        let mut body =
            test::TestCmdAccessRw { iova, length, uptr: BASE + 0x10_0000, flags, __padding: 0 };
        self.test(test::TEST_OP_ACCESS_RW, fd, &mut body)
    }

    fn byte(&self, address: u64) -> u8 {
        let mut byte = [0];
        self.client.memory.read(address, &mut byte).unwrap();
        byte[0]
    }
}

#[test]
fn a_nested_page_table_is_none_of_the_mocks() {
    let rig = Rig::new();
    let device = rig.device(0);
    rig.map(IOVA, BASE, 0x4000);
    let tracks = abi::HWPT_ALLOC_NEST_PARENT | abi::HWPT_ALLOC_DIRTY_TRACKING;
    let parent = rig.hwpt(tracks, device.out_idev_id, rig.ioas, false);
    let nested = rig.hwpt(0, device.out_idev_id, parent, true);
    let mut check = test::TestCmdCheckMap { iova: IOVA, length: 0x4000, uptr: BASE };
    let mut dirty = test::TestCmdDirty {
        iova: IOVA,
        length: 0x4000,
        page_size: 0x1000,
        uptr: BASE,
        ..Default::default()
    };
    for (hwpt, of_check, of_dirty) in [
        (parent, Ok(0), Err(Errno::EINVAL)),
        (nested, Err(Errno::ENOENT), Err(Errno::ENOENT)),
        (device.out_idev_id, Err(Errno::ENOENT), Err(Errno::ENOENT)),
    ] {
        assert_eq!(rig.test(test::TEST_OP_MD_CHECK_MAP, hwpt, &mut check), of_check);
        assert_eq!(rig.test(test::TEST_OP_DIRTY, hwpt, &mut dirty), of_dirty);
    }
    // Which page table it is, is asked before where it leads, and after the shape of a bitmap.
    check.iova = 1;
    assert_eq!(rig.test(test::TEST_OP_MD_CHECK_MAP, nested, &mut check), Err(Errno::ENOENT));
    dirty.page_size = 0;
    assert_eq!(rig.test(test::TEST_OP_DIRTY, nested, &mut dirty), Err(Errno::EINVAL));
}

#[test]
fn a_map_is_compared_page_by_page_up_to_where_the_caller_has_none() {
    let rig = Rig::new();
    let device = rig.device(0);
    let end = BASE + crate::tests::rig::SIZE as u64;
    rig.map(IOVA, end - 0x2000, 0x2000);
    let mut check = test::TestCmdCheckMap { iova: IOVA, length: 0x3000, uptr: end - 0x2000 };
    let beyond = rig.test(test::TEST_OP_MD_CHECK_MAP, device.out_hwpt_id, &mut check);
    assert_eq!(beyond, Err(Errno::EFAULT));
    check.iova = IOVA + 0x1000;
    let other = rig.test(test::TEST_OP_MD_CHECK_MAP, device.out_hwpt_id, &mut check);
    assert_eq!(other, Err(Errno::EINVAL), "the first page is another");
}

#[test]
fn a_nested_page_table_asks_no_mock_device_for_dirty_bits() {
    let rig = Rig::new();
    let device = rig.device(0);
    let tracks = abi::HWPT_ALLOC_NEST_PARENT | abi::HWPT_ALLOC_DIRTY_TRACKING;
    let parent = rig.hwpt(tracks, device.out_idev_id, rig.ioas, false);
    let nested = rig.hwpt(0, device.out_idev_id, parent, true);
    let mut body = test::TestCmdMockDomainFlags {
        dev_flags: test::MOCK_FLAGS_DEVICE_NO_DIRTY,
        ..Default::default()
    };
    let op = test::TEST_OP_MOCK_DOMAIN_FLAGS;
    assert_eq!(rig.test(op, parent, &mut body), Err(Errno::EINVAL));
    assert_eq!(rig.test(op, nested, &mut body), Ok(0));
    assert_eq!(body.out_hwpt_id, nested);
    let mut body = test::TestCmdMockDomainReplace { pt_id: parent };
    let plain = rig.device(test::MOCK_FLAGS_DEVICE_NO_DIRTY).out_stdev_id;
    let replace = test::TEST_OP_MOCK_DOMAIN_REPLACE;
    assert_eq!(rig.test(replace, plain, &mut body), Err(Errno::EINVAL));
    body.pt_id = nested;
    assert_eq!(rig.test(replace, plain, &mut body), Ok(0));
}

/// `mdev->viommu` and `mdev->vdev_id` are those of the attach.
#[test]
fn an_event_goes_by_the_virtual_id_that_the_device_was_attached_under() {
    let rig = Rig::new();
    let device = rig.device(0);
    let parent = rig.hwpt(abi::HWPT_ALLOC_NEST_PARENT, device.out_idev_id, rig.ioas, false);
    let mut cmd = abi::ViommuAlloc {
        size: 40,
        type_: test::VIOMMU_TYPE_SELFTEST,
        dev_id: device.out_idev_id,
        hwpt_id: parent,
        ..Default::default()
    };
    rig.client.call(&rig.context, abi::VIOMMU_ALLOC, &mut cmd).unwrap();
    let viommu = cmd.out_viommu_id;
    let vdevice = |virt_id| {
        let mut cmd = abi::VdeviceAlloc {
            size: 24,
            viommu_id: viommu,
            dev_id: device.out_idev_id,
            virt_id,
            ..Default::default()
        };
        rig.client.call(&rig.context, abi::VDEVICE_ALLOC, &mut cmd).unwrap();
        cmd.out_vdevice_id
    };
    let mut cmd = abi::VeventqAlloc {
        size: 32,
        viommu_id: viommu,
        type_: test::VEVENTQ_TYPE_SELFTEST,
        veventq_depth: 8,
        ..Default::default()
    };
    rig.client.call(&rig.context, abi::VEVENTQ_ALLOC, &mut cmd).unwrap();
    let queue = rig.client.take_file();
    let nested = [0, 1].map(|_| rig.hwpt(0, device.out_idev_id, viommu, true));
    let trigger = || {
        let mut body = test::TestCmdTriggerVevent { dev_id: device.out_idev_id };
        rig.test(test::TEST_OP_TRIGGER_VEVENT, 0, &mut body)
    };
    let attach = |pt_id| {
        let mut body = test::TestCmdMockDomainReplace { pt_id };
        rig.test(test::TEST_OP_MOCK_DOMAIN_REPLACE, device.out_stdev_id, &mut body)
    };
    let seen = || {
        let at = BASE + 0x18_0000;
        let read = queue.queue().unwrap().read(&rig.client, at, 12).unwrap();
        assert_eq!(read, 12, "a header and an event");
        let mut id = [0; 4];
        rig.client.memory.read(at + 8, &mut id).unwrap();
        u32::from_le_bytes(id)
    };
    assert_eq!(trigger(), Err(Errno::ENOENT), "not attached in the virtual IOMMU");
    assert_eq!(attach(nested[0]), Err(Errno::ENOENT), "without a virtual id");
    let first = vdevice(0x99);
    attach(nested[0]).unwrap();
    trigger().unwrap();
    rig.context.destroy(first).unwrap();
    trigger().unwrap();
    let second = vdevice(0x77);
    attach(nested[1]).unwrap();
    trigger().unwrap();
    assert_eq!([seen(), seen(), seen()], [0x99; 3], "the virtual IOMMU stayed the same");
    attach(parent).unwrap();
    assert_eq!(trigger(), Err(Errno::ENOENT));
    attach(nested[0]).unwrap();
    trigger().unwrap();
    assert_eq!(seen(), 0x77);
    rig.context.destroy(second).unwrap();
}

#[test]
fn a_slow_write_writes_all_or_nothing() {
    let rig = Rig::new();
    let end = BASE + crate::tests::rig::SIZE as u64;
    rig.client.memory.write(BASE + 0x10_0000, &[7; 0x3000]).unwrap();
    // The last of three pages is not there.
    rig.map(IOVA, end - 0x2000, 0x3000);
    let fd = rig.access(0);
    let write = test::MOCK_ACCESS_RW_WRITE;
    let slow = write | test::MOCK_ACCESS_RW_SLOW_PATH;
    assert_eq!(rig.rw(fd, (IOVA, 0x3000, slow)), Err(Errno::EFAULT));
    assert_eq!([rig.byte(end - 0x2000), rig.byte(end - 1)], [0, 0]);
    assert_eq!(rig.rw(fd, (IOVA + 0x800, 0x1001, slow)), Ok(0));
    assert_eq!([rig.byte(end - 0x1801), rig.byte(end - 0x1800), rig.byte(end - 0x800)], [0, 7, 7]);
    // copy_to_user goes as far as it comes.
    assert_eq!(rig.rw(fd, (IOVA, 0x3000, write)), Err(Errno::EFAULT));
    assert_eq!([rig.byte(end - 0x2000), rig.byte(end - 1)], [7, 7]);
}

/// `__iommufd_test_syz_conv_iova`: the number of an area and an offset in one word.
#[test]
fn the_kernels_fuzzer_names_an_iova_by_the_area_it_is_in() {
    let rig = Rig::new();
    let syz = test::MOCK_FLAGS_ACCESS_SYZ;
    rig.map(IOVA + 0x10_0000, BASE + 0x8000, 0x1000);
    rig.map(IOVA, BASE, 0x2000);
    rig.client.memory.write(BASE + 0x1002, &[1]).unwrap();
    rig.client.memory.write(BASE + 0x8002, &[2]).unwrap();
    let fd = rig.access(test::MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES);
    let at = |area: u64, offset: u64| area | offset << 32;
    for (iova, answer, byte) in [
        (at(0, 0x1002), Ok(0), 1),
        (at(1, 2), Ok(0), 2),
        (at(2, 0x1002), Err(Errno::ENOENT), 2),
        (at(0, 0x2000), Err(Errno::ENOENT), 2),
    ] {
        assert_eq!(rig.rw(fd, (iova, 1, syz)), answer, "{iova:#x}");
        assert_eq!(rig.byte(BASE + 0x10_0000), byte);
    }
    let mut pages = test::TestCmdAccessPages {
        flags: syz,
        iova: at(1, 0),
        length: 0x1000,
        uptr: BASE + 0x8000,
        ..Default::default()
    };
    assert_eq!(rig.test(test::TEST_OP_ACCESS_PAGES, fd, &mut pages), Ok(0));
    pages.uptr = BASE;
    assert_eq!(rig.test(test::TEST_OP_ACCESS_PAGES, fd, &mut pages), Err(Errno::EBADE));
    let copy = |src_iova, ioas| {
        let mut cmd = abi::IoasCopy {
            size: 40,
            flags: abi::IOAS_MAP_FIXED_IOVA | abi::IOAS_MAP_READABLE | syz,
            dst_ioas_id: rig.ioas,
            src_ioas_id: ioas,
            length: 0x1000,
            dst_iova: IOVA + 0x20_0000,
            src_iova,
        };
        let answer = rig.client.call(&rig.context, abi::IOAS_COPY, &mut cmd);
        (answer.map_err(|error| error.errno), cmd.flags & syz, cmd.src_iova)
    };
    assert_eq!(copy(at(1, 0), 99), (Err(Errno::ENOENT), syz, at(1, 0)));
    assert_eq!(copy(at(7, 0), rig.ioas), (Err(Errno::ENOENT), syz, at(7, 0)), "IOVA 0");
    assert_eq!(
        copy(at(1, 0), rig.ioas),
        (Ok(0), 0, IOVA + 0x10_0000),
        "the reply has what it became"
    );
    rig.client.files.take().iter().for_each(|file| file.close());
}

#[test]
fn only_a_dma_buf_is_revoked() {
    let rig = Rig::new();
    let revoke = |fd: u32| {
        let mut body = test::TestCmdDmabufRevoke { dmabuf_fd: fd.cast_signed(), revoked: 1 };
        rig.test(test::TEST_OP_DMABUF_REVOKE, 0, &mut body)
    };
    assert_eq!(revoke(5000), Err(Errno::EBADF));
    let access = rig.access(0);
    assert_eq!(revoke(access), Err(Errno::EINVAL));
    let memory: Arc<dyn crate::AddressSpace> = crate::tests::rig::Buffer::new(&rig.client.memory);
    let foreign = Arc::new(Foreign(memory));
    let fd = crate::Client::install(&rig.client, foreign, crate::OnExec::Close).unwrap();
    assert_eq!(revoke(fd.cast_unsigned()), Err(Errno::EOPNOTSUPP), "a dma-buf of somebody else");
    let mut body = test::TestCmdDmabufGet { length: 4096, open_flags: 0 };
    let fd = rig.test(test::TEST_OP_DMABUF_GET, 0, &mut body).unwrap();
    assert_eq!(revoke(u32::try_from(fd).unwrap()), Ok(0));
}

/// A dma-buf that is not the mock's.
#[derive(Debug)]
struct Foreign(Arc<dyn crate::AddressSpace>);

impl crate::ClientFile for Foreign {
    fn name(&self) -> &'static str {
        "/dmabuf:"
    }

    fn memory(&self) -> Option<Arc<dyn crate::AddressSpace>> {
        Some(Arc::clone(&self.0))
    }

    fn close(&self) {}
}

#[test]
fn a_mock_device_without_pasids_takes_any() {
    let rig = Rig::new();
    for (flags, wide) in [(0, Ok(0)), (test::MOCK_FLAGS_DEVICE_PASID, Err(Errno::EINVAL))] {
        let device = rig.device(flags);
        let hwpt = rig.hwpt(abi::HWPT_ALLOC_PASID, device.out_idev_id, rig.ioas, false);
        let replace = test::TEST_OP_MOCK_DOMAIN_REPLACE;
        let mut body = test::TestCmdMockDomainReplace { pt_id: hwpt };
        rig.test(replace, device.out_stdev_id, &mut body).unwrap();
        let attach = |pasid| {
            let mut body = test::TestCmdPasidAttach { pasid, pt_id: hwpt };
            rig.test(test::TEST_OP_PASID_ATTACH, device.out_stdev_id, &mut body)
        };
        assert_eq!(attach(1 << 30), wide);
        // The one whose every other attach fails, where the IOMMU is told of it.
        let reserved = test::TEST_PASID_RESERVED;
        attach(reserved).unwrap();
        let other = rig.hwpt(abi::HWPT_ALLOC_PASID, device.out_idev_id, rig.ioas, false);
        let mut body = test::TestCmdPasidReplace { pasid: reserved, pt_id: other };
        let replaced = rig.test(test::TEST_OP_PASID_REPLACE, device.out_stdev_id, &mut body);
        assert_eq!(replaced, if flags == 0 { Ok(0) } else { Err(Errno::ENOMEM) });
        let mut body = test::TestCmdPasidCheck { pasid: reserved, hwpt_id: other };
        let check = rig.test(test::TEST_OP_PASID_CHECK_HWPT, device.out_stdev_id, &mut body);
        assert_eq!(check.is_ok(), flags == 0);
    }
}
