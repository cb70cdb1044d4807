//! AMD IOMMU host tables: AMD IOMMU 2.2.3, tables 14 and 15.

use super::{NONE, NS, PRIV, R, RW, RWX, RX, W, Words, below};
use crate::Prot;
use crate::fmt::AmdV1;
use crate::format::Context;

/// Bits 60, 61 and 62: FC, IR, IW.
const FC: u64 = 1 << 60;
const IR: u64 = 1 << 61;
const IW: u64 = 1 << 62;

fn words<const LEVELS: u32>() -> Words<AmdV1<LEVELS>> {
    Words::of()
        .leaves(&[
            (0, 12, 0, Prot::empty(), FC | 1, Prot::empty()),
            (0, 12, 0x1000, R, 0x3000_0000_0000_1001, RX),
            (0, 12, 0x1000, W, 0x5000_0000_0000_1001, W),
            (0, 12, 0x1000, RW, 0x7000_0000_0000_1001, RWX),
            (0, 12, 0x1000, RW | NS, 0x6000_0000_0000_1001, RWX | NS),
            (0, 12, 0xf_ffff_ffff_f000, RW, 0x700f_ffff_ffff_f001, RWX),
            // Table 14: 8 KiB is address bit 12 clear, 16 KiB bits 13:12 = 01, and so on.
            (0, 13, 0x2000, RW, 0x7000_0000_0000_2e01, RWX),
            (0, 14, 0x4000, RW, 0x7000_0000_0000_5e01, RWX),
            (0, 15, 0x8000, RW, 0x7000_0000_0000_be01, RWX),
            (0, 16, 0x1_0000, R, 0x3000_0000_0001_7e01, RX),
            (0, 17, 0x2_0000, W, 0x5000_0000_0002_fe01, W),
            (0, 18, 0x4_0000, RW, 0x7000_0000_0005_fe01, RWX),
            (0, 19, 0x8_0000, RW, 0x7000_0000_000b_fe01, RWX),
            (0, 20, 0x10_0000, R | NS, 0x2000_0000_0017_fe01, RX | NS),
            (0, 20, 0xf_ffff_fff0_0000, RW, 0x700f_ffff_fff7_fe01, RWX),
            (1, 21, 0x20_0000, RW, 0x7000_0000_0020_0001, RWX),
            (1, 22, 0x40_0000, RW, 0x7000_0000_005f_fe01, RWX),
            (1, 29, 0x2000_0000, RW, 0x7000_0000_2fff_fe01, RWX),
            (2, 30, 0x4000_0000, RW, 0x7000_0000_4000_0001, RWX),
            (2, 32, 0x1_0000_0000, RW, 0x7000_0001_7fff_fe01, RWX),
            (3, 40, 0x100_0000_0000, R, 0x3000_017f_ffff_fe01, RX),
            (4, 48, 0x3_0000_0000_0000, R, 0x3003_0000_0000_0001, RX),
            (4, 51, 0x8_0000_0000_0000, RW, 0x700b_ffff_ffff_fe01, RWX),
        ])
        .pointers(&[
            // Next Level, bits 11:9, is the manual's level of the table pointed to.
            (1, 0x1000, IR | IW | 0x1201),
            (2, 0x1000, IR | IW | 0x1401),
            (3, 0xf_ffff_ffff_f000, 0x600f_ffff_ffff_f601),
            (4, 0x8000, IR | IW | 0x8801),
            (5, 0x8000, IR | IW | 0x8a01),
        ])
        .empty(&[(0, 0), (0, 0x7000_0000_0000_1000), (3, 0xe00), (5, 1 << 63)])
        .reserved(&[
            // Level 0 points to nothing, and nothing skips levels.
            (0, 0x1201),
            (0, 0x1401),
            (0, 0x1c01),
            (1, 0x1401),
            (2, 0x1201),
            // A size that belongs to another level, 512 GiB, and a leaf at level 6.
            (0, 0x7000_0000_005f_fe01),
            (1, 0x7000_0000_0000_2e01),
            (3, 0x6000_003f_ffff_fe01),
            (5, 0x7000_0000_0000_0001),
        ])
        // A 5, D 6.
        .dirty(&[(0x7000_0000_0000_1001, 0x7000_0000_0000_1061), (0x1021, 0x1061)])
        .places(&[(0, 0x1f_ffff, 511), (1, (1 << 30) - 1, 511), (2, 1 << 30, 1)])
}

#[test]
fn amdv1_words_are_the_manuals() {
    words::<1>().done();
    words::<2>().done();
    words::<3>().done();
    words::<4>().places(&[(3, (1 << 48) - 1, 511)]).done();
    words::<5>().places(&[(4, (1 << 57) - 1, 511)]).done();
    // Table 15: level 6 resolves bits 63:57.
    words::<6>().places(&[(5, u64::MAX, 127), (5, 1 << 57, 1)]).done();
    assert_eq!(below::<AmdV1<6>>(IR | 0x1201), RX, "IW of the levels is ANDed");
    assert_eq!(below::<AmdV1<6>>(IW | 0x1201), W, "IR of the levels is ANDed");
    // Host tables know no privileges.
    Words::<AmdV1<6>>::of().requests(&[
        (IR | IW | 0x1001, RWX | PRIV, Context::empty(), NONE),
        (IR | 0x1001, RW | PRIV, Context::all(), W),
    ]);
}

/// Granules of 2 KiB in the same fields: an address is twice as large in the word.
#[test]
fn amdv1_words_of_the_mock_count_half_pages() {
    Words::<AmdV1<5, 11>>::of()
        .leaves(&[
            (0, 11, 0, R, 0x3000_0000_0000_0001, RX),
            (0, 11, 0x800, RW, 0x7000_0000_0000_1001, RWX),
            (0, 11, 0x800, W, 0x5000_0000_0000_1001, W),
            (0, 11, 0x800, RW | NS, 0x6000_0000_0000_1001, RWX | NS),
            (0, 11, 0x7_ffff_ffff_f800, RW, 0x700f_ffff_ffff_f001, RWX),
            (0, 12, 0x1000, RW, 0x7000_0000_0000_2e01, RWX),
            (0, 13, 0x2000, RW, 0x7000_0000_0000_5e01, RWX),
            (0, 15, 0x8000, RW, 0x7000_0000_0001_7e01, RWX),
            (0, 19, 0x8_0000, RW, 0x7000_0000_0017_fe01, RWX),
            (1, 20, 0x10_0000, RW, 0x7000_0000_0020_0001, RWX),
            (1, 21, 0x20_0000, RW, 0x7000_0000_005f_fe01, RWX),
            (2, 29, 0x2000_0000, RW, 0x7000_0000_4000_0001, RWX),
        ])
        .pointers(&[
            (1, 0x1000, IR | IW | 0x2201),
            (2, 0x1000, IR | IW | 0x2401),
            (3, 0x7_ffff_ffff_f000, 0x600f_ffff_ffff_e601),
            (4, 0x8000, IR | IW | 0x1_0801),
        ])
        .empty(&[(0, 0), (1, 0x7000_0000_0020_0000)])
        .reserved(&[(0, 0x2201), (2, 0x2201)])
        .dirty(&[(0x7000_0000_0000_1001, 0x7000_0000_0000_1061)])
        .places(&[(0, 0xf_ffff, 511), (4, (1 << 56) - 1, 511)])
        .done();
}
