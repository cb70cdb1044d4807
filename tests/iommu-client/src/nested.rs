//! Nesting: page tables of a guest's own, in memory that the nest parent maps from 0.

use std::fs::File;
use std::io::Read;

use anyhow::{Result, bail, ensure};
use ioasis_uapi::{Errno, iommufd as abi};

use crate::Kind;
use crate::cmdqv::{self, Interface};
use crate::device::Device;
use crate::iommufd::{Iommufd, refused};
use crate::memory::{self, LENGTH};

/// The guest's tables: three levels, then the one with the leaves.
const TABLES: [u64; 4] = [0x1000, 0x2000, 0x3000, 0x4000];
/// Its context descriptor (Arm) or GCR3 table (AMD).
const ROOT: u64 = 0x5000;
const FIRST: usize = 0x8000;
const SECOND: usize = 0x9000;
const OUT: usize = 0xa000;
/// What the guest maps: a page to read, and [`OUT`].
const IOVA: u64 = 0x40_0000;
const IOVA_OUT: u64 = 0x40_1000;
const STREAM: u64 = 0x18;

/// A guest with its device.
struct Guest {
    iommufd: Iommufd,
    device: Device,
    kind: Kind,
    nested: u32,
    /// The virtual IOMMU, where the kind has one.
    viommu: u32,
    /// The virtual IOMMU's queue of commands, if it has one.
    queue: Option<Interface>,
    events: Option<File>,
}

/// A leaf of the guest's that may be read and written.
fn leaf(kind: Kind, page: usize) -> u64 {
    let bits = match kind {
        // AArch64: accessed, for unprivileged software, a page.
        Kind::Smmuv3 | Kind::Cmdqv => 1 << 10 | 1 << 6 | 3,
        // x86: present, writable, for user mode.
        _ => 7,
    };
    page as u64 | bits
}

impl Guest {
    fn new(kind: Kind) -> Result<Self> {
        let iommufd = Iommufd::open()?;
        let device = Device::open(&iommufd, 0)?;
        let ioas = iommufd.ioas()?;
        iommufd.map(ioas, 0, 0, LENGTH as u64)?;
        let parent = iommufd.hwpt(device.id(), ioas, abi::HWPT_ALLOC_NEST_PARENT)?;
        let table = if matches!(kind, Kind::Smmuv3 | Kind::Cmdqv) { 3 } else { 7 };
        memory::word(TABLES[0], TABLES[1] | table);
        memory::word(TABLES[1], TABLES[2] | table);
        memory::word(TABLES[2] + (IOVA >> 21) * 8, TABLES[3] | table);
        memory::word(TABLES[3], leaf(kind, FIRST));
        memory::word(TABLES[3] + 8, leaf(kind, OUT));
        for (page, byte) in [(FIRST, 1), (SECOND, 2), (OUT, 0)] {
            memory::fill(page, byte);
        }
        let mut guest =
            Self { iommufd, device, kind, nested: 0, viommu: 0, queue: None, events: None };
        guest.nested = match kind {
            Kind::Vtd => guest.vtd(parent)?,
            Kind::Smmuv3 | Kind::Cmdqv => guest.smmuv3(parent)?,
            Kind::Amd => guest.amd(parent)?,
            Kind::Riscv => bail!("Linux has no nesting on it"),
        };
        Ok(guest)
    }

    fn vtd(&self, parent: u32) -> Result<u32> {
        let data = abi::HwptVtdS1 { pgtbl_addr: TABLES[0], addr_width: 48, ..Default::default() };
        let id = self.device.id();
        Ok(self.iommufd.nested(id, parent, abi::HWPT_DATA_VTD_S1, &data)?)
    }

    fn smmuv3(&mut self, parent: u32) -> Result<u32> {
        let id = self.device.id();
        if self.kind == Kind::Cmdqv {
            let (viommu, queue) = cmdqv::make(&self.iommufd, id, parent)?;
            (self.viommu, self.queue) = (viommu, Some(queue));
        } else {
            self.viommu = self.iommufd.viommu(abi::VIOMMU_TYPE_ARM_SMMUV3, id, parent)?;
        }
        let kind = abi::VEVENTQ_TYPE_ARM_SMMUV3;
        self.events = Some(self.iommufd.event_queue(self.viommu, kind, 4)?);
        // 5.4: valid, AArch64, 48 bits, 4 KiB; TTB0.
        memory::word(ROOT, 1 << 31 | 1 << 41 | 16);
        memory::word(ROOT + 8, TABLES[0]);
        // 5.2: valid, stage 1.
        let data = abi::HwptArmSmmuv3 { ste: [1 | 5 << 1 | ROOT, 0] };
        let nested = self.iommufd.nested(id, self.viommu, abi::HWPT_DATA_ARM_SMMUV3, &data)?;
        refused("a device without a virtual id", self.device.attach(nested), Errno::ENOENT)?;
        self.iommufd.vdevice(self.viommu, id, STREAM)?;
        Ok(nested)
    }

    fn amd(&mut self, parent: u32) -> Result<u32> {
        let id = self.device.id();
        self.viommu = self.iommufd.viommu(7, id, parent)?;
        memory::word(ROOT, TABLES[0] | 1);
        // 2.2.2.1: V, TV, GV, and the address of the GCR3 table.
        let data = abi::HwptAmdGuest { dte: [3 | 1 << 55 | (ROOT >> 12 & 7) << 58, 0, 0, 0] };
        Ok(self.iommufd.nested(id, self.viommu, abi::HWPT_DATA_AMD_GUEST, &data)?)
    }

    /// Invalidates the page at `iova` as the kind's driver does.
    fn invalidate(&mut self, iova: u64) -> Result<()> {
        // 4.4.1: TLBI_NH_VA.
        let command = [0x12, iova];
        if let Some(queue) = &mut self.queue {
            return queue.send(command);
        }
        match self.kind {
            Kind::Vtd => {
                let request =
                    abi::HwptVtdS1Invalidate { addr: iova, npages: 1, ..Default::default() };
                let kind = abi::HWPT_INVALIDATE_DATA_VTD_S1;
                self.iommufd.invalidate(self.nested, kind, &request)?;
            }
            _ => {
                let request = abi::ViommuArmSmmuv3Invalidate { cmd: command };
                let kind = abi::VIOMMU_INVALIDATE_DATA_ARM_SMMUV3;
                self.iommufd.invalidate(self.viommu, kind, &request)?;
            }
        }
        Ok(())
    }

    /// The byte that the device finds at [`IOVA`].
    fn found(&self) -> Result<u8> {
        let fault = self.device.copy(IOVA, IOVA_OUT)?;
        ensure!(fault.is_none(), "DMA faults at {fault:x?}");
        Ok(memory::byte(OUT))
    }
}

pub(crate) fn run(kind: Kind) -> Result<()> {
    let mut guest = Guest::new(kind)?;
    guest.device.attach(guest.nested)?;
    ensure!(guest.found()? == 1, "the guest's table is not followed");
    memory::word(TABLES[3], leaf(kind, SECOND));
    if kind == Kind::Amd {
        ensure!(guest.found()? == 2, "what no command invalidates must not be remembered");
    } else {
        ensure!(guest.found()? == 1, "nothing was invalidated: the old translation stands");
        guest.invalidate(IOVA + 0x10_0000)?;
        ensure!(guest.found()? == 1, "another page was invalidated");
        guest.invalidate(IOVA)?;
        ensure!(guest.found()? == 2, "the old translation was used after the invalidation");
    }
    let nowhere = 0x50_0000;
    ensure!(guest.device.copy(nowhere, IOVA_OUT)? == Some(nowhere), "no fault");
    if let Some(events) = &mut guest.events {
        let mut bytes = [0; 256];
        let count = events.read(&mut bytes)?;
        let words: Vec<u64> = bytes[..count]
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")))
            .collect();
        // 7.3.13: F_TRANSLATION of the stream, a read, CLASS IN, at the address.
        let expected = [0, 0x10 | STREAM << 32, 2 << 40 | 1 << 35, nowhere, 0];
        ensure!(words == expected, "the guest heard {words:x?}");
    }
    // Through the parent's pages only: what it does not map, the guest cannot give.
    memory::word(TABLES[3], leaf(kind, LENGTH));
    if kind != Kind::Amd {
        guest.invalidate(IOVA)?;
    }
    ensure!(guest.device.copy(IOVA, IOVA_OUT)? == Some(IOVA), "the parent maps nothing there");
    Ok(())
}
