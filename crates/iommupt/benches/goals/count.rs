//! Instructions, counted by callgrind: this program runs itself twice under it and takes the
//! difference.

use std::hint::black_box;
use std::process::Command;
use std::sync::Arc;

use ioasis_iommupt::fmt::VtdSs;
use ioasis_iommupt::iotlb::Iotlb;
use ioasis_iommupt::{Dirty, Iova, IovaRange, Pa, Prot, Run, TableReader};

use crate::peers::{LARGE, PAGE, RW, filled, ours};
use crate::{Bound, Report};

const FEW: u64 = 1_000;
const MANY: u64 = 11_000;

pub(crate) fn run(report: &Report) {
    let lines = [
        ("P1.hit_instructions", "hit", "loop", 45.0),
        ("P3.iova_to_phys_instructions", "iova_to_phys", "loop", 70.0),
        ("P4.map_4k_instructions.vtdss", "map", "loop", 160.0),
        ("P4.unmap_4k_instructions.vtdss", "unmap", "loop", 160.0),
        ("P9.harvest_64th_instructions.vtdss", "harvest", "marked", 450.0),
    ];
    for (goal, name, without, limit) in lines {
        if !report.wants(goal) {
            continue;
        }
        match (instructions(name), instructions(without)) {
            (Some(all), Some(without)) => report.line(goal, all - without, Bound::Max(limit)),
            _ => println!("  {goal}: callgrind is not installed, nothing was counted"),
        }
    }
}

/// Instructions of one turn.
fn instructions(name: &str) -> Option<f64> {
    let collected = |times: u64| -> Option<f64> {
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(std::env::current_exe().ok()?)
            .env("IOASIS_COUNT", format!("{name}:{times}"))
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stderr);
        let line = text.lines().find(|line| line.contains("Collected"))?;
        line.rsplit(':').next()?.trim().parse().ok()
    };
    Some((collected(MANY)? - collected(FEW)?) / (MANY - FEW) as f64)
}

/// What is counted.
pub(crate) fn counted(what: &str) {
    let (name, times) = what.split_once(':').expect("name:times");
    let times: u64 = times.parse().expect("a number");
    match name {
        "loop" => (0..times).for_each(|n| {
            black_box(n);
        }),
        "hit" => {
            let (_writer, reader) = filled::<VtdSs>(1, LARGE);
            let mut iotlb = Iotlb::new();
            let space = iotlb.attach(0, reader as Arc<dyn TableReader>).expect("attached");
            for n in 0..times {
                let run = iotlb.translate(space, Iova(black_box(n)), 64, Prot::READ);
                black_box(run.expect("mapped").pa.0);
            }
        }
        "iova_to_phys" => {
            let (_writer, reader) = filled::<VtdSs>(1, PAGE);
            for n in 0..times {
                black_box(reader.iova_to_phys(Iova(black_box(n & 4095))));
            }
        }
        "map" => {
            let (mut writer, _reader) = ours::<VtdSs>(PAGE);
            for n in 0..times {
                let run = Run { pa: Pa(black_box(n * PAGE)), length: PAGE };
                writer.map(Iova(black_box(n * PAGE)), &[run], RW).expect("mapped");
            }
        }
        "unmap" => {
            let (mut writer, _reader) = ours::<VtdSs>(PAGE);
            let length = MANY * PAGE;
            writer.map(Iova(0), &[Run { pa: Pa(0), length }], RW).expect("mapped");
            for n in 0..times {
                let range = IovaRange::new(Iova(black_box(n * PAGE)), PAGE).expect("a page");
                writer
                    .unmap(range, &mut |_, run| {
                        black_box(run);
                    })
                    .expect("unmapped");
            }
        }
        "marked" | "harvest" => {
            let (mut writer, reader) = ours::<VtdSs>(PAGE);
            let length = times * 64 * PAGE;
            writer.map(Iova(0), &[Run { pa: Pa(0), length }], RW).expect("mapped");
            for n in 0..times {
                reader.translate(Iova(n * 64 * PAGE), 1, RW).expect("mapped");
            }
            let mut found = 0;
            if name == "harvest" {
                writer.read_dirty(IovaRange::ALL, Dirty::Clear, &mut |_| found += 1);
            }
            black_box(found);
        }
        _ => panic!("nothing is called {name}"),
    }
}
