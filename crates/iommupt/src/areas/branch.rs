//! A branch: what is below it, in ascending order, and how large the holes there may be.

/// Leaves or branches below a branch.
pub(super) const BRANCH_ITEMS: usize = 16;

/// Unlike in a leaf, items move to stay in order: they change once in many changes of the leaves.
#[derive(Clone)]
#[repr(C, align(64))]
pub(super) struct Branch {
    /// No area below an item ends after this address, none below the next item begins before it or
    /// there. Behind the items: the largest number.
    lasts: [u64; BRANCH_ITEMS],
    ids: [u32; BRANCH_ITEMS],
    /// No hole that ends at an area below the item has more bytes.
    holes: [u64; BRANCH_ITEMS],
    len: u32,
}

/// What stands for a leaf or a branch in the one above it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    pub(super) last: u64,
    pub(super) hole: u64,
    pub(super) id: u32,
}

impl Branch {
    pub(super) const EMPTY: Self = Self {
        lasts: [u64::MAX; BRANCH_ITEMS],
        ids: [0; BRANCH_ITEMS],
        holes: [0; BRANCH_ITEMS],
        len: 0,
    };

    #[inline]
    pub(super) const fn len(&self) -> usize {
        self.len as usize
    }

    #[inline]
    pub(super) const fn id(&self, slot: usize) -> u32 {
        self.ids[slot]
    }

    #[inline]
    pub(super) const fn last(&self, slot: usize) -> u64 {
        self.lasts[slot]
    }

    #[inline]
    pub(super) const fn item(&self, slot: usize) -> Item {
        Item { last: self.lasts[slot], hole: self.holes[slot], id: self.ids[slot] }
    }

    /// The slot whose item has, or would get, an area that ends at `at` or later. The branch is not
    /// empty.
    #[inline]
    pub(super) fn slot_of(&self, at: u64) -> usize {
        // First which four, then which of them, without a branch.
        let (fours, _) = self.lasts.as_chunks::<4>();
        let four = usize::from(fours[0][3] < at)
            + usize::from(fours[1][3] < at)
            + usize::from(fours[2][3] < at);
        let below: usize = fours[four].iter().map(|&last| usize::from(last < at)).sum();
        (4 * four + below).min(self.len() - 1)
    }

    #[inline]
    pub(super) const fn set(&mut self, slot: usize, item: Item) {
        self.lasts[slot] = item.last;
        self.holes[slot] = item.hole;
        self.ids[slot] = item.id;
    }

    #[inline]
    pub(super) const fn set_last(&mut self, slot: usize, last: u64) {
        self.lasts[slot] = last;
    }

    /// Sees to it that the bound of an item is not below `hole`; whether it was.
    #[inline]
    pub(super) const fn raise(&mut self, slot: usize, hole: u64) -> bool {
        let below = self.holes[slot] < hole;
        if below {
            self.holes[slot] = hole;
        }
        below
    }

    /// Corrects the bound of an item.
    #[inline]
    pub(super) const fn set_hole(&mut self, slot: usize, hole: u64) {
        self.holes[slot] = hole;
    }

    /// Makes the item at `to`, beside `slot`, stand for what is below that too; returns its leaf or
    /// branch.
    pub(super) fn hand_over(&mut self, slot: usize, to: usize) -> u32 {
        self.holes[to] = self.holes[to].max(self.holes[slot]);
        self.lasts[to] = self.lasts[to].max(self.lasts[slot]);
        self.ids[to]
    }

    /// The largest bound.
    pub(super) fn hole_max(&self) -> u64 {
        self.holes[..self.len()].iter().copied().fold(0, u64::max)
    }

    /// Inserts an item at `slot`. The branch is not full.
    pub(super) fn insert(&mut self, slot: usize, item: Item) {
        let len = self.len();
        assert!(slot <= len && len < BRANCH_ITEMS, "there is room");
        self.lasts.copy_within(slot..len, slot + 1);
        self.ids.copy_within(slot..len, slot + 1);
        self.holes.copy_within(slot..len, slot + 1);
        self.len += 1;
        self.set(slot, item);
    }

    /// Removes the item at `slot`.
    pub(super) fn remove(&mut self, slot: usize) -> Item {
        let len = self.len();
        assert!(slot < len, "there is an item");
        let item = self.item(slot);
        self.lasts.copy_within(slot + 1..len, slot);
        self.ids.copy_within(slot + 1..len, slot);
        self.holes.copy_within(slot + 1..len, slot);
        self.len -= 1;
        self.lasts[len - 1] = u64::MAX;
        item
    }
}
