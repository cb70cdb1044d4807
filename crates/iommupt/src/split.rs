//! Splitting a leaf that straddles an edge.

use crate::format::{Entry, Format, low_bits};
use crate::page_table::Writer;
use crate::sync::atomic::Ordering;
use crate::tables::Blank;
use crate::unmap::Node;
use crate::walk::{BROKEN, Spot, address_of, frame_of, output};
use crate::{Iova, IovaRange, Prot};
use ioasis_uapi::{Errno, Error, Result};

impl<F: Format> Writer<F> {
    /// Splits whatever leaf straddles `at`; translations stay as they are.
    ///
    /// # Errors
    ///
    /// `ENOMEM` without table memory.
    pub fn cut(&mut self, at: Iova) -> Result<()> {
        self.cut_edges([Some(at.0), None])
    }

    /// Splits what straddles an edge, for all edges or, without memory for all, for none.
    fn cut_edges(&mut self, edges: [Option<u64>; 2]) -> Result<()> {
        let edges = edges.map(|edge| edge.filter(|&at| at <= self.last && self.straddled(at)));
        if edges == [None, None] {
            return Ok(());
        }
        let mut wanted = self.tables_to_cut(edges[0], None);
        wanted += self.tables_to_cut(edges[1], edges[0]);
        if let Err(error) = self.reserve(wanted) {
            // Empty tables may hold the memory that is wanted.
            if !self.trim() {
                return Err(error);
            }
            self.reserve(wanted)?;
        }
        edges.into_iter().flatten().for_each(|at| self.cut_reserved(at));
        Ok(())
    }

    /// How many tables it takes to split what straddles `at`, besides those for `other` that both
    /// share.
    fn tables_to_cut(&self, at: Option<u64>, other: Option<u64>) -> usize {
        let Some(at) = at else { return 0 };
        let Ok(spot) = self.shared.find(at) else { return 0 };
        let together = |lg2: u32| other.is_some_and(|other| at >> lg2 == other >> lg2);
        let inside = |address: u64, level: u32| address & low_bits(F::item_lg2(level)) != 0;
        let pair_lg2 = F::item_lg2(spot.level) + 1;
        let pair = F::leaf_lg2(spot.word, spot.level) >= pair_lg2 && !Self::leaf_of_one(spot.level);
        let lowest_of_pair = if pair { spot.level } else { spot.level + 1 };
        // An item that an edge lies inside of becomes a table; of a pair that has no leaves of one
        // item both do.
        let mut tables = if pair && !together(pair_lg2) { 2 } else { 0 };
        for level in 1..lowest_of_pair {
            let done =
                together(F::item_lg2(level)) && other.is_some_and(|other| inside(other, level));
            tables += usize::from(inside(at, level) && !done);
        }
        tables
    }

    /// Whether a leaf of one item may stand at `level`.
    fn leaf_of_one(level: u32) -> bool {
        F::sizes(level) >> F::item_lg2(level) & 1 == 1
    }

    /// Splits what straddles `at`; its tables were reserved.
    fn cut_reserved(&mut self, at: u64) {
        while let Ok(spot) = self.shared.find(at) {
            let leaf_lg2 = F::leaf_lg2(spot.word, spot.level);
            let item_lg2 = F::item_lg2(spot.level);
            if at & low_bits(leaf_lg2) == 0 || spot.level == 0 && leaf_lg2 == item_lg2 {
                break;
            }
            if leaf_lg2 == item_lg2 {
                self.split_item(at, spot, false);
            } else if Self::leaf_of_one(spot.level) {
                self.split_group(at, spot, item_lg2);
            } else if leaf_lg2 > item_lg2 + 1 {
                self.split_group(at, spot, leaf_lg2 - 1);
            } else {
                self.split_pair(at, spot);
            }
        }
    }

    /// Replaces a leaf of two items, each of which is too small or too large for a leaf of its own,
    /// by two tables.
    fn split_pair(&mut self, at: u64, spot: Spot) {
        let first = at & !low_bits(F::item_lg2(spot.level) + 1);
        let items = [first, first | 1 << F::item_lg2(spot.level)];
        let words = items.map(|item| {
            self.table(frame_of::<F>(spot.table))[F::index(item, spot.level)]
                .load(Ordering::Relaxed)
        });
        let dirty = words.iter().any(|&word| F::is_dirty(word));
        for (item, word) in items.into_iter().zip(words) {
            self.split_item(item, Spot { word, ..spot }, dirty);
        }
    }

    /// Gives every mapped leaf inside `range` the permissions `prot`; leaves that straddle an edge
    /// are split first. Dirty state stays.
    ///
    /// # Errors
    ///
    /// `ENOMEM` when splitting a leaf needs a table and there is none, `EOPNOTSUPP` for a `prot`
    /// the format cannot say. No permission is changed then.
    pub fn protect(&mut self, range: IovaRange, prot: Prot) -> Result<()> {
        let attrs = F::attrs(prot)?;
        let Some((start, last)) = self.clip(range) else { return Ok(()) };
        self.cut_both(start, last)?;
        self.protect_in(Self::ROOT, start, last, attrs);
        self.shared.changes.add(range);
        Ok(())
    }

    /// Makes the aperture end at `last`, for IOVAs that this table is never to translate.
    ///
    /// # Errors
    ///
    /// `EINVAL` when `last` is not the last byte of a page or lies outside the aperture, `EBUSY`
    /// when something beyond is mapped.
    pub fn cut_aperture(&mut self, last: Iova) -> Result<()> {
        let page = low_bits(F::GRANULE_LG2);
        if last.0 & page != page || last.0 > self.last {
            return Err(Error::at(Errno::EINVAL, "the aperture cannot end there", last.0));
        }
        if let Some(after) = last.0.checked_add(1).filter(|&after| after <= self.last)
            && let Some(iova) = self.first_leaf(Self::ROOT, after)
        {
            return Err(Error::at(Errno::EBUSY, "mapped beyond the aperture", iova));
        }
        self.last = last.0;
        Ok(())
    }

    /// The first address from `start` on that a leaf maps.
    fn first_leaf(&self, node: Node, start: u64) -> Option<u64> {
        let item_lg2 = F::item_lg2(node.level);
        let words = &self.table(node.frame)[F::index(start.max(node.base), node.level)..];
        let first = F::index(start.max(node.base), node.level) as u64;
        (first..).zip(words).find_map(|(slot, word)| {
            let word = word.load(Ordering::Relaxed);
            let base = node.base + (slot << item_lg2);
            match F::decode(word, node.level) {
                Entry::Empty => None,
                Entry::Leaf => Some(base.max(start)),
                Entry::Table(address) => {
                    let frame = frame_of::<F>(address);
                    self.first_leaf(Node { frame, level: node.level - 1, base }, start)
                }
            }
        })
    }

    fn protect_in(&mut self, node: Node, start: u64, last: u64, attrs: u64) {
        let item_lg2 = F::item_lg2(node.level);
        for slot in F::index(start, node.level)..=F::index(last, node.level) {
            let base = node.base + ((slot as u64) << item_lg2);
            let place = &self.table(node.frame)[slot];
            match F::decode(place.load(Ordering::Relaxed), node.level) {
                Entry::Empty => {}
                Entry::Leaf => {
                    let _ = place.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |old| {
                        let leaf_lg2 = F::leaf_lg2(old, node.level);
                        let oa = output::<F>(old, node.level, base);
                        let leaf = F::leaf(oa, node.level, leaf_lg2, attrs);
                        Some(if F::is_dirty(old) { F::make_dirty(leaf) } else { leaf })
                    });
                }
                Entry::Table(address) => {
                    let frame = frame_of::<F>(address);
                    let child = Node { frame, level: node.level - 1, base };
                    let end = base | low_bits(item_lg2);
                    self.protect_in(child, start.max(base), last.min(end), attrs);
                }
            }
        }
    }

    pub(crate) fn cut_both(&mut self, start: u64, last: u64) -> Result<()> {
        self.cut_edges([Some(start), last.checked_add(1)])
    }

    /// Whether a leaf begins before `at` and reaches past it.
    pub(crate) fn straddled(&self, at: u64) -> bool {
        self.shared.find(at).is_ok_and(|spot| {
            at & low_bits(F::leaf_lg2(spot.word, spot.level)) & !low_bits(F::GRANULE_LG2) != 0
        })
    }

    /// Turns a leaf of several items into leaves of `1 << smaller` bytes. Each item is exchanged by
    /// itself: a reader finds the old or the smaller leaf, and both translate alike; or, where the
    /// manual wants a break, waits for the smaller one.
    fn split_group(&mut self, at: u64, spot: Spot, smaller: u32) {
        let leaf_lg2 = F::leaf_lg2(spot.word, spot.level);
        let item_lg2 = F::item_lg2(spot.level);
        let first = at & !low_bits(leaf_lg2);
        let slot = F::index(first, spot.level);
        let words = &self.table(frame_of::<F>(spot.table))[slot..];
        // A device may have marked one item for the whole leaf.
        let group = &words[..1 << (leaf_lg2 - item_lg2)];
        let mut dirty = false;
        for word in group {
            let word = if F::BREAK_BEFORE_MAKE {
                word.swap(BROKEN, Ordering::AcqRel)
            } else {
                word.load(Ordering::Relaxed)
            };
            dirty |= F::is_dirty(word);
        }
        let attrs = F::attrs_of(spot.word, spot.level);
        let base = F::oa(spot.word, spot.level);
        for (item, word) in group.iter().enumerate() {
            let oa = base + ((item as u64) << item_lg2);
            let leaf = F::make_clean(F::leaf(oa, spot.level, smaller, attrs));
            let _ = word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |old| {
                let dirty = dirty || F::is_dirty(old);
                Some(if dirty { F::make_dirty(leaf) } else { leaf })
            });
        }
    }

    /// Replaces an item of a leaf by a table of smaller leaves, dirty if it is or `was_dirty`.
    fn split_item(&mut self, at: u64, spot: Spot, was_dirty: bool) {
        let Blank { frame, .. } = self.allocate().expect("the table was reserved");
        let level = spot.level - 1;
        let parent = frame_of::<F>(spot.table);
        let slot = F::index(at, spot.level);
        let place = &self.table(parent)[slot];
        let mut old = spot.word;
        if F::BREAK_BEFORE_MAKE {
            old = place.swap(BROKEN, Ordering::AcqRel);
        }
        loop {
            let old_or_dirty = if was_dirty { F::make_dirty(old) } else { old };
            let dirty = self.fill_from(frame, at, Spot { word: old_or_dirty, ..spot });
            // Before the table is seen: the harvest skips what is not touched.
            let touched = self.shared.arena.touched(frame, F::ITEMS_LG2);
            touched.store(u8::from(dirty), Ordering::Relaxed);
            let table = F::table(address_of::<F>(frame), spot.level);
            let expected = if F::BREAK_BEFORE_MAKE { BROKEN } else { old };
            match place.compare_exchange(expected, table, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                // A reader marked it dirty.
                Err(now) => old = now,
            }
        }
        // The leaf gave its item to the table.
        self.tables.sub_for_table(parent);
        let slot = u32::try_from(slot).expect("a table has few items");
        self.tables.link(frame, parent, slot, 1 << F::ITEMS_LG2);
        if level == 0 {
            self.set_hot(at, frame);
        }
    }

    /// Fills a table with what the item of `at`, one level higher, maps; says whether that was
    /// dirty.
    fn fill_from(&self, frame: u32, at: u64, spot: Spot) -> bool {
        let (old, level) = (spot.word, spot.level);
        assert_eq!(F::decode(old, level), Entry::Leaf, "only leaves are split");
        let attrs = F::attrs_of(old, level);
        let below = level - 1;
        let mut oa = output::<F>(old, level, at & !low_bits(F::item_lg2(level)));
        for word in self.table(frame) {
            let leaf = F::leaf(oa, below, F::item_lg2(below), attrs);
            word.store(leaf, Ordering::Relaxed);
            oa += 1 << F::item_lg2(below);
        }
        F::is_dirty(old)
    }
}
