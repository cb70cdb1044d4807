//! SET_IRQS: the order of its checks, and where interrupts go.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ioasis_sys::eventfd::EventFd;
use ioasis_uapi::vfio::{self, IrqSet};
use ioasis_uapi::{Errno, Result};
use ioasis_vfio::DeviceFile;
use zerocopy::IntoBytes;

use crate::rig::{
    ACKNOWLEDGE, ARG, BASE, LENGTH, LINE, MSI, MSIX, NOWHERE, PENDING, RAISE, Rig, at, errno,
};

const NONE: u32 = vfio::IRQ_SET_DATA_NONE;
const BOOL: u32 = vfio::IRQ_SET_DATA_BOOL;
const EVENTFD: u32 = vfio::IRQ_SET_DATA_EVENTFD;
const MASK: u32 = vfio::IRQ_SET_ACTION_MASK;
const UNMASK: u32 = vfio::IRQ_SET_ACTION_UNMASK;
const TRIGGER: u32 = vfio::IRQ_SET_ACTION_TRIGGER;
const INTX: u32 = vfio::PCI_INTX_IRQ_INDEX;
const MSI_INDEX: u32 = vfio::PCI_MSI_IRQ_INDEX;
const MSIX_INDEX: u32 = vfio::PCI_MSIX_IRQ_INDEX;
const ERR: u32 = vfio::PCI_ERR_IRQ_INDEX;
const REQ: u32 = vfio::PCI_REQ_IRQ_INDEX;

/// A device that is open, and SET_IRQS on it.
struct Irqs {
    rig: Rig,
    file: Arc<DeviceFile>,
}

impl Irqs {
    fn new() -> Self {
        let rig = Rig::new();
        let (_, file) = rig.open();
        Self { rig, file }
    }

    fn raw(&self, header: IrqSet, data: &[u8]) -> Result<()> {
        self.rig.caller.put(ARG, header.as_bytes());
        self.rig.caller.put(ARG + size_of::<IrqSet>() as u64, data);
        self.file.ioctl(&self.rig.caller, vfio::DEVICE_SET_IRQS, ARG).map(|_| ())
    }

    fn set(&self, index: u32, flags: u32, start: u32, count: u32, data: &[u8]) -> Result<()> {
        let argsz = u32::try_from(size_of::<IrqSet>() + data.len()).expect("small");
        self.raw(IrqSet { argsz, flags, index, start, count }, data)
    }

    fn set_events(&self, index: u32, start: u32, fds: &[i32]) -> Result<()> {
        let count = u32::try_from(fds.len()).expect("few");
        self.set(index, EVENTFD | TRIGGER, start, count, fds.as_bytes())
    }

    fn disable(&self, index: u32) -> Result<()> {
        self.set(index, NONE | TRIGGER, 0, 0, &[])
    }

    fn event(&self) -> (i32, EventFd) {
        self.rig.caller.add_event()
    }

    fn raise(&self, vector: u32) {
        self.rig.write32(&self.file, RAISE, vector);
    }

    fn line(&self, level: u32) {
        self.rig.write32(&self.file, LINE, level);
    }

    /// Bus mastering on or off: messages are writes to memory.
    fn command(&self, value: u16) {
        let done = self.file.write(at(7, 4), &value.to_le_bytes());
        assert_eq!(done.expect("the command register"), 2);
    }
}

fn header(index: u32, flags: u32, start: u32, count: u32) -> IrqSet {
    IrqSet { argsz: 20, flags, index, start, count }
}

#[test]
fn a_malformed_call_is_refused_in_the_order_of_linux() {
    let irqs = Irqs::new();
    let small = IrqSet { argsz: 19, ..header(INTX, 0, 0, 0) };
    let wrapping = header(INTX, NONE | TRIGGER, u32::MAX - 1, 1);
    let unknown = header(INTX, NONE | TRIGGER | 1 << 6, 0, 1);
    let rows = [
        ("argsz below the header", small, Errno::EINVAL),
        ("an index past the last", header(5, NONE | TRIGGER, 0, 0), Errno::EINVAL),
        ("start and count wrap", wrapping, Errno::EINVAL),
        ("an unknown flag", unknown, Errno::EINVAL),
        (
            "start at the number of interrupts",
            header(MSIX_INDEX, NONE | TRIGGER, MSIX, 0),
            Errno::EINVAL,
        ),
        ("more than there are", header(MSI_INDEX, NONE | TRIGGER, 1, MSI), Errno::EINVAL),
        ("no data type", header(INTX, TRIGGER, 0, 1), Errno::EINVAL),
        ("two data types", header(INTX, NONE | BOOL | TRIGGER, 0, 1), Errno::EINVAL),
        ("argsz without the data", header(INTX, EVENTFD | TRIGGER, 0, 1), Errno::EINVAL),
        ("no action", header(INTX, NONE, 0, 1), Errno::ENOTTY),
        ("two actions", header(INTX, NONE | MASK | TRIGGER, 0, 1), Errno::ENOTTY),
        ("MSI is not masked", header(MSI_INDEX, NONE | MASK, 0, 1), Errno::ENOTTY),
        ("MSI-X is not unmasked", header(MSIX_INDEX, NONE | UNMASK, 0, 1), Errno::ENOTTY),
        ("ERR is not masked", header(ERR, NONE | MASK, 0, 1), Errno::ENOTTY),
        ("REQ is not unmasked", header(REQ, NONE | UNMASK, 0, 1), Errno::ENOTTY),
        ("mask while INTx is off", header(INTX, NONE | MASK, 0, 1), Errno::EINVAL),
        ("unmask while INTx is off", header(INTX, NONE | UNMASK, 0, 1), Errno::EINVAL),
        ("disable while INTx is off", header(INTX, NONE | TRIGGER, 0, 0), Errno::EINVAL),
        ("disable while MSI is off", header(MSI_INDEX, NONE | TRIGGER, 0, 0), Errno::EINVAL),
        ("loop back while MSI-X is off", header(MSIX_INDEX, NONE | TRIGGER, 0, 1), Errno::EINVAL),
        ("fire ERR without an eventfd", header(ERR, NONE | TRIGGER, 0, 1), Errno::EINVAL),
        ("remove REQ without an eventfd", header(REQ, NONE | TRIGGER, 0, 0), Errno::EINVAL),
        ("no MSI vector at all", header(MSI_INDEX, EVENTFD | TRIGGER, 0, 0), Errno::ERANGE),
        ("INTx twice", header(INTX, NONE | TRIGGER, 0, 2), Errno::EINVAL),
    ];
    for (why, header, expected) in rows {
        assert_eq!(errno(irqs.raw(header, &[])), Some(expected), "{why}");
    }
}

#[test]
fn data_that_cannot_be_read_is_a_fault() {
    let irqs = Irqs::new();
    let caller = &irqs.rig.caller;
    assert_eq!(errno(irqs.file.ioctl(caller, vfio::DEVICE_SET_IRQS, NOWHERE)), Some(Errno::EFAULT));
    // The header is the last thing before the end of memory.
    let end = BASE + LENGTH as u64 - size_of::<IrqSet>() as u64;
    let header = IrqSet { argsz: 24, ..header(INTX, EVENTFD | TRIGGER, 0, 1) };
    caller.put(end, header.as_bytes());
    assert_eq!(errno(irqs.file.ioctl(caller, vfio::DEVICE_SET_IRQS, end)), Some(Errno::EFAULT));
}

#[test]
fn what_is_no_eventfd_is_refused() {
    let irqs = Irqs::new();
    let other = irqs.rig.caller.add_other();
    for index in [INTX, MSI_INDEX, MSIX_INDEX, ERR, REQ] {
        assert_eq!(errno(irqs.set_events(index, 0, &[1000])), Some(Errno::EBADF), "{index}");
        assert_eq!(errno(irqs.set_events(index, 0, &[other])), Some(Errno::EINVAL), "{index}");
    }
    // Nothing was enabled by the attempts.
    let (fd, _event) = irqs.event();
    irqs.set_events(MSI_INDEX, 0, &[fd]).expect("MSI");
}

#[test]
fn one_kind_of_interrupt_excludes_the_others() {
    let irqs = Irqs::new();
    let (fd, _event) = irqs.event();
    for active in [INTX, MSI_INDEX, MSIX_INDEX] {
        irqs.set_events(active, 0, &[fd]).expect("enabled");
        for other in [INTX, MSI_INDEX, MSIX_INDEX].into_iter().filter(|&other| other != active) {
            assert_eq!(
                errno(irqs.set_events(other, 0, &[fd])),
                Some(Errno::EINVAL),
                "{active} {other}"
            );
            assert_eq!(errno(irqs.disable(other)), Some(Errno::EINVAL), "{active} {other}");
        }
        irqs.disable(active).expect("disabled");
    }
}

#[test]
fn a_message_reaches_the_eventfd_of_its_vector_only() {
    let irqs = Irqs::new();
    irqs.command(6);
    for index in [MSI_INDEX, MSIX_INDEX] {
        let (first, second) = (irqs.event(), irqs.event());
        irqs.set_events(index, 0, &[first.0, -1, second.0]).expect("three vectors");
        irqs.raise(2);
        assert_eq!((first.1.take(), second.1.take()), (None, Some(1)));
        irqs.raise(0);
        irqs.raise(0);
        irqs.raise(1);
        irqs.raise(7);
        assert_eq!((first.1.take(), second.1.take()), (Some(2), None));
        irqs.disable(index).expect("disabled");
        irqs.raise(0);
        assert_eq!(first.1.take(), None);
    }
}

#[test]
fn no_message_is_sent_while_bus_mastering_is_off() {
    let irqs = Irqs::new();
    let (fd, event) = irqs.event();
    irqs.set_events(MSIX_INDEX, 0, &[fd]).expect("MSI-X");
    irqs.raise(0);
    assert_eq!(event.take(), None);
    irqs.command(6);
    irqs.raise(0);
    assert_eq!(event.take(), Some(1));
}

#[test]
fn a_program_may_fire_its_own_vectors() {
    let irqs = Irqs::new();
    let (first, second) = (irqs.event(), irqs.event());
    irqs.set_events(MSIX_INDEX, 0, &[first.0, second.0]).expect("MSI-X");
    irqs.set(MSIX_INDEX, NONE | TRIGGER, 0, 4, &[]).expect("loop back");
    assert_eq!((first.1.take(), second.1.take()), (Some(1), Some(1)));
    irqs.set(MSIX_INDEX, BOOL | TRIGGER, 0, 2, &[0, 1]).expect("loop back");
    assert_eq!((first.1.take(), second.1.take()), (None, Some(1)));
}

#[test]
fn msix_grows_and_msi_does_not() {
    let irqs = Irqs::new();
    irqs.command(6);
    let (fd, event) = irqs.event();
    irqs.set_events(MSIX_INDEX, 0, &[-1]).expect("vector 0 without an eventfd");
    irqs.set_events(MSIX_INDEX, 9, &[fd]).expect("a later vector");
    irqs.raise(9);
    assert_eq!(event.take(), Some(1));
    irqs.disable(MSIX_INDEX).expect("disabled");
    irqs.set_events(MSI_INDEX, 0, &[fd, fd]).expect("two vectors");
    assert_eq!(errno(irqs.set_events(MSI_INDEX, 2, &[fd])), Some(Errno::EINVAL));
    irqs.set_events(MSI_INDEX, 2, &[-1]).expect("nothing to detach");
    irqs.set_events(MSI_INDEX, 1, &[fd]).expect("replaced");
}

#[test]
fn a_failing_eventfd_detaches_those_the_call_had_reached() {
    let irqs = Irqs::new();
    irqs.command(6);
    let events: Vec<_> = (0..4).map(|_| irqs.event()).collect();
    let fds: Vec<i32> = events.iter().map(|event| event.0).collect();
    irqs.set_events(MSIX_INDEX, 0, &fds).expect("four vectors");
    assert_eq!(errno(irqs.set_events(MSIX_INDEX, 1, &[fds[1], 1000, fds[3]])), Some(Errno::EBADF));
    (0..4).for_each(|vector| irqs.raise(vector));
    let heard: Vec<_> = events.iter().map(|event| event.1.take()).collect();
    assert_eq!(heard, [Some(1), None, None, Some(1)]);
}

/// The first byte of the pending bits, by pread.
fn pending(irqs: &Irqs) -> u8 {
    let mut bits = [0; 8];
    irqs.file.read(at(0, PENDING), &mut bits).expect("the pending bits");
    assert_eq!(bits[2..], [0; 6], "16 vectors");
    bits[0]
}

#[test]
fn a_message_waits_for_the_eventfd_of_its_vector() {
    let irqs = Irqs::new();
    irqs.command(6);
    let (first, second) = (irqs.event(), irqs.event());
    irqs.set_events(MSIX_INDEX, 0, &[first.0, first.0, -1]).expect("MSI-X");
    irqs.set_events(MSIX_INDEX, 1, &[-1]).expect("vector 1 loses its eventfd");
    for vector in [1, 2, 5, 1] {
        irqs.raise(vector);
    }
    assert_eq!((first.1.take(), pending(&irqs)), (None, 0b10_0110));
    irqs.set_events(MSIX_INDEX, 1, &[second.0]).expect("there again");
    assert_eq!((second.1.take(), pending(&irqs)), (Some(1), 0b10_0100));
    irqs.set_events(MSIX_INDEX, 5, &[second.0]).expect("allocated after the message");
    assert_eq!((second.1.take(), pending(&irqs)), (Some(1), 0b100));
    irqs.file.write(at(0, PENDING), &[0; 8]).expect("dropped");
    assert_eq!(pending(&irqs), 0b100);
}

#[test]
fn a_failing_call_leaves_the_vectors_it_had_reached_masked() {
    let irqs = Irqs::new();
    irqs.command(6);
    let (fd, event) = irqs.event();
    irqs.set_events(MSIX_INDEX, 0, &[fd, fd, fd]).expect("three vectors");
    assert_eq!(errno(irqs.set_events(MSIX_INDEX, 1, &[fd, 1000])), Some(Errno::EBADF));
    (0..3).for_each(|vector| irqs.raise(vector));
    assert_eq!((event.take(), pending(&irqs)), (Some(1), 0b110));
    irqs.set_events(MSIX_INDEX, 1, &[fd, fd]).expect("both");
    assert_eq!((event.take(), pending(&irqs)), (Some(2), 0));
}

#[test]
fn disabling_keeps_a_pending_message_and_a_reset_drops_it() {
    let irqs = Irqs::new();
    irqs.command(6);
    let (fd, event) = irqs.event();
    irqs.set_events(MSIX_INDEX, 0, &[fd, -1]).expect("MSI-X");
    irqs.raise(1);
    irqs.disable(MSIX_INDEX).expect("count 0");
    irqs.raise(2);
    assert_eq!((event.take(), pending(&irqs)), (None, 0b10), "2 was sent with MSI-X off: nowhere");
    irqs.set_events(MSIX_INDEX, 0, &[fd, fd, fd]).expect("MSI-X");
    assert_eq!((event.take(), pending(&irqs)), (Some(1), 0));
    irqs.raise(5);
    irqs.file.ioctl(&irqs.rig.caller, vfio::DEVICE_RESET, 0).expect("a reset");
    assert_eq!(pending(&irqs), 0);
    irqs.raise(5);
    irqs.raise(2);
    assert_eq!((event.take(), pending(&irqs)), (Some(1), 1 << 5), "2 still has its eventfd");
    irqs.file.write(at(7, 0x78), &0x8000_u16.to_le_bytes()).expect("FLR");
    assert_eq!(pending(&irqs), 0);
}

#[test]
fn a_message_of_msi_without_an_eventfd_is_lost() {
    // Its capability has no mask bits, so a message leaves the device whoever listens.
    let irqs = Irqs::new();
    irqs.command(6);
    let (fd, event) = irqs.event();
    irqs.set_events(MSI_INDEX, 0, &[fd, -1]).expect("MSI");
    irqs.raise(1);
    assert_eq!(pending(&irqs), 0);
    irqs.set_events(MSI_INDEX, 1, &[fd]).expect("an eventfd");
    assert_eq!(event.take(), None);
    irqs.raise(1);
    assert_eq!(event.take(), Some(1));
}

#[test]
fn the_pin_shows_in_the_status_register_whoever_hears_it() {
    let irqs = Irqs::new();
    let status = || {
        let mut bytes = [0];
        irqs.file.read(at(7, 6), &mut bytes).expect("STATUS");
        bytes[0] & 8
    };
    let (fd, event) = irqs.event();
    irqs.line(1);
    assert_eq!(status(), 8, "INTx is not enabled");
    irqs.command(1 << 10 | 3);
    assert_eq!(status(), 8, "DisINTx keeps the message back, not the bit");
    irqs.set_events(INTX, 0, &[fd]).expect("INTx");
    assert_eq!(event.take(), None);
    irqs.command(3);
    assert_eq!((event.take(), status()), (Some(1), 8), "sent as soon as it may be");
    irqs.line(0);
    assert_eq!(status(), 0);
    irqs.set(INTX, NONE | UNMASK, 0, 1, &[]).expect("unmasked");
    assert_eq!(event.take(), None, "its cause is gone");
}

#[test]
fn a_failed_first_enable_leaves_nothing() {
    let irqs = Irqs::new();
    let (fd, _event) = irqs.event();
    assert_eq!(errno(irqs.set_events(MSIX_INDEX, 0, &[fd, 1000])), Some(Errno::EBADF));
    assert_eq!(errno(irqs.disable(MSIX_INDEX)), Some(Errno::EINVAL));
    irqs.set_events(INTX, 0, &[fd]).expect("another kind");
}

#[test]
fn configuration_space_shows_what_is_enabled() {
    let irqs = Irqs::new();
    let msix = capability(&irqs, 0x11);
    let enabled = |irqs: &Irqs| {
        let mut flags = [0; 2];
        irqs.file.read(at(7, msix + 2), &mut flags).expect("the control word");
        u16::from_le_bytes(flags) & 1 << 15 != 0
    };
    assert!(!enabled(&irqs));
    let (fd, _event) = irqs.event();
    irqs.set_events(MSIX_INDEX, 0, &[fd]).expect("MSI-X");
    assert!(enabled(&irqs));
    irqs.disable(MSIX_INDEX).expect("disabled");
    assert!(!enabled(&irqs));
}

fn capability(irqs: &Irqs, id: u8) -> u64 {
    let byte = |offset: u64| {
        let mut byte = [0];
        irqs.file.read(at(7, offset), &mut byte).expect("a byte");
        byte[0]
    };
    let mut next = u64::from(byte(0x34));
    while byte(next) != id {
        next = u64::from(byte(next + 1));
        assert_ne!(next, 0, "capability {id:#x} exists");
    }
    next
}

#[test]
fn a_pin_is_heard_once_and_again_when_unmasked() {
    let irqs = Irqs::new();
    let (fd, event) = irqs.event();
    irqs.set_events(INTX, 0, &[fd]).expect("INTx");
    irqs.line(1);
    assert_eq!(event.take(), Some(1));
    irqs.line(0);
    irqs.line(1);
    assert_eq!(event.take(), None, "masked by being heard");
    irqs.set(INTX, NONE | UNMASK, 0, 1, &[]).expect("unmask");
    assert_eq!(event.take(), Some(1), "still asserted");
    irqs.line(0);
    irqs.set(INTX, BOOL | UNMASK, 0, 1, &[1]).expect("unmask");
    assert_eq!(event.take(), None, "quiet");
    irqs.line(1);
    assert_eq!(event.take(), Some(1));
}

#[test]
fn a_pin_whose_cause_the_program_took_away_is_not_heard_when_it_unmasks() {
    let irqs = Irqs::new();
    let (fd, event) = irqs.event();
    irqs.set_events(INTX, 0, &[fd]).expect("INTx");
    irqs.line(1);
    assert_eq!(event.take(), Some(1));
    irqs.rig.write32(&irqs.file, ACKNOWLEDGE, 1);
    irqs.set(INTX, NONE | UNMASK, 0, 1, &[]).expect("unmask");
    assert_eq!(event.take(), None, "its cause is gone, though the worker has not looked");
    irqs.rig.write32(&irqs.file, ACKNOWLEDGE, 0);
    irqs.line(1);
    assert_eq!(event.take(), Some(1), "a new cause is heard");
}

#[test]
fn a_masked_pin_waits() {
    let irqs = Irqs::new();
    let (fd, event) = irqs.event();
    irqs.set_events(INTX, 0, &[fd]).expect("INTx");
    irqs.set(INTX, BOOL | MASK, 0, 1, &[0]).expect("not masked");
    irqs.set(INTX, NONE | MASK, 0, 1, &[]).expect("masked");
    irqs.line(1);
    assert_eq!(event.take(), None);
    irqs.set(INTX, BOOL | UNMASK, 0, 1, &[0]).expect("not unmasked");
    assert_eq!(event.take(), None);
    irqs.set(INTX, NONE | UNMASK, 0, 1, &[]).expect("unmasked");
    assert_eq!(event.take(), Some(1));
    assert_eq!(errno(irqs.set(INTX, EVENTFD | MASK, 0, 1, fd.as_bytes())), Some(Errno::ENOTTY));
}

#[test]
fn a_pin_asserted_before_it_is_enabled_is_heard() {
    let irqs = Irqs::new();
    irqs.line(1);
    let (fd, event) = irqs.event();
    irqs.set_events(INTX, 0, &[fd]).expect("INTx");
    assert_eq!(event.take(), Some(1));
    irqs.disable(INTX).expect("disabled");
    irqs.line(0);
    irqs.line(1);
    assert_eq!(event.take(), None);
}

#[test]
fn the_command_register_disables_the_pin() {
    let irqs = Irqs::new();
    let (fd, event) = irqs.event();
    irqs.set_events(INTX, 0, &[fd]).expect("INTx");
    irqs.command(2 | 1 << 10);
    irqs.line(1);
    irqs.set(INTX, NONE | TRIGGER, 0, 1, &[]).expect("loop back");
    irqs.set(INTX, NONE | UNMASK, 0, 1, &[]).expect("unmask");
    assert_eq!(event.take(), None);
    irqs.command(2);
    assert_eq!(event.take(), Some(1));
}

#[test]
fn a_pin_without_an_eventfd_is_enabled_all_the_same() {
    let irqs = Irqs::new();
    let (fd, event) = irqs.event();
    irqs.set_events(INTX, 0, &[-1]).expect("INTx without an eventfd");
    irqs.set_events(INTX, 0, &[fd]).expect("its eventfd");
    irqs.set(INTX, BOOL | TRIGGER, 0, 1, &[0]).expect("nothing");
    assert_eq!(event.take(), None);
    irqs.set(INTX, BOOL | TRIGGER, 0, 1, &[1]).expect("loop back");
    assert_eq!(event.take(), Some(1));
}

#[test]
fn an_eventfd_of_the_program_unmasks_the_pin() {
    let irqs = Irqs::new();
    let ((fd, event), (unmask, resample)) = (irqs.event(), irqs.event());
    irqs.set_events(INTX, 0, &[fd]).expect("INTx");
    irqs.set(INTX, EVENTFD | UNMASK, 0, 1, unmask.as_bytes()).expect("an unmask eventfd");
    let second = irqs.set(INTX, EVENTFD | UNMASK, 0, 1, unmask.as_bytes());
    assert_eq!(errno(second), Some(Errno::EBUSY));
    irqs.line(1);
    assert_eq!(event.take(), Some(1));
    resample.signal();
    let deadline = Instant::now() + Duration::from_secs(60);
    while event.take().is_none() {
        assert!(Instant::now() < deadline, "the eventfd unmasks");
        std::thread::sleep(Duration::from_millis(1));
    }
    irqs.set(INTX, EVENTFD | UNMASK, 0, 1, (-1_i32).as_bytes()).expect("removed");
    irqs.set(INTX, EVENTFD | UNMASK, 0, 1, unmask.as_bytes()).expect("set again");
    irqs.disable(INTX).expect("disabled");
}

/// Linux lets go of it when the last descriptor goes (`virqfd_wakeup`, `EPOLLHUP`).
#[test]
fn an_unmask_eventfd_that_its_program_closed_makes_room_for_another() {
    let irqs = Irqs::new();
    let ((fd, event), (unmask, _), (other, resample)) = (irqs.event(), irqs.event(), irqs.event());
    irqs.set_events(INTX, 0, &[fd]).expect("INTx");
    irqs.set(INTX, EVENTFD | UNMASK, 0, 1, unmask.as_bytes()).expect("an unmask eventfd");
    let busy = irqs.set(INTX, EVENTFD | UNMASK, 0, 1, other.as_bytes());
    assert_eq!(errno(busy), Some(Errno::EBUSY));
    irqs.rig.caller.close(unmask);
    let closed = irqs.set(INTX, EVENTFD | UNMASK, 0, 1, unmask.as_bytes());
    assert_eq!(errno(closed), Some(Errno::EBADF), "the new one is judged first");
    irqs.set(INTX, EVENTFD | UNMASK, 0, 1, other.as_bytes()).expect("the old one is gone");
    irqs.line(1);
    assert_eq!(event.take(), Some(1));
    resample.signal();
    let deadline = Instant::now() + Duration::from_secs(60);
    while event.take().is_none() {
        assert!(Instant::now() < deadline, "the eventfd unmasks");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn err_and_req_take_one_eventfd_and_fire_on_demand() {
    let irqs = Irqs::new();
    for index in [ERR, REQ] {
        let (fd, event) = irqs.event();
        irqs.set_events(index, 0, &[fd]).expect("an eventfd");
        irqs.set(index, NONE | TRIGGER, 0, 1, &[]).expect("fired");
        irqs.set(index, BOOL | TRIGGER, 0, 1, &[1]).expect("fired");
        irqs.set(index, BOOL | TRIGGER, 0, 1, &[0]).expect("not fired");
        assert_eq!(event.take(), Some(2));
        for (flags, data) in [(BOOL, &[][..]), (EVENTFD, &[]), (EVENTFD, (-2_i32).as_bytes())] {
            let count = u32::from(!data.is_empty());
            let refused = irqs.set(index, flags | TRIGGER, 0, count, data);
            assert_eq!(errno(refused), Some(Errno::EINVAL), "{index} {flags}");
        }
        irqs.disable(index).expect("removed");
        irqs.set(index, BOOL | TRIGGER, 0, 1, &[1]).expect("nobody hears");
        irqs.set_events(index, 0, &[-1]).expect("nothing to remove");
        assert_eq!(event.take(), None);
    }
}

#[test]
fn nothing_is_heard_after_the_device_is_closed() {
    let irqs = Irqs::new();
    irqs.command(6);
    let (fd, event) = irqs.event();
    irqs.set_events(MSIX_INDEX, 0, &[fd]).expect("MSI-X");
    irqs.set_events(REQ, 0, &[fd]).expect("REQ");
    irqs.file.close();
    irqs.rig.machine.remove_all();
    assert_eq!(event.take(), None);
}
