//! `testdev`: a page into the device, and out again.

use anyhow::{Result, ensure};
use vfio_ioctls::VfioDevice;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::{IOVA, Memory, wait};

pub(crate) const PAGE: usize = 4096;
const ADDR: u64 = 0;
const CMD: u64 = 8;
pub(crate) const FROM_MEMORY: u32 = 3;
pub(crate) const TO_MEMORY: u32 = 1;

pub(crate) fn command(device: &VfioDevice, done: &EventFd, iova: u64, command: u32) -> Result<u32> {
    device.region_write(0, &iova.to_le_bytes(), ADDR);
    device.region_write(0, &command.to_le_bytes(), CMD);
    wait("a copy", || done.read().is_ok())?;
    let mut status = [0; 4];
    device.region_read(0, &mut status, CMD);
    Ok(u32::from_le_bytes(status))
}

pub(crate) fn run(device: &VfioDevice, memory: &Memory) -> Result<()> {
    let done = EventFd::new(EFD_NONBLOCK)?;
    device.enable_msi(vec![&done])?;
    let pattern: Vec<u8> = (0..PAGE).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
    memory.write(0, &pattern)?;
    ensure!(command(device, &done, IOVA, FROM_MEMORY)? == 0, "the device cannot read");
    let target = IOVA + PAGE as u64;
    ensure!(command(device, &done, target, TO_MEMORY)? == 0, "the device cannot write");
    ensure!(memory.read(PAGE, PAGE)? == pattern, "the copy differs");
    ensure!(
        command(device, &done, 0x5000_0000, FROM_MEMORY)? >> 31 == 1,
        "the device reads what is not mapped"
    );
    device.disable_msi()?;
    device.reset();
    println!("ok");
    Ok(())
}
