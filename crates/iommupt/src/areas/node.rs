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
    /// Value or node.
    pub(super) id: u32,
}

impl Item {
    pub(super) fn range(self) -> IovaRange {
        IovaRange::closed(Iova(self.first), Iova(self.last)).expect("an item is not empty")
    }
}

#[derive(Clone, Copy)]
pub(super) struct Node {
    len: u32,
    ids: [u32; NODE_ITEMS],
    /// Above `len`: the largest number, so that a search ends there.
    lasts: [u64; NODE_ITEMS],
    firsts: [u64; NODE_ITEMS],
    holes: [u64; NODE_ITEMS],
}

impl Node {
    pub(super) const EMPTY: Self = Self {
        len: 0,
        ids: [0; NODE_ITEMS],
        lasts: [u64::MAX; NODE_ITEMS],
        firsts: [0; NODE_ITEMS],
        holes: [0; NODE_ITEMS],
    };

    #[inline]
    pub(super) const fn len(&self) -> usize {
        self.len as usize
    }

    #[inline]
    pub(super) fn id(&self, slot: usize) -> u32 {
        self.ids[slot % NODE_ITEMS]
    }

    /// The first slot whose last address is not below `at`.
    #[inline]
    pub(super) fn lower_bound(&self, at: u64) -> usize {
        let mut below = 0;
        let mut step = NODE_ITEMS / 2;
        while step > 0 {
            below += step * usize::from(self.lasts[below + step - 1] < at);
            step /= 2;
        }
        below += usize::from(self.lasts[below] < at);
        below.min(self.len())
    }

    /// First and last address. The node is not empty.
    #[inline]
    pub(super) fn ends(&self) -> (u64, u64) {
        (self.firsts[0], self.lasts[self.len() - 1])
    }

    /// Sets the addresses of an item; whether they changed.
    #[inline]
    pub(super) fn set_ends(&mut self, slot: usize, first: u64, last: u64) -> bool {
        let moved = self.firsts[slot] != first || self.lasts[slot] != last;
        self.firsts[slot] = first;
        self.lasts[slot] = last;
        moved
    }

    /// Raises the bound of an item; whether it was lower.
    #[inline]
    pub(super) fn raise(&mut self, slot: usize, hole: u64) -> bool {
        let raised = self.holes[slot] < hole;
        self.holes[slot] = self.holes[slot].max(hole);
        raised
    }

    /// Corrects the bound of an item.
    pub(super) fn lower(&mut self, slot: usize, hole: u64) {
        self.holes[slot] = hole;
    }

    /// The hole before the item at `slot`, if it and another stand there.
    #[inline]
    pub(super) fn hole_before(&self, slot: usize) -> u64 {
        if slot == 0 || slot >= self.len() {
            return 0;
        }
        self.firsts[slot] - self.lasts[slot - 1] - 1
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
    pub(super) fn item(&self, slot: usize) -> Item {
        Item {
            first: self.firsts[slot],
            last: self.lasts[slot],
            hole: self.holes[slot],
            id: self.ids[slot],
        }
    }

    /// Puts `item` at `slot`.
    #[inline]
    pub(super) fn set(&mut self, slot: usize, item: Item) {
        self.firsts[slot] = item.first;
        self.lasts[slot] = item.last;
        self.holes[slot] = item.hole;
        self.ids[slot] = item.id;
    }

    /// Makes room at `slot`. The node is not full.
    #[inline]
    pub(super) fn insert(&mut self, slot: usize, item: Item) {
        let len = self.len();
        if slot < len {
            self.shift(slot, slot + 1, len - slot);
        }
        self.len += 1;
        self.set(slot, item);
    }

    #[inline]
    pub(super) fn remove(&mut self, slot: usize) {
        let len = self.len();
        if slot + 1 < len {
            self.shift(slot + 1, slot, len - slot - 1);
        }
        self.lasts[len - 1] = u64::MAX;
        self.len -= 1;
    }

    /// Keeps `keep` items and returns the rest.
    pub(super) fn split_off(&mut self, keep: usize) -> Self {
        let mut right = Self::EMPTY;
        for slot in keep..self.len() {
            right.insert(slot - keep, self.item(slot));
        }
        self.truncate(keep);
        right
    }

    /// Adds the items of `right`; there is room.
    pub(super) fn append(&mut self, right: &Self) {
        for slot in 0..right.len() {
            self.insert(self.len(), right.item(slot));
        }
    }

    /// Moves items between two neighbours until both hold as many.
    pub(super) fn share(&mut self, right: &mut Self) {
        let half = (self.len() + right.len()) / 2;
        if let Some(moved) = half.checked_sub(self.len()) {
            for slot in 0..moved {
                self.insert(self.len(), right.item(slot));
            }
            right.shift(moved, 0, right.len() - moved);
            right.truncate(right.len() - moved);
        } else {
            let moved = self.len() - half;
            right.shift(0, moved, right.len());
            right.len += u32::try_from(moved).expect("a node has few items");
            for slot in 0..moved {
                right.set(slot, self.item(half + slot));
            }
            self.truncate(half);
        }
    }

    /// Moves `count` items from one slot on to another.
    #[inline]
    fn shift(&mut self, from: usize, to: usize, count: usize) {
        self.firsts.copy_within(from..from + count, to);
        self.lasts.copy_within(from..from + count, to);
        self.holes.copy_within(from..from + count, to);
        self.ids.copy_within(from..from + count, to);
    }

    fn truncate(&mut self, len: usize) {
        self.lasts[len..].fill(u64::MAX);
        self.len = u32::try_from(len).expect("a node has few items");
    }

    /// The item that stands for this node in its parent. The node is not empty.
    #[inline]
    pub(super) fn summary(&self, id: u32) -> Item {
        let len = self.len();
        let mut hole = self.holes[0];
        for slot in 1..len {
            let before = self.firsts[slot] - self.lasts[slot - 1] - 1;
            hole = hole.max(before).max(self.holes[slot]);
        }
        Item { first: self.firsts[0], last: self.lasts[len - 1], hole, id }
    }
}
