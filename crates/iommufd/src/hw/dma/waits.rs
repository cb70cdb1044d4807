//! Who waits for a device that waits.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::*;
use crate::tests::rig::{ACCOUNT, RW, Slow, TestMachine};
use crate::{Bound, Context, MapRequest, Place};

const PAGE: u64 = 4096;
/// Pages are mapped from here on; the first of them is the one that is held.
const AT: u64 = 0x10_0000;
const PAGES: u64 = 4;

/// A machine, a device, and pages of a client that does not give the first.
struct Fixture {
    machine: TestMachine,
    context: Arc<Context>,
    ioas: u32,
    bound: Option<Bound>,
    slow: Slow,
}

impl Fixture {
    /// Every page is an area of its own.
    fn new(may_wait: bool) -> Self {
        let machine = TestMachine::new();
        let context = Context::new(&machine.machine);
        let ioas = context.alloc_ioas().unwrap();
        let bound = context.bind(&machine.endpoint()).unwrap();
        bound.attach(ioas).unwrap();
        let slow = Slow::new(0x4000, may_wait);
        for page in 0..PAGES {
            let request = MapRequest {
                space: Arc::new(slow.clone()),
                address: page * PAGE,
                length: PAGE,
                place: Place::Fixed(Iova(AT + page * PAGE)),
                prot: RW,
                account: ACCOUNT,
            };
            context.map(ioas, request).unwrap();
        }
        slow.hold();
        Self { machine, context, ioas, bound: Some(bound), slow }
    }

    fn endpoint(&self) -> Arc<Endpoint> {
        Arc::clone(self.bound.as_ref().unwrap().endpoint())
    }

    /// The device does this in a thread of its own, and waits.
    fn begin(&self, transfer: impl FnOnce(&Endpoint) + Send + 'static) -> Receiver<()> {
        let endpoint = self.endpoint();
        let ended = apart(move || transfer(&endpoint));
        self.slow.until_somebody_waits();
        ended
    }

    /// Unmaps one page in a thread of its own.
    fn unmap(&self, page: u64) -> Receiver<()> {
        let (context, ioas) = (Arc::clone(&self.context), self.ioas);
        let range = IovaRange::new(Iova(AT + page * PAGE), PAGE).unwrap();
        apart(move || context.unmap(ioas, range, 1).unwrap().result.unwrap())
    }

    fn end(mut self) {
        self.bound = None;
        drop(self.context);
        self.machine.assert_clean();
    }
}

fn apart(does: impl FnOnce() + Send + 'static) -> Receiver<()> {
    let (done, is_done) = channel();
    std::thread::spawn(move || {
        does();
        done.send(()).unwrap();
    });
    is_done
}

/// It ends; the bound is against a hang.
fn ends(done: &Receiver<()>) {
    done.recv_timeout(Duration::from_secs(60)).expect("it waits for what does not concern it");
}

/// It has not ended yet.
fn lasts(done: &Receiver<()>) {
    assert!(done.recv_timeout(Duration::from_millis(30)).is_err(), "what it takes away is in use");
}

fn page(page: u64) -> Segment {
    Segment { iova: Iova(AT + page * PAGE + 0x80), length: 0x100 }
}

/// A name, whether page 3 is used besides page 0, and what the device does.
type Case = (&'static str, bool, fn(&Endpoint));

/// Transfers that wait for page 0.
fn transfers() -> [Case; 6] {
    [
        ("a write", false, |endpoint| endpoint.write([page(0)], &[1; 0x100]).unwrap()),
        ("a read", false, |endpoint| endpoint.read([page(0)], &mut [1; 0x100]).unwrap()),
        ("a scattered write", true, |endpoint| {
            endpoint.write([page(3), page(0)], &[1; 0x200]).unwrap();
        }),
        ("a scattered read", true, |endpoint| {
            endpoint.read([page(3), page(0)], &mut [1; 0x200]).unwrap();
        }),
        ("more pieces than are copied at once", true, |endpoint| {
            let pieces = (0..200).map(|piece| page(if piece < 32 { 3 } else { 0 }));
            // What is unmapped meanwhile, later pieces do not find.
            let _how_far = endpoint.write(pieces, &[1; 200 * 0x100]);
        }),
        ("a section", false, |endpoint| {
            let section = endpoint.section(NO_PASID);
            let reached = section.translate(page(0).iova, 8, Prot::WRITE).unwrap();
            let piece = Piece { offset: reached.offset, length: 8 };
            reached.backing.write(&[piece], &[1; 8]).unwrap();
        }),
    ]
}

#[test]
fn an_unmap_of_another_range_does_not_wait_for_a_device_that_waits() {
    for (what, uses_another, transfer) in transfers() {
        println!("{what}");
        let fixture = Fixture::new(true);
        let ended = fixture.begin(transfer);
        ends(&fixture.unmap(1));
        ends(&fixture.unmap(2));
        let another = fixture.unmap(3);
        if uses_another {
            lasts(&another);
        } else {
            ends(&another);
        }
        fixture.slow.give();
        ends(&ended);
        if uses_another {
            ends(&another);
        }
        fixture.end();
    }
}

#[test]
fn an_unmap_waits_for_a_device_that_waits_for_what_it_unmaps() {
    for (what, _, transfer) in transfers() {
        println!("{what}");
        let fixture = Fixture::new(true);
        let ended = fixture.begin(transfer);
        let unmapped = fixture.unmap(0);
        lasts(&unmapped);
        let charged = fixture.machine.machine.ledger.processes();
        assert_eq!(charged.len(), 1, "the page is held");
        fixture.slow.give();
        ends(&unmapped);
        ends(&ended);
        fixture.end();
    }
}

#[test]
fn a_detach_waits_for_the_device_and_no_other_detach_does() {
    for (what, _, transfer) in transfers() {
        println!("{what}");
        let mut fixture = Fixture::new(true);
        let other = fixture.context.bind(&fixture.machine.endpoint()).unwrap();
        other.attach(fixture.ioas).unwrap();
        let ended = fixture.begin(transfer);
        ends(&apart(move || drop(other)));
        let bound = fixture.bound.take().unwrap();
        let detached = apart(move || drop(bound));
        lasts(&detached);
        fixture.slow.give();
        ends(&ended);
        ends(&detached);
        fixture.end();
    }
}

#[test]
fn a_pasid_is_detached_while_the_device_waits_by_another() {
    let fixture = Fixture::new(true);
    let endpoint = fixture.endpoint();
    let bound = fixture.bound.as_ref().unwrap();
    let hwpt = fixture.context.alloc_hwpt(fixture.ioas, bound, crate::HwptFlags::PASID).unwrap();
    bound.attach(hwpt).unwrap_err();
    bound.replace(hwpt).unwrap();
    for pasid in [1, 2] {
        bound.attach_pasid(pasid, hwpt).unwrap();
    }
    let ended = apart({
        let endpoint = Arc::clone(&endpoint);
        move || endpoint.with_pasid(1).write([page(0)], &[1; 0x100]).unwrap()
    });
    fixture.slow.until_somebody_waits();
    bound.detach_pasid(2);
    fixture.slow.give();
    ends(&ended);
    bound.detach_pasid(1);
    fixture.end();
}

#[test]
fn what_never_waits_is_copied_in_the_section() {
    let fixture = Fixture::new(false);
    let ended = fixture.begin(|endpoint| endpoint.write([page(0)], &[1; 0x100]).unwrap());
    let unmapped = fixture.unmap(1);
    lasts(&unmapped);
    fixture.slow.give();
    ends(&unmapped);
    ends(&ended);
    fixture.end();
}
