//! Error handling of POWER: EEH_PE_OP. Linux: `vfio_spapr_ioctl_eeh_pe_op` in
//! `drivers/vfio/vfio_iommu_spapr_tce.c`, `arch/powerpc/kernel/eeh.c`.

use std::mem::offset_of;
use std::sync::Arc;

use ioasis_uapi::Result;
use ioasis_uapi::vfio as abi;

use super::super::argument::{read, read_tail};
use crate::Client;
use crate::hw::group::Group;
use crate::hw::pe::Frozen;

/// `EEH_ERR_FUNC_MAX`: the last of the accesses that an error can be injected into.
const FUNCTION_MAX: u32 = 19;
/// `EEH_ERR_TYPE_64`: errors of 32-bit and of 64-bit addresses.
const TYPE_MAX: u32 = 1;

/// A claim on a group of the container's, given back when it is dropped.
#[derive(Debug)]
pub(in crate::container) struct GroupClaim(Arc<Group>);

impl GroupClaim {
    /// Claims `group` once more for the container `owner` that it is in.
    pub(super) fn new(group: &Arc<Group>, owner: u64) -> Result<Self> {
        group.claim(owner)?;
        Ok(Self(Arc::clone(group)))
    }
}

impl Drop for GroupClaim {
    fn drop(&mut self) {
        self.0.disown();
    }
}

/// Whether errors freeze the group.
///
/// # Errors
///
/// `ENODEV` if they do not.
pub(super) fn check(group: &Group) -> Result<()> {
    if !group.has_eeh() {
        return refuse!(
            ENODEV,
            "the group is no endpoint of error handling",
            group.number().into()
        );
    }
    Ok(())
}

/// What EEH_PE_OP asks for.
#[derive(Debug)]
pub(in crate::container) struct Operation {
    number: u32,
}

impl Operation {
    /// Reads the argument, once for all groups.
    // DIFFERS: Linux reads it anew for each group, and acts on the first ones before it finds out
    // that it cannot.
    ///
    /// # Errors
    ///
    /// `EFAULT`; `EINVAL` argsz, flags; as [`read_error`]; `EINVAL` for no operation.
    pub(in crate::container) fn read(client: &dyn Client, arg: u64) -> Result<Self> {
        let first = offset_of!(abi::EehPeOp, __padding);
        let op: abi::EehPeOp = read(client, arg, first)?;
        if op.flags != 0 {
            return refuse!(EINVAL, "EEH_PE_OP has no flags", op.flags.into());
        }
        match op.op {
            abi::EEH_PE_DISABLE..=abi::EEH_PE_CONFIGURE => {}
            abi::EEH_PE_INJECT_ERR => read_error(client, arg, op.argsz)?,
            _ => return refuse!(EINVAL, "no such operation", op.op.into()),
        }
        Ok(Self { number: op.op })
    }

    /// The operation on each group, until one answers something but 0.
    // DIFFERS: nobody else has a group that left the container meanwhile before this is over
    // (`EPERM`); on Linux it may be reset under its next owner.
    pub(in crate::container) fn carry_out(&self, groups: &[GroupClaim]) -> Result<i64> {
        for GroupClaim(group) in groups {
            let answer = self.on(group)?;
            if answer != 0 {
                return Ok(answer);
            }
        }
        Ok(0)
    }

    fn on(&self, group: &Group) -> Result<i64> {
        check(group)?;
        match self.number {
            // eeh_pe_change_owner: what is frozen is recovered.
            abi::EEH_PE_ENABLE | abi::EEH_PE_RESET_DEACTIVATE => group.thaw(Frozen::all()),
            abi::EEH_PE_UNFREEZE_IO => group.thaw(Frozen::MMIO),
            abi::EEH_PE_UNFREEZE_DMA => group.thaw(Frozen::DMA),
            abi::EEH_PE_GET_STATE => return Ok(state(group.frozen()).into()),
            abi::EEH_PE_RESET_HOT | abi::EEH_PE_RESET_FUNDAMENTAL => {
                // Nothing reaches the devices before the reset is over.
                group.freeze();
                group.hot_reset()?;
            }
            // DIFFERS: the endpoint is frozen at once; on POWER the next access that fits makes the
            // error. Accesses to mapped BARs are seen by nobody here.
            abi::EEH_PE_INJECT_ERR => group.freeze(),
            // DISABLE and CONFIGURE.
            _ => {}
        }
        Ok(0)
    }
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

/// Reads and checks the error that is to be injected: `eeh_pe_inject_err`, `pnv_eeh_err_inject`.
fn read_error(client: &dyn Client, arg: u64, argsz: u32) -> Result<()> {
    if (argsz as usize) < size_of::<abi::EehPeOp>() {
        return refuse!(EINVAL, "argsz is less than the struct with its error", argsz.into());
    }
    let err: abi::EehPeErr = read_tail(client, arg + offset_of!(abi::EehPeOp, err) as u64)?;
    if err.func > FUNCTION_MAX {
        return refuse!(EINVAL, "no such access", err.func.into());
    }
    if err.type_ > TYPE_MAX {
        return refuse!(ERANGE, "no such type of error", err.type_.into());
    }
    Ok(())
}
