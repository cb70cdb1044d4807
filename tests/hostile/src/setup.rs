//! The way a well-behaved client begins, so that what follows reaches further than the first check.
//!
//! Every step may fail, because of what the client did before; the rest is tried all the same.

use ioasis_iommufd::type1::Container;
use ioasis_iommufd::{Client as _, Context, IommuKind};
use ioasis_uapi::{iommufd, vfio};
use ioasis_vfio::{Reply, region_offset};

use crate::Machine;
use crate::calls::{IOVA, call, keep};
use crate::client::{BASE, File, Hostile};
use crate::input::Input;

/// Where the arguments of these calls are.
const ARGUMENT: u64 = BASE + 0x200;
/// Bytes that are mapped.
const MAPPED: u64 = 0x8_0000;
/// Where a command queue lies in them, and the register that switches it on.
const QUEUE: u32 = 0x1000;
const CONFIG_OF_QUEUE: u64 = 8;
/// The region of configuration space, and its command register with memory decoding and bus
/// mastering on.
const CONFIG: u32 = 7;
const COMMAND: u64 = 4;
const ENABLED: u16 = 6;

/// Calls with an argument of 32-bit words.
fn put(client: &Hostile, file: &File, command: u32, words: &[u32]) -> Option<Reply> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    client.write(ARGUMENT, &bytes).ok()?;
    call(client, file, command, ARGUMENT).ok()
}

/// A word of the argument after the call.
fn answered(client: &Hostile, word: u64) -> u32 {
    let mut bytes = [0; 4];
    let _ = client.read(ARGUMENT + word * 4, &mut bytes);
    u32::from_le_bytes(bytes)
}

fn low(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).expect("masked")
}

/// A container with a group, a mapping and a device.
pub(crate) fn container(machine: &Machine, client: &Hostile, input: &mut Input<'_>) {
    let container = File::Container(Container::new(&machine.iommu));
    let Some(fd) = keep(client, &container) else { return };
    let Ok(group) = input.pick(machine.vfio.groups()).open(client) else { return };
    let devices = group.group().devices();
    let group = File::Group(group);
    if keep(client, &group).is_none() {
        return;
    }
    put(client, &group, vfio::GROUP_SET_CONTAINER, &[fd.unsigned_abs()]);
    let kinds = match machine.kind {
        IommuKind::Spapr => [vfio::SPAPR_TCE_v2_IOMMU, vfio::SPAPR_TCE_IOMMU],
        _ => [vfio::TYPE1v2_IOMMU, vfio::TYPE1_IOMMU],
    };
    let _ = call(client, &container, vfio::SET_IOMMU, u64::from(*input.pick(&kinds)));
    if machine.kind == IommuKind::Spapr {
        // Either is unknown to one of the two versions.
        let _ = call(client, &container, vfio::IOMMU_ENABLE, 0);
        let memory = [24, 0, low(BASE), 0, low(MAPPED), 0];
        put(client, &container, vfio::IOMMU_SPAPR_REGISTER_MEMORY, &memory);
    }
    let map = [32, 3, low(BASE), 0, low(IOVA), 0, low(MAPPED), 0];
    put(client, &container, vfio::IOMMU_MAP_DMA, &map);
    let name = format!("{}\0", input.pick(&devices).name());
    let _ = client.write(ARGUMENT, name.as_bytes());
    if let Ok(Reply::Open(device)) = call(client, &group, vfio::GROUP_GET_DEVICE_FD, ARGUMENT) {
        enable(client, &File::Device(device));
    }
}

/// An iommufd with an IOAS, a mapping and a bound device.
pub(crate) fn cdev(machine: &Machine, client: &Hostile, input: &mut Input<'_>) {
    let context = File::Iommufd(Context::new(&machine.iommu));
    let Some(fd) = keep(client, &context) else { return };
    put(client, &context, iommufd::IOAS_ALLOC, &[12, 0, 0]);
    let ioas = answered(client, 2);
    let map = [40, 7, ioas, 0, low(BASE), 0, low(MAPPED), 0, low(IOVA), 0];
    put(client, &context, iommufd::IOAS_MAP, &map);
    let Ok(device) = input.pick(machine.vfio.devices()).open_cdev(client) else { return };
    let device = File::Device(device);
    put(client, &device, vfio::DEVICE_BIND_IOMMUFD, &[16, 0, fd.unsigned_abs(), 0]);
    let id = answered(client, 3);
    let flags =
        *input.pick(&[0, iommufd::HWPT_ALLOC_NEST_PARENT, iommufd::HWPT_ALLOC_DIRTY_TRACKING]);
    put(client, &context, iommufd::HWPT_ALLOC, &[24, flags, id, ioas, 0, 0]);
    let hwpt = answered(client, 4);
    if flags == iommufd::HWPT_ALLOC_NEST_PARENT {
        command_queue(client, &context, id, hwpt);
    }
    let page_table = *input.pick(&[ioas, hwpt]);
    put(client, &device, vfio::DEVICE_ATTACH_IOMMUFD_PT, &[12, 0, page_table]);
    enable(client, &device);
}

/// A virtual IOMMU with a command queue that is on, where the hardware has them.
fn command_queue(client: &Hostile, context: &File, device: u32, parent: u32) {
    let data = low(ARGUMENT) + 0x100;
    let kind = iommufd::VIOMMU_TYPE_TEGRA241_CMDQV;
    let viommu = [40, 0, kind, device, parent, 0, 16, 0, data, 0];
    if put(client, context, iommufd::VIOMMU_ALLOC, &viommu).is_none() {
        return;
    }
    let (viommu, kind) = (answered(client, 5), iommufd::HW_QUEUE_TYPE_TEGRA241_CMDQV);
    let queue = [40, 0, viommu, kind, 0, 0, low(IOVA) + QUEUE, 0, 0x1000, 0];
    put(client, context, iommufd::HW_QUEUE_ALLOC, &queue);
    if let Some(page) = client.pages.lock().last() {
        let _ = page.store_u32(CONFIG_OF_QUEUE, 1);
    }
}

/// Lets a device decode and master, and keeps it.
fn enable(client: &Hostile, file: &File) {
    if let File::Device(device) = file {
        let at = region_offset(CONFIG) + COMMAND;
        let _ = device.write(at, &ENABLED.to_le_bytes());
    }
    keep(client, file);
}
