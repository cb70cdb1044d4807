//! Who is told when a queue has something to read.

use std::sync::Arc;

use ioasis_sys::sync::Mutex;

use crate::client::QueueWatcher;

/// The watchers of one queue.
#[derive(Debug, Default)]
pub(crate) struct Watchers(Mutex<Vec<Arc<dyn QueueWatcher>>>);

impl Watchers {
    pub(crate) fn add(&self, watcher: Arc<dyn QueueWatcher>) {
        self.0.lock().push(watcher);
    }

    pub(crate) fn tell(&self) {
        self.0.lock().iter().for_each(|watcher| watcher.readable());
    }
}
