//! I/O page tables: what stands between an IOVA and a byte.
#![no_std]
extern crate alloc;

mod addr;
pub mod areas;
mod arena;
mod changes;
mod dirty;
pub mod fmt;
mod format;
pub mod iotlb;
mod map;
mod page_table;
mod quiesce;
mod split;
#[cfg(test)]
mod suite;
mod table;
mod tables;
mod unmap;
mod walk;
mod walk_cache;

pub use addr::{Iova, IovaRange, Pa};
pub use changes::Changes;
pub use format::{Entry, Format};
pub use page_table::{Config, PageTable, Writer};
pub use quiesce::{Counted, Quiesce, Section};
pub use table::{Dirty, Fault, Prot, Run, TableReader, TableWriter};
pub use walk::Reader;
pub use walk_cache::WalkCache;
