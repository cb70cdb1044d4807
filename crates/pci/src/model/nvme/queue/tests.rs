use super::*;
use proptest::prelude::*;

#[test]
fn a_ring_wraps_in_two_segments() {
    let ring = Ring { base: 0x1000, entries: 8, head: 6, tail: 2 };
    assert_eq!(ring.used(), 4);
    let (segments, pieces) = ring.segments(6, 4, 16);
    assert_eq!(pieces, 2);
    assert_eq!(segments[0], Segment { iova: 0x1060, length: 32 });
    assert_eq!(segments[1], Segment { iova: 0x1000, length: 32 });
    assert_eq!(ring.segments(4, 4, 16).1, 1);
}

#[test]
fn a_bad_tail_is_complained_about_once_and_changes_nothing() {
    let mut queue = SubmissionQueue::new(1, 0x1000, 8);
    assert_eq!(queue.take_tail(3), Ok(3));
    assert_eq!(queue.take_tail(8), Err(BadDoorbell));
    assert_eq!(queue.take_tail(8), Ok(3));
    assert_eq!(queue.take_tail(u32::MAX), Err(BadDoorbell));
    assert_eq!(queue.take_tail(4), Ok(4));
    assert_eq!(queue.take_tail(8), Err(BadDoorbell), "a good value in between");
}

#[test]
fn a_head_cannot_pass_its_tail() {
    let mut queue = CompletionQueue::new(0x1000, 4, None);
    assert_eq!(queue.take_head(1), Err(BadDoorbell), "the queue is empty");
    let completion = Completion {
        result: 0,
        queue: 1,
        head: 0,
        id: 0,
        status: super::super::status::Status::SUCCESS,
    };
    queue.add(&completion);
    queue.add(&completion);
    assert_eq!(queue.free(), 1);
    assert_eq!(queue.take_head(3), Err(BadDoorbell));
    assert_eq!(queue.take_head(4), Err(BadDoorbell), "no index");
    assert_eq!(queue.take_head(2), Ok(true));
    assert_eq!(queue.take_head(2), Ok(false));
    assert_eq!(queue.free(), 3);
}

proptest! {
    #[test]
    fn any_doorbell_keeps_the_ring_a_ring(doorbells in proptest::collection::vec(0..40_u32, 1..100)) {
        let mut queue = SubmissionQueue::new(1, 0, 32);
        for doorbell in doorbells {
            let waiting = queue.take_tail(doorbell).unwrap_or(0);
            prop_assert!(waiting < 32);
            let taken = waiting / 2;
            if taken > 0 {
                queue.consume(taken);
            }
        }
    }
}
