//! The model's page tables, virtual IOMMUs, and what devices are attached to.

use std::collections::BTreeSet;

use ioasis_uapi::Errno;
use ioasis_uapi::iommufd as abi;

use super::model::{
    Answer, Attach, DEVICE_PASIDS, DEVICES, Domain, Events, GROUP_OF, Hwpt, IOMMU_OF, IOMMU_PASIDS,
    Ioas, Model, Object, Owner, Slot,
};
use super::step::{Change, Stage, Table};
use crate::IommuKind;

/// Whether a page table translates the lower half of 48 bits: a processor's own format does.
pub(super) fn is_half(kind: IommuKind, flags: u32) -> bool {
    let others = abi::HWPT_ALLOC_NEST_PARENT | abi::HWPT_ALLOC_DIRTY_TRACKING;
    match kind {
        IommuKind::Riscv => flags & abi::HWPT_ALLOC_NEST_PARENT == 0,
        IommuKind::Vtd | IommuKind::Amd => {
            flags & abi::HWPT_ALLOC_PASID != 0 && flags & others == 0
        }
        IommuKind::Smmuv3 | IommuKind::Spapr | IommuKind::NoIommu => false,
    }
}

/// Whether HWPT_ALLOC flags do not go together, or want what the IOMMU lacks.
fn is_odd(kind: IommuKind, iommu: usize, flags: u32) -> bool {
    let has = |flag| flags & flag != 0;
    let asks = matches!(kind, IommuKind::Amd | IommuKind::Riscv);
    if asks && has(abi::HWPT_ALLOC_PASID) && IOMMU_PASIDS[iommu] == 0 {
        return true;
    }
    let (nest, pasid) = (abi::HWPT_ALLOC_NEST_PARENT, abi::HWPT_ALLOC_PASID);
    match kind {
        IommuKind::Smmuv3 => has(nest) && has(abi::HWPT_ALLOC_DIRTY_TRACKING | pasid),
        IommuKind::Amd => has(pasid) && has(abi::HWPT_ALLOC_DIRTY_TRACKING | nest),
        IommuKind::Vtd | IommuKind::Riscv | IommuKind::Spapr | IommuKind::NoIommu => false,
    }
}

pub(super) fn iommu_of(device: usize) -> usize {
    IOMMU_OF[GROUP_OF[device]]
}

impl Model {
    pub(super) fn regions(&self, iommu: usize) -> Vec<(u64, u64)> {
        let reserved = crate::Iommu::new(self.kinds[iommu]).reserved();
        reserved.iter().map(|region| (region.range.start().0, region.range.last().0)).collect()
    }

    fn reserve_device(&mut self, ioas: usize, device: usize) -> Answer<()> {
        for (start, last) in self.regions(iommu_of(device)) {
            let reserved = self.reserve(ioas, start, last, Owner::Device(device));
            reserved.inspect_err(|_| self.unreserve(ioas, Owner::Device(device)))?;
        }
        Ok(())
    }

    /// A page table made with no flags.
    pub(super) fn plain_domain(&self, iommu: usize) -> Domain {
        let half = is_half(self.kinds[iommu], 0);
        Domain { iommu, tracks: false, nest: false, half, dirty: BTreeSet::new() }
    }

    /// Puts a page table on an IOAS.
    pub(super) fn add_domain(&mut self, ioas: usize, made: Domain) -> Answer<usize> {
        self.check_aligned(ioas)?;
        let domain = self.domains.len();
        let beyond = if made.half { 1 << 47 } else { 1 << 48 };
        self.reserve(ioas, beyond, u64::MAX, Owner::Domain(domain))?;
        if self.ioases[ioas].domains.is_empty() {
            let filled = self.fill(&mut self.pinned(), self.ioases[ioas].areas.iter());
            filled.inspect_err(|_| self.unreserve(ioas, Owner::Domain(domain)))?;
        }
        self.ioases[ioas].domains.push(domain);
        self.domains.push(made);
        Ok(domain)
    }

    pub(super) fn remove_domain(&mut self, ioas: usize, domain: usize) {
        self.unreserve(ioas, Owner::Domain(domain));
        let Ioas { domains, areas, .. } = &mut self.ioases[ioas];
        domains.retain(|other| *other != domain);
        if domains.is_empty() {
            areas.iter_mut().for_each(|area| area.kept = false);
        }
    }

    pub(super) fn hwpt_alloc(
        &mut self,
        context: usize,
        (device, pt): (u32, u32),
        (flags, fault): (u32, u32),
        table: Table,
    ) -> Answer<u32> {
        let device = self.device(context, device)?;
        let iommu = iommu_of(device);
        let fault = (flags & abi::HWPT_FAULT_ID_VALID != 0).then_some(fault);
        let pasid = flags & abi::HWPT_ALLOC_PASID != 0;
        let made = match self.object(context, pt).cloned() {
            Some(Object::Ioas(ioas)) => {
                let nest = flags & abi::HWPT_ALLOC_NEST_PARENT != 0;
                let odd = is_odd(self.kinds[iommu], iommu, flags);
                if (fault.is_some() && nest) || table != Table::None || odd {
                    return Err(Errno::EOPNOTSUPP);
                }
                let tracks = flags & abi::HWPT_ALLOC_DIRTY_TRACKING != 0;
                let half = is_half(self.kinds[iommu], flags);
                let domain = Domain { iommu, tracks, nest, half, dirty: BTreeSet::new() };
                let domain = self.add_domain(ioas, domain)?;
                let made = Hwpt { ioas, domain, auto: false, pasid, fault, nested: None };
                let found = self.check_fault(context, fault);
                found.inspect_err(|_| self.remove_domain(ioas, domain))?;
                made
            }
            Some(Object::Hwpt(parent)) if parent.nested.is_none() => {
                self.check_nested(flags, table)?;
                if self.kinds[iommu] != IommuKind::Vtd {
                    return Err(Errno::EOPNOTSUPP);
                }
                let of = &self.domains[parent.domain];
                if parent.auto || !of.nest || self.kinds[of.iommu] != self.kinds[iommu] {
                    return Err(Errno::EINVAL);
                }
                if table != Table::Vtd {
                    return Err(Errno::EOPNOTSUPP);
                }
                self.check_fault(context, fault)?;
                Hwpt {
                    auto: false,
                    pasid,
                    fault,
                    nested: Some((pt, None, Stage::Translate)),
                    ..parent
                }
            }
            Some(Object::Viommu { iommu: of, parent }) => {
                if of != iommu {
                    return Err(Errno::EINVAL);
                }
                self.check_nested(flags, table)?;
                let stage = match (self.kinds[iommu], table) {
                    (IommuKind::Smmuv3, _) if pasid => return Err(Errno::EOPNOTSUPP),
                    (IommuKind::Smmuv3, Table::Smmu(stage))
                    | (IommuKind::Amd, Table::Amd(stage)) => stage,
                    (IommuKind::Smmuv3, _) => return Err(Errno::EINVAL),
                    _ => return Err(Errno::EOPNOTSUPP),
                };
                self.check_fault(context, fault)?;
                let nested = Some((parent, Some(pt), stage));
                let parent = self.hwpt(context, parent)?.clone();
                Hwpt { auto: false, pasid, fault, nested, ..parent }
            }
            _ => return Err(Errno::EINVAL),
        };
        let id = self.publish(context, Object::Hwpt(made));
        self.contexts[context].hwpts.push(id);
        Ok(id)
    }

    fn check_nested(&self, flags: u32, table: Table) -> Answer<()> {
        let known = abi::HWPT_FAULT_ID_VALID | abi::HWPT_ALLOC_PASID;
        if flags & !known != 0 || table == Table::None { Err(Errno::EOPNOTSUPP) } else { Ok(()) }
    }

    fn check_fault(&self, context: usize, fault: Option<u32>) -> Answer<()> {
        match fault.map(|id| self.object(context, id)) {
            None | Some(Some(Object::Fault)) => Ok(()),
            Some(_) => Err(Errno::ENOENT),
        }
    }

    pub(super) fn viommu_alloc(&mut self, context: usize, device: u32, hwpt: u32) -> Answer<u32> {
        let iommu = iommu_of(self.device(context, device)?);
        if !matches!(self.kinds[iommu], IommuKind::Smmuv3 | IommuKind::Amd) {
            return Err(Errno::EOPNOTSUPP);
        }
        let parent = self.hwpt(context, hwpt)?;
        if parent.nested.is_some() {
            return Err(Errno::ENOENT);
        }
        let of = &self.domains[parent.domain];
        if !of.nest || of.iommu != iommu {
            return Err(Errno::EINVAL);
        }
        Ok(self.publish(context, Object::Viommu { iommu, parent: hwpt }))
    }

    pub(super) fn vdevice_alloc(
        &mut self,
        context: usize,
        viommu: u32,
        device: u32,
        virtual_id: u64,
    ) -> Answer<u32> {
        let (iommu, _) = self.viommu(context, viommu)?;
        let device = self.device(context, device)?;
        if iommu != iommu_of(device) {
            return Err(Errno::EINVAL);
        }
        let clash = |(_, object): (u32, &Object)| match *object {
            Object::Vdevice { viommu: other, device: of, virtual_id: id } => {
                of == device || (other == viommu && id == virtual_id)
            }
            _ => false,
        };
        if self.objects(context).any(clash) {
            return Err(Errno::EEXIST);
        }
        Ok(self.publish(context, Object::Vdevice { viommu, device, virtual_id }))
    }

    pub(super) fn veventq_alloc(&mut self, context: usize, viommu: u32, depth: u32) -> Answer<u32> {
        self.viommu(context, viommu)?;
        let same = |(_, object): (u32, &Object)| matches!(object, Object::Veventq { viommu: other, .. } if *other == viommu);
        if self.objects(context).any(same) {
            return Err(Errno::EEXIST);
        }
        Ok(self.publish(context, Object::Veventq { viommu, depth, events: Events::default() }))
    }

    /// The virtual id of a device in a virtual IOMMU.
    pub(super) fn virtual_id(&self, context: usize, viommu: u32, device: usize) -> Option<u64> {
        self.objects(context).find_map(|(_, object)| match *object {
            Object::Vdevice { viommu: of, device: other, virtual_id } => {
                (of == viommu && other == device).then_some(virtual_id)
            }
            _ => None,
        })
    }

    /// What the guest whose page table it is calls a device.
    fn known_as(&self, context: usize, device: usize, hwpt: &Hwpt) -> Option<u64> {
        let (_, viommu, _) = hwpt.nested?;
        self.virtual_id(context, viommu?, device)
    }

    fn check_pasid(&self, context: usize, group: usize, hwpt: &Hwpt, pasid: u32) -> Answer<()> {
        let attaches = &self.contexts[context].attaches;
        if hwpt.pasid {
            let own = (pasid != 0).then(|| attaches.get(&(group, 0))).flatten();
            let plain = |attach: &Attach| !self.hwpt(context, attach.hwpt).unwrap().pasid;
            return if own.is_some_and(plain) { Err(Errno::EINVAL) } else { Ok(()) };
        }
        let others = attaches.keys().any(|&(of, other)| of == group && other != 0);
        if pasid != 0 || others { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// What a PASID adds to the rules of the device: the hardware is asked by devices that have
    /// any.
    fn check_hardware(
        &self,
        context: usize,
        (device, pasid): (usize, u32),
        hwpt: &Hwpt,
        change: Change,
    ) -> Answer<()> {
        if pasid == 0 {
            return self.check_device(context, device, hwpt);
        }
        let iommu = iommu_of(device);
        if self.kinds[self.domains[hwpt.domain].iommu] != self.kinds[iommu] {
            return Err(Errno::EINVAL);
        }
        let group = (0..DEVICES).filter(|other| GROUP_OF[*other] == GROUP_OF[device]);
        let widths = group.map(|other| DEVICE_PASIDS[other].min(IOMMU_PASIDS[iommu]));
        let widths: Vec<u32> = widths.filter(|width| *width > 0).collect();
        if change == Change::Attach && widths.iter().any(|width| pasid >= 1 << width) {
            return Err(Errno::EINVAL);
        }
        if widths.is_empty() { Ok(()) } else { self.check_device(context, device, hwpt) }
    }

    fn check_device(&self, context: usize, device: usize, hwpt: &Hwpt) -> Answer<()> {
        if self.domains[hwpt.domain].iommu != iommu_of(device) {
            return Err(Errno::EINVAL);
        }
        let vtd = self.kinds[iommu_of(device)] == IommuKind::Vtd;
        if vtd && hwpt.fault.is_some() && device != super::dma::ASKER {
            return Err(Errno::ENODEV);
        }
        match hwpt.nested {
            Some((_, Some(viommu), stage)) => {
                let needs = match self.kinds[iommu_of(device)] {
                    IommuKind::Smmuv3 => stage == Stage::Translate,
                    _ => false,
                };
                if needs && self.virtual_id(context, viommu, device).is_none() {
                    return Err(Errno::ENOENT);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn attach_hwpt(&mut self, context: usize, device: usize, pasid: u32, id: u32) -> Answer<()> {
        let group = GROUP_OF[device];
        let hwpt = self.hwpt(context, id)?.clone();
        let current = self.contexts[context].attaches.get(&(group, pasid));
        if let Some(current) = current {
            if current.devices.contains(&device) {
                return Err(Errno::EBUSY);
            }
            if current.hwpt != id {
                return Err(Errno::EINVAL);
            }
        }
        let first = current.is_none();
        if pasid == 0 {
            self.reserve_device(hwpt.ioas, device)?;
        }
        if first {
            let fits = self.check_pasid(context, group, &hwpt, pasid).and_then(|()| {
                self.check_hardware(context, (device, pasid), &hwpt, Change::Attach)
            });
            if fits.is_err() && pasid == 0 {
                self.unreserve(hwpt.ioas, Owner::Device(device));
            }
            fits?;
            let virtual_id = self.known_as(context, device, &hwpt);
            let attach = Attach { hwpt: id, devices: Vec::new(), virtual_id };
            self.contexts[context].attaches.insert((group, pasid), attach);
        }
        let attach = self.contexts[context].attaches.get_mut(&(group, pasid)).unwrap();
        attach.devices.push(device);
        Ok(())
    }

    fn replace_hwpt(
        &mut self,
        context: usize,
        device: usize,
        pasid: u32,
        id: u32,
    ) -> Answer<Option<u32>> {
        let group = GROUP_OF[device];
        let hwpt = self.hwpt(context, id)?.clone();
        let current = self.contexts[context].attaches.get(&(group, pasid)).cloned();
        let Some(current) = current.filter(|attach| attach.devices.contains(&device)) else {
            return Err(Errno::EINVAL);
        };
        if current.hwpt == id {
            return Ok(None);
        }
        let old = self.hwpt(context, current.hwpt)?.ioas;
        let moves = pasid == 0 && old != hwpt.ioas;
        let mut fits = Ok(());
        let mut reserved = Vec::new();
        for &other in current.devices.iter().filter(|_| moves) {
            fits = self.reserve_device(hwpt.ioas, other);
            if fits.is_err() {
                break;
            }
            reserved.push(other);
        }
        let fits = fits
            .and_then(|()| self.check_pasid(context, group, &hwpt, pasid))
            .and_then(|()| self.check_hardware(context, (device, pasid), &hwpt, Change::Replace));
        if fits.is_err() {
            reserved.iter().for_each(|other| self.unreserve(hwpt.ioas, Owner::Device(*other)));
        }
        fits?;
        let virtual_id = self.known_as(context, device, &hwpt);
        let attach = self.contexts[context].attaches.get_mut(&(group, pasid)).unwrap();
        (attach.hwpt, attach.virtual_id) = (id, virtual_id);
        for other in current.devices.into_iter().filter(|_| moves) {
            self.unreserve(old, Owner::Device(other));
        }
        Ok(Some(current.hwpt))
    }

    /// An automatic page table goes with the last that uses it.
    fn put_hwpt(&mut self, context: usize, id: u32) {
        let hwpt = self.hwpt(context, id).unwrap().clone();
        if hwpt.auto && self.holders(context, id) == 0 {
            self.take(context, id, Slot::Free);
            self.contexts[context].hwpts.retain(|other| *other != id);
            self.remove_domain(hwpt.ioas, hwpt.domain);
        }
    }

    pub(super) fn change(
        &mut self,
        device: usize,
        pasid: u32,
        pt: u32,
        change: Change,
    ) -> Answer<u32> {
        let (context, _) = self.bound[device].unwrap();
        match self.object(context, pt) {
            None => Err(Errno::ENOENT),
            Some(Object::Hwpt(_)) => {
                match change {
                    Change::Attach => self.attach_hwpt(context, device, pasid, pt)?,
                    Change::Replace => {
                        if let Some(old) = self.replace_hwpt(context, device, pasid, pt)? {
                            self.put_hwpt(context, old);
                        }
                    }
                }
                Ok(pt)
            }
            Some(&Object::Ioas(ioas)) => self.change_to_ioas(context, device, pasid, ioas, change),
            Some(_) => Err(Errno::EINVAL),
        }
    }

    fn change_to_ioas(
        &mut self,
        context: usize,
        device: usize,
        pasid: u32,
        ioas: usize,
        change: Change,
    ) -> Answer<u32> {
        let auto = |id: &u32| {
            let hwpt = self.hwpt(context, *id).unwrap();
            hwpt.auto && hwpt.ioas == ioas
        };
        let candidates: Vec<u32> =
            self.contexts[context].hwpts.iter().copied().filter(auto).collect();
        for id in candidates {
            let mut next = self.clone();
            let changed = match change {
                Change::Attach => next.attach_hwpt(context, device, pasid, id).map(|()| None),
                Change::Replace => next.replace_hwpt(context, device, pasid, id),
            };
            match changed {
                Err(Errno::EINVAL) => {}
                Err(errno) => return Err(errno),
                Ok(old) => {
                    *self = next;
                    if let Some(old) = old {
                        self.put_hwpt(context, old);
                    }
                    return Ok(id);
                }
            }
        }
        let mut next = self.clone();
        let made = next.make_auto(context, device, pasid, ioas, change)?;
        *self = next;
        Ok(made)
    }

    /// Leaves the model anyhow when it fails: it is a copy.
    fn make_auto(
        &mut self,
        context: usize,
        device: usize,
        pasid: u32,
        ioas: usize,
        change: Change,
    ) -> Answer<u32> {
        let made = self.plain_domain(iommu_of(device));
        let auto =
            |domain| Hwpt { ioas, domain, auto: true, pasid: false, fault: None, nested: None };
        if change == Change::Attach {
            // The device's reserved ranges and the rules of PASIDs come before the mappings.
            let none = self.domains.len();
            self.domains.push(made.clone());
            let id = self.publish(context, Object::Hwpt(auto(none)));
            self.attach_hwpt(context, device, pasid, id)?;
            let domain = self.add_domain(ioas, made)?;
            *self.object_mut(context, id).unwrap() = Object::Hwpt(auto(domain));
            self.contexts[context].hwpts.push(id);
            return Ok(id);
        }
        let domain = self.add_domain(ioas, made)?;
        let id = self.publish(context, Object::Hwpt(auto(domain)));
        let old = self.replace_hwpt(context, device, pasid, id)?;
        self.contexts[context].hwpts.push(id);
        if let Some(old) = old {
            self.put_hwpt(context, old);
        }
        Ok(id)
    }

    pub(super) fn detach(&mut self, device: usize, pasid: u32) {
        let (context, _) = self.bound[device].unwrap();
        let group = GROUP_OF[device];
        let Some(attach) = self.contexts[context].attaches.get_mut(&(group, pasid)) else { return };
        if !attach.devices.contains(&device) {
            return;
        }
        attach.devices.retain(|other| *other != device);
        let id = attach.hwpt;
        if attach.devices.is_empty() {
            self.contexts[context].attaches.remove(&(group, pasid));
        }
        if pasid == 0 {
            let ioas = self.hwpt(context, id).unwrap().ioas;
            self.unreserve(ioas, Owner::Device(device));
        }
        self.put_hwpt(context, id);
    }

    pub(super) fn bind(&mut self, context: usize, device: usize) -> Answer<u32> {
        let group = GROUP_OF[device];
        let other = |(index, bound): (usize, &Option<(usize, u32)>)| {
            GROUP_OF[index] == group && bound.is_some_and(|(of, _)| of != context)
        };
        if self.container.groups.contains(&group) || self.bound.iter().enumerate().any(other) {
            return Err(Errno::EPERM);
        }
        let id = self.publish(context, Object::Device(device));
        self.bound[device] = Some((context, id));
        Ok(id)
    }

    pub(super) fn unbind(&mut self, device: usize) {
        let (context, id) = self.bound[device].unwrap();
        for pasid in 0..3 {
            self.detach(device, pasid);
        }
        let vdevice = self.objects(context).find_map(|(vdevice, object)| {
            matches!(object, Object::Vdevice { device: of, .. } if *of == device).then_some(vdevice)
        });
        if let Some(vdevice) = vdevice {
            self.take(context, vdevice, Slot::Tombstone);
        }
        self.bound[device] = None;
        self.take(context, id, Slot::Free);
    }
}
