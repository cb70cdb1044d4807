//! What a user of a page table sees, whatever its format.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::{self, Debug};

use crate::{Changes, Iova, IovaRange, Pa, Step};
use ioasis_uapi::Result;

bitflags::bitflags! {
    /// Permissions and memory type of a mapping.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Prot: u32 {
        /// The device may read.
        const READ = 1 << 0;
        /// The device may write.
        const WRITE = 1 << 1;
        /// The device may fetch instructions.
        const EXEC = 1 << 2;
        /// Device memory: a BAR page.
        const MMIO = 1 << 3;
        /// Snooping is not enforced.
        const NO_SNOOP = 1 << 4;
        /// For privileged requests only.
        const PRIVILEGED = 1 << 5;
        /// The same in every address space (PASID) of the device.
        const GLOBAL = 1 << 6;
    }
}

/// A contiguous run of output addresses, `length` bytes from `pa`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First output address.
    pub pa: Pa,
    /// Bytes, at least one.
    pub length: u64,
}

/// Why a translation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The first address that could not be translated.
    pub iova: Iova,
    /// The level whose entry stopped the walk; 0 holds only leaves.
    pub level: u32,
    /// What the leaf there does not grant; empty when nothing is mapped. With [`Prot::PRIVILEGED`]
    /// the leaf is for privileged requests only, and this was none.
    pub missing: Prot,
}

/// Whether reading dirty state clears it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dirty {
    /// Leave the bits as they are.
    Keep,
    /// Clear what was read.
    Clear,
}

/// How a table is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Indented lines, equal neighbours joined.
    Tree,
    /// One JSON object: `{"format", "top_level", "items": [..]}`; an item is a table with `items`
    /// of its own or a leaf.
    Json,
}

/// The lock-free side of a page table: any number of threads walk while one writer changes it.
pub trait TableReader: Debug + Send + Sync {
    /// The longest contiguous run that starts at `iova`, at most `length` bytes, all of it granting
    /// `need` as the format's manual has it. `need` says what the request does, and with
    /// [`Prot::PRIVILEGED`] that it is a privileged one (PCIe's Privileged Mode Requested beside a
    /// PASID, SMMUv3's PnU); without, it is kept off what is for privileged requests only. A `need`
    /// with [`Prot::WRITE`] marks what it returns dirty in the same step.
    ///
    /// # Errors
    ///
    /// The fault, when not even the first byte can be translated.
    fn translate(&self, iova: Iova, length: u64, need: Prot) -> Result<Run, Fault>;

    /// The whole leaf that translates `iova`, and its first output address. A `need` with
    /// [`Prot::WRITE`] marks it dirty in the same step.
    ///
    /// # Errors
    ///
    /// The fault, when nothing is mapped there or not with `need`.
    fn leaf(&self, iova: Iova, need: Prot) -> Result<(IovaRange, Pa), Fault>;

    /// The output address behind `iova`, whatever its permissions, without marking anything.
    fn iova_to_phys(&self, iova: Iova) -> Option<Pa>;

    /// What was taken back since, for those who keep translations.
    fn changes(&self) -> Arc<Changes>;

    /// The format's name.
    fn format_name(&self) -> &'static str;

    /// The words that a walk to `iova` passes, the root's first; none outside the aperture. Marks
    /// nothing.
    fn steps(&self, iova: Iova) -> Vec<Step>;

    /// Writes the table as text until `to` takes no more.
    ///
    /// # Errors
    ///
    /// Those of `to`.
    fn write_dump(&self, style: Style, to: &mut dyn fmt::Write) -> fmt::Result;
}

/// The writing side of a page table: one at a time.
pub trait TableWriter: Debug + Send {
    /// The IOVAs this format and size can translate.
    fn aperture(&self) -> IovaRange;

    /// Bit `n` set: leaves of `1 << n` bytes exist.
    fn page_sizes(&self) -> u64;

    /// Maps `runs`, one after another, from `iova`. Nothing may be mapped there yet. On failure the
    /// table is as it was.
    ///
    /// # Errors
    ///
    /// `ENOMEM` without table memory, `ERANGE` outside the aperture or the output size, `EINVAL`
    /// when an address or length is no multiple of the smallest page, `EADDRINUSE` over an existing
    /// mapping.
    fn map(&mut self, iova: Iova, runs: &[Run], prot: Prot) -> Result<()>;

    /// Unmaps `range` and hands the old output runs, merged, in ascending order to `old`. Holes are
    /// skipped; a leaf that straddles an edge is split first.
    ///
    /// # Errors
    ///
    /// `ENOMEM` when splitting a leaf needs a table and there is none; nothing is changed then.
    fn unmap(&mut self, range: IovaRange, old: &mut dyn FnMut(Iova, Run)) -> Result<()>;

    /// Unmaps `range`, whose edges cut no leaf, without looking at what it held. Never fails.
    fn clear(&mut self, range: IovaRange);

    /// Splits whatever leaf straddles `at`, so that a later [`clear`](Self::clear) may start there.
    ///
    /// # Errors
    ///
    /// `ENOMEM` without table memory.
    fn cut(&mut self, at: Iova) -> Result<()>;

    /// Gives every mapped leaf inside `range` the permissions `prot`; leaves that straddle an edge
    /// are split first. Dirty state stays.
    ///
    /// # Errors
    ///
    /// `ENOMEM` when splitting a leaf needs a table and there is none, `EOPNOTSUPP` for a `prot`
    /// the format cannot say; nothing is changed then.
    fn protect(&mut self, range: IovaRange, prot: Prot) -> Result<()>;

    /// Makes the aperture end at `last`, for IOVAs that this table is never to translate.
    ///
    /// # Errors
    ///
    /// `EINVAL` when `last` is not the last byte of a page or lies outside the aperture, `EBUSY`
    /// when something beyond is mapped.
    fn cut_aperture(&mut self, last: Iova) -> Result<()>;

    /// Calls `found` for every dirty range inside `range`, ascending.
    fn read_dirty(&mut self, range: IovaRange, dirty: Dirty, found: &mut dyn FnMut(IovaRange));

    /// Marks every mapped leaf inside `range` dirty.
    fn set_dirty(&mut self, range: IovaRange);

    /// A handle for translating threads.
    fn reader(&self) -> Arc<dyn TableReader>;
}
