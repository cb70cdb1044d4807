//! A page table and its writer: one thread changes, any number translate.

use alloc::sync::Arc;
use core::fmt;

use crate::format::{Entry, Format, all_sizes, low_bits};
use crate::quiesce::Quiesce;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::tables::{Blank, Tables};
use crate::walk::{Reader, address_of, frame_of};
use crate::{Dirty, Iova, IovaRange, Prot, Run, TableReader, TableWriter};
use ioasis_uapi::{Errno, Error, Result};

/// What a page table is made with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Tables it may have, the root among them; then `ENOMEM`.
    pub tables_max: usize,
    /// Bit `n` set: leaves of `1 << n` bytes may be used, as far as the format has them. The
    /// format's smallest is always used.
    pub page_sizes: u64,
    /// lg2 of the aperture, as far as the format reaches.
    pub iova_lg2: u32,
    /// Who knows when readers are gone.
    pub quiesce: Arc<dyn Quiesce>,
}

impl Config {
    /// Everything the format can do.
    #[must_use]
    pub fn new(quiesce: Arc<dyn Quiesce>) -> Self {
        Self { tables_max: usize::MAX, page_sizes: u64::MAX, iova_lg2: 64, quiesce }
    }
}

/// Makes page tables of one format.
#[derive(Debug)]
pub struct PageTable<F: Format>(core::marker::PhantomData<F>);

impl<F: Format> PageTable<F> {
    /// An empty table: the writer, and what translating threads share.
    ///
    /// # Errors
    ///
    /// `ENOMEM` without memory for the root, `EINVAL` when the aperture is smaller than a page.
    #[expect(clippy::new_ret_no_self, reason = "a page table is its two sides")]
    pub fn new(config: Config) -> Result<(Writer<F>, Arc<Reader<F>>)> {
        if config.iova_lg2 < F::GRANULE_LG2 {
            return Err(Error::at(Errno::EINVAL, "no page fits", config.iova_lg2.into()));
        }
        let last = low_bits(config.iova_lg2.min(F::IOVA_LG2));
        let shared = Arc::new(Reader::new(last)?);
        let root = 1 << F::ROOT_ITEMS_LG2.saturating_sub(F::ITEMS_LG2);
        let tables =
            Tables::new(&shared.arena, root, F::ITEMS_LG2, F::TOP_LEVEL, config.tables_max)?;
        let smallest = 1 << F::GRANULE_LG2;
        let writer = Writer {
            shared: Arc::clone(&shared),
            tables,
            quiesce: config.quiesce,
            sizes: all_sizes::<F>() & (config.page_sizes | smallest),
            last,
            hot: Hot::NONE,
        };
        Ok((writer, shared))
    }
}

/// The level 0 table that was used last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hot {
    /// The IOVAs it maps, without the bits it resolves.
    tag: u64,
    pub(crate) frame: u32,
}

impl Hot {
    /// No address has this tag: it would need more than 64 bits.
    const NONE: Self = Self { tag: u64::MAX, frame: 0 };
}

/// The writing side of a page table.
pub struct Writer<F: Format> {
    pub(crate) shared: Arc<Reader<F>>,
    pub(crate) tables: Tables,
    pub(crate) quiesce: Arc<dyn Quiesce>,
    /// Leaf sizes in use.
    pub(crate) sizes: u64,
    /// Last address of the aperture; readers may walk beyond, where nothing is.
    pub(crate) last: u64,
    hot: Hot,
}

impl<F: Format> fmt::Debug for Writer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("format", &F::NAME)
            .field("tables", &self.tables.in_use())
            .finish_non_exhaustive()
    }
}

/// A table that leaves go to: linked, or about to be.
pub(crate) struct Place {
    pub(crate) frame: u32,
    pub(crate) fresh: Option<Fresh>,
}

/// Where a table that is not linked yet belongs.
pub(crate) struct Fresh {
    parent: u32,
    slot: usize,
    level: u32,
    zeroed: bool,
}

impl<F: Format> Writer<F> {
    /// Tables in use, the root among them.
    #[must_use]
    pub fn tables(&self) -> usize {
        self.tables.in_use()
    }

    /// Frees every table that holds nothing; says whether there was one.
    pub fn trim(&mut self) -> bool {
        let mut freed = false;
        while let Some(frame) = self.tables.pop_idle() {
            let meta = self.tables.meta(frame);
            let span = self.span_of(frame);
            self.table(meta.parent)[meta.slot as usize].store(0, Ordering::Relaxed);
            // Not before: who had forgotten the table could still find and remember it.
            self.shared.changes.add(span);
            self.retire(frame);
            self.tables.sub(meta.parent, 1);
            freed = true;
        }
        freed
    }

    /// The addresses that a linked table translates.
    fn span_of(&self, frame: u32) -> IovaRange {
        let (mut base, mut at) = (0, frame);
        while at != 0 {
            let meta = self.tables.meta(at);
            base |= u64::from(meta.slot) << F::item_lg2(u32::from(meta.level) + 1);
            at = meta.parent;
        }
        let items_lg2 = F::item_lg2(u32::from(self.tables.meta(frame).level) + 1);
        let span = IovaRange::closed(Iova(base), Iova(base | low_bits(items_lg2)));
        span.expect("a table translates something")
    }

    pub(crate) fn retire(&mut self, frame: u32) {
        self.tables.retire(frame);
        if self.hot.frame == frame {
            self.hot = Hot::NONE;
        }
    }

    #[inline]
    pub(crate) fn table(&self, frame: u32) -> &[AtomicU64] {
        self.shared.arena.table(frame, F::ITEMS_LG2)
    }

    /// The linked level 0 table of `iova`, if it was used last.
    #[inline]
    pub(crate) fn hot(&self, iova: u64) -> Option<u32> {
        (self.hot.tag == iova >> F::item_lg2(1)).then_some(self.hot.frame)
    }

    #[inline]
    pub(crate) fn set_hot(&mut self, iova: u64, frame: u32) {
        self.hot = Hot { tag: iova >> F::item_lg2(1), frame };
    }

    /// Finds or makes the table at `level` that translates `iova`. A table made for the last step
    /// is not linked.
    #[inline]
    pub(crate) fn place(&mut self, iova: u64, level: u32) -> Result<Place> {
        match self.hot(iova) {
            Some(frame) if level == 0 => Ok(Place { frame, fresh: None }),
            _ => self.walk_to(iova, level),
        }
    }

    fn walk_to(&mut self, iova: u64, level: u32) -> Result<Place> {
        let mut frame = 0;
        let mut at = F::TOP_LEVEL;
        while at > level {
            let slot = F::index(iova, at);
            match F::decode(self.table(frame)[slot].load(Ordering::Relaxed), at) {
                Entry::Table(address) => frame = frame_of::<F>(address),
                Entry::Leaf => return Err(Error::at(Errno::EADDRINUSE, "already mapped", iova)),
                Entry::Empty => {
                    let Blank { frame: blank, zeroed } = self.allocate()?;
                    let fresh = Fresh { parent: frame, slot, level: at, zeroed };
                    if at - 1 == level {
                        return Ok(Place { frame: blank, fresh: Some(fresh) });
                    }
                    self.wipe(blank, zeroed, 0..0);
                    self.link(blank, &fresh, 0);
                    frame = blank;
                }
            }
            at -= 1;
        }
        if level == 0 {
            self.set_hot(iova, frame);
        }
        Ok(Place { frame, fresh: None })
    }

    pub(crate) fn allocate(&mut self) -> Result<Blank> {
        self.tables.allocate(&self.shared.arena, F::ITEMS_LG2, &*self.quiesce)
    }

    /// Makes sure that the next `count` tables can be allocated.
    pub(crate) fn reserve(&mut self, count: usize) -> Result<()> {
        self.tables.reserve(count, &self.shared.arena, F::ITEMS_LG2, &*self.quiesce)
    }

    /// Zeroes a table that is not linked, except `keep`, and what was noted about it.
    pub(crate) fn wipe(&self, frame: u32, zeroed: bool, keep: core::ops::Range<usize>) {
        if zeroed {
            return;
        }
        let words = self.table(frame);
        for word in words[..keep.start].iter().chain(&words[keep.end..]) {
            word.store(0, Ordering::Relaxed);
        }
        self.shared.arena.touched(frame, F::ITEMS_LG2).store(0, Ordering::Relaxed);
    }

    /// Publishes a table with `used` items.
    pub(crate) fn link(&mut self, frame: u32, fresh: &Fresh, used: u32) {
        let word = F::table(address_of::<F>(frame), fresh.level);
        let slot = u32::try_from(fresh.slot).expect("a table has few items");
        self.tables.link(frame, fresh.parent, slot, used);
        self.table(fresh.parent)[fresh.slot].store(word, Ordering::Release);
    }

    /// Publishes a table that leaves were written to at `keep`.
    pub(crate) fn link_filled(&mut self, frame: u32, fresh: &Fresh, keep: core::ops::Range<usize>) {
        let used = u32::try_from(keep.len()).expect("a table has few items");
        self.wipe(frame, fresh.zeroed, keep);
        self.link(frame, fresh, used);
    }

    /// `range` as far as it lies in the aperture.
    pub(crate) fn clip(&self, range: IovaRange) -> Option<(u64, u64)> {
        let start = range.start().0;
        let last = range.last().0.min(self.last);
        (start <= last).then_some((start, last))
    }
}

impl<F: Format> TableWriter for Writer<F> {
    fn aperture(&self) -> IovaRange {
        IovaRange::closed(Iova(0), Iova(self.last)).expect("an aperture starts at zero")
    }

    fn page_sizes(&self) -> u64 {
        self.sizes
    }

    fn map(&mut self, iova: Iova, runs: &[Run], prot: Prot) -> Result<()> {
        Self::map(self, iova, runs, prot)
    }

    fn unmap(&mut self, range: IovaRange, old: &mut dyn FnMut(Iova, Run)) -> Result<()> {
        Self::unmap(self, range, old)
    }

    fn clear(&mut self, range: IovaRange) {
        Self::clear(self, range);
    }

    fn cut(&mut self, at: Iova) -> Result<()> {
        Self::cut(self, at)
    }

    fn protect(&mut self, range: IovaRange, prot: Prot) -> Result<()> {
        Self::protect(self, range, prot)
    }

    fn cut_aperture(&mut self, last: Iova) -> Result<()> {
        Self::cut_aperture(self, last)
    }

    fn read_dirty(&mut self, range: IovaRange, dirty: Dirty, found: &mut dyn FnMut(IovaRange)) {
        Self::read_dirty(self, range, dirty, found);
    }

    fn set_dirty(&mut self, range: IovaRange) {
        Self::set_dirty(self, range);
    }

    fn reader(&self) -> Arc<dyn TableReader> {
        Arc::<Reader<F>>::clone(&self.shared) as Arc<dyn TableReader>
    }
}
