//! RISC-V privileged 12.4 to 12.6, 13 (Svnapot), 14 (Svpbmt), 21.5.1.

use super::{GLOBAL, IO, NONE, NS, PRIV, R, RW, RWX, W, Words, X};
use crate::Prot;
use crate::fmt::Riscv;
use crate::format::{Context, Format};

/// V 0, R 1, W 2, X 3, U 4, G 5, A 6, D 7, PPN 53:10, PBMT 62:61, N 63.
fn first_stage<const LEVELS: u32>() -> Words<Riscv<LEVELS, 0>> {
    Words::of()
        .leaves(&[
            (0, 12, 0, R, 0x53, R),
            (0, 12, 0x1000, R, 0x453, R),
            (0, 12, 0x1000, W, 0x457, RW),
            (0, 12, 0x1000, RW, 0x457, RW),
            (0, 12, 0x1000, X, 0x459, X),
            (0, 12, 0x1000, RWX, 0x45f, RWX),
            (0, 12, 0x1000, RW | PRIV, 0x447, RW | PRIV),
            (0, 12, 0x1000, R | GLOBAL, 0x473, R | GLOBAL),
            (0, 12, 0x1000, RW | NS, 0x2000_0000_0000_0457, RW | NS),
            (0, 12, 0x1000, RW | IO, 0x4000_0000_0000_0457, RW | IO),
            (0, 12, 0xff_ffff_ffff_f000, R, 0x3f_ffff_ffff_fc53, R),
            // Table 36: 64 KiB is N and ppn[0] = xxxx1000.
            (0, 16, 0x1_0000, RW, 0x8000_0000_0000_6057, RW),
            (0, 16, 0xff_ffff_ffff_0000, R, 0x803f_ffff_ffff_e053, R),
            (1, 21, 0x20_0000, RW, 0x8_0057, RW),
            (2, 30, 0x4000_0000, RWX, 0x1000_005f, RWX),
            (3, 39, 0x80_0000_0000, R, 0x20_0000_0053, R),
            (4, 48, 0x1_0000_0000_0000, RW, 0x4000_0000_0057, RW),
        ])
        .pointers(&[
            (1, 0x1000, 0x401),
            (2, 0x8000_0000, 0x2000_0001),
            (3, 0xff_ffff_ffff_f000, 0x3f_ffff_ffff_fc01),
            (4, 0x8000, 0x2001),
        ])
        .empty(&[(0, 0), (0, 0x452), (3, 0xffff_ffff_ffff_fffe)])
        .reserved(&[
            // Table 26: W without R; level 0 points to nothing.
            (0, 0x455),
            (0, 0x401),
            // A, D and U of a pointer.
            (1, 0x441),
            (1, 0x481),
            (1, 0x411),
            // A misaligned superpage, PBMT 3, bit 54, other NAPOT sizes, NAPOT above level 0.
            (1, 0x453),
            (0, 0x6000_0000_0000_0453),
            (0, 0x40_0000_0000_0453),
            (0, 0x8000_0000_0000_4053),
            (1, 0x8000_0000_0008_2053),
        ])
        .dirty(&[(0x457, 0x4d7), (0x417, 0x4d7)])
        .places(&[(0, 0x1f_ffff, 511), (1, 0x3fff_ffff, 511)])
}

#[test]
fn riscv_first_stage_words_are_the_manuals() {
    first_stage::<3>().places(&[(2, (1 << 38) - 1, 255), (2, u64::MAX, 511)]).done();
    first_stage::<4>().places(&[(3, (1 << 47) - 1, 255), (3, u64::MAX, 511)]).done();
    first_stage::<5>().places(&[(4, (1 << 56) - 1, 255), (4, u64::MAX, 511)]).done();
    let nothing = Riscv::<4, 0>::attrs(Prot::empty());
    assert!(nothing.is_err(), "a leaf without permissions is a pointer");
}

/// 12.4.1: U is bit 4; SUM is a context's. 12.3.1: A is bit 6, D bit 7.
#[test]
fn riscv_requests_pass_or_not_as_in_the_manual() {
    let (all, no_sum) = (Context::all(), Context::all() - Context::OPEN);
    Words::<Riscv<4, 0>>::of().requests(&[
        (0x457, RW, no_sum, NONE),
        (0x457, X, all, X),
        (0x447, R, all, PRIV),
        (0x443, RW, all, W | PRIV),
        (0x447, RW | PRIV, no_sum, NONE),
        (0x457, RW | PRIV, all, NONE),
        (0x457, RW | PRIV, no_sum, RW),
        // Never executed by the privileged, whatever SUM is.
        (0x45f, RWX | PRIV, all, X),
        (0x44f, RWX | PRIV, no_sum, NONE),
    ]);
    // 21.5.1: the second stage takes all requests for unprivileged.
    Words::<Riscv<4, 2>>::of()
        .requests(&[(0x45f, RWX | PRIV, no_sum, NONE), (0x453, RW | PRIV, all, W)]);
    let flag = Riscv::<4, 0>::is_flagless;
    let no_sade = all - Context::ACCESSED - Context::DIRTY;
    assert!(flag(0x417, R, no_sade) && !flag(0x417, RW, all), "A is clear");
    assert!(flag(0x457, RW, no_sade) && !flag(0x457, R, no_sade), "D is clear");
    assert!(!flag(0x4d7, RW, no_sade), "both are set");
    let under = |pointer| Riscv::<4, 0>::prot(Riscv::<4, 0>::under(0x457, pointer), 0);
    assert_eq!((under(0x401), under(0x421)), (RW, RW | GLOBAL), "G holds for all below");
}

fn second_stage<const LEVELS: u32>() -> Words<Riscv<LEVELS, 2>> {
    Words::of()
        .leaves(&[
            // 21.5.1: all leaves have U, none has G.
            (0, 12, 0, R, 0x53, R),
            (0, 12, 0x1000, RW, 0x457, RW),
            (0, 12, 0x1000, X, 0x459, X),
            (0, 12, 0x1000, RW | PRIV, 0x457, RW),
            (0, 12, 0x1000, RW | GLOBAL, 0x457, RW),
            (0, 12, 0x1000, RW | IO, 0x4000_0000_0000_0457, RW | IO),
            (0, 12, 0x1000, RW | NS, 0x2000_0000_0000_0457, RW | NS),
            (0, 12, 0xff_ffff_ffff_f000, RWX, 0x3f_ffff_ffff_fc5f, RWX),
            (0, 16, 0x2_0000, R, 0x8000_0000_0000_a053, R),
            (1, 21, 0x20_0000, RW, 0x8_0057, RW),
            (1, 21, 0xff_ffff_ffe0_0000, RW, 0x3f_ffff_fff8_0057, RW),
            (2, 30, 0x4000_0000, RWX, 0x1000_005f, RWX),
            (2, 30, 0xff_ffff_c000_0000, R, 0x3f_ffff_f000_0053, R),
            (3, 39, 0x80_0000_0000, RW, 0x20_0000_0057, RW),
            (4, 48, 0x1_0000_0000_0000, RW, 0x4000_0000_0057, RW),
        ])
        .pointers(&[
            (1, 0x1000, 0x401),
            (2, 0x4000, 0x1001),
            (2, 0xff_ffff_ffff_c000, 0x3f_ffff_ffff_f001),
            (3, 0x8000, 0x2001),
            (4, 0x8000, 0x2001),
        ])
        .empty(&[(0, 0), (2, 0x456)])
        .reserved(&[(0, 0x443), (0, 0x455), (2, 0x1401_0053), (1, 0x441)])
        .dirty(&[(0x457, 0x4d7), (0x453, 0x4d3)])
}

#[test]
fn riscv_second_stage_words_are_the_manuals() {
    // 21.5.1: two more bits, so the root is four pages.
    second_stage::<3>().places(&[(2, (1 << 41) - 1, 2047), (2, 1 << 39, 512)]).done();
    second_stage::<4>().places(&[(3, (1 << 50) - 1, 2047), (3, 1 << 48, 512)]).done();
    second_stage::<5>().places(&[(4, (1 << 59) - 1, 2047), (4, 1 << 57, 512)]).done();
    assert_eq!((Riscv::<3, 2>::ROOT_ITEMS_LG2, Riscv::<3, 2>::IOVA_LG2), (11, 41));
}
