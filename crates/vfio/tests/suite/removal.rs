//! Surprise removal.

use ioasis_sys::eventfd::EventFd;
use ioasis_uapi::Errno;
use ioasis_uapi::vfio::{self, IrqSet};
use ioasis_vfio::DeviceFile;
use zerocopy::IntoBytes;

use crate::rig::{ARG, Rig, at, errno};

fn watch(rig: &Rig, file: &DeviceFile, index: u32) -> EventFd {
    let (fd, event) = rig.caller.add_event();
    let flags = vfio::IRQ_SET_DATA_EVENTFD | vfio::IRQ_SET_ACTION_TRIGGER;
    rig.caller.put(ARG, IrqSet { argsz: 24, flags, index, start: 0, count: 1 }.as_bytes());
    rig.caller.put(ARG + 20, fd.as_bytes());
    file.ioctl(&rig.caller, vfio::DEVICE_SET_IRQS, ARG).expect("an eventfd");
    event
}

#[test]
fn the_program_is_told_and_the_device_is_gone() {
    let rig = Rig::new();
    let (group, file) = rig.open();
    let (req, err) =
        (watch(&rig, &file, vfio::PCI_REQ_IRQ_INDEX), watch(&rig, &file, vfio::PCI_ERR_IRQ_INDEX));
    assert_eq!(rig.first().removal_triggers().len(), 2);
    rig.machine.remove_all();
    assert_eq!((req.take(), err.take()), (Some(1), Some(1)));
    let pages = file.memory().pages[2].clone().expect("BAR 2 has pages");
    assert_eq!(pages.load_u32(0).expect("a page"), u32::MAX);
    let mut buf = [0; 4];
    for offset in [at(0, 0), at(2, 0), at(7, 0)] {
        assert_eq!(errno(file.read(offset, &mut buf)), Some(Errno::ENODEV), "{offset:#x}");
        assert_eq!(errno(file.write(offset, &buf)), Some(Errno::ENODEV), "{offset:#x}");
    }
    assert_eq!(errno(file.mmap(at(2, 0), 0x1000, 1)), Some(Errno::ENODEV));
    for command in [vfio::DEVICE_GET_INFO, vfio::DEVICE_RESET, vfio::DEVICE_SET_IRQS] {
        assert_eq!(
            errno(file.ioctl(&rig.caller, command, ARG)),
            Some(Errno::ENODEV),
            "{command:#x}"
        );
    }
    assert_eq!(errno(group.ioctl(&rig.caller, vfio::GROUP_GET_STATUS, ARG)), Some(Errno::ENODEV));
    assert_eq!(errno(rig.first().open_cdev(&rig.caller)), Some(Errno::ENODEV));
    file.close();
    group.close();
    assert_eq!(errno(rig.machine.groups()[0].open(&rig.caller)), Some(Errno::ENODEV));
}

#[test]
fn a_device_is_removed_once() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    let req = watch(&rig, &file, vfio::PCI_REQ_IRQ_INDEX);
    rig.machine.remove_all();
    rig.machine.remove_all();
    assert_eq!(req.take(), Some(1));
}
