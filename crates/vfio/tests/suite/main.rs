//! Groups and devices through their public surface: a client with memory and descriptors of its
//! own, and a function whose model does what the tests write to it.

mod cdev;
mod dmabufs;
mod drivers;
mod failures;
mod features;
mod groups;
mod infos;
mod irqs;
mod kvm;
mod logging;
mod migration;
mod noiommu;
mod peers;
mod random;
mod regions;
mod removal;
mod resets;
mod rig;
mod sriov;
