//! VFIO groups, containers and devices in user space.
//!
//! [`Machine`] holds the devices and groups of one simulated machine. Opening `/dev/vfio/N` makes a
//! [`GroupFile`], opening `/dev/vfio/devices/vfioN` a [`DeviceFile`]; GROUP_GET_DEVICE_FD makes a
//! `DeviceFile` too. Both answer the ioctls of Linux's `drivers/vfio`, in the order of its checks;
//! a device file also answers reads and writes of its regions. Processes and descriptors are the
//! caller's business: see [`Client`].
//!
//! Invariant: a function has a session (DMA, interrupts) exactly while a device file of it has been
//! granted access, and that file was bound to an iommufd, or its group had a container, before.
//!
//! Lock order: `Group::state` -> `DeviceSet::opens` -> `Interrupts::gate` -> `Interrupts::pin`.
//! Locks of `iommufd` and `pci` are taken inside the first two, never the other way round, except
//! that a device model raising an interrupt takes `Interrupts::pin`, which is a leaf.
//! `Migrating::held` comes before the locks of `pci`, and no other lock of this crate is taken
//! inside it but those of its data files; the log of a device's DMA is a leaf.

mod aftermath;
mod arg;
mod attached;
mod client;
mod device;
mod dma;
mod dmabuf;
mod emulated;
mod feature;
mod file;
mod group;
mod info;
mod ioeventfd;
mod irq;
mod kvm;
mod logging;
mod look;
mod machine;
mod migration;
mod name;
mod registration;
mod removal;
mod reset;
mod served;
mod sriov;
mod token;
mod watch;

pub use client::{Client, DeviceMemory, IommuFile, VfioFile};
pub use device::Device;
pub use file::{DeviceFile, REGION_SHIFT, Reply, region_index, region_offset};
pub use group::{Group, GroupFile};
pub use irq::{DeviceWatcher, InterruptKind, IrqLook, VectorLook};
pub use kvm::{
    KVM_CREATE_DEVICE, KVM_DEV_TYPE_VFIO, KVM_GET_DEVICE_ATTR, KVM_HAS_DEVICE_ATTR,
    KVM_SET_DEVICE_ATTR, KvmCreateDevice, KvmDevice,
};
pub use look::{DeviceLook, GroupLook};
pub use machine::{Farewell, Machine, Placement};
pub use registration::Driver;
pub use served::{Served, ServedIrqs};
