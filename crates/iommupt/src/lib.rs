//! I/O page tables: what stands between an IOVA and a byte.
#![no_std]
extern crate alloc;

mod addr;
mod table;

pub use addr::{Iova, IovaRange, Pa};
pub use table::{Dirty, Fault, Prot, Run, TableReader, TableWriter};
