//! x86-64 tables as IOMMUs read them: VT-d first stage (*Intel Virtualization Technology for
//! Directed I/O Architecture Specification*, 3.6 First-Stage Translation and 9.7 First-Stage Paging
//! Entries) and AMD guest tables (*AMD I/O Virtualization Technology (IOMMU) Specification*, 2.2.6
//! I/O Page Tables for Guest Translations), both the format of *Intel 64 and IA-32 Architectures
//! Software Developer's Manual* volume 3, 4.5 (4-Level Paging and 5-Level Paging).
//!
//! | level | entry | leaf |
//! |---|---|---|
//! | 0 | PTE | 4 KiB |
//! | 1 | PDE | 2 MiB |
//! | 2 | PDPTE | 1 GiB |
//! | 3 | PML4E | |
//! | 4 | PML5E | |
//!
//! Input addresses are canonical; what this crate maps is the lower half.

use crate::format::{Context, Entry, Format, RWX, bits};
use crate::{Field, Prot};
use ioasis_uapi::{Errno, Error, Result};

/// SDM table 4-20: P, bit 0.
const P: u64 = 1 << 0;
/// SDM table 4-20: R/W, bit 1.
const RW: u64 = 1 << 1;
/// SDM table 4-20: U/S, bit 2.
const US: u64 = 1 << 2;
/// SDM table 4-20: PWT, bit 3.
const PWT: u64 = 1 << 3;
/// SDM table 4-20: PCD, bit 4. With PWT it selects PAT entry 3, uncacheable after reset (SDM
/// 13.12.4).
const PCD: u64 = 1 << 4;
/// SDM table 4-20: A, bit 5.
const A: u64 = 1 << 5;
/// SDM table 4-20: D, bit 6 of a leaf.
const D: u64 = 1 << 6;
/// SDM tables 4-16 and 4-18: PS, bit 7 of PDPTE and PDE.
const PS: u64 = 1 << 7;
/// SDM table 4-20: G, bit 8 of a leaf.
const G: u64 = 1 << 8;
/// SDM table 4-20: address, bits 51:12.
const ADDR: u64 = bits(51, 12);
/// SDM table 4-20: XD, bit 63.
const XD: u64 = 1 << 63;

/// SDM tables 4-15 to 4-20: the fields of an entry that points to a table, of one that maps a page,
/// and of one that maps a larger page.
const POINTER: [Field; 9] = [
    Field::bit("P", 0),
    Field::bit("R/W", 1),
    Field::bit("U/S", 2),
    Field::bit("PWT", 3),
    Field::bit("PCD", 4),
    Field::bit("A", 5),
    Field::bit("PS", 7),
    Field::address("ADDR", 51, 12),
    Field::bit("XD", 63),
];
const PAGE: [Field; 11] = [
    Field::bit("P", 0),
    Field::bit("R/W", 1),
    Field::bit("U/S", 2),
    Field::bit("PWT", 3),
    Field::bit("PCD", 4),
    Field::bit("A", 5),
    Field::bit("D", 6),
    Field::bit("PAT", 7),
    Field::bit("G", 8),
    Field::address("ADDR", 51, 12),
    Field::bit("XD", 63),
];
const LARGE_PAGE: [Field; 12] = [
    Field::bit("P", 0),
    Field::bit("R/W", 1),
    Field::bit("U/S", 2),
    Field::bit("PWT", 3),
    Field::bit("PCD", 4),
    Field::bit("A", 5),
    Field::bit("D", 6),
    Field::bit("PS", 7),
    Field::bit("G", 8),
    Field::bit("PAT", 12),
    Field::address("ADDR", 51, 21),
    Field::bit("XD", 63),
];

/// x86-64 with `LEVELS` levels, 4 or 5.
///
/// ```
/// use ioasis_iommupt::fmt::{AmdV2, VtdFs};
/// use ioasis_iommupt::{Format, Prot};
///
/// // A page to be read: P (0), U/S (2), A (5), XD (63).
/// let word = VtdFs::<4>::leaf(0x1000, 0, 12, VtdFs::<4>::attrs(Prot::READ)?);
/// assert_eq!(word, 0x8000_0000_0000_1025);
/// // A pointer leaves all permissions to what is below, this one not that to execute.
/// let rwx = Prot::READ | Prot::WRITE | Prot::EXEC;
/// let word = AmdV2::<4>::leaf(0x1000, 0, 12, AmdV2::<4>::attrs(rwx)?);
/// assert_eq!(AmdV2::<4>::prot(AmdV2::<4>::under(word, 1 << 63 | 0x1027), 0), Prot::READ | Prot::WRITE);
/// # Ok::<(), ioasis_uapi::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct X86_64<const LEVELS: u32 = 4>;

/// Intel VT-d first stage.
pub type VtdFs<const LEVELS: u32 = 4> = X86_64<LEVELS>;

/// AMD guest (v2) tables.
pub type AmdV2<const LEVELS: u32 = 4> = X86_64<LEVELS>;

impl<const LEVELS: u32> Format for X86_64<LEVELS> {
    const NAME: &'static str = match LEVELS {
        4 => "x86-64",
        5 => "x86-64-57",
        _ => panic!("SDM 4.5: four or five levels"),
    };
    const GRANULE_LG2: u32 = 12;
    const ITEMS_LG2: u32 = 9;
    const TOP_LEVEL: u32 = LEVELS - 1;
    const IOVA_LG2: u32 = 12 + 9 * LEVELS - 1;
    const SIGN_EXTENDED: bool = true;
    const OA_LG2: u32 = 52;

    #[inline]
    fn sizes(level: u32) -> u64 {
        if level <= 2 { 1 << Self::item_lg2(level) } else { 0 }
    }

    #[inline]
    fn decode(word: u64, level: u32) -> Entry {
        if word & P == 0 {
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
        if !prot.intersects(Prot::READ | Prot::WRITE) {
            return Err(Error::new(Errno::EOPNOTSUPP, "what is present can be read"));
        }
        // What can be written can be read: the format cannot say otherwise.
        let mut attrs = A;
        if prot.contains(Prot::WRITE) {
            attrs |= RW;
        }
        if !prot.contains(Prot::PRIVILEGED) {
            attrs |= US;
        }
        if prot.contains(Prot::GLOBAL) {
            attrs |= G;
        }
        if prot.contains(Prot::MMIO) {
            attrs |= PCD | PWT;
        }
        if !prot.contains(Prot::EXEC) {
            attrs |= XD;
        }
        Ok(attrs)
    }

    #[inline]
    fn leaf(oa: u64, level: u32, _lg2: u32, attrs: u64) -> u64 {
        let size = if level == 0 { 0 } else { PS };
        oa | attrs | size | P
    }

    #[inline]
    fn attrs_of(word: u64, _level: u32) -> u64 {
        word & !(ADDR | PS | P)
    }

    #[inline]
    fn prot(word: u64, _level: u32) -> Prot {
        let mut prot = rwx(word);
        if word & US == 0 {
            prot |= Prot::PRIVILEGED;
        }
        if word & G != 0 {
            prot |= Prot::GLOBAL;
        }
        if word & PCD != 0 {
            prot |= Prot::MMIO;
        }
        prot
    }

    #[inline]
    fn table(address: u64, _level: u32) -> u64 {
        address | A | US | RW | P
    }

    #[inline]
    fn under(leaf: u64, pointer: u64) -> u64 {
        (leaf & (pointer | !(RW | US))) | (pointer & XD)
    }

    /// SDM 4.6.1 as without SMAP and SMEP (VT-d 3.6.1): U/S, set in every level, lets unprivileged
    /// requests in.
    #[inline]
    fn missing(word: u64, _level: u32, need: Prot, context: Context) -> Prot {
        let lacking = (need & RWX).difference(rwx(word));
        if need.contains(Prot::PRIVILEGED) {
            let anyway =
                if context.contains(Context::WRITE_PROTECT) { Prot::empty() } else { Prot::WRITE };
            return lacking.difference(anyway);
        }
        if word & US == 0 { lacking | Prot::PRIVILEGED } else { lacking }
    }

    fn reserved(word: u64, level: u32) -> bool {
        match Self::decode(word, level) {
            Entry::Empty => false,
            // Bit 12 of a large leaf is PAT; the bits from 13 up to its size are reserved (SDM
            // 4-16, 4-18).
            Entry::Leaf => level > 0 && word & bits(Self::item_lg2(level) - 1, 13) != 0,
            // PS is reserved in PML4E and PML5E (SDM 4-14, 4-15).
            Entry::Table(_) => level >= 3 && word & PS != 0,
        }
    }

    fn entry_name(level: u32) -> &'static str {
        ["PTE", "PDE", "PDPTE", "PML4E", "PML5E"][level as usize]
    }

    fn fields(word: u64, level: u32) -> &'static [Field] {
        match (Self::decode(word, level), level) {
            (Entry::Leaf, 0) => &PAGE,
            (Entry::Leaf, _) => &LARGE_PAGE,
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

#[inline]
fn rwx(word: u64) -> Prot {
    let mut prot = Prot::READ;
    if word & RW != 0 {
        prot |= Prot::WRITE;
    }
    if word & XD == 0 {
        prot |= Prot::EXEC;
    }
    prot
}
