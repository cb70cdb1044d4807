//! Whoever writes the state that a device is to take over.

use std::os::fd::AsRawFd;

use ioasis_pci::fake::Rig;

use crate::{IMAGE, Input, MEMORY, MEMORY_BYTES};

/// Bytes of a state that say how the device was made, which nothing but they themselves can be.
const SHAPE: [usize; 3] = [1, 40, 56];
/// Of nvme: CC, AQA, ASQ, ACQ, and the doorbells (NVMe 1.4, chapter 3).
const REGISTERS: u64 = 0x14;
const ADMIN: [(u64, u64); 3] = [(0x24, 0x000f_000f), (0x28, MEMORY), (0x30, MEMORY + 0x1000)];
const ENABLE: u32 = 0x0046_0001;
const DOORBELLS: u64 = 0x1000;

/// A device of each model that migrates, at work.
fn device(kind: usize) -> Rig {
    let image = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC);
    let image = image.expect("a file in memory");
    rustix::fs::ftruncate(&image, IMAGE).expect("room for the image");
    let path = format!("/proc/self/fd/{}", image.as_raw_fd());
    let (name, options) = match kind {
        0 => ("testdev", [("latch", "on"), ("migration", "all")]),
        1 => ("nvme", [("image", path.as_str()), ("queues", "3")]),
        _ => ("virtio-blk", [("image", path.as_str()), ("queues", "2")]),
    };
    let options = options.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let model = ioasis_pci::create(name, &options).expect("its options are right");
    let mut rig = Rig::new(model, MEMORY, MEMORY_BYTES);
    if kind == 1 {
        for (register, value) in ADMIN {
            rig.store(0, register, &value.to_le_bytes()[..if register == 0x24 { 4 } else { 8 }]);
        }
        rig.store(0, REGISTERS, &ENABLE.to_le_bytes());
    }
    rig
}

/// Changes bytes of a device's state as `input` says, and has the device take it; answers how many
/// states there were.
///
/// # Panics
///
/// If the device panics, or what it has taken is not what it is then.
pub fn run_state(input: &[u8]) -> u64 {
    let mut input = Input(input);
    let kind = usize::from(input.byte() % 3);
    let mut rig = device(kind);
    let mut states = 0;
    while !input.0.is_empty() {
        let mut state = rig.save();
        for _ in 0..input.byte() % 16 {
            let first = SHAPE[kind];
            let at = first + place(&mut input) % (state.len() - first);
            state[at] = input.byte();
        }
        if input.byte() == 0 {
            state.truncate(place(&mut input));
        }
        if rig.load_state(&state).is_ok() {
            let taken = rig.save();
            rig.load_state(&taken).expect("a device takes its own state");
            assert_eq!(rig.save(), taken, "a state is what it is");
            work(&mut rig, &mut input, kind);
        }
        states += 1;
    }
    rig.reset();
    states
}

fn place(input: &mut Input<'_>) -> usize {
    usize::try_from(input.number(2)).expect("two bytes")
}

/// The device goes on with whatever it has taken.
fn work(rig: &mut Rig, input: &mut Input<'_>, kind: usize) {
    rig.remind();
    let memory = input.number(8).to_le_bytes();
    rig.memory.put(MEMORY + input.number(2) % 0x2000, &memory);
    if kind == 1 {
        for queue in 0..8 {
            let value = u32::from(input.byte());
            rig.pages(0).store_u32(DOORBELLS + 4 * queue, value).expect("mapped");
        }
    }
    for _ in 0..8 {
        rig.poll_once();
    }
}
