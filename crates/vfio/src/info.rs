//! What a device says of itself: GET_INFO, GET_REGION_INFO, GET_IRQ_INFO.

use ioasis_pci::{BARS, Bar, BarKind, CONFIG_SIZE, Function};
use ioasis_uapi::vfio::{
    self, DeviceInfo, InfoCapHeader, IrqInfo, RegionInfo, RegionInfoCapSparseMmap,
    RegionSparseMmapArea,
};
use ioasis_uapi::{Errno, Error, Result};
use zerocopy::IntoBytes;

use crate::file::region_offset;
use crate::irq::Interrupts;
use crate::{Client, arg};

/// Answers DEVICE_GET_INFO.
///
/// # Errors
///
/// `EFAULT`; `EINVAL` when `argsz` is too small.
pub(crate) fn device(client: &dyn Client, address: u64) -> Result<()> {
    /// Up to `num_irqs`; `cap_offset` came later.
    const MIN: usize = 16;
    let DeviceInfo { argsz, .. } = arg::first(client, address, MIN)?;
    let info = DeviceInfo {
        argsz,
        flags: vfio::DEVICE_FLAGS_PCI | vfio::DEVICE_FLAGS_RESET,
        num_regions: vfio::PCI_NUM_REGIONS,
        num_irqs: vfio::PCI_NUM_IRQS,
        ..DeviceInfo::default()
    };
    let size = usize::try_from(argsz).unwrap_or(usize::MAX).min(size_of::<DeviceInfo>());
    arg::write(client, address, &info, size)
}

/// Answers DEVICE_GET_IRQ_INFO. Every index takes eventfds, also one that has no interrupt.
///
/// # Errors
///
/// `EFAULT`; `EINVAL` when `argsz` is too small or there is no such index.
pub(crate) fn irq(client: &dyn Client, function: &Function, address: u64) -> Result<()> {
    const MIN: usize = size_of::<IrqInfo>();
    let mut info: IrqInfo = arg::first(client, address, MIN)?;
    if info.index >= vfio::PCI_NUM_IRQS {
        return Err(Error::at(Errno::EINVAL, "no such interrupt index", info.index.into()));
    }
    info.count = Interrupts::count(function, info.index);
    info.flags = vfio::IRQ_INFO_EVENTFD
        | match info.index {
            vfio::PCI_INTX_IRQ_INDEX => vfio::IRQ_INFO_MASKABLE | vfio::IRQ_INFO_AUTOMASKED,
            vfio::PCI_MSIX_IRQ_INDEX => 0,
            _ => vfio::IRQ_INFO_NORESIZE,
        };
    arg::write(client, address, &info, MIN)
}

/// Answers DEVICE_GET_REGION_INFO. The capabilities are written when `argsz` has room for them;
/// when it has not, it is raised to what they need.
///
/// # Errors
///
/// `EFAULT`; `EINVAL` when `argsz` is too small or there is no such region.
pub(crate) fn region(client: &dyn Client, function: &Function, address: u64) -> Result<()> {
    const MIN: usize = size_of::<RegionInfo>();
    let mut info: RegionInfo = arg::first(client, address, MIN)?;
    let mut chain = Chain::default();
    // DIFFERS: region 0 lies at 1 << 40, where Linux has 0, so that ordinary reads are not
    // intercepted; only configuration space lies where it does on Linux.
    info.offset = region_offset(info.index);
    (info.size, info.flags) = match info.index {
        bar if (bar as usize) < BARS => {
            let bar = bar as usize;
            function
                .bar(bar)
                .map_or((0, 0), |found| (found.size, bar_flags(function, bar, found, &mut chain)))
        }
        vfio::PCI_ROM_REGION_INDEX => match function.rom_size() {
            0 => (0, 0),
            size => (size, vfio::REGION_INFO_FLAG_READ),
        },
        vfio::PCI_CONFIG_REGION_INDEX => {
            (CONFIG_SIZE as u64, vfio::REGION_INFO_FLAG_READ | vfio::REGION_INFO_FLAG_WRITE)
        }
        _ => return Err(Error::at(Errno::EINVAL, "no such region", info.index.into())),
    };
    let caps = chain.finish(MIN);
    if !caps.is_empty() {
        info.flags |= vfio::REGION_INFO_FLAG_CAPS;
        let need = u32::try_from(MIN + caps.len()).unwrap_or(u32::MAX);
        if info.argsz < need {
            info.argsz = need;
            info.cap_offset = 0;
        } else {
            client.write(address.wrapping_add(MIN as u64), &caps)?;
            info.cap_offset = need - u32::try_from(caps.len()).unwrap_or(0);
        }
    }
    arg::write(client, address, &info, MIN)
}

/// Flags of a BAR that exists, its capabilities added to `chain`.
fn bar_flags(function: &Function, index: usize, bar: &Bar, chain: &mut Chain) -> u32 {
    let flags = vfio::REGION_INFO_FLAG_READ | vfio::REGION_INFO_FLAG_WRITE;
    if bar.kind == BarKind::Io || bar.mappable.is_empty() {
        return flags;
    }
    let whole = 0..bar.size;
    let areas = bar.areas();
    if areas != [whole] {
        let areas: Vec<_> = areas
            .iter()
            .map(|area| RegionSparseMmapArea { offset: area.start, size: area.end - area.start })
            .collect();
        let cap = RegionInfoCapSparseMmap {
            nr_areas: u32::try_from(areas.len()).unwrap_or(u32::MAX),
            ..RegionInfoCapSparseMmap::default()
        };
        let body = [&cap.as_bytes()[size_of::<InfoCapHeader>()..], areas.as_bytes()].concat();
        chain.add(vfio::REGION_INFO_CAP_SPARSE_MMAP, 1, &body);
    }
    if function.msix_table().is_some_and(|table| table.table_bar == index) {
        chain.add(vfio::REGION_INFO_CAP_MSIX_MAPPABLE, 1, &[]);
    }
    flags | vfio::REGION_INFO_FLAG_MMAP
}

/// A chain of capabilities: each begins with a header that says where the next one lies, from the
/// start of the struct they follow.
#[derive(Debug, Default)]
struct Chain {
    caps: Vec<(InfoCapHeader, Vec<u8>)>,
}

impl Chain {
    fn add(&mut self, id: u16, version: u16, body: &[u8]) {
        self.caps.push((InfoCapHeader { id, version, next: 0 }, body.to_vec()));
    }

    /// The bytes of the chain for a struct of `start` bytes. Every capability is aligned to 8.
    fn finish(mut self, start: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let last = self.caps.len().saturating_sub(1);
        for (i, (header, body)) in self.caps.iter_mut().enumerate() {
            let length = (size_of::<InfoCapHeader>() + body.len()).next_multiple_of(8);
            let next = bytes.len() + length;
            if i < last {
                header.next = u32::try_from(start + next).unwrap_or(0);
            }
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(body);
            bytes.resize(next, 0);
        }
        bytes
    }
}
