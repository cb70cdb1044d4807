//! Every field of every format against itself: exhaustively field by field, and on random words.

extern crate std;

use crate::Prot;
use crate::every::for_every_format;
use crate::fmt::round_trip::round_trip;
use crate::format::{Entry, Format, low_bits};

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |count| count.parse().expect("a number"))
}

/// A word of each level with every value of the fields below bit 12 and from bit 52 on, around
/// addresses of one bit.
fn every_value_of_every_field<F: Format>() {
    let mut said = 0_u64;
    for level in 0..=F::TOP_LEVEL {
        for address in (12..52).map(|bit| 1_u64 << bit).chain([0, low_bits(52) & !low_bits(12)]) {
            for field in 0..1_u64 << 12 {
                for rest in [0, 1, 3] {
                    said += u64::from(round_trip::<F>(address | field | rest << 61, level));
                    said += u64::from(round_trip::<F>(address | field << 52 | rest, level));
                }
            }
        }
    }
    assert!(said > 1 << 12, "{}: only {said} words say something", F::NAME);
}

/// Every permission there is, in a leaf of every size, clean and dirty.
fn every_permission_in_every_leaf<F: Format>() {
    for level in 0..=F::TOP_LEVEL {
        for lg2 in (0..64).filter(|lg2| F::sizes(level) >> lg2 & 1 == 1) {
            for prot in (0..=Prot::all().bits()).map(Prot::from_bits_truncate) {
                let Ok(attrs) = F::attrs(prot) else { continue };
                let word = F::leaf(0, level, lg2, attrs);
                assert!(round_trip::<F>(word, level), "{}: {prot:?} {word:#x}", F::NAME);
                assert_eq!(F::attrs_of(word, level), attrs, "{}: {word:#x}", F::NAME);
                let granted = F::prot(word, level);
                let access = Prot::READ | Prot::WRITE | Prot::EXEC;
                // Formats say less of the kind of memory, and grant no less access.
                assert!(granted.contains(prot & access), "{}: {prot:?} {granted:?}", F::NAME);
                assert!(!granted.contains(Prot::WRITE) || prot.contains(Prot::WRITE), "{prot:?}");
                assert_eq!(F::attrs(granted), Ok(attrs), "{}: {granted:?} is {prot:?}", F::NAME);
                let dirty = F::make_dirty(word);
                let again = F::leaf(0, level, lg2, F::attrs_of(dirty, level));
                assert_eq!(again, dirty, "{}: {dirty:#x}", F::NAME);
            }
        }
    }
}

/// Every bit of every address, alone, in pairs and missing.
fn every_bit_of_every_address<F: Format>() {
    let attrs = F::attrs(Prot::READ | Prot::WRITE).expect("every format can say it");
    for level in 0..=F::TOP_LEVEL {
        for lg2 in (0..64).filter(|lg2| F::sizes(level) >> lg2 & 1 == 1) {
            for_addresses::<F>(lg2, |oa| {
                let word = F::leaf(oa, level, lg2, attrs);
                assert_eq!(F::oa(word, level), oa, "{}: {word:#x}", F::NAME);
                assert_eq!(F::leaf_lg2(word, level), lg2, "{}: {word:#x}", F::NAME);
                assert_eq!(F::attrs_of(word, level), attrs, "{}: {word:#x}", F::NAME);
                assert!(!F::reserved(word, level), "{}: {word:#x}", F::NAME);
            });
        }
        if level > 0 {
            // Of the format's granule: smaller tables exist only at roots.
            for_addresses::<F>(F::ITEMS_LG2 + 3, |address| {
                let word = F::table(address, level);
                assert_eq!(F::decode(word, level), Entry::Table(address), "{}", F::NAME);
                assert!(round_trip::<F>(word, level), "{}: {word:#x}", F::NAME);
            });
        }
    }
}

fn for_addresses<F: Format>(lg2: u32, mut check: impl FnMut(u64)) {
    let all = low_bits(F::OA_LG2) & !low_bits(lg2);
    for one in (lg2..F::OA_LG2).map(|bit| 1_u64 << bit) {
        check(all & !one);
        (lg2..F::OA_LG2).for_each(|bit| check(one | 1 << bit));
    }
    check(0);
    check(all);
}

/// `IOASIS_WORDS` random words at every level.
fn random_words<F: Format>() {
    let mut state = number("IOASIS_SEED", 0).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut said = 0_u64;
    for _ in 0..number("IOASIS_WORDS", 1 << 14) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        for level in 0..=F::TOP_LEVEL {
            said += u64::from(round_trip::<F>(state, level));
        }
    }
    assert!(said > 0, "{}: no word says anything", F::NAME);
}

macro_rules! fields {
    ($($name:ident: $format:ty;)*) => {$(
        mod $name {
            #[test]
            fn every_value_of_every_field_is_said_again() {
                super::every_value_of_every_field::<$format>();
            }

            #[test]
            fn every_permission_is_said_again_in_every_leaf() {
                super::every_permission_in_every_leaf::<$format>();
            }

            #[test]
            fn every_bit_of_every_address_is_said_again() {
                super::every_bit_of_every_address::<$format>();
            }

            #[test]
            fn random_words_are_said_again() {
                super::random_words::<$format>();
            }
        }
    )*};
}

for_every_format!(fields);
