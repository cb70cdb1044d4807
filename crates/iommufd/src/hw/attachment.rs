//! Attachment: what the endpoints of a group translate through, and whom they tell.
//!
//! Who listens is an object of a client's, which the hardware does not know: it has a sink for page
//! requests, one for events of a guest, and somebody to ask what else is mapped.

use std::fmt::Debug;
use std::sync::{Arc, Weak};

use ioasis_iommupt::{Iova, IovaRange, Prot};

use super::domain::Domain;
use super::faultlog::Reason;
use super::nested::Nested;
use super::ops::EventSink;
use super::page_request::FaultSink;

/// What the endpoints of a group translate through.
#[derive(Debug)]
pub(crate) struct Attachment {
    /// A number no other attachment has.
    pub(crate) token: u64,
    pub(crate) domain: Arc<Domain>,
    /// The client's own table above the domain.
    pub(crate) nested: Option<Arc<Nested>>,
    /// Where page requests go.
    pub(crate) faults: Option<Arc<dyn FaultSink>>,
    /// Who in a guest is told of refused transactions.
    pub(crate) guest: Option<Guest>,
    /// For the fault log.
    pub(crate) mappings: Weak<dyn Mappings>,
}

/// What is mapped through a domain, for the fault log.
pub(crate) trait Mappings: Debug + Send + Sync {
    /// What is and was near `iova`; `None` while it is changing.
    fn around(&self, iova: Iova) -> Option<Around>;
}

/// What is and was near an address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Around {
    /// The mapping nearest to it.
    pub(crate) nearest: Option<IovaRange>,
    /// The range around it that was unmapped last, and the process that unmapped it.
    pub(crate) unmapped: Option<(IovaRange, u32)>,
    /// The mapping there is of a dma-buf that was taken away.
    pub(crate) revoked: bool,
}

/// A device as a guest knows it.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) viommu: Weak<dyn EventSink>,
    /// The virtual id it had when it was attached, and goes by from then on:
    /// `iommufd_viommu_get_vdev_id` in the drivers' attach.
    pub(crate) virtual_id: Option<u64>,
}

impl Attachment {
    /// Tells the guest that a transaction was refused, if its IOMMU has a word for that and
    /// somebody listens.
    pub(crate) fn report_refused(&self, iova: Iova, need: Prot, reason: Reason) {
        let Some(guest) = &self.guest else { return };
        let (Some(viommu), Some(virtual_id)) = (guest.viommu.upgrade(), guest.virtual_id) else {
            return;
        };
        let event = self.domain.iommu().ops().refused(virtual_id, iova, need, reason);
        if let Some((kind, event)) = event {
            // Nobody listens: the event is lost, as on hardware whose queue is off.
            let _unheard = viommu.report(kind, &event);
        }
    }
}
