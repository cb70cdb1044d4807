//! What the client does, one decision after another.

use std::sync::Arc;

use ioasis_iommufd::type1::Container;
use ioasis_iommufd::{Client as _, Context};
use ioasis_uapi::{Result, iommufd, vfio};
use ioasis_vfio::{REGION_SHIFT, Reply};

use crate::Machine;
use crate::client::{BASE, File, Hostile, LENGTH};
use crate::input::Input;

/// Where its mappings mostly go.
pub(crate) const IOVA: u64 = 0x1000_0000;

/// Where arguments are put; the last ones hang over the end of the memory.
const ARGUMENTS: [u64; 4] =
    [BASE + 0x100, BASE + 0x8000, BASE + LENGTH as u64 - 64, BASE + LENGTH as u64 - 12];

/// Argument addresses with nothing behind them.
const NOWHERE: [u64; 4] = [0, BASE - 1, u64::MAX, 1 << 47];

const IOMMUFD: [u32; 21] = [
    iommufd::DESTROY,
    iommufd::IOAS_ALLOC,
    iommufd::IOAS_ALLOW_IOVAS,
    iommufd::IOAS_COPY,
    iommufd::IOAS_IOVA_RANGES,
    iommufd::IOAS_MAP,
    iommufd::IOAS_UNMAP,
    iommufd::OPTION,
    iommufd::VFIO_IOAS,
    iommufd::HWPT_ALLOC,
    iommufd::GET_HW_INFO,
    iommufd::HWPT_SET_DIRTY_TRACKING,
    iommufd::HWPT_GET_DIRTY_BITMAP,
    iommufd::HWPT_INVALIDATE,
    iommufd::FAULT_QUEUE_ALLOC,
    iommufd::IOAS_MAP_FILE,
    iommufd::VIOMMU_ALLOC,
    iommufd::VDEVICE_ALLOC,
    iommufd::IOAS_CHANGE_PROCESS,
    iommufd::VEVENTQ_ALLOC,
    iommufd::HW_QUEUE_ALLOC,
];

const CONTAINER: [u32; 7] = [
    vfio::GET_API_VERSION,
    vfio::CHECK_EXTENSION,
    vfio::SET_IOMMU,
    vfio::IOMMU_GET_INFO,
    vfio::IOMMU_MAP_DMA,
    vfio::IOMMU_UNMAP_DMA,
    vfio::IOMMU_DIRTY_PAGES,
];

const GROUP: [u32; 4] = [
    vfio::GROUP_GET_STATUS,
    vfio::GROUP_SET_CONTAINER,
    vfio::GROUP_UNSET_CONTAINER,
    vfio::GROUP_GET_DEVICE_FD,
];

const DEVICE: [u32; 12] = [
    vfio::DEVICE_GET_INFO,
    vfio::DEVICE_GET_REGION_INFO,
    vfio::DEVICE_GET_IRQ_INFO,
    vfio::DEVICE_SET_IRQS,
    vfio::DEVICE_RESET,
    vfio::DEVICE_GET_PCI_HOT_RESET_INFO,
    vfio::DEVICE_PCI_HOT_RESET,
    vfio::DEVICE_IOEVENTFD,
    vfio::DEVICE_FEATURE,
    vfio::DEVICE_BIND_IOMMUFD,
    vfio::DEVICE_ATTACH_IOMMUFD_PT,
    vfio::DEVICE_DETACH_IOMMUFD_PT,
];

/// Does one thing.
pub(crate) fn step(machine: &Machine, client: &Hostile, input: &mut Input<'_>) {
    match input.below(16) {
        0 => open(machine, client, input),
        1 => close(client, input),
        2 => region(client, input),
        3 => bar_page(client, input),
        4 => queue(client, input),
        5 => scribble(client, input),
        _ => ioctl(client, input),
    }
}

fn open(machine: &Machine, client: &Hostile, input: &mut Input<'_>) {
    let file = match input.below(5) {
        0 => Some(File::Iommufd(Context::new(&machine.iommu))),
        1 => Some(File::Container(Container::new(&machine.iommu))),
        2 => input.pick(machine.vfio.groups()).open(client).ok().map(File::Group),
        3 => input.pick(machine.vfio.devices()).open_cdev(client).ok().map(File::Device),
        _ => Some(File::Event),
    };
    if let Some(file) = file
        && client.add(file.clone()).is_none()
    {
        shut(&file);
    }
}

/// Closes a descriptor; the last one takes its number.
fn close(client: &Hostile, input: &mut Input<'_>) {
    let closed = {
        let mut files = client.files.lock();
        if files.is_empty() {
            return;
        }
        let index = input.below(files.len());
        files.swap_remove(index)
    };
    release(client, &closed);
}

/// The last descriptor of a file is gone, unless the client has another.
pub(crate) fn release(client: &Hostile, file: &File) {
    let another = client.files.lock().iter().any(|other| match (other, file) {
        (File::Device(other), File::Device(file)) => Arc::ptr_eq(other, file),
        _ => false,
    });
    if !another {
        shut(file);
    }
}

fn shut(file: &File) {
    match file {
        File::Group(file) => file.close(),
        File::Device(file) => file.close(),
        File::Installed(file) => file.close(),
        File::Iommufd(_) | File::Container(_) | File::Event => {}
    }
}

fn any_file(client: &Hostile, input: &mut Input<'_>) -> Option<File> {
    let files = client.files.lock();
    (!files.is_empty()).then(|| input.pick(&files).clone())
}

fn ioctl(client: &Hostile, input: &mut Input<'_>) {
    let Some(file) = any_file(client, input) else { return };
    let known: &[u32] = match &file {
        File::Iommufd(_) if input.below(4) == 0 => &CONTAINER,
        File::Iommufd(_) => &IOMMUFD,
        File::Container(_) => &CONTAINER,
        File::Group(_) => &GROUP,
        File::Device(_) => &DEVICE,
        File::Installed(_) | File::Event => return,
    };
    let command = match input.below(32) {
        0 => 0x3b00 | u32::from(input.byte()),
        1 => u32::try_from(input.word() >> 32).expect("half of a word"),
        _ => *input.pick(known),
    };
    let address = argument(client, command, input);
    let answer = call(client, &file, command, address);
    if let Ok(Reply::Open(file)) = answer
        && client.add(File::Device(Arc::clone(&file))).is_none()
    {
        release(client, &File::Device(file));
    }
}

fn call(client: &Hostile, file: &File, command: u32, address: u64) -> Result<Reply> {
    match file {
        File::Iommufd(context) => context.ioctl(client, command, address).map(Reply::Value),
        File::Container(container) => container.ioctl(client, command, address).map(Reply::Value),
        File::Group(file) => file.ioctl(client, command, address),
        File::Device(file) => file.ioctl(client, command, address),
        File::Installed(_) | File::Event => Ok(Reply::Value(0)),
    }
}

/// Puts an argument somewhere and returns its address, or an address with nothing behind it.
fn argument(client: &Hostile, command: u32, input: &mut Input<'_>) -> u64 {
    if command == vfio::GROUP_GET_DEVICE_FD && input.below(4) != 0 {
        let name = *input.pick(&[&b"0000:01:00.0\0"[..], b"0000:02:00.0\0", b"0000:03:00.0 x\0"]);
        let _ = client.write(ARGUMENTS[0], name);
        return ARGUMENTS[0];
    }
    let mut bytes = [0; 96];
    let words = bytes.len() / 4;
    let mut at = 0;
    while at < words && !input.is_empty() {
        let value = input.value().to_le_bytes();
        let length = if input.below(2) == 0 { 4 } else { 8 }.min(bytes.len() - at * 4);
        bytes[at * 4..][..length].copy_from_slice(&value[..length]);
        at += length / 4;
    }
    // Both kinds of argument begin with their size.
    let size: u32 = *input.pick(&[96, 40, 24, 12, 16, 8, 20, 32, 48, 64, 3, 0, u32::MAX]);
    if input.below(8) != 0 {
        bytes[..4].copy_from_slice(&size.to_le_bytes());
    }
    match input.below(16) {
        0 => *input.pick(&NOWHERE),
        1 => input.value(),
        choice => {
            let address = ARGUMENTS[choice % ARGUMENTS.len()];
            let room = usize::try_from(BASE + LENGTH as u64 - address).expect("inside");
            let _ = client.write(address, &bytes[..room.min(bytes.len())]);
            address
        }
    }
}

/// Reads, writes or asks to map a region.
fn region(client: &Hostile, input: &mut Input<'_>) {
    let Some(File::Device(file)) = any_file(client, input) else { return };
    let index = u64::from(input.byte()) % 12;
    let offset = (index << REGION_SHIFT).wrapping_add(input.value());
    let mut bytes = input.word().to_le_bytes();
    let length = *input.pick(&[1, 2, 4, 8, 3, 0]);
    let _ = match input.below(3) {
        0 => file.read(offset, &mut bytes[..length]).map(drop),
        1 => file.write(offset, &bytes[..length]).map(drop),
        _ => file.mmap(offset, input.value(), u32::from(input.byte())),
    };
}

/// Stores into a page that a device polls.
fn bar_page(client: &Hostile, input: &mut Input<'_>) {
    let pages = client.pages.lock();
    if pages.is_empty() {
        return;
    }
    let page = input.pick(&pages);
    let offset = u64::from(input.byte()) * 4 + *input.pick(&[0, 0x1000]);
    let value = input.value().to_le_bytes();
    let _ = page.write(offset, &value[..4]);
}

/// Reads or writes a fault or event queue.
fn queue(client: &Hostile, input: &mut Input<'_>) {
    let Some(File::Installed(file)) = any_file(client, input) else { return };
    let Some(queue) = file.queue() else { return };
    let (address, length) = (input.value(), input.value() % 0x1000);
    let _ = if input.below(2) == 0 {
        queue.read(client, address, length)
    } else {
        queue.write(client, address, length)
    };
}

/// Writes words into its own memory, where queues and page lists of devices may be.
fn scribble(client: &Hostile, input: &mut Input<'_>) {
    let address = BASE + (u64::from(input.byte()) << 12) + u64::from(input.byte()) * 8;
    for index in 0..input.below(8) as u64 {
        let value = input.value().to_le_bytes();
        let _ = client.write(address + index * 8, &value);
    }
}
