//! Error handling of POWER: EEH_PE_OP. Linux: `vfio_spapr_ioctl_eeh_pe_op` in
//! `drivers/vfio/vfio_iommu_spapr_tce.c`, `arch/powerpc/kernel/eeh.c`.

use std::mem::offset_of;
use std::sync::Arc;

use ioasis_uapi::Result;
use ioasis_uapi::vfio as abi;

use super::super::argument::read;
use crate::Client;
use crate::hw::group::Group;
use crate::hw::pe::Frozen;

/// `EEH_ERR_FUNC_MAX`: the last of the accesses that an error can be injected into.
const FUNCTION_MAX: u32 = 19;
/// `EEH_ERR_TYPE_64`: errors of 32-bit and of 64-bit addresses.
const TYPE_MAX: u32 = 1;

/// The operation on each group, until one answers something but 0. The groups stay in the caller's
/// hands: one that leaves the container meanwhile is thawed when its device is opened again.
pub(in crate::container) fn eeh_pe_op(
    groups: &[Arc<Group>],
    client: &dyn Client,
    arg: u64,
) -> Result<i64> {
    for group in groups {
        let answer = pe_op(group, client, arg)?;
        if answer != 0 {
            return Ok(answer);
        }
    }
    Ok(0)
}

fn pe_op(group: &Group, client: &dyn Client, arg: u64) -> Result<i64> {
    if !group.has_eeh() {
        return refuse!(
            ENODEV,
            "the group is no endpoint of error handling",
            group.number().into()
        );
    }
    let first = offset_of!(abi::EehPeOp, __padding);
    let op: abi::EehPeOp = read(client, arg, first)?;
    if op.flags != 0 {
        return refuse!(EINVAL, "EEH_PE_OP has no flags", op.flags.into());
    }
    match op.op {
        abi::EEH_PE_DISABLE | abi::EEH_PE_CONFIGURE => {}
        // eeh_pe_change_owner: what is frozen is recovered.
        abi::EEH_PE_ENABLE => group.thaw(Frozen::all()),
        abi::EEH_PE_UNFREEZE_IO => group.thaw(Frozen::MMIO),
        abi::EEH_PE_UNFREEZE_DMA => group.thaw(Frozen::DMA),
        abi::EEH_PE_GET_STATE => return Ok(state(group.frozen()).into()),
        abi::EEH_PE_RESET_DEACTIVATE => group.thaw(Frozen::all()),
        abi::EEH_PE_RESET_HOT | abi::EEH_PE_RESET_FUNDAMENTAL => {
            // Nothing reaches the devices before the reset is over.
            group.freeze();
            group.hot_reset()?;
        }
        abi::EEH_PE_INJECT_ERR => inject(group, client, arg, op.argsz)?,
        _ => return refuse!(EINVAL, "no such operation", op.op.into()),
    }
    Ok(0)
}

/// `eeh_pe_get_state`.
fn state(frozen: Frozen) -> u32 {
    match (frozen.contains(Frozen::MMIO), frozen.contains(Frozen::DMA)) {
        (false, false) => abi::EEH_PE_STATE_NORMAL,
        (true, true) => abi::EEH_PE_STATE_STOPPED,
        (false, true) => abi::EEH_PE_STATE_STOPPED_DMA,
        (true, false) => abi::EEH_PE_STATE_UNAVAIL,
    }
}

/// `eeh_pe_inject_err`, `pnv_eeh_err_inject`.
// DIFFERS: the endpoint is frozen at once; on POWER the next access that fits makes the error.
// Accesses to mapped BARs are seen by nobody here.
fn inject(group: &Group, client: &dyn Client, arg: u64, argsz: u32) -> Result<()> {
    let whole = size_of::<abi::EehPeOp>();
    if u64::from(argsz) < whole as u64 {
        return refuse!(EINVAL, "argsz is less than the struct with its error", argsz.into());
    }
    let op: abi::EehPeOp = read(client, arg, whole)?;
    if op.err.func > FUNCTION_MAX {
        return refuse!(EINVAL, "no such access", op.err.func.into());
    }
    if op.err.type_ > TYPE_MAX {
        return refuse!(ERANGE, "no such type of error", op.err.type_.into());
    }
    group.freeze();
    Ok(())
}
