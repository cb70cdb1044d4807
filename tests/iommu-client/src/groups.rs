//! Several devices and several IOMMUs: vfio0 and vfio1 share a group, vfio2 is behind an IOMMU of
//! its own.

use anyhow::{Result, ensure};
use ioasis_uapi::Errno;

use crate::device::Device;
use crate::iommufd::{self, Iommufd};
use crate::memory::{self, PAGE};

const IOVA: u64 = 0x10_0000;
const OUT: u64 = 0x20_0000;
const OUT_PAGE: usize = 8 * PAGE;

pub(crate) fn run() -> Result<()> {
    let iommufd = Iommufd::open()?;
    let [first, second, other] = [0, 1, 2].map(|number| Device::open(&iommufd, number));
    let (first, second, other) = (first?, second?, other?);
    let space = |byte: u8| -> Result<u32> {
        let (ioas, offset) = (iommufd.ioas()?, usize::from(byte) * PAGE);
        memory::fill(offset, byte);
        iommufd.map(ioas, IOVA, offset as u64, PAGE as u64)?;
        iommufd.map(ioas, OUT, OUT_PAGE as u64, PAGE as u64)?;
        Ok(ioas)
    };
    let found = |device: &Device| -> Result<Option<u8>> {
        Ok(match device.copy(IOVA, OUT)? {
            Some(_) => None,
            None => Some(memory::byte(OUT_PAGE)),
        })
    };
    let (one, two) = (space(1)?, space(2)?);
    let table = iommufd.hwpt(first.id(), one, 0)?;
    iommufd::refused("a table of another IOMMU", other.attach(table), Errno::EINVAL)?;
    first.attach(table)?;
    let elsewhere = iommufd.hwpt(second.id(), two, 0)?;
    iommufd::refused("a group in two tables", second.attach(elsewhere), Errno::EINVAL)?;
    second.attach(table)?;
    ensure!((found(&first)?, found(&second)?) == (Some(1), Some(1)), "the group is in one");
    second.attach(elsewhere)?;
    ensure!((found(&first)?, found(&second)?) == (Some(2), Some(2)), "the group has moved");
    // One IOAS in tables of two kinds.
    other.attach(two)?;
    ensure!(found(&other)? == Some(2), "the other IOMMU");
    iommufd.unmap(two, IOVA, PAGE as u64)?;
    ensure!((found(&first)?, found(&other)?) == (None, None), "unmapped in both");
    Ok(())
}

/// DMA to an address that was mapped and is no longer, and to one that never was.
pub(crate) fn refused() -> Result<()> {
    let iommufd = Iommufd::open()?;
    let device = Device::open(&iommufd, 0)?;
    let ioas = iommufd.ioas()?;
    ensure!(device.copy(IOVA, OUT)? == Some(IOVA), "it is attached to nothing");
    iommufd.map(ioas, IOVA, 0, PAGE as u64)?;
    iommufd.map(ioas, OUT, OUT_PAGE as u64, PAGE as u64)?;
    device.attach(ioas)?;
    ensure!(device.copy(IOVA, OUT)?.is_none(), "it is mapped");
    iommufd.unmap(ioas, IOVA, PAGE as u64)?;
    ensure!(device.copy(IOVA, OUT)? == Some(IOVA), "it was unmapped");
    ensure!(device.copy(OUT, OUT + 0x1_0000)? == Some(OUT + 0x1_0000), "it never was mapped");
    Ok(())
}
