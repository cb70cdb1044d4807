//! Mock devices: each in a group of its own, behind the one mock IOMMU.
//!
//! A mock device is an object of its own kind in a context (`out_stdev_id`), beside the bound
//! device (`out_idev_id`). Destroying it detaches and unbinds the device.
//!
//! `MockDevice::state` is a leaf lock.

use std::sync::Arc;

use ioasis_iommupt::fmt::AmdV1;
use ioasis_iommupt::{Config, Iova, IovaRange, PageTable, Quiesce};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;
use zerocopy::IntoBytes;

use super::Test;
use super::nested::{CACHES, MockNested, MockViommu};
use crate::device::Device;
use crate::hw::attachment::Attachment;
use crate::hw::endpoint::Endpoint;
use crate::hw::group::Group;
use crate::hw::iommu::{EndpointConfig, Iommu};
use crate::hw::ops::{AttachTo, IommuOps, NestedOps, PagingTable, UserData, ViommuOps};
use crate::hwpt::Hwpt;
use crate::inject::step;
use crate::object::{Head, Held, Object, Tracked};
use crate::open::Bound;
use crate::params::Linux;

/// The format: five levels of 2 KiB pages, 56 bits.
type Format = AmdV1<5, 11>;

/// Tables one mock HWPT may have.
const TABLES_MAX: usize = 1 << 16;

#[derive(Debug)]
struct State {
    /// What stands for the device's own translation cache.
    cache: [u32; CACHES],
    /// PASID 1024 was attached once: the next attach of it fails.
    pasid_armed: bool,
}

/// One mock device.
#[derive(Debug)]
pub(super) struct MockDevice {
    /// `MOCK_FLAGS_DEVICE_*`. Immutable.
    flags: u32,
    /// Whose rules hold. Immutable.
    linux: Linux,
    state: Mutex<State>,
}

impl MockDevice {
    fn new(flags: u32, linux: Linux) -> Result<Arc<Self>> {
        let known = abi::test::MOCK_FLAGS_DEVICE_NO_DIRTY | abi::test::MOCK_FLAGS_DEVICE_PASID;
        if flags & !known != 0 {
            return refuse!(EINVAL, "unknown flags of a mock device", u64::from(flags));
        }
        step("a mock device")?;
        let state =
            State { cache: [abi::test::TEST_DEV_CACHE_DEFAULT; CACHES], pasid_armed: false };
        Ok(Arc::new(Self { flags, linux, state: Mutex::new(state) }))
    }

    /// Runs `with` on the device's cache.
    pub(super) fn with_cache(&self, with: impl FnOnce(&mut [u32; CACHES])) {
        with(&mut self.state.lock().cache);
    }

    /// The mock device that is described so.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a device of another kind.
    pub(super) fn of(device: &EndpointConfig) -> Result<&Self> {
        match device.private.as_deref().and_then(|private| private.downcast_ref()) {
            Some(device) => Ok(device),
            None => refuse!(EINVAL, "the device is no mock device"),
        }
    }
}

/// The operations of the mock IOMMU. Linux: `mock_ops` in `selftest.c`.
#[derive(Debug)]
pub(super) struct MockIommu;

impl IommuOps for MockIommu {
    fn hw_info(&self, _: &Iommu, _: &EndpointConfig, wanted: u32) -> Result<(u32, Vec<u8>)> {
        if wanted != abi::HW_INFO_TYPE_DEFAULT && wanted != abi::test::HW_INFO_TYPE_SELFTEST {
            return refuse!(EOPNOTSUPP, "the mock IOMMU has one description", u64::from(wanted));
        }
        step("a hardware description")?;
        let info = abi::test::TestHwInfo { flags: 0, test_reg: abi::test::HW_INFO_SELFTEST_REGVAL };
        Ok((abi::test::HW_INFO_TYPE_SELFTEST, info.as_bytes().to_vec()))
    }

    fn tracks_dirty(&self, _iommu: &Iommu, device: &EndpointConfig) -> bool {
        MockDevice::of(device)
            .is_ok_and(|device| device.flags & abi::test::MOCK_FLAGS_DEVICE_NO_DIRTY == 0)
    }

    fn alloc_paging(
        &self,
        _iommu: &Iommu,
        device: &EndpointConfig,
        flags: u32,
        data: Option<&UserData<'_>>,
        quiesce: Arc<dyn Quiesce>,
    ) -> Result<PagingTable> {
        let known =
            abi::HWPT_ALLOC_DIRTY_TRACKING | abi::HWPT_ALLOC_NEST_PARENT | abi::HWPT_ALLOC_PASID;
        // What a fault queue is for is the core's business.
        if flags & !(known | abi::HWPT_FAULT_ID_VALID) != 0 {
            return refuse!(EOPNOTSUPP, "flags the mock IOMMU does not have", u64::from(flags));
        }
        let config: abi::test::HwptSelftest = match data {
            None => abi::test::HwptSelftest::default(),
            Some(data) if data.kind != abi::test::HWPT_DATA_SELFTEST => {
                return refuse!(EOPNOTSUPP, "data of another IOMMU", u64::from(data.kind));
            }
            Some(data) => data.read(abi::test::HWPT_DATA_SELFTEST, size_of::<u32>())?,
        };
        make_table(config.pagetable_type, MockDevice::of(device)?.linux, quiesce)
    }

    fn nests_directly(&self) -> bool {
        true
    }

    fn alloc_nested(
        &self,
        _iommu: &Iommu,
        flags: u32,
        data: &UserData<'_>,
    ) -> Result<Box<dyn NestedOps>> {
        MockNested::make(flags, data)
    }

    fn has_viommu(&self, _iommu: &Iommu, kind: u32) -> bool {
        kind == abi::test::VIOMMU_TYPE_SELFTEST
    }

    fn viommu_init(
        &self,
        _iommu: &Iommu,
        _kind: u32,
        data: Option<&UserData<'_>>,
    ) -> Result<Box<dyn ViommuOps>> {
        step("a mock virtual IOMMU")?;
        MockViommu::make(data)
    }

    fn judges_nested_attach(&self) -> bool {
        false
    }

    fn attach(&self, device: &EndpointConfig, pasid: u32, to: AttachTo) -> Result<()> {
        if pasid != abi::test::TEST_PASID_RESERVED {
            return Ok(());
        }
        let mut state = MockDevice::of(device)?.state.lock();
        if to == AttachTo::Blocked {
            state.pasid_armed = false;
            return Ok(());
        }
        let armed = std::mem::replace(&mut state.pasid_armed, true);
        if armed {
            state.pasid_armed = false;
            return refuse!(ENOMEM, "every other attach of this PASID fails", u64::from(pasid));
        }
        Ok(())
    }
}

/// An empty table of type `kind`. What is mapped as 4 KiB is one leaf of two items; Linux 7.2 tells
/// the first one's dirty state alone, which here is that of a leaf of 2 KiB.
fn make_table(kind: u32, linux: Linux, quiesce: Arc<dyn Quiesce>) -> Result<PagingTable> {
    let page = 1_u64 << 12;
    let huge = match kind {
        abi::test::MOCK_IOMMUPT_DEFAULT => false,
        abi::test::MOCK_IOMMUPT_HUGE => true,
        _ => return refuse!(EOPNOTSUPP, "unknown type of mock page table", u64::from(kind)),
    };
    step("a mock page table")?;
    let sizes = match linux {
        _ if huge => abi::test::MOCK_HUGE_PAGE_SIZE | page,
        Linux::V7_2 => !page,
        Linux::V7_3 => u64::MAX,
    };
    let config = Config { tables_max: TABLES_MAX, page_sizes: sizes, iova_lg2: 56, quiesce };
    let (writer, _) = PageTable::<Format>::new(config)?;
    let writer: Box<dyn ioasis_iommupt::TableWriter> = Box::new(writer);
    let (aperture, page_sizes) = if huge {
        (writer.aperture(), sizes)
    } else {
        let aperture = IovaRange::closed(
            Iova(abi::test::MOCK_APERTURE_START),
            Iova(abi::test::MOCK_APERTURE_LAST),
        );
        (aperture.expect("an aperture is not empty"), writer.page_sizes() | page)
    };
    Ok(PagingTable { writer, aperture, page_sizes })
}

/// A mock device as an object: it holds the bound device, and so the context.
#[derive(Debug)]
struct MockObject {
    head: Head,
    bound: Bound,
}

impl Object for MockObject {
    fn head(&self) -> &Head {
        &self.head
    }

    fn holds_context(&self) -> bool {
        true
    }
}

impl Tracked for MockObject {
    const ABSENT: &'static str = "no mock device has this id";
}

/// Whether an attachment is to `hwpt`.
fn translates_through(attached: &Attachment, hwpt: &Hwpt) -> bool {
    let same_table = match (&attached.nested, &hwpt.nested) {
        (None, None) => true,
        (Some(table), Some(nested)) => Arc::ptr_eq(table, &nested.table),
        _ => false,
    };
    same_table && Arc::ptr_eq(&attached.domain, &hwpt.domain)
}

impl Test<'_> {
    pub(super) fn mock_domain(&mut self) -> Result<i64> {
        let mut body: abi::test::TestCmdMockDomainFlags = self.body();
        let has_flags = self.cmd.op == abi::test::TEST_OP_MOCK_DOMAIN_FLAGS;
        let flags = if has_flags { body.dev_flags } else { 0 };
        let context = self.call.context;
        let reservation = context.objects().reserve()?;
        let machine = context.machine();
        let device = MockDevice::new(flags, machine.linux)?;
        let number = self.mock.next_group();
        let config = EndpointConfig {
            name: format!("iommufd_mock{number}").into(),
            requester_id: 0,
            pasid_bits: if flags & abi::test::MOCK_FLAGS_DEVICE_PASID == 0 {
                0
            } else {
                abi::test::MOCK_PASID_WIDTH
            },
            pri: true,
            private: Some(device),
            ..EndpointConfig::default()
        };
        let group = Group::new(machine, &self.mock.iommu, number);
        let endpoint = Endpoint::new(&group, config);
        let bound = context.bind(&endpoint)?;
        body.out_hwpt_id = bound.attach(self.cmd.id)?;
        body.out_stdev_id = reservation.id();
        body.out_idev_id = bound.id();
        self.reply(&body)?;
        let head = Head::new(reservation.id());
        reservation.publish(Arc::new(MockObject { head, bound }));
        Ok(0)
    }

    /// The mock device with the object id `id`.
    fn with_device<R>(&self, id: u32, with: impl FnOnce(&Bound) -> Result<R>) -> Result<R> {
        let object: Held<MockObject> = self.call.context.objects().get(id)?;
        with(&object.bound)
    }

    pub(super) fn mock_domain_replace(&mut self) -> Result<i64> {
        let mut body: abi::test::TestCmdMockDomainReplace = self.body();
        body.pt_id = self.with_device(self.cmd.id, |bound| bound.replace(body.pt_id))?;
        self.reply(&body)?;
        Ok(0)
    }

    pub(super) fn pasid_attach(&mut self) -> Result<i64> {
        let mut body: abi::test::TestCmdPasidAttach = self.body();
        let (id, pasid) = (self.cmd.id, body.pasid);
        body.pt_id = self.with_device(id, |bound| bound.attach_pasid(pasid, body.pt_id))?;
        if let Err(error) = self.reply(&body) {
            self.with_device(id, |bound| {
                bound.detach_pasid(pasid);
                Ok(())
            })?;
            return Err(error);
        }
        Ok(0)
    }

    pub(super) fn pasid_replace(&mut self) -> Result<i64> {
        let mut body: abi::test::TestCmdPasidReplace = self.body();
        body.pt_id =
            self.with_device(self.cmd.id, |bound| bound.replace_pasid(body.pasid, body.pt_id))?;
        self.reply(&body)?;
        Ok(0)
    }

    pub(super) fn pasid_detach(&self) -> Result<i64> {
        let body: abi::test::TestCmdPasidDetach = self.body();
        self.with_device(self.cmd.id, |bound| {
            bound.detach_pasid(body.pasid);
            Ok(0)
        })
    }

    pub(super) fn pasid_check_hwpt(&self) -> Result<i64> {
        let body: abi::test::TestCmdPasidCheck = self.body();
        self.with_device(self.cmd.id, |bound| {
            let endpoint = bound.endpoint();
            let attached = endpoint.attachment(body.pasid);
            if body.hwpt_id == 0 {
                return match attached {
                    None => Ok(0),
                    Some(_) => refuse!(EINVAL, "the PASID is attached", u64::from(body.pasid)),
                };
            }
            let object = self.call.context.objects().any(body.hwpt_id)?;
            let Some(hwpt) = object.as_a::<Hwpt>() else {
                return refuse!(EINVAL, "the object is no HWPT", u64::from(body.hwpt_id));
            };
            match attached {
                Some(attached) if translates_through(&attached, &hwpt) => Ok(0),
                _ => refuse!(EINVAL, "the PASID has another HWPT", u64::from(body.pasid)),
            }
        })
    }

    pub(super) fn check_cache(&self) -> Result<i64> {
        let body: abi::test::TestCmdCheckDevCache = self.body();
        let device: Held<Device> = self.call.context.objects().get(self.cmd.id)?;
        let state = MockDevice::of(device.endpoint().config())?.state.lock();
        let cache = usize::try_from(body.id).ok().and_then(|id| state.cache.get(id));
        if cache == Some(&body.cache) {
            Ok(0)
        } else {
            refuse!(EINVAL, "the cache entry has another value", u64::from(body.id))
        }
    }
}
