//! Frames through the rings, by a port that hears itself.

use super::rig::{
    BUFFERS, DATA, ENTRIES, MEMORY, MEMORY_BYTES, READ_ONLY, RECEIVE_RING, Rig, SOMEBODY,
    TRANSMIT_RING, WHOLE, frame,
};
use crate::model::Progress;
use crate::model::igb::frame::check_sequence;
use crate::model::igb::registers::RCTL;
use crate::model::igb::ring::{receive, transmit};

const END: u64 = MEMORY + MEMORY_BYTES as u64;
const LOOP: &[(&str, &str)] = &[("loop", "on")];

#[test]
fn frames_come_back_whole_and_in_order() {
    let mut rig = Rig::ready(LOOP);
    for round in 0..50_u8 {
        let length = 60 + usize::from(round) * 29;
        let frames: Vec<_> =
            (0..5).map(|number| frame(SOMEBODY, round * 5 + number, length)).collect();
        for sent in &frames {
            rig.send(sent);
        }
        rig.poll();
        for sent in &frames {
            let (status, came) = rig.take().expect("it came");
            assert_eq!((status & 3, &came), (3, sent));
            rig.give();
        }
        assert!(rig.take().is_none());
    }
}

#[test]
fn a_frame_of_several_pieces_is_one() {
    let mut rig = Rig::ready(LOOP);
    let whole = frame(SOMEBODY, 3, 300);
    rig.memory.put(DATA, &whole[..100]);
    rig.memory.put(DATA + 0x800, &whole[100..101]);
    rig.memory.put(DATA + 0x1000, &whole[101..]);
    let data = WHOLE & !(1 << 24 | 1 << 27);
    rig.describe(DATA, data | 100, 300 << 14);
    rig.describe(DATA + 0x800, data | 1, 0);
    rig.ring_transmit();
    rig.poll();
    assert!(rig.take().is_none(), "its end is not there yet");
    rig.describe(DATA + 0x1000, WHOLE | 199, 0);
    rig.ring_transmit();
    rig.poll();
    assert_eq!(rig.take().expect("it came").1, whole);
    let done = |index: u64| rig.memory.get(TRANSMIT_RING + 16 * index + 12, 1)[0] & 1;
    assert_eq!([done(0), done(1), done(2)], [0, 0, 1], "the last one asked for a report");
    assert_eq!(rig.pages.load_u32(transmit(0) + 0x10).expect("mapped"), 3, "the head");
}

#[test]
fn a_long_frame_takes_several_buffers() {
    let mut rig = Rig::ready(LOOP);
    rig.share(receive(0) + 0xc, 1 << 25 | 1);
    let long = frame(SOMEBODY, 7, 1500);
    rig.send(&long);
    rig.poll();
    let back = |index: u64| {
        let bytes = rig.memory.get(RECEIVE_RING + 16 * index + 8, 6);
        (bytes[0] & 3, u16::from_le_bytes([bytes[4], bytes[5]]))
    };
    assert_eq!([back(0), back(1)], [(1, 1024), (3, 476)]);
    let mut came = rig.memory.get(BUFFERS, 1024);
    came.extend(rig.memory.get(BUFFERS + 2048, 476));
    assert_eq!(came, long);
}

#[test]
fn a_short_frame_is_padded_and_a_check_sequence_comes_where_it_is_not_stripped() {
    let mut rig = Rig::ready(LOOP);
    rig.send(&frame(SOMEBODY, 1, 20));
    rig.poll();
    assert_eq!(rig.take().expect("it came").1.len(), 60);
    rig.store(RCTL, 1 << 1 | 1 << 3);
    let sent = frame(SOMEBODY, 2, 60);
    rig.send(&sent);
    rig.poll();
    let (_, came) = rig.take().expect("it came");
    assert_eq!((came.len(), &came[..60]), (64, &sent[..]));
    assert_eq!(came[60..], check_sequence(&sent));
    // The check value of CRC-32: over nine digits.
    assert_eq!(check_sequence(b"123456789"), 0xcbf4_3926_u32.to_le_bytes());
}

#[test]
fn each_way_has_its_interrupt_and_a_mask_keeps_it() {
    let mut rig = Rig::ready(LOOP);
    rig.vectors();
    rig.send(&frame(SOMEBODY, 1, 60));
    rig.poll();
    let mut raised = rig.raised();
    raised.sort_unstable();
    assert_eq!(raised, [0, 1]);
    rig.store(0x1528, 3);
    rig.store(0x1580, 3);
    rig.send(&frame(SOMEBODY, 2, 60));
    rig.poll();
    assert!(rig.raised().is_empty());
    rig.store(0x1524, 1);
    assert_eq!(rig.raised(), [0], "it waited for the mask");
}

#[test]
fn auto_clear_and_auto_mask_act_when_the_message_is_sent() {
    let mut rig = Rig::new(&[]);
    rig.store(0x1514, 1 << 4 | 1 << 30);
    rig.store(0x152c, 1);
    rig.store(0x1530, 1);
    rig.store(0x1524, 3);
    rig.store(0x1520, 3);
    assert_eq!(rig.raised(), [0, 1]);
    assert_eq!(rig.load(0x1524), 2, "vector 0 masked itself");
    assert_eq!(rig.load(0x1580), 2, "and is clear");
    rig.store(0x1520, 1);
    assert!(rig.raised().is_empty());
}

#[test]
fn an_interval_keeps_messages_apart_and_loses_none() {
    let mut rig = Rig::new(&[]);
    rig.store(0x1514, 1 << 4);
    rig.store(0x1680, 0x1fff << 2);
    rig.store(0x1524, 1);
    for _ in 0..3 {
        rig.store(0x1580, 1);
        rig.store(0x1520, 1);
    }
    let early = rig.raised().len();
    while rig.poll_once() == Progress::Worked {
        std::thread::yield_now();
    }
    assert!((1..=3).contains(&early), "{early}");
    assert!(early + rig.raised().len() >= 2, "the last one came");
}

#[test]
fn memory_that_cannot_be_reached_stops_the_queue_until_it_is_begun_anew() {
    let cases = [(0, DATA), (READ_ONLY, DATA), (END - 8, DATA), (BUFFERS, 0), (BUFFERS, END - 8)];
    for (buffer, source) in cases {
        let mut rig = Rig::ready(LOOP);
        rig.memory.put(RECEIVE_RING, &u64::to_le_bytes(buffer));
        rig.memory.put(DATA, &frame(SOMEBODY, 1, 60));
        rig.describe(source, WHOLE | 60, 60 << 14);
        rig.ring_transmit();
        rig.poll();
        rig.send(&frame(SOMEBODY, 2, 60));
        rig.poll();
        assert!(rig.take().is_none(), "buffer {buffer:#x}, source {source:#x}");
        rig.power_on();
        rig.store(0, 1 << 6);
        rig.rings();
        rig.send(&frame(SOMEBODY, 3, 60));
        rig.poll();
        assert_eq!(rig.take_numbers(), [3]);
    }
}

#[test]
fn frames_wait_for_buffers_unless_they_are_to_be_dropped() {
    for drops in [false, true] {
        let mut rig = Rig::ready(LOOP);
        rig.share(receive(0) + 0xc, 1 << 25 | 2 | if drops { 1 << 31 } else { 0 });
        for number in 1..ENTRIES {
            rig.send(&frame(SOMEBODY, number.to_le_bytes()[0], 60));
        }
        rig.poll();
        for number in 0..4 {
            rig.send(&frame(SOMEBODY, 100 + number, 60));
        }
        rig.poll();
        assert_eq!(rig.take_numbers().len(), 15);
        (0..4).for_each(|_| rig.give());
        rig.poll();
        let expected: &[u8] = if drops { &[] } else { &[100, 101, 102, 103] };
        assert_eq!(rig.take_numbers(), expected);
        assert_eq!(rig.load(0x4010), if drops { 4 } else { 0 }, "missed");
    }
}

#[test]
fn only_frames_for_the_port_come_through_its_filters() {
    let own = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
    let group = [1, 0, 0x5e, 0, 0, 0xfb];
    let to = [own, SOMEBODY, group, [0xff; 6]];
    for (control, expected) in [
        (0, vec![0]),
        (1 << 3, vec![0, 1]),
        (1 << 4, vec![0, 2]),
        (1 << 15, vec![0, 3]),
        (1 << 3 | 1 << 4 | 1 << 15, vec![0, 1, 2, 3]),
    ] {
        let mut rig = Rig::ready(&[("loop", "on"), ("mac", "52:54:00:12:34:56")]);
        rig.store(RCTL, 1 << 1 | 1 << 26 | control);
        for (number, &to) in (0..).zip(&to) {
            rig.send(&frame(to, number, 60));
        }
        rig.poll();
        assert_eq!(rig.take_numbers(), expected, "RCTL {control:#x}");
    }
    let mut rig = Rig::ready(LOOP);
    rig.store(RCTL, 1 << 1 | 1 << 26);
    // 8.10.13, MO 0: bits 47:36 of the address.
    let hash = u64::from(u16::from_le_bytes([group[4], group[5]]) >> 4);
    rig.share(0x5200 + hash / 32 * 4, 1 << (hash % 32));
    rig.send(&frame(group, 9, 60));
    rig.poll();
    assert_eq!(rig.take_numbers(), [9], "a group that was joined");
}

#[test]
fn tags_are_taken_out_put_in_and_filtered() {
    let plain = frame(SOMEBODY, 1, 64);
    let mut tagged = plain.clone();
    tagged.splice(12..12, [0x81, 0, 0x20, 5]);
    let mut rig = Rig::ready(LOOP);
    rig.send(&tagged);
    rig.poll();
    assert_eq!(rig.take().expect("it came").1, tagged);
    rig.store(0, 1 << 6 | 1 << 30);
    rig.send(&tagged);
    rig.poll();
    let (status, came) = rig.take().expect("it came");
    assert_eq!((status >> 3 & 1, &came), (1, &plain));
    assert_eq!(rig.memory.get(RECEIVE_RING + 16 + 14, 2), [5, 0x20]);
    rig.store(0, 1 << 6);
    rig.memory.put(DATA, &plain);
    // The tag is in the upper half of a context's first dword.
    rig.describe(0x2005 << 16, 2 << 20 | 1 << 29, 0);
    rig.describe(DATA, WHOLE | 1 << 30 | 64, 0);
    rig.ring_transmit();
    rig.poll();
    assert_eq!(rig.take().expect("it came").1, tagged);
    rig.store(RCTL, 1 << 1 | 1 << 3 | 1 << 18 | 1 << 26);
    rig.send(&tagged);
    rig.poll();
    assert!(rig.take().is_none(), "not a member");
    rig.share(0x5600, 1 << 5);
    rig.send(&tagged);
    rig.poll();
    assert!(rig.take().is_some());
}

/// The ones' complement sum of bytes, which is 0xffff where they carry their checksum.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}

#[test]
fn checksums_that_were_left_to_the_port_are_right() {
    for (protocol, kind, place, header) in [(17_u8, 0_u32, 6, 8), (6, 1, 16, 20)] {
        let mut packet = frame(SOMEBODY, 1, 14 + 20 + header + 31);
        packet[12..14].copy_from_slice(&[8, 0]);
        let length = u16::try_from(packet.len() - 14).expect("short").to_be_bytes();
        let start = [0x45, 0, length[0], length[1], 0, 1, 0, 0, 64, protocol, 0xde, 0xad];
        packet[14..26].copy_from_slice(&start);
        packet[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        // The pseudo header: addresses, protocol, length of the segment.
        let segment = u16::try_from(packet.len() - 34).expect("short");
        let mut pseudo = packet[26..34].to_vec();
        pseudo.extend([0, protocol]);
        pseudo.extend(segment.to_be_bytes());
        packet[34 + place..36 + place].copy_from_slice(&sum(&pseudo).to_be_bytes());
        let mut rig = Rig::ready(LOOP);
        rig.describe(20 | 14 << 9, 2 << 20 | 1 << 29, 0);
        // TUCMD lies in the context's third dword, with its type.
        let context = 2 << 20 | 1 << 29 | kind << 11 | 1 << 10;
        rig.memory.put(TRANSMIT_RING + 8, &context.to_le_bytes());
        rig.memory.put(DATA, &packet);
        let bytes = u32::try_from(packet.len()).expect("short");
        rig.describe(DATA, WHOLE | bytes, 3 << 8 | bytes << 14);
        rig.ring_transmit();
        rig.poll();
        let came = rig.take().expect("it came").1;
        assert_eq!(sum(&came[14..34]), 0xffff, "of IPv4");
        pseudo.extend(&came[34..packet.len()]);
        assert_eq!(sum(&pseudo), 0xffff, "of protocol {protocol}");
    }
}

#[test]
fn each_load_of_a_counter_gives_what_came_since_the_last() {
    let mut rig = Rig::ready(LOOP);
    for number in 0..3 {
        rig.send(&frame(SOMEBODY, number, 100));
    }
    rig.send(&frame([0xff; 6], 3, 60));
    rig.poll();
    // GPRC, GPTC, BPRC, PRC127, GORCL.
    let counters = [0x4074, 0x4080, 0x4078, 0x4060, 0x4088];
    assert_eq!(counters.map(|counter| rig.load(counter)), [4, 4, 1, 3, 3 * 104 + 64]);
    assert_eq!(counters.map(|counter| rig.load(counter)), [0; 5]);
}

#[test]
fn a_head_that_the_driver_stores_begins_the_ring_anew() {
    let mut rig = Rig::ready(LOOP);
    for number in 0..5 {
        rig.send(&frame(SOMEBODY, number, 60));
    }
    rig.poll();
    assert_eq!(rig.take_numbers(), [0, 1, 2, 3, 4]);
    rig.rings();
    rig.send(&frame(SOMEBODY, 9, 60));
    rig.poll();
    assert_eq!(rig.take_numbers(), [9], "at the first descriptor");
}
