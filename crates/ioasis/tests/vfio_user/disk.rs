//! A driver of an NVMe disk that speaks vfio-user.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use ioasis_vfio_user::message::{DmaAccess, IRQ_TRIGGER, pci};
use ioasis_vfio_user::{Client, Errno, Memory};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};

/// How the driver's memory reaches the device.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shared {
    /// Its descriptor is sent.
    Descriptor,
    /// It is asked for.
    Messages,
}

/// A page each: admin queues, I/O queues, what identify and reads and writes move.
const ADMIN_SQ: u64 = 0x1_0000;
const ADMIN_CQ: u64 = 0x1_1000;
const IO_SQ: u64 = 0x1_2000;
const IO_CQ: u64 = 0x1_3000;
const QUEUES: u64 = 0x4000;
const DATA: u64 = 0x10_0000;
const DATA_BYTES: u64 = 0x1_0000;
const ENTRIES: u16 = 16;

/// Memory that is asked for, by the address the device knows.
struct Ram {
    queues: File,
    data: File,
}

impl Ram {
    fn find(&self, address: u64, length: usize) -> Result<(&File, u64), Errno> {
        let end = address + length as u64;
        if (ADMIN_SQ..ADMIN_SQ + QUEUES).contains(&address) && end <= ADMIN_SQ + QUEUES {
            return Ok((&self.queues, address - ADMIN_SQ));
        }
        if (DATA..DATA + DATA_BYTES).contains(&address) && end <= DATA + DATA_BYTES {
            return Ok((&self.data, address - DATA));
        }
        Err(Errno::FAULT)
    }
}

impl Memory for Ram {
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        let (file, at) = self.find(address, bytes.len())?;
        file.read_exact_at(bytes, at).map_err(|_| Errno::IO)
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        let (file, at) = self.find(address, bytes.len())?;
        file.write_all_at(bytes, at).map_err(|_| Errno::IO)
    }
}

/// A queue pair.
#[derive(Clone, Copy)]
struct Queue {
    id: u16,
    submissions: u64,
    completions: u64,
    tail: u16,
    head: u16,
    phase: u16,
}

impl Queue {
    fn new(id: u16, submissions: u64, completions: u64) -> Self {
        Self { id, submissions, completions, tail: 0, head: 0, phase: 1 }
    }
}

/// A driver of the disk: NVM Express 1.4, one command at a time.
pub(crate) struct Disk {
    client: Client,
    ram: Ram,
    heard: OwnedFd,
    admin: Queue,
    io: Queue,
}

fn file(name: &str, length: u64) -> File {
    let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC).expect("memory"));
    file.set_len(length).expect("room");
    file
}

impl Disk {
    pub(crate) fn new(client: Client, shared: Shared) -> Self {
        let mut ram = Ram { queues: file("queues", QUEUES), data: file("data", DATA_BYTES) };
        let queues = ram.queues.try_clone().expect("a duplicate");
        let data = ram.data.try_clone().expect("a duplicate");
        for (address, size, file) in [(ADMIN_SQ, QUEUES, &queues), (DATA, DATA_BYTES, &data)] {
            let file = (shared == Shared::Descriptor).then_some((file.as_fd(), 0));
            client.dma_map((address, size), DmaAccess::all(), file, &mut ram).expect("mapped");
        }
        let heard = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd");
        let fds = [heard.as_fd(); 2];
        client.set_eventfds(pci::MSIX, IRQ_TRIGGER, 0, &fds, &mut ram).expect("MSI-X");
        let admin = Queue::new(0, ADMIN_SQ, ADMIN_CQ);
        let io = Queue::new(1, IO_SQ, IO_CQ);
        Self { client, ram, heard, admin, io }
    }

    fn store(&mut self, offset: u64, value: u32) {
        let done = self.client.region_write(0, offset, &value.to_le_bytes(), &mut self.ram);
        done.expect("stored");
    }

    fn load(&mut self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.client.region_read(0, offset, &mut bytes, &mut self.ram).expect("loaded");
        u32::from_le_bytes(bytes)
    }

    /// CC.
    pub(crate) fn configuration(&mut self) -> u32 {
        self.load(0x14)
    }

    /// Bus mastering, the controller with its admin queues, and an I/O queue pair.
    pub(crate) fn enable(&mut self) {
        let mut ids = [0; 4];
        self.client.region_read(pci::CONFIG, 0, &mut ids, &mut self.ram).expect("the identity");
        assert_eq!(ids, [0x36, 0x1b, 0x10, 0x00]);
        self.client.region_write(pci::CONFIG, 4, &[6, 0], &mut self.ram).expect("COMMAND");
        let entries = u32::from(ENTRIES - 1);
        self.store(0x24, entries << 16 | entries);
        for (offset, address) in [(0x28, ADMIN_SQ), (0x30, ADMIN_CQ)] {
            self.store(offset, u32::try_from(address).expect("below 4 GiB"));
            self.store(offset + 4, 0);
        }
        self.store(0x14, 6 << 16 | 4 << 20 | 1);
        while self.load(0x1c) & 1 == 0 {
            std::thread::yield_now();
        }
        let entries = entries << 16 | 1;
        let address = u32::try_from(IO_CQ).expect("below 4 GiB");
        assert_eq!(self.admin(&[5, 0, 0, 0, 0, 0, address, 0, 0, 0, entries, 1 << 16 | 3]), 0);
        let address = u32::try_from(IO_SQ).expect("below 4 GiB");
        assert_eq!(self.admin(&[1, 0, 0, 0, 0, 0, address, 0, 0, 0, entries, 1 << 16 | 1]), 0);
    }

    fn admin(&mut self, command: &[u32]) -> u16 {
        let mut queue = self.admin;
        let status = self.submit(&mut queue, command);
        self.admin = queue;
        status
    }

    fn submit(&mut self, queue: &mut Queue, command: &[u32]) -> u16 {
        let mut entry = [0; 64];
        for (bytes, word) in entry.chunks_mut(4).zip(command) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let at = queue.submissions - ADMIN_SQ + 64 * u64::from(queue.tail);
        self.ram.queues.write_all_at(&entry, at).expect("an entry");
        queue.tail = (queue.tail + 1) % ENTRIES;
        self.store(0x1000 + 8 * u64::from(queue.id), queue.tail.into());
        let at = queue.completions - ADMIN_SQ + 16 * u64::from(queue.head);
        let status = loop {
            self.client.serve_pending(&mut self.ram).expect("served");
            let mut status = [0; 2];
            self.ram.queues.read_exact_at(&mut status, at + 14).expect("an entry");
            let status = u16::from_le_bytes(status);
            if status & 1 == queue.phase {
                break status >> 1;
            }
            std::thread::yield_now();
        };
        queue.head = (queue.head + 1) % ENTRIES;
        queue.phase ^= u16::from(queue.head == 0);
        self.store(0x1004 + 8 * u64::from(queue.id), queue.head.into());
        status & 0xff
    }

    fn identify(&mut self) -> u16 {
        let data = u32::try_from(DATA).expect("below 4 GiB");
        self.admin(&[6, 1, 0, 0, 0, 0, data, 0, 0, 0, 0])
    }

    /// Blocks of the namespace.
    pub(crate) fn blocks(&mut self) -> u64 {
        assert_eq!(self.identify(), 0);
        u64::from_le_bytes(self.data(8).try_into().expect("eight bytes"))
    }

    /// The status of an identify.
    pub(crate) fn blocks_again(&mut self) -> u16 {
        self.identify()
    }

    fn transfer(&mut self, opcode: u32, block: u32, length: usize) -> u16 {
        assert!(length.is_multiple_of(512) && length <= 8192, "two pages at most");
        let data = u32::try_from(DATA).expect("below 4 GiB");
        let blocks = u32::try_from(length / 512 - 1).expect("few");
        let second = if length > 4096 { data + 0x1000 } else { 0 };
        let mut queue = self.io;
        let command = [opcode, 1, 0, 0, 0, 0, data, 0, second, 0, block, 0, blocks];
        let status = self.submit(&mut queue, &command);
        self.io = queue;
        status
    }

    pub(crate) fn write(&mut self, block: u32, bytes: &[u8]) {
        self.ram.data.write_all_at(bytes, 0).expect("in memory");
        assert_eq!(self.transfer(1, block, bytes.len()), 0);
    }

    pub(crate) fn read(&mut self, block: u32, length: usize) -> Vec<u8> {
        self.ram.data.write_all_at(&vec![0xee; length], 0).expect("in memory");
        assert_eq!(self.transfer(2, block, length), 0);
        self.data(length)
    }

    /// The status of a read of one block.
    pub(crate) fn read_status(&mut self, block: u32) -> u16 {
        self.transfer(2, block, 512)
    }

    /// What is in the memory for data.
    pub(crate) fn data(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.ram.data.read_exact_at(&mut bytes, 0).expect("in memory");
        bytes
    }

    /// The device may not reach the memory for data any more.
    pub(crate) fn take_back_data(&mut self) {
        self.client.dma_unmap((DATA, DATA_BYTES), &mut self.ram).expect("unmapped");
    }

    /// The memory for data is no more, although the device may reach it.
    pub(crate) fn cut_data(&mut self) {
        self.ram.data.set_len(0).expect("cut");
    }

    /// Interrupts heard since the last look.
    pub(crate) fn interrupts(&mut self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&self.heard, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }
}
