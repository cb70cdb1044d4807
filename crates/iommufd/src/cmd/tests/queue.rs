use super::*;
use crate::tests::rig::{ARG, Bell};
use crate::{Iova, Segment};

/// A fault queue's id; its file is the client's last.
fn fault_queue(fixture: &Fixture) -> u32 {
    let mut cmd = abi::FaultAlloc { size: 16, ..Default::default() };
    fixture.call(abi::FAULT_QUEUE_ALLOC, &mut cmd).unwrap();
    assert_eq!(cmd.out_fault_fd as usize, 99 + fixture.client.files.borrow().len());
    cmd.out_fault_id
}

#[test]
fn an_open_file_keeps_the_queue_and_the_context() {
    let fixture = Fixture::new();
    let queue = fault_queue(&fixture);
    assert_eq!(fixture.destroy(queue).unwrap_err().errno, Errno::EBUSY);
    fixture.client.take_file().close();
    fixture.destroy(queue).unwrap();
    let mut cmd = abi::FaultAlloc { size: 16, flags: 1, ..Default::default() };
    assert_eq!(fixture.errno(abi::FAULT_QUEUE_ALLOC, &mut cmd), Errno::EOPNOTSUPP);
}

#[test]
fn a_reply_that_cannot_be_written_makes_no_file() {
    let mut fixture = Fixture::new();
    fixture.client.read_only = true;
    let mut cmd = abi::FaultAlloc { size: 16, ..Default::default() };
    assert_eq!(fixture.errno(abi::FAULT_QUEUE_ALLOC, &mut cmd), Errno::EFAULT);
    assert!(fixture.client.files.borrow().is_empty());
    fixture.client.read_only = false;
    assert_eq!(fault_queue(&fixture), 1);
}

fn paged(bound: &Bound, ioas: u32, fault_id: u32) -> abi::HwptAlloc {
    abi::HwptAlloc {
        size: 48,
        flags: abi::HWPT_FAULT_ID_VALID,
        dev_id: bound.id(),
        pt_id: ioas,
        fault_id,
        ..Default::default()
    }
}

#[test]
fn a_missing_page_is_asked_for_and_the_device_tries_again() {
    let fixture = Fixture::new();
    let (bound, ioas, queue) = (fixture.device(), fixture.ioas(), fault_queue(&fixture));
    let mut cmd = paged(&bound, ioas, 99);
    assert_eq!(fixture.errno(abi::HWPT_ALLOC, &mut cmd), Errno::ENOENT);
    let mut cmd = paged(&bound, ioas, queue);
    fixture.call(abi::HWPT_ALLOC, &mut cmd).unwrap();
    bound.attach(cmd.out_hwpt_id).unwrap();
    assert_eq!(fixture.destroy(queue).unwrap_err().errno, Errno::EBUSY);
    fixture.map_at(ioas, 0x1000, 0, 0x1000).unwrap();

    let file = fixture.client.take_file();
    let queue = file.queue().unwrap();
    let (woken, waiting) = std::sync::mpsc::channel();
    queue.watch(Arc::new(Bell(woken)));
    let endpoint = Arc::clone(bound.endpoint());
    let device = std::thread::spawn(move || {
        // The first half is there, the second is not.
        endpoint.write([Segment { iova: Iova(0x1ffe), length: 4 }], b"page")
    });
    waiting.recv().unwrap();
    assert_eq!(queue.read(&fixture.client, ARG, 40), Ok(40));
    let mut record = abi::HwptPgfault::default();
    fixture.client.memory.read(ARG, record.as_mut_bytes()).unwrap();
    assert_eq!(
        (record.addr, record.dev_id, record.perm),
        (0x2000, bound.id(), abi::PGFAULT_PERM_WRITE)
    );
    fixture.map_at(ioas, 0x2000, 0x8000, 0x1000).unwrap();
    let response = abi::HwptPageResponse { cookie: record.cookie, code: abi::PAGE_RESP_SUCCESS };
    fixture.client.memory.write(ARG, response.as_bytes()).unwrap();
    assert_eq!(queue.write(&fixture.client, ARG, 8), Ok(8));
    device.join().unwrap().unwrap();
    let mut seen = [0; 2];
    fixture.client.memory.read(BASE + 0x8000, &mut seen).unwrap();
    assert_eq!(&seen, b"ge");
}

#[test]
fn a_device_that_is_stopped_waits_for_no_page_and_its_group_goes_on_waiting() {
    let fixture = Fixture::new();
    let (group, ioas, queue) = (fixture.machine.group(), fixture.ioas(), fault_queue(&fixture));
    let both =
        [(); 2].map(|()| fixture.context.bind(&fixture.machine.endpoint_in(&group)).unwrap());
    let mut cmd = paged(&both[0], ioas, queue);
    fixture.call(abi::HWPT_ALLOC, &mut cmd).unwrap();
    both.iter().for_each(|bound| assert_eq!(bound.attach(cmd.out_hwpt_id), Ok(cmd.out_hwpt_id)));
    let file = fixture.client.take_file();
    let queue = file.queue().unwrap();
    let (woken, waiting) = std::sync::mpsc::channel();
    queue.watch(Arc::new(Bell(woken)));
    let ask = |bound: &Bound| {
        let endpoint = Arc::clone(bound.endpoint());
        std::thread::spawn(move || {
            endpoint.read([Segment { iova: Iova(0x1000), length: 1 }], &mut [0])
        })
    };
    let [first, second] = both.each_ref().map(ask);
    waiting.recv().unwrap();
    waiting.recv().unwrap();
    let silence = both[1].endpoint().silence();
    assert!(second.join().unwrap().is_err());
    assert!(ask(&both[1]).join().unwrap().is_err(), "no other request is made");
    drop(silence);
    assert_eq!(queue.read(&fixture.client, ARG, 80), Ok(40), "the other device's request stands");
    let mut record = abi::HwptPgfault::default();
    fixture.client.memory.read(ARG, record.as_mut_bytes()).unwrap();
    assert_eq!(record.dev_id, both[0].id(), "each device asks under its own id");
    both.iter().for_each(Bound::detach);
    assert!(first.join().unwrap().is_err());
}

#[test]
fn detaching_answers_for_the_client() {
    let fixture = Fixture::new();
    let (bound, ioas, queue) = (fixture.device(), fixture.ioas(), fault_queue(&fixture));
    let mut cmd = paged(&bound, ioas, queue);
    fixture.call(abi::HWPT_ALLOC, &mut cmd).unwrap();
    bound.attach(cmd.out_hwpt_id).unwrap();
    let (woken, waiting) = std::sync::mpsc::channel();
    fixture.client.take_file().queue().unwrap().watch(Arc::new(Bell(woken)));
    let endpoint = Arc::clone(bound.endpoint());
    let device = std::thread::spawn(move || {
        endpoint.read([Segment { iova: Iova(0x1000), length: 1 }], &mut [0])
    });
    waiting.recv().unwrap();
    bound.detach();
    assert!(device.join().unwrap().is_err());
}

#[test]
fn a_request_whose_queue_nobody_has_open_any_more_waits_until_the_device_is_detached() {
    let fixture = Fixture::new();
    let (bound, ioas, queue) = (fixture.device(), fixture.ioas(), fault_queue(&fixture));
    let mut cmd = paged(&bound, ioas, queue);
    fixture.call(abi::HWPT_ALLOC, &mut cmd).unwrap();
    bound.attach(cmd.out_hwpt_id).unwrap();
    let file = fixture.client.take_file();
    let (woken, waiting) = std::sync::mpsc::channel();
    file.queue().unwrap().watch(Arc::new(Bell(woken)));
    let ask = || {
        let endpoint = Arc::clone(bound.endpoint());
        std::thread::spawn(move || {
            endpoint.read([Segment { iova: Iova(0x1000), length: 1 }], &mut [0])
        })
    };
    let before = ask();
    waiting.recv().unwrap();
    file.close();
    let after = ask();
    waiting.recv().unwrap();
    assert_eq!(fixture.destroy(queue).unwrap_err().errno, Errno::EBUSY, "the page table has it");
    assert!(!before.is_finished() && !after.is_finished(), "as in Linux nobody answers");
    bound.detach();
    assert!(before.join().unwrap().is_err());
    assert!(after.join().unwrap().is_err());
    fixture.destroy(cmd.out_hwpt_id).unwrap();
    fixture.destroy(queue).unwrap();
}
