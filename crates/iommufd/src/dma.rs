//! DMA: what a device model does with the addresses on its bus.
//!
//! Every call translates anew, inside one section of [`Machine::quiesce`](crate::Machine): once an unmap or a detach has waited for the
//! sections that were open, no call uses what it took away. Pieces that lie in one backing become one
//! vectored copy.

use std::sync::Arc;

use arc_swap::Guard;
use ioasis_iommupt::{Iova, Prot, Run, Section, TableReader};
use ioasis_uapi::Result;

use crate::faultlog::{Reason, RefusedDma};
use crate::iommu::{Attachment, Endpoint};
use crate::phys::{Phys, Window};
use crate::{Backing, Piece};

/// One piece of a scattered transfer, by the address the device puts on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// I/O virtual address.
    pub iova: Iova,
    /// Bytes.
    pub length: usize,
}

/// DMA that the IOMMU, or the memory behind it, refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaFault {
    /// The first address that could not be reached.
    pub iova: Iova,
}

/// Pieces gathered before they are copied.
const PIECES: usize = 64;

/// The two directions, over the bytes of the device's own buffer.
trait Transfer {
    const NEED: Prot;

    /// Copies the next bytes of the buffer.
    fn copy(&mut self, backing: &dyn Backing, pieces: &[Piece], length: usize) -> Result<()>;
}

/// From memory into the device.
struct Inbound<'a>(&'a mut [u8]);

/// From the device into memory.
struct Outbound<'a>(&'a [u8]);

impl Transfer for Inbound<'_> {
    const NEED: Prot = Prot::READ;

    fn copy(&mut self, backing: &dyn Backing, pieces: &[Piece], length: usize) -> Result<()> {
        let (now, rest) = std::mem::take(&mut self.0).split_at_mut(length);
        self.0 = rest;
        backing.read(pieces, now)
    }
}

impl Transfer for Outbound<'_> {
    const NEED: Prot = Prot::WRITE;

    fn copy(&mut self, backing: &dyn Backing, pieces: &[Piece], length: usize) -> Result<()> {
        let (now, rest) = self.0.split_at(length);
        self.0 = rest;
        backing.write(pieces, now)
    }
}

/// Pieces of one window that wait to be copied together.
struct Batch {
    window: Guard<Option<Arc<Window>>>,
    pieces: [Piece; PIECES],
    count: usize,
    length: usize,
    first: Iova,
}

impl Batch {
    fn empty() -> Self {
        Self {
            window: Guard::from_inner(None),
            pieces: [Piece { offset: 0, length: 0 }; PIECES],
            count: 0,
            length: 0,
            first: Iova(0),
        }
    }

    fn flush<T: Transfer>(&mut self, transfer: &mut T) -> Result<(), Refusal> {
        if self.count == 0 {
            return Ok(());
        }
        let window = self.window.as_ref().expect("a batch has a window");
        let copied = transfer.copy(&*window.backing, &self.pieces[..self.count], self.length);
        self.count = 0;
        self.length = 0;
        copied.map_err(|_| Refusal { iova: self.first, reason: Reason::MemoryGone })
    }

    fn add<T: Transfer>(
        &mut self,
        phys: &Phys,
        at: Iova,
        run: Run,
        transfer: &mut T,
    ) -> Result<(), Refusal> {
        let same = self.count > 0 && self.count < PIECES && {
            let window = self.window.as_ref().expect("a batch has a window");
            phys.window(run.pa).as_ref().is_some_and(|other| Arc::ptr_eq(window, other))
        };
        if !same {
            self.flush(transfer)?;
            self.window = phys.window(run.pa);
            self.first = at;
        }
        let Some(window) = self.window.as_ref() else {
            return Err(Refusal { iova: at, reason: Reason::MemoryGone });
        };
        let offset = Phys::offset(window, run.pa);
        let length = usize::try_from(run.length).expect("a run fits the segment it was asked for");
        let touching = self.pieces[..self.count]
            .last_mut()
            .filter(|last| last.offset + last.length as u64 == offset);
        match touching {
            Some(last) => last.length += length,
            None => {
                self.pieces[self.count] = Piece { offset, length };
                self.count += 1;
            }
        }
        self.length += length;
        Ok(())
    }
}

#[derive(Clone, Copy, Debug)]
struct Refusal {
    iova: Iova,
    reason: Reason,
}

fn translate<T: Transfer>(reader: &dyn TableReader, at: Iova, left: u64) -> Result<Run, Refusal> {
    reader.translate(at, left, T::NEED).map_err(|fault| {
        let reason = if fault.missing.is_empty() {
            Reason::NotMapped
        } else {
            Reason::Missing(fault.missing)
        };
        Refusal { iova: fault.iova, reason }
    })
}

/// A transfer of one segment that is one run.
fn copy_run<T: Transfer>(
    phys: &Phys,
    segment: Segment,
    run: Run,
    transfer: &mut T,
) -> Result<(), Refusal> {
    let gone = Refusal { iova: segment.iova, reason: Reason::MemoryGone };
    let window = phys.window(run.pa);
    let Some(window) = window.as_ref() else { return Err(gone) };
    let piece = Piece { offset: Phys::offset(window, run.pa), length: segment.length };
    transfer.copy(&*window.backing, &[piece], segment.length).map_err(|_| gone)
}

/// A transfer of any shape.
fn gather<T: Transfer>(
    phys: &Phys,
    reader: &dyn TableReader,
    segments: impl Iterator<Item = Segment>,
    transfer: &mut T,
) -> Result<(), Refusal> {
    let mut batch = Batch::empty();
    for segment in segments {
        let mut at = segment.iova;
        let mut left = segment.length as u64;
        while left > 0 {
            let run = translate::<T>(reader, at, left)?;
            batch.add(phys, at, run, transfer)?;
            at = Iova(at.0.wrapping_add(run.length));
            left -= run.length;
        }
    }
    batch.flush(transfer)
}

impl Endpoint {
    /// Fills `buf` from `segments`, one after another; their lengths add up to `buf.len()`.
    ///
    /// # Errors
    ///
    /// The first address that faulted; bytes before it may have been copied.
    pub fn read(
        &self,
        segments: impl IntoIterator<Item = Segment>,
        buf: &mut [u8],
    ) -> Result<(), DmaFault> {
        self.transfer(segments, Inbound(buf))
    }

    /// Writes `buf` to `segments`, one after another; their lengths add up to `buf.len()`.
    ///
    /// # Errors
    ///
    /// The first address that faulted; bytes before it may have been written.
    pub fn write(
        &self,
        segments: impl IntoIterator<Item = Segment>,
        buf: &[u8],
    ) -> Result<(), DmaFault> {
        self.transfer(segments, Outbound(buf))
    }

    fn transfer<T: Transfer>(
        &self,
        segments: impl IntoIterator<Item = Segment>,
        mut transfer: T,
    ) -> Result<(), DmaFault> {
        let machine = self.machine();
        let section = Section::enter(&*machine.quiesce);
        let attachment = self.group().attachment();
        let refused = self.walk(attachment.as_ref(), segments, &mut transfer);
        drop(section);
        refused.map_err(|refusal| {
            self.record(attachment.as_ref(), refusal, T::NEED);
            DmaFault { iova: refusal.iova }
        })
    }

    fn walk<T: Transfer>(
        &self,
        attachment: Option<&Arc<Attachment>>,
        segments: impl IntoIterator<Item = Segment>,
        transfer: &mut T,
    ) -> Result<(), Refusal> {
        let mut segments = segments.into_iter();
        let Some(first) = segments.next() else { return Ok(()) };
        let Some(attachment) = attachment else {
            return Err(Refusal { iova: first.iova, reason: Reason::Blocked });
        };
        let phys = &self.machine().phys;
        let reader = &**attachment.domain.reader();
        let second = segments.next();
        // Most transfers are one run of memory: those gather nothing.
        if second.is_none() && first.length > 0 {
            let run = translate::<T>(reader, first.iova, first.length as u64)?;
            if run.length == first.length as u64 {
                return copy_run(phys, first, run, transfer);
            }
        }
        gather(phys, reader, [Some(first), second].into_iter().flatten().chain(segments), transfer)
    }

    fn record(&self, attachment: Option<&Arc<Attachment>>, refusal: Refusal, need: Prot) {
        let ioas = attachment.and_then(|attachment| attachment.ioas.upgrade());
        let (nearest, unmapped) = match ioas.as_ref().and_then(|ioas| ioas.try_lock()) {
            Some(space) => {
                let past = space.past_unmap(refusal.iova);
                (space.areas.nearest(refusal.iova), past.map(|past| (past.range, past.pid)))
            }
            None => (None, None),
        };
        self.machine().faults.record(RefusedDma {
            device: self.config().name.clone(),
            iova: refusal.iova,
            need,
            reason: refusal.reason,
            nearest,
            unmapped,
        });
    }
}

#[cfg(test)]
mod tests;
