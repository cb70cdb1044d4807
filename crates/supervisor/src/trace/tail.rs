//! What follows the fixed fields of an argument, in it or behind a pointer.

use ioasis_uapi::iommufd as iommu;
use ioasis_uapi::vfio as uapi;
use std::mem::offset_of;

use super::layout::{Argument, Field, choice, flags, number, show, word, words};
use super::row::Tail;
use super::value::Value;
use super::{Memory, exactly, iommufd, vfio};

/// Most elements of an array that are shown.
const SHOWN: u32 = 16;

type Shown = Vec<(&'static str, Value)>;

impl Tail {
    /// Adds what follows the fixed fields to `shown`.
    pub(super) fn show(self, argument: Argument<'_>, memory: Memory<'_>, shown: &mut Shown) {
        match self {
            Self::None => {}
            Self::AllowIovas => allow_iovas(argument, memory, shown),
            Self::IovaRanges => iova_ranges(argument, memory, shown),
            Self::HwptData => hwpt_data(argument, memory, shown),
            Self::HwInfo => hw_info(argument, memory, shown),
            Self::IommuCapabilities => {
                capabilities(
                    argument,
                    offset_of!(uapi::IommuType1Info, cap_offset),
                    iommu_capability,
                    shown,
                );
            }
            Self::DeviceCapabilities => {
                capabilities(
                    argument,
                    offset_of!(uapi::DeviceInfo, cap_offset),
                    device_capability,
                    shown,
                );
            }
            Self::RegionCapabilities => {
                capabilities(
                    argument,
                    offset_of!(uapi::RegionInfo, cap_offset),
                    region_capability,
                    shown,
                );
            }
            Self::UnmapBitmap => unmap_bitmap(argument, shown),
            Self::DirtyBitmap => dirty_bitmap(argument, shown),
            Self::IrqData => irq_data(argument, shown),
            Self::Dependents => dependents(argument, shown),
            Self::GroupFds => group_fds(argument, shown),
            Self::Feature => feature(argument, shown),
            Self::Token => token(argument, memory, shown),
        }
    }
}

/// The part of an argument from `at`.
fn from(argument: Argument<'_>, at: usize) -> Argument<'_> {
    Argument {
        before: argument.before.get(at..).unwrap_or_default(),
        after: argument.after.get(at..).unwrap_or_default(),
        good: argument.good,
    }
}

/// A closed range.
fn range(bytes: &[u8]) -> Value {
    let long = |at| number(bytes, at, 8).unwrap_or_default();
    Value::Plain(format!("[{:#x}, {:#x}]", long(0), long(8)))
}

/// The first of `count` elements of `size` bytes behind `address`.
fn array(
    address: u64,
    count: u32,
    size: usize,
    memory: Memory<'_>,
    element: fn(&[u8]) -> Value,
) -> Value {
    let length = usize::try_from(count.min(SHOWN)).map_or(0, |count| count * size);
    let bytes = exactly(address, length, memory);
    if bytes.is_empty() && count != 0 {
        return Value::Hex(address);
    }
    Value::List(bytes.chunks_exact(size).map(element).collect(), count > SHOWN)
}

/// The first of `count` elements of `size` bytes at the start of `bytes`.
fn elements(bytes: &[u8], count: u32, size: usize, element: fn(&[u8]) -> Value) -> Value {
    let shown = usize::try_from(count.min(SHOWN)).unwrap_or_default();
    Value::List(bytes.chunks_exact(size).take(shown).map(element).collect(), count > SHOWN)
}

fn fd(bytes: &[u8]) -> Value {
    Value::Int(word(bytes, 0).map_or(-1, |fd| i64::from(fd.cast_signed())))
}

fn allow_iovas(argument: Argument<'_>, memory: Memory<'_>, shown: &mut Shown) {
    let count = word(argument.before, offset_of!(iommu::IoasAllowIovas, num_iovas));
    let address = number(argument.before, offset_of!(iommu::IoasAllowIovas, allowed_iovas), 8);
    if let (Some(count), Some(address)) = (count, address) {
        shown.push(("allowed_iovas", array(address, count, 16, memory, range)));
    }
}

fn iova_ranges(argument: Argument<'_>, memory: Memory<'_>, shown: &mut Shown) {
    let count = word(argument.after, offset_of!(iommu::IoasIovaRanges, num_iovas));
    let address = number(argument.before, offset_of!(iommu::IoasIovaRanges, allowed_iovas), 8);
    let (Some(count), Some(address)) = (count, address) else { return };
    let value =
        if argument.good { array(address, count, 16, memory, range) } else { Value::Hex(address) };
    shown.push(("allowed_iovas", value));
}

fn hwpt_data(argument: Argument<'_>, memory: Memory<'_>, shown: &mut Shown) {
    let (Some(data_type), Some(length), Some(address)) = (
        word(argument.before, offset_of!(iommu::HwptAlloc, data_type)),
        word(argument.before, offset_of!(iommu::HwptAlloc, data_len)),
        number(argument.before, offset_of!(iommu::HwptAlloc, data_uptr), 8),
    ) else {
        return;
    };
    if length == 0 && address == 0 {
        return;
    }
    let bytes = exactly(address, usize::try_from(length.min(64)).unwrap_or_default(), memory);
    shown.push(("data_uptr", behind(address, iommufd::hwpt_data(data_type), &bytes)));
}

fn hw_info(argument: Argument<'_>, memory: Memory<'_>, shown: &mut Shown) {
    let (Some(length), Some(address)) = (
        word(argument.before, offset_of!(iommu::HwInfo, data_len)),
        number(argument.before, offset_of!(iommu::HwInfo, data_uptr), 8),
    ) else {
        return;
    };
    if length == 0 && address == 0 {
        return;
    }
    let data_type =
        word(argument.after, offset_of!(iommu::HwInfo, data_type)).filter(|_| argument.good);
    let bytes = exactly(address, usize::try_from(length.min(64)).unwrap_or_default(), memory);
    shown.push(("data_uptr", behind(address, data_type.and_then(iommufd::hw_info), &bytes)));
}

/// The struct `bytes` hold, which stood behind `address`.
fn behind(address: u64, fields: Option<&'static [Field]>, bytes: &[u8]) -> Value {
    match fields {
        Some(fields) if !bytes.is_empty() => {
            Value::Struct(show(fields, Argument { before: bytes, after: bytes, good: true }))
        }
        _ => Value::Hex(address),
    }
}

/// Follows a chain of `struct vfio_info_cap_header` from the offset at `at`.
fn capabilities(
    argument: Argument<'_>,
    at: usize,
    one: fn(u16, &[u8]) -> Value,
    shown: &mut Shown,
) {
    let Some(mut offset) = word(argument.after, at).filter(|&offset| argument.good && offset != 0)
    else {
        return;
    };
    let mut chain = Vec::new();
    while offset != 0 && chain.len() < 16 {
        let Some(bytes) =
            usize::try_from(offset).ok().and_then(|offset| argument.after.get(offset..))
        else {
            break;
        };
        let (Some(id), Some(next)) = (number(bytes, 0, 2), word(bytes, 4)) else { break };
        chain.push(one(u16::try_from(id).unwrap_or_default(), bytes));
        offset = next;
    }
    shown.push(("caps", Value::List(chain, offset != 0)));
}

fn unknown_capability(id: u16) -> Value {
    Value::Plain(format!("cap {id}"))
}

fn iommu_capability(id: u16, bytes: &[u8]) -> Value {
    match id {
        uapi::IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => {
            let count = word(bytes, offset_of!(uapi::IommuType1InfoCapIovaRange, nr_iovas))
                .unwrap_or_default();
            let ranges =
                bytes.get(size_of::<uapi::IommuType1InfoCapIovaRange>()..).unwrap_or_default();
            Value::Struct(vec![("IOVA_RANGE", elements(ranges, count, 16, range))])
        }
        uapi::IOMMU_TYPE1_INFO_CAP_MIGRATION => Value::Struct(vec![(
            "MIGRATION",
            Value::Struct(vec![
                (
                    "pgsize_bitmap",
                    hex(bytes, offset_of!(uapi::IommuType1InfoCapMigration, pgsize_bitmap), 8),
                ),
                (
                    "max_dirty_bitmap_size",
                    hex(
                        bytes,
                        offset_of!(uapi::IommuType1InfoCapMigration, max_dirty_bitmap_size),
                        8,
                    ),
                ),
            ]),
        )]),
        uapi::IOMMU_TYPE1_INFO_DMA_AVAIL => {
            let avail =
                word(bytes, offset_of!(uapi::IommuType1InfoDmaAvail, avail)).unwrap_or_default();
            Value::Struct(vec![("DMA_AVAIL", Value::Dec(u64::from(avail)))])
        }
        _ => unknown_capability(id),
    }
}

fn device_capability(id: u16, bytes: &[u8]) -> Value {
    match id {
        uapi::DEVICE_INFO_CAP_PCI_ATOMIC_COMP => {
            let at = offset_of!(uapi::DeviceInfoCapPciAtomicComp, flags);
            Value::Struct(vec![("PCI_ATOMIC_COMP", hex(bytes, at, 4))])
        }
        _ => unknown_capability(id),
    }
}

fn region_capability(id: u16, bytes: &[u8]) -> Value {
    match id {
        uapi::REGION_INFO_CAP_SPARSE_MMAP => {
            let count = word(bytes, offset_of!(uapi::RegionInfoCapSparseMmap, nr_areas))
                .unwrap_or_default();
            let areas = bytes.get(size_of::<uapi::RegionInfoCapSparseMmap>()..).unwrap_or_default();
            let area = |bytes: &[u8]| {
                let long = |at| number(bytes, at, 8).unwrap_or_default();
                Value::Plain(format!("{:#x}+{:#x}", long(0), long(8)))
            };
            Value::Struct(vec![("SPARSE_MMAP", elements(areas, count, 16, area))])
        }
        uapi::REGION_INFO_CAP_TYPE => Value::Struct(vec![(
            "TYPE",
            Value::Struct(vec![
                ("type", hex(bytes, offset_of!(uapi::RegionInfoCapType, type_), 4)),
                ("subtype", hex(bytes, offset_of!(uapi::RegionInfoCapType, subtype), 4)),
            ]),
        )]),
        uapi::REGION_INFO_CAP_MSIX_MAPPABLE => Value::Name("MSIX_MAPPABLE"),
        _ => unknown_capability(id),
    }
}

fn hex(bytes: &[u8], at: usize, size: usize) -> Value {
    Value::Hex(number(bytes, at, size).unwrap_or_default())
}

fn unmap_bitmap(argument: Argument<'_>, shown: &mut Shown) {
    let bits =
        word(argument.before, offset_of!(uapi::IommuType1DmaUnmap, flags)).unwrap_or_default();
    if bits & uapi::DMA_UNMAP_FLAG_GET_DIRTY_BITMAP != 0 {
        let bitmap = from(argument, size_of::<uapi::IommuType1DmaUnmap>());
        shown.push(("bitmap", Value::Struct(show(vfio::BITMAP, bitmap))));
    }
}

fn dirty_bitmap(argument: Argument<'_>, shown: &mut Shown) {
    let bits =
        word(argument.before, offset_of!(uapi::IommuType1DirtyBitmap, flags)).unwrap_or_default();
    if bits & uapi::IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP != 0 {
        let range = from(argument, size_of::<uapi::IommuType1DirtyBitmap>());
        shown.extend(show(vfio::BITMAP_RANGE, range));
        let bitmap = from(range, offset_of!(uapi::IommuType1DirtyBitmapGet, bitmap));
        shown.push(("bitmap", Value::Struct(show(vfio::BITMAP, bitmap))));
    }
}

fn irq_data(argument: Argument<'_>, shown: &mut Shown) {
    let bits = word(argument.before, offset_of!(uapi::IrqSet, flags)).unwrap_or_default();
    let count = word(argument.before, offset_of!(uapi::IrqSet, count)).unwrap_or_default();
    let data = argument.before.get(size_of::<uapi::IrqSet>()..).unwrap_or_default();
    if bits & uapi::IRQ_SET_DATA_EVENTFD != 0 {
        shown.push(("data", elements(data, count, 4, fd)));
    } else if bits & uapi::IRQ_SET_DATA_BOOL != 0 {
        shown.push(("data", elements(data, count, 1, |byte| Value::Dec(u64::from(byte[0])))));
    }
}

fn dependents(argument: Argument<'_>, shown: &mut Shown) {
    if !argument.good {
        return;
    }
    let count = word(argument.after, offset_of!(uapi::PciHotResetInfo, count)).unwrap_or_default();
    let devices = argument.after.get(size_of::<uapi::PciHotResetInfo>()..).unwrap_or_default();
    let device = |bytes: &[u8]| {
        let id = word(bytes, 0).unwrap_or_default();
        let segment =
            number(bytes, offset_of!(uapi::PciDependentDevice, segment), 2).unwrap_or_default();
        let bus = bytes[offset_of!(uapi::PciDependentDevice, bus)];
        let devfn = bytes[offset_of!(uapi::PciDependentDevice, devfn)];
        Value::Plain(format!("{segment:04x}:{bus:02x}:{:02x}.{} {id}", devfn >> 3, devfn & 7))
    };
    shown
        .push(("devices", elements(devices, count, size_of::<uapi::PciDependentDevice>(), device)));
}

fn group_fds(argument: Argument<'_>, shown: &mut Shown) {
    let count = word(argument.before, offset_of!(uapi::PciHotReset, count)).unwrap_or_default();
    let data = argument.before.get(size_of::<uapi::PciHotReset>()..).unwrap_or_default();
    shown.push(("group_fds", elements(data, count, 4, fd)));
}

fn feature(argument: Argument<'_>, shown: &mut Shown) {
    let Some(bits) = word(argument.before, offset_of!(uapi::DeviceFeature, flags)) else { return };
    let number = bits & uapi::DEVICE_FEATURE_MASK;
    let Value::Flags(ops, rest) =
        flags(u64::from(bits & !uapi::DEVICE_FEATURE_MASK), vfio::FEATURE_OPS)
    else {
        return;
    };
    let mut text = ops.join("|");
    if rest != 0 {
        text.push_str(&format!("|{rest:#x}"));
    }
    let mut name = String::new();
    choice(u64::from(number), vfio::FEATURES).text(&mut name);
    shown.push(("flags", Value::Plain(format!("{text}|{name}"))));
    let data = from(argument, size_of::<uapi::DeviceFeature>());
    if data.before.is_empty() || bits & uapi::DEVICE_FEATURE_PROBE != 0 {
        return;
    }
    if number == uapi::DEVICE_FEATURE_PCI_VF_TOKEN {
        shown.push(("data", words(&data.before[..data.before.len().min(16)])));
    } else if let Some(fields) = vfio::feature(number) {
        shown.push(("data", Value::Struct(show(fields, data))));
    }
}

fn token(argument: Argument<'_>, memory: Memory<'_>, shown: &mut Shown) {
    let bits =
        word(argument.before, offset_of!(uapi::DeviceBindIommufd, flags)).unwrap_or_default();
    let address = number(argument.before, offset_of!(uapi::DeviceBindIommufd, token_uuid_ptr), 8);
    let Some(address) = address.filter(|_| bits & uapi::DEVICE_BIND_FLAG_TOKEN != 0) else {
        return;
    };
    let uuid = exactly(address, 16, memory);
    if uuid.is_empty() {
        shown.push(("token_uuid_ptr", Value::Hex(address)));
        return;
    }
    let text: String = uuid
        .iter()
        .enumerate()
        .map(|(index, byte)| {
            format!("{}{byte:02x}", if [4, 6, 8, 10].contains(&index) { "-" } else { "" })
        })
        .collect();
    shown.push(("token_uuid_ptr", Value::Plain(format!("[{text}]"))));
}
