//! A driver of the DMA engine or the network port that does anything.

use ioasis_pci::fake::Rig;

use crate::{Input, MEMORY, MEMORY_BYTES};

/// The devices, with an option, and the bytes of BAR 0 whose stores and loads act.
const DEVICES: [(&str, (&str, &str), u64); 2] =
    [("ioat", ("transfer", "4K"), 0x100), ("igb", ("loop", "on"), 0x5000)];
/// BAR of the registers of both.
const BAR: usize = 0;
const PAGES: u64 = 0x4000;

/// Stores, loads, rings and memory as `input` says; answers how many steps there were.
///
/// # Panics
///
/// If the device panics, or a reset does not bring its registers back.
pub fn run_registers(input: &[u8]) -> u64 {
    let mut input = Input(input);
    let (name, (key, value), acting) = DEVICES[usize::from(input.byte()) % DEVICES.len()];
    let options = [(key.to_owned(), value.to_owned())];
    let model = ioasis_pci::create(name, &options).expect("its option is right");
    let mut rig = Rig::new(model, MEMORY, MEMORY_BYTES);
    rig.reset();
    let fresh = registers(&mut rig);
    let mut steps = 0;
    while !input.0.is_empty() {
        step(&mut rig, &mut input, acting);
        steps += 1;
    }
    rig.set_master(true);
    rig.reset();
    assert_eq!(registers(&mut rig), fresh, "{name} is as after power-on");
    steps
}

fn registers(rig: &mut Rig) -> [u8; 0x100] {
    let mut bytes = [0; 0x100];
    for (at, dword) in (0..).step_by(4).zip(bytes.chunks_exact_mut(4)) {
        rig.load(BAR, at, dword);
    }
    bytes
}

fn step(rig: &mut Rig, input: &mut Input<'_>, acting: u64) {
    match input.byte() % 8 {
        0 | 1 => {
            let width = 1 << (input.byte() % 4);
            let at = (input.number(2) % acting) & !(width - 1);
            let bytes = input.number(8).to_le_bytes();
            rig.store(BAR, at, &bytes[..usize::try_from(width).expect("at most 8")]);
        }
        2 => rig.load(BAR, (input.number(2) % acting) & !7, &mut [0; 8]),
        // Past the calls, as one who is not trapped does it; half of it in the rings of igb.
        3 | 4 => {
            let at = input.number(2);
            let at = if at & 1 == 0 { at % PAGES } else { 0x2800 + (at & 0x103c) };
            let value = u32::try_from(input.number(4)).expect("four bytes");
            rig.pages(BAR).store_u32(at & !3, value).expect("mapped");
        }
        5 | 6 => {
            let at = input.number(2) % (MEMORY_BYTES as u64 / 16) * 16;
            let words = [MEMORY | input.number(2), input.number(8)];
            let bytes = words.map(u64::to_le_bytes).concat();
            rig.memory.put(MEMORY + at, &bytes);
        }
        _ => {
            rig.set_master(!input.byte().is_multiple_of(8));
            rig.poll_once();
        }
    }
}
