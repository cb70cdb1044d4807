//! Arm VMSAv8-64 as SMMUv3 reads it: *Arm Architecture Reference Manual for A-profile* (DDI 0487),
//! D8.2 (translation process), D8.3 (translation table descriptor formats), D8.4 (memory access
//! control), D8.5 (hardware updates of the access flag and dirty state), D8.7 (contiguous bit);
//! *System Memory Management Unit Architecture Specification, version 3* (IHI 0070), 3.4.
//!
//! The manual's level 3 is level 0 here. Input addresses are those of TTBR0. `BITS` is the size of
//! input and output addresses: 48, or 52 (FEAT_LPA with 64 KiB granules, FEAT_LPA2 with the
//! others).

use core::hint::cold_path;

use crate::format::{Context, Entry, Format, RWX, bits, low_bits};
use crate::{Field, Prot};
use ioasis_uapi::{Errno, Error, Result};

/// D8.3.1: bit 0, valid.
const VALID: u64 = 1 << 0;
/// D8.3.1: bit 1: a table or, at the last level, a page; a block where it is clear.
const TABLE_OR_PAGE: u64 = 1 << 1;
/// D8.3.1.2, stage 1: AttrIndx, bits 4:2. The indices follow Linux's MAIR: 0 non-cacheable, 1
/// write-back, 2 device.
const ATTR_INDEX_SHIFT: u32 = 2;
/// D8.3.1.2, stage 2: MemAttr, bits 5:2: 0b1111 write-back, 0b0101 non-cacheable, 0b0001
/// Device-nGnRE (D8.6.5).
const MEM_ATTR_SHIFT: u32 = 2;
/// D8.4.1, stage 1: AP[1], bit 6: unprivileged access.
const AP_UNPRIVILEGED: u64 = 1 << 6;
/// D8.4.1, stage 1: AP[2], bit 7: read-only.
const AP_READ_ONLY: u64 = 1 << 7;
/// D8.4.2, stage 2: S2AP[0], bit 6: read.
const S2AP_READ: u64 = 1 << 6;
/// D8.4.2, stage 2: S2AP[1], bit 7: write.
const S2AP_WRITE: u64 = 1 << 7;
/// D8.3.1.2: SH, bits 9:8: 0b11 inner, 0b10 outer shareable. With FEAT_LPA2 these bits are address.
const SH_INNER: u64 = 3 << 8;
const SH_OUTER: u64 = 2 << 8;
/// D8.3.1.2: AF, bit 10.
const AF: u64 = 1 << 10;
/// D8.3.1.2, stage 1: nG, bit 11.
const NG: u64 = 1 << 11;
/// D8.5.2: DBM, bit 51: hardware manages the dirty state, which is AP[2] clear or S2AP[1] set.
const DBM: u64 = 1 << 51;
/// Bits 58:55 are the software's (D8.3.1.2): a leaf that cannot be written any more remembers that
/// it was.
const WAS_DIRTY: u64 = 1 << 56;
/// D8.7.1: contiguous, bit 52.
const CONTIGUOUS: u64 = 1 << 52;
/// D8.4.3, stage 1: PXN, bit 53.
const PXN: u64 = 1 << 53;
/// D8.4.3: UXN of stage 1, XN[1] of stage 2, bit 54.
const XN: u64 = 1 << 54;
/// D8.3.1.1, stage 1 table: PXNTable, bit 59: no privileged execution below.
const PXN_TABLE: u64 = 1 << 59;
/// D8.3.1.1, stage 1 table: APTable[0], bit 61: no unprivileged reads and writes below.
const AP_TABLE_PRIVILEGED: u64 = 1 << 61;
/// D8.3.1.1, stage 1 table: APTable[1], bit 62: no writes below.
const AP_TABLE_READ_ONLY: u64 = 1 << 62;
/// D8.3.1.1, stage 1 table: UXNTable, bit 60: no unprivileged execution below.
const XN_TABLE: u64 = 1 << 60;

const VALID_FIELD: Field = Field::bit("Valid", 0);
const TABLE_FIELD: Field = Field::bit("Table/Page", 1);
/// What is reserved for software.
const SOFTWARE: Field = Field::bits("Software", 58, 55);

/// VMSAv8-64.
///
/// ```
/// use ioasis_iommupt::fmt::{ArmS1, ArmS2};
/// use ioasis_iommupt::{Format, Prot};
///
/// // A page to be written: read-only with DBM (51) until it is; then AP[2] (7) is clear.
/// let rwx = Prot::READ | Prot::WRITE | Prot::EXEC;
/// let word = ArmS1::<12>::leaf(0x1000, 0, 12, ArmS1::<12>::attrs(rwx)?);
/// assert_eq!(word, 0x8_0000_0000_1fc7);
/// assert_eq!(ArmS1::<12>::make_dirty(word), 0x8_0000_0000_1f47);
/// // 32 MiB of 16 blocks joined by the contiguous bit (52).
/// let word = ArmS2::<12>::leaf(0x200_0000, 1, 25, ArmS2::<12>::attrs(Prot::READ | Prot::EXEC)?);
/// assert_eq!(word, 0x10_0000_0200_077d);
/// # Ok::<(), ioasis_uapi::Error>(())
/// ```
///
/// `STAGE` is 1 or 2, granules of `1 << GRANULE_LG2` bytes (12, 14 or 16), addresses of `BITS`
/// bits.
#[derive(Clone, Copy, Debug)]
pub struct Arm<const STAGE: u32, const GRANULE_LG2: u32 = 12, const BITS: u32 = 48>;

/// Stage 1.
pub type ArmS1<const GRANULE_LG2: u32 = 12, const BITS: u32 = 48> = Arm<1, GRANULE_LG2, BITS>;
/// Stage 2.
pub type ArmS2<const GRANULE_LG2: u32 = 12, const BITS: u32 = 48> = Arm<2, GRANULE_LG2, BITS>;

impl<const STAGE: u32, const GRANULE_LG2: u32, const BITS: u32> Arm<STAGE, GRANULE_LG2, BITS> {
    /// D8.2.4: a table fills a granule.
    const ITEMS: u32 = GRANULE_LG2 - 3;
    /// Levels below a full root.
    const BELOW: u32 = (BITS - GRANULE_LG2 - 1) / Self::ITEMS;
    /// Bits that a root at that level resolves.
    const ROOT: u32 = BITS - GRANULE_LG2 - Self::BELOW * Self::ITEMS;
    /// D8.2.2: at stage 2 up to 16 tables of the next level stand for a root of so few items.
    const CONCATENATED: bool = STAGE == 2 && Self::ROOT <= 4;
    /// D8.3.1: FEAT_LPA2 moves address bits 51:50 to bits 9:8.
    const LPA2: bool = BITS == 52 && GRANULE_LG2 < 16;

    /// Where the output address lies, apart from its highest bits.
    const ADDR: u64 = bits(if Self::LPA2 { 49 } else { 47 }, GRANULE_LG2);
    /// Where the highest bits of a 52-bit address lie (D8.3.1).
    const HIGH: u64 = match (BITS, GRANULE_LG2) {
        (52, 16) => bits(15, 12),
        (52, _) => bits(9, 8),
        _ => 0,
    };

    /// D8.3.1.1: the fields of a table descriptor. Of an address of 52 bits the highest stand
    /// apart.
    const TABLE_FIELDS: &'static [Field] = match (STAGE, Self::HIGH) {
        (1, 0) => Self::TABLE_1,
        (1, _) => Self::TABLE_1_HIGH,
        (_, 0) => Self::TABLE_2,
        _ => Self::TABLE_2_HIGH,
    };
    const TABLE_1: &'static [Field] = &[
        VALID_FIELD,
        TABLE_FIELD,
        Self::next_level(),
        Field::bit("PXNTable", 59),
        Field::bit("UXNTable", 60),
        Field::bits("APTable", 62, 61),
        Field::bit("NSTable", 63),
    ];
    const TABLE_1_HIGH: &'static [Field] = &[
        VALID_FIELD,
        TABLE_FIELD,
        Self::high(),
        Self::next_level(),
        Field::bit("PXNTable", 59),
        Field::bit("UXNTable", 60),
        Field::bits("APTable", 62, 61),
        Field::bit("NSTable", 63),
    ];
    const TABLE_2: &'static [Field] = &[VALID_FIELD, TABLE_FIELD, Self::next_level()];
    const TABLE_2_HIGH: &'static [Field] =
        &[VALID_FIELD, TABLE_FIELD, Self::high(), Self::next_level()];

    /// D8.3.1.2: the fields of a block or page descriptor.
    const LEAF_FIELDS: &'static [Field] = match (STAGE, Self::HIGH, GRANULE_LG2) {
        (1, 0, _) => Self::LEAF_1,
        (1, _, 16) => Self::LEAF_1_LPA,
        (1, ..) => Self::LEAF_1_LPA2,
        (_, 0, _) => Self::LEAF_2,
        (_, _, 16) => Self::LEAF_2_LPA,
        _ => Self::LEAF_2_LPA2,
    };
    const LEAF_1: &'static [Field] = &[
        VALID_FIELD,
        TABLE_FIELD,
        Field::bits("AttrIndx", 4, 2),
        Field::bit("NS", 5),
        Field::bits("AP[2:1]", 7, 6),
        Field::bits("SH", 9, 8),
        Field::bit("AF", 10),
        Field::bit("nG", 11),
        Self::output(),
        Field::bit("DBM", 51),
        Field::bit("Contiguous", 52),
        Field::bit("PXN", 53),
        Field::bit("UXN", 54),
        SOFTWARE,
    ];
    const LEAF_1_LPA: &'static [Field] = &[
        VALID_FIELD,
        TABLE_FIELD,
        Field::bits("AttrIndx", 4, 2),
        Field::bit("NS", 5),
        Field::bits("AP[2:1]", 7, 6),
        Field::bits("SH", 9, 8),
        Field::bit("AF", 10),
        Field::bit("nG", 11),
        Self::high(),
        Self::output(),
        Field::bit("DBM", 51),
        Field::bit("Contiguous", 52),
        Field::bit("PXN", 53),
        Field::bit("UXN", 54),
        SOFTWARE,
    ];
    const LEAF_1_LPA2: &'static [Field] = &[
        VALID_FIELD,
        TABLE_FIELD,
        Field::bits("AttrIndx", 4, 2),
        Field::bit("NS", 5),
        Field::bits("AP[2:1]", 7, 6),
        Self::high(),
        Field::bit("AF", 10),
        Field::bit("nG", 11),
        Self::output(),
        Field::bit("DBM", 51),
        Field::bit("Contiguous", 52),
        Field::bit("PXN", 53),
        Field::bit("UXN", 54),
        SOFTWARE,
    ];
    const LEAF_2: &'static [Field] = &[
        VALID_FIELD,
        TABLE_FIELD,
        Field::bits("MemAttr", 5, 2),
        Field::bits("S2AP", 7, 6),
        Field::bits("SH", 9, 8),
        Field::bit("AF", 10),
        Self::output(),
        Field::bit("DBM", 51),
        Field::bit("Contiguous", 52),
        Field::bits("XN", 54, 53),
        SOFTWARE,
    ];
    const LEAF_2_LPA: &'static [Field] = &[
        VALID_FIELD,
        TABLE_FIELD,
        Field::bits("MemAttr", 5, 2),
        Field::bits("S2AP", 7, 6),
        Field::bits("SH", 9, 8),
        Field::bit("AF", 10),
        Self::high(),
        Self::output(),
        Field::bit("DBM", 51),
        Field::bit("Contiguous", 52),
        Field::bits("XN", 54, 53),
        SOFTWARE,
    ];
    const LEAF_2_LPA2: &'static [Field] = &[
        VALID_FIELD,
        TABLE_FIELD,
        Field::bits("MemAttr", 5, 2),
        Field::bits("S2AP", 7, 6),
        Self::high(),
        Field::bit("AF", 10),
        Self::output(),
        Field::bit("DBM", 51),
        Field::bit("Contiguous", 52),
        Field::bits("XN", 54, 53),
        SOFTWARE,
    ];

    const fn next_level() -> Field {
        let last = if Self::LPA2 { 49 } else { 47 };
        Field::address("Next-level table address", last, GRANULE_LG2)
    }

    const fn output() -> Field {
        Field::address("OA", if Self::LPA2 { 49 } else { 47 }, GRANULE_LG2)
    }

    const fn high() -> Field {
        if Self::LPA2 {
            Field::bits("address[51:50]", 9, 8)
        } else {
            Field::bits("address[51:48]", 15, 12)
        }
    }

    #[inline]
    const fn address(word: u64) -> u64 {
        let high = match (BITS, GRANULE_LG2) {
            (52, 16) => (word & Self::HIGH) << (48 - 12),
            (52, _) => (word & Self::HIGH) << (50 - 8),
            _ => 0,
        };
        (word & Self::ADDR) | high
    }

    #[inline]
    const fn place(address: u64) -> u64 {
        let high = match (BITS, GRANULE_LG2) {
            (52, 16) => (address >> (48 - 12)) & Self::HIGH,
            (52, _) => (address >> (50 - 8)) & Self::HIGH,
            _ => 0,
        };
        (address & Self::ADDR) | high
    }

    /// lg2 of the items that the contiguous bit joins (table D8-94).
    #[inline]
    const fn contiguous_lg2(level: u32) -> u32 {
        match (GRANULE_LG2, level) {
            (12, 0..=2) => 4,
            (14, 0) => 7,
            (14, 1) | (16, 0 | 1) => 5,
            _ => 0,
        }
    }

    /// Whether a leaf can be written without its dirty state being set first (D8.5.2).
    #[inline]
    const fn is_writable_now(word: u64) -> bool {
        if STAGE == 1 { word & AP_READ_ONLY == 0 } else { word & S2AP_WRITE != 0 }
    }

    fn memory(prot: Prot) -> u64 {
        let (index, attr, share) = if prot.contains(Prot::MMIO) {
            (2, 0b0001, SH_OUTER)
        } else if prot.contains(Prot::NO_SNOOP) {
            (0, 0b0101, SH_OUTER)
        } else {
            (1, 0b1111, SH_INNER)
        };
        let kind = if STAGE == 1 { index << ATTR_INDEX_SHIFT } else { attr << MEM_ATTR_SHIFT };
        kind | if Self::LPA2 { 0 } else { share }
    }
}

impl<const STAGE: u32, const GRANULE_LG2: u32, const BITS: u32> Format
    for Arm<STAGE, GRANULE_LG2, BITS>
{
    const NAME: &'static str = match (STAGE, GRANULE_LG2, BITS) {
        (1, 12, 48) => "arm-s1-4k",
        (1, 14, 48) => "arm-s1-16k",
        (1, 16, 48) => "arm-s1-64k",
        (1, 12, 52) => "arm-s1-4k-52",
        (1, 14, 52) => "arm-s1-16k-52",
        (1, 16, 52) => "arm-s1-64k-52",
        (2, 12, 48) => "arm-s2-4k",
        (2, 14, 48) => "arm-s2-16k",
        (2, 16, 48) => "arm-s2-64k",
        (2, 12, 52) => "arm-s2-4k-52",
        (2, 14, 52) => "arm-s2-16k-52",
        (2, 16, 52) => "arm-s2-64k-52",
        _ => panic!("D8.2: two stages, granules of 4, 16 and 64 KiB, 48 or 52 bits"),
    };
    const GRANULE_LG2: u32 = GRANULE_LG2;
    const ITEMS_LG2: u32 = Self::ITEMS;
    const TOP_LEVEL: u32 = if Self::CONCATENATED { Self::BELOW - 1 } else { Self::BELOW };
    const ROOT_ITEMS_LG2: u32 =
        if Self::CONCATENATED { Self::ROOT + Self::ITEMS } else { Self::ROOT };
    const IOVA_LG2: u32 = BITS;
    const OA_LG2: u32 = BITS;
    const BREAK_BEFORE_MAKE: bool = true;

    #[inline]
    fn sizes(level: u32) -> u64 {
        // Table D8-20: blocks at levels 1 and 2 of the manual, with 64 KiB at level 1 only for 52
        // bits; with FEAT_LPA2 also 512 GiB at level 0 (4 KiB) and 64 GiB at level 1 (16 KiB).
        let leaf = match (GRANULE_LG2, level) {
            (_, 0 | 1) | (12, 2) => true,
            (12, 3) | (14 | 16, 2) => BITS == 52,
            _ => false,
        };
        let item_lg2 = Self::item_lg2(level);
        match Self::contiguous_lg2(level) {
            _ if !leaf => 0,
            0 => 1 << item_lg2,
            joined => (1 << item_lg2) | (1 << (item_lg2 + joined)),
        }
    }

    #[inline]
    fn decode(word: u64, level: u32) -> Entry {
        if word & VALID == 0 {
            return Entry::Empty;
        }
        if word & TABLE_OR_PAGE != 0 {
            return if level == 0 { Entry::Leaf } else { Entry::Table(Self::address(word)) };
        }
        cold_path();
        // What is reserved faults as what is invalid does (D8.3.1).
        if level > 0 && Self::sizes(level) != 0 { Entry::Leaf } else { Entry::Empty }
    }

    #[inline]
    fn oa(word: u64, level: u32) -> u64 {
        Self::address(word) & !low_bits(Self::leaf_lg2(word, level))
    }

    #[inline]
    fn leaf_lg2(word: u64, level: u32) -> u32 {
        if word & CONTIGUOUS != 0 {
            cold_path();
            return Self::item_lg2(level) + Self::contiguous_lg2(level);
        }
        Self::item_lg2(level)
    }

    fn attrs(prot: Prot) -> Result<u64> {
        let mut attrs = AF | Self::memory(prot);
        if prot.contains(Prot::WRITE) {
            attrs |= DBM;
        }
        if !prot.contains(Prot::EXEC) {
            attrs |= XN;
        }
        if STAGE == 2 {
            if prot.contains(Prot::READ) {
                attrs |= S2AP_READ;
            }
            return Ok(attrs);
        }
        if !prot.intersects(Prot::READ | Prot::WRITE) {
            return Err(Error::new(Errno::EOPNOTSUPP, "what is valid at stage 1 can be read"));
        }
        // What can be written is read-only until the first write, which hardware lets pass
        // (D8.5.2).
        attrs |= AP_READ_ONLY;
        if !prot.contains(Prot::EXEC) {
            attrs |= PXN;
        }
        if prot.contains(Prot::PRIVILEGED) {
            // AP[1] does not keep unprivileged requests from execution (D8.4.3).
            attrs |= XN;
        } else {
            attrs |= AP_UNPRIVILEGED;
        }
        if !prot.contains(Prot::GLOBAL) {
            attrs |= NG;
        }
        Ok(attrs)
    }

    #[inline]
    fn leaf(oa: u64, level: u32, lg2: u32, attrs: u64) -> u64 {
        let joined = if lg2 == Self::item_lg2(level) { 0 } else { CONTIGUOUS };
        let kind = if level == 0 { VALID | TABLE_OR_PAGE } else { VALID };
        Self::place(oa) | joined | attrs | kind
    }

    #[inline]
    fn attrs_of(word: u64, _level: u32) -> u64 {
        word & !(Self::ADDR | Self::HIGH | CONTIGUOUS | VALID | TABLE_OR_PAGE)
    }

    #[inline]
    fn prot(word: u64, _level: u32) -> Prot {
        let mut prot = Prot::empty();
        let xn = if STAGE == 1 && word & AP_UNPRIVILEGED == 0 { PXN } else { XN };
        if word & xn == 0 {
            prot |= Prot::EXEC;
        }
        let kind = if STAGE == 1 {
            prot |= Prot::READ;
            if word & (AP_READ_ONLY | DBM) != AP_READ_ONLY {
                prot |= Prot::WRITE;
            }
            if word & AP_UNPRIVILEGED == 0 {
                prot |= Prot::PRIVILEGED;
            }
            if word & NG == 0 {
                prot |= Prot::GLOBAL;
            }
            match (word >> ATTR_INDEX_SHIFT) & 0b111 {
                0 => Prot::NO_SNOOP,
                2 => Prot::MMIO,
                _ => Prot::empty(),
            }
        } else {
            if word & S2AP_READ != 0 {
                prot |= Prot::READ;
            }
            if word & (S2AP_WRITE | DBM) != 0 {
                prot |= Prot::WRITE;
            }
            match (word >> MEM_ATTR_SHIFT) & 0b1111 {
                0b0101 => Prot::NO_SNOOP,
                0b0000..=0b0011 => Prot::MMIO,
                _ => Prot::empty(),
            }
        };
        prot | kind
    }

    #[inline]
    fn table(address: u64, _level: u32) -> u64 {
        Self::place(address) | TABLE_OR_PAGE | VALID
    }

    #[inline]
    fn under(leaf: u64, pointer: u64) -> u64 {
        let mut leaf = leaf;
        if STAGE == 1 {
            if pointer & AP_TABLE_READ_ONLY != 0 {
                leaf = (leaf | AP_READ_ONLY) & !DBM;
            }
            if pointer & AP_TABLE_PRIVILEGED != 0 {
                leaf &= !AP_UNPRIVILEGED;
            }
            if pointer & PXN_TABLE != 0 {
                leaf |= PXN;
            }
            if pointer & XN_TABLE != 0 {
                leaf |= XN;
            }
        }
        leaf
    }

    /// D8.4.1 and D8.4.3. `AP[1]` lets unprivileged requests read and write, and privileged ones
    /// too unless PAN is set; UXN keeps unprivileged requests from executing, PXN privileged ones,
    /// who never execute what others can write.
    #[inline]
    fn missing(word: u64, level: u32, need: Prot, context: Context) -> Prot {
        let (mut granted, asked) = (Self::prot(word, level), need & RWX);
        if !context.contains(Context::DIRTY) && !Self::is_writable_now(word) {
            granted -= Prot::WRITE;
        }
        if STAGE == 2 {
            return asked.difference(granted);
        }
        let open = word & AP_UNPRIVILEGED != 0;
        let privileged = need.contains(Prot::PRIVILEGED);
        let shared_write = open && granted.contains(Prot::WRITE);
        let refused = if privileged { word & PXN != 0 || shared_write } else { word & XN != 0 };
        granted.set(Prot::EXEC, !refused);
        let data = Prot::READ | Prot::WRITE;
        if privileged && open && !context.contains(Context::OPEN) {
            granted -= data;
        }
        let lacking = asked.difference(granted);
        let closed = !privileged && !open && asked.intersects(data);
        if closed { lacking | Prot::PRIVILEGED } else { lacking }
    }

    /// D8.5.1: without hardware that sets it, an access flag fault where AF is clear.
    #[inline]
    fn is_flagless(word: u64, _need: Prot, context: Context) -> bool {
        !context.contains(Context::ACCESSED) && word & AF == 0
    }

    fn reserved(word: u64, level: u32) -> bool {
        // D8.3.1: the address bits of a block below its size are RES0.
        let below = Self::ADDR & low_bits(Self::item_lg2(level));
        Self::decode(word, level) == Entry::Leaf && level > 0 && word & below & !Self::HIGH != 0
    }

    fn entry_name(level: u32) -> &'static str {
        // The manual counts levels from the root; its last is 3.
        [
            "level 3 descriptor",
            "level 2 descriptor",
            "level 1 descriptor",
            "level 0 descriptor",
            "level -1 descriptor",
        ][level as usize]
    }

    fn fields(word: u64, level: u32) -> &'static [Field] {
        if Self::decode(word, level) == Entry::Leaf {
            Self::LEAF_FIELDS
        } else {
            Self::TABLE_FIELDS
        }
    }

    #[inline]
    fn is_dirty(word: u64) -> bool {
        let written = if STAGE == 1 {
            word & (DBM | AP_READ_ONLY) == DBM
        } else {
            word & (DBM | S2AP_WRITE) == DBM | S2AP_WRITE
        };
        written || word & WAS_DIRTY != 0
    }

    #[inline]
    fn make_dirty(word: u64) -> u64 {
        if word & DBM == 0 {
            word | WAS_DIRTY
        } else if STAGE == 1 {
            word & !AP_READ_ONLY
        } else {
            word | S2AP_WRITE
        }
    }

    #[inline]
    fn make_clean(word: u64) -> u64 {
        let word = word & !WAS_DIRTY;
        if STAGE == 1 { word | AP_READ_ONLY } else { word & !S2AP_WRITE }
    }
}
