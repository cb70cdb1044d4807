//! What a device says of itself, and the argsz rule.

use ioasis_uapi::Errno;
use ioasis_uapi::vfio::{
    self, DeviceInfo, InfoCapHeader, IrqInfo, RegionInfo, RegionInfoCapSparseMmap,
    RegionSparseMmapArea,
};
use zerocopy::IntoBytes;

use crate::rig::{ARG, MSI, MSIX, NOWHERE, READ_ONLY, Rig, at, errno};

const READ_WRITE: u32 = vfio::REGION_INFO_FLAG_READ | vfio::REGION_INFO_FLAG_WRITE;
const MMAP: u32 = vfio::REGION_INFO_FLAG_MMAP;
const CAPS: u32 = vfio::REGION_INFO_FLAG_CAPS;

fn region(argsz: u32, index: u32) -> RegionInfo {
    RegionInfo { argsz, index, ..RegionInfo::default() }
}

#[test]
fn a_device_is_pci_can_reset_and_has_nine_regions() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    let info = DeviceInfo { argsz: 24, cap_offset: 7, ..DeviceInfo::default() };
    let info = rig.call(&file, vfio::DEVICE_GET_INFO, &info).expect("information");
    assert_eq!(info.flags, vfio::DEVICE_FLAGS_PCI | vfio::DEVICE_FLAGS_RESET);
    assert_eq!((info.num_regions, info.num_irqs, info.cap_offset), (9, 5, 0));
}

#[test]
fn only_as_much_is_written_as_argsz_says() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    let info = DeviceInfo { argsz: 16, cap_offset: 7, pad: 8, ..DeviceInfo::default() };
    let info = rig.call(&file, vfio::DEVICE_GET_INFO, &info).expect("information");
    assert_eq!((info.num_irqs, info.cap_offset, info.pad), (5, 7, 8));
}

#[test]
fn a_fault_comes_before_a_small_argsz() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    let commands = [
        (vfio::DEVICE_GET_INFO, 15),
        (vfio::DEVICE_GET_REGION_INFO, 31),
        (vfio::DEVICE_GET_IRQ_INFO, 15),
        (vfio::DEVICE_SET_IRQS, 19),
        (vfio::DEVICE_GET_PCI_HOT_RESET_INFO, 11),
        (vfio::DEVICE_PCI_HOT_RESET, 11),
        (vfio::DEVICE_IOEVENTFD, 27),
        (vfio::DEVICE_FEATURE, 7),
    ];
    for (command, short) in commands {
        let fault = file.ioctl(&rig.caller, command, NOWHERE);
        assert_eq!(errno(fault), Some(Errno::EFAULT), "{command:#x}");
        let address = rig.caller.arg(&[short, 0_u32, 0, 0, 0, 0, 0, 0]);
        let refused = file.ioctl(&rig.caller, command, address);
        assert_eq!(errno(refused), Some(Errno::EINVAL), "{command:#x}");
    }
}

#[test]
fn a_reply_that_cannot_be_written_is_a_fault() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    for (command, argsz) in [
        (vfio::DEVICE_GET_INFO, 24),
        (vfio::DEVICE_GET_REGION_INFO, 32),
        (vfio::DEVICE_GET_IRQ_INFO, 16),
    ] {
        rig.caller.put(READ_ONLY, [argsz, 0_u32, 0, 0, 0, 0, 0, 0].as_bytes());
        assert_eq!(
            errno(file.ioctl(&rig.caller, command, READ_ONLY)),
            Some(Errno::EFAULT),
            "{command:#x}"
        );
    }
}

#[test]
fn every_region_has_its_place_and_size() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    let rows = [
        (0, 0x4000, READ_WRITE | MMAP | CAPS),
        (1, 0, 0),
        (2, 0x4000, READ_WRITE | MMAP),
        (3, 0, 0),
        (4, 0x20, READ_WRITE),
        (5, 0, 0),
        (6, 2048, vfio::REGION_INFO_FLAG_READ),
        (7, 4096, READ_WRITE),
    ];
    for (index, size, flags) in rows {
        let info =
            rig.call(&file, vfio::DEVICE_GET_REGION_INFO, &region(32, index)).expect("a region");
        let place = at(index.into(), 0);
        assert_eq!((info.size, info.flags, info.offset), (size, flags, place), "region {index}");
    }
    for index in [8, 9, u32::MAX] {
        let refused = rig.call(&file, vfio::DEVICE_GET_REGION_INFO, &region(32, index));
        assert_eq!(errno(refused), Some(Errno::EINVAL), "region {index}");
    }
}

#[test]
fn capabilities_are_written_when_there_is_room_for_all() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    let untouched = [0xdd_u8; 64];
    rig.caller.put(ARG + 32, &untouched);
    // 32 of the struct, 48 of the two mappable ranges, 8 of MSI-X.
    for argsz in [32, 87] {
        let info =
            rig.call(&file, vfio::DEVICE_GET_REGION_INFO, &region(argsz, 0)).expect("a region");
        assert_eq!((info.argsz, info.cap_offset), (88, 0), "argsz {argsz}");
        assert_eq!(rig.caller.get::<[u8; 64]>(ARG + 32), untouched, "argsz {argsz}");
    }
    let info = rig.call(&file, vfio::DEVICE_GET_REGION_INFO, &region(100, 0)).expect("a region");
    assert_eq!((info.argsz, info.cap_offset), (100, 32));
    let sparse: RegionInfoCapSparseMmap = rig.caller.get(ARG + 32);
    let header = InfoCapHeader { id: vfio::REGION_INFO_CAP_SPARSE_MMAP, version: 1, next: 80 };
    assert_eq!((sparse.header, sparse.nr_areas), (header, 2));
    let areas: [RegionSparseMmapArea; 2] = rig.caller.get(ARG + 48);
    assert_eq!(areas[0], RegionSparseMmapArea { offset: 0, size: 0x1000 });
    assert_eq!(areas[1], RegionSparseMmapArea { offset: 0x2000, size: 0x1000 });
    let msix: InfoCapHeader = rig.caller.get(ARG + 80);
    assert_eq!(
        msix,
        InfoCapHeader { id: vfio::REGION_INFO_CAP_MSIX_MAPPABLE, version: 1, next: 0 }
    );
}

#[test]
fn every_interrupt_index_takes_eventfds() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    let noresize = vfio::IRQ_INFO_NORESIZE;
    let rows = [
        (0, 1, vfio::IRQ_INFO_MASKABLE | vfio::IRQ_INFO_AUTOMASKED),
        (1, MSI, noresize),
        (2, MSIX, 0),
        (3, 1, noresize),
        (4, 1, noresize),
    ];
    for (index, count, flags) in rows {
        let info = IrqInfo { argsz: 16, index, ..IrqInfo::default() };
        let info = rig.call(&file, vfio::DEVICE_GET_IRQ_INFO, &info).expect("an index");
        assert_eq!(
            (info.count, info.flags),
            (count, flags | vfio::IRQ_INFO_EVENTFD),
            "index {index}"
        );
    }
    let info = IrqInfo { argsz: 16, index: 5, ..IrqInfo::default() };
    assert_eq!(errno(rig.call(&file, vfio::DEVICE_GET_IRQ_INFO, &info)), Some(Errno::EINVAL));
}

#[test]
fn an_unknown_ioctl_is_none_of_the_device() {
    let rig = Rig::new();
    let (group, file) = rig.open();
    for command in [0, 0x3b64, 0x3b72, 0x3b73, 0x3b77, 0x3b78, 0x3b80, u32::MAX] {
        assert_eq!(
            errno(file.ioctl(&rig.caller, command, ARG)),
            Some(Errno::ENOTTY),
            "{command:#x}"
        );
    }
    for command in [0, 0x3b64, vfio::DEVICE_GET_INFO, 0x3b80] {
        assert_eq!(
            errno(group.ioctl(&rig.caller, command, ARG)),
            Some(Errno::ENOTTY),
            "{command:#x}"
        );
    }
}
