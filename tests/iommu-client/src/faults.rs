//! Page faults: the device asks for pages, the program gives them or does not.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;

use anyhow::{Result, ensure};
use ioasis_uapi::iommufd as abi;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zerocopy::{FromZeros, IntoBytes};

use crate::device::Device;
use crate::iommufd::Iommufd;
use crate::memory::{self, PAGE};

const IOVA: u64 = 0x10_0000;
const OUT: u64 = 0x20_0000;
const OUT_PAGE: usize = 8 * PAGE;

struct Paged {
    iommufd: Iommufd,
    device: Device,
    ioas: u32,
    queue: File,
}

impl Paged {
    /// The machine's device asks for pages; [`OUT`] is mapped.
    fn new() -> Result<Self> {
        let iommufd = Iommufd::open()?;
        let device = Device::open(&iommufd, 0)?;
        let ioas = iommufd.ioas()?;
        iommufd.map(ioas, OUT, OUT_PAGE as u64, PAGE as u64)?;
        let (id, queue) = iommufd.fault_queue()?;
        let hwpt = iommufd.hwpt_with_faults(device.id(), ioas, id)?;
        device.attach(hwpt)?;
        Ok(Self { iommufd, device, ioas, queue })
    }

    /// Waits until the device asks.
    fn wait(&self) -> Result<()> {
        let mut polled = [PollFd::from_borrowed_fd(self.queue.as_fd(), PollFlags::IN)];
        let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
        ensure!(poll(&mut polled, Some(&patience))? == 1, "the device does not ask");
        Ok(())
    }

    fn asked(&mut self) -> Result<abi::HwptPgfault> {
        self.wait()?;
        let mut record = abi::HwptPgfault::new_zeroed();
        let count = self.queue.read(record.as_mut_bytes())?;
        ensure!(count == size_of::<abi::HwptPgfault>(), "a record of {count} bytes");
        let expected = (self.device.id(), IOVA, abi::PGFAULT_PERM_READ);
        ensure!((record.dev_id, record.addr, record.perm) == expected, "{record:?}");
        Ok(record)
    }

    fn answer(&mut self, cookie: u32, code: u32) -> Result<()> {
        Ok(self.queue.write_all(abi::HwptPageResponse { cookie, code }.as_bytes())?)
    }
}

pub(crate) fn run() -> Result<()> {
    let mut paged = Paged::new()?;
    memory::fill(0, 77);

    paged.device.begin_reading(IOVA)?;
    let record = paged.asked()?;
    paged.iommufd.map(paged.ioas, IOVA, 0, PAGE as u64)?;
    paged.answer(record.cookie, abi::PAGE_RESP_SUCCESS)?;
    ensure!(paged.device.finish()?.is_none(), "the device did not go on");
    ensure!(paged.device.copy(IOVA, OUT)?.is_none(), "the page is there now");
    ensure!(memory::byte(OUT_PAGE) == 77, "the device read something else");

    paged.iommufd.unmap(paged.ioas, IOVA, PAGE as u64)?;
    paged.device.begin_reading(IOVA)?;
    let record = paged.asked()?;
    paged.answer(record.cookie, abi::PAGE_RESP_INVALID)?;
    ensure!(paged.device.finish()? == Some(IOVA), "the device was refused and went on");

    // What is told that the page is there, and finds it is not, asks again.
    paged.device.begin_reading(IOVA)?;
    let record = paged.asked()?;
    paged.answer(record.cookie, abi::PAGE_RESP_SUCCESS)?;
    paged.asked()?;
    // A reset does not wait for the answer.
    paged.device.reset()?;
    ensure!(paged.queue.read(&mut [0; 40])? == 0, "a request outlives the reset");

    // Nor does one through configuration space.
    paged.device.begin_reading(IOVA)?;
    paged.asked()?;
    paged.device.reset_function()?;
    ensure!(paged.device.finish()?.is_none(), "a reset device has no fault");
    Ok(())
}

/// Ends while the device waits for a page.
pub(crate) fn abandon() -> Result<()> {
    let paged = Paged::new()?;
    paged.device.begin_reading(IOVA)?;
    paged.wait()?;
    // The device is closed first, and the queue that could answer it last.
    let Paged { iommufd, device, queue, .. } = paged;
    drop(device);
    drop(iommufd);
    drop(queue);
    Ok(())
}
