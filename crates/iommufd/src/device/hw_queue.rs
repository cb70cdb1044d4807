//! Hardware queues: what a guest owns of the hardware, in memory of its own that stays where it is.
//! Linux: `iommufd_hw_queue_alloc_ioctl` in `drivers/iommu/iommufd/viommu.c`.

use std::sync::Arc;

use ioasis_iommupt::{Iova, Pa, Prot};
use ioasis_uapi::Result;

use super::access::{Access, AccessKind};
use crate::client::PAGE_SIZE;
use crate::hw::ops::ViommuCore;
use crate::hwpt::viommu::Viommu;
use crate::object::{Head, Held, Object, Tracked};

/// A queue of the hardware that a guest owns, in memory of the guest's that stays where it is.
#[derive(Debug)]
pub(crate) struct HwQueue {
    head: Head,
    viommu: Held<Viommu>,
    index: u32,
    access: Arc<Access>,
    pinned: (Iova, u64),
}

impl Object for HwQueue {
    fn head(&self) -> &Head {
        &self.head
    }

    fn is_busy(&self) -> bool {
        !self.viommu.ops().may_stop_queue(self.index)
    }

    fn retire(self: Arc<Self>) {
        self.stop();
    }
}

impl Tracked for HwQueue {
    const ABSENT: &'static str = "no hardware queue has this id";
}

impl HwQueue {
    /// Pins `length` bytes from `base`, an address in the nest parent, and starts queue `index`
    /// there.
    ///
    /// # Errors
    ///
    /// `ERANGE` when the pages cannot be counted, `ENOENT` where nothing is mapped, `EFAULT` for
    /// memory in pieces, and what the hardware says to the index.
    pub(crate) fn new(
        head: Head,
        viommu: &Held<Viommu>,
        index: u32,
        base: Iova,
        length: u64,
    ) -> Result<Arc<Self>> {
        let first = Iova(base.0 & !(PAGE_SIZE - 1));
        let offset = base.0 - first.0;
        let pages =
            offset.checked_add(length).and_then(|end| end.checked_next_multiple_of(PAGE_SIZE));
        let Some(pages) = pages else {
            return refuse!(ERANGE, "the queue's pages cannot be counted", length);
        };
        let token = viommu.parent.domain.machine().token();
        let access = Access::new(Head::outside(), token, AccessKind::Queue);
        access.change_ioas(Some(viommu.parent.ioas.clone()))?;
        let pinned = access.pin(first, pages, Prot::READ).and_then(|runs| {
            let in_one_piece =
                runs.windows(2).all(|pair| pair[0].pa.0 + pair[0].length == pair[1].pa.0);
            let start = Pa(runs.first().expect("something is pinned").pa.0 + offset);
            let started = if in_one_piece {
                let core: Arc<dyn ViommuCore> = Arc::<Viommu>::clone(viommu.arc());
                viommu.ops().start_queue(&core, index, start, length)
            } else {
                refuse!(EFAULT, "the queue's memory is not in one piece", base.0)
            };
            started.inspect_err(|_| access.unpin(first, pages).expect("it was pinned"))
        });
        if let Err(error) = pinned {
            access.detach();
            return Err(error);
        }
        let viommu = viommu.clone();
        Ok(Arc::new(Self { head, viommu, index, access, pinned: (first, pages) }))
    }

    /// Its number, and the first address and length of what is pinned.
    pub(crate) fn look(&self) -> (u32, (u64, u64)) {
        (self.index, (self.pinned.0.0, self.pinned.1))
    }

    /// Stops the queue and lets go of its memory.
    pub(crate) fn stop(&self) {
        self.viommu.ops().stop_queue(self.index);
        self.access.unpin(self.pinned.0, self.pinned.1).expect("it was pinned when it started");
        self.access.detach();
    }
}
