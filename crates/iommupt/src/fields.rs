//! The words on the way to an address, taken apart as the manual of the format names their fields.

use crate::format::{Entry, low_bits};

/// Bits of a word that have a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// As the manual writes it.
    pub name: &'static str,
    /// Its highest bit.
    pub last: u32,
    /// Its lowest bit.
    pub first: u32,
    /// What its value means.
    pub kind: FieldKind,
}

/// How the value of a field is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldKind {
    /// As a number, from its lowest bit.
    Number,
    /// As bits of an address, each where it stands in the word.
    Address,
}

impl Field {
    /// A field of one bit.
    #[must_use]
    pub const fn bit(name: &'static str, bit: u32) -> Self {
        Self::bits(name, bit, bit)
    }

    /// A field from bit `first` to bit `last`, both included.
    #[must_use]
    pub const fn bits(name: &'static str, last: u32, first: u32) -> Self {
        Self { name, last, first, kind: FieldKind::Number }
    }

    /// Bits `first` to `last` of an address.
    #[must_use]
    pub const fn address(name: &'static str, last: u32, first: u32) -> Self {
        Self { name, last, first, kind: FieldKind::Address }
    }

    /// What it holds in `word`.
    #[must_use]
    pub const fn of(&self, word: u64) -> u64 {
        let inside = (word >> self.first) & low_bits(self.last - self.first + 1);
        match self.kind {
            FieldKind::Number => inside,
            FieldKind::Address => inside << self.first,
        }
    }
}

/// One word that a walk passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The level of its table; 0 holds only leaves.
    pub level: u32,
    /// What the manual calls such an entry.
    pub name: &'static str,
    /// The address of its table, in the memory of tables; the root's is 0.
    pub table: u64,
    /// Its place there.
    pub index: usize,
    /// Its value.
    pub word: u64,
    /// What it means.
    pub entry: Entry,
    /// Its fields, from bit 0 up.
    pub fields: &'static [Field],
}

#[cfg(all(test, not(any(loom, ioasis_shuttle))))]
mod tests {
    extern crate std;

    use super::*;
    use crate::Format;
    use crate::every::for_every_format;
    use crate::{Config, Counted, Iova, Pa, PageTable, Prot, Run};
    use alloc::sync::Arc;

    /// The fields of a word neither overlap nor leave the order of their bits.
    fn check(fields: &[Field], name: &str) {
        assert!(!fields.is_empty(), "{name}");
        for pair in fields.windows(2) {
            assert!(pair[0].last < pair[1].first, "{name}: {pair:?}");
        }
        assert!(fields.iter().all(|field| field.first <= field.last && field.last < 64), "{name}");
    }

    /// Whatever the format writes stands in a field that has a name: no bit is left out.
    fn all_that_is_written_has_a_name<F: Format>() {
        let covered = |word, level| {
            let fields = F::fields(word, level);
            check(fields, F::NAME);
            let bits = fields.iter().map(|field| low_bits(field.last + 1) & !low_bits(field.first));
            bits.fold(0, |all, bits| all | bits)
        };
        let ones = low_bits(F::OA_LG2);
        for level in 0..=F::TOP_LEVEL {
            for lg2 in (0..64).filter(|lg2| F::sizes(level) >> lg2 & 1 == 1) {
                for prot in (0..=Prot::all().bits()).map(Prot::from_bits_truncate) {
                    let Ok(attrs) = F::attrs(prot) else { continue };
                    let leaf = F::leaf(ones & !low_bits(lg2), level, lg2, attrs);
                    for word in [leaf, F::make_dirty(leaf)] {
                        assert_eq!(word & !covered(word, level), 0, "{} {word:#x}", F::NAME);
                    }
                }
            }
            if level > 0 {
                let word = F::table(ones & !low_bits(F::ITEMS_LG2 + 3), level);
                assert_eq!(word & !covered(word, level), 0, "{} {word:#x}", F::NAME);
            }
        }
    }

    /// A walk shows a word a level, from the root to the leaf that translates.
    fn a_walk_is_shown_word_by_word<F: Format>() {
        let config = Config::new(Arc::new(Counted::default()));
        let (mut writer, reader) = PageTable::<F>::new(config).expect("an empty table");
        let length = 1 << F::GRANULE_LG2;
        let runs = [Run { pa: Pa(length), length }];
        writer.map(Iova(length), &runs, Prot::READ).expect("mapped");
        let steps = reader.steps(length);
        assert_eq!(steps.len(), usize::try_from(F::TOP_LEVEL).expect("a few") + 1);
        assert!(steps.iter().rev().zip(0..).all(|(step, level)| step.level == level));
        assert_eq!(steps.last().map(|step| step.entry), Some(Entry::Leaf));
        assert_eq!(reader.steps(0).last().map(|step| step.entry), Some(Entry::Empty));
    }

    macro_rules! formats {
        ($($name:ident: $format:ty;)*) => {$(
            mod $name {
                #[test]
                fn all_that_is_written_has_a_name() {
                    super::all_that_is_written_has_a_name::<$format>();
                }

                #[test]
                fn a_walk_is_shown_word_by_word() {
                    super::a_walk_is_shown_word_by_word::<$format>();
                }
            }
        )*};
    }

    for_every_format!(formats);

    #[test]
    fn a_field_is_a_number_or_bits_of_an_address() {
        assert_eq!(Field::bits("EMT", 5, 3).of(0b101_000), 0b101);
        assert_eq!(Field::address("ADDR", 51, 12).of(0xfff0_0000_0040_2083), 0x40_2000);
        assert_eq!(Field::bit("IW", 63).of(u64::MAX), 1);
    }
}
