//! virtio-blk.

use std::path::PathBuf;

use proptest::prelude::*;

use super::driver::{ALL, DATA, Driver, MEMORY, MEMORY_BYTES, Piece};
use crate::model::create;
use crate::model::nvme::image_path;
use crate::model::virtio::feature;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const ZEROES: u32 = 13;

const OK: u8 = 0;
const ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// Where headers and statuses lie, and data behind them.
const HEADERS: u64 = DATA;
const STATUSES: u64 = DATA + 0x1000;
const BUFFER: u64 = DATA + 0x1_0000;
const IMAGE: usize = 1 << 20;

/// A disk with an image of its own.
struct Disk {
    driver: Driver,
    path: PathBuf,
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Disk {
    fn new(options: &[(&str, &str)], wanted: u64) -> Self {
        Self::sized(IMAGE, options, wanted)
    }

    fn sized(bytes: usize, options: &[(&str, &str)], wanted: u64) -> Self {
        let path = image_path();
        let bytes: Vec<u8> = (0..bytes).map(|at| (at / 512 + at % 7).to_le_bytes()[0]).collect();
        std::fs::write(&path, bytes).expect("an image");
        let mut all = vec![("image", path.to_str().expect("a plain path"))];
        all.extend(options);
        let driver = Driver::running("virtio-blk", &all, wanted);
        Self { driver, path: path.clone() }
    }

    fn image(&self) -> Vec<u8> {
        std::fs::read(&self.path).expect("the image is readable")
    }

    /// Puts a header into memory.
    fn header(&mut self, slot: u64, kind: u32, sector: u64) -> Piece {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        self.driver.memory.put(HEADERS + slot * 16, &bytes);
        self.driver.memory.put(STATUSES + slot, &[0xee]);
        Piece::Out(HEADERS + slot * 16, 16)
    }

    fn status(&self, slot: u64) -> u8 {
        self.driver.memory.get(STATUSES + slot, 1)[0]
    }

    /// Does one request of queue 0 with this data; answers its status and the length given back.
    fn one(&mut self, kind: u32, sector: u64, data: &[Piece]) -> (u8, u32) {
        let mut pieces = vec![self.header(0, kind, sector)];
        pieces.extend_from_slice(data);
        pieces.push(Piece::In(STATUSES, 1));
        self.driver.submit(0, &[&pieces]);
        let used = self.driver.used(0);
        assert_eq!(used.len(), 1, "it is given back once");
        (self.status(0), used[0].1)
    }

    /// A discard or write zeroes of ranges (sector, sectors, flags).
    fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        let mut bytes = Vec::new();
        for (sector, sectors, flags) in ranges {
            bytes.extend_from_slice(&sector.to_le_bytes());
            bytes.extend_from_slice(&sectors.to_le_bytes());
            bytes.extend_from_slice(&flags.to_le_bytes());
        }
        self.driver.memory.put(BUFFER, &bytes);
        let length = u32::try_from(bytes.len()).expect("short");
        self.one(kind, 0, &[Piece::Out(BUFFER, length)]).0
    }
}

#[test]
fn what_is_written_is_in_the_image_and_is_read_back() {
    let mut disk = Disk::new(&[], ALL);
    let data: Vec<u8> = (0..4096_usize).map(|at| (at / 3).to_le_bytes()[0]).collect();
    disk.driver.memory.put(BUFFER, &data);
    assert_eq!(disk.one(OUT, 16, &[Piece::Out(BUFFER, 4096)]), (OK, 1));
    assert!(disk.image()[8192..12288] == data, "the image has it");
    assert_eq!(disk.one(IN, 16, &[Piece::In(BUFFER + 8192, 4096)]), (OK, 4097));
    assert!(disk.driver.memory.get(BUFFER + 8192, 4096) == data, "and it comes back");
}

#[test]
fn descriptors_may_cut_a_request_anywhere() {
    let mut disk = Disk::new(&[], ALL & !feature::RING_INDIRECT_DESC);
    disk.header(0, OUT, 2);
    let data: Vec<u8> = (0..512_usize).map(|at| (at * 5).to_le_bytes()[0]).collect();
    // The header and the data lie together, in pieces of 7, 20 and the rest; an empty one is
    // between.
    disk.driver.memory.put(HEADERS + 16, &data);
    let pieces = [
        Piece::Out(HEADERS, 7),
        Piece::Out(HEADERS + 7, 0),
        Piece::Out(HEADERS + 7, 20),
        Piece::Out(HEADERS + 27, 501),
        Piece::In(STATUSES, 1),
    ];
    disk.driver.submit(0, &[&pieces]);
    assert_eq!((disk.status(0), disk.image()[1024..1536] == data), (OK, true));
    // The status is the last byte of what the data is read into.
    disk.header(0, IN, 2);
    disk.driver.submit(0, &[&[Piece::Out(HEADERS, 16), Piece::In(BUFFER, 513)]]);
    let seen = disk.driver.memory.get(BUFFER, 513);
    assert!(seen[..512] == data && seen[512] == OK);
}

#[test]
fn an_indirect_table_is_a_request_like_any_other() {
    let mut disk = Disk::new(&[], ALL);
    let header = disk.header(0, IN, 3);
    let table = DATA + 0x2000;
    let entries = [header, Piece::In(BUFFER, 512), Piece::In(STATUSES, 1)];
    for (step, piece) in (0_u16..).zip(entries) {
        let next = (step < 2).then_some(step + 1);
        let bytes = super::driver::descriptor(piece, next);
        disk.driver.memory.put(table + 16 * u64::from(step), &bytes);
    }
    let head = disk.driver.chain(0, &[Piece::Out(table, 48)]);
    let at = disk.driver.rings[0].descriptors + 16 * u64::from(head) + 12;
    disk.driver.memory.put(at, &4_u16.to_le_bytes());
    disk.driver.offer(0, head);
    disk.driver.kick(0);
    disk.driver.poll();
    assert_eq!(disk.driver.used(0), [(u32::from(head), 513)]);
    assert!(disk.driver.memory.get(BUFFER, 512) == disk.image()[1536..2048]);
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeroes_and_others_stay() {
    let mut disk = Disk::new(&[], ALL);
    let before = disk.image();
    assert_eq!(disk.ranges(DISCARD, &[(8, 8, 0), (64, 8, 0)]), OK);
    assert_eq!(disk.ranges(ZEROES, &[(128, 3, 0)]), OK);
    assert_eq!(disk.ranges(ZEROES, &[(256, 8, 1)]), OK);
    let after = disk.image();
    for sector in 0..IMAGE / 512 {
        let zeroed =
            [8..16, 64..72, 128..131, 256..264].iter().any(|range| range.contains(&sector));
        let (old, new) = (&before[sector * 512..][..512], &after[sector * 512..][..512]);
        assert!(if zeroed { new == [0; 512] } else { new == old }, "sector {sector}");
    }
    // 5.2.6.2: an unknown flag, and unmap of a discard, are not supported; a range past the end is
    // an error.
    assert_eq!(disk.ranges(DISCARD, &[(8, 8, 1)]), UNSUPPORTED);
    assert_eq!(disk.ranges(ZEROES, &[(8, 8, 2)]), UNSUPPORTED);
    assert_eq!(disk.ranges(ZEROES, &[(2047, 2, 0)]), ERROR);
    assert_eq!(disk.ranges(DISCARD, &[(u64::MAX, 1, 0)]), ERROR);
    assert_eq!(disk.ranges(DISCARD, &[(0, u32::MAX, 0)]), ERROR);
}

#[test]
fn the_id_is_the_serial_padded_with_zeroes_and_cut_to_the_room_there_is() {
    let mut disk = Disk::new(&[("serial", "disk number 7")], ALL);
    assert_eq!(disk.one(GET_ID, 0, &[Piece::In(BUFFER, 20)]), (OK, 21));
    assert_eq!(disk.driver.memory.get(BUFFER, 20), *b"disk number 7\0\0\0\0\0\0\0");
    disk.driver.memory.put(BUFFER, &[0xee; 20]);
    assert_eq!(disk.one(GET_ID, 0, &[Piece::In(BUFFER, 4)]), (OK, 5));
    assert_eq!(disk.driver.memory.get(BUFFER, 5), *b"disk\xee");
}

#[test]
fn what_a_disk_cannot_do_is_answered_and_changes_nothing() {
    let mut disk = Disk::new(&[], ALL);
    let before = disk.image();
    let data = [Piece::Out(BUFFER, 512)];
    assert_eq!(disk.one(99, 0, &data), (UNSUPPORTED, 1));
    assert_eq!(disk.one(OUT, 2048, &data), (ERROR, 1), "past the end");
    assert_eq!(disk.one(OUT, u64::MAX / 256, &data), (ERROR, 1), "past all ends");
    assert_eq!(disk.one(OUT, 0, &[Piece::Out(BUFFER, 100)]), (ERROR, 1), "no sector");
    assert_eq!(disk.one(IN, 2047, &[Piece::In(BUFFER, 1024)]), (ERROR, 1), "half of it");
    assert_eq!(disk.one(FLUSH, 0, &[]), (OK, 1));
    assert!(disk.image() == before);
}

#[test]
fn a_read_only_disk_says_so_and_writes_nothing() {
    let mut disk = Disk::new(&[("ro", "on")], ALL);
    let before = disk.image();
    let offered = disk.driver.offered();
    assert_eq!(offered >> 5 & 1, 1, "VIRTIO_BLK_F_RO");
    assert_eq!(offered >> 13 & 3, 0, "neither discard nor write zeroes");
    assert_eq!(disk.one(OUT, 0, &[Piece::Out(BUFFER, 512)]), (ERROR, 1));
    assert_eq!(disk.ranges(ZEROES, &[(0, 1, 0)]), ERROR);
    assert_eq!(disk.one(IN, 0, &[Piece::In(BUFFER, 512)]), (OK, 513));
    assert!(disk.image() == before);
}

#[test]
fn memory_that_cannot_be_reached_fails_its_own_request_alone() {
    let mut disk = Disk::new(&[], ALL);
    let nowhere = MEMORY + MEMORY_BYTES as u64;
    let headers: Vec<_> = (0..4).map(|slot| disk.header(slot, IN, slot)).collect();
    let status = |slot| Piece::In(STATUSES + slot, 1);
    disk.driver.submit(
        0,
        &[
            &[headers[0], Piece::In(BUFFER, 512), status(0)],
            &[headers[1], Piece::In(nowhere - 100, 512), status(1)],
            &[Piece::Out(nowhere, 16), Piece::In(BUFFER, 512), status(2)],
            &[headers[3], Piece::In(BUFFER + 512, 512), status(3)],
        ],
    );
    let statuses: Vec<_> = (0..4).map(|slot| disk.status(slot)).collect();
    assert_eq!(statuses, [OK, ERROR, ERROR, OK]);
    assert_eq!(disk.driver.used(0).len(), 4);
    assert!(disk.driver.memory.get(BUFFER + 512, 512) == disk.image()[1536..2048]);
}

#[test]
fn each_of_several_queues_is_served_and_interrupts_by_its_own_vector() {
    let mut disk = Disk::new(&[("queues", "3")], ALL & !feature::RING_EVENT_IDX);
    for queue in [1, 2] {
        disk.driver.make(queue, 8);
    }
    for queue in [2, 0, 1] {
        let header = disk.header(queue.into(), IN, queue.into());
        let status = Piece::In(STATUSES + u64::from(queue), 1);
        disk.driver.submit(queue, &[&[header, Piece::In(BUFFER, 512), status]]);
        assert_eq!((disk.status(queue.into()), disk.driver.raised()), (OK, vec![queue]));
    }
}

#[test]
fn a_configuration_says_what_the_disk_is() {
    let path = image_path();
    std::fs::write(&path, vec![0; IMAGE]).expect("an image");
    let options = [("image", path.to_str().unwrap()), ("queues", "5"), ("lba", "4096")];
    let mut driver = Driver::new("virtio-blk", &options);
    let mut bytes = [0; 60];
    driver.load(4, 0x2000, &mut bytes);
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!((word(0), word(4)), (2048, 0), "sectors");
    assert_eq!((word(8), word(12)), (256 << 10, 254), "segments");
    assert_eq!(word(20), 4096, "the block size");
    assert_eq!(u16::from_le_bytes([bytes[34], bytes[35]]), 5, "queues");
    assert_eq!(word(44), 8, "discards of whole blocks");
    drop(driver);
    std::fs::remove_file(path).unwrap();
}

#[test]
fn options_that_are_wrong_name_the_value_and_what_is_accepted() {
    let path = image_path();
    std::fs::write(&path, [0; 4096]).expect("an image");
    let refused = |name: &str, value: &str| {
        let options = [
            ("image".to_owned(), path.to_str().unwrap().to_owned()),
            (name.to_owned(), value.to_owned()),
        ];
        create("virtio-blk", &options).expect_err("refused").to_string()
    };
    assert_eq!(
        refused("queues", "65"),
        "virtio-blk: queues=65 is not accepted; queues is a number from 1 to 64"
    );
    assert_eq!(refused("lba", "1024"), "virtio-blk: lba=1024 is not accepted; lba is 512 or 4096");
    assert!(refused("serial", "a serial number of 25 bytes").contains("1 to 20 printable"));
    assert!(refused("size", "8K").contains("has 4096 bytes, not the 8192 of size="));
    std::fs::remove_file(path).unwrap();
}

/// A request of a random sequence.
#[derive(Clone, Debug)]
struct Wish {
    write: bool,
    sector: u64,
    /// Bytes of each piece of data, whose sum may be no whole sector.
    pieces: Vec<u32>,
}

fn wishes() -> impl Strategy<Value = Vec<Wish>> {
    let pieces = proptest::collection::vec(prop_oneof![Just(512_u32), 1..1500_u32, Just(0)], 0..5);
    let wish = (any::<bool>(), 0..40_u64, pieces).prop_map(|(write, sector, pieces)| Wish {
        write,
        sector,
        pieces,
    });
    proptest::collection::vec(wish, 1..30)
}

proptest! {
    /// The naive disk is a vector of bytes.
    #[test]
    fn any_sequence_of_reads_and_writes_is_that_of_a_plain_array(all in wishes()) {
        let mut disk = Disk::sized(32 << 10, &[], ALL);
        let mut naive = disk.image();
        for wish in all {
            let total: u32 = wish.pieces.iter().sum();
            let start = usize::try_from(wish.sector * 512).unwrap();
            let good = total.is_multiple_of(512);
            let range = start..start + total as usize;
            let data: Vec<u8> =
                (0..total as usize).map(|at| (at * 31 + start).to_le_bytes()[0]).collect();
            let mut at = BUFFER;
            let mut pieces = Vec::new();
            for length in &wish.pieces {
                pieces.push(if wish.write { Piece::Out(at, *length) } else { Piece::In(at, *length) });
                at += u64::from(*length);
            }
            disk.driver.memory.put(BUFFER, &data);
            let (kind, written) = if wish.write { (OUT, 1) } else { (IN, total + 1) };
            let done = disk.one(kind, wish.sector, &pieces);
            prop_assert_eq!(done, if good { (OK, written) } else { (ERROR, 1) });
            if good && wish.write {
                naive[range].copy_from_slice(&data);
            } else if good {
                let seen = disk.driver.memory.get(BUFFER, total as usize);
                prop_assert!(seen == naive[range]);
            }
        }
        prop_assert!(disk.image() == naive);
    }
}

impl Disk {
    /// As another run that has the same memory and the same image sees it.
    fn moved(&mut self) {
        let state = self.driver.save();
        self.driver.reset();
        self.driver.load_state(&state).expect("its own state");
        assert_eq!(self.driver.save(), state, "the state is the same");
    }
}

#[test]
fn a_disk_that_moved_goes_on_where_it_stopped() {
    for wanted in [ALL, ALL & !feature::RING_EVENT_IDX] {
        let mut disk = Disk::new(&[], wanted);
        for turn in 0_u8..100 {
            disk.driver.memory.put(BUFFER, &[turn; 512]);
            assert_eq!(disk.one(OUT, turn.into(), &[Piece::Out(BUFFER, 512)]), (OK, 1));
            disk.moved();
            assert_eq!(
                disk.one(IN, turn.into(), &[Piece::In(BUFFER + 8192, 512)]),
                (OK, 513),
                "turn {turn}"
            );
            assert_eq!(disk.driver.memory.get(BUFFER + 8192, 512), [turn; 512]);
        }
    }
}

#[test]
fn requests_that_wait_are_done_by_the_disk_that_has_the_state() {
    let mut disk = Disk::new(&[], ALL);
    let pieces = [disk.header(0, IN, 3), Piece::In(BUFFER, 512), Piece::In(STATUSES, 1)];
    let head = disk.driver.chain(0, &pieces);
    disk.driver.offer(0, head);
    disk.driver.kick(0);
    disk.moved();
    disk.driver.remind();
    disk.driver.poll();
    assert_eq!(disk.status(0), OK);
    let _ = disk.driver.raised();
    disk.driver.remind();
    assert_eq!(disk.driver.raised(), [0], "it may have been lost on the way");
}

#[test]
fn the_state_of_another_disk_or_a_part_of_one_is_refused() {
    let mut disk = Disk::new(&[("serial", "one")], ALL);
    let state = disk.driver.save();
    for end in 0..state.len() {
        assert!(disk.driver.load_state(&state[..end]).is_err(), "{end} bytes");
    }
    assert_eq!(disk.driver.save(), state, "nothing has changed");
    for option in [("serial", "two"), ("queues", "2"), ("lba", "4096")] {
        let serial = [("serial", "one")];
        let options =
            if option.0 == "serial" { vec![option] } else { [&serial[..], &[option]].concat() };
        let mut other = Disk::new(&options, ALL);
        assert!(other.driver.load_state(&state).is_err(), "{option:?}");
    }
    let mut larger = Disk::sized(2 * IMAGE, &[("serial", "one")], ALL);
    assert!(larger.driver.load_state(&state).is_err());
}
