//! A program that means harm: any command, any register, any doorbell. The controller answers or goes fatal; it never
//! panics, and its answers stay inside its queues.

use super::rig::{CC_ENABLE, DATA, MEMORY, MEMORY_BYTES, PAGE, READ_ONLY, Rig};
use crate::model::nvme::command::Command;
use crate::model::nvme::registers::{AQA, ASQ, CC, doorbells};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Deed {
    Submit(u16, Command),
    Store32(u64, u32),
    Store64(u64, u64),
    Scribble(u64, Vec<u8>),
    Enable,
    Poll,
}

fn addresses() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0..64_u64).prop_map(|page| DATA + page * PAGE),
        1 => (0..4096_u64).prop_map(|offset| DATA + offset),
        1 => (0..64_u64).prop_map(|page| MEMORY + page * PAGE),
        1 => Just(READ_ONLY),
        1 => Just(MEMORY + MEMORY_BYTES as u64 - 512),
        1 => Just(u64::MAX - 4095),
        1 => any::<u64>(),
    ]
}

/// Numbers that fields like: small, and at the edges.
fn words() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0..20_u32, 2 => any::<u32>(), 1 => (0..20_u32).prop_map(|low| low << 16 | 3)]
}

fn commands() -> impl Strategy<Value = Command> {
    let opcode = prop_oneof![8 => 0..0x0d_u8, 1 => any::<u8>()];
    let flags = prop_oneof![9 => Just(0_u8), 1 => any::<u8>()];
    let namespace = prop_oneof![6 => Just(1_u32), 2 => Just(u32::MAX), 1 => any::<u32>()];
    let all =
        (opcode, flags, namespace, addresses(), addresses(), proptest::array::uniform6(words()));
    all.prop_map(|(opcode, flags, namespace, prp1, prp2, words)| Command {
        opcode,
        flags,
        id: 0,
        namespace,
        prp1,
        prp2,
        words,
    })
}

fn deeds() -> impl Strategy<Value = Deed> {
    let register = (0..0x100_u64).prop_map(|word| word * 4);
    let doorbell = (0..20_u64).prop_map(|index| doorbells(0) + index * 4);
    let bytes = proptest::collection::vec(any::<u8>(), 1..256);
    prop_oneof![
        10 => (0..3_u16, commands()).prop_map(|(queue, command)| Deed::Submit(queue, command)),
        6 => Just(Deed::Poll),
        2 => (doorbell, words()).prop_map(|(at, value)| Deed::Store32(at, value)),
        1 => (register.clone(), any::<u32>()).prop_map(|(at, value)| Deed::Store32(at, value)),
        1 => (addresses()).prop_map(|address| Deed::Store64(ASQ, address)),
        1 => words().prop_map(|value| Deed::Store32(AQA, value)),
        1 => (0..2_u32).prop_map(|bit| Deed::Store32(CC, CC_ENABLE & !bit)),
        1 => ((0..256_u64).prop_map(|page| MEMORY + page * PAGE), bytes)
            .prop_map(|(at, bytes)| Deed::Scribble(at, bytes)),
        1 => Just(Deed::Enable),
    ]
}

proptest! {
    #[test]
    fn nothing_a_program_does_makes_the_controller_panic(
        deeds in proptest::collection::vec(deeds(), 1..120),
    ) {
        let mut rig = Rig::with_queue(&[]);
        rig.make_pair(2, 4, 3);
        for deed in deeds {
            match deed {
                Deed::Submit(queue, command) => { rig.submit(queue, &[command]); }
                Deed::Store32(at, value) => rig.pages.store_u32(at, value).expect("mapped"),
                Deed::Store64(at, value) => rig.pages.store_u64(at, value).expect("mapped"),
                Deed::Scribble(at, bytes) => rig.memory.put(at, &bytes),
                Deed::Enable => {
                    rig.pages.store_u32(CC, 0).expect("mapped");
                    rig.poll();
                    rig.enable();
                    rig.make_pair(1, 16, 1);
                    rig.make_pair(2, 4, 3);
                }
                Deed::Poll => rig.poll(),
            }
        }
        rig.poll();
        // Whatever happened, a controller reset brings it back.
        rig.pages.store_u32(CC, 0).expect("mapped");
        rig.poll();
        rig.enable();
        prop_assert_eq!(rig.csts(), 1);
    }
}
