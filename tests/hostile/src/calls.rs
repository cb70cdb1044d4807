//! What the client does, one decision after another.

use std::sync::Arc;

use ioasis_iommufd::type1::Container;
use ioasis_iommufd::{Client as _, Context, IommuKind};
use ioasis_uapi::{Result, iommufd, vfio};
use ioasis_vfio::{REGION_SHIFT, Reply};

use crate::Machine;
use crate::client::{BASE, File, Hostile, LENGTH};
use crate::input::Input;
use crate::setup;

/// Where its mappings mostly go.
pub(crate) const IOVA: u64 = 0x1000_0000;

/// Where arguments are put; the last ones may hang over the end of the memory.
const ARGUMENTS: [u64; 5] = [
    BASE + 0x100,
    BASE + 0x3ff0,
    BASE + 0x8000,
    BASE + LENGTH as u64 - 64,
    BASE + LENGTH as u64 - 12,
];

/// Argument addresses with nothing behind them.
const NOWHERE: [u64; 4] = [0, BASE - 1, u64::MAX, 1 << 47];

/// Commands and the bytes of their arguments, in the order of the header.
const IOMMUFD: [(u32, usize); 21] = [
    (iommufd::DESTROY, 8),
    (iommufd::IOAS_ALLOC, 12),
    (iommufd::IOAS_ALLOW_IOVAS, 24),
    (iommufd::IOAS_COPY, 40),
    (iommufd::IOAS_IOVA_RANGES, 32),
    (iommufd::IOAS_MAP, 40),
    (iommufd::IOAS_UNMAP, 24),
    (iommufd::OPTION, 24),
    (iommufd::VFIO_IOAS, 12),
    (iommufd::HWPT_ALLOC, 48),
    (iommufd::GET_HW_INFO, 40),
    (iommufd::HWPT_SET_DIRTY_TRACKING, 16),
    (iommufd::HWPT_GET_DIRTY_BITMAP, 48),
    (iommufd::HWPT_INVALIDATE, 32),
    (iommufd::FAULT_QUEUE_ALLOC, 16),
    (iommufd::IOAS_MAP_FILE, 40),
    (iommufd::VIOMMU_ALLOC, 40),
    (iommufd::VDEVICE_ALLOC, 24),
    (iommufd::IOAS_CHANGE_PROCESS, 8),
    (iommufd::VEVENTQ_ALLOC, 32),
    (iommufd::HW_QUEUE_ALLOC, 40),
];

const CONTAINER: [(u32, usize); 7] = [
    (vfio::GET_API_VERSION, 0),
    (vfio::CHECK_EXTENSION, 0),
    (vfio::SET_IOMMU, 0),
    (vfio::IOMMU_GET_INFO, 24),
    (vfio::IOMMU_MAP_DMA, 32),
    (vfio::IOMMU_UNMAP_DMA, 24),
    (vfio::IOMMU_DIRTY_PAGES, 32),
];

/// The container's on a machine of POWER's.
const SPAPR: [(u32, usize); 13] = [
    (vfio::CHECK_EXTENSION, 0),
    (vfio::SET_IOMMU, 0),
    (vfio::IOMMU_SPAPR_TCE_GET_INFO, 32),
    (vfio::IOMMU_MAP_DMA, 32),
    (vfio::IOMMU_MAP_DMA, 32),
    (vfio::IOMMU_UNMAP_DMA, 24),
    (vfio::IOMMU_ENABLE, 0),
    (vfio::IOMMU_DISABLE, 0),
    (vfio::IOMMU_SPAPR_REGISTER_MEMORY, 24),
    (vfio::IOMMU_SPAPR_UNREGISTER_MEMORY, 24),
    (vfio::IOMMU_SPAPR_TCE_CREATE, 40),
    (vfio::IOMMU_SPAPR_TCE_REMOVE, 16),
    (vfio::EEH_PE_OP, 40),
];

const GROUP: [(u32, usize); 4] = [
    (vfio::GROUP_GET_STATUS, 8),
    (vfio::GROUP_SET_CONTAINER, 4),
    (vfio::GROUP_UNSET_CONTAINER, 0),
    (vfio::GROUP_GET_DEVICE_FD, 16),
];

const DEVICE: [(u32, usize); 12] = [
    (vfio::DEVICE_GET_INFO, 24),
    (vfio::DEVICE_GET_REGION_INFO, 32),
    (vfio::DEVICE_GET_IRQ_INFO, 16),
    (vfio::DEVICE_SET_IRQS, 28),
    (vfio::DEVICE_RESET, 0),
    (vfio::DEVICE_GET_PCI_HOT_RESET_INFO, 28),
    (vfio::DEVICE_PCI_HOT_RESET, 16),
    (vfio::DEVICE_IOEVENTFD, 32),
    (vfio::DEVICE_FEATURE, 24),
    (vfio::DEVICE_BIND_IOMMUFD, 24),
    (vfio::DEVICE_ATTACH_IOMMUFD_PT, 16),
    (vfio::DEVICE_DETACH_IOMMUFD_PT, 12),
];

/// Does one thing.
pub(crate) fn step(machine: &Machine, client: &Hostile, input: &mut Input<'_>) {
    match input.below(16) {
        0 => match input.below(4) {
            0 => setup::container(machine, client, input),
            1 => setup::cdev(machine, client, input),
            _ => open(machine, client, input),
        },
        1 if input.below(4) == 0 => close(client, input),
        2 => region(client, input),
        3 => bar_page(client, input),
        4 => queue(client, input),
        5 => scribble(client, input),
        _ => ioctl(machine, client, input),
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
    if let Some(file) = file {
        keep(client, &file);
    }
}

/// Gives the client a descriptor of `file`; one that has no room for it closes it.
pub(crate) fn keep(client: &Hostile, file: &File) -> Option<i32> {
    let fd = client.add(file.clone());
    if fd.is_none() {
        release(client, file);
    }
    fd
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

fn ioctl(machine: &Machine, client: &Hostile, input: &mut Input<'_>) {
    let Some(file) = any_file(client, input) else { return };
    let known: &[(u32, usize)] = match &file {
        File::Iommufd(_) if input.below(4) == 0 => &CONTAINER,
        File::Iommufd(_) => &IOMMUFD,
        File::Container(_) if machine.kind == IommuKind::Spapr => &SPAPR,
        File::Container(_) => &CONTAINER,
        File::Group(_) => &GROUP,
        File::Device(_) => &DEVICE,
        File::Installed(_) | File::Event => return,
    };
    let (command, length) = match input.below(32) {
        0 => (0x3b00 | u32::from(input.byte()), input.below(96)),
        1 => (u32::try_from(input.word() >> 32).expect("half of a word"), input.below(96)),
        _ => *input.pick(known),
    };
    let address = argument(client, command, length, input);
    let answer = call(client, &file, command, address);
    if let Ok(Reply::Open(file)) = answer {
        keep(client, &File::Device(file));
    }
}

pub(crate) fn call(client: &Hostile, file: &File, command: u32, address: u64) -> Result<Reply> {
    match file {
        File::Iommufd(context) => context.ioctl(client, command, address).map(Reply::Value),
        File::Container(container) => container.ioctl(client, command, address).map(Reply::Value),
        File::Group(file) => file.ioctl(client, command, address),
        File::Device(file) => file.ioctl(client, command, address),
        File::Installed(_) | File::Event => Ok(Reply::Value(0)),
    }
}

/// Puts an argument of mostly `length` bytes somewhere and returns its address, or an address with
/// nothing behind it.
fn argument(client: &Hostile, command: u32, length: usize, input: &mut Input<'_>) -> u64 {
    if command == vfio::GROUP_GET_DEVICE_FD && input.below(4) != 0 {
        let name = *input.pick(&[
            &b"0000:01:00.0\0"[..],
            b"0000:02:00.0\0",
            b"0000:03:00.0 x\0",
            b"0000:04:00.0\0",
        ]);
        let _ = client.write(ARGUMENTS[0], name);
        return ARGUMENTS[0];
    }
    if length == 0 {
        return input.value();
    }
    // Both kinds of argument begin with their size.
    let size = match input.below(16) {
        0 => length + 8,
        1 => length.saturating_sub(1),
        2 => input.below(128),
        _ => length,
    };
    let mut bytes = vec![0; size.max(4)];
    fill(&mut bytes, input);
    if length > 4 && input.below(16) != 0 {
        bytes[..4].copy_from_slice(&u32::try_from(size).expect("small").to_le_bytes());
    }
    match input.below(32) {
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

/// Fields of four and eight bytes, many of them zero.
fn fill(bytes: &mut [u8], input: &mut Input<'_>) {
    let mut rest = bytes;
    while !rest.is_empty() {
        let choice = input.byte();
        let length = if choice & 1 == 0 { 4 } else { 8 }.min(rest.len());
        let (field, behind) = rest.split_at_mut(length);
        if choice & 6 != 0 {
            field.copy_from_slice(&input.value().to_le_bytes()[..length]);
        }
        rest = behind;
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
