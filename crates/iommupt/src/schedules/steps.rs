//! Single steps, exhaustively: installing a table, splitting, the dirty bit, changes and the IOTLB.

use alloc::vec::Vec;

use loom::thread;

use super::{Arc, PAGE, RW, Tiny, range, run, table};
use crate::changes::Changes;
use crate::iotlb::{Iotlb, SpaceId};
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use crate::sync::spin_loop;
use crate::{
    Dirty, Format, Iova, IovaRange, Pa, Prot, Quiesce, Reader, Section, WalkCache, Writer,
};

type Two = Tiny<1>;
/// As few levels as a [`WalkCache`] remembers tables of.
type Three = Tiny<2>;

/// Sections of one reader as `ioasis-sys` has them without membarrier: a store, a fence.
#[derive(Debug, Default)]
struct Fenced {
    /// Odd inside a section.
    sections: AtomicUsize,
}

impl Quiesce for Fenced {
    fn enter(&self) {
        let sections = self.sections.load(Ordering::Relaxed);
        self.sections.store(sections + 1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    fn exit(&self) {
        let sections = self.sections.load(Ordering::Relaxed);
        self.sections.store(sections + 1, Ordering::Release);
    }

    fn wait(&self) {
        fence(Ordering::SeqCst);
        let seen = self.sections.load(Ordering::Acquire);
        while seen % 2 == 1 && self.sections.load(Ordering::Acquire) == seen {
            spin_loop();
        }
    }
}

/// Every interleaving with at most three preemptions.
fn model(check: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(check);
}

fn made<F: Format>() -> (Arc<Fenced>, Writer<F>, Arc<Reader<F>>) {
    let quiesce = Arc::new(Fenced::default());
    let (writer, reader) = table(Arc::clone(&quiesce) as Arc<dyn Quiesce>);
    (quiesce, writer, reader)
}

fn pa_of<F: Format>(reader: &Reader<F>, iova: u64) -> Option<u64> {
    reader.translate(Iova(iova), 1, Prot::READ).ok().map(|run| run.pa.0)
}

/// The memory of the table that is installed held other leaves before.
#[test]
fn an_installed_table_is_seen_whole_in_any_schedule() {
    model(|| {
        let (quiesce, mut writer, reader) = made::<Two>();
        writer.map(Iova(0), &[run(0x1_1000, PAGE), run(0x2_0000, PAGE)], RW).expect("mapped");
        writer.clear(range(0, 2 * PAGE));
        let other = thread::spawn(move || {
            let _section = Section::enter(&*quiesce);
            assert_eq!(pa_of(&reader, 2 * PAGE), None, "a leaf of the table's life before");
            let found = pa_of(&reader, 3 * PAGE);
            assert!(matches!(found, None | Some(0x3_0000)), "{found:x?}");
        });
        writer.map(Iova(3 * PAGE), &[run(0x3_0000, PAGE)], RW).expect("mapped");
        assert_eq!(writer.tables(), 2);
        other.join().expect("no panic");
    });
}

/// A removed table serves other addresses only when nobody walks it any more.
#[test]
fn a_removed_table_is_not_used_again_under_a_reader_in_any_schedule() {
    model(|| {
        let (quiesce, mut writer, reader) = made::<Two>();
        writer.map(Iova(0), &[run(0x1_1000, PAGE), run(0x2_0000, PAGE)], RW).expect("mapped");
        let other = thread::spawn(move || {
            let _section = Section::enter(&*quiesce);
            let found = pa_of(&reader, 0);
            assert!(matches!(found, None | Some(0x1_1000)), "{found:x?}");
        });
        writer.clear(range(0, 2 * PAGE));
        writer.map(Iova(2 * PAGE), &[run(0x3_1000, PAGE)], RW).expect("mapped");
        other.join().expect("no panic");
    });
}

#[test]
fn who_finds_a_leaf_sees_what_was_written_before_it_in_any_schedule() {
    // One page into a table that is there, two pages of which one goes there, a leaf into the root.
    for (iova, length) in [(PAGE, PAGE), (PAGE, 2 * PAGE), (2 * PAGE, 2 * PAGE)] {
        model(move || {
            let (quiesce, mut writer, reader) = made::<Two>();
            writer.map(Iova(0), &[run(0x1_0000, PAGE)], RW).expect("mapped");
            let data = Arc::new(AtomicU64::new(0));
            let seen = Arc::clone(&data);
            let other = thread::spawn(move || {
                let _section = Section::enter(&*quiesce);
                if pa_of(&reader, iova).is_some() {
                    assert_eq!(seen.load(Ordering::Relaxed), 1);
                }
            });
            data.store(1, Ordering::Relaxed);
            writer.map(Iova(iova), &[run(0x2_0000 + iova, length)], RW).expect("mapped");
            other.join().expect("no panic");
        });
    }
}

fn a_split_leaf_is_always_found<F: Format>(length: u64) {
    model(move || {
        let (quiesce, mut writer, reader) = made::<F>();
        writer.map(Iova(0), &[run(0x4_0000, length)], RW).expect("mapped");
        let other = thread::spawn(move || {
            let _section = Section::enter(&*quiesce);
            assert_eq!(pa_of(&reader, PAGE), Some(0x4_1000));
            let written = reader.translate(Iova(0), 1, RW);
            assert_eq!(written.map(|run| run.pa), Ok(Pa(0x4_0000)));
        });
        writer.cut(Iova(PAGE)).expect("there is memory");
        other.join().expect("no panic");
        let mut dirty = Vec::new();
        writer.read_dirty(IovaRange::ALL, Dirty::Keep, &mut |range| dirty.push(range));
        assert!(dirty.iter().any(|range| range.start() == Iova(0)), "the write is lost");
    });
}

#[test]
fn a_leaf_that_is_split_is_always_found_in_any_schedule() {
    a_split_leaf_is_always_found::<Two>(2 * PAGE);
}

#[test]
fn a_leaf_that_is_broken_before_it_is_split_is_always_found_in_any_schedule() {
    a_split_leaf_is_always_found::<Tiny<1, false, true>>(2 * PAGE);
}

#[test]
fn a_leaf_of_two_items_that_is_split_is_always_found_in_any_schedule() {
    a_split_leaf_is_always_found::<Tiny<0, true>>(2 * PAGE);
    a_split_leaf_is_always_found::<Tiny<0, true, true>>(2 * PAGE);
}

/// What is written to one page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writes {
    One,
    Two,
    TwoThroughIotlb,
}

/// A copy as live migration makes it: harvest, wait, copy. A write that the copy lacks is told by
/// the next harvest.
fn no_write_is_lost<F: Format>(length: u64, asked: IovaRange, writes: Writes) {
    model(move || {
        let (quiesce, mut writer, reader) = made::<F>();
        writer.map(Iova(0), &[run(0x4_0000, length)], RW).expect("mapped");
        let data = Arc::new(AtomicU64::new(0));
        let (theirs, sections) = (Arc::clone(&data), Arc::clone(&quiesce));
        let other = thread::spawn(move || {
            let mut iotlb = Iotlb::new();
            let space = iotlb.attach(0, Arc::clone(&reader) as _).expect("attached");
            for value in 1..=if writes == Writes::One { 1 } else { 2 } {
                let _section = Section::enter(&*sections);
                let found = if writes == Writes::TwoThroughIotlb {
                    iotlb.translate(space, Iova(PAGE), 1, RW)
                } else {
                    reader.translate(Iova(PAGE), 1, RW)
                };
                assert_eq!(found.map(|run| run.pa), Ok(Pa(0x4_1000)));
                theirs.store(value, Ordering::Relaxed);
            }
        });
        writer.read_dirty(asked, Dirty::Clear, &mut |_| {});
        quiesce.wait();
        let copied = data.load(Ordering::Relaxed);
        other.join().expect("no panic");
        let mut told = false;
        writer.read_dirty(asked, Dirty::Keep, &mut |_| told = true);
        assert!(told || copied == data.load(Ordering::Relaxed), "a write is lost");
    });
}

#[test]
fn a_write_is_copied_or_told_in_any_schedule() {
    no_write_is_lost::<Two>(2 * PAGE, range(0, 4 * PAGE), Writes::One);
    no_write_is_lost::<Tiny<2>>(2 * PAGE, range(0, 2 * PAGE), Writes::One);
    // Marks of two levels are taken.
    no_write_is_lost::<Tiny<2>>(2 * PAGE, range(0, 8 * PAGE), Writes::One);
}

/// The first write leaves marks while a harvest takes them, the second finds the leaf dirty and
/// leaves none: what the first left has to lead the next harvest there. A mark of a table without
/// those above it, or one that is seen before what it stands for, would not.
#[test]
fn a_write_to_what_was_dirty_already_is_copied_or_told_in_any_schedule() {
    no_write_is_lost::<Three>(2 * PAGE, range(0, 8 * PAGE), Writes::Two);
    no_write_is_lost::<Two>(2 * PAGE, range(0, 4 * PAGE), Writes::Two);
}

/// The second comes while the mark of the first is taken.
#[test]
fn the_second_of_two_writes_is_told_in_any_schedule() {
    model(|| {
        let (quiesce, mut writer, reader) = made::<Two>();
        writer.map(Iova(0), &[run(0x4_1000, 2 * PAGE)], RW).expect("mapped as two leaves");
        let other = thread::spawn(move || {
            for page in [0, 1] {
                let _section = Section::enter(&*quiesce);
                assert!(reader.translate(Iova(page * PAGE), 1, RW).is_ok());
            }
        });
        let mut told = Vec::new();
        writer.read_dirty(IovaRange::ALL, Dirty::Clear, &mut |range| told.push(range));
        other.join().expect("no panic");
        writer.read_dirty(IovaRange::ALL, Dirty::Clear, &mut |range| told.push(range));
        for page in [0, 1] {
            let page = range(page * PAGE, PAGE);
            assert!(told.iter().any(|told| told.contains(page)), "{page:?} is lost: {told:?}");
        }
    });
}

#[test]
fn a_write_to_a_leaf_that_is_split_for_a_harvest_is_copied_or_told_in_any_schedule() {
    no_write_is_lost::<Two>(2 * PAGE, range(PAGE, PAGE), Writes::One);
    no_write_is_lost::<Tiny<1, false, true>>(2 * PAGE, range(PAGE, PAGE), Writes::One);
}

#[test]
fn a_write_through_the_iotlb_is_copied_or_told_in_any_schedule() {
    no_write_is_lost::<Two>(2 * PAGE, range(0, 4 * PAGE), Writes::TwoThroughIotlb);
}

#[test]
fn a_write_outlives_a_change_of_permissions_in_any_schedule() {
    model(|| {
        let (quiesce, mut writer, reader) = made::<Two>();
        writer.map(Iova(0), &[run(0x4_0000, PAGE)], RW).expect("mapped");
        let other = thread::spawn(move || {
            let _section = Section::enter(&*quiesce);
            reader.translate(Iova(0), 1, RW).is_ok()
        });
        writer.protect(range(0, PAGE), Prot::READ).expect("protected");
        let written = other.join().expect("no panic");
        let mut told = false;
        writer.read_dirty(IovaRange::ALL, Dirty::Keep, &mut |_| told = true);
        assert_eq!(told, written);
    });
}

/// What an unmap took is not used once the wait is over, whoever remembers it.
fn nothing_old_is_used(find: fn((&mut Iotlb, SpaceId), &mut WalkCache<Three>) -> bool) {
    model(move || {
        let (quiesce, mut writer, reader) = made::<Three>();
        writer.map(Iova(0), &[run(0x1_0000, PAGE), run(0x4_0000, PAGE)], RW).expect("mapped");
        let gone = Arc::new(AtomicU64::new(0));
        let (is_gone, sections) = (Arc::clone(&gone), Arc::clone(&quiesce));
        let other = thread::spawn(move || {
            let mut cache = WalkCache::new(Arc::clone(&reader));
            let mut iotlb = Iotlb::new();
            let space = iotlb.attach(0, reader as _).expect("attached");
            for _ in 0..2 {
                let _section = Section::enter(&*sections);
                if find((&mut iotlb, space), &mut cache) {
                    assert_eq!(is_gone.load(Ordering::Relaxed), 0, "unmapped, waited for, and hit");
                }
            }
        });
        writer.clear(range(0, 2 * PAGE));
        quiesce.wait();
        gone.store(1, Ordering::Relaxed);
        other.join().expect("no panic");
    });
}

#[test]
fn what_was_unmapped_is_not_hit_after_the_wait_in_any_schedule() {
    nothing_old_is_used(|(iotlb, space), _| iotlb.translate(space, Iova(0), 1, Prot::READ).is_ok());
}

#[test]
fn a_remembered_table_is_not_used_after_the_wait_in_any_schedule() {
    nothing_old_is_used(|_, cache| cache.iova_to_phys(Iova(0)).is_some());
}

#[test]
fn a_remembered_table_is_not_taken_for_that_of_others_in_any_schedule() {
    model(|| {
        let (quiesce, mut writer, reader) = made::<Three>();
        writer.map(Iova(0), &[run(0x1_0000, PAGE)], RW).expect("mapped");
        let mut cache = WalkCache::new(reader);
        assert_eq!(cache.iova_to_phys(Iova(0)), Some(Pa(0x1_0000)));
        let other = thread::spawn(move || {
            for _ in 0..2 {
                let _section = Section::enter(&*quiesce);
                let found = cache.iova_to_phys(Iova(0));
                assert!(matches!(found, None | Some(Pa(0x1_0000))), "{found:x?}");
            }
        });
        writer.unmap(range(0, PAGE), &mut |_, _| {}).expect("unmapped");
        writer.trim();
        writer.map(Iova(4 * PAGE), &[run(0x3_0000, PAGE)], RW).expect("mapped");
        other.join().expect("no panic");
    });
}

/// Two places for three changes: one is overwritten while it is read.
#[test]
fn every_change_is_told_in_any_schedule() {
    model(|| {
        let changes = Arc::new(Changes::default());
        let theirs = Arc::clone(&changes);
        let other = thread::spawn(move || {
            let mut seen = 0;
            for _ in 0..2 {
                let (mut told, mut all) = (Vec::new(), false);
                let upto = theirs.since(seen, |range| {
                    all |= range == IovaRange::ALL;
                    told.push(range);
                });
                let missed = (seen..upto).find(|&page| !told.contains(&range(page << 12, PAGE)));
                assert!(all || missed.is_none(), "{missed:?} of {seen}..{upto} is missed");
                seen = upto;
            }
        });
        (0..3).for_each(|page| changes.add(range(page << 12, PAGE)));
        other.join().expect("no panic");
    });
}
