//! The type1 driver's rules on an IOAS: what a container does once SET_IOMMU chose it.
//!
//! Each area is one MAP_DMA, never cut. Linux: `drivers/vfio/vfio_iommu_type1.c`.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use ioasis_iommupt::{Iova, IovaRange, Prot};
use ioasis_uapi::vfio as abi;
use ioasis_uapi::{Errno, Error, Result};
use zerocopy::IntoBytes;

use super::argument::{Chain, read};
use super::compat::push_ranges;
use super::log::{DirtyLog, read_bitmap};
use super::member::{GroupKind, Member};
use super::pins::Pins;
use crate::Client;
use crate::account::Rule;
use crate::client::PAGE_SIZE;
use crate::hw::attachment::Attachment;
use crate::hw::domain::{Domain, DomainUse, LeafMax};
use crate::hw::group::Group;
use crate::hw::iommu::EndpointConfig;
use crate::hw::machine::Machine;
use crate::inject::step;
use crate::ioas::{Ioas, MapRequest, Place, map_pages};
use crate::object::Head;

/// One page table and the groups that translate through it.
#[derive(Debug)]
struct GroupDomain {
    domain: Arc<Domain>,
    groups: Vec<Arc<Group>>,
}

/// The call, what it names, and where the dirty bits go.
type PlannedUnmap = (abi::IommuType1DmaUnmap, IovaRange, Option<abi::Bitmap>);

/// What GET_INFO shows as the largest dirty bitmap: 256 MiB, `DIRTY_BITMAP_SIZE_MAX`.
pub(super) const DIRTY_BITMAP_SIZE_MAX: u64 = 256 << 20;

/// The driver of one container.
#[derive(Debug)]
pub(super) struct Type1 {
    machine: Arc<Machine>,
    v2: bool,
    ioas: Arc<Ioas>,
    domains: Vec<GroupDomain>,
    emulated: Vec<Arc<Group>>,
    /// `dma_entry_limit` as SET_IOMMU found it: mappings there may be.
    limit: u32,
    /// Where mappings begin whose process address was taken away.
    pub(super) invalid: BTreeSet<u64>,
    /// Dirty pages are logged.
    pub(super) logging: bool,
    /// Pages that emulated devices pin.
    pub(super) pins: Pins,
    /// What the log knows of pages that no IOMMU shows to devices.
    pub(super) dirty: DirtyLog,
    /// There was a page table once: from then on GET_INFO lists ranges.
    had_domain: bool,
    /// `disable_hugepages` as the last map found it.
    leaves: LeafMax,
}

impl Type1 {
    /// Whether the driver, not opened yet, has the extension.
    pub(super) fn offers(number: u32) -> bool {
        matches!(number, abi::TYPE1_IOMMU | abi::TYPE1v2_IOMMU | abi::UNMAP_ALL)
    }

    /// The driver, for the IOMMU type that SET_IOMMU names.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a number that is an extension but no IOMMU type.
    pub(super) fn open(machine: &Arc<Machine>, number: u32) -> Result<Self> {
        step("the type1 driver")?;
        let v2 = match number {
            abi::TYPE1_IOMMU => false,
            abi::TYPE1v2_IOMMU => true,
            _ => return refuse!(EINVAL, "the extension is no IOMMU type", u64::from(number)),
        };
        Ok(Self {
            machine: Arc::clone(machine),
            v2,
            ioas: Arc::new(Ioas::new(machine, Head::outside())),
            domains: Vec::new(),
            emulated: Vec::new(),
            limit: machine.params.dma_entry_limit.load(Ordering::Relaxed),
            invalid: BTreeSet::new(),
            logging: false,
            pins: Pins::new(),
            dirty: DirtyLog::default(),
            had_domain: false,
            leaves: LeafMax::Format,
        })
    }

    pub(super) fn check_extension(&self, number: u32) -> bool {
        match number {
            abi::DMA_CC_IOMMU => {
                self.domains.iter().all(|domain| domain.domain.wants().enforce_coherency)
            }
            abi::UPDATE_VADDR => self.emulated.is_empty(),
            _ => Self::offers(number),
        }
    }

    pub(super) fn ioctl(&mut self, client: &dyn Client, cmd: u32, arg: u64) -> Result<i64> {
        match cmd {
            abi::IOMMU_GET_INFO => self.get_info(client, arg),
            abi::IOMMU_MAP_DMA => self.map_dma(client, arg),
            abi::IOMMU_UNMAP_DMA => self.unmap_dma(client, arg),
            abi::IOMMU_DIRTY_PAGES => self.dirty_pages(client, arg),
            _ => refuse!(ENOTTY, "no such ioctl on a type1 container", u64::from(cmd)),
        }
    }

    /// Attaches a group: an existing page table if one suits it, else one of its own that shows all
    /// mappings.
    pub(super) fn attach(&mut self, member: &Member) -> Result<()> {
        if !self.invalid.is_empty() {
            return refuse!(
                EBUSY,
                "a mapping has no process address for now: attaching may have to pin it"
            );
        }
        step("a group in a container")?;
        self.read_disable_hugepages();
        let known = |group: &Arc<Group>| member.is(group);
        if self.emulated.iter().any(known)
            || self.domains.iter().any(|domain| domain.groups.iter().any(known))
        {
            return refuse!(
                EINVAL,
                "the group is attached already",
                u64::from(member.group.number())
            );
        }
        if member.kind == GroupKind::Emulated {
            self.emulated.push(Arc::clone(&member.group));
            return Ok(());
        }
        for &range in &member.reserved {
            if let Err(error) = self.ioas.reserve(range, member.token) {
                self.ioas.unreserve(member.token);
                return Err(conflict(error));
            }
        }
        let attached = self.attach_domain(member);
        if attached.is_err() {
            self.ioas.unreserve(member.token);
        }
        attached
    }

    fn attach_domain(&mut self, member: &Member) -> Result<()> {
        let iommu = member.group.iommu();
        let unsafe_allowed = self.machine.params.allow_unsafe_interrupts.load(Ordering::Relaxed);
        if !iommu.isolated_msi && !unsafe_allowed {
            return refuse!(
                EPERM,
                "the group's interrupts are not isolated (allow_unsafe_interrupts is off)"
            );
        }
        let wants =
            DomainUse { enforce_coherency: iommu.enforce_coherency, ..DomainUse::default() };
        let suits =
            |at: &GroupDomain| Arc::ptr_eq(at.domain.iommu(), iommu) && at.domain.wants() == wants;
        let at = match self.domains.iter().position(suits) {
            Some(at) => at,
            None => {
                let device = EndpointConfig::default();
                let domain = Domain::new(&self.machine, iommu, &device, 0, None)?;
                self.ioas.add_domain(&domain).map_err(conflict)?;
                self.domains.push(GroupDomain { domain, groups: Vec::new() });
                self.had_domain = true;
                self.domains.len() - 1
            }
        };
        let entry = &mut self.domains[at];
        entry.groups.push(Arc::clone(&member.group));
        let mappings: Weak<Ioas> = Arc::downgrade(&self.ioas);
        let token = self.machine.token();
        let domain = Arc::clone(&entry.domain);
        member.group.attach(Some(Attachment {
            token,
            domain,
            nested: None,
            faults: None,
            guest: None,
            mappings,
        }));
        Ok(())
    }

    /// Detaches a group; with the last of a page table that goes, with the last of all every
    /// mapping.
    pub(super) fn detach(&mut self, member: &Member) {
        self.emulated.retain(|group| !member.is(group));
        if let Some(at) = self
            .domains
            .iter()
            .position(|domain| domain.groups.iter().any(|group| member.is(group)))
        {
            member.group.attach(None);
            self.everything_is_dirty();
            self.domains[at].groups.retain(|group| !member.is(group));
            if self.domains[at].groups.is_empty() {
                let gone = self.domains.swap_remove(at);
                self.ioas.remove_domain(&gone.domain);
            }
        }
        self.ioas.unreserve(member.token);
        if self.domains.is_empty() && self.emulated.is_empty() {
            self.take_pins(IovaRange::ALL);
            let _everything = self.ioas.unmap_all(0);
        }
    }

    /// Mappings that may still be made: each is one area.
    fn avail(&self) -> u32 {
        let areas = u32::try_from(self.ioas.areas()).unwrap_or(u32::MAX);
        self.limit.saturating_sub(areas)
    }

    /// Page sizes all domains have; without one, every size from a page up.
    fn page_sizes(&self) -> u64 {
        let common = self.ioas.domains_summary().map_or(u64::MAX, |(sizes, _)| sizes);
        if common & (PAGE_SIZE - 1) == 0 { common } else { (common & !(PAGE_SIZE - 1)) | PAGE_SIZE }
    }

    pub(super) fn page_size_min(&self) -> u64 {
        1 << self.page_sizes().trailing_zeros()
    }

    fn get_info(&self, client: &dyn Client, arg: u64) -> Result<i64> {
        let min_size = std::mem::offset_of!(abi::IommuType1Info, cap_offset);
        let mut info: abi::IommuType1Info = read(client, arg, min_size)?;
        let argsz = usize::try_from(info.argsz).expect("32 bits fit usize");
        let header = |id| abi::InfoCapHeader { id, version: 1, next: 0 };
        let mut chain = Chain::new(size_of::<abi::IommuType1Info>());
        let migration = abi::IommuType1InfoCapMigration {
            header: header(abi::IOMMU_TYPE1_INFO_CAP_MIGRATION),
            flags: 0,
            __padding: 0,
            pgsize_bitmap: self.page_size_min(),
            max_dirty_bitmap_size: DIRTY_BITMAP_SIZE_MAX,
        };
        chain.push(&migration, &[]);
        let avail = abi::IommuType1InfoDmaAvail {
            header: header(abi::IOMMU_TYPE1_INFO_DMA_AVAIL),
            avail: self.avail(),
        };
        chain.push(&avail, &[]);
        if self.had_domain {
            push_ranges(&mut chain, &self.ioas.iova_ranges().0);
        }
        info.flags = abi::IOMMU_INFO_PGSIZES | abi::IOMMU_INFO_CAPS;
        info.iova_pgsizes = self.page_sizes();
        info.cap_offset = 0;
        if info.argsz < chain.total() {
            info.argsz = chain.total();
        } else {
            client.write(arg.wrapping_add(size_of_val(&info) as u64), chain.bytes())?;
            info.cap_offset = u32::try_from(size_of_val(&info)).expect("a struct is short");
        }
        let bytes = info.as_bytes();
        client.write(arg, &bytes[..argsz.min(bytes.len())])?;
        Ok(0)
    }

    fn map_dma(&mut self, client: &dyn Client, arg: u64) -> Result<i64> {
        let map: abi::IommuType1DmaMap = read(client, arg, size_of::<abi::IommuType1DmaMap>())?;
        let known = abi::DMA_MAP_FLAG_READ | abi::DMA_MAP_FLAG_WRITE | abi::DMA_MAP_FLAG_VADDR;
        if map.flags & !known != 0 {
            return refuse!(EINVAL, "unknown MAP_DMA flags", u64::from(map.flags));
        }
        if map.size == 0 {
            return refuse!(EINVAL, "size is zero");
        }
        let range = IovaRange::new(Iova(map.iova), map.size)?;
        if map.vaddr.checked_add(map.size - 1).is_none() {
            return refuse!(EOVERFLOW, "the mapped memory wraps", map.vaddr);
        }
        let mut prot = Prot::empty();
        prot.set(Prot::READ, map.flags & abi::DMA_MAP_FLAG_READ != 0);
        prot.set(Prot::WRITE, map.flags & abi::DMA_MAP_FLAG_WRITE != 0);
        let set_vaddr = map.flags & abi::DMA_MAP_FLAG_VADDR != 0;
        if prot.is_empty() != set_vaddr {
            return refuse!(
                EINVAL,
                "a map has READ, WRITE or both, or else VADDR",
                u64::from(map.flags)
            );
        }
        check_aligned(self.page_size_min(), map.size, map.iova, map.vaddr)?;
        if set_vaddr {
            self.set_vaddr(client, range, map.vaddr)?;
            return Ok(0);
        }
        if self.avail() == 0 {
            self.check_unmapped(range)?;
            return refuse!(ENOSPC, "the container has as many mappings as dma_entry_limit allows");
        }
        if self.logging {
            self.check_unmapped(range)?;
            self.check_loggable(map.size)?;
        }
        self.read_disable_hugepages();
        let account = client.account();
        let request = MapRequest {
            space: client.memory(),
            address: map.vaddr,
            length: map.size,
            place: Place::Fixed(range.start()),
            // Device memory too: another device's BAR is mapped by the client's address of it.
            prot: prot | Prot::MMIO,
            account,
        };
        match map_pages(&self.machine, &self.ioas, request, Rule::type1(&account)) {
            // A range that is mapped already is judged first; the IOAS judges it after one that
            // cannot be.
            Err(error) if error.errno == Errno::EINVAL => {
                self.check_unmapped(range)?;
                Err(error)
            }
            mapped => mapped.map(|_| 0),
        }
    }

    fn check_unmapped(&self, range: IovaRange) -> Result<()> {
        match self.ioas.first_area(range) {
            Some(area) => refuse!(EEXIST, "the IOVA range is mapped already", area.start().0),
            None => Ok(()),
        }
    }

    /// The parameter counts from the next pinning on.
    fn read_disable_hugepages(&mut self) {
        let disabled = self.machine.params.disable_hugepages.load(Ordering::Relaxed);
        let leaves = if disabled { LeafMax::Page } else { LeafMax::Format };
        if leaves != self.leaves {
            self.ioas.limit_leaves(leaves);
            self.leaves = leaves;
        }
    }

    /// The first mapping that an UNMAP_DMA would remove and emulated devices hold pages of.
    pub(super) fn pinned_by_unmap(
        &self,
        client: &dyn Client,
        arg: u64,
    ) -> Result<Option<IovaRange>> {
        let (_, range, _) = self.plan_unmap(client, arg)?;
        let range = self.under_version(range)?;
        Ok(range.and_then(|range| self.first_pinned(range)))
    }

    pub(super) fn unmap_dma(&mut self, client: &dyn Client, arg: u64) -> Result<i64> {
        let (mut unmap, range, bitmap) = self.plan_unmap(client, arg)?;
        let pid = client.pid();
        // Most unmaps are of one mapping, and cut none.
        if unmap.flags == 0
            && let Some(bytes) = self.ioas.unmap_just(range, pid)
        {
            self.forget(range);
            unmap.size = bytes;
            client.write_back(arg, unmap.as_bytes())?;
            return Ok(0);
        }
        let Some(range) = self.under_version(range)? else {
            unmap.size = 0;
            client.write_back(arg, unmap.as_bytes())?;
            return Ok(0);
        };
        unmap.size = match bitmap {
            _ if unmap.flags & abi::DMA_UNMAP_FLAG_VADDR != 0 => self.invalidate_vaddr(range)?,
            Some(bitmap) => self.remove_logged(client, range, unmap.iova, bitmap, pid)?,
            None => self.remove(range, pid)?,
        };
        client.write_back(arg, unmap.as_bytes())?;
        Ok(0)
    }

    /// What an UNMAP_DMA asks for, checked but for what the range cuts: nothing has changed.
    fn plan_unmap(&self, client: &dyn Client, arg: u64) -> Result<PlannedUnmap> {
        let unmap: abi::IommuType1DmaUnmap =
            read(client, arg, size_of::<abi::IommuType1DmaUnmap>())?;
        let (all, vaddr) = (abi::DMA_UNMAP_FLAG_ALL, abi::DMA_UNMAP_FLAG_VADDR);
        let get_dirty = unmap.flags & abi::DMA_UNMAP_FLAG_GET_DIRTY_BITMAP != 0;
        if unmap.flags & !(all | vaddr | abi::DMA_UNMAP_FLAG_GET_DIRTY_BITMAP) != 0 {
            return refuse!(EINVAL, "unknown UNMAP_DMA flags", u64::from(unmap.flags));
        }
        if get_dirty && unmap.flags & (all | vaddr) != 0 {
            return refuse!(
                EINVAL,
                "GET_DIRTY_BITMAP goes with no other flag",
                u64::from(unmap.flags)
            );
        }
        let bitmap = get_dirty.then(|| read_bitmap(client, arg, &unmap)).transpose()?;
        if unmap.flags & vaddr != 0 && !self.emulated.is_empty() {
            return refuse!(EBUSY, "an emulated device may use the process addresses");
        }
        let range = self.unmap_range(&unmap)?;
        if let Some(bitmap) = &bitmap {
            self.check_logging(bitmap)?;
        }
        Ok((unmap, range, bitmap))
    }

    /// What an UNMAP_DMA names.
    fn unmap_range(&self, unmap: &abi::IommuType1DmaUnmap) -> Result<IovaRange> {
        let page = self.page_size_min();
        if !unmap.iova.is_multiple_of(page) {
            return refuse!(EINVAL, "iova is not page aligned", unmap.iova);
        }
        if unmap.flags & abi::DMA_UNMAP_FLAG_ALL != 0 {
            if unmap.iova != 0 || unmap.size != 0 {
                return refuse!(
                    EINVAL,
                    "with ALL, iova and size must be 0",
                    unmap.iova | unmap.size
                );
            }
            return Ok(IovaRange::ALL);
        }
        if unmap.size == 0 || !unmap.size.is_multiple_of(page) {
            return refuse!(EINVAL, "size is zero or not page aligned", unmap.size);
        }
        IovaRange::new(Iova(unmap.iova), unmap.size)
    }

    /// The range as the IOMMU type understands it; `None` where a v1 container does nothing.
    fn under_version(&self, range: IovaRange) -> Result<Option<IovaRange>> {
        if self.v2 {
            let cut = if range == IovaRange::ALL { None } else { self.ioas.cut_by(range) };
            return match cut {
                Some(cut) => refuse!(EINVAL, "the range cuts a mapping", cut.0),
                None => Ok(Some(range)),
            };
        }
        // A mapping goes whole when its first byte is in the range; one that began before stops
        // everything.
        if self.ioas.area_at(range.start()).is_some_and(|first| first.start() < range.start()) {
            return Ok(None);
        }
        let last = self.ioas.area_at(range.last()).map_or(range.last(), IovaRange::last);
        IovaRange::closed(range.start(), last).map(Some)
    }

    /// Removes the mappings of a range that cuts none; returns the bytes.
    pub(super) fn remove(&mut self, range: IovaRange, pid: u32) -> Result<u64> {
        let unmapped = self.ioas.unmap(range, pid);
        self.forget(range);
        unmapped.result.map(|()| unmapped.bytes)
    }

    /// Forgets what was known of mappings that are gone.
    fn forget(&mut self, range: IovaRange) {
        self.dirty.forget(range);
        if !self.invalid.is_empty() {
            let ioas = &self.ioas;
            self.invalid.retain(|&start| ioas.area_at(Iova(start)).is_some());
        }
    }

    pub(super) fn ioas(&self) -> &Ioas {
        &self.ioas
    }

    /// The same, for who looks at it without the container.
    pub(super) fn shared_ioas(&self) -> Arc<Ioas> {
        Arc::clone(&self.ioas)
    }

    pub(super) fn machine(&self) -> &Machine {
        &self.machine
    }

    pub(super) fn is_v2(&self) -> bool {
        self.v2
    }

    /// Whether mappings are in a page table, where devices write without saying so.
    pub(super) fn is_mapped(&self) -> bool {
        !self.domains.is_empty()
    }
}

fn check_aligned(page: u64, size: u64, iova: u64, vaddr: u64) -> Result<()> {
    let misaligned = [
        (size, "size is not page aligned"),
        (iova, "iova is not page aligned"),
        (vaddr, "vaddr is not page aligned"),
    ];
    match misaligned.into_iter().find(|(value, _)| !value.is_multiple_of(page)) {
        Some((value, why)) => refuse!(EINVAL, why, value),
        None => Ok(()),
    }
}

/// Type1 says `EINVAL` where iommufd says `EADDRINUSE`.
fn conflict(error: Error) -> Error {
    if error.errno == Errno::EADDRINUSE { Error { errno: Errno::EINVAL, ..error } } else { error }
}

impl Drop for Type1 {
    fn drop(&mut self) {
        for entry in self.domains.drain(..) {
            entry.groups.iter().for_each(|group| group.attach(None));
            self.ioas.remove_domain(&entry.domain);
        }
    }
}
