use std::sync::Arc;

use ioasis_uapi::Errno;
use ioasis_uapi::iommufd::{self as abi, test};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::testing::{BASE, TestClient};
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
