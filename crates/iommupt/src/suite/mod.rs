//! One suite for every format: what any page table must do, against a model made of plain lists.

extern crate std;

mod model;
pub(crate) mod sequences;
mod work;

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::format::{Format, all_sizes, low_bits};
use crate::{
    Config, Counted, Dirty, Iova, IovaRange, Pa, PageTable, Prot, Reader, Run, TableWriter, Writer,
};
use ioasis_uapi::Errno;

fn config() -> Config {
    Config::new(Arc::new(Counted::default()))
}

fn made<F: Format>() -> (Writer<F>, Arc<Reader<F>>) {
    PageTable::<F>::new(config()).expect("an empty table")
}

fn range(start: u64, length: u64) -> IovaRange {
    IovaRange::new(Iova(start), length).expect("a range")
}

const RW: Prot = Prot::READ.union(Prot::WRITE);

/// Fails every table allocation of a mapping in turn.
pub(crate) fn nothing_is_left_of_a_failed_map<F: Format>() {
    let page = 1_u64 << F::GRANULE_LG2;
    let start = low_bits(F::item_lg2(1).min(F::IOVA_LG2 - 1)) + 1 - page;
    let runs: Vec<Run> = (0..4).map(|n| Run { pa: Pa(n * 4 * page), length: page }).collect();
    for tables_max in 1..64 {
        let Ok((mut writer, reader)) = PageTable::<F>::new(Config { tables_max, ..config() })
        else {
            continue;
        };
        let before = writer.tables();
        match writer.map(Iova(start), &runs, RW) {
            Ok(()) => return assert!(writer.tables() <= tables_max),
            Err(error) => assert_eq!(error.errno, Errno::ENOMEM),
        }
        assert_eq!(writer.tables(), before, "tables are given back");
        for page_nr in 0..4 {
            assert_eq!(reader.iova_to_phys(Iova(start + page_nr * page)), None);
        }
    }
    panic!("{}: four pages take fewer than 64 tables", F::NAME);
}

/// Fails the split of the largest leaf.
pub(crate) fn a_failed_split_changes_no_translation<F: Format>() {
    let lg2 = (all_sizes::<F>() & low_bits(F::IOVA_LG2.min(52))).ilog2();
    let page = 1_u64 << F::GRANULE_LG2;
    for tables_max in 1..64 {
        let Ok((mut writer, reader)) = PageTable::<F>::new(Config { tables_max, ..config() })
        else {
            continue;
        };
        let Ok(()) = writer.map(Iova(0), &[Run { pa: Pa(0), length: 1 << lg2 }], RW) else {
            continue;
        };
        let done = writer.unmap(range(page, page), &mut |_, _| {});
        let hole = reader.iova_to_phys(Iova(page));
        match done {
            Ok(()) => return assert_eq!(hole, None),
            Err(error) => assert_eq!((error.errno, hole), (Errno::ENOMEM, Some(Pa(page)))),
        }
        assert_eq!(reader.iova_to_phys(Iova(2 * page)), Some(Pa(2 * page)));
    }
    panic!("{}: a split takes fewer than 64 tables", F::NAME);
}

/// A write through a leaf of any size is found by a range that only touches the leaf, at its other
/// end.
pub(crate) fn a_write_is_found_from_every_part_of_its_leaf<F: Format>() {
    let page = 1_u64 << F::GRANULE_LG2;
    for lg2 in
        (F::GRANULE_LG2 + 1..F::IOVA_LG2.min(42)).filter(|lg2| all_sizes::<F>() >> lg2 & 1 == 1)
    {
        let (mut writer, reader) = made::<F>();
        let length = 1_u64 << lg2;
        writer.map(Iova(0), &[Run { pa: Pa(0), length }], RW).expect("one leaf");
        for (written, asked) in [(0, length - page), (length - page, 0)] {
            let answer = reader.translate(Iova(written), page, RW);
            assert_eq!(answer.expect("it is mapped").pa, Pa(written));
            let mut found = Vec::new();
            writer.read_dirty(range(asked, page), Dirty::Keep, &mut |range| found.push(range));
            assert_eq!(found, [range(asked, page)], "{}: leaf of {length:#x}", F::NAME);
            writer.read_dirty(IovaRange::ALL, Dirty::Clear, &mut |_| {});
        }
    }
}

/// The first and the last page of the aperture can be mapped, and nothing beyond.
pub(crate) fn the_aperture_ends_where_it_says<F: Format>() {
    let (mut writer, reader) = made::<F>();
    let page = 1_u64 << F::GRANULE_LG2;
    let last = writer.aperture().last().0;
    let top = last - (page - 1);
    let run = Run { pa: Pa(low_bits(F::OA_LG2) & !(page - 1)), length: page };
    for iova in [0, top] {
        assert_eq!(writer.map(Iova(iova), &[run], RW), Ok(()));
        assert_eq!(reader.iova_to_phys(Iova(iova + (page - 1))), Some(Pa(low_bits(F::OA_LG2))));
    }
    let beyond = writer.map(Iova(top), &[run, run], RW);
    assert_eq!(beyond.expect_err("past the end").errno, Errno::ERANGE);
    if last < u64::MAX {
        let fault = reader.translate(Iova(last + 1), 1, Prot::READ).expect_err("past the end");
        assert_eq!(fault.iova, Iova(last + 1));
    }
    let run = Run { pa: Pa(0), length: 2 * page };
    let beyond = writer.map(Iova(top), &[run], RW);
    assert_eq!(beyond.expect_err("past the end").errno, Errno::ERANGE);
}

/// Addresses, lengths and output addresses that no format takes.
pub(crate) fn bad_arguments_have_their_errno<F: Format>() {
    let (mut writer, _) = made::<F>();
    let page = 1_u64 << F::GRANULE_LG2;
    let mut errno = |iova: u64, pa: u64, length: u64| {
        let run = Run { pa: Pa(pa), length };
        writer.map(Iova(iova), &[run], RW).expect_err("refused").errno
    };
    assert_eq!(errno(1, 0, page), Errno::EINVAL);
    assert_eq!(errno(0, 1, page), Errno::EINVAL);
    assert_eq!(errno(0, 0, page / 2), Errno::EINVAL);
    assert_eq!(errno(0, 0, 0), Errno::EINVAL);
    assert_eq!(errno(0, u64::MAX - page + 1, 2 * page), Errno::ERANGE);
    if F::OA_LG2 < 64 {
        assert_eq!(errno(0, 1 << F::OA_LG2, page), Errno::ERANGE);
    }
    let half = writer.unmap(range(page / 2, page), &mut |_, _| {});
    assert_eq!(half.expect_err("refused").errno, Errno::EINVAL);
}

/// A gibibyte, or 64 tables' worth, of smallest leaves takes exactly the tables that hold them.
pub(crate) fn tables_are_the_minimum<F: Format>() {
    let page = 1_u64 << F::GRANULE_LG2;
    let config = Config { page_sizes: page, ..config() };
    let (mut writer, _) = PageTable::<F>::new(config).expect("an empty table");
    let before = writer.tables();
    let length = (4 << F::item_lg2(1)).min(low_bits(F::IOVA_LG2) & !(page - 1));
    writer.map(Iova(0), &[Run { pa: Pa(0), length }], RW).expect("mapped");
    let below = [0, 4, 5, 6, 7, 8];
    assert_eq!(writer.tables(), before + below[F::TOP_LEVEL as usize]);
    writer.clear(range(0, length));
    writer.trim();
    assert_eq!(writer.tables(), before);
}

/// Ends a text that grows too long: a table that points to itself is a tree of any size.
struct Bounded(usize);

impl core::fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.0 = self.0.checked_sub(text.len()).ok_or(core::fmt::Error)?;
        Ok(())
    }
}

/// Words that nobody wrote stand in the tables: every walk ends, and so does every text.
pub(crate) fn any_word_is_walked_to_an_end<F: Format>() {
    let (mut writer, reader) = made::<F>();
    let page = 1_u64 << F::GRANULE_LG2;
    writer.map(Iova(0), &[Run { pa: Pa(0), length: page }], RW).expect("mapped");
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..500 {
        let iova = next() & low_bits(F::IOVA_LG2);
        for level in 0..=F::TOP_LEVEL {
            let Some(table) = reader.table_at(0, level) else { continue };
            let random = next();
            // Any word, or a pointer to anywhere, most often to a table that is there.
            let word = match random & 3 {
                0 => random,
                1 => F::table((random & low_bits(40)) >> 16 << 16, level),
                _ => F::table((random >> 4 & 3) << (F::ITEMS_LG2 + 3), level),
            };
            // Where a break waits for its make nobody ever makes.
            if let Some(place) = reader.arena.word(table, F::index(iova, level))
                && word != crate::walk::BROKEN
            {
                place.store(word, crate::sync::atomic::Ordering::Relaxed);
            }
        }
        for iova in [iova, 0, next(), u64::MAX] {
            let _ = reader.translate(Iova(iova), page, Prot::READ);
            let _ = reader.leaf(Iova(iova), Prot::READ);
            let _ = reader.iova_to_phys(Iova(iova));
        }
    }
    for style in [crate::dump::Style::Tree, crate::dump::Style::Json] {
        let _ = core::fmt::write(&mut Bounded(1 << 20), format_args!("{}", reader.dump(style)));
    }
}

/// Instantiates the suite for the formats named.
macro_rules! suite {
    ($($name:ident: $format:ty;)*) => {$(
        mod $name {
            use crate::suite;

            #[test]
            fn sequences_agree_with_the_model() {
                suite::sequences::agree::<$format>();
            }

            #[test]
            fn nothing_is_left_of_a_failed_map() {
                suite::nothing_is_left_of_a_failed_map::<$format>();
            }

            #[test]
            fn a_write_is_found_from_every_part_of_its_leaf() {
                suite::a_write_is_found_from_every_part_of_its_leaf::<$format>();
            }

            #[test]
            fn a_failed_split_changes_no_translation() {
                suite::a_failed_split_changes_no_translation::<$format>();
            }

            #[test]
            fn the_aperture_ends_where_it_says() {
                suite::the_aperture_ends_where_it_says::<$format>();
            }

            #[test]
            fn bad_arguments_have_their_errno() {
                suite::bad_arguments_have_their_errno::<$format>();
            }

            #[test]
            fn any_word_is_walked_to_an_end() {
                suite::any_word_is_walked_to_an_end::<$format>();
            }

            #[test]
            fn tables_are_the_minimum() {
                suite::tables_are_the_minimum::<$format>();
            }
        }
    )*};
}

mod instances {
    crate::every::for_every_format!(suite);
}
