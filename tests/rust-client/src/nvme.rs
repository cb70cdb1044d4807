//! An NVMe driver that reads the first blocks, NVM Express 1.4.

use std::io::Write;

use anyhow::{Result, ensure};
use vfio_ioctls::VfioDevice;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::{IOVA, LENGTH, Memory, wait};

// Registers, 3.1.
const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
const DOORBELLS: u64 = 0x1000;
/// Enabled, entries of 64 and 16 bytes.
const CC_ENABLE: u32 = 1 | 6 << 16 | 4 << 20;

// Commands, 5 and 6.
const CREATE_SQ: u8 = 0x01;
const CREATE_CQ: u8 = 0x05;
const IDENTIFY: u8 = 0x06;
const READ: u8 = 0x02;

/// Entries of every queue.
const ENTRIES: u16 = 16;
/// Queues lie in the first pages of memory, two pages each; data after them.
const DATA: usize = 0x4000;
/// Bytes that are read.
const WANTED: usize = 0x4000;

struct Queue<'a> {
    device: &'a VfioDevice,
    memory: &'a Memory,
    interrupt: &'a EventFd,
    id: u16,
    tail: u16,
    head: u16,
    phase: u16,
}

impl<'a> Queue<'a> {
    fn new(device: &'a VfioDevice, memory: &'a Memory, interrupt: &'a EventFd, id: u16) -> Self {
        Self { device, memory, interrupt, id, tail: 0, head: 0, phase: 1 }
    }

    fn submissions(&self) -> usize {
        usize::from(self.id) * 0x2000
    }

    fn completions(&self) -> usize {
        self.submissions() + 0x1000
    }

    fn ring(&self, which: u64, value: u16) {
        let doorbell = DOORBELLS + (u64::from(self.id) * 2 + which) * 4;
        self.device.region_write(0, &u32::from(value).to_le_bytes(), doorbell);
    }

    /// Submits a command of `words` from its tenth on, and waits for its completion.
    fn run(&mut self, opcode: u8, namespace: u32, data: usize, words: [u32; 3]) -> Result<()> {
        let mut entry = [0; 64];
        entry[0] = opcode;
        entry[4..8].copy_from_slice(&namespace.to_le_bytes());
        let address = iova(data);
        entry[24..32].copy_from_slice(&address.to_le_bytes());
        entry[32..40].copy_from_slice(&iova(data + 0x1000).to_le_bytes());
        for (i, word) in words.iter().enumerate() {
            entry[40 + i * 4..44 + i * 4].copy_from_slice(&word.to_le_bytes());
        }
        self.memory.write(self.submissions() + usize::from(self.tail) * 64, &entry)?;
        self.tail = (self.tail + 1) % ENTRIES;
        self.ring(0, self.tail);
        wait("an interrupt", || self.interrupt.read().is_ok())?;
        let entry = self.memory.read(self.completions() + usize::from(self.head) * 16, 16)?;
        let status = u16::from_le_bytes([entry[14], entry[15]]);
        ensure!(status & 1 == self.phase, "an interrupt without a completion");
        ensure!(status >> 1 == 0, "command {opcode:#x} ends with status {:#x}", status >> 1);
        self.head = (self.head + 1) % ENTRIES;
        if self.head == 0 {
            self.phase ^= 1;
        }
        self.ring(1, self.head);
        Ok(())
    }
}

fn iova(offset: usize) -> u64 {
    IOVA + offset as u64
}

fn load(device: &VfioDevice, register: u64) -> u32 {
    let mut bytes = [0; 4];
    device.region_read(0, &mut bytes, register);
    u32::from_le_bytes(bytes)
}

pub(crate) fn run(device: &VfioDevice, memory: &Memory) -> Result<()> {
    const { assert!(DATA + WANTED <= LENGTH) };
    let interrupts = [EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?];
    device.enable_msix(interrupts.iter().collect())?;
    device.region_write(0, &0_u32.to_le_bytes(), CC);
    wait("a disabled controller", || load(device, CSTS) & 1 == 0)?;
    let mut admin = Queue::new(device, memory, &interrupts[0], 0);
    let mut io = Queue::new(device, memory, &interrupts[1], 1);
    let last = u32::from(ENTRIES) - 1;
    device.region_write(0, &(last | last << 16).to_le_bytes(), AQA);
    device.region_write(0, &iova(admin.submissions()).to_le_bytes(), ASQ);
    device.region_write(0, &iova(admin.completions()).to_le_bytes(), ACQ);
    device.region_write(0, &CC_ENABLE.to_le_bytes(), CC);
    wait("a ready controller", || load(device, CSTS) & 1 == 1)?;

    admin.run(IDENTIFY, 1, DATA, [0, 0, 0])?;
    let namespace = memory.read(DATA, 132)?;
    let format = usize::from(namespace[26] & 0xf);
    let lg2 = memory.read(DATA + 128 + format * 4 + 2, 1)?[0];
    // A contiguous completion queue with interrupt 1, then a contiguous submission queue that uses
    // it.
    admin.run(CREATE_CQ, 0, io.completions(), [1 | last << 16, 3 | 1 << 16, 0])?;
    admin.run(CREATE_SQ, 0, io.submissions(), [1 | last << 16, 1 | 1 << 16, 0])?;
    let blocks = u32::try_from(0x2000_usize >> lg2)?;
    for part in 0..2_u32 {
        let data = DATA + 0x2000 * part as usize;
        io.run(READ, 1, data, [part * blocks, 0, blocks - 1])?;
    }
    std::io::stdout().write_all(&memory.read(DATA, WANTED)?)?;
    device.region_write(0, &0_u32.to_le_bytes(), CC);
    wait("a disabled controller", || load(device, CSTS) & 1 == 0)?;
    device.disable_msix()?;
    Ok(())
}
