//! Reading, clearing and setting dirty state.
//!
//! The harvest looks only where the marks that readers leave say that a leaf became dirty
//! ([`walk`](crate::walk)). A translation that was used before
//! [`read_dirty`](crate::TableWriter::read_dirty) with [`Dirty::Clear`](crate::Dirty::Clear) may
//! still write: who reports the result first waits ([`Quiesce::wait`](crate::Quiesce::wait)) and
//! drops cached translations.

use crate::format::{Entry, Format, low_bits};
use crate::page_table::Writer;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::unmap::Node;
use crate::walk::frame_of;
use crate::{Dirty, Iova, IovaRange};

/// What is asked, and the range found last.
struct Harvest<'a> {
    start: u64,
    last: u64,
    dirty: Dirty,
    found: &'a mut dyn FnMut(IovaRange),
    /// Not yet handed on.
    pending: Option<(u64, u64)>,
    /// Whether anything was found.
    any: bool,
}

impl Harvest<'_> {
    fn add(&mut self, start: u64, last: u64) {
        let (start, last) = (start.max(self.start), last.min(self.last));
        self.any = true;
        match &mut self.pending {
            Some((_, before)) if before.checked_add(1) == Some(start) => *before = last,
            // Several items of one leaf say the same.
            Some((first, before)) if *first <= start && last <= *before => {}
            _ => {
                self.flush();
                self.pending = Some((start, last));
            }
        }
    }

    fn flush(&mut self) {
        if let Some((start, last)) = self.pending.take()
            && let Ok(range) = IovaRange::closed(Iova(start), Iova(last))
        {
            (self.found)(range);
        }
    }

    const fn covers(&self, start: u64, last: u64) -> bool {
        self.start <= start && last <= self.last
    }
}

/// Words that are looked at together: a line of a cache.
const CHUNK: usize = 8;

/// Bit `n` set: the word `n` says that it is dirty. All are loaded before any is judged, and most
/// often none is.
#[inline(always)]
fn dirty_among<F: Format>(words: &[AtomicU64]) -> u32 {
    let any = words.iter().fold(false, |any, word| any | F::is_dirty(word.load(Ordering::Acquire)));
    if !any {
        return 0;
    }
    let bit =
        |(n, word): (u32, &AtomicU64)| u32::from(F::is_dirty(word.load(Ordering::Acquire))) << n;
    (0..).zip(words).map(bit).fold(0, |all, bit| all | bit)
}

impl<F: Format> Writer<F> {
    /// Calls `found` for every dirty range inside `range`, ascending and merged.
    ///
    /// A dirty leaf that straddles an edge is split before its part is cleared; without memory for
    /// that it stays dirty, so that nothing is lost.
    pub fn read_dirty(&mut self, range: IovaRange, dirty: Dirty, found: &mut dyn FnMut(IovaRange)) {
        let Some((start, last)) = self.clip(range) else { return };
        if dirty == Dirty::Clear {
            for edge in [Some(start), last.checked_add(1)].into_iter().flatten() {
                if self.straddled_dirty(edge) {
                    let _ = self.cut(Iova(edge));
                }
            }
        }
        let mut harvest = Harvest { start, last, dirty, found, pending: None, any: false };
        self.harvest(Self::ROOT, &mut harvest);
        if harvest.any && dirty == Dirty::Clear {
            // A cached translation would write without marking again.
            self.shared.changes.add(range);
        }
        harvest.flush();
    }

    /// Marks every mapped leaf inside `range` dirty.
    pub fn set_dirty(&mut self, range: IovaRange) {
        if let Some((start, last)) = self.clip(range) {
            self.dirty_in(Self::ROOT, start, last);
        }
    }

    fn straddled_dirty(&self, at: u64) -> bool {
        self.straddled(at)
            && self.shared.find(at).is_ok_and(|spot| {
                let lg2 = F::leaf_lg2(spot.word, spot.level);
                let first = at & !low_bits(lg2);
                let items = 1 << (lg2 - F::item_lg2(spot.level));
                let slot = F::index(first, spot.level);
                self.table(frame_of::<F>(spot.table))[slot..slot + items]
                    .iter()
                    .any(|word| F::is_dirty(word.load(Ordering::Relaxed)))
            })
    }

    fn harvest(&self, node: Node, harvest: &mut Harvest<'_>) {
        let item_lg2 = F::item_lg2(node.level);
        let items_lg2 = if node.frame == 0 { F::ROOT_ITEMS_LG2 } else { F::ITEMS_LG2 };
        let end = node.base | low_bits(item_lg2 + items_lg2);
        let touched = self.shared.arena.touched(node.frame, F::ITEMS_LG2);
        if touched.load(Ordering::Acquire) == 0 {
            return;
        }
        if harvest.dirty == Dirty::Clear && harvest.covers(node.base, end.min(self.last)) {
            touched.swap(0, Ordering::AcqRel);
        }
        let first = F::index(harvest.start.max(node.base), node.level);
        let last = F::index(harvest.last.min(end), node.level);
        // A write marks one item for its whole leaf: look at all items of a leaf that the range
        // only touches.
        let (first, last) =
            (first & !(self.items_of(node, first) - 1), last | (self.items_of(node, last) - 1));
        if node.level == 0 {
            return self.harvest_leaves(node, first, last, harvest);
        }
        for slot in first..=last {
            let word = self.table(node.frame)[slot].load(Ordering::Acquire);
            let base = node.base + ((slot as u64) << item_lg2);
            match F::decode(word, node.level) {
                Entry::Table(address) => {
                    let frame = frame_of::<F>(address);
                    self.harvest(Node { frame, level: node.level - 1, base }, harvest);
                }
                Entry::Leaf if F::is_dirty(word) => self.harvest_leaf(node, slot, word, harvest),
                Entry::Leaf | Entry::Empty => {}
            }
        }
    }

    /// How many items the leaf at `slot` has, a power of two; 1 where no leaf is.
    fn items_of(&self, node: Node, slot: usize) -> usize {
        let word = self.table(node.frame)[slot].load(Ordering::Acquire);
        match F::decode(word, node.level) {
            Entry::Leaf => 1 << (F::leaf_lg2(word, node.level) - F::item_lg2(node.level)),
            Entry::Table(_) | Entry::Empty => 1,
        }
    }

    fn harvest_leaves(&self, node: Node, first: usize, last: usize, harvest: &mut Harvest<'_>) {
        let words = &self.table(node.frame)[first..=last];
        let (chunks, rest) = words.as_chunks::<CHUNK>();
        let mut slot = first;
        for chunk in chunks {
            let dirty = dirty_among::<F>(chunk);
            if dirty != 0 {
                self.harvest_some(node, slot, dirty, harvest);
            }
            slot += CHUNK;
        }
        self.harvest_some(node, slot, dirty_among::<F>(rest), harvest);
    }

    /// Harvests the leaves from `first` on whose bit is set.
    fn harvest_some(&self, node: Node, first: usize, dirty: u32, harvest: &mut Harvest<'_>) {
        let mut left = dirty;
        while left != 0 {
            let slot = first + left.trailing_zeros() as usize;
            left &= left - 1;
            let word = self.table(node.frame)[slot].load(Ordering::Acquire);
            if F::decode(word, 0) == Entry::Leaf && F::is_dirty(word) {
                self.harvest_leaf(node, slot, word, harvest);
            }
        }
    }

    /// Reports the dirty leaf that `slot` belongs to and clears all its items.
    fn harvest_leaf(&self, node: Node, slot: usize, word: u64, harvest: &mut Harvest<'_>) {
        let item_lg2 = F::item_lg2(node.level);
        let leaf_lg2 = F::leaf_lg2(word, node.level);
        let iova = node.base + ((slot as u64) << item_lg2);
        let (start, last) = (iova & !low_bits(leaf_lg2), iova | low_bits(leaf_lg2));
        harvest.add(start, last);
        if harvest.dirty == Dirty::Keep || !harvest.covers(start, last) {
            return;
        }
        let first = F::index(start, node.level);
        let items = 1 << (leaf_lg2 - item_lg2);
        let places = &self.table(node.frame)[first..first + items];
        if let [place] = places
            && place
                .compare_exchange(word, F::make_clean(word), Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        {
            return;
        }
        for word in places {
            let _ = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                F::is_dirty(word).then(|| F::make_clean(word))
            });
        }
    }

    fn dirty_in(&mut self, node: Node, start: u64, last: u64) {
        let item_lg2 = F::item_lg2(node.level);
        for slot in F::index(start, node.level)..=F::index(last, node.level) {
            let base = node.base + ((slot as u64) << item_lg2);
            let place = &self.table(node.frame)[slot];
            let word = place.load(Ordering::Acquire);
            match F::decode(word, node.level) {
                Entry::Empty => {}
                Entry::Leaf => {
                    let _ = place.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                        (!F::is_dirty(word)).then(|| F::make_dirty(word))
                    });
                    self.shared.touch(base, node.level);
                }
                Entry::Table(address) => {
                    let frame = frame_of::<F>(address);
                    let child = Node { frame, level: node.level - 1, base };
                    let end = base | low_bits(item_lg2);
                    self.dirty_in(child, start.max(base), last.min(end));
                }
            }
        }
    }
}
