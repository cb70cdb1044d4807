//! Surprise removal.

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ioasis_sys::eventfd::EventFd;
use ioasis_uapi::Errno;
use ioasis_uapi::vfio::{self, IrqSet, PciHotReset, PciHotResetInfo};
use ioasis_vfio::DeviceFile;
use zerocopy::IntoBytes;

use crate::rig::{ARG, Rig, SCRATCH, at, errno};

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

/// A model in the midst of a store, that does not get on with it.
struct Stuck {
    page: mpsc::Sender<()>,
    threads: [JoinHandle<()>; 2],
}

impl Stuck {
    fn new(rig: &Rig, file: &Arc<DeviceFile>) -> Self {
        let (page, comes) = mpsc::channel();
        let (log, user) = (Arc::clone(&rig.log), Arc::clone(file));
        let (held, is_held) = mpsc::channel();
        let holder = std::thread::spawn(move || {
            let _log = log.lock();
            held.send(()).expect("the test waits");
            let _ended = comes.recv();
        });
        is_held.recv().expect("held");
        let store = std::thread::spawn(move || {
            let stored = user.write(at(0, SCRATCH), &[1, 0, 0, 0]);
            assert_eq!(stored, Ok(4), "it was on its way before the removal");
        });
        std::thread::sleep(Duration::from_millis(100));
        Self { page, threads: [holder, store] }
    }

    fn end(self) {
        drop(self.page);
        for thread in self.threads {
            thread.join().expect("it ends");
        }
    }
}

/// More than a removal takes that waits for nobody's page.
const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn a_removal_and_its_neighbours_do_not_wait_for_a_page_that_never_comes() {
    let rig = Rig::with(&[("0000:01:00.0", 1), ("0000:01:00.1", 2)]);
    let (_group, file) = rig.open();
    let req = watch(&rig, &file, vfio::PCI_REQ_IRQ_INDEX);
    let stuck = Stuck::new(&rig, &file);
    let device = Arc::clone(rig.first());
    let removal = std::thread::spawn(move || device.pull());
    let begin = Instant::now();
    while req.take().is_none() {
        assert!(begin.elapsed() < LIMIT, "the program is told");
        std::thread::yield_now();
    }
    // Its bus is free from then on: a device of it is opened at once.
    let neighbour = rig.group_in_container(1);
    let opened = rig.device_fd(&neighbour, rig.machine.devices()[1].name());
    opened.expect("a device of the same bus");
    removal.join().expect("it ends").expect("removed");
    assert!(begin.elapsed() < LIMIT, "it did not wait");
    let pages = file.memory().pages[2].clone().expect("BAR 2 has pages");
    assert_eq!(pages.load_u32(0).expect("a page"), u32::MAX);
    let close = std::thread::spawn(move || file.close());
    std::thread::sleep(Duration::from_millis(50));
    assert!(!close.is_finished(), "its user's close waits until the device does nothing more");
    stuck.end();
    close.join().expect("closed");
}

#[test]
fn virtual_functions_go_before_their_physical_one() {
    for orderly in [false, true] {
        let rig = Rig::with_virtual_functions(2);
        rig.first().create_virtual_functions(1).expect("a virtual function");
        let function = &rig.machine.devices()[1];
        let file = function.open_cdev(&rig.caller).expect("open");
        if orderly {
            rig.first().begin_removal().expect("it is there");
            assert_eq!(errno(function.open_cdev(&rig.caller)), Some(Errno::ENODEV));
            let released = rig.first().end_removal(Duration::from_millis(50));
            assert!(!released, "the virtual function has a user");
        } else {
            rig.first().pull().expect("pulled out");
        }
        assert!(function.is_removed() && rig.first().is_removed());
        assert_eq!(errno(function.open_cdev(&rig.caller)), Some(Errno::ENODEV));
        file.close();
    }
}

#[test]
fn a_virtual_function_that_was_pulled_out_is_another_when_it_comes_again() {
    let rig = Rig::with_virtual_functions(1);
    rig.first().create_virtual_functions(1).expect("a virtual function");
    let function = &rig.machine.devices()[1];
    let old = rig.group(1);
    function.pull().expect("pulled out");
    assert_eq!(errno(function.pull()), Some(Errno::ENODEV), "once");
    assert_eq!(errno(rig.machine.groups()[1].open(&rig.caller)), Some(Errno::ENODEV));
    old.close();
    rig.first().end_virtual_functions();
    rig.first().create_virtual_functions(1).expect("another");
    assert!(!function.is_removed());
    function.open_cdev(&rig.caller).expect("its node").close();
    rig.group(1).close();
    function.pull().expect("it can be pulled out as the first");
}

#[test]
fn a_device_that_was_removed_is_on_its_bus_as_long_as_it_has_a_user() {
    let rig = Rig::with(&[("0000:01:00.0", 1), ("0000:01:00.1", 2)]);
    let (_group, file) = rig.open();
    let other = &rig.machine.devices()[1];
    let user = other.open_cdev(&rig.caller).expect("open");
    let count = || {
        rig.caller.put(ARG, PciHotResetInfo { argsz: 12 + 16, flags: 0, count: 0 }.as_bytes());
        file.ioctl(&rig.caller, vfio::DEVICE_GET_PCI_HOT_RESET_INFO, ARG).expect("information");
        rig.caller.get::<PciHotResetInfo>(ARG).count
    };
    other.pull().expect("pulled out");
    assert_eq!(count(), 2);
    user.close();
    assert_eq!(count(), 1);
}

#[test]
fn a_call_that_waits_for_its_program_keeps_no_device_of_its_bus_from_being_pulled_out() {
    let rig = Rig::with(&[("0000:01:00.0", 1), ("0000:01:00.1", 2)]);
    let (group, file) = rig.open();
    let neighbour = rig.group(1);
    let fds = [&group, &neighbour].map(|group| rig.caller.add_group(group));
    let stuck = Stuck::new(&rig, &file);
    rig.caller.put(ARG, PciHotReset { argsz: 12, flags: 0, count: 2 }.as_bytes());
    rig.caller.put(ARG + 12, fds.as_bytes());
    std::thread::scope(|scope| {
        let reset = scope.spawn(|| errno(file.ioctl(&rig.caller, vfio::DEVICE_PCI_HOT_RESET, ARG)));
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(rig.first().look().open, "busy", "the reset waits for the device");
        rig.machine.devices()[1].pull().expect("pulled out");
        rig.first().pull().expect("pulled out");
        stuck.end();
        assert_eq!(reset.join().expect("it ends"), None, "it began before");
    });
    file.close();
}
