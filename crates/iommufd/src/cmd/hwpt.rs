//! HWPT_ALLOC, HWPT_INVALIDATE and GET_HW_INFO. Linux: `hw_pagetable.c`, `device.c` of
//! `drivers/iommu/iommufd`.

use std::sync::Arc;

use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;

use super::call::Call;
use crate::client::PAGE_SIZE;
use crate::device::Device;
use crate::hw::ops::{Invalidated, UserArray, UserData};
use crate::hwpt::Hwpt;
use crate::hwpt::faultq::FaultQueue;
use crate::hwpt::viommu::Viommu;
use crate::ioas::Ioas;
use crate::object::{Head, Held, Object, Reservation};
use crate::open::Context;

pub(super) fn alloc(call: &Call<'_>) -> Result<i64> {
    let mut cmd: abi::HwptAlloc = call.decode()?;
    if cmd.__reserved != 0 {
        return refuse!(EOPNOTSUPP, "__reserved is set", u64::from(cmd.__reserved));
    }
    if (cmd.data_type == abi::HWPT_DATA_NONE) != (cmd.data_len == 0) {
        return refuse!(EINVAL, "data_len does not go with data_type", u64::from(cmd.data_len));
    }
    let device: Held<Device> = call.context.objects().get(cmd.dev_id)?;
    let device = device.endpoint();
    let parent = call.context.objects().any(cmd.pt_id).ok();
    let data = UserData {
        client: call.client,
        kind: cmd.data_type,
        address: cmd.data_uptr,
        length: usize::try_from(cmd.data_len).expect("32 bits fit usize"),
    };
    let sent = (cmd.data_len > 0).then_some(&data);
    let head = |reservation: &Reservation| Head::new(reservation.id());
    let reserve = || call.context.objects().reserve();
    let none = || refuse!(EINVAL, "pt_id names nothing a HWPT can follow", u64::from(cmd.pt_id));
    let Some(parent) = parent else { return none() };
    if let Some(ioas) = parent.as_a::<Ioas>() {
        let (reservation, hwpt) = call.context.make_hwpt(&ioas, device, cmd.flags, sent)?;
        let finished = finish(call, &mut cmd, &hwpt);
        if finished.is_err() {
            Context::abort_hwpt(&hwpt);
        }
        finished.map(|()| reservation.publish(hwpt))?;
    } else if let Some(parent) = parent.as_a::<Hwpt>().filter(|hwpt| hwpt.nested.is_none()) {
        let reservation = reserve()?;
        let hwpt = Hwpt::nested(head(&reservation), &parent, device, cmd.flags, &data)?;
        finish(call, &mut cmd, &hwpt)?;
        reservation.publish(hwpt);
    } else if let Some(viommu) = parent.as_a::<Viommu>() {
        let reservation = reserve()?;
        let hwpt = Hwpt::nested_in_viommu(head(&reservation), &viommu, device, cmd.flags, &data)?;
        finish(call, &mut cmd, &hwpt)?;
        reservation.publish(hwpt);
    } else {
        return none();
    }
    Ok(0)
}

/// Gives a HWPT its fault queue and writes the reply.
fn finish(call: &Call<'_>, cmd: &mut abi::HwptAlloc, hwpt: &Arc<Hwpt>) -> Result<()> {
    if cmd.flags & abi::HWPT_FAULT_ID_VALID != 0 {
        let queue: Held<FaultQueue> = call.context.objects().get(cmd.fault_id)?;
        hwpt.faults.set(queue).expect("the HWPT is not visible yet");
    }
    cmd.out_hwpt_id = hwpt.head().id();
    call.reply(cmd)
}

/// The largest number of invalidations in one call, `IOMMU_HWPT_INVALIDATE_ENTRY_NUM_MAX`.
const INVALIDATE_MAX: u32 = 1 << 19;

pub(super) fn invalidate(call: &Call<'_>) -> Result<i64> {
    let mut cmd: abi::HwptInvalidate = call.decode()?;
    let Invalidated { entries, result } =
        invalidate_all(call, &cmd).unwrap_or_else(Invalidated::refused);
    cmd.entry_num = entries;
    // Written whatever happened, and a failure to do so hides what happened.
    call.reply(&cmd)?;
    result.map(|()| 0)
}

fn invalidate_all(call: &Call<'_>, cmd: &abi::HwptInvalidate) -> Result<Invalidated> {
    if cmd.__reserved != 0 {
        return refuse!(EOPNOTSUPP, "__reserved is set", u64::from(cmd.__reserved));
    }
    let page = u32::try_from(PAGE_SIZE).expect("a page is small");
    let shape = cmd.data_uptr != 0
        && (1..=page).contains(&cmd.entry_len)
        && cmd.entry_num <= INVALIDATE_MAX;
    if cmd.entry_num != 0 && !shape {
        return refuse!(
            EINVAL,
            "the array of invalidations has no address, or odd sizes",
            u64::from(cmd.entry_len)
        );
    }
    let requests = UserArray {
        client: call.client,
        kind: cmd.data_type,
        address: cmd.data_uptr,
        entry_length: usize::try_from(cmd.entry_len).expect("32 bits fit usize"),
        entries: cmd.entry_num,
    };
    let target = call.context.objects().any(cmd.hwpt_id)?;
    if let Some(hwpt) = target.as_a::<Hwpt>()
        && let Some(nested) = &hwpt.nested
    {
        return Ok(nested.table.carry_out(&requests));
    }
    match target.as_a::<Viommu>() {
        Some(viommu) => Ok(viommu.carry_out(&requests)),
        None => refuse!(EINVAL, "the object takes no invalidations", u64::from(cmd.hwpt_id)),
    }
}

pub(super) fn get_hw_info(call: &Call<'_>) -> Result<i64> {
    let mut cmd: abi::HwInfo = call.decode()?;
    if cmd.flags & !abi::HW_INFO_FLAG_INPUT_TYPE != 0 || cmd.__reserved != [0; 3] {
        return refuse!(EOPNOTSUPP, "unknown flags, or __reserved is set", u64::from(cmd.flags));
    }
    let chosen = cmd.flags & abi::HW_INFO_FLAG_INPUT_TYPE != 0;
    let wanted = if chosen { cmd.data_type } else { abi::HW_INFO_TYPE_DEFAULT };
    let device: Held<Device> = call.context.objects().get(cmd.dev_id)?;
    let endpoint = device.endpoint();
    let (kind, data) = endpoint.hw_info(wanted)?;
    let room = usize::try_from(cmd.data_len).expect("32 bits fit usize");
    let copied = data.len().min(room);
    if copied > 0 {
        call.client.write(cmd.data_uptr, &data[..copied])?;
    }
    zero(call, cmd.data_uptr.wrapping_add(copied as u64), room - copied)?;
    cmd.data_len = u32::try_from(data.len()).expect("a hardware description is short");
    cmd.data_type = kind;
    cmd.out_capabilities = 0;
    if endpoint.tracks_dirty() {
        cmd.out_capabilities |= abi::HW_CAP_DIRTY_TRACKING;
    }
    let config = endpoint.config();
    let pasid_bits = config.pasid_bits.min(endpoint.iommu().pasid_bits);
    cmd.out_max_pasid_log2 = u8::try_from(pasid_bits).expect("a PASID has at most 20 bits");
    if pasid_bits > 0 {
        let exec = if config.pasid_exec { abi::HW_CAP_PCI_PASID_EXEC } else { 0 };
        let privileged = if config.pasid_privileged { abi::HW_CAP_PCI_PASID_PRIV } else { 0 };
        cmd.out_capabilities |= exec | privileged;
    }
    if !(config.ats && endpoint.iommu().ats) {
        cmd.out_capabilities |= abi::HW_CAP_PCI_ATS_NOT_SUPPORTED;
    }
    call.reply(&cmd)?;
    Ok(0)
}

/// Fills what the client's buffer has beyond the answer.
fn zero(call: &Call<'_>, mut at: u64, mut left: usize) -> Result<()> {
    let zeroes = [0; 4096];
    while left > 0 {
        let part = left.min(zeroes.len());
        call.client.write(at, &zeroes[..part])?;
        at = at.wrapping_add(part as u64);
        left -= part;
    }
    Ok(())
}
