//! The lock-free side: walking a table while its writer changes it.
//!
//! # Memory ordering
//!
//! - A table is filled, then its address is stored in the parent with release; a reader loads every
//!   word with acquire. Who sees the address sees the words.
//! - A leaf is stored with release and removed with a plain store of zero. A reader saw it before
//!   or after.
//! - A reader that is to write marks the leaf dirty by compare-exchange on the word it judged. It
//!   fails when the writer changed the word meanwhile, and the reader judges again; so a removed
//!   leaf is never marked, and a cleared dirty bit is set again by whoever passes later.
//! - After a leaf became dirty, the tables on the way to it are marked as touched, from the lowest
//!   up, with release. The harvest takes the marks from the top down with acquire: a mark it finds
//!   shows it everything below; a mark it came too early for is there for the next harvest, which
//!   is in time for a write that had not begun.
//! - A removed table is used again only after [`Quiesce::wait`](crate::Quiesce::wait). A reader
//!   therefore stays in one section from before the walk until it has used what the walk found.
//!
//! `schedules` tries each of these sentences: the steps in every interleaving and with every value
//! that the orderings let a load see, whole sequences in many schedules. A weaker store of a link,
//! a leaf or a mark, marks set from the top down or taken with less than acquire, a mark taken
//! after what it stands for was looked at, a wait or a fence left out, on either side of `changes`,
//! and a change not noted each fail there.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::hint::cold_path;
use core::marker::PhantomData;

use crate::arena::Arena;
use crate::format::{Context, Entry, Format, low_bits};
use crate::sync::atomic::Ordering;
use crate::sync::{raise, spin_loop};
use crate::table::Style;
use crate::{Changes, Fault, Iova, IovaRange, Pa, Prot, Run, Step, TableReader};

/// The reading side of a page table.
pub struct Reader<F: Format> {
    pub(crate) arena: Arena,
    /// Last address of the aperture.
    pub(crate) last: u64,
    pub(crate) changes: Arc<Changes>,
    format: PhantomData<fn() -> F>,
}

impl<F: Format> fmt::Debug for Reader<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("format", &F::NAME)
            .field("arena", &self.arena)
            .field("last", &self.last)
            .finish()
    }
}

/// What stands for a leaf between break and make: no format takes it for valid, and software may
/// choose the bit.
pub(crate) const BROKEN: u64 = 1 << 55;

/// Where a walk ended.
#[derive(Clone, Copy)]
pub(crate) struct Spot {
    /// Address of the table.
    pub(crate) table: u64,
    /// Its level.
    pub(crate) level: u32,
    /// What it holds for the address.
    pub(crate) word: u64,
}

impl<F: Format> Reader<F> {
    pub(crate) const TABLE_LG2: u32 = F::ITEMS_LG2;

    pub(crate) fn new(last: u64) -> ioasis_uapi::Result<Self> {
        let arena = Arena::new(1 << F::ROOT_ITEMS_LG2)?;
        Ok(Self { arena, last, changes: Arc::default(), format: PhantomData })
    }

    /// Walks to the leaf of `iova`.
    #[inline(always)]
    pub(crate) fn find(&self, iova: u64) -> Result<Spot, Fault> {
        self.walk(iova, |spot| spot)
    }

    /// Walks to the leaf of `iova` and hands it to `then`.
    #[inline(always)]
    fn walk<R>(&self, iova: u64, then: impl Fn(Spot) -> R) -> Result<R, Fault> {
        self.descend(self.root(iova), iova, then)
    }

    /// Where each walk begins.
    #[inline(always)]
    pub(crate) fn root(&self, iova: u64) -> Spot {
        // Nothing is mapped outside the aperture, and the root ends where the format does.
        #[expect(clippy::cast_possible_truncation, reason = "no root has 2^32 items")]
        let word = self.arena.load_root((iova >> F::item_lg2(F::TOP_LEVEL)) as usize);
        Spot { table: 0, level: F::TOP_LEVEL, word }
    }

    /// Walks on from `spot`. Most leaves stand at level 0, which therefore has code of its own: the
    /// level is a constant there.
    #[inline(always)]
    pub(crate) fn descend<R>(
        &self,
        spot: Spot,
        iova: u64,
        then: impl Fn(Spot) -> R,
    ) -> Result<R, Fault> {
        let Spot { mut table, mut level, mut word } = spot;
        while level > 0 {
            match F::decode(word, level) {
                Entry::Table(address) => table = address,
                Entry::Leaf => return Ok(then(Spot { table, level, word })),
                Entry::Empty if F::BREAK_BEFORE_MAKE && word == BROKEN => {
                    return self.walk_again(iova, then);
                }
                Entry::Empty => return Err(nothing(iova, level)),
            }
            level -= 1;
            word = self.arena.load(table, F::index(iova, level));
        }
        match F::decode(word, 0) {
            Entry::Leaf => Ok(then(Spot { table, level: 0, word })),
            Entry::Empty if F::BREAK_BEFORE_MAKE && word == BROKEN => self.walk_again(iova, then),
            Entry::Table(_) | Entry::Empty => Err(nothing(iova, 0)),
        }
    }

    /// The writer is about to store what follows a leaf that had to be made invalid first.
    #[cold]
    #[inline(never)]
    fn walk_again<R>(&self, iova: u64, then: impl Fn(Spot) -> R) -> Result<R, Fault> {
        let (mut table, mut level) = (0, F::TOP_LEVEL);
        loop {
            let word = self.arena.load_any(table, F::index(iova, level));
            match F::decode(word, level) {
                Entry::Leaf => return Ok(then(Spot { table, level, word })),
                Entry::Table(address) if level > 0 => (table, level) = (address, level - 1),
                Entry::Empty if word == BROKEN => spin_loop(),
                Entry::Table(_) | Entry::Empty => return Err(nothing(iova, level)),
            }
        }
    }

    /// The output address behind `iova`, whatever its permissions.
    #[inline(always)]
    #[must_use]
    pub fn iova_to_phys(&self, iova: Iova) -> Option<Pa> {
        self.walk(iova.0, |spot| Pa(output::<F>(spot.word, spot.level, iova.0))).ok()
    }

    /// See [`TableReader::translate`].
    ///
    /// # Errors
    ///
    /// The fault, when not even the first byte can be translated.
    #[inline(always)]
    pub fn translate(&self, iova: Iova, length: u64, need: Prot) -> Result<Run, Fault> {
        self.translate_from(self.root(iova.0), iova, length, need)
    }

    /// Translates, with `start` on the way.
    #[inline(always)]
    pub(crate) fn translate_from(
        &self,
        start: Spot,
        iova: Iova,
        length: u64,
        need: Prot,
    ) -> Result<Run, Fault> {
        let run = self.grant(start, iova.0, need, |spot| {
            let size = 1 << F::leaf_lg2(spot.word, spot.level);
            let pa = output::<F>(spot.word, spot.level, iova.0);
            Run { pa: Pa(pa), length: size - (iova.0 & (size - 1)) }
        })?;
        if length <= run.length {
            return Ok(Run { pa: run.pa, length });
        }
        Ok(self.extend(iova.0, run, length, need))
    }

    /// See [`TableReader::leaf`].
    ///
    /// # Errors
    ///
    /// The fault, when nothing is mapped there or not with `need`.
    #[inline]
    pub fn leaf(&self, iova: Iova, need: Prot) -> Result<(IovaRange, Pa), Fault> {
        let spot = self.grant(self.root(iova.0), iova.0, need, |spot| spot)?;
        let inside = low_bits(F::leaf_lg2(spot.word, spot.level));
        let range = IovaRange::closed(Iova(iova.0 & !inside), Iova(iova.0 | inside));
        Ok((range.expect("a leaf is not empty"), Pa(F::oa(spot.word, spot.level))))
    }

    /// Lengthens `run`, which begins at `iova`, over the leaves that follow.
    fn extend(&self, iova: u64, run: Run, length: u64, need: Prot) -> Run {
        let mut run = run;
        while run.length < length {
            let Some(at) = iova.checked_add(run.length) else { break };
            let Ok(next) = self.find(at) else { break };
            if output::<F>(next.word, next.level, at) != run.pa.0 + run.length {
                break;
            }
            let Ok(next) = self.grant(self.root(at), at, need, |spot| spot) else { break };
            // The leaf may have been replaced since it was looked at.
            if output::<F>(next.word, next.level, at) != run.pa.0 + run.length {
                break;
            }
            run.length += 1 << F::leaf_lg2(next.word, next.level);
        }
        Run { pa: run.pa, length: run.length.min(length) }
    }

    /// Walks from `start` to the leaf of `iova`, checks it against `need`, marks it dirty if it is
    /// to be written, and hands it to `then`.
    #[inline(always)]
    fn grant<R>(
        &self,
        start: Spot,
        iova: u64,
        need: Prot,
        then: impl Fn(Spot) -> R,
    ) -> Result<R, Fault> {
        let mut start = start;
        loop {
            let granted = self.descend(start, iova, |spot| {
                let missing = F::missing(spot.word, spot.level, need, Context::all());
                if !missing.is_empty() {
                    return Err(Fault { iova: Iova(iova), level: spot.level, missing });
                }
                let marked =
                    !need.contains(Prot::WRITE) || F::is_dirty(spot.word) || self.mark(iova, spot);
                Ok(marked.then(|| then(spot)))
            })??;
            if let Some(granted) = granted {
                return Ok(granted);
            }
            // It changed meanwhile.
            start = self.root(iova);
        }
    }

    /// Marks the leaf dirty; false if it changed since it was read.
    #[cold]
    fn mark(&self, iova: u64, spot: Spot) -> bool {
        let Some(word) = self.arena.word(spot.table, F::index(iova, spot.level)) else {
            return false;
        };
        let dirty = F::make_dirty(spot.word);
        if word.compare_exchange(spot.word, dirty, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        self.touch(iova, spot.level);
        true
    }

    /// Marks the tables on the way to `iova`, from `lowest` up to the root.
    pub(crate) fn touch(&self, iova: u64, lowest: u32) {
        for level in lowest..=F::TOP_LEVEL {
            // Unmapped meanwhile: what was written is gone, and its dirty state with it.
            let Some(table) = self.table_at(iova, level) else { return };
            let frame = frame_of::<F>(table);
            raise(self.arena.touched(frame, Self::TABLE_LG2));
        }
    }

    /// The address of the table at `level` that translates `iova`.
    pub(crate) fn table_at(&self, iova: u64, level: u32) -> Option<u64> {
        if iova > self.last {
            return None;
        }
        let mut table = 0;
        for above in (level + 1..=F::TOP_LEVEL).rev() {
            let word = self.arena.load_any(table, F::index(iova, above));
            let Entry::Table(address) = F::decode(word, above) else { return None };
            table = address;
        }
        Some(table)
    }
}

impl<F: Format> TableReader for Reader<F> {
    fn translate(&self, iova: Iova, length: u64, need: Prot) -> Result<Run, Fault> {
        Self::translate(self, iova, length, need)
    }

    fn leaf(&self, iova: Iova, need: Prot) -> Result<(IovaRange, Pa), Fault> {
        Self::leaf(self, iova, need)
    }

    fn iova_to_phys(&self, iova: Iova) -> Option<Pa> {
        Self::iova_to_phys(self, iova)
    }

    fn changes(&self) -> Arc<Changes> {
        Arc::clone(&self.changes)
    }

    fn format_name(&self) -> &'static str {
        F::NAME
    }

    fn steps(&self, iova: Iova) -> Vec<Step> {
        Self::steps(self, iova.0)
    }

    fn write_dump(&self, style: Style, to: &mut dyn fmt::Write) -> fmt::Result {
        write!(to, "{}", self.dump(style))
    }
}

/// Nothing is mapped at `iova`.
#[cold]
const fn nothing(iova: u64, level: u32) -> Fault {
    Fault { iova: Iova(iova), level, missing: Prot::empty() }
}

/// Where a leaf leads `iova`.
#[inline]
pub(crate) fn output<F: Format>(word: u64, level: u32, iova: u64) -> u64 {
    let item_lg2 = F::item_lg2(level);
    if F::leaf_lg2(word, level) != item_lg2 {
        cold_path();
        return F::oa(word, level) | (iova & low_bits(F::leaf_lg2(word, level)));
    }
    F::oa(word, level) | (iova & low_bits(item_lg2))
}

/// The frame of the table at `address`.
#[inline]
pub(crate) fn frame_of<F: Format>(address: u64) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "an arena has fewer than 2^21 tables")]
    let frame = (address >> (F::ITEMS_LG2 + 3)) as u32;
    frame
}

/// The address of the table in `frame`.
#[inline]
pub(crate) fn address_of<F: Format>(frame: u32) -> u64 {
    u64::from(frame) << (F::ITEMS_LG2 + 3)
}
