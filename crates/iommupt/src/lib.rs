//! I/O page tables: what stands between an IOVA and a byte.
//!
//! Three layers. A [`Format`] says what the words of a hardware table mean, in constants and pure
//! functions; one file is one manual ([`fmt`]). A walker, generic over the format, maps, unmaps,
//! splits, translates and harvests dirty state ([`Writer`], [`Reader`]). A user sees
//! [`TableWriter`] and [`TableReader`] and no format at all. The crate knows neither ioctls nor
//! clients nor threads; it serves an IOMMU driver, a vIOMMU or an emulator alike.
//!
//! # A table
//!
//! ```
//! use ioasis_iommupt::fmt::VtdSs;
//! use ioasis_iommupt::{Config, Counted, Dirty, Iova, IovaRange, Pa, PageTable, Prot, Run, Section};
//! use std::sync::Arc;
//!
//! let quiesce = Arc::new(Counted::default());
//! let (mut writer, reader) = PageTable::<VtdSs>::new(Config::new(quiesce.clone()))?;
//!
//! // Two runs, one call; the second begins where the first ends.
//! // Leaves are as large as addresses allow.
//! let runs =
//!     [Run { pa: Pa(0x8000_0000), length: 1 << 21 }, Run { pa: Pa(0x1000), length: 0x3000 }];
//! writer.map(Iova(0x4000_0000), &runs, Prot::READ | Prot::WRITE)?;
//!
//! // A thread that translates stays in a section until it has used what it got.
//! {
//!     let _section = Section::enter(&*quiesce);
//!     let run = reader.translate(Iova(0x4020_0800), 0x4000, Prot::WRITE).expect("mapped");
//!     assert_eq!(run, Run { pa: Pa(0x1800), length: 0x2800 });
//! }
//!
//! // Writing marked three pages dirty.
//! let mut dirty = Vec::new();
//! writer.read_dirty(IovaRange::ALL, Dirty::Clear, &mut |range| dirty.push(range));
//! assert_eq!(dirty, [IovaRange::new(Iova(0x4020_0000), 0x3000)?]);
//!
//! // Half of the large leaf goes: it is split first. Then nobody may still be using it.
//! let mut old = Vec::new();
//! writer.unmap(IovaRange::new(Iova(0x4010_0000), 1 << 20)?, &mut |iova, run| old.push((iova, run)))?;
//! assert_eq!(old, [(Iova(0x4010_0000), Run { pa: Pa(0x8010_0000), length: 1 << 20 })]);
//! ioasis_iommupt::Quiesce::wait(&*quiesce);
//! # Ok::<(), ioasis_uapi::Error>(())
//! ```
//!
//! # The same in every format
//!
//! ```
//! use ioasis_iommupt::fmt::{AmdV1, AmdV2, ArmS1, ArmS2, Sv39, Sv48x4, VtdFs, VtdSs};
//! use ioasis_iommupt::{Config, Counted, Format, Iova, Pa, PageTable, Prot, Run};
//! use std::sync::Arc;
//!
//! fn one_large_leaf<F: Format>() -> ioasis_uapi::Result<()> {
//!     let (mut writer, reader) = PageTable::<F>::new(Config::new(Arc::new(Counted::default())))?;
//!     let length = 1 << F::item_lg2(1);
//!     writer.map(Iova(0), &[Run { pa: Pa(4 * length), length }], Prot::READ)?;
//!     assert_eq!(reader.iova_to_phys(Iova(length - 1)), Some(Pa(5 * length - 1)));
//!     Ok(())
//! }
//!
//! one_large_leaf::<VtdSs<3>>()?; // Intel second stage, 39 bits
//! one_large_leaf::<VtdFs<5>>()?; // Intel first stage, 57 bits
//! one_large_leaf::<AmdV1<6>>()?; // AMD host tables, 64 bits
//! one_large_leaf::<AmdV2>()?; // AMD guest tables, 48 bits
//! one_large_leaf::<Sv39>()?; // RISC-V first stage
//! one_large_leaf::<Sv48x4>()?; // RISC-V second stage, root of 16 KiB
//! one_large_leaf::<ArmS1<16, 52>>()?; // SMMUv3 stage 1, 64 KiB granules, 52 bits
//! one_large_leaf::<ArmS2<14>>()?; // SMMUv3 stage 2, 16 KiB granules, concatenated root
//! # Ok::<(), ioasis_uapi::Error>(())
//! ```
//!
//! # What it costs
//!
//! In words of tables read and written; a test counts them in every kind of space, and in each of
//! 64 generations of holes.
//!
//! - Translating: one a level, and no more however much is mapped. The first write to a clean leaf:
//!   an exchange, and a walk to the table of each level, to mark it.
//! - Mapping, unmapping, protecting and splitting: a few walks, a few for each item that changes,
//!   and the words of a table for each that is made. What was mapped before, and in which sizes,
//!   makes no difference.
//! - Harvesting: the tables below which something was written since the last harvest.
//! - Memory: the least tables that can hold the leaves, and at most 64 that are empty and 64 that a
//!   reader might still walk.
//! - Areas: O(log n) for n of them, in time; [`areas`] says what first fit adds.
//!
//! # Around the table
//!
//! - [`iotlb`] keeps a requester's translations, by PASID; [`WalkCache`] keeps the lowest tables a
//!   thread passed.
//! - [`nested`] puts a guest's first stage over a second stage.
//! - [`areas`] holds the ranges of an address space and finds free ones by Linux's rule.
//! - [`dump`] writes a table as a tree or as JSON; [`TableReader::steps`] takes the words on the
//!   way to an address apart, as the manual names their fields.
//!
//! A new format is one file in `fmt` that implements [`Format`], one line in `fmt/mod.rs`, one in
//! the test suite.
#![no_std]
extern crate alloc;

mod addr;
pub mod areas;
mod arena;
mod changes;
mod dirty;
pub mod dump;
#[cfg(any(kani, all(test, not(any(loom, ioasis_shuttle)))))]
mod every;
mod fields;
pub mod fmt;
mod format;
pub mod iotlb;
mod map;
pub mod nested;
mod page_table;
mod quiesce;
#[cfg(all(test, any(loom, ioasis_shuttle)))]
mod schedules;
mod split;
#[cfg(all(test, not(any(loom, ioasis_shuttle))))]
mod suite;
mod sync;
mod table;
mod tables;
mod unmap;
mod walk;
mod walk_cache;

pub use addr::{Iova, IovaRange, Pa};
pub use changes::Changes;
pub use fields::{Field, FieldKind, Step};
pub use format::{Context, Entry, Format};
pub use page_table::{Config, PageTable, Writer};
pub use quiesce::{Counted, Quiesce, Section};
pub use table::{Dirty, Fault, Prot, Run, TableReader, TableWriter};
pub use walk::Reader;
pub use walk_cache::WalkCache;
