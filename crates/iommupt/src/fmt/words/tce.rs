//! TCEs: `TCE_PCI_READ` and `TCE_PCI_WRITE` of `arch/powerpc/include/asm/tce.h`, and where
//! `pnv_tce` of `arch/powerpc/platforms/powernv/pci-ioda-tce.c` looks for an entry.

use super::{NS, PRIV, R, RW, RWX, RX, W, Words};
use crate::Prot;
use crate::fmt::Tce;
use crate::format::{Context, Format};

/// What is the same for every size of page.
fn words<const PAGE_LG2: u32, const LEVELS: u32>() -> Words<Tce<PAGE_LG2, LEVELS>> {
    let page = 1 << PAGE_LG2;
    let top = 0xf_ffff_ffff_f000 & !(page - 1);
    Words::of()
        .leaves(&[
            (0, PAGE_LG2, 0, R, 0b01, RX),
            (0, PAGE_LG2, 0, RW, 0b11, RWX),
            (0, PAGE_LG2, page, R, page | 0b01, RX),
            (0, PAGE_LG2, page, RW, page | 0b11, RWX),
            // A device that may only write may read, too.
            (0, PAGE_LG2, page, W, page | 0b11, RWX),
            (0, PAGE_LG2, 3 * page, RW | NS, (3 * page) | 0b11, RWX),
            (0, PAGE_LG2, top, R, top | 0b01, RX),
            (0, PAGE_LG2, top, RWX, top | 0b11, RWX),
        ])
        .pointers(&[
            (1, 0x1000, 0x1003),
            (1, 0xf_ffff_ffff_f000, 0xf_ffff_ffff_f003),
            (2, 0xabc_d000, 0xabc_d003),
            (3, 0x8000, 0x8003),
            (4, 0x10_0000, 0x10_0003),
        ])
        .empty(&[(0, 0), (0, page), (0, top | 0xffc), (1, 0x1000), (2, 0xfff0_0000_0000_0ffc)])
        .requests(&[
            (page | 0b01, R, Context::empty(), Prot::empty()),
            (page | 0b01, RW, Context::empty(), W),
            (page | 0b10, RW, Context::empty(), R),
            (page | 0b11, RW | PRIV, Context::all(), Prot::empty()),
        ])
        .dirty(&[(page | 0b11, page | 0b111), (page | 0b01, page | 0b101)])
        .places(&[(0, page - 1, 0), (0, 511 * page, 511), (0, 512 * page, 0), (1, 512 * page, 1)])
}

#[test]
fn tce_words_are_the_kernels() {
    // 0x7fff_f000 is the last page of a default window of 2 GiB.
    words::<12, 3>()
        .places(&[(0, 0x7fff_f000, 511), (1, 0x7fff_f000, 511), (2, 1 << 30, 1)])
        .done();
    words::<12, 5>().places(&[(4, (1 << 54) - 1, 63), (3, 1 << 39, 1)]).done();
    words::<16, 5>()
        .leaves(&[(0, 16, 0x1234_0000, RW, 0x1234_0003, RWX)])
        .reserved(&[(0, 0x1234_1003), (0, 0x8001)])
        .places(&[(1, 1 << 25, 1), (4, 1 << 52, 1)])
        .done();
    words::<21, 4>()
        .leaves(&[(0, 21, 0x4020_0000, R, 0x4020_0001, RX)])
        .reserved(&[(0, 0x4020_1001), (0, 0x10_0003)])
        .places(&[(0, 0x4020_0000, 1), (1, 1 << 30, 1), (3, 1 << 48, 1)])
        .done();
    words::<24, 4>()
        .leaves(&[(0, 24, 0x1_0100_0000, RW, 0x1_0100_0003, RWX)])
        .reserved(&[(0, 0x80_0003)])
        .places(&[(0, 0x300_0000, 3), (1, 1 << 33, 1)])
        .done();
    words::<28, 3>().leaves(&[(0, 28, 0x3000_0000, RW, 0x3000_0003, RWX)]).done();
    words::<30, 3>().leaves(&[(0, 30, 0xc000_0000, R, 0xc000_0001, RX)]).done();
    assert!(Tce::<12>::attrs(Prot::empty()).is_err(), "neither bit: not present");
    assert!(Tce::<12>::attrs(Prot::EXEC).is_err(), "no bit says it");
}
