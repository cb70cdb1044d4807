//! P4 to P7: mapping and unmapping.

use std::hint::black_box;

use ioasis_iommupt::fmt::{AmdV1, ArmS1, Sv48, VtdSs, X86_64};
use ioasis_iommupt::{Format, Iova, IovaRange, Pa, Run};
use memory_addr::{PhysAddr, VirtAddr};

use crate::peers::{FLAGS, PAGE, RW, multiarch, multiarch_map, ours};
use crate::{Bound, Report, medians, race};

const GIB: u64 = 1 << 30;
const PAGES: u64 = GIB / PAGE;

pub(crate) fn run(report: &Report) {
    if report.wants("P4") {
        one_page::<VtdSs>(report, "vtdss");
        one_page::<AmdV1>(report, "amdv1");
        one_page::<X86_64>(report, "x86_64");
        one_page::<Sv48>(report, "sv48");
        one_page::<ArmS1>(report, "arm_s1_4k");
    }
    if report.wants("P5") {
        many_pages::<VtdSs>(report, "vtdss");
        many_pages::<AmdV1>(report, "amdv1");
        gibibyte::<VtdSs>(report, "vtdss");
        gibibyte::<AmdV1>(report, "amdv1");
    }
    if report.wants("P6") {
        scattered::<VtdSs>(report, "vtdss");
        scattered::<AmdV1>(report, "amdv1");
    }
    if report.wants("P7") {
        gathered::<VtdSs>(report, "vtdss");
        gathered::<AmdV1>(report, "amdv1");
    }
}

fn range(start: u64, length: u64) -> IovaRange {
    IovaRange::new(Iova(start), length).expect("a range")
}

/// P4: one page mapped and unmapped, over and over, beside others that stay.
fn one_page<F: Format>(report: &Report, name: &str) {
    const TIMES: u64 = 20_000;
    let (mut writer, _reader) = ours::<F>(PAGE);
    let mut peer = multiarch();
    writer.map(Iova(0), &[Run { pa: Pa(0), length: PAGE }], RW).expect("mapped");
    multiarch_map(&mut peer, 0, 0);
    let iovas: Vec<u64> = (0..TIMES).map(|n| (1 + n % 500) * PAGE).collect();
    // Pairs, and pairs with each half twice, so that both halves can be told apart.
    let [pair, peer_pair] = race(TIMES, |contestant| {
        for &iova in &iovas {
            if contestant == 0 {
                let run = Run { pa: Pa(black_box(iova)), length: PAGE };
                writer.map(Iova(iova), &[run], RW).expect("mapped");
                writer
                    .unmap(range(iova, PAGE), &mut |_, run| {
                        black_box(run);
                    })
                    .expect("unmapped");
            } else {
                multiarch_map(&mut peer, iova, black_box(iova));
                black_box(peer.cursor().unmap(VirtAddr::from(iova as usize)).expect("unmapped"));
            }
        }
    });
    // Maps of a batch, then unmaps of it; only the unmaps are timed by the difference.
    let [maps, peer_maps] = batch::<F>(&mut writer, &mut peer);
    report.note(&format!("map 4k {name}: ours"), maps, "ns");
    report.note(&format!("map 4k {name}: page_table_multiarch"), peer_maps, "ns");
    let (unmaps, peer_unmaps) = (pair - maps, peer_pair - peer_maps);
    report.note(&format!("unmap 4k {name}: ours"), unmaps, "ns");
    report.note(&format!("unmap 4k {name}: page_table_multiarch"), peer_unmaps, "ns");
    report.line(&format!("P4.map_4k.{name}"), maps / peer_maps, Bound::Max(1.2));
    report.line(&format!("P4.unmap_4k.{name}"), unmaps / peer_unmaps, Bound::Max(2.0));
}

/// Nanoseconds of one map, timed alone over the rest of a table.
fn batch<F: Format>(
    writer: &mut ioasis_iommupt::Writer<F>,
    peer: &mut crate::peers::Multiarch,
) -> [f64; 2] {
    let mut rounds = [[0.0; 2]; 99];
    for times in &mut rounds {
        let begun = std::time::Instant::now();
        for n in 1..500 {
            let run = Run { pa: Pa(black_box(n * PAGE)), length: PAGE };
            writer.map(Iova(n * PAGE), &[run], RW).expect("mapped");
        }
        times[0] = begun.elapsed().as_secs_f64() * 1e9 / 499.0;
        writer.unmap(range(PAGE, 499 * PAGE), &mut |_, _| {}).expect("unmapped");
        let begun = std::time::Instant::now();
        for n in 1..500 {
            multiarch_map(peer, n * PAGE, black_box(n * PAGE));
        }
        times[1] = begun.elapsed().as_secs_f64() * 1e9 / 499.0;
        for n in 1..500 {
            peer.cursor().unmap(VirtAddr::from((n * PAGE) as usize)).expect("unmapped");
        }
    }
    medians(&rounds)
}

/// P5: 256 pages in one call. The unmap is part of both.
fn many_pages<F: Format>(report: &Report, name: &str) {
    const TIMES: usize = 2000;
    let (mut writer, _reader) = ours::<F>(PAGE);
    let mut peer = multiarch();
    writer.map(Iova(511 * PAGE), &[Run { pa: Pa(0), length: PAGE }], RW).expect("mapped");
    let length = 256 * PAGE;
    let mut rounds = [[0.0; 2]; TIMES];
    for times in &mut rounds {
        let begun = std::time::Instant::now();
        writer.map(Iova(0), &[Run { pa: Pa(black_box(GIB)), length }], RW).expect("mapped");
        times[0] = begun.elapsed().as_secs_f64() * 1e9;
        writer.clear(range(0, length));
        let begun = std::time::Instant::now();
        let (iova, pa) = (VirtAddr::from(0), black_box(GIB) as usize);
        peer.cursor()
            .map_region(
                iova,
                |at| PhysAddr::from(at.as_usize() + pa),
                length as usize,
                FLAGS,
                false,
            )
            .expect("mapped");
        times[1] = begun.elapsed().as_secs_f64() * 1e9;
        peer.cursor().unmap_region(iova, length as usize).expect("unmapped");
    }
    let [ours, peer] = medians(&rounds);
    report.note(&format!("map 256 x 4k {name}: ours"), ours, "ns");
    report.note(&format!("map 256 x 4k {name}: page_table_multiarch"), peer, "ns");
    report.line(&format!("P5.map_256.{name}"), peer / ours, Bound::Min(10.0));
}

/// P5: a gibibyte as 4 KiB leaves. The tables are made anew each time, from memory that was used
/// before.
fn gibibyte<F: Format>(report: &Report, name: &str) {
    let (mut writer, _reader) = ours::<F>(PAGE);
    let mut times = [0.0; 19];
    for time in &mut times {
        let begun = std::time::Instant::now();
        writer.map(Iova(0), &[Run { pa: Pa(0), length: GIB }], RW).expect("mapped");
        *time = begun.elapsed().as_secs_f64() * 1e9 / PAGES as f64;
        writer.clear(range(0, GIB));
    }
    report.note(&format!("map 1g as 4k {name}, memory never used before"), times[0], "ns a page");
    times.sort_unstable_by(f64::total_cmp);
    report.line(&format!("P5.map_1g_as_4k.{name}"), times[9], Bound::Max(0.6));
}

/// P6: a list of scattered pages in one call, against a call a page.
fn scattered<F: Format>(report: &Report, name: &str) {
    let (mut writer, _reader) = ours::<F>(u64::MAX);
    let mut peer = multiarch();
    let runs: Vec<Run> = (0..PAGES)
        .map(|n| Run { pa: Pa((n * 0x9e37_79b1 % PAGES) * 2 * PAGE), length: PAGE })
        .collect();
    // The first round makes the tables' memory.
    let mut rounds = [[0.0; 2]; 10];
    for times in &mut rounds {
        let begun = std::time::Instant::now();
        writer.map(Iova(0), &runs, RW).expect("mapped");
        let ours = begun.elapsed().as_secs_f64() * 1e9 / PAGES as f64;
        writer.clear(range(0, GIB));
        let begun = std::time::Instant::now();
        for (n, run) in (0..).zip(&runs) {
            multiarch_map(&mut peer, n * PAGE, run.pa.0);
        }
        let theirs = begun.elapsed().as_secs_f64() * 1e9 / PAGES as f64;
        peer = multiarch();
        *times = [ours, theirs];
    }
    let [ours, peer] = medians(&rounds[1..]);
    report.note(&format!("map scattered 1g {name}: ours"), ours, "ns a page");
    report.note(&format!("map scattered 1g {name}: page_table_multiarch"), peer, "ns a page");
    report.line(&format!("P6.map_scattered_1g.{name}"), peer / ours, Bound::Min(5.0));
}

/// P7: a gibibyte of 4 KiB leaves unmapped, with the old addresses gathered.
fn gathered<F: Format>(report: &Report, name: &str) {
    let (mut writer, _reader) = ours::<F>(PAGE);
    let mut peer = multiarch();
    let mut rounds = [[0.0; 2]; 9];
    for times in &mut rounds {
        writer.map(Iova(0), &[Run { pa: Pa(0), length: GIB }], RW).expect("mapped");
        let mut runs = 0;
        let begun = std::time::Instant::now();
        writer.unmap(range(0, GIB), &mut |_, _| runs += 1).expect("unmapped");
        times[0] = begun.elapsed().as_secs_f64() * 1e9 / PAGES as f64;
        assert_eq!(runs, 1);
        for n in 0..PAGES {
            multiarch_map(&mut peer, n * PAGE, n * PAGE);
        }
        let begun = std::time::Instant::now();
        for n in 0..PAGES {
            let iova = VirtAddr::from((n * PAGE) as usize);
            black_box(peer.cursor().unmap(iova).expect("unmapped"));
        }
        times[1] = begun.elapsed().as_secs_f64() * 1e9 / PAGES as f64;
    }
    let [ours, peer] = medians(&rounds);
    report.note(&format!("unmap 1g {name}: ours"), ours, "ns a page");
    report.note(&format!("unmap 1g {name}: page_table_multiarch"), peer, "ns a page");
    report.line(&format!("P7.unmap_1g.{name}"), peer / ours, Bound::Min(6.0));
}
