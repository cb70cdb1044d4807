//! What devices reach in the model.

use super::model::{
    Answer, Attach, GROUP_OF, GUEST, GUEST_PAGES, Model, Object, PAGE, TABLE_PAGES, TABLES, pid,
};
use super::spaces::last_of;
use super::step::{Range, Reply, Rw, Source, Space, Stage};
use crate::IommuKind;

/// What a device's transactions go through.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path {
    pub(super) ioas: usize,
    pub(super) domain: usize,
    pub(super) nested: Option<Stage>,
    /// It may ask for what is missing.
    pub(super) asks: bool,
    /// Somebody can answer: the queue's file is open.
    pub(super) answered: bool,
    /// Whose guest hears of what was refused.
    viommu: Option<(usize, u32, bool)>,
}

/// The device that asks for pages.
pub(super) const ASKER: usize = 3;

impl Model {
    pub(super) fn path(&self, device: usize, pasid: u32) -> Option<Path> {
        let group = GROUP_OF[device];
        for (context, of) in self.contexts.iter().enumerate() {
            let own = of.attaches.get(&(group, pasid));
            let Some(attach) = own.or_else(|| self.whole(context, group)) else { continue };
            let hwpt = self.hwpt(context, attach.hwpt).unwrap();
            let viommu = hwpt.nested.and_then(|(_, viommu, _)| viommu);
            return Some(Path {
                ioas: hwpt.ioas,
                domain: hwpt.domain,
                nested: hwpt.nested.map(|(_, _, stage)| stage),
                asks: device == ASKER && hwpt.fault.is_some(),
                answered: self
                    .files
                    .iter()
                    .flatten()
                    .any(|file| file.context == context && hwpt.fault == Some(file.id)),
                viommu: viommu.map(|viommu| (context, viommu, attach.virtual_id.is_some())),
            });
        }
        let mut domains = self.container.domains.iter();
        let (domain, _) = domains.find(|(_, groups)| groups.contains(&group))?;
        (pasid == 0).then_some(Path {
            ioas: self.container.ioas,
            domain: *domain,
            nested: None,
            asks: false,
            answered: false,
            viommu: None,
        })
    }

    /// What all PASIDs go through that have nothing of their own: a guest's table of them.
    fn whole(&self, context: usize, group: usize) -> Option<&Attach> {
        let attach = self.contexts[context].attaches.get(&(group, 0))?;
        let hwpt = self.hwpt(context, attach.hwpt).unwrap();
        let vtd = self.kinds[self.domains[hwpt.domain].iommu] == IommuKind::Vtd;
        let translates = matches!(hwpt.nested, Some((_, _, Stage::Translate)));
        (translates && !vtd).then_some(attach)
    }

    fn kind(&self, path: Path) -> IommuKind {
        self.kinds[self.domains[path.domain].iommu]
    }

    /// The byte of memory at an IOVA, with what a device may do there, and the page that becomes
    /// dirty.
    pub(super) fn look(
        &self,
        path: Path,
        pasid: u32,
        iova: u64,
    ) -> Option<(Space, usize, Rw, u64)> {
        let iova = match path.nested {
            None | Some(Stage::Bypass) => iova,
            Some(Stage::Abort) => return None,
            Some(Stage::Translate) => {
                let kind = self.kind(path);
                let guest = iova.checked_sub(GUEST).filter(|at| *at < GUEST_PAGES * PAGE)?;
                // The tables of PASIDs say nothing of any but 0.
                if !self.tables_mapped(path) || (kind != IommuKind::Vtd && pasid != 0) {
                    return None;
                }
                guest
            }
        };
        let areas = &self.ioases[path.ioas];
        let area = &areas.areas[areas.index(iova)?];
        if self.maps[area.map].revoked {
            return None;
        }
        let (space, offset) = self.origin(area, iova);
        // Where hardware has no word for write-only memory, it can be read.
        let implies = match self.kind(path) {
            IommuKind::Riscv | IommuKind::Spapr => true,
            IommuKind::Smmuv3 => !self.domains[path.domain].nest,
            IommuKind::Vtd | IommuKind::Amd | IommuKind::NoIommu => self.domains[path.domain].half,
        };
        let Rw { read, write } = area.prot;
        let granted = Rw { read: read || (write && implies), write };
        (read || write).then_some((space, offset, granted, iova & !(PAGE - 1)))
    }

    /// Whether the nest parent shows the client's tables where they say they are.
    fn tables_mapped(&self, path: Path) -> bool {
        let ioas = &self.ioases[path.ioas];
        (TABLES..TABLES + TABLE_PAGES).all(|page| {
            ioas.index(page * PAGE).is_some_and(|at| {
                let area = &ioas.areas[at];
                let (space, offset) = self.origin(area, page * PAGE);
                let there = offset as u64 == page * PAGE && matches!(space, Space::User(_));
                there && area.prot.read
            })
        })
    }

    fn granted(&self, path: Option<Path>, pasid: u32, iova: u64, write: bool) -> bool {
        let look = path.and_then(|path| self.look(path, pasid, iova));
        look.is_some_and(|(_, _, rw, _)| if write { rw.write } else { rw.read })
    }

    /// Whether a device would ask for a page of a range.
    pub(super) fn would_ask(&self, device: usize, pasid: u32, range: Range, write: bool) -> bool {
        let path = self.path(device, pasid);
        let pages = (range.0 & !(PAGE - 1)..=range.0 + range.1.max(1) - 1).step_by(4096);
        let missing = |page: u64| !self.granted(path, pasid, page.max(range.0), write);
        path.is_some_and(|path| path.asks) && pages.into_iter().any(missing)
    }

    pub(super) fn dma(
        &mut self,
        device: usize,
        pasid: u32,
        range: Range,
        write: bool,
    ) -> Answer<Reply> {
        let path = self.path(device, pasid);
        let mut seen = Vec::new();
        let (mut at, mut left) = range;
        while left > 0 {
            let length = left.min(PAGE - at % PAGE);
            // Areas may end inside a page only where no device looks.
            if !self.granted(path, pasid, at, write) {
                self.refused(path);
                return Ok(Reply::Refused(at));
            }
            let path = path.unwrap();
            let (space, offset, _, page) = self.look(path, pasid, at).unwrap();
            let size = usize::try_from(length).unwrap();
            if write {
                let bytes = self.bytes.get_mut(&space).unwrap().part_mut(offset, size);
                for (index, byte) in bytes.iter_mut().enumerate() {
                    let done = usize::try_from(at - range.0).unwrap();
                    *byte = super::system::written(range.0, done + index);
                }
                self.domains[path.domain].dirty.insert(page);
            } else {
                seen.extend_from_slice(self.bytes[&space].part(offset, size));
            }
            at += length;
            left -= length;
        }
        Ok(if write { Reply::Nothing } else { Reply::Bytes(seen) })
    }

    /// A guest hears of a refused transaction.
    pub(super) fn refused(&mut self, path: Option<Path>) {
        let Some(Path { viommu: Some((context, viommu, known)), .. }) = path else { return };
        let (iommu, _) = self.viommu(context, viommu).unwrap();
        if self.kinds[iommu] != IommuKind::Smmuv3 || !known {
            return;
        }
        let queue = self.objects(context).find_map(|(id, object)| {
            matches!(object, Object::Veventq { viommu: of, .. } if *of == viommu).then_some(id)
        });
        let Some(queue) = queue else { return };
        let Some(Object::Veventq { depth, events, .. }) = self.object_mut(context, queue) else {
            return;
        };
        if events.deliver.last().is_some_and(|(_, lost)| *lost) {
            events.deliver.pop();
        }
        let held = events.deliver.iter().filter(|(_, lost)| !lost).count();
        events.deliver.push((events.sequence, held >= usize::try_from(*depth).unwrap()));
        events.sequence += 1;
    }

    pub(super) fn asked_dma(&mut self, device: usize, iova: u64, map: bool) -> Answer<Reply> {
        let path = self.path(device, 0).unwrap();
        if map && !self.granted(Some(path), 0, iova, false) {
            let (context, _) = self.bound[device].unwrap();
            let mut next = self.clone();
            let rule = self.rule(context);
            let slice = next.new_map(asked_source(context), true, pid(context), rule);
            let both = Rw { read: true, write: true };
            if next.show(path.ioas, &[slice], Some(iova), Ok(iova), both).is_ok() {
                *self = next;
            }
        }
        match self.look(path, 0, iova) {
            Some((space, offset, Rw { read: true, .. }, _)) => {
                Ok(Reply::Bytes(vec![self.bytes[&space].byte(offset)]))
            }
            _ => Ok(Reply::Refused(iova)),
        }
    }

    pub(super) fn read_events(&mut self, file: usize) -> Answer<Reply> {
        let of = self.files[file].unwrap();
        match self.object_mut(of.context, of.id).unwrap() {
            Object::Veventq { events, .. } => {
                let read = std::mem::take(&mut events.deliver);
                let words = read
                    .into_iter()
                    .flat_map(|(sequence, lost)| [u64::from(sequence), u64::from(lost)]);
                Ok(Reply::Words(words.collect()))
            }
            _ => Ok(Reply::Words(Vec::new())),
        }
    }
}

/// What a client maps when it is asked for a page.
pub(super) fn asked_source(context: usize) -> Source {
    Source { space: Space::User(context), offset: 3 * PAGE, length: PAGE }
}

/// Whether a range can be walked without leaving 64 bits.
pub(super) fn is_range(range: Range) -> bool {
    last_of(range).is_ok()
}
