//! DEVICE_FEATURE and IOEVENTFD.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ioasis_pci::Refusal;
use ioasis_sys::sync::Mutex;
use ioasis_uapi::vfio::{self, DeviceFeature, DeviceIoeventfd, IrqSet};
use ioasis_uapi::{Errno, Result};
use ioasis_vfio::{DeviceFile, DeviceWatcher, InterruptKind};
use zerocopy::IntoBytes;

use crate::rig::{ARG, FETCH, RAISE, Rig, SCRATCH, TABLE, at, errno};

const GET: u32 = vfio::DEVICE_FEATURE_GET;
const SET: u32 = vfio::DEVICE_FEATURE_SET;
const PROBE: u32 = vfio::DEVICE_FEATURE_PROBE;
const ENTRY: u32 = vfio::DEVICE_FEATURE_LOW_POWER_ENTRY;
const WAKEUP: u32 = vfio::DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP;
const EXIT: u32 = vfio::DEVICE_FEATURE_LOW_POWER_EXIT;

fn feature(rig: &Rig, file: &DeviceFile, argsz: u32, flags: u32) -> Result<()> {
    rig.call(file, vfio::DEVICE_FEATURE, &DeviceFeature { argsz, flags }).map(|_| ())
}

#[test]
fn a_feature_call_is_checked_in_the_order_of_linux() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    let rows = [
        ("unknown flag before an unknown feature", 8, 1 << 19 | 0xffff, Errno::EINVAL),
        ("GET and SET before an unknown feature", 8, GET | SET | 0xffff, Errno::EINVAL),
        ("an unknown feature, whatever is asked", 8, PROBE | 0xffff, Errno::ENOTTY),
        ("no SR-IOV, no token", 24, SET | vfio::DEVICE_FEATURE_PCI_VF_TOKEN, Errno::ENOTTY),
        ("no migration", 16, GET | vfio::DEVICE_FEATURE_MIGRATION, Errno::ENOTTY),
        ("no migration state", 16, GET | vfio::DEVICE_FEATURE_MIG_DEVICE_STATE, Errno::ENOTTY),
        ("CDX only", 12, SET | vfio::DEVICE_FEATURE_BUS_MASTER, Errno::ENOTTY),
        ("no PRE_COPY", 8, PROBE | vfio::DEVICE_FEATURE_MIG_PRECOPY_INFOv2, Errno::EINVAL),
        ("s390 only", 16, GET | vfio::DEVICE_FEATURE_ZPCI_ERROR, Errno::ENOTTY),
        ("an operation the feature lacks", 8, GET | ENTRY, Errno::EINVAL),
        ("an operation the feature lacks, probed", 8, PROBE | GET | ENTRY, Errno::EINVAL),
        ("no operation", 8, ENTRY, Errno::EINVAL),
        ("no room for the payload", 15, SET | WAKEUP, Errno::EINVAL),
    ];
    for (why, argsz, flags, expected) in rows {
        assert_eq!(errno(feature(&rig, &file, argsz, flags)), Some(expected), "{why}");
    }
    let logging = vfio::DEVICE_FEATURE_DMA_LOGGING_START;
    for flags in [
        PROBE | SET | logging,
        PROBE | ENTRY,
        PROBE | SET | ENTRY,
        PROBE | SET | WAKEUP,
        PROBE | EXIT,
    ] {
        feature(&rig, &file, 8, flags).expect("a probe");
    }
}

#[test]
fn low_power_is_entered_once_and_left_any_number_of_times() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    feature(&rig, &file, 8, SET | ENTRY).expect("low power");
    assert_eq!(errno(feature(&rig, &file, 8, SET | ENTRY)), Some(Errno::EINVAL));
    feature(&rig, &file, 8, SET | EXIT).expect("out");
    feature(&rig, &file, 8, SET | EXIT).expect("out already");
    feature(&rig, &file, 8, SET | ENTRY).expect("again");
}

#[test]
fn an_access_wakes_a_sleeping_device_and_says_so() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    let (fd, event) = rig.caller.add_event();
    let other = rig.caller.add_other();
    for (fd, expected) in [(-1, Errno::EINVAL), (1000, Errno::EBADF), (other, Errno::EINVAL)] {
        let entry = [16_u32, SET | WAKEUP, u32::from_ne_bytes(fd.to_ne_bytes()), 0];
        assert_eq!(errno(rig.call(&file, vfio::DEVICE_FEATURE, &entry)), Some(expected), "{fd}");
    }
    let entry = [16_u32, SET | WAKEUP, u32::from_ne_bytes(fd.to_ne_bytes()), 0];
    rig.call(&file, vfio::DEVICE_FEATURE, &entry).expect("low power");
    assert_eq!(event.take(), None);
    file.read(at(7, 0), &mut [0; 4]).expect("a register");
    assert_eq!(event.take(), Some(1));
    file.read(at(7, 0), &mut [0; 4]).expect("a register");
    assert_eq!(event.take(), None);
    rig.call(&file, vfio::DEVICE_FEATURE, &entry).expect("low power again");
}

fn doorbell(offset: u64, flags: u32, fd: i32) -> DeviceIoeventfd {
    DeviceIoeventfd { argsz: 28, flags, offset, data: 0x1122_3344, fd, reserved: 0 }
}

fn ioeventfd(rig: &Rig, file: &DeviceFile, call: DeviceIoeventfd) -> Option<Errno> {
    rig.caller.put(ARG, call.as_bytes());
    errno(file.ioctl(&rig.caller, vfio::DEVICE_IOEVENTFD, ARG))
}

#[test]
fn an_ioeventfd_is_checked_in_the_order_of_linux() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    let (fd, _event) = rig.caller.add_event();
    let other = rig.caller.add_other();
    let rows = [
        ("an unknown flag", doorbell(at(0, RAISE), 4 | 1 << 4, fd), Errno::EINVAL),
        ("no size", doorbell(at(0, RAISE), 0, fd), Errno::EINVAL),
        ("two sizes", doorbell(at(0, RAISE), 3, fd), Errno::EINVAL),
        ("a fd below -1", doorbell(at(0, RAISE), 4, -2), Errno::EINVAL),
        ("configuration space", doorbell(at(7, 0), 4, fd), Errno::EINVAL),
        ("below the regions", doorbell(0, 4, fd), Errno::EINVAL),
        ("an absent BAR", doorbell(at(1, 0), 4, fd), Errno::EINVAL),
        ("past the end", doorbell(at(0, 0x3ffe), 4, fd), Errno::EINVAL),
        ("the MSI-X table", doorbell(at(0, TABLE + 4), 4, fd), Errno::EINVAL),
        ("into the MSI-X table", doorbell(at(0, TABLE - 2), 4, fd), Errno::EINVAL),
        ("eight bytes", doorbell(at(0, RAISE), 8, fd), Errno::EINVAL),
        ("none to remove", doorbell(at(0, RAISE), 4, -1), Errno::ENODEV),
        ("a closed fd", doorbell(at(0, RAISE), 4, 1000), Errno::EBADF),
        ("no eventfd", doorbell(at(0, RAISE), 4, other), Errno::EINVAL),
    ];
    for (why, call, expected) in rows {
        assert_eq!(ioeventfd(&rig, &file, call), Some(expected), "{why}");
    }
    let call = doorbell(at(0, SCRATCH), 4, fd);
    assert_eq!(ioeventfd(&rig, &file, call), None);
    assert_eq!(ioeventfd(&rig, &file, call), Some(Errno::EEXIST));
    assert_eq!(ioeventfd(&rig, &file, DeviceIoeventfd { data: 1, ..call }), None);
    assert_eq!(ioeventfd(&rig, &file, DeviceIoeventfd { fd: -1, ..call }), None);
    assert_eq!(ioeventfd(&rig, &file, DeviceIoeventfd { fd: -1, ..call }), Some(Errno::ENODEV));
}

#[test]
fn a_signalled_ioeventfd_writes_its_register() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    let (fd, event) = rig.caller.add_event();
    assert_eq!(ioeventfd(&rig, &file, doorbell(at(0, SCRATCH), 2, fd)), None);
    event.signal();
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut buf = [0; 8];
    while buf == [0; 8] {
        assert!(Instant::now() < deadline, "the register is written");
        file.read(at(0, SCRATCH), &mut buf).expect("a register");
    }
    assert_eq!(buf, [0x44, 0x33, 0, 0, 0, 0, 0, 0]);
}

/// What was told of a device, as the trace says it.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<String>>);

impl Told {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock())
    }
}

impl DeviceWatcher for Told {
    fn interrupt(&self, _: &str, _: InterruptKind, _: u16) {}

    fn reset(&self, _: &str) {}

    fn refused(&self, device: &str, refusal: &Refusal) {
        let line = format!("{device} {refusal}: {}; {}", refusal.why(), refusal.remedy());
        self.0.lock().push(line);
    }
}

#[test]
fn what_a_device_could_not_do_is_told_with_what_to_do_about_it() {
    let rig = Rig::new();
    let told = Arc::new(Told::default());
    rig.machine.watch(&(Arc::clone(&told) as _));
    let (_group, file) = rig.open();
    let (fd, event) = rig.caller.add_event();
    rig.write32(&file, RAISE, 0);
    assert!(told.take().is_empty(), "no message is enabled, so none is missed");
    let mut header =
        IrqSet { argsz: 24, flags: 0b10_0100, index: 1, start: 0, count: 1 }.as_bytes().to_vec();
    header.extend_from_slice(&fd.to_ne_bytes());
    rig.caller.put(ARG, &header);
    file.ioctl(&rig.caller, vfio::DEVICE_SET_IRQS, ARG).expect("MSI");
    rig.write32(&file, RAISE, 0);
    assert_eq!(
        told.take(),
        ["0000:01:00.0 interrupt message 0: bus mastering is off; set bit 2 of COMMAND"]
    );
    file.write(at(0, FETCH), &0x5000_u64.to_le_bytes()).expect("a register");
    assert_eq!(
        told.take(),
        ["0000:01:00.0 DMA read at iova 0x5000: bus mastering is off; set bit 2 of COMMAND"]
    );
    assert_eq!(ioeventfd(&rig, &file, doorbell(at(0, SCRATCH), 2, fd)), None);
    file.write(at(7, 4), &4_u16.to_le_bytes()).expect("COMMAND");
    event.signal();
    let deadline = Instant::now() + Duration::from_secs(60);
    let lines = loop {
        assert!(Instant::now() < deadline, "it is told");
        match told.take() {
            lines if lines.is_empty() => std::thread::yield_now(),
            lines => break lines,
        }
    };
    let expected =
        "0000:01:00.0 ioeventfd write at BAR0+0x1018: memory decoding is off; set bit 1 of COMMAND";
    assert_eq!(lines, [expected]);
}
