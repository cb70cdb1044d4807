//! Which tables are in use, which wait for their readers, and which are free.

use alloc::vec::Vec;

use crate::arena::Arena;
use crate::quiesce::Quiesce;
use crate::sync::sized;
use ioasis_uapi::{Errno, Error, Result};

/// Retired tables that are worth a grace period.
const RETIRED_BATCH: usize = sized(64, 2, 1);

/// What the writer knows of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meta {
    /// Frame of the table that points here.
    pub(crate) parent: u32,
    /// Where it does.
    pub(crate) slot: u32,
    /// Items that are not empty.
    pub(crate) used: u32,
    /// Level of this table.
    pub(crate) level: u8,
    /// In the list of empty tables.
    listed: bool,
    /// Linked from its parent, or the root.
    linked: bool,
}

const UNUSED: Meta = Meta { parent: 0, slot: 0, used: 0, level: 0, listed: false, linked: false };

/// A table nobody points to yet.
#[derive(Debug)]
pub(crate) struct Blank {
    pub(crate) frame: u32,
    /// Whether its words are known to be zero.
    pub(crate) zeroed: bool,
}

/// The frames of an arena.
#[derive(Debug)]
pub(crate) struct Tables {
    meta: Vec<Meta>,
    free: Vec<u32>,
    /// No longer linked; a reader may still be inside.
    retired: Vec<u32>,
    /// Linked, and were empty when listed.
    idle: Vec<u32>,
    in_use: usize,
    limit: usize,
    /// Tables that can still be had, for tests of what happens when there are none.
    #[cfg(test)]
    pub(crate) allowed: usize,
}

impl Tables {
    /// With the root in the first `root` frames.
    pub(crate) fn new(
        arena: &Arena,
        root: u32,
        items_lg2: u32,
        top_level: u32,
        limit: usize,
    ) -> Result<Self> {
        let mut tables = Self {
            meta: Vec::new(),
            free: Vec::new(),
            retired: Vec::new(),
            idle: Vec::new(),
            in_use: 0,
            limit,
            #[cfg(test)]
            allowed: usize::MAX,
        };
        for _ in 0..root {
            let blank = tables.extend(arena, items_lg2)?;
            let level = u8::try_from(top_level).expect("few levels");
            tables.meta[blank.frame as usize] = Meta { level, linked: true, ..UNUSED };
        }
        Ok(tables)
    }

    /// Tables that are linked, the root among them.
    pub(crate) const fn in_use(&self) -> usize {
        self.in_use
    }

    /// Tables that were ever made: what memory there is.
    #[cfg(all(test, not(any(loom, ioasis_shuttle))))]
    pub(crate) const fn made(&self) -> usize {
        self.meta.len()
    }

    pub(crate) fn meta(&self, frame: u32) -> Meta {
        self.meta[frame as usize]
    }

    /// A table for `level`, to be linked at `slot` of `parent`.
    pub(crate) fn allocate(
        &mut self,
        arena: &Arena,
        items_lg2: u32,
        quiesce: &dyn Quiesce,
    ) -> Result<Blank> {
        #[cfg(test)]
        self.allow(1)?;
        if let Some(frame) = self.free.pop() {
            self.in_use += 1;
            return Ok(Blank { frame, zeroed: false });
        }
        if self.retired.len() < RETIRED_BATCH {
            match self.extend(arena, items_lg2) {
                Ok(blank) => return Ok(blank),
                Err(error) if self.retired.is_empty() => return Err(error),
                Err(_) => {}
            }
        }
        quiesce.wait();
        // Capacity was reserved when the frames were made.
        self.free.append(&mut self.retired);
        let frame = self.free.pop().expect("retired tables became free");
        self.in_use += 1;
        Ok(Blank { frame, zeroed: false })
    }

    /// Makes sure that the next `count` tables can be allocated; on failure those that were found
    /// are kept for later.
    pub(crate) fn reserve(
        &mut self,
        count: usize,
        arena: &Arena,
        items_lg2: u32,
        quiesce: &dyn Quiesce,
    ) -> Result<()> {
        #[cfg(test)]
        self.allow(count)?;
        while self.free.len() < count {
            match self.extend(arena, items_lg2) {
                Ok(blank) => {
                    self.in_use -= 1;
                    self.free.push(blank.frame);
                }
                Err(error) if self.retired.is_empty() => return Err(error),
                Err(_) => {
                    quiesce.wait();
                    self.free.append(&mut self.retired);
                }
            }
        }
        #[cfg(test)]
        {
            self.allowed = self.allowed.saturating_add(count);
        }
        Ok(())
    }

    #[cfg(test)]
    fn allow(&mut self, count: usize) -> Result<()> {
        let left = self.allowed.checked_sub(count);
        self.allowed = left.ok_or(Error::new(Errno::ENOMEM, "the test allows no more tables"))?;
        Ok(())
    }

    fn extend(&mut self, arena: &Arena, items_lg2: u32) -> Result<Blank> {
        let frames = self.meta.len();
        if frames >= self.limit {
            return Err(Error::new(Errno::ENOMEM, "the limit of tables is reached"));
        }
        let frame = u32::try_from(frames)
            .map_err(|_| Error::new(Errno::ENOMEM, "more tables than frame numbers"))?;
        arena.provide(frame, items_lg2)?;
        // Taking tables away must never allocate, so every list has room for every frame.
        for list in [&mut self.free, &mut self.retired, &mut self.idle] {
            let room = frames + 1 - list.len();
            list.try_reserve(room).map_err(|_| NO_LIST)?;
        }
        self.meta.try_reserve(1).map_err(|_| NO_LIST)?;
        self.meta.push(UNUSED);
        self.in_use += 1;
        Ok(Blank { frame, zeroed: true })
    }

    /// Records that `frame` hangs at `slot` of `parent` and holds `used` items.
    pub(crate) fn link(&mut self, frame: u32, parent: u32, slot: u32, used: u32) {
        let level = self.meta[parent as usize].level - 1;
        let listed = self.meta[frame as usize].listed;
        self.meta[frame as usize] = Meta { parent, slot, used, level, listed, linked: true };
        self.meta[parent as usize].used += 1;
        if used == 0 {
            self.note_idle(frame);
        }
    }

    #[inline]
    pub(crate) fn add(&mut self, frame: u32, items: usize) {
        self.meta[frame as usize].used += u32::try_from(items).expect("a table has few items");
    }

    #[inline]
    pub(crate) fn sub(&mut self, frame: u32, items: u32) {
        let meta = &mut self.meta[frame as usize];
        meta.used -= items;
        if meta.used == 0 {
            self.note_idle(frame);
        }
    }

    /// An item of `frame` is about to become a table, which [`link`](Self::link) counts.
    pub(crate) fn sub_for_table(&mut self, frame: u32) {
        self.meta[frame as usize].used -= 1;
    }

    fn note_idle(&mut self, frame: u32) {
        let meta = &mut self.meta[frame as usize];
        if frame != 0 && !meta.listed {
            meta.listed = true;
            self.idle.push(frame);
        }
    }

    /// How many tables were noted as empty.
    pub(crate) const fn idle(&self) -> usize {
        self.idle.len()
    }

    /// A table that is still linked and empty, taken off the list.
    pub(crate) fn pop_idle(&mut self) -> Option<u32> {
        while let Some(frame) = self.idle.pop() {
            let meta = &mut self.meta[frame as usize];
            meta.listed = false;
            if meta.linked && meta.used == 0 {
                return Some(frame);
            }
        }
        None
    }

    /// A table that nothing points to any more.
    pub(crate) fn retire(&mut self, frame: u32) {
        let meta = &mut self.meta[frame as usize];
        assert!(frame != 0 && meta.linked, "a linked table is retired once");
        meta.linked = false;
        self.in_use -= 1;
        self.retired.push(frame);
    }
}

const NO_LIST: Error = Error::new(Errno::ENOMEM, "no memory to keep track of tables");
