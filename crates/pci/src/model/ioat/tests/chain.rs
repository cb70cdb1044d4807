//! What is done about a chain, and what goes wrong.

use super::rig::{COMPLETION, DATA, MEMORY, MEMORY_BYTES, READ_ONLY, RING, Rig, copy, slot};
use crate::model::Progress;
use crate::model::ioat::descriptor::{self, Descriptor};
use crate::model::ioat::registers::{CHANCMP, CHANERRMSK, INTRCTRL};

const END: u64 = MEMORY + MEMORY_BYTES as u64;

fn fill(pattern: u64, destination: u64, length: u32) -> Descriptor {
    let control = descriptor::FILL << descriptor::OPERATION_SHIFT;
    Descriptor { control, ..copy(pattern, destination, length) }
}

fn with(control: u32, descriptor: Descriptor) -> Descriptor {
    Descriptor { control: descriptor.control | control, ..descriptor }
}

#[test]
fn a_chain_copies_in_order() {
    let mut rig = Rig::ready(&[]);
    let bytes: Vec<u8> = (0..100_u8).collect();
    rig.memory.put(DATA, &bytes);
    rig.run(&[copy(DATA, DATA + 0x1000, 100), copy(DATA + 0x1000, DATA + 0x2003, 99)]);
    assert_eq!(rig.memory.get(DATA + 0x2003, 99), bytes[..99]);
    assert_eq!(rig.status(), slot(1) | 1);
    assert_eq!(rig.raised(), 0, "nobody asked for an interrupt");
}

#[test]
fn a_transfer_larger_than_the_buffer_is_whole() {
    let mut rig = Rig::ready(&[]);
    let bytes: Vec<u8> =
        (0..1_u32 << 20).map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    rig.memory.put(DATA, &bytes);
    rig.run(&[copy(DATA, DATA + (1 << 20), 1 << 20)]);
    assert_eq!(rig.memory.get(DATA + (1 << 20), 1 << 20), bytes);
}

#[test]
fn a_fill_repeats_its_pattern_from_the_first_byte() {
    for length in [1, 8, 50, 4096, 200_003] {
        let mut rig = Rig::ready(&[]);
        rig.run(&[fill(0x8877_6655_4433_2211, DATA + 3, length)]);
        let pattern = 0x8877_6655_4433_2211_u64.to_le_bytes();
        let expected: Vec<u8> = pattern.into_iter().cycle().take(length as usize).collect();
        assert_eq!(rig.memory.get(DATA + 3, length as usize), expected);
        assert_eq!(rig.memory.get(DATA + 3 + u64::from(length), 1), [0]);
    }
}

#[test]
fn null_moves_nothing_and_completes() {
    let mut rig = Rig::ready(&[]);
    rig.run(&[with(descriptor::NULL | descriptor::COMPLETION, copy(0, 0, 1))]);
    assert_eq!((rig.status(), rig.errors()), (RING | 1, 0));
    assert_eq!(rig.completion(), RING | 1);
}

#[test]
fn a_completion_names_its_descriptor_and_whether_it_was_the_last() {
    let mut rig = Rig::ready(&[]);
    let told = with(descriptor::COMPLETION, copy(DATA, DATA + 64, 8));
    rig.chain(&[told, told, copy(DATA, DATA + 64, 8)]);
    rig.arm(RING);
    rig.count(3);
    rig.poll();
    assert_eq!(rig.completion(), slot(1), "active, and the last one did not ask");
    rig.count(4);
    rig.poll();
    assert_eq!(rig.completion(), slot(0) | 1, "around the ring, and done");
}

#[test]
fn the_count_goes_on_around_its_end() {
    let mut rig = Rig::ready(&[]);
    rig.chain(&[with(descriptor::NULL, copy(0, 0, 1))]);
    rig.arm(RING);
    rig.count(0xffff);
    rig.poll();
    assert_eq!(rig.status(), RING | 1);
    rig.memory.put(DATA, &[3; 8]);
    rig.chain(&[copy(DATA, DATA + 64, 8)]);
    // Two more: the descriptor that was fetched last already named the next one.
    rig.count(1);
    rig.poll();
    assert_eq!(rig.status(), RING | 1);
    assert_eq!(rig.memory.get(DATA + 64, 8), [3; 8]);
}

#[test]
fn a_poll_does_a_bounded_amount_of_a_long_chain() {
    let mut rig = Rig::ready(&[]);
    rig.chain(&[copy(DATA, DATA + (1 << 19), 1 << 19)]);
    rig.arm(RING);
    rig.count(0xffff);
    assert_eq!(rig.poll_once(), Progress::Worked);
    assert_eq!(rig.status(), RING, "still active");
    rig.reset();
    assert_eq!(rig.poll_once(), Progress::Idle, "a reset ends it");
}

#[test]
fn an_interrupt_is_sent_once_until_it_is_armed_again() {
    let mut rig = Rig::ready(&[]);
    let loud = with(descriptor::INTERRUPT, copy(DATA, DATA + 64, 8));
    rig.run(&[loud, loud]);
    assert_eq!(rig.raised(), 1);
    assert_eq!(rig.load::<1>(4), [1], "ATTNSTATUS");
    rig.control(0);
    rig.run(&[loud]);
    assert_eq!(rig.raised(), 0, "storing 0 arms nothing");
    rig.control(1);
    assert_eq!(rig.load::<1>(4), [0]);
    rig.run(&[loud]);
    assert_eq!(rig.raised(), 1);
}

#[test]
fn an_interrupt_waits_for_leave_to_go_out() {
    let mut rig = Rig::ready(&[]);
    rig.store(INTRCTRL, &[0]);
    rig.run(&[with(descriptor::INTERRUPT, copy(DATA, DATA + 64, 8))]);
    assert_eq!(rig.raised(), 0);
    rig.store(INTRCTRL, &[1]);
    assert_eq!(rig.raised(), 1);
    assert_eq!(rig.load::<1>(INTRCTRL), [7], "enabled, there is one, and it is out");
}

/// An error halts the channel at its descriptor, and is told as CHANCTRL asks.
#[track_caller]
fn fails(bad: Descriptor, error: u32) {
    let mut rig = Rig::ready(&[]);
    rig.control(0x1d);
    let good = copy(DATA, DATA + 0x1000, 8);
    rig.memory.put(DATA, &[1; 8]);
    rig.run(&[good, with(descriptor::INTERRUPT, bad), copy(DATA, DATA + 0x2000, 8)]);
    assert_eq!((rig.status(), rig.errors()), (slot(0) | 3, error), "{bad:x?}");
    assert_eq!(rig.completion(), slot(0) | 3, "the completion says halted");
    assert_eq!(rig.raised(), 1);
    assert_eq!(rig.memory.get(DATA + 0x2000, 8), [0; 8], "what is behind it is not done");
    rig.count(100);
    rig.poll();
    assert_eq!(rig.status(), slot(0) | 3, "a count alone starts nothing");
}

#[test]
fn memory_that_cannot_be_reached_halts_with_its_direction() {
    fails(copy(0, DATA, 8), 1 << 8);
    fails(copy(END - 4, DATA, 8), 1 << 8);
    fails(copy(u64::MAX, DATA, 8), 1 << 8);
    fails(copy(DATA, READ_ONLY, 8), 1 << 9);
    fails(copy(DATA, u64::MAX - 3, 8), 1 << 9);
    fails(fill(0, END, 1), 1 << 9);
}

#[test]
fn lengths_and_operations_that_do_not_exist_halt() {
    fails(copy(DATA, DATA + 64, 0), 1 << 11);
    fails(copy(DATA, DATA + 64, (1 << 20) + 1), 1 << 11);
    fails(with(descriptor::NULL, copy(0, 0, 0)), 1 << 11);
    for operation in [2, 0x87, 0x89, 0xff] {
        fails(with(operation << 24, copy(DATA, DATA + 64, 8)), 1 << 10);
    }
}

#[test]
fn a_chain_that_leads_nowhere_halts() {
    for (address, error) in [(0, 1 << 4), (END, 1 << 4), (RING + 32, 1 << 4)] {
        let mut rig = Rig::ready(&[]);
        rig.arm(address);
        assert_eq!(rig.status(), 4, "nothing was fetched yet");
        rig.count(1);
        rig.poll();
        assert_eq!((rig.status(), rig.errors()), (3, error));
    }
    for (next, error) in [(0, 1 << 2), (END, 1 << 2), (RING + 8, 1 << 3)] {
        let mut rig = Rig::ready(&[]);
        rig.memory.put(RING, &Descriptor { next, ..copy(DATA, DATA + 64, 8) }.encode());
        rig.arm(RING);
        rig.count(1);
        rig.poll();
        assert_eq!((rig.status(), rig.errors()), (RING | 1, 0), "the link is not followed yet");
        rig.count(2);
        rig.poll();
        assert_eq!((rig.status(), rig.errors()), (RING | 3, error));
    }
}

#[test]
fn a_completion_that_cannot_be_written_halts() {
    let mut rig = Rig::ready(&[]);
    rig.store(CHANCMP, &READ_ONLY.to_le_bytes());
    rig.run(&[with(descriptor::COMPLETION, copy(DATA, DATA + 64, 8))]);
    assert_eq!((rig.status(), rig.errors()), (RING | 3, 1 << 12));
}

#[test]
fn an_error_is_silent_where_nobody_asked() {
    let mut rig = Rig::ready(&[]);
    rig.memory.put(COMPLETION, &[0xaa; 8]);
    // Neither completion nor interrupt on an error, but the descriptor wanted both.
    rig.control(0x09);
    let both = descriptor::INTERRUPT | descriptor::COMPLETION;
    rig.run(&[with(both, copy(0, DATA, 8))]);
    assert_eq!((rig.status(), rig.raised()), (3, 0));
    assert_eq!(rig.memory.get(COMPLETION, 8), [0xaa; 8]);
    let mut rig = Rig::ready(&[]);
    rig.control(0x10);
    rig.store(CHANERRMSK, &(1_u32 << 8).to_le_bytes());
    rig.run(&[copy(0, DATA, 8)]);
    assert_eq!((rig.status(), rig.raised()), (3, 0), "the error is masked");
}

#[test]
fn the_work_goes_on_behind_a_failed_descriptor_as_dpdk_does_it() {
    let mut rig = Rig::ready(&[("version", "3.4")]);
    let told = |source, at: u64| with(descriptor::COMPLETION, copy(source, DATA + at, 8));
    rig.memory.put(DATA, &[6; 8]);
    rig.control(0x0c);
    rig.run(&[told(0, 0x1000), told(DATA, 0x2000), told(DATA, 0x3000)]);
    assert_eq!(rig.completion(), 3, "halted, and no descriptor was done");
    let errors = rig.errors();
    assert_ne!(errors, 0);
    rig.store(0xa8, &errors.to_le_bytes());
    rig.reset();
    rig.arm(slot(1));
    rig.control(0x0c);
    rig.store(CHANCMP, &COMPLETION.to_le_bytes());
    assert_eq!(rig.status(), 4);
    rig.count(2);
    rig.poll();
    assert_eq!(rig.completion(), slot(2) | 1);
    assert_eq!(rig.memory.get(DATA + 0x3000, 8), [6; 8]);
}
