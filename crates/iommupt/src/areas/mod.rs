//! Areas: disjoint ranges of IOVAs, each with a value, and the holes between them.
//!
//! A B+ tree in one vector. Every item knows the first and last address below it and how large a hole inside may be, so
//! that finding an area, and finding the first hole of a size, both look at one node a level. Neighbours are never
//! merged: what was inserted is what is removed.
//!
//! How large a hole may be is a bound from above: whatever makes a hole larger raises it on the way up, whatever makes
//! one smaller leaves it. A search that finds nothing where a bound promised something corrects it, so each change pays
//! for at most one fruitless step a level, and a change alone almost never goes up to the root.
//!
//! Most of the time goes into waiting for memory and into mispredicted branches, so a search has none, an item stays at the
//! place in its node where it was put, its value lies at the same place, and a change begins at the leaf changed last.

mod free;
mod node;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::fmt;

use crate::{Iova, IovaRange};
use ioasis_uapi::{Errno, Error, Result};
use node::{Item, NODE_ITEMS, Node};

pub use free::{Ranges, Wanted};

/// Levels of a full tree of 2^32 areas, with room to spare.
const HEIGHT_MAX: usize = 16;

/// Disjoint ranges with a value each, ordered by address.
#[derive(Clone)]
pub struct Areas<T> {
    nodes: Vec<Node>,
    free_nodes: Vec<u32>,
    /// Of each node's places; upper nodes have none.
    values: Vec<Option<T>>,
    root: u32,
    /// Levels above the leaves.
    height: usize,
    len: usize,
    /// The way that the last change went.
    path: Path,
    /// Whether the nodes on it are still those.
    hot: bool,
    /// Whether it leads to the last leaf.
    to_end: bool,
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

/// The way from the root to a leaf: node and slot at each level, the root first.
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
        #[expect(clippy::cast_possible_truncation, reason = "a node has few items")]
        let slot = slot as u32;
        self.0[level] = (node, slot);
    }
}

impl<T> Areas<T> {
    /// No area.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            nodes: Vec::new(),
            free_nodes: Vec::new(),
            values: Vec::new(),
            root: 0,
            height: 0,
            len: 0,
            path: Path([(0, 0); HEIGHT_MAX]),
            hot: false,
            to_end: false,
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

    /// Finds the way to the first area whose last address is not below `at`, to change something there; its slot is past the
    /// end if there is none. Changes often follow each other at one place: if `at` lies between the ends of the leaf
    /// changed last, or that is the last of all, the way is the same.
    #[inline]
    fn seek(&mut self, at: u64) -> (u32, usize) {
        if self.hot {
            let (leaf, _) = self.path.at(self.height);
            let here = &self.nodes[leaf as usize];
            if here.len() > 0 && here.spans(at, self.to_end) {
                let slot = here.lower_bound(at);
                self.path.set(self.height, leaf, slot);
                return (leaf, slot);
            }
        }
        let mut node = self.root;
        self.to_end = true;
        for level in 0..self.height {
            let here = &self.nodes[node as usize];
            let slot = here.lower_bound(at).min(here.len() - 1);
            self.to_end &= slot == here.len() - 1;
            self.path.set(level, node, slot);
            node = here.id(slot);
        }
        let slot = self.nodes[node as usize].lower_bound(at);
        self.path.set(self.height, node, slot);
        self.hot = true;
        (node, slot)
    }

    /// The first area that ends at or after `at`.
    #[inline]
    fn first_from(&self, at: u64) -> Option<(u32, usize, Item)> {
        let mut node = self.root;
        for _ in 0..self.height {
            let here = &self.nodes[node as usize];
            node = here.id(here.lower_bound(at).min(here.len() - 1));
        }
        let here = self.nodes.get(node as usize)?;
        let slot = here.lower_bound(at);
        Some((node, slot, here.get(slot)?))
    }

    /// The first area that shares an address with `range`.
    #[must_use]
    #[inline]
    pub fn first(&self, range: IovaRange) -> Option<(IovaRange, &T)> {
        let (node, slot, item) = self.first_from(range.start().0)?;
        (item.first <= range.last().0).then(|| (item.range(), self.value(node, slot)))
    }

    /// The area that `at` lies in.
    #[must_use]
    #[inline]
    pub fn get(&self, at: Iova) -> Option<(IovaRange, &T)> {
        let (node, slot, item) = self.first_from(at.0)?;
        (item.first <= at.0).then(|| (item.range(), self.value(node, slot)))
    }

    /// The area that `at` lies in, its value to be changed.
    #[must_use]
    pub fn get_mut(&mut self, at: Iova) -> Option<(IovaRange, &mut T)> {
        let (node, slot, item) = self.first_from(at.0)?;
        if item.first > at.0 {
            return None;
        }
        let place = self.place(node, slot);
        Some((item.range(), self.values[place].as_mut().expect(LIVE)))
    }

    /// The areas that share an address with `range`, ascending.
    pub fn iter(&self, range: IovaRange) -> Iter<'_, T> {
        let place = self.first_from(range.start().0).map(|(node, slot, _)| (node, slot));
        Iter { areas: self, place, last: range.last().0 }
    }

    /// The values of all areas, in no order.
    pub fn into_values(self) -> impl Iterator<Item = T> {
        self.values.into_iter().flatten()
    }

    /// Inserts an area.
    ///
    /// # Errors
    ///
    /// `EEXIST` if it shares an address with another, `ENOMEM` without memory; the value is dropped then.
    pub fn insert(&mut self, range: IovaRange, value: T) -> Result<()> {
        self.reserve()?;
        let item = Item { first: range.start().0, last: range.last().0, hole: 0, id: 0 };
        if self.nodes.is_empty() {
            self.root = self.take_node();
            self.hot = false;
        }
        let (leaf, slot) = self.seek(item.first);
        if self.nodes[leaf as usize].get(slot).is_some_and(|next| next.first <= item.last) {
            return Err(Error::at(Errno::EEXIST, "over an area", item.first));
        }
        self.len += 1;
        let (added, (node, place)) = self.insert_item(leaf, slot, item);
        let place = self.place(node, place);
        self.values[place] = Some(value);
        let raise = self.nodes[leaf as usize].holes_beside(slot);
        self.rise(self.height, added, raise);
        Ok(())
    }

    /// Brings what stands above a changed node at `from` up to date: its addresses, what split off it, and the bound of
    /// its holes, of which the largest that grew is `raise`.
    #[inline]
    fn rise(&mut self, from: usize, added: Option<Item>, raise: u64) {
        let (mut added, mut raise) = (added, raise);
        for level in (0..from).rev() {
            let (node, slot) = self.path.at(level);
            let child = self.nodes[node as usize].id(slot);
            if let Some(right) = added.take() {
                // Rare, so everything is counted anew.
                let left = self.nodes[child as usize].summary(child);
                self.nodes[node as usize].set(slot, left);
                added = self.insert_item(node, slot + 1, right).0;
                raise = self.nodes[node as usize].summary(node).hole;
                continue;
            }
            let (first, last) = self.nodes[child as usize].ends();
            let here = &mut self.nodes[node as usize];
            let moved = here.set_ends(slot, first, last);
            let raised = here.raise(slot, raise);
            if !moved && !raised {
                return;
            }
            if moved {
                raise = raise.max(here.holes_beside(slot));
            }
        }
        if let Some(right) = added {
            self.grow(right);
        }
    }

    /// Inserts into a node; returns what has to follow it in the parent, if it was full, and where the item is now.
    #[inline]
    fn insert_item(&mut self, node: u32, slot: usize, item: Item) -> (Option<Item>, (u32, usize)) {
        if self.nodes[node as usize].len() < NODE_ITEMS {
            self.nodes[node as usize].insert(slot, item);
            return (None, (node, slot));
        }
        self.hot = false;
        // Areas often come in ascending order: then leave the left node full.
        let keep = if slot == NODE_ITEMS { NODE_ITEMS - 1 } else { NODE_ITEMS / 2 };
        let right = self.take_node();
        for to in 0..NODE_ITEMS - keep {
            self.move_item((node, keep), (right, to));
        }
        let (node, slot) = if slot > keep { (right, slot - keep) } else { (node, slot) };
        self.nodes[node as usize].insert(slot, item);
        (Some(self.nodes[right as usize].summary(right)), (node, slot))
    }

    /// Puts a root above the old one and `right`.
    fn grow(&mut self, right: Item) {
        let left = self.nodes[self.root as usize].summary(self.root);
        self.root = self.take_node();
        let root = &mut self.nodes[self.root as usize];
        root.insert(0, left);
        root.insert(1, right);
        self.hot = false;
        self.height += 1;
        assert!(self.height < HEIGHT_MAX, "fewer than 2^32 areas");
    }

    /// Removes the area that `at` lies in.
    pub fn remove(&mut self, at: Iova) -> Option<(IovaRange, T)> {
        self.remove_if(at, |_| true)
    }

    /// Removes the area that `at` lies in, if it `may` go.
    #[inline]
    pub fn remove_if(&mut self, at: Iova, may: impl FnOnce(&T) -> bool) -> Option<(IovaRange, T)> {
        if self.nodes.is_empty() {
            return None;
        }
        let (leaf, slot) = self.seek(at.0);
        let place = self.place(leaf, slot);
        let here = &mut self.nodes[leaf as usize];
        let item = here.get(slot).filter(|item| item.first <= at.0)?;
        if !may(self.values[place].as_ref().expect(LIVE)) {
            return None;
        }
        here.remove(slot);
        let raise = here.hole_before(slot);
        self.len -= 1;
        let value = self.values[place].take().expect(LIVE);
        self.sink(raise);
        while self.height > 0 && self.nodes[self.root as usize].len() == 1 {
            self.hot = false;
            self.free_nodes.push(self.root);
            self.root = self.nodes[self.root as usize].id(0);
            self.height -= 1;
        }
        Some((item.range(), value))
    }

    /// Fills the nodes on the way that became too empty, and brings what stands above them up to date.
    #[inline]
    fn sink(&mut self, raise: u64) {
        let mut raise = raise;
        for level in (0..=self.height).rev() {
            let (node, _) = self.path.at(level);
            if level == 0 || self.nodes[node as usize].len() >= NODE_ITEMS / 4 {
                return self.rise(level, None, raise);
            }
            let (parent, slot) = self.path.at(level - 1);
            self.mend(parent, slot);
            raise = self.nodes[parent as usize].summary(parent).hole;
        }
    }

    /// Fills a child that became too empty from a neighbour, or puts both together.
    fn mend(&mut self, node: u32, slot: usize) {
        self.hot = false;
        // Only a root has a single child, and it was shortened then.
        let left_slot = slot.saturating_sub(1);
        let left = self.nodes[node as usize].id(left_slot);
        let right = self.nodes[node as usize].id(left_slot + 1);
        let len = |areas: &Self, node: u32| areas.nodes[node as usize].len();
        let both = len(self, left) + len(self, right);
        let wanted = if both <= NODE_ITEMS { both } else { both / 2 };
        while len(self, left) < wanted {
            self.move_item((right, 0), (left, len(self, left)));
        }
        while len(self, left) > wanted {
            self.move_item((left, len(self, left) - 1), (right, 0));
        }
        if len(self, right) == 0 {
            self.free_nodes.push(right);
            self.nodes[node as usize].remove(left_slot + 1);
        } else {
            let summary = self.nodes[right as usize].summary(right);
            self.nodes[node as usize].set(left_slot + 1, summary);
        }
        let summary = self.nodes[left as usize].summary(left);
        self.nodes[node as usize].set(left_slot, summary);
    }

    /// Moves an item, and what it stands for, to another node.
    fn move_item(&mut self, from: (u32, usize), to: (u32, usize)) {
        let old = self.place(from.0, from.1);
        let value = self.values[old].take();
        let node = &mut self.nodes[from.0 as usize];
        let item = node.item(from.1);
        node.remove(from.1);
        self.nodes[to.0 as usize].insert(to.1, item);
        let place = self.place(to.0, to.1);
        self.values[place] = value;
    }

    /// Provides for one insertion, whatever it splits, so that nothing fails half way, and that every removal can
    /// note what it frees.
    fn reserve(&mut self) -> Result<()> {
        let nodes = self.height + 2;
        if self.nodes.capacity() - self.nodes.len() < nodes {
            self.nodes.try_reserve(nodes).map_err(|_| NO_MEMORY)?;
            let room = self.nodes.capacity() - self.free_nodes.len();
            self.free_nodes.try_reserve(room).map_err(|_| NO_MEMORY)?;
            self.values.try_reserve(nodes * NODE_ITEMS).map_err(|_| NO_MEMORY)?;
        }
        if self.len >= u32::MAX as usize / 2 {
            return Err(NO_MEMORY);
        }
        Ok(())
    }

    /// An empty node; [`reserve`](Self::reserve) provided for it.
    fn take_node(&mut self) -> u32 {
        if let Some(id) = self.free_nodes.pop() {
            self.nodes[id as usize] = Node::EMPTY;
            return id;
        }
        self.nodes.push(Node::EMPTY);
        self.values.extend((0..NODE_ITEMS).map(|_| None));
        u32::try_from(self.nodes.len() - 1).expect("fewer than 2^32 nodes")
    }

    /// Whether every item tells the truth about what is below it.
    #[cfg(test)]
    fn check(&self) {
        if !self.is_empty() {
            self.check_node(self.root, 0);
        }
    }

    #[cfg(test)]
    fn check_node(&self, node: u32, level: usize) {
        let here = &self.nodes[node as usize];
        assert!(here.len() > 0, "no node is empty");
        for slot in 0..here.len() {
            let item = here.item(slot);
            if level < self.height {
                let child = self.nodes[item.id as usize].summary(item.id);
                assert_eq!((item.first, item.last), (child.first, child.last));
                assert!(item.hole >= child.hole, "a bound is too low");
                self.check_node(item.id, level + 1);
            }
        }
    }

    /// Where the value of an area is.
    #[inline]
    fn place(&self, node: u32, slot: usize) -> usize {
        node as usize * NODE_ITEMS + self.nodes[node as usize].place(slot)
    }

    fn value(&self, node: u32, slot: usize) -> &T {
        self.values[self.place(node, slot)].as_ref().expect(LIVE)
    }

    /// Offers the holes of at least `span + 1` bytes that touch `window`, ascending, each as far as it lies in the
    /// window, until `accept` takes something from one.
    pub fn find_hole<R>(
        &mut self,
        window: IovaRange,
        span: u64,
        mut accept: impl FnMut(IovaRange) -> Option<R>,
    ) -> Option<R> {
        let mut search = Search { from: window.start().0, last: window.last().0, span };
        if !self.is_empty() {
            match self.find_in(self.root, 0, &mut search, &mut accept) {
                Found::Taken(taken) => return Some(taken),
                Found::End => return None,
                Found::Nothing => {}
            }
        }
        search.offer(search.last, &mut accept)
    }

    fn find_in<R>(
        &mut self,
        node: u32,
        level: usize,
        search: &mut Search,
        accept: &mut impl FnMut(IovaRange) -> Option<R>,
    ) -> Found<R> {
        let mut slot = self.nodes[node as usize].lower_bound(search.from);
        while let Some(item) = self.nodes[node as usize].get(slot) {
            if item.first > search.from
                && let Some(taken) = search.offer(item.first - 1, accept)
            {
                return Found::Taken(taken);
            }
            if item.first > search.last {
                return Found::End;
            }
            if level < self.height && item.hole > search.span {
                match self.find_in(item.id, level + 1, search, accept) {
                    Found::Nothing => {
                        let known = self.nodes[item.id as usize].summary(item.id).hole;
                        self.nodes[node as usize].lower(slot, known);
                    }
                    found => return found,
                }
            }
            let Some(after) = item.last.checked_add(1) else { return Found::End };
            search.from = after;
            if after > search.last {
                return Found::End;
            }
            slot += 1;
        }
        Found::Nothing
    }
}

/// The rest of the window.
struct Search {
    from: u64,
    last: u64,
    span: u64,
}

impl Search {
    /// Offers the hole that begins at `from` and ends at `last`.
    #[inline]
    fn offer<R>(&self, last: u64, accept: &mut impl FnMut(IovaRange) -> Option<R>) -> Option<R> {
        let last = last.min(self.last);
        if last < self.from || last - self.from < self.span {
            return None;
        }
        accept(IovaRange::closed(Iova(self.from), Iova(last)).ok()?)
    }
}

enum Found<R> {
    Taken(R),
    /// The window, or the address space, is over.
    End,
    Nothing,
}

/// Areas in ascending order.
#[derive(Debug)]
pub struct Iter<'a, T> {
    areas: &'a Areas<T>,
    place: Option<(u32, usize)>,
    last: u64,
}

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = (IovaRange, &'a T);

    fn next(&mut self) -> Option<Self::Item> {
        let (node, slot) = self.place?;
        let here = &self.areas.nodes[node as usize];
        let item = here.item(slot);
        if item.first > self.last {
            self.place = None;
            return None;
        }
        self.place = if slot + 1 < here.len() {
            Some((node, slot + 1))
        } else {
            let next = item.last.checked_add(1).and_then(|after| self.areas.first_from(after));
            next.map(|(node, slot, _)| (node, slot))
        };
        Some((item.range(), self.areas.value(node, slot)))
    }
}

const LIVE: &str = "an area has a value";
const NO_MEMORY: Error = Error::new(Errno::ENOMEM, "no memory for an area");
