//! Threads that translate while one changes the table.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ioasis_iommupt::fmt::{AmdV1, ArmS1, Sv48, VtdSs};
use ioasis_iommupt::iotlb::Iotlb;
use ioasis_iommupt::{
    Config, Dirty, Format, Iova, IovaRange, Pa, PageTable, Prot, Quiesce, Run, Section, TableReader,
};

const RW: Prot = Prot::READ.union(Prot::WRITE);
/// Where every IOVA leads: itself, with this bit.
const OUTPUT: u64 = 1 << 40;

/// The sections that the supervisor uses.
#[derive(Debug, Default)]
struct Sections(ioasis_sys::quiesce::Sections);

impl Quiesce for Sections {
    fn enter(&self) {
        self.0.enter(1);
    }

    fn exit(&self) {
        self.0.exit();
    }

    fn wait(&self) {
        self.0.wait(|label| label == 1);
    }
}

struct Numbers(u64);

impl Numbers {
    const fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

fn range(start: u64, length: u64) -> IovaRange {
    IovaRange::new(Iova(start), length).expect("a range")
}

/// Tables are dropped and their memory used for other addresses all the time; a reader that stays
/// in its section finds each address where it belongs or nothing.
fn never_a_table_of_others<F: Format>() {
    let quiesce = Arc::new(Sections::default());
    // So few tables that each is used again soon.
    let config = Config {
        tables_max: 80,
        page_sizes: 1 << F::GRANULE_LG2,
        ..Config::new(Arc::clone(&quiesce) as Arc<dyn Quiesce>)
    };
    let (mut writer, reader) = PageTable::<F>::new(config).expect("an empty table");
    let page = 1_u64 << F::GRANULE_LG2;
    let table = 1_u64 << F::item_lg2(1);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for seed in 1..=2 {
            let (quiesce, reader, stop) = (&quiesce, &reader, &stop);
            scope.spawn(move || {
                let mut numbers = Numbers(seed);
                let mut iotlb = Iotlb::new();
                let space =
                    iotlb.attach(0, Arc::clone(reader) as Arc<dyn TableReader>).expect("attached");
                while !stop.load(Ordering::Relaxed) {
                    let iova = numbers.below(64) * table + numbers.below(16) * page;
                    let _section = Section::enter(&**quiesce);
                    let walked = reader.translate(Iova(iova), 1, RW);
                    let cached = iotlb.translate(space, Iova(iova), 1, RW);
                    for run in [walked, cached].into_iter().flatten() {
                        assert_eq!(run.pa, Pa(iova | OUTPUT));
                    }
                }
            });
        }
        let mut numbers = Numbers(7);
        let mut mapped = BTreeSet::new();
        for _ in 0..20_000 {
            let at = numbers.below(64) * table;
            if mapped.remove(&at) {
                writer.clear(range(at, table));
            } else if mapped.len() < 40 {
                let run = Run { pa: Pa(at | OUTPUT), length: 16 * page };
                writer.map(Iova(at), &[run], RW).expect("mapped");
                mapped.insert(at);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_reader_never_walks_into_a_table_of_other_addresses() {
    never_a_table_of_others::<VtdSs>();
    never_a_table_of_others::<AmdV1>();
    never_a_table_of_others::<ArmS1>();
}

/// Readers write while the writer harvests, splits and joins; every write is told at least once,
/// and a mapped page is never missed.
fn no_write_is_lost<F: Format>() {
    let quiesce = Arc::new(Sections::default());
    let config = Config::new(Arc::clone(&quiesce) as Arc<dyn Quiesce>);
    let (mut writer, reader) = PageTable::<F>::new(config).expect("an empty table");
    let page = 1_u64 << F::GRANULE_LG2;
    let large = 1_u64 << F::item_lg2(1);
    let whole = range(0, 4 * large);
    writer.map(Iova(0), &[Run { pa: Pa(OUTPUT), length: 4 * large }], RW).expect("mapped");
    let stop = AtomicBool::new(false);
    let mut told: Vec<IovaRange> = Vec::new();
    let written: BTreeSet<u64> = thread::scope(|scope| {
        let writers: Vec<_> = (1..=2)
            .map(|seed| {
                let (quiesce, reader, stop) = (&quiesce, &reader, &stop);
                scope.spawn(move || {
                    let mut numbers = Numbers(seed);
                    let mut written = BTreeSet::new();
                    while !stop.load(Ordering::Relaxed) {
                        let iova = numbers.below(4 * large / page) * page;
                        let _section = Section::enter(&**quiesce);
                        let run = reader.translate(Iova(iova), 1, RW).expect("always mapped");
                        assert_eq!(run.pa, Pa(iova | OUTPUT));
                        written.insert(iova);
                    }
                    written
                })
            })
            .collect();
        let mut numbers = Numbers(9);
        for _ in 0..300 {
            writer.cut(Iova(numbers.below(4 * large / page) * page)).expect("cut");
            writer.read_dirty(whole, Dirty::Clear, &mut |range| told.push(range));
            quiesce.wait();
        }
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    writer.read_dirty(whole, Dirty::Clear, &mut |range| told.push(range));
    told.sort_unstable_by_key(|range| range.start());
    let mut merged: Vec<IovaRange> = Vec::new();
    for next in told {
        match merged.last_mut() {
            Some(last) if last.last().0 + 1 >= next.start().0 => {
                let end = last.last().max(next.last());
                *last = IovaRange::closed(last.start(), end).expect("the hull of two ranges");
            }
            _ => merged.push(next),
        }
    }
    for iova in written {
        let place = merged.partition_point(|range| range.last().0 < iova);
        let found = merged.get(place).is_some_and(|range| range.start().0 <= iova);
        assert!(found, "the write to {iova:#x} was never told");
    }
}

#[test]
fn no_write_is_lost_while_leaves_are_split_and_harvested() {
    no_write_is_lost::<VtdSs>();
    no_write_is_lost::<AmdV1>();
    no_write_is_lost::<Sv48>();
    no_write_is_lost::<ArmS1>();
}

#[test]
fn after_an_unmap_and_a_wait_nothing_old_is_used() {
    let quiesce = Arc::new(Sections::default());
    let config = Config::new(Arc::clone(&quiesce) as Arc<dyn Quiesce>);
    let (mut writer, reader) = PageTable::<VtdSs>::new(config).expect("an empty table");
    let gone = AtomicBool::new(false);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (quiesce, gone, stop) = (&quiesce, &gone, &stop);
        scope.spawn(move || {
            let mut iotlb = Iotlb::new();
            let space = iotlb.attach(0, reader as Arc<dyn TableReader>).expect("attached");
            while !stop.load(Ordering::Relaxed) {
                let _section = Section::enter(&**quiesce);
                let was_gone = gone.load(Ordering::SeqCst);
                let found = iotlb.translate(space, Iova(0x1000), 8, Prot::READ).is_ok();
                assert!(!(was_gone && found), "unmapped, waited for, and still hit");
            }
        });
        for _ in 0..2000 {
            let run = Run { pa: Pa(0x5000), length: 0x1000 };
            // Not gone any more, before it can be found.
            gone.store(false, Ordering::SeqCst);
            quiesce.wait();
            writer.map(Iova(0x1000), &[run], RW).expect("mapped");
            thread::yield_now();
            writer.unmap(range(0x1000, 0x1000), &mut |_, _| {}).expect("unmapped");
            quiesce.wait();
            gone.store(true, Ordering::SeqCst);
            thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
    });
}
