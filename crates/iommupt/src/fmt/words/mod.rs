//! Words written by hand from the manuals, a file a manual, at least twenty for every format; and
//! every field of every format against itself (`fields`).

mod amdv1;
mod arm;
mod fields;
mod riscv;
mod tce;
mod vtdss;
mod x86_64;

use core::marker::PhantomData;

use crate::Prot;
use crate::format::{Context, Entry, Format, low_bits};

const R: Prot = Prot::READ;
const W: Prot = Prot::WRITE;
const X: Prot = Prot::EXEC;
const RW: Prot = R.union(W);
const RX: Prot = R.union(X);
const RWX: Prot = RW.union(X);
const NS: Prot = Prot::NO_SNOOP;
const IO: Prot = Prot::MMIO;
const PRIV: Prot = Prot::PRIVILEGED;
const GLOBAL: Prot = Prot::GLOBAL;
const NONE: Prot = Prot::empty();

/// What is left of all permissions below a pointer.
fn below<F: Format>(pointer: u64) -> Prot {
    let attrs = F::attrs(RWX).expect("the format can say it");
    F::prot(F::under(F::leaf(0, 0, F::GRANULE_LG2, attrs), pointer), 0) & RWX
}

/// A leaf: level, lg2 of its size, output address, what is asked for, the word, what it grants.
type Leaf = (u32, u32, u64, Prot, u64, Prot);

/// Compares a format with rows from its manual. A row above the root of a format of fewer levels is
/// left out.
struct Words<F: Format> {
    rows: usize,
    format: PhantomData<F>,
}

impl<F: Format> Words<F> {
    const fn of() -> Self {
        Self { rows: 0, format: PhantomData }
    }

    fn counted(mut self, rows: usize) -> Self {
        self.rows += rows;
        self
    }

    fn leaves(self, rows: &[Leaf]) -> Self {
        let rows = rows.iter().filter(|row| row.0 <= F::TOP_LEVEL);
        self.counted(rows.clone().count()).each(rows, |&(level, lg2, oa, asked, word, granted)| {
            let attrs = F::attrs(asked).expect("the format can say it");
            let made = F::leaf(oa, level, lg2, attrs);
            assert_eq!(made, word, "{}: {made:#x} is not {word:#x}", F::NAME);
            assert_eq!(F::decode(word, level), Entry::Leaf, "{word:#x}");
            assert_eq!(F::oa(word, level), oa & !low_bits(lg2), "{word:#x}");
            assert_eq!(F::leaf_lg2(word, level), lg2, "{word:#x}");
            assert_eq!(F::sizes(level) >> lg2 & 1, 1, "{word:#x}");
            assert_eq!(F::prot(word, level), granted, "{word:#x}");
            assert!(!F::reserved(word, level), "{word:#x}");
            assert!(!F::is_dirty(word), "{word:#x}");
        })
    }

    /// Pointers: level, address of the table, the word.
    fn pointers(self, rows: &[(u32, u64, u64)]) -> Self {
        let rows = rows.iter().filter(|row| row.0 <= F::TOP_LEVEL);
        self.counted(rows.clone().count()).each(rows, |&(level, address, word)| {
            assert_eq!(F::table(address, level), word, "{}: {word:#x}", F::NAME);
            assert_eq!(F::decode(word, level), Entry::Table(address), "{word:#x}");
            let leaf = F::leaf(0, 0, F::GRANULE_LG2, F::attrs(RWX).expect("the format can say it"));
            assert_eq!(F::under(leaf, word), leaf, "{word:#x} restricts nothing");
            assert!(!F::reserved(word, level), "{word:#x}");
        })
    }

    /// Words that map nothing: level and word.
    fn empty(self, rows: &[(u32, u64)]) -> Self {
        let rows = rows.iter().filter(|row| row.0 <= F::TOP_LEVEL);
        self.counted(rows.clone().count()).each(rows, |&(level, word)| {
            assert_eq!(F::decode(word, level), Entry::Empty, "{}: {word:#x}", F::NAME);
        })
    }

    /// Words that the manual reserves: level and word.
    fn reserved(self, rows: &[(u32, u64)]) -> Self {
        let rows = rows.iter().filter(|row| row.0 <= F::TOP_LEVEL);
        self.counted(rows.clone().count()).each(rows, |&(level, word)| {
            assert!(F::reserved(word, level), "{}: {word:#x} at level {level}", F::NAME);
        })
    }

    /// Requests at level 0: the leaf, what is asked, in which context, what is missing.
    fn requests(self, rows: &[(u64, Prot, Context, Prot)]) -> Self {
        self.counted(rows.len()).each(rows.iter(), |&(word, need, context, missing)| {
            let found = F::missing(word, 0, need, context);
            assert_eq!(found, missing, "{}: {word:#x} {need:?} {context:?}", F::NAME);
        })
    }

    /// A leaf before and after a write through it.
    fn dirty(self, rows: &[(u64, u64)]) -> Self {
        self.counted(rows.len()).each(rows.iter(), |&(clean, dirty)| {
            assert_eq!(F::make_dirty(clean), dirty, "{}: {clean:#x}", F::NAME);
            assert!(F::is_dirty(dirty) && !F::is_dirty(clean), "{clean:#x}");
            assert!(!F::is_dirty(F::make_clean(dirty)), "{dirty:#x}");
        })
    }

    /// Where an address falls: level, address, item.
    fn places(self, rows: &[(u32, u64, usize)]) -> Self {
        let rows = rows.iter().filter(|row| row.0 <= F::TOP_LEVEL);
        self.counted(rows.clone().count()).each(rows, |&(level, iova, item)| {
            assert_eq!(F::index(iova, level), item, "{}: {iova:#x} at level {level}", F::NAME);
        })
    }

    fn each<T>(self, rows: impl Iterator<Item = T>, check: impl FnMut(T)) -> Self {
        rows.for_each(check);
        self
    }

    fn done(self) {
        assert!(self.rows >= 20, "{}: only {} words", F::NAME, self.rows);
    }
}
