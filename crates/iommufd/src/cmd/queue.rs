//! FAULT_QUEUE_ALLOC and VEVENTQ_ALLOC: queues that come with a file. Linux:
//! `drivers/iommu/iommufd/eventq.c`.

use std::sync::Arc;

use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;

use super::call::Call;
use crate::hwpt::eventq::{DEPTH_MAX, EventQueue};
use crate::hwpt::faultq::FaultQueue;
use crate::hwpt::viommu::Viommu;
use crate::inject::step;
use crate::object::{Head, Held};
use crate::open::files::{EventFile, FaultFile};
use crate::{ClientFile, OnExec};

/// The number of a file that was installed.
fn install(call: &Call<'_>, file: Arc<dyn ClientFile>) -> Result<u32> {
    step("a file").inspect_err(|_| file.close())?;
    let fd = call.client.install(file, OnExec::Close)?;
    Ok(u32::try_from(fd).expect("an installed file has a number"))
}

pub(super) fn fault_alloc(call: &Call<'_>) -> Result<i64> {
    let mut cmd: abi::FaultAlloc = call.decode()?;
    if cmd.flags != 0 {
        return refuse!(EOPNOTSUPP, "unknown flags", u64::from(cmd.flags));
    }
    let reservation = call.context.objects().reserve()?;
    let queue = FaultQueue::new(Head::new(reservation.id()));
    cmd.out_fault_id = reservation.id();
    // Before the file exists: a reply that cannot be written makes none.
    call.prove_reply::<abi::FaultAlloc>()?;
    cmd.out_fault_fd = install(call, FaultFile::new(call.context, &queue))?;
    call.reply(&cmd)?;
    reservation.publish(queue);
    Ok(0)
}

pub(super) fn veventq_alloc(call: &Call<'_>) -> Result<i64> {
    let mut cmd: abi::VeventqAlloc = call.decode()?;
    if cmd.flags != 0 || cmd.__reserved != 0 || cmd.type_ == abi::VEVENTQ_TYPE_DEFAULT {
        return refuse!(
            EOPNOTSUPP,
            "unknown flags, __reserved set, or no type",
            u64::from(cmd.flags)
        );
    }
    if cmd.veventq_depth == 0 || cmd.veventq_depth > DEPTH_MAX {
        return refuse!(
            EINVAL,
            "the queue's depth is 0 or too large",
            u64::from(cmd.veventq_depth)
        );
    }
    let viommu: Held<Viommu> = call.context.objects().get(cmd.viommu_id)?;
    let reservation = call.context.objects().reserve()?;
    let head = Head::new(reservation.id());
    let queue = EventQueue::new(head, viommu.clone(), cmd.type_, cmd.veventq_depth);
    // Whether there is one of its type already is known before there is a file. If nothing comes of
    // it, it goes by itself.
    viommu.add_queue(&queue)?;
    cmd.out_veventq_id = reservation.id();
    call.prove_reply::<abi::VeventqAlloc>()?;
    cmd.out_veventq_fd = install(call, EventFile::new(call.context, &queue))?;
    call.reply(&cmd)?;
    reservation.publish(queue);
    Ok(0)
}
