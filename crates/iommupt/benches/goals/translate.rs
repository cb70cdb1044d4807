//! P1 to P3: translating.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use ioasis_iommupt::fmt::{AmdV1, ArmS1, ArmS2, Sv39x4, Sv48, VtdSs, X86_64};
use ioasis_iommupt::iotlb::Iotlb;
use ioasis_iommupt::{Format, Iova, Prot, TableReader, WalkCache};
use memory_addr::{PhysAddr, VirtAddr};
use rangemap::RangeMap;
use vm_memory::iommu::Iotlb as PeerIotlb;
use vm_memory::{GuestAddress, Permissions};

use crate::peers::{LARGE, PAGE, filled, multiarch, multiarch_map, target};
use crate::{Bound, Numbers, Report, race};

const LOOKUPS: u64 = 100_000;

pub(crate) fn run(report: &Report) {
    if report.wants("P1") {
        hits(report, "1_region", 1, 10.0);
        hits(report, "1k_2m", 1024, 30.0);
    }
    if report.wants("P2") {
        misses(report);
    }
    if report.wants("P3") {
        iova_to_phys::<VtdSs>(report, "vtdss");
        iova_to_phys::<AmdV1>(report, "amdv1");
        iova_to_phys::<X86_64>(report, "x86_64");
        iova_to_phys::<Sv48>(report, "sv48");
        iova_to_phys::<Sv39x4>(report, "sv39x4");
        iova_to_phys::<ArmS1>(report, "arm_s1_4k");
        iova_to_phys::<ArmS2<14>>(report, "arm_s2_16k");
        iova_to_phys::<ArmS1<16>>(report, "arm_s1_64k");
    }
}

fn addresses(count: u64, size: u64) -> Vec<u64> {
    let mut numbers = Numbers::new();
    (0..LOOKUPS).map(|_| numbers.below(count) * size + (numbers.below(size) & !63)).collect()
}

fn peer_iotlb(count: u64, size: u64) -> PeerIotlb {
    let mut iotlb = PeerIotlb::new();
    for n in 0..count {
        let (iova, pa) = (GuestAddress(n * size), GuestAddress(target(n, count, size)));
        iotlb.set_mapping(iova, pa, size as usize, Permissions::ReadWrite).expect("mapped");
    }
    iotlb
}

fn peer_lookup(iotlb: &PeerIotlb, iova: u64) -> u64 {
    let found =
        PeerIotlb::lookup(iotlb, GuestAddress(iova), 64, Permissions::Read).expect("mapped");
    found.map(|range| range.base.0).sum()
}

/// P1: hits of the IOTLB, with permission, length and change count checked.
fn hits(report: &Report, name: &str, count: u64, times: f64) {
    let (_writer, reader) = filled::<VtdSs>(count, LARGE);
    let mut iotlb = Iotlb::new();
    let space = iotlb.attach(0, reader as Arc<dyn TableReader>).expect("attached");
    let peer = peer_iotlb(count, LARGE);
    let array: Vec<u64> = (0..count).map(|n| target(n, count, LARGE)).collect();
    let addresses = addresses(count, LARGE);
    let [ours, peer, flat] = race(LOOKUPS, |contestant| {
        let sum = match contestant {
            0 => addresses.iter().fold(0, |sum: u64, &iova| {
                let run = iotlb.translate(space, Iova(iova), 64, Prot::READ).expect("mapped");
                sum.wrapping_add(run.pa.0)
            }),
            1 => addresses
                .iter()
                .fold(0, |sum: u64, &iova| sum.wrapping_add(peer_lookup(&peer, iova))),
            _ => addresses.iter().fold(0, |sum: u64, &iova| {
                let base = array.get((iova >> 21) as usize).expect("mapped");
                sum.wrapping_add(base + (iova & (LARGE - 1)))
            }),
        };
        black_box(sum);
    });
    report.note(&format!("hit {name}: ours"), ours, "ns");
    report.note(&format!("hit {name}: vm-memory"), peer, "ns");
    report.note(&format!("hit {name}: array"), flat, "ns");
    report.line(&format!("P1.hit_vs_vm_memory.{name}"), peer / ours, Bound::Min(times));
    report.line(&format!("P1.hit_vs_array.{name}"), ours / flat, Bound::Max(2.5));
}

/// P2: walks.
fn misses(report: &Report) {
    let count = 1 << 16;
    let (_writer, reader) = filled::<VtdSs>(count, LARGE);
    let peer = peer_iotlb(count, LARGE);
    let mut map = RangeMap::new();
    let mut tree = BTreeMap::new();
    for n in 0..count {
        map.insert(n * LARGE..(n + 1) * LARGE, target(n, count, LARGE).wrapping_sub(n * LARGE));
        tree.insert((n + 1) * LARGE - 1, target(n, count, LARGE).wrapping_sub(n * LARGE));
    }
    let looked = addresses(count, LARGE);
    let mut cache = WalkCache::new(Arc::clone(&reader));
    let [ours, iotlb, ranges, btree, plain] = race(LOOKUPS, |contestant| {
        let sum = match contestant {
            0 => looked.iter().fold(0, |sum: u64, &iova| {
                let run = cache.translate(Iova(iova), 64, Prot::READ).expect("mapped");
                sum.wrapping_add(run.pa.0)
            }),
            4 => looked.iter().fold(0, |sum: u64, &iova| {
                let run = reader.translate(Iova(iova), 64, Prot::READ).expect("mapped");
                sum.wrapping_add(run.pa.0)
            }),
            1 => {
                looked.iter().fold(0, |sum: u64, &iova| sum.wrapping_add(peer_lookup(&peer, iova)))
            }
            2 => looked.iter().fold(0, |sum: u64, &iova| {
                sum.wrapping_add(iova.wrapping_add(*map.get(&iova).expect("mapped")))
            }),
            _ => looked.iter().fold(0, |sum: u64, &iova| {
                let (_, offset) = tree.range(iova..).next().expect("mapped");
                sum.wrapping_add(iova.wrapping_add(*offset))
            }),
        };
        black_box(sum);
    });
    report.note("walk 64k_2m: ours, lowest table cached", ours, "ns");
    report.note("walk 64k_2m: ours, from the root", plain, "ns");
    report.note("walk 64k_2m: vm-memory", iotlb, "ns");
    report.note("walk 64k_2m: rangemap", ranges, "ns");
    report.note("walk 64k_2m: BTreeMap", btree, "ns");
    report.line("P2.walk_vs_vm_memory.64k_2m", iotlb / ours, Bound::Min(40.0));
    report.line("P2.walk_vs_rangemap.64k_2m", ranges / ours, Bound::Min(15.0));

    let count = 1 << 20;
    let (_writer, reader) = filled::<VtdSs>(count, PAGE);
    let mut cache = WalkCache::new(Arc::clone(&reader));
    let array: Vec<u64> = (0..count).map(|n| target(n, count, PAGE)).collect();
    let looked = addresses(count, PAGE);
    let lookup = |iova: u64| {
        let base = array.get((iova >> 12) as usize).expect("mapped");
        base + (iova & (PAGE - 1))
    };
    // Each address waits for the answer before it, whose lowest bit is never set: what is timed is
    // how long one lookup takes, not how many overlap.
    let [ours, flat] = race(LOOKUPS, |contestant| {
        let last = looked.iter().fold(0, |last: u64, &iova| {
            let iova = iova + (last & 1);
            if contestant == 0 {
                cache.iova_to_phys(Iova(iova)).expect("mapped").0
            } else {
                lookup(iova)
            }
        });
        black_box(last);
    });
    report.note("walk 1m_4k: ours, latency", ours, "ns");
    report.note("walk 1m_4k: array, latency", flat, "ns");
    report.line("P2.walk_vs_array.1m_4k", ours / flat, Bound::Max(1.5));
    // In two races, so that each finds the caches as the array left them.
    for name in ["lowest table cached", "from the root"] {
        let [ours, flat] = race(LOOKUPS, |contestant| {
            let addresses = looked.iter();
            let sum = match (contestant, name) {
                (0, "from the root") => addresses.fold(0, |sum: u64, &iova| {
                    sum.wrapping_add(reader.iova_to_phys(Iova(iova)).expect("mapped").0)
                }),
                (0, _) => addresses.fold(0, |sum: u64, &iova| {
                    sum.wrapping_add(cache.iova_to_phys(Iova(iova)).expect("mapped").0)
                }),
                _ => addresses.fold(0, |sum: u64, &iova| sum.wrapping_add(lookup(iova))),
            };
            black_box(sum);
        });
        report.note(&format!("walk 1m_4k: ours, overlapping, {name}"), ours, "ns");
        report.note("walk 1m_4k: array, overlapping", flat, "ns");
    }
}

/// P3: one hot address, and a thousand.
fn iova_to_phys<F: Format>(report: &Report, name: &str) {
    let page = 1 << F::GRANULE_LG2;
    let count = 1024;
    let (_writer, reader) = filled::<F>(count, page);
    let mut peer = multiarch();
    for n in 0..count {
        multiarch_map(&mut peer, n * PAGE, target(n, count, PAGE));
    }
    let ours_at = addresses(count, page);
    let peer_at = addresses(count, PAGE);
    let [ours, peer] = race(LOOKUPS, |contestant| {
        let sum = if contestant == 0 {
            ours_at.iter().fold(0, |sum: u64, &iova| {
                sum.wrapping_add(reader.iova_to_phys(Iova(iova)).expect("mapped").0)
            })
        } else {
            peer_at.iter().fold(0, |sum: u64, &iova| {
                let (pa, ..) = peer.query(VirtAddr::from(iova as usize)).expect("mapped");
                sum.wrapping_add(PhysAddr::as_usize(pa) as u64)
            })
        };
        black_box(sum);
    });
    report.note(&format!("iova_to_phys {name}: ours"), ours, "ns");
    report.note(&format!("iova_to_phys {name}: page_table_multiarch"), peer, "ns");
    report.line(&format!("P3.iova_to_phys.{name}"), ours / peer, Bound::Max(1.3));
}
