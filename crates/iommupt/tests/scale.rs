//! Large spaces: memory and work stay in proportion to what is mapped.

use std::sync::Arc;

use ioasis_iommupt::areas::{Areas, Ranges, Wanted};
use ioasis_iommupt::fmt::VtdSs;
use ioasis_iommupt::{
    Config, Counted, Dirty, Iova, IovaRange, Pa, PageTable, Prot, Reader, Run, Writer,
};

const RW: Prot = Prot::READ.union(Prot::WRITE);
const PAGE: u64 = 1 << 12;
const LARGE: u64 = 1 << 21;

fn table(page_sizes: u64) -> (Writer<VtdSs>, Arc<Reader<VtdSs>>) {
    let config = Config { page_sizes, ..Config::new(Arc::new(Counted::default())) };
    PageTable::new(config).expect("an empty table")
}

fn range(start: u64, length: u64) -> IovaRange {
    IovaRange::new(Iova(start), length).expect("a range")
}

/// Maps, writes one page in each 1000th leaf, harvests and unmaps.
fn a_space(length: u64, leaf: u64, tables: usize) {
    let (mut writer, reader) = table(leaf);
    writer.map(Iova(0), &[Run { pa: Pa(1 << 44), length }], RW).expect("mapped");
    assert_eq!(writer.tables(), tables, "tables are the minimum");
    let leaves = length / leaf;
    for n in (0..leaves).step_by(1000) {
        let run = reader.translate(Iova(n * leaf), 1, Prot::WRITE).expect("mapped");
        assert_eq!(run.pa, Pa((1 << 44) + n * leaf));
    }
    let mut dirty = 0;
    writer.read_dirty(range(0, length), Dirty::Clear, &mut |range| {
        assert_eq!(range.span(), leaf - 1);
        dirty += 1;
    });
    assert_eq!(dirty, leaves.div_ceil(1000));
    let mut runs = Vec::new();
    writer.unmap(range(0, length), &mut |iova, run| runs.push((iova, run))).expect("unmapped");
    assert_eq!(runs, [(Iova(0), Run { pa: Pa(1 << 44), length })]);
    writer.trim();
    assert_eq!(writer.tables(), 1, "only the root is left");
}

#[test]
fn a_tebibyte_of_2m_pages_takes_1027_tables() {
    a_space(1 << 40, LARGE, 1 + 2 + 1024);
}

/// Two gibibytes of tables.
#[test]
fn a_tebibyte_of_4k_pages_takes_525315_tables() {
    a_space(1 << 40, PAGE, 1 + 2 + 1024 + 1024 * 512);
}

/// One page in every 64 MiB of a tebibyte: each has a table of its own, which ends with it.
#[test]
fn pages_far_apart_take_a_table_each() {
    let (mut writer, reader) = table(PAGE);
    let places = || (0..1_u64 << 14).map(|n| n << 26);
    for iova in places() {
        let run = Run { pa: Pa(iova | 1 << 44), length: PAGE };
        writer.map(Iova(iova), &[run], RW).expect("mapped");
    }
    let tables = 1 + 2 + 1024 + (1 << 14);
    assert_eq!(writer.tables(), tables);
    for iova in places() {
        assert_eq!(reader.iova_to_phys(Iova(iova)), Some(Pa(iova | 1 << 44)));
        writer.unmap(range(iova, PAGE), &mut |_, _| {}).expect("no leaf is split");
        assert_eq!(reader.iova_to_phys(Iova(iova)), None);
    }
    writer.trim();
    assert_eq!(writer.tables(), 1, "only the root is left");
}

/// 64 times the tables are made and dropped; their memory is used again. (Generations of holes:
/// `suite::work`.)
#[test]
fn churn_does_not_grow() {
    let (mut writer, _reader) = table(PAGE);
    for round in 0..64 {
        for n in 0..256 {
            let run = Run { pa: Pa(n * PAGE), length: PAGE };
            writer.map(Iova(n * LARGE), &[run], RW).expect("mapped");
        }
        assert_eq!(writer.tables(), 1 + 1 + 1 + 256, "round {round}");
        writer.clear(IovaRange::ALL);
        assert_eq!(writer.tables(), 1, "round {round}");
    }
}

/// First fit for 2 MiB, aligned to as much, behind `count` holes of `bytes`: how many holes are
/// looked at.
fn holes_looked_at(count: u64, bytes: u64) -> u64 {
    let mut areas = Areas::new();
    // Each hole begins a page behind a multiple of 2 MiB.
    for n in 0..=count {
        let end = 8 * LARGE * n + PAGE;
        let start = if n == 0 { 0 } else { 8 * LARGE * (n - 1) + PAGE + bytes };
        areas.insert(range(start, end - start), n).expect("inserted");
    }
    let mut looked_at = 0;
    let found = areas.find_hole(IovaRange::ALL, LARGE - 1, |hole| {
        looked_at += 1;
        let start = hole.start().0.next_multiple_of(LARGE);
        (hole.last().0 - start >= LARGE - 1).then_some(start)
    });
    assert!(found.is_some(), "the last hole has no end");
    looked_at
}

/// Of many holes, only those are looked at that are long enough and may yet hold no aligned place.
#[test]
fn first_fit_looks_in_vain_only_at_holes_that_are_long_enough_and_lie_badly() {
    for count in [100, 10_000] {
        assert_eq!(holes_looked_at(count, LARGE - PAGE), 1, "too short");
        assert_eq!(holes_looked_at(count, LARGE), count + 1, "the least that is looked at");
        assert_eq!(holes_looked_at(count, 2 * LARGE - 2 * PAGE), count + 1, "the most in vain");
        assert_eq!(holes_looked_at(count, 2 * LARGE - PAGE), 1, "a place in any hole");
    }
}

#[test]
fn a_million_areas_are_found_removed_and_chosen_around() {
    let mut areas = Areas::new();
    let count = 1_000_000_u64;
    let area = |n: u64| range((n + 1) * 2 * PAGE, PAGE);
    // In an order that is neither ascending nor random.
    for n in 0..count {
        areas.insert(area(n * 7919 % count), n * 7919 % count).expect("inserted");
    }
    assert_eq!(areas.len(), 1_000_000);
    let mut wanted = |length: u64| {
        let wanted = Wanted { length, address: 0, alignment: PAGE };
        areas.find_free(wanted, &Ranges::new(), &Ranges::new()).expect("there is room").0
    };
    assert_eq!(wanted(PAGE), PAGE);
    assert_eq!(wanted(2 * PAGE), (count * 2 + 2) * PAGE);
    assert_eq!(areas.remove(area(500_000).start()), Some((area(500_000), 500_000)));
    let wanted = Wanted { length: 2 * PAGE, address: PAGE, alignment: PAGE };
    let hole = areas.find_free(wanted, &Ranges::new(), &Ranges::new());
    assert_eq!(hole, Ok(Iova(area(500_000).start().0 - PAGE)));
    for n in (0..count).filter(|&n| n != 500_000) {
        assert_eq!(areas.remove(area(n).last()), Some((area(n), n)));
    }
    assert!(areas.is_empty());
}
