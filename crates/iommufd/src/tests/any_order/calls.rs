//! What each call does to the model.

use ioasis_uapi::Errno;
use ioasis_uapi::iommufd as abi;

use super::model::{Access, Answer, File, LENGTH, Model, Object, PAGE, Slot, pid};
use super::spaces::last_of;
use super::step::{Call, OnAccess, Range, Reply, Rw, Source, Space, Step};
use crate::IommuKind;
use crate::account::Rule;

impl Model {
    pub(super) fn rule(&self, context: usize) -> Rule {
        match self.contexts[context].process_mode {
            _ if self.capable[context] => Rule::None,
            false => Rule::User,
            true => Rule::Process,
        }
    }

    /// What a step answers; `given` is what the system says, for places that are its choice.
    pub(super) fn apply(&mut self, step: &Step, given: &Answer<Reply>) -> Answer<Reply> {
        match *step {
            Step::Call { context, ref call } => self.call(context, call, given),
            Step::Type1(ref call) => self.type1(call),
            Step::Bind { context, device } => self.bind(context, device).map(value),
            Step::Unbind { device } => {
                self.unbind(device);
                Ok(Reply::Nothing)
            }
            Step::Change { device, pasid, pt, change } => {
                self.change(device, pasid, pt, change).map(value)
            }
            Step::Detach { device, pasid } => {
                self.detach(device, pasid);
                Ok(Reply::Nothing)
            }
            Step::NewAccess { context, pins } => {
                let id = self.publish(context, Object::Access);
                let made =
                    Access { context, id, pins_pages: pins, ioas: None, pins: Default::default() };
                self.accesses.push(Some(made));
                Ok(value(id))
            }
            Step::Access { access, ref what } => self.on_access(access, what),
            Step::Dma { device, pasid, range, write } => self.dma(device, pasid, range, write),
            Step::AskedDma { device, iova, map } => self.asked_dma(device, iova, map),
            Step::ReadEvents { file } => self.read_events(file),
            Step::Revoke { renew } => {
                self.revoke(renew);
                Ok(Reply::Nothing)
            }
            Step::Capability { context, has } => {
                self.capable[context] = has;
                Ok(Reply::Nothing)
            }
            Step::CloseFile { file } => {
                self.files[file] = None;
                Ok(Reply::Nothing)
            }
        }
    }

    fn call(&mut self, context: usize, call: &Call, given: &Answer<Reply>) -> Answer<Reply> {
        let place = match given {
            Ok(Reply::Value(iova)) => Ok(*iova),
            Ok(_) => Ok(0),
            Err(errno) => Err(*errno),
        };
        match *call {
            Call::Destroy { id } => self.destroy(context, id),
            Call::IoasAlloc => {
                let ioas = self.new_ioas();
                Ok(value(self.publish(context, Object::Ioas(ioas))))
            }
            Call::Allow { ioas, ref ranges } => self.allow(context, ioas, ranges),
            Call::Copy { src, range, dst, at, prot } => {
                if range.1 == u64::MAX {
                    return Err(Errno::EOVERFLOW);
                }
                permitted(prot)?;
                let from = self.ioas(context, src)?;
                let slices = self.slices(from, range.0, last_of(range)?)?;
                let to = self.ioas(context, dst)?;
                self.show(to, &slices, at, place, prot).map(Reply::Value)
            }
            Call::Ranges { ioas, room } => {
                let ioas = self.ioas(context, ioas)?;
                let holes = self.holes(ioas);
                if holes.len() > usize::try_from(room).unwrap() {
                    return Err(Errno::EMSGSIZE);
                }
                let words = holes.iter().flat_map(|&(start, last)| [start, last]);
                Ok(Reply::Words(std::iter::once(self.alignment(ioas)).chain(words).collect()))
            }
            Call::Map { ioas, source, at, prot } => {
                permitted(prot)?;
                let ioas = self.ioas(context, ioas)?;
                reachable(source)?;
                let rule = self.rule(context);
                let slice = self.new_map(source, prot.write, pid(context), rule);
                self.show(ioas, &[slice], at, place, prot).map(Reply::Value)
            }
            Call::MapBuffer { ioas, offset, length, at, prot } => {
                permitted(prot)?;
                let ioas = self.ioas(context, ioas)?;
                if self.revoked {
                    return Err(Errno::ENODEV);
                }
                let source = Source { space: Space::User(0), offset, length };
                let slice = self.new_map(source, prot.write, pid(context), Rule::None);
                self.maps[slice.map].buffer = true;
                self.show(ioas, &[slice], at, place, prot).map(Reply::Value)
            }
            Call::Unmap { ioas, range } => {
                let ioas = self.ioas(context, ioas)?;
                if range == (0, u64::MAX) {
                    let (bytes, done) = self.unmap(ioas, 0, u64::MAX);
                    return done.map(|()| Reply::Value(bytes));
                }
                let (bytes, done) = self.unmap(ioas, range.0, last_of(range)?);
                done?;
                if bytes == 0 { Err(Errno::ENOENT) } else { Ok(Reply::Value(bytes)) }
            }
            Call::RlimitMode { set } => self.rlimit_mode(context, set),
            Call::HugePages { ioas, set } => self.huge_pages(context, ioas, set),
            Call::VfioGet => self.vfio_ioas(context).map(|(id, _)| value(id)),
            Call::VfioSet { ioas } => {
                self.ioas(context, ioas)?;
                self.contexts[context].vfio_ioas = Some(ioas);
                Ok(Reply::Nothing)
            }
            Call::VfioClear => {
                self.contexts[context].vfio_ioas = None;
                Ok(Reply::Nothing)
            }
            _ => self.call_tables(context, call),
        }
    }

    /// Calls on page tables, virtual IOMMUs and queues, and VFIO container calls.
    fn call_tables(&mut self, context: usize, call: &Call) -> Answer<Reply> {
        match *call {
            Call::HwptAlloc { device, pt, flags, fault, table } => {
                self.hwpt_alloc(context, (device, pt), (flags, fault), table).map(value)
            }
            Call::HwInfo { device } => {
                let device = self.device(context, device)?;
                let types = match self.kinds[super::hwpts::iommu_of(device)] {
                    IommuKind::Vtd => abi::HW_INFO_TYPE_INTEL_VTD,
                    IommuKind::Amd => abi::HW_INFO_TYPE_AMD,
                    IommuKind::Smmuv3 => abi::HW_INFO_TYPE_ARM_SMMUV3,
                    IommuKind::Riscv | IommuKind::Spapr | IommuKind::NoIommu => {
                        abi::HW_INFO_TYPE_NONE
                    }
                };
                Ok(value(types))
            }
            Call::SetTracking { hwpt, on } => {
                let domain = self.tracked(context, hwpt)?;
                if on {
                    self.domains[domain].dirty.clear();
                }
                Ok(Reply::Nothing)
            }
            Call::GetBitmap { hwpt, range, page_lg2, keep } => {
                self.get_bitmap(context, hwpt, range, page_lg2, keep)
            }
            Call::Invalidate { id, everything } => self.invalidate(context, id, everything),
            Call::FaultAlloc => {
                let id = self.publish(context, Object::Fault);
                self.files.push(Some(File { context, id }));
                Ok(value(id))
            }
            Call::ViommuAlloc { device, hwpt } => {
                self.viommu_alloc(context, device, hwpt).map(value)
            }
            Call::VdeviceAlloc { viommu, device, virtual_id } => {
                self.vdevice_alloc(context, viommu, device, virtual_id).map(value)
            }
            Call::ChangeProcess => self.change_process(context),
            Call::VeventqAlloc { viommu, depth } => {
                let id = self.veventq_alloc(context, viommu, depth)?;
                self.files.push(Some(File { context, id }));
                Ok(value(id))
            }
            Call::HwQueueAlloc { viommu } => {
                self.viommu(context, viommu)?;
                Err(Errno::EOPNOTSUPP)
            }
            Call::CompatSetIommu { v1 } => {
                let (id, _) = self.vfio_ioas(context)?;
                if v1 {
                    self.huge_pages(context, id, Some(0))?;
                }
                Ok(Reply::Nothing)
            }
            Call::CompatMap { source, at, prot } => {
                let (_, ioas) = self.vfio_ioas(context)?;
                reachable(source)?;
                let rule = self.rule(context);
                let slice = self.new_map(source, prot.write, pid(context), rule);
                self.show(ioas, &[slice], Some(at), Ok(at), prot).map(|_| Reply::Nothing)
            }
            Call::CompatUnmap { range, all } => self.compat_unmap(context, range, all),
            Call::CompatInfo => {
                let (_, ioas) = self.vfio_ioas(context)?;
                let words = self.holes(ioas).into_iter().flat_map(|(start, last)| [start, last]);
                Ok(Reply::Words(words.collect()))
            }
            _ => unreachable!("the other calls came before"),
        }
    }

    fn vfio_ioas(&self, context: usize) -> Answer<(u32, usize)> {
        let id = self.contexts[context].vfio_ioas.ok_or(Errno::ENODEV)?;
        Ok((id, self.ioas(context, id).map_err(|_| Errno::ENODEV)?))
    }

    fn destroy(&mut self, context: usize, id: u32) -> Answer<Reply> {
        self.object(context, id).ok_or(Errno::ENOENT)?;
        if self.holders(context, id) > 0 {
            return Err(Errno::EBUSY);
        }
        match self.take(context, id, Slot::Free) {
            Object::Hwpt(hwpt) => {
                self.contexts[context].hwpts.retain(|other| *other != id);
                if hwpt.nested.is_none() {
                    self.remove_domain(hwpt.ioas, hwpt.domain);
                }
            }
            Object::Ioas(_) if self.contexts[context].vfio_ioas == Some(id) => {
                self.contexts[context].vfio_ioas = None;
            }
            _ => {}
        }
        Ok(Reply::Nothing)
    }

    fn allow(&mut self, context: usize, ioas: u32, ranges: &[Range]) -> Answer<Reply> {
        let ioas = self.ioas(context, ioas)?;
        if ranges.iter().any(|(start, last)| start >= last) {
            return Err(Errno::EINVAL);
        }
        let overlap = |one: &Range, other: &Range| one.0 <= other.1 && other.0 <= one.1;
        for (index, range) in ranges.iter().enumerate() {
            if ranges[..index].iter().any(|other| overlap(range, other)) {
                return Err(Errno::EINVAL);
            }
        }
        let reserved = &self.ioases[ioas].reserved;
        let hit =
            |range: &Range| reserved.iter().any(|&(start, last, _)| overlap(range, &(start, last)));
        if ranges.iter().any(hit) {
            return Err(Errno::EADDRINUSE);
        }
        self.ioases[ioas].allowed = ranges.to_vec();
        self.ioases[ioas].allowed.sort_unstable();
        Ok(Reply::Nothing)
    }

    fn rlimit_mode(&mut self, context: usize, set: Option<u64>) -> Answer<Reply> {
        let of = &mut self.contexts[context];
        let Some(mode) = set else { return Ok(value(u32::from(of.process_mode))) };
        if of.slots.iter().any(|slot| !matches!(slot, Slot::Free)) {
            return Err(Errno::EBUSY);
        }
        if mode > 1 {
            return Err(Errno::EINVAL);
        }
        of.process_mode = mode == 1;
        Ok(Reply::Value(mode))
    }

    fn huge_pages(&mut self, context: usize, ioas: u32, set: Option<u64>) -> Answer<Reply> {
        let ioas = self.ioas(context, ioas)?;
        let Some(allowed) = set else {
            return Ok(value(u32::from(!self.ioases[ioas].small)));
        };
        let space = &self.ioases[ioas];
        if allowed == u64::from(space.small) {
            if allowed == 0 && !space.domains.is_empty() && !space.areas.is_empty() {
                return Err(Errno::EINVAL);
            }
            if allowed == 0 {
                self.check_aligned(ioas)?;
            }
            self.ioases[ioas].small = allowed == 0;
        }
        Ok(Reply::Value(allowed))
    }

    fn tracked(&self, context: usize, hwpt: u32) -> Answer<usize> {
        let hwpt = self.hwpt(context, hwpt)?;
        if hwpt.nested.is_some() {
            return Err(Errno::ENOENT);
        }
        let tracks = self.domains[hwpt.domain].tracks;
        if tracks { Ok(hwpt.domain) } else { Err(Errno::EOPNOTSUPP) }
    }

    fn get_bitmap(
        &mut self,
        context: usize,
        hwpt: u32,
        range: Range,
        page_lg2: u32,
        keep: bool,
    ) -> Answer<Reply> {
        let of = self.hwpt(context, hwpt)?.clone();
        if of.nested.is_some() {
            return Err(Errno::ENOENT);
        }
        let odd = (range.0 | range.1) & ((1 << page_lg2) - 1) != 0;
        if odd {
            return Err(Errno::EINVAL);
        }
        let domain = self.tracked(context, hwpt)?;
        let (start, last) = (range.0, last_of(range)?);
        let end = self.ioases[of.ioas].cover(start, last).0.last().map(|part| part.2);
        let mut bits = vec![0_u8; usize::try_from((range.1 >> page_lg2).div_ceil(8)).unwrap()];
        let Some(end) = end else { return Ok(Reply::Bytes(bits)) };
        let dirty = &mut self.domains[domain].dirty;
        for &page in dirty.range(start..=end) {
            let bit = usize::try_from((page - start) >> page_lg2).unwrap();
            bits[bit / 8] |= 1 << (bit % 8);
        }
        if !keep {
            dirty.retain(|page| *page < start || *page > end);
        }
        Ok(Reply::Bytes(bits))
    }

    fn invalidate(&self, context: usize, id: u32, everything: bool) -> Answer<Reply> {
        let kind = match self.object(context, id) {
            None => return Err(Errno::ENOENT),
            Some(Object::Hwpt(hwpt)) if hwpt.nested.is_some() => {
                let kind = self.kinds[self.domains[hwpt.domain].iommu];
                (kind == IommuKind::Vtd).then_some(kind)
            }
            Some(Object::Viommu { iommu, .. }) => {
                let kind = self.kinds[*iommu];
                (kind == IommuKind::Smmuv3).then_some(kind)
            }
            Some(_) => return Err(Errno::EINVAL),
        };
        match kind {
            None => Err(Errno::EOPNOTSUPP),
            Some(_) => Ok(value(u32::from(everything))),
        }
    }

    fn change_process(&mut self, context: usize) -> Answer<Reply> {
        let payer = pid(context) + 1;
        let ioases: Vec<usize> = self
            .objects(context)
            .filter_map(
                |(_, object)| if let Object::Ioas(ioas) = object { Some(*ioas) } else { None },
            )
            .collect();
        let mut maps: Vec<usize> =
            ioases.iter().flat_map(|ioas| &self.ioases[*ioas].areas).map(|area| area.map).collect();
        if maps.iter().any(|map| self.maps[*map].space != Space::File) {
            return Err(Errno::EINVAL);
        }
        maps.sort_unstable();
        maps.dedup();
        maps.retain(|map| self.maps[*map].payer != payer);
        // The new one pays before the old one is paid back.
        let mut pinned = self.pinned();
        let held = pinned.pages.clone();
        for &map in &maps {
            let pages = held.iter().filter(|(of, _)| *of == map).map(|(_, page)| *page);
            let mut other = self.maps[map].clone();
            other.payer = payer;
            pinned.add(usize::MAX - map, &other, pages)?;
        }
        maps.iter().for_each(|map| self.maps[*map].payer = payer);
        Ok(Reply::Nothing)
    }

    fn compat_unmap(&mut self, context: usize, range: Range, all: bool) -> Answer<Reply> {
        let (_, ioas) = self.vfio_ioas(context)?;
        if all {
            let (bytes, done) = self.unmap(ioas, 0, u64::MAX);
            return done.map(|()| Reply::Value(bytes));
        }
        if self.ioases[ioas].small {
            self.cut(ioas, range.0.wrapping_add(range.1).wrapping_sub(1))?;
            if range.0 != 0 {
                self.cut(ioas, range.0 - 1)?;
            }
        }
        let (bytes, done) = self.unmap(ioas, range.0, last_of(range)?);
        done.map(|()| Reply::Value(bytes))
    }

    fn on_access(&mut self, access: usize, what: &OnAccess) -> Answer<Reply> {
        let of = self.accesses[access].clone().unwrap();
        match *what {
            OnAccess::Attach { .. } if of.ioas.is_some() => Err(Errno::EINVAL),
            OnAccess::Replace { .. } if of.ioas.is_none() => Err(Errno::ENOENT),
            OnAccess::Attach { ioas } | OnAccess::Replace { ioas } => {
                let to = self.ioas(of.context, ioas)?;
                self.move_access(access, Some((ioas, to)))
            }
            OnAccess::Detach => self.move_access(access, None),
            OnAccess::Drop => {
                self.move_access(access, None)?;
                self.accesses[access] = None;
                self.take(of.context, of.id, Slot::Free);
                Ok(Reply::Nothing)
            }
            OnAccess::Pin { range, write } => self.pin(access, range, write),
            OnAccess::Unpin { range } => {
                last_of(range)?;
                let pins = &mut self.accesses[access].as_mut().unwrap().pins;
                let count = pins.get_mut(&range).ok_or(Errno::EINVAL)?;
                *count -= 1;
                if *count == 0 {
                    pins.remove(&range);
                }
                Ok(Reply::Nothing)
            }
            OnAccess::Read { range } => {
                let mut seen = Vec::new();
                for (space, at, length) in
                    self.reached(&of, range, Rw { read: true, write: false }).1?
                {
                    seen.extend_from_slice(self.bytes[&space].part(at, length));
                }
                Ok(Reply::Bytes(seen))
            }
            OnAccess::Write { range } => {
                let (done, result) = self.reached(&of, range, Rw { read: false, write: true });
                let mut next = 0_usize;
                for (space, at, length) in done {
                    for byte in self.bytes.get_mut(&space).unwrap().part_mut(at, length) {
                        *byte = super::system::written(range.0, next);
                        next += 1;
                    }
                }
                result.map(|_| Reply::Nothing)
            }
        }
    }

    fn move_access(&mut self, access: usize, to: Option<(u32, usize)>) -> Answer<Reply> {
        let of = self.accesses[access].clone().unwrap();
        if of.ioas.is_some() && of.ioas == to {
            return Ok(Reply::Nothing);
        }
        if let Some((_, to)) = to {
            if of.pins_pages {
                self.check_aligned(to)?;
            }
            self.ioases[to].accesses.push(access);
        }
        if let Some((_, from)) = of.ioas {
            self.ioases[from].accesses.retain(|other| *other != access);
        }
        let of = self.accesses[access].as_mut().unwrap();
        if of.ioas.is_some() {
            of.pins.clear();
        }
        of.ioas = to;
        Ok(Reply::Nothing)
    }

    fn pin(&mut self, access: usize, range: Range, write: bool) -> Answer<Reply> {
        let last = last_of(range)?;
        let of = self.accesses[access].clone().unwrap();
        let (_, ioas) = of.ioas.ok_or(Errno::ENOENT)?;
        let mut pinned = self.pinned();
        let (parts, whole) = self.ioases[ioas].cover(range.0, last);
        for (area, from, to) in parts {
            let (first, end) = (area.byte(from), area.byte(to) + 1);
            // Pages go on from one area to the next; in the last they may end anywhere.
            if !first.is_multiple_of(PAGE) || (to < last && !end.is_multiple_of(PAGE)) {
                return Err(Errno::EINVAL);
            }
            let map = &self.maps[area.map];
            let granted = if write { area.prot.write && map.writable } else { area.prot.read };
            if !granted {
                return Err(Errno::EPERM);
            }
            if map.buffer {
                return Err(Errno::EINVAL);
            }
            pinned.add(area.map, map, first / PAGE..end.div_ceil(PAGE))?;
        }
        if !whole {
            return Err(Errno::ENOENT);
        }
        *self.accesses[access].as_mut().unwrap().pins.entry(range).or_default() += 1;
        Ok(Reply::Nothing)
    }

    /// The memory an access reaches behind a range, as far as it gets.
    #[expect(clippy::type_complexity, reason = "what was reached, and whether that is all")]
    fn reached(
        &self,
        of: &Access,
        range: Range,
        need: Rw,
    ) -> (Vec<(Space, usize, usize)>, Answer<Vec<(Space, usize, usize)>>) {
        let mut done = Vec::new();
        let last = match last_of(range) {
            Ok(last) => last,
            Err(errno) => return (done, Err(errno)),
        };
        let Some((_, ioas)) = of.ioas else { return (done, Err(Errno::ENOENT)) };
        let (parts, whole) = self.ioases[ioas].cover(range.0, last);
        for (area, from, to) in parts {
            let map = &self.maps[area.map];
            let granted = if need.write { area.prot.write && map.writable } else { area.prot.read };
            if !granted {
                return (done, Err(Errno::EPERM));
            }
            if map.buffer {
                return (done, Err(Errno::EINVAL));
            }
            let mut at = from;
            // The pages of a file are pinned before a byte is written (iopt_pages_rw_slow).
            let (space, end) = self.origin(area, to);
            if need.write && space == Space::File && end as u64 >= LENGTH {
                return (done, Err(Errno::EFAULT));
            }
            while at <= to {
                let end = (area.byte(at) / PAGE + 1) * PAGE - area.byte(at);
                let length = end.min(to - at + 1);
                let (space, offset) = self.origin(area, at);
                if offset as u64 >= LENGTH {
                    return (done, Err(Errno::EFAULT));
                }
                done.push((space, offset, usize::try_from(length).unwrap()));
                at += length;
            }
        }
        let result = if whole { Ok(done.clone()) } else { Err(Errno::ENOENT) };
        (done, result)
    }
}

/// iommufd adds address and length, where the type1 driver adds one less.
fn reachable(source: Source) -> Answer<()> {
    let end = super::system::base_of(source.space) + source.offset;
    match (source.space, end.checked_add(source.length)) {
        (Space::User(_), None) => Err(Errno::EOVERFLOW),
        _ => Ok(()),
    }
}

pub(super) fn permitted(prot: Rw) -> Answer<()> {
    if prot.read || prot.write { Ok(()) } else { Err(Errno::EINVAL) }
}

pub(super) fn value(value: u32) -> Reply {
    Reply::Value(u64::from(value))
}
