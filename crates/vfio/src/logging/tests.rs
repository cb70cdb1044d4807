use std::collections::BTreeSet;

use super::*;
use proptest::prelude::*;

fn range(start: u64, length: u64) -> IovaRange {
    IovaRange::new(Iova(start), length).expect("a range")
}

/// All that is in the log, in as many batches as it takes.
fn take(log: &DmaLog, range: IovaRange) -> Result<Vec<IovaRange>> {
    let (mut all, mut left) = (Vec::new(), Some(range));
    while let Some(part) = left {
        let (taken, rest) = log.take(part)?;
        all.extend(taken);
        left = rest;
    }
    Ok(all)
}

fn write(log: &DmaLog, iova: u64, length: usize) {
    log.record(&[Segment { iova, length }]);
}

#[test]
fn what_was_written_is_told_once_and_only_where_it_is_logged() {
    let log = DmaLog::default();
    write(&log, 0x1000, 1);
    log.start(vec![range(0x1000, 0x2000), range(0x8000, 0x1000)]).expect("a log");
    write(&log, 0x2fff, 0x6002);
    assert_eq!(take(&log, IovaRange::ALL), Ok(vec![range(0x2000, 0x1000), range(0x8000, 0x1000)]));
    assert_eq!(take(&log, IovaRange::ALL), Ok(vec![]));
}

#[test]
fn a_log_that_was_stopped_says_so_and_forgets() {
    let log = DmaLog::default();
    log.start(vec![range(0, 0x1000)]).expect("a log");
    assert_eq!(log.start(vec![range(0, 0x1000)]).map_err(|error| error.errno), Err(Errno::EINVAL));
    write(&log, 0, 1);
    log.stop();
    log.stop();
    assert_eq!(take(&log, IovaRange::ALL).map_err(|error| error.errno), Err(Errno::EINVAL));
    log.start(vec![range(0, 0x1000)]).expect("another log");
    assert_eq!(take(&log, IovaRange::ALL), Ok(vec![]));
}

#[test]
fn a_log_that_is_full_says_so_until_it_is_stopped() {
    let log = DmaLog::default();
    let all = IovaRange::closed(Iova(1 << 40), Iova(!0)).expect("a range");
    log.start(vec![all]).expect("a log");
    for index in 0..=WORDS_MAX as u64 {
        write(&log, (1 << 40) + (index << (PAGE_LG2 + WORD_LG2)), 1);
    }
    for _ in 0..2 {
        let refused = take(&log, range(0, 0x2000)).map_err(|error| error.errno);
        assert_eq!(refused, Err(Errno::ENOMEM));
        let empty = log.check().map_err(|error| error.errno);
        assert_eq!(empty, Err(Errno::ENOMEM), "a report of no pages is no better");
    }
    log.stop();
    log.start(vec![all]).expect("another log");
    assert_eq!(take(&log, IovaRange::ALL), Ok(vec![]));
}

#[test]
fn a_report_of_many_pages_comes_in_parts_and_misses_none() {
    let log = DmaLog::default();
    log.start(vec![range(0x2000, 1 << 34), range(1 << 40, 1 << 30)]).expect("a log");
    let count = 3 * BATCH as u64;
    for index in 0..count {
        write(&log, 0x3000 + index * 0x2000, 1);
    }
    write(&log, 1 << 40, 1);
    let pages = take(&log, IovaRange::ALL).expect("a log");
    assert_eq!(pages.len() as u64, count + 1);
    assert!(pages.is_sorted_by_key(|page| page.start()));
    assert_eq!(take(&log, IovaRange::ALL), Ok(vec![]));
}

proptest! {
    #[test]
    fn a_log_agrees_with_a_set_of_pages(
        logged in proptest::collection::btree_set(0_u64..40, 0..12),
        writes in proptest::collection::vec((0_u64..170_000_000, 0_usize..40_000), 0..60),
        asked in (0_u64..200_000_000, 1_u64..200_000_000),
    ) {
        // Every other start begins a range, which ends before the next one.
        let starts: Vec<u64> = logged.into_iter().map(|start| start << 22).collect();
        let ranges: Vec<IovaRange> = starts
            .chunks_exact(2)
            .map(|pair| range(pair[0], pair[1] - pair[0]))
            .collect();
        let log = DmaLog::default();
        log.start(ranges.clone()).expect("a log");
        let mut model = BTreeSet::new();
        for (iova, length) in writes {
            write(&log, iova, length);
            let pages = (iova >> 12)..(iova + length as u64).div_ceil(4096);
            model.extend(pages.filter(|page| {
                length > 0 && ranges.iter().any(|logged| logged.contains(range(page << 12, 1)))
            }));
        }
        let asked = range(asked.0, asked.1);
        let pages = |taken: Vec<IovaRange>| -> BTreeSet<u64> {
            taken.iter().flat_map(|range| range.start().0 >> 12..=range.last().0 >> 12).collect()
        };
        let inside = |page: &u64| {
            *page >= asked.start().0 >> 12 && *page <= asked.last().0 >> 12
                && ranges.iter().any(|range| range.intersect(asked).is_some_and(|part| {
                    (part.start().0 >> 12..=part.last().0 >> 12).contains(page)
                }))
        };
        let (expected, rest): (BTreeSet<u64>, BTreeSet<u64>) = model.iter().partition(|page| inside(page));
        prop_assert_eq!(pages(take(&log, asked).expect("a log")), expected);
        prop_assert_eq!(pages(take(&log, IovaRange::ALL).expect("a log")), rest);
    }
}
