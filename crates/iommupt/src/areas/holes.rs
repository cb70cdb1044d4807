//! Searching the holes between areas.

use super::Areas;
use crate::{Iova, IovaRange};

impl<T> Areas<T> {
    /// Offers the holes of at least `span + 1` bytes that touch `window`, ascending, each as far as
    /// it lies in the window, until `accept` takes something from one.
    pub fn find_hole<R>(
        &mut self,
        window: IovaRange,
        span: u64,
        mut accept: impl FnMut(IovaRange) -> Option<R>,
    ) -> Option<R> {
        let (from, last) = (window.start().0, window.last().0);
        let mut search = Search { from, last, span, passed: None };
        if !self.is_empty() {
            match self.find_in(self.root, 0, &mut search, &mut accept) {
                Found::Taken(taken) => return Some(taken),
                Found::End => return None,
                Found::Nothing => {}
            }
        }
        self.catch_up(&mut search)?;
        search.offer(search.last, &mut accept)
    }

    fn find_in<R>(
        &mut self,
        node: u32,
        level: usize,
        search: &mut Search,
        accept: &mut impl FnMut(IovaRange) -> Option<R>,
    ) -> Found<R> {
        if level == self.height {
            return self.find_in_leaf(node, search, accept);
        }
        let mut slot = self.branches[node as usize].slot_of(search.from);
        while slot < self.branches[node as usize].len() {
            let item = self.branches[node as usize].item(slot);
            if item.hole > search.span {
                match self.find_in(item.id, level + 1, search, accept) {
                    Found::Nothing => {
                        let known = self.largest_hole(item.id, level + 1);
                        self.branches[node as usize].set_hole(slot, known);
                    }
                    found => return found,
                }
            } else {
                search.passed = Some((item.id, level + 1));
            }
            slot += 1;
        }
        Found::Nothing
    }

    fn find_in_leaf<R>(
        &self,
        leaf: u32,
        search: &mut Search,
        accept: &mut impl FnMut(IovaRange) -> Option<R>,
    ) -> Found<R> {
        if self.catch_up(search).is_none() {
            return Found::End;
        }
        let here = &self.leaves[leaf];
        for slot in here.lower_bound(search.from)..here.len() {
            let (first, last) = (here.first(slot), here.last(slot));
            if first > search.from
                && let Some(taken) = search.offer(first - 1, accept)
            {
                return Found::Taken(taken);
            }
            let Some(after) = last.checked_add(1) else { return Found::End };
            if first > search.last || after > search.last {
                return Found::End;
            }
            search.from = after;
        }
        Found::Nothing
    }

    /// Goes on behind what was passed over; `None` where no address is left.
    fn catch_up(&self, search: &mut Search) -> Option<()> {
        if let Some((node, level)) = search.passed.take() {
            // It may end before the window begins.
            search.from = search.from.max(self.last_below(node, level).checked_add(1)?);
        }
        Some(())
    }

    /// The last address of the areas below a leaf or branch at `level`.
    fn last_below(&self, node: u32, level: usize) -> u64 {
        let mut node = node;
        for _ in level..self.height {
            let here = &self.branches[node as usize];
            node = here.id(here.len() - 1);
        }
        let leaf = &self.leaves[node];
        leaf.last(leaf.len() - 1)
    }

    /// Of the holes that end at an area below a leaf or branch at `level`, the bytes of the
    /// largest: no branch says less.
    fn largest_hole(&self, node: u32, level: usize) -> u64 {
        if level < self.height {
            return self.branches[node as usize].hole_max();
        }
        let here = &self.leaves[node];
        let hole = |slot| here.first(slot) - self.end_before(node, slot);
        (0..here.len()).map(hole).fold(0, u64::max)
    }

    /// Whether all is as it should be; returns the number of leaves.
    #[cfg(test)]
    pub(super) fn check(&self) -> usize {
        let mut leaves = alloc::vec::Vec::new();
        if !self.leaves.is_empty() {
            self.check_node(self.root, 0, (0, u64::MAX), &mut leaves);
        }
        let areas: usize = leaves.iter().map(|&leaf| self.leaves[leaf].len()).sum();
        assert_eq!(areas, self.len, "every area is below the root");
        let prev = core::iter::once(super::NONE).chain(leaves.iter().copied());
        let next = leaves.iter().copied().skip(1).chain([super::NONE]);
        for ((&leaf, prev), next) in leaves.iter().zip(prev).zip(next) {
            let leaf = &self.leaves[leaf];
            assert_eq!((leaf.prev, leaf.next), (prev, next), "leaves know their neighbours");
        }
        leaves.len()
    }

    /// What is below a node lies between these addresses; appends its leaves.
    #[cfg(test)]
    fn check_node(
        &self,
        node: u32,
        level: usize,
        (first, last): (u64, u64),
        leaves: &mut alloc::vec::Vec<u32>,
    ) {
        if level == self.height {
            let here = &self.leaves[node];
            assert!(here.len() > 0 || level == 0, "no leaf is empty");
            for slot in 0..here.len() {
                assert!(first <= here.first(slot) && here.last(slot) <= last, "an area is astray");
            }
            return leaves.push(node);
        }
        let here = &self.branches[node as usize];
        assert!(here.len() > usize::from(level == 0), "a root has two items, a branch one");
        let mut first = first;
        for slot in 0..here.len() {
            let item = here.item(slot);
            assert!(first <= item.last && item.last <= last, "items ascend");
            let below = self.largest_hole(item.id, level + 1);
            assert!(item.hole >= below, "a bound of {} for {below}", item.hole);
            self.check_node(item.id, level + 1, (first, item.last), leaves);
            first = item.last.wrapping_add(1);
        }
    }
}

/// The rest of the window.
struct Search {
    from: u64,
    last: u64,
    span: u64,
    /// The leaf or branch, and its level, that was looked at last, but not inside: `from` should be
    /// behind it.
    passed: Option<(u32, usize)>,
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
