//! DESTROY, OPTION, VFIO_IOAS. Linux: `main.c`, `ioas.c`, `vfio_compat.c` of
//! `drivers/iommu/iommufd`.

use std::mem::offset_of;

use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;

use super::call::Call;
use crate::account::Mode;

pub(super) fn destroy(call: &Call<'_>) -> Result<i64> {
    let cmd: abi::Destroy = call.decode()?;
    call.context.destroy(cmd.id)?;
    Ok(0)
}

pub(super) fn option(call: &Call<'_>) -> Result<i64> {
    let cmd: abi::Option = call.decode()?;
    if cmd.__reserved != 0 {
        return refuse!(EOPNOTSUPP, "__reserved is set", u64::from(cmd.__reserved));
    }
    let value = match cmd.option_id {
        abi::OPTION_RLIMIT_MODE => rlimit_mode(call, &cmd)?,
        abi::OPTION_HUGE_PAGES => huge_pages(call, &cmd)?,
        id => return refuse!(EOPNOTSUPP, "unknown option", u64::from(id)),
    };
    call.reply_field(offset_of!(abi::Option, val64), &value.to_ne_bytes())?;
    Ok(0)
}

fn rlimit_mode(call: &Call<'_>, cmd: &abi::Option) -> Result<u64> {
    if cmd.object_id != 0 {
        return refuse!(EOPNOTSUPP, "the option belongs to no object", u64::from(cmd.object_id));
    }
    match cmd.op {
        abi::OPTION_OP_GET => Ok(u64::from(call.context.account_mode() == Mode::Process)),
        abi::OPTION_OP_SET => {
            if !call.client.account().sys_resource {
                return refuse!(EPERM, "changing the accounting mode needs CAP_SYS_RESOURCE");
            }
            let mode = match cmd.val64 {
                0 => Some(Mode::User),
                1 => Some(Mode::Process),
                _ => None,
            };
            call.context.choose_account_mode(mode)?;
            Ok(cmd.val64)
        }
        op => refuse!(EOPNOTSUPP, "unknown operation", u64::from(op)),
    }
}

fn huge_pages(call: &Call<'_>, cmd: &abi::Option) -> Result<u64> {
    let ioas = call.context.ioas(cmd.object_id)?;
    match (cmd.op, cmd.val64) {
        (abi::OPTION_OP_GET, _) => Ok(u64::from(ioas.huge_pages())),
        (abi::OPTION_OP_SET, 0 | 1) => {
            ioas.set_huge_pages(cmd.val64 == 1)?;
            Ok(cmd.val64)
        }
        (abi::OPTION_OP_SET, value) => refuse!(EINVAL, "the option is 0 or 1", value),
        (op, _) => refuse!(EOPNOTSUPP, "unknown operation", u64::from(op)),
    }
}

pub(super) fn vfio_ioas(call: &Call<'_>) -> Result<i64> {
    let mut cmd: abi::VfioIoas = call.decode()?;
    if cmd.__reserved != 0 {
        return refuse!(EOPNOTSUPP, "__reserved is set", u64::from(cmd.__reserved));
    }
    match cmd.op {
        abi::VFIO_IOAS_GET => {
            cmd.ioas_id = call.context.compat_ioas()?.id();
            call.reply(&cmd)?;
        }
        abi::VFIO_IOAS_SET => call.context.set_compat_ioas(cmd.ioas_id)?,
        abi::VFIO_IOAS_CLEAR => call.context.clear_compat_ioas(),
        op => return refuse!(EOPNOTSUPP, "unknown operation", u64::from(op)),
    }
    Ok(0)
}
