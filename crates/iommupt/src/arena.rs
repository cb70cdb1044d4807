//! Memory of the tables: append-only, so that a reader needs no lock to find a table.
//!
//! A table's address is what its parent's word holds: frame number times table size, in an address
//! space of the table's own. Segments are added and never moved or freed before the arena is; which
//! frames are in use is the writer's knowledge (`tables`). The root, at address 0, is always there
//! and lies apart, so that a walk begins without looking for it.

use alloc::boxed::Box;
use core::fmt;

use crate::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use crate::sync::sized;
use ioasis_uapi::{Errno, Error, Result};
use once_cell::race::OnceBox;

/// Words in a segment: 1 MiB, left untouched by the system until used.
const SEGMENT_WORDS: usize = sized(1 << 17, 1 << 13, 1 << 4);
const SEGMENT_WORDS_LG2: u32 = SEGMENT_WORDS.trailing_zeros();
/// Segments of an arena: 4 GiB of tables, twice what 1 TiB of 4 KiB leaves takes.
const SEGMENTS: usize = sized(4096, 64, 8);
/// The smallest table, in words.
const TABLE_WORDS_MIN: usize = sized(512, 512, 2);

#[cfg_attr(not(any(loom, ioasis_shuttle)), derive(zerocopy::FromZeros))]
struct Segment {
    words: Many<AtomicU64, SEGMENT_WORDS>,
    /// By table: not zero once a leaf below it became dirty.
    touched: Many<AtomicU8, { SEGMENT_WORDS / TABLE_WORDS_MIN }>,
}

#[cfg(not(any(loom, ioasis_shuttle)))]
type Many<T, const N: usize> = [T; N];
/// A checker's atomics are large, and its stacks small.
#[cfg(any(loom, ioasis_shuttle))]
type Many<T, const N: usize> = Box<[T]>;

impl Segment {
    /// Memory that the system gives out zeroed; it is not touched here.
    #[cfg(not(any(loom, ioasis_shuttle)))]
    fn blank() -> Result<Box<Self>, zerocopy::AllocError> {
        <Self as zerocopy::FromZeros>::new_box_zeroed()
    }

    #[cfg(any(loom, ioasis_shuttle))]
    fn blank() -> Result<Box<Self>, ()> {
        Ok(Box::new(Self {
            words: (0..SEGMENT_WORDS).map(|_| AtomicU64::new(0)).collect(),
            touched: (0..SEGMENT_WORDS / TABLE_WORDS_MIN).map(|_| AtomicU8::new(0)).collect(),
        }))
    }
}

#[cfg(not(any(loom, ioasis_shuttle)))]
fn blank_root(items: usize) -> Result<Box<[AtomicU64]>, zerocopy::AllocError> {
    <[AtomicU64] as zerocopy::FromZeros>::new_box_zeroed_with_elems(items)
}

#[cfg(any(loom, ioasis_shuttle))]
#[expect(clippy::unnecessary_wraps, reason = "as without a checker")]
fn blank_root(items: usize) -> Result<Box<[AtomicU64]>, ()> {
    Ok((0..items).map(|_| AtomicU64::new(0)).collect())
}

/// All tables of one page table.
pub(crate) struct Arena {
    root: Box<[AtomicU64]>,
    root_touched: AtomicU8,
    segments: [OnceBox<Segment>; SEGMENTS],
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let segments = self.segments.iter().filter(|segment| segment.get().is_some()).count();
        f.debug_struct("Arena").field("segments", &segments).finish_non_exhaustive()
    }
}

impl Arena {
    /// With a root of `root_items` words.
    pub(crate) fn new(root_items: usize) -> Result<Self> {
        let root = blank_root(root_items)
            .map_err(|_| Error::new(Errno::ENOMEM, "no memory for the root table"))?;
        let segments = [const { OnceBox::new() }; SEGMENTS];
        Ok(Self { root, root_touched: AtomicU8::new(0), segments })
    }

    /// Makes sure that `frame` has memory.
    pub(crate) fn provide(&self, frame: u32, items_lg2: u32) -> Result<()> {
        let segment = (frame as usize) >> (SEGMENT_WORDS_LG2 - items_lg2);
        let Some(segment) = self.segments.get(segment) else {
            return Err(Error::at(Errno::ENOMEM, "the table arena is full", frame.into()));
        };
        segment
            .get_or_try_init(Segment::blank)
            .map(|_| ())
            .map_err(|_| Error::at(Errno::ENOMEM, "no memory for tables", frame.into()))
    }

    /// The word `index` of the root, as a reader sees it; zero beyond its end.
    #[inline(always)]
    pub(crate) fn load_root(&self, index: usize) -> u64 {
        self.root.get(index).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// The word `index` of the table at `address`, which is not the root, as a reader sees it. A
    /// table that does not exist reads as zero.
    #[inline(always)]
    pub(crate) fn load(&self, address: u64, index: usize) -> u64 {
        self.below_root(address, index).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// The word `index` of any table.
    pub(crate) fn load_any(&self, address: u64, index: usize) -> u64 {
        self.word(address, index).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// The place of a word.
    pub(crate) fn word(&self, address: u64, index: usize) -> Option<&AtomicU64> {
        if address == 0 { self.root.get(index) } else { self.below_root(address, index) }
    }

    #[inline(always)]
    fn below_root(&self, address: u64, index: usize) -> Option<&AtomicU64> {
        let at = place(address) | index;
        let segment = self.segments[(at >> SEGMENT_WORDS_LG2) & (SEGMENTS - 1)].get()?;
        Some(&segment.words[at & (SEGMENT_WORDS - 1)])
    }

    /// A whole table, for the writer.
    #[inline]
    pub(crate) fn table(&self, frame: u32, table_lg2: u32) -> &[AtomicU64] {
        if frame == 0 {
            return &self.root;
        }
        let at = (frame as usize) << table_lg2;
        let segment = self.segment(at);
        let at = at & (SEGMENT_WORDS - 1);
        &segment.words[at..at + (1 << table_lg2)]
    }

    /// Whether a leaf below this table became dirty since the mark was cleared.
    #[inline]
    pub(crate) fn touched(&self, frame: u32, table_lg2: u32) -> &AtomicU8 {
        if frame == 0 {
            return &self.root_touched;
        }
        let at = (frame as usize) << table_lg2;
        &self.segment(at).touched[(at & (SEGMENT_WORDS - 1)) >> table_lg2]
    }

    #[inline]
    fn segment(&self, at: usize) -> &Segment {
        self.segments[at >> SEGMENT_WORDS_LG2].get().expect("a frame in use has memory")
    }
}

/// The word number of a table's first word.
#[inline]
fn place(address: u64) -> usize {
    (address >> 3) as usize
}
