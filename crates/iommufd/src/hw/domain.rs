//! Domain: one hardware page table, what devices translate through.
//!
//! The writer is taken by one caller at a time; readers walk without a lock. A range handed to
//! [`Domain::clear`] is out of reach of every device when its [`Users`] have been waited for.
//!
//! `Domain::writer` comes after `Ioas::space` and before nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ioasis_iommupt::{Dirty, Iova, IovaRange, Prot, Run, TableReader, TableWriter};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;

use super::iommu::{EndpointConfig, Iommu};
use super::machine::Machine;
use super::ops::{PagingTable, UserData};
use super::sections::Users;
use crate::client::PAGE_SIZE;
use crate::inject::step;

/// The largest leaf a mapping may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeafMax {
    /// Whatever the format has.
    Format,
    /// A page of 4 KiB.
    Page,
}

/// What a domain must be able to do, fixed when it is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DomainUse {
    /// Dirty bits are read: only devices behind an IOMMU that sets them may attach.
    pub(crate) dirty_tracking: bool,
    /// No-snoop transactions are forced to snoop.
    pub(crate) enforce_coherency: bool,
    /// Tables of the client's own are translated through it.
    pub(crate) nest_parent: bool,
}

/// One hardware page table.
#[derive(Debug)]
pub(crate) struct Domain {
    token: u64,
    machine: Arc<Machine>,
    iommu: Arc<Iommu>,
    wants: DomainUse,
    aperture: IovaRange,
    page_sizes: u64,
    writer: Mutex<Box<dyn TableWriter>>,
    reader: Arc<dyn TableReader>,
    tracking: AtomicBool,
    users: Arc<Users>,
}

impl Domain {
    /// An empty table for a HWPT with these HWPT_ALLOC flags, as `device`, behind `iommu`, has it.
    /// `data` is there if the client sent any.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for flags or data the IOMMU has no use for, `ENOMEM` without table memory.
    pub(crate) fn new(
        machine: &Arc<Machine>,
        iommu: &Arc<Iommu>,
        device: &EndpointConfig,
        flags: u32,
        data: Option<&UserData<'_>>,
    ) -> Result<Arc<Self>> {
        let users = Users::new(machine.sections);
        let quiesce = Arc::<Users>::clone(&users);
        let table = iommu.ops().alloc_paging(iommu, device, flags, data, quiesce)?;
        Ok(Self::of(machine, iommu, flags, users, table))
    }

    /// The domain of a table that somebody else made, who waits for the DMA of `users`.
    pub(crate) fn of(
        machine: &Arc<Machine>,
        iommu: &Arc<Iommu>,
        flags: u32,
        users: Arc<Users>,
        table: PagingTable,
    ) -> Arc<Self> {
        let has = |flag| flags & flag != 0;
        let wants = DomainUse {
            dirty_tracking: has(abi::HWPT_ALLOC_DIRTY_TRACKING),
            enforce_coherency: iommu.enforce_coherency,
            nest_parent: has(abi::HWPT_ALLOC_NEST_PARENT),
        };
        Arc::new(Self {
            token: machine.token(),
            machine: Arc::clone(machine),
            iommu: Arc::clone(iommu),
            wants,
            aperture: table.aperture,
            page_sizes: table.page_sizes,
            reader: table.writer.reader(),
            writer: Mutex::new(table.writer),
            tracking: AtomicBool::new(false),
            users,
        })
    }

    /// The groups whose devices translate through it.
    pub(crate) fn users(&self) -> &Users {
        &self.users
    }

    /// A number no one else on the machine has.
    pub(crate) fn token(&self) -> u64 {
        self.token
    }

    /// The machine whose physical space the leaves point into.
    pub(crate) fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// The IOMMU that walks this table.
    #[must_use]
    pub(crate) fn iommu(&self) -> &Arc<Iommu> {
        &self.iommu
    }

    /// What the domain was made for.
    pub(crate) fn wants(&self) -> DomainUse {
        self.wants
    }

    /// The IOVAs that can be mapped.
    #[must_use]
    pub(crate) fn aperture(&self) -> IovaRange {
        self.aperture
    }

    /// Bit `n` set: leaves of `1 << n` bytes exist.
    #[must_use]
    pub(crate) fn page_sizes(&self) -> u64 {
        self.page_sizes
    }

    /// Bytes of the smallest leaf.
    #[must_use]
    pub(crate) fn page_size_min(&self) -> u64 {
        1 << self.page_sizes.trailing_zeros()
    }

    /// For translating threads.
    #[must_use]
    pub(crate) fn reader(&self) -> &Arc<dyn TableReader> {
        &self.reader
    }

    pub(crate) fn map(
        &self,
        iova: Iova,
        runs: &[Run],
        prot: Prot,
        leaf_max: LeafMax,
    ) -> Result<()> {
        step("a page table")?;
        if !prot.intersects(Prot::READ | Prot::WRITE) {
            // map_pages in generic_pt/iommu_pt.h, arm_lpae_map_pages. Linux's compatibility layer
            // asks for it.
            return refuse!(EINVAL, "a leaf grants reads, writes or both", iova.0);
        }
        let mut writer = self.writer.lock();
        if leaf_max == LeafMax::Format {
            return writer.map(iova, runs, prot);
        }
        let mut next = iova.0;
        for run in runs {
            let mut done = 0;
            while done < run.length {
                let length = (run.length - done).min(PAGE_SIZE - (next & (PAGE_SIZE - 1)));
                let page = Run { pa: ioasis_iommupt::Pa(run.pa.0 + done), length };
                if let Err(error) = writer.map(Iova(next), &[page], prot) {
                    if next > iova.0 {
                        let mapped =
                            IovaRange::closed(iova, Iova(next - 1)).expect("something was mapped");
                        writer.clear(mapped);
                    }
                    return Err(error);
                }
                done += length;
                next = next.wrapping_add(length);
            }
        }
        Ok(())
    }

    /// Empties `range`, whose ends are ends of areas.
    pub(crate) fn clear(&self, range: IovaRange) {
        if let Some(range) = range.intersect(self.aperture) {
            self.writer.lock().clear(range);
        }
    }

    /// Splits a leaf that straddles `at`.
    pub(crate) fn cut(&self, at: Iova) -> Result<()> {
        step("a page table to split a leaf")?;
        self.writer.lock().cut(at)
    }

    /// Whether dirty tracking is on.
    #[cfg_attr(
        not(feature = "mock"),
        expect(dead_code, reason = "a device that is no mock always marks what it writes")
    )]
    pub(crate) fn is_tracking(&self) -> bool {
        self.tracking.load(Ordering::Acquire)
    }

    /// Turns dirty tracking on or off; dirty bits are kept either way.
    pub(crate) fn set_tracking(&self, tracking: bool) {
        self.tracking.store(tracking, Ordering::Release);
    }

    /// Marks what is mapped inside `range` dirty.
    #[cfg_attr(not(feature = "mock"), expect(dead_code, reason = "the mock hardware asks"))]
    pub(crate) fn set_dirty(&self, range: IovaRange) {
        if let Some(range) = range.intersect(self.aperture) {
            self.writer.lock().set_dirty(range);
        }
    }

    /// Returns when no DMA uses what was walked in clients' own tables before.
    pub(crate) fn wait_for_nested(&self) {
        Users::wait_all([self.users()]);
        self.machine.underway.wait(|route, _| route.nested && route.domain == self.token);
    }

    /// Reports the dirty ranges inside `range`. What is cleared has been written by the time it
    /// returns, for a translation that set the bit may be in use until then, or is dirty again:
    /// what a copy is writing that may last for ever is waited for by nobody.
    pub(crate) fn read_dirty(
        &self,
        range: IovaRange,
        dirty: Dirty,
        found: &mut dyn FnMut(IovaRange),
    ) {
        let Some(range) = range.intersect(self.aperture) else { return };
        let mut any = false;
        self.writer.lock().read_dirty(range, dirty, &mut |range| {
            any = true;
            found(range);
        });
        if any && dirty == Dirty::Clear {
            Users::wait_all([self.users()]);
            let written = self.machine.underway.written(self.token, range);
            if !written.is_empty() {
                let mut writer = self.writer.lock();
                written.into_iter().for_each(|range| writer.set_dirty(range));
            }
        }
    }
}
