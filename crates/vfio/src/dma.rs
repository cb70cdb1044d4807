//! A device's way to memory: through its IOMMU.
//!
//! DIFFERS: a device without an IOMMU reaches nothing; on Linux it reaches all physical memory.

use std::sync::Arc;

use ioasis_iommufd::{Endpoint, Iova};
use ioasis_pci::{Dma, DmaFault, Segment};

use crate::logging::DmaLog;

/// DMA of one session.
#[derive(Debug)]
pub(crate) struct Translated {
    endpoint: Arc<Endpoint>,
    log: Arc<DmaLog>,
}

impl Translated {
    pub(crate) fn new(endpoint: &Arc<Endpoint>, log: &Arc<DmaLog>) -> Self {
        Self { endpoint: Arc::clone(endpoint), log: Arc::clone(log) }
    }
}

/// The same transfer in the IOMMU's words.
fn translated(segments: &[Segment]) -> impl Iterator<Item = ioasis_iommufd::Segment> {
    segments
        .iter()
        .map(|segment| ioasis_iommufd::Segment { iova: Iova(segment.iova), length: segment.length })
}

impl Dma for Translated {
    fn read(&self, segments: &[Segment], buf: &mut [u8]) -> Result<(), DmaFault> {
        let done = self.endpoint.read(translated(segments), buf);
        done.map_err(|fault| DmaFault { iova: fault.iova.0 })
    }

    fn write(&self, segments: &[Segment], buf: &[u8]) -> Result<(), DmaFault> {
        let done = self.endpoint.write(translated(segments), buf);
        self.log.record(segments);
        done.map_err(|fault| DmaFault { iova: fault.iova.0 })
    }

    fn read_with_pasid(
        &self,
        pasid: u32,
        segments: &[Segment],
        buf: &mut [u8],
    ) -> Result<(), DmaFault> {
        let done = self.endpoint.with_pasid(pasid).read(translated(segments), buf);
        done.map_err(|fault| DmaFault { iova: fault.iova.0 })
    }

    fn write_with_pasid(
        &self,
        pasid: u32,
        segments: &[Segment],
        buf: &[u8],
    ) -> Result<(), DmaFault> {
        let done = self.endpoint.with_pasid(pasid).write(translated(segments), buf);
        self.log.record(segments);
        done.map_err(|fault| DmaFault { iova: fault.iova.0 })
    }

    fn without_waiting(&self, stop: &mut dyn FnMut()) {
        let _silence = self.endpoint.silence();
        stop();
    }
}
