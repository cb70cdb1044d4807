//! Pages: the memory behind one MAP call, shared by every area that shows a part of it.
//!
//! An area is a view of IOVAs; a [`Pages`] is what it views: an origin (a process's addresses, a
//! file's offsets, a dma-buf), how much of it, who pays, and which pages are pinned. COPY and
//! splitting share the object, so a page is pinned and charged once however many areas, domains and
//! accesses show it.
//!
//! Invariant: a page is pinned exactly while at least one holder needs it; the charge is the number
//! of pinned pages. Giving back never fails and never allocates. Linux:
//! `drivers/iommu/iommufd/pages.c`.
//!
//! Lock order: `Pages::pins` -> `Phys::windows`, `Ledger::books`.

mod back;
mod own;
mod pins;

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use ioasis_iommupt::{Pa, Prot, Run};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;
use smallvec::SmallVec;

pub(crate) use back::GivenBack;
pub(crate) use own::{AreaPages, Fill};

use crate::account::Rule;
use crate::client::{Account, AddressSpace, Backing, Importer, Kind, PAGE_SIZE, Piece};
use crate::hw::machine::Machine;
use crate::hw::phys::Phys;
use crate::inject::step;

const PAGE_LG2: u32 = PAGE_SIZE.trailing_zeros();

/// Where the memory comes from.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// The process or file.
    pub space: Arc<dyn AddressSpace>,
    /// First byte.
    pub address: u64,
}

/// A closed range of page indices inside a [`Pages`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageRange {
    first: u64,
    last: u64,
}

impl PageRange {
    /// The pages that hold `length` bytes from byte `start_byte`; `length` is not zero.
    pub(crate) fn of_bytes(start_byte: u64, length: u64) -> Self {
        assert!(length > 0, "an area is not empty");
        Self { first: start_byte >> PAGE_LG2, last: (start_byte + (length - 1)) >> PAGE_LG2 }
    }

    fn count(self) -> u64 {
        self.last - self.first + 1
    }
}

/// Pages that were pinned together and have the same holders.
#[derive(Debug)]
struct Span {
    pages: PageRange,
    holders: u32,
    /// Somebody pays: device memory is free.
    charged: bool,
    runs: SmallVec<[Run; 1]>,
}

#[derive(Debug)]
struct Pins {
    origin: Origin,
    rule: Rule,
    payer: Account,
    pinned: u64,
    /// Ascending, disjoint.
    spans: SmallVec<[Span; 1]>,
}

/// What of a pages object never changes.
#[derive(Debug)]
struct About {
    machine: Arc<Machine>,
    count: u64,
    /// The first mapped byte, counted from the start of its page.
    start_byte: u64,
    need: Prot,
    kind: Kind,
}

/// How bytes are written to memory that is not pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// One after another, as far as they go, by a driver's own thread.
    Copied,
    /// The same by the process with this key of its memory; all or none, if the memory is
    /// another's.
    #[cfg_attr(not(feature = "mock"), expect(dead_code, reason = "only its operations write so"))]
    CopiedBy(u128),
    /// All or none.
    #[cfg_attr(not(feature = "mock"), expect(dead_code, reason = "only its operations write so"))]
    Pinned,
}

/// Is told of all memory that is mapped on a machine, if the machine has one.
pub(crate) trait PagesWatcher: Debug + Send + Sync {
    /// Memory was mapped.
    fn made(&self, pages: &Arc<Pages>);
}

/// The memory behind one MAP call.
#[derive(Debug)]
pub(crate) struct Pages {
    about: About,
    /// The dma-buf was revoked once: from then on nothing is mapped, whatever becomes of the
    /// dma-buf.
    revoked: AtomicBool,
    pins: Mutex<Pins>,
}

impl Pages {
    /// The pages of `length` bytes of `origin`; nothing is pinned yet.
    ///
    /// # Errors
    ///
    /// `EINVAL` if `length` is zero or a page short of everything, `EOVERFLOW` if the range wraps.
    #[inline]
    pub(crate) fn new(
        machine: &Arc<Machine>,
        origin: Origin,
        length: u64,
        need: Prot,
        payer: Account,
        rule: Rule,
    ) -> Result<Self> {
        step("a pages object")?;
        let Some(span) = length.checked_sub(1) else {
            return refuse!(EINVAL, "length is zero");
        };
        if length > u64::MAX - PAGE_SIZE {
            return refuse!(EINVAL, "length cannot be rounded up to pages", length);
        }
        let Some(last) = origin.address.checked_add(span) else {
            return refuse!(EOVERFLOW, "the mapped memory wraps", origin.address);
        };
        let count = (last >> PAGE_LG2) - (origin.address >> PAGE_LG2) + 1;
        let kind = origin.space.kind();
        let rule = if kind == Kind::DmaBuf { Rule::None } else { rule };
        let start_byte = origin.address & (PAGE_SIZE - 1);
        let pins = Pins { origin, rule, payer, pinned: 0, spans: SmallVec::new() };
        let need = (need & (Prot::WRITE | Prot::MMIO)) | Prot::READ;
        Ok(Self {
            about: About { machine: Arc::clone(machine), count, start_byte, need, kind },
            revoked: AtomicBool::new(false),
            pins: Mutex::new(pins),
        })
    }

    /// The first mapped byte, counted from the start of its page.
    #[must_use]
    pub(crate) fn start_byte(&self) -> u64 {
        self.about.start_byte
    }

    /// `importer` maps them: it is told when they are those of a dma-buf and that is revoked.
    pub(crate) fn import(&self, importer: Weak<dyn Importer>) {
        if self.about.kind == Kind::DmaBuf {
            let pins = self.pins.lock();
            let space = &pins.origin.space;
            space.import(importer);
            // One that came too late to be told.
            if space.is_revoked() {
                self.revoked.store(true, Ordering::Release);
            }
        }
    }

    /// The address in the origin of byte `start_byte`.
    pub(crate) fn address_of(&self, start_byte: u64) -> u64 {
        (self.pins.lock().origin.address & !(PAGE_SIZE - 1)).wrapping_add(start_byte)
    }

    /// Whether the MAP call that made it asked for WRITEABLE.
    #[must_use]
    pub(crate) fn writable(&self) -> bool {
        self.about.need.contains(Prot::WRITE)
    }

    /// Whether the memory is known to be that of a dma-buf which has been taken away; asks nobody
    /// and takes no lock.
    pub(crate) fn was_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    /// Whether the memory is that of a dma-buf which has been taken away. An IOAS asks with its
    /// areas locked, before it fills one: a revocation that it missed by then, because it showed
    /// nothing yet, the dma-buf knows of already.
    pub(crate) fn is_revoked(&self) -> bool {
        if self.about.kind != Kind::DmaBuf || self.revoked.load(Ordering::Acquire) {
            return self.about.kind == Kind::DmaBuf;
        }
        let revoked = self.pins.lock().origin.space.is_revoked();
        if revoked {
            self.revoked.store(true, Ordering::Release);
        }
        revoked
    }

    /// Takes the memory away if it is that of the dma-buf with this key, which is revoked; says
    /// whether it is. Every IOAS that shows it asks, for each of its areas.
    pub(crate) fn revoke(&self, key: u128) -> bool {
        if self.about.kind != Kind::DmaBuf {
            return false;
        }
        let pins = self.pins.lock();
        let space = &pins.origin.space;
        let revoked = space.key() == key && space.is_revoked();
        if revoked {
            self.revoked.store(true, Ordering::Release);
        }
        revoked
    }

    /// Whether the page at `pa` is pinned.
    #[cfg_attr(not(feature = "mock"), expect(dead_code, reason = "the mock hardware asks"))]
    pub(crate) fn pins_page(&self, pa: Pa) -> bool {
        let pins = self.pins.lock();
        let mut runs = pins.spans.iter().flat_map(|span| &span.runs);
        runs.any(|run| run.pa <= pa && pa.0 - run.pa.0 < run.length)
    }

    /// What the origin is.
    #[must_use]
    pub(crate) fn kind(&self) -> Kind {
        self.about.kind
    }

    /// The address in the origin of byte `start_byte`, the process that pays, and how many pages it
    /// pays for; `None` while pages are being pinned.
    pub(crate) fn look(&self, start_byte: u64) -> Option<(u64, u32, u64)> {
        let pins = self.pins.try_lock()?;
        let address = (pins.origin.address & !(PAGE_SIZE - 1)).wrapping_add(start_byte);
        Some((address, pins.payer.pid, pins.pinned))
    }

    /// Pages pinned now that somebody pays for.
    #[must_use]
    pub(crate) fn pinned(&self) -> u64 {
        self.pins.lock().pinned
    }

    /// Pins `range`, or adds a holder where it is pinned already.
    ///
    /// # Errors
    ///
    /// `EFAULT` or `EINVAL` of the origin, `ENOMEM` over a limit; nothing has changed then.
    pub(crate) fn hold(&self, range: PageRange) -> Result<()> {
        self.pins.lock().hold(&self.about, range)
    }

    /// [`hold`](Self::hold) for the pages of `length` bytes from `start_byte`, whose output
    /// addresses are appended to `runs`.
    ///
    /// # Errors
    ///
    /// As [`hold`](Self::hold).
    pub(crate) fn hold_runs(
        &self,
        start_byte: u64,
        length: u64,
        runs: &mut Vec<Run>,
    ) -> Result<()> {
        self.pins.lock().hold_runs(&self.about, start_byte, length, runs)
    }

    /// Takes one holder off `range`, which [`hold`](Self::hold) was called with, and unpins what
    /// nobody holds.
    pub(crate) fn release(&self, range: PageRange) {
        self.pins.lock().release(&self.about, range);
    }

    /// Whether a page has more than one holder.
    pub(crate) fn is_held_twice(&self) -> bool {
        self.pins.lock().spans.iter().any(|span| span.holders > 1)
    }

    /// Appends the output addresses of `length` bytes from `start_byte`, all of them pinned.
    pub(crate) fn runs(&self, start_byte: u64, length: u64, runs: &mut Vec<Run>) {
        self.pins.lock().runs(start_byte, length, runs);
    }

    /// Fills `buf` from byte `start_byte` on: from the pinned pages where there are some, else from
    /// the origin.
    ///
    /// # Errors
    ///
    /// `EFAULT` when the memory is gone.
    pub(crate) fn read(&self, start_byte: u64, buf: &mut [u8]) -> Result<()> {
        let mut done = 0;
        self.pieces(start_byte, buf.len(), Prot::READ, &mut |backing, piece| {
            let part = &mut buf[done..done + piece.length];
            done += piece.length;
            backing.read(&[piece], part)
        })
    }

    /// Writes `buf` from byte `start_byte` on. The pages of a file are all found before the first
    /// byte is written, as Linux pins them (`iopt_pages_rw_slow`); those of a process if `way` says
    /// so.
    ///
    /// # Errors
    ///
    /// `EFAULT` when the memory is gone or not writable.
    pub(crate) fn write(&self, start_byte: u64, buf: &[u8], way: Way) -> Result<()> {
        let pinned = match way {
            Way::Copied => false,
            Way::CopiedBy(key) => self.space_key() != key,
            Way::Pinned => true,
        };
        if pinned || self.about.kind != Kind::User {
            self.pieces(start_byte, buf.len(), Prot::WRITE, &mut |_, _| Ok(()))?;
        }
        let mut done = 0;
        self.pieces(start_byte, buf.len(), Prot::WRITE, &mut |backing, piece| {
            let part = &buf[done..done + piece.length];
            done += piece.length;
            backing.write(&[piece], part)
        })
    }

    fn pieces(
        &self,
        start_byte: u64,
        length: usize,
        need: Prot,
        each: &mut dyn FnMut(&dyn Backing, Piece) -> Result<()>,
    ) -> Result<()> {
        let pins = self.pins.lock();
        let mut at = start_byte;
        let mut left = length as u64;
        while left > 0 {
            let page_left = left.min(PAGE_SIZE - (at & (PAGE_SIZE - 1)));
            let done = if let Some(run) = pins.run_at(at, left) {
                let window = self.about.machine.phys.hold_window(run.pa);
                let window = window.expect("a pinned page has a window");
                each(&*window.backing, piece(Phys::offset(&window, run.pa), run.length))?;
                run.length
            } else {
                step("pages for one access")?;
                let address = (pins.origin.address & !(PAGE_SIZE - 1)) + (at & !(PAGE_SIZE - 1));
                let mut inside = at & (PAGE_SIZE - 1);
                for extent in pins.origin.space.pin(address, PAGE_SIZE, need)? {
                    let part = extent.length.saturating_sub(inside);
                    if part > 0 {
                        each(&*extent.backing, piece(extent.offset + inside, part.min(page_left)))?;
                        break;
                    }
                    inside -= extent.length;
                }
                page_left
            };
            at += done;
            left -= done;
        }
        Ok(())
    }

    /// Whose addresses they are.
    pub(crate) fn space_key(&self) -> u128 {
        self.pins.lock().origin.space.key()
    }

    /// Who pays now, and under which rule.
    pub(crate) fn payer(&self) -> (Account, Rule) {
        let pins = self.pins.lock();
        (pins.payer, pins.rule)
    }

    /// Makes `payer` pay from now on for what `charged` pages the ledger has already booked on it,
    /// and takes the old charge back.
    pub(crate) fn change_payer(&self, payer: Account, rule: Rule) {
        let mut pins = self.pins.lock();
        let pins = &mut *pins;
        if pins.pinned > 0 {
            self.about.machine.ledger.uncharge(pins.rule, &pins.payer, pins.pinned);
        }
        pins.payer = payer;
        pins.rule = rule;
    }

    /// Replaces the origin: pages pinned already stay what they are.
    pub(crate) fn change_origin(&self, origin: Origin) {
        let mut pins = self.pins.lock();
        assert_eq!(
            origin.address & (PAGE_SIZE - 1),
            pins.origin.address & (PAGE_SIZE - 1),
            "an origin keeps its place in the page"
        );
        pins.origin = origin;
    }
}

fn piece(offset: u64, length: u64) -> Piece {
    Piece { offset, length: usize::try_from(length).expect("a piece fits a buffer in memory") }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(
                self.pins.get_mut().pinned,
                0,
                "nothing is pinned when the last area is gone"
            );
        }
    }
}

#[cfg(test)]
mod tests;
