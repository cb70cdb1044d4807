//! PHY, EEPROM, resets, and what clears what.

use super::rig::{Rig, SOMEBODY, frame};
use crate::model::create;

const CTRL: u64 = 0;
const STATUS: u64 = 8;
const MDIC: u64 = 0x20;
const EERD: u64 = 0x14;

fn refused(pairs: &[(&str, &str)]) -> String {
    let given: Vec<_> =
        pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    create("igb", &given).expect_err("not accepted").to_string()
}

#[test]
fn a_wrong_option_is_answered_with_what_is_accepted() {
    let addresses = ["1:2:3:4:5:6", "52:54:00:12:34", "53:54:00:12:34:56", "00:00:00:00:00:00"];
    for mac in addresses {
        let error = refused(&[("mac", mac)]);
        assert!(error.contains("mac is six bytes as 52:54:00:12:34:56"), "{error}");
    }
    assert!(refused(&[("pair", "")]).contains("pair is a name that exactly two cards have"));
    let error = refused(&[("pair", "x"), ("loop", "on")]);
    assert!(error.contains("igb: loop and pair exclude each other"), "{error}");
}

#[test]
fn the_eeprom_holds_the_address_and_its_sum_is_right() {
    let mut rig = Rig::new(&[("mac", "52:54:00:12:34:56")]);
    let mut words = Vec::new();
    for address in 0..0x40 {
        rig.store(EERD, address << 2 | 1);
        let read = rig.load(EERD);
        assert_eq!(read & 2, 2, "done");
        words.push(u16::try_from(read >> 16).expect("16 bits"));
    }
    assert_eq!(words[..3], [0x5452, 0x1200, 0x5634]);
    assert_eq!(words.iter().fold(0_u16, |sum, &word| sum.wrapping_add(word)), 0xbaba);
    rig.store(EERD, 0x3fff << 2 | 1);
    assert_eq!(rig.load(EERD) >> 16, 0xffff, "nothing is there");
    assert_eq!(rig.pages.load_u32(0x5400).expect("mapped"), 0x1200_5452);
    assert_eq!(rig.pages.load_u32(0x5404).expect("mapped"), 0x8000_5634);
}

#[test]
fn who_asks_for_the_eeprom_has_it_at_once() {
    let mut rig = Rig::new(&[]);
    rig.store(0x10, 1 << 6);
    assert_eq!(rig.load(0x10), 1 << 6 | 1 << 7 | 1 << 8 | 1 << 9 | 4 << 11);
    rig.store(0x10, 0);
    assert_eq!(rig.load(0x10) & 0xc0, 0);
}

#[test]
fn the_phy_answers_at_its_address_alone() {
    let mut rig = Rig::new(&[("loop", "on")]);
    let mut read = |register: u32, address: u32| {
        rig.store(MDIC, register << 16 | address << 21 | 2 << 26);
        rig.load(MDIC)
    };
    assert_eq!(read(2, 1) & 0x5000_ffff, 1 << 28 | 0x02a8);
    assert_eq!(read(3, 1) & 0xfff0, 0x0390);
    assert_eq!(read(1, 1) & 0x24, 0x24, "link, and negotiated");
    assert_eq!(read(2, 2) & 0x5000_0000, 0x5000_0000, "ready, with an error");
}

#[test]
fn phy_registers_keep_what_is_stored_and_a_reset_takes_it() {
    let mut rig = Rig::new(&[]);
    let write = |rig: &mut Rig, register: u32, value: u32| {
        rig.store(MDIC, value | register << 16 | 1 << 21 | 1 << 26);
        assert_eq!(rig.load(MDIC) & 0x5000_0000, 1 << 28);
    };
    let read = |rig: &mut Rig, register: u32| {
        rig.store(MDIC, register << 16 | 1 << 21 | 2 << 26);
        rig.load(MDIC) & 0xffff
    };
    assert_eq!(read(&mut rig, 1) & 4, 0, "no cable");
    write(&mut rig, 9, 0x1234);
    assert_eq!(read(&mut rig, 9), 0x1234);
    write(&mut rig, 31, 0x11b1);
    assert_eq!(read(&mut rig, 17), 0x0a00, "of another page");
    write(&mut rig, 9, 0x5678);
    write(&mut rig, 31, 0);
    assert_eq!(read(&mut rig, 9), 0x1234);
    write(&mut rig, 0, 0x8000);
    assert_eq!(read(&mut rig, 9), 0x0f00);
}

#[test]
fn the_link_is_up_with_a_cable_and_leave() {
    let mut rig = Rig::new(&[]);
    rig.store(CTRL, 1 << 6);
    assert_eq!(rig.load(STATUS) & 2, 0, "no cable");
    let mut rig = Rig::new(&[("loop", "on")]);
    assert_eq!(rig.load(STATUS) & 2, 0, "no leave");
    rig.vectors();
    rig.store(0xd0, 1 << 2);
    rig.store(0x1740, 0x80 << 8);
    rig.store(CTRL, 1 << 6);
    assert_eq!(rig.load(STATUS) & 2, 2);
    assert_eq!(rig.raised(), [0], "the change is told");
    assert_eq!(rig.load(0xc0) & 4, 4);
    assert_eq!(rig.load(0xc0), 0, "a load took it");
}

#[test]
fn bus_mastering_is_reported_off_when_it_is_disabled() {
    let mut rig = Rig::new(&[]);
    assert_eq!(rig.load(STATUS) >> 19 & 1, 1);
    rig.store(CTRL, 1 << 2);
    assert_eq!(rig.load(STATUS) >> 19 & 1, 0);
}

#[test]
fn a_reset_is_over_before_the_next_load_and_takes_everything() {
    let mut rig = Rig::ready(&[("loop", "on")]);
    rig.vectors();
    rig.send(&frame(SOMEBODY, 1, 60));
    rig.poll();
    rig.store(CTRL, 1 << 26 | 1 << 6);
    assert_eq!(rig.load(CTRL), 1);
    assert_ne!(rig.load(0x10) & 1 << 9, 0, "the EEPROM was read again");
    for register in [0x100, 0x400, 0x1514, 0x1524, 0x1580, 0x1700, 0x4074] {
        assert_eq!(rig.load(register), 0, "{register:#x}");
    }
    assert_eq!(rig.pages.load_u32(0x2828).expect("mapped"), 0, "rings are off");
}

#[test]
fn a_store_of_one_byte_changes_that_byte() {
    let mut rig = Rig::new(&[]);
    rig.store(0x1700, 0x8182_8384);
    rig.store_bytes(0x1701, &[0x55]);
    assert_eq!(rig.load(0x1700), 0x8182_5584);
    rig.store_bytes(0x1520, &7_u64.to_le_bytes());
    assert_eq!(rig.load(0x1580), 7, "two registers by one store");
}

#[test]
fn a_store_past_the_trap_is_found_by_the_next_poll() {
    let mut rig = Rig::new(&[]);
    rig.pages.store_u32(EERD, 1).expect("mapped");
    rig.poll();
    assert_eq!(rig.pages.load_u32(EERD).expect("mapped") & 2, 2);
    rig.pages.store_u32(STATUS, 0).expect("mapped");
    rig.poll();
    assert_ne!(rig.pages.load_u32(STATUS).expect("mapped"), 0);
}

#[test]
fn masks_are_set_and_cleared_by_ones() {
    let mut rig = Rig::new(&[]);
    for (set, clear) in [(0xd0, 0xd8), (0x1524, 0x1528)] {
        rig.store(set, 0x11);
        rig.store(set, 0x44);
        rig.store(clear, 0x41);
        assert_eq!(rig.load(set), 0x14);
    }
    rig.store(0x1520, 0xf);
    rig.store(0x1580, 0x3);
    assert_eq!(rig.load(0x1580), 0xc);
    assert_eq!(rig.load(0x1580), 0, "a load takes the rest");
}
