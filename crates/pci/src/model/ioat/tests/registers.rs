//! What loads give and what stores do, without a chain.

use super::rig::{DATA, RING, Rig, copy};
use crate::model::ioat::registers::{
    CHAINADDR, CHANCMD, CHANCMP, CHANCTRL, CHANERR, CHANSTS, DMACOUNT, INTRCTRL,
};
use crate::model::{Progress, create};

#[test]
fn drivers_find_the_version_and_the_capabilities_they_know() {
    for (version, byte, device) in
        [("3.2", 0x32, 0x2021), ("3.3", 0x33, 0x2021), ("3.4", 0x34, 0xb00)]
    {
        let mut rig = Rig::new(&[("version", version), ("transfer", "16K")]);
        let [channels, transfer, _, interrupts, .., reported] = rig.load::<9>(0);
        assert_eq!((channels, transfer, interrupts, reported), (1, 14, 0, byte));
        assert_eq!(u32::from_le_bytes(rig.load(0x10)), 1 << 6, "FILL and nothing else");
        let given = [("version".to_owned(), version.to_owned())];
        assert_eq!(create("ioat", &given).expect("known").description().ids.device, device);
    }
}

#[test]
fn a_wrong_option_is_answered_with_what_is_accepted() {
    for (name, value, words) in [
        ("version", "3.0", "version=3.0 is not accepted; version is 3.2, 3.3 or 3.4"),
        ("transfer", "2M", "transfer=2M is not accepted; transfer is a power of two from 4K to 1M"),
        ("transfer", "5000", "transfer is a power of two"),
    ] {
        let given = [(name.to_owned(), value.to_owned())];
        let error = create("ioat", &given).expect_err("not accepted").to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_reset_has_halted_the_channel_before_the_next_load() {
    let mut rig = Rig::ready(&[]);
    rig.run(&[copy(DATA, DATA + 0x1000, 64)]);
    rig.reset();
    assert_eq!(rig.load::<1>(CHANCMD), [0], "the reset is over");
    assert_eq!(rig.status(), 3);
    assert_eq!(u64::from_le_bytes(rig.load(CHANCMP)), 0);
}

#[test]
fn a_chain_address_arms_the_channel_and_says_so_with_nothing_else() {
    let mut rig = Rig::ready(&[]);
    rig.run(&[copy(DATA, DATA + 0x1000, 64)]);
    // DPDK compares the whole register.
    rig.arm(RING);
    assert_eq!(rig.status(), 4);
    assert_eq!(rig.load::<2>(DMACOUNT), [0, 0]);
}

#[test]
fn a_chain_address_comes_in_halves_too() {
    let mut rig = Rig::ready(&[]);
    let address = 0x1234_5678_9abc_de40_u64.to_le_bytes();
    rig.store(CHAINADDR, &address[..4]);
    rig.store(CHAINADDR + 4, &address[4..]);
    assert_eq!(rig.load(CHAINADDR), address);
    assert_eq!(rig.status(), 4);
}

#[test]
fn a_count_makes_the_channel_active_before_the_next_load() {
    let mut rig = Rig::ready(&[]);
    rig.chain(&[copy(DATA, DATA + 0x1000, 64)]);
    rig.arm(RING);
    rig.count(1);
    assert_eq!(rig.status(), 0, "a stale state would be taken for an error");
    rig.poll();
    assert_eq!(rig.status(), RING | 1);
}

#[test]
fn the_same_count_and_chain_start_again_after_each_store_of_the_chain() {
    let mut rig = Rig::ready(&[]);
    for byte in 1..4 {
        rig.memory.put(DATA, &[byte; 64]);
        rig.run(&[copy(DATA, DATA + 0x1000, 64)]);
        assert_eq!(rig.memory.get(DATA + 0x1000, 64), [byte; 64]);
        rig.suspend();
        assert_eq!(rig.status() & 7, 2);
    }
}

#[test]
fn a_suspended_channel_does_nothing_until_it_is_armed() {
    let mut rig = Rig::ready(&[]);
    rig.memory.put(DATA, &[7; 64]);
    rig.chain(&[copy(DATA, DATA + 0x1000, 64), copy(DATA, DATA + 0x2000, 64)]);
    rig.arm(RING);
    rig.count(1);
    rig.poll();
    rig.suspend();
    rig.count(2);
    rig.poll();
    assert_eq!(rig.status(), RING | 2);
    assert_eq!(rig.memory.get(DATA + 0x2000, 64), [0; 64]);
}

#[test]
fn suspending_changes_neither_a_halted_nor_an_armed_channel() {
    let mut rig = Rig::new(&[]);
    rig.suspend();
    assert_eq!(rig.status(), 3);
    rig.arm(RING);
    rig.suspend();
    assert_eq!(rig.status(), 4);
}

#[test]
fn a_command_that_is_none_halts_the_channel() {
    for command in [1, 2, 8, 0x10, 0x24] {
        let mut rig = Rig::ready(&[]);
        rig.arm(RING);
        rig.store(CHANCMD, &[command]);
        assert_eq!((rig.status(), rig.errors()), (3, 1 << 5), "command {command:#x}");
    }
}

#[test]
fn an_error_is_cleared_by_storing_it_and_the_channel_is_not_armed_before() {
    let mut rig = Rig::ready(&[]);
    rig.store(CHANCMD, &[1]);
    rig.reset();
    assert_eq!(rig.errors(), 1 << 5, "a reset keeps it");
    rig.arm(RING);
    assert_eq!(rig.status(), 3);
    rig.store(CHANERR, &0xffff_ff0f_u32.to_le_bytes());
    assert_eq!(rig.errors(), 1 << 5);
    rig.store(CHANERR, &[1 << 5]);
    assert_eq!(rig.errors(), 0);
    rig.arm(RING);
    assert_eq!(rig.status(), 4);
}

#[test]
fn registers_that_only_tell_keep_their_values() {
    let mut rig = Rig::ready(&[]);
    for register in [0, 4, 8, 0x10, CHANSTS, 0xa0] {
        let before = rig.load::<4>(register);
        // A byte of INTRCTRL lies in the first four.
        let end = if register == 0 { 3 } else { 4 };
        rig.store(register, &[0xff; 4][..end]);
        assert_eq!(rig.load::<4>(register), before, "register {register:#x}");
    }
    rig.pages.write(CHANSTS as u64, &[0xee; 8]).expect("mapped");
    rig.poll();
    assert_eq!(rig.status(), 3, "one who is not trapped stored there");
}

#[test]
fn a_store_over_several_registers_acts_on_each() {
    let mut rig = Rig::ready(&[]);
    rig.memory.put(DATA, &[9; 64]);
    rig.chain(&[copy(DATA, DATA + 0x1000, 64)]);
    rig.arm(RING);
    // CHANCTRL, DMA_COMP, CHANCMD and DMACOUNT.
    rig.store(CHANCTRL, &[0x0c, 0, 0xff, 0xff, 0, 0, 1, 0]);
    rig.poll();
    assert_eq!(rig.load::<2>(CHANCTRL), [0x0c, 0]);
    assert_eq!(rig.memory.get(DATA + 0x1000, 64), [9; 64]);
}

#[test]
fn a_store_past_the_trap_is_found_by_the_next_poll() {
    let mut rig = Rig::ready(&[]);
    rig.memory.put(DATA, &[5; 64]);
    rig.chain(&[copy(DATA, DATA + 0x1000, 64)]);
    rig.pages.store_u64(CHAINADDR as u64, RING).expect("mapped");
    assert_eq!(rig.poll_once(), Progress::Worked);
    rig.pages.store_u32(CHANCMD as u64, 1 << 16).expect("mapped");
    rig.poll();
    assert_eq!(rig.status(), RING | 1);
    assert_eq!(rig.memory.get(DATA + 0x1000, 64), [5; 64]);
    rig.pages.store_u32(CHANCMD as u64, 0x20 | 1 << 16).expect("mapped");
    assert_eq!(rig.poll_once(), Progress::Worked);
    assert_eq!(rig.poll_once(), Progress::Idle, "a command is taken once");
    assert_eq!(rig.status(), 3);
}

#[test]
fn the_pin_and_master_enable_are_kept_as_they_were_stored() {
    let mut rig = Rig::new(&[]);
    rig.store(INTRCTRL, &[0xff]);
    assert_eq!(rig.load::<1>(INTRCTRL), [9]);
    assert_eq!(rig.load::<1>(INTRCTRL), [9], "a load takes nothing");
}

#[test]
fn power_on_brings_every_register_back() {
    let mut rig = Rig::ready(&[]);
    let fresh: [u8; 256] = Rig::new(&[]).load(0);
    rig.run(&[copy(DATA, 0, 64)]);
    rig.control(0x031c);
    rig.power_on();
    assert_eq!(rig.load::<256>(0), fresh);
}
