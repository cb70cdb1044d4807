//! HWPT_ALLOC and GET_HW_INFO. Linux: `hw_pagetable.c`, `device.c` of `drivers/iommu/iommufd`.

use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;

use super::Call;
use crate::context::Context;
use crate::device::Device;
use crate::ioas::Ioas;
use crate::object::{Held, Object};

/// What a HWPT is to follow.
enum Parent {
    Ioas(Held<Ioas>),
    Other,
}

pub(super) fn alloc(call: &Call<'_>) -> Result<i64> {
    let mut cmd: abi::HwptAlloc = call.decode()?;
    if cmd.__reserved != 0 {
        return refuse!(EOPNOTSUPP, "__reserved is set", u64::from(cmd.__reserved));
    }
    if (cmd.data_type == abi::HWPT_DATA_NONE) != (cmd.data_len == 0) {
        return refuse!(EINVAL, "data_len does not go with data_type", u64::from(cmd.data_len));
    }
    let device: Held<Device> = call.context.objects().get(cmd.dev_id)?;
    let parent = call.context.objects().inspect(cmd.pt_id, |object| match object {
        Object::Ioas(ioas) => Parent::Ioas(Held::new(ioas)),
        _ => Parent::Other,
    });
    let Ok(Parent::Ioas(ioas)) = parent else {
        return refuse!(EINVAL, "pt_id names nothing a HWPT can follow", u64::from(cmd.pt_id));
    };
    if cmd.data_type != abi::HWPT_DATA_NONE {
        return refuse!(EOPNOTSUPP, "a HWPT on an IOAS takes no data", u64::from(cmd.data_type));
    }
    let (reservation, hwpt) = call.context.make_hwpt(&ioas, &device, cmd.flags)?;
    cmd.out_hwpt_id = reservation.id();
    if let Err(error) = call.reply(&cmd) {
        Context::abort_hwpt(&hwpt);
        return Err(error);
    }
    reservation.publish(Object::Hwpt(hwpt));
    Ok(0)
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
    if !config.ats {
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
