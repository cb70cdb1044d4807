//! Memory of the tables: append-only, so that a reader needs no lock to find a table.
//!
//! A table's address is what its parent's word holds: frame number times table size, in an address space of the
//! table's own. Segments are added and never moved or freed before the arena is; which frames are in use is the
//! writer's knowledge (`tables`).

use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use ioasis_uapi::{Errno, Error, Result};
use once_cell::race::OnceBox;
use zerocopy::FromZeros;

/// lg2 of the words in a segment: 1 MiB, left untouched by the system until used.
const SEGMENT_WORDS_LG2: u32 = 17;
const SEGMENT_WORDS: usize = 1 << SEGMENT_WORDS_LG2;
/// Segments of an arena: 4 GiB of tables, twice what 1 TiB of 4 KiB leaves takes.
const SEGMENTS: usize = 4096;
/// The smallest table, in words.
const TABLE_WORDS_MIN: usize = 512;

#[derive(FromZeros)]
struct Segment {
    words: [AtomicU64; SEGMENT_WORDS],
    /// By table: not zero once a leaf below it became dirty.
    touched: [AtomicU8; SEGMENT_WORDS / TABLE_WORDS_MIN],
}

/// All tables of one page table.
pub(crate) struct Arena {
    segments: [OnceBox<Segment>; SEGMENTS],
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let segments = self.segments.iter().filter(|segment| segment.get().is_some()).count();
        f.debug_struct("Arena").field("segments", &segments).finish_non_exhaustive()
    }
}

impl Arena {
    pub(crate) const fn new() -> Self {
        Self { segments: [const { OnceBox::new() }; SEGMENTS] }
    }

    /// Makes sure that `frame` has memory.
    pub(crate) fn provide(&self, frame: u32, items_lg2: u32) -> Result<()> {
        let segment = (frame as usize) >> (SEGMENT_WORDS_LG2 - items_lg2);
        let Some(segment) = self.segments.get(segment) else {
            return Err(Error::at(Errno::ENOMEM, "the table arena is full", frame.into()));
        };
        segment
            .get_or_try_init(Segment::new_box_zeroed)
            .map(|_| ())
            .map_err(|_| Error::at(Errno::ENOMEM, "no memory for tables", frame.into()))
    }

    /// The word `index` of the table at `address`, as a reader sees it. A table that does not exist reads as zero.
    #[inline]
    pub(crate) fn load(&self, address: u64, index: usize) -> u64 {
        self.word(address, index).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// The place of a word.
    #[inline]
    pub(crate) fn word(&self, address: u64, index: usize) -> Option<&AtomicU64> {
        let at = place(address) | index;
        let segment = self.segments[(at >> SEGMENT_WORDS_LG2) & (SEGMENTS - 1)].get()?;
        Some(&segment.words[at & (SEGMENT_WORDS - 1)])
    }

    /// A whole table, for the writer.
    #[inline]
    pub(crate) fn table(&self, frame: u32, items_lg2: u32, table_lg2: u32) -> &[AtomicU64] {
        let at = (frame as usize) << table_lg2;
        let segment = self.segment(at);
        let at = at & (SEGMENT_WORDS - 1);
        &segment.words[at..at + (1 << items_lg2)]
    }

    /// Whether a leaf below this table became dirty since the mark was cleared.
    #[inline]
    pub(crate) fn touched(&self, frame: u32, table_lg2: u32) -> &AtomicU8 {
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
