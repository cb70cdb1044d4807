//! A format that no hardware has: tables of two or four items, so that a checker has few words to
//! interleave.

use crate::Prot;
use crate::format::{Entry, Format, bits, low_bits};
use ioasis_uapi::Result;

const VALID: u64 = 1 << 0;
const TABLE: u64 = 1 << 1;
const WRITE: u64 = 1 << 2;
const DIRTY: u64 = 1 << 3;
/// Tables of two items begin at multiples of 16.
const ADDR: u64 = bits(39, 4);
/// The leaf spans two items.
const PAIR: u64 = 1 << 40;

/// A root at level `TOP`; leaves of one item at every level and, with `PAIRS`, of two items at
/// level 0; with `BREAK` what is split is made invalid first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiny<const TOP: u32, const PAIRS: bool = false, const BREAK: bool = false>;

impl<const TOP: u32, const PAIRS: bool, const BREAK: bool> Format for Tiny<TOP, PAIRS, BREAK> {
    const NAME: &'static str = "tiny";
    const GRANULE_LG2: u32 = 12;
    const ITEMS_LG2: u32 = if PAIRS { 2 } else { 1 };
    const TOP_LEVEL: u32 = TOP;
    const IOVA_LG2: u32 = 12 + Self::ITEMS_LG2 * (TOP + 1);
    const OA_LG2: u32 = 40;
    const BREAK_BEFORE_MAKE: bool = BREAK;

    fn sizes(level: u32) -> u64 {
        let pair = if PAIRS && level == 0 { 1 << 13 } else { 0 };
        pair | 1 << Self::item_lg2(level)
    }

    fn decode(word: u64, _level: u32) -> Entry {
        match word & (VALID | TABLE) {
            VALID => Entry::Leaf,
            0b11 => Entry::Table(word & ADDR),
            _ => Entry::Empty,
        }
    }

    fn oa(word: u64, level: u32) -> u64 {
        word & ADDR & !low_bits(Self::leaf_lg2(word, level))
    }

    fn leaf_lg2(word: u64, level: u32) -> u32 {
        Self::item_lg2(level) + u32::from(word & PAIR != 0)
    }

    fn attrs(prot: Prot) -> Result<u64> {
        Ok(if prot.contains(Prot::WRITE) { WRITE } else { 0 })
    }

    fn leaf(oa: u64, level: u32, lg2: u32, attrs: u64) -> u64 {
        let pair = if lg2 > Self::item_lg2(level) { PAIR } else { 0 };
        oa | attrs | pair | VALID
    }

    fn attrs_of(word: u64, _level: u32) -> u64 {
        word & (WRITE | DIRTY)
    }

    fn prot(word: u64, _level: u32) -> Prot {
        if word & WRITE == 0 { Prot::READ } else { Prot::READ | Prot::WRITE }
    }

    fn table(address: u64, _level: u32) -> u64 {
        address | TABLE | VALID
    }

    fn is_dirty(word: u64) -> bool {
        word & DIRTY != 0
    }

    fn make_dirty(word: u64) -> u64 {
        word | DIRTY
    }

    fn make_clean(word: u64) -> u64 {
        word & !DIRTY
    }
}
