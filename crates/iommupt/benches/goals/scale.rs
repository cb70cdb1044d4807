//! What an operation costs in a large space beside a small one: the order is the format's levels,
//! whatever is mapped.
//!
//! Words touched are counted by the crate's tests and are the same. Here is the time, which also
//! has the misses of a larger table: so pages are taken in turn, as a client's are, and at random
//! beside an array of as many words.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use ioasis_iommupt::areas::Areas;
use ioasis_iommupt::fmt::VtdSs;
use ioasis_iommupt::{Iova, IovaRange, Pa, Prot, Reader, Run, Writer};

use crate::peers::{LARGE, PAGE, RW, ours};
use crate::{Bound, Numbers, Report, race};

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const TIMES: u64 = 20_000;

pub(crate) fn run(report: &Report) {
    if !report.wants("scale") {
        return;
    }
    pages(report);
    large_pages(report);
    areas(report);
    churn(report);
}

fn range(start: u64, length: u64) -> IovaRange {
    IovaRange::new(Iova(start), length).expect("a range")
}

fn filled(length: u64, leaf: u64) -> (Writer<VtdSs>, std::sync::Arc<Reader<VtdSs>>) {
    let (mut writer, reader) = ours::<VtdSs>(leaf);
    writer.map(Iova(0), &[Run { pa: Pa(0), length }], RW).expect("mapped");
    (writer, reader)
}

/// Unmaps and maps each.
fn replace(writer: &mut Writer<VtdSs>, iovas: &[u64], leaf: u64) {
    for &iova in iovas {
        writer.unmap(range(iova, leaf), &mut |_, _| {}).expect("no leaf is split");
        let run = Run { pa: Pa(black_box(iova)), length: leaf };
        writer.map(Iova(iova), &[run], RW).expect("mapped");
    }
}

/// One leaf after another, from a few places all over the space.
fn in_turn(length: u64, leaf: u64) -> Vec<u64> {
    let mut numbers = Numbers::new();
    let place = |numbers: &mut Numbers| numbers.below(length / leaf / 256) * 256 * leaf;
    let (each, mut iovas) = (250, Vec::new());
    while (iovas.len() as u64) < TIMES {
        let from = place(&mut numbers);
        iovas.extend((0..each).map(|n| from + n * leaf));
    }
    iovas
}

/// 4 KiB pages: 2 MiB of table, and 2 GiB.
fn pages(report: &Report) {
    let mut turn = [0.0; 2];
    let mut random = [[0.0; 3]; 2];
    for (n, length) in [GIB, TIB].into_iter().enumerate() {
        let (mut writer, reader) = filled(length, PAGE);
        let iovas = in_turn(length, PAGE);
        [turn[n]] = race(TIMES, |_| replace(&mut writer, &iovas, PAGE));
        let mut numbers = Numbers::new();
        let far: Vec<u64> = (0..TIMES).map(|_| numbers.below(length / PAGE) * PAGE).collect();
        let mut words: Vec<u64> = (0..length / PAGE).collect();
        random[n] = race(TIMES, |contestant| match contestant {
            0 => replace(&mut writer, &far, PAGE),
            1 => far.iter().for_each(|&iova| {
                black_box(reader.translate(Iova(iova), 64, Prot::READ)).expect("mapped");
            }),
            _ => far.iter().for_each(|&iova| words[(iova / PAGE) as usize] ^= 1),
        });
        black_box(words);
    }
    report.note("unmap and map 4k in turn, 1 GiB", turn[0], "ns");
    report.note("unmap and map 4k in turn, 1 TiB", turn[1], "ns");
    report.line("scale.map_4k_1t", turn[1] / turn[0], Bound::Max(1.5));
    let [small, large] = random;
    let missed = large[2] - small[2];
    report.note("unmap and map 4k at random, 1 GiB", small[0], "ns");
    report.note("unmap and map 4k at random, 1 TiB", large[0], "ns");
    report.note("translate at random, 1 GiB", small[1], "ns");
    report.note("translate at random, 1 TiB", large[1], "ns");
    report.note("a word of an array at random, 16 MiB less", missed, "ns more");
    // A word a level, the table's segment in the list of them, and what the writer knows of the
    // table.
    report.line("scale.map_4k_1t_misses", (large[0] - small[0]) / missed, Bound::Max(6.0));
    report.line("scale.translate_4k_1t_misses", (large[1] - small[1]) / missed, Bound::Max(4.0));
}

/// 2 MiB leaves.
fn large_pages(report: &Report) {
    let times = [GIB, TIB].map(|length| {
        let (mut writer, _reader) = filled(length, LARGE);
        let iovas = in_turn(length, LARGE);
        let [time] = race(TIMES, |_| replace(&mut writer, &iovas, LARGE));
        time
    });
    report.note("unmap and map 2m in turn, 1 GiB", times[0], "ns");
    report.note("unmap and map 2m in turn, 1 TiB", times[1], "ns");
    report.line("scale.map_2m_1t", times[1] / times[0], Bound::Max(1.5));
}

/// A thousand areas and a million, removed and inserted at random: how many ns more, beside those
/// more of a `BTreeMap`.
fn areas(report: &Report) {
    let area = |n: u64| range((n + 1) * 2 * PAGE, PAGE);
    let [small, large] = [1 << 10, 1 << 20].map(|count| {
        let mut areas = Areas::new();
        (0..count).for_each(|n| areas.insert(area(n), n).expect("inserted"));
        let mut tree: BTreeMap<u64, (u64, u64)> =
            (0..count).map(|n| (area(n).last().0, (area(n).start().0, n))).collect();
        let mut numbers = Numbers::new();
        let order: Vec<u64> = (0..TIMES).map(|_| numbers.below(count)).collect();
        let times: [f64; 2] = race(TIMES, |contestant| {
            for &n in &order {
                if contestant == 0 {
                    let (range, value) = areas.remove(area(n).start()).expect("there");
                    areas.insert(range, value).expect("inserted");
                } else {
                    let old = tree.remove(&area(n).last().0).expect("there");
                    tree.insert(area(n).last().0, old);
                }
            }
        });
        times
    });
    report.note("remove and insert, 1k areas", small[0], "ns");
    report.note("remove and insert, 1m areas", large[0], "ns");
    report.note("the same of a BTreeMap, 1k", small[1], "ns");
    report.note("the same of a BTreeMap, 1m", large[1], "ns");
    let more = (large[0] - small[0]) / (large[1] - small[1]);
    report.line("scale.areas_1m_misses_vs_btreemap", more, Bound::Max(1.2));
}

/// 64 generations of holes of other sizes than those before, each into what the last left.
fn churn(report: &Report) {
    const GENERATIONS: usize = 64;
    let mut rounds = [[0.0; GENERATIONS]; 9];
    for times in &mut rounds {
        let (mut writer, _reader) = filled(GIB, u64::MAX);
        let mut numbers = Numbers::new();
        for time in times.iter_mut() {
            let begun = Instant::now();
            let mut pages = 0;
            for _ in 0..512 {
                // A place of its own for each size, so that what is unmapped is what was mapped
                // there in another size.
                let size = 1_u64 << numbers.below(8);
                let at = numbers.below(GIB / PAGE / 256) * 256 * PAGE;
                let length = size * PAGE;
                writer.unmap(range(at, length), &mut |_, _| {}).expect("there is memory");
                let odd = numbers.below(512) * PAGE;
                writer.map(Iova(at), &[Run { pa: Pa(at + odd), length }], RW).expect("a hole");
                pages += size;
            }
            *time = begun.elapsed().as_secs_f64() * 1e9 / pages as f64;
        }
    }
    let median = |of: &dyn Fn(&[f64; GENERATIONS]) -> f64| {
        let mut times: Vec<f64> = rounds.iter().map(of).collect();
        times.sort_unstable_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let first = median(&|times| times[..4].iter().sum::<f64>() / 4.0);
    let last = median(&|times| times[GENERATIONS - 4..].iter().sum::<f64>() / 4.0);
    report.note("churn, generations 1 to 4", first, "ns a page");
    report.note("churn, generations 61 to 64", last, "ns a page");
    report.line("scale.churn_64", last / first, Bound::Max(1.2));
}
