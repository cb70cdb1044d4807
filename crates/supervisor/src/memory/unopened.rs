//! Shared memory whose file we may not open.
//!
//! Without privileges that is a shared anonymous mapping which no descriptor refers to. Its bytes are reached at the
//! address it has in a process that maps it; when that has unmapped it or ended, in another: its parent, a child. A
//! process is asked before every transfer whether it still shows the file there, so what it maps in that place later is
//! not reached.
//!
//! DIFFERS: when nobody maps the memory any more, it is gone for the device too.
//!
//! `Unopened::places` and `Unopened::searched` are leaves, held during no transfer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ioasis_iommufd::{Backing, Piece};
use ioasis_sys::process::{Process, Vma};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result};

use super::FileId;
use super::process::PrivateMemory;

/// Set in the key of such memory only: device numbers have 32 bits.
const UNOPENED_KEY: u128 = 1 << 125;

/// All processes are looked at no more often: a device may go on and on reaching for memory that is gone.
const SEARCH_PAUSE: Duration = Duration::from_millis(200);

/// Places remembered of one file, however often a client maps it anew.
const PLACES: usize = 64;

/// The memory of one file, by the addresses that processes have it at.
#[derive(Debug)]
pub(super) struct Unopened {
    id: FileId,
    places: Mutex<Vec<Arc<Place>>>,
    /// When all processes were looked at.
    searched: Mutex<Option<Instant>>,
}

/// A part of the file, as a process maps it.
#[derive(Debug)]
struct Place {
    memory: Arc<PrivateMemory>,
    /// First and last byte of the part, in the file.
    first: u64,
    last: u64,
    /// Where the process has the first.
    address: u64,
}

impl Place {
    fn holds(&self, pieces: &[Piece]) -> bool {
        pieces.iter().all(|piece| {
            self.first <= piece.offset && piece.offset + piece.length as u64 - 1 <= self.last
        })
    }

    fn at(&self, offset: u64) -> u64 {
        self.address + (offset - self.first)
    }

    /// The pieces by address, if the process still shows the file there.
    fn find(&self, id: FileId, pieces: &[Piece]) -> Option<Vec<Piece>> {
        let shown = |piece: &Piece| {
            let address = self.at(piece.offset);
            self.memory.shows(id, piece.offset, address, piece.length as u64)
        };
        let found = |piece: &Piece| Piece { offset: self.at(piece.offset), length: piece.length };
        pieces.iter().all(shown).then(|| pieces.iter().map(found).collect())
    }
}

impl Unopened {
    pub(super) const fn new(id: FileId) -> Self {
        Self { id, places: Mutex::new(Vec::new()), searched: Mutex::new(None) }
    }

    /// A process maps a part of the file like this.
    pub(super) fn add(&self, memory: &Arc<PrivateMemory>, vma: &Vma) {
        let last = vma.offset + (vma.last - vma.start);
        let (first, address) = (vma.offset, vma.start);
        let place = Place { memory: Arc::clone(memory), first, last, address };
        let mut places = self.places.lock();
        places.retain(|other| {
            other.memory.is_current()
                && (other.memory.key(), other.address) != (memory.key(), address)
        });
        if places.len() >= PLACES {
            // It is found again if it is there and needed.
            places.remove(0);
        }
        places.push(Arc::new(place));
    }

    /// Looks for the file in every process, unless that was done just now. Says whether it looked.
    fn search(&self) -> bool {
        let mut searched = self.searched.lock();
        if searched.is_some_and(|at| at.elapsed() < SEARCH_PAUSE) {
            return false;
        }
        *searched = Some(Instant::now());
        drop(searched);
        let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        for process in pids.filter_map(|pid| Process::open(pid).ok()) {
            let Ok(vmas) = process.mm().and_then(|mm| mm.vmas(0, u64::MAX)) else { continue };
            let ours = |vma: &&Vma| {
                vma.shared && (vma.device, vma.inode) == (self.id.device, self.id.inode)
            };
            let mut found = vmas.iter().filter(ours).peekable();
            if found.peek().is_none() {
                continue;
            }
            let Ok(memory) = PrivateMemory::of_another(&process).map(Arc::new) else { continue };
            found.for_each(|vma| self.add(&memory, vma));
        }
        true
    }

    /// Carries out a transfer in whichever process still shows all of it, or else each piece of it by itself.
    fn transfer(
        &self,
        pieces: &[Piece],
        go: &mut dyn FnMut(&PrivateMemory, &[Piece]) -> Result<()>,
    ) -> Result<()> {
        loop {
            let places = self.places.lock().clone();
            let mut found = places.iter().rev().filter(|place| place.holds(pieces));
            if let Some((place, there)) =
                found.find_map(|place| Some((place, place.find(self.id, pieces)?)))
            {
                return go(&place.memory, &there);
            }
            if !self.search() {
                let offset = pieces.first().map_or(0, |piece| piece.offset);
                return Err(Error::at(Errno::EFAULT, "nobody maps the memory any more", offset));
            }
        }
    }
}

impl Backing for Unopened {
    fn key(&self) -> u128 {
        UNOPENED_KEY | self.id.key()
    }

    fn read(&self, pieces: &[Piece], mut buf: &mut [u8]) -> Result<()> {
        for piece in pieces {
            let (part, rest) = buf.split_at_mut(piece.length);
            self.transfer(&[*piece], &mut |memory, there| memory.read(there, part))?;
            buf = rest;
        }
        Ok(())
    }

    fn write(&self, pieces: &[Piece], mut buf: &[u8]) -> Result<()> {
        for piece in pieces {
            let (part, rest) = buf.split_at(piece.length);
            self.transfer(&[*piece], &mut |memory, there| memory.write(there, part))?;
            buf = rest;
        }
        Ok(())
    }
}
