//! A device's way to memory: through its IOMMU.
//!
//! DIFFERS: a device without an IOMMU reaches nothing; on Linux it reaches all physical memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ioasis_iommufd::{Endpoint, Iova};
use ioasis_pci::{Dma, DmaFault, Segment};

use crate::logging::DmaLog;

/// DMA of one session.
#[derive(Debug)]
pub(crate) struct Translated {
    endpoint: Arc<Endpoint>,
    log: Arc<DmaLog>,
    traffic: Arc<Traffic>,
}

/// What a device moved through its IOMMU since it was made: transfers that succeeded, and their
/// bytes.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    reads: Moved,
    writes: Moved,
}

#[derive(Debug, Default)]
struct Moved {
    transfers: AtomicU64,
    bytes: AtomicU64,
}

impl Moved {
    #[inline]
    fn count<T, E>(&self, done: Result<T, E>, bytes: usize) -> Result<T, E> {
        if done.is_ok() {
            self.transfers.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        done
    }

    fn get(&self) -> (u64, u64) {
        (self.transfers.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

impl Traffic {
    /// Transfers and bytes, from memory and to it.
    pub(crate) fn counts(&self) -> ((u64, u64), (u64, u64)) {
        (self.reads.get(), self.writes.get())
    }
}

impl Translated {
    pub(crate) fn new(endpoint: &Arc<Endpoint>, log: &Arc<DmaLog>, traffic: &Arc<Traffic>) -> Self {
        let (log, traffic) = (Arc::clone(log), Arc::clone(traffic));
        Self { endpoint: Arc::clone(endpoint), log, traffic }
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
        self.traffic.reads.count(done, buf.len()).map_err(|fault| DmaFault { iova: fault.iova.0 })
    }

    fn write(&self, segments: &[Segment], buf: &[u8]) -> Result<(), DmaFault> {
        let done = self.endpoint.write(translated(segments), buf);
        self.log.record(segments);
        self.traffic.writes.count(done, buf.len()).map_err(|fault| DmaFault { iova: fault.iova.0 })
    }

    fn read_with_pasid(
        &self,
        pasid: u32,
        segments: &[Segment],
        buf: &mut [u8],
    ) -> Result<(), DmaFault> {
        let done = self.endpoint.with_pasid(pasid).read(translated(segments), buf);
        self.traffic.reads.count(done, buf.len()).map_err(|fault| DmaFault { iova: fault.iova.0 })
    }

    fn write_with_pasid(
        &self,
        pasid: u32,
        segments: &[Segment],
        buf: &[u8],
    ) -> Result<(), DmaFault> {
        let done = self.endpoint.with_pasid(pasid).write(translated(segments), buf);
        self.log.record(segments);
        self.traffic.writes.count(done, buf.len()).map_err(|fault| DmaFault { iova: fault.iova.0 })
    }

    fn without_waiting(&self, stop: &mut dyn FnMut()) {
        let _silence = self.endpoint.silence();
        stop();
    }
}
