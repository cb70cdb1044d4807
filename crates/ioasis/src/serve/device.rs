//! A model as a vfio-user device.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use anyhow::{Context, Result};
use ioasis_pci::{BARS, BarKind, CONFIG_SIZE, MsixTable, PAGE_SIZE, PageKind};
use ioasis_sys::mapping::{Access, Mapping};
use ioasis_uapi::vfio;
use ioasis_vfio::{Served, ServedIrqs};
use ioasis_vfio_user::message::{
    IRQ_MASK, IRQ_UNMASK, REGION_MMAP, REGION_READABLE, REGION_WRITABLE, pci,
};
use ioasis_vfio_user::{
    Answer, Area, Device, DeviceInfo, DmaMap, DmaUnmap, Errno, IrqData, IrqInfo, Peer, Region,
    SetIrqs,
};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use super::memory::{Memory, errno};

/// A function while a client uses it.
#[derive(Debug)]
pub(super) struct Session<'a> {
    served: &'a Served,
    memory: Arc<Memory>,
    /// The files behind the BARs that have pages.
    files: [Option<OwnedFd>; BARS],
}

impl<'a> Session<'a> {
    /// The function as after power-on, for the client behind `peer`.
    pub(super) fn open(served: &'a Served, peer: Peer) -> Result<Self> {
        let memory = Arc::new(Memory::new(peer));
        let mut files: [Option<OwnedFd>; BARS] = Default::default();
        let mut pages: [Option<Arc<Mapping>>; BARS] = Default::default();
        for (index, file) in files.iter_mut().enumerate() {
            let end = served.function().bar(index).and_then(ioasis_pci::Bar::mappable_end);
            let Some(end) = end else { continue };
            let made = sealed(end).context("no memory for a BAR's pages")?;
            let mapping = Mapping::file(made.as_fd(), 0, usize::try_from(end)?, Access::ReadWrite)?;
            (pages[index], *file) = (Some(Arc::new(mapping)), Some(made));
        }
        served.open(Arc::clone(&memory) as _, pages)?;
        Ok(Self { served, memory, files })
    }

    fn bar(&self, index: u32) -> Option<(usize, &ioasis_pci::Bar)> {
        let index = usize::try_from(index).ok().filter(|&index| index < BARS)?;
        Some((index, self.served.function().bar(index)?))
    }

    /// What the client may map: shared pages alone, and none in which MSI-X structures lie. A
    /// trapped page is reached by messages, each of which is a call of the model.
    fn areas(&self, index: usize, bar: &ioasis_pci::Bar) -> Vec<Area> {
        let function = self.served.function();
        let mut areas: Vec<Area> = Vec::new();
        for pages in bar.mappable.iter().filter(|pages| pages.kind == PageKind::Shared) {
            let mut offset = pages.range.start;
            while offset < pages.range.end {
                let table = function.msix_table();
                let vectors = function.vectors().msix;
                if !table.is_some_and(|table| has_msix(table, vectors, index, offset)) {
                    match areas.last_mut() {
                        Some(area) if area.offset + area.size == offset => area.size += PAGE_SIZE,
                        _ => areas.push(Area { offset, size: PAGE_SIZE }),
                    }
                }
                offset += PAGE_SIZE;
            }
        }
        areas
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.served.close();
    }
}

/// Whether an MSI-X structure reaches into the page at `offset` of a BAR (PCI Local Bus 3.0,
/// 6.8.2).
fn has_msix(table: MsixTable, vectors: u16, bar: usize, offset: u64) -> bool {
    let table_bytes = u64::from(vectors) * 16;
    let pending_bytes = u64::from(vectors).div_ceil(64) * 8;
    let reaches = |of: usize, start: u32, bytes: u64| {
        let start = u64::from(start);
        of == bar && start < offset + PAGE_SIZE && offset < start + bytes
    };
    reaches(table.table_bar, table.table_offset, table_bytes)
        || reaches(table.pba_bar, table.pba_offset, pending_bytes)
}

/// Memory of `length` bytes that nobody can cut short.
fn sealed(length: u64) -> Result<OwnedFd> {
    let file = memfd_create("ioasis-bar", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, length)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

fn told<T>(result: ioasis_uapi::Result<T>) -> Answer<T> {
    result.map_err(|error| errno(error.errno))
}

impl Device for Session<'_> {
    fn info(&mut self) -> DeviceInfo {
        DeviceInfo::PCI
    }

    fn region(&mut self, index: u32) -> Answer<Region> {
        let flags = REGION_READABLE | REGION_WRITABLE;
        if index == pci::CONFIG {
            return Ok(Region { flags, size: CONFIG_SIZE as u64, ..Region::default() });
        }
        if index == pci::ROM {
            let size = self.served.function().rom_size();
            let flags = if size == 0 { 0 } else { REGION_READABLE };
            return Ok(Region { flags, size, ..Region::default() });
        }
        let Some((index, bar)) = self.bar(index) else { return Ok(Region::default()) };
        let mut region = Region { flags, size: bar.size, ..Region::default() };
        if bar.kind != BarKind::Io
            && let Some(file) = &self.files[index]
        {
            region.areas = self.areas(index, bar);
            if !region.areas.is_empty() {
                region.flags |= REGION_MMAP;
                region.file = Some(file.try_clone().map_err(|_| Errno::MFILE)?);
            }
        }
        Ok(region)
    }

    fn irq(&mut self, index: u32) -> Answer<IrqInfo> {
        let (flags, count) = told(self.served.irq(index))?;
        Ok(IrqInfo { flags, count })
    }

    fn set_irqs(&mut self, set: SetIrqs) -> Answer<()> {
        let SetIrqs { index, start, count, action, data } = set;
        let action = match action {
            IRQ_MASK => vfio::IRQ_SET_ACTION_MASK,
            IRQ_UNMASK => vfio::IRQ_SET_ACTION_UNMASK,
            _ => vfio::IRQ_SET_ACTION_TRIGGER,
        };
        let irqs = match data {
            IrqData::None => ServedIrqs::None,
            IrqData::Bool(meant) => ServedIrqs::Bool(meant),
            IrqData::Eventfd(fds) => ServedIrqs::Eventfd(fds),
        };
        told(self.served.set_irqs(index, (start, count), action, irqs))
    }

    fn read(&mut self, region: u32, offset: u64, bytes: &mut [u8]) -> Answer<()> {
        if region == pci::CONFIG {
            return told(self.served.config_read(offset, bytes));
        }
        if region == pci::ROM {
            return told(self.served.function().rom_read(offset, bytes));
        }
        let (bar, _) = self.bar(region).ok_or(Errno::INVAL)?;
        told(self.served.function().bar_read(bar, offset, bytes))
    }

    fn write(&mut self, region: u32, offset: u64, bytes: &[u8]) -> Answer<()> {
        if region == pci::CONFIG {
            return told(self.served.config_write(offset, bytes));
        }
        let (bar, _) = self.bar(region).ok_or(Errno::INVAL)?;
        told(self.served.function().bar_write(bar, offset, bytes))
    }

    fn dma_map(&mut self, map: DmaMap) -> Answer<()> {
        self.memory.map(map)
    }

    fn dma_unmap(&mut self, unmap: DmaUnmap) -> Answer<()> {
        self.memory.unmap(unmap)
    }

    fn reset(&mut self) -> Answer<()> {
        told(self.served.reset())
    }
}
