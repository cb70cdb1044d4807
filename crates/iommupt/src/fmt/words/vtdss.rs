//! Intel VT-d second stage: VT-d 3.7 and 9.8.

use super::{NS, R, RW, RWX, RX, W, Words};
use crate::Prot;
use crate::fmt::VtdSs;
use crate::format::Format;

fn words<const LEVELS: u32>() -> Words<VtdSs<LEVELS>> {
    Words::of()
        .leaves(&[
            // SS-PTE: R 0, W 1, SNP 11.
            (0, 12, 0, R, 0x801, RX),
            (0, 12, 0, W, 0x802, W),
            (0, 12, 0x1000, RW, 0x1803, RWX),
            (0, 12, 0x1000, R | NS, 0x1001, RX | NS),
            (0, 12, 0x1000, W | NS, 0x1002, W | NS),
            (0, 12, 0x1000, RW | NS, 0x1003, RWX | NS),
            (0, 12, 0xf_ffff_ffff_f000, RW, 0xf_ffff_ffff_f803, RWX),
            (0, 12, 0x7_89ab_cdef_1000, R, 0x7_89ab_cdef_1801, RX),
            // SS-PDE and SS-PDPE: PS 7.
            (1, 21, 0x20_0000, RW, 0x20_0883, RWX),
            (1, 21, 0x4020_0000, R | NS, 0x4020_0081, RX | NS),
            (1, 21, 0xf_ffff_ffe0_0000, W, 0xf_ffff_ffe0_0882, W),
            (2, 30, 0, R, 0x881, RX),
            (2, 30, 0x4000_0000, RW, 0x4000_0883, RWX),
            (2, 30, 0xf_ffff_c000_0000, R, 0xf_ffff_c000_0881, RX),
        ])
        .pointers(&[
            (1, 0x1000, 0x1003),
            (1, 0xf_ffff_ffff_f000, 0xf_ffff_ffff_f003),
            (2, 0xabc_d000, 0xabc_d003),
            (3, 0xf_ffff_ffff_f000, 0xf_ffff_ffff_f003),
            (4, 0x8000, 0x8003),
        ])
        .empty(&[(0, 0), (0, 0x1000), (1, 0x20_0080), (3, 0xfff_ffff_ffff_f000), (0, 4)])
        // Address bits below a large leaf; PS where no leaf may be.
        .reserved(&[(1, 0x20_1083), (2, 0x4020_0083), (3, 0x1083), (4, 0x1081)])
        // A 8, D 9.
        .dirty(&[(0x1803, 0x1b03), (0x20_0883, 0x20_0b83), (0x1903, 0x1b03)])
        .places(&[(0, 0xfff, 0), (0, 0x1f_ffff, 511), (1, 0x3fff_ffff, 511), (2, 1 << 30, 1)])
}

#[test]
fn vtdss_words_are_the_manuals() {
    words::<3>().places(&[(2, (1 << 39) - 1, 511)]).done();
    words::<4>().places(&[(3, (1 << 48) - 1, 511)]).done();
    words::<5>().places(&[(4, (1 << 57) - 1, 511), (4, 1 << 48, 1)]).done();
    assert!(VtdSs::<4>::attrs(Prot::empty()).is_err(), "without R and W an entry is not present");
}
