//! DMA: what a device model does with the addresses on its bus.
//!
//! Every call translates anew, inside one section of [`Machine::quiesce`](crate::Machine): once an unmap or a detach has waited for the
//! sections that were open, no call uses what it took away. Pieces that lie in one backing become one
//! vectored copy.

use std::sync::Arc;

use arc_swap::Guard;
use ioasis_iommupt::{Fault, Iova, Prot, Run, Section};
use ioasis_uapi::Result;

use crate::device::NO_PASID;
use crate::fault::{PageRequest, PageResponse, perm_of};
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

/// A device's transactions with one PASID.
#[derive(Clone, Copy, Debug)]
pub struct PasidDma<'a> {
    endpoint: &'a Endpoint,
    pasid: u32,
}

impl PasidDma<'_> {
    /// [`Endpoint::read`], with the PASID.
    ///
    /// # Errors
    ///
    /// The first address that faulted.
    pub fn read(
        &self,
        segments: impl IntoIterator<Item = Segment>,
        buf: &mut [u8],
    ) -> Result<(), DmaFault> {
        self.endpoint.transfer(self.pasid, segments, Inbound(buf))
    }

    /// [`Endpoint::write`], with the PASID.
    ///
    /// # Errors
    ///
    /// The first address that faulted.
    pub fn write(
        &self,
        segments: impl IntoIterator<Item = Segment>,
        buf: &[u8],
    ) -> Result<(), DmaFault> {
        self.endpoint.transfer(self.pasid, segments, Outbound(buf))
    }
}

impl Attachment {
    fn translate(&self, pasid: u32, iova: Iova, length: u64, need: Prot) -> Result<Run, Fault> {
        match &self.nested {
            None => self.domain.reader().translate(iova, length, need),
            Some(nested) => nested.translate(pasid, iova, length, need),
        }
    }
}

impl Endpoint {
    /// Fills `buf` from `segments`, one after another; their lengths add up to `buf.len()`. Waits for the client where a page is
    /// missing that the device may ask for.
    ///
    /// # Errors
    ///
    /// The first address that faulted; bytes before it may have been copied.
    pub fn read(
        &self,
        segments: impl IntoIterator<Item = Segment>,
        buf: &mut [u8],
    ) -> Result<(), DmaFault> {
        self.transfer(NO_PASID, segments, Inbound(buf))
    }

    /// Writes `buf` to `segments`, one after another; their lengths add up to `buf.len()`. Waits as [`read`](Self::read) does.
    ///
    /// # Errors
    ///
    /// The first address that faulted; bytes before it may have been written.
    pub fn write(
        &self,
        segments: impl IntoIterator<Item = Segment>,
        buf: &[u8],
    ) -> Result<(), DmaFault> {
        self.transfer(NO_PASID, segments, Outbound(buf))
    }

    /// Transactions with `pasid`, which is not 0.
    #[must_use]
    pub fn with_pasid(&self, pasid: u32) -> PasidDma<'_> {
        PasidDma { endpoint: self, pasid }
    }

    fn transfer<T: Transfer>(
        &self,
        pasid: u32,
        segments: impl IntoIterator<Item = Segment>,
        mut transfer: T,
    ) -> Result<(), DmaFault> {
        let mut segments = segments.into_iter();
        let Some(first) = segments.next() else { return Ok(()) };
        let second = segments.next();
        // Most transfers are one run of memory: those gather nothing.
        if second.is_none() && self.copy_one_run(pasid, first, &mut transfer)? {
            return Ok(());
        }
        let machine = self.machine();
        let mut batch = Batch::empty();
        let mut section = Section::enter(&*machine.quiesce);
        let mut attachment = self.attachment(pasid);
        for segment in std::iter::once(first).chain(second).chain(segments) {
            let mut rest = segment;
            while let Err((refusal, left)) =
                walk(&machine.phys, attachment.as_ref(), pasid, rest, &mut batch, &mut transfer)
            {
                // What came before the missing page is copied while its translations count.
                let flushed = batch.flush(&mut transfer);
                drop(section);
                if let Err(refusal) = flushed {
                    return Err(self.refuse(attachment.as_ref(), pasid, refusal, T::NEED));
                }
                if !self.ask_for_page(attachment.as_ref(), pasid, refusal, T::NEED) {
                    return Err(self.refuse(attachment.as_ref(), pasid, refusal, T::NEED));
                }
                section = Section::enter(&*machine.quiesce);
                attachment = self.attachment(pasid);
                rest = left;
            }
        }
        let flushed = batch.flush(&mut transfer);
        drop(section);
        flushed.map_err(|refusal| self.refuse(attachment.as_ref(), pasid, refusal, T::NEED))
    }

    /// Copies a segment that is one run; says whether it was, else nothing is done.
    fn copy_one_run<T: Transfer>(
        &self,
        pasid: u32,
        segment: Segment,
        transfer: &mut T,
    ) -> Result<bool, DmaFault> {
        let machine = self.machine();
        let section = Section::enter(&*machine.quiesce);
        let guard = self.group().attachment();
        let Some(attachment) = guard.as_ref().filter(|_| pasid == NO_PASID) else {
            return Ok(false);
        };
        let length = segment.length as u64;
        let run = match attachment.translate(pasid, segment.iova, length, T::NEED) {
            Ok(run) if run.length == length && length > 0 => run,
            _ => return Ok(false),
        };
        let copied = {
            let window = machine.phys.window(run.pa);
            window.as_ref().is_some_and(|window| {
                let piece = Piece { offset: Phys::offset(window, run.pa), length: segment.length };
                transfer.copy(&*window.backing, &[piece], segment.length).is_ok()
            })
        };
        drop(section);
        if copied {
            return Ok(true);
        }
        let refusal = Refusal { iova: segment.iova, reason: Reason::MemoryGone };
        Err(self.refuse(Some(attachment), pasid, refusal, T::NEED))
    }

    /// Whether the client was asked for the page and says that it is there now.
    fn ask_for_page(
        &self,
        attachment: Option<&Arc<Attachment>>,
        pasid: u32,
        refusal: Refusal,
        need: Prot,
    ) -> bool {
        let missing =
            matches!(refusal.reason, Reason::NotMapped | Reason::NotNested | Reason::Missing(_));
        let Some(attachment) = attachment.filter(|_| missing && self.config().pri) else {
            return false;
        };
        let Some(queue) = attachment.faults.as_ref().filter(|_| !self.is_silenced()) else {
            return false;
        };
        let request = PageRequest {
            attachment: attachment.token,
            device: self.device_id(),
            pasid,
            group: 0,
            iova: refusal.iova,
            perm: perm_of(need),
        };
        // A request sent through an attachment that went meanwhile would wait for ever.
        let same = || self.attachment(pasid).is_some_and(|now| now.token == attachment.token);
        let stands = || !self.is_silenced() && same();
        queue.request(request, stands) == PageResponse::Success
    }

    fn refuse(
        &self,
        attachment: Option<&Arc<Attachment>>,
        pasid: u32,
        refusal: Refusal,
        need: Prot,
    ) -> DmaFault {
        self.record(attachment, pasid, refusal, need);
        if let Some(guest) = attachment.and_then(|attachment| attachment.guest.as_ref()) {
            guest.report(refusal.iova, need);
        }
        DmaFault { iova: refusal.iova }
    }

    fn record(
        &self,
        attachment: Option<&Arc<Attachment>>,
        pasid: u32,
        refusal: Refusal,
        need: Prot,
    ) {
        // The IOAS of a client's own table is its parent's, whose addresses are others.
        let of_ioas = attachment.filter(|attachment| attachment.nested.is_none());
        let ioas = of_ioas.and_then(|attachment| attachment.ioas.upgrade());
        let (nearest, unmapped) = match ioas.as_ref().and_then(|ioas| ioas.try_lock()) {
            Some(space) => {
                let past = space.past_unmap(refusal.iova);
                (space.areas.nearest(refusal.iova), past.map(|past| (past.range, past.pid)))
            }
            None => (None, None),
        };
        self.machine().faults.record(RefusedDma {
            device: self.config().name.clone(),
            pasid,
            iova: refusal.iova,
            need,
            reason: refusal.reason,
            nearest,
            unmapped,
        });
    }
}

/// Adds the pieces of `segment` to the batch; on failure says what is left of it.
fn walk<T: Transfer>(
    phys: &Phys,
    attachment: Option<&Arc<Attachment>>,
    pasid: u32,
    segment: Segment,
    batch: &mut Batch,
    transfer: &mut T,
) -> Result<(), (Refusal, Segment)> {
    let Segment { iova: mut at, length: mut left } = segment;
    while left > 0 {
        let rest = Segment { iova: at, length: left };
        let Some(attachment) = attachment else {
            return Err((Refusal { iova: at, reason: Reason::Blocked }, rest));
        };
        let run = attachment.translate(pasid, at, left as u64, T::NEED).map_err(|fault| {
            let reason = match attachment.nested {
                _ if !fault.missing.is_empty() => Reason::Missing(fault.missing),
                None => Reason::NotMapped,
                Some(_) => Reason::NotNested,
            };
            (Refusal { iova: fault.iova, reason }, rest)
        })?;
        batch.add(phys, at, run, transfer).map_err(|refusal| (refusal, rest))?;
        at = Iova(at.0.wrapping_add(run.length));
        left -= usize::try_from(run.length).expect("a run fits the segment it was asked for");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
