//! A driver that does anything.
//!
//! [`run`] turns bytes into loads and stores of a virtio device's registers, stores into its mapped
//! pages, and rings whose descriptors are nearly right, and polls the device by hand. At the end a
//! reset must bring it back. The fuzz target and the tests share it.

mod registers;
mod state;

use std::os::fd::AsRawFd;

use ioasis_pci::fake::Rig;

pub use registers::run_registers;
pub use state::run_state;

/// The devices, with their options.
const DEVICES: [(&str, &[(&str, &str)]); 4] = [
    ("virtio-blk", &[("queues", "2")]),
    ("virtio-blk", &[("ro", "on"), ("lba", "4096")]),
    ("virtio-net", &[("loop", "on")]),
    ("virtio-net", &[("loop", "on"), ("queues", "2"), ("interface", "transitional")]),
];

const MEMORY: u64 = 0x1_0000;
const MEMORY_BYTES: usize = 0x1_0000;
/// A queue's areas lie so far apart.
const QUEUE_BYTES: u64 = 0x3000;
const QUEUES: u64 = 3;
const DATA: u64 = MEMORY + QUEUES * QUEUE_BYTES;
const IMAGE: u64 = 64 << 10;

/// BAR and places of Virtio 1.2, 4.1.4, as this device has them.
const BAR: usize = 4;
const BAR_BYTES: u64 = 0x4000;
const NOTIFY: u64 = 0x3000;
const STATUS: u64 = 0x14;

/// What is left of the input; zeroes follow it.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn number(&mut self, bytes: usize) -> u64 {
        (0..bytes).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }
}

fn device(input: &mut Input<'_>) -> Rig {
    let image = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC);
    let image = image.expect("a file in memory");
    rustix::fs::ftruncate(&image, IMAGE).expect("room for the image");
    let (name, extra) = DEVICES[usize::from(input.byte()) % DEVICES.len()];
    let mut options = Vec::new();
    if name == "virtio-blk" {
        options.push(("image".to_owned(), format!("/proc/self/fd/{}", image.as_raw_fd())));
    }
    options.extend(extra.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())));
    let model = ioasis_pci::create(name, &options).expect("its options are right");
    Rig::new(model, MEMORY, MEMORY_BYTES)
}

/// Does what `input` says; answers how many steps there were.
///
/// # Panics
///
/// If a reset does not bring the device back, or the device panics.
pub fn run(input: &[u8]) -> u64 {
    let mut input = Input(input);
    let mut rig = device(&mut input);
    let mut steps = 0;
    while !input.0.is_empty() {
        step(&mut rig, &mut input);
        steps += 1;
    }
    rig.set_master(true);
    rig.store(BAR, STATUS, &[0]);
    let mut status = [0xee];
    rig.load(BAR, STATUS, &mut status);
    assert_eq!(status, [0], "a reset is done at once");
    set_up(&mut rig, 0, 4);
    rig.poll_once();
    rig.load(BAR, STATUS, &mut status);
    assert_eq!(status[0] & 12, 12, "and the device starts again");
    steps
}

fn step(rig: &mut Rig, input: &mut Input<'_>) {
    match input.byte() % 10 {
        0 => {
            let (at, length) = (input.number(1), usize::from(input.byte() % 8) + 1);
            let value = input.number(8).to_le_bytes();
            // Ports of the legacy interface lie in BAR 0; a device without them takes no notice.
            let bar = if at & 0x80 == 0 { BAR } else { 0 };
            rig.store(bar, at & 0x3f, &value[..length]);
        }
        1 => {
            let (at, length) = (input.number(2) % BAR_BYTES, usize::from(input.byte() % 8) + 1);
            rig.load(BAR, at, &mut vec![0; length]);
        }
        2 => {
            let at = (input.number(2) % BAR_BYTES) & !3;
            let value = u32::try_from(input.number(4)).expect("four bytes");
            rig.pages(BAR).store_u32(at, value).expect("mapped");
        }
        3 => {
            let at = MEMORY + input.number(2) % (MEMORY_BYTES as u64 - 8);
            rig.memory.put(at, &input.number(8).to_le_bytes());
        }
        4 => {
            let (queue, size) = (input.number(1) % QUEUES, input.byte() % 9);
            set_up(rig, queue, 1 << size);
        }
        5 | 6 => offer(rig, input),
        7 => {
            let queue = input.number(1) % QUEUES;
            rig.pages(BAR).write(NOTIFY + 4 * queue, &[0, 0]).expect("mapped");
        }
        8 => rig.set_master(!input.byte().is_multiple_of(8)),
        // It may have the device do one thing again and again: a bounded number of turns is enough.
        _ => {
            for _ in 0..=input.byte() % 4 {
                rig.poll_once();
            }
        }
    }
}

fn store(rig: &mut Rig, at: u64, value: u64, length: usize) {
    rig.store(BAR, at, &value.to_le_bytes()[..length]);
}

/// Negotiates all that is offered, unless that is done, and sets up a queue.
fn set_up(rig: &mut Rig, queue: u64, size: u64) {
    let mut status = [0];
    rig.load(BAR, STATUS, &mut status);
    if status[0] & 8 == 0 {
        store(rig, STATUS, 3, 1);
        for half in 0..2 {
            store(rig, 0, half, 4);
            let mut offered = [0; 4];
            rig.load(BAR, 4, &mut offered);
            store(rig, 8, half, 4);
            rig.store(BAR, 0xc, &offered);
        }
        store(rig, STATUS, 11, 1);
    }
    let base = MEMORY + queue * QUEUE_BYTES;
    store(rig, 0x16, queue, 2);
    store(rig, 0x18, size, 2);
    for (register, area) in [(0x20, base), (0x28, base + 0x1000), (0x30, base + 0x2000)] {
        store(rig, register, area, 8);
    }
    store(rig, 0x1c, 1, 2);
    store(rig, STATUS, 15, 1);
}

/// A chain that may be right, of a queue that may be.
fn offer(rig: &mut Rig, input: &mut Input<'_>) {
    let base = MEMORY + input.number(1) % QUEUES * QUEUE_BYTES;
    let (first, count) = (input.number(1) % 16, input.number(1) % 5 + 1);
    // Type and sector of a request, or whatever the device takes them for.
    rig.memory.put(DATA, &(input.number(1) % 16).to_le_bytes());
    rig.memory.put(DATA + 8, &(input.number(1) % 160).to_le_bytes());
    for at in first..first + count {
        let kind = input.byte();
        let place = DATA + input.number(1) * 64;
        let (address, length) = match kind % 8 {
            0 => (input.number(8), input.number(2)),
            1 => (DATA, 16),
            2 => (place, 1),
            _ => (place, input.number(1) * 32),
        };
        let more = if at + 1 < first + count && kind & 0x80 == 0 { 1 } else { 0 };
        let flags = more | u64::from(kind >> 3 & 2) | if kind & 0x60 == 0x60 { 4 } else { 0 };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes()[..4]);
        bytes[12..14].copy_from_slice(&flags.to_le_bytes()[..2]);
        bytes[14..].copy_from_slice(&(at + 1).to_le_bytes()[..2]);
        rig.memory.put(base + 16 * at, &bytes);
    }
    let word = rig.memory.get(base + 0x1002, 2);
    let index = u16::from_le_bytes([word[0], word[1]]);
    // Where the entry goes depends on the size, so it is put where any size has it.
    for size in [1, 2, 4, 8, 16, 32, 64, 128, 256] {
        let at = base + 0x1004 + 2 * u64::from(index % size);
        rig.memory.put(at, &first.to_le_bytes()[..2]);
    }
    rig.memory.put(base + 0x1002, &index.wrapping_add(1).to_le_bytes());
}
