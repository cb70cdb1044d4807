use super::*;
use crate::client::ClientBytes;
use crate::hw::page_request::perm_of;
use crate::tests::rig::{ARG, BASE, TestClient};
use ioasis_iommupt::{Iova, Prot};

const DATA: u64 = ARG;

fn at(client: &TestClient, address: u64) -> ClientBytes<'_> {
    ClientBytes { client, address }
}

fn request(device: u32, iova: u64) -> PageRequest {
    PageRequest {
        attachment: u64::from(device),
        device,
        pasid: 0,
        group: 0,
        iova: Iova(iova),
        perm: perm_of(Prot::WRITE),
    }
}

fn queue() -> (Arc<FaultQueue>, TestClient) {
    (FaultQueue::new(Head::outside()), TestClient::new())
}

fn read_one(queue: &FaultQueue, client: &TestClient) -> abi::HwptPgfault {
    assert_eq!(queue.read(RECORD, &mut at(client, DATA)), Ok(RECORD));
    let mut record = abi::HwptPgfault::new_zeroed();
    client.memory.read(DATA, record.as_mut_bytes()).unwrap();
    record
}

fn respond(queue: &FaultQueue, client: &TestClient, cookie: u32, code: u32) -> Result<usize> {
    client.memory.write(DATA, abi::HwptPageResponse { cookie, code }.as_bytes()).unwrap();
    queue.write(RESPONSE, &mut at(client, DATA))
}

#[test]
fn a_request_is_read_once_and_its_answer_reaches_the_device() {
    let (queue, client) = queue();
    let answer = queue.send(PageRequest { pasid: 7, ..request(3, 0x5000) });
    assert!(queue.is_readable());
    let record = read_one(&queue, &client);
    assert_eq!((record.dev_id, record.addr, record.cookie, record.length), (3, 0x5000, 1, 0));
    assert_eq!(record.flags, abi::PGFAULT_FLAGS_LAST_PAGE | abi::PGFAULT_FLAGS_PASID_VALID);
    assert_eq!((record.perm, record.pasid), (abi::PGFAULT_PERM_WRITE, 7));
    assert_eq!(queue.read(RECORD, &mut at(&client, DATA)), Ok(0), "nothing is left");
    respond(&queue, &client, 1, abi::PAGE_RESP_SUCCESS).unwrap();
    assert_eq!(answer.wait(), PageResponse::Success);
}

#[test]
fn odd_counts_and_bad_answers_are_refused() {
    let (queue, client) = queue();
    let _answer = queue.send(request(1, 0));
    let errno = |result: Result<usize>| result.unwrap_err().errno;
    assert_eq!(errno(queue.read(39, &mut at(&client, DATA))), ioasis_uapi::Errno::ESPIPE);
    assert_eq!(
        errno(queue.read(0, &mut at(&client, DATA))),
        ioasis_uapi::Errno::EINVAL,
        "the first does not fit"
    );
    assert_eq!(errno(queue.write(7, &mut at(&client, DATA))), ioasis_uapi::Errno::ESPIPE);
    assert_eq!(queue.write(0, &mut at(&client, DATA)), Ok(0));
    read_one(&queue, &client);
    assert_eq!(errno(respond(&queue, &client, 2, 0)), ioasis_uapi::Errno::EINVAL);
    assert_eq!(errno(respond(&queue, &client, 1, 2)), ioasis_uapi::Errno::EINVAL);
    respond(&queue, &client, 1, abi::PAGE_RESP_INVALID).unwrap();
}

#[test]
fn what_cannot_be_delivered_stays_first() {
    let (queue, client) = queue();
    let answers = [queue.send(request(1, 0x1000)), queue.send(request(2, 0x2000))];
    assert_eq!(
        queue.read(RECORD, &mut at(&client, BASE - 1)).unwrap_err().errno,
        ioasis_uapi::Errno::EFAULT
    );
    assert_eq!(read_one(&queue, &client).addr, 0x1000);
    assert_eq!(read_one(&queue, &client).cookie, 2);
    // Freed cookies are used again, the lowest first.
    respond(&queue, &client, 1, abi::PAGE_RESP_SUCCESS).unwrap();
    let third = queue.send(request(3, 0x3000));
    assert_eq!(read_one(&queue, &client).cookie, 1);
    queue.cancel_all();
    assert_eq!(answers.map(|answer| answer.wait()), [PageResponse::Success, PageResponse::Invalid]);
    assert_eq!(third.wait(), PageResponse::Invalid);
}

#[test]
fn an_attachment_that_goes_answers_its_own_requests_only() {
    let (queue, client) = queue();
    let (read, queued, other) =
        (queue.send(request(1, 0)), queue.send(request(1, 0x1000)), queue.send(request(2, 0)));
    read_one(&queue, &client);
    queue.cancel(1);
    assert_eq!((read.wait(), queued.wait()), (PageResponse::Invalid, PageResponse::Invalid));
    assert_eq!(read_one(&queue, &client).dev_id, 2);
    queue.cancel(2);
    assert_eq!(other.wait(), PageResponse::Invalid);
    assert!(!queue.is_readable());
}

#[test]
fn a_request_through_an_attachment_that_is_gone_does_not_wait() {
    let (queue, _) = queue();
    assert_eq!(queue.request(request(1, 0), &|| false), PageResponse::Invalid);
}
