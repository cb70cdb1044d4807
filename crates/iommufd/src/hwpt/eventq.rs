//! Event queues: what a virtual IOMMU tells its driver in the guest.
//!
//! A queue holds as many events as the client said. One more leaves a header without data that says
//! events were lost; every event, lost or not, counts in the sequence. Linux:
//! `drivers/iommu/iommufd/{eventq,driver}.c`.

use std::collections::VecDeque;
use std::sync::Arc;

use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;
use zerocopy::IntoBytes;

use super::viommu::Viommu;
use super::watchers::Watchers;
use crate::client::Destination;
use crate::object::{Head, Held, Object, Tracked};

/// One entry: an event, or (without data) the word that some were lost.
#[derive(Clone, Debug)]
struct Event {
    sequence: u32,
    data: Option<Box<[u8]>>,
}

#[derive(Debug, Default)]
struct State {
    deliver: VecDeque<Event>,
    /// Entries with data.
    events: u32,
    sequence: u32,
}

/// A queue of events of one type of one virtual IOMMU.
#[derive(Debug)]
pub(crate) struct EventQueue {
    head: Head,
    kind: u32,
    depth: u32,
    viommu: Held<Viommu>,
    state: Mutex<State>,
    pub(crate) watchers: Watchers,
}

impl Object for EventQueue {
    fn head(&self) -> &Head {
        &self.head
    }

    fn retire(self: Arc<Self>) {
        self.viommu.remove_queue(&self);
    }
}

impl Tracked for EventQueue {
    const ABSENT: &'static str = "no event queue has this id";
}

/// The largest depth, `VEVENTQ_MAX_DEPTH`.
pub(crate) const DEPTH_MAX: u32 = 1 << 19;

const HEADER: usize = size_of::<abi::VeventHeader>();

impl EventQueue {
    pub(crate) fn new(head: Head, viommu: Held<Viommu>, kind: u32, depth: u32) -> Arc<Self> {
        Arc::new(Self {
            head,
            kind,
            depth,
            viommu,
            state: Mutex::default(),
            watchers: Watchers::default(),
        })
    }

    /// What type of events it takes.
    pub(crate) fn kind(&self) -> u32 {
        self.kind
    }

    /// Queues an event, or the word that it was lost.
    pub(crate) fn push(&self, data: &[u8]) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let sequence = state.sequence;
        // 0 follows the largest positive number of 32 bits.
        state.sequence = (sequence + 1) & (u32::MAX >> 1);
        let lost_is_last = state.deliver.back().is_some_and(|event| event.data.is_none());
        if lost_is_last {
            state.deliver.pop_back();
        }
        let fits = state.events < self.depth;
        let data = fits.then(|| data.into());
        state.events += u32::from(fits);
        state.deliver.push_back(Event { sequence, data });
        self.watchers.tell();
    }

    /// The type of events, entries to be read unless a call has the queue, and events that fit.
    pub(crate) fn look(&self) -> (u32, Option<usize>, u32) {
        let state = self.state.try_lock();
        (self.kind, state.map(|state| state.deliver.len()), self.depth)
    }

    pub(crate) fn is_readable(&self) -> bool {
        !self.state.lock().deliver.is_empty()
    }

    pub(crate) fn read(&self, count: usize, to: &mut dyn Destination) -> Result<usize> {
        if count < HEADER {
            return refuse!(EINVAL, "count is less than a header", count as u64);
        }
        let mut state = self.state.lock();
        let state = &mut *state;
        let mut done = 0;
        while let Some(event) = state.deliver.front() {
            let length = HEADER + event.data.as_deref().map_or(0, <[u8]>::len);
            if length > count - done {
                if done == 0 {
                    return refuse!(EINVAL, "the first event does not fit", count as u64);
                }
                break;
            }
            let flags = if event.data.is_none() { abi::VEVENTQ_FLAG_LOST_EVENTS } else { 0 };
            let header = abi::VeventHeader { flags, sequence: event.sequence };
            let mut bytes = Vec::with_capacity(length);
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(event.data.as_deref().unwrap_or_default());
            if let Err(error) = to.put(done as u64, &bytes) {
                return if done == 0 { Err(error) } else { Ok(done) };
            }
            if event.data.is_some() {
                state.events -= 1;
            }
            state.deliver.pop_front();
            done += length;
        }
        Ok(done)
    }
}
