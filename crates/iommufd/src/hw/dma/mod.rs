//! DMA: what a device model does with the addresses on its bus.
//!
//! Every call translates anew, inside a section of its group: once an unmap or a detach has waited
//! for the sections that were open, no call uses what it took away. Pieces that lie in one backing
//! become one vectored copy. A copy that ends by itself happens inside the section. One that may
//! wait for somebody ([`Backing::may_wait`]) is noted in the section and happens after it, so that
//! only those wait for it who take away what it uses (`underway`); each such copy has a section of
//! its own.
//!
//! No translation and no table is remembered here: of a 4 KiB transfer about 30 ns are not its
//! bytes, 6 to 8 of them the walk. `WalkCache` would save 3, `Iotlb` 5 on a hit, for 72 and 256 KiB
//! of cache that every thread and table wants for itself.

mod section;

use std::sync::Arc;

use ioasis_iommupt::{Fault, Iova, IovaRange, Prot, Run};
use ioasis_sys::published::Held;
use ioasis_uapi::Result;
use smallvec::SmallVec;

use super::attachment::Attachment;
use super::endpoint::Endpoint;
use super::faultlog::{Reason, RefusedDma};
use super::iommu::NO_PASID;
use super::nested::{Ahead, Missed};
use super::page_request::{PageRequest, PageResponse, perm_of};
use super::pe::Frozen;
use super::phys::{Phys, Window};
use super::underway::Route;
use crate::client::{Backing, Piece};

pub use section::{DmaSection, Reached, Unreached};

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
struct Batch<'a> {
    phys: &'a Phys,
    /// While pieces wait in it nobody else has its place in physical space.
    window: Option<Held<'a, Window>>,
    place: u64,
    pieces: SmallVec<[Piece; PIECES]>,
    /// Where they are in the domain, if copying them may wait.
    ranges: SmallVec<[IovaRange; PIECES]>,
    length: usize,
    first: Iova,
}

/// Where an address leads.
#[derive(Clone, Copy, Debug)]
struct Spot {
    /// In the domain.
    at: Iova,
    run: Run,
}

impl Spot {
    fn range(&self) -> IovaRange {
        IovaRange::new(self.at, self.run.length).expect("a run is not empty and does not wrap")
    }
}

impl<'a> Batch<'a> {
    fn empty(phys: &'a Phys) -> Self {
        Self {
            phys,
            window: None,
            place: 0,
            pieces: SmallVec::new(),
            ranges: SmallVec::new(),
            length: 0,
            first: Iova(0),
        }
    }

    /// Whether copying what waits in it may wait for somebody.
    fn may_wait(&self) -> bool {
        !self.ranges.is_empty()
    }

    fn flush<T: Transfer>(&mut self, transfer: &mut T) -> Result<(), Refusal> {
        if self.pieces.is_empty() {
            return Ok(());
        }
        let window = self.window.as_ref().expect("a batch has a window");
        let copied = transfer.copy(&*window.backing, &self.pieces, self.length);
        self.pieces.clear();
        self.ranges.clear();
        self.length = 0;
        copied.map_err(|error| Refusal { iova: self.first, reason: Reason::Memory(error.why) })
    }

    fn add<T: Transfer>(&mut self, at: Iova, spot: Spot, transfer: &mut T) -> Result<(), Stop> {
        let run = spot.run;
        let place = Phys::place(run.pa);
        if self.pieces.is_empty() || self.pieces.len() == PIECES || place != self.place {
            if self.may_wait() {
                return Err(Stop::Full);
            }
            self.flush(transfer)?;
            self.window = None;
            self.window = self.phys.hold_window(run.pa);
            self.place = place;
            self.first = at;
        }
        let Some(window) = self.window.as_ref() else {
            return Err(Refusal { iova: at, reason: Reason::GONE }.into());
        };
        let offset = Phys::offset(window, run.pa);
        let length = usize::try_from(run.length).expect("a run fits the segment it was asked for");
        let touching =
            self.pieces.last_mut().filter(|last| last.offset + last.length as u64 == offset);
        match touching {
            Some(last) => last.length += length,
            None => self.pieces.push(Piece { offset, length }),
        }
        self.length += length;
        if window.backing.may_wait() {
            self.ranges.push(spot.range());
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug)]
struct Refusal {
    iova: Iova,
    reason: Reason,
}

/// Why gathering ends before the transfer does.
#[derive(Clone, Copy, Debug)]
enum Stop {
    Refused(Refusal),
    /// What was gathered must be copied first, outside the section.
    Full,
    /// The client's own table must be walked first for this address, outside the section.
    WalkAhead(Iova),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
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
    fn translate(
        &self,
        (pasid, iova): (u32, Iova),
        length: u64,
        need: Prot,
        ahead: Option<&Ahead>,
    ) -> Result<Spot, Missed> {
        let (at, run) = match &self.nested {
            None => (iova, self.domain.reader().translate(iova, length, need)?),
            Some(nested) => nested.translate((pasid, iova), length, need, ahead)?,
        };
        Ok(Spot { at, run })
    }

    fn route(&self, need: Prot) -> Route {
        Route {
            attachment: self.token,
            domain: self.domain.token(),
            nested: self.nested.is_some(),
            writes: need.contains(Prot::WRITE),
        }
    }
}

impl Endpoint {
    /// Fills `buf` from `segments`, one after another; their lengths add up to `buf.len()`. Waits
    /// for the client where a page is missing that the device may ask for.
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

    /// Writes `buf` to `segments`, one after another; their lengths add up to `buf.len()`. Waits as
    /// [`read`](Self::read) does.
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
        let segments = second.into_iter().chain(segments);
        let mut rest = Rest { segment: first, segments, done: false, ahead: None };
        loop {
            let (attachment, refusal) = match self.transfer_more(pasid, &mut rest, &mut transfer) {
                (_, Ok(())) => return Ok(()),
                (_, Err(Stop::Full)) => continue,
                (attachment, Err(Stop::WalkAhead(iova))) => {
                    let attachment = attachment.expect("something was translated through it");
                    rest.ahead = Some(self.walk_ahead(&attachment, pasid, iova));
                    continue;
                }
                (attachment, Err(Stop::Refused(refusal))) => (attachment, refusal),
            };
            if !self.ask_for_page(attachment.as_ref(), pasid, refusal, T::NEED) {
                return Err(self.refuse(attachment.as_ref(), pasid, refusal, T::NEED));
            }
        }
    }

    /// Goes on with a transfer in one section, to the end or to where it is refused.
    fn transfer_more<T: Transfer, S: Iterator<Item = Segment>>(
        &self,
        pasid: u32,
        rest: &mut Rest<S>,
        transfer: &mut T,
    ) -> (Option<Arc<Attachment>>, Result<(), Stop>) {
        let machine = self.machine();
        let section = machine.sections.section(self.group().token());
        let attachment = self.attachment(pasid);
        let mut batch = Batch::empty(&machine.phys);
        let walked = rest.try_each(|segment, ahead| {
            walk(attachment.as_ref(), pasid, (segment, ahead), &mut batch, transfer)
        });
        // What came before a missing page is copied while its translations count.
        let flushed = match attachment.as_ref().filter(|_| batch.may_wait()) {
            Some(attachment) => {
                let ranges = batch.ranges.iter().copied();
                let _noted = machine.underway.note(attachment.route(T::NEED), ranges);
                drop(section);
                batch.flush(transfer)
            }
            None => batch.flush(transfer),
        };
        drop(batch);
        (attachment, flushed.map_err(Stop::Refused).and(walked))
    }

    /// Copies a segment that is one run; says whether it was, else nothing is done.
    fn copy_one_run<T: Transfer>(
        &self,
        pasid: u32,
        segment: Segment,
        transfer: &mut T,
    ) -> Result<bool, DmaFault> {
        if pasid != NO_PASID {
            return Ok(false);
        }
        let machine = self.machine();
        let section = machine.sections.section(self.group().token());
        let Some(attachment) = self.group().hold_attachment() else { return Ok(false) };
        let length = segment.length as u64;
        let spot = match attachment.translate((pasid, segment.iova), length, T::NEED, None) {
            Ok(spot) if spot.run.length == length && length > 0 => spot,
            _ => return Ok(false),
        };
        let mut section = Some(section);
        let copied = machine.phys.hold_window(spot.run.pa).map(|window| {
            let offset = Phys::offset(&window, spot.run.pa);
            let piece = Piece { offset, length: segment.length };
            let _noted = window.backing.may_wait().then(|| {
                let noted = machine.underway.note(attachment.route(T::NEED), [spot.range()]);
                section = None;
                noted
            });
            transfer.copy(&*window.backing, &[piece], segment.length)
        });
        let reason = match copied {
            Some(Ok(())) => return Ok(true),
            Some(Err(error)) => Reason::Memory(error.why),
            None => Reason::GONE,
        };
        let kept = attachment.to_arc();
        drop(attachment);
        drop(section);
        let refusal = Refusal { iova: segment.iova, reason };
        Err(self.refuse(Some(&kept), pasid, refusal, T::NEED))
    }

    /// Walks the client's own table for `iova`, outside of any section: each word is read as memory
    /// is copied that may wait.
    fn walk_ahead(&self, attachment: &Attachment, pasid: u32, iova: Iova) -> Ahead {
        let nested = attachment.nested.as_ref().expect("it has a table of the client's own");
        let machine = self.machine();
        nested.walk_ahead(pasid, iova, &mut |address| {
            let section = machine.sections.section(self.group().token());
            // Through one that went meanwhile nothing may be read.
            self.attachment(pasid).filter(|now| now.token == attachment.token)?;
            let word = nested.word(address)?;
            let range = IovaRange::new(word.at, 8).expect("a word does not wrap");
            let _noted = machine.underway.note(attachment.route(Prot::READ), [range]);
            drop(section);
            word.read()
        })
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
        queue.request(request, &stands) == PageResponse::Success
    }

    fn refuse(
        &self,
        attachment: Option<&Arc<Attachment>>,
        pasid: u32,
        refusal: Refusal,
        need: Prot,
    ) -> DmaFault {
        self.record(attachment, pasid, refusal, need);
        if let Some(attachment) = attachment {
            attachment.report_refused(refusal.iova, need, refusal.reason);
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
        // What is mapped below a client's own table is its parent's, whose addresses are others.
        let of_ioas = attachment.filter(|attachment| attachment.nested.is_none());
        let mappings = of_ioas.and_then(|attachment| attachment.mappings.upgrade());
        let around = mappings.and_then(|mappings| mappings.around(refusal.iova));
        let revoked = around.is_some_and(|around| around.revoked);
        let reason = match refusal.reason {
            _ if revoked => Reason::Revoked,
            Reason::Blocked if self.group().frozen().contains(Frozen::DMA) => Reason::Frozen,
            reason => reason,
        };
        if reason != Reason::Frozen {
            self.group().failed();
        }
        let (nearest, unmapped) =
            around.map_or((None, None), |around| (around.nearest, around.unmapped));
        self.machine().faults.record(RefusedDma {
            device: Arc::clone(&self.config().name),
            pasid,
            iova: refusal.iova,
            need,
            reason,
            nearest,
            unmapped,
        });
    }
}

/// What is left of a transfer.
struct Rest<S> {
    segment: Segment,
    segments: S,
    done: bool,
    /// What was walked for the address it stopped at.
    ahead: Option<Ahead>,
}

impl<S: Iterator<Item = Segment>> Rest<S> {
    /// Hands on each segment, until one fails: what `each` left of that comes first next time.
    fn try_each(
        &mut self,
        mut each: impl FnMut(&mut Segment, Option<&Ahead>) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        while !self.done {
            each(&mut self.segment, self.ahead.as_ref())?;
            match self.segments.next() {
                Some(segment) => self.segment = segment,
                None => self.done = true,
            }
        }
        Ok(())
    }
}

fn refusal_of(attachment: &Attachment, fault: Fault) -> Refusal {
    let reason = match attachment.nested {
        _ if !fault.missing.is_empty() => Reason::Missing(fault.missing),
        None => Reason::NotMapped,
        Some(_) => Reason::NotNested,
    };
    Refusal { iova: fault.iova, reason }
}

/// Adds the pieces of `segment` to the batch; on failure what is left of it stays.
fn walk<T: Transfer>(
    attachment: Option<&Arc<Attachment>>,
    pasid: u32,
    (segment, ahead): (&mut Segment, Option<&Ahead>),
    batch: &mut Batch<'_>,
    transfer: &mut T,
) -> Result<(), Stop> {
    while segment.length > 0 {
        let at = segment.iova;
        let Some(attachment) = attachment else {
            return Err(Refusal { iova: at, reason: Reason::Blocked }.into());
        };
        let length = segment.length as u64;
        let spot =
            attachment.translate((pasid, at), length, T::NEED, ahead).map_err(
                |missed| match missed {
                    Missed::Fault(fault) => Stop::Refused(refusal_of(attachment, fault)),
                    Missed::WalkAhead => Stop::WalkAhead(at),
                },
            )?;
        batch.add(at, spot, transfer)?;
        segment.iova = Iova(at.0.wrapping_add(spot.run.length));
        segment.length -=
            usize::try_from(spot.run.length).expect("a run fits the segment it was asked for");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod waits;
