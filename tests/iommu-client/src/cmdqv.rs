//! Command queues of a guest's own, on an SMMUv3 with a CMDQ-V.

use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ioasis_uapi::{Errno, iommufd as abi};
use rustix::mm::{MapFlags, ProtFlags};

use crate::device::Device;
use crate::iommufd::{Iommufd, refused};
use crate::memory::{self, LENGTH};

/// Where the guest's memory has the commands, and how many bytes of them.
const COMMANDS: u64 = 0xb000;
const BYTES: u64 = 0x100;
/// Memory of a queue that goes away.
const ELSEWHERE: u64 = 1 << 30;

/// A queue's registers, in words.
const STRIDE: usize = 0x80 / 4;
const CONS: usize = 0;
const PROD: usize = 1;
const CONFIG: usize = 2;
const STATUS: usize = 3;
const GERROR: usize = 4;
const GERRORN: usize = 5;

/// Page 0 of the interface.
const PAGE0: usize = 64 << 10;

const SYNC: [u64; 2] = [0x46, 0];

/// An interface whose page is mapped, and how far its first queue has come.
pub(crate) struct Interface {
    registers: &'static [AtomicU32],
    prod: u32,
}

/// Maps bytes of the iommufd.
#[expect(unsafe_code, reason = "mmap is")]
fn map(iommufd: &Iommufd, offset: u64, length: usize) -> rustix::io::Result<*mut AtomicU32> {
    let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
    // SAFETY: the kernel chooses a place where nothing is.
    let at =
        unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, prot, flags, iommufd, offset) };
    Ok(at?.cast())
}

/// A virtual IOMMU with an interface, and its first queue, enabled.
pub(crate) fn make(iommufd: &Iommufd, device: u32, parent: u32) -> Result<(u32, Interface)> {
    let mut place = abi::ViommuTegra241Cmdqv::default();
    let kind = abi::VIOMMU_TYPE_TEGRA241_CMDQV;
    refused("an interface without data", iommufd.viommu(kind, device, parent), Errno::EINVAL)?;
    let viommu = iommufd.viommu_with(kind, device, parent, &mut place)?;
    ensure!(place.out_vintf_mmap_length == PAGE0 as u64, "the interface is at {place:x?}");
    let offset = place.out_vintf_mmap_offset;
    let part = map(iommufd, offset, PAGE0 / 2);
    ensure!(part.err() == Some(rustix::io::Errno::NXIO), "half of a page is mapped");
    let page = map(iommufd, offset, PAGE0).context("the page is not mapped")?;
    #[expect(unsafe_code, reason = "a mapping is a pointer")]
    // SAFETY: the mapping has as many bytes, is aligned, and is never undone; whoever else writes
    // does it word by word.
    let registers = unsafe { std::slice::from_raw_parts(page, PAGE0 / 4) };
    iommufd.hw_queue(viommu, 0, COMMANDS, BYTES)?;
    let interface = Interface { registers, prod: 0 };
    interface.enable(0)?;
    Ok((viommu, interface))
}

impl Interface {
    fn register(&self, queue: usize, register: usize) -> &AtomicU32 {
        &self.registers[queue * STRIDE + register]
    }

    fn wait(&self, queue: usize, register: usize, value: u32) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let place = self.register(queue, register);
        while place.load(Ordering::Acquire) != value {
            let is = place.load(Ordering::Acquire);
            ensure!(
                Instant::now() < deadline,
                "queue {queue}: {register} is {is:#x}, not {value:#x}"
            );
            std::hint::spin_loop();
        }
        Ok(())
    }

    fn enable(&self, queue: usize) -> Result<()> {
        self.register(queue, CONFIG).store(1, Ordering::Release);
        self.wait(queue, STATUS, 1)
    }

    /// Puts a command behind those that were sent.
    fn put(&mut self, [first, second]: [u64; 2]) {
        let commands = u32::try_from(BYTES / 16).expect("a short queue");
        let at = COMMANDS + u64::from(self.prod % commands) * 16;
        memory::word(at, first);
        memory::word(at + 8, second);
        self.prod = (self.prod + 1) % (2 * commands);
        self.register(0, PROD).store(self.prod, Ordering::Release);
    }

    /// Sends a command and a CMD_SYNC, and waits for both.
    pub(crate) fn send(&mut self, command: [u64; 2]) -> Result<()> {
        self.put(command);
        self.put(SYNC);
        self.wait(0, CONS, self.prod)
    }

    /// A queue in error stops, its guest hears of it, and it goes on.
    fn meet_illegal(&mut self, events: &mut File) -> Result<()> {
        let (illegal, at) = ([0x20, 0], self.prod);
        self.put(illegal);
        self.wait(0, GERROR, 1)?;
        self.wait(0, CONS, at | 1 << 24)?;
        heard(events, 1, 0)?;
        memory::word(COMMANDS + u64::from(at % 16) * 16, SYNC[0]);
        self.register(0, GERRORN).store(1, Ordering::Release);
        self.wait(0, CONS, self.prod)
    }

    /// The memory of a queue at [`ELSEWHERE`], which is the page at `address`, goes away, and the
    /// other queue goes on.
    fn meet_loss(
        &mut self,
        iommufd: &Iommufd,
        viommu: u32,
        address: u64,
        events: &mut File,
    ) -> Result<()> {
        let second = iommufd.hw_queue(viommu, 1, ELSEWHERE, 0x1000)?;
        self.enable(1)?;
        memory::lose(address);
        self.register(1, PROD).store(1, Ordering::Release);
        self.wait(1, GERROR, 1)?;
        // CERROR_ABT.
        self.wait(1, CONS, 2 << 24)?;
        heard(events, 2, 1)?;
        iommufd.destroy(second)?;
        self.send(SYNC)
    }
}

/// Reads the event that is the queue's next: which queues are in error.
fn heard(events: &mut File, map: u64, sequence: u64) -> Result<()> {
    let mut words = [0; 24];
    events.read_exact(&mut words)?;
    let expected = [sequence << 32, map, 0].map(u64::to_le_bytes).concat();
    ensure!(words[..] == expected, "the guest heard {words:x?}");
    Ok(())
}

/// Does nothing with an enabled queue until its standard input ends.
pub(crate) fn hold() -> Result<()> {
    let iommufd = Iommufd::open()?;
    let device = Device::open(&iommufd, 0)?;
    let ioas = iommufd.ioas()?;
    iommufd.map(ioas, 0, 0, LENGTH as u64)?;
    let parent = iommufd.hwpt(device.id(), ioas, abi::HWPT_ALLOC_NEST_PARENT)?;
    let _interface = make(&iommufd, device.id(), parent)?;
    println!("ready");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

pub(crate) fn run() -> Result<()> {
    let iommufd = Iommufd::open()?;
    let device = Device::open(&iommufd, 0)?;
    let mut info = abi::HwInfoTegra241Cmdqv::default();
    iommufd.hw_info_of(device.id(), abi::HW_INFO_TYPE_TEGRA241_CMDQV, &mut info)?;
    ensure!((info.log2vcmdqs, info.log2vsids) == (1, 4), "the hardware says it is {info:?}");
    let ioas = iommufd.ioas()?;
    iommufd.map(ioas, 0, 0, LENGTH as u64)?;
    let losable = memory::losable()?;
    iommufd.map_address(ioas, ELSEWHERE, losable, 0x1000)?;
    let parent = iommufd.hwpt(device.id(), ioas, abi::HWPT_ALLOC_NEST_PARENT)?;
    let (viommu, mut interface) = make(&iommufd, device.id(), parent)?;
    refused("a virtual IOMMU in use", iommufd.destroy(viommu), Errno::EBUSY)?;
    let mut events = iommufd.event_queue(viommu, abi::VEVENTQ_TYPE_TEGRA241_CMDQV, 4)?;
    interface.meet_illegal(&mut events)?;
    interface.meet_loss(&iommufd, viommu, losable, &mut events)
}
