//! Mock nested HWPTs and virtual IOMMUs: caches of four words each, so that a test sees what an
//! invalidation reached.
//!
//! `MockNested::iotlb` and `MockViommu::queues` are leaf locks.

use std::any::Any;
use std::sync::Arc;

use ioasis_iommupt::{Iova, Pa};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;
use ioasis_uapi::iommufd::{self as abi, test};

use super::Test;
use super::device::MockDevice;
use crate::client::{MappableMemory, PAGE_SIZE};
use crate::device::{Device, PageAsk};
use crate::hw::ops::{
    Invalidated, Iotlb, NestedOps, ReadWord, UserArray, UserData, ViommuCore, ViommuOps, Walked,
};
use crate::hwpt::Hwpt;
use crate::inject::step;
use crate::object::Held;

/// Words of a cache.
pub(super) const CACHES: usize = 4;
const _: () = assert!(CACHES == test::MOCK_DEV_CACHE_NUM as usize);
const _: () = assert!(CACHES == test::MOCK_NESTED_DOMAIN_IOTLB_NUM as usize);

/// Empties one word of a cache, or all.
///
/// # Errors
///
/// `EOPNOTSUPP` for an unknown flag, `EINVAL` for a word that does not exist.
fn check_request(flags: u32, index: u32) -> Result<()> {
    if flags & !test::TEST_INVALIDATE_FLAG_ALL != 0 {
        return refuse!(EOPNOTSUPP, "unknown flags of an invalidation", u64::from(flags));
    }
    if index as usize >= CACHES {
        return refuse!(EINVAL, "no such cache entry", u64::from(index));
    }
    Ok(())
}

fn empty(cache: &mut [u32; CACHES], flags: u32, index: u32) {
    if flags & test::TEST_INVALIDATE_FLAG_ALL == 0 {
        cache[index as usize] = 0;
    } else {
        cache.fill(0);
    }
}

/// A nested HWPT: what it translates is nothing, what it caches is what the client said.
#[derive(Debug)]
pub(super) struct MockNested {
    iotlb: Mutex<[u32; CACHES]>,
}

impl MockNested {
    pub(super) fn make(flags: u32, data: &UserData<'_>) -> Result<Box<dyn NestedOps>> {
        if flags & !abi::HWPT_ALLOC_PASID != 0 {
            return refuse!(EOPNOTSUPP, "flags a mock nested HWPT has no use for", flags.into());
        }
        if data.kind != test::HWPT_DATA_SELFTEST {
            return refuse!(EOPNOTSUPP, "data of another IOMMU", u64::from(data.kind));
        }
        let config: test::HwptSelftest = data.read(test::HWPT_DATA_SELFTEST, size_of::<u32>())?;
        step("a mock nested HWPT")?;
        Ok(Box::new(Self { iotlb: Mutex::new([config.iotlb; CACHES]) }))
    }
}

impl NestedOps for MockNested {
    // Devices reach the parent untranslated.
    fn walk(&self, _pasid: u32, iova: u64, _read: ReadWord<'_>) -> Walked {
        Walked::bypass(iova)
    }

    fn needs_vdevice(&self) -> bool {
        true
    }

    fn invalidate(&self, _iotlb: &dyn Iotlb, requests: &UserArray<'_>) -> Invalidated {
        if requests.kind != test::HWPT_INVALIDATE_DATA_SELFTEST {
            let kind = u64::from(requests.kind);
            return Invalidated::refused(ioasis_uapi::Error::at(
                ioasis_uapi::Errno::EINVAL,
                "requests of another IOMMU",
                kind,
            ));
        }
        Invalidated::each(requests.entries, |index| {
            let request: test::HwptInvalidateSelftest =
                requests.read(index, size_of::<test::HwptInvalidateSelftest>())?;
            check_request(request.flags, request.iotlb_id)?;
            empty(&mut self.iotlb.lock(), request.flags, request.iotlb_id);
            Ok(())
        })
    }
}

/// Queues of one virtual IOMMU.
const QUEUES: usize = test::TEST_HW_QUEUE_MAX as usize;

/// A virtual IOMMU.
#[derive(Debug)]
pub(super) struct MockViommu {
    /// What the client maps, if it sent data.
    page: Option<Arc<dyn MappableMemory>>,
    /// Which queues are in use: each needs the one before it.
    queues: Mutex<[bool; QUEUES]>,
}

impl MockViommu {
    pub(super) fn make(data: Option<&UserData<'_>>) -> Result<Box<dyn ViommuOps>> {
        let page = data.map(Self::share).transpose()?;
        Ok(Box::new(Self { page, queues: Mutex::default() }))
    }

    /// Two pages that begin with the client's word, which also comes back in the data.
    fn share(data: &UserData<'_>) -> Result<Arc<dyn MappableMemory>> {
        let mut sent: test::ViommuSelftest = data.read(test::VIOMMU_TYPE_SELFTEST, 8)?;
        step("pages to be mapped")?;
        let page = data.client.mappable(2 * PAGE_SIZE)?;
        page.write(0, &sent.in_data.to_ne_bytes())?;
        sent.out_data = sent.in_data;
        sent.out_mmap_offset = page.offset();
        sent.out_mmap_length = 2 * PAGE_SIZE;
        data.write(&sent)?;
        Ok(page)
    }

    fn invalidate_all(viommu: &dyn ViommuCore, requests: &UserArray<'_>) -> Result<Invalidated> {
        if requests.kind != test::VIOMMU_INVALIDATE_DATA_SELFTEST {
            return refuse!(EINVAL, "requests of another IOMMU", u64::from(requests.kind));
        }
        step("a copy of the requests")?;
        // All are read before the first is carried out.
        let all: Vec<test::ViommuInvalidateSelftest> = requests.read_all()?;
        Ok(Invalidated::each(requests.entries, |index| {
            let request = all[index as usize];
            check_request(request.flags, request.cache_id)?;
            let mut emptied = false;
            viommu.with_device(u64::from(request.vdev_id), &mut |device| {
                if let Ok(device) = MockDevice::of(device) {
                    device.with_cache(|cache| empty(cache, request.flags, request.cache_id));
                    emptied = true;
                }
            });
            if !emptied {
                return refuse!(EINVAL, "no device has this virtual id", request.vdev_id.into());
            }
            Ok(())
        }))
    }
}

impl ViommuOps for MockViommu {
    fn alloc_nested(&self, flags: u32, data: &UserData<'_>) -> Result<Box<dyn NestedOps>> {
        MockNested::make(flags, data)
    }

    fn invalidate(&self, viommu: &dyn ViommuCore, requests: &UserArray<'_>) -> Invalidated {
        Self::invalidate_all(viommu, requests).unwrap_or_else(Invalidated::refused)
    }

    fn has_queue(&self, kind: u32) -> bool {
        kind == test::HW_QUEUE_TYPE_SELFTEST
    }

    fn start_queue(
        &self,
        _viommu: &Arc<dyn ViommuCore>,
        index: u32,
        _base: Pa,
        _length: u64,
    ) -> Result<()> {
        let mut queues = self.queues.lock();
        let at = index as usize;
        match queues.get(at) {
            None => refuse!(EINVAL, "no queue has this index", u64::from(index)),
            Some(true) => refuse!(EEXIST, "the queue is in use", u64::from(index)),
            Some(false) if at > 0 && !queues[at - 1] => {
                refuse!(EIO, "the queue before it is not in use", u64::from(index))
            }
            Some(false) => {
                queues[at] = true;
                Ok(())
            }
        }
    }

    fn may_stop_queue(&self, index: u32) -> bool {
        !self.queues.lock().get(index as usize + 1).is_some_and(|&used| used)
    }

    fn stop_queue(&self, index: u32) {
        self.queues.lock()[index as usize] = false;
    }

    fn is_mapped(&self) -> bool {
        self.page.as_ref().is_some_and(|page| page.is_mapped())
    }
}

impl Test<'_> {
    pub(super) fn check_iotlb(&self) -> Result<i64> {
        let body: test::TestCmdCheckIotlb = self.body();
        let Some(nested) = self.nested()? else {
            return refuse!(EINVAL, "the HWPT is of no mock device", u64::from(self.cmd.id));
        };
        let table = &nested.nested.as_ref().expect("a nested HWPT").table;
        let mock = (table.ops() as &dyn Any).downcast_ref::<MockNested>();
        let entry = mock.and_then(|mock| mock.iotlb.lock().get(body.id as usize).copied());
        if entry == Some(body.iotlb) {
            Ok(0)
        } else {
            refuse!(EINVAL, "the IOTLB entry has another value", u64::from(body.id))
        }
    }

    /// The paging HWPT the command names; a nested one is as good as none.
    pub(super) fn paging(&self) -> Result<Held<Hwpt>> {
        let hwpt: Held<Hwpt> = self.call.context.objects().get(self.cmd.id)?;
        if hwpt.nested.is_some() {
            return refuse!(ENOENT, "no paging HWPT has this id", u64::from(self.cmd.id));
        }
        Ok(hwpt)
    }

    /// The nested HWPT the command names; a paging one is as good as none.
    fn nested(&self) -> Result<Option<Held<Hwpt>>> {
        let hwpt: Held<Hwpt> = self.call.context.objects().get(self.cmd.id)?;
        if hwpt.nested.is_none() {
            return refuse!(ENOENT, "no nested HWPT has this id", u64::from(self.cmd.id));
        }
        Ok(Some(hwpt))
    }

    pub(super) fn trigger_iopf(&self) -> Result<i64> {
        let body: test::TestCmdTriggerIopf = self.body();
        let device: Held<Device> = self.call.context.objects().get(body.dev_id)?;
        MockDevice::of(device.endpoint().config())?;
        step("a page request")?;
        let request = PageAsk {
            pasid: body.pasid,
            group: body.grpid,
            iova: Iova(body.addr),
            perm: body.perm,
        };
        // A fault that nobody handles is no error of the trigger's.
        let _handled = device.post_page_request(&request);
        Ok(0)
    }

    pub(super) fn trigger_vevent(&self) -> Result<i64> {
        let body: test::TestCmdTriggerVevent = self.body();
        let device: Held<Device> = self.call.context.objects().get(body.dev_id)?;
        let attached = device.endpoint().attachment(0);
        let guest = attached.as_ref().and_then(|attached| attached.guest.as_ref());
        // The virtual device may have gone since: the hardware goes on with the id it was attached
        // under.
        let known = guest.and_then(|guest| {
            Some((guest.viommu.upgrade()?, guest.virtual_id.filter(|&id| id != 0)?))
        });
        let Some((viommu, virtual_id)) = known else {
            return refuse!(ENOENT, "the device is in no virtual IOMMU", u64::from(body.dev_id));
        };
        step("an event")?;
        // The event has 32 bits for it.
        #[expect(clippy::cast_possible_truncation, reason = "as the struct in Linux truncates")]
        let event = test::ViommuEventSelftest { virt_id: virtual_id as u32 };
        viommu.report(test::VEVENTQ_TYPE_SELFTEST, zerocopy::IntoBytes::as_bytes(&event))?;
        Ok(0)
    }
}
