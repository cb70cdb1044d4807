//! What a server's device is, from its regions, its interrupts and its configuration space:
//! checked, since a server can say anything, and what cannot be is refused in words.

use std::os::fd::AsFd;

use ioasis_sys::mapping::{Access, Mapping};
use ioasis_vfio_user::message::pci;
use ioasis_vfio_user::{Area, Client, Region};

use super::mirror::Mirror;
use crate::description::{
    BARS, Bar, BarKind, Description, Ids, MsixTable, PAGE_SIZE, Pages, Vectors, VendorCapability,
    VendorKind, pba_bytes, table_bytes,
};

/// Bytes of pages that a program may map of one BAR. What is beyond is reached by system calls.
const MAPPABLE_MAX: u64 = 16 << 20;
/// Bytes of a BAR that are kept the same here and there.
const MIRROR_MAX: u64 = 1 << 20;
/// Bytes of vendor-specific capabilities there is room for beside the function's own.
const VENDOR_MAX: usize = 48;
/// Capabilities in a list; more is a list that turns round.
const CHAIN_MAX: usize = 48;

// Type 0 header, PCI Local Bus 3.0, 6.1 and 6.7; capability IDs, PCI Code and ID Assignment 1.11,
// 2.
const STATUS: usize = 0x06;
const HEADER_TYPE: usize = 0x0e;
const BASE_ADDRESS_0: usize = 0x10;
const CAPABILITIES_POINTER: usize = 0x34;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const ID_VENDOR: u8 = 0x09;
const ID_MSIX: u8 = 0x11;

/// What was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) description: Description,
    /// Bytes of each region that is a BAR, as the server has it.
    pub(super) sizes: [u64; BARS],
    pub(super) mirrors: Vec<Mirror>,
    pub(super) resets: bool,
}

/// Asks the server. What it answers with an errno is as bad as no answer here.
pub(super) fn find(client: &Client) -> Result<Found, String> {
    let config = config(client)?;
    let vectors = vectors(client)?;
    let (vectors, msix) = msix(&config, vectors);
    let mut found = Found {
        description: Description {
            ids: ids(&config),
            bars: Default::default(),
            vectors,
            msix,
            vendor: vendor(&config),
            ..Description::default()
        },
        sizes: [0; BARS],
        mirrors: Vec::new(),
        resets: client.info().flags & ioasis_vfio_user::message::DEVICE_RESETS != 0,
    };
    for index in 0..BARS {
        let region = client.region(u32::try_from(index).expect("below 6"), &mut ());
        let region = region.map_err(|error| error.to_string())?;
        if region.size != 0 {
            let bar = bar(&config, index, &region, msix.map(|table| (table, vectors.msix)))?;
            found.sizes[index] = region.size;
            found.mirrors.extend(mirrors(index, &bar, &region)?);
            found.description.bars[index] = Some(bar);
        }
    }
    check(&found.description)?;
    Ok(found)
}

fn config(client: &Client) -> Result<Vec<u8>, String> {
    let region = client.region(pci::CONFIG, &mut ()).map_err(|error| error.to_string())?;
    let size = usize::try_from(region.size).unwrap_or(usize::MAX).min(4096);
    if size < 256 {
        return Err(format!("configuration space of {size} bytes"));
    }
    let mut config = vec![0; size];
    let read = client.region_read(pci::CONFIG, 0, &mut config, &mut ());
    read.map_err(|error| format!("configuration space: {error}"))?;
    if config[HEADER_TYPE] & 0x7f != 0 {
        return Err(format!("a header of type {:#x}, which is no endpoint's", config[HEADER_TYPE]));
    }
    Ok(config)
}

fn word(config: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([config[at], config[at + 1]])
}

fn dword(config: &[u8], at: usize) -> u32 {
    u32::from(word(config, at)) | u32::from(word(config, at + 2)) << 16
}

fn ids(config: &[u8]) -> Ids {
    Ids {
        vendor: word(config, 0x00),
        device: word(config, 0x02),
        subsystem_vendor: word(config, 0x2c),
        subsystem_device: word(config, 0x2e),
        class: dword(config, 0x08) >> 8,
        revision: config[0x08],
    }
}

fn vectors(client: &Client) -> Result<Vectors, String> {
    let count = |index: u32| {
        if index >= client.info().irqs {
            return Ok(0);
        }
        let found = client.irq(index, &mut ()).map_err(|error| error.to_string())?;
        Ok::<_, String>(u16::try_from(found.count).unwrap_or(u16::MAX))
    };
    let msi = count(pci::MSI)?.min(32);
    Ok(Vectors {
        intx: count(pci::INTX)? != 0,
        // A power of two, as the capability can say it.
        msi: if msi == 0 { 0 } else { 1 << msi.ilog2() },
        msix: count(pci::MSIX)?.min(2048),
    })
}

/// Where each capability of the first list begins.
fn capabilities(config: &[u8]) -> Vec<usize> {
    let mut starts = Vec::new();
    if word(config, STATUS) & STATUS_CAPABILITIES == 0 {
        return starts;
    }
    let mut at = usize::from(config[CAPABILITIES_POINTER] & !3);
    while (0x40..0xfc).contains(&at) && starts.len() < CHAIN_MAX {
        starts.push(at);
        at = usize::from(config[at + 1] & !3);
    }
    starts
}

/// MSI-X as the capability says it, or none.
fn msix(config: &[u8], vectors: Vectors) -> (Vectors, Option<MsixTable>) {
    let found = capabilities(config).into_iter().find(|&at| config[at] == ID_MSIX && at <= 0xf4);
    let Some(at) = found.filter(|_| vectors.msix != 0) else {
        return (Vectors { msix: 0, ..vectors }, None);
    };
    let entries = (word(config, at + 2) & 0x7ff) + 1;
    let place = |offset: usize| {
        let register = dword(config, at + offset);
        (usize::try_from(register & 7).expect("3 bits"), register & !7)
    };
    let ((table_bar, table_offset), (pba_bar, pba_offset)) = (place(4), place(8));
    let table = MsixTable { table_bar, table_offset, pba_bar, pba_offset };
    (Vectors { msix: vectors.msix.min(entries), ..vectors }, Some(table))
}

/// The vendor-specific capabilities that there is room for.
fn vendor(config: &[u8]) -> Vec<VendorCapability> {
    let mut room = VENDOR_MAX;
    let mut found = Vec::new();
    for at in capabilities(config) {
        let length = usize::from(config[at + 2]);
        if config[at] != ID_VENDOR || length < 3 || at + length > 0x100 {
            continue;
        }
        if let Some(left) = room.checked_sub(length.next_multiple_of(4)) {
            room = left;
            let bytes = config[at + 3..at + length].to_vec();
            found.push(VendorCapability { bytes, kind: VendorKind::Plain });
        }
    }
    found
}

fn bar(
    config: &[u8],
    index: usize,
    region: &Region,
    msix: Option<(MsixTable, u16)>,
) -> Result<Bar, String> {
    let register = dword(config, BASE_ADDRESS_0 + 4 * index);
    let kind = match (register & 1, register >> 1 & 3) {
        (1, _) => BarKind::Io,
        (_, 2) => BarKind::Memory64,
        _ => BarKind::Memory32,
    };
    let (smallest, largest) = match kind {
        BarKind::Memory32 => (128, 1 << 31),
        BarKind::Memory64 => (128, 1 << 40),
        BarKind::Io => (4, 256),
    };
    let size = region.size.checked_next_power_of_two().unwrap_or(u64::MAX).max(smallest);
    if size > largest {
        return Err(format!("BAR {index} of {:#x} bytes, more than its kind can be", region.size));
    }
    let mappable = if kind == BarKind::Io { Vec::new() } else { pages(index, region, msix) };
    Ok(Bar { size, kind, prefetchable: kind != BarKind::Io && register & 8 != 0, mappable })
}

/// The pages of a BAR: what the server lets be mapped is shared, of the others each access is a
/// message. Those in which MSI-X structures lie, which are the function's own, are not mapped.
fn pages(index: usize, region: &Region, msix: Option<(MsixTable, u16)>) -> Vec<Pages> {
    let end = region.size / PAGE_SIZE * PAGE_SIZE;
    let mut pages: Vec<Pages> = Vec::new();
    if end > MAPPABLE_MAX {
        return pages;
    }
    let areas = whole(&region.mappable());
    let shared_bytes: u64 = areas.iter().map(|area| area.size).sum();
    let is_shared = |at: u64| {
        shared_bytes <= MIRROR_MAX
            && areas.iter().any(|area| (area.offset..area.offset + area.size).contains(&at))
    };
    for at in (0..end).step_by(usize::try_from(PAGE_SIZE).expect("a page")) {
        if msix.is_some_and(|(table, vectors)| has_msix(table, vectors, index, at)) {
            continue;
        }
        let page = at..at + PAGE_SIZE;
        let page = if is_shared(at) { Pages::shared(page) } else { Pages::trapped_loads(page) };
        match pages.last_mut() {
            Some(last) if last.kind == page.kind && last.range.end == at => {
                last.range.end = page.range.end;
            }
            _ => pages.push(page),
        }
    }
    pages
}

/// The whole pages of what can be mapped.
fn whole(areas: &[Area]) -> Vec<Area> {
    let pages = areas.iter().map(|area| {
        let start = area.offset.next_multiple_of(PAGE_SIZE);
        let end = (area.offset + area.size) / PAGE_SIZE * PAGE_SIZE;
        Area { offset: start, size: end.saturating_sub(start) }
    });
    pages.filter(|area| area.size != 0).collect()
}

fn has_msix(table: MsixTable, vectors: u16, bar: usize, page: u64) -> bool {
    let reaches = |of: usize, start: u32, bytes: u64| {
        let start = u64::from(start);
        of == bar && start < page + PAGE_SIZE && page < start + bytes
    };
    reaches(table.table_bar, table.table_offset, table_bytes(vectors))
        || reaches(table.pba_bar, table.pba_offset, pba_bytes(vectors))
}

/// A mirror for each shared part of a BAR.
fn mirrors(index: usize, bar: &Bar, region: &Region) -> Result<Vec<Mirror>, String> {
    let shared = bar.mappable.iter().filter(|pages| pages.kind == crate::PageKind::Shared);
    let Some(file) = &region.file else { return Ok(Vec::new()) };
    let map = |pages: &Pages| {
        let length = usize::try_from(pages.range.end - pages.range.start).expect("a mebibyte");
        let offset = region.file_offset + pages.range.start;
        let theirs = Mapping::file(file.as_fd(), offset, length, Access::ReadWrite);
        let theirs = theirs.map_err(|error| {
            format!("BAR {index}: what it lets be mapped cannot be: {}", error.errno)
        })?;
        Ok(Mirror::new(index, pages.range.start, theirs))
    };
    shared.map(map).collect()
}

/// What [`Description::check`] takes for granted of a model of our own.
fn check(description: &Description) -> Result<(), String> {
    for (index, bar) in description.bars.iter().enumerate() {
        if bar.as_ref().is_some_and(|bar| bar.kind == BarKind::Memory64)
            && !matches!(description.bars.get(index + 1), Some(None))
        {
            return Err(format!("BAR {index} is 64-bit, and the next is there"));
        }
    }
    let Some(table) = description.msix else { return Ok(()) };
    let vectors = description.vectors.msix;
    for (bar, offset, bytes) in [
        (table.table_bar, table.table_offset, table_bytes(vectors)),
        (table.pba_bar, table.pba_offset, pba_bytes(vectors)),
    ] {
        let size = description.bars.get(bar).and_then(Option::as_ref).map_or(0, |bar| bar.size);
        if u64::from(offset) + bytes > size {
            return Err(format!("MSI-X structures at {offset:#x} of BAR {bar}, outside it"));
        }
    }
    Ok(())
}
