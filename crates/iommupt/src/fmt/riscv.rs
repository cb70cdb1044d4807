//! RISC-V: *The RISC-V Instruction Set Manual: Volume II: Privileged Architecture*, 12.4 to 12.6
//! (Sv39, Sv48, Sv57), 13 (Svnapot), 14 (Svpbmt), 21.5.1 (guest physical address translation, the
//! x4 forms), as the *RISC-V IOMMU Architecture Specification* uses them for its first and second
//! stage.
//!
//! Every level has leaves. The second stage (G-stage) takes two more address bits, so its root is
//! four pages, and does not sign-extend.

use core::hint::cold_path;

use crate::format::{Context, Entry, Format, RWX, bits, low_bits};
use crate::{Field, Prot};
use ioasis_uapi::{Errno, Error, Result};

/// 12.4.1: V, bit 0.
const V: u64 = 1 << 0;
/// 12.4.1: R, bit 1. A pointer has none of R, W and X.
const R: u64 = 1 << 1;
/// 12.4.1: W, bit 2; W without R is reserved (table 26).
const W: u64 = 1 << 2;
/// 12.4.1: X, bit 3.
const X: u64 = 1 << 3;
/// 12.4.1: U, bit 4. All second-stage leaves have it (21.5.1).
const U: u64 = 1 << 4;
/// 12.4.1: G, bit 5; reserved in the second stage (21.5.1).
const G: u64 = 1 << 5;
/// 12.4.1: A, bit 6.
const A: u64 = 1 << 6;
/// 12.4.1: D, bit 7.
const D: u64 = 1 << 7;
/// 12.4.1: PPN, bits 53:10.
const PPN: u64 = bits(53, 10);
/// From a PPN in place to an address.
const PPN_SHIFT: u32 = 2;
/// 12.4.1: bits 60:54 are reserved.
const RESERVED: u64 = bits(60, 54);
/// 14: PBMT, bits 62:61: 1 is NC (non-cacheable, idempotent), 2 is IO; 3 is reserved.
const PBMT: u64 = bits(62, 61);
const PBMT_NC: u64 = 1 << 61;
const PBMT_IO: u64 = 2 << 61;
/// 13: N, bit 63, and table 36: ppn[0] = xxxx1000 is 64 KiB, the only size.
const N: u64 = 1 << 63;
const NAPOT_64K: u64 = 0b1000 << 10;
const NAPOT_MASK: u64 = 0b1111 << 10;
const NAPOT_LG2: u32 = 16;

/// 12.4.1, 13, 14: the fields of every entry. PPN counts pages of 4 KiB.
const FIELDS: [Field; 12] = [
    Field::bit("V", 0),
    Field::bit("R", 1),
    Field::bit("W", 2),
    Field::bit("X", 3),
    Field::bit("U", 4),
    Field::bit("G", 5),
    Field::bit("A", 6),
    Field::bit("D", 7),
    Field::bits("RSW", 9, 8),
    Field::bits("PPN", 53, 10),
    Field::bits("PBMT", 62, 61),
    Field::bit("N", 63),
];

/// RISC-V.
///
/// ```
/// use ioasis_iommupt::fmt::{Sv39x4, Sv48};
/// use ioasis_iommupt::{Format, Prot};
///
/// // 64 KiB at 0x1_0000: N (63) and ppn[0] = xxxx1000 (table 36), in 16 items; V, R, W, U, A.
/// let word = Sv48::leaf(0x1_0000, 0, 16, Sv48::attrs(Prot::READ | Prot::WRITE)?);
/// assert_eq!(word, 0x8000_0000_0000_6057);
/// // The second stage's root has four times the items, its addresses two more bits.
/// assert_eq!((Sv39x4::ROOT_ITEMS_LG2, Sv39x4::IOVA_LG2), (11, 41));
/// assert_eq!(Sv39x4::index((1 << 41) - 1, 2), 2047);
/// # Ok::<(), ioasis_uapi::Error>(())
/// ```
///
/// `LEVELS` is 3 to 5, `EXTRA` the number of more address bits at the root: none in the first
/// stage, two in the second.
#[derive(Clone, Copy, Debug)]
pub struct Riscv<const LEVELS: u32, const EXTRA: u32>;

/// First stage, 39 bits.
pub type Sv39 = Riscv<3, 0>;
/// First stage, 48 bits.
pub type Sv48 = Riscv<4, 0>;
/// First stage, 57 bits.
pub type Sv57 = Riscv<5, 0>;
/// Second stage, 41 bits.
pub type Sv39x4 = Riscv<3, 2>;
/// Second stage, 50 bits.
pub type Sv48x4 = Riscv<4, 2>;
/// Second stage, 59 bits.
pub type Sv57x4 = Riscv<5, 2>;

impl<const LEVELS: u32, const EXTRA: u32> Riscv<LEVELS, EXTRA> {
    const SECOND_STAGE: bool = EXTRA == 2;
}

impl<const LEVELS: u32, const EXTRA: u32> Format for Riscv<LEVELS, EXTRA> {
    const NAME: &'static str = match (LEVELS, EXTRA) {
        (3, 0) => "sv39",
        (4, 0) => "sv48",
        (5, 0) => "sv57",
        (3, 2) => "sv39x4",
        (4, 2) => "sv48x4",
        (5, 2) => "sv57x4",
        _ => panic!("12.4, 21.5.1: three to five levels, no or two more bits"),
    };
    const GRANULE_LG2: u32 = 12;
    const ITEMS_LG2: u32 = 9;
    const TOP_LEVEL: u32 = LEVELS - 1;
    const ROOT_ITEMS_LG2: u32 = 9 + EXTRA;
    const IOVA_LG2: u32 =
        if Self::SECOND_STAGE { 12 + 9 * LEVELS + 2 } else { 12 + 9 * LEVELS - 1 };
    const SIGN_EXTENDED: bool = !Self::SECOND_STAGE;
    const OA_LG2: u32 = 56;

    #[inline]
    fn sizes(level: u32) -> u64 {
        let napot = if level == 0 { 1 << NAPOT_LG2 } else { 0 };
        (1 << Self::item_lg2(level)) | napot
    }

    #[inline]
    fn decode(word: u64, level: u32) -> Entry {
        if word & V == 0 {
            Entry::Empty
        } else if level == 0 || word & (R | W | X) != 0 {
            Entry::Leaf
        } else {
            Entry::Table((word & PPN) << PPN_SHIFT)
        }
    }

    #[inline]
    fn oa(word: u64, level: u32) -> u64 {
        ((word & PPN) << PPN_SHIFT) & !low_bits(Self::leaf_lg2(word, level))
    }

    #[inline]
    fn leaf_lg2(word: u64, level: u32) -> u32 {
        if level == 0 && word & N != 0 {
            cold_path();
            return NAPOT_LG2;
        }
        Self::item_lg2(level)
    }

    fn attrs(prot: Prot) -> Result<u64> {
        let mut attrs = A;
        if prot.contains(Prot::READ) {
            attrs |= R;
        }
        if prot.contains(Prot::WRITE) {
            // Table 26: what can be written can be read.
            attrs |= W | R;
        }
        if prot.contains(Prot::EXEC) {
            attrs |= X;
        }
        if attrs & (R | W | X) == 0 {
            return Err(Error::new(Errno::EOPNOTSUPP, "a leaf without permissions is a pointer"));
        }
        if Self::SECOND_STAGE || !prot.contains(Prot::PRIVILEGED) {
            attrs |= U;
        }
        if !Self::SECOND_STAGE && prot.contains(Prot::GLOBAL) {
            attrs |= G;
        }
        if prot.contains(Prot::MMIO) {
            attrs |= PBMT_IO;
        } else if prot.contains(Prot::NO_SNOOP) {
            attrs |= PBMT_NC;
        }
        Ok(attrs)
    }

    #[inline]
    fn leaf(oa: u64, level: u32, lg2: u32, attrs: u64) -> u64 {
        if level == 0 && lg2 == NAPOT_LG2 {
            return ((oa & !low_bits(NAPOT_LG2)) >> PPN_SHIFT) | N | NAPOT_64K | attrs | V;
        }
        (oa >> PPN_SHIFT) | attrs | V
    }

    #[inline]
    fn attrs_of(word: u64, _level: u32) -> u64 {
        word & !(PPN | N | V)
    }

    #[inline]
    fn prot(word: u64, _level: u32) -> Prot {
        let mut prot = Prot::empty();
        for (bit, means) in [(R, Prot::READ), (W, Prot::WRITE), (X, Prot::EXEC), (G, Prot::GLOBAL)]
        {
            if word & bit != 0 {
                prot |= means;
            }
        }
        if word & U == 0 {
            prot |= Prot::PRIVILEGED;
        }
        match word & PBMT {
            PBMT_IO => prot |= Prot::MMIO,
            PBMT_NC => prot |= Prot::NO_SNOOP,
            _ => {}
        }
        prot
    }

    #[inline]
    fn table(address: u64, _level: u32) -> u64 {
        (address >> PPN_SHIFT) | V
    }

    /// 12.4.1: G of a pointer says that all below it is global.
    #[inline]
    fn under(leaf: u64, pointer: u64) -> u64 {
        leaf | (pointer & G)
    }

    /// 12.4.1: unprivileged requests need U; privileged ones never execute where it is set, and
    /// read and write there with SUM. The second stage takes all requests for unprivileged
    /// (21.5.1).
    #[inline]
    fn missing(word: u64, level: u32, need: Prot, context: Context) -> Prot {
        let lacking = (need & RWX).difference(Self::prot(word, level));
        if Self::SECOND_STAGE {
            return lacking;
        }
        match (word & U != 0, need.contains(Prot::PRIVILEGED)) {
            (true, false) | (false, true) => lacking,
            (false, false) => lacking | Prot::PRIVILEGED,
            (true, true) if context.contains(Context::OPEN) => lacking | (need & Prot::EXEC),
            (true, true) => lacking | (need & RWX),
        }
    }

    /// 12.3.1: without hardware that sets A and D, a page fault where they are clear.
    #[inline]
    fn is_flagless(word: u64, need: Prot, context: Context) -> bool {
        (!context.contains(Context::ACCESSED) && word & A == 0)
            || (!context.contains(Context::DIRTY) && need.contains(Prot::WRITE) && word & D == 0)
    }

    fn reserved(word: u64, level: u32) -> bool {
        if word & V == 0 {
            return false;
        }
        if word & RESERVED != 0 || word & PBMT == PBMT {
            return true;
        }
        if word & (R | W | X) == 0 {
            // 12.4.1: D, A and U are reserved in a pointer, as are N and PBMT (13, 14); level 0 has
            // no pointers.
            return level == 0 || word & (D | A | U | N | PBMT) != 0;
        }
        let misaligned = word & PPN & (low_bits(Self::item_lg2(level)) >> PPN_SHIFT) != 0;
        let napot = word & N != 0 && (level > 0 || word & NAPOT_MASK != NAPOT_64K);
        let stage = Self::SECOND_STAGE && word & U == 0;
        word & (R | W) == W || (level > 0 && misaligned) || napot || stage
    }

    fn entry_name(level: u32) -> &'static str {
        ["PTE of level 0", "PTE of level 1", "PTE of level 2", "PTE of level 3", "PTE of level 4"]
            [level as usize]
    }

    fn fields(_word: u64, _level: u32) -> &'static [Field] {
        &FIELDS
    }

    #[inline]
    fn is_dirty(word: u64) -> bool {
        word & D != 0
    }

    #[inline]
    fn make_dirty(word: u64) -> u64 {
        word | A | D
    }

    #[inline]
    fn make_clean(word: u64) -> u64 {
        word & !D
    }
}
