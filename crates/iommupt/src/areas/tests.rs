//! Areas against a list, and the rule for choosing an IOVA against a search that looks everywhere.

extern crate std;

use alloc::vec::Vec;

use proptest::prelude::*;

use super::{Areas, Ranges, Wanted};
use crate::{Iova, IovaRange};
use ioasis_uapi::Errno;

fn closed(start: u64, last: u64) -> IovaRange {
    IovaRange::closed(Iova(start), Iova(last)).expect("a range")
}

fn listed(areas: &Areas<u64>) -> Vec<(u64, u64, u64)> {
    areas.iter(IovaRange::ALL).map(|(range, &n)| (range.start().0, range.last().0, n)).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u64, u64),
    Remove(u64),
    Iterate(u64, u64),
    FindHole { from: u64, length: u64 },
}

fn steps(space: u64) -> impl Strategy<Value = Vec<Step>> {
    let one = prop_oneof![
        4 => (0..space, 0..8_u64).prop_map(|(start, span)| Step::Insert(start, start + span)),
        3 => (0..space).prop_map(Step::Remove),
        2 => (0..space, 1..40_u64).prop_map(|(from, length)| Step::FindHole { from, length }),
        1 => (0..space, 0..64_u64).prop_map(|(start, span)| Step::Iterate(start, start + span)),
    ];
    prop::collection::vec(one, 0..1500)
}

/// Areas that come and go in order, up or down, with a search now and then.
fn runs(space: u64) -> impl Strategy<Value = Vec<Step>> {
    let run = |insert: bool, down: bool, (from, count, stride): (u64, u64, u64)| {
        let at = (0..count).map(move |n| from + stride * if down { count - 1 - n } else { n });
        let step = move |at| if insert { Step::Insert(at, at + 1) } else { Step::Remove(at) };
        at.map(step).collect::<Vec<Step>>()
    };
    let place = || (0..space, 1..200_u64, 1..4_u64);
    let search = (0..space, 1..400_u64).prop_map(|(from, length)| Step::FindHole { from, length });
    let one = prop_oneof![
        4 => (any::<bool>(), place()).prop_map(move |(down, place)| run(true, down, place)),
        4 => (any::<bool>(), place()).prop_map(move |(down, place)| run(false, down, place)),
        2 => search.prop_map(|step| alloc::vec![step]),
    ];
    prop::collection::vec(one, 0..20).prop_map(|runs| runs.concat())
}

fn check(steps: Vec<Step>) {
    let mut areas = Areas::new();
    let mut list: Vec<(u64, u64, u64)> = Vec::new();
    for (n, step) in (0..).zip(steps) {
        match step {
            Step::Insert(start, last) => {
                let taken = list.iter().any(|&(low, high, _)| low <= last && start <= high);
                match areas.insert(closed(start, last), n) {
                    Ok(()) => assert!(!taken),
                    Err(error) => assert_eq!((error.errno, taken), (Errno::EEXIST, true)),
                }
                if !taken {
                    list.push((start, last, n));
                    list.sort_unstable();
                }
            }
            Step::Remove(at) => {
                let place = list.iter().position(|&(low, high, _)| low <= at && at <= high);
                assert_eq!(areas.get(Iova(at)).is_some(), place.is_some());
                let removed =
                    areas.remove(Iova(at)).map(|(range, n)| (range.start().0, range.last().0, n));
                assert_eq!(removed, place.map(|place| list.remove(place)));
            }
            Step::FindHole { from, length } => {
                let window = (from, 1 << 20);
                let found = areas.find_hole(closed(from, 1 << 20), length - 1, Some);
                let taken: Vec<(u64, u64)> =
                    list.iter().map(|&(low, high, _)| (low, high)).collect();
                let fits = |&(low, high): &(u64, u64)| high - low >= length - 1;
                let expected = holes(&taken, window).into_iter().find(fits);
                assert_eq!(found.map(|hole| (hole.start().0, hole.last().0)), expected);
            }
            Step::Iterate(start, last) => {
                let found: Vec<u64> =
                    areas.iter(closed(start, last)).map(|(range, _)| range.start().0).collect();
                let expected: Vec<u64> = list
                    .iter()
                    .filter(|&&(low, high, _)| low <= last && start <= high)
                    .map(|&(low, ..)| low)
                    .collect();
                assert_eq!(found, expected);
            }
        }
        assert_eq!(areas.len(), list.len());
        if n % 100 == 0 {
            areas.check();
        }
    }
    areas.check();
    assert_eq!(listed(&areas), list);
}

/// Every hole of the list, by looking at all of it.
fn holes(list: &[(u64, u64)], window: (u64, u64)) -> Vec<(u64, u64)> {
    let mut holes = Vec::new();
    let mut from = Some(window.0);
    for &(start, last) in list {
        let Some(at) = from else { break };
        if start > at {
            holes.push((at, (start - 1).min(window.1)));
        }
        from = last.checked_add(1).map(|after| after.max(at));
    }
    if let Some(at) = from {
        holes.push((at, window.1));
    }
    holes.retain(|&(start, last)| start <= last);
    holes
}

/// The rule, read from the source and written down without any cleverness.
fn reference(list: &[(u64, u64)], wanted: Wanted, allowed: &[(u64, u64)]) -> Result<u64, Errno> {
    let Wanted { length, address, alignment } = wanted;
    if length == 0 || length >= u64::MAX / 2 {
        return Err(Errno::EOVERFLOW);
    }
    let mut align = length.next_power_of_two();
    if address != 0 && 1 << address.trailing_zeros() < align {
        align = 1 << address.trailing_zeros();
    }
    if align > 0x20_0000 {
        align = 0x20_0000;
    }
    if align < alignment {
        return Err(Errno::EINVAL);
    }
    let candidate = |start: u64, last: u64| {
        let at = (start.checked_add(align - 1)? / align * align) | (address % 4096);
        (at < last && last - at >= length - 1).then_some(at)
    };
    let all = [(0, u64::MAX)];
    for &(start, last) in if allowed.is_empty() { &all } else { allowed } {
        let (start, last) = (start.max(4096), last.min(u64::MAX - 4096));
        let Some(from) = candidate(start, last) else { continue };
        for (start, last) in holes(list, (from, last)) {
            if let Some(at) = candidate(start, last) {
                return Ok(at);
            }
        }
    }
    Err(Errno::ENOSPC)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn areas_agree_with_a_list(steps in steps(400)) {
        check(steps);
    }

    #[test]
    fn many_areas_agree_with_a_list(steps in steps(20_000)) {
        check(steps);
    }

    #[test]
    fn areas_that_come_and_go_in_order_agree_with_a_list(steps in runs(1500)) {
        check(steps);
    }

    #[test]
    fn the_iova_is_the_one_linux_chooses(
        pages in prop::collection::btree_set(0..200_u64, 0..150),
        bytes in prop::collection::btree_set(0..40_000_u64, 0..20),
        reserved in prop::collection::vec((0..200_u64, 1..4_u64), 0..4),
        allowed in prop::collection::vec((0..200_u64, 1..60_u64), 0..3),
        wanted in (1..9000_u64, prop_oneof![Just(0), 1..0x40_0000_u64, (0..64_u64).prop_map(|n| n << 12)],
                   0..13_u32),
    ) {
        let mut areas = Areas::new();
        let mut list = Vec::new();
        for page in pages {
            let (start, last) = (page << 12, (page << 12) + 0xfff);
            areas.insert(closed(start, last), ()).expect("a page");
            list.push((start, last));
        }
        for byte in bytes {
            let start = (200 << 12) + byte * 3;
            areas.insert(closed(start, start + 1), ()).expect("two bytes");
            list.push((start, start + 1));
        }
        let ranges = |ranges: &[(u64, u64)]| -> Ranges {
            ranges.iter().map(|&(page, n)| closed(page << 12, ((page + n) << 12) - 1)).collect()
        };
        let (reserved, allowed) = (ranges(&reserved), ranges(&allowed));
        list.extend(reserved.iter().map(|range| (range.start().0, range.last().0)));
        list.sort_unstable();
        let wanted = Wanted { length: wanted.0, address: wanted.1, alignment: 1 << wanted.2 };
        let spans: Vec<(u64, u64)> =
            allowed.iter().map(|range| (range.start().0, range.last().0)).collect();
        let found = areas.find_free(wanted, &allowed, &reserved);
        prop_assert_eq!(
            found.map(|iova| iova.0).map_err(|error| error.errno),
            reference(&list, wanted, &spans)
        );
    }
}

#[test]
fn the_first_page_is_never_chosen() {
    let mut areas = Areas::<()>::new();
    let wanted = Wanted { length: 0x1000, address: 0, alignment: 1 };
    let found = areas.find_free(wanted, &Ranges::new(), &Ranges::new());
    assert_eq!(found, Ok(Iova(0x1000)));
}

#[test]
fn a_span_whose_last_byte_is_the_candidate_is_refused() {
    let mut areas = Areas::new();
    areas.insert(closed(0, 0x1000), ()).expect("inserted");
    areas.insert(closed(0x1002, u64::MAX), ()).expect("inserted");
    let wanted = Wanted { length: 1, address: 0, alignment: 1 };
    let found = areas.find_free(wanted, &Ranges::new(), &Ranges::new());
    assert_eq!(found.expect_err("one byte is left").errno, Errno::ENOSPC);
}

#[test]
fn an_area_may_end_at_the_last_address() {
    let mut areas = Areas::new();
    areas.insert(closed(u64::MAX - 1, u64::MAX), 7).expect("inserted");
    assert_eq!(areas.get(Iova(u64::MAX)).map(|(_, &n)| n), Some(7));
    assert_eq!(areas.iter(IovaRange::ALL).count(), 1);
    assert_eq!(areas.remove(Iova(u64::MAX)), Some((closed(u64::MAX - 1, u64::MAX), 7)));
    assert!(areas.is_empty());
}

#[test]
fn ranges_merge_what_touches() {
    let mut ranges: Ranges = [closed(10, 19), closed(40, 49), closed(30, 39)].into_iter().collect();
    assert_eq!(ranges.iter().collect::<Vec<_>>(), [closed(10, 19), closed(30, 49)]);
    ranges.insert(closed(15, u64::MAX));
    assert_eq!(ranges.iter().collect::<Vec<_>>(), [closed(10, u64::MAX)]);
    assert_eq!(ranges.first(closed(0, 9)), None);
    assert_eq!(ranges.first(closed(0, 10)), Some(closed(10, u64::MAX)));
}

#[test]
fn what_is_left_when_most_areas_went_lies_in_few_leaves() {
    let page = |n: u64| closed(n << 12, (n << 12) + 0xfff);
    for every in [2, 5, 16, 17, 40] {
        let mut areas = Areas::new();
        (0..10_000_u64).for_each(|n| areas.insert(page(n * 7919 % 10_000), n).expect("disjoint"));
        for n in (0..10_000).filter(|n| n % every > 0) {
            areas.remove(Iova(n << 12)).expect("an area");
        }
        let leaves = areas.check();
        assert!(leaves <= areas.len() / 3, "{leaves} leaves for {} areas", areas.len());
        (0..10_000).filter(|n| n % every == 0).for_each(|n| {
            areas.remove(Iova(n << 12)).expect("an area");
        });
        assert_eq!((areas.len(), areas.check()), (0, 1));
    }
}

#[test]
fn areas_in_ascending_order_fill_their_leaves() {
    let mut areas = Areas::new();
    for n in 0..10_000_u64 {
        areas.insert(closed(n << 12, (n << 12) + 0xfff), n).expect("disjoint");
    }
    assert_eq!(areas.check(), 10_000 / 16);
}

#[test]
fn whether_an_area_may_go_is_asked_of_its_own_value() {
    let mut areas = Areas::new();
    for first in [0x3000_u64, 0x1000, 0x2000] {
        let range = IovaRange::new(Iova(first), 0x1000).expect("a page");
        areas.insert(range, first).expect("disjoint");
    }
    for first in [0x2000_u64, 0x3000, 0x1000] {
        assert!(!areas.remove_if(Iova(first), |&mut value| value != first), "kept");
        assert_eq!(areas.get(Iova(first)).map(|(_, &value)| value), Some(first));
        assert!(areas.remove_if(Iova(first), |&mut value| value == first));
        assert!(areas.get(Iova(first)).is_none());
    }
    assert!(areas.is_empty());
}
