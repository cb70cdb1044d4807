//! AMD IOMMU host tables: *AMD I/O Virtualization Technology (IOMMU) Specification* (48882),
//! section 2.2.3 (I/O Page Tables for Host Translations), tables 14 (Example Page Size Encodings)
//! and 15 (Page Table Level Parameters).
//!
//! The manual's level n is level n - 1 here. A leaf may have any power of two as its size: Next
//! Level 7 says that the address holds it, as a row of ones below its first significant bit, and
//! the word is repeated for each item.

use core::hint::cold_path;

use crate::format::{Entry, Format, bits, low_bits};
use crate::{Field, Prot};
use ioasis_uapi::{Errno, Error, Result};

/// 2.2.3: PR, bit 0, present.
const PR: u64 = 1 << 0;
/// 2.2.3: A, bit 5, accessed (with HASup, 2.2.7.4).
const A: u64 = 1 << 5;
/// 2.2.3: D, bit 6, dirty (with HDSup, 2.2.7.4).
const D: u64 = 1 << 6;
/// 2.2.3: Next Level, bits 11:9. 0 is a leaf of the level's own size, 7 a leaf that says its size.
const NEXT_LEVEL_SHIFT: u32 = 9;
const NEXT_LEVEL: u64 = bits(11, 9);
const NEXT_LEVEL_SIZE: u64 = 7 << NEXT_LEVEL_SHIFT;
/// 2.2.3: address, bits 51:12.
const ADDR: u64 = bits(51, 12);
/// 2.2.3: FC, bit 60 of a leaf: the coherency of the request is forced on.
const FC: u64 = 1 << 60;
/// 2.2.3: IR, bit 61; the levels' bits are ANDed.
const IR: u64 = 1 << 61;
/// 2.2.3: IW, bit 62; the levels' bits are ANDed.
const IW: u64 = 1 << 62;
/// Table 14: sizes end with the address bits that can encode them.
const SIZE_LG2_MAX: u32 = 51;
/// A leaf of 512 GiB does not work in hardware (`drivers/iommu/generic_pt/fmt/amdv1.h`).
const SIZE_BROKEN: u64 = 1 << 39;

/// 2.2.3: the fields of a page directory entry, and of a page translation entry.
const POINTER: [Field; 6] = [
    Field::bit("PR", 0),
    Field::bit("A", 5),
    Field::bits("Next Level", 11, 9),
    Field::address("Address", 51, 12),
    Field::bit("IR", 61),
    Field::bit("IW", 62),
];
const LEAF: [Field; 9] = [
    Field::bit("PR", 0),
    Field::bit("A", 5),
    Field::bit("D", 6),
    Field::bits("Next Level", 11, 9),
    Field::address("Address", 51, 12),
    Field::bit("U", 59),
    Field::bit("FC", 60),
    Field::bit("IR", 61),
    Field::bit("IW", 62),
];

/// AMD host tables.
///
/// ```
/// use ioasis_iommupt::fmt::AmdV1;
/// use ioasis_iommupt::{Format, Prot};
///
/// // 64 KiB at 0x1_0000: Next Level 7 (11:9), and ones from bit 12 to below the lowest zero, bit 15, say the size (table 14).
/// let word = AmdV1::<4>::leaf(0x1_0000, 0, 16, AmdV1::<4>::attrs(Prot::READ | Prot::WRITE)?);
/// assert_eq!(word, 0x7000_0000_0001_7e01);
/// assert_eq!((AmdV1::<4>::oa(word, 0), AmdV1::<4>::leaf_lg2(word, 0)), (0x1_0000, 16));
/// // The same word stands in all 16 items. A pointer says its table's level.
/// assert_eq!(AmdV1::<4>::table(0x1000, 3), 0x6000_0000_0000_1601);
/// # Ok::<(), ioasis_uapi::Error>(())
/// ```
///
/// `LEVELS` is 1 to 6. `GRANULE_LG2` is 12 in hardware; 11 gives the 2 KiB pages of the mock
/// hardware that Linux's IOMMUFD tests use.
#[derive(Clone, Copy, Debug)]
pub struct AmdV1<const LEVELS: u32 = 4, const GRANULE_LG2: u32 = 12>;

impl<const LEVELS: u32, const GRANULE_LG2: u32> AmdV1<LEVELS, GRANULE_LG2> {
    /// The address field counts granules.
    const SHIFT: u32 = 12 - GRANULE_LG2;
}

impl<const LEVELS: u32, const GRANULE_LG2: u32> Format for AmdV1<LEVELS, GRANULE_LG2> {
    const NAME: &'static str = match (LEVELS, GRANULE_LG2) {
        (1, 12) => "amdv1-1",
        (2, 12) => "amdv1-2",
        (3, 12) => "amdv1-3",
        (4, 12) => "amdv1",
        (5, 12) => "amdv1-5",
        (6, 12) => "amdv1-6",
        (_, 11) => "amdv1-mock",
        _ => panic!("2.2.3: one to six levels"),
    };
    const GRANULE_LG2: u32 = GRANULE_LG2;
    const ITEMS_LG2: u32 = 9;
    const TOP_LEVEL: u32 = LEVELS - 1;
    // Table 15: level 6 translates bits 63:57 only.
    const ROOT_ITEMS_LG2: u32 = if LEVELS == 6 { 64 - (12 + 9 * 5) } else { 9 };
    const IOVA_LG2: u32 = if LEVELS == 6 { 64 } else { GRANULE_LG2 + 9 * LEVELS };
    const OA_LG2: u32 = 52 - Self::SHIFT;

    #[inline]
    fn sizes(level: u32) -> u64 {
        // Table 15: level 6 has no translation entries.
        if level >= 5 {
            return 0;
        }
        let item_lg2 = Self::item_lg2(level);
        let last = item_lg2 + Self::ITEMS_LG2 - 1;
        bits(if last < SIZE_LG2_MAX { last } else { SIZE_LG2_MAX }, item_lg2) & !SIZE_BROKEN
    }

    #[inline]
    fn decode(word: u64, level: u32) -> Entry {
        // What nearly every walk meets, in one comparison.
        if level > 0 && word & (NEXT_LEVEL | PR) == u64::from(level) << NEXT_LEVEL_SHIFT | PR {
            return Entry::Table((word & ADDR) >> Self::SHIFT);
        }
        if word & PR == 0 {
            return Entry::Empty;
        }
        let next = word & NEXT_LEVEL;
        if level == 0 || next == 0 || next == NEXT_LEVEL_SIZE {
            Entry::Leaf
        } else {
            Entry::Table((word & ADDR) >> Self::SHIFT)
        }
    }

    #[inline]
    fn oa(word: u64, level: u32) -> u64 {
        ((word & ADDR) >> Self::SHIFT) & !low_bits(Self::leaf_lg2(word, level))
    }

    #[inline]
    fn leaf_lg2(word: u64, level: u32) -> u32 {
        if word & NEXT_LEVEL == NEXT_LEVEL_SIZE {
            cold_path();
            ((word & ADDR) >> 12).trailing_ones() + 1 + GRANULE_LG2
        } else {
            Self::item_lg2(level)
        }
    }

    fn attrs(prot: Prot) -> Result<u64> {
        let mut attrs = 0;
        if prot.contains(Prot::READ) {
            attrs |= IR;
        } else if prot.contains(Prot::EXEC) {
            return Err(Error::new(Errno::EOPNOTSUPP, "what is executed is what can be read"));
        }
        if prot.contains(Prot::WRITE) {
            attrs |= IW;
        }
        if !prot.contains(Prot::NO_SNOOP) {
            attrs |= FC;
        }
        Ok(attrs)
    }

    #[inline]
    fn leaf(oa: u64, level: u32, lg2: u32, attrs: u64) -> u64 {
        if lg2 == Self::item_lg2(level) {
            return (oa << Self::SHIFT) | attrs | PR;
        }
        let ones = low_bits(lg2 - 1) & !low_bits(GRANULE_LG2);
        let address = (oa & !low_bits(lg2)) | ones;
        (address << Self::SHIFT) | attrs | NEXT_LEVEL_SIZE | PR
    }

    #[inline]
    fn attrs_of(word: u64, _level: u32) -> u64 {
        word & !(ADDR | NEXT_LEVEL | PR)
    }

    #[inline]
    fn prot(word: u64, _level: u32) -> Prot {
        let mut prot = rwx(word);
        if word & FC == 0 {
            prot |= Prot::NO_SNOOP;
        }
        prot
    }

    #[inline]
    fn table(address: u64, level: u32) -> u64 {
        let next_level = u64::from(level) << NEXT_LEVEL_SHIFT;
        (address << Self::SHIFT) | IW | IR | next_level | PR
    }

    #[inline]
    fn under(leaf: u64, pointer: u64) -> u64 {
        leaf & (pointer | !(IR | IW))
    }

    fn reserved(word: u64, level: u32) -> bool {
        let next = (word & NEXT_LEVEL) >> NEXT_LEVEL_SHIFT;
        match Self::decode(word, level) {
            Entry::Empty => false,
            Entry::Leaf if next == 0 || next == 7 => {
                Self::sizes(level) >> Self::leaf_lg2(word, level) & 1 == 0
            }
            Entry::Leaf => true,
            // The manual lets a pointer skip levels; nobody writes such tables.
            Entry::Table(_) => next != u64::from(level),
        }
    }

    fn entry_name(level: u32) -> &'static str {
        // The manual counts levels from 1.
        [
            "level 1 entry",
            "level 2 entry",
            "level 3 entry",
            "level 4 entry",
            "level 5 entry",
            "level 6 entry",
        ][level as usize]
    }

    fn fields(word: u64, level: u32) -> &'static [Field] {
        if Self::decode(word, level) == Entry::Leaf { &LEAF } else { &POINTER }
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

/// Permissions of a word; there is no control of execution, so what can be read can be executed.
#[inline]
fn rwx(word: u64) -> Prot {
    let mut prot = Prot::empty();
    if word & IR != 0 {
        prot |= Prot::READ | Prot::EXEC;
    }
    if word & IW != 0 {
        prot |= Prot::WRITE;
    }
    prot
}
