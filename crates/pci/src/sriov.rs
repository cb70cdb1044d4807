//! SR-IOV: the capability of a physical function, by which it has virtual functions (PCI Express
//! 6.0, 9.3.3).
//!
//! The registers keep the standard's access rules for whoever is the host. A program that has the
//! physical function sees them, and what it writes is dropped: vfio-pci has no write function for
//! this capability (`vfio_pci_init_perm_bits`).
//!
//! Invariant: NumVFs and the page size do not change while VF Enable is set.
//!
//! Lock order: `Sriov::registers` is a leaf.

use std::sync::Arc;

use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result};

use crate::address::Bdf;
use crate::description::{BARS, Bar, BarKind, Description, PAGE_SIZE, halves};

/// Extended capability ID 10h, version 1 (PCI Express 6.0, 9.3.3.1).
pub(crate) const HEADER: u32 = 0x10 | 1 << 16;
/// Bytes of the capability.
pub(crate) const LENGTH: usize = 0x40;

const CONTROL: usize = 0x08;
const INITIAL_VFS: usize = 0x0c;
const TOTAL_VFS: usize = 0x0e;
const NUM_VFS: usize = 0x10;
const DEPENDENCY_LINK: usize = 0x12;
const FIRST_OFFSET: usize = 0x14;
const STRIDE: usize = 0x16;
const DEVICE_ID: usize = 0x1a;
const SUPPORTED_PAGES: usize = 0x1c;
const SYSTEM_PAGE: usize = 0x20;
const BAR_0: usize = 0x24;

const CONTROL_ENABLE: u16 = 1 << 0;
const CONTROL_MEMORY: u16 = 1 << 3;
/// Pages of 4, 8, 64 and 256 KiB, 1 and 4 MiB, which every physical function supports (9.3.3.12).
const PAGES: u32 = 0x553;
/// Pages of 4 KiB.
const PAGE_4K: u32 = 1;

/// What a function is to SR-IOV.
#[derive(Clone, Debug)]
pub(crate) enum Role {
    /// Nothing.
    Plain,
    /// It can have virtual functions.
    Physical(Arc<Sriov>),
    /// It is one.
    Virtual,
}

/// The capability of one physical function.
#[derive(Debug)]
pub struct Sriov {
    total: u16,
    offset: u16,
    stride: u16,
    device: u16,
    bars: [Option<Bar>; BARS],
    /// Where the BARs of the first begin; those of the others follow.
    addresses: [u64; BARS],
    registers: Mutex<[u8; LENGTH]>,
}

impl Sriov {
    /// The capability of the function at `address`, with `total` virtual functions as `first`
    /// describes itself.
    ///
    /// # Panics
    ///
    /// If there are no such functions.
    pub(crate) fn new(
        address: Bdf,
        (total, offset, stride): (u16, u16, u16),
        first: &Description,
        addresses: [u64; BARS],
    ) -> Self {
        check(first);
        assert!(total != 0 && offset != 0, "there is a virtual function beside the physical one");
        assert!(total == 1 || stride != 0, "two virtual functions are two");
        let mut bytes = [0; LENGTH];
        let mut put = |at: usize, value: u32, width: usize| {
            bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        };
        put(0, HEADER, 4);
        put(INITIAL_VFS, total.into(), 2);
        put(TOTAL_VFS, total.into(), 2);
        put(DEPENDENCY_LINK, address.function().into(), 1);
        put(FIRST_OFFSET, offset.into(), 2);
        put(STRIDE, stride.into(), 2);
        put(DEVICE_ID, first.ids.device.into(), 2);
        put(SUPPORTED_PAGES, PAGES, 4);
        // As Linux leaves it when it finds the function (`sriov_init`).
        put(SYSTEM_PAGE, PAGE_4K, 4);
        for (index, bar) in first.bars.iter().enumerate() {
            let Some(bar) = bar else { continue };
            let (low, high) = halves(addresses[index]);
            put(BAR_0 + 4 * index, low | bar.type_bits(), 4);
            if bar.kind == BarKind::Memory64 {
                put(BAR_0 + 4 * (index + 1), high, 4);
            }
        }
        Self {
            total,
            offset,
            stride,
            device: first.ids.device,
            bars: first.bars.clone(),
            addresses,
            registers: Mutex::new(bytes),
        }
    }

    /// How many virtual functions it can have.
    #[must_use]
    pub fn total(&self) -> u16 {
        self.total
    }

    /// How many there are: NumVFs, while they are enabled.
    #[must_use]
    pub fn enabled(&self) -> u16 {
        let bytes = self.registers.lock();
        if word(&bytes, CONTROL) & CONTROL_ENABLE == 0 { 0 } else { word(&bytes, NUM_VFS) }
    }

    /// From the routing ID of the physical function to that of the first virtual one.
    #[must_use]
    pub fn offset(&self) -> u16 {
        self.offset
    }

    /// From the routing ID of one virtual function to that of the next.
    #[must_use]
    pub fn stride(&self) -> u16 {
        self.stride
    }

    /// The device ID of its virtual functions.
    #[must_use]
    pub fn device(&self) -> u16 {
        self.device
    }

    /// Where virtual function `index` of the physical one at `physical` is.
    #[must_use]
    pub fn address(&self, physical: Bdf, index: u16) -> Option<Bdf> {
        let distance = index.checked_mul(self.stride)?.checked_add(self.offset)?;
        physical.beyond(distance).filter(|_| index < self.total)
    }

    /// BAR `index` of a virtual function, and where that of the first begins.
    #[must_use]
    pub fn bar(&self, index: usize) -> Option<(&Bar, u64)> {
        Some((self.bars.get(index)?.as_ref()?, self.addresses[index]))
    }

    /// Sets NumVFs, VF Enable and VF Memory Space Enable, as Linux's `sriov_enable` does.
    ///
    /// # Errors
    ///
    /// `EINVAL` when virtual functions are enabled, or there are not so many; `ENOMEM` when their
    /// BARs found no room.
    pub fn enable(&self, count: u16) -> Result<()> {
        if self.enabled() != 0 {
            return Err(Error::new(Errno::EINVAL, "virtual functions are enabled"));
        }
        if count > self.total {
            return Err(Error::at(Errno::EINVAL, "more than there are", count.into()));
        }
        let placed = |(bar, address): (&Option<Bar>, &u64)| bar.is_none() || *address != 0;
        if !self.bars.iter().zip(&self.addresses).all(placed) {
            return Err(Error::new(
                Errno::ENOMEM,
                "the BARs of its virtual functions have no room",
            ));
        }
        self.write(NUM_VFS, &count.to_le_bytes());
        self.write(CONTROL, &(CONTROL_ENABLE | CONTROL_MEMORY).to_le_bytes());
        Ok(())
    }

    /// Clears what [`Sriov::enable`] set.
    pub fn disable(&self) {
        self.write(CONTROL, &[0; 2]);
        self.write(NUM_VFS, &[0; 2]);
    }

    /// Fills `bytes` from `offset` of the capability, which reaches that far.
    pub(crate) fn read(&self, offset: usize, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.registers.lock()[offset..offset + bytes.len()]);
    }

    /// Writes `bytes` at `offset` of the capability, as the host does: each register takes what it
    /// may.
    fn write(&self, offset: usize, bytes: &[u8]) {
        let mut registers = self.registers.lock();
        let old = *registers;
        let enabled = word(&old, CONTROL) & CONTROL_ENABLE != 0;
        for (at, &value) in (offset..LENGTH).zip(bytes) {
            let mask = self.writable(at, enabled);
            registers[at] = old[at] & !mask | value & mask;
        }
        // What is said to be undefined leaves the register as it was.
        if word(&registers, NUM_VFS) > self.total {
            registers[NUM_VFS..NUM_VFS + 2].copy_from_slice(&old[NUM_VFS..NUM_VFS + 2]);
        }
        let page = dword(&registers, SYSTEM_PAGE);
        if !page.is_power_of_two() || page & PAGES == 0 {
            registers[SYSTEM_PAGE..SYSTEM_PAGE + 4]
                .copy_from_slice(&old[SYSTEM_PAGE..SYSTEM_PAGE + 4]);
        }
    }

    /// The bits of byte `at` that a write changes.
    fn writable(&self, at: usize, enabled: bool) -> u8 {
        const CONTROL_LAST: usize = CONTROL + 1;
        let in_dword = at % 4;
        match at {
            CONTROL..=CONTROL_LAST => (CONTROL_ENABLE | CONTROL_MEMORY).to_le_bytes()[at - CONTROL],
            // 9.3.3.7, 9.3.3.13: only while VF Enable is clear.
            _ if (NUM_VFS..NUM_VFS + 2).contains(&at) && !enabled => 0xff,
            _ if (SYSTEM_PAGE..BAR_0).contains(&at) && !enabled => 0xff,
            _ if (BAR_0..BAR_0 + 4 * BARS).contains(&at) => {
                self.bar_mask((at - BAR_0) / 4).to_le_bytes()[in_dword]
            }
            _ => 0,
        }
    }

    /// The address bits of VF BAR register `index`.
    fn bar_mask(&self, index: usize) -> u32 {
        let below = index.checked_sub(1).and_then(|below| self.bars[below].as_ref());
        match (&self.bars[index], below) {
            (Some(bar), _) => halves(!(bar.size - 1)).0,
            (None, Some(bar)) if bar.kind == BarKind::Memory64 => halves(!(bar.size - 1)).1,
            _ => 0,
        }
    }
}

/// What a virtual function cannot have (PCI Express 6.0, 9.3.4.1 and 9.2.1.1.1).
fn check(first: &Description) {
    assert!(first.rom.is_empty(), "a virtual function has no expansion ROM");
    assert!(!first.vectors.intx, "a virtual function has no interrupt pin");
    for bar in first.bars.iter().flatten() {
        assert!(bar.kind != BarKind::Io, "a virtual function has no I/O ports");
        assert!(bar.size >= PAGE_SIZE, "BARs of virtual functions share no page");
    }
}

fn word(bytes: &[u8; LENGTH], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn dword(bytes: &[u8; LENGTH], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests;
