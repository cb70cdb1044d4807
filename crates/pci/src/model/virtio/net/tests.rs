//! virtio-net, each backend and each interface.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use pcap_file::pcap::{PcapPacket, PcapReader, PcapWriter};
use proptest::prelude::*;

use super::*;
use crate::model::create;
use crate::model::virtio::tests::driver::{ALL, DATA, Driver, Piece};
use crate::model::virtio::{feature, registers};

const OUT: u64 = DATA;
const IN: u64 = DATA + (1 << 20);
const COMMAND: u64 = DATA + (2 << 20);
const BUFFER: u64 = 2048;

/// A card with its two queues of 16 and the control queue, that runs.
fn running(options: &[(&str, &str)], wanted: u64) -> Driver {
    let mut driver = Driver::running("virtio-net", options, wanted & !feature::RING_EVENT_IDX);
    driver.make(1, 16);
    driver.make(2, 16);
    driver
}

/// A name that no other test has.
fn unique(what: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{what}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn file() -> PathBuf {
    std::env::temp_dir().join(unique("ioasis-pcap"))
}

/// A packet to everybody that tells its number and length.
fn packet(number: usize, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xff; 6];
    bytes.extend((6..length).map(|at| (at * 3 + number).to_le_bytes()[0]));
    bytes
}

/// Sends packets on a transmit queue, each behind a header in a piece of its own.
fn send(driver: &mut Driver, queue: u16, header: u32, packets: &[Vec<u8>]) {
    for (slot, packet) in (0..).zip(packets) {
        let at = OUT + slot * 0x1_0000;
        driver.memory.put(at, &vec![0; header as usize]);
        driver.memory.put(at + 64, packet);
        let length = u32::try_from(packet.len()).unwrap();
        let head = driver.chain(queue, &[Piece::Out(at, header), Piece::Out(at + 64, length)]);
        driver.offer(queue, head);
    }
    driver.kick(queue);
    driver.poll();
    assert_eq!(driver.used(queue).len(), packets.len(), "every packet is given back");
}

/// Gives the card buffers, one descriptor each.
fn give(driver: &mut Driver, queue: u16, count: u64, length: u64) {
    for slot in 0..count {
        let piece = Piece::In(IN + slot * BUFFER, u32::try_from(length).unwrap());
        let head = driver.chain(queue, &[piece]);
        driver.offer(queue, head);
    }
    driver.kick(queue);
    driver.poll();
}

/// What came into the buffers that [`give`] gave, in the order in which they were given back,
/// headers and all.
fn came(driver: &mut Driver, queue: u16) -> Vec<Vec<u8>> {
    driver.poll();
    let used = driver.used(queue);
    let ring = driver.rings.iter().find(|ring| ring.index == queue).unwrap().descriptors;
    used.iter()
        .map(|(head, length)| {
            let entry = driver.memory.get(ring + 16 * u64::from(*head), 8);
            let at = u64::from_le_bytes(entry.try_into().unwrap());
            driver.memory.get(at, *length as usize)
        })
        .collect()
}

/// The packets in them, where each is in one buffer.
fn packets(driver: &mut Driver, queue: u16, header: usize) -> Vec<Vec<u8>> {
    came(driver, queue).iter().map(|bytes| bytes[header..].to_vec()).collect()
}

/// Does a command; answers its acknowledgement.
fn command(driver: &mut Driver, queue: u16, class: u8, what: u8, data: &[u8]) -> u8 {
    driver.memory.put(COMMAND, &[class, what]);
    driver.memory.put(COMMAND + 64, data);
    driver.memory.put(COMMAND + 32, &[0xee]);
    let length = u32::try_from(data.len()).unwrap();
    let pieces =
        [Piece::Out(COMMAND, 2), Piece::Out(COMMAND + 64, length), Piece::In(COMMAND + 32, 1)];
    driver.submit(queue, &[&pieces]);
    driver.memory.get(COMMAND + 32, 1)[0]
}

#[test]
fn a_looped_card_receives_what_it_sends_in_order() {
    let mut driver = running(&[("loop", "on")], ALL & !MRG_RXBUF);
    give(&mut driver, 0, 8, BUFFER);
    let sent: Vec<_> = (0..5).map(|number| packet(number, 60 + 300 * number)).collect();
    send(&mut driver, 1, 12, &sent);
    let came = came(&mut driver, 0);
    assert!(came.iter().all(|bytes| bytes[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]));
    assert!(came.iter().map(|bytes| bytes[12..].to_vec()).eq(sent));
    let mut raised = driver.raised();
    raised.sort_unstable();
    assert_eq!(raised, [0, 1], "each queue by its vector, once a batch");
}

#[test]
fn a_large_packet_fills_several_buffers_where_they_may_be_merged() {
    let mut driver = running(&[("loop", "on")], ALL);
    give(&mut driver, 0, 6, 500);
    let sent = packet(1, 1400);
    send(&mut driver, 1, 12, &[sent.clone(), packet(2, 100)]);
    let came = came(&mut driver, 0);
    let lengths: Vec<_> = came.iter().map(Vec::len).collect();
    assert_eq!(lengths, [500, 500, 412, 112]);
    assert_eq!((came[0][10], came[3][10]), (3, 1), "how many there are");
    assert!([&came[0][12..], &came[1], &came[2]].concat() == sent);
}

#[test]
fn without_merging_a_packet_that_is_too_large_is_dropped_and_its_buffer_stays() {
    let mut driver = running(&[("loop", "on")], ALL & !MRG_RXBUF);
    give(&mut driver, 0, 2, 500);
    send(&mut driver, 1, 12, &[packet(1, 1400), packet(2, 100), packet(3, 488)]);
    assert!(packets(&mut driver, 0, 12) == [packet(2, 100), packet(3, 488)]);
}

#[test]
fn packets_wait_for_buffers_and_come_when_there_are_some() {
    let mut driver = running(&[("loop", "on")], ALL & !MRG_RXBUF);
    let sent: Vec<_> = (0..6).map(|number| packet(number, 60)).collect();
    send(&mut driver, 1, 12, &sent);
    assert!(packets(&mut driver, 0, 12).is_empty());
    give(&mut driver, 0, 2, BUFFER);
    assert!(packets(&mut driver, 0, 12) == sent[..2]);
    give(&mut driver, 0, 8, BUFFER);
    assert!(packets(&mut driver, 0, 12) == sent[2..]);
}

#[test]
fn two_cards_of_one_name_are_connected_and_a_third_is_refused() {
    let name = unique("wire");
    let mut alone = running(&[("pair", &name)], ALL);
    let mut status = [0; 2];
    alone.load(registers::BAR, registers::DEVICE + 6, &mut status);
    assert_eq!(status, [0, 0], "the cable leads nowhere");
    let mut other = running(&[("pair", &name)], ALL);
    alone.poll();
    alone.load(registers::BAR, registers::DEVICE + 6, &mut status);
    assert_eq!(status, [1, 0], "now it does");
    assert_eq!(alone.common(registers::CONFIG_GENERATION, 1), 1, "and the driver can tell");
    for (round, back) in [(0, false), (1, true), (2, false)] {
        let (from, to) = if back { (&mut other, &mut alone) } else { (&mut alone, &mut other) };
        give(to, 0, 4, BUFFER);
        let sent: Vec<_> = (0..4).map(|number| packet(number + round, 100)).collect();
        send(from, 1, 12, &sent);
        assert!(packets(to, 0, 12) == sent);
    }
    let third = create("virtio-net", &[("pair".to_owned(), name.clone())]).expect_err("a third");
    let said = format!("virtio-net: pair={name} is not accepted; two cards have that name already");
    assert_eq!(third.to_string(), said);
}

#[test]
fn whoever_sends_to_a_card_that_is_full_waits_and_loses_nothing() {
    let name = unique("wire");
    let mut from = running(&[("pair", &name)], ALL);
    let mut to = running(&[("pair", &name)], ALL);
    let mut sent = 0_usize;
    // The wire takes 512; then the sender's own queue is full.
    loop {
        let head = from.chain(1, &[Piece::Out(OUT, 12), Piece::Out(OUT + 64, 60)]);
        from.memory.put(OUT + 64, &packet(sent, 60));
        from.offer(1, head);
        from.kick(1);
        from.poll();
        sent += 1;
        if from.used(1).is_empty() {
            break;
        }
        assert!(sent < 1000, "it has an end");
    }
    assert_eq!(sent, 513);
    let mut seen = 0;
    while seen < sent {
        give(&mut to, 0, 8, BUFFER);
        for came in packets(&mut to, 0, 12) {
            assert!(came == packet(seen, 60), "packet {seen}");
            seen += 1;
        }
        from.poll();
    }
}

#[test]
fn packets_to_a_card_that_does_not_run_are_lost() {
    let name = unique("wire");
    let mut from = running(&[("pair", &name)], ALL);
    let mut to = Driver::new("virtio-net", &[("pair", &name)]);
    for _ in 0..100 {
        send(&mut from, 1, 12, &vec![packet(0, 60); 8]);
    }
    to.enable_msix();
    to.negotiate(ALL);
    to.make(0, 16);
    to.run();
    give(&mut to, 0, 4, BUFFER);
    send(&mut from, 1, 12, &[packet(7, 60)]);
    assert!(packets(&mut to, 0, 12) == [packet(7, 60)]);
}

#[test]
fn packets_come_out_of_a_pcap_file_and_go_into_one() {
    let (rx, tx) = (file(), file());
    let all: Vec<_> = (0..20).map(|number| packet(number, 60 + number)).collect();
    let mut writer = PcapWriter::new(fs::File::create(&rx).unwrap()).unwrap();
    for bytes in &all {
        let length = u32::try_from(bytes.len()).unwrap();
        let record = PcapPacket::new(std::time::Duration::from_secs(1), length, bytes);
        writer.write_packet(&record).unwrap();
    }
    drop(writer);
    let options = [("rx", rx.to_str().unwrap()), ("tx", tx.to_str().unwrap())];
    let mut driver = running(&options, ALL & !MRG_RXBUF);
    let mut seen = Vec::new();
    for _ in 0..3 {
        give(&mut driver, 0, 8, BUFFER);
        let now = packets(&mut driver, 0, 12);
        send(&mut driver, 1, 12, &now);
        seen.extend(now);
        // Longer than a packet waits that comes when it comes.
        std::thread::sleep(std::time::Duration::from_millis(120));
        driver.poll();
    }
    assert!(seen == all, "in order, and once");
    let mut reader = PcapReader::new(fs::File::open(&tx).unwrap()).unwrap();
    let written: Vec<_> =
        std::iter::from_fn(|| reader.next_packet().map(|next| next.unwrap().data.to_vec()))
            .collect();
    assert!(written == all);
    for path in [rx, tx] {
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_card_takes_what_its_filter_says() {
    let mut driver = running(&[("loop", "on"), ("mac", "52:54:00:00:00:01")], ALL & !MRG_RXBUF);
    let to = |mac: [u8; 6]| [mac.to_vec(), vec![0; 54]].concat();
    let (own, other) = (to([0x52, 0x54, 0, 0, 0, 1]), to([0x52, 0x54, 0, 0, 0, 2]));
    let group = to([1, 0, 0x5e, 0, 0, 1]);
    let both = [own.clone(), other.clone(), group.clone()];
    give(&mut driver, 0, 12, BUFFER);
    send(&mut driver, 1, 12, &both);
    assert!(packets(&mut driver, 0, 12) == [own.clone()]);
    assert_eq!(command(&mut driver, 2, 0, 1, &[1]), 0, "all groups");
    send(&mut driver, 1, 12, &both);
    assert!(packets(&mut driver, 0, 12) == [own.clone(), group.clone()]);
    assert_eq!(command(&mut driver, 2, 1, 1, &[0x52, 0x54, 0, 0, 0, 2]), 0, "another address");
    let mut mac = [0; 6];
    driver.load(registers::BAR, registers::DEVICE, &mut mac);
    assert_eq!(mac[5], 2, "the configuration shows it");
    send(&mut driver, 1, 12, &both);
    assert!(packets(&mut driver, 0, 12) == [other.clone(), group.clone()]);
    assert_eq!(command(&mut driver, 2, 0, 0, &[1]), 0, "all");
    send(&mut driver, 1, 12, &both);
    assert!(packets(&mut driver, 0, 12) == both);
    // A reset brings the address back.
    driver.set_common(registers::DEVICE_STATUS, 0, 1);
    driver.load(registers::BAR, registers::DEVICE, &mut mac);
    assert_eq!(mac[5], 1);
}

#[test]
fn commands_that_are_none_are_refused_and_the_card_goes_on() {
    let mut driver = running(&[("loop", "on")], ALL);
    for (class, what, data) in [
        (9, 0, &[1_u8][..]),
        (0, 9, &[1]),
        (0, 0, &[]),
        (1, 1, &[1, 2, 3]),
        (1, 0, &[0xff; 4]),
        (4, 0, &[1, 0]),
    ] {
        assert_eq!(command(&mut driver, 2, class, what, data), 1, "{class} {what}");
    }
    assert_eq!(command(&mut driver, 2, 0, 0, &[0]), 0);
}

#[test]
fn with_several_pairs_the_control_queue_is_behind_them_and_says_how_many_are_used() {
    let options = [("loop", "on"), ("queues", "2")];
    let mut driver = running(&options, ALL & !MRG_RXBUF);
    for queue in [3, 4] {
        driver.make(queue, 16);
    }
    let flow = |port: u8| {
        let mut bytes = packet(0, 60);
        bytes[12..14].copy_from_slice(&[8, 0]);
        bytes[26..38].fill(0);
        bytes[35] = port;
        bytes
    };
    let count = |driver: &mut Driver| {
        give(driver, 0, 8, BUFFER);
        give(driver, 2, 8, BUFFER);
        for port in 0..8 {
            send(driver, 1 + 2 * u16::from(port % 2), 12, &[flow(port)]);
        }
        [0, 2].map(|queue| came(driver, queue).len())
    };
    assert_eq!(count(&mut driver), [8, 0], "one pair until it is told otherwise");
    assert_eq!(command(&mut driver, 4, 4, 0, &[3, 0]), 1, "there are two");
    assert_eq!(command(&mut driver, 4, 4, 0, &[2, 0]), 0);
    let [first, second] = count(&mut driver);
    assert!(first > 0 && second > 0 && first + second == 8, "{first} and {second}");
}

#[test]
fn buffers_and_packets_that_cannot_be_reached_do_not_stop_the_card() {
    let mut driver = running(&[("loop", "on")], ALL & !MRG_RXBUF);
    let nowhere = Piece::In(0x10, 2048);
    let head = driver.chain(0, &[nowhere]);
    driver.offer(0, head);
    give(&mut driver, 0, 1, BUFFER);
    let lost = driver.chain(1, &[Piece::Out(0x10, 100)]);
    driver.offer(1, lost);
    driver.memory.put(OUT + 64, &packet(1, 60));
    for _ in 0..2 {
        let head = driver.chain(1, &[Piece::Out(OUT, 12), Piece::Out(OUT + 64, 60)]);
        driver.offer(1, head);
    }
    driver.kick(1);
    driver.poll();
    assert_eq!(driver.used(1).len(), 3);
    let used = driver.used(0);
    assert_eq!(used.iter().map(|(_, length)| *length).collect::<Vec<_>>(), [0, 72]);
    assert_eq!(driver.status() & registers::NEEDS_RESET, 0);
}

/// A driver of the legacy interface.
struct Legacy(Driver);

impl Legacy {
    fn port(&mut self, offset: u64, length: usize) -> u64 {
        let mut bytes = [0; 8];
        self.0.load(0, offset, &mut bytes[..length]);
        u64::from_le_bytes(bytes)
    }

    fn set(&mut self, offset: u64, value: u64, length: usize) {
        self.0.store(0, offset, &value.to_le_bytes()[..length]);
    }

    /// Puts a queue where the legacy layout has it; its ring is 256 long.
    fn place(&mut self, queue: u16, vector: bool) {
        let base = 0x10_0000 + u64::from(queue) * 0x1_0000;
        self.0.memory.put(base, &[0; 0x4000]);
        self.set(14, queue.into(), 2);
        assert_eq!(self.port(12, 2), 256);
        assert_eq!(self.port(8, 4), 0, "it is not placed");
        if vector {
            self.set(22, queue.into(), 2);
        }
        self.set(8, base / 4096, 4);
        self.0.adopt(queue, 256, [base, base + 0x1000, base + 0x2000]);
    }
}

#[test]
fn a_legacy_driver_finds_ports_the_old_ring_layout_and_a_short_header() {
    for (msix, interface) in [(false, "legacy"), (true, "legacy"), (true, "transitional")] {
        let options = [("loop", "on"), ("interface", interface), ("mac", "52:54:00:01:02:03")];
        let mut legacy = Legacy(Driver::new("virtio-net", &options));
        if msix {
            legacy.0.enable_msix();
        }
        legacy.set(18, 3, 1);
        let offered = legacy.port(0, 4);
        assert_eq!(offered & (MAC | STATUS | CTRL_VQ), MAC | STATUS | CTRL_VQ);
        legacy.set(4, offered & !MRG_RXBUF & !feature::RING_EVENT_IDX, 4);
        let configuration = if msix { 24 } else { 20 };
        let mac: Vec<_> = (0..6).map(|at| legacy.port(configuration + at, 1)).collect();
        assert_eq!(mac, [0x52, 0x54, 0, 1, 2, 3], "a byte at a time");
        for queue in 0..2 {
            legacy.place(queue, msix);
        }
        legacy.set(18, 7, 1);
        assert_eq!(legacy.port(18, 1), 7);
        for slot in 0..4 {
            let head = legacy.0.chain(
                0,
                &[Piece::In(IN + slot * BUFFER, 10), Piece::In(IN + slot * BUFFER + 10, 1600)],
            );
            legacy.0.offer(0, head);
        }
        let sent = packet(3, 333);
        legacy.0.memory.put(OUT, &[0; 10]);
        legacy.0.memory.put(OUT + 10, &sent);
        let head = legacy.0.chain(1, &[Piece::Out(OUT, 10), Piece::Out(OUT + 10, 333)]);
        legacy.0.offer(1, head);
        legacy.set(16, 1, 2);
        legacy.set(16, 0, 2);
        legacy.0.poll();
        assert_eq!(legacy.0.used(1).len(), 1);
        assert_eq!(legacy.0.used(0), [(0, 343)]);
        assert!(legacy.0.memory.get(IN + 10, 333) == sent);
        if msix {
            let mut raised = legacy.0.raised();
            raised.sort_unstable();
            assert_eq!(raised, [0, 1]);
        } else {
            assert!(legacy.0.interrupts.asserted.load(Ordering::SeqCst));
            assert_eq!((legacy.port(19, 1), legacy.port(19, 1)), (1, 0), "a read takes it away");
            assert!(!legacy.0.interrupts.asserted.load(Ordering::SeqCst));
        }
        legacy.set(18, 0, 1);
        assert_eq!((legacy.port(18, 1), legacy.port(8, 4)), (0, 0), "a reset takes all away");
    }
}

#[test]
fn a_transitional_card_has_the_old_ids_and_the_modern_interface_too() {
    let options = [("interface".to_owned(), "transitional".to_owned())];
    let ids = create("virtio-net", &options).expect("good options").description().ids;
    assert_eq!(
        (ids.vendor, ids.device, ids.subsystem_device, ids.revision),
        (0x1af4, 0x1000, 1, 0)
    );
    let options = [("interface".to_owned(), "legacy".to_owned())];
    let legacy = create("virtio-net", &options).expect("good options").description();
    assert_eq!(
        (legacy.ids.device, legacy.vendor.len(), legacy.bars[4].is_some()),
        (0x1000, 0, false)
    );
    let ids = create("virtio-net", &[]).expect("no options").description().ids;
    assert_eq!((ids.vendor, ids.device, ids.revision), (0x1af4, 0x1041, 1));
    let mut driver = running(&[("loop", "on"), ("interface", "transitional")], ALL & !MRG_RXBUF);
    give(&mut driver, 0, 2, BUFFER);
    send(&mut driver, 1, 12, &[packet(1, 60)]);
    assert!(packets(&mut driver, 0, 12) == [packet(1, 60)]);
}

#[test]
fn options_that_are_wrong_name_the_value_and_what_is_accepted() {
    let refused = |options: &[(&str, &str)]| {
        let options: Vec<_> =
            options.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        create("virtio-net", &options).expect_err("refused").to_string()
    };
    assert_eq!(
        refused(&[("mac", "01:00:00:00:00:01")]),
        "virtio-net: mac=01:00:00:00:00:01 is not accepted; mac is six bytes as in 52:54:00:12:34:56, of no group"
    );
    assert_eq!(
        refused(&[("queues", "9")]),
        "virtio-net: queues=9 is not accepted; queues is a number from 1 to 8"
    );
    assert_eq!(
        refused(&[("loop", "on"), ("pair", "a")]),
        "virtio-net: loop and pair exclude each other"
    );
    assert!(refused(&[("rx", "/no/such/file")]).starts_with("virtio-net: rx=/no/such/file: "));
    assert!(refused(&[("rx", "/proc/version")]).contains("it is no pcap file"));
    let stream = refused(&[("stream", "/no/such/socket")]);
    assert!(stream.starts_with("virtio-net: stream=/no/such/socket cannot be connected: "));
    assert_eq!(
        refused(&[("pair", "")]),
        "virtio-net: pair= is not accepted; pair is a name that exactly two cards have"
    );
}

proptest! {
    /// Packets of any length, sent in any pieces, into buffers of any length: the naive card is a
    /// list.
    #[test]
    fn any_packets_come_back_whole_and_in_order(
        sent in proptest::collection::vec((14..1500_usize, 1..5_usize), 1..12),
        buffers in proptest::collection::vec(64..900_u32, 40..80),
        merge in any::<bool>(),
    ) {
        let wanted = if merge { ALL } else { ALL & !MRG_RXBUF };
        let mut driver = Driver::new("virtio-net", &[("loop", "on")]);
        driver.negotiate(wanted & !feature::RING_EVENT_IDX);
        driver.make(0, 128);
        driver.make(1, 128);
        driver.run();
        for (slot, length) in (0..).zip(&buffers) {
            let head = driver.chain(0, &[Piece::In(IN + slot * BUFFER, *length)]);
            driver.offer(0, head);
        }
        driver.kick(0);
        let mut expected = Vec::new();
        for (number, (length, pieces)) in sent.iter().enumerate() {
            let bytes = [vec![0; 12], packet(number, *length)].concat();
            let at = OUT + number as u64 * 0x1000;
            driver.memory.put(at, &bytes);
            let cut = bytes.len() / pieces;
            let chain: Vec<_> = (0..*pieces).map(|piece| {
                let start = piece * cut;
                let end = if piece + 1 == *pieces { bytes.len() } else { start + cut };
                Piece::Out(at + start as u64, u32::try_from(end - start).unwrap())
            }).collect();
            let head = driver.chain(1, &chain);
            driver.offer(1, head);
            expected.push(bytes[12..].to_vec());
        }
        driver.kick(1);
        driver.poll();
        let all = came(&mut driver, 0);
        let mut at = 0;
        let mut seen = Vec::new();
        while at < all.len() {
            let count = usize::from(all[at][10]);
            let whole: Vec<u8> = all[at..at + count].concat();
            seen.push(whole[12..].to_vec());
            at += count;
        }
        if merge {
            prop_assert!(seen == expected);
        } else {
            // The naive card drops what the next buffer is too short for.
            let mut next = buffers.iter();
            let mut room = next.next();
            expected.retain(|bytes| {
                let fits = room.is_some_and(|room| bytes.len() + 12 <= *room as usize);
                if fits {
                    room = next.next();
                }
                fits
            });
            prop_assert!(seen == expected);
        }
    }
}
