//! A leaf: areas in ascending order, each with its value.

use super::NONE;
use crate::{Iova, IovaRange};

/// Areas of a leaf: a search and an insertion touch few cache lines, a million areas make five
/// levels.
pub(super) const LEAF_AREAS: usize = 16;

/// Areas stay where they were put and a permutation orders them, so that an insertion or a removal
/// moves none: moving a few of sixteen costs more mispredicted branches than a search does.
#[derive(Clone)]
#[repr(C, align(64))]
pub(super) struct Leaf<T> {
    /// In a free place: the largest number, so that a search counts it among what follows.
    lasts: [u64; LEAF_AREAS],
    firsts: [u64; LEAF_AREAS],
    /// Four bits a slot: the place of the area. From `len` on, the places that are free.
    order: u64,
    len: u32,
    /// The leaf before it, and the one after it: of one that is free, the next free one.
    pub(super) prev: u32,
    pub(super) next: u32,
    values: [Option<T>; LEAF_AREAS],
}

/// Bits of a place in the order.
const PLACE_BITS: usize = 4;
const PLACE_MASK: u64 = LEAF_AREAS as u64 - 1;

impl<T> Leaf<T> {
    /// No area. Of a value that is none only what says so is written; a constant would be copied
    /// whole.
    #[inline(always)]
    pub(super) fn empty() -> Self {
        Self {
            lasts: [u64::MAX; LEAF_AREAS],
            firsts: [0; LEAF_AREAS],
            order: 0xfedc_ba98_7654_3210,
            len: 0,
            prev: NONE,
            next: NONE,
            values: core::array::from_fn(|_| None),
        }
    }

    #[inline]
    pub(super) const fn len(&self) -> usize {
        self.len as usize
    }

    /// Where the area of `slot` lies.
    #[inline]
    const fn place(&self, slot: usize) -> usize {
        ((self.order >> (PLACE_BITS * (slot % LEAF_AREAS))) & PLACE_MASK) as usize
    }

    #[inline]
    pub(super) const fn first(&self, slot: usize) -> u64 {
        self.firsts[self.place(slot)]
    }

    #[inline]
    pub(super) const fn last(&self, slot: usize) -> u64 {
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

    /// The same, and quicker at both ends: areas often come and go in order.
    #[inline]
    pub(super) fn slot_of(&self, at: u64) -> usize {
        if at <= self.last(0) {
            return 0;
        }
        if at > self.last(self.len() - 1) {
            return self.len();
        }
        self.lower_bound(at)
    }

    /// The area at `slot`. There is one.
    #[inline]
    pub(super) fn range(&self, slot: usize) -> IovaRange {
        let place = self.place(slot);
        IovaRange::closed(Iova(self.firsts[place]), Iova(self.lasts[place])).expect(NOT_EMPTY)
    }

    /// The value of the area at `slot`. There is one.
    #[inline]
    pub(super) fn value(&self, slot: usize) -> &T {
        self.values[self.place(slot)].as_ref().expect(LIVE)
    }

    #[inline]
    pub(super) fn value_mut(&mut self, slot: usize) -> &mut T {
        self.values[self.place(slot)].as_mut().expect(LIVE)
    }

    /// All values, in no order.
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.values.iter_mut().flatten()
    }

    /// Inserts an area at `slot`. The leaf is not full.
    #[inline]
    pub(super) fn insert(&mut self, slot: usize, range: IovaRange, value: T) {
        let len = self.len();
        assert!(slot <= len && len < LEAF_AREAS, "there is room");
        let place = self.place(len);
        // The places from `slot` to `len` go one slot up, the free one comes before them.
        let (below, above) = (low_places(slot), !low_places(len + 1));
        let moved = (self.order << PLACE_BITS) & !above & !low_places(slot + 1);
        let placed = (place as u64) << (PLACE_BITS * slot);
        self.order = (self.order & (below | above)) | moved | placed;
        self.len += 1;
        self.firsts[place] = range.start().0;
        self.lasts[place] = range.last().0;
        self.values[place] = Some(value);
    }

    /// Removes the area at `slot`.
    #[inline]
    pub(super) fn remove(&mut self, slot: usize) -> T {
        let place = self.free(slot);
        self.values[place].take().expect(LIVE)
    }

    /// Removes the area at `slot` and drops its value where it lies.
    #[inline]
    pub(super) fn discard(&mut self, slot: usize) {
        let place = self.free(slot);
        self.values[place] = None;
    }

    /// Takes `slot` out of the order; returns its place, where the value is still.
    #[inline]
    fn free(&mut self, slot: usize) -> usize {
        let last = self.len() - 1;
        assert!(slot <= last, "there is an area");
        let place = self.place(slot);
        let (below, above) = (low_places(slot), !low_places(last + 1));
        let moved = (self.order >> PLACE_BITS) & low_places(last) & !below;
        let freed = (place as u64) << (PLACE_BITS * last);
        self.order = (self.order & (below | above)) | moved | freed;
        self.len -= 1;
        self.lasts[place] = u64::MAX;
        place
    }
}

/// The bits of the first `slots` places.
#[inline]
const fn low_places(slots: usize) -> u64 {
    if slots >= LEAF_AREAS { u64::MAX } else { (1 << (PLACE_BITS * slots)) - 1 }
}

const LIVE: &str = "an area has a value";
const NOT_EMPTY: &str = "an area is not empty";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_keeps_its_order_through_every_insertion_and_removal() {
        let mut leaf = Leaf::empty();
        let mut model: alloc::vec::Vec<u64> = alloc::vec::Vec::new();
        let mut number = 1_u64;
        for _ in 0..20_000 {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
            let n = (number >> 33) % 40;
            match model.binary_search(&n) {
                Ok(slot) => {
                    assert_eq!(leaf.remove(slot), n);
                    model.remove(slot);
                }
                Err(slot) if model.len() < LEAF_AREAS => {
                    assert_eq!(leaf.lower_bound(10 * n), slot);
                    let range = IovaRange::closed(Iova(10 * n), Iova(10 * n + 5));
                    leaf.insert(slot, range.expect("a range"), n);
                    model.insert(slot, n);
                }
                Err(_) => {}
            }
            assert_eq!(leaf.len(), model.len());
            assert!((0..leaf.len()).all(|slot| leaf.first(slot) == 10 * model[slot]));
            assert!((0..leaf.len()).all(|slot| *leaf.value(slot) == model[slot]));
        }
    }
}
