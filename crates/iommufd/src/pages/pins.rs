//! Which pages are pinned, and by how many holders.

use ioasis_iommupt::{Pa, Run};
use ioasis_uapi::Result;
use smallvec::SmallVec;

use super::{About, PAGE_LG2, PageRange, Pins, Span};
use crate::client::{Extent, PAGE_SIZE};
use crate::hw::phys::Phys;
use crate::inject::step;

impl Pins {
    /// Pins `range`, or adds a holder where it is pinned already.
    pub(super) fn hold(&mut self, about: &About, range: PageRange) -> Result<()> {
        assert!(range.last < about.count, "only pages of this object are held");
        if self.hold_span(about, range)?.is_some() {
            return Ok(());
        }
        let phys = &about.machine.phys;
        self.cut(range.first, phys);
        self.cut(range.last + 1, phys);
        let mut made: SmallVec<[Span; 1]> = SmallVec::new();
        for gap in self.gaps(range) {
            match self.pin(about, gap) {
                Ok(mut span) => {
                    span.holders = 0;
                    made.push(span);
                }
                Err(error) => {
                    made.drain(..).for_each(|span| self.unpin(about, span));
                    return Err(error);
                }
            }
        }
        if !made.is_empty() {
            self.spans.append(&mut made);
            self.spans.sort_unstable_by_key(|span| span.pages.first);
        }
        let within = self.within(range);
        for span in &mut self.spans[within] {
            span.holders += 1;
        }
        Ok(())
    }

    /// [`hold`](Self::hold) where nothing is pinned, or a span is just `range`: that span.
    #[inline]
    fn hold_span(&mut self, about: &About, range: PageRange) -> Result<Option<&Span>> {
        if self.spans.is_empty() {
            let span = self.pin(about, range)?;
            self.spans.push(span);
            return Ok(self.spans.last());
        }
        Ok(self.exactly(range).map(|span| {
            span.holders += 1;
            &*span
        }))
    }

    /// [`hold`](Self::hold) for the pages of `length` bytes from `start_byte`, whose output
    /// addresses are appended to `runs`.
    #[inline]
    pub(super) fn hold_runs(
        &mut self,
        about: &About,
        start_byte: u64,
        length: u64,
        runs: &mut Vec<Run>,
    ) -> Result<()> {
        let range = PageRange::of_bytes(start_byte, length);
        assert!(range.last < about.count, "only pages of this object are held");
        match self.hold_span(about, range)? {
            // Most pages are one run.
            Some(Span { pages, runs: one, .. }) if one.len() == 1 => {
                let inside = start_byte - (pages.first << PAGE_LG2);
                runs.push(Run { pa: Pa(one[0].pa.0 + inside), length });
            }
            Some(_) => self.runs(start_byte, length, runs),
            None => {
                self.hold(about, range)?;
                self.runs(start_byte, length, runs);
            }
        }
        Ok(())
    }

    fn pin(&mut self, about: &About, range: PageRange) -> Result<Span> {
        step("pinned pages")?;
        let address = (self.origin.address & !(PAGE_SIZE - 1)) + (range.first << PAGE_LG2);
        let length = range.count() << PAGE_LG2;
        let extents = self.origin.space.pin(address, length, about.need)?;
        let phys = &about.machine.phys;
        // Most pages lie together, in one window.
        let (runs, charged) = match extents.as_slice() {
            [extent] if extent.length == length && Phys::is_in_one(extent) => {
                let charged = !extent.backing.is_device();
                let run = phys.hold_run(&extent.backing, extent.offset, length)?;
                (SmallVec::from_buf([run]), charged)
            }
            many => hold_extents(phys, many, length)?,
        };
        if charged {
            let charge = about.machine.ledger.charge(self.rule, &self.payer, range.count());
            if let Err(error) = charge {
                runs.into_iter().for_each(|run| phys.release(run));
                return Err(error);
            }
            self.pinned += range.count();
        }
        Ok(Span { pages: range, holders: 1, charged, runs })
    }

    fn unpin(&mut self, about: &About, span: Span) {
        span.runs.into_iter().for_each(|run| about.machine.phys.release(run));
        if span.charged {
            let gone = span.pages.count();
            self.pinned -= gone;
            about.machine.ledger.uncharge(self.rule, &self.payer, gone);
        }
    }

    /// Takes one holder off `range`, which [`hold`](Self::hold) was called with, and unpins what
    /// nobody holds.
    pub(super) fn release(&mut self, about: &About, range: PageRange) {
        if let [span] = self.spans.as_mut_slice()
            && span.pages == range
            && span.holders == 1
        {
            let span = self.spans.pop().expect("there is one");
            return self.unpin(about, span);
        }
        if let Some(span) = self.exactly(range)
            && span.holders > 1
        {
            span.holders -= 1;
            return;
        }
        let within = self.within(range);
        assert!(!within.is_empty(), "what is released was held");
        for span in &mut self.spans[within.clone()] {
            span.holders -= 1;
        }
        // Backwards, so that an index stays what it was.
        for index in within.rev() {
            if self.spans[index].holders == 0 {
                let span = self.spans.remove(index);
                self.unpin(about, span);
            }
        }
    }

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
    pub(super) fn runs(&self, start_byte: u64, length: u64, runs: &mut Vec<Run>) {
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
    pub(super) fn run_at(&self, at: u64, length: u64) -> Option<Run> {
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

/// Takes a hold on the windows of several extents, `length` bytes together; says also whether
/// somebody pays.
#[cold]
fn hold_extents(
    phys: &Phys,
    extents: &[Extent],
    length: u64,
) -> Result<(SmallVec<[Run; 1]>, bool)> {
    let mut runs = SmallVec::with_capacity(extents.len());
    let held = extents.iter().try_for_each(|extent| phys.hold_extent(extent, &mut runs));
    if let Err(error) = held {
        runs.into_iter().for_each(|run| phys.release(run));
        return Err(error);
    }
    let bytes: u64 = runs.iter().map(|run: &Run| run.length).sum();
    assert_eq!(bytes, length, "an address space pins what it was asked for");
    Ok((runs, !extents.iter().any(|extent| extent.backing.is_device())))
}
