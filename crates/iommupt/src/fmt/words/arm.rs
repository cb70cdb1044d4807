//! Arm VMSAv8-64: DDI 0487 D8.2 to D8.7, as SMMUv3 (IHI 0070, 3.4) reads it.
//!
//! - Stage 1 (D8.3.1.2): valid 0, page 1, AttrIndx 4:2 (1 write-back, 0 non-cacheable, 2 device),
//!   AP[1] 6, AP[2] 7, SH 9:8 (3 inner, 2 outer), AF 10, nG 11, DBM 51, contiguous 52, PXN 53, UXN
//!   54.
//! - Stage 2: MemAttr 5:2 (0b1111 write-back, 0b0101 non-cacheable, 0b0001 device), S2AP 7:6, XN[1]
//!   54.
//! - What can be written is read-only with DBM set until it is (D8.5.2).
//! - 52 bits: with 64 KiB granules address bits 51:48 are bits 15:12 (FEAT_LPA), with the others
//!   51:50 are 9:8, and SH is not in the word (FEAT_LPA2).

use super::{GLOBAL, IO, NONE, NS, PRIV, R, RW, RWX, RX, W, Words, X, below};
use crate::Prot;
use crate::fmt::{ArmS1, ArmS2};
use crate::format::{Context, Format};

/// D8.3.1.1: APTable[1] is bit 62, UXNTable bit 60.
#[test]
fn arm_stage_1_pointers_restrict_what_is_below() {
    assert_eq!(below::<ArmS1<12>>(1 << 62 | 0x1003), RX, "no writes");
    assert_eq!(below::<ArmS1<12>>(1 << 60 | 0x1003), RW, "no execution");
    assert_eq!(below::<ArmS2<12>>(1 << 62 | 0x1003), RWX, "stage 2 has no such bits");
    assert!(ArmS1::<12>::attrs(Prot::EXEC).is_err(), "what is valid at stage 1 can be read");
}

/// D8.4.1: AP[1] is bit 6, AP[2] bit 7, APTable[0] bit 61; D8.4.3: PXN is bit 53, UXN bit 54,
/// PXNTable bit 59; D8.5: AF is bit 10, DBM bit 51.
#[test]
fn arm_stage_1_requests_pass_or_not_as_in_the_manual() {
    const PXN: u64 = 1 << 53;
    const UXN: u64 = 1 << 54;
    const DBM: u64 = 1 << 51;
    let all = Context::all();
    let (pan, no_hd) = (all - Context::OPEN, all - Context::DIRTY);
    let under = |leaf, bit: u32| ArmS1::<12>::under(leaf, 1 << bit | 0x1003);
    Words::<ArmS1<12>>::of().requests(&[
        (0x1fc7, RX, all, NONE),
        (0x1fc7, RX | PRIV, all, NONE),
        (0x1fc7, R | PRIV, pan, R),
        (0x1fc7, X | PRIV, pan, NONE),
        (0x1fc7, RW, all, W),
        (0x1f47, RWX, all, NONE),
        // What others can write, privileged requests do not execute.
        (0x1f47, RWX | PRIV, all, X),
        (0x1f87, R, all, PRIV),
        (0x1f87, R | PRIV, pan, NONE),
        (0x1f07, RW | PRIV, pan, NONE),
        // UXN alone says whether unprivileged requests execute.
        (0x1f87, X, all, NONE),
        (UXN | 0x1f87, X, all, X),
        (UXN | 0x1f87, RX | PRIV, all, NONE),
        (PXN | 0x1fc7, X | PRIV, all, X),
        (PXN | 0x1fc7, X, all, NONE),
        (DBM | 0x1fc7, W, all, NONE),
        (DBM | 0x1fc7, W, no_hd, W),
        (DBM | 0x1f47, W, no_hd, NONE),
        (under(DBM | 0x1fc7, 62), W, all, W),
        (under(0x1f47, 61), R, all, PRIV),
        (under(0x1f47, 61), RW | PRIV, all, NONE),
        (under(0x1fc7, 59), X | PRIV, all, X),
        (under(0x1fc7, 60), X, all, X),
    ]);
    // Stage 2 knows no privileges: S2AP is bits 7:6.
    Words::<ArmS2<12>>::of().requests(&[
        (0x1000_07ff, RWX | PRIV, all, NONE),
        (0x1000_077f, RW | PRIV, all, W),
        (DBM | 0x1000_077f, W, no_hd, W),
    ]);
    let flag = ArmS1::<12>::is_flagless;
    assert!(flag(0x1bc7, R, all - Context::ACCESSED) && !flag(0x1bc7, R, all), "AF is clear");
    assert!(!flag(0x1fc7, R, Context::empty()), "AF is set");
}

/// D8.2.2: at stage 2 a root of up to 16 items is as many tables of the next level, side by side.
#[test]
fn arm_stage_2_roots_are_concatenated() {
    let root = |top, items| (top, items);
    assert_eq!(root(ArmS2::<14>::TOP_LEVEL, ArmS2::<14>::ROOT_ITEMS_LG2), (2, 12));
    assert_eq!(root(ArmS2::<12, 52>::TOP_LEVEL, ArmS2::<12, 52>::ROOT_ITEMS_LG2), (3, 13));
    assert_eq!(root(ArmS1::<12, 52>::TOP_LEVEL, ArmS1::<12, 52>::ROOT_ITEMS_LG2), (4, 4));
}

#[test]
fn arm_stage_1_words_of_4k_granules_and_48_bits_are_the_manuals() {
    Words::<ArmS1<12, 48>>::of()
        .leaves(&[
            (0, 12, 0x0, R, 0x60_0000_0000_0fc7, R),
            (0, 12, 0x1000, RX, 0x1fc7, RX),
            (0, 12, 0x1000, RW, 0x68_0000_0000_1fc7, RW),
            (0, 12, 0x1000, RWX, 0x8_0000_0000_1fc7, RWX),
            (0, 12, 0x1000, RX | PRIV, 0x40_0000_0000_1f87, RX | PRIV),
            (0, 12, 0x1000, RX | GLOBAL, 0x17c7, RX | GLOBAL),
            (0, 12, 0x1000, RX | IO, 0x1ecb, RX | IO),
            (0, 12, 0x1000, RX | NS, 0x1ec3, RX | NS),
            (0, 12, 0xffff_ffff_f000, RX, 0xffff_ffff_ffc7, RX),
            (0, 16, 0x1_0000, RX, 0x10_0000_0001_0fc7, RX),
            (0, 16, 0xffff_ffff_0000, R, 0x70_ffff_ffff_0fc7, R),
            (1, 21, 0x20_0000, RX, 0x20_0fc5, RX),
            (1, 21, 0xffff_ffe0_0000, RWX, 0x8_ffff_ffe0_0fc5, RWX),
            (1, 25, 0x200_0000, RX, 0x10_0000_0200_0fc5, RX),
            (2, 30, 0x4000_0000, RX, 0x4000_0fc5, RX),
            (2, 30, 0xffff_c000_0000, RWX, 0x8_ffff_c000_0fc5, RWX),
            (2, 34, 0x4_0000_0000, RX, 0x10_0004_0000_0fc5, RX),
        ])
        .pointers(&[
            (1, 0x1000, 0x1003),
            (1, 0xffff_ffff_f000, 0xffff_ffff_f003),
            (2, 0x1000, 0x1003),
            (2, 0xffff_ffff_f000, 0xffff_ffff_f003),
            (3, 0x1000, 0x1003),
            (3, 0xffff_ffff_f000, 0xffff_ffff_f003),
        ])
        .empty(&[(0, 0x0), (0, 0x1fc5), (0, 0x1fc6), (1, 0x1002), (3, 0x0), (3, 0x1fc5)])
        .reserved(&[(1, 0x20_1fc5), (1, 0x30_0fc5)])
        .dirty(&[(0x8_0000_0000_1fc7, 0x8_0000_0000_1f47), (0x1fc7, 0x100_0000_0000_1fc7)])
        .places(&[(0, 0x1f_ffff, 511), (3, 0xffff_ffff_ffff, 511)])
        .done();
}

#[test]
fn arm_stage_1_words_of_4k_granules_and_52_bits_are_the_manuals() {
    Words::<ArmS1<12, 52>>::of()
        .leaves(&[
            (0, 12, 0x0, R, 0x60_0000_0000_0cc7, R),
            (0, 12, 0x1000, RX, 0x1cc7, RX),
            (0, 12, 0x1000, RW, 0x68_0000_0000_1cc7, RW),
            (0, 12, 0x1000, RWX, 0x8_0000_0000_1cc7, RWX),
            (0, 12, 0x1000, RX | PRIV, 0x40_0000_0000_1c87, RX | PRIV),
            (0, 12, 0x1000, RX | GLOBAL, 0x14c7, RX | GLOBAL),
            (0, 12, 0x1000, RX | IO, 0x1ccb, RX | IO),
            (0, 12, 0x1000, RX | NS, 0x1cc3, RX | NS),
            (0, 12, 0xf_ffff_ffff_f000, RX, 0x3_ffff_ffff_ffc7, RX),
            (0, 16, 0x1_0000, RX, 0x10_0000_0001_0cc7, RX),
            (0, 16, 0xf_ffff_ffff_0000, R, 0x73_ffff_ffff_0fc7, R),
            (1, 21, 0x20_0000, RX, 0x20_0cc5, RX),
            (1, 21, 0xf_ffff_ffe0_0000, RWX, 0xb_ffff_ffe0_0fc5, RWX),
            (1, 25, 0x200_0000, RX, 0x10_0000_0200_0cc5, RX),
            (2, 30, 0x4000_0000, RX, 0x4000_0cc5, RX),
            (2, 30, 0xf_ffff_c000_0000, RWX, 0xb_ffff_c000_0fc5, RWX),
            (2, 34, 0x4_0000_0000, RX, 0x10_0004_0000_0cc5, RX),
            (3, 39, 0x80_0000_0000, RX, 0x80_0000_0cc5, RX),
            (3, 39, 0xf_ff80_0000_0000, RWX, 0xb_ff80_0000_0fc5, RWX),
        ])
        .pointers(&[
            (1, 0x1000, 0x1003),
            (1, 0xf_ffff_ffff_f000, 0x3_ffff_ffff_f303),
            (2, 0x1000, 0x1003),
            (2, 0xf_ffff_ffff_f000, 0x3_ffff_ffff_f303),
            (3, 0x1000, 0x1003),
            (3, 0xf_ffff_ffff_f000, 0x3_ffff_ffff_f303),
            (4, 0x1000, 0x1003),
            (4, 0xf_ffff_ffff_f000, 0x3_ffff_ffff_f303),
        ])
        .empty(&[(0, 0x0), (0, 0x1cc5), (0, 0x1cc6), (1, 0x1002), (4, 0x0), (4, 0x1cc5)])
        .reserved(&[(1, 0x20_1cc5), (1, 0x30_0cc5)])
        .dirty(&[(0x8_0000_0000_1cc7, 0x8_0000_0000_1c47), (0x1cc7, 0x100_0000_0000_1cc7)])
        .places(&[(0, 0x1f_ffff, 511), (4, 0xf_ffff_ffff_ffff, 15)])
        .done();
}

#[test]
fn arm_stage_1_words_of_16k_granules_and_48_bits_are_the_manuals() {
    Words::<ArmS1<14, 48>>::of()
        .leaves(&[
            (0, 14, 0x0, R, 0x60_0000_0000_0fc7, R),
            (0, 14, 0x4000, RX, 0x4fc7, RX),
            (0, 14, 0x4000, RW, 0x68_0000_0000_4fc7, RW),
            (0, 14, 0x4000, RWX, 0x8_0000_0000_4fc7, RWX),
            (0, 14, 0x4000, RX | PRIV, 0x40_0000_0000_4f87, RX | PRIV),
            (0, 14, 0x4000, RX | GLOBAL, 0x47c7, RX | GLOBAL),
            (0, 14, 0x4000, RX | IO, 0x4ecb, RX | IO),
            (0, 14, 0x4000, RX | NS, 0x4ec3, RX | NS),
            (0, 14, 0xffff_ffff_c000, RX, 0xffff_ffff_cfc7, RX),
            (0, 21, 0x20_0000, RX, 0x10_0000_0020_0fc7, RX),
            (0, 21, 0xffff_ffe0_0000, R, 0x70_ffff_ffe0_0fc7, R),
            (1, 25, 0x200_0000, RX, 0x200_0fc5, RX),
            (1, 25, 0xffff_fe00_0000, RWX, 0x8_ffff_fe00_0fc5, RWX),
            (1, 30, 0x4000_0000, RX, 0x10_0000_4000_0fc5, RX),
        ])
        .pointers(&[
            (1, 0x4000, 0x4003),
            (1, 0xffff_ffff_c000, 0xffff_ffff_c003),
            (2, 0x4000, 0x4003),
            (2, 0xffff_ffff_c000, 0xffff_ffff_c003),
            (3, 0x4000, 0x4003),
            (3, 0xffff_ffff_c000, 0xffff_ffff_c003),
        ])
        .empty(&[(0, 0x0), (0, 0x4fc5), (0, 0x4fc6), (1, 0x4002), (3, 0x0), (3, 0x4fc5)])
        .reserved(&[(1, 0x200_4fc5), (1, 0x300_0fc5)])
        .dirty(&[(0x8_0000_0000_4fc7, 0x8_0000_0000_4f47), (0x4fc7, 0x100_0000_0000_4fc7)])
        .places(&[(0, 0x1ff_ffff, 2047), (3, 0xffff_ffff_ffff, 1)])
        .done();
}

#[test]
fn arm_stage_1_words_of_16k_granules_and_52_bits_are_the_manuals() {
    Words::<ArmS1<14, 52>>::of()
        .leaves(&[
            (0, 14, 0x0, R, 0x60_0000_0000_0cc7, R),
            (0, 14, 0x4000, RX, 0x4cc7, RX),
            (0, 14, 0x4000, RW, 0x68_0000_0000_4cc7, RW),
            (0, 14, 0x4000, RWX, 0x8_0000_0000_4cc7, RWX),
            (0, 14, 0x4000, RX | PRIV, 0x40_0000_0000_4c87, RX | PRIV),
            (0, 14, 0x4000, RX | GLOBAL, 0x44c7, RX | GLOBAL),
            (0, 14, 0x4000, RX | IO, 0x4ccb, RX | IO),
            (0, 14, 0x4000, RX | NS, 0x4cc3, RX | NS),
            (0, 14, 0xf_ffff_ffff_c000, RX, 0x3_ffff_ffff_cfc7, RX),
            (0, 21, 0x20_0000, RX, 0x10_0000_0020_0cc7, RX),
            (0, 21, 0xf_ffff_ffe0_0000, R, 0x73_ffff_ffe0_0fc7, R),
            (1, 25, 0x200_0000, RX, 0x200_0cc5, RX),
            (1, 25, 0xf_ffff_fe00_0000, RWX, 0xb_ffff_fe00_0fc5, RWX),
            (1, 30, 0x4000_0000, RX, 0x10_0000_4000_0cc5, RX),
            (2, 36, 0x10_0000_0000, RX, 0x10_0000_0cc5, RX),
            (2, 36, 0xf_fff0_0000_0000, RWX, 0xb_fff0_0000_0fc5, RWX),
        ])
        .pointers(&[
            (1, 0x4000, 0x4003),
            (1, 0xf_ffff_ffff_c000, 0x3_ffff_ffff_c303),
            (2, 0x4000, 0x4003),
            (2, 0xf_ffff_ffff_c000, 0x3_ffff_ffff_c303),
            (3, 0x4000, 0x4003),
            (3, 0xf_ffff_ffff_c000, 0x3_ffff_ffff_c303),
        ])
        .empty(&[(0, 0x0), (0, 0x4cc5), (0, 0x4cc6), (1, 0x4002), (3, 0x0), (3, 0x4cc5)])
        .reserved(&[(1, 0x200_4cc5), (1, 0x300_0cc5)])
        .dirty(&[(0x8_0000_0000_4cc7, 0x8_0000_0000_4c47), (0x4cc7, 0x100_0000_0000_4cc7)])
        .places(&[(0, 0x1ff_ffff, 2047), (3, 0xf_ffff_ffff_ffff, 31)])
        .done();
}

#[test]
fn arm_stage_1_words_of_64k_granules_and_48_bits_are_the_manuals() {
    Words::<ArmS1<16, 48>>::of()
        .leaves(&[
            (0, 16, 0x0, R, 0x60_0000_0000_0fc7, R),
            (0, 16, 0x1_0000, RX, 0x1_0fc7, RX),
            (0, 16, 0x1_0000, RW, 0x68_0000_0001_0fc7, RW),
            (0, 16, 0x1_0000, RWX, 0x8_0000_0001_0fc7, RWX),
            (0, 16, 0x1_0000, RX | PRIV, 0x40_0000_0001_0f87, RX | PRIV),
            (0, 16, 0x1_0000, RX | GLOBAL, 0x1_07c7, RX | GLOBAL),
            (0, 16, 0x1_0000, RX | IO, 0x1_0ecb, RX | IO),
            (0, 16, 0x1_0000, RX | NS, 0x1_0ec3, RX | NS),
            (0, 16, 0xffff_ffff_0000, RX, 0xffff_ffff_0fc7, RX),
            (0, 21, 0x20_0000, RX, 0x10_0000_0020_0fc7, RX),
            (0, 21, 0xffff_ffe0_0000, R, 0x70_ffff_ffe0_0fc7, R),
            (1, 29, 0x2000_0000, RX, 0x2000_0fc5, RX),
            (1, 29, 0xffff_e000_0000, RWX, 0x8_ffff_e000_0fc5, RWX),
            (1, 34, 0x4_0000_0000, RX, 0x10_0004_0000_0fc5, RX),
        ])
        .pointers(&[
            (1, 0x1_0000, 0x1_0003),
            (1, 0xffff_ffff_0000, 0xffff_ffff_0003),
            (2, 0x1_0000, 0x1_0003),
            (2, 0xffff_ffff_0000, 0xffff_ffff_0003),
        ])
        .empty(&[(0, 0x0), (0, 0x1_0fc5), (0, 0x1_0fc6), (1, 0x1_0002), (2, 0x0), (2, 0x1_0fc5)])
        .reserved(&[(1, 0x2001_0fc5), (1, 0x3000_0fc5)])
        .dirty(&[(0x8_0000_0001_0fc7, 0x8_0000_0001_0f47), (0x1_0fc7, 0x100_0000_0001_0fc7)])
        .places(&[(0, 0x1fff_ffff, 8191), (2, 0xffff_ffff_ffff, 63)])
        .done();
}

#[test]
fn arm_stage_1_words_of_64k_granules_and_52_bits_are_the_manuals() {
    Words::<ArmS1<16, 52>>::of()
        .leaves(&[
            (0, 16, 0x0, R, 0x60_0000_0000_0fc7, R),
            (0, 16, 0x1_0000, RX, 0x1_0fc7, RX),
            (0, 16, 0x1_0000, RW, 0x68_0000_0001_0fc7, RW),
            (0, 16, 0x1_0000, RWX, 0x8_0000_0001_0fc7, RWX),
            (0, 16, 0x1_0000, RX | PRIV, 0x40_0000_0001_0f87, RX | PRIV),
            (0, 16, 0x1_0000, RX | GLOBAL, 0x1_07c7, RX | GLOBAL),
            (0, 16, 0x1_0000, RX | IO, 0x1_0ecb, RX | IO),
            (0, 16, 0x1_0000, RX | NS, 0x1_0ec3, RX | NS),
            (0, 16, 0xf_ffff_ffff_0000, RX, 0xffff_ffff_ffc7, RX),
            (0, 21, 0x20_0000, RX, 0x10_0000_0020_0fc7, RX),
            (0, 21, 0xf_ffff_ffe0_0000, R, 0x70_ffff_ffe0_ffc7, R),
            (1, 29, 0x2000_0000, RX, 0x2000_0fc5, RX),
            (1, 29, 0xf_ffff_e000_0000, RWX, 0x8_ffff_e000_ffc5, RWX),
            (1, 34, 0x4_0000_0000, RX, 0x10_0004_0000_0fc5, RX),
            (2, 42, 0x400_0000_0000, RX, 0x400_0000_0fc5, RX),
            (2, 42, 0xf_fc00_0000_0000, RWX, 0x8_fc00_0000_ffc5, RWX),
        ])
        .pointers(&[
            (1, 0x1_0000, 0x1_0003),
            (1, 0xf_ffff_ffff_0000, 0xffff_ffff_f003),
            (2, 0x1_0000, 0x1_0003),
            (2, 0xf_ffff_ffff_0000, 0xffff_ffff_f003),
        ])
        .empty(&[(0, 0x0), (0, 0x1_0fc5), (0, 0x1_0fc6), (1, 0x1_0002), (2, 0x0)])
        .reserved(&[(1, 0x2001_0fc5), (1, 0x3000_0fc5)])
        .dirty(&[(0x8_0000_0001_0fc7, 0x8_0000_0001_0f47), (0x1_0fc7, 0x100_0000_0001_0fc7)])
        .places(&[(0, 0x1fff_ffff, 8191), (2, 0xf_ffff_ffff_ffff, 1023)])
        .done();
}

#[test]
fn arm_stage_2_words_of_4k_granules_and_48_bits_are_the_manuals() {
    Words::<ArmS2<12, 48>>::of()
        .leaves(&[
            (0, 12, 0x0, Prot::empty(), 0x40_0000_0000_073f, Prot::empty()),
            (0, 12, 0x1000, R, 0x40_0000_0000_177f, R),
            (0, 12, 0x1000, RX, 0x177f, RX),
            (0, 12, 0x1000, W, 0x48_0000_0000_173f, W),
            (0, 12, 0x1000, RW, 0x48_0000_0000_177f, RW),
            (0, 12, 0x1000, RWX, 0x8_0000_0000_177f, RWX),
            (0, 12, 0x1000, RX | IO, 0x1647, RX | IO),
            (0, 12, 0x1000, RX | NS, 0x1657, RX | NS),
            (0, 12, 0xffff_ffff_f000, RX, 0xffff_ffff_f77f, RX),
            (0, 16, 0x1_0000, RX, 0x10_0000_0001_077f, RX),
            (0, 16, 0xffff_ffff_0000, R, 0x50_ffff_ffff_077f, R),
            (1, 21, 0x20_0000, RX, 0x20_077d, RX),
            (1, 21, 0xffff_ffe0_0000, RWX, 0x8_ffff_ffe0_077d, RWX),
            (1, 25, 0x200_0000, RX, 0x10_0000_0200_077d, RX),
            (2, 30, 0x4000_0000, RX, 0x4000_077d, RX),
            (2, 30, 0xffff_c000_0000, RWX, 0x8_ffff_c000_077d, RWX),
            (2, 34, 0x4_0000_0000, RX, 0x10_0004_0000_077d, RX),
        ])
        .pointers(&[
            (1, 0x1000, 0x1003),
            (1, 0xffff_ffff_f000, 0xffff_ffff_f003),
            (2, 0x1000, 0x1003),
            (2, 0xffff_ffff_f000, 0xffff_ffff_f003),
            (3, 0x1000, 0x1003),
            (3, 0xffff_ffff_f000, 0xffff_ffff_f003),
        ])
        .empty(&[(0, 0x0), (0, 0x177d), (0, 0x177e), (1, 0x1002), (3, 0x0), (3, 0x177d)])
        .reserved(&[(1, 0x20_177d), (1, 0x30_077d)])
        .dirty(&[(0x8_0000_0000_177f, 0x8_0000_0000_17ff), (0x177f, 0x100_0000_0000_177f)])
        .places(&[(0, 0x1f_ffff, 511), (3, 0xffff_ffff_ffff, 511)])
        .done();
}

#[test]
fn arm_stage_2_words_of_4k_granules_and_52_bits_are_the_manuals() {
    Words::<ArmS2<12, 52>>::of()
        .leaves(&[
            (0, 12, 0x0, Prot::empty(), 0x40_0000_0000_043f, Prot::empty()),
            (0, 12, 0x1000, R, 0x40_0000_0000_147f, R),
            (0, 12, 0x1000, RX, 0x147f, RX),
            (0, 12, 0x1000, W, 0x48_0000_0000_143f, W),
            (0, 12, 0x1000, RW, 0x48_0000_0000_147f, RW),
            (0, 12, 0x1000, RWX, 0x8_0000_0000_147f, RWX),
            (0, 12, 0x1000, RX | IO, 0x1447, RX | IO),
            (0, 12, 0x1000, RX | NS, 0x1457, RX | NS),
            (0, 12, 0xf_ffff_ffff_f000, RX, 0x3_ffff_ffff_f77f, RX),
            (0, 16, 0x1_0000, RX, 0x10_0000_0001_047f, RX),
            (0, 16, 0xf_ffff_ffff_0000, R, 0x53_ffff_ffff_077f, R),
            (1, 21, 0x20_0000, RX, 0x20_047d, RX),
            (1, 21, 0xf_ffff_ffe0_0000, RWX, 0xb_ffff_ffe0_077d, RWX),
            (1, 25, 0x200_0000, RX, 0x10_0000_0200_047d, RX),
            (2, 30, 0x4000_0000, RX, 0x4000_047d, RX),
            (2, 30, 0xf_ffff_c000_0000, RWX, 0xb_ffff_c000_077d, RWX),
            (2, 34, 0x4_0000_0000, RX, 0x10_0004_0000_047d, RX),
            (3, 39, 0x80_0000_0000, RX, 0x80_0000_047d, RX),
            (3, 39, 0xf_ff80_0000_0000, RWX, 0xb_ff80_0000_077d, RWX),
        ])
        .pointers(&[
            (1, 0x1000, 0x1003),
            (1, 0xf_ffff_ffff_f000, 0x3_ffff_ffff_f303),
            (2, 0x1000, 0x1003),
            (2, 0xf_ffff_ffff_f000, 0x3_ffff_ffff_f303),
            (3, 0x1000, 0x1003),
            (3, 0xf_ffff_ffff_f000, 0x3_ffff_ffff_f303),
        ])
        .empty(&[(0, 0x0), (0, 0x147d), (0, 0x147e), (1, 0x1002), (3, 0x0)])
        .reserved(&[(1, 0x20_147d), (1, 0x30_047d)])
        .dirty(&[(0x8_0000_0000_147f, 0x8_0000_0000_14ff), (0x147f, 0x100_0000_0000_147f)])
        .places(&[(0, 0x1f_ffff, 511), (3, 0xf_ffff_ffff_ffff, 8191)])
        .done();
}

#[test]
fn arm_stage_2_words_of_16k_granules_and_48_bits_are_the_manuals() {
    Words::<ArmS2<14, 48>>::of()
        .leaves(&[
            (0, 14, 0x0, Prot::empty(), 0x40_0000_0000_073f, Prot::empty()),
            (0, 14, 0x4000, R, 0x40_0000_0000_477f, R),
            (0, 14, 0x4000, RX, 0x477f, RX),
            (0, 14, 0x4000, W, 0x48_0000_0000_473f, W),
            (0, 14, 0x4000, RW, 0x48_0000_0000_477f, RW),
            (0, 14, 0x4000, RWX, 0x8_0000_0000_477f, RWX),
            (0, 14, 0x4000, RX | IO, 0x4647, RX | IO),
            (0, 14, 0x4000, RX | NS, 0x4657, RX | NS),
            (0, 14, 0xffff_ffff_c000, RX, 0xffff_ffff_c77f, RX),
            (0, 21, 0x20_0000, RX, 0x10_0000_0020_077f, RX),
            (0, 21, 0xffff_ffe0_0000, R, 0x50_ffff_ffe0_077f, R),
            (1, 25, 0x200_0000, RX, 0x200_077d, RX),
            (1, 25, 0xffff_fe00_0000, RWX, 0x8_ffff_fe00_077d, RWX),
            (1, 30, 0x4000_0000, RX, 0x10_0000_4000_077d, RX),
        ])
        .pointers(&[
            (1, 0x4000, 0x4003),
            (1, 0xffff_ffff_c000, 0xffff_ffff_c003),
            (2, 0x4000, 0x4003),
            (2, 0xffff_ffff_c000, 0xffff_ffff_c003),
        ])
        .empty(&[(0, 0x0), (0, 0x477d), (0, 0x477e), (1, 0x4002), (2, 0x0), (2, 0x477d)])
        .reserved(&[(1, 0x200_477d), (1, 0x300_077d)])
        .dirty(&[(0x8_0000_0000_477f, 0x8_0000_0000_47ff), (0x477f, 0x100_0000_0000_477f)])
        .places(&[(0, 0x1ff_ffff, 2047), (2, 0xffff_ffff_ffff, 4095)])
        .done();
}

#[test]
fn arm_stage_2_words_of_16k_granules_and_52_bits_are_the_manuals() {
    Words::<ArmS2<14, 52>>::of()
        .leaves(&[
            (0, 14, 0x0, Prot::empty(), 0x40_0000_0000_043f, Prot::empty()),
            (0, 14, 0x4000, R, 0x40_0000_0000_447f, R),
            (0, 14, 0x4000, RX, 0x447f, RX),
            (0, 14, 0x4000, W, 0x48_0000_0000_443f, W),
            (0, 14, 0x4000, RW, 0x48_0000_0000_447f, RW),
            (0, 14, 0x4000, RWX, 0x8_0000_0000_447f, RWX),
            (0, 14, 0x4000, RX | IO, 0x4447, RX | IO),
            (0, 14, 0x4000, RX | NS, 0x4457, RX | NS),
            (0, 14, 0xf_ffff_ffff_c000, RX, 0x3_ffff_ffff_c77f, RX),
            (0, 21, 0x20_0000, RX, 0x10_0000_0020_047f, RX),
            (0, 21, 0xf_ffff_ffe0_0000, R, 0x53_ffff_ffe0_077f, R),
            (1, 25, 0x200_0000, RX, 0x200_047d, RX),
            (1, 25, 0xf_ffff_fe00_0000, RWX, 0xb_ffff_fe00_077d, RWX),
            (1, 30, 0x4000_0000, RX, 0x10_0000_4000_047d, RX),
            (2, 36, 0x10_0000_0000, RX, 0x10_0000_047d, RX),
            (2, 36, 0xf_fff0_0000_0000, RWX, 0xb_fff0_0000_077d, RWX),
        ])
        .pointers(&[
            (1, 0x4000, 0x4003),
            (1, 0xf_ffff_ffff_c000, 0x3_ffff_ffff_c303),
            (2, 0x4000, 0x4003),
            (2, 0xf_ffff_ffff_c000, 0x3_ffff_ffff_c303),
            (3, 0x4000, 0x4003),
            (3, 0xf_ffff_ffff_c000, 0x3_ffff_ffff_c303),
        ])
        .empty(&[(0, 0x0), (0, 0x447d), (0, 0x447e), (1, 0x4002), (3, 0x0), (3, 0x447d)])
        .reserved(&[(1, 0x200_447d), (1, 0x300_047d)])
        .dirty(&[(0x8_0000_0000_447f, 0x8_0000_0000_44ff), (0x447f, 0x100_0000_0000_447f)])
        .places(&[(0, 0x1ff_ffff, 2047), (3, 0xf_ffff_ffff_ffff, 31)])
        .done();
}

#[test]
fn arm_stage_2_words_of_64k_granules_and_48_bits_are_the_manuals() {
    Words::<ArmS2<16, 48>>::of()
        .leaves(&[
            (0, 16, 0x0, Prot::empty(), 0x40_0000_0000_073f, Prot::empty()),
            (0, 16, 0x1_0000, R, 0x40_0000_0001_077f, R),
            (0, 16, 0x1_0000, RX, 0x1_077f, RX),
            (0, 16, 0x1_0000, W, 0x48_0000_0001_073f, W),
            (0, 16, 0x1_0000, RW, 0x48_0000_0001_077f, RW),
            (0, 16, 0x1_0000, RWX, 0x8_0000_0001_077f, RWX),
            (0, 16, 0x1_0000, RX | IO, 0x1_0647, RX | IO),
            (0, 16, 0x1_0000, RX | NS, 0x1_0657, RX | NS),
            (0, 16, 0xffff_ffff_0000, RX, 0xffff_ffff_077f, RX),
            (0, 21, 0x20_0000, RX, 0x10_0000_0020_077f, RX),
            (0, 21, 0xffff_ffe0_0000, R, 0x50_ffff_ffe0_077f, R),
            (1, 29, 0x2000_0000, RX, 0x2000_077d, RX),
            (1, 29, 0xffff_e000_0000, RWX, 0x8_ffff_e000_077d, RWX),
            (1, 34, 0x4_0000_0000, RX, 0x10_0004_0000_077d, RX),
        ])
        .pointers(&[
            (1, 0x1_0000, 0x1_0003),
            (1, 0xffff_ffff_0000, 0xffff_ffff_0003),
            (2, 0x1_0000, 0x1_0003),
            (2, 0xffff_ffff_0000, 0xffff_ffff_0003),
        ])
        .empty(&[(0, 0x0), (0, 0x1_077d), (0, 0x1_077e), (1, 0x1_0002), (2, 0x0), (2, 0x1_077d)])
        .reserved(&[(1, 0x2001_077d), (1, 0x3000_077d)])
        .dirty(&[(0x8_0000_0001_077f, 0x8_0000_0001_07ff), (0x1_077f, 0x100_0000_0001_077f)])
        .places(&[(0, 0x1fff_ffff, 8191), (2, 0xffff_ffff_ffff, 63)])
        .done();
}

#[test]
fn arm_stage_2_words_of_64k_granules_and_52_bits_are_the_manuals() {
    Words::<ArmS2<16, 52>>::of()
        .leaves(&[
            (0, 16, 0x0, Prot::empty(), 0x40_0000_0000_073f, Prot::empty()),
            (0, 16, 0x1_0000, R, 0x40_0000_0001_077f, R),
            (0, 16, 0x1_0000, RX, 0x1_077f, RX),
            (0, 16, 0x1_0000, W, 0x48_0000_0001_073f, W),
            (0, 16, 0x1_0000, RW, 0x48_0000_0001_077f, RW),
            (0, 16, 0x1_0000, RWX, 0x8_0000_0001_077f, RWX),
            (0, 16, 0x1_0000, RX | IO, 0x1_0647, RX | IO),
            (0, 16, 0x1_0000, RX | NS, 0x1_0657, RX | NS),
            (0, 16, 0xf_ffff_ffff_0000, RX, 0xffff_ffff_f77f, RX),
            (0, 21, 0x20_0000, RX, 0x10_0000_0020_077f, RX),
            (0, 21, 0xf_ffff_ffe0_0000, R, 0x50_ffff_ffe0_f77f, R),
            (1, 29, 0x2000_0000, RX, 0x2000_077d, RX),
            (1, 29, 0xf_ffff_e000_0000, RWX, 0x8_ffff_e000_f77d, RWX),
            (1, 34, 0x4_0000_0000, RX, 0x10_0004_0000_077d, RX),
            (2, 42, 0x400_0000_0000, RX, 0x400_0000_077d, RX),
            (2, 42, 0xf_fc00_0000_0000, RWX, 0x8_fc00_0000_f77d, RWX),
        ])
        .pointers(&[
            (1, 0x1_0000, 0x1_0003),
            (1, 0xf_ffff_ffff_0000, 0xffff_ffff_f003),
            (2, 0x1_0000, 0x1_0003),
            (2, 0xf_ffff_ffff_0000, 0xffff_ffff_f003),
        ])
        .empty(&[(0, 0x0), (0, 0x1_077d), (0, 0x1_077e), (1, 0x1_0002), (2, 0x0)])
        .reserved(&[(1, 0x2001_077d), (1, 0x3000_077d)])
        .dirty(&[(0x8_0000_0001_077f, 0x8_0000_0001_07ff), (0x1_077f, 0x100_0000_0001_077f)])
        .places(&[(0, 0x1fff_ffff, 8191), (2, 0xf_ffff_ffff_ffff, 1023)])
        .done();
}
