//! Registers and rings full of anything.

use proptest::prelude::*;

use super::rig::{MEMORY, MEMORY_BYTES, Rig, SOMEBODY, frame};
use crate::model::igb::registers::{ACTING, RCTL, TCTL};
use crate::model::igb::ring::{receive, transmit};

/// What somebody does.
#[derive(Clone, Debug)]
enum Act {
    Store(u64, u32),
    Share(u64, u32),
    Load(u64),
    Put(u64, [u64; 2]),
    Poll,
    PowerOn,
}

fn register() -> impl Strategy<Value = u64> {
    let known = vec![
        0, 8, 0x10, 0x14, 0x20, 0xc0, 0xc8, 0xd0, RCTL, TCTL, 0x1514, 0x1520, 0x1524, 0x1580,
        0x1680, 0x1700, 0x1740,
    ];
    prop_oneof![3 => prop::sample::select(known), 1 => (0..ACTING / 4).prop_map(|word| 4 * word)]
}

fn shared() -> impl Strategy<Value = u64> {
    let field = prop::sample::select(vec![0, 4, 8, 0xc, 0x10, 0x18, 0x28, 0x38, 0x3c]);
    let ring = (0..16_usize, any::<bool>(), field).prop_map(|(queue, sends, field)| {
        field + if sends { transmit(queue) } else { receive(queue) }
    });
    prop_oneof![4 => ring, 1 => (0x800..0x8000_u64).prop_map(|word| 4 * word)]
}

/// Values that mean something more often than chance has it.
fn value() -> impl Strategy<Value = u32> {
    let page = 0..MEMORY_BYTES as u64 / 4096;
    prop_oneof![
        2 => any::<u32>(),
        2 => 0..0x200_u32,
        1 => Just(1 << 25),
        1 => Just(1 << 1 | 1 << 3 | 1 << 6),
        1 => page.prop_map(|page| u32::try_from(MEMORY + 4096 * page).expect("low")),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let descriptor = (value(), any::<u32>(), 0..0x3000_u32, any::<u32>()).prop_map(
        |(address, high, length, bits)| {
            let far = if high.is_multiple_of(8) { u64::from(high) << 32 } else { 0 };
            let usual = if bits & 1 == 0 { 3 << 20 | 1 << 29 | 1 << 24 } else { 0 };
            let command = length | bits & 0x6bf0_0000 | usual;
            [u64::from(address) | far, u64::from(command) | u64::from(high) << 32]
        },
    );
    prop_oneof![
        4 => (register(), value()).prop_map(|(register, value)| Act::Store(register, value)),
        6 => (shared(), value()).prop_map(|(register, value)| Act::Share(register, value)),
        2 => (0..0x5000_u64 / 4).prop_map(|word| Act::Load(4 * word)),
        6 => (0..0x800_u64, descriptor)
            .prop_map(|(at, words)| Act::Put(MEMORY + 16 * at, words)),
        4 => Just(Act::Poll),
        1 => Just(Act::PowerOn),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_is_stored_stops_the_port_for_good(acts in prop::collection::vec(act(), 1..80)) {
        let mut rig = Rig::ready(&[("loop", "on")]);
        for act in acts {
            match act {
                Act::Store(register, value) => rig.store(register, value),
                Act::Share(register, value) => rig.share(register, value),
                Act::Load(register) => {
                    rig.load(register);
                }
                Act::Put(at, [low, high]) => {
                    rig.memory.put(at, &[low.to_le_bytes(), high.to_le_bytes()].concat());
                }
                // One poll is bounded whatever there is.
                Act::Poll => {
                    rig.poll_once();
                }
                Act::PowerOn => rig.power_on(),
            }
        }
        rig.power_on();
        rig.store(0, 1 << 6);
        rig.rings();
        let sent = frame(SOMEBODY, 1, 100);
        rig.send(&sent);
        rig.poll();
        prop_assert_eq!(rig.take().map(|(_, bytes)| bytes), Some(sent));
    }
}
