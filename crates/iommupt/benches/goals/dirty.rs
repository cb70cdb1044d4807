//! P9 and P10: dirty state.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ioasis_iommupt::fmt::{AmdV1, ArmS1, VtdSs};
use ioasis_iommupt::iotlb::Iotlb;
use ioasis_iommupt::{Dirty, Format, Iova, IovaRange, Pa, Prot, Run, TableReader};

use crate::peers::{PAGE, RW, ours};
use crate::{Bound, Numbers, Report, medians, race};

/// What is harvested: 64 GiB, whose tables are larger than the caches. 1 TiB is sixteen times as
/// much of the same.
const LENGTH: u64 = 64 << 30;
const LEAVES: u64 = LENGTH / PAGE;

pub(crate) fn run(report: &Report) {
    if report.wants("P9") {
        harvest::<VtdSs>(report, "vtdss");
        harvest::<AmdV1>(report, "amdv1");
    }
    if report.wants("P10") {
        marked_again::<VtdSs>(report, "vtdss");
        marked_again::<ArmS1>(report, "arm_s1_4k");
    }
}

fn range(start: u64, length: u64) -> IovaRange {
    IovaRange::new(Iova(start), length).expect("a range")
}

fn harvest<F: Format>(report: &Report, name: &str) {
    let (mut writer, reader) = ours::<F>(PAGE);
    writer.map(Iova(0), &[Run { pa: Pa(0), length: LENGTH }], RW).expect("mapped");
    let words: Vec<u64> = (0..LEAVES).map(|n| n << 12 | 3).collect();
    let raw = || words.iter().fold(0, |all, word| all | word);
    let everything = range(0, LENGTH);
    let mark = |each: u64| {
        for n in (0..LEAVES).step_by(each as usize) {
            reader.translate(Iova(n * PAGE), 1, Prot::WRITE).expect("mapped");
        }
    };
    // One leaf of each table is dirty and stays so: every table is looked at, and all but one leaf
    // is clean.
    mark(512);
    let [clean, read] = race(LEAVES, |contestant| {
        if contestant == 0 {
            let mut found = 0;
            writer.read_dirty(everything, Dirty::Keep, &mut |_| found += 1);
            assert_eq!(found, LEAVES / 512);
        } else {
            black_box(raw());
        }
    });
    report.note(&format!("harvest clean {name}"), clean, "ns a leaf");
    report.note("raw read", read, "ns a word");
    report.line(&format!("P9.harvest_clean.{name}"), clean / read, Bound::Max(2.0));
    let mut rounds = [[0.0; 2]; 9];
    for times in &mut rounds {
        mark(64);
        let mut found = 0;
        let begun = std::time::Instant::now();
        writer.read_dirty(everything, Dirty::Clear, &mut |_| found += 1);
        times[0] = begun.elapsed().as_secs_f64() * 1e9 / LEAVES as f64;
        assert_eq!(found, LEAVES / 64);
        let begun = std::time::Instant::now();
        black_box(raw());
        times[1] = begun.elapsed().as_secs_f64() * 1e9 / LEAVES as f64;
    }
    let [harvest, read] = medians(&rounds);
    report.note(&format!("harvest and clear 1/64 dirty {name}"), harvest, "ns a leaf");
    report.line(&format!("P9.harvest_64th.{name}"), harvest / read, Bound::Max(2.0));
    let [nothing] = race(LEAVES, |_| {
        writer.read_dirty(everything, Dirty::Clear, &mut |_| panic!("nothing is dirty"));
    });
    report.line(&format!("P9.harvest_nothing.{name}"), read / nothing, Bound::Min(100.0));
}

/// P10: what it costs that a page was dirty already, per translation for writing.
fn marked_again<F: Format>(report: &Report, name: &str) {
    const TIMES: u64 = 100_000;
    let (mut writer, reader) = ours::<F>(PAGE);
    writer.map(Iova(0), &[Run { pa: Pa(0), length: 1024 * PAGE }], RW).expect("mapped");
    let mut iotlb = Iotlb::new();
    let space = iotlb.attach(0, reader.clone() as Arc<dyn TableReader>).expect("attached");
    let mut numbers = Numbers::new();
    let looked: Vec<u64> = (0..TIMES).map(|_| numbers.below(1024) * PAGE).collect();
    let words: Vec<AtomicU64> = (0..1024).map(AtomicU64::new).collect();
    let [writes, reads, hit_writes, hit_reads, or, load] = race(TIMES, |contestant| {
        let sum = match contestant {
            0 | 1 => {
                let need = if contestant == 0 { Prot::WRITE } else { Prot::READ };
                looked.iter().fold(0, |sum: u64, &iova| {
                    sum.wrapping_add(reader.translate(Iova(iova), 64, need).expect("mapped").pa.0)
                })
            }
            2 | 3 => {
                let need = if contestant == 2 { Prot::WRITE } else { Prot::READ };
                looked.iter().fold(0, |sum: u64, &iova| {
                    let run = iotlb.translate(space, Iova(iova), 64, need).expect("mapped");
                    sum.wrapping_add(run.pa.0)
                })
            }
            4 => looked.iter().fold(0, |sum: u64, &iova| {
                let word = &words[(iova >> 12) as usize & 1023];
                sum.wrapping_add(word.fetch_or(1 << 9, Ordering::AcqRel))
            }),
            _ => looked.iter().fold(0, |sum: u64, &iova| {
                sum.wrapping_add(words[(iova >> 12) as usize & 1023].load(Ordering::Relaxed))
            }),
        };
        black_box(sum);
    });
    report.note(&format!("walk to write {name}"), writes, "ns");
    report.note(&format!("walk to read {name}"), reads, "ns");
    report.note(&format!("hit to write {name}"), hit_writes, "ns");
    report.note(&format!("hit to read {name}"), hit_reads, "ns");
    report.note("atomic or", or - load, "ns");
    report.line(
        &format!("P10.marked_again.{name}"),
        (writes - reads) / (or - load),
        Bound::Max(0.5),
    );
}
