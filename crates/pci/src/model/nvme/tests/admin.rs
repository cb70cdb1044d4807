//! Chapter 5: the admin command set.

use super::rig::{DATA, MEMORY, PAGE, READ_ONLY, Rig, transfer, with_data};
use crate::model::nvme::admin::{
    ABORT, CREATE_COMPLETION_QUEUE, CREATE_SUBMISSION_QUEUE, DELETE_COMPLETION_QUEUE,
    DELETE_SUBMISSION_QUEUE, GET_FEATURES, GET_LOG_PAGE, IDENTIFY, SET_FEATURES,
};
use crate::model::nvme::command::Command;
use crate::model::nvme::io::{COMPARE, DATASET_MANAGEMENT, FLUSH, READ, WRITE, WRITE_ZEROES};
use crate::model::nvme::registers::{ACQ, CC};

fn identify(cns: u32, namespace: u32) -> Command {
    with_data(IDENTIFY, namespace, [cns, 0, 0, 0, 0, 0])
}

fn data(rig: &Rig) -> Vec<u8> {
    rig.memory.get(DATA, 4096)
}

#[test]
fn identify_controller_says_what_there_is() {
    let mut rig = Rig::enabled(&[("serial", "SN 42")]);
    assert_eq!(rig.status(0, identify(1, 0)), 0);
    let page = data(&rig);
    assert_eq!(page[0..4], [0x36, 0x1b, 0xf4, 0x1a]);
    assert_eq!(&page[4..24], b"SN 42               ");
    assert_eq!(page[77], 9, "2 MiB a command");
    assert_eq!(page[80..84], [0, 4, 1, 0]);
    assert_eq!(page[512..514], [0x66, 0x44]);
    assert_eq!(page[516..520], [1, 0, 0, 0]);
    assert_eq!(page[520], 0b1_1101);
    assert_eq!(page[525] & 1, 1, "there is a write cache");
    assert!(page[768..].starts_with(b"nqn.2014-08.org.nvmexpress:uuid:"));
}

/// As QEMU 11.1's driver is compiled by GCC 15: the last of its stores comes after that to CC.
#[test]
fn admin_queues_that_are_stored_right_after_the_enable_are_the_ones() {
    for is_trapped in [true, false] {
        let mut rig = Rig::enabled(&[]);
        let completion = rig.pages.load_u64(ACQ).expect("mapped");
        let configuration = rig.pages.load_u32(CC).expect("mapped");
        let store = |rig: &mut Rig, offset, bytes: &[u8]| {
            if is_trapped {
                rig.store(offset, bytes);
            } else {
                rig.pages.write(offset, bytes).expect("mapped");
            }
            rig.poll();
        };
        store(&mut rig, CC, &(configuration & !1).to_le_bytes());
        store(&mut rig, ACQ, &0_u64.to_le_bytes());
        store(&mut rig, CC, &configuration.to_le_bytes());
        store(&mut rig, ACQ, &completion.to_le_bytes());
        assert_eq!(rig.status(0, identify(1, 0)), 0);
        // From the first command on they stay as they are.
        store(&mut rig, ACQ, &0_u64.to_le_bytes());
        assert_eq!(rig.status(0, identify(1, 0)), 0);
    }
}

#[test]
fn identify_namespace_says_how_large_it_is() {
    for (lba, lg2) in [("512", 9), ("4096", 12)] {
        let mut rig = Rig::enabled(&[("lba", lba)]);
        assert_eq!(rig.status(0, identify(0, 1)), 0);
        let page = data(&rig);
        assert_eq!(page[..8], ((1_u64 << 20) >> lg2).to_le_bytes());
        assert_eq!(page[25..27], [0, 0], "one format");
        assert_eq!(page[33], 0b1001);
        assert_eq!(page[128..132], [0, 0, lg2, 0], "no metadata");
        assert_eq!(page[99], 0);
    }
}

#[test]
fn a_read_only_namespace_says_so() {
    let mut rig = Rig::enabled(&[("ro", "on")]);
    assert_eq!(rig.status(0, identify(0, 1)), 0);
    assert_eq!(data(&rig)[99], 1);
}

#[test]
fn the_namespace_lists_name_the_one_there_is() {
    let mut rig = Rig::enabled(&[]);
    assert_eq!(rig.status(0, identify(2, 0)), 0);
    assert_eq!(data(&rig)[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(rig.status(0, identify(2, 1)), 0);
    assert_eq!(data(&rig)[..8], [0; 8]);
    assert_eq!(rig.status(0, identify(3, 1)), 0);
    let page = data(&rig);
    assert_eq!(page[..4], [3, 16, 0, 0], "a UUID");
    assert_ne!(page[4..20], [0; 16]);
    assert_eq!(page[20..24], [0; 4], "and nothing after it");
}

#[test]
fn identify_refuses_what_is_not_there() {
    let mut rig = Rig::enabled(&[]);
    for namespace in [0, 2, 0xffff_ffff] {
        assert_eq!(rig.status(0, identify(0, namespace)), 0x0b);
        assert_eq!(rig.status(0, identify(3, namespace)), 0x0b);
    }
    assert_eq!(rig.status(0, identify(2, 0xffff_fffe)), 0x0b);
    assert_eq!(rig.status(0, identify(0x10, 1)), 0x02);
}

#[test]
fn data_that_cannot_be_delivered_is_a_transfer_error() {
    let mut rig = Rig::enabled(&[]);
    for prp1 in [READ_ONLY, 0x1000, !0xfff] {
        assert_eq!(rig.status(0, Command { prp1, ..identify(1, 0) }), 0x04, "{prp1:#x}");
    }
    assert_eq!(rig.csts(), 1, "not fatal");
}

#[test]
fn unknown_and_unsupported_commands_are_refused() {
    let mut rig = Rig::enabled(&[]);
    assert_eq!(rig.status(0, with_data(0x7f, 0, [0; 6])), 0x01);
    assert_eq!(rig.status(0, with_data(0x80, 1, [0; 6])), 0x01);
    assert_eq!(
        rig.status(0, Command { flags: 0x40, ..identify(1, 0) }),
        0x02,
        "a scatter-gather list"
    );
    assert_eq!(rig.status(0, Command { flags: 0x01, ..identify(1, 0) }), 0x02, "a fused command");
}

fn make(opcode: u8, prp1: u64, id: u32, entries: u32, word: u32) -> Command {
    let words = [entries.wrapping_sub(1) << 16 | id, word, 0, 0, 0, 0];
    Command { opcode, prp1, words, ..Command::default() }
}

fn delete(opcode: u8, id: u32) -> Command {
    with_data(opcode, 0, [id, 0, 0, 0, 0, 0])
}

#[test]
fn a_completion_queue_that_cannot_be_is_refused() {
    let mut rig = Rig::enabled(&[]);
    let create = CREATE_COMPLETION_QUEUE;
    for (command, status) in [
        (make(create, DATA, 0, 16, 3), 0x101),
        (make(create, DATA, 9, 16, 3), 0x101),
        (make(create, DATA, 1, 1, 3), 0x102),
        (make(create, DATA, 1, 1025, 3), 0x102),
        (make(create, DATA, 1, 16, 2), 0x02),
        (make(create, DATA + 8, 1, 16, 3), 0x13),
        (make(create, DATA, 1, 16, 9 << 16 | 3), 0x108),
        (make(create, DATA, 1, 1024, 8 << 16 | 3), 0),
        (make(create, DATA, 1, 16, 3), 0x101),
    ] {
        assert_eq!(rig.status(0, command), status, "{command:?}");
    }
}

#[test]
fn a_submission_queue_that_cannot_be_is_refused() {
    let mut rig = Rig::enabled(&[]);
    let create = CREATE_SUBMISSION_QUEUE;
    assert_eq!(rig.status(0, make(CREATE_COMPLETION_QUEUE, DATA, 2, 16, 3)), 0);
    for (command, status) in [
        (make(create, DATA, 1, 16, 1), 0x100),
        (make(create, DATA, 1, 16, 1 << 16 | 1), 0x100),
        (make(create, DATA, 1, 16, 9 << 16 | 1), 0x100),
        (make(create, DATA, 0, 16, 2 << 16 | 1), 0x101),
        (make(create, DATA, 1, 1, 2 << 16 | 1), 0x102),
        (make(create, DATA, 1, 16, 2 << 16), 0x02),
        (make(create, DATA + 4, 1, 16, 2 << 16 | 1), 0x13),
        (make(create, DATA + PAGE, 1, 16, 2 << 16 | 1), 0),
        (make(create, DATA + PAGE, 1, 16, 2 << 16 | 1), 0x101),
        // Several may share a completion queue.
        (make(create, DATA + 2 * PAGE, 2, 16, 2 << 16 | 1), 0),
    ] {
        assert_eq!(rig.status(0, command), status, "{command:?}");
    }
}

#[test]
fn a_completion_queue_outlives_its_submission_queues() {
    let mut rig = Rig::with_queue(&[]);
    assert_eq!(rig.status(0, delete(DELETE_COMPLETION_QUEUE, 1)), 0x10c);
    assert_eq!(rig.status(0, delete(DELETE_SUBMISSION_QUEUE, 0)), 0x101);
    assert_eq!(rig.status(0, delete(DELETE_SUBMISSION_QUEUE, 2)), 0x101);
    assert_eq!(rig.status(0, delete(DELETE_SUBMISSION_QUEUE, 1)), 0);
    assert_eq!(rig.status(0, delete(DELETE_SUBMISSION_QUEUE, 1)), 0x101);
    assert_eq!(rig.status(0, delete(DELETE_COMPLETION_QUEUE, 1)), 0);
    assert_eq!(rig.status(0, delete(DELETE_COMPLETION_QUEUE, 1)), 0x101);
    rig.make_pair(1, 8, 2);
    assert_eq!(rig.status(1, transfer(READ, 0, 1, [DATA, 0])), 0);
}

#[test]
fn all_queue_pairs_work_at_once() {
    let mut rig = Rig::enabled(&[]);
    for id in 1..=8 {
        rig.make_pair(id, 16, id);
    }
    rig.raised();
    for id in 1..=8 {
        rig.submit(id, &[transfer(READ, u64::from(id), 1, [DATA, 0]); 3]);
    }
    rig.poll();
    assert_eq!(rig.raised(), [1, 2, 3, 4, 5, 6, 7, 8]);
    for id in 1..=8 {
        assert_eq!(rig.answers(id).len(), 3);
    }
}

fn get(feature: u32, word: u32) -> Command {
    with_data(GET_FEATURES, 0, [feature, word, 0, 0, 0, 0])
}

fn set(feature: u32, word: u32) -> Command {
    with_data(SET_FEATURES, 0, [feature, word, 0, 0, 0, 0])
}

#[test]
fn features_keep_what_is_set_until_a_reset() {
    let mut rig = Rig::enabled(&[]);
    for (feature, value, default) in [
        (0x01, 0x0102_0304, 0),
        (0x04, 400, 343),
        (0x05, 50, 0),
        (0x06, 0, 1),
        (0x08, 0x0105, 0),
        (0x0a, 1, 0),
        (0x0b, 0x1f, 0),
    ] {
        assert_eq!(rig.one(0, get(feature, 0)).result, default, "feature {feature:#x}");
        assert_eq!(rig.status(0, set(feature, value)), 0);
        assert_eq!(rig.one(0, get(feature, 0)).result, value);
        assert_eq!(rig.one(0, get(feature | 1 << 8, 0)).result, default, "the default");
        assert_eq!(rig.one(0, get(feature | 3 << 8, 0)).result, 4, "changeable");
    }
    rig.pages.store_u32(CC, 0).expect("mapped");
    rig.poll();
    rig.enable();
    assert_eq!(rig.one(0, get(0x06, 0)).result, 1);
}

#[test]
fn the_number_of_queues_is_fixed_once_there_are_some() {
    let mut rig = Rig::enabled(&[]);
    assert_eq!(rig.one(0, set(7, 0x0001_0001)).result, 0x0007_0007);
    assert_eq!(rig.one(0, get(7, 0)).result, 0x0007_0007);
    assert_eq!(rig.status(0, set(7, 0xffff)), 0x02);
    rig.make_pair(1, 8, 1);
    assert_eq!(rig.status(0, set(7, 0x0001_0001)), 0x0c);
}

#[test]
fn features_refuse_what_they_cannot_do() {
    let mut rig = Rig::enabled(&[]);
    assert_eq!(rig.status(0, get(0x7f, 0)), 0x02);
    assert_eq!(rig.status(0, set(0x7f, 0)), 0x02);
    assert_eq!(rig.status(0, set(0x06 | 1 << 31, 0)), 0x10d, "nothing can be saved");
    assert_eq!(rig.status(0, set(0x02, 1)), 0x02, "there is one power state");
    assert_eq!(rig.status(0, set(0x05, 1 << 16)), 0x02);
    assert_eq!(rig.status(0, set(0x04, 1 << 16 | 300)), 0x02, "there is one sensor");
    assert_eq!(rig.status(0, set(0x09, 9)), 0x02, "there are nine vectors");
    assert_eq!(rig.status(0, set(0x09, 1 << 16 | 3)), 0);
    assert_eq!(rig.one(0, get(0x09, 3)).result, 1 << 16 | 3);
    assert_eq!(rig.one(0, get(0x09, 4)).result, 4);
}

fn log(page: u32, bytes: u32, offset: u32) -> Command {
    let words = [(bytes / 4 - 1) << 16 | page, 0, offset, 0, 0, 0];
    with_data(GET_LOG_PAGE, 0xffff_ffff, words)
}

#[test]
fn a_failed_command_is_in_the_error_log() {
    let mut rig = Rig::with_queue(&[]);
    assert_eq!(rig.status(1, transfer(READ, 0x1_0000, 1, [DATA, 0])), 0x80);
    let failed = rig.one(1, transfer(WRITE, 0x2_0000, 1, [DATA, 0]));
    assert_eq!(rig.status(0, log(1, 128, 0)), 0);
    let page = rig.memory.get(DATA, 128);
    assert_eq!(page[..8], 2_u64.to_le_bytes(), "the newest first");
    assert_eq!(page[8..10], [1, 0]);
    assert_eq!(page[10..12], failed.id.to_le_bytes());
    assert_eq!(page[16..24], 0x2_0000_u64.to_le_bytes());
    assert_eq!(page[24..28], [1, 0, 0, 0]);
    assert_eq!(page[64..72], 1_u64.to_le_bytes());
    assert_eq!(rig.status(0, log(1, 64, 64)), 0);
    assert_eq!(rig.memory.get(DATA, 8), 1_u64.to_le_bytes(), "from an offset");
}

#[test]
fn the_error_log_has_a_block_only_for_commands_that_name_one() {
    let mut rig = Rig::with_queue(&[]);
    let words = [0x1234, 0x56, 0, 0, 0, 0];
    let io = |opcode| Command { opcode, namespace: 7, prp1: DATA, words, ..Command::default() };
    let rows = [
        (1, io(FLUSH), 0),
        (1, io(0x7f), 0),
        (1, io(DATASET_MANAGEMENT), 0),
        (1, io(WRITE_ZEROES), 0x56_0000_1234),
        (1, io(COMPARE), 0x56_0000_1234),
        (0, io(0x7f), 0),
        (0, io(READ), 0),
    ];
    for (queue, command, block) in rows {
        assert_ne!(rig.status(queue, command), 0, "{command:?}");
        assert_eq!(rig.status(0, log(1, 64, 0)), 0);
        let page = rig.memory.get(DATA, 64);
        assert_eq!(page[16..24], u64::to_le_bytes(block), "queue {queue}: {command:?}");
    }
}

#[test]
fn the_health_log_counts_what_was_done() {
    let mut rig = Rig::with_queue(&[]);
    rig.run(1, &[transfer(READ, 0, 8, [DATA, 0]); 3]);
    rig.run(1, &[transfer(WRITE, 0, 8, [DATA, 0]); 2]);
    assert_eq!(rig.status(0, log(2, 512, 0)), 0);
    let page = rig.memory.get(DATA, 512);
    assert_eq!(page[1..3], 300_u16.to_le_bytes());
    assert_eq!(page[3..5], [100, 10]);
    assert_eq!((page[32], page[48]), (1, 1), "data units, rounded up");
    assert_eq!((page[64], page[80]), (3, 2), "commands");
}

#[test]
fn log_pages_refuse_what_they_do_not_have() {
    let mut rig = Rig::enabled(&[]);
    assert_eq!(rig.status(0, log(3, 512, 0)), 0);
    assert_eq!(rig.memory.get(DATA, 9)[0], 1, "slot 1 is active");
    assert_eq!(rig.status(0, log(0x7f, 512, 0)), 0x109);
    assert_eq!(rig.status(0, log(2, 512, 2)), 0x02, "an odd offset");
    assert_eq!(rig.status(0, log(2, 512, 516)), 0x02, "past the end");
    assert_eq!(rig.status(0, Command { namespace: 1, ..log(2, 512, 0) }), 0x02);
    let huge = with_data(GET_LOG_PAGE, 0, [0xffff_0002, 0xffff, 0, 0, 0, 0]);
    assert_eq!(rig.status(0, huge), 0x02, "more than one command may transfer");
}

#[test]
fn an_abort_of_a_command_that_is_done_aborts_nothing() {
    let mut rig = Rig::with_queue(&[]);
    let done = rig.one(1, transfer(READ, 0, 1, [DATA, 0]));
    let words = [u32::from(done.id) << 16 | 1, 0, 0, 0, 0, 0];
    let abort = rig.one(0, with_data(ABORT, 0, words));
    assert_eq!((abort.status, abort.result), (0, 1));
}

#[test]
fn a_submission_queue_that_cannot_be_read_is_fatal() {
    let mut rig = Rig::enabled(&[]);
    assert_eq!(rig.status(0, make(CREATE_COMPLETION_QUEUE, DATA, 1, 16, 3)), 0);
    let gone = MEMORY - PAGE;
    assert_eq!(rig.status(0, make(CREATE_SUBMISSION_QUEUE, gone, 1, 16, 1 << 16 | 1)), 0);
    rig.pages.store_u32(crate::model::nvme::registers::doorbells(1), 1).expect("mapped");
    rig.poll();
    assert_eq!(rig.csts(), 3);
}

#[test]
fn a_completion_queue_that_cannot_be_written_is_fatal() {
    let mut rig = Rig::enabled(&[]);
    assert_eq!(rig.status(0, make(CREATE_COMPLETION_QUEUE, READ_ONLY, 1, 16, 3)), 0);
    assert_eq!(rig.status(0, make(CREATE_SUBMISSION_QUEUE, DATA, 1, 16, 1 << 16 | 1)), 0);
    rig.pages.store_u32(crate::model::nvme::registers::doorbells(1), 1).expect("mapped");
    rig.poll();
    assert_eq!(rig.csts(), 3);
}
