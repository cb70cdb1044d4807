//! What must hold for every interleaving of a writer and its readers.
//!
//! `steps` runs the walker's own code under loom, on tables so small that every interleaving and every value that an ordering
//! lets a load see can be tried. `sequences` runs it under shuttle, in whole sequences of operations with several readers.

#[cfg(ioasis_shuttle)]
mod sequences;
#[cfg(loom)]
mod steps;
mod tiny;

use alloc::sync::Arc;

use crate::sync::atomic::{AtomicUsize, Ordering, fence};
use crate::sync::spin_loop;
use crate::{Config, Format, IovaRange, PageTable, Prot, Quiesce, Reader, Run, Writer};
use crate::{Iova, Pa};
use tiny::Tiny;

const RW: Prot = Prot::READ.union(Prot::WRITE);
const PAGE: u64 = 1 << 12;

/// Sections of one reader as `ioasis-sys` has them without membarrier: a store, a fence.
#[derive(Debug, Default)]
struct Fenced {
    /// Odd inside a section.
    sections: AtomicUsize,
}

impl Quiesce for Fenced {
    fn enter(&self) {
        let sections = self.sections.load(Ordering::Relaxed);
        self.sections.store(sections + 1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    fn exit(&self) {
        let sections = self.sections.load(Ordering::Relaxed);
        self.sections.store(sections + 1, Ordering::Release);
    }

    fn wait(&self) {
        fence(Ordering::SeqCst);
        let seen = self.sections.load(Ordering::Acquire);
        while seen % 2 == 1 && self.sections.load(Ordering::Acquire) == seen {
            spin_loop();
        }
    }
}

fn table<F: Format>(quiesce: Arc<dyn Quiesce>) -> (Writer<F>, Arc<Reader<F>>) {
    PageTable::new(Config::new(quiesce)).expect("an empty table")
}

fn range(start: u64, length: u64) -> IovaRange {
    IovaRange::new(Iova(start), length).expect("a range")
}

fn run(pa: u64, length: u64) -> Run {
    Run { pa: Pa(pa), length }
}
