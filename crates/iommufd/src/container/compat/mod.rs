//! The VFIO container ioctls on `/dev/iommu`: the rules of Linux's compatibility layer, gaps
//! included, for its own tests pin them down. Linux: `drivers/iommu/iommufd/vfio_compat.c`.

use std::sync::Arc;

use ioasis_iommupt::{Iova, IovaRange, Prot};
use ioasis_uapi::Result;
use ioasis_uapi::vfio as abi;
use zerocopy::IntoBytes;

use super::argument::{Chain, read};
use crate::Client;
use crate::client::PAGE_SIZE;
use crate::hwpt::Hwpt;
use crate::ioas::{Ioas, MapRequest, Place, Unmapped};
use crate::open::Context;

/// Carries out the container ioctl `cmd`.
pub(crate) fn ioctl(
    context: &Arc<Context>,
    client: &dyn Client,
    cmd: u32,
    arg: u64,
) -> Result<i64> {
    match cmd {
        abi::GET_API_VERSION => Ok(i64::from(abi::API_VERSION)),
        abi::CHECK_EXTENSION => check_extension(context, arg),
        abi::SET_IOMMU => set_iommu(context, client, arg),
        abi::IOMMU_GET_INFO => get_info(context, client, arg),
        abi::IOMMU_MAP_DMA => map_dma(context, client, arg),
        abi::IOMMU_UNMAP_DMA => unmap_dma(context, client, arg),
        _ => refuse!(ENOTTY, "no such ioctl on /dev/iommu", u64::from(cmd)),
    }
}

/// An extension or IOMMU type by its number; none has one that does not fit 32 bits.
fn number(arg: u64) -> u32 {
    u32::try_from(arg).unwrap_or(u32::MAX)
}

fn check_extension(context: &Context, arg: u64) -> Result<i64> {
    match number(arg) {
        abi::TYPE1_IOMMU | abi::TYPE1v2_IOMMU | abi::UNMAP_ALL => {
            Ok(i64::from(!context.is_no_iommu()))
        }
        abi::NOIOMMU_IOMMU => Ok(1),
        abi::DMA_CC_IOMMU => {
            let ioas = context.compat_ioas()?;
            let hwpts = ioas.hwpts.lock();
            let coherent = |hwpt: Arc<Hwpt>| hwpt.domain.wants().enforce_coherency;
            Ok(i64::from(Hwpt::listed(&hwpts).into_iter().all(coherent)))
        }
        _ => Ok(0),
    }
}

fn set_iommu(context: &Context, client: &dyn Client, arg: u64) -> Result<i64> {
    let number = number(arg);
    if number == abi::NOIOMMU_IOMMU && context.is_no_iommu() {
        return if client.account().sys_rawio {
            Ok(0)
        } else {
            refuse!(EPERM, "no-iommu mode needs CAP_SYS_RAWIO")
        };
    }
    let type1 = number == abi::TYPE1_IOMMU;
    if !(type1 || number == abi::TYPE1v2_IOMMU) || context.is_no_iommu() {
        return refuse!(EINVAL, "/dev/iommu has no such IOMMU type", arg);
    }
    let ioas = context.compat_ioas()?;
    if type1 {
        ioas.set_huge_pages(false)?;
    }
    Ok(0)
}

/// What GET_INFO calls page sizes: everything but the bits below a page, which become one page.
fn page_sizes(ioas: &Ioas) -> u64 {
    let (common, alignment) =
        (ioas.domains_summary().map_or(u64::MAX, |(sizes, _)| sizes), ioas.iova_ranges().1);
    let sizes = if common & (PAGE_SIZE - 1) == 0 {
        common
    } else {
        (common & !(PAGE_SIZE - 1)) | PAGE_SIZE
    };
    sizes.max(alignment)
}

fn get_info(context: &Context, client: &dyn Client, arg: u64) -> Result<i64> {
    let min_size = std::mem::offset_of!(abi::IommuType1Info, cap_offset);
    let mut info: abi::IommuType1Info = read(client, arg, min_size)?;
    let ioas = context.compat_ioas()?;
    let argsz = usize::try_from(info.argsz).expect("32 bits fit usize");
    let mut chain = Chain::new(size_of::<abi::IommuType1Info>());
    let header = |id| abi::InfoCapHeader { id, version: 1, next: 0 };
    // iommufd has no limit of its own.
    let avail = abi::IommuType1InfoDmaAvail {
        header: header(abi::IOMMU_TYPE1_INFO_DMA_AVAIL),
        avail: u32::MAX,
    };
    chain.push(&avail, &[]);
    push_ranges(&mut chain, &ioas.iova_ranges().0);
    let total = chain.total();
    let fits = info.argsz >= total;
    info.flags = abi::IOMMU_INFO_PGSIZES | abi::IOMMU_INFO_CAPS;
    info.iova_pgsizes = page_sizes(&ioas);
    info.cap_offset =
        if fits { u32::try_from(size_of_val(&info)).expect("a struct is short") } else { 0 };
    // DIFFERS: a chain that does not fit whole is not written in part; its bytes are out of reach
    // anyway, cap_offset is 0.
    if fits {
        client.write(arg.wrapping_add(size_of_val(&info) as u64), chain.bytes())?;
    }
    info.argsz = total;
    let bytes = info.as_bytes();
    client.write(arg, &bytes[..argsz.min(bytes.len())])?;
    Ok(0)
}

/// The capability that lists the IOVAs that may be mapped.
pub(super) fn push_ranges(chain: &mut Chain, ranges: &[IovaRange]) {
    let capability = abi::IommuType1InfoCapIovaRange {
        header: abi::InfoCapHeader {
            id: abi::IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
            version: 1,
            next: 0,
        },
        nr_iovas: u32::try_from(ranges.len()).expect("reserved ranges are few"),
        reserved: 0,
    };
    let entry = |range: &IovaRange| abi::IovaRange { start: range.start().0, end: range.last().0 };
    let entries: Vec<abi::IovaRange> = ranges.iter().map(entry).collect();
    chain.push(&capability, entries.as_bytes());
}

fn map_dma(context: &Context, client: &dyn Client, arg: u64) -> Result<i64> {
    let map: abi::IommuType1DmaMap = read(client, arg, size_of::<abi::IommuType1DmaMap>())?;
    if map.flags & !(abi::DMA_MAP_FLAG_READ | abi::DMA_MAP_FLAG_WRITE) != 0 {
        return refuse!(EINVAL, "unknown MAP_DMA flags", u64::from(map.flags));
    }
    let mut prot = Prot::empty();
    prot.set(Prot::READ, map.flags & abi::DMA_MAP_FLAG_READ != 0);
    prot.set(Prot::WRITE, map.flags & abi::DMA_MAP_FLAG_WRITE != 0);
    let ioas = context.compat_ioas()?;
    let request = MapRequest {
        space: client.memory(),
        address: map.vaddr,
        length: map.size,
        place: Place::Fixed(Iova(map.iova)),
        prot,
        account: client.account(),
    };
    context.map_in(ioas.arc(), request)?;
    Ok(0)
}

fn unmap_dma(context: &Context, client: &dyn Client, arg: u64) -> Result<i64> {
    let mut unmap: abi::IommuType1DmaUnmap =
        read(client, arg, size_of::<abi::IommuType1DmaUnmap>())?;
    if unmap.flags & !abi::DMA_UNMAP_FLAG_ALL != 0 {
        return refuse!(EINVAL, "unknown UNMAP_DMA flags", u64::from(unmap.flags));
    }
    let ioas = context.compat_ioas()?;
    let pid = client.pid();
    let unmapped = if unmap.flags & abi::DMA_UNMAP_FLAG_ALL != 0 {
        if unmap.iova != 0 || unmap.size != 0 {
            return refuse!(EINVAL, "with ALL, iova and size must be 0", unmap.iova | unmap.size);
        }
        ioas.unmap_all(pid)
    } else {
        if !ioas.huge_pages() {
            // Both cuts are made before the range is judged, as Linux does it.
            ioas.cut(Iova(unmap.iova.wrapping_add(unmap.size).wrapping_sub(1)))?;
            if unmap.iova != 0 {
                ioas.cut(Iova(unmap.iova - 1))?;
            }
        }
        match IovaRange::new(Iova(unmap.iova), unmap.size) {
            Ok(range) => ioas.unmap(range, pid),
            Err(error) => Unmapped { bytes: 0, result: Err(error) },
        }
    };
    unmap.size = unmapped.bytes;
    client.write_back(arg, unmap.as_bytes())?;
    unmapped.result?;
    Ok(0)
}

#[cfg(test)]
mod tests;
