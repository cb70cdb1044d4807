//! PCI functions and device models.

mod bus;

pub use bus::{Dma, DmaFault, Irq, Segment};
