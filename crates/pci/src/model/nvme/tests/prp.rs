//! PRP entries and lists of every legal shape, and the illegal ones.

use super::rig::{DATA, MEMORY, PAGE, Rig};
use crate::bus::Segment;
use crate::model::nvme::prp;
use crate::model::nvme::status::Status;
use proptest::prelude::*;

/// Bytes of memory that pages and list pages are drawn from.
const POOL: u64 = DATA;

fn segments(rig: &Rig, prps: [u64; 2], length: u64) -> Result<Vec<Segment>, Status> {
    let mut out = Vec::new();
    rig.bus(|bus| prp::segments(bus, PAGE, prps, length, &mut out))?;
    Ok(out)
}

/// The addresses that segments cover, a page boundary at a time.
fn addresses(segments: &[Segment]) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    for segment in segments {
        let (mut at, end) = (segment.iova, segment.iova + segment.length as u64);
        while at < end {
            let next = end.min((at / PAGE + 1) * PAGE);
            found.push((at, next));
            at = next;
        }
    }
    found
}

/// Writes the list for `pages`, its first page beginning at entry `skip`, and answers where it begins.
fn put_list(rig: &Rig, pages: &[u64], lists: &[u64], skip: u64) -> u64 {
    let start = lists[0] + skip * 8;
    let mut lists = lists.iter().copied();
    let mut at = lists.next().expect("a list page") + skip * 8;
    let mut rest = pages;
    loop {
        let room = usize::try_from((PAGE - at % PAGE) / 8).expect("a page of entries");
        let fits = rest.len() <= room;
        let (here, after) = rest.split_at(if fits { rest.len() } else { room - 1 });
        let mut words = here.to_vec();
        let next = lists.next();
        words.extend(next.filter(|_| !fits));
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        rig.memory.put(at, &bytes);
        if fits {
            return start;
        }
        (at, rest) = (next.expect("enough list pages"), after);
    }
}

#[test]
fn neighbouring_pages_become_one_segment() {
    let rig = Rig::new(&[]);
    let merged = segments(&rig, [POOL + 512, POOL + PAGE], 4096).expect("good entries");
    assert_eq!(merged, [Segment { iova: POOL + 512, length: 4096 }]);
    let apart = segments(&rig, [POOL, POOL + 2 * PAGE], 8192).expect("good entries");
    assert_eq!(apart.len(), 2);
}

#[test]
fn entries_with_offsets_they_must_not_have_are_refused() {
    let rig = Rig::new(&[]);
    let invalid = Err(Status::PRP_OFFSET_INVALID);
    assert_eq!(segments(&rig, [POOL + 2, 0], 512), invalid, "PRP1 is a multiple of 4");
    assert_eq!(segments(&rig, [POOL, POOL + 4], 8192), invalid, "the second page begins its page");
    assert_eq!(segments(&rig, [POOL, POOL + 12], 12_288), invalid, "a list entry is 8 bytes");
    rig.memory.put(POOL, &[POOL + PAGE, POOL + 8].map(u64::to_le_bytes).concat());
    assert_eq!(segments(&rig, [POOL, POOL], 12_288), invalid, "a listed page begins its page");
    let last = POOL + PAGE - 8;
    rig.memory.put(last, &(POOL + 16).to_le_bytes());
    assert_eq!(segments(&rig, [POOL, last], 12_288), invalid, "a further list begins its page");
}

#[test]
fn a_list_that_cannot_be_read_is_a_transfer_error() {
    let rig = Rig::new(&[]);
    let error = Err(Status::DATA_TRANSFER_ERROR);
    assert_eq!(segments(&rig, [POOL, MEMORY - PAGE], 12_288), error);
    assert_eq!(segments(&rig, [POOL, u64::MAX - 4095], 12_288), error);
}

#[test]
fn a_list_that_names_itself_ends() {
    let rig = Rig::new(&[]);
    rig.memory.put(POOL, &vec![POOL.to_le_bytes(); 512].concat());
    let length = 4096 << 9;
    let found =
        segments(&rig, [POOL, POOL + PAGE - 8], length).map(|found| addresses(&found).len());
    rig.memory.put(POOL + PAGE - 8, &POOL.to_le_bytes());
    assert_eq!(found, Ok(512));
}

#[test]
fn the_last_page_of_all_does_not_wrap() {
    let rig = Rig::new(&[]);
    let last = u64::MAX - 4095;
    let found = segments(&rig, [last, 0], 8192).expect("good entries");
    assert_eq!(found.len(), 2, "the page after the last is not its neighbour");
}

proptest! {
    #[test]
    fn every_legal_shape_covers_its_pages(
        offset in (0..1024_u64).prop_map(|word| word * 4),
        length in 1..(1200_u64 * 1024),
        skip in 0..512_u64,
        shuffle in any::<u64>(),
    ) {
        let rig = Rig::new(&[]);
        let length = length * 4 % (4 << 20) + 4;
        // Pages in an order that depends on `shuffle`, lists behind them.
        let count = (offset + length).div_ceil(PAGE);
        let stride = shuffle % 1021 + 1;
        let pages: Vec<u64> = (0..count).map(|page| POOL + (page * stride % 1031) * PAGE).collect();
        let lists: Vec<u64> = (0..8).map(|list| POOL + (1040 + 3 * list) * PAGE).collect();
        let prp2 = match count {
            1 => 0,
            2 => pages[1],
            _ => put_list(&rig, &pages[1..], &lists, skip),
        };
        let found = segments(&rig, [pages[0] + offset, prp2], length);
        let mut expected = Vec::new();
        let (mut rest, mut at) = (length, offset);
        for page in pages {
            let piece = rest.min(PAGE - at);
            expected.push((page + at, page + at + piece));
            (rest, at) = (rest - piece, 0);
        }
        prop_assert_eq!(found.map(|found| addresses(&found)), Ok(expected));
    }
}
