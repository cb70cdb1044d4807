//! Words written by hand from the manuals, and every word there is against its own fields.

extern crate std;

use super::{AmdV1, ArmS1, ArmS2, Sv39x4, Sv48, VtdSs, X86_64};
use crate::Prot;
use crate::format::{Entry, Format, low_bits};

const R: Prot = Prot::READ;
const W: Prot = Prot::WRITE;
const X: Prot = Prot::EXEC;
const RW: Prot = R.union(W);
const RX: Prot = R.union(X);
const RWX: Prot = RW.union(X);
const NS: Prot = Prot::NO_SNOOP;
const IO: Prot = Prot::MMIO;
const PRIV: Prot = Prot::PRIVILEGED;
const GLOBAL: Prot = Prot::GLOBAL;

/// A leaf: level, lg2 of its size, output address, what is asked for, the word, what it grants.
type Leaf = (u32, u32, u64, Prot, u64, Prot);

fn leaves<F: Format>(rows: &[Leaf]) {
    for &(level, lg2, oa, asked, word, granted) in rows {
        let attrs = F::attrs(asked).expect("the format can say it");
        let made = F::leaf(oa, level, lg2, attrs);
        assert_eq!(made, word, "{}: {made:#x} is not {word:#x}", F::NAME);
        assert_eq!(F::decode(word, level), Entry::Leaf, "{word:#x}");
        assert_eq!(F::oa(word, level), oa & !low_bits(lg2), "{word:#x}");
        assert_eq!(F::leaf_lg2(word, level), lg2, "{word:#x}");
        assert_eq!(F::prot(word, level), granted, "{word:#x}");
        assert!(!F::reserved(word, level), "{word:#x}");
        assert!(!F::is_dirty(word), "{word:#x}");
    }
}

/// Pointers: level, address of the table, the word.
fn pointers<F: Format>(rows: &[(u32, u64, u64)]) {
    for &(level, address, word) in rows {
        assert_eq!(F::table(address, level), word, "{}: {word:#x}", F::NAME);
        assert_eq!(F::decode(word, level), Entry::Table(address), "{word:#x}");
        assert_eq!(F::table_prot(word, level), RWX, "{word:#x}");
        assert!(!F::reserved(word, level), "{word:#x}");
    }
}

/// Words that map nothing: level and word.
fn empty<F: Format>(rows: &[(u32, u64)]) {
    for &(level, word) in rows {
        assert_eq!(F::decode(word, level), Entry::Empty, "{}: {word:#x}", F::NAME);
    }
}

/// Words that the manual reserves: level and word.
fn reserved<F: Format>(rows: &[(u32, u64)]) {
    for &(level, word) in rows {
        assert!(F::reserved(word, level), "{}: {word:#x} at level {level}", F::NAME);
    }
}

/// A leaf before and after a write through it.
fn dirty<F: Format>(rows: &[(u64, u64)]) {
    for &(clean, dirty) in rows {
        assert_eq!(F::make_dirty(clean), dirty, "{}: {clean:#x}", F::NAME);
        assert!(F::is_dirty(dirty) && !F::is_dirty(clean), "{clean:#x}");
        assert!(!F::is_dirty(F::make_clean(dirty)), "{dirty:#x}");
    }
}

#[test]
fn vtdss_words_are_the_manuals() {
    type F = VtdSs<5>;
    leaves::<F>(&[
        (0, 12, 0, R, 0x801, RX),
        (0, 12, 0, W, 0x802, W),
        (0, 12, 0x1000, RW, 0x1803, RWX),
        (0, 12, 0x1000, R | NS, 0x1001, RX | NS),
        (0, 12, 0x1000, RW | NS, 0x1003, RWX | NS),
        (0, 12, 0xf_ffff_ffff_f000, RW, 0xf_ffff_ffff_f803, RWX),
        (0, 12, 0x7_89ab_cdef_1000, R, 0x7_89ab_cdef_1801, RX),
        (1, 21, 0x20_0000, RW, 0x20_0883, RWX),
        (1, 21, 0x4020_0000, R | NS, 0x4020_0081, RX | NS),
        (1, 21, 0xf_ffff_ffe0_0000, W, 0xf_ffff_ffe0_0882, W),
        (2, 30, 0x4000_0000, RW, 0x4000_0883, RWX),
        (2, 30, 0xf_ffff_c000_0000, R, 0xf_ffff_c000_0881, RX),
    ]);
    pointers::<F>(&[
        (1, 0x1000, 0x1003),
        (2, 0xabc_d000, 0xabc_d003),
        (3, 0xf_ffff_ffff_f000, 0xf_ffff_ffff_f003),
        (4, 0x8000, 0x8003),
    ]);
    empty::<F>(&[(0, 0), (0, 0x1000), (1, 0x20_0080), (3, 0xfff_ffff_ffff_f000), (0, 4)]);
    reserved::<F>(&[(1, 0x20_1083), (2, 0x4020_0083), (3, 0x1083), (4, 0x1081)]);
    dirty::<F>(&[(0x1803, 0x1b03), (0x20_0883, 0x20_0b83), (0x1903, 0x1b03)]);
    assert!(F::attrs(Prot::empty()).is_err(), "without R and W an entry is not present");
}

#[test]
fn amdv1_words_are_the_manuals() {
    type F = AmdV1<6>;
    let (fc, ir, iw) = (1 << 60, 1 << 61, 1_u64 << 62);
    leaves::<F>(&[
        (0, 12, 0, Prot::empty(), fc | 1, Prot::empty()),
        (0, 12, 0x1000, R, 0x3000_0000_0000_1001, RX),
        (0, 12, 0x1000, W, 0x5000_0000_0000_1001, W),
        (0, 12, 0x1000, RW, 0x7000_0000_0000_1001, RWX),
        (0, 12, 0x1000, RW | NS, 0x6000_0000_0000_1001, RWX | NS),
        (0, 12, 0xf_ffff_ffff_f000, RW, 0x700f_ffff_ffff_f001, RWX),
        // Table 14: 8 KiB is address bit 12 clear, 16 KiB bits 13:12 = 01, and so on.
        (0, 13, 0x2000, RW, 0x7000_0000_0000_2e01, RWX),
        (0, 14, 0x4000, RW, 0x7000_0000_0000_5e01, RWX),
        (0, 16, 0x1_0000, R, 0x3000_0000_0001_7e01, RX),
        (0, 20, 0x10_0000, R | NS, 0x2000_0000_0017_fe01, RX | NS),
        (1, 21, 0x20_0000, RW, 0x7000_0000_0020_0001, RWX),
        (1, 22, 0x40_0000, RW, 0x7000_0000_005f_fe01, RWX),
        (1, 29, 0x2000_0000, RW, 0x7000_0000_2fff_fe01, RWX),
        (2, 30, 0x4000_0000, RW, 0x7000_0000_4000_0001, RWX),
        (2, 32, 0x1_0000_0000, RW, 0x7000_0001_7fff_fe01, RWX),
        (4, 48, 0x3_0000_0000_0000, R, 0x3003_0000_0000_0001, RX),
    ]);
    pointers::<F>(&[
        (1, 0x1000, ir | iw | 0x1201),
        (2, 0x1000, ir | iw | 0x1401),
        (3, 0xf_ffff_ffff_f000, 0x600f_ffff_ffff_f601),
        (4, 0x8000, ir | iw | 0x8801),
        (5, 0x8000, ir | iw | 0x8a01),
    ]);
    empty::<F>(&[(0, 0), (0, 0x7000_0000_0000_1000), (3, 0xe00), (5, 1 << 63)]);
    reserved::<F>(&[
        (0, 0x1201),
        (1, 0x1401),
        (2, 0x1201),
        (3, 0x6000_003f_ffff_fe01),
        (5, 0x7000_0000_0000_0001),
        (1, 0x7000_0000_0000_2e01),
    ]);
    dirty::<F>(&[(0x7000_0000_0000_1001, 0x7000_0000_0000_1061), (0x1021, 0x1061)]);
    assert_eq!(F::table_prot(ir | 0x1201, 1), RX, "IW of the levels is ANDed");
    type Mock = AmdV1<5, 11>;
    leaves::<Mock>(&[(0, 11, 0x800, RW, 0x7000_0000_0000_1001, RWX)]);
    pointers::<Mock>(&[(1, 0x1000, ir | iw | 0x2201)]);
}

#[test]
fn x86_64_words_are_the_manuals() {
    type F = X86_64<5>;
    let xd = 1 << 63;
    leaves::<F>(&[
        (0, 12, 0, R, xd | 0x25, R),
        (0, 12, 0x1000, W, xd | 0x1027, RW),
        (0, 12, 0x1000, RW, xd | 0x1027, RW),
        (0, 12, 0x1000, RX, 0x1025, RX),
        (0, 12, 0x1000, RWX, 0x1027, RWX),
        (0, 12, 0x1000, RW | PRIV, xd | 0x1023, RW | PRIV),
        (0, 12, 0x1000, RW | GLOBAL, xd | 0x1127, RW | GLOBAL),
        (0, 12, 0x1000, RW | IO, xd | 0x103f, RW | IO),
        (0, 12, 0xf_ffff_ffff_f000, RWX, 0xf_ffff_ffff_f027, RWX),
        (1, 21, 0x20_0000, RWX, 0x20_00a7, RWX),
        (1, 21, 0xf_ffff_ffe0_0000, R, 0x800f_ffff_ffe0_00a5, R),
        (2, 30, 0x4000_0000, RWX, 0x4000_00a7, RWX),
        (2, 30, 0xf_ffff_c000_0000, RX | PRIV, 0xf_ffff_c000_00a1, RX | PRIV),
    ]);
    pointers::<F>(&[
        (1, 0x1000, 0x1027),
        (2, 0x2000, 0x2027),
        (3, 0x3000, 0x3027),
        (4, 0xf_ffff_ffff_f000, 0xf_ffff_ffff_f027),
    ]);
    empty::<F>(&[(0, 0), (0, 0x1026), (1, xd), (4, 0xf_ffff_ffff_f02e)]);
    reserved::<F>(&[(1, 0x20_20a7), (2, 0x4020_00a7), (3, 0x10a7), (4, 0x10a7)]);
    dirty::<F>(&[(0x1027, 0x1067), (0x20_00a7, 0x20_00e7), (0x1007, 0x1067)]);
    assert_eq!(F::oa(0x20_10a7, 1), 0x20_0000, "bit 12 of a large leaf is PAT");
    assert_eq!(F::table_prot(xd | 0x1025, 2), R, "the levels restrict what is below");
}

#[test]
fn riscv_first_stage_words_are_the_manuals() {
    type F = Sv48;
    leaves::<F>(&[
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
        (0, 16, 0x1_0000, RW, 0x8000_0000_0000_6057, RW),
        (0, 16, 0xff_ffff_ffff_0000, R, 0x803f_ffff_ffff_e053, R),
        (1, 21, 0x20_0000, RW, 0x8_0057, RW),
        (2, 30, 0x4000_0000, RWX, 0x1000_005f, RWX),
        (3, 39, 0x80_0000_0000, R, 0x20_0000_0053, R),
    ]);
    pointers::<F>(&[
        (1, 0x1000, 0x401),
        (2, 0x8000_0000, 0x2000_0001),
        (3, 0xff_ffff_ffff_f000, 0x3f_ffff_ffff_fc01),
    ]);
    empty::<F>(&[(0, 0), (0, 0x452), (3, 0xffff_ffff_ffff_fffe)]);
    reserved::<F>(&[
        (0, 0x455),
        (0, 0x401),
        (1, 0x441),
        (1, 0x481),
        (1, 0x411),
        (1, 0x453),
        (0, 0x6000_0000_0000_0453),
        (0, 0x40_0000_0000_0453),
        (0, 0x8000_0000_0000_4053),
        (1, 0x8000_0000_0008_2053),
    ]);
    dirty::<F>(&[(0x457, 0x4d7), (0x417, 0x4d7)]);
    assert!(F::attrs(Prot::empty()).is_err(), "a leaf without permissions is a pointer");
}

#[test]
fn riscv_second_stage_words_are_the_manuals() {
    type F = Sv39x4;
    leaves::<F>(&[
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
    ]);
    pointers::<F>(&[
        (1, 0x1000, 0x401),
        (2, 0x4000, 0x1001),
        (2, 0xff_ffff_ffff_c000, 0x3f_ffff_ffff_f001),
    ]);
    empty::<F>(&[(0, 0), (2, 0x456)]);
    reserved::<F>(&[(0, 0x443), (0, 0x455), (2, 0x1401_0053), (1, 0x441)]);
    dirty::<F>(&[(0x457, 0x4d7), (0x453, 0x4d3)]);
    assert_eq!(F::ROOT_ITEMS_LG2, 11, "the root is four pages");
    assert_eq!((F::index((1 << 41) - 1, 2), F::IOVA_LG2), (2047, 41));
}

#[test]
fn arm_stage_1_words_are_the_manuals() {
    type F = ArmS1<12>;
    // AttrIndx 1, SH inner, AF, nG, AP[2], AP[1]: 0xfc4; no execution: bits 54:53.
    leaves::<F>(&[
        (0, 12, 0, R, 0x60_0000_0000_0fc7, R),
        (0, 12, 0x1000, RX, 0x1fc7, RX),
        (0, 12, 0x1000, RW, 0x68_0000_0000_1fc7, RW),
        (0, 12, 0x1000, RWX, 0x8_0000_0000_1fc7, RWX),
        (0, 12, 0x1000, RX | PRIV, 0x1f87, RX | PRIV),
        (0, 12, 0x1000, RX | GLOBAL, 0x17c7, RX | GLOBAL),
        (0, 12, 0x1000, RX | IO, 0x1ecb, RX | IO),
        (0, 12, 0x1000, RX | NS, 0x1ec3, RX | NS),
        (0, 12, 0xffff_ffff_f000, RX, 0xffff_ffff_ffc7, RX),
        (0, 16, 0x1_0000, RX, 0x10_0000_0001_0fc7, RX),
        (1, 21, 0x20_0000, RX, 0x20_0fc5, RX),
        (1, 25, 0x200_0000, RX, 0x10_0000_0200_0fc5, RX),
        (2, 30, 0x4000_0000, RWX, 0x8_0000_4000_0fc5, RWX),
        (2, 34, 0x4_0000_0000, RX, 0x10_0004_0000_0fc5, RX),
    ]);
    pointers::<F>(&[
        (1, 0x1000, 0x1003),
        (2, 0x1000, 0x1003),
        (3, 0xffff_ffff_f000, 0xffff_ffff_f003),
    ]);
    empty::<F>(&[(0, 0), (0, 0x1fc5), (3, 0x1fc5), (1, 0x1002), (0, 0x1fc6)]);
    reserved::<F>(&[(1, 0x20_1fc5), (2, 0x4020_0fc5)]);
    dirty::<F>(&[(0x8_0000_0000_1fc7, 0x8_0000_0000_1f47), (0x1fc7, 0x100_0000_0000_1fc7)]);
    assert_eq!(F::table_prot(1 << 62 | 0x1003, 1), RX, "APTable[1] forbids writes");
    assert_eq!(F::table_prot(1 << 60 | 0x1003, 1), RW, "UXNTable forbids execution");
    // FEAT_LPA: bits 15:12 are address bits 51:48.
    leaves::<ArmS1<16, 52>>(&[
        (0, 16, 0xf_ffff_ffff_0000, RX, 0xffff_ffff_ffc7, RX),
        (0, 16, 0x1_0000_0001_0000, RX, 0x0000_0001_1fc7, RX),
        (0, 21, 0x20_0000, RX, 0x10_0000_0020_0fc7, RX),
        (1, 29, 0x2000_0000, RX, 0x2000_0fc5, RX),
        (2, 42, 0x8_0400_0000_0000, RX, 0x400_0000_8fc5, RX),
    ]);
    pointers::<ArmS1<16, 52>>(&[(1, 0xf_0000_0001_0000, 0x0001_f003)]);
    // FEAT_LPA2: bits 9:8 are address bits 51:50.
    leaves::<ArmS1<12, 52>>(&[
        (0, 12, 0xf_ffff_ffff_f000, RX, 0x3_ffff_ffff_ffc7, RX),
        (0, 12, 0x4_0000_0000_0000, RX, 0xdc7, RX),
    ]);
    leaves::<ArmS1<14>>(&[
        (0, 14, 0x4000, RX, 0x4fc7, RX),
        (0, 21, 0x20_0000, RX, 0x10_0000_0020_0fc7, RX),
        (1, 25, 0x200_0000, RX, 0x200_0fc5, RX),
        (1, 30, 0x4000_0000, RX, 0x10_0000_4000_0fc5, RX),
    ]);
}

#[test]
fn arm_stage_2_words_are_the_manuals() {
    type F = ArmS2<12>;
    // MemAttr write-back 0x3c, SH inner 0x300, AF 0x400; XN[1] is bit 54.
    leaves::<F>(&[
        (0, 12, 0, Prot::empty(), 0x40_0000_0000_073f, Prot::empty()),
        (0, 12, 0, R, 0x40_0000_0000_077f, R),
        (0, 12, 0x1000, RX, 0x177f, RX),
        (0, 12, 0x1000, W, 0x48_0000_0000_173f, W),
        (0, 12, 0x1000, RW, 0x48_0000_0000_177f, RW),
        (0, 12, 0x1000, RWX, 0x8_0000_0000_177f, RWX),
        (0, 12, 0x1000, RX | IO, 0x1647, RX | IO),
        (0, 12, 0x1000, RX | NS, 0x1657, RX | NS),
        (0, 12, 0xffff_ffff_f000, RX, 0xffff_ffff_f77f, RX),
        (0, 16, 0x1_0000, RX, 0x10_0000_0001_077f, RX),
        (1, 21, 0x20_0000, RX, 0x20_077d, RX),
        (1, 25, 0x200_0000, RX, 0x10_0000_0200_077d, RX),
        (2, 30, 0x4000_0000, RWX, 0x8_0000_4000_077d, RWX),
    ]);
    pointers::<F>(&[
        (1, 0x1000, 0x1003),
        (2, 0x1000, 0x1003),
        (3, 0xffff_ffff_f000, 0xffff_ffff_f003),
    ]);
    empty::<F>(&[(0, 0), (0, 0x177d), (3, 0x177d), (1, 0x1002)]);
    reserved::<F>(&[(1, 0x20_177d)]);
    dirty::<F>(&[(0x8_0000_0000_177f, 0x8_0000_0000_17ff)]);
    // D8.2.2: 48 bits with 16 KiB granules begin with two tables at the manual's level 1.
    assert_eq!((ArmS2::<14>::TOP_LEVEL, ArmS2::<14>::ROOT_ITEMS_LG2), (2, 12));
    assert_eq!((ArmS2::<12, 52>::TOP_LEVEL, ArmS2::<12, 52>::ROOT_ITEMS_LG2), (3, 13));
    assert_eq!((ArmS1::<12, 52>::TOP_LEVEL, ArmS1::<12, 52>::ROOT_ITEMS_LG2), (4, 4));
}

/// Takes what a random word says, says it again, and compares.
fn said_again<F: Format>(words: u64) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..words {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        for level in 0..=F::TOP_LEVEL {
            if F::decode(state, level) != Entry::Leaf || F::reserved(state, level) {
                continue;
            }
            let lg2 = F::leaf_lg2(state, level);
            let oa = F::oa(state, level);
            assert_eq!(oa & low_bits(lg2), 0, "{}: {state:#x}", F::NAME);
            let again = F::leaf(oa, level, lg2, F::attrs_of(state, level));
            assert_eq!(F::decode(again, level), Entry::Leaf, "{}: {state:#x}", F::NAME);
            assert_eq!(F::leaf_lg2(again, level), lg2, "{}: {state:#x}", F::NAME);
            assert_eq!(F::oa(again, level), oa, "{}: {state:#x}", F::NAME);
            assert_eq!(F::prot(again, level), F::prot(state, level), "{}: {state:#x}", F::NAME);
            assert_eq!(F::is_dirty(again), F::is_dirty(state), "{}: {state:#x}", F::NAME);
        }
    }
}

#[test]
fn what_a_word_says_can_be_said_again() {
    let words = std::env::var("IOASIS_WORDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1 << 16);
    said_again::<VtdSs<3>>(words);
    said_again::<VtdSs<5>>(words);
    said_again::<AmdV1<6>>(words);
    said_again::<AmdV1<5, 11>>(words);
    said_again::<X86_64<5>>(words);
    said_again::<Sv48>(words);
    said_again::<Sv39x4>(words);
    said_again::<ArmS1<12>>(words);
    said_again::<ArmS1<14>>(words);
    said_again::<ArmS1<16, 52>>(words);
    said_again::<ArmS1<12, 52>>(words);
    said_again::<ArmS2<12>>(words);
    said_again::<ArmS2<16, 52>>(words);
}
