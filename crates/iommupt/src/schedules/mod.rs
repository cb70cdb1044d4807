//! What must hold for every interleaving of a writer and its readers.
//!
//! `steps` runs the walker's own code under loom, on tables so small that every interleaving and
//! every value that an ordering lets a load see can be tried. `sequences` runs it under shuttle, in
//! whole sequences of operations with several readers.

#[cfg(ioasis_shuttle)]
mod sequences;
#[cfg(loom)]
mod steps;
mod tiny;

use alloc::sync::Arc;

use crate::{Config, Format, IovaRange, PageTable, Prot, Quiesce, Reader, Run, Writer};
use crate::{Iova, Pa};
use tiny::Tiny;

const RW: Prot = Prot::READ.union(Prot::WRITE);
const PAGE: u64 = 1 << 12;

fn table<F: Format>(quiesce: Arc<dyn Quiesce>) -> (Writer<F>, Arc<Reader<F>>) {
    PageTable::new(Config::new(quiesce)).expect("an empty table")
}

fn range(start: u64, length: u64) -> IovaRange {
    IovaRange::new(Iova(start), length).expect("a range")
}

fn run(pa: u64, length: u64) -> Run {
    Run { pa: Pa(pa), length }
}
