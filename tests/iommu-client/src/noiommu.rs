//! A device without an IOMMU: bound through its own node, told physical addresses.

use std::fs::OpenOptions;

use anyhow::{Result, ensure};
use ioasis_uapi::{Errno, iommufd as abi};

use crate::device::Device;
use crate::iommufd::{Iommufd, refused};
use crate::memory::{self, PAGE};

const NODE: &str = "noiommu-vfio0";
const IOVA: u64 = 0x10_0000;

/// Whoever has CAP_SYS_RAWIO.
pub(crate) fn run() -> Result<()> {
    let iommufd = Iommufd::open()?;
    let device = Device::named(&iommufd, NODE)?;
    let ioas = iommufd.ioas()?;
    memory::fill(0, 1);
    iommufd.map(ioas, IOVA, 0, 4 * PAGE as u64)?;
    refused("nobody is attached", iommufd.phys(ioas, IOVA, 1), Errno::EOPNOTSUPP)?;
    let table = iommufd.hwpt(device.id(), ioas, 0)?;
    device.attach(table)?;
    let (first, run) = iommufd.phys(ioas, IOVA + 8, u64::MAX)?;
    ensure!((1..=4 * PAGE as u64 - 8).contains(&run), "{run} bytes follow");
    let (same, one) = iommufd.phys(ioas, IOVA + 9, 1)?;
    ensure!((same, one) == (first + 1, 1), "the next byte lies behind");
    refused("nothing is mapped", iommufd.phys(ioas, 0, 1), Errno::ENOENT)?;
    refused("no IOMMU, no words", iommufd.hw_info(device.id()), Errno::EOPNOTSUPP)?;
    let tracked = iommufd.hwpt(device.id(), ioas, abi::HWPT_ALLOC_DIRTY_TRACKING);
    refused("nothing tracks its writes", tracked, Errno::EOPNOTSUPP)?;
    ensure!(device.copy(IOVA, IOVA + PAGE as u64)?.is_some(), "its DMA goes nowhere");
    // The page table holds the pages, attached or not.
    device.detach()?;
    ensure!(iommufd.phys(ioas, IOVA + 8, 1)? == (first, 1), "the page stays where it is");
    iommufd.destroy(table)?;
    refused("the table is gone", iommufd.phys(ioas, IOVA, 1), Errno::EOPNOTSUPP)
}

/// Whoever has not.
pub(crate) fn unprivileged() -> Result<()> {
    let path = format!("/dev/vfio/devices/{NODE}");
    let opened = OpenOptions::new().read(true).write(true).open(path);
    refused("the node", opened, Errno::EPERM)?;
    let iommufd = Iommufd::open()?;
    refused("an address", iommufd.phys(1, IOVA, 1), Errno::EPERM)
}
