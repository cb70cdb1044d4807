//! Fault queues: page requests of devices, answered by the client.
//!
//! A device that may ask (PRI) and meets a page that is not there sends a page request. The client
//! reads it, maps the page, and answers; the device then tries again, or gives up. Detaching,
//! unbinding and destroying answer for the client. Closing the queue's own file does not: a request
//! that nobody can read any more waits until the device is detached, as in Linux
//! (`iommufd_eventq_fops_release`). Linux: `drivers/iommu/iommufd/eventq.c`.
//!
//! Lock order: `FaultQueue::state` -> `Answer::code`. The client's memory is written with
//! `FaultQueue::state` held, as Linux holds its mutex.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use ioasis_sys::sync::{Condvar, Mutex};
use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;
use zerocopy::{FromZeros, IntoBytes};

use super::watchers::Watchers;
use crate::client::{Destination, Source};
use crate::hw::page_request::{FaultSink, PageRequest, PageResponse};
use crate::object::{Head, Object, Tracked};

#[derive(Debug, Default)]
struct Answer {
    code: Mutex<Option<PageResponse>>,
    given: Condvar,
}

impl Answer {
    fn give(&self, code: PageResponse) {
        *self.code.lock() = Some(code);
        self.given.notify_all();
    }

    fn wait(&self) -> PageResponse {
        let mut code = self.code.lock();
        loop {
            if let Some(code) = *code {
                return code;
            }
            code = self.given.wait(code);
        }
    }
}

/// Page requests that are answered together: here always one, the last of its group.
#[derive(Debug)]
struct Group {
    request: PageRequest,
    answer: Arc<Answer>,
}

#[derive(Debug, Default)]
struct State {
    deliver: VecDeque<Group>,
    /// Read and not answered, by cookie.
    response: BTreeMap<u32, Group>,
}

/// A queue of page requests.
#[derive(Debug)]
pub(crate) struct FaultQueue {
    head: Head,
    state: Mutex<State>,
    pub(crate) watchers: Watchers,
}

impl Object for FaultQueue {
    fn head(&self) -> &Head {
        &self.head
    }

    fn retire(self: Arc<Self>) {
        self.cancel_all();
    }
}

impl Tracked for FaultQueue {
    const ABSENT: &'static str = "no fault queue has this id";
}

const RECORD: usize = size_of::<abi::HwptPgfault>();
const RESPONSE: usize = size_of::<abi::HwptPageResponse>();

impl FaultQueue {
    pub(crate) fn new(head: Head) -> Arc<Self> {
        Arc::new(Self { head, state: Mutex::default(), watchers: Watchers::default() })
    }

    fn send(&self, request: PageRequest) -> Arc<Answer> {
        let answer = Arc::new(Answer::default());
        self.state.lock().deliver.push_back(Group { request, answer: Arc::clone(&answer) });
        self.watchers.tell();
        answer
    }

    /// Answers every request that came through `attachment`: it is no longer there.
    pub(crate) fn cancel(&self, attachment: u64) {
        self.cancel_where(|request| request.attachment == attachment);
    }

    /// Answers every request.
    pub(crate) fn cancel_all(&self) {
        self.cancel_where(|_| true);
    }

    fn cancel_where(&self, gone: impl Fn(&PageRequest) -> bool) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let keep = |group: &Group| {
            let gone = gone(&group.request);
            if gone {
                group.answer.give(PageResponse::Invalid);
            }
            !gone
        };
        state.deliver.retain(&keep);
        state.response.retain(|_, group| keep(group));
    }

    /// Requests to be read, and read but not answered; `None` while a call has the queue.
    pub(crate) fn look(&self) -> Option<(usize, usize)> {
        let state = self.state.try_lock()?;
        Some((state.deliver.len(), state.response.len()))
    }

    pub(crate) fn is_readable(&self) -> bool {
        !self.state.lock().deliver.is_empty()
    }

    pub(crate) fn read(&self, count: usize, to: &mut dyn Destination) -> Result<usize> {
        if !count.is_multiple_of(RECORD) {
            return refuse!(ESPIPE, "count is no multiple of a record", count as u64);
        }
        let mut state = self.state.lock();
        let state = &mut *state;
        let mut done = 0;
        while let Some(group) = state.deliver.front() {
            if count - done < RECORD {
                if done == 0 {
                    return refuse!(EINVAL, "the first group does not fit", count as u64);
                }
                break;
            }
            let cookie = (1..)
                .find(|cookie| !state.response.contains_key(cookie))
                .expect("requests are fewer than 2^32");
            let record = record(&group.request, cookie);
            if let Err(error) = to.put(done as u64, record.as_bytes()) {
                return if done == 0 { Err(error) } else { Ok(done) };
            }
            let group = state.deliver.pop_front().expect("there is a first group");
            state.response.insert(cookie, group);
            done += RECORD;
        }
        Ok(done)
    }

    pub(crate) fn write(&self, count: usize, from: &mut dyn Source) -> Result<usize> {
        if !count.is_multiple_of(RESPONSE) {
            return refuse!(ESPIPE, "count is no multiple of an answer", count as u64);
        }
        let mut state = self.state.lock();
        let mut done = 0;
        while done < count {
            if let Err(error) = state.take_response(done as u64, from) {
                return if done == 0 { Err(error) } else { Ok(done) };
            }
            done += RESPONSE;
        }
        Ok(done)
    }
}

impl FaultSink for FaultQueue {
    fn request(&self, request: PageRequest, stands: &dyn Fn() -> bool) -> PageResponse {
        let answer = self.send(request);
        // Whoever takes the attachment away, or stops the device, cancels what is queued; what is
        // queued after that is cancelled here.
        if !stands() {
            self.cancel_where(|other| {
                other.attachment == request.attachment && other.device == request.device
            });
        }
        answer.wait()
    }

    fn post(&self, request: PageRequest) {
        // The answer goes to the queue's entry alone.
        drop(self.send(request));
    }

    fn cancel_device(&self, device: u32) {
        self.cancel_where(|request| request.device == device);
    }
}

impl State {
    fn take_response(&mut self, at: u64, from: &mut dyn Source) -> Result<()> {
        let mut response = abi::HwptPageResponse::new_zeroed();
        from.get(at, response.as_mut_bytes())?;
        let code = match response.code {
            abi::PAGE_RESP_SUCCESS => PageResponse::Success,
            abi::PAGE_RESP_INVALID => PageResponse::Invalid,
            code => return refuse!(EINVAL, "unknown response code", u64::from(code)),
        };
        match self.response.remove(&response.cookie) {
            Some(group) => {
                group.answer.give(code);
                Ok(())
            }
            None => refuse!(EINVAL, "no page request has this cookie", u64::from(response.cookie)),
        }
    }
}

fn record(request: &PageRequest, cookie: u32) -> abi::HwptPgfault {
    let pasid = if request.pasid == 0 { 0 } else { abi::PGFAULT_FLAGS_PASID_VALID };
    abi::HwptPgfault {
        flags: abi::PGFAULT_FLAGS_LAST_PAGE | pasid,
        dev_id: request.device,
        pasid: request.pasid,
        grpid: request.group,
        perm: request.perm,
        __reserved: 0,
        addr: request.iova.0,
        length: 0,
        cookie,
    }
}

#[cfg(test)]
mod tests;
