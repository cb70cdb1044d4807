//! x86-64 as VT-d's first stage and AMD's guest tables: SDM 4.5, VT-d 9.7, AMD IOMMU 2.2.6.

use super::{GLOBAL, IO, NONE, PRIV, R, RW, RWX, RX, W, Words, X, below};
use crate::fmt::X86_64;
use crate::format::{Context, Format};

const XD: u64 = 1 << 63;

fn words<const LEVELS: u32>() -> Words<X86_64<LEVELS>> {
    Words::of()
        .leaves(&[
            // SDM table 4-20: P 0, R/W 1, U/S 2, PWT 3, PCD 4, A 5, G 8, XD 63.
            (0, 12, 0, R, XD | 0x25, R),
            (0, 12, 0x1000, W, XD | 0x1027, RW),
            (0, 12, 0x1000, RW, XD | 0x1027, RW),
            (0, 12, 0x1000, RX, 0x1025, RX),
            (0, 12, 0x1000, RWX, 0x1027, RWX),
            (0, 12, 0x1000, RW | PRIV, XD | 0x1023, RW | PRIV),
            (0, 12, 0x1000, RW | GLOBAL, XD | 0x1127, RW | GLOBAL),
            (0, 12, 0x1000, RW | IO, XD | 0x103f, RW | IO),
            (0, 12, 0xf_ffff_ffff_f000, RWX, 0xf_ffff_ffff_f027, RWX),
            // SDM tables 4-18 and 4-16: PS 7.
            (1, 21, 0x20_0000, RWX, 0x20_00a7, RWX),
            (1, 21, 0xf_ffff_ffe0_0000, R, 0x800f_ffff_ffe0_00a5, R),
            (2, 30, 0x4000_0000, RWX, 0x4000_00a7, RWX),
            (2, 30, 0xf_ffff_c000_0000, RX | PRIV, 0xf_ffff_c000_00a1, RX | PRIV),
        ])
        .pointers(&[
            (1, 0x1000, 0x1027),
            (2, 0x2000, 0x2027),
            (3, 0x3000, 0x3027),
            (4, 0xf_ffff_ffff_f000, 0xf_ffff_ffff_f027),
        ])
        .empty(&[(0, 0), (0, 0x1026), (1, XD), (4, 0xf_ffff_ffff_f02e)])
        .reserved(&[(1, 0x20_20a7), (2, 0x4020_00a7), (3, 0x10a7), (4, 0x10a7)])
        // D 6.
        .dirty(&[(0x1027, 0x1067), (0x20_00a7, 0x20_00e7), (0x1007, 0x1067)])
        .places(&[(0, 0x1f_ffff, 511), (1, 0x3fff_ffff, 511), (2, (1 << 39) - 1, 511)])
}

#[test]
fn x86_64_words_are_the_manuals() {
    // The lower half of the canonical addresses ends in the middle of the root.
    words::<4>().places(&[(3, (1 << 47) - 1, 255), (3, u64::MAX, 511)]).done();
    words::<5>().places(&[(4, (1 << 56) - 1, 255), (3, u64::MAX, 511)]).done();
    assert_eq!(X86_64::<5>::oa(0x20_10a7, 1), 0x20_0000, "bit 12 of a large leaf is PAT");
    assert_eq!(below::<X86_64<4>>(XD | 0x1025), R, "the levels restrict what is below");
    assert_eq!(below::<X86_64<4>>(0x1027), RWX, "the levels restrict what is below");
    assert!(X86_64::<4>::attrs(X).is_err(), "what is present can be read");
}

/// SDM 4.6.1, VT-d 3.6.1: U/S, in every level, for unprivileged requests; WPE clear lets privileged
/// ones write.
#[test]
fn x86_64_requests_pass_or_not_as_in_the_manual() {
    let (all, no_wpe) = (Context::all(), Context::all() - Context::WRITE_PROTECT);
    let under = |leaf, pointer| X86_64::<4>::under(leaf, pointer);
    Words::<X86_64<4>>::of().requests(&[
        (0x1027, RWX, all, NONE),
        (0x1027, RWX | PRIV, all, NONE),
        (0x1023, R, all, PRIV),
        (0x1023, RW | PRIV, all, NONE),
        (XD | 0x1021, RWX, all, W | X | PRIV),
        (0x1025, W, no_wpe, W),
        (0x1025, W | PRIV, all, W),
        (0x1025, W | PRIV, no_wpe, NONE),
        (XD | 0x1025, X | PRIV, no_wpe, X),
        (under(0x1027, 0x1023), R, all, PRIV),
        (under(0x1027, 0x1023), RWX | PRIV, all, NONE),
        (under(0x1023, 0x1027), R, all, PRIV),
        (under(0x1027, 0x1025), RW, all, W),
    ]);
}
