//! Splitting a leaf that straddles an edge.

use crate::format::{Entry, Format, low_bits};
use crate::page_table::Writer;
use crate::sync::atomic::Ordering;
use crate::tables::Blank;
use crate::unmap::Node;
use crate::walk::{BROKEN, Spot, address_of, frame_of, output};
use crate::{Iova, IovaRange, Prot};
use ioasis_uapi::Result;

impl<F: Format> Writer<F> {
    /// Splits whatever leaf straddles `at`; translations stay as they are.
    ///
    /// # Errors
    ///
    /// `ENOMEM` without table memory.
    pub fn cut(&mut self, at: Iova) -> Result<()> {
        if at.0 > self.shared.last {
            return Ok(());
        }
        while let Ok(spot) = self.shared.find(at.0) {
            let leaf_lg2 = F::leaf_lg2(spot.word, spot.level);
            if at.0 & low_bits(leaf_lg2) == 0 || spot.level == 0 && leaf_lg2 == F::GRANULE_LG2 {
                break;
            }
            if leaf_lg2 > F::item_lg2(spot.level) {
                self.split_group(at.0, spot, leaf_lg2);
            } else {
                self.split_item(at.0, spot)?;
            }
        }
        Ok(())
    }

    /// Gives every mapped leaf inside `range` the permissions `prot`; leaves that straddle an edge are split first.
    /// Dirty state stays.
    ///
    /// # Errors
    ///
    /// `ENOMEM` when splitting a leaf needs a table and there is none, `EOPNOTSUPP` for a `prot` the format cannot say. No
    /// permission is changed then.
    pub fn protect(&mut self, range: IovaRange, prot: Prot) -> Result<()> {
        let attrs = F::attrs(prot)?;
        let Some((start, last)) = self.clip(range) else { return Ok(()) };
        self.cut_both(start, last)?;
        self.protect_in(Self::ROOT, start, last, attrs);
        self.shared.changes.add(range);
        Ok(())
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
        self.cut(Iova(start))?;
        last.checked_add(1).map_or(Ok(()), |after| self.cut(Iova(after)))
    }

    /// Whether a leaf begins before `at` and reaches past it.
    pub(crate) fn straddled(&self, at: u64) -> bool {
        self.shared.find(at).is_ok_and(|spot| {
            at & low_bits(F::leaf_lg2(spot.word, spot.level)) & !low_bits(F::GRANULE_LG2) != 0
        })
    }

    /// Turns a leaf of several items into as many leaves. Each item is exchanged by itself: a reader finds the old
    /// or the smaller leaf, and both translate alike; or, where the manual wants a break, waits for the smaller one.
    fn split_group(&mut self, at: u64, spot: Spot, leaf_lg2: u32) {
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
            let leaf = F::make_clean(F::leaf(oa, spot.level, item_lg2, attrs));
            let _ = word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |old| {
                let dirty = dirty || F::is_dirty(old);
                Some(if dirty { F::make_dirty(leaf) } else { leaf })
            });
        }
    }

    /// Replaces a leaf by a table of smaller leaves.
    fn split_item(&mut self, at: u64, spot: Spot) -> Result<()> {
        let Blank { frame, .. } = match self.allocate() {
            Ok(blank) => blank,
            // Empty tables may hold the memory that is wanted.
            Err(_) if self.trim() => self.allocate()?,
            Err(error) => return Err(error),
        };
        let level = spot.level - 1;
        let parent = frame_of::<F>(spot.table);
        let slot = F::index(at, spot.level);
        let place = &self.table(parent)[slot];
        let mut old = spot.word;
        if F::BREAK_BEFORE_MAKE {
            old = place.swap(BROKEN, Ordering::AcqRel);
        }
        loop {
            let dirty = self.fill_from(frame, old, spot.level);
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
        Ok(())
    }

    /// Fills a table with what the leaf `old`, found one level higher, maps; says whether that was dirty.
    fn fill_from(&self, frame: u32, old: u64, level: u32) -> bool {
        assert_eq!(F::decode(old, level), Entry::Leaf, "only leaves are split");
        let attrs = F::attrs_of(old, level);
        let below = level - 1;
        let mut oa = F::oa(old, level);
        for word in self.table(frame) {
            let leaf = F::leaf(oa, below, F::item_lg2(below), attrs);
            word.store(leaf, Ordering::Relaxed);
            oa += 1 << F::item_lg2(below);
        }
        F::is_dirty(old)
    }
}
