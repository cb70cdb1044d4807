//! Pages: the memory behind one MAP call, shared by every area that shows a part of it.
//!
//! An area is a view of IOVAs; a [`Pages`] is what it views: an origin (a process's addresses, a file's offsets, a dma-buf), how much of it, who pays,
//! and which pages are pinned. COPY and splitting share the object, so a page is pinned and charged once however
//! many areas, domains and accesses show it.
//!
//! Invariant: a page is pinned exactly while at least one holder needs it; the charge is the number of pinned pages.
//! Giving back never fails and never allocates. Linux: `drivers/iommu/iommufd/pages.c`.
//!
//! Lock order: `Pages::pins` -> `Phys::windows`, `Ledger::books`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use ioasis_iommupt::{Pa, Prot, Run};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;
use smallvec::SmallVec;

use crate::account::Rule;
use crate::inject::step;
use crate::machine::Machine;
use crate::phys::Phys;
use crate::{Account, AddressSpace, Backing, Importer, Kind, Piece};

/// Bytes of a page, the unit of pinning and charging.
pub const PAGE_SIZE: u64 = 1 << PAGE_LG2;
const PAGE_LG2: u32 = 12;

/// Where the memory comes from.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// The process or file.
    pub space: Arc<dyn AddressSpace>,
    /// First byte.
    pub address: u64,
}

/// A closed range of page indices inside a [`Pages`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageRange {
    first: u64,
    last: u64,
}

impl PageRange {
    /// The pages that hold `length` bytes from byte `start_byte`; `length` is not zero.
    pub(crate) fn of_bytes(start_byte: u64, length: u64) -> Self {
        assert!(length > 0, "an area is not empty");
        Self { first: start_byte >> PAGE_LG2, last: (start_byte + (length - 1)) >> PAGE_LG2 }
    }

    fn count(self) -> u64 {
        self.last - self.first + 1
    }
}

/// Pages that were pinned together and have the same holders.
#[derive(Debug)]
struct Span {
    pages: PageRange,
    holders: u32,
    /// Somebody pays: device memory is free.
    charged: bool,
    runs: SmallVec<[Run; 1]>,
}

#[derive(Debug)]
struct Pins {
    origin: Origin,
    rule: Rule,
    payer: Account,
    pinned: u64,
    /// Ascending, disjoint.
    spans: SmallVec<[Span; 1]>,
}

/// The memory behind one MAP call.
#[derive(Debug)]
pub(crate) struct Pages {
    machine: Arc<Machine>,
    count: u64,
    /// The first mapped byte, counted from the start of its page.
    start_byte: u64,
    need: Prot,
    kind: Kind,
    /// The dma-buf was revoked once: from then on nothing is mapped, whatever becomes of the dma-buf.
    revoked: AtomicBool,
    pins: Mutex<Pins>,
}

impl Pages {
    /// The pages of `length` bytes of `origin`; nothing is pinned yet.
    ///
    /// # Errors
    ///
    /// `EINVAL` if `length` is zero or a page short of everything, `EOVERFLOW` if the range wraps.
    pub(crate) fn new(
        machine: &Arc<Machine>,
        origin: Origin,
        length: u64,
        need: Prot,
        payer: Account,
        rule: Rule,
    ) -> Result<Arc<Self>> {
        step("a pages object")?;
        let Some(span) = length.checked_sub(1) else {
            return refuse!(EINVAL, "length is zero");
        };
        if length > u64::MAX - PAGE_SIZE {
            return refuse!(EINVAL, "length cannot be rounded up to pages", length);
        }
        let Some(last) = origin.address.checked_add(span) else {
            return refuse!(EOVERFLOW, "the mapped memory wraps", origin.address);
        };
        let count = (last >> PAGE_LG2) - (origin.address >> PAGE_LG2) + 1;
        let kind = origin.space.kind();
        let rule = if kind == Kind::DmaBuf { Rule::None } else { rule };
        let start_byte = origin.address & (PAGE_SIZE - 1);
        let pins = Pins { origin, rule, payer, pinned: 0, spans: SmallVec::new() };
        let need = (need & (Prot::WRITE | Prot::MMIO)) | Prot::READ;
        let pages = Arc::new(Self {
            machine: Arc::clone(machine),
            count,
            start_byte,
            need,
            kind,
            revoked: AtomicBool::new(false),
            pins: Mutex::new(pins),
        });
        if let Some(extension) = machine.extension() {
            extension.pages_made(&pages);
        }
        Ok(pages)
    }

    /// The first mapped byte, counted from the start of its page.
    #[must_use]
    pub(crate) fn start_byte(&self) -> u64 {
        self.start_byte
    }

    /// `importer` maps them: it is told when they are those of a dma-buf and that is revoked.
    pub(crate) fn import(&self, importer: Weak<dyn Importer>) {
        if self.kind == Kind::DmaBuf {
            let pins = self.pins.lock();
            let space = &pins.origin.space;
            space.import(importer);
            // One that came too late to be told.
            if space.is_revoked() {
                self.revoked.store(true, Ordering::Release);
            }
        }
    }

    /// The address in the origin of byte `start_byte`.
    pub(crate) fn address_of(&self, start_byte: u64) -> u64 {
        (self.pins.lock().origin.address & !(PAGE_SIZE - 1)).wrapping_add(start_byte)
    }

    /// Whether the MAP call that made it asked for WRITEABLE.
    #[must_use]
    pub(crate) fn writable(&self) -> bool {
        self.need.contains(Prot::WRITE)
    }

    /// Whether the memory is that of a dma-buf which has been taken away. An IOAS asks with its areas locked, before it fills one:
    /// a revocation that it missed by then, because it showed nothing yet, the dma-buf knows of already.
    pub(crate) fn is_revoked(&self) -> bool {
        if self.kind != Kind::DmaBuf || self.revoked.load(Ordering::Acquire) {
            return self.kind == Kind::DmaBuf;
        }
        let revoked = self.pins.lock().origin.space.is_revoked();
        if revoked {
            self.revoked.store(true, Ordering::Release);
        }
        revoked
    }

    /// Takes the memory away if it is that of the dma-buf with this key, which is revoked; says whether it is. Every IOAS that shows
    /// it asks, for each of its areas.
    pub(crate) fn revoke(&self, key: u128) -> bool {
        if self.kind != Kind::DmaBuf {
            return false;
        }
        let pins = self.pins.lock();
        let space = &pins.origin.space;
        let revoked = space.key() == key && space.is_revoked();
        if revoked {
            self.revoked.store(true, Ordering::Release);
        }
        revoked
    }

    /// Whether the page at `pa` is pinned.
    #[cfg_attr(not(feature = "mock"), expect(dead_code, reason = "the mock hardware asks"))]
    pub(crate) fn pins_page(&self, pa: Pa) -> bool {
        let pins = self.pins.lock();
        let mut runs = pins.spans.iter().flat_map(|span| &span.runs);
        runs.any(|run| run.pa <= pa && pa.0 - run.pa.0 < run.length)
    }

    /// What the origin is.
    #[must_use]
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Pages pinned now that somebody pays for.
    #[must_use]
    pub(crate) fn pinned(&self) -> u64 {
        self.pins.lock().pinned
    }

    /// Pins `range`, or adds a holder where it is pinned already.
    ///
    /// # Errors
    ///
    /// `EFAULT` or `EINVAL` of the origin, `ENOMEM` over a limit; nothing has changed then.
    pub(crate) fn hold(&self, range: PageRange) -> Result<()> {
        self.hold_in(&mut self.pins.lock(), range)
    }

    /// [`hold`](Self::hold) for the pages of `length` bytes from `start_byte`, whose output addresses are appended to `runs`.
    ///
    /// # Errors
    ///
    /// As [`hold`](Self::hold).
    pub(crate) fn hold_runs(
        &self,
        start_byte: u64,
        length: u64,
        runs: &mut Vec<Run>,
    ) -> Result<()> {
        let mut pins = self.pins.lock();
        self.hold_in(&mut pins, PageRange::of_bytes(start_byte, length))?;
        pins.runs(start_byte, length, runs);
        Ok(())
    }

    fn hold_in(&self, pins: &mut Pins, range: PageRange) -> Result<()> {
        assert!(range.last < self.count, "only pages of this object are held");
        if pins.spans.is_empty() {
            let span = self.pin(pins, range)?;
            pins.spans.push(span);
            return Ok(());
        }
        if let Some(span) = pins.exactly(range) {
            span.holders += 1;
            return Ok(());
        }
        let phys = &self.machine.phys;
        pins.cut(range.first, phys);
        pins.cut(range.last + 1, phys);
        let mut made: SmallVec<[Span; 1]> = SmallVec::new();
        for gap in pins.gaps(range) {
            match self.pin(pins, gap) {
                Ok(mut span) => {
                    span.holders = 0;
                    made.push(span);
                }
                Err(error) => {
                    self.unpin(pins, made.drain(..));
                    return Err(error);
                }
            }
        }
        if !made.is_empty() {
            pins.spans.append(&mut made);
            pins.spans.sort_unstable_by_key(|span| span.pages.first);
        }
        let within = pins.within(range);
        for span in &mut pins.spans[within] {
            span.holders += 1;
        }
        Ok(())
    }

    fn pin(&self, pins: &mut Pins, range: PageRange) -> Result<Span> {
        step("pinned pages")?;
        let address = (pins.origin.address & !(PAGE_SIZE - 1)) + (range.first << PAGE_LG2);
        let extents = pins.origin.space.pin(address, range.count() << PAGE_LG2, self.need)?;
        let mut runs: SmallVec<[Run; 1]> = SmallVec::with_capacity(extents.len());
        let phys = &self.machine.phys;
        let placed = extents.iter().try_for_each(|extent| phys.hold_extent(extent, &mut runs));
        let charged = !extents.iter().any(|extent| extent.backing.is_device());
        let paid = placed.and_then(|()| {
            if charged {
                self.machine.ledger.charge(pins.rule, &pins.payer, range.count())
            } else {
                Ok(())
            }
        });
        if let Err(error) = paid {
            runs.into_iter().for_each(|run| phys.release(run));
            return Err(error);
        }
        let bytes: u64 = runs.iter().map(|run| run.length).sum();
        assert_eq!(bytes, range.count() << PAGE_LG2, "an address space pins what it was asked for");
        if charged {
            pins.pinned += range.count();
        }
        Ok(Span { pages: range, holders: 1, charged, runs })
    }

    fn unpin(&self, pins: &mut Pins, spans: impl Iterator<Item = Span>) {
        let mut gone = 0;
        for span in spans {
            if span.charged {
                gone += span.pages.count();
            }
            span.runs.into_iter().for_each(|run| self.machine.phys.release(run));
        }
        pins.pinned -= gone;
        if gone > 0 {
            self.machine.ledger.uncharge(pins.rule, &pins.payer, gone);
        }
    }

    /// Takes one holder off `range`, which [`hold`](Self::hold) was called with, and unpins what nobody holds.
    pub(crate) fn release(&self, range: PageRange) {
        let mut pins = self.pins.lock();
        let pins = &mut *pins;
        if let [span] = pins.spans.as_mut_slice()
            && span.pages == range
            && span.holders == 1
        {
            let span = pins.spans.pop().expect("there is one");
            return self.unpin(pins, std::iter::once(span));
        }
        if let Some(span) = pins.exactly(range)
            && span.holders > 1
        {
            span.holders -= 1;
            return;
        }
        let within = pins.within(range);
        assert!(!within.is_empty(), "what is released was held");
        for span in &mut pins.spans[within.clone()] {
            span.holders -= 1;
        }
        // Backwards, so that an index stays what it was.
        for index in within.rev() {
            if pins.spans[index].holders == 0 {
                let span = pins.spans.remove(index);
                self.unpin(pins, std::iter::once(span));
            }
        }
    }

    /// Appends the output addresses of `length` bytes from `start_byte`, all of them pinned.
    pub(crate) fn runs(&self, start_byte: u64, length: u64, runs: &mut Vec<Run>) {
        self.pins.lock().runs(start_byte, length, runs);
    }

    /// Fills `buf` from byte `start_byte` on: from the pinned pages where there are some, else from the origin.
    ///
    /// # Errors
    ///
    /// `EFAULT` when the memory is gone.
    pub(crate) fn read(&self, start_byte: u64, buf: &mut [u8]) -> Result<()> {
        let mut done = 0;
        self.pieces(start_byte, buf.len(), Prot::READ, &mut |backing, piece| {
            let part = &mut buf[done..done + piece.length];
            done += piece.length;
            backing.read(&[piece], part)
        })
    }

    /// Writes `buf` from byte `start_byte` on.
    ///
    /// # Errors
    ///
    /// `EFAULT` when the memory is gone or not writable.
    pub(crate) fn write(&self, start_byte: u64, buf: &[u8]) -> Result<()> {
        let mut done = 0;
        self.pieces(start_byte, buf.len(), Prot::WRITE, &mut |backing, piece| {
            let part = &buf[done..done + piece.length];
            done += piece.length;
            backing.write(&[piece], part)
        })
    }

    fn pieces(
        &self,
        start_byte: u64,
        length: usize,
        need: Prot,
        each: &mut dyn FnMut(&dyn Backing, Piece) -> Result<()>,
    ) -> Result<()> {
        let pins = self.pins.lock();
        let mut at = start_byte;
        let mut left = length as u64;
        while left > 0 {
            let page_left = left.min(PAGE_SIZE - (at & (PAGE_SIZE - 1)));
            let done = if let Some(run) = pins.run_at(at, left) {
                let window = self.machine.phys.hold_window(run.pa);
                let window = window.expect("a pinned page has a window");
                each(&*window.backing, piece(Phys::offset(&window, run.pa), run.length))?;
                run.length
            } else {
                step("pages for one access")?;
                let address = (pins.origin.address & !(PAGE_SIZE - 1)) + (at & !(PAGE_SIZE - 1));
                let mut inside = at & (PAGE_SIZE - 1);
                for extent in pins.origin.space.pin(address, PAGE_SIZE, need)? {
                    let part = extent.length.saturating_sub(inside);
                    if part > 0 {
                        each(&*extent.backing, piece(extent.offset + inside, part.min(page_left)))?;
                        break;
                    }
                    inside -= extent.length;
                }
                page_left
            };
            at += done;
            left -= done;
        }
        Ok(())
    }

    /// Whose addresses they are.
    pub(crate) fn space_key(&self) -> u128 {
        self.pins.lock().origin.space.key()
    }

    /// Who pays now, and under which rule.
    pub(crate) fn payer(&self) -> (Account, Rule) {
        let pins = self.pins.lock();
        (pins.payer, pins.rule)
    }

    /// Makes `payer` pay from now on for what `charged` pages the ledger has already booked on it, and takes the old
    /// charge back.
    pub(crate) fn change_payer(&self, payer: Account, rule: Rule) {
        let mut pins = self.pins.lock();
        let pins = &mut *pins;
        if pins.pinned > 0 {
            self.machine.ledger.uncharge(pins.rule, &pins.payer, pins.pinned);
        }
        pins.payer = payer;
        pins.rule = rule;
    }

    /// Replaces the origin: pages pinned already stay what they are.
    pub(crate) fn change_origin(&self, origin: Origin) {
        let mut pins = self.pins.lock();
        assert_eq!(
            origin.address & (PAGE_SIZE - 1),
            pins.origin.address & (PAGE_SIZE - 1),
            "an origin keeps its place in the page"
        );
        pins.origin = origin;
    }
}

fn piece(offset: u64, length: u64) -> Piece {
    Piece { offset, length: usize::try_from(length).expect("a piece fits a buffer in memory") }
}

impl Pins {
    /// The span that is just `range`.
    fn exactly(&mut self, range: PageRange) -> Option<&mut Span> {
        let index = self.spans.partition_point(|span| span.pages.last < range.first);
        self.spans.get_mut(index).filter(|span| span.pages == range)
    }

    /// The spans that lie in `range`, by index; none of them crosses its ends.
    fn within(&self, range: PageRange) -> std::ops::Range<usize> {
        let start = self.spans.partition_point(|span| span.pages.last < range.first);
        let end = self.spans.partition_point(|span| span.pages.first <= range.last);
        start..end
    }

    /// The parts of `range` that no span covers.
    fn gaps(&self, range: PageRange) -> SmallVec<[PageRange; 1]> {
        let mut gaps = SmallVec::new();
        let mut next = range.first;
        for span in &self.spans[self.within(range)] {
            if span.pages.first > next {
                gaps.push(PageRange { first: next, last: span.pages.first - 1 });
            }
            next = span.pages.last + 1;
        }
        if next <= range.last {
            gaps.push(PageRange { first: next, last: range.last });
        }
        gaps
    }

    /// Makes page `first` the first of its span, if it lies inside one.
    fn cut(&mut self, first: u64, phys: &Phys) {
        let index = self.spans.partition_point(|span| span.pages.last < first);
        let Some(span) = self.spans.get_mut(index) else { return };
        if span.pages.first >= first {
            return;
        }
        let tail = PageRange { first, last: span.pages.last };
        let mut left = (first - span.pages.first) << PAGE_LG2;
        let mut at = 0;
        while span.runs[at].length < left {
            left -= span.runs[at].length;
            at += 1;
        }
        let run = &mut span.runs[at];
        let mut runs = SmallVec::new();
        if run.length > left {
            runs.push(Run { pa: Pa(run.pa.0 + left), length: run.length - left });
            run.length = left;
            phys.hold_again(run.pa);
        }
        runs.extend(span.runs.drain(at + 1..));
        span.pages.last = first - 1;
        let (holders, charged) = (span.holders, span.charged);
        self.spans.insert(index + 1, Span { pages: tail, holders, charged, runs });
    }

    /// Appends the output addresses of `length` bytes from `start_byte`, all of them pinned.
    fn runs(&self, start_byte: u64, length: u64, runs: &mut Vec<Run>) {
        // Most pages are one run.
        if let [span] = self.spans.as_slice()
            && let [run] = span.runs.as_slice()
        {
            let inside = start_byte - (span.pages.first << PAGE_LG2);
            assert!(inside + length <= run.length, "the pages of a filled area are pinned");
            return runs.push(Run { pa: Pa(run.pa.0 + inside), length });
        }
        let mut at = start_byte;
        let mut left = length;
        while left > 0 {
            let run = self.run_at(at, left).expect("the pages of a filled area are pinned");
            runs.push(run);
            at += run.length;
            left -= run.length;
        }
    }

    /// The longest pinned run from byte `at`, at most `length` bytes.
    fn run_at(&self, at: u64, length: u64) -> Option<Run> {
        let page = at >> PAGE_LG2;
        let index = self.spans.partition_point(|span| span.pages.last < page);
        let span = self.spans.get(index).filter(|span| span.pages.first <= page)?;
        let mut inside = at - (span.pages.first << PAGE_LG2);
        for run in &span.runs {
            if inside < run.length {
                return Some(Run {
                    pa: Pa(run.pa.0 + inside),
                    length: (run.length - inside).min(length),
                });
            }
            inside -= run.length;
        }
        None
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(
                self.pins.get_mut().pinned,
                0,
                "nothing is pinned when the last area is gone"
            );
        }
    }
}

#[cfg(test)]
mod tests;
