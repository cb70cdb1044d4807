//! A controller that moves to another run.

use ioasis_uapi::Errno;
use proptest::prelude::*;

use super::rig::{DATA, PAGE, Rig, image_path, transfer, with_data};
use crate::model::create;
use crate::model::nvme::admin::{
    ASYNC_EVENT_REQUEST, GET_FEATURES, GET_LOG_PAGE, IDENTIFY, SET_FEATURES,
};
use crate::model::nvme::io::{READ, WRITE};
use crate::model::nvme::registers::{INTMS, doorbells};

#[test]
fn queues_go_on_where_they_stopped() {
    let mut rig = Rig::with_queue(&[]);
    rig.make_pair(3, 8, 2);
    for turn in 0_u8..40 {
        let (write, read) = (DATA, DATA + PAGE);
        rig.memory.put(write, &[turn; 512]);
        assert_eq!(rig.status(1, transfer(WRITE, turn.into(), 1, [write, 0])), 0);
        rig.moved();
        assert_eq!(rig.status(3, transfer(READ, turn.into(), 1, [read, 0])), 0);
        assert_eq!(rig.memory.get(read, 512), [turn; 512]);
    }
}

#[test]
fn commands_that_wait_are_done_by_the_controller_that_has_the_state() {
    let mut rig = Rig::with_queue(&[]);
    rig.memory.put(DATA, &[7; 512]);
    let ids = rig.submit(1, &[transfer(WRITE, 5, 1, [DATA, 0]), transfer(READ, 5, 1, [DATA, 0])]);
    rig.moved();
    rig.poll();
    assert_eq!(rig.answers(1).iter().map(|answer| answer.id).collect::<Vec<_>>(), ids);
    assert_eq!(rig.image()[5 * 512], 7);
}

#[test]
fn what_was_not_answered_is_interrupted_for_once_more() {
    let mut rig = Rig::with_queue(&[]);
    rig.submit(1, &[transfer(READ, 0, 1, [DATA, 0])]);
    rig.poll();
    assert_eq!(rig.raised(), [0, 0, 1], "two queues were made");
    rig.moved();
    rig.remind();
    assert_eq!(rig.raised(), [1], "the admin queue was answered");
    rig.pages.store_u32(INTMS, 2).expect("mapped");
    rig.poll();
    rig.moved();
    rig.remind();
    assert!(rig.raised().is_empty(), "it is masked");
}

#[test]
fn features_events_and_logs_move_along() {
    let mut rig = Rig::with_queue(&[]);
    let request = with_data(ASYNC_EVENT_REQUEST, 0, [0; 6]);
    let ids = rig.submit(0, &[request; 2]);
    assert_eq!(rig.run(1, &[transfer(READ, 1 << 40, 1, [DATA, 0])])[0].status, 0x80);
    let set = with_data(SET_FEATURES, 0, [0x01, 0x0403_0201, 0, 0, 0, 0]);
    rig.submit(0, &[set]);
    rig.poll();
    rig.answers(0);
    rig.moved();
    assert_eq!(rig.one(0, with_data(GET_FEATURES, 0, [0x01, 0, 0, 0, 0, 0])).result, 0x0403_0201);
    assert_eq!(rig.status(0, with_data(GET_LOG_PAGE, !0, [15 << 16 | 1, 0, 0, 0, 0, 0])), 0);
    assert_eq!(rig.memory.get(DATA, 8), 1_u64.to_le_bytes(), "one failure");
    rig.pages.store_u32(doorbells(1), 999).expect("mapped");
    rig.poll();
    assert_eq!(rig.answers(0)[0].id, ids[0]);
}

#[test]
fn a_controller_that_does_not_run_moves_too() {
    let mut rig = Rig::new(&[]);
    rig.moved();
    rig.enable();
    rig.moved();
    assert_eq!(rig.status(0, with_data(IDENTIFY, 0, [1, 0, 0, 0, 0, 0])), 0);
}

#[test]
fn the_state_of_another_disk_is_refused() {
    let state = Rig::with_queue(&[]).save();
    let others = [("queues", "4"), ("lba", "4096"), ("size", "2M"), ("serial", "another")];
    for option in others {
        let refused = Rig::new(&[option]).load_state(&state).expect_err("another disk");
        assert_eq!(refused.errno, Errno::EINVAL, "{option:?}: {}", refused.why);
    }
}

#[test]
fn an_image_is_one_runs_at_a_time() {
    let image = image_path();
    let path = image.to_str().expect("a plain path");
    let make = |more: &[(&str, &str)]| {
        let all = [&[("image", path), ("size", "1M")], more].concat();
        let all: Vec<_> = all.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        create("nvme", &all)
    };
    let mut source = make(&[]).expect("the image is free");
    assert!(make(&[]).is_err(), "the image is in use");
    let mut target = make(&[("incoming", "on")]).expect("it may be in use");
    let source = source.migration().expect("it migrates");
    let target = target.migration().expect("it migrates");
    assert_eq!(target.take_over().map_err(|error| error.errno), Err(Errno::EBUSY));
    source.hand_over().expect("all is written");
    target.take_over().expect("nobody has it");
    target.take_over().expect("it has it already");
    assert_eq!(source.take_over().map_err(|error| error.errno), Err(Errno::EBUSY));
    target.hand_over().expect("all is written");
    source.take_over().expect("back again");
    drop(std::fs::remove_file(&image));
}

#[test]
fn a_disk_that_another_run_has_is_not_touched() {
    let mut first = Rig::with_queue(&[]);
    let path = first.image_path().to_owned();
    let mut second = Rig::with_queue(&[("image", &path), ("incoming", "on")]);
    second.memory.put(DATA, &[9; 512]);
    assert_eq!(second.status(1, transfer(WRITE, 0, 1, [DATA, 0])), 0x280);
    assert_eq!(second.status(1, transfer(READ, 0, 1, [DATA, 0])), 0x281);
    assert_eq!(first.image()[0], 0);
    first.hand_over();
    assert_eq!(second.status(1, transfer(WRITE, 0, 1, [DATA, 0])), 0, "it is free now");
    assert_eq!(first.status(1, transfer(READ, 0, 1, [DATA, 0])), 0x281);
}

#[test]
fn no_part_of_a_state_is_taken_for_all_of_it() {
    let mut rig = Rig::with_queue(&[]);
    let state = rig.save();
    let mut other = Rig::new(&[("serial", "x")]);
    let mut same = Rig::new(&[]);
    let empty = same.save();
    for end in 0..state.len() {
        assert!(rig.load_state(&state[..end]).is_err(), "{end} bytes");
    }
    assert!(rig.load_state(&[state.as_slice(), &[0]].concat()).is_err());
    assert_eq!(rig.save(), state, "nothing has changed");
    assert_eq!(same.save(), empty);
    assert!(other.load_state(&state).is_err());
}

proptest! {
    #[test]
    fn whatever_is_loaded_the_controller_stays_one(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
    ) {
        let mut rig = Rig::with_queue(&[]);
        let mut state = rig.save();
        for (index, byte) in changes {
            // What the disk was made with is checked elsewhere.
            let at = 40 + index.index(state.len() - 40);
            state[at] = byte;
        }
        if rig.load_state(&state).is_ok() {
            let taken = rig.save();
            rig.load_state(&taken).expect("its own state");
            prop_assert_eq!(rig.save(), taken);
            rig.remind();
            for queue in 0..9 {
                rig.pages.store_u64(doorbells(queue), 0x0000_0003_0000_0007).expect("mapped");
            }
            // At most a queue's length of nonsense.
            for _ in 0..64 {
                rig.poll_once();
            }
            rig.save();
        }
    }
}
