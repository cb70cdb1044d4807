//! Steps from bytes, chosen among what the model has.

use ioasis_uapi::iommufd as abi;

use super::check::WINDOWS;
use super::dma::{ASKER, is_range};
use super::model::{
    CONTEXTS, DEVICES, GROUPS, GUEST, LENGTH, Model, Object, PAGE, TABLE_PAGES, TABLES,
};
use super::step::{Call, Change, OnAccess, Range, Rw, Source, Space, Stage, Step, Table, Type1};
use super::system::base_of;

/// Bytes that decisions are taken from; without any left, every decision is the first choice.
#[derive(Debug)]
pub(super) struct Chooser<'a>(pub(super) &'a [u8]);

/// Which objects are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    Ioas,
    Hwpt,
    Device,
    Fault,
    Viommu,
}

impl Chooser<'_> {
    fn byte(&mut self) -> u64 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        u64::from(*first)
    }

    fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.byte()).unwrap() % count.max(1)
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.byte() % count == count - 1
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn prot(&mut self) -> Rw {
        match self.below(8) {
            0 => Rw { read: false, write: true },
            1 | 2 => Rw { read: true, write: false },
            3 => Rw { read: self.one_in(2), write: false },
            _ => Rw { read: true, write: true },
        }
    }

    fn iova(&mut self) -> u64 {
        let window = if self.one_in(12) { self.below(WINDOWS.len()) } else { 0 };
        let (start, pages) = WINDOWS[window];
        let page = self.byte() % pages.min(24);
        start + page * PAGE + if self.one_in(24) { 512 } else { 0 }
    }

    fn length(&mut self) -> u64 {
        match self.below(32) {
            0 => 512,
            1 => 0,
            2 => 12 * PAGE,
            choice => (1 + choice as u64 % 5) * PAGE,
        }
    }

    fn range(&mut self) -> Range {
        if self.one_in(24) { (0, u64::MAX) } else { (self.iova(), self.length()) }
    }

    /// A range that is often exactly one of the areas.
    fn area(&mut self, model: &Model, ioas: Option<usize>) -> Range {
        let range = self.range();
        let areas = ioas.map_or(&[][..], |ioas| &model.ioases[ioas].areas);
        if areas.is_empty() || self.one_in(3) {
            return range;
        }
        let area = &areas[self.below(areas.len())];
        (area.start, area.length)
    }

    /// A range, or one whose ends are a little beside those.
    fn beside(&mut self, (start, length): Range) -> Range {
        let by = |choose: &mut Self| choose.pick(&[0, 0, 0, 0, 1, 100, 512]);
        let (skipped, short) = (by(self), by(self));
        (start + skipped, length.saturating_sub(skipped + short))
    }

    fn source(&mut self, context: usize) -> Source {
        let space = if self.one_in(3) { Space::File } else { Space::User(context) };
        let odd = if self.one_in(24) { 512 } else { 0 };
        let offset = self.byte() % 16 * PAGE + odd;
        let length = self.length().max(512);
        if self.one_in(24) {
            return Source { space, offset: LENGTH - PAGE, length: 2 * PAGE };
        }
        Source { space, offset, length }
    }

    /// The same, of a process; now and then at the end of all addresses.
    fn private(&mut self, context: usize) -> Source {
        let source = Source { space: Space::User(context), ..self.source(context) };
        if self.one_in(24) {
            let length = self.pick(&[512, PAGE, 2 * PAGE]);
            return Source {
                offset: u64::MAX - base_of(source.space) - (PAGE - 1),
                length,
                ..source
            };
        }
        source
    }

    fn id(&mut self, model: &Model, context: usize, want: Want) -> u32 {
        let suits = |object: &Object| match object {
            Object::Ioas(_) => want == Want::Ioas,
            Object::Hwpt(_) => want == Want::Hwpt,
            Object::Device(_) => want == Want::Device,
            Object::Fault => want == Want::Fault,
            Object::Viommu { .. } => want == Want::Viommu,
            _ => false,
        };
        let known: Vec<u32> =
            model.objects(context).filter(|(_, object)| suits(object)).map(|(id, _)| id).collect();
        if known.is_empty() || self.one_in(16) {
            return u32::try_from(self.below(12)).unwrap();
        }
        self.pick(&known)
    }

    fn ioas(&mut self, model: &Model, context: usize) -> u32 {
        self.id(model, context, Want::Ioas)
    }

    fn page_table(&mut self, model: &Model, context: usize) -> u32 {
        let want = if self.one_in(2) { Want::Hwpt } else { Want::Ioas };
        self.id(model, context, want)
    }

    pub(super) fn step(&mut self, model: &Model) -> Step {
        match self.below(32) {
            0..=15 => {
                let context = usize::from(self.one_in(4));
                Step::Call { context, call: self.call(model, context) }
            }
            16..=18 => Step::Type1(self.type1(model)),
            19..=24 => self.on_device(model),
            25..=28 => self.dma(model),
            29 | 30 => self.on_access(model),
            _ if self.one_in(4) => Step::Revoke { renew: !self.one_in(4) },
            _ if self.one_in(3) => {
                Step::Capability { context: self.below(CONTEXTS), has: self.one_in(2) }
            }
            _ => self.on_file(model),
        }
    }

    fn call(&mut self, model: &Model, context: usize) -> Call {
        match self.below(40) {
            0..=7 => self.map(model, context),
            8..=10 => {
                let src = self.ioas(model, context);
                let range = self.area(model, model.ioas(context, src).ok());
                let dst = self.ioas(model, context);
                let at = if self.one_in(4) { None } else { Some(self.iova()) };
                Call::Copy { src, range, dst, at, prot: self.prot() }
            }
            11..=14 => {
                let ioas = self.ioas(model, context);
                let range = self.area(model, model.ioas(context, ioas).ok());
                Call::Unmap { ioas, range }
            }
            15..=19 => self.hwpt_alloc(model, context),
            20 | 21 => Call::IoasAlloc,
            22..=24 => Call::Destroy { id: u32::try_from(self.below(14)).unwrap() },
            25 => self.allow(model, context),
            26 | 27 => {
                let device = self.id(model, context, Want::Device);
                Call::ViommuAlloc { device, hwpt: self.id(model, context, Want::Hwpt) }
            }
            28 => {
                let viommu = self.id(model, context, Want::Viommu);
                let device = self.id(model, context, Want::Device);
                Call::VdeviceAlloc { viommu, device, virtual_id: self.byte() % 3 }
            }
            29 => Call::VeventqAlloc {
                viommu: self.id(model, context, Want::Viommu),
                depth: u32::try_from(1 + self.byte() % 3).unwrap(),
            },
            30 => Call::FaultAlloc,
            31 | 32 => self.dirty(model, context),
            33 => {
                let want = self.pick(&[Want::Hwpt, Want::Viommu]);
                Call::Invalidate { id: self.id(model, context, want), everything: !self.one_in(3) }
            }
            34..=36 => self.compat(model, context),
            _ => self.rest(model, context),
        }
    }

    fn rest(&mut self, model: &Model, context: usize) -> Call {
        match self.below(9) {
            0 => Call::Ranges {
                ioas: self.ioas(model, context),
                room: u32::try_from(self.below(6)).unwrap(),
            },
            1 => Call::RlimitMode { set: self.one_in(2).then(|| self.byte() % 3) },
            2 | 3 => Call::HugePages {
                ioas: self.ioas(model, context),
                set: (!self.one_in(4)).then(|| self.byte() % 2),
            },
            4 => Call::HwInfo { device: self.id(model, context, Want::Device) },
            5 => Call::HwQueueAlloc { viommu: self.id(model, context, Want::Viommu) },
            6 | 7 => Call::ChangeProcess,
            _ => Call::VfioGet,
        }
    }

    fn map(&mut self, model: &Model, context: usize) -> Call {
        let ioas = self.ioas(model, context);
        if self.one_in(10) {
            let (offset, length) = (TABLES * PAGE, TABLE_PAGES * PAGE);
            let source = Source { space: Space::User(context), offset, length };
            let prot = Rw { read: true, write: false };
            return Call::Map { ioas, source, at: Some(offset), prot };
        }
        let at = if self.one_in(5) { None } else { Some(self.iova()) };
        if self.one_in(6) {
            let Source { offset, length, .. } = self.source(0);
            return Call::MapBuffer { ioas, offset, length, at, prot: self.prot() };
        }
        let private = self.one_in(3);
        let source = if private { self.private(context) } else { self.source(context) };
        Call::Map { ioas, source, at, prot: self.prot() }
    }

    fn hwpt_alloc(&mut self, model: &Model, context: usize) -> Call {
        let device = self.id(model, context, Want::Device);
        let fault = self.id(model, context, Want::Fault);
        let choices = [
            0,
            abi::HWPT_ALLOC_NEST_PARENT,
            abi::HWPT_ALLOC_NEST_PARENT,
            abi::HWPT_ALLOC_NEST_PARENT | abi::HWPT_ALLOC_DIRTY_TRACKING,
            abi::HWPT_ALLOC_DIRTY_TRACKING,
            abi::HWPT_ALLOC_PASID,
            abi::HWPT_FAULT_ID_VALID,
            abi::HWPT_ALLOC_PASID | abi::HWPT_ALLOC_DIRTY_TRACKING,
        ];
        let flags = self.pick(&choices);
        if self.one_in(2) {
            return Call::HwptAlloc {
                device,
                pt: self.ioas(model, context),
                flags,
                fault,
                table: Table::None,
            };
        }
        let stage = self.pick(&[Stage::Translate, Stage::Translate, Stage::Bypass, Stage::Abort]);
        let table = self.pick(&[Table::Vtd, Table::Smmu(stage), Table::Amd(stage), Table::None]);
        let want = self.pick(&[Want::Hwpt, Want::Viommu]);
        let pt = self.id(model, context, want);
        let flags = if self.one_in(4) { flags } else { 0 };
        Call::HwptAlloc { device, pt, flags, fault, table }
    }

    fn allow(&mut self, model: &Model, context: usize) -> Call {
        let ioas = self.ioas(model, context);
        let range = |choose: &mut Self| {
            let start = choose.iova();
            (start, start + choose.length().max(1) - 1)
        };
        let count = self.below(3);
        Call::Allow { ioas, ranges: (0..count).map(|_| range(self)).collect() }
    }

    fn dirty(&mut self, model: &Model, context: usize) -> Call {
        let hwpt = self.id(model, context, Want::Hwpt);
        if self.one_in(4) {
            return Call::SetTracking { hwpt, on: !self.one_in(3) };
        }
        let ioas = model.hwpt(context, hwpt).ok().map(|hwpt| hwpt.ioas);
        let (start, length) = self.area(model, ioas);
        // A bitmap of what is looked at, not of everything.
        let length = length.clamp(PAGE, 24 * PAGE);
        let page_lg2 = self.pick(&[12, 12, 13]);
        Call::GetBitmap { hwpt, range: (start, length), page_lg2, keep: self.one_in(2) }
    }

    fn compat(&mut self, model: &Model, context: usize) -> Call {
        match self.below(8) {
            0 => Call::VfioSet { ioas: self.ioas(model, context) },
            1 => Call::VfioClear,
            2 => Call::CompatInfo,
            3 => Call::CompatSetIommu { v1: self.one_in(2) },
            4 | 5 => {
                let source = self.private(context);
                Call::CompatMap { source, at: self.iova(), prot: self.prot() }
            }
            _ => {
                let set = model.contexts[context].vfio_ioas;
                let ioas = set.and_then(|id| model.ioas(context, id).ok());
                let range = self.area(model, ioas);
                Call::CompatUnmap { range: self.beside(range), all: self.one_in(6) }
            }
        }
    }

    fn type1(&mut self, model: &Model) -> Type1 {
        let group = self.below(GROUPS);
        let member = model.container.groups.contains(&group);
        let ioas = model.container.v1.map(|_| model.container.ioas);
        match self.below(12) {
            0..=2 if !member => Type1::AddGroup { group },
            0 if self.one_in(2) => Type1::RemoveGroup { group },
            3 if member => Type1::RemoveGroup { group },
            4 | 5 => Type1::SetIommu { v1: self.one_in(4) },
            6 => Type1::Info,
            7 => Type1::Log { start: !self.one_in(3) },
            8 => {
                let (start, length) = self.area(model, ioas);
                Type1::GetLog { range: (start, length.clamp(PAGE, 24 * PAGE)) }
            }
            9 => {
                let range = self.area(model, ioas);
                match self.below(8) {
                    0 => Type1::UnmapDirty { range: (range.0, range.1.clamp(PAGE, 24 * PAGE)) },
                    1 | 2 => Type1::TakeAddress { range, all: self.one_in(3) },
                    3..=5 => {
                        let taken: Vec<u64> = model.container.invalid.iter().copied().collect();
                        let areas = ioas.map_or(&[][..], |ioas| &model.ioases[ioas].areas);
                        let known = |start: u64| areas.iter().find(|area| area.start == start);
                        let range = match taken.is_empty() {
                            true => range,
                            false => known(self.pick(&taken))
                                .map_or(range, |area| (area.start, area.length)),
                        };
                        Type1::NewAddress { range, process: self.below(CONTEXTS) }
                    }
                    _ => Type1::Unmap { range, all: self.one_in(6) },
                }
            }
            _ => {
                let source = self.private(0);
                Type1::Map { source, at: self.iova(), prot: self.prot() }
            }
        }
    }

    fn on_device(&mut self, model: &Model) -> Step {
        let device = self.below(DEVICES);
        let Some((context, _)) = model.bound[device] else {
            return Step::Bind { context: self.below(CONTEXTS), device };
        };
        let pasid = if self.one_in(3) { u32::try_from(self.below(3)).unwrap() } else { 0 };
        match self.below(16) {
            0 => Step::Unbind { device },
            1..=3 => Step::Detach { device, pasid },
            choice => {
                let change = if choice < 10 { Change::Attach } else { Change::Replace };
                Step::Change { device, pasid, pt: self.page_table(model, context), change }
            }
        }
    }

    fn dma(&mut self, model: &Model) -> Step {
        let device = self.below(DEVICES);
        let pasid = if self.one_in(3) { u32::try_from(self.below(3)).unwrap() } else { 0 };
        let path = model.path(device, pasid);
        let write = self.one_in(2);
        let (start, length) = self.area(model, path.map(|path| path.ioas));
        let guest = path.is_some_and(|path| path.nested.is_some()) && self.one_in(2);
        let start = if guest { GUEST + start % (24 * PAGE) } else { start };
        let start = start + self.byte() * 16;
        let length = (length.min(3 * PAGE) + self.byte()).max(1);
        let asks = path.is_some_and(|path| path.asks && path.answered) && pasid == 0;
        if asks && model.would_ask(device, 0, (start, length), write) {
            let iova = self.byte() % 24 * PAGE;
            let map = self.one_in(2) && path.is_some_and(|path| path.nested.is_none());
            return Step::AskedDma { device: ASKER, iova, map };
        }
        let asks = model.would_ask(device, pasid, (start, length), write);
        if asks || !is_range((start, length)) {
            return Step::Dma { device: 0, pasid: 0, range: (0, 1), write };
        }
        Step::Dma { device, pasid, range: (start, length), write }
    }

    fn on_access(&mut self, model: &Model) -> Step {
        let live: Vec<usize> = model
            .accesses
            .iter()
            .enumerate()
            .filter_map(|(index, access)| access.as_ref().map(|_| index))
            .collect();
        if live.is_empty() || (live.len() < 4 && self.one_in(8)) {
            return Step::NewAccess { context: self.below(CONTEXTS), pins: !self.one_in(4) };
        }
        let access = self.pick(&live);
        let of = model.accesses[access].as_ref().unwrap();
        let range = self.area(model, of.ioas.map(|(_, ioas)| ioas));
        let short = (range.0 + self.byte(), (range.1 / 2).clamp(1, 2 * PAGE));
        let what = match self.below(12) {
            0..=2 => OnAccess::Attach { ioas: self.ioas(model, of.context) },
            3 => OnAccess::Replace { ioas: self.ioas(model, of.context) },
            4 => OnAccess::Detach,
            5 => OnAccess::Drop,
            6..=8 if of.pins_pages => {
                OnAccess::Pin { range: self.beside(range), write: self.one_in(2) }
            }
            9 => match of.pins.keys().next() {
                Some(pin) if !self.one_in(4) => OnAccess::Unpin { range: *pin },
                _ => OnAccess::Unpin { range },
            },
            10 => OnAccess::Write { range: short },
            _ => OnAccess::Read { range: short },
        };
        Step::Access { access, what }
    }

    fn on_file(&mut self, model: &Model) -> Step {
        let live: Vec<usize> = model
            .files
            .iter()
            .enumerate()
            .filter_map(|(index, file)| file.map(|_| index))
            .collect();
        if live.is_empty() {
            return Step::Call { context: 0, call: Call::FaultAlloc };
        }
        let file = self.pick(&live);
        if self.one_in(3) { Step::CloseFile { file } } else { Step::ReadEvents { file } }
    }
}
