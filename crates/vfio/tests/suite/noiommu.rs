//! Devices without an IOMMU, opened through their own node: Linux 7.3's `noiommu-vfioN`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ioasis_iommufd::Linux;
use ioasis_uapi::iommufd::{self as iommu, IoasNoiommuGetPa};
use ioasis_uapi::vfio::{
    self, DeviceAttachIommufdPt, DeviceBindIommufd, DeviceDetachIommufdPt, DeviceInfo, GroupStatus,
};
use ioasis_uapi::{Errno, Result};
use ioasis_vfio::{DeviceFile, IommuFile};

use crate::rig::{ARG, BASE, FETCH, Rig, at, errno};

/// A device without an IOMMU, opened through its own node by somebody who may, and an iommufd.
struct Unguarded {
    rig: Rig,
    context: Arc<ioasis_iommufd::Context>,
    fd: i32,
    file: Arc<DeviceFile>,
}

impl Unguarded {
    fn new() -> Self {
        let rig = Rig::with(&[("0000:01:00.0", Rig::NO_IOMMU)]);
        rig.caller.rawio.store(true, Ordering::Relaxed);
        let context = rig.hardware.context();
        let fd = rig.caller.add_iommu(IommuFile::Iommufd(Arc::clone(&context)));
        let file = rig.first().open_cdev(&rig.caller).expect("an open");
        Self { rig, context, fd, file }
    }

    fn bind(&self) -> Result<u32> {
        let call = DeviceBindIommufd { argsz: 16, iommufd: self.fd, ..Default::default() };
        Ok(self.rig.call(&self.file, vfio::DEVICE_BIND_IOMMUFD, &call)?.out_devid)
    }

    fn attach(&self, call: &DeviceAttachIommufdPt) -> Result<u32> {
        Ok(self.rig.call(&self.file, vfio::DEVICE_ATTACH_IOMMUFD_PT, call)?.pt_id)
    }

    /// Where an IOVA leads, and how far.
    fn phys(&self, ioas_id: u32, iova: u64, length: u64) -> Result<(u64, u64)> {
        let call =
            IoasNoiommuGetPa { size: 40, ioas_id, iova, length, ..IoasNoiommuGetPa::default() };
        let address = self.rig.caller.arg(&call);
        self.context.ioctl(&self.rig.caller, iommu::IOAS_NOIOMMU_GET_PA, address)?;
        let IoasNoiommuGetPa { out_phys, length, .. } = self.rig.caller.get(ARG);
        Ok((out_phys, length))
    }
}

#[test]
fn a_device_without_an_iommu_is_opened_by_a_privileged_caller_only() {
    let rig = Rig::with(&[("0000:01:00.0", Rig::NO_IOMMU)]);
    let device = rig.first();
    assert_eq!((device.node().as_str(), device.cdev()), ("noiommu-vfio0", Some((511, 0))));
    assert_eq!(errno(device.open_cdev(&rig.caller)), Some(Errno::EPERM));
    rig.caller.rawio.store(true, Ordering::Relaxed);
    device.open_cdev(&rig.caller).expect("an open");
    rig.machine.remove_all();
    rig.caller.rawio.store(false, Ordering::Relaxed);
    assert_eq!(errno(device.open_cdev(&rig.caller)), Some(Errno::ENODEV), "before the right");
}

#[test]
fn before_linux_7_3_a_device_without_an_iommu_has_no_node_of_its_own() {
    let rig = Rig::of(Linux::V7_2, &[("0000:01:00.0", Rig::NO_IOMMU)]);
    rig.caller.rawio.store(true, Ordering::Relaxed);
    assert_eq!(rig.first().cdev(), None);
    assert_eq!(errno(rig.first().open_cdev(&rig.caller)), Some(Errno::ENODEV));
}

#[test]
fn a_device_without_an_iommu_is_bound_attached_and_told_physical_addresses() {
    let this = Unguarded::new();
    this.bind().expect("bound");
    this.rig
        .call(&this.file, vfio::DEVICE_GET_INFO, &DeviceInfo { argsz: 16, ..Default::default() })
        .expect("a call that works");
    let ioas = this.context.alloc_ioas().expect("an IOAS");
    this.rig.map(&this.context, ioas, BASE + 0x2000, 0x4_0000);
    this.rig.map(&this.context, ioas, BASE + 0x3000, 0x4_1000);
    assert_eq!(errno(this.phys(ioas, 0x4_0000, 1)), Some(Errno::EOPNOTSUPP), "nobody is attached");
    let call = DeviceAttachIommufdPt { argsz: 12, pt_id: ioas, ..Default::default() };
    this.attach(&call).expect("attached");
    let (first, run) = this.phys(ioas, 0x4_0008, u64::MAX).expect("an address");
    assert_eq!(run, 0xff8, "to the end of the mapping");
    let (second, _) = this.phys(ioas, 0x4_1008, 1).expect("an address");
    assert_eq!(second - first, 0x1000, "pages that follow each other");
    // A PASID needs a page table made for PASIDs, which it cannot have.
    let pasid = DeviceAttachIommufdPt { argsz: 16, flags: 1, pt_id: ioas, pasid: 1 };
    assert_eq!(errno(this.attach(&pasid)), Some(Errno::EINVAL));
    // Its DMA reaches neither what the address leads to nor what is mapped.
    this.file.write(at(7, 4), &6_u16.to_le_bytes()).expect("bus mastering");
    for target in [first, 0x4_0000] {
        this.file.write(at(0, FETCH), &target.to_le_bytes()).expect("a register");
        let mut word = [0; 8];
        this.file.read(at(0, FETCH), &mut word).expect("a register");
        assert_eq!(word, [0xee; 8], "{target:#x}");
    }
    let call = DeviceDetachIommufdPt { argsz: 8, ..Default::default() };
    this.rig.call(&this.file, vfio::DEVICE_DETACH_IOMMUFD_PT, &call).expect("detached");
    assert_eq!(errno(this.phys(ioas, 0x4_0000, 1)), Some(Errno::EOPNOTSUPP));
    this.file.close();
    let again = this.rig.first().open_cdev(&this.rig.caller).expect("an open");
    let call = DeviceBindIommufd { argsz: 16, iommufd: this.fd, ..Default::default() };
    this.rig.call(&again, vfio::DEVICE_BIND_IOMMUFD, &call).expect("bound again");
}

#[test]
fn a_bound_device_without_an_iommu_and_its_open_group_exclude_each_other() {
    let this = Unguarded::new();
    let group = &this.rig.machine.groups()[0];
    let open = group.open(&this.rig.caller).expect("a group");
    assert_eq!(errno(this.bind()), Some(Errno::EBUSY));
    // The group's own way through an iommufd binds nothing, as before.
    this.rig.set_container(&open, this.fd).expect("an iommufd");
    let device = this.rig.device_fd(&open, this.rig.first().name()).expect("a device");
    let address = this.rig.caller.arg(&GroupStatus { argsz: 8, flags: 0 });
    open.ioctl(&this.rig.caller, vfio::GROUP_GET_STATUS, address).expect("a status");
    device.close();
    open.close();
    this.bind().expect("bound");
    assert_eq!(errno(group.open(&this.rig.caller)), Some(Errno::EBUSY));
}
