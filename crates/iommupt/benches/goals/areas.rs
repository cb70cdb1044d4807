//! P8: areas.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use ioasis_iommupt::areas::{Areas, Ranges, Wanted};
use ioasis_iommupt::{Iova, IovaRange};
use vm_allocator::{AddressAllocator, AllocPolicy};

use crate::{Bound, Numbers, Report, race};

const PAGE: u64 = 4096;

fn page(n: u64) -> IovaRange {
    IovaRange::new(Iova((n + 1) * 2 * PAGE), PAGE).expect("a page")
}

/// `count` pages with a page's hole between each two.
fn filled(count: u64) -> Areas<u64> {
    let mut areas = Areas::new();
    for n in 0..count {
        areas.insert(page(n), n).expect("inserted");
    }
    areas
}

pub(crate) fn run(report: &Report) {
    if !report.wants("P8") {
        return;
    }
    replaced(report);
    first_fit(report);
}

/// Remove and insert at 100k, in random order.
fn replaced(report: &Report) {
    const TIMES: u64 = 100_000;
    for (name, count) in [("1k", 1 << 10), ("100k", 100_000), ("1m", 1 << 20)] {
        let mut areas = filled(count);
        let mut tree: BTreeMap<u64, (u64, u64)> =
            (0..count).map(|n| (page(n).last().0, (page(n).start().0, n))).collect();
        let mut numbers = Numbers::new();
        let order: Vec<u64> = (0..TIMES).map(|_| numbers.below(1 << 20) % count).collect();
        let [ours, peer] = race(TIMES, |contestant| {
            for &n in &order {
                if contestant == 0 {
                    let (range, value) = areas.remove(page(n).start()).expect("there");
                    areas.insert(range, value).expect("inserted");
                } else {
                    let old = tree.remove(&page(n).last().0).expect("there");
                    tree.insert(page(n).last().0, old);
                }
            }
        });
        report.note(&format!("remove and insert {name}: ours"), ours, "ns");
        report.note(&format!("remove and insert {name}: BTreeMap"), peer, "ns");
        if name == "100k" {
            report.line("P8.remove_insert.100k", ours / peer, Bound::Max(1.0));
        }
    }
}

/// The first hole of eight pages lies behind every area.
fn first_fit(report: &Report) {
    let wanted = Wanted { length: 8 * PAGE, address: 0, alignment: PAGE };
    let (allowed, reserved) = (Ranges::new(), Ranges::new());
    let mut times = [0.0; 3];
    for (time, count) in times.iter_mut().zip([1 << 10, 100_000, 1 << 20]) {
        let mut areas = filled(count);
        let [ours] = race(10_000, |_| {
            for _ in 0..10_000 {
                black_box(areas.find_free(black_box(wanted), &allowed, &reserved)).expect("found");
            }
        });
        report.note(&format!("first fit {count}: ours"), ours, "ns");
        *time = ours;
    }
    report.line("P8.first_fit.1m_vs_1k", times[2] / times[0], Bound::Max(3.0));
    let tree: BTreeMap<u64, u64> =
        (0..100_000).map(|n| (page(n).last().0, page(n).start().0)).collect();
    let [scan] = race(1, |_| {
        let mut from = PAGE;
        for (&last, &start) in &tree {
            let at = from.next_multiple_of(8 * PAGE);
            if at + 8 * PAGE <= start {
                break;
            }
            from = last + 1;
        }
        black_box(from);
    });
    report.note("first fit 100k: BTreeMap scan", scan, "ns");
    report.line("P8.first_fit_vs_scan.100k", scan / times[1], Bound::Min(1000.0));
    let mut peer = AddressAllocator::new(0, 1 << 40).expect("an allocator");
    // A thousand, for filling it takes longer than its search.
    for n in 0..1024 {
        let policy = AllocPolicy::ExactMatch(page(n).start().0);
        peer.allocate(PAGE, PAGE, policy).expect("allocated");
    }
    let begun = Instant::now();
    for _ in 0..100 {
        let range = peer.allocate(8 * PAGE, 8 * PAGE, AllocPolicy::FirstMatch).expect("found");
        peer.free(&range).expect("freed");
    }
    let peer = begun.elapsed().as_secs_f64() * 1e9 / 100.0;
    report.note("first fit and free 1k: vm-allocator", peer, "ns");
}
