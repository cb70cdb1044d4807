//! What a function is, as data: identity, BARs, interrupt vectors.

use std::ops::Range;

/// Bytes of the smallest page a program can map; mappable ranges are made of them.
pub const PAGE_SIZE: u64 = 4096;

/// Number of base address registers of a type 0 header.
pub const BARS: usize = 6;

/// The identity of a function (PCI Local Bus 3.0, 6.2.1 and 6.2.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem_device: u16,
    /// Base class, sub-class and programming interface, in bits 23:16, 15:8 and 7:0.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
}

/// The address space a BAR decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Memory with a 32-bit address.
    Memory32,
    /// Memory with a 64-bit address; takes this BAR and the next.
    Memory64,
    /// I/O ports.
    Io,
}

/// One base address register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Bytes; a power of two.
    pub size: u64,
    /// The address space it decodes.
    pub kind: BarKind,
    /// Whether reads have no side effect and writes may be merged.
    pub prefetchable: bool,
    /// What a program may map: whole pages, ascending, apart from each other. What it may not map it reaches with
    /// system calls alone.
    pub mappable: Vec<Pages>,
}

impl Bar {
    /// The type bits of its register (PCI Local Bus 3.0, 6.2.5.1).
    pub(crate) fn type_bits(&self) -> u32 {
        let bits = match self.kind {
            BarKind::Io => 1 << 0,
            BarKind::Memory32 => 0,
            BarKind::Memory64 => 1 << 2,
        };
        if self.prefetchable { bits | 1 << 3 } else { bits }
    }

    /// How the page of `offset` reaches the model when a program maps it; `None` where it may not be mapped.
    #[must_use]
    pub fn page_kind(&self, offset: u64) -> Option<PageKind> {
        self.mappable.iter().find(|pages| pages.range.contains(&offset)).map(|pages| pages.kind)
    }

    /// What may be mapped, whatever its kind: pages that follow each other are one area.
    #[must_use]
    pub fn areas(&self) -> Vec<Range<u64>> {
        let mut areas: Vec<Range<u64>> = Vec::new();
        for Pages { range, .. } in &self.mappable {
            match areas.last_mut() {
                Some(area) if area.end == range.start => area.end = range.end,
                _ => areas.push(range.clone()),
            }
        }
        areas
    }

    /// Where the last page that may be mapped ends; `None` when there is none.
    #[must_use]
    pub fn mappable_end(&self) -> Option<u64> {
        self.mappable.last().map(|pages| pages.range.end)
    }

    /// Whether `length` bytes from `offset` lie in one area.
    #[must_use]
    pub fn is_mappable(&self, offset: u64, length: u64) -> bool {
        let within = |area: &Range<u64>| area.contains(&offset) && length <= area.end - offset;
        self.areas().iter().any(within)
    }

    /// The parts of `wanted` that are trapped.
    #[must_use]
    pub fn trapped(&self, wanted: &Range<u64>) -> Vec<Range<u64>> {
        self.parts(wanted, |kind| kind != PageKind::Shared)
    }

    /// Those of which loads are trapped as well.
    #[must_use]
    pub fn trapped_loads(&self, wanted: &Range<u64>) -> Vec<Range<u64>> {
        self.parts(wanted, |kind| kind == PageKind::TrappedLoads)
    }

    fn parts(&self, wanted: &Range<u64>, is: impl Fn(PageKind) -> bool) -> Vec<Range<u64>> {
        let found = self.mappable.iter().filter(|pages| is(pages.kind));
        let parts = found
            .map(|Pages { range, .. }| range.start.max(wanted.start)..range.end.min(wanted.end));
        parts.filter(|part| !part.is_empty()).collect()
    }
}

/// How loads and stores of a mapped page reach the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// Memory that program and model share, and that the model polls.
    Shared,
    /// Each store is a call of [`Model::store`](crate::Model::store), and loads are of memory.
    ///
    /// There is memory behind the page all the same, in which the model shows what a load would give. A store that came past
    /// the calls, because whoever has the page mapped is not trapped or because another device did it, is found there by the
    /// next poll.
    Trapped,
    /// Each load is a call of [`Model::load`](crate::Model::load), too: for registers that a load changes. Whoever has the page
    /// mapped and is not trapped loads what the memory shows.
    TrappedLoads,
}

/// Pages of a BAR that a program may map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pages {
    /// Offsets in the BAR.
    pub range: Range<u64>,
    /// How they reach the model.
    pub kind: PageKind,
}

impl Pages {
    /// Memory that program and model share.
    #[must_use]
    pub const fn shared(range: Range<u64>) -> Self {
        Self { range, kind: PageKind::Shared }
    }

    /// Pages of which each store is a call.
    #[must_use]
    pub const fn trapped(range: Range<u64>) -> Self {
        Self { range, kind: PageKind::Trapped }
    }

    /// Pages of which each load is one as well.
    #[must_use]
    pub const fn trapped_loads(range: Range<u64>) -> Self {
        Self { range, kind: PageKind::TrappedLoads }
    }
}

/// How many interrupts a function has, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vectors {
    /// Whether there is an interrupt pin (INTA).
    pub intx: bool,
    /// MSI messages: 0, or a power of two up to 32.
    pub msi: u16,
    /// MSI-X table entries, up to 2048.
    pub msix: u16,
}

/// Where the MSI-X structures lie: in shared pages, as programs expect, or in none that can be mapped. Both are the
/// function's business, never the model's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixTable {
    /// BAR of the table.
    pub table_bar: usize,
    /// Offset of the table, a multiple of 8; each vector takes 16 bytes.
    pub table_offset: u32,
    /// BAR of the pending bit array.
    pub pba_bar: usize,
    /// Offset of the pending bit array, a multiple of 8.
    pub pba_offset: u32,
}

impl MsixTable {
    /// The table offset and the PBA offset register: where each lies, and in which BAR (PCI Local Bus 3.0, 6.8.2.4, 6.8.2.5).
    pub(crate) fn registers(self) -> (u32, u32) {
        let bir = |bar: usize| u32::try_from(bar).expect("a BAR index is below 6");
        (self.table_offset | bir(self.table_bar), self.pba_offset | bir(self.pba_bar))
    }
}

/// A vendor-specific capability (ID 09h of the PCI Code and ID Assignment 1.11, 2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VendorCapability {
    /// Its bytes behind ID, next pointer and length.
    pub bytes: Vec<u8>,
    /// What an access of it does.
    pub kind: VendorKind,
}

/// What an access of a vendor-specific capability does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VendorKind {
    /// Nothing: it is read-only data.
    Plain,
    /// A window to the BARs, as virtio has it (Virtio 1.2, 4.1.4.9): byte 4 names a BAR, the dword at 8 an offset in it, that
    /// at 12 a length of 1, 2 or 4. An access of the dword at 16 is one of so many bytes there.
    Window,
}

impl VendorCapability {
    /// Bytes of ID, next pointer and length.
    const HEADER: usize = 3;

    /// Bytes of all of it.
    pub(crate) fn length(&self) -> usize {
        Self::HEADER + self.bytes.len()
    }
}

/// A capability of the first 256 bytes that this crate knows nothing about: read-only data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnCapability {
    /// Its ID (PCI Code and ID Assignment 1.11, 2).
    pub id: u8,
    /// Its bytes behind ID and next pointer.
    pub bytes: Vec<u8>,
}

/// An extended capability (PCI Express 6.0, 7.6.3): read-only data, but for what may be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtendedCapability {
    /// Its ID (PCI Code and ID Assignment 1.11, 3).
    pub id: u16,
    /// Its version, 0 to 15.
    pub version: u8,
    /// Its bytes behind the header.
    pub bytes: Vec<u8>,
    /// A mask for the same bytes: a program keeps in its bits what it likes. Empty where it keeps nothing.
    pub writable: Vec<u8>,
}

/// A function as its model describes it. Constant for the life of the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// Identity.
    pub ids: Ids,
    /// Base address registers by index; the one after a 64-bit BAR is `None`.
    pub bars: [Option<Bar>; BARS],
    /// Interrupts.
    pub vectors: Vectors,
    /// Where the MSI-X table lies; `Some` exactly when `vectors.msix` is not 0.
    pub msix: Option<MsixTable>,
    /// Vendor-specific capabilities, in the order of the chain.
    pub vendor: Vec<VendorCapability>,
    /// Other capabilities, which follow those.
    pub own: Vec<OwnCapability>,
    /// Extended capabilities, in the order of their chain. None where there are virtual functions.
    pub extended: Vec<ExtendedCapability>,
    /// What the expansion ROM holds, up to 16 MiB; none when it is empty.
    pub rom: Vec<u8>,
}

impl Description {
    /// A function that is `ids` and has nothing else: what a model begins with.
    #[must_use]
    pub fn new(ids: Ids) -> Self {
        Self { ids, ..Self::default() }
    }

    /// Checks what the rest of this crate relies on.
    ///
    /// # Panics
    ///
    /// If the model describes a function that cannot exist.
    pub(crate) fn check(&self) {
        for (index, bar) in self.bars.iter().enumerate() {
            let Some(bar) = bar else { continue };
            check_bar(index, bar);
            if bar.kind == BarKind::Memory64 {
                let high = self.bars.get(index + 1);
                assert!(matches!(high, Some(None)), "BAR {index} is 64-bit and takes the next");
            }
        }
        let Vectors { msi, msix, .. } = self.vectors;
        assert!(msi <= 32 && (msi == 0 || msi.is_power_of_two()), "MSI has 1 to 32 messages");
        assert!(msix <= 2048, "an MSI-X table has at most 2048 entries");
        assert_eq!(msix != 0, self.msix.is_some(), "an MSI-X table is where its vectors are");
        assert!(self.rom_size() <= 1 << 24, "an expansion ROM has at most 16 MiB");
        for ExtendedCapability { id, version, bytes, writable } in &self.extended {
            assert!(*version < 16, "the version of extended capability {id:#x} has four bits");
            assert!(
                writable.is_empty() || writable.len() == bytes.len(),
                "a mask of as many bytes"
            );
        }
        if let Some(table) = self.msix {
            self.check_structure(table.table_bar, table.table_offset, table_bytes(msix));
            self.check_structure(table.pba_bar, table.pba_offset, pba_bytes(msix));
        }
    }

    /// Bytes of the expansion ROM as the bus has it, 0 for none: a power of two from 2 KiB (PCI Local Bus 3.0, 6.2.5.2).
    pub(crate) fn rom_size(&self) -> u64 {
        if self.rom.is_empty() { 0 } else { (self.rom.len() as u64).next_power_of_two().max(2048) }
    }

    fn check_structure(&self, bar: usize, offset: u32, length: u64) {
        let found = self.bars.get(bar).and_then(Option::as_ref);
        let Some(found) = found else {
            panic!("an MSI-X structure lies in BAR {bar}, which is not there")
        };
        let (start, end) = (u64::from(offset), u64::from(offset) + length);
        assert!(
            offset.is_multiple_of(8) && end <= found.size,
            "an MSI-X structure lies inside its BAR"
        );
        let fits = |pages: &Pages| {
            let apart = pages.range.end <= start || end <= pages.range.start;
            let inside = pages.range.start <= start && end <= pages.range.end;
            apart || inside && pages.kind == PageKind::Shared
        };
        assert!(
            found.mappable.iter().all(fits),
            "an MSI-X structure lies in shared pages or in none"
        );
    }
}

fn check_bar(index: usize, bar: &Bar) {
    let (smallest, largest) = match bar.kind {
        BarKind::Memory32 => (128, 1 << 31),
        BarKind::Memory64 => (128, 1 << 40),
        BarKind::Io => (4, 256),
    };
    assert!(bar.size.is_power_of_two(), "the size of BAR {index} is a power of two");
    assert!((smallest..=largest).contains(&bar.size), "BAR {index} has a size its kind allows");
    assert!(bar.kind != BarKind::Io || bar.mappable.is_empty(), "I/O ports are not mappable");
    let mut free = 0;
    for Pages { range, .. } in &bar.mappable {
        let whole = range.start.is_multiple_of(PAGE_SIZE) && range.end.is_multiple_of(PAGE_SIZE);
        assert!(whole && range.start < range.end, "mappable ranges are whole pages");
        assert!(
            free <= range.start && range.end <= bar.size,
            "mappable ranges ascend in BAR {index}"
        );
        free = range.end;
    }
}

/// Bytes of an MSI-X table (PCI Local Bus 3.0, 6.8.2: 16 bytes an entry).
pub(crate) fn table_bytes(vectors: u16) -> u64 {
    u64::from(vectors) * 16
}

/// Bytes of a pending bit array: a bit a vector, in whole quadwords.
pub(crate) fn pba_bytes(vectors: u16) -> u64 {
    u64::from(vectors).div_ceil(64) * 8
}

/// The two registers of a 64-bit value.
pub(crate) fn halves(value: u64) -> (u32, u32) {
    let low = u32::try_from(value & 0xffff_ffff).expect("32 bits");
    (low, u32::try_from(value >> 32).expect("32 bits"))
}
