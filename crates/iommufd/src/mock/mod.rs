//! The mock hardware of Linux's own IOMMUFD tests: IOMMU_TEST_CMD.
//!
//! A machine made with [`Machine::with_mock`] answers the ioctl with which
//! `tools/testing/selftests/iommu` makes mock devices, looks into page tables and pin counts, and
//! raises faults and events. Linux has it in kernels built for testing only
//! (`drivers/iommu/iommufd/selftest.c`).
//!
//! "The same page" means the same byte of the same backing, and the pin count of a page is the
//! number of [`Pages`] objects that pin it.
//!
//! Lock order: `Mock::pages` comes before `Pages::pins`; `MockDevice::state` and `Pinned::items`
//! are described there.

mod access;
mod check;
mod device;
mod dmabuf;
mod nested;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use ioasis_iommupt::{Iova, IovaRange};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::cmd::{Call, Extension};
use crate::hw::iommu::{Iommu, Kind};
use crate::hw::machine::Machine;
use crate::inject::step;
use crate::open::Context;
use crate::pages::{Pages, PagesWatcher};
use crate::params::Linux;

/// Bytes of the struct's first version: up to and with `last`.
const MIN_SIZE: usize = 68;

/// The least SET_TEMP_MEMORY_LIMIT takes: an address and a count.
const MEMORY_LIMIT_MIN: u32 = 12;

/// The mock hardware of one machine.
#[derive(Debug)]
struct Mock {
    /// The one mock IOMMU. Immutable.
    iommu: Arc<Iommu>,
    groups: AtomicU32,
    /// All memory mapped on the machine, for pin counts.
    pages: Mutex<Vec<Weak<Pages>>>,
}

impl Machine {
    /// An empty machine with the mock hardware of Linux's tests.
    #[must_use]
    pub fn with_mock() -> Arc<Self> {
        Self::with_mock_of(Linux::default())
    }

    /// The same, by the rules of `linux`.
    #[must_use]
    pub fn with_mock_of(linux: Linux) -> Arc<Self> {
        let iommu = Iommu {
            brought: Some(&device::MockIommu),
            enforce_coherency: false,
            ..Iommu::new(Kind::Amd)
        };
        let mock = Arc::new(Mock {
            iommu: Arc::new(iommu),
            groups: AtomicU32::new(0),
            pages: Mutex::default(),
        });
        let command: Arc<dyn Extension> = Arc::<Mock>::clone(&mock);
        let watcher: Arc<dyn PagesWatcher> = mock;
        Self::with(linux, vec![Box::new(command), Box::new(watcher)])
    }
}

impl Mock {
    fn next_group(&self) -> u32 {
        self.groups.fetch_add(1, Ordering::Relaxed)
    }
}

impl Extension for Mock {
    fn ioctl(&self) -> u32 {
        abi::test::TEST_CMD
    }

    fn min_size(&self) -> usize {
        MIN_SIZE
    }

    fn copy_source(&self, context: &Context, ioas: u32, flags: u32, iova: u64) -> (u32, u64) {
        let syz = abi::test::MOCK_FLAGS_ACCESS_SYZ;
        if flags & syz == 0 {
            return (flags, iova);
        }
        let iova = match context.ioas(ioas) {
            Ok(ioas) => access::convert(iova, |nth| ioas.nth_area(nth)).0,
            Err(_) => iova,
        };
        (flags & !syz, iova)
    }

    fn run(&self, call: &Call<'_>) -> Result<i64> {
        let mut test = Test { call, cmd: call.decode()?, mock: self };
        match test.cmd.op {
            abi::test::TEST_OP_ADD_RESERVED => test.add_reserved(),
            abi::test::TEST_OP_MOCK_DOMAIN | abi::test::TEST_OP_MOCK_DOMAIN_FLAGS => {
                test.mock_domain()
            }
            abi::test::TEST_OP_MOCK_DOMAIN_REPLACE => test.mock_domain_replace(),
            abi::test::TEST_OP_MD_CHECK_MAP => test.check_map(),
            abi::test::TEST_OP_MD_CHECK_REFS => test.check_refs(),
            abi::test::TEST_OP_MD_CHECK_IOTLB => test.check_iotlb(),
            abi::test::TEST_OP_TRIGGER_IOPF => test.trigger_iopf(),
            abi::test::TEST_OP_TRIGGER_VEVENT => test.trigger_vevent(),
            abi::test::TEST_OP_DEV_CHECK_CACHE => test.check_cache(),
            abi::test::TEST_OP_CREATE_ACCESS => test.create_access(),
            abi::test::TEST_OP_ACCESS_REPLACE_IOAS => test.access_replace_ioas(),
            abi::test::TEST_OP_ACCESS_PAGES => test.access_pages(),
            abi::test::TEST_OP_ACCESS_RW => test.access_rw(),
            abi::test::TEST_OP_DESTROY_ACCESS_PAGES => test.destroy_access_pages(),
            abi::test::TEST_OP_SET_TEMP_MEMORY_LIMIT => test.set_temp_memory_limit(),
            abi::test::TEST_OP_DIRTY => test.dirty(),
            abi::test::TEST_OP_PASID_ATTACH => test.pasid_attach(),
            abi::test::TEST_OP_PASID_REPLACE => test.pasid_replace(),
            abi::test::TEST_OP_PASID_DETACH => test.pasid_detach(),
            abi::test::TEST_OP_PASID_CHECK_HWPT => test.pasid_check_hwpt(),
            abi::test::TEST_OP_DMABUF_GET => test.dmabuf_get(),
            abi::test::TEST_OP_DMABUF_REVOKE => test.dmabuf_revoke(),
            op => refuse!(EOPNOTSUPP, "no such test operation", u64::from(op)),
        }
    }
}

impl PagesWatcher for Mock {
    fn made(&self, pages: &Arc<Pages>) {
        let mut known = self.pages.lock();
        if known.len() == known.capacity() {
            known.retain(|pages| pages.strong_count() > 0);
        }
        known.push(Arc::downgrade(pages));
    }
}

/// One IOMMU_TEST_CMD in progress.
struct Test<'a> {
    call: &'a Call<'a>,
    cmd: abi::test::TestCmd,
    mock: &'a Mock,
}

impl Test<'_> {
    /// The member of the union that goes with the operation.
    fn body<T: FromBytes + KnownLayout + Immutable>(&self) -> T {
        let (body, _) = T::read_from_prefix(self.cmd.body.as_bytes())
            .expect("every member of the union fits it");
        body
    }

    /// Copies the command back with `body` in its union.
    fn reply<T: IntoBytes + Immutable>(&mut self, body: &T) -> Result<()> {
        let bytes = body.as_bytes();
        self.cmd.body.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
        self.call.reply(&self.cmd)
    }

    fn add_reserved(&self) -> Result<i64> {
        let body: abi::test::TestCmdAddReserved = self.body();
        let range = IovaRange::new(Iova(body.start), body.length)?;
        self.call.context.ioas(self.cmd.id)?.reserve(range, NO_OWNER)?;
        Ok(0)
    }

    fn set_temp_memory_limit(&self) -> Result<i64> {
        let body: abi::test::TestCmdMemoryLimit = self.body();
        if body.limit < MEMORY_LIMIT_MIN {
            return refuse!(EINVAL, "the limit holds not one entry", u64::from(body.limit));
        }
        // Pages are pinned in batches of Linux's temporary memory there; here there is none.
        step("temporary memory")?;
        Ok(0)
    }
}

/// Who reserves a range that stays until its IOAS goes: nobody has this token.
const NO_OWNER: u64 = 0;

#[cfg(test)]
mod tests;
