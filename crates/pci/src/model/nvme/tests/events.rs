//! Asynchronous events, and doorbells that ask for one.

use super::rig::{DATA, Rig, transfer, with_data};
use crate::model::nvme::admin::{ABORT, ASYNC_EVENT_REQUEST, GET_LOG_PAGE, IDENTIFY, SET_FEATURES};
use crate::model::nvme::command::Command;
use crate::model::nvme::io::READ;
use crate::model::nvme::registers::doorbells;

fn request() -> Command {
    with_data(ASYNC_EVENT_REQUEST, 0, [0; 6])
}

fn read_log(page: u32) -> Command {
    with_data(GET_LOG_PAGE, 0xffff_ffff, [15 << 16 | page, 0, 0, 0, 0, 0])
}

/// A doorbell value that is no index of a queue of 16.
fn ring_badly(rig: &mut Rig, value: u32) {
    rig.pages.store_u32(doorbells(1), value).expect("mapped");
    rig.poll();
}

#[test]
fn requests_wait_and_a_fifth_is_too_many() {
    let mut rig = Rig::enabled(&[]);
    rig.submit(0, &[request(); 4]);
    rig.poll();
    assert!(rig.answers(0).is_empty());
    assert_eq!(rig.status(0, request()), 0x105);
}

#[test]
fn a_bad_doorbell_is_told_once_until_the_log_is_read() {
    let mut rig = Rig::with_queue(&[]);
    let ids = rig.submit(0, &[request(); 2]);
    rig.poll();
    ring_badly(&mut rig, 16);
    rig.poll();
    let answers = rig.answers(0);
    assert_eq!(answers.len(), 1);
    assert_eq!((answers[0].id, answers[0].result, answers[0].status), (ids[0], 0x0001_0100, 0));
    ring_badly(&mut rig, 17);
    assert!(rig.answers(0).is_empty(), "not before the log is read");
    assert_eq!(rig.status(0, read_log(1)), 0);
    ring_badly(&mut rig, 18);
    assert_eq!(rig.answers(0)[0].id, ids[1]);
}

#[test]
fn an_event_waits_for_a_request() {
    let mut rig = Rig::with_queue(&[]);
    ring_badly(&mut rig, 1 << 20);
    assert_eq!(rig.one(0, request()).result, 0x0001_0100);
}

#[test]
fn a_queue_works_on_after_a_bad_doorbell() {
    let mut rig = Rig::with_queue(&[]);
    ring_badly(&mut rig, 999);
    assert_eq!(rig.status(1, transfer(READ, 0, 1, [DATA, 0])), 0);
    // A head that passes its tail, then the right one.
    rig.pages.store_u32(doorbells(1) + 4, 9).expect("mapped");
    rig.poll();
    for _ in 0..40 {
        assert_eq!(rig.status(1, transfer(READ, 0, 1, [DATA, 0])), 0);
    }
}

#[test]
fn a_temperature_threshold_is_told_when_it_is_asked_for() {
    let mut rig = Rig::enabled(&[]);
    let set = |feature, value| with_data(SET_FEATURES, 0, [feature, value, 0, 0, 0, 0]);
    rig.submit(0, &[request()]);
    rig.poll();
    assert_eq!(rig.status(0, set(4, 299)), 0, "not asked for");
    assert_eq!(rig.status(0, set(4, 343)), 0);
    assert_eq!(rig.status(0, set(0x0b, 1 << 1)), 0);
    rig.submit(0, &[set(4, 299)]);
    rig.poll();
    let answers = rig.answers(0);
    assert_eq!(answers.len(), 2);
    assert_eq!(answers[1].result, 0x0002_0101);
    assert_eq!(rig.status(0, read_log(2)), 0);
    assert_eq!(rig.memory.get(DATA, 1), [2], "the critical warning");
}

#[test]
fn a_request_can_be_aborted() {
    let mut rig = Rig::enabled(&[]);
    let ids = rig.submit(0, &[request()]);
    rig.poll();
    let abort = with_data(ABORT, 0, [u32::from(ids[0]) << 16, 0, 0, 0, 0, 0]);
    rig.submit(0, &[abort]);
    rig.poll();
    let answers = rig.answers(0);
    assert_eq!((answers[0].id, answers[0].status), (ids[0], 0x07));
    assert_eq!((answers[1].status, answers[1].result), (0, 0));
}

#[test]
fn aborts_never_overfill_the_completion_queue() {
    let mut rig = Rig::enabled(&[]);
    let ids = rig.submit(0, &[request(); 4]);
    rig.poll();
    let mut commands: Vec<_> =
        ids.iter().map(|&id| with_data(ABORT, 0, [u32::from(id) << 16, 0, 0, 0, 0, 0])).collect();
    commands.resize(14, with_data(IDENTIFY, 0, [1, 0, 0, 0, 0, 0]));
    rig.submit(0, &commands);
    rig.poll();
    let mut answers = rig.answers(0);
    assert_eq!(answers.len(), 15, "a full queue");
    rig.poll();
    answers.extend(rig.answers(0));
    assert_eq!(answers.len(), 18, "fourteen commands and four requests");
}

#[test]
fn an_identifier_in_use_is_a_conflict() {
    let mut rig = Rig::enabled(&[]);
    let ids = rig.submit(0, &[request()]);
    rig.poll();
    let at = super::rig::MEMORY + 64;
    let again = Command { id: ids[0], ..with_data(IDENTIFY, 0, [1, 0, 0, 0, 0, 0]) };
    rig.memory.put(at, &again.encode());
    rig.pages.store_u32(doorbells(0), 2).expect("mapped");
    rig.poll();
    assert_eq!(rig.answers(0)[0].status, 0x03);
}

#[test]
fn a_full_completion_queue_holds_commands_back() {
    let mut rig = Rig::with_queue(&[]);
    rig.submit(1, &[transfer(READ, 0, 1, [DATA, 0]); 15]);
    rig.poll();
    // The completion queue is full; the driver takes nothing yet.
    rig.submit(1, &[transfer(READ, 0, 1, [DATA, 0]); 10]);
    rig.poll();
    assert_eq!(rig.answers(1).len(), 15);
    rig.poll();
    assert_eq!(rig.answers(1).len(), 10);
}
