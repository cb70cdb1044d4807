//! All leaves of a tree, in pieces that never move: a leaf is large where values are.

use alloc::vec::Vec;
use core::ops::{Index, IndexMut};

use super::leaf::Leaf;
use super::{NO_MEMORY, NONE};
use ioasis_uapi::Result;

/// Leaves of a piece.
const PIECE_LEAVES: u32 = 1 << PIECE_LG2;
const PIECE_LG2: u32 = 2;

/// Leaves by number.
#[derive(Clone)]
pub(super) struct Leaves<T> {
    pieces: Vec<Vec<Leaf<T>>>,
    /// Leaves that were ever taken.
    count: u32,
    /// The first that is free.
    free: u32,
}

impl<T> Leaves<T> {
    pub(super) const fn new() -> Self {
        Self { pieces: Vec::new(), count: 0, free: NONE }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The leaf `id`; none for [`NONE`].
    #[inline]
    pub(super) fn get(&self, id: u32) -> Option<&Leaf<T>> {
        (id < self.count).then(|| &self[id])
    }

    /// Provides for one leaf.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn reserve(&mut self) -> Result<()> {
        let made = self.pieces.len() << PIECE_LG2;
        if self.free != NONE || (self.count as usize) < made {
            return Ok(());
        }
        if made >= NONE as usize / 2 {
            return Err(NO_MEMORY);
        }
        self.pieces.try_reserve(1).map_err(|_| NO_MEMORY)?;
        let mut piece = Vec::new();
        piece.try_reserve_exact(PIECE_LEAVES as usize).map_err(|_| NO_MEMORY)?;
        piece.extend((0..PIECE_LEAVES).map(|_| Leaf::empty()));
        self.pieces.push(piece);
        Ok(())
    }

    /// An empty leaf; [`reserve`](Self::reserve) provided for it.
    pub(super) fn take(&mut self) -> u32 {
        let id = self.free;
        if id == NONE {
            self.count += 1;
            return self.count - 1;
        }
        let leaf = &mut self[id];
        let next = leaf.next;
        (leaf.prev, leaf.next) = (NONE, NONE);
        self.free = next;
        id
    }

    /// Takes an empty leaf back.
    pub(super) fn give(&mut self, id: u32) {
        let free = self.free;
        self[id].next = free;
        self.free = id;
    }

    /// Makes `next` follow `prev`; either may be [`NONE`].
    pub(super) fn link(&mut self, prev: u32, next: u32) {
        if prev != NONE {
            self[prev].next = next;
        }
        if next != NONE {
            self[next].prev = prev;
        }
    }

    /// All values, in no order.
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.pieces.iter_mut().flatten().flat_map(Leaf::values_mut)
    }
}

impl<T> Index<u32> for Leaves<T> {
    type Output = Leaf<T>;

    #[inline]
    fn index(&self, id: u32) -> &Leaf<T> {
        &self.pieces[(id >> PIECE_LG2) as usize][(id % PIECE_LEAVES) as usize]
    }
}

impl<T> IndexMut<u32> for Leaves<T> {
    #[inline]
    fn index_mut(&mut self, id: u32) -> &mut Leaf<T> {
        &mut self.pieces[(id >> PIECE_LG2) as usize][(id % PIECE_LEAVES) as usize]
    }
}
