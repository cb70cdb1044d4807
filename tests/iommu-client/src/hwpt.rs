//! Page tables of a kind: what the hardware says of itself, DMA, and what DMA wrote.

use anyhow::{Result, ensure};
use ioasis_uapi::iommufd as abi;

use crate::Kind;
use crate::device::Device;
use crate::iommufd::Iommufd;
use crate::memory::{self, LENGTH, PAGE};

/// Where the memory is mapped.
const IOVA: u64 = 0x1000_0000;

const fn page(number: usize) -> u64 {
    IOVA + (number * PAGE) as u64
}

pub(crate) fn run(kind: Kind) -> Result<()> {
    let iommufd = Iommufd::open()?;
    let device = Device::open(&iommufd, 0)?;
    let info = iommufd.hw_info(device.id())?;
    let expected = match kind {
        Kind::Vtd => (abi::HW_INFO_TYPE_INTEL_VTD, 24),
        Kind::Amd => (abi::HW_INFO_TYPE_AMD, 16),
        Kind::Smmuv3 | Kind::Cmdqv => (abi::HW_INFO_TYPE_ARM_SMMUV3, 40),
        Kind::Riscv => (abi::HW_INFO_TYPE_NONE, 0),
    };
    ensure!((info.data_type, info.data_len) == expected, "the hardware says it is {info:?}");
    ensure!(info.out_capabilities & abi::HW_CAP_DIRTY_TRACKING != 0, "no dirty tracking");

    let ioas = iommufd.ioas()?;
    iommufd.small_pages(ioas)?;
    iommufd.map(ioas, IOVA, 0, LENGTH as u64)?;
    let plain = iommufd.hwpt(device.id(), ioas, 0)?;
    device.attach(plain)?;
    memory::fill(5 * PAGE, 55);
    ensure!(device.copy(page(5), page(3))?.is_none(), "DMA faults");
    ensure!(memory::byte(3 * PAGE) == 55, "the copy differs");

    let tracked = iommufd.hwpt(device.id(), ioas, abi::HWPT_ALLOC_DIRTY_TRACKING)?;
    // A second attach moves the device without a moment in between.
    device.attach(tracked)?;
    iommufd.set_dirty_tracking(tracked)?;
    for to in [7, 40] {
        ensure!(device.copy(page(5), page(to))?.is_none(), "DMA faults");
    }
    let written = 1 << 7 | 1 << 40;
    let keep = abi::HWPT_GET_DIRTY_BITMAP_NO_CLEAR;
    let read = |flags| iommufd.dirty(tracked, IOVA, flags);
    let all = (read(keep)?, read(0)?, read(0)?);
    ensure!(all == (written, written, 0), "kept, cleared and after: {all:x?}");
    ensure!(device.copy(page(5), page(7))?.is_none(), "DMA faults");
    ensure!(read(0)? == 1 << 7, "a page that is written again is dirty again");

    device.detach()?;
    ensure!(device.copy(page(5), page(3))? == Some(page(5)), "a detached device does DMA");
    Ok(())
}

/// Pins the memory, says so, and holds it until standard input ends.
pub(crate) fn hold() -> Result<()> {
    let iommufd = Iommufd::open()?;
    let device = Device::open(&iommufd, 0)?;
    let ioas = iommufd.ioas()?;
    iommufd.map(ioas, IOVA, 0, LENGTH as u64)?;
    device.attach(ioas)?;
    println!("ready");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}
