//! Files that calls make for their client: event queues to be read, answered and polled.
//!
//! A file keeps its object from being destroyed and its context open until its last descriptor is
//! gone. What is read is handed over record by record, so that what cannot be delivered stays in
//! the queue.

use std::sync::Arc;

use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;

use super::Context;
use crate::hwpt::eventq::EventQueue;
use crate::hwpt::faultq::FaultQueue;
use crate::object::{Held, Object};
use crate::{ClientFile, Destination, QueueFile, QueueWatcher, Source};

/// What a file holds while it is open.
type Open<T> = Mutex<Option<(Held<T>, Arc<Context>)>>;

fn hold<T: Object>(context: &Arc<Context>, queue: &Arc<T>) -> Open<T> {
    Mutex::new(Some((Held::new(queue), Arc::clone(context))))
}

fn count_of(length: u64) -> usize {
    usize::try_from(length).expect("64 bits fit usize")
}

/// The file of a fault queue. It can always be written.
#[derive(Debug)]
pub(crate) struct FaultFile {
    queue: Arc<FaultQueue>,
    open: Open<FaultQueue>,
}

impl FaultFile {
    pub(crate) fn new(context: &Arc<Context>, queue: &Arc<FaultQueue>) -> Arc<Self> {
        Arc::new(Self { queue: Arc::clone(queue), open: hold(context, queue) })
    }
}

impl ClientFile for FaultFile {
    fn name(&self) -> &'static str {
        "anon_inode:[iommufd-pgfault]"
    }

    fn queue(&self) -> Option<&dyn QueueFile> {
        Some(self)
    }

    fn close(&self) {
        // Out of the lock: it may be the last of the context.
        let open = self.open.lock().take();
        drop(open);
    }
}

impl QueueFile for FaultFile {
    fn read_to(&self, _offset: u64, length: u64, to: &mut dyn Destination) -> Result<u64> {
        self.queue.read(count_of(length), to).map(|done| done as u64)
    }

    fn write_from(&self, length: u64, from: &mut dyn Source) -> Result<u64> {
        self.queue.write(count_of(length), from).map(|done| done as u64)
    }

    fn is_readable(&self) -> bool {
        self.queue.is_readable()
    }

    fn watch(&self, watcher: Arc<dyn QueueWatcher>) {
        self.queue.watchers.add(watcher);
    }
}

/// The file of a virtual IOMMU's event queue. It can never be written.
#[derive(Debug)]
pub(crate) struct EventFile {
    queue: Arc<EventQueue>,
    open: Open<EventQueue>,
}

impl EventFile {
    pub(crate) fn new(context: &Arc<Context>, queue: &Arc<EventQueue>) -> Arc<Self> {
        Arc::new(Self { queue: Arc::clone(queue), open: hold(context, queue) })
    }
}

impl ClientFile for EventFile {
    fn name(&self) -> &'static str {
        "anon_inode:[iommufd-viommu-event]"
    }

    fn queue(&self) -> Option<&dyn QueueFile> {
        Some(self)
    }

    fn close(&self) {
        let open = self.open.lock().take();
        drop(open);
    }
}

impl QueueFile for EventFile {
    fn read_to(&self, _offset: u64, length: u64, to: &mut dyn Destination) -> Result<u64> {
        self.queue.read(count_of(length), to).map(|done| done as u64)
    }

    fn write_from(&self, length: u64, _from: &mut dyn Source) -> Result<u64> {
        refuse!(EINVAL, "an event queue cannot be written", length)
    }

    fn is_writable(&self) -> bool {
        false
    }

    fn is_readable(&self) -> bool {
        self.queue.is_readable()
    }

    fn watch(&self, watcher: Arc<dyn QueueWatcher>) {
        self.queue.watchers.add(watcher);
    }
}
