//! One `testdev` reads another's BAR through a dma-buf.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use iommufd_ioctls::{IommuFd, IommufdIoas};
use vfio_ioctls::{VfioDevice, VfioIommufd, VfioRegionDmaRange};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::testdev::{FROM_MEMORY, PAGE, TO_MEMORY, command};
use crate::{CONFIG, IOVA, Memory, open};

/// Where the importer finds the exporter's BAR.
const PEER: u64 = 0x4000_0000;
/// What the exporter's address register holds.
const VALUE: u64 = 0x1122_3344_5566_7788;
/// `O_CLOEXEC` (asm-generic/fcntl.h).
const O_CLOEXEC: u32 = 0o2_000_000;

fn decode(device: &VfioDevice, value: u16) {
    device.region_write(CONFIG, &value.to_le_bytes(), 4);
}

fn map(ioas: &IommufdIoas, buffer: &File) -> Result<()> {
    ioas.map_file(buffer.as_raw_fd(), 0, PAGE as u64, PEER, true)
        .context("the dma-buf is not mapped")
}

pub(crate) fn run(first: &Path, second: &Path) -> Result<()> {
    let iommufd = Arc::new(IommuFd::new().context("no iommufd")?);
    let ioas = Arc::new(IommufdIoas::new(Arc::clone(&iommufd)).context("no IOAS")?);
    let memory = Memory::of_file(&ioas)?;
    let ops = VfioIommufd::new(iommufd, Some(Arc::clone(&ioas)), None).context("no VFIO")?;
    let ops = Arc::new(ops);
    let exporter = open(first, Arc::clone(&ops) as _, true)?;
    let importer = open(second, ops, true)?;
    decode(&exporter, 6);
    decode(&importer, 6);
    exporter.region_write(0, &VALUE.to_le_bytes(), 0);

    let page = VfioRegionDmaRange { offset: 0, length: PAGE as u64 };
    let buffer = exporter.export_dma_buf(0, &[page], O_CLOEXEC)?.context("no dma-bufs")?;
    map(&ioas, &buffer)?;
    let done = EventFd::new(EFD_NONBLOCK)?;
    importer.enable_msi(vec![&done])?;
    let fetch = || -> Result<bool> { Ok(command(&importer, &done, PEER, FROM_MEMORY)? == 0) };
    ensure!(fetch()?, "the BAR is out of reach");
    ensure!(command(&importer, &done, IOVA, TO_MEMORY)? == 0, "memory is out of reach");
    ensure!(memory.read(0, 8)? == VALUE.to_le_bytes(), "the copy differs");

    decode(&exporter, 4);
    ensure!(!fetch()?, "a BAR that does not decode is reached");
    decode(&exporter, 6);
    ensure!(!fetch()?, "a mapping survives its revocation");
    ioas.unmap(PEER, PAGE as u64).context("the dma-buf is not unmapped")?;
    map(&ioas, &buffer)?;
    ensure!(fetch()?, "the BAR is not back");
    println!("ok");
    Ok(())
}
