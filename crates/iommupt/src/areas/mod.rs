//! Areas: disjoint ranges of IOVAs, each with a value, and the holes between them.
//!
//! A B+ tree. Leaves hold the areas and know their neighbours; a branch knows an address that parts
//! what is below each of its items from what follows, and how large a hole there may be. Neighbours
//! are never merged: what was inserted is what is removed.
//!
//! A hole belongs to the area that it ends at, and how large one may be is a bound from above:
//! whatever makes a hole larger raises it on the way up, in powers of two; whatever makes one
//! smaller leaves it. A search that finds nothing where a bound promised something corrects it, so
//! each change pays for at most one fruitless step a level. The addresses that part items stay when
//! areas go. Thus a change alone nearly always touches one leaf and the branch above it.
//!
//! A leaf goes when it is empty, or nearly so and a neighbour has room for the rest: areas that go
//! in order are not moved.
//!
//! Most of the time goes into waiting for memory and into mispredicted branches, so a search has
//! none, an area stays at the place in its leaf where it was put, and a change begins at the leaf
//! changed last.

mod branch;
mod free;
mod holes;
mod leaf;
mod leaves;
mod shape;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::fmt;

use crate::{Iova, IovaRange};
use branch::Branch;
use ioasis_uapi::{Errno, Error, Result};
use leaf::LEAF_AREAS;
use leaves::Leaves;

pub use free::{Ranges, Wanted};

/// Levels of a tree of 2^32 leaves, most of them nearly empty, with room to spare.
const HEIGHT_MAX: usize = 32;

/// No leaf, no branch.
const NONE: u32 = u32::MAX;

/// Disjoint ranges with a value each, ordered by address.
#[derive(Clone)]
pub struct Areas<T> {
    leaves: Leaves<T>,
    branches: Vec<Branch>,
    /// The first of the branches that are free.
    free_branch: u32,
    /// A leaf where there are no branches.
    root: u32,
    /// Levels of branches.
    height: usize,
    len: usize,
    /// The way that the last change went, and the leaf at its end.
    path: Path,
    leaf: u32,
    /// The addresses that lead there, from the first to the last: none where it may lead elsewhere
    /// by now.
    way: (u64, u64),
}

impl<T> Default for Areas<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: fmt::Debug> fmt::Debug for Areas<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter(IovaRange::ALL)).finish()
    }
}

/// The way from the root to a leaf: branch and slot at each level, the root first.
#[derive(Clone, Copy)]
struct Path([(u32, u32); HEIGHT_MAX]);

impl Path {
    #[inline]
    const fn at(&self, level: usize) -> (u32, usize) {
        let (node, slot) = self.0[level];
        (node, slot as usize)
    }

    #[inline]
    const fn set(&mut self, level: usize, node: u32, slot: usize) {
        #[expect(clippy::cast_possible_truncation, reason = "a branch has few items")]
        let slot = slot as u32;
        self.0[level] = (node, slot);
    }
}

/// The addresses that lead to no leaf.
const NO_WAY: (u64, u64) = (1, 0);

impl<T> Areas<T> {
    /// No area.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            leaves: Leaves::new(),
            branches: Vec::new(),
            free_branch: NONE,
            root: 0,
            height: 0,
            len: 0,
            path: Path([(0, 0); HEIGHT_MAX]),
            leaf: 0,
            way: NO_WAY,
        }
    }

    /// How many areas there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the way of the last change leads to the leaf for `at`.
    #[inline]
    const fn is_on_way(&self, at: u64) -> bool {
        self.way.0 <= at && at <= self.way.1
    }

    /// The leaf that has, or would get, an area which ends at `at` or later; the path leads to it.
    /// Changes often follow each other at one place: then the way is the same.
    #[inline]
    fn seek(&mut self, at: u64) -> u32 {
        if self.is_on_way(at) { self.leaf } else { self.descend(at) }
    }

    fn descend(&mut self, at: u64) -> u32 {
        let mut way = (0, u64::MAX);
        let mut node = self.root;
        for level in 0..self.height {
            let here = &self.branches[node as usize];
            let slot = here.slot_of(at);
            if slot > 0 {
                way.0 = here.last(slot - 1).wrapping_add(1);
            }
            // The last item takes what is above all, as far as the branch itself does.
            if here.last(slot) >= at {
                way.1 = here.last(slot);
            }
            self.path.set(level, node, slot);
            node = here.id(slot);
        }
        self.way = way;
        self.leaf = node;
        node
    }

    /// [`seek`](Self::seek), to look only.
    #[inline]
    fn leaf_of(&self, at: u64) -> u32 {
        if self.is_on_way(at) {
            return self.leaf;
        }
        let mut node = self.root;
        for _ in 0..self.height {
            let here = &self.branches[node as usize];
            node = here.id(here.slot_of(at));
        }
        node
    }

    /// The first area that ends at or after `at`: its leaf and slot.
    #[inline]
    fn first_from(&self, at: u64) -> Option<(u32, usize)> {
        let leaf = self.leaf_of(at);
        let here = self.leaves.get(leaf)?;
        let slot = here.slot_of(at);
        if slot < here.len() {
            return Some((leaf, slot));
        }
        (here.next != NONE).then_some((here.next, 0))
    }

    /// The first area that shares an address with `range`.
    #[must_use]
    #[inline]
    pub fn first(&self, range: IovaRange) -> Option<(IovaRange, &T)> {
        let (leaf, slot) = self.first_from(range.start().0)?;
        let here = &self.leaves[leaf];
        (here.first(slot) <= range.last().0).then(|| (here.range(slot), here.value(slot)))
    }

    /// The area that `at` lies in.
    #[must_use]
    #[inline]
    pub fn get(&self, at: Iova) -> Option<(IovaRange, &T)> {
        let (leaf, slot) = self.first_from(at.0)?;
        let here = &self.leaves[leaf];
        (here.first(slot) <= at.0).then(|| (here.range(slot), here.value(slot)))
    }

    /// The area that `at` lies in, its value to be changed.
    #[must_use]
    #[inline]
    pub fn get_mut(&mut self, at: Iova) -> Option<(IovaRange, &mut T)> {
        let (leaf, slot) = self.first_from(at.0)?;
        let here = &mut self.leaves[leaf];
        (here.first(slot) <= at.0).then(|| (here.range(slot), here.value_mut(slot)))
    }

    /// The areas that share an address with `range`, ascending.
    pub fn iter(&self, range: IovaRange) -> Iter<'_, T> {
        Iter { areas: self, place: self.first_from(range.start().0), last: range.last().0 }
    }

    /// The values of all areas, in no order, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.leaves.values_mut()
    }

    /// Inserts an area.
    ///
    /// # Errors
    ///
    /// `EEXIST` if it shares an address with another, `ENOMEM` without memory; the value is dropped
    /// then.
    #[inline]
    pub fn insert(&mut self, range: IovaRange, value: T) -> Result<()> {
        self.vacancy(range)?.fill(value);
        Ok(())
    }

    /// A place for an area, which is sure to be there.
    ///
    /// # Errors
    ///
    /// `EEXIST` if the area would share an address with another, `ENOMEM` without memory.
    #[inline]
    pub fn vacancy(&mut self, range: IovaRange) -> Result<Vacancy<'_, T>> {
        let first = range.start().0;
        if self.leaves.is_empty() {
            self.plant()?;
        }
        let leaf = self.seek(first);
        let here = &self.leaves[leaf];
        let slot = here.slot_of(first);
        let taken = if slot < here.len() {
            here.first(slot) <= range.last().0
        } else {
            here.next != NONE && self.leaves[here.next].first(0) <= range.last().0
        };
        if taken {
            return Err(Error::at(Errno::EEXIST, "over an area", first));
        }
        if here.len() == LEAF_AREAS {
            self.reserve()?;
        }
        Ok(Vacancy { areas: self, range, leaf, slot })
    }

    /// An area was put at the end of a leaf that the path leads to. Elsewhere nothing above has to
    /// know: the hole before it was a part of the one before the next area.
    #[inline]
    fn extend(&mut self, leaf: u32, slot: usize) {
        let here = &self.leaves[leaf];
        let (first, last) = (here.first(slot), here.last(slot));
        // The last leaf of all takes what is above it.
        let to = if here.next == NONE { u64::MAX } else { last };
        self.raise(self.height, first - self.end_before(leaf, slot));
        for level in (0..self.height).rev() {
            let (node, slot) = self.path.at(level);
            let above = &mut self.branches[node as usize];
            if above.last(slot) >= to {
                return;
            }
            above.set_last(slot, to);
        }
    }

    /// Where what is before the area at `slot` ends: the address after it.
    #[inline]
    fn end_before(&self, leaf: u32, slot: usize) -> u64 {
        let here = &self.leaves[leaf];
        if slot > 0 {
            return here.last(slot - 1) + 1;
        }
        if here.prev == NONE {
            return 0;
        }
        let prev = &self.leaves[here.prev];
        prev.last(prev.len() - 1) + 1
    }

    /// Raises the bounds on the path for a hole, from the level above `from` up.
    #[inline]
    fn raise(&mut self, from: usize, hole: u64) {
        let bound = bound(hole);
        for level in (0..from).rev() {
            let (node, slot) = self.path.at(level);
            if !self.branches[node as usize].raise(slot, bound) {
                return;
            }
        }
    }

    /// Removes the area that `at` lies in.
    #[inline]
    pub fn remove(&mut self, at: Iova) -> Option<(IovaRange, T)> {
        let (leaf, slot) = self.seek_area(at)?;
        let here = &mut self.leaves[leaf];
        let (range, value) = (here.range(slot), here.remove(slot));
        self.sink(leaf, slot);
        Some((range, value))
    }

    /// Removes the area that `at` lies in and drops its value, if it `may` go; whether it did. The
    /// value may be changed before.
    #[inline]
    pub fn remove_if(&mut self, at: Iova, may: impl FnOnce(&mut T) -> bool) -> bool {
        let Some((leaf, slot)) = self.seek_area(at) else { return false };
        let here = &mut self.leaves[leaf];
        let may = may(here.value_mut(slot));
        if may {
            here.discard(slot);
            self.sink(leaf, slot);
        }
        may
    }

    /// The leaf and slot of the area that `at` lies in; the path leads there.
    #[inline]
    fn seek_area(&mut self, at: Iova) -> Option<(u32, usize)> {
        if self.len == 0 {
            return None;
        }
        let leaf = self.seek(at.0);
        let here = &self.leaves[leaf];
        let slot = here.slot_of(at.0);
        (slot < here.len() && here.first(slot) <= at.0).then_some((leaf, slot))
    }

    /// The area at `slot` of the leaf that the path leads to is gone: what follows has a larger
    /// hole before it.
    #[inline]
    fn sink(&mut self, leaf: u32, slot: usize) {
        self.len -= 1;
        if self.height == 0 {
            return;
        }
        let here = &self.leaves[leaf];
        let left = here.len();
        let end = self.end_before(leaf, slot);
        if slot < left {
            self.raise(self.height, here.first(slot) - end);
        } else if here.next != NONE {
            self.raise_next(self.leaves[here.next].first(0) - end);
        }
        if left <= SPARSE {
            self.shrink(leaf, left);
        }
    }
}

/// A place where an area goes, or none: then all is as it was.
#[derive(Debug)]
#[must_use = "no area is there yet"]
pub struct Vacancy<'a, T> {
    areas: &'a mut Areas<T>,
    range: IovaRange,
    leaf: u32,
    slot: usize,
}

impl<T> Vacancy<'_, T> {
    /// Puts the area there.
    #[inline]
    pub fn fill(self, value: T) {
        let Self { areas, range, mut leaf, mut slot } = self;
        if areas.leaves[leaf].len() == LEAF_AREAS {
            areas.split(leaf, slot);
            leaf = areas.seek(range.start().0);
            slot = areas.leaves[leaf].slot_of(range.start().0);
        }
        let here = &mut areas.leaves[leaf];
        let at_end = slot == here.len();
        here.insert(slot, range, value);
        areas.len += 1;
        if at_end && areas.height > 0 {
            areas.extend(leaf, slot);
        }
    }
}

/// The bound that a hole raises others to. It grows in powers of two, so that a hole which grows
/// with each removal seldom changes one; and no level says less than the ones below, as each takes
/// the same.
#[inline]
const fn bound(hole: u64) -> u64 {
    if hole == 0 { 0 } else { u64::MAX >> hole.leading_zeros() }
}

/// A leaf or branch with no more is joined with a neighbour that has room for it.
const SPARSE: usize = 4;

/// Areas in ascending order.
#[derive(Debug)]
pub struct Iter<'a, T> {
    areas: &'a Areas<T>,
    place: Option<(u32, usize)>,
    last: u64,
}

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = (IovaRange, &'a T);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let (leaf, slot) = self.place?;
        let here = &self.areas.leaves[leaf];
        if here.first(slot) > self.last {
            self.place = None;
            return None;
        }
        self.place = if slot + 1 < here.len() {
            Some((leaf, slot + 1))
        } else {
            (here.next != NONE).then_some((here.next, 0))
        };
        Some((here.range(slot), here.value(slot)))
    }
}

const NO_MEMORY: Error = Error::new(Errno::ENOMEM, "no memory for an area");
