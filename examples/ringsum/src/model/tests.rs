use ioasis::pci::fake::Rig;

use super::*;

const MEMORY: u64 = 0x10_0000;
const MEMORY_BYTES: usize = 1 << 20;
const BUFFER: u64 = MEMORY + 0x1000;

/// The device, running with a ring of four at the beginning of memory.
fn running() -> Rig {
    let mut rig = Rig::new(INFO.create(&[]).expect("a device"), MEMORY, MEMORY_BYTES);
    rig.enable_msix();
    start(&mut rig, MEMORY, 4);
    assert_eq!(rig.pages(0).load_u32(STATUS), Ok(RUNS));
    rig
}

fn start(rig: &mut Rig, ring: u64, entries: u32) {
    let registers = rig.pages(0);
    registers.store_u64(RING, ring).expect("pages");
    registers.store_u32(ENTRIES, entries).expect("pages");
    registers.store_u32(CONTROL, 1).expect("pages");
    rig.poll();
}

/// Gives the device descriptor `index`, of `length` bytes at `address`.
fn give(rig: &mut Rig, index: u32, address: u64, length: u32) -> (u32, u64) {
    let slot = MEMORY + u64::from(index % 4) * 32;
    let descriptor = [&address.to_le_bytes()[..], &length.to_le_bytes(), &[0; 20]].concat();
    rig.memory.put(slot, &descriptor);
    rig.pages(0).store_u32(TAIL, index + 1).expect("pages");
    rig.poll();
    let answer = rig.memory.get(slot + 12, 12);
    let state = u32::from_le_bytes(answer[..4].try_into().expect("four bytes"));
    (state, u64::from_le_bytes(answer[4..].try_into().expect("eight bytes")))
}

#[test]
fn sums_are_written_back_and_announced_round_the_ring() {
    let mut rig = running();
    rig.memory.put(BUFFER, &[1, 2, 3, 250]);
    for index in 0..9 {
        assert_eq!(give(&mut rig, index, BUFFER, 4), (DONE, 256));
        assert_eq!(rig.raised(), [0]);
        assert_eq!(rig.pages(0).load_u32(HEAD), Ok(index + 1));
    }
}

#[test]
fn a_buffer_that_is_not_there_fails_its_own_descriptor_alone() {
    let mut rig = running();
    assert_eq!(give(&mut rig, 0, MEMORY + MEMORY_BYTES as u64, 8), (FAILED, 0));
    assert_eq!(give(&mut rig, 1, BUFFER, LONGEST + 1), (FAILED, 0));
    assert_eq!(give(&mut rig, 2, BUFFER, 8), (DONE, 0));
}

#[test]
fn a_ring_that_is_not_there_halts_the_device_until_it_is_stopped() {
    let mut rig = running();
    rig.pages(0).store_u32(CONTROL, 0).expect("pages");
    rig.poll();
    start(&mut rig, 0x1000, 4);
    rig.pages(0).store_u32(TAIL, 1).expect("pages");
    rig.poll();
    assert_eq!(rig.pages(0).load_u32(STATUS), Ok(HALTED));
    assert_eq!(rig.pages(0).load_u64(FAULT), Ok(0x1000));
    assert_eq!(rig.raised(), [0]);
    rig.pages(0).store_u32(CONTROL, 0).expect("pages");
    rig.poll();
    assert_eq!(rig.pages(0).load_u32(STATUS), Ok(0));
}

#[test]
fn wrong_entries_and_a_wild_tail_do_no_harm() {
    let mut rig = running();
    rig.pages(0).store_u32(TAIL, 77).expect("pages");
    rig.poll();
    assert_eq!(rig.pages(0).load_u32(HEAD), Ok(0));
    for entries in [0, 1, 3, 512, u32::MAX] {
        rig.reset();
        start(&mut rig, MEMORY, entries);
        assert_eq!(rig.pages(0).load_u32(STATUS), Ok(HALTED), "{entries}");
    }
}

#[test]
fn without_bus_mastering_nothing_is_reached() {
    let mut rig = running();
    rig.set_master(false);
    rig.pages(0).store_u32(TAIL, 1).expect("pages");
    rig.poll();
    assert_eq!(rig.pages(0).load_u32(STATUS), Ok(HALTED));
    assert!(rig.raised().is_empty());
}

#[test]
fn a_reset_stops_the_device_and_clears_its_registers() {
    let mut rig = running();
    assert_eq!(give(&mut rig, 0, BUFFER, 8), (DONE, 0));
    rig.reset();
    rig.pages(0).store_u32(TAIL, 1).expect("pages");
    rig.poll();
    assert_eq!(rig.pages(0).load_u32(HEAD), Ok(0));
    assert_eq!(rig.pages(0).load_u32(STATUS), Ok(0));
}
