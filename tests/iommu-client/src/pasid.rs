//! PASIDs: page tables of their own beside the device's.

use anyhow::{Result, ensure};
use ioasis_uapi::{Errno, iommufd as abi};

use crate::device::Device;
use crate::iommufd::{Iommufd, refused};
use crate::memory::{self, PAGE};

const IOVA: u64 = 0x10_0000;
const OUT: u64 = 0x20_0000;
const OUT_PAGE: usize = 8 * PAGE;

/// The machine's device sends PASIDs of 16 bits.
pub(crate) fn run() -> Result<()> {
    let iommufd = Iommufd::open()?;
    let device = Device::open(&iommufd, 0)?;
    ensure!(iommufd.hw_info(device.id())?.out_max_pasid_log2 == 16, "the width of a PASID");
    // Three tables that map one address to three pages.
    let mut tables = Vec::new();
    for number in 0..3_u8 {
        let ioas = iommufd.ioas()?;
        let offset = usize::from(number) * PAGE;
        memory::fill(offset, 10 + number);
        iommufd.map(ioas, IOVA, offset as u64, PAGE as u64)?;
        iommufd.map(ioas, OUT, OUT_PAGE as u64, PAGE as u64)?;
        tables.push(iommufd.hwpt(device.id(), ioas, abi::HWPT_ALLOC_PASID)?);
    }
    let found = |pasid| -> Result<Option<u8>> {
        device.use_pasid(pasid)?;
        Ok(match device.copy(IOVA, OUT)? {
            Some(_) => None,
            None => Some(memory::byte(OUT_PAGE)),
        })
    };
    device.attach(tables[0])?;
    device.attach_pasid(5, tables[1])?;
    ensure!((found(0)?, found(5)?, found(6)?) == (Some(10), Some(11), None), "two tables");
    device.attach_pasid(5, tables[2])?;
    ensure!((found(0)?, found(5)?) == (Some(10), Some(12)), "the PASID has moved, the device not");
    device.detach_pasid(5)?;
    ensure!((found(0)?, found(5)?) == (Some(10), None), "the PASID is detached");
    refused("a PASID of 17 bits", device.attach_pasid(1 << 16, tables[1]), Errno::EINVAL)?;
    let ioas = iommufd.ioas()?;
    let plain = iommufd.hwpt(device.id(), ioas, 0)?;
    refused("a table not made for PASIDs", device.attach_pasid(5, plain), Errno::EINVAL)
}
