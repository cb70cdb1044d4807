//! Everything that can be seen of the system, compared with the model.

use std::any::Any;
use std::collections::BTreeSet;

use ioasis_iommupt::{Iova, IovaRange};
use proptest::prelude::*;

use super::model::{CONTEXTS, DEVICES, GUEST, Model, Object, PAGE};
use super::step::Range;
use super::system::System;
use crate::Segment;
use crate::device::Device;
use crate::device::access::Access;
use crate::device::vdevice::Vdevice;
use crate::hwpt::Hwpt;
use crate::hwpt::eventq::EventQueue;
use crate::hwpt::faultq::FaultQueue;
use crate::hwpt::viommu::Viommu;
use crate::ioas::Ioas;
use crate::object::Object as Real;

type Checked = Result<(), TestCaseError>;

/// Where IOVAs are taken from: pages from 0, around each kind's reserved ranges, and beyond what
/// any IOMMU translates.
pub(super) const WINDOWS: [(u64, u64); 4] =
    [(0, 26), (0x7ff_e000, 4), (0xfedf_e000, 4), (1 << 50, 2)];
/// PASIDs that are looked at.
const PASIDS: u32 = 3;

/// What an object is.
fn kind_of(object: &dyn Real) -> &'static str {
    let object = object as &dyn Any;
    match () {
        () if object.is::<Ioas>() => "ioas",
        () if object.is::<Hwpt>() => "hwpt",
        () if object.is::<Device>() => "device",
        () if object.is::<Access>() => "access",
        () if object.is::<FaultQueue>() => "fault",
        () if object.is::<Viommu>() => "viommu",
        () if object.is::<Vdevice>() => "vdevice",
        () if object.is::<EventQueue>() => "veventq",
        () => "another",
    }
}

impl System {
    /// Whether the system is what the model says; `turn` chooses what is only sampled.
    pub(super) fn check(&self, model: &mut Model, turn: u64) -> Checked {
        for context in 0..CONTEXTS {
            self.check_objects(model, context)?;
        }
        self.check_ledger(model)?;
        for device in 0..DEVICES {
            for pasid in 0..PASIDS {
                self.check_device(model, device, pasid, turn)?;
            }
        }
        Ok(())
    }

    fn check_objects(&self, model: &Model, context: usize) -> Checked {
        let table = self.context(context).objects();
        let expected: Vec<u32> = model.objects(context).map(|(id, _)| id).collect();
        prop_assert_eq!(table.ids(), &expected[..], "objects of context {}", context);
        for (id, object) in model.objects(context) {
            let (kind, holders) =
                table.inspect(id, |real| (kind_of(real), real.head().holders())).unwrap();
            let modelled = match object {
                Object::Ioas(_) => "ioas",
                Object::Hwpt(_) => "hwpt",
                Object::Device(_) => "device",
                Object::Access => "access",
                Object::Fault => "fault",
                Object::Viommu { .. } => "viommu",
                Object::Vdevice { .. } => "vdevice",
                Object::Veventq { .. } => "veventq",
            };
            prop_assert_eq!(kind, modelled);
            prop_assert_eq!(holders, model.holders(context, id), "holders of {} {}", kind, id);
            if let Object::Ioas(ioas) = object {
                self.check_ioas(model, context, id, *ioas)?;
            }
        }
        let vfio_ioas = self.context(context).compat_ioas_id().ok();
        prop_assert_eq!(vfio_ioas, model.contexts[context].vfio_ioas);
        Ok(())
    }

    fn check_ioas(&self, model: &Model, context: usize, id: u32, ioas: usize) -> Checked {
        let real = self.context(context).ioas(id).unwrap();
        let ranges: Vec<Range> = real
            .ranges_in(IovaRange::ALL)
            .into_iter()
            .map(|range| (range.start().0, range.last().0))
            .collect();
        let space = &model.ioases[ioas];
        let expected: Vec<Range> =
            space.areas.iter().map(|area| (area.start, area.last())).collect();
        prop_assert_eq!(ranges, expected, "areas of IOAS {}", id);
        let (holes, alignment) = real.iova_ranges();
        let holes: Vec<Range> =
            holes.iter().map(|range| (range.start().0, range.last().0)).collect();
        prop_assert_eq!(holes, model.holes(ioas), "ranges of IOAS {}", id);
        prop_assert_eq!(alignment, model.alignment(ioas), "alignment of IOAS {}", id);
        prop_assert_eq!(real.huge_pages(), !space.small);
        Ok(())
    }

    fn check_ledger(&self, model: &Model) -> Checked {
        let pinned = model.pinned();
        let expected: Vec<_> =
            pinned.processes.iter().map(|(&pid, &charges)| (pid, charges)).collect();
        prop_assert_eq!(self.machine.ledger.processes(), expected, "charges");
        let user = pinned.users.get(&super::model::UID).copied().unwrap_or_default();
        prop_assert_eq!(self.machine.ledger.user(super::model::UID), user, "the user's charge");
        let spaces: BTreeSet<_> =
            pinned.pages.iter().map(|(map, _)| model.maps[*map].space).collect();
        let keys: BTreeSet<u128> = spaces.iter().map(|space| self.key(*space)).collect();
        prop_assert_eq!(self.machine.phys.windows(), keys.len(), "stretches of physical space");
        Ok(())
    }

    fn check_device(&self, model: &mut Model, device: usize, pasid: u32, turn: u64) -> Checked {
        let key = (super::model::GROUP_OF[device], pasid);
        for context in 0..CONTEXTS {
            let Some(attach) = model.contexts[context].attaches.get(&key) else { continue };
            // What a guest's table said before may be remembered, also for the group's devices that
            // are bound no more.
            if let Some((_, viommu, _)) = model.hwpt(context, attach.hwpt).unwrap().nested {
                let _where_it_is_known =
                    self.invalidate(context, viommu.unwrap_or(attach.hwpt), true);
            }
        }
        if let Some((context, _)) = model.bound[device] {
            let attach = model.contexts[context].attaches.get(&key);
            let attached = attach.is_some_and(|attach| attach.devices.contains(&device));
            let bound = self.bound[device].as_ref().unwrap();
            prop_assert_eq!(bound.is_pasid_attached(pasid), attached);
        } else if model.path(device, pasid).is_none() {
            return Ok(());
        }
        self.check_reads(model, device, pasid, turn)
    }

    fn check_reads(&self, model: &mut Model, device: usize, pasid: u32, turn: u64) -> Checked {
        let path = model.path(device, pasid);
        let offset = turn * 389 % (PAGE - 4);
        let mut pages: Vec<u64> = WINDOWS
            .iter()
            .flat_map(|&(start, pages)| (0..pages).map(move |page| start + page * PAGE))
            .collect();
        if path.is_some_and(|path| path.nested.is_some()) {
            let guest = (0..super::model::GUEST_PAGES).map(|page| GUEST + page * PAGE);
            pages.extend(guest);
        }
        if path.is_none() {
            // What leads nowhere refuses one page like another.
            let page = usize::try_from(turn).unwrap() % pages.len();
            pages = vec![pages[page]];
        }
        for page in pages {
            // Areas may end inside a page where nothing is attached.
            let iova = page + offset;
            if model.would_ask(device, pasid, (iova, 1), false) {
                continue;
            }
            let expected = match path.and_then(|path| model.look(path, pasid, iova)) {
                Some((space, at, rw, _)) if rw.read => Some(model.bytes[&space].byte(at)),
                _ => None,
            };
            // Of what is refused every other page a turn: it costs most, and what is wrong there
            // stays wrong.
            if expected.is_none() && (page / PAGE + turn).is_multiple_of(2) {
                continue;
            }
            let mut byte = [0];
            let segment = Segment { iova: Iova(iova), length: 1 };
            let endpoint = &self.endpoints[device];
            let read = match pasid {
                0 => endpoint.read([segment], &mut byte),
                _ => endpoint.with_pasid(pasid).read([segment], &mut byte),
            };
            let read = read.ok().map(|()| byte[0]);
            prop_assert_eq!(read, expected, "device {} pasid {} at {:#x}", device, pasid, iova);
            if read.is_none() {
                model.refused(path);
            }
        }
        Ok(())
    }

    /// Writes into one page a turn, to see whether the device may.
    pub(super) fn check_write(&self, model: &mut Model, turn: u64) -> Checked {
        let device = usize::try_from(turn % DEVICES as u64).unwrap();
        let range = ((turn / 4 % 26) * PAGE + turn % 4000, 8);
        if model.would_ask(device, 0, range, true) {
            return Ok(());
        }
        let expected = model.dma(device, 0, range, true).unwrap();
        prop_assert_eq!(self.dma(device, 0, range, true), expected, "device {} writes", device);
        Ok(())
    }

    /// Takes everything away, in an order of `turn`'s choice, and looks for what is left.
    pub(super) fn close(self, turn: u64) -> Checked {
        let Self { machine, contexts, container, bound, accesses, files, groups, .. } = self;
        for access in accesses.iter().flatten() {
            access.handle.detach();
        }
        files.iter().flatten().for_each(|file| file.close());
        let mut parts: [Box<dyn FnOnce()>; 4] = [
            Box::new(move || drop(contexts)),
            Box::new(move || drop(bound)),
            Box::new(move || drop(accesses)),
            Box::new(move || drop(container)),
        ];
        parts.rotate_left(usize::try_from(turn % 4).unwrap());
        parts.into_iter().for_each(|part| part());
        drop(files);
        prop_assert_eq!(machine.ledger.processes(), []);
        prop_assert_eq!(machine.phys.windows(), 0);
        for group in groups {
            prop_assert!(!group.is_owned());
            prop_assert!(group.attachment().is_none());
        }
        Ok(())
    }
}
