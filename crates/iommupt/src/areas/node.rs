//! A node: items in ascending order, each a range with a bound of the holes inside it.

use crate::{Iova, IovaRange};

/// Items of a node: a search and an insertion touch few cache lines, a million areas make five levels.
pub(super) const NODE_ITEMS: usize = 16;

/// An area in a leaf, a subtree above.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    /// First address.
    pub(super) first: u64,
    /// Last address.
    pub(super) last: u64,
    /// No hole inside has more bytes; zero in an area.
    pub(super) hole: u64,
    /// The node; zero in an area.
    pub(super) id: u32,
}

impl Item {
    pub(super) fn range(self) -> IovaRange {
        IovaRange::closed(Iova(self.first), Iova(self.last)).expect("an item is not empty")
    }
}

/// Items stay where they were put and a permutation orders them, so that an insertion or a removal moves none: moving a few
/// of sixteen costs more mispredicted branches than a search does.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Node {
    /// In a free place: the largest number, so that a search counts it among what follows.
    lasts: [u64; NODE_ITEMS],
    firsts: [u64; NODE_ITEMS],
    /// Four bits a slot: the place of the item. From `len` on, the places that are free.
    order: u64,
    len: u32,
    /// Whether `holes` was written to; in a leaf it never is.
    holed: bool,
    ids: [u32; NODE_ITEMS],
    holes: [u64; NODE_ITEMS],
}

/// Bits of a place in the order.
const PLACE_BITS: usize = 4;
const PLACE_MASK: u64 = NODE_ITEMS as u64 - 1;

impl Node {
    pub(super) const EMPTY: Self = Self {
        order: 0xfedc_ba98_7654_3210,
        len: 0,
        holed: false,
        ids: [0; NODE_ITEMS],
        lasts: [u64::MAX; NODE_ITEMS],
        firsts: [0; NODE_ITEMS],
        holes: [0; NODE_ITEMS],
    };

    #[inline]
    pub(super) const fn len(&self) -> usize {
        self.len as usize
    }

    /// Where the item of `slot` lies.
    #[inline]
    pub(super) const fn place(&self, slot: usize) -> usize {
        ((self.order >> (PLACE_BITS * (slot % NODE_ITEMS))) & PLACE_MASK) as usize
    }

    #[inline]
    pub(super) const fn id(&self, slot: usize) -> u32 {
        self.ids[self.place(slot)]
    }

    #[inline]
    const fn first(&self, slot: usize) -> u64 {
        self.firsts[self.place(slot)]
    }

    #[inline]
    const fn last(&self, slot: usize) -> u64 {
        self.lasts[self.place(slot)]
    }

    /// The first slot whose last address is not below `at`.
    #[inline]
    pub(super) fn lower_bound(&self, at: u64) -> usize {
        // The borrow of `last - at`, in steps that the processor does for several at once.
        let below = self.lasts.iter().fold(0, |below, &last| {
            below + (((!last & at) | (!(last ^ at) & last.wrapping_sub(at))) >> 63)
        });
        #[expect(clippy::cast_possible_truncation, reason = "at most 16")]
        let below = below as usize;
        below
    }

    /// First and last address. The node is not empty.
    #[inline]
    pub(super) fn ends(&self) -> (u64, u64) {
        (self.first(0), self.last(self.len() - 1))
    }

    /// Whether `at` is not below the first address, nor above the last one if another node follows. The node is not empty.
    #[inline]
    pub(super) fn spans(&self, at: u64, is_last: bool) -> bool {
        let (first, last) = self.ends();
        first <= at && (at <= last || is_last)
    }

    /// Sets the addresses of an item; whether they changed.
    #[inline]
    pub(super) fn set_ends(&mut self, slot: usize, first: u64, last: u64) -> bool {
        let place = self.place(slot);
        let moved = self.firsts[place] != first || self.lasts[place] != last;
        self.firsts[place] = first;
        self.lasts[place] = last;
        moved
    }

    /// Raises the bound of an item; whether it was lower.
    #[inline]
    pub(super) fn raise(&mut self, slot: usize, hole: u64) -> bool {
        let place = self.place(slot);
        let raised = self.holes[place] < hole;
        self.lower(slot, self.holes[place].max(hole));
        raised
    }

    /// Corrects the bound of an item.
    #[inline]
    pub(super) fn lower(&mut self, slot: usize, hole: u64) {
        if self.holed || hole != 0 {
            self.holed = true;
            self.holes[self.place(slot)] = hole;
        }
    }

    /// The hole before the item at `slot`, if it and another stand there.
    #[inline]
    pub(super) fn hole_before(&self, slot: usize) -> u64 {
        if slot == 0 || slot >= self.len() {
            return 0;
        }
        self.first(slot) - self.last(slot - 1) - 1
    }

    /// The larger of the holes before and after the item at `slot`.
    #[inline]
    pub(super) fn holes_beside(&self, slot: usize) -> u64 {
        self.hole_before(slot).max(self.hole_before(slot + 1))
    }

    #[inline]
    pub(super) fn get(&self, slot: usize) -> Option<Item> {
        (slot < self.len()).then(|| self.item(slot))
    }

    #[inline]
    pub(super) const fn item(&self, slot: usize) -> Item {
        let place = self.place(slot);
        let hole = if self.holed { self.holes[place] } else { 0 };
        Item { first: self.firsts[place], last: self.lasts[place], hole, id: self.ids[place] }
    }

    /// Puts `item` at `slot`.
    #[inline]
    pub(super) fn set(&mut self, slot: usize, item: Item) {
        let place = self.place(slot);
        self.firsts[place] = item.first;
        self.lasts[place] = item.last;
        self.ids[place] = item.id;
        self.lower(slot, item.hole);
    }

    /// Inserts an item at `slot`. The node is not full.
    #[inline]
    pub(super) fn insert(&mut self, slot: usize, item: Item) {
        let len = self.len();
        assert!(slot <= len && len < NODE_ITEMS, "there is room");
        let place = self.place(len) as u64;
        // The places from `slot` to `len` go one slot up, the free one comes before them.
        let (below, above) = (low_places(slot), !low_places(len + 1));
        let moved = (self.order << PLACE_BITS) & !above & !low_places(slot + 1);
        let placed = place << (PLACE_BITS * slot);
        self.order = (self.order & (below | above)) | moved | placed;
        self.len += 1;
        self.set(slot, item);
    }

    /// Removes the item at `slot`.
    #[inline]
    pub(super) fn remove(&mut self, slot: usize) {
        let last = self.len() - 1;
        assert!(slot <= last, "there is an item");
        let place = self.place(slot);
        let (below, above) = (low_places(slot), !low_places(last + 1));
        let moved = (self.order >> PLACE_BITS) & low_places(last) & !below;
        let freed = (place as u64) << (PLACE_BITS * last);
        self.order = (self.order & (below | above)) | moved | freed;
        self.len -= 1;
        self.lasts[place] = u64::MAX;
    }

    /// The item that stands for this node in its parent. The node is not empty.
    #[inline]
    pub(super) fn summary(&self, id: u32) -> Item {
        let (first, last) = self.ends();
        let mut hole = 0;
        for slot in 0..self.len() {
            hole = hole.max(self.hole_before(slot)).max(self.item(slot).hole);
        }
        Item { first, last, hole, id }
    }
}

/// The bits of the first `slots` places.
#[inline]
const fn low_places(slots: usize) -> u64 {
    if slots >= NODE_ITEMS { u64::MAX } else { (1 << (PLACE_BITS * slots)) - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_keeps_its_order_through_every_insertion_and_removal() {
        let item = |n: u64| Item { first: 10 * n, last: 10 * n + 5, hole: n, id: 0 };
        let mut node = Node::EMPTY;
        let mut model: alloc::vec::Vec<u64> = alloc::vec::Vec::new();
        let mut number = 1_u64;
        for _ in 0..20_000 {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
            let n = (number >> 33) % 40;
            match model.binary_search(&n) {
                Ok(slot) => {
                    node.remove(slot);
                    model.remove(slot);
                }
                Err(slot) if model.len() < NODE_ITEMS => {
                    assert_eq!(node.lower_bound(10 * n), slot);
                    node.insert(slot, item(n));
                    model.insert(slot, n);
                }
                Err(_) => {}
            }
            let ids: alloc::vec::Vec<u64> =
                (0..node.len()).map(|slot| node.item(slot).first / 10).collect();
            assert_eq!(ids, model);
            assert!((0..node.len()).all(|slot| node.item(slot).hole == model[slot]));
        }
    }
}
