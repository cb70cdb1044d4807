//! What a word says can be said again, and is the same word.

use crate::format::{Entry, Format, low_bits};

/// Decodes `word`, found at `level`, encodes what it said, and compares; whether it was a leaf or
/// pointer that the manual allows.
///
/// # Panics
///
/// If the format contradicts itself.
pub(crate) fn round_trip<F: Format>(word: u64, level: u32) -> bool {
    let entry = F::decode(word, level);
    if entry == Entry::Empty || F::reserved(word, level) {
        return false;
    }
    if let Entry::Table(address) = entry {
        let again = F::table(address, level);
        assert!(F::decode(again, level) == entry, "another table");
        assert!(!F::reserved(again, level), "a pointer that is reserved");
        return true;
    }
    let (lg2, oa) = (F::leaf_lg2(word, level), F::oa(word, level));
    assert!(F::sizes(level) >> lg2 & 1 == 1, "a size that is not there");
    assert!(oa & low_bits(lg2) == 0, "an address inside the leaf");
    let again = F::leaf(oa, level, lg2, F::attrs_of(word, level));
    assert!(F::decode(again, level) == Entry::Leaf, "no leaf any more");
    assert!(F::leaf_lg2(again, level) == lg2, "another size");
    assert!(F::oa(again, level) == oa, "another address");
    assert!(F::prot(again, level) == F::prot(word, level), "other permissions");
    assert!(F::is_dirty(again) == F::is_dirty(word), "another dirty state");
    assert!(F::leaf(oa, level, lg2, F::attrs_of(again, level)) == again, "not the same word");
    let (clean, dirty) = (F::make_clean(again), F::make_dirty(again));
    assert!(!F::is_dirty(clean) && F::is_dirty(dirty), "dirty state cannot be changed");
    assert!(F::oa(clean, level) == oa && F::oa(dirty, level) == oa, "dirty state moves the leaf");
    assert!(F::leaf_lg2(clean, level) == lg2 && F::leaf_lg2(dirty, level) == lg2, "and resizes it");
    assert!(F::prot(dirty, level) == F::prot(word, level), "dirty state changes permissions");
    true
}
