//! TCEs, the translation control entries of IBM POWER's host bridges: the bits of an entry are in
//! `arch/powerpc/include/asm/tce.h`, what is written where in `pnv_tce` and `pnv_tce_xchg` of
//! `arch/powerpc/platforms/powernv/pci-ioda-tce.c`, Linux 7.3.
//!
//! A window has pages of one size, and its table leaves at level 0 alone. An indirect table's
//! entries point to tables, with both permissions. Tables here are of 4 KiB, the least that a host
//! bridge takes, and as many levels as the window needs; Linux spreads a window over the levels it
//! was asked for. No client sees either.
//!
//! The hardware keeps no dirty state. It ignores bits 2 to 11, and bit 2 has it here.

use crate::format::{Entry, Format, bits};
use crate::{Field, Prot};
use ioasis_uapi::{Errno, Error, Result};

/// `TCE_PCI_READ`, bit 0. An entry with neither bit is not present.
const R: u64 = 1 << 0;
/// `TCE_PCI_WRITE`, bit 1.
const W: u64 = 1 << 1;
/// Ignored by the hardware.
const DIRTY: u64 = 1 << 2;
/// The real page number, 40 bits of pages of 4 KiB: bits 51:12.
const ADDR: u64 = bits(51, 12);

/// The fields of every entry, as `asm/tce.h` names them; bit 2 is ours.
const FIELDS: [Field; 4] = [
    Field::bit("READ", 0),
    Field::bit("WRITE", 1),
    Field::bit("dirty", 2),
    Field::address("RPN", 51, 12),
];

/// A TCE table of up to `LEVELS` levels whose pages have `1 << PAGE_LG2` bytes.
///
/// ```
/// use ioasis_iommupt::fmt::Tce;
/// use ioasis_iommupt::{Entry, Format, Prot};
///
/// // 64 KiB at 0x4001_0000 to be read.
/// let word = Tce::<16, 5>::leaf(0x4001_0000, 0, 16, Tce::<16, 5>::attrs(Prot::READ)?);
/// assert_eq!(word, 0x4001_0001);
/// // What can be written can be read (pnv_tce_xchg).
/// assert_eq!(Tce::<16, 5>::attrs(Prot::WRITE)?, 0b11);
/// // Neither bit: not present, whatever address is there.
/// assert_eq!(Tce::<16, 5>::decode(0x4001_0000, 0), Entry::Empty);
/// # Ok::<(), ioasis_uapi::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Tce<const PAGE_LG2: u32 = 12, const LEVELS: u32 = 5>;

impl<const PAGE_LG2: u32, const LEVELS: u32> Format for Tce<PAGE_LG2, LEVELS> {
    const NAME: &'static str = match (PAGE_LG2, LEVELS) {
        (12, 3) => "tce-4k-3",
        (12, 5) => "tce-4k",
        (16, 5) => "tce-64k",
        (21, 4) => "tce-2m",
        (24, 4) => "tce-16m",
        (28, 3) => "tce-256m",
        (30, 3) => "tce-1g",
        _ => panic!("no host bridge has such pages, or needs so many levels for them"),
    };
    const GRANULE_LG2: u32 = PAGE_LG2;
    const ITEMS_LG2: u32 = 9;
    const TOP_LEVEL: u32 = LEVELS - 1;
    const IOVA_LG2: u32 = PAGE_LG2 + 9 * LEVELS;
    const OA_LG2: u32 = 52;

    #[inline]
    fn sizes(level: u32) -> u64 {
        if level == 0 { 1 << PAGE_LG2 } else { 0 }
    }

    #[inline]
    fn decode(word: u64, level: u32) -> Entry {
        if word & (R | W) == 0 {
            Entry::Empty
        } else if level == 0 {
            Entry::Leaf
        } else {
            Entry::Table(word & ADDR)
        }
    }

    #[inline]
    fn oa(word: u64, _level: u32) -> u64 {
        word & bits(51, PAGE_LG2)
    }

    fn attrs(prot: Prot) -> Result<u64> {
        if prot.contains(Prot::EXEC) && !prot.contains(Prot::READ) {
            return Err(Error::new(Errno::EOPNOTSUPP, "what is executed is what can be read"));
        }
        if prot.contains(Prot::WRITE) {
            Ok(R | W)
        } else if prot.contains(Prot::READ) {
            Ok(R)
        } else {
            Err(Error::new(Errno::EINVAL, "a TCE without read or write is not present"))
        }
    }

    #[inline]
    fn leaf(oa: u64, _level: u32, _lg2: u32, attrs: u64) -> u64 {
        oa | attrs
    }

    #[inline]
    fn attrs_of(word: u64, _level: u32) -> u64 {
        word & !ADDR
    }

    /// Execute is not controlled, so what can be read can be executed.
    #[inline]
    fn prot(word: u64, _level: u32) -> Prot {
        let mut prot = Prot::empty();
        if word & R != 0 {
            prot |= Prot::READ | Prot::EXEC;
        }
        if word & W != 0 {
            prot |= Prot::WRITE;
        }
        prot
    }

    #[inline]
    fn table(address: u64, _level: u32) -> u64 {
        address | R | W
    }

    fn reserved(word: u64, level: u32) -> bool {
        // pnv_tce_xchg: an address is a multiple of the window's page (IOMMU_PAGE_MASK).
        Self::decode(word, level) == Entry::Leaf && word & ADDR & !bits(51, PAGE_LG2) != 0
    }

    fn entry_name(_level: u32) -> &'static str {
        "TCE"
    }

    fn fields(_word: u64, _level: u32) -> &'static [Field] {
        &FIELDS
    }

    #[inline]
    fn is_dirty(word: u64) -> bool {
        word & DIRTY != 0
    }

    #[inline]
    fn make_dirty(word: u64) -> u64 {
        word | DIRTY
    }

    #[inline]
    fn make_clean(word: u64) -> u64 {
        word & !DIRTY
    }
}
