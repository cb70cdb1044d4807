//! Function reset and hot reset.

use ioasis_uapi::Errno;
use ioasis_uapi::vfio::{self, PciDependentDevice, PciHotReset, PciHotResetInfo};
use ioasis_vfio::DeviceFile;
use zerocopy::IntoBytes;

use crate::rig::{ARG, Rig, SCRATCH, at, errno};

fn scratch(file: &DeviceFile) -> u8 {
    let mut buf = [0; 4];
    file.read(at(0, SCRATCH), &mut buf).expect("a register");
    buf[0]
}

#[test]
fn a_reset_brings_the_device_back_to_its_start() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    rig.write32(&file, SCRATCH, 5);
    file.ioctl(&rig.caller, vfio::DEVICE_RESET, 0).expect("a reset");
    assert_eq!(scratch(&file), 0);
    rig.write32(&file, SCRATCH, 6);
    // The function-level reset bit of device control does the same.
    let mut control = [0; 2];
    let express = 0x70 + 8;
    file.read(at(7, express), &mut control).expect("device control");
    let control = u16::from_le_bytes(control) | 1 << 15;
    file.write(at(7, express), &control.to_le_bytes()).expect("device control");
    assert_eq!(scratch(&file), 0);
}

fn info(
    rig: &Rig,
    file: &DeviceFile,
    argsz: u32,
) -> (Option<Errno>, PciHotResetInfo, Vec<PciDependentDevice>) {
    rig.caller.put(ARG, PciHotResetInfo { argsz, flags: 9, count: 9 }.as_bytes());
    let refused = errno(file.ioctl(&rig.caller, vfio::DEVICE_GET_PCI_HOT_RESET_INFO, ARG));
    let info: PciHotResetInfo = rig.caller.get(ARG);
    let count = if refused.is_none() { u64::from(info.count) } else { 0 };
    let entry = |i: u64| rig.caller.get(ARG + 12 + 8 * i);
    (refused, info, (0..count).map(entry).collect())
}

fn hot_reset(rig: &Rig, file: &DeviceFile, count: u32, flags: u32, fds: &[i32]) -> Option<Errno> {
    rig.caller.put(ARG, PciHotReset { argsz: 12, flags, count }.as_bytes());
    rig.caller.put(ARG + 12, fds.as_bytes());
    errno(file.ioctl(&rig.caller, vfio::DEVICE_PCI_HOT_RESET, ARG))
}

#[test]
fn a_bus_is_reset_with_all_devices_on_it() {
    let rig = Rig::with(&[("0000:01:00.0", 1), ("0000:01:00.1", 2), ("0000:02:00.0", 3)]);
    let (_group, file) = rig.open();
    let (refused, header, _) = info(&rig, &file, 12 + 15);
    assert_eq!((refused, header.count, header.flags), (Some(Errno::ENOSPC), 2, 0));
    let (refused, header, devices) = info(&rig, &file, 12 + 16);
    assert_eq!((refused, header.flags), (None, 0));
    let expected = [
        PciDependentDevice { id: 1, segment: 0, bus: 1, devfn: 0 },
        PciDependentDevice { id: 2, segment: 0, bus: 1, devfn: 1 },
    ];
    assert_eq!(devices, expected);
}

#[test]
fn a_root_bus_is_not_reset() {
    let rig = Rig::with(&[("0000:00:05.0", 1)]);
    let (group, file) = rig.open();
    assert_eq!(info(&rig, &file, 100).0, Some(Errno::ENODEV));
    let fd = rig.caller.add_group(&group);
    assert_eq!(hot_reset(&rig, &file, 1, 0, &[fd]), Some(Errno::ENODEV));
}

#[test]
fn a_hot_reset_needs_the_groups_of_all_devices_on_the_bus() {
    let rig = Rig::with(&[("0000:01:00.0", 1), ("0000:01:00.1", 2), ("0000:02:00.0", 3)]);
    let (first, file) = rig.open();
    let (second, third) = (rig.group(1), rig.group(2));
    let fds = [&first, &second, &third].map(|group| rig.caller.add_group(group));
    let other = rig.caller.add_other();
    let rows = [
        ("flags", 2, 1, vec![fds[0], fds[1]], Errno::EINVAL),
        ("no groups", 0, 0, vec![], Errno::EINVAL),
        ("more groups than devices", 3, 0, vec![fds[0], fds[1], fds[2]], Errno::EINVAL),
        ("a closed fd", 2, 0, vec![fds[0], 1000], Errno::EBADF),
        ("no group", 2, 0, vec![fds[0], other], Errno::EINVAL),
        ("one group of two", 1, 0, vec![fds[0]], Errno::EINVAL),
        ("the wrong group", 2, 0, vec![fds[0], fds[2]], Errno::EINVAL),
    ];
    rig.write32(&file, SCRATCH, 5);
    for (why, count, flags, fds, expected) in rows {
        assert_eq!(hot_reset(&rig, &file, count, flags, &fds), Some(expected), "{why}");
    }
    assert_eq!(scratch(&file), 5, "nothing was reset");
    assert_eq!(hot_reset(&rig, &file, 2, 0, &[fds[1], fds[0]]), None);
    assert_eq!(scratch(&file), 0);
}
