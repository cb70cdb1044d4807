//! What a person sees of a container.

use super::{Container, Driver};
use crate::ioas::{LOOK_PATIENCE, SpaceLook};

/// An open `/dev/vfio/vfio`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerLook {
    /// Its driver, once SET_IOMMU chose one.
    pub driver: Option<&'static str>,
    /// Numbers of its groups.
    pub groups: Vec<u32>,
    /// What it maps; `None` without a driver that maps, and while a call has it.
    pub space: Option<SpaceLook>,
}

impl Container {
    /// What there is, with at most `areas` areas; `None` while a call has it for longer than a look
    /// waits.
    #[must_use]
    pub fn look(&self, areas: usize) -> Option<ContainerLook> {
        let (driver, groups, ioas) = {
            let state = self.state.try_lock_for(LOOK_PATIENCE)?;
            let groups = state.members.iter().map(|member| member.group.number()).collect();
            let (driver, ioas) = match &state.driver {
                None => (None, None),
                Some(Driver::NoIommu) => (Some("noiommu"), None),
                Some(Driver::Spapr(spapr)) => (Some("spapr"), Some(spapr.shared_ioas())),
                Some(Driver::Type1(type1)) => {
                    let version = if type1.is_v2() { "type1v2" } else { "type1" };
                    (Some(version), Some(type1.shared_ioas()))
                }
            };
            (driver, groups, ioas)
        };
        Some(ContainerLook { driver, groups, space: ioas.and_then(|ioas| ioas.look(areas)) })
    }
}
