//! Whole sequences: one writer does everything a writer can, readers translate, write and remember.

use alloc::boxed::Box;
use alloc::vec::Vec;

use shuttle::rand::{Rng as _, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config as Model, Runner, thread};

use super::{Arc, PAGE, RW, Tiny, range, run, table};
use crate::fmt::{AmdV1, ArmS1, Sv39, VtdSs};
use crate::iotlb::Iotlb;
use crate::quiesce::Counted;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::{
    Config, Dirty, Format, Iova, IovaRange, Pa, PageTable, Prot, Quiesce, Reader, Section,
    WalkCache, Writer,
};

/// Where every IOVA leads: itself, with this bit.
const OUTPUT: u64 = 1 << 36;
const READERS: usize = 2;
const STEPS: u32 = 12;

/// How many schedules: `IOASIS_SEQUENCES`, or as many as an ordinary run has time for.
fn schedules(few: usize) -> usize {
    extern crate std;
    std::env::var("IOASIS_SEQUENCES").map_or(few, |count| count.parse().expect("a number"))
}

/// Half of the schedules at random, half with few preemptions at the most telling places.
fn model(few: usize, check: fn()) {
    let half = schedules(few).div_ceil(2);
    let schedulers: [Box<dyn Scheduler + Send>; 2] =
        [Box::new(RandomScheduler::new(half)), Box::new(PctScheduler::new(3, half))];
    for scheduler in schedulers {
        let mut config = Model::new();
        config.stack_size = 1 << 18;
        config.silence_warnings = true;
        Runner::new(scheduler, config).run(check);
    }
}

/// What the threads share.
struct Shared<F: Format> {
    quiesce: Arc<Counted>,
    reader: Arc<Reader<F>>,
    /// By page of the window: how often a device wrote there.
    memory: Vec<AtomicU64>,
    /// By page: 1 when it was unmapped and waited for.
    gone: Vec<AtomicU64>,
}

/// Pages that the sequences work on: the items of one table and those after them, where a leaf of
/// the level above ends.
fn pages<F: Format>() -> Vec<u64> {
    let above = 1_u64 << (F::ITEMS_LG2);
    let mut pages: Vec<u64> = [0, 1, 2, 3, above / 2, above - 1, above, above + 1].into();
    pages.sort_unstable();
    pages.dedup();
    pages
}

fn page_lg2<F: Format>() -> u32 {
    F::GRANULE_LG2
}

/// Translates through one of three ways, always to where the address belongs; what is found may be
/// written.
fn read<F: Format>(shared: &Shared<F>) {
    let pages = pages::<F>();
    let mut iotlb = Iotlb::new();
    let space = iotlb.attach(0, Arc::clone(&shared.reader) as _).expect("attached");
    let mut cache = WalkCache::new(Arc::clone(&shared.reader));
    for _ in 0..STEPS {
        let slot = thread_rng().gen_range(0..pages.len());
        let iova = pages[slot] << page_lg2::<F>();
        let need = if thread_rng().gen_bool(0.5) { RW } else { Prot::READ };
        let way = thread_rng().gen_range(0..3_u32);
        let _section = Section::enter(&*shared.quiesce);
        let was_gone = shared.gone[slot].load(Ordering::SeqCst) == 1;
        let found = match way {
            0 => shared.reader.translate(Iova(iova), 1, need).ok().map(|run| run.pa),
            1 => iotlb.translate(space, Iova(iova), 1, need).ok().map(|run| run.pa),
            _ => cache.iova_to_phys(Iova(iova)),
        };
        if let Some(pa) = found {
            assert_eq!(pa, Pa(iova | OUTPUT), "{}: a translation of others", F::NAME);
            assert!(!was_gone, "{}: unmapped, waited for, and found", F::NAME);
            if way < 2 && need.contains(Prot::WRITE) {
                shared.memory[slot].fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}

/// The writer and what it knows.
struct Change<F: Format> {
    writer: Writer<F>,
    shared: Arc<Shared<F>>,
    /// By page: what a copy made after the harvest that cleared it holds.
    copied: Vec<u64>,
    mapped: Vec<bool>,
}

impl<F: Format> Change<F> {
    fn span(&self, slot: usize) -> IovaRange {
        range(pages::<F>()[slot] << page_lg2::<F>(), 1 << page_lg2::<F>())
    }

    fn unmap(&mut self, slot: usize) {
        let span = self.span(slot);
        if thread_rng().gen_bool(0.5) {
            self.writer.unmap(span, &mut |_, _| {}).expect("there is memory");
        } else {
            self.writer.cut(span.start()).expect("there is memory");
            self.writer.cut(Iova(span.last().0 + 1)).expect("there is memory");
            self.writer.clear(span);
        }
        self.shared.quiesce.wait();
        self.shared.gone[slot].store(1, Ordering::SeqCst);
        // What was written to pages that are gone is nobody's.
        self.copied[slot] = self.shared.memory[slot].load(Ordering::SeqCst);
        self.mapped[slot] = false;
    }

    fn map(&mut self, slot: usize) {
        let span = self.span(slot);
        self.shared.gone[slot].store(0, Ordering::SeqCst);
        // A reader that saw it gone must not find it.
        self.shared.quiesce.wait();
        let page = run(span.start().0 | OUTPUT, span.span() + 1);
        self.writer.map(span.start(), &[page], RW).expect("there is memory");
        self.mapped[slot] = true;
    }

    fn harvest(&mut self) {
        self.writer.read_dirty(IovaRange::ALL, Dirty::Clear, &mut |_| {});
        self.shared.quiesce.wait();
        for (copied, memory) in self.copied.iter_mut().zip(&self.shared.memory) {
            *copied = memory.load(Ordering::SeqCst);
        }
    }

    fn step(&mut self) {
        let slot = thread_rng().gen_range(0..self.mapped.len());
        let span = self.span(slot);
        match thread_rng().gen_range(0..8_u32) {
            0..3 if self.mapped[slot] => self.unmap(slot),
            0..3 => self.map(slot),
            3 => self.harvest(),
            4 => self.writer.cut(span.start()).expect("there is memory"),
            5 => self.writer.protect(span, Prot::READ).expect("there is memory"),
            6 => self.writer.protect(span, RW).expect("there is memory"),
            _ => {
                self.writer.trim();
            }
        }
    }

    /// Every write is in a copy, or told now.
    fn finish(mut self) {
        let mut told: Vec<IovaRange> = Vec::new();
        self.writer.read_dirty(IovaRange::ALL, Dirty::Keep, &mut |range| told.push(range));
        for (slot, memory) in self.shared.memory.iter().enumerate() {
            let span = self.span(slot);
            let copied = memory.load(Ordering::SeqCst) == self.copied[slot];
            let told = told.iter().any(|&range| range.contains(span));
            assert!(copied || told, "{}: a write to {span:?} is lost", F::NAME);
        }
        self.writer.unmap(IovaRange::ALL, &mut |_, _| {}).expect("no leaf is split");
        self.writer.trim();
        let root = 1 << F::ROOT_ITEMS_LG2.saturating_sub(F::ITEMS_LG2);
        assert_eq!(self.writer.tables(), root, "{}: only the root is left", F::NAME);
    }
}

fn one_writer_and_several_readers<F: Format>() {
    let quiesce = Arc::new(Counted::default());
    let (mut writer, reader) = table::<F>(Arc::clone(&quiesce) as Arc<dyn Quiesce>);
    let count = pages::<F>().len();
    // A leaf of the level above, to be split; what is beyond it comes later.
    let large = 1 << F::item_lg2(1);
    writer.map(Iova(0), &[run(OUTPUT, large)], RW).expect("mapped");
    let mapped: Vec<bool> =
        pages::<F>().iter().map(|page| page << page_lg2::<F>() < large).collect();
    let words = || (0..count).map(|_| AtomicU64::new(0)).collect();
    let shared = Arc::new(Shared { quiesce, reader, memory: words(), gone: words() });
    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || read(&shared))
        })
        .collect();
    let mut change = Change { writer, shared, copied: [0].repeat(count), mapped };
    (0..STEPS).for_each(|_| change.step());
    for reader in readers {
        reader.join().expect("no panic");
    }
    change.finish();
}

#[test]
fn readers_and_a_writer_agree_on_small_tables_in_any_schedule() {
    model(800, one_writer_and_several_readers::<Tiny<2>>);
    model(800, one_writer_and_several_readers::<Tiny<2, true>>);
}

#[test]
fn readers_and_a_writer_that_breaks_before_it_makes_agree_in_any_schedule() {
    model(800, one_writer_and_several_readers::<Tiny<2, false, true>>);
    model(800, one_writer_and_several_readers::<Tiny<2, true, true>>);
}

#[test]
fn readers_and_a_writer_agree_on_real_tables_in_any_schedule() {
    model(60, one_writer_and_several_readers::<VtdSs<3>>);
    model(60, one_writer_and_several_readers::<AmdV1<3>>);
    model(60, one_writer_and_several_readers::<Sv39>);
    model(60, one_writer_and_several_readers::<ArmS1>);
}

/// The tables end: what fails in the midst of a map leaves nothing a reader could find.
#[test]
fn a_map_that_fails_shows_no_leaf_of_others_in_any_schedule() {
    model(1000, || {
        type F = Tiny<3>;
        let quiesce = Arc::new(Counted::default());
        let config =
            Config { tables_max: 6, ..Config::new(Arc::clone(&quiesce) as Arc<dyn Quiesce>) };
        let (mut writer, reader) = PageTable::<F>::new(config).expect("an empty table");
        let readers: Vec<_> = (0..READERS)
            .map(|_| {
                let (quiesce, reader) = (Arc::clone(&quiesce), Arc::clone(&reader));
                thread::spawn(move || {
                    for page in 0..8 {
                        let iova = page * PAGE;
                        let _section = Section::enter(&*quiesce);
                        let found = reader.iova_to_phys(Iova(iova));
                        assert!(found.is_none_or(|pa| pa == Pa(iova | OUTPUT)), "{found:?}");
                    }
                })
            })
            .collect();
        for _ in 0..3 {
            let one = [run((3 * PAGE) | OUTPUT, PAGE)];
            writer.map(Iova(3 * PAGE), &one, RW).expect("four tables are enough");
            let two: Vec<_> = (4..7).map(|page| run((page * PAGE) | OUTPUT, PAGE)).collect();
            assert!(writer.map(Iova(4 * PAGE), &two, RW).is_err(), "a seventh table is wanted");
            assert_eq!(writer.tables(), 4);
            writer.unmap(range(3 * PAGE, PAGE), &mut |_, _| {}).expect("no leaf is split");
            writer.trim();
        }
        for reader in readers {
            reader.join().expect("no panic");
        }
    });
}
