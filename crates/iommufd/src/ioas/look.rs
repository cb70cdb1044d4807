//! What a person sees of an IOAS: its areas, what is reserved by whom, what memory is behind.
//!
//! Whoever looks disturbs nobody: the lock is had for a piece of the areas at a time, and not
//! waited for longer than [`LOOK_PATIENCE`](super::LOOK_PATIENCE), for a call that pins may hold it
//! while it waits for its client. What is seen may therefore be of two moments.

use ioasis_iommupt::{Iova, IovaRange, Prot};

use super::{Area, Ioas};
use crate::client::Kind;
use crate::hw::domain::Domain;

/// One area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AreaLook {
    /// Its IOVAs.
    pub range: IovaRange,
    /// What devices may do there.
    pub prot: Prot,
    /// What the memory behind is.
    pub kind: Kind,
    /// The memory behind its first IOVA: an address of the process, or an offset in the file; not
    /// known while its pages are being pinned.
    pub address: Option<u64>,
    /// The process that mapped it, or took its pages over, as the one that pays for them.
    pub pid: Option<u32>,
    /// Pages of the whole mapping that somebody pays for now.
    pub pinned: Option<u64>,
    /// Its pages are held for page tables.
    pub filled: bool,
    /// The memory is that of a dma-buf that was taken away.
    pub revoked: bool,
}

/// A range nobody may map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedLook {
    /// Which.
    pub range: IovaRange,
    /// By whose word: the token of an endpoint, a group or a page table.
    pub owner: u64,
    /// It lies outside what a page table can translate.
    pub is_aperture: bool,
}

/// One I/O address space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpaceLook {
    /// Areas, ascending.
    pub areas: Vec<AreaLook>,
    /// Areas there are, shown or not.
    pub count: usize,
    /// Ranges that are reserved, ascending; of different owners they may overlap.
    pub reserved: Vec<ReservedLook>,
    /// Ranges that may be mapped, mapped or not, ascending.
    pub allowed: Vec<IovaRange>,
    /// The alignment a mapping must have.
    pub alignment: u64,
    /// How many page tables show it.
    pub domains: usize,
    /// How many accesses are attached.
    pub accesses: usize,
}

/// Areas seen under one hold of the lock.
const PIECE: usize = 512;

impl Ioas {
    /// What there is, with at most `most` areas; `None` while a call has it for longer than a look
    /// waits.
    pub(crate) fn look(&self, most: usize) -> Option<SpaceLook> {
        let mut look = {
            let space = self.lock_to_look()?;
            let is_aperture =
                |owner: u64| space.domains.iter().any(|domain: &_| Domain::token(domain) == owner);
            let mut reserved: Vec<_> = space
                .reserved
                .owned()
                .map(|(range, owner)| ReservedLook {
                    range,
                    owner,
                    is_aperture: is_aperture(owner),
                })
                .collect();
            reserved.sort_by_key(|reserved| (reserved.range.start(), reserved.range.last()));
            SpaceLook {
                areas: Vec::new(),
                count: space.areas.len(),
                reserved,
                allowed: space.reserved.holes(),
                alignment: space.alignment,
                domains: space.domains.len(),
                accesses: space.accesses.len(),
            }
        };
        let mut next = Some(Iova(0));
        while let Some(start) = next
            && look.areas.len() < most
        {
            let space = self.lock_to_look()?;
            let rest = IovaRange::closed(start, Iova(u64::MAX)).expect("it ends at the last IOVA");
            let piece = PIECE.min(most - look.areas.len());
            let before = look.areas.len();
            look.areas.extend(space.areas.overlapping(rest).take(piece).map(seen));
            let last = look.areas.last().filter(|_| look.areas.len() - before == piece);
            next = last.and_then(|area| area.range.last().0.checked_add(1)).map(Iova);
        }
        Some(look)
    }
}

fn seen(area: &Area) -> AreaLook {
    let pages = area.pages.look(area.start_byte);
    AreaLook {
        range: area.range,
        prot: area.prot,
        kind: area.pages.kind(),
        address: pages.map(|(address, ..)| address),
        pid: pages.map(|(_, pid, _)| pid),
        pinned: pages.map(|(.., pinned)| pinned),
        filled: area.filled,
        revoked: area.pages.was_revoked(),
    }
}
