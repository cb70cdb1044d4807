//! The transport, with a disk behind it.

use std::sync::atomic::Ordering;

use super::driver::{ALL, DATA, Driver, MEMORY, MEMORY_BYTES, Piece, descriptor};
use crate::model::nvme::image_path;
use crate::model::virtio::feature;
use crate::model::virtio::registers;
use crate::refusal::Refusal;

const OPTIONS: [(&str, &str); 1] = [("size", "1M")];

/// A disk whose image goes when it is dropped by name alone.
fn options() -> (String, Vec<(&'static str, String)>) {
    let path = image_path().to_str().unwrap().to_owned();
    let mut all = vec![("image", path.clone())];
    all.extend(OPTIONS.map(|(name, value)| (name, value.to_owned())));
    (path, all)
}

fn with<T>(make: impl FnOnce(&[(&str, &str)]) -> T) -> T {
    let (path, all) = options();
    let all: Vec<_> = all.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let made = make(&all);
    // It is open and needs no name.
    std::fs::remove_file(path).expect("it was made");
    made
}

fn new() -> Driver {
    with(|options| Driver::new("virtio-blk", options))
}

fn running(wanted: u64) -> Driver {
    with(|options| Driver::running("virtio-blk", options, wanted))
}

const STATUS: u64 = DATA + 0x100;

/// A flush.
fn flush(driver: &Driver) -> [Piece; 2] {
    let mut header = [0; 16];
    header[0] = 4;
    driver.memory.put(DATA, &header);
    driver.memory.put(STATUS, &[0xee]);
    [Piece::Out(DATA, 16), Piece::In(STATUS, 1)]
}

/// Why the device said that it stops.
fn stopped(driver: &mut Driver) -> &'static str {
    let told = driver.told.take();
    let [Refusal::Driver { why, queue: Some(0), .. }] = told[..] else {
        panic!("told {told:?}");
    };
    assert_eq!(driver.status() & registers::NEEDS_RESET, registers::NEEDS_RESET);
    why
}

#[test]
fn a_driver_may_accept_any_part_of_what_is_offered_with_version_1() {
    let mut driver = new();
    let offered = driver.offered();
    assert_eq!(offered & feature::TRANSPORT, feature::TRANSPORT);
    assert_eq!(driver.negotiate(ALL) & 8, 8, "all of it");
    assert_eq!(driver.negotiate(feature::VERSION_1) & 8, 8, "the least");
    assert_eq!(driver.told.take(), []);
}

#[test]
fn a_driver_that_accepts_what_is_not_offered_or_no_version_1_gets_no_features_ok() {
    let mut driver = new();
    assert_eq!(driver.accept(feature::VERSION_1 | 1 << 50) & 8, 0);
    let told = driver.told.take();
    assert!(matches!(told[..], [Refusal::Driver { queue: None, value, .. }] if value == 1 << 50));
    assert_eq!(driver.negotiate(!feature::VERSION_1) & 8, 0);
    let told = driver.told.take();
    assert!(matches!(told[..], [Refusal::Driver { why, .. }] if why.contains("VERSION_1")));
}

#[test]
fn nothing_is_served_before_driver_ok_and_all_of_it_after() {
    let mut driver = new();
    driver.enable_msix();
    driver.negotiate(ALL);
    driver.make(0, 16);
    let request = flush(&driver);
    driver.submit(0, &[&request]);
    assert_eq!(driver.used(0), []);
    driver.run();
    driver.poll();
    assert_eq!(driver.used(0).len(), 1);
}

#[test]
fn a_queue_that_is_not_there_has_no_entries() {
    let mut driver = new();
    driver.set_common(registers::QUEUE_SELECT, 3, 2);
    assert_eq!(driver.common(registers::QUEUE_SIZE, 2), 256);
    for queue in [4, 0xffff] {
        driver.set_common(registers::QUEUE_SELECT, queue, 2);
        assert_eq!(driver.common(registers::QUEUE_SIZE, 2), 0);
        driver.set_common(registers::QUEUE_ENABLE, 1, 2);
        assert_eq!(driver.common(registers::QUEUE_ENABLE, 2), 0);
    }
}

#[test]
fn a_size_that_is_no_power_of_two_or_too_large_is_not_taken() {
    let mut driver = new();
    for (stored, seen) in [(128, 128), (100, 128), (0, 128), (512, 128), (1, 1)] {
        driver.set_common(registers::QUEUE_SIZE, stored, 2);
        assert_eq!(driver.common(registers::QUEUE_SIZE, 2), seen);
    }
}

#[test]
fn a_vector_that_is_not_there_reads_back_as_none() {
    let mut driver = new();
    for register in [registers::QUEUE_MSIX_VECTOR, registers::CONFIG_MSIX_VECTOR] {
        assert_eq!(driver.common(register, 2), 0xffff, "after a reset");
        driver.set_common(register, 4, 2);
        assert_eq!(driver.common(register, 2), 4);
        driver.set_common(register, 5, 2);
        assert_eq!(driver.common(register, 2), 0xffff, "four queues have five vectors");
    }
}

#[test]
fn an_address_is_stored_in_halves_or_bytes_as_in_one() {
    let mut driver = new();
    driver.set_common(registers::QUEUE_DESC, 0x1234_5678, 4);
    driver.set_common(registers::QUEUE_DESC + 4, 0x9abc_def0, 4);
    assert_eq!(driver.common(registers::QUEUE_DESC, 8), 0x9abc_def0_1234_5678);
    driver.set_common(registers::QUEUE_DESC + 1, 0x11, 1);
    assert_eq!(driver.common(registers::QUEUE_DESC, 8), 0x9abc_def0_1234_1178);
}

#[test]
fn the_mapped_page_shows_what_a_load_gives_and_a_store_to_it_is_found() {
    let mut driver = new();
    let page = |driver: &Driver, offset| driver.pages(registers::BAR).load_u32(offset).unwrap();
    assert_eq!(page(&driver, registers::QUEUE_SIZE) & 0xffff, 256);
    driver.set_common(registers::DEVICE_FEATURE_SELECT, 1, 4);
    let high = driver.offered() >> 32;
    assert_eq!(u64::from(page(&driver, registers::DEVICE_FEATURE)), high, "at once");
    let low = driver.offered() & 0xffff_ffff;
    driver.set_common(registers::DEVICE_FEATURE_SELECT, 1, 4);
    // As a program does that is not trapped.
    driver.pages(registers::BAR).store_u32(registers::DEVICE_FEATURE_SELECT, 0).unwrap();
    driver.pages(registers::BAR).store_u32(registers::DEVICE_FEATURE, 77).unwrap();
    driver.poll();
    assert_eq!(u64::from(page(&driver, registers::DEVICE_FEATURE)), low);
    driver.pages(registers::BAR).write(registers::DEVICE_STATUS, &[3]).unwrap();
    driver.poll();
    assert_eq!(driver.status(), 3);
}

#[test]
fn without_msix_the_pin_is_held_until_the_isr_is_read() {
    let mut driver = new();
    driver.negotiate(ALL);
    driver.make(0, 16);
    driver.run();
    let request = flush(&driver);
    driver.submit(0, &[&request]);
    assert!(driver.interrupts.asserted.load(Ordering::SeqCst));
    let mut isr = [0xee];
    driver.load(registers::BAR, registers::ISR, &mut isr);
    assert_eq!((isr[0], driver.interrupts.asserted.load(Ordering::SeqCst)), (1, false));
    driver.load(registers::BAR, registers::ISR, &mut isr);
    assert_eq!(isr[0], 0, "a read takes it away");
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    let mut driver = running(ALL & !feature::RING_EVENT_IDX);
    let request = flush(&driver);
    let flags = driver.rings[0].driver;
    driver.memory.put(flags, &1_u16.to_le_bytes());
    driver.submit(0, &[&request]);
    assert_eq!((driver.used(0).len(), driver.raised()), (1, vec![]));
    driver.memory.put(flags, &0_u16.to_le_bytes());
    driver.submit(0, &[&request]);
    assert_eq!((driver.used(0).len(), driver.raised()), (1, vec![0]));
}

#[test]
fn event_indices_say_when_each_side_wants_to_hear_of_the_other() {
    let mut driver = running(ALL);
    let request = flush(&driver);
    let (wanted, hears) = (driver.rings[0].driver + 4 + 32, driver.rings[0].device + 4 + 128);
    // The driver wants to hear of the third request.
    driver.memory.put(wanted, &2_u16.to_le_bytes());
    for (count, raised) in [(1_u16, vec![]), (2, vec![]), (3, vec![0]), (4, vec![])] {
        driver.submit(0, &[&request]);
        assert_eq!(driver.raised(), raised, "request {count}");
        assert_eq!(driver.memory.get(hears, 2), count.to_le_bytes(), "the device wants the next");
    }
    // A batch that passes it interrupts once.
    driver.memory.put(wanted, &5_u16.to_le_bytes());
    driver.submit(0, &[&request, &request, &request]);
    assert_eq!(driver.raised(), [0]);
}

#[test]
fn what_a_driver_does_wrong_stops_the_device_with_a_reason_until_a_reset() {
    let mut driver = running(ALL);
    driver.set_common(registers::CONFIG_MSIX_VECTOR, 4, 2);
    driver.offer(0, 16);
    driver.kick(0);
    driver.poll();
    assert_eq!(stopped(&mut driver), "a descriptor is none of the queue's");
    assert_eq!(driver.raised(), [4], "a change of the configuration");
    let request = flush(&driver);
    driver.submit(0, &[&request]);
    assert_eq!(driver.used(0), [], "nothing more is done");
    // A reset, and all is well.
    driver.negotiate(ALL);
    driver.make(0, 16);
    driver.run();
    driver.submit(0, &[&request]);
    assert_eq!((driver.used(0).len(), driver.status()), (1, 15));
}

/// Writes raw descriptors, offers the first, and answers why the device stops.
fn refused(wanted: u64, descriptors: &[[u8; 16]]) -> &'static str {
    let mut driver = running(wanted);
    let table = driver.rings[0].descriptors;
    for (at, bytes) in (0..).zip(descriptors) {
        driver.memory.put(table + 16 * at, bytes);
    }
    driver.offer(0, 0);
    driver.kick(0);
    driver.poll();
    stopped(&mut driver)
}

fn flagged(piece: Piece, flags: u8, next: u16) -> [u8; 16] {
    let mut bytes = descriptor(piece, Some(next));
    bytes[12] = flags;
    bytes
}

#[test]
fn chains_that_are_none_are_refused_each_with_its_reason() {
    let (read, write) = (Piece::Out(DATA, 16), Piece::In(STATUS, 1));
    let looped = [descriptor(read, Some(1)), descriptor(read, Some(0))];
    assert_eq!(refused(ALL, &looped), "a chain is longer than the queue");
    let far = [descriptor(read, Some(500))];
    assert_eq!(refused(ALL, &far), "a descriptor is none of the queue's");
    let turned = [descriptor(write, Some(1)), descriptor(read, None)];
    assert_eq!(refused(ALL, &turned), "a descriptor to read follows one to write");
    let wraps = [descriptor(Piece::Out(u64::MAX, 16), None)];
    assert_eq!(refused(ALL, &wraps), "a descriptor wraps around the end of all addresses");
    let bare = [descriptor(write, None)];
    assert_eq!(refused(ALL, &bare), "a request has no header of 16 bytes");
    let mute = [descriptor(read, None)];
    assert_eq!(refused(ALL, &mute), "a request has no status byte");
    let lost = [descriptor(read, Some(1)), descriptor(Piece::In(MEMORY - 1, 1), None)];
    assert_eq!(refused(ALL, &lost), "the queue cannot be reached");
}

#[test]
fn indirect_tables_that_are_none_are_refused_each_with_its_reason() {
    let table = |length| flagged(Piece::Out(DATA, length), 4, 0);
    let plain = ALL & !feature::RING_INDIRECT_DESC;
    assert_eq!(refused(plain, &[table(16)]), "an indirect table was not negotiated");
    let followed = flagged(Piece::Out(DATA, 16), 5, 1);
    assert_eq!(refused(ALL, &[followed]), "a descriptor follows an indirect table");
    let sizes = "an indirect table has not 1 to 1024 entries: its bytes";
    for length in [0, 15, 17, 16 * 1025, u32::MAX] {
        assert_eq!(refused(ALL, &[table(length)]), sizes, "{length} bytes");
    }
    // The fake memory is all zeroes: an entry of no bytes, and no other.
    assert_eq!(refused(ALL, &[table(16)]), "a request has no header of 16 bytes");
    let unreached = flagged(Piece::Out(MEMORY + MEMORY_BYTES as u64, 16), 4, 0);
    assert_eq!(refused(ALL, &[unreached]), "the queue cannot be reached");
    // The queue's own table as an indirect one: its first entry refers to a table.
    let mut driver = running(ALL);
    let own = driver.rings[0].descriptors;
    driver.memory.put(own, &flagged(Piece::Out(own, 32), 4, 0));
    driver.offer(0, 0);
    driver.kick(0);
    driver.poll();
    assert_eq!(stopped(&mut driver), "an indirect table refers to another");
}

#[test]
fn an_available_index_further_ahead_than_the_queue_is_long_is_refused() {
    let mut driver = running(ALL);
    let index = driver.rings[0].driver + 2;
    driver.memory.put(index, &17_u16.to_le_bytes());
    driver.kick(0);
    driver.poll();
    assert_eq!(stopped(&mut driver), "the available ring has more entries than the queue");
}

#[test]
fn a_queue_whose_areas_are_not_aligned_or_cannot_be_reached_stops_the_device() {
    let mut driver = new();
    driver.negotiate(ALL);
    driver.set_common(registers::QUEUE_DESC, DATA + 8, 8);
    driver.set_common(registers::QUEUE_ENABLE, 1, 2);
    assert_eq!(stopped(&mut driver), "an area of the queue is not aligned");
    let mut driver = new();
    driver.negotiate(ALL);
    driver.set_common(registers::QUEUE_DEVICE, !3, 8);
    driver.set_common(registers::QUEUE_ENABLE, 1, 2);
    let wraps = "an area of the queue wraps around the end of all addresses";
    assert_eq!(stopped(&mut driver), wraps);
    let mut driver = new();
    driver.negotiate(ALL);
    driver.set_common(registers::QUEUE_ENABLE, 1, 2);
    driver.run();
    driver.poll();
    assert_eq!(
        (driver.told.take(), driver.status()),
        (vec![], 15),
        "nobody has asked for anything"
    );
    driver.kick(0);
    driver.poll();
    assert_eq!(stopped(&mut driver), "the queue cannot be reached", "nothing is at address 0");
}

#[test]
fn a_queue_can_be_reset_by_itself_and_set_up_again() {
    let mut driver = running(ALL);
    let request = flush(&driver);
    driver.submit(0, &[&request, &request]);
    driver.set_common(registers::QUEUE_SELECT, 0, 2);
    driver.set_common(registers::QUEUE_RESET, 1, 2);
    let registers =
        [registers::QUEUE_RESET, registers::QUEUE_ENABLE].map(|at| driver.common(at, 2));
    assert_eq!(registers, [0, 0], "it is done at once");
    driver.submit(0, &[&request]);
    assert_eq!(driver.used(0).len(), 2, "only what was done before");
    driver.make(0, 8);
    driver.submit(0, &[&request]);
    assert_eq!(driver.used(0).len(), 1, "from the first entry on");
}

#[test]
fn a_reset_takes_away_all_that_was_set() {
    let mut driver = running(ALL);
    driver.set_common(registers::DEVICE_STATUS, 0, 1);
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.common(registers::DRIVER_FEATURE, 4), 0);
    assert_eq!(driver.common(registers::QUEUE_SIZE, 2), 256);
    assert_eq!(driver.common(registers::QUEUE_ENABLE, 2), 0);
    assert_eq!(driver.common(registers::QUEUE_DESC, 8), 0);
    driver.kick(0);
    driver.poll();
    assert_eq!((driver.used(0), driver.told.take()), (vec![], vec![]));
}

#[test]
fn a_thousand_requests_go_round_the_ring_in_order() {
    let mut driver = running(ALL);
    let request = flush(&driver);
    for round in 0..250 {
        driver.submit(0, &[&request, &request, &request, &request]);
        let heads: Vec<_> = driver.used(0).iter().map(|(head, _)| *head).collect();
        let first = round * 8 % 16;
        assert_eq!(heads, [0, 2, 4, 6].map(|step| (first + step) % 16));
    }
}

#[test]
fn without_bus_mastering_the_first_request_stops_the_device() {
    let mut driver = running(ALL);
    driver.set_master(false);
    let request = flush(&driver);
    driver.submit(0, &[&request]);
    let told = driver.told.take();
    assert!(matches!(told[..], [Refusal::Dma { .. }, Refusal::Driver { .. }, ..]), "{told:?}");
    assert_eq!(driver.used(0), []);
}
