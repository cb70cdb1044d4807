//! Steps as bytes: what a client, a driver or a device really does.

use std::sync::Arc;

use ioasis_iommupt::{Iova, Prot};
use ioasis_uapi::iommufd as abi;
use ioasis_uapi::{Errno, Error, Result, vfio};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::model::{CONTAINER_PID, PAGE, TABLES, pid};
use super::step::{
    Call, Change, OnAccess, Range, Reply, Rw, Source, Space, Stage, Step, Table, Type1,
};
use super::system::{ARG, Actor, BUFFER, DATA, FILE, OfAccess, Pinner, System, base_of, written};
use crate::container::{GroupKind, Member};
use crate::{AccessKind, AddressSpace, Client, Context, IommuKind, QueueWatcher, Segment};

/// Bytes behind `DATA` that a command's reply may fill.
const REPLY: usize = 4096;

fn put<T: IntoBytes + Immutable>(actor: &Actor, at: u64, value: &T) {
    actor.argument.write(at, value.as_bytes()).unwrap();
}

fn get<T: FromBytes + IntoBytes>(actor: &Actor, at: u64) -> T {
    let mut value = T::new_zeroed();
    actor.argument.read(at, value.as_mut_bytes()).unwrap();
    value
}

fn id(id: u32) -> Reply {
    Reply::Value(u64::from(id))
}

fn map_flags(at: Option<u64>, prot: Rw) -> u32 {
    let mut flags = if at.is_some() { abi::IOAS_MAP_FIXED_IOVA } else { 0 };
    flags |= if prot.read { abi::IOAS_MAP_READABLE } else { 0 };
    flags | if prot.write { abi::IOAS_MAP_WRITEABLE } else { 0 }
}

fn dma_flags(prot: Rw) -> u32 {
    let read = if prot.read { vfio::DMA_MAP_FLAG_READ } else { 0 };
    read | if prot.write { vfio::DMA_MAP_FLAG_WRITE } else { 0 }
}

fn segment(range: Range) -> Segment {
    Segment { iova: Iova(range.0), length: usize::try_from(range.1).unwrap() }
}

fn bytes_for(range: Range) -> Vec<u8> {
    (0..usize::try_from(range.1).unwrap()).map(|index| written(range.0, index)).collect()
}

impl System {
    pub(super) fn apply(&mut self, step: &Step) -> Result<Reply> {
        match *step {
            Step::Call { context, ref call } => self.call(context, call),
            Step::Type1(ref call) => {
                self.actors[0].pid.set(CONTAINER_PID);
                let answer = self.type1(call);
                self.actors[0].pid.set(pid(0));
                answer
            }
            Step::Bind { context, device } => {
                let bound = self.contexts[context].bind(&self.endpoints[device])?;
                let made = id(bound.id());
                self.bound[device] = Some(bound);
                Ok(made)
            }
            Step::Unbind { device } => {
                self.bound[device] = None;
                Ok(Reply::Nothing)
            }
            Step::Change { device, pasid, pt, change } => {
                let bound = self.bound[device].as_ref().unwrap();
                let used = match (change, pasid) {
                    (Change::Attach, 0) => bound.attach(pt),
                    (Change::Attach, _) => bound.attach_pasid(pasid, pt),
                    (Change::Replace, 0) => bound.replace(pt),
                    (Change::Replace, _) => bound.replace_pasid(pasid, pt),
                };
                used.map(id)
            }
            Step::Detach { device, pasid } => {
                self.bound[device].as_ref().unwrap().detach_pasid(pasid);
                Ok(Reply::Nothing)
            }
            Step::NewAccess { context, pins } => {
                let pinner = Arc::new(Pinner::default());
                let user: Arc<Pinner> = Arc::clone(&pinner);
                let kind = if pins { AccessKind::Pins(user) } else { AccessKind::ReadWrite };
                let handle = Arc::new(self.contexts[context].create_access(kind)?);
                pinner.access.set(Arc::downgrade(&handle)).unwrap();
                let made = id(handle.id());
                self.accesses.push(Some(OfAccess { handle, pinner }));
                Ok(made)
            }
            Step::Access { access, ref what } => self.on_access(access, what),
            Step::Dma { device, pasid, range, write } => Ok(self.dma(device, pasid, range, write)),
            Step::AskedDma { device, iova, map } => Ok(self.asked_dma(device, iova, map)),
            Step::ReadEvents { file } => Ok(self.read_events(file)),
            Step::Revoke { renew } => {
                self.revoke(renew);
                Ok(Reply::Nothing)
            }
            Step::Capability { context, has } => {
                self.actors[context].ipc_lock.set(has);
                Ok(Reply::Nothing)
            }
            Step::CloseFile { file } => {
                self.files[file].take().unwrap().close();
                Ok(Reply::Nothing)
            }
        }
    }

    fn ioctl<T>(&self, context: usize, ioctl: u32, cmd: &T) -> Result<T>
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        let actor = &self.actors[context];
        put(actor, ARG, cmd);
        self.contexts[context].ioctl(actor, ioctl, ARG)?;
        Ok(get(actor, ARG))
    }

    /// Calls on objects and address spaces.
    fn call(&mut self, context: usize, call: &Call) -> Result<Reply> {
        let actor = &self.actors[context];
        match *call {
            Call::Destroy { id } => {
                self.ioctl(context, abi::DESTROY, &abi::Destroy { size: 8, id })?;
            }
            Call::IoasAlloc => {
                let cmd = abi::IoasAlloc { size: 12, ..Default::default() };
                return Ok(id(self.ioctl(context, abi::IOAS_ALLOC, &cmd)?.out_ioas_id));
            }
            Call::Allow { ioas, ref ranges } => {
                let words: Vec<u64> =
                    ranges.iter().flat_map(|&(start, last)| [start, last]).collect();
                actor.argument.write(DATA, words.as_bytes())?;
                let cmd = abi::IoasAllowIovas {
                    size: 24,
                    ioas_id: ioas,
                    num_iovas: u32::try_from(ranges.len()).unwrap(),
                    __reserved: 0,
                    allowed_iovas: DATA,
                };
                self.ioctl(context, abi::IOAS_ALLOW_IOVAS, &cmd)?;
            }
            Call::Copy { src, range, dst, at, prot } => {
                let cmd = abi::IoasCopy {
                    size: 40,
                    flags: map_flags(at, prot),
                    dst_ioas_id: dst,
                    src_ioas_id: src,
                    length: range.1,
                    dst_iova: at.unwrap_or(0),
                    src_iova: range.0,
                };
                return Ok(Reply::Value(self.ioctl(context, abi::IOAS_COPY, &cmd)?.dst_iova));
            }
            Call::Ranges { ioas, room } => return self.ranges(context, ioas, room),
            Call::Map { ioas, source, at, prot } => {
                return self.map(context, ioas, source, at, prot);
            }
            Call::MapBuffer { ioas: ioas_id, offset: start, length, at, prot } => {
                let (flags, iova) = (map_flags(at, prot), at.unwrap_or(0));
                let cmd =
                    abi::IoasMapFile { size: 40, flags, ioas_id, fd: BUFFER, start, length, iova };
                return Ok(Reply::Value(self.ioctl(context, abi::IOAS_MAP_FILE, &cmd)?.iova));
            }
            Call::Unmap { ioas, range: (iova, length) } => {
                let cmd = abi::IoasUnmap { size: 24, ioas_id: ioas, iova, length };
                return Ok(Reply::Value(self.ioctl(context, abi::IOAS_UNMAP, &cmd)?.length));
            }
            Call::ChangeProcess => {
                actor.pid.set(pid(context) + 1);
                let cmd = abi::IoasChangeProcess { size: 8, __reserved: 0 };
                let answer = self.ioctl(context, abi::IOAS_CHANGE_PROCESS, &cmd);
                actor.pid.set(pid(context));
                answer?;
            }
            _ => return self.call_tables(context, call),
        }
        Ok(Reply::Nothing)
    }

    /// Calls on page tables.
    fn call_tables(&mut self, context: usize, call: &Call) -> Result<Reply> {
        let actor = &self.actors[context];
        match *call {
            Call::HwptAlloc { device, pt, flags, fault, table } => {
                return self.hwpt_alloc(context, (device, pt), (flags, fault), table);
            }
            Call::HwInfo { device } => {
                let cmd = abi::HwInfo {
                    size: 40,
                    dev_id: device,
                    data_len: 256,
                    data_uptr: DATA,
                    ..Default::default()
                };
                return Ok(id(self.ioctl(context, abi::GET_HW_INFO, &cmd)?.data_type));
            }
            Call::SetTracking { hwpt, on } => {
                let flags = if on { abi::HWPT_DIRTY_TRACKING_ENABLE } else { 0 };
                let cmd =
                    abi::HwptSetDirtyTracking { size: 16, flags, hwpt_id: hwpt, __reserved: 0 };
                self.ioctl(context, abi::HWPT_SET_DIRTY_TRACKING, &cmd)?;
            }
            Call::GetBitmap { hwpt, range, page_lg2, keep } => {
                let length = usize::try_from((range.1 >> page_lg2).div_ceil(8)).unwrap();
                actor.argument.write(DATA, &vec![0; length])?;
                let cmd = abi::HwptGetDirtyBitmap {
                    size: 48,
                    hwpt_id: hwpt,
                    flags: if keep { abi::HWPT_GET_DIRTY_BITMAP_NO_CLEAR } else { 0 },
                    __reserved: 0,
                    iova: range.0,
                    length: range.1,
                    page_size: 1 << page_lg2,
                    data: DATA,
                };
                self.ioctl(context, abi::HWPT_GET_DIRTY_BITMAP, &cmd)?;
                return Ok(self.bytes_at_data(context, length));
            }
            Call::Invalidate { id, everything } => return self.invalidate(context, id, everything),
            _ => return self.call_viommus(context, call),
        }
        Ok(Reply::Nothing)
    }

    /// Calls on virtual IOMMUs and queues.
    fn call_viommus(&mut self, context: usize, call: &Call) -> Result<Reply> {
        match *call {
            Call::FaultAlloc => {
                let cmd = abi::FaultAlloc { size: 16, ..Default::default() };
                let made = self.ioctl(context, abi::FAULT_QUEUE_ALLOC, &cmd)?;
                self.keep_file(context);
                return Ok(id(made.out_fault_id));
            }
            Call::ViommuAlloc { device, hwpt } => {
                let kind = self.kind_of(context, device);
                let type_ = if kind == IommuKind::Amd { 7 } else { abi::VIOMMU_TYPE_ARM_SMMUV3 };
                let cmd = abi::ViommuAlloc {
                    size: 40,
                    type_,
                    dev_id: device,
                    hwpt_id: hwpt,
                    ..Default::default()
                };
                return Ok(id(self.ioctl(context, abi::VIOMMU_ALLOC, &cmd)?.out_viommu_id));
            }
            Call::VdeviceAlloc { viommu, device, virtual_id } => {
                let cmd = abi::VdeviceAlloc {
                    size: 24,
                    viommu_id: viommu,
                    dev_id: device,
                    out_vdevice_id: 0,
                    virt_id: virtual_id,
                };
                return Ok(id(self.ioctl(context, abi::VDEVICE_ALLOC, &cmd)?.out_vdevice_id));
            }
            Call::VeventqAlloc { viommu, depth } => {
                let cmd = abi::VeventqAlloc {
                    size: 32,
                    viommu_id: viommu,
                    type_: abi::VEVENTQ_TYPE_ARM_SMMUV3,
                    veventq_depth: depth,
                    ..Default::default()
                };
                let made = self.ioctl(context, abi::VEVENTQ_ALLOC, &cmd)?;
                self.keep_file(context);
                return Ok(id(made.out_veventq_id));
            }
            Call::HwQueueAlloc { viommu } => {
                let cmd = abi::HwQueueAlloc {
                    size: 40,
                    viommu_id: viommu,
                    type_: 1,
                    length: PAGE,
                    ..Default::default()
                };
                self.ioctl(context, abi::HW_QUEUE_ALLOC, &cmd)?;
            }
            _ => return self.call_vfio(context, call),
        }
        Ok(Reply::Nothing)
    }

    /// Options, and VFIO container calls.
    fn call_vfio(&self, context: usize, call: &Call) -> Result<Reply> {
        let actor = &self.actors[context];
        match *call {
            Call::RlimitMode { set } => {
                return self.option(context, abi::OPTION_RLIMIT_MODE, 0, set);
            }
            Call::HugePages { ioas, set } => {
                return self.option(context, abi::OPTION_HUGE_PAGES, ioas, set);
            }
            Call::VfioGet => {
                let cmd = abi::VfioIoas { size: 12, op: abi::VFIO_IOAS_GET, ..Default::default() };
                return Ok(id(self.ioctl(context, abi::VFIO_IOAS, &cmd)?.ioas_id));
            }
            Call::VfioSet { ioas } => {
                let (op, ioas_id) = (abi::VFIO_IOAS_SET, ioas);
                self.ioctl(
                    context,
                    abi::VFIO_IOAS,
                    &abi::VfioIoas { size: 12, ioas_id, op, __reserved: 0 },
                )?;
            }
            Call::VfioClear => {
                let cmd =
                    abi::VfioIoas { size: 12, op: abi::VFIO_IOAS_CLEAR, ..Default::default() };
                self.ioctl(context, abi::VFIO_IOAS, &cmd)?;
            }
            Call::CompatSetIommu { v1 } => {
                let kind = if v1 { vfio::TYPE1_IOMMU } else { vfio::TYPE1v2_IOMMU };
                self.contexts[context].ioctl(actor, vfio::SET_IOMMU, u64::from(kind))?;
            }
            Call::CompatMap { source, at, prot } => {
                let cmd = dma_map(source, at, prot);
                self.ioctl(context, vfio::IOMMU_MAP_DMA, &cmd)?;
            }
            Call::CompatUnmap { range, all } => {
                let cmd = dma_unmap(range, all);
                return Ok(Reply::Value(self.ioctl(context, vfio::IOMMU_UNMAP_DMA, &cmd)?.size));
            }
            Call::CompatInfo => {
                put(actor, DATA, &u32::try_from(REPLY).unwrap());
                self.contexts[context].ioctl(actor, vfio::IOMMU_GET_INFO, DATA)?;
                return Ok(ranges_of_info(actor));
            }
            _ => unreachable!("the other calls came before"),
        }
        Ok(Reply::Nothing)
    }

    fn keep_file(&mut self, context: usize) {
        let made = self.actors[context].made.borrow_mut().pop();
        self.files.push(Some(made.expect("a file was made")));
    }

    fn kind_of(&self, context: usize, device: u32) -> IommuKind {
        let found = self.bound.iter().flatten().find(|bound| {
            bound.id() == device && Arc::ptr_eq(bound.context(), &self.contexts[context])
        });
        found.map_or(IommuKind::Smmuv3, |bound| bound.endpoint().iommu().kind)
    }

    fn bytes_at_data(&self, context: usize, length: usize) -> Reply {
        let mut bytes = vec![0; length];
        self.actors[context].argument.read(DATA, &mut bytes).unwrap();
        Reply::Bytes(bytes)
    }

    fn ranges(&self, context: usize, ioas: u32, room: u32) -> Result<Reply> {
        let cmd = abi::IoasIovaRanges {
            size: 32,
            ioas_id: ioas,
            num_iovas: room,
            allowed_iovas: DATA,
            ..Default::default()
        };
        let cmd = self.ioctl(context, abi::IOAS_IOVA_RANGES, &cmd)?;
        let mut words = vec![0_u64; usize::try_from(cmd.num_iovas).unwrap() * 2];
        self.actors[context].argument.read(DATA, words.as_mut_bytes())?;
        words.insert(0, cmd.out_iova_alignment);
        Ok(Reply::Words(words))
    }

    fn map(
        &self,
        context: usize,
        ioas_id: u32,
        source: Source,
        at: Option<u64>,
        prot: Rw,
    ) -> Result<Reply> {
        let (flags, length, iova) = (map_flags(at, prot), source.length, at.unwrap_or(0));
        let mapped = match source.space {
            Space::User(_) => {
                let user_va = base_of(source.space) + source.offset;
                let cmd =
                    abi::IoasMap { size: 40, flags, ioas_id, __reserved: 0, user_va, length, iova };
                self.ioctl(context, abi::IOAS_MAP, &cmd)?.iova
            }
            Space::File => {
                let (fd, start) = (FILE, source.offset);
                let cmd = abi::IoasMapFile { size: 40, flags, ioas_id, fd, start, length, iova };
                self.ioctl(context, abi::IOAS_MAP_FILE, &cmd)?.iova
            }
        };
        Ok(Reply::Value(mapped))
    }

    fn option(&self, context: usize, option: u32, object: u32, set: Option<u64>) -> Result<Reply> {
        let cmd = abi::Option {
            size: 24,
            option_id: option,
            op: if set.is_some() { abi::OPTION_OP_SET } else { abi::OPTION_OP_GET },
            __reserved: 0,
            object_id: object,
            val64: set.unwrap_or(0),
        };
        Ok(Reply::Value(self.ioctl(context, abi::OPTION, &cmd)?.val64))
    }

    fn hwpt_alloc(
        &self,
        context: usize,
        (device, pt): (u32, u32),
        (flags, fault_id): (u32, u32),
        table: Table,
    ) -> Result<Reply> {
        let data = table_data(table);
        self.actors[context].argument.write(DATA, &data.1)?;
        let cmd = abi::HwptAlloc {
            size: 48,
            flags,
            dev_id: device,
            pt_id: pt,
            data_type: data.0,
            data_len: u32::try_from(data.1.len()).unwrap(),
            data_uptr: DATA,
            fault_id,
            ..Default::default()
        };
        Ok(id(self.ioctl(context, abi::HWPT_ALLOC, &cmd)?.out_hwpt_id))
    }

    /// Invalidates everything, in the words of whatever `id` is, or asks whether it could.
    pub(super) fn invalidate(&self, context: usize, id: u32, everything: bool) -> Result<Reply> {
        let viommu: Result<_> =
            self.contexts[context].objects().get::<crate::hwpt::viommu::Viommu>(id);
        let (data_type, data) = if viommu.is_ok() {
            let all = abi::ViommuArmSmmuv3Invalidate { cmd: [0x30, 0] };
            (abi::VIOMMU_INVALIDATE_DATA_ARM_SMMUV3, all.as_bytes().to_vec())
        } else {
            let all =
                abi::HwptVtdS1Invalidate { addr: 0, npages: u64::MAX, flags: 0, __reserved: 0 };
            (abi::HWPT_INVALIDATE_DATA_VTD_S1, all.as_bytes().to_vec())
        };
        drop(viommu);
        self.actors[context].argument.write(DATA, &data)?;
        let cmd = abi::HwptInvalidate {
            size: 32,
            hwpt_id: id,
            data_uptr: DATA,
            data_type,
            entry_len: u32::try_from(data.len()).unwrap(),
            entry_num: u32::from(everything),
            __reserved: 0,
        };
        let done = self.ioctl(context, abi::HWPT_INVALIDATE, &cmd)?;
        Ok(Reply::Value(u64::from(done.entry_num)))
    }

    fn type1(&self, call: &Type1) -> Result<Reply> {
        let actor = &self.actors[0];
        let ioctl = |code, arg| self.container.ioctl(actor, code, arg);
        match *call {
            Type1::AddGroup { group } => {
                let group = &self.groups[group];
                let endpoints: Vec<_> = self
                    .endpoints
                    .iter()
                    .filter(|endpoint| Arc::ptr_eq(endpoint.group(), group))
                    .cloned()
                    .collect();
                let member = Member::new(GroupKind::Iommu, group, &endpoints);
                self.container.add_group(&actor.account(), member)?;
            }
            Type1::RemoveGroup { group } => self.container.remove_group(&self.groups[group]),
            Type1::SetIommu { v1 } => {
                let kind = if v1 { vfio::TYPE1_IOMMU } else { vfio::TYPE1v2_IOMMU };
                ioctl(vfio::SET_IOMMU, u64::from(kind))?;
            }
            Type1::Map { source, at, prot } => {
                put(actor, ARG, &dma_map(source, at, prot));
                ioctl(vfio::IOMMU_MAP_DMA, ARG)?;
            }
            Type1::Unmap { range, all } => {
                put(actor, ARG, &dma_unmap(range, all));
                ioctl(vfio::IOMMU_UNMAP_DMA, ARG)?;
                return Ok(Reply::Value(get::<vfio::IommuType1DmaUnmap>(actor, ARG).size));
            }
            Type1::UnmapDirty { range } => {
                let length = usize::try_from((range.1 / PAGE).div_ceil(64) * 8).unwrap();
                actor.argument.write(DATA, &vec![0; length])?;
                let flags = vfio::DMA_UNMAP_FLAG_GET_DIRTY_BITMAP;
                let unmap =
                    vfio::IommuType1DmaUnmap { argsz: 48, flags, ..dma_unmap(range, false) };
                put(actor, ARG, &unmap);
                let bitmap = vfio::Bitmap { pgsize: PAGE, size: length as u64, data: DATA };
                put(actor, ARG + 24, &bitmap);
                ioctl(vfio::IOMMU_UNMAP_DMA, ARG)?;
                return Ok(self.bytes_at_data(0, length));
            }
            Type1::TakeAddress { range, all } => {
                let mut unmap = dma_unmap(range, all);
                unmap.flags |= vfio::DMA_UNMAP_FLAG_VADDR;
                put(actor, ARG, &unmap);
                ioctl(vfio::IOMMU_UNMAP_DMA, ARG)?;
                return Ok(Reply::Value(get::<vfio::IommuType1DmaUnmap>(actor, ARG).size));
            }
            Type1::NewAddress { range: (iova, size), process } => {
                let actor = &self.actors[process];
                let before = actor.pid.replace(CONTAINER_PID + u32::try_from(process).unwrap());
                let (flags, vaddr) = (vfio::DMA_MAP_FLAG_VADDR, base_of(Space::User(process)));
                put(actor, ARG, &vfio::IommuType1DmaMap { argsz: 32, flags, vaddr, iova, size });
                let given = self.container.ioctl(actor, vfio::IOMMU_MAP_DMA, ARG);
                actor.pid.set(before);
                given?;
            }
            Type1::Info => {
                put(actor, DATA, &u32::try_from(REPLY).unwrap());
                ioctl(vfio::IOMMU_GET_INFO, DATA)?;
                return Ok(ranges_of_info(actor));
            }
            Type1::Log { start } => {
                let flags = if start {
                    vfio::IOMMU_DIRTY_PAGES_FLAG_START
                } else {
                    vfio::IOMMU_DIRTY_PAGES_FLAG_STOP
                };
                put(actor, ARG, &vfio::IommuType1DirtyBitmap { argsz: 8, flags });
                ioctl(vfio::IOMMU_DIRTY_PAGES, ARG)?;
            }
            Type1::GetLog { range } => {
                let length = usize::try_from((range.1 / PAGE).div_ceil(64) * 8).unwrap();
                actor.argument.write(DATA, &vec![0; length])?;
                let flags = vfio::IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP;
                put(actor, ARG, &vfio::IommuType1DirtyBitmap { argsz: 48, flags });
                let bitmap = vfio::Bitmap { pgsize: PAGE, size: length as u64, data: DATA };
                let get = vfio::IommuType1DirtyBitmapGet { iova: range.0, size: range.1, bitmap };
                put(actor, ARG + 8, &get);
                ioctl(vfio::IOMMU_DIRTY_PAGES, ARG)?;
                return Ok(self.bytes_at_data(0, length));
            }
        }
        Ok(Reply::Nothing)
    }

    fn on_access(&mut self, access: usize, what: &OnAccess) -> Result<Reply> {
        let OfAccess { handle, pinner } = self.accesses[access].as_ref().unwrap();
        match *what {
            OnAccess::Attach { ioas } => handle.attach(ioas)?,
            OnAccess::Replace { ioas } => handle.replace(ioas)?,
            OnAccess::Detach => handle.detach(),
            OnAccess::Pin { range, write } => {
                let need = if write { Prot::READ | Prot::WRITE } else { Prot::READ };
                handle.pin(Iova(range.0), range.1, need)?;
                pinner.pins.lock().push(range);
            }
            OnAccess::Unpin { range } => {
                handle.unpin(Iova(range.0), range.1)?;
                let mut pins = pinner.pins.lock();
                let at = pins.iter().position(|pin| *pin == range);
                pins.swap_remove(at.expect("it was pinned"));
            }
            OnAccess::Read { range } => {
                let mut seen = vec![0; usize::try_from(range.1).unwrap()];
                handle.read(Iova(range.0), &mut seen)?;
                return Ok(Reply::Bytes(seen));
            }
            OnAccess::Write { range } => handle.write(Iova(range.0), &bytes_for(range))?,
            OnAccess::Drop => {
                handle.detach();
                self.accesses[access] = None;
            }
        }
        Ok(Reply::Nothing)
    }

    pub(super) fn dma(&self, device: usize, pasid: u32, range: Range, write: bool) -> Reply {
        let endpoint = &self.endpoints[device];
        let done = if write {
            let bytes = bytes_for(range);
            let done = match pasid {
                0 => endpoint.write([segment(range)], &bytes),
                _ => endpoint.with_pasid(pasid).write([segment(range)], &bytes),
            };
            done.map(|()| Reply::Nothing)
        } else {
            let mut seen = vec![0; usize::try_from(range.1).unwrap()];
            let done = match pasid {
                0 => endpoint.read([segment(range)], &mut seen),
                _ => endpoint.with_pasid(pasid).read([segment(range)], &mut seen),
            };
            done.map(|()| Reply::Bytes(seen))
        };
        done.unwrap_or_else(|fault| Reply::Refused(fault.iova.0))
    }

    /// Reads a byte whose page is asked for; the client maps it when it is asked first, or refuses.
    fn asked_dma(&self, device: usize, iova: u64, map: bool) -> Reply {
        let bound = self.bound[device].as_ref().unwrap();
        let context = usize::from(!Arc::ptr_eq(bound.context(), &self.contexts[0]));
        let (woken, waiting) = std::sync::mpsc::channel();
        let files: Vec<_> = self.files.iter().flatten().filter_map(|file| file.queue()).collect();
        for file in &files {
            file.watch(Arc::new(Asked(woken.clone())));
        }
        let endpoint = &self.endpoints[device];
        std::thread::scope(|scope| {
            let device = scope.spawn(move || {
                let mut byte = [0];
                let read = endpoint.read([segment((iova, 1))], &mut byte);
                woken.send(Word::Done).unwrap();
                read.map_or_else(
                    |fault| Reply::Refused(fault.iova.0),
                    |()| Reply::Bytes(byte.to_vec()),
                )
            });
            let mut first = map;
            while waiting.recv() == Ok(Word::Asked) {
                for file in &files {
                    first &= !self.answer_request(context, *file, iova, first);
                }
            }
            device.join().expect("the device does not panic")
        })
    }

    /// Answers the page request of a queue, if it has one; says whether it had.
    fn answer_request(
        &self,
        context: usize,
        file: &dyn crate::QueueFile,
        iova: u64,
        map: bool,
    ) -> bool {
        let actor = &self.actors[context];
        let record = size_of::<abi::HwptPgfault>() as u64;
        if !matches!(file.read(actor, DATA, record), Ok(length) if length == record) {
            return false;
        }
        let asked: abi::HwptPgfault = get(actor, DATA);
        assert_eq!((asked.addr, asked.pasid), (iova, 0));
        let mut code = abi::PAGE_RESP_INVALID;
        if map {
            let both = Rw { read: true, write: true };
            let bound = self.bound[super::dma::ASKER].as_ref().unwrap();
            let attached = bound.endpoint().attachment(0).expect("the device is attached");
            let ioases = bound.context().objects().all::<crate::ioas::Ioas>();
            let shown = |ioas: &&crate::object::Held<crate::ioas::Ioas>| {
                std::ptr::addr_eq(Arc::as_ptr(ioas.arc()), attached.mappings.as_ptr())
            };
            let ioas = ioases.iter().find(shown).expect("it is attached to an IOAS").id();
            // Refused where the limit is reached; the device then asks in vain.
            let source = super::dma::asked_source(context);
            let _mapped = self.map(context, ioas, source, Some(iova), both);
            code = abi::PAGE_RESP_SUCCESS;
        }
        put(actor, DATA, &abi::HwptPageResponse { cookie: asked.cookie, code });
        let length = size_of::<abi::HwptPageResponse>() as u64;
        assert_eq!(file.write(actor, DATA, length), Ok(length));
        true
    }

    fn read_events(&self, file: usize) -> Reply {
        let queue = self.files[file].as_ref().unwrap().queue().unwrap();
        let actor = &self.actors[0];
        let mut words = Vec::new();
        let record = (size_of::<abi::VeventHeader>() + size_of::<abi::VeventArmSmmuv3>()) as u64;
        if queue.is_writable() {
            return Reply::Words(words);
        }
        loop {
            let length = queue.read(actor, DATA, record).unwrap();
            if length == 0 {
                return Reply::Words(words);
            }
            let header: abi::VeventHeader = get(actor, DATA);
            let lost = header.flags & abi::VEVENTQ_FLAG_LOST_EVENTS;
            assert_eq!(
                length == record,
                lost == 0,
                "an event has data unless it says that some were lost"
            );
            words.extend([u64::from(header.sequence), u64::from(lost)]);
        }
    }

    pub(super) fn context(&self, context: usize) -> &Arc<Context> {
        &self.contexts[context]
    }

    pub(super) fn key(&self, space: Space) -> u128 {
        self.memories.of(space).key()
    }
}

/// What the thread of a device says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Asked,
    Done,
}

/// Says that a queue has something to read, to whoever still listens.
#[derive(Debug)]
struct Asked(std::sync::mpsc::Sender<Word>);

impl QueueWatcher for Asked {
    fn readable(&self) {
        let _nobody_listens = self.0.send(Word::Asked);
    }
}

fn table_data(table: Table) -> (u32, Vec<u8>) {
    let at = |page: u64| (TABLES + page) * PAGE;
    match table {
        Table::None => (abi::HWPT_DATA_NONE, Vec::new()),
        Table::Vtd => {
            let data =
                abi::HwptVtdS1 { flags: 0, pgtbl_addr: at(0), addr_width: 48, __reserved: 0 };
            (abi::HWPT_DATA_VTD_S1, data.as_bytes().to_vec())
        }
        Table::Smmu(stage) => {
            let ste = match stage {
                Stage::Abort => [0, 0],
                Stage::Bypass => [1 | 4 << 1, 0],
                Stage::Translate => [1 | 5 << 1 | at(5), 0],
            };
            (abi::HWPT_DATA_ARM_SMMUV3, abi::HwptArmSmmuv3 { ste }.as_bytes().to_vec())
        }
        Table::Amd(stage) => {
            let gcr3 = at(4) >> 12;
            // 2.2.2.1, table 7: bits 14:12 of the address at 60:58, bits 30:15 at 95:80.
            let root = [(gcr3 & 7) << 58, (gcr3 >> 3 & 0xffff) << 16];
            let dte = match stage {
                Stage::Abort => [0; 4],
                Stage::Bypass => [1 | 1 << 1, 0, 0, 0],
                Stage::Translate => [1 | 1 << 1 | 1 << 55 | root[0], root[1], 0, 0],
            };
            (abi::HWPT_DATA_AMD_GUEST, abi::HwptAmdGuest { dte }.as_bytes().to_vec())
        }
    }
}

fn dma_map(source: Source, iova: u64, prot: Rw) -> vfio::IommuType1DmaMap {
    let vaddr = base_of(Space::User(0)) + source.offset;
    vfio::IommuType1DmaMap { argsz: 32, flags: dma_flags(prot), vaddr, iova, size: source.length }
}

fn dma_unmap((iova, size): Range, all: bool) -> vfio::IommuType1DmaUnmap {
    let flags = if all { vfio::DMA_UNMAP_FLAG_ALL } else { 0 };
    let (iova, size) = if all { (0, 0) } else { (iova, size) };
    vfio::IommuType1DmaUnmap { argsz: 24, flags, iova, size }
}

/// The ranges in the capability chain at `DATA`.
fn ranges_of_info(actor: &Actor) -> Reply {
    let info: vfio::IommuType1Info = get(actor, DATA);
    let mut at = u64::from(info.cap_offset);
    let mut words = Vec::new();
    while at != 0 {
        let header: vfio::InfoCapHeader = get(actor, DATA + at);
        if header.id == vfio::IOMMU_TYPE1_INFO_CAP_IOVA_RANGE {
            let capability: vfio::IommuType1InfoCapIovaRange = get(actor, DATA + at);
            words = vec![0; usize::try_from(capability.nr_iovas).unwrap() * 2];
            let first = at + size_of_val(&capability) as u64;
            actor.argument.read(DATA + first, words.as_mut_bytes()).unwrap();
        }
        at = u64::from(header.next);
    }
    Reply::Words(words)
}

/// The errno of an answer.
pub(super) fn errno(answer: Result<Reply>) -> Result<Reply, Errno> {
    answer.map_err(|Error { errno, .. }| errno)
}
