//! DMA in progress, and who waits for it.
//!
//! A device's DMA runs in a section labelled with its group. A domain knows the groups that are
//! attached to it; whoever takes something out of the domain waits for their sections alone. A
//! section lasts as long as a translation, and a copy that ends by itself; a copy that may wait for
//! somebody is not in it (`underway`).
//!
//! A group is among the users of a domain before it is attached, and until the DMA that was under
//! way when it was detached has ended. `Users::labels` is a leaf lock, not held while waiting.

use std::sync::Arc;

use ioasis_iommupt::Quiesce;
use ioasis_sys::quiesce::{EVERYBODY, Sections};
use ioasis_sys::sync::Mutex;
use smallvec::SmallVec;

/// The groups whose devices translate through a domain.
#[derive(Debug)]
pub(crate) struct Users {
    sections: &'static Sections,
    /// Each with how often it is attached: as a whole, and by PASID.
    labels: Mutex<SmallVec<[(u64, u32); 2]>>,
}

impl Users {
    pub(crate) fn new(sections: &'static Sections) -> Arc<Self> {
        Arc::new(Self { sections, labels: Mutex::default() })
    }

    /// The group with this label is about to be attached.
    pub(crate) fn add(&self, label: u64) {
        let mut labels = self.labels.lock();
        match labels.iter_mut().find(|(other, _)| *other == label) {
            Some((_, count)) => *count += 1,
            None => labels.push((label, 1)),
        }
    }

    /// The group with this label was detached, and its DMA has ended.
    pub(crate) fn remove(&self, label: u64) {
        let mut labels = self.labels.lock();
        let at = labels.iter().position(|(other, _)| *other == label);
        let at = at.expect("a group leaves the domain it was attached to");
        labels[at].1 -= 1;
        if labels[at].1 == 0 {
            labels.swap_remove(at);
        }
    }

    /// Returns when no DMA uses what was taken out of any of these domains before.
    pub(crate) fn wait_all<'a>(all: impl IntoIterator<Item = &'a Self>) {
        // Often there is one domain, with one group.
        let mut one = None;
        let mut others: SmallVec<[u64; 4]> = SmallVec::new();
        let mut sections = None;
        for users in all {
            for (label, _) in users.labels.lock().as_slice() {
                match one {
                    None => one = Some(*label),
                    Some(_) => others.push(*label),
                }
                sections = Some(users.sections);
            }
        }
        if let Some(sections) = sections {
            let others = others.as_slice();
            sections.wait(|label| one == Some(label) || others.contains(&label));
        }
    }
}

impl Quiesce for Users {
    fn enter(&self) {
        self.sections.enter(EVERYBODY);
    }

    fn exit(&self) {
        self.sections.exit();
    }

    fn wait(&self) {
        Self::wait_all([self]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_attached_twice_stays_until_it_has_left_twice() {
        let users = Users::new(Sections::of_process());
        users.add(7);
        users.add(8);
        users.add(7);
        users.remove(7);
        let section = Sections::of_process().section(7);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| users.wait());
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!waiter.is_finished(), "group 7 is attached still");
            drop(section);
        });
        users.remove(7);
        let _section = Sections::of_process().section(7);
        std::thread::scope(|scope| scope.spawn(|| users.wait()).join().unwrap());
    }
}
