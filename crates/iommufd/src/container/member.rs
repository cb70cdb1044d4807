//! Members: groups as a container sees them.

use std::sync::Arc;

use ioasis_iommupt::IovaRange;

use crate::hw::endpoint::Endpoint;
use crate::hw::group::Group;

/// How a group's devices do DMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupKind {
    /// Through an IOMMU.
    Iommu,
    /// Without one, anywhere.
    NoIommu,
    /// Not at all: the driver moves their bytes.
    Emulated,
}

/// A group as a container sees it.
#[derive(Clone, Debug)]
pub struct Member {
    pub(super) kind: GroupKind,
    pub(super) group: Arc<Group>,
    /// Ranges its devices cannot use for memory.
    pub(super) reserved: Vec<IovaRange>,
    /// Owner of the reserved ranges.
    pub(super) token: u64,
}

impl Member {
    /// `group`, with all its devices.
    #[must_use]
    pub fn new(kind: GroupKind, group: &Arc<Group>, endpoints: &[Arc<Endpoint>]) -> Self {
        let reserved =
            endpoints.iter().flat_map(|endpoint| endpoint.reserved().collect::<Vec<_>>()).collect();
        Self { kind, group: Arc::clone(group), reserved, token: group.token() }
    }

    pub(super) fn is(&self, group: &Arc<Group>) -> bool {
        Arc::ptr_eq(&self.group, group)
    }
}
