//! Page requests: a device that may ask (PRI) and meets a page that is not there. Linux:
//! `drivers/iommu/io-pgfault.c`.

use std::fmt::Debug;

use ioasis_iommupt::{Iova, Prot};
use ioasis_uapi::iommufd as abi;

/// What became of a page request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageResponse {
    /// The page is there now: try again.
    Success,
    /// The access is refused.
    Invalid,
}

/// One page that a device asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageRequest {
    /// The attachment the device used.
    pub(crate) attachment: u64,
    /// The device's object id.
    pub(crate) device: u32,
    /// The PASID it used; 0 is none.
    pub(crate) pasid: u32,
    /// The device's own number for requests that belong together.
    pub(crate) group: u32,
    pub(crate) iova: Iova,
    /// `PGFAULT_PERM_*` bits.
    pub(crate) perm: u32,
}

/// `PGFAULT_PERM_*` for an access.
pub(crate) fn perm_of(need: Prot) -> u32 {
    let bit = |prot, perm| if need.contains(prot) { perm } else { 0 };
    bit(Prot::READ, abi::PGFAULT_PERM_READ)
        | bit(Prot::WRITE, abi::PGFAULT_PERM_WRITE)
        | bit(Prot::EXEC, abi::PGFAULT_PERM_EXEC)
}

/// Where page requests go: a fault queue of a client's.
pub(crate) trait FaultSink: Debug + Send + Sync {
    /// Sends a page request and waits for the answer, unless the attachment it goes through no
    /// longer stands.
    fn request(&self, request: PageRequest, stands: &dyn Fn() -> bool) -> PageResponse;

    /// Sends a page request for which nobody waits.
    fn post(&self, request: PageRequest);

    /// Answers every request of a device: it stops.
    fn cancel_device(&self, device: u32);
}
