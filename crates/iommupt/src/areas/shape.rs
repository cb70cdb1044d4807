//! How the tree grows and shrinks.

use super::branch::{BRANCH_ITEMS, Branch, Item};
use super::leaf::LEAF_AREAS;
use super::{Areas, HEIGHT_MAX, NO_MEMORY, NO_WAY, NONE, SPARSE, bound};
use ioasis_uapi::Result;

/// How many of what fills a leaf or a branch stay when one more comes at `slot`. Areas often come
/// in ascending order: at the end of all the left one stays full, elsewhere three quarters do, so
/// that nobody can make many that are nearly empty.
const fn kept(slot: usize, is_last: bool) -> usize {
    match slot {
        LEAF_AREAS if is_last => LEAF_AREAS,
        LEAF_AREAS => LEAF_AREAS / 4 * 3,
        _ => LEAF_AREAS / 2,
    }
}

const _: () = assert!(LEAF_AREAS == BRANCH_ITEMS);

impl<T> Areas<T> {
    /// Makes the first leaf.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    #[cold]
    pub(super) fn plant(&mut self) -> Result<()> {
        self.reserve()?;
        self.root = self.leaves.take();
        self.way = NO_WAY;
        Ok(())
    }

    /// Splits the full leaf that the path leads to, where an area comes at `slot`;
    /// [`reserve`](Self::reserve) provided for it. The path leads nowhere then.
    #[cold]
    pub(super) fn split(&mut self, leaf: u32, slot: usize) {
        let next = self.leaves[leaf].next;
        let keep = kept(slot, next == NONE);
        let right = self.leaves.take();
        for to in 0..LEAF_AREAS - keep {
            self.move_area((leaf, keep), (right, to));
        }
        self.leaves.link(leaf, right);
        self.leaves.link(right, next);
        let last = self.leaves[leaf].last(keep - 1);
        self.split_item(0, last, right);
        self.way = NO_WAY;
    }

    /// Divides the item on the path `above` levels above the leaves: what ends at `last` or before
    /// stays, the rest is `right`'s.
    fn split_item(&mut self, above: usize, last: u64, right: u32) {
        if above == self.height {
            self.grow();
        }
        let (node, slot) = self.path.at(self.height - 1 - above);
        let here = &mut self.branches[node as usize];
        let item = Item { id: right, ..here.item(slot) };
        here.set_last(slot, last);
        if here.len() < BRANCH_ITEMS {
            return here.insert(slot + 1, item);
        }
        let keep = kept(slot + 1, item.last == u64::MAX);
        let other = self.take_branch();
        for to in 0..BRANCH_ITEMS - keep {
            self.move_item((node, keep), (other, to));
        }
        let last = self.branches[node as usize].last(keep - 1);
        self.split_item(above + 1, last, other);
        let (node, slot) =
            if slot + 1 >= keep { (other, slot + 1 - keep) } else { (node, slot + 1) };
        self.branches[node as usize].insert(slot, item);
    }

    /// Puts a root with one item above the old one.
    fn grow(&mut self) {
        let root = self.take_branch();
        self.branches[root as usize]
            .insert(0, Item { last: u64::MAX, hole: u64::MAX, id: self.root });
        self.root = root;
        self.height += 1;
        assert!(self.height < HEIGHT_MAX, "fewer than 2^32 leaves");
        self.path.0.copy_within(0..self.height - 1, 1);
        self.path.set(0, root, 0);
    }

    /// Raises the bounds of what follows the leaf that the path leads to.
    #[inline]
    pub(super) fn raise_next(&mut self, hole: u64) {
        for level in (0..self.height).rev() {
            let (node, slot) = self.path.at(level);
            if slot + 1 < self.branches[node as usize].len() {
                // Down to the first leaf below the next item.
                let (mut at, mut next) = (node, slot + 1);
                for _ in level + 1..self.height {
                    self.branches[at as usize].raise(next, bound(hole));
                    (at, next) = (self.branches[at as usize].id(next), 0);
                }
                self.branches[at as usize].raise(next, bound(hole));
                return self.raise(level, hole);
            }
        }
    }

    /// The leaf that the path leads to has few areas `left`: it goes if it is empty, or a neighbour
    /// takes them.
    pub(super) fn shrink(&mut self, leaf: u32, left: usize) {
        if left > 0 && !self.join_leaf(leaf, left) {
            return;
        }
        let (prev, next) = (self.leaves[leaf].prev, self.leaves[leaf].next);
        self.leaves.link(prev, next);
        self.leaves.give(leaf);
        self.remove_item();
    }

    /// Puts what is left of the leaf on the path into a neighbour under the same branch; whether
    /// one has room.
    fn join_leaf(&mut self, leaf: u32, left: usize) -> bool {
        let (node, slot) = self.path.at(self.height - 1);
        let room = |id: u32| LEAF_AREAS - self.leaves[id].len() >= left;
        match self.neighbour(node, slot, room) {
            Some(next) if next > slot => {
                let right = self.branches[node as usize].hand_over(slot, next);
                (0..left).rev().for_each(|from| self.move_area((leaf, from), (right, 0)));
            }
            Some(before) => {
                let before = self.branches[node as usize].hand_over(slot, before);
                let len = self.leaves[before].len();
                (len..len + left).for_each(|to| self.move_area((leaf, 0), (before, to)));
            }
            None => return false,
        }
        true
    }

    /// The same for a branch below `slot` of `node`.
    fn join_branch(&mut self, branch: u32, left: usize, (node, slot): (u32, usize)) -> bool {
        let room = |id: u32| BRANCH_ITEMS - self.branches[id as usize].len() >= left;
        match self.neighbour(node, slot, room) {
            Some(next) if next > slot => {
                let right = self.branches[node as usize].hand_over(slot, next);
                (0..left).rev().for_each(|from| self.move_item((branch, from), (right, 0)));
            }
            Some(before) => {
                let before = self.branches[node as usize].hand_over(slot, before);
                let len = self.branches[before as usize].len();
                (len..len + left).for_each(|to| self.move_item((branch, 0), (before, to)));
            }
            None => return false,
        }
        true
    }

    /// The slot beside `slot` of a branch whose item has `room`.
    #[inline]
    fn neighbour(&self, node: u32, slot: usize, room: impl Fn(u32) -> bool) -> Option<usize> {
        let here = &self.branches[node as usize];
        let next = Some(slot + 1).filter(|&next| next < here.len() && room(here.id(next)));
        next.or_else(|| slot.checked_sub(1).filter(|&before| room(here.id(before))))
    }

    /// Removes the item above the leaf that the path leads to, which is free, and what is empty or
    /// nearly so after that.
    fn remove_item(&mut self) {
        self.way = NO_WAY;
        for level in (0..self.height).rev() {
            let (node, slot) = self.path.at(level);
            self.branches[node as usize].remove(slot);
            let left = self.branches[node as usize].len();
            if level == 0 || left > SPARSE {
                break;
            }
            if left > 0 && !self.join_branch(node, left, self.path.at(level - 1)) {
                break;
            }
            self.give_branch(node);
        }
        while self.height > 0 && self.branches[self.root as usize].len() == 1 {
            let root = self.root;
            self.root = self.branches[root as usize].id(0);
            self.give_branch(root);
            self.height -= 1;
        }
    }

    fn move_area(&mut self, from: (u32, usize), to: (u32, usize)) {
        let here = &mut self.leaves[from.0];
        let range = here.range(from.1);
        let value = here.remove(from.1);
        self.leaves[to.0].insert(to.1, range, value);
    }

    fn move_item(&mut self, from: (u32, usize), to: (u32, usize)) {
        let item = self.branches[from.0 as usize].remove(from.1);
        self.branches[to.0 as usize].insert(to.1, item);
    }

    /// Provides for a leaf more, whatever it splits above, so that nothing fails half way.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    #[cold]
    pub(super) fn reserve(&mut self) -> Result<()> {
        self.leaves.reserve()?;
        self.branches.try_reserve(self.height + 1).map_err(|_| NO_MEMORY)
    }

    /// An empty branch; [`reserve`](Self::reserve) provided for it.
    fn take_branch(&mut self) -> u32 {
        let id = self.free_branch;
        if let Some(branch) = self.branches.get_mut(id as usize) {
            self.free_branch = branch.id(0);
            *branch = Branch::EMPTY;
            return id;
        }
        self.branches.push(Branch::EMPTY);
        u32::try_from(self.branches.len() - 1).expect("fewer than 2^32 branches")
    }

    fn give_branch(&mut self, id: u32) {
        let branch = &mut self.branches[id as usize];
        *branch = Branch::EMPTY;
        branch.set(0, Item { last: u64::MAX, hole: 0, id: self.free_branch });
        self.free_branch = id;
    }
}
