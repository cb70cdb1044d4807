//! The SPAPR driver's rules: what a container does on a machine whose IOMMUs are POWER's.
//!
//! A window has a table of TCEs; a map writes those of its range, whatever was there, and an unmap
//! empties them: there are no mappings that could be cut. Version 1 has the one window that is
//! there without being asked for, charged whole when it is enabled. In version 2 windows are made
//! and removed, and only memory that was registered ahead is mapped. Linux:
//! `drivers/vfio/vfio_iommu_spapr_tce.c`.
//!
//! Invariant: areas of the IOAS lie inside windows; those of a v2 container show registered
//! regions.

mod charge;
mod eeh;
mod registered;
mod window;

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::sync::{Arc, Weak};

use ioasis_iommupt::{Iova, IovaRange, Prot};
use ioasis_uapi::vfio as abi;
use ioasis_uapi::{Errno, Error, Result};
use zerocopy::IntoBytes;

use super::argument::read;
use super::member::{GroupKind, Member};
use crate::Client;
use crate::account::Rule;
use crate::client::{AddressSpace, PAGE_SIZE};
use crate::hw::attachment::Attachment;
use crate::hw::domain::Domain;
use crate::hw::group::Group;
use crate::hw::machine::Machine;
use crate::hw::ops::PagingTable;
use crate::hw::sections::Users;
use crate::hw::tce::{self, WINDOWS, Windows};
use crate::inject::step;
use crate::ioas::{Ioas, Place, Slice};
use crate::object::Head;
use crate::pages::{Origin, PageRange, Pages};
use charge::Charge;
pub(super) use eeh::GroupClaim;
pub(super) use eeh::Operation;
use registered::{Made, Region, Registered};
use window::Table;

/// The driver of one container.
#[derive(Debug)]
pub(super) struct Spapr {
    machine: Arc<Machine>,
    v2: bool,
    enabled: bool,
    /// The window that is there without being asked for is not made yet.
    default_pending: bool,
    /// What ENABLE charged.
    locked: Option<Charge>,
    /// The process whose memory the container is about, from its first charge on.
    process: Option<Arc<dyn AddressSpace>>,
    /// The first speaks for all. A group is put before those that are there.
    groups: Vec<Member>,
    tables: [Option<Table>; WINDOWS],
    /// What this container registered, by first address.
    regions: BTreeMap<u64, Arc<Region>>,
    registered: Arc<Registered>,
    ioas: Arc<Ioas>,
    windows: Arc<Windows>,
    /// Whose DMA goes through the windows.
    users: Arc<Users>,
    domain: Option<Arc<Domain>>,
}

/// What a MAP_DMA asks for.
#[derive(Clone, Copy)]
struct Wanted {
    iova: u64,
    vaddr: u64,
    size: u64,
    prot: Prot,
    page_lg2: u32,
}

impl Spapr {
    /// What is mapped, for who looks at it without the container.
    pub(super) fn shared_ioas(&self) -> Arc<Ioas> {
        Arc::clone(&self.ioas)
    }

    /// Whether the driver, opened or not, has the extension.
    pub(super) fn offers(machine: &Machine, number: u32) -> bool {
        match number {
            abi::SPAPR_TCE_IOMMU | abi::SPAPR_TCE_v2_IOMMU => true,
            abi::EEH => machine.has_eeh(),
            _ => false,
        }
    }

    /// The driver, for the IOMMU type that SET_IOMMU names.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a number that is an extension but no IOMMU type.
    pub(super) fn open(machine: &Arc<Machine>, number: u32) -> Result<Self> {
        let v2 = match number {
            abi::SPAPR_TCE_IOMMU => false,
            abi::SPAPR_TCE_v2_IOMMU => true,
            _ => return refuse!(EINVAL, "the extension is no IOMMU type", u64::from(number)),
        };
        step("the SPAPR driver")?;
        Ok(Self {
            machine: Arc::clone(machine),
            v2,
            enabled: false,
            default_pending: false,
            locked: None,
            process: None,
            groups: Vec::new(),
            tables: Default::default(),
            regions: BTreeMap::new(),
            registered: machine.kept(),
            ioas: Arc::new(Ioas::new(machine, Head::outside())),
            windows: Arc::default(),
            users: Users::new(machine.sections),
            domain: None,
        })
    }

    /// Whether the container is about the caller's memory, or nobody's yet.
    fn check_process(&self, client: &dyn Client) -> Result<()> {
        match &self.process {
            Some(process) if process.key() != client.memory().key() => {
                refuse!(EPERM, "the container is about another process's memory")
            }
            _ => Ok(()),
        }
    }

    /// What EEH_PE_OP checks before it reads its argument.
    ///
    /// # Errors
    ///
    /// `EPERM` for another process; `ENODEV` if the first group has no error handling.
    pub(super) fn check_eeh(&self, client: &dyn Client) -> Result<()> {
        self.check_process(client)?;
        self.groups.first().map_or(Ok(()), |member| eeh::check(&member.group))
    }

    /// One more claim on each group, for a call that acts on them when nothing is locked: until it
    /// is over, one that leaves the container is nobody else's.
    pub(super) fn claim_groups(&self, owner: u64) -> Result<Vec<GroupClaim>> {
        self.groups.iter().map(|member| GroupClaim::new(&member.group, owner)).collect()
    }

    pub(super) fn ioctl(&mut self, client: &dyn Client, cmd: u32, arg: u64) -> Result<i64> {
        self.check_process(client)?;
        match cmd {
            abi::IOMMU_SPAPR_TCE_GET_INFO => self.get_info(client, arg),
            abi::IOMMU_MAP_DMA => self.map_dma(client, arg),
            abi::IOMMU_UNMAP_DMA => self.unmap_dma(client, arg),
            abi::IOMMU_SPAPR_REGISTER_MEMORY if self.v2 => self.register(client, arg),
            abi::IOMMU_SPAPR_UNREGISTER_MEMORY if self.v2 => self.unregister(client, arg),
            abi::IOMMU_ENABLE if !self.v2 => self.enable(client),
            abi::IOMMU_DISABLE if !self.v2 => {
                self.enabled = false;
                self.locked = None;
                Ok(0)
            }
            abi::IOMMU_SPAPR_TCE_CREATE if self.v2 => self.tce_create(client, arg),
            abi::IOMMU_SPAPR_TCE_REMOVE if self.v2 => self.tce_remove(client, arg),
            _ => refuse!(ENOTTY, "no such ioctl on an SPAPR container", u64::from(cmd)),
        }
    }

    /// Attaches a group: `tce_iommu_attach_group`.
    pub(super) fn attach(&mut self, member: &Member) -> Result<()> {
        let number = u64::from(member.group.number());
        if member.kind == GroupKind::Emulated {
            return refuse!(EINVAL, "the group's devices do no DMA", number);
        }
        let Some(spapr) = member.group.iommu().spapr else {
            return refuse!(ENODEV, "the group's IOMMU has no windows", number);
        };
        if self.v2 && !spapr.dynamic_windows {
            return refuse!(EINVAL, "version 2 needs windows that can be made and removed", number);
        }
        if !self.v2 && !self.groups.is_empty() {
            return refuse!(EBUSY, "a container of version 1 has one group", number);
        }
        if self.groups.iter().any(|other| other.is(&member.group)) {
            return refuse!(EBUSY, "the group is attached already", number);
        }
        step("a group in a container")?;
        let domain = self.domain(&member.group)?;
        let mappings: Weak<Ioas> = Arc::downgrade(&self.ioas);
        member.group.attach(Some(Attachment {
            token: self.machine.token(),
            domain,
            nested: None,
            faults: None,
            guest: None,
            mappings,
        }));
        if self.groups.is_empty() && self.tables[0].is_none() {
            self.default_pending = true;
        }
        self.groups.insert(0, member.clone());
        Ok(())
    }

    /// The page table of all windows, made for the first group.
    fn domain(&mut self, group: &Group) -> Result<Arc<Domain>> {
        if let Some(domain) = &self.domain {
            return Ok(Arc::clone(domain));
        }
        let writer = Windows::writer(&self.windows);
        let table =
            PagingTable { aperture: writer.aperture(), page_sizes: writer.page_sizes(), writer };
        let users = Arc::clone(&self.users);
        let domain = Domain::of(&self.machine, group.iommu(), 0, users, table);
        self.ioas.add_domain(&domain)?;
        self.domain = Some(Arc::clone(&domain));
        Ok(domain)
    }

    /// Detaches a group. All windows are emptied, whoever else has them:
    /// `tce_iommu_release_ownership`.
    pub(super) fn detach(&mut self, member: &Member) {
        let before = self.groups.len();
        self.groups.retain(|other| !other.is(&member.group));
        if self.groups.len() == before {
            return;
        }
        member.group.attach(None);
        (0..WINDOWS).for_each(|number| self.clear_table(number, 0));
        self.registered.sweep();
    }

    /// The group that speaks for all, and what its IOMMU has.
    fn first_group(&self) -> Result<(Arc<Group>, tce::Spapr)> {
        match self.groups.first().map(|member| (&member.group, member.group.iommu().spapr)) {
            Some((group, Some(spapr))) => Ok((Arc::clone(group), spapr)),
            _ => refuse!(ENXIO, "the container has no group"),
        }
    }

    /// From now on the container is about the caller's memory: `tce_iommu_mm_set`.
    fn set_process(&mut self, client: &dyn Client) {
        self.process.get_or_insert_with(|| client.memory());
    }

    fn get_info(&self, client: &dyn Client, arg: u64) -> Result<i64> {
        let (group, spapr) = self.first_group()?;
        let (first, whole) =
            (offset_of!(abi::IommuSpaprTceInfo, ddw), size_of::<abi::IommuSpaprTceInfo>());
        let mut info: abi::IommuSpaprTceInfo = read(client, arg, first)?;
        info.dma32_window_start = 0;
        info.dma32_window_size = spapr.window;
        info.flags = 0;
        info.ddw = abi::IommuSpaprTceDdwInfo::default();
        if spapr.dynamic_windows && self.v2 {
            info.flags = abi::IOMMU_SPAPR_INFO_DDW;
            info.ddw.pgsizes = group.iommu().page_sizes;
            info.ddw.max_dynamic_windows_supported =
                u32::try_from(WINDOWS).expect("windows are few");
            info.ddw.levels = spapr.levels;
        }
        let length = if info.argsz as usize >= whole { whole } else { first };
        client.write(arg, &info.as_bytes()[..length])?;
        Ok(0)
    }

    fn enable(&mut self, client: &dyn Client) -> Result<i64> {
        if self.enabled {
            return refuse!(EBUSY, "the container is enabled already");
        }
        let Ok((_, spapr)) = self.first_group() else {
            return refuse!(ENODEV, "the container has no group");
        };
        if spapr.window == 0 {
            return refuse!(EPERM, "there is no window without being asked for");
        }
        self.set_process(client);
        let pages = u64::from(spapr.window) / PAGE_SIZE;
        self.locked = Some(Charge::new(&self.machine, client, pages)?);
        self.enabled = true;
        Ok(0)
    }

    fn map_dma(&mut self, client: &dyn Client, arg: u64) -> Result<i64> {
        if !self.enabled {
            return self.not_enabled();
        }
        let map: abi::IommuType1DmaMap = read(client, arg, size_of::<abi::IommuType1DmaMap>())?;
        let (may_read, may_write) = (abi::DMA_MAP_FLAG_READ, abi::DMA_MAP_FLAG_WRITE);
        if map.flags & !(may_read | may_write) != 0 {
            return refuse!(EINVAL, "unknown MAP_DMA flags", u64::from(map.flags));
        }
        self.create_default_window(client)?;
        let Some(number) = self.table_at(map.iova) else {
            return refuse!(ENXIO, "no window is at the IOVA", map.iova);
        };
        let window = &self.tables[number].as_ref().expect("it was found").window;
        let (page, page_lg2, range) = (window.page(), window.page_lg2, window.range);
        if let Some(bad) = [map.size, map.vaddr].into_iter().find(|one| !one.is_multiple_of(page)) {
            return refuse!(EINVAL, "size or vaddr is no multiple of the window's page", bad);
        }
        let mut prot = Prot::empty();
        prot.set(Prot::READ, map.flags & may_read != 0);
        prot.set(Prot::WRITE, map.flags & may_write != 0);
        if prot.is_empty() {
            return refuse!(EINVAL, "a map has READ, WRITE or both");
        }
        // iommu_tce_put_param_check is a condition: true, 1, is what the ioctl answers.
        if !map.iova.is_multiple_of(page) {
            return Ok(1);
        }
        // DIFFERS: Linux looks at the first TCE alone and writes on behind the table.
        if map.size > range.last().0 - map.iova + 1 {
            return refuse!(EINVAL, "the map ends behind its window", map.size);
        }
        let (iova, vaddr, size) = (map.iova, map.vaddr, map.size);
        self.build(client, Wanted { iova, vaddr, size, prot, page_lg2 })?;
        Ok(0)
    }

    fn not_enabled(&self) -> Result<i64> {
        let how = if self.v2 { "memory is registered first" } else { "ENABLE comes first" };
        refuse!(EPERM, how)
    }

    /// Writes the TCEs of a map, one stretch after another; what was there is replaced. Those of a
    /// map that fails are emptied again: `tce_iommu_build`, `tce_iommu_build_v2`.
    // DIFFERS: Linux exchanges each TCE; here a page is not mapped for a moment.
    fn build(&mut self, client: &dyn Client, wanted: Wanted) -> Result<()> {
        let mut done = 0;
        while done < wanted.size {
            let rest = Wanted {
                iova: wanted.iova + done,
                vaddr: wanted.vaddr.wrapping_add(done),
                size: wanted.size - done,
                ..wanted
            };
            let (written, result) = if self.v2 {
                self.build_registered(client, rest)
            } else {
                self.build_pinned(client, rest)
            };
            done += written;
            if let Err(error) = result {
                if done > 0 {
                    let built = IovaRange::new(Iova(wanted.iova), done)?;
                    let gone = self.ioas.unmap(built, client.pid());
                    gone.result.expect("no access and no queue is on a container's IOAS");
                    self.registered.sweep();
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Writes TCEs of a version 1 container: the pages are pinned now, and paid for already.
    /// Returns how far it came.
    fn build_pinned(&mut self, client: &dyn Client, wanted: Wanted) -> (u64, Result<()>) {
        let (pages, failure) = match self.pin(client, &wanted, wanted.size) {
            Ok(pages) => (Some((pages, wanted.size)), Ok(())),
            // Memory that wraps ends where no program has any.
            Err(error) if matches!(error.errno, Errno::EFAULT | Errno::EOVERFLOW) => {
                let error = Error { errno: Errno::EFAULT, ..error };
                (self.pin_first(client, &wanted), Err(error))
            }
            Err(error) => (None, Err(error)),
        };
        let Some((pages, size)) = pages else { return (0, failure) };
        let whole = PageRange::of_bytes(0, size);
        let shown = self.show(client, &Wanted { size, ..wanted }, &pages, 0);
        pages.release(whole);
        match shown {
            Ok(()) => (size, failure),
            Err(error) => (0, Err(error)),
        }
    }

    /// Pins the first `size` bytes of a map. They must be writable, whatever the TCEs will allow:
    /// `tce_iommu_use_page` looks for permissions in an address that has none.
    fn pin(&self, client: &dyn Client, wanted: &Wanted, size: u64) -> Result<Arc<Pages>> {
        let origin = Origin { space: client.memory(), address: wanted.vaddr };
        let account = client.account();
        let both = Prot::READ | Prot::WRITE;
        let pages = Pages::new(&self.machine, origin, size, both, account, Rule::Ahead)?;
        pages.hold(PageRange::of_bytes(0, size))?;
        Ok(Arc::new(pages))
    }

    /// Pins what can be pinned before the first page that cannot; how many bytes that is.
    fn pin_first(&self, client: &dyn Client, wanted: &Wanted) -> Option<(Arc<Pages>, u64)> {
        let (mut low, mut high) = (0, wanted.size / PAGE_SIZE);
        let mut pinned = None;
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match self.pin(client, wanted, middle * PAGE_SIZE) {
                Ok(pages) => {
                    if let Some((before, size)) = pinned.replace((pages, middle * PAGE_SIZE)) {
                        Pages::release(&before, PageRange::of_bytes(0, size));
                    }
                    low = middle;
                }
                Err(_) => high = middle,
            }
        }
        pinned
    }

    /// Writes TCEs of a version 2 container, as many as the region that holds the first has pages
    /// for. Returns how far it came.
    fn build_registered(&mut self, client: &dyn Client, wanted: Wanted) -> (u64, Result<()>) {
        let page = 1 << wanted.page_lg2;
        let key = client.memory().key();
        let found = self.registered.lookup(key, wanted.vaddr, page);
        let Some(region) = found.filter(|region| wanted.page_lg2 <= region.page_lg2()) else {
            let why = "the memory is not registered, or in smaller pages than the window's";
            return (0, refuse!(EINVAL, why, wanted.vaddr));
        };
        let inside = wanted.vaddr - region.address();
        let mut size = (region.length() - inside).min(wanted.size) & !(page - 1);
        if page > PAGE_SIZE {
            size = page;
            if region.backing_page_lg2(&self.machine, inside, page) < wanted.page_lg2 {
                let why = "the page of the memory is smaller than the window's";
                return (0, refuse!(EPERM, why, wanted.vaddr));
            }
        }
        // Before what was there goes: that may be the last of a region that no container has any
        // more.
        let range = PageRange::of_bytes(inside, size);
        let shown = region.pages().hold(range).and_then(|()| {
            let shown = self.show(client, &Wanted { size, ..wanted }, region.pages(), inside);
            region.pages().release(range);
            shown
        });
        match shown {
            Ok(()) => (size, Ok(())),
            Err(error) => (0, Err(error)),
        }
    }

    /// Shows `pages` from byte `start_byte` to the devices, in place of what was there.
    fn show(
        &self,
        client: &dyn Client,
        wanted: &Wanted,
        pages: &Arc<Pages>,
        start_byte: u64,
    ) -> Result<()> {
        let range = IovaRange::new(Iova(wanted.iova), wanted.size)?;
        self.empty(client, range)?;
        let slice = Slice { pages: Arc::clone(pages), start_byte, length: wanted.size };
        self.ioas.map(slice, Place::Fixed(range.start()), wanted.prot)?;
        Ok(())
    }

    /// Empties the TCEs of a range.
    fn empty(&self, client: &dyn Client, range: IovaRange) -> Result<()> {
        self.ioas.cut_between_leaves(range.start())?;
        if let Some(after) = range.last().0.checked_add(1) {
            self.ioas.cut_between_leaves(Iova(after))?;
        }
        self.ioas.unmap(range, client.pid()).result?;
        self.registered.sweep();
        Ok(())
    }

    fn unmap_dma(&mut self, client: &dyn Client, arg: u64) -> Result<i64> {
        if !self.enabled {
            return self.not_enabled();
        }
        let unmap: abi::IommuType1DmaUnmap =
            read(client, arg, size_of::<abi::IommuType1DmaUnmap>())?;
        if unmap.flags != 0 {
            return refuse!(EINVAL, "an unmap has no flags", u64::from(unmap.flags));
        }
        self.create_default_window(client)?;
        let Some(number) = self.table_at(unmap.iova) else {
            return refuse!(ENXIO, "no window is at the IOVA", unmap.iova);
        };
        let window = &self.tables[number].as_ref().expect("it was found").window;
        let page = window.page();
        if !unmap.size.is_multiple_of(page) {
            return refuse!(EINVAL, "size is no multiple of the window's page", unmap.size);
        }
        // iommu_tce_clear_param_check is a condition: true, 1, is what the ioctl answers.
        if !unmap.iova.is_multiple_of(page) || unmap.size > window.range.last().0 - unmap.iova + 1 {
            return Ok(1);
        }
        if unmap.size > 0 {
            self.empty(client, IovaRange::new(Iova(unmap.iova), unmap.size)?)?;
        }
        Ok(0)
    }

    fn register(&mut self, client: &dyn Client, arg: u64) -> Result<i64> {
        self.set_process(client);
        let range = read_range(client, arg)?;
        let (vaddr, size) = (range.vaddr, range.size);
        if !(vaddr | size).is_multiple_of(PAGE_SIZE) || vaddr.checked_add(size).is_none() {
            return refuse!(EINVAL, "the range is not page aligned, or wraps", vaddr | size);
        }
        let (key, entries) = (client.memory().key(), size / PAGE_SIZE);
        let region = match self.registered.get(key, vaddr, entries) {
            Some(region) => {
                if self.regions.contains_key(&vaddr) {
                    self.registered.put(&region);
                    return refuse!(EBUSY, "the container has registered the range", vaddr);
                }
                region
            }
            None => match self.registered.new_region(&self.machine, client, vaddr, entries)? {
                Made::Region(region) => region,
                Made::Short(pages) => {
                    return Ok(i64::try_from(pages).expect("so many are pinned at once"));
                }
            },
        };
        if let Err(error) = step("a region of a container") {
            self.registered.put(&region);
            return Err(error);
        }
        self.regions.insert(vaddr, region);
        self.enabled = true;
        Ok(0)
    }

    fn unregister(&mut self, client: &dyn Client, arg: u64) -> Result<i64> {
        if self.process.is_none() {
            return refuse!(EPERM, "the container has registered nothing yet");
        }
        let range = read_range(client, arg)?;
        let (vaddr, size) = (range.vaddr, range.size);
        if !(vaddr | size).is_multiple_of(PAGE_SIZE) {
            return refuse!(EINVAL, "the range is not page aligned", vaddr | size);
        }
        let known = |region: &Arc<Region>| region.length() == size;
        if !self.regions.get(&vaddr).is_some_and(known) {
            return refuse!(ENOENT, "the container has not registered just that range", vaddr);
        }
        let region = self.regions.remove(&vaddr).expect("it was found");
        // As Linux answers also while something of it is mapped: the region goes with that then.
        self.registered.put(&region);
        Ok(0)
    }

    fn tce_create(&mut self, client: &dyn Client, arg: u64) -> Result<i64> {
        self.set_process(client);
        self.first_group()?;
        let size = size_of::<abi::IommuSpaprTceCreate>();
        let mut create: abi::IommuSpaprTceCreate = read(client, arg, size)?;
        if create.flags != 0 {
            return refuse!(EINVAL, "TCE_CREATE has no flags", u64::from(create.flags));
        }
        self.create_default_window(client)?;
        create.start_addr =
            self.create_window(client, create.page_shift, create.window_size, create.levels)?;
        // A reply that cannot be written leaves the window, as in Linux.
        client.write(arg, create.as_bytes())?;
        Ok(0)
    }

    fn tce_remove(&mut self, client: &dyn Client, arg: u64) -> Result<i64> {
        self.set_process(client);
        self.first_group()?;
        let size = size_of::<abi::IommuSpaprTceRemove>();
        let remove: abi::IommuSpaprTceRemove = read(client, arg, size)?;
        if remove.flags != 0 {
            return refuse!(EINVAL, "TCE_REMOVE has no flags", u64::from(remove.flags));
        }
        if self.default_pending && remove.start_addr == 0 {
            self.default_pending = false;
            return Ok(0);
        }
        self.remove_window(remove.start_addr, client.pid())?;
        Ok(0)
    }
}

/// The argument of REGISTER_MEMORY and UNREGISTER_MEMORY.
fn read_range(client: &dyn Client, arg: u64) -> Result<abi::IommuSpaprRegisterMemory> {
    let size = size_of::<abi::IommuSpaprRegisterMemory>();
    let range: abi::IommuSpaprRegisterMemory = read(client, arg, size)?;
    if range.flags != 0 {
        return refuse!(EINVAL, "a range has no flags", u64::from(range.flags));
    }
    Ok(range)
}

impl Drop for Spapr {
    fn drop(&mut self) {
        for member in std::mem::take(&mut self.groups) {
            member.group.attach(None);
        }
        let _everything = self.ioas.unmap_all(0);
        if let Some(domain) = self.domain.take() {
            self.ioas.remove_domain(&domain);
        }
        for region in std::mem::take(&mut self.regions).into_values() {
            self.registered.put(&region);
        }
        self.registered.sweep();
    }
}

#[cfg(test)]
mod any_order;
#[cfg(test)]
mod tests;
