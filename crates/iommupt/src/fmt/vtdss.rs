//! Intel VT-d second stage: *Intel Virtualization Technology for Directed I/O Architecture
//! Specification*, sections 3.7 (Second-Stage Translation) and 9.8 (Second-Stage Paging Entries).
//!
//! | level | entry | leaf |
//! |---|---|---|
//! | 0 | SS-PTE | 4 KiB |
//! | 1 | SS-PDE | 2 MiB |
//! | 2 | SS-PDPE | 1 GiB |
//! | 3 | SS-PML4E | |
//! | 4 | SS-PML5E | |

use crate::format::{Entry, Format, bits};
use crate::{Field, Prot};
use ioasis_uapi::{Errno, Error, Result};

/// 9.8: R, bit 0. An entry with neither R nor W is not present (3.7.1).
const R: u64 = 1 << 0;
/// 9.8: W, bit 1.
const W: u64 = 1 << 1;
/// 9.8: PS, bit 7 of SS-PDPE and SS-PDE: the entry is a leaf.
const PS: u64 = 1 << 7;
/// 9.8: A, bit 8 (3.7.2, accessed).
const A: u64 = 1 << 8;
/// 9.8: D, bit 9 of a leaf (3.7.2, dirty).
const D: u64 = 1 << 9;
/// 9.8: SNP, bit 11 of a leaf: snooping is enforced.
const SNP: u64 = 1 << 11;
/// 9.8: ADDR, bits 51:12.
const ADDR: u64 = bits(51, 12);

/// 9.8: the fields of an entry that points to a table, of SS-PTE, and of a leaf above it.
const POINTER: [Field; 6] = [
    Field::bit("R", 0),
    Field::bit("W", 1),
    Field::bit("X", 2),
    Field::bit("PS", 7),
    Field::bit("A", 8),
    Field::address("ADDR", 51, 12),
];
const LEAF: [Field; 10] = [
    Field::bit("R", 0),
    Field::bit("W", 1),
    Field::bit("X", 2),
    Field::bits("EMT", 5, 3),
    Field::bit("IPAT", 6),
    Field::bit("A", 8),
    Field::bit("D", 9),
    Field::bit("SNP", 11),
    Field::address("ADDR", 51, 12),
    Field::bit("TM", 62),
];
const LARGE_LEAF: [Field; 11] = [
    Field::bit("R", 0),
    Field::bit("W", 1),
    Field::bit("X", 2),
    Field::bits("EMT", 5, 3),
    Field::bit("IPAT", 6),
    Field::bit("PS", 7),
    Field::bit("A", 8),
    Field::bit("D", 9),
    Field::bit("SNP", 11),
    Field::address("ADDR", 51, 12),
    Field::bit("TM", 62),
];

/// Intel VT-d second stage with `LEVELS` levels, 3 to 5 (3.7, AGAW of 39, 48 and 57 bits).
///
/// ```
/// use ioasis_iommupt::fmt::VtdSs;
/// use ioasis_iommupt::{Entry, Format, Prot};
///
/// // 2 MiB at 0x4020_0000 to be read, snooped: an SS-PDE with R (0), PS (7) and SNP (11).
/// let word = VtdSs::<4>::leaf(0x4020_0000, 1, 21, VtdSs::<4>::attrs(Prot::READ)?);
/// assert_eq!(word, 0x4020_0881);
/// // After a write that hardware let pass: A (8) and D (9).
/// assert_eq!(VtdSs::<4>::make_dirty(word), 0x4020_0b81);
/// // Neither R nor W: not present.
/// assert_eq!(VtdSs::<4>::decode(0x4020_0880, 1), Entry::Empty);
/// # Ok::<(), ioasis_uapi::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct VtdSs<const LEVELS: u32 = 4>;

impl<const LEVELS: u32> Format for VtdSs<LEVELS> {
    const NAME: &'static str = match LEVELS {
        3 => "vtdss-39",
        4 => "vtdss",
        5 => "vtdss-57",
        _ => panic!("3.7: three to five levels"),
    };
    const GRANULE_LG2: u32 = 12;
    const ITEMS_LG2: u32 = 9;
    const TOP_LEVEL: u32 = LEVELS - 1;
    const IOVA_LG2: u32 = 12 + 9 * LEVELS;
    const OA_LG2: u32 = 52;

    #[inline]
    fn sizes(level: u32) -> u64 {
        if level <= 2 { 1 << Self::item_lg2(level) } else { 0 }
    }

    #[inline]
    fn decode(word: u64, level: u32) -> Entry {
        if word & (R | W) == 0 {
            Entry::Empty
        } else if level == 0 || (level <= 2 && word & PS != 0) {
            Entry::Leaf
        } else {
            Entry::Table(word & ADDR)
        }
    }

    #[inline]
    fn oa(word: u64, level: u32) -> u64 {
        word & bits(51, Self::item_lg2(level))
    }

    fn attrs(prot: Prot) -> Result<u64> {
        let mut attrs = 0;
        if prot.contains(Prot::READ) {
            attrs |= R;
        }
        if prot.contains(Prot::WRITE) {
            attrs |= W;
        }
        if attrs == 0 {
            return Err(Error::new(Errno::EINVAL, "VT-d cannot map without read or write"));
        }
        if prot.contains(Prot::EXEC) && !prot.contains(Prot::READ) {
            return Err(Error::new(Errno::EOPNOTSUPP, "what is executed is what can be read"));
        }
        if !prot.contains(Prot::NO_SNOOP) {
            attrs |= SNP;
        }
        Ok(attrs)
    }

    #[inline]
    fn leaf(oa: u64, level: u32, _lg2: u32, attrs: u64) -> u64 {
        let size = if level == 0 { 0 } else { PS };
        oa | attrs | size
    }

    #[inline]
    fn attrs_of(word: u64, _level: u32) -> u64 {
        word & !(ADDR | PS)
    }

    #[inline]
    fn prot(word: u64, _level: u32) -> Prot {
        let mut prot = rwx(word);
        if word & SNP == 0 {
            prot |= Prot::NO_SNOOP;
        }
        prot
    }

    #[inline]
    fn table(address: u64, _level: u32) -> u64 {
        address | R | W
    }

    #[inline]
    fn under(leaf: u64, pointer: u64) -> u64 {
        leaf & (pointer | !(R | W))
    }

    fn reserved(word: u64, level: u32) -> bool {
        match Self::decode(word, level) {
            Entry::Empty => false,
            // 9.8: address bits below the size of a large leaf are reserved.
            Entry::Leaf => word & ADDR & !bits(51, Self::item_lg2(level)) != 0,
            // 9.8: PS is reserved in SS-PML4E and SS-PML5E; SNP is ignored outside leaves.
            Entry::Table(_) => word & PS != 0,
        }
    }

    fn entry_name(level: u32) -> &'static str {
        ["SS-PTE", "SS-PDE", "SS-PDPE", "SS-PML4E", "SS-PML5E"][level as usize]
    }

    fn fields(word: u64, level: u32) -> &'static [Field] {
        match (Self::decode(word, level), level) {
            (Entry::Leaf, 0) => &LEAF,
            (Entry::Leaf, _) => &LARGE_LEAF,
            _ => &POINTER,
        }
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

/// Permissions of a word. Execute is not controlled (9.8: X counts only with requests that ask for
/// it), so what can be read can be executed.
#[inline]
fn rwx(word: u64) -> Prot {
    let mut prot = Prot::empty();
    if word & R != 0 {
        prot |= Prot::READ | Prot::EXEC;
    }
    if word & W != 0 {
        prot |= Prot::WRITE;
    }
    prot
}
