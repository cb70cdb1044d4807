//! What a model sees of the machine: DMA through its IOMMU, interrupts, and the memory of its BAR pages.

use std::fmt::Debug;

/// One piece of a scattered transfer, by the address the device puts on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// I/O virtual address.
    pub iova: u64,
    /// Bytes.
    pub length: usize,
}

/// A transfer that the IOMMU, or the memory behind it, refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaFault {
    /// The first address that could not be reached.
    pub iova: u64,
}

/// Memory as this device reaches it. Every call translates anew; nothing is remembered between two calls.
pub trait Dma: Debug + Send + Sync {
    /// Fills `buf` from `segments`, one after another; their lengths add up to `buf.len()`.
    ///
    /// # Errors
    ///
    /// The first address that faulted; bytes before it may have been copied.
    fn read(&self, segments: &[Segment], buf: &mut [u8]) -> Result<(), DmaFault>;

    /// Writes `buf` to `segments`, one after another; their lengths add up to `buf.len()`.
    ///
    /// # Errors
    ///
    /// The first address that faulted; bytes before it may have been written.
    fn write(&self, segments: &[Segment], buf: &[u8]) -> Result<(), DmaFault>;
}

/// Interrupts as this device raises them. Which kind is enabled, and whether a vector is masked, is not the
/// model's business.
pub trait Irq: Debug + Send + Sync {
    /// Signals MSI or MSI-X vector `vector`, or INTx when that is what the program enabled.
    fn raise(&self, vector: u16);
}
