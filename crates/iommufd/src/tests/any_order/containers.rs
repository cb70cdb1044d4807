//! The model's container: type1's rules on an address space.

use ioasis_uapi::Errno;

use super::calls::permitted;
use super::model::{Answer, Area, CONTAINER_PID, DEVICES, GROUP_OF, IOMMU_OF, Model, Owner, PAGE};
use super::spaces::last_of;
use super::step::{Range, Reply, Space, Type1};
use super::system::base_of;
use crate::account::Rule;

impl Model {
    pub(super) fn type1(&mut self, call: &Type1) -> Answer<Reply> {
        match *call {
            Type1::AddGroup { group } => self.add_group(group),
            Type1::RemoveGroup { group } => {
                self.remove_group(group);
                Ok(Reply::Nothing)
            }
            Type1::SetIommu { v1 } => {
                if self.container.groups.is_empty() || self.container.v1.is_some() {
                    return Err(Errno::EINVAL);
                }
                self.container.v1 = Some(v1);
                self.container.ioas = self.new_ioas();
                for group in self.container.groups.clone() {
                    self.attach_group(group).expect("nothing is mapped yet");
                }
                Ok(Reply::Nothing)
            }
            _ if self.container.v1.is_none() => Err(Errno::EINVAL),
            Type1::Map { source, at, prot } => {
                let last = last_of((at, source.length))?;
                last_of((base_of(source.space) + source.offset, source.length))?;
                permitted(prot)?;
                if !(source.length | at | source.offset).is_multiple_of(PAGE) {
                    return Err(Errno::EINVAL);
                }
                let ioas = self.container.ioas;
                if self.ioases[ioas].areas.iter().any(|area| area.hits(at, last)) {
                    return Err(Errno::EEXIST);
                }
                let rule = self.type1_rule(0);
                let slice = self.new_map(source, prot.write, CONTAINER_PID, rule);
                self.show(ioas, &[slice], Some(at), Ok(at), prot).map(|_| Reply::Nothing)
            }
            Type1::Unmap { range, all } => {
                let Some((start, last)) = self.chosen(range, all)? else {
                    return Ok(Reply::Value(0));
                };
                self.remove(start, last).map(Reply::Value)
            }
            Type1::UnmapDirty { range } => {
                if range.1 < PAGE {
                    return Err(Errno::EINVAL);
                }
                let chosen = self.chosen(range, false);
                if !self.container.logging && chosen != Err(Errno::EOVERFLOW) {
                    return Err(Errno::EINVAL);
                }
                let (start, last) = chosen?.expect("only version 2 keeps a log");
                let bits = self.log_bits(range, last);
                self.remove(start, last).map(|_| Reply::Bytes(bits))
            }
            Type1::TakeAddress { range, all } => self.take_address(range, all),
            Type1::NewAddress { range, process } => {
                self.new_address(range, process).map(|()| Reply::Nothing)
            }
            Type1::Info => {
                let words = self.holes(self.container.ioas);
                Ok(Reply::Words(
                    words.into_iter().flat_map(|(start, last)| [start, last]).collect(),
                ))
            }
            Type1::Log { .. } | Type1::GetLog { .. } if self.container.v1 == Some(true) => {
                Err(Errno::EACCES)
            }
            Type1::Log { start } => {
                self.container.logging = start;
                Ok(Reply::Nothing)
            }
            Type1::GetLog { range } => self.get_log(range),
        }
    }

    fn get_log(&self, range: Range) -> Answer<Reply> {
        let last = last_of(range)?;
        if !(range.0 | range.1).is_multiple_of(PAGE) || !self.container.logging {
            return Err(Errno::EINVAL);
        }
        let space = &self.ioases[self.container.ioas];
        let cuts =
            |area: &&Area| area.hits(range.0, last) && (area.start < range.0 || area.last() > last);
        if space.areas.iter().any(|area| cuts(&area)) {
            return Err(Errno::EINVAL);
        }
        Ok(Reply::Bytes(self.log_bits(range, last)))
    }

    /// Whatever a device reaches is dirty.
    fn log_bits(&self, range: Range, last: u64) -> Vec<u8> {
        let space = &self.ioases[self.container.ioas];
        let mut bits = vec![0_u8; usize::try_from((range.1 / PAGE).div_ceil(64) * 8).unwrap()];
        for area in space.areas.iter().filter(|area| area.hits(range.0, last)) {
            for page in (area.start..area.last()).step_by(4096) {
                let bit = usize::try_from((page - range.0) / PAGE).unwrap();
                bits[bit / 8] |= 1 << (bit % 8);
            }
        }
        bits
    }

    /// What an UNMAP_DMA is about; nothing where version 1 does nothing.
    fn chosen(&self, range: Range, all: bool) -> Answer<Option<(u64, u64)>> {
        let ioas = self.container.ioas;
        if all {
            return Ok(Some((0, u64::MAX)));
        }
        if !(range.0 | range.1).is_multiple_of(PAGE) {
            return Err(Errno::EINVAL);
        }
        let (start, mut last) = (range.0, last_of(range)?);
        let space = &self.ioases[ioas];
        let ends = [start, last].map(|iova| space.index(iova).map(|at| space.areas[at].clone()));
        if self.container.v1 == Some(false) {
            let cut = |area: &Area| area.start < start || area.last() > last;
            if ends.iter().flatten().any(cut) {
                return Err(Errno::EINVAL);
            }
        } else {
            if ends[0].as_ref().is_some_and(|area| area.start < start) {
                return Ok(None);
            }
            last = ends[1].as_ref().map_or(last, Area::last);
        }
        Ok(Some((start, last)))
    }

    fn remove(&mut self, start: u64, last: u64) -> Answer<u64> {
        let ioas = self.container.ioas;
        let (bytes, done) = self.unmap(ioas, start, last);
        let space = &self.ioases[ioas];
        self.container.invalid.retain(|start| space.index(*start).is_some());
        done.map(|()| bytes)
    }

    fn take_address(&mut self, range: Range, all: bool) -> Answer<Reply> {
        let Some((start, last)) = self.chosen(range, all)? else { return Ok(Reply::Value(0)) };
        let areas = &self.ioases[self.container.ioas].areas;
        let taken: Vec<&Area> = areas.iter().filter(|area| area.hits(start, last)).collect();
        if taken.iter().any(|area| self.container.invalid.contains(&area.start)) {
            return Err(Errno::EINVAL);
        }
        self.container.invalid.extend(taken.iter().map(|area| area.start));
        Ok(Reply::Value(taken.iter().map(|area| area.length).sum()))
    }

    fn new_address(&mut self, range: Range, process: usize) -> Answer<()> {
        let last = last_of(range)?;
        last_of((base_of(Space::User(process)), range.1))?;
        if !(range.0 | range.1).is_multiple_of(PAGE) {
            return Err(Errno::EINVAL);
        }
        let areas = &self.ioases[self.container.ioas].areas;
        let area = areas.iter().find(|area| area.hits(range.0, last)).ok_or(Errno::ENOENT)?;
        let exact = (area.start, area.length) == range;
        if !exact || !self.container.invalid.contains(&range.0) {
            return Err(Errno::EINVAL);
        }
        let map = area.map;
        if self.maps[map].process != process {
            // Whose memory it is now pays before the other is paid back; what devices reach stays.
            let mut other = self.maps[map].clone();
            other.payer = CONTAINER_PID + u32::try_from(process).unwrap();
            other.rule = self.type1_rule(process);
            other.process = process;
            self.pinned().add(usize::MAX, &other, area.pages())?;
            self.maps[map] = other;
        }
        self.container.invalid.remove(&range.0);
        Ok(())
    }

    fn type1_rule(&self, process: usize) -> Rule {
        if self.capable[process] { Rule::Type1Unlimited } else { Rule::Type1 }
    }

    fn add_group(&mut self, group: usize) -> Answer<Reply> {
        let owned = |device: usize| GROUP_OF[device] == group && self.bound[device].is_some();
        if (0..DEVICES).any(owned) {
            return Err(Errno::EPERM);
        }
        if self.container.v1.is_some() {
            self.attach_group(group)?;
        }
        self.container.groups.push(group);
        Ok(Reply::Nothing)
    }

    fn attach_group(&mut self, group: usize) -> Answer<()> {
        if !self.container.invalid.is_empty() {
            return Err(Errno::EBUSY);
        }
        let ioas = self.container.ioas;
        let iommu = IOMMU_OF[group];
        let type1 = |errno| if errno == Errno::EADDRINUSE { Errno::EINVAL } else { errno };
        let mut next = self.clone();
        for (start, last) in self.regions(iommu) {
            next.reserve(ioas, start, last, Owner::Group(group)).map_err(type1)?;
        }
        let found = next
            .container
            .domains
            .iter_mut()
            .find(|(domain, _)| next.domains[*domain].iommu == iommu);
        match found {
            Some((_, groups)) => groups.push(group),
            None => {
                let made = next.plain_domain(iommu);
                let domain = next.add_domain(ioas, made).map_err(type1)?;
                next.container.domains.push((domain, vec![group]));
            }
        }
        *self = next;
        Ok(())
    }

    fn remove_group(&mut self, group: usize) {
        self.container.groups.retain(|other| *other != group);
        if self.container.v1.is_none() {
            return;
        }
        let ioas = self.container.ioas;
        self.unreserve(ioas, Owner::Group(group));
        for (_, groups) in &mut self.container.domains {
            groups.retain(|other| *other != group);
        }
        let gone: Vec<usize> = self
            .container
            .domains
            .extract_if(.., |(_, groups)| groups.is_empty())
            .map(|(domain, _)| domain)
            .collect();
        gone.into_iter().for_each(|domain| self.remove_domain(ioas, domain));
        if self.container.groups.is_empty() {
            self.container = Default::default();
        }
    }
}
