//! VIOMMU_ALLOC, VDEVICE_ALLOC, HW_QUEUE_ALLOC. Linux: `drivers/iommu/iommufd/viommu.c`.

use std::sync::Arc;

use ioasis_iommupt::Iova;
use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;

use super::call::Call;
use crate::device::Device;
use crate::device::hw_queue::HwQueue;
use crate::device::vdevice::Vdevice;
use crate::hw::ops::UserData;
use crate::hwpt::Hwpt;
use crate::hwpt::viommu::Viommu;
use crate::inject::step;
use crate::object::{Head, Held};

pub(super) fn alloc(call: &Call<'_>) -> Result<i64> {
    let mut cmd: abi::ViommuAlloc = call.decode()?;
    if cmd.flags != 0 || cmd.type_ == abi::VIOMMU_TYPE_DEFAULT {
        return refuse!(EOPNOTSUPP, "unknown flags, or no type", u64::from(cmd.flags));
    }
    let device: Held<Device> = call.context.objects().get(cmd.dev_id)?;
    let iommu = device.endpoint().iommu();
    if !iommu.ops().has_viommu(iommu, cmd.type_) {
        return refuse!(
            EOPNOTSUPP,
            "the device's IOMMU has no virtual IOMMU of this type",
            u64::from(cmd.type_)
        );
    }
    let hwpt: Held<Hwpt> = call.context.objects().get(cmd.hwpt_id)?;
    if hwpt.nested.is_some() {
        return refuse!(ENOENT, "the HWPT is nested", u64::from(cmd.hwpt_id));
    }
    if !hwpt.domain.wants().nest_parent {
        return refuse!(EINVAL, "the HWPT was not made as a nest parent", u64::from(cmd.hwpt_id));
    }
    let reservation = call.context.objects().reserve()?;
    if !Arc::ptr_eq(hwpt.domain.iommu(), iommu) {
        return refuse!(EINVAL, "the HWPT is for another IOMMU", u64::from(cmd.hwpt_id));
    }
    let data = UserData {
        client: call.client,
        kind: cmd.type_,
        address: cmd.data_uptr,
        length: usize::try_from(cmd.data_len).expect("32 bits fit usize"),
    };
    let sent = (cmd.data_len > 0).then_some(&data);
    let ops = iommu.ops().viommu_init(iommu, cmd.type_, sent)?;
    let viommu = Viommu::new(Head::new(reservation.id()), iommu, hwpt, ops);
    cmd.out_viommu_id = reservation.id();
    call.reply(&cmd)?;
    reservation.publish(viommu);
    Ok(0)
}

pub(super) fn vdevice_alloc(call: &Call<'_>) -> Result<i64> {
    let mut cmd: abi::VdeviceAlloc = call.decode()?;
    let viommu: Held<Viommu> = call.context.objects().get(cmd.viommu_id)?;
    let device: Held<Device> = call.context.objects().get(cmd.dev_id)?;
    if !Arc::ptr_eq(viommu.iommu(), device.endpoint().iommu()) {
        return refuse!(EINVAL, "the device is behind another IOMMU than the virtual one");
    }
    step("a virtual device")?;
    let reservation = call.context.objects().reserve()?;
    let vdevice = Vdevice::new(Head::new(reservation.id()), &viommu, device.arc(), cmd.virt_id)?;
    cmd.out_vdevice_id = reservation.id();
    if let Err(error) = call.reply(&cmd) {
        vdevice.take_id_back();
        return Err(error);
    }
    // Whoever unbinds the device meanwhile has looked for the object in vain, or waits for this
    // lock.
    let slot = device.vdevice.lock();
    if slot.unbinding {
        drop(slot);
        vdevice.take_id_back();
        return refuse!(ENOENT, "the device is being unbound");
    }
    reservation.publish(vdevice);
    drop(slot);
    Ok(0)
}

pub(super) fn hw_queue_alloc(call: &Call<'_>) -> Result<i64> {
    let mut cmd: abi::HwQueueAlloc = call.decode()?;
    if cmd.flags != 0 || cmd.type_ == abi::HW_QUEUE_TYPE_DEFAULT {
        return refuse!(EOPNOTSUPP, "unknown flags, or no type", u64::from(cmd.flags));
    }
    let Some(span) = cmd.length.checked_sub(1) else {
        return refuse!(EINVAL, "length is zero");
    };
    if cmd.nesting_parent_iova.checked_add(span).is_none() {
        return refuse!(EOVERFLOW, "the queue wraps", cmd.nesting_parent_iova);
    }
    let viommu: Held<Viommu> = call.context.objects().get(cmd.viommu_id)?;
    if !viommu.ops().has_queue(cmd.type_) {
        return refuse!(
            EOPNOTSUPP,
            "the virtual IOMMU has no queues of this type",
            u64::from(cmd.type_)
        );
    }
    let reservation = call.context.objects().reserve()?;
    let head = Head::new(reservation.id());
    let base = Iova(cmd.nesting_parent_iova);
    let queue = HwQueue::new(head, &viommu, cmd.index, base, cmd.length)?;
    cmd.out_hw_queue_id = reservation.id();
    if let Err(error) = call.reply(&cmd) {
        queue.stop();
        return Err(error);
    }
    reservation.publish(queue);
    Ok(0)
}
