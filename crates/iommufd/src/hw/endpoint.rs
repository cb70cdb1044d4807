//! Endpoints: devices as the IOMMU sees them, each with a requester ID and what it translates
//! through.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ioasis_iommupt::IovaRange;
use ioasis_uapi::Result;

use super::attachment::Attachment;
use super::group::Group;
use super::iommu::{EndpointConfig, Iommu, ReservedKind, ReservedRegion};
use super::machine::Machine;
use crate::params::Linux;

/// A device as the IOMMU sees it.
#[derive(Debug)]
pub struct Endpoint {
    config: EndpointConfig,
    token: u64,
    machine: Arc<Machine>,
    group: Arc<Group>,
    /// Object id of the device it is bound as; page requests carry it.
    device: AtomicU32,
    /// How many want it to ask for no pages.
    silenced: AtomicU32,
}

/// As long as it lives the endpoint asks for no pages, and what it asked for is answered with no.
#[derive(Debug)]
pub struct Silence<'a>(&'a Endpoint);

impl Drop for Silence<'_> {
    fn drop(&mut self) {
        self.0.silenced.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Endpoint {
    /// A device in `group`.
    #[must_use]
    pub fn new(group: &Arc<Group>, config: EndpointConfig) -> Arc<Self> {
        let machine = Arc::clone(group.machine());
        let endpoint = Arc::new(Self {
            config,
            token: machine.token(),
            machine,
            group: Arc::clone(group),
            device: AtomicU32::new(0),
            silenced: AtomicU32::new(0),
        });
        group.add(&endpoint);
        endpoint
    }

    /// Bits of the PASIDs it sends through its IOMMU; 0: none.
    pub(crate) fn pasid_width(&self) -> u32 {
        self.config.pasid_bits.min(self.iommu().pasid_bits).min(20)
    }

    /// Ends what its DMA waits for: a page request that is on its way is refused, and no other is
    /// made meanwhile. To be held while the device is reset or stopped, which would else wait for
    /// the client.
    #[must_use]
    pub fn silence(&self) -> Silence<'_> {
        self.silenced.fetch_add(1, Ordering::AcqRel);
        let own = self.group.attachment();
        let pasids = self.group.pasids();
        for attachment in own.iter().chain(pasids.values()) {
            if let Some(queue) = &attachment.faults {
                queue.cancel_device(self.device_id());
            }
        }
        Silence(self)
    }

    /// Whether it asks for no pages.
    pub(crate) fn is_silenced(&self) -> bool {
        self.silenced.load(Ordering::Acquire) > 0
    }

    /// Object id of the device it is bound as.
    pub(crate) fn device_id(&self) -> u32 {
        self.device.load(Ordering::Acquire)
    }

    pub(crate) fn set_device_id(&self, id: u32) {
        self.device.store(id, Ordering::Release);
    }

    /// Whether its writes set dirty bits.
    pub(crate) fn tracks_dirty(&self) -> bool {
        self.iommu().ops().tracks_dirty(self.iommu(), &self.config)
    }

    /// The registers GET_HW_INFO shows, under their type; `wanted` is the type asked for, or the
    /// default.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for a type this hardware does not have.
    pub(crate) fn hw_info(&self, wanted: u32) -> Result<(u32, Vec<u8>)> {
        self.iommu().ops().hw_info(self.iommu(), &self.config, wanted)
    }

    /// How it was made.
    #[must_use]
    pub fn config(&self) -> &EndpointConfig {
        &self.config
    }

    /// The group it is in.
    #[must_use]
    pub fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// The IOMMU it is behind.
    #[must_use]
    pub fn iommu(&self) -> &Arc<Iommu> {
        self.group.iommu()
    }

    /// What transactions with `pasid`, 0 for none, translate through: what is attached to it, or
    /// the guest's table of PASIDs.
    pub(crate) fn attachment(&self, pasid: u32) -> Option<Arc<Attachment>> {
        if pasid == 0 {
            return self.group.attachment();
        }
        let own = self.group.pasid_attachment(pasid);
        own.or_else(|| {
            let whole = self.group.attachment()?;
            whole.nested.as_ref()?.ops().has_pasids().then_some(whole)
        })
    }

    /// A number no one else on the machine has: the owner of its reserved ranges.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Whose rules hold on its machine.
    #[must_use]
    pub fn linux(&self) -> Linux {
        self.machine.linux
    }

    pub(crate) fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// Ranges that must stay unmapped in whatever it is attached to.
    pub(crate) fn reserved(&self) -> impl Iterator<Item = IovaRange> {
        let binds = |region: &&ReservedRegion| region.kind != ReservedKind::DirectRelaxable;
        self.config.reserved.iter().filter(binds).map(|region| region.range)
    }
}
