//! Drivers of devices that come and go under their users.

use std::time::{Duration, Instant};

use ioasis_uapi::Errno;
use ioasis_uapi::vfio::{self, GroupStatus};
use ioasis_vfio::{Driver, GroupFile, IommuFile};

use crate::rig::Rig;

const PAIR: [(&str, u32); 2] = [("0000:01:00.0", 1), ("0000:01:00.1", 1)];

fn status(rig: &Rig, group: &GroupFile) -> Result<u32, Errno> {
    let status = GroupStatus { argsz: 8, flags: 0 };
    let address = rig.caller.arg(&status);
    let done = group.ioctl(&rig.caller, vfio::GROUP_GET_STATUS, address);
    done.map_err(|error| error.errno)?;
    Ok(rig.caller.get::<GroupStatus>(address).flags)
}

fn unbind(rig: &Rig, index: usize) {
    let device = &rig.machine.devices()[index];
    device.unbind_driver();
    assert!(device.await_users(Instant::now()), "nobody uses it");
    if device.driver() == Driver::Leaving {
        device.end_leaving();
    }
}

#[test]
fn a_device_without_a_driver_is_opened_by_nobody_and_with_one_again() {
    let rig = Rig::new();
    unbind(&rig, 0);
    assert_eq!(rig.first().open_cdev(&rig.caller).unwrap_err().errno, Errno::ENODEV);
    let group = &rig.machine.groups()[0];
    assert_eq!(group.open(&rig.caller).unwrap_err().errno, Errno::ENODEV);
    assert_eq!(rig.first().bind_driver(Driver::Vfio), Ok(()));
    assert_eq!(rig.first().bind_driver(Driver::Vfio).unwrap_err().errno, Errno::EBUSY);
    rig.first().open_cdev(&rig.caller).unwrap().close();
    let (group, file) = rig.open();
    file.close();
    group.close();
}

#[test]
fn a_driver_that_leaves_waits_for_the_last_file_and_lets_nobody_in() {
    let rig = Rig::new();
    let (group, file) = rig.open();
    rig.first().unbind_driver();
    assert_eq!(rig.first().driver(), Driver::Leaving);
    assert!(!rig.first().await_users(Instant::now() + Duration::from_millis(10)));
    let again = rig.device_fd(&group, rig.first().name());
    assert_eq!(again.unwrap_err().errno, Errno::ENODEV);
    assert_eq!(rig.first().open_cdev(&rig.caller).unwrap_err().errno, Errno::ENODEV);
    assert!(status(&rig, &group).is_ok(), "the group is there until then");
    let device = std::sync::Arc::clone(rig.first());
    let waiter =
        std::thread::spawn(move || device.await_users(Instant::now() + Duration::from_secs(30)));
    file.close();
    assert!(waiter.join().unwrap());
    rig.first().end_leaving();
    assert_eq!(status(&rig, &group), Err(Errno::ENODEV), "its file is of no group any more");
    rig.first().bind_driver(Driver::Vfio).unwrap();
    assert_eq!(status(&rig, &group), Err(Errno::ENODEV), "nor of the next");
    let next = rig.group(0);
    group.close();
    assert!(status(&rig, &next).is_ok(), "the close of the old file is nothing to the new");
    next.close();
}

#[test]
fn a_file_of_a_devices_own_node_counts_before_it_is_bound() {
    let rig = Rig::new();
    let file = rig.first().open_cdev(&rig.caller).unwrap();
    rig.first().unbind_driver();
    assert!(!rig.first().await_users(Instant::now()));
    file.close();
    assert!(rig.first().await_users(Instant::now()));
}

#[test]
fn a_group_with_a_device_of_another_driver_is_not_viable() {
    let rig = Rig::with(&PAIR);
    let group = rig.group(0);
    assert_eq!(status(&rig, &group), Ok(vfio::GROUP_FLAGS_VIABLE));
    unbind(&rig, 1);
    assert_eq!(status(&rig, &group), Ok(vfio::GROUP_FLAGS_VIABLE), "no driver does no DMA");
    rig.machine.devices()[1].bind_driver(Driver::Other).unwrap();
    assert_eq!(status(&rig, &group), Ok(0));
    let container = rig.hardware.container();
    let fd = rig.caller.add_iommu(IommuFile::Container(container));
    assert_eq!(rig.set_container(&group, fd).unwrap_err().errno, Errno::EPERM);
    unbind(&rig, 1);
    assert_eq!(status(&rig, &group), Ok(vfio::GROUP_FLAGS_VIABLE));
    group.close();
}

#[test]
fn another_driver_does_not_get_a_device_of_a_group_that_a_user_owns() {
    let rig = Rig::with(&PAIR);
    unbind(&rig, 1);
    let (group, file) = rig.open();
    let second = &rig.machine.devices()[1];
    assert_eq!(second.bind_driver(Driver::Other).unwrap_err().errno, Errno::EBUSY);
    assert_eq!(second.driver(), Driver::None);
    file.close();
    group.close();
    second.bind_driver(Driver::Other).unwrap();
}
