//! The IOAS commands. Linux: `drivers/iommu/iommufd/ioas.c`.

use std::sync::Arc;

use ioasis_iommupt::{Iova, IovaRange, Prot};
use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;
use zerocopy::{FromZeros, IntoBytes};

use super::call::{Call, Extension};
use crate::inject::step;
use crate::ioas::{MapRequest, Place};
use crate::open::CopyRequest;

pub(super) fn alloc(call: &Call<'_>) -> Result<i64> {
    let mut cmd: abi::IoasAlloc = call.decode()?;
    if cmd.flags != 0 {
        return refuse!(EOPNOTSUPP, "unknown IOAS_ALLOC flags", u64::from(cmd.flags));
    }
    let reservation = call.context.objects().reserve()?;
    let ioas = call.context.make_ioas(&reservation)?;
    cmd.out_ioas_id = reservation.id();
    call.reply(&cmd)?;
    reservation.publish(ioas);
    Ok(0)
}

pub(super) fn iova_ranges(call: &Call<'_>) -> Result<i64> {
    let mut cmd: abi::IoasIovaRanges = call.decode()?;
    if cmd.__reserved != 0 {
        return refuse!(EOPNOTSUPP, "__reserved is set", u64::from(cmd.__reserved));
    }
    let (ranges, alignment) = call.context.ioas(cmd.ioas_id)?.iova_ranges();
    let room = usize::try_from(cmd.num_iovas).expect("32 bits fit usize");
    let mut at = cmd.allowed_iovas;
    for range in ranges.iter().take(room) {
        let entry = abi::IovaRange { start: range.start().0, last: range.last().0 };
        call.client.write(at, entry.as_bytes())?;
        at = at.wrapping_add(size_of::<abi::IovaRange>() as u64);
    }
    cmd.num_iovas = u32::try_from(ranges.len()).expect("reserved ranges are few");
    cmd.out_iova_alignment = alignment;
    call.reply(&cmd)?;
    if ranges.len() > room {
        return refuse!(
            EMSGSIZE,
            "the array is shorter than the list of ranges",
            ranges.len() as u64
        );
    }
    Ok(0)
}

/// Allowed ranges one call may list; a list is as long as the client says, and each entry costs
/// memory here.
const ALLOWED_MAX: usize = 1 << 20;

pub(super) fn allow_iovas(call: &Call<'_>) -> Result<i64> {
    let cmd: abi::IoasAllowIovas = call.decode()?;
    if cmd.__reserved != 0 {
        return refuse!(EOPNOTSUPP, "__reserved is set", u64::from(cmd.__reserved));
    }
    let ioas = call.context.ioas(cmd.ioas_id)?;
    let mut ranges = Vec::new();
    let mut at = cmd.allowed_iovas;
    for _ in 0..cmd.num_iovas {
        let mut entry = abi::IovaRange::new_zeroed();
        call.client.read(at, entry.as_mut_bytes())?;
        if entry.start >= entry.last {
            return refuse!(
                EINVAL,
                "an allowed range ends where it starts, or before",
                entry.start
            );
        }
        if ranges.len() == ALLOWED_MAX {
            return refuse!(ENOMEM, "too many allowed ranges", u64::from(cmd.num_iovas));
        }
        ranges.push(IovaRange::closed(Iova(entry.start), Iova(entry.last))?);
        at = at.wrapping_add(size_of::<abi::IovaRange>() as u64);
    }
    ioas.allow(&ranges)?;
    Ok(0)
}

const MAP_FLAGS: u32 = abi::IOAS_MAP_FIXED_IOVA | abi::IOAS_MAP_WRITEABLE | abi::IOAS_MAP_READABLE;

fn place_and_prot(flags: u32, iova: u64) -> Result<(Place, Prot)> {
    let mut prot = Prot::empty();
    prot.set(Prot::READ, flags & abi::IOAS_MAP_READABLE != 0);
    prot.set(Prot::WRITE, flags & abi::IOAS_MAP_WRITEABLE != 0);
    if prot.is_empty() {
        return refuse!(EINVAL, "neither READABLE nor WRITEABLE is set");
    }
    let fixed = flags & abi::IOAS_MAP_FIXED_IOVA != 0;
    Ok((if fixed { Place::Fixed(Iova(iova)) } else { Place::Anywhere }, prot))
}

fn check_flags(flags: u32, reserved: u32) -> Result<()> {
    if flags & !MAP_FLAGS != 0 || reserved != 0 {
        return refuse!(EOPNOTSUPP, "unknown map flags, or __reserved is set", u64::from(flags));
    }
    Ok(())
}

/// IOVAs and lengths of all ones are refused, used or not: Linux compares them with `ULONG_MAX`.
fn check_native(values: &[u64]) -> Result<()> {
    match values.iter().find(|&&value| value == u64::MAX) {
        Some(&value) => {
            refuse!(EOVERFLOW, "an IOVA or length is the largest number there is", value)
        }
        None => Ok(()),
    }
}

pub(super) fn map(call: &Call<'_>) -> Result<i64> {
    let mut cmd: abi::IoasMap = call.decode()?;
    check_flags(cmd.flags, cmd.__reserved)?;
    check_native(&[cmd.iova, cmd.length])?;
    let (place, prot) = place_and_prot(cmd.flags, cmd.iova)?;
    let ioas = call.context.ioas(cmd.ioas_id)?;
    let request = MapRequest {
        space: call.client.memory(),
        address: cmd.user_va,
        length: cmd.length,
        place,
        prot,
        account: call.client.account(),
    };
    cmd.iova = call.context.map_in(ioas.arc(), request)?.0;
    call.reply(&cmd)?;
    Ok(0)
}

pub(super) fn map_file(call: &Call<'_>) -> Result<i64> {
    let mut cmd: abi::IoasMapFile = call.decode()?;
    check_flags(cmd.flags, 0)?;
    check_native(&[cmd.iova, cmd.length])?;
    let (place, prot) = place_and_prot(cmd.flags, cmd.iova)?;
    let ioas = call.context.ioas(cmd.ioas_id)?;
    let Some(span) = cmd.length.checked_sub(1) else {
        return refuse!(EINVAL, "length is zero");
    };
    if cmd.start.checked_add(span).is_none() {
        return refuse!(EOVERFLOW, "the mapped part of the file wraps", cmd.start);
    }
    let request = MapRequest {
        space: call.client.file_memory(cmd.fd)?,
        address: cmd.start,
        length: cmd.length,
        place,
        prot,
        account: call.client.account(),
    };
    cmd.iova = call.context.map_in(ioas.arc(), request)?.0;
    call.reply(&cmd)?;
    Ok(0)
}

pub(super) fn copy(call: &Call<'_>) -> Result<i64> {
    let mut cmd: abi::IoasCopy = call.decode()?;
    if let Some(extension) = call.context.machine().added::<Arc<dyn Extension>>() {
        let (ioas, flags, iova) = (cmd.src_ioas_id, cmd.flags, cmd.src_iova);
        (cmd.flags, cmd.src_iova) = extension.copy_source(call.context, ioas, flags, iova);
    }
    check_flags(cmd.flags, 0)?;
    check_native(&[cmd.length, cmd.src_iova, cmd.dst_iova])?;
    let (place, prot) = place_and_prot(cmd.flags, cmd.dst_iova)?;
    // The source is looked up before its range is judged.
    let source = call.context.ioas(cmd.src_ioas_id)?;
    let range = IovaRange::new(Iova(cmd.src_iova), cmd.length)?;
    drop(source);
    let request = CopyRequest { source: cmd.src_ioas_id, range, place, prot };
    cmd.dst_iova = call.context.copy(cmd.dst_ioas_id, request)?.0;
    call.reply(&cmd)?;
    Ok(0)
}

pub(super) fn unmap(call: &Call<'_>) -> Result<i64> {
    let mut cmd: abi::IoasUnmap = call.decode()?;
    let ioas = call.context.ioas(cmd.ioas_id)?;
    let pid = call.client.pid();
    let unmapped = if cmd.iova == 0 && cmd.length == u64::MAX {
        ioas.unmap_all(pid)
    } else {
        check_native(&[cmd.iova, cmd.length])?;
        let unmapped = ioas.unmap(IovaRange::new(Iova(cmd.iova), cmd.length)?, pid);
        if unmapped.result.is_ok() && unmapped.bytes == 0 {
            return refuse!(ENOENT, "nothing is mapped in the range", cmd.iova);
        }
        unmapped
    };
    unmapped.result?;
    cmd.length = unmapped.bytes;
    call.reply(&cmd)?;
    Ok(0)
}

/// Bytes asked about from which on others do not wait until the end of the run is found: 2^18
/// leaves of a page, 20 ms.
const LONG_RUN: u64 = 1 << 30;

pub(super) fn noiommu_get_pa(call: &Call<'_>) -> Result<i64> {
    let mut cmd: abi::IoasNoiommuGetPa = call.decode()?;
    if !call.client.account().sys_rawio {
        return refuse!(EPERM, "physical addresses are shown to CAP_SYS_RAWIO only");
    }
    if cmd.flags != 0 || cmd.__reserved != 0 {
        return refuse!(EOPNOTSUPP, "unknown flags, or __reserved is set", u64::from(cmd.flags));
    }
    if cmd.length == 0 {
        return refuse!(EINVAL, "length is zero");
    }
    check_native(&[cmd.iova])?;
    let ioas = call.context.ioas(cmd.ioas_id)?;
    if cmd.length > LONG_RUN {
        call.client.takes_long()?;
    }
    let run = ioas.noiommu_phys(Iova(cmd.iova), cmd.length)?;
    (cmd.out_phys, cmd.length) = (run.pa.0, run.length);
    call.reply(&cmd)?;
    Ok(0)
}

pub(super) fn change_process(call: &Call<'_>) -> Result<i64> {
    let cmd: abi::IoasChangeProcess = call.decode()?;
    if cmd.__reserved != 0 {
        return refuse!(EOPNOTSUPP, "__reserved is set", u64::from(cmd.__reserved));
    }
    step("the list of IOASes")?;
    call.context.change_process(call.client.account())?;
    Ok(0)
}
