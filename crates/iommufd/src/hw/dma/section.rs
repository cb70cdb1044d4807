//! Translation for device code that copies by itself, a VMM's for instance.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::Arc;

use ioasis_iommupt::{Iova, Prot};
use ioasis_uapi::Result;
use smallvec::SmallVec;

use super::{DmaFault, Refusal, Spot, refusal_of};
use crate::client::Backing;
use crate::hw::endpoint::Endpoint;
use crate::hw::faultlog::Reason;
use crate::hw::nested::Missed;
use crate::hw::phys::Phys;
use crate::hw::underway::{NotedCopy, Route};

/// What an address leads to.
#[derive(Clone, Debug)]
pub struct Reached {
    /// What holds the bytes.
    pub backing: Arc<dyn Backing>,
    /// Where in it.
    pub offset: u64,
    /// How many bytes from there on, at most what was asked for.
    pub length: u64,
}

/// An address that was not reached, and what it was for.
#[derive(Clone, Copy, Debug)]
pub struct Unreached {
    refusal: Refusal,
    pasid: u32,
    need: Prot,
}

impl Unreached {
    /// Which address.
    #[must_use]
    pub fn iova(&self) -> Iova {
        self.refusal.iova
    }
}

/// Translations of one device that count as long as this lives: an unmap of what was translated, or
/// a detach, waits until it is dropped, and so it must not live across one on the same thread. It
/// belongs to its thread.
#[derive(Debug)]
pub struct DmaSection<'a> {
    endpoint: &'a Endpoint,
    pasid: u32,
    /// Nearly always one: the device is seldom attached to something else meanwhile.
    noted: RefCell<SmallVec<[(Route, NotedCopy<'a>); 1]>>,
    thread: PhantomData<*const ()>,
}

impl Endpoint {
    /// Begins to translate for transactions with `pasid`; 0 is none.
    #[must_use]
    pub fn section(&self, pasid: u32) -> DmaSection<'_> {
        DmaSection { endpoint: self, pasid, noted: RefCell::default(), thread: PhantomData }
    }
}

impl<'a> DmaSection<'a> {
    /// Where the first of `length` bytes from `iova` lie, as many as lie together. The page counts
    /// as written when `need` says so.
    ///
    /// # Errors
    ///
    /// The address, where nothing is mapped or not with `need`: drop the section, and
    /// [`Endpoint::settle`] what was not reached.
    pub fn translate(&self, iova: Iova, length: u64, need: Prot) -> Result<Reached, Unreached> {
        let (endpoint, pasid) = (self.endpoint, self.pasid);
        let machine: &'a _ = endpoint.machine();
        let unreached = |refusal| Unreached { refusal, pasid, need };
        let mut ahead = None;
        loop {
            let section = machine.sections.section(endpoint.group().token());
            let Some(attachment) = endpoint.attachment(pasid) else {
                return Err(unreached(Refusal { iova, reason: Reason::Blocked }));
            };
            let spot = match attachment.translate((pasid, iova), length, need, ahead.as_ref()) {
                Ok(spot) => spot,
                Err(Missed::Fault(fault)) => return Err(unreached(refusal_of(&attachment, fault))),
                Err(Missed::WalkAhead) => {
                    drop(section);
                    ahead = Some(endpoint.walk_ahead(&attachment, pasid, iova));
                    continue;
                }
            };
            let Some(window) = machine.phys.hold_window(spot.run.pa) else {
                return Err(unreached(Refusal { iova, reason: Reason::GONE }));
            };
            self.note(attachment.route(need), &spot);
            return Ok(Reached {
                backing: Arc::clone(&window.backing),
                offset: Phys::offset(&window, spot.run.pa),
                length: spot.run.length,
            });
        }
    }

    fn note(&self, route: Route, spot: &Spot) {
        let mut noted = self.noted.borrow_mut();
        match noted.last() {
            Some((same, copy)) if *same == route => copy.add(spot.range()),
            _ => {
                let underway = &self.endpoint.machine().underway;
                noted.push((route, underway.note(route, [spot.range()])));
            }
        }
    }
}

impl Endpoint {
    /// Does what the IOMMU does about an address that was not reached: asks for the page where the
    /// device may, and waits for the answer. Not to be called inside a section.
    ///
    /// # Errors
    ///
    /// The address, when the page is not there: the access failed, which is in the fault log now.
    /// Otherwise it may be tried again.
    pub fn settle(&self, unreached: Unreached) -> Result<(), DmaFault> {
        let Unreached { refusal, pasid, need } = unreached;
        let attachment = self.attachment(pasid);
        if self.ask_for_page(attachment.as_ref(), pasid, refusal, need) {
            return Ok(());
        }
        Err(self.refuse(attachment.as_ref(), pasid, refusal, need))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::rig::{ACCOUNT, RW, TestMachine};
    use crate::{Context, IovaRange, MapRequest, Memory, Place};

    #[test]
    fn an_unmap_waits_for_the_section_that_may_still_write() {
        let machine = TestMachine::new();
        let context = Context::new(&machine.machine);
        let endpoint = machine.endpoint();
        let bound = context.bind(&endpoint).unwrap();
        let ioas = context.alloc_ioas().unwrap();
        let memory = Arc::new(Memory::new(0, 0x2000).unwrap());
        let request = MapRequest {
            space: memory,
            address: 0,
            length: 0x2000,
            place: Place::Fixed(Iova(0x1000)),
            prot: RW,
            account: ACCOUNT,
        };
        context.map(ioas, request).unwrap();
        bound.attach(ioas).unwrap();
        let section = endpoint.section(0);
        let reached = section.translate(Iova(0x1ff0), 0x20, Prot::WRITE).unwrap();
        assert_eq!((reached.offset, reached.length), (0xff0, 0x20));
        let unreached = section.translate(Iova(0x3000), 1, Prot::READ).unwrap_err();
        assert_eq!(unreached.iova(), Iova(0x3000));
        let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let unmap = std::thread::spawn({
            let (context, done) = (Arc::clone(&context), Arc::clone(&done));
            move || {
                context.unmap(ioas, IovaRange::ALL, 1).unwrap().result.unwrap();
                done.store(true, std::sync::atomic::Ordering::SeqCst);
            }
        });
        std::thread::sleep(std::time::Duration::from_millis(30));
        assert!(!done.load(std::sync::atomic::Ordering::SeqCst));
        drop(section);
        unmap.join().unwrap();
        assert!(endpoint.settle(unreached).is_err(), "nobody is asked");
        assert_eq!(machine.machine.faults.total(), 1);
        assert!(endpoint.section(0).translate(Iova(0x1000), 1, Prot::READ).is_err());
    }
}
