//! The model's address spaces: what maps, copies and unmaps do to lists of areas.

use ioasis_uapi::Errno;

use super::model::{Answer, Area, Ioas, Map, Model, Owner, PAGE};
use super::step::{Range, Rw, Source};
use crate::account::Rule;

/// A piece of a map that is to be shown.
#[derive(Clone, Debug)]
pub(super) struct Slice {
    pub(super) map: usize,
    pub(super) first: u64,
    pub(super) length: u64,
}

/// Last byte of a range.
pub(super) fn last_of((start, length): Range) -> Answer<u64> {
    let span = length.checked_sub(1).ok_or(Errno::EINVAL)?;
    start.checked_add(span).ok_or(Errno::EOVERFLOW)
}

/// Ranges, ascending, with those that touch as one.
fn merged(ranges: &[Range]) -> Vec<Range> {
    let mut merged: Vec<Range> = Vec::new();
    for &(start, last) in ranges {
        match merged.last_mut() {
            Some(before) if before.1 + 1 == start => before.1 = last,
            _ => merged.push((start, last)),
        }
    }
    merged
}

impl Model {
    pub(super) fn alignment(&self, ioas: usize) -> u64 {
        let ioas = &self.ioases[ioas];
        let pins = |access: &usize| {
            self.accesses[*access].as_ref().is_some_and(|access| access.pins_pages)
        };
        let page = !ioas.domains.is_empty() || ioas.accesses.iter().any(pins) || ioas.small;
        if page { PAGE } else { 1 }
    }

    /// Whether what is mapped has the alignment of a page.
    pub(super) fn check_aligned(&self, ioas: usize) -> Answer<()> {
        let odd = |area: &Area| !(area.start | area.length | area.first).is_multiple_of(PAGE);
        if self.alignment(ioas) < PAGE && self.ioases[ioas].areas.iter().any(odd) {
            return Err(Errno::EADDRINUSE);
        }
        Ok(())
    }

    pub(super) fn reserve(
        &mut self,
        ioas: usize,
        start: u64,
        last: u64,
        owner: Owner,
    ) -> Answer<()> {
        let space = &mut self.ioases[ioas];
        let allowed = space.allowed.iter().any(|&(from, to)| from <= last && start <= to);
        if allowed || space.areas.iter().any(|area| area.hits(start, last)) {
            return Err(Errno::EADDRINUSE);
        }
        space.reserved.push((start, last, owner));
        Ok(())
    }

    pub(super) fn unreserve(&mut self, ioas: usize, owner: Owner) {
        self.ioases[ioas].reserved.retain(|&(_, _, of)| of != owner);
    }

    pub(super) fn new_map(&mut self, source: Source, write: bool, payer: u32, rule: Rule) -> Slice {
        let page = source.offset / PAGE * PAGE;
        self.maps.push(Map {
            space: source.space,
            page,
            writable: write,
            payer,
            rule,
            process: 0,
            buffer: false,
            revoked: false,
        });
        Slice { map: self.maps.len() - 1, first: source.offset % PAGE, length: source.length }
    }

    /// Shows slices at `at`, or where `given` says that they went; returns where.
    pub(super) fn show(
        &mut self,
        ioas: usize,
        slices: &[Slice],
        at: Option<u64>,
        given: Answer<u64>,
        prot: Rw,
    ) -> Answer<u64> {
        let alignment = self.alignment(ioas);
        let length: u64 = slices.iter().map(|slice| slice.length).sum();
        if !length.is_multiple_of(alignment) {
            return Err(Errno::EINVAL);
        }
        let iova = match at {
            Some(iova) => {
                if !iova.is_multiple_of(alignment) {
                    return Err(Errno::EINVAL);
                }
                let last = last_of((iova, length))?;
                let hit = |&(from, to, _): &(u64, u64, Owner)| from <= last && iova <= to;
                if self.ioases[ioas].reserved.iter().any(hit) {
                    return Err(Errno::EINVAL);
                }
                iova
            }
            None => self.free(ioas, &slices[0], length, alignment, given)?,
        };
        let last = iova + (length - 1);
        if self.ioases[ioas].areas.iter().any(|area| area.hits(iova, last)) {
            return Err(Errno::EEXIST);
        }
        for slice in slices {
            if prot.write && !self.maps[slice.map].writable {
                return Err(Errno::EPERM);
            }
            if !(slice.first % PAGE).is_multiple_of(alignment) {
                return Err(Errno::EINVAL);
            }
        }
        let mut made = Vec::new();
        let mut next = iova;
        for slice in slices {
            let &Slice { map, first, length } = slice;
            made.push(Area { start: next, length, map, first, prot, kept: false });
            next = next.wrapping_add(length);
        }
        if !self.ioases[ioas].domains.is_empty() {
            self.fill(&mut self.pinned(), made.iter())?;
        }
        let areas = &mut self.ioases[ioas].areas;
        areas.extend(made);
        areas.sort_by_key(|area| area.start);
        Ok(iova)
    }

    /// Whether the place that was chosen is as good as any, or none had been.
    fn free(
        &self,
        ioas: usize,
        slice: &Slice,
        length: u64,
        alignment: u64,
        given: Answer<u64>,
    ) -> Answer<u64> {
        let address = self.address(slice);
        let mut align = length.next_power_of_two().min(1 << 21);
        if address != 0 {
            align = align.min(1 << address.trailing_zeros());
        }
        if align < alignment {
            return Err(Errno::EINVAL);
        }
        let space = &self.ioases[ioas];
        let allowed = merged(&space.allowed);
        let in_page = address % PAGE;
        let fits = |start: u64| {
            let Some(last) = start.checked_add(length - 1) else { return false };
            let inside = |&(from, to): &(u64, u64)| from <= start && last <= to;
            let reserved = |&(from, to, _): &(u64, u64, Owner)| from <= last && start <= to;
            start >= PAGE
                && start & in_page == in_page
                && last <= u64::MAX - PAGE
                && (allowed.is_empty() || allowed.iter().any(inside))
                && !space.reserved.iter().any(reserved)
                && !space.areas.iter().any(|area| area.hits(start, last))
        };
        match given {
            Ok(start) => {
                if fits(start) && start.is_multiple_of(align) {
                    Ok(start)
                } else {
                    panic!("{start:#x} was given and is not free: {space:?}")
                }
            }
            // Only a short list of allowed ranges leaves no room.
            Err(Errno::ENOSPC) => {
                let mut starts = allowed.iter().flat_map(|&(from, to)| {
                    let first = from.next_multiple_of(align) | in_page;
                    (0..8).map(move |turn| first + turn * align).filter(move |start| *start < to)
                });
                assert!(!allowed.is_empty() && !starts.any(fits), "there is room");
                Err(Errno::ENOSPC)
            }
            // Refused for another reason, whatever the place was.
            Err(_) => Ok((1 << 60) | in_page),
        }
    }

    /// The address a client knows a slice by.
    fn address(&self, slice: &Slice) -> u64 {
        let map = &self.maps[slice.map];
        // A dma-buf is known by its offsets.
        let base = if map.buffer { 0 } else { super::system::base_of(map.space) };
        base + map.page + slice.first
    }

    /// The pieces of maps behind a range.
    pub(super) fn slices(&self, ioas: usize, start: u64, last: u64) -> Answer<Vec<Slice>> {
        let (parts, whole) = self.ioases[ioas].cover(start, last);
        if !whole {
            return Err(Errno::ENOENT);
        }
        let slice = |(area, from, to): (&Area, u64, u64)| Slice {
            map: area.map,
            first: area.byte(from),
            length: to - from + 1,
        };
        Ok(parts.into_iter().map(slice).collect())
    }

    /// Removes what lies in a range; bytes gone, and what stopped it.
    pub(super) fn unmap(&mut self, ioas: usize, start: u64, last: u64) -> (u64, Answer<()>) {
        let mut bytes = 0;
        loop {
            let space = &self.ioases[ioas];
            let Some(at) = space.areas.iter().position(|area| area.hits(start, last)) else {
                return (bytes, Ok(()));
            };
            let area = space.areas[at].clone();
            if area.start < start || area.last() > last {
                return (bytes, Err(Errno::ENOENT));
            }
            for access in space.accesses.clone() {
                self.let_go(access, area.start, area.last());
            }
            let space = &mut self.ioases[ioas];
            space.areas.remove(at);
            let gone: Vec<usize> = space.domains.clone();
            for domain in gone {
                let dirty = &mut self.domains[domain].dirty;
                dirty.retain(|page| !area.hits(*page, *page));
            }
            bytes += area.length;
        }
    }

    /// The dma-buf is revoked: nothing of it is shown any more, though what was pinned stays so.
    pub(super) fn revoke(&mut self, renew: bool) {
        let gone = |map: &Map| map.buffer && !map.revoked;
        for Ioas { areas, domains, .. } in &mut self.ioases {
            for area in areas.iter_mut().filter(|area| gone(&self.maps[area.map])) {
                area.kept = !domains.is_empty();
                for domain in &*domains {
                    self.domains[*domain].dirty.retain(|page| !area.hits(*page, *page));
                }
            }
        }
        self.maps.iter_mut().filter(|map| map.buffer).for_each(|map| map.revoked = true);
        self.revoked = !renew;
    }

    /// An access that pins unpins whatever touches a range.
    pub(super) fn let_go(&mut self, access: usize, start: u64, last: u64) {
        let access = self.accesses[access].as_mut().unwrap();
        access.pins.retain(|&(from, length), _| from > last || from + (length - 1) < start);
    }

    /// Cuts the area around `last` behind it.
    pub(super) fn cut(&mut self, ioas: usize, last: u64) -> Answer<()> {
        let alignment = self.alignment(ioas);
        let space = &self.ioases[ioas];
        let Some(at) = space.index(last) else { return Ok(()) };
        let area = space.areas[at].clone();
        // iopt_area_split: an area is cut neither at its end nor behind its first byte.
        if area.last() == last || area.start == last {
            return Ok(());
        }
        if self.maps[area.map].buffer {
            return Err(Errno::EOPNOTSUPP);
        }
        let next = last + 1;
        if !next.is_multiple_of(alignment) || !area.byte(next).is_multiple_of(alignment) {
            return Err(Errno::EINVAL);
        }
        let pinned = |access: &usize| {
            let pins = &self.accesses[*access].as_ref().unwrap().pins;
            pins.keys().any(|&(from, length)| area.hits(from, from + (length - 1)))
        };
        if space.accesses.iter().any(pinned) || (!space.domains.is_empty() && !space.small) {
            return Err(Errno::EINVAL);
        }
        let tail = Area {
            start: next,
            length: area.last() - last,
            first: area.byte(next),
            ..area.clone()
        };
        let areas: &mut Vec<Area> = &mut self.ioases[ioas].areas;
        areas[at].length = next - area.start;
        areas.insert(at + 1, tail);
        Ok(())
    }

    /// The ranges that may be mapped.
    pub(super) fn holes(&self, ioas: usize) -> Vec<(u64, u64)> {
        let Ioas { reserved, .. } = &self.ioases[ioas];
        let mut sorted: Vec<(u64, u64)> =
            reserved.iter().map(|&(start, last, _)| (start, last)).collect();
        sorted.sort_unstable();
        let mut holes = Vec::new();
        let mut next = Some(0);
        for (start, last) in sorted {
            let Some(from) = next else { break };
            if start > from {
                holes.push((from, start - 1));
            }
            next = last.checked_add(1).map(|after: u64| after.max(from));
        }
        holes.extend(next.map(|from| (from, u64::MAX)));
        holes
    }
}
