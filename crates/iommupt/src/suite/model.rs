//! What is mapped and what is dirty, as plain lists.

use alloc::vec::Vec;

use crate::{Iova, IovaRange, Pa, Prot, Run};

/// A number that the end of the last range fits.
pub(super) type Wide = u128;

/// IOVA, length, output address.
pub(super) type Old = (Wide, Wide, Wide);

/// Two lists.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    /// Start, length, output address, permissions.
    pub(super) mapped: Vec<(Wide, Wide, Wide, Prot)>,
    /// Start and end of what is dirty, ascending, apart from each other.
    dirty: Vec<(Wide, Wide)>,
}

impl Model {
    pub(super) fn overlaps(&self, start: Wide, length: Wide) -> bool {
        self.mapped.iter().any(|&(at, bytes, ..)| start < at + bytes && at < start + length)
    }

    /// Output address and permissions of an address, and how long the area goes on.
    pub(super) fn find(&self, iova: Wide) -> Option<(Wide, Prot, Wide)> {
        self.mapped
            .iter()
            .find(|&&(at, bytes, ..)| at <= iova && iova < at + bytes)
            .map(|&(at, bytes, pa, prot)| (pa + (iova - at), prot, at + bytes - iova))
    }

    /// Removes a range and returns the runs that were there.
    pub(super) fn unmap(&mut self, start: Wide, length: Wide) -> Vec<Old> {
        let gone = self.take(start, length);
        self.clean(start, start + length);
        merged(gone.into_iter().map(|(at, length, pa, _)| (at, length, pa)).collect())
    }

    /// Changes the permissions of a range.
    pub(super) fn protect(&mut self, start: Wide, length: Wide, prot: Prot) {
        for (at, length, pa, _) in self.take(start, length) {
            self.mapped.push((at, length, pa, prot));
        }
    }

    fn take(&mut self, start: Wide, length: Wide) -> Vec<(Wide, Wide, Wide, Prot)> {
        let end = start + length;
        let mut kept = Vec::new();
        let mut gone = Vec::new();
        for &(at, bytes, pa, prot) in &self.mapped {
            let (low, high) = (start.clamp(at, at + bytes), end.clamp(at, at + bytes));
            for (from, to) in [(at, low), (high, at + bytes)] {
                if from < to {
                    kept.push((from, to - from, pa + (from - at), prot));
                }
            }
            if low < high {
                gone.push((low, high - low, pa + (low - at), prot));
            }
        }
        self.mapped = kept;
        gone
    }

    /// Everything, merged.
    pub(super) fn runs(&self) -> Vec<Old> {
        merged(self.mapped.iter().map(|&(at, length, pa, _)| (at, length, pa)).collect())
    }

    /// The first address past everything.
    pub(super) fn end(&self) -> Wide {
        self.mapped.iter().map(|&(at, length, ..)| at + length).max().unwrap_or(0)
    }

    /// The parts of a range that are mapped.
    pub(super) fn parts(&self, start: Wide, end: Wide) -> Vec<(Wide, Wide)> {
        let clamp =
            |&(at, length, ..): &(Wide, Wide, Wide, Prot)| (at.max(start), (at + length).min(end));
        self.mapped.iter().map(clamp).filter(|(low, high)| low < high).collect()
    }

    /// Makes a range dirty.
    pub(super) fn soil(&mut self, start: Wide, end: Wide) {
        self.dirty.push((start, end));
        self.dirty.sort_unstable();
        let mut merged: Vec<(Wide, Wide)> = Vec::new();
        for &(start, end) in &self.dirty {
            match merged.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        self.dirty = merged;
    }

    /// Makes a range clean.
    pub(super) fn clean(&mut self, start: Wide, end: Wide) {
        let outside = |&(low, high): &(Wide, Wide)| {
            [(low, high.min(start)), (low.max(end), high)]
                .into_iter()
                .filter(|(low, high)| low < high)
        };
        self.dirty = self.dirty.iter().flat_map(outside).collect();
    }

    /// What is dirty in a range.
    pub(super) fn dirty_in(&self, start: Wide, end: Wide) -> Vec<(Wide, Wide)> {
        let inside = |&(low, high): &(Wide, Wide)| (low.max(start), high.min(end));
        self.dirty.iter().map(inside).filter(|(low, high)| low < high).collect()
    }
}

pub(super) fn merged(mut runs: Vec<Old>) -> Vec<Old> {
    runs.sort_unstable();
    let mut all: Vec<Old> = Vec::new();
    for (iova, length, pa) in runs {
        match all.last_mut() {
            Some(before) if before.0 + before.1 == iova && before.2 + before.1 == pa => {
                before.1 += length;
            }
            _ => all.push((iova, length, pa)),
        }
    }
    all
}

pub(super) fn wide(iova: Iova, run: Run) -> Old {
    (iova.0.into(), run.length.into(), run.pa.0.into())
}

pub(super) fn narrow(address: Wide) -> u64 {
    u64::try_from(address).expect("an address")
}

pub(super) fn pa(address: Wide) -> Pa {
    Pa(narrow(address))
}

/// First address and the one past the end.
pub(super) fn ends(range: IovaRange) -> (Wide, Wide) {
    (range.start().0.into(), Wide::from(range.last().0) + 1)
}
