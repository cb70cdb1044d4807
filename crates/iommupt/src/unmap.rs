//! Unmapping, with and without looking at what is removed.

use core::marker::PhantomData;

use crate::format::{Entry, Format, low_bits};
use crate::page_table::Writer;
use crate::sync::atomic::Ordering;
use crate::sync::sized;
use crate::walk::{frame_of, output};
use crate::{Iova, IovaRange, Pa, Run};
use ioasis_uapi::{Errno, Error, Result};

/// Empty tables that are worth a sweep.
const IDLE_BATCH: usize = sized(64, 2, 1);

/// What becomes of the leaves that are removed.
trait Sink {
    /// Whether it wants to see them.
    const LOOKS: bool;
    fn leaf(&mut self, iova: u64, pa: u64, length: u64);
}

struct Discard;

impl Sink for Discard {
    const LOOKS: bool = false;
    #[inline]
    fn leaf(&mut self, _iova: u64, _pa: u64, _length: u64) {}
}

/// Merges what follows each other.
struct Gather<'a> {
    iova: u64,
    pa: u64,
    /// Zero at the beginning only.
    length: u64,
    old: &'a mut dyn FnMut(Iova, Run),
}

impl Gather<'_> {
    fn flush(&mut self) {
        if self.length > 0 {
            (self.old)(Iova(self.iova), Run { pa: Pa(self.pa), length: self.length });
        }
    }
}

impl Sink for Gather<'_> {
    const LOOKS: bool = true;
    #[inline]
    fn leaf(&mut self, iova: u64, pa: u64, length: u64) {
        if self.iova.wrapping_add(self.length) == iova && self.pa + self.length == pa {
            self.length += length;
        } else {
            self.flush();
            (self.iova, self.pa, self.length) = (iova, pa, length);
        }
    }
}

/// A table and the addresses it translates.
#[derive(Clone, Copy)]
pub(crate) struct Node {
    pub(crate) frame: u32,
    pub(crate) level: u32,
    /// First address.
    pub(crate) base: u64,
}

impl<F: Format> Writer<F> {
    /// Unmaps `range` and hands the old runs, merged and ascending, to `old`.
    ///
    /// # Errors
    ///
    /// `EINVAL` when an edge is no multiple of the smallest page, `ENOMEM` when splitting a leaf
    /// needs a table and there is none; no translation is changed then.
    #[inline]
    pub fn unmap(&mut self, range: IovaRange, old: &mut dyn FnMut(Iova, Run)) -> Result<()> {
        let page = low_bits(F::GRANULE_LG2);
        if range.start().0 & page != 0 || range.last().0 & page != page {
            let at = range.start().0;
            return Err(Error::at(Errno::EINVAL, "not a multiple of the page size", at));
        }
        let Some((start, last)) = self.clip(range) else { return Ok(()) };
        let mut gather = Gather { iova: start, pa: 0, length: 0, old };
        if start >> F::item_lg2(1) == last >> F::item_lg2(1)
            && let Some(frame) = self.hot(start).or_else(|| self.lowest(start))
            && self.ends_on_leaves(frame, start, last)
        {
            self.unmap_leaves(Node { frame, level: 0, base: start }, start, last, &mut gather);
        } else {
            self.cut_both(start, last)?;
            self.unmap_in(Self::ROOT, start, last, &mut gather);
        }
        self.shared.changes.add(range);
        gather.flush();
        self.sweep();
        Ok(())
    }

    /// The level 0 table of `iova`, which is used next; none where a larger leaf or nothing is
    /// mapped.
    fn lowest(&mut self, iova: u64) -> Option<u32> {
        let (mut frame, mut level) = (0, F::TOP_LEVEL);
        while level > 0 {
            let word = self.table(frame)[F::index(iova, level)].load(Ordering::Relaxed);
            let Entry::Table(address) = F::decode(word, level) else { return None };
            frame = frame_of::<F>(address);
            level -= 1;
        }
        self.set_hot(iova, frame);
        Some(frame)
    }

    /// Whether no leaf of several items straddles the edges of a range in one level 0 table.
    #[inline]
    fn ends_on_leaves(&self, frame: u32, start: u64, last: u64) -> bool {
        F::sizes(0) == 1 << F::GRANULE_LG2
            || [start, last].into_iter().all(|at| {
                let word = self.table(frame)[F::index(at, 0)].load(Ordering::Relaxed);
                word == 0 || F::leaf_lg2(word, 0) == F::GRANULE_LG2
            })
    }

    /// Unmaps `range`, whose edges cut no leaf, without looking at what it held.
    ///
    /// # Panics
    ///
    /// In a debug build, if an edge cuts a leaf.
    pub fn clear(&mut self, range: IovaRange) {
        let Some((start, last)) = self.clip(range) else { return };
        debug_assert!(!self.straddled(start), "clear starts inside a leaf");
        debug_assert!(
            last.checked_add(1).is_none_or(|after| !self.straddled(after)),
            "clear ends inside a leaf"
        );
        // A part of one lowest table; a whole one is dropped unread below.
        if start >> F::item_lg2(1) == last >> F::item_lg2(1)
            && last - start != low_bits(F::item_lg2(1))
            && let Some(frame) = self.hot(start).or_else(|| self.lowest(start))
        {
            self.unmap_leaves(Node { frame, level: 0, base: start }, start, last, &mut Discard);
        } else {
            self.unmap_in(Self::ROOT, start, last, &mut Discard);
        }
        self.shared.changes.add(range);
        self.sweep();
    }

    pub(crate) const ROOT: Node = Node { frame: 0, level: F::TOP_LEVEL, base: 0 };

    fn sweep(&mut self) {
        if self.tables.idle() >= IDLE_BATCH {
            self.trim();
        }
    }

    fn unmap_in<S: Sink>(&mut self, node: Node, start: u64, last: u64, sink: &mut S) {
        if node.level == 0 {
            return self.unmap_leaves(node, start, last, sink);
        }
        let item_lg2 = F::item_lg2(node.level);
        let mut removed = 0;
        for slot in F::index(start, node.level)..=F::index(last, node.level) {
            let word = self.table(node.frame)[slot].load(Ordering::Relaxed);
            let base = node.base + ((slot as u64) << item_lg2);
            match F::decode(word, node.level) {
                Entry::Empty => {}
                Entry::Leaf => {
                    self.table(node.frame)[slot].store(0, Ordering::Relaxed);
                    removed += 1;
                    sink.leaf(base, output::<F>(word, node.level, base), 1 << item_lg2);
                }
                Entry::Table(address) => {
                    let child = Node { frame: frame_of::<F>(address), level: node.level - 1, base };
                    let end = base | low_bits(item_lg2);
                    if start <= base && end <= last {
                        self.table(node.frame)[slot].store(0, Ordering::Relaxed);
                        removed += 1;
                        self.drop_tree(child, sink);
                    } else {
                        self.unmap_in(child, start.max(base), last.min(end), sink);
                    }
                }
            }
        }
        if removed > 0 {
            self.tables.sub(node.frame, removed);
        }
    }

    #[inline]
    fn unmap_leaves<S: Sink>(&mut self, node: Node, start: u64, last: u64, sink: &mut S) {
        let first = F::index(start, 0);
        let mut removed = 0;
        let mut iova = start & !low_bits(F::GRANULE_LG2);
        for word in &self.table(node.frame)[first..=F::index(last, 0)] {
            let old = word.load(Ordering::Relaxed);
            if F::decode(old, 0) != Entry::Empty {
                word.store(0, Ordering::Relaxed);
                removed += 1;
                sink.leaf(iova, output::<F>(old, 0, iova), 1 << F::GRANULE_LG2);
            }
            iova = iova.wrapping_add(1 << F::GRANULE_LG2);
        }
        if removed > 0 {
            self.tables.sub(node.frame, removed);
        }
    }

    /// Retires a table that was unlinked, with everything below it.
    fn drop_tree<S: Sink>(&mut self, node: Node, sink: &mut S) {
        if node.level == 0 {
            if S::LOOKS {
                self.look_at_leaves(node, sink);
            }
            return self.retire(node.frame);
        }
        let item_lg2 = F::item_lg2(node.level);
        let mut left = self.tables.meta(node.frame).used;
        for slot in 0..1_usize << F::ITEMS_LG2 {
            if left == 0 {
                break;
            }
            let word = self.table(node.frame)[slot].load(Ordering::Relaxed);
            let base = node.base + ((slot as u64) << item_lg2);
            match F::decode(word, node.level) {
                Entry::Empty => continue,
                Entry::Leaf => {
                    sink.leaf(base, output::<F>(word, node.level, base), 1 << item_lg2);
                }
                Entry::Table(address) => {
                    let frame = frame_of::<F>(address);
                    self.drop_tree(Node { frame, level: node.level - 1, base }, sink);
                }
            }
            left -= 1;
        }
        self.retire(node.frame);
    }

    /// Hands on the leaves of a level 0 table that was unlinked. Most continue the one before: then
    /// the word is the one that would have been made for it.
    fn look_at_leaves<S: Sink>(&self, node: Node, sink: &mut S) {
        let mut run = Same::<F>::starting(node.base);
        let (chunks, _) = self.table(node.frame).as_chunks::<CHUNK>();
        for chunk in chunks {
            let words = chunk.each_ref().map(|word| word.load(Ordering::Relaxed));
            if !run.takes_all(&words) {
                words.iter().for_each(|&word| run.take(word, sink));
            }
        }
        run.flush(sink);
    }
}

/// Words that are compared together. A table has a multiple of them.
const CHUNK: usize = sized(8, 8, 2);

/// Leaves that follow each other with the same attributes.
struct Same<F> {
    iova: u64,
    pa: u64,
    /// Zero where nothing was mapped.
    length: u64,
    attrs: u64,
    format: PhantomData<F>,
}

impl<F: Format> Same<F> {
    const PAGE: u64 = 1 << F::GRANULE_LG2;

    const fn starting(iova: u64) -> Self {
        Self { iova, pa: 0, length: 0, attrs: 0, format: PhantomData }
    }

    /// Whether all `words` continue it; then it is longer by them.
    #[inline]
    fn takes_all(&mut self, words: &[u64; CHUNK]) -> bool {
        let span = Self::PAGE * CHUNK as u64;
        let next = self.pa + self.length;
        if self.length == 0 || next > low_bits(F::OA_LG2) - (span - 1) {
            return false;
        }
        let other = (0..).zip(words).fold(0, |other, (n, word)| {
            other | (word ^ F::leaf(next + n * Self::PAGE, 0, F::GRANULE_LG2, self.attrs))
        });
        if other == 0 {
            self.length += span;
        }
        other == 0
    }

    fn take<S: Sink>(&mut self, word: u64, sink: &mut S) {
        let oa = self.pa + self.length;
        let fits = self.length > 0 && oa <= low_bits(F::OA_LG2);
        if fits && word == F::leaf(oa, 0, F::GRANULE_LG2, self.attrs) {
            self.length += Self::PAGE;
            return;
        }
        self.flush(sink);
        let next = self.iova.wrapping_add(self.length);
        if F::decode(word, 0) == Entry::Empty {
            *self = Self::starting(next.wrapping_add(Self::PAGE));
        } else {
            let (pa, attrs) = (output::<F>(word, 0, next), F::attrs_of(word, 0));
            *self = Self { iova: next, pa, length: Self::PAGE, attrs, format: PhantomData };
        }
    }

    fn flush<S: Sink>(&self, sink: &mut S) {
        if self.length > 0 {
            sink.leaf(self.iova, self.pa, self.length);
        }
    }
}
