//! Devices opened through their own node: bind, attach, detach.

use std::sync::Arc;

use ioasis_uapi::vfio::{
    self, DeviceAttachIommufdPt, DeviceBindIommufd, DeviceDetachIommufdPt, PciHotReset,
    PciHotResetInfo,
};
use ioasis_uapi::{Errno, Result};
use ioasis_vfio::{DeviceFile, Driver, IommuFile};
use zerocopy::IntoBytes;

use crate::rig::{ARG, BASE, FETCH, LENGTH, NOWHERE, READ_ONLY, Rig, SCRATCH, at, errno};

/// A device file that is not bound, and an iommufd.
struct Cdev {
    rig: Rig,
    context: Arc<ioasis_iommufd::Context>,
    fd: i32,
    file: Arc<DeviceFile>,
}

impl Cdev {
    fn new() -> Self {
        Self::on(Rig::new())
    }

    fn on(rig: Rig) -> Self {
        let context = rig.hardware.context();
        let fd = rig.caller.add_iommu(IommuFile::Iommufd(Arc::clone(&context)));
        let file = rig.first().open_cdev(&rig.caller).expect("an open");
        Self { rig, context, fd, file }
    }

    fn bound() -> Self {
        let this = Self::new();
        this.bind().expect("bound");
        this
    }

    fn bind(&self) -> Result<u32> {
        bind(&self.rig, &self.file, self.fd)
    }

    fn attach(&self, pt_id: u32) -> Result<u32> {
        let call = DeviceAttachIommufdPt { argsz: 12, pt_id, ..Default::default() };
        Ok(self.rig.call(&self.file, vfio::DEVICE_ATTACH_IOMMUFD_PT, &call)?.pt_id)
    }

    fn detach(&self) -> Result<()> {
        let call = DeviceDetachIommufdPt { argsz: 8, ..Default::default() };
        self.rig.call(&self.file, vfio::DEVICE_DETACH_IOMMUFD_PT, &call).map(|_| ())
    }

    /// What the device reads at an I/O virtual address; none when the transfer faults.
    fn fetch(&self, iova: u64) -> Option<u64> {
        self.file.write(at(7, 4), &6_u16.to_le_bytes()).expect("bus mastering");
        self.file.write(at(0, FETCH), &iova.to_le_bytes()).expect("a register");
        let mut word = [0; 8];
        self.file.read(at(0, FETCH), &mut word).expect("a register");
        let word = u64::from_le_bytes(word);
        (word != 0xeeee_eeee_eeee_eeee).then_some(word)
    }

    /// An IOAS that maps a page of the client at 0x40000.
    fn ioas(&self) -> u32 {
        let id = self.context.alloc_ioas().expect("an IOAS");
        self.rig.map(&self.context, id, BASE + 0x2000, 0x4_0000);
        id
    }
}

fn bind(rig: &Rig, file: &DeviceFile, iommufd: i32) -> Result<u32> {
    let call = DeviceBindIommufd { argsz: 16, iommufd, ..Default::default() };
    Ok(rig.call(file, vfio::DEVICE_BIND_IOMMUFD, &call)?.out_devid)
}

#[test]
fn nothing_works_before_a_bind() {
    let cdev = Cdev::new();
    let (rig, file) = (&cdev.rig, &cdev.file);
    for command in [vfio::DEVICE_GET_INFO, vfio::DEVICE_RESET, vfio::DEVICE_ATTACH_IOMMUFD_PT, 0] {
        assert_eq!(
            errno(file.ioctl(&rig.caller, command, NOWHERE)),
            Some(Errno::EINVAL),
            "{command:#x}"
        );
    }
    assert_eq!(errno(file.read(at(7, 0), &mut [])), Some(Errno::EINVAL));
    assert_eq!(errno(file.write(at(7, 0), &[0])), Some(Errno::EINVAL));
    assert_eq!(errno(file.mmap(at(2, 0), 0x1000, 1)), Some(Errno::EINVAL));
    cdev.bind().expect("bound");
    file.read(at(7, 0), &mut [0]).expect("a register");
}

#[test]
fn a_bind_is_checked_in_the_order_of_linux() {
    let cdev = Cdev::new();
    let rig = &cdev.rig;
    let other = rig.caller.add_other();
    let container = rig.caller.add_iommu(IommuFile::Container(rig.hardware.container()));
    let good = DeviceBindIommufd { argsz: 24, iommufd: cdev.fd, ..Default::default() };
    let token = vfio::DEVICE_BIND_FLAG_TOKEN;
    let rows = [
        ("argsz", DeviceBindIommufd { argsz: 15, ..good }, Errno::EINVAL),
        ("an unknown flag", DeviceBindIommufd { flags: 2, ..good }, Errno::EINVAL),
        ("a negative fd", DeviceBindIommufd { iommufd: -1, ..good }, Errno::EINVAL),
        (
            "a token that is not there",
            DeviceBindIommufd { flags: token, token_uuid_ptr: NOWHERE, iommufd: 1000, ..good },
            Errno::EFAULT,
        ),
        (
            "a token that is not needed",
            DeviceBindIommufd { flags: token, token_uuid_ptr: BASE, ..good },
            Errno::EINVAL,
        ),
        ("a closed fd", DeviceBindIommufd { iommufd: 1000, ..good }, Errno::EBADF),
        ("no iommufd", DeviceBindIommufd { iommufd: other, ..good }, Errno::EBADFD),
        ("a container", DeviceBindIommufd { iommufd: container, ..good }, Errno::EBADFD),
    ];
    for (why, call, expected) in rows {
        assert_eq!(
            errno(rig.call(&cdev.file, vfio::DEVICE_BIND_IOMMUFD, &call)),
            Some(expected),
            "{why}"
        );
    }
    assert_eq!(
        errno(cdev.file.ioctl(&rig.caller, vfio::DEVICE_BIND_IOMMUFD, NOWHERE)),
        Some(Errno::EFAULT)
    );
    // The attempts left nothing: the group opens, and the device binds.
    rig.group(0).close();
    rig.call(&cdev.file, vfio::DEVICE_BIND_IOMMUFD, &good).expect("bound");
}

#[test]
fn unknown_fields_of_a_bind_must_be_zero() {
    let cdev = Cdev::new();
    let (rig, file) = (&cdev.rig, &cdev.file);
    let call = DeviceBindIommufd { argsz: 40, iommufd: cdev.fd, ..Default::default() };
    rig.caller.put(ARG, call.as_bytes());
    rig.caller.put(ARG + 24, &[0; 16]);
    rig.caller.put(ARG + 39, &[1]);
    assert_eq!(errno(file.ioctl(&rig.caller, vfio::DEVICE_BIND_IOMMUFD, ARG)), Some(Errno::E2BIG));
    let end = BASE + LENGTH as u64 - 24;
    rig.caller.put(end, call.as_bytes());
    assert_eq!(errno(file.ioctl(&rig.caller, vfio::DEVICE_BIND_IOMMUFD, end)), Some(Errno::EFAULT));
    rig.caller.put(ARG + 39, &[0]);
    file.ioctl(&rig.caller, vfio::DEVICE_BIND_IOMMUFD, ARG).expect("bound");
}

#[test]
fn a_bind_whose_reply_cannot_be_written_is_undone() {
    let cdev = Cdev::new();
    let call = DeviceBindIommufd { argsz: 16, iommufd: cdev.fd, ..Default::default() };
    cdev.rig.caller.put(READ_ONLY, call.as_bytes());
    let refused = cdev.file.ioctl(&cdev.rig.caller, vfio::DEVICE_BIND_IOMMUFD, READ_ONLY);
    assert_eq!(errno(refused), Some(Errno::EFAULT));
    assert_eq!(cdev.bind().expect("bound"), 1, "the id is free again");
}

#[test]
fn one_of_several_opens_binds_once() {
    let cdev = Cdev::bound();
    assert_eq!(errno(cdev.bind()), Some(Errno::EINVAL));
    let second = cdev.rig.first().open_cdev(&cdev.rig.caller).expect("another open");
    assert_eq!(errno(bind(&cdev.rig, &second, cdev.fd)), Some(Errno::EINVAL));
    second.close();
    cdev.file.read(at(7, 0), &mut [0]).expect("the bound one goes on");
    cdev.file.close();
    let third = cdev.rig.first().open_cdev(&cdev.rig.caller).expect("another open");
    bind(&cdev.rig, &third, cdev.fd).expect("bound");
}

#[test]
fn a_group_and_a_bound_device_exclude_each_other() {
    let cdev = Cdev::new();
    let group = cdev.rig.group(0);
    assert_eq!(errno(cdev.bind()), Some(Errno::EBUSY));
    group.close();
    cdev.bind().expect("bound");
    assert_eq!(errno(cdev.rig.machine.groups()[0].open(&cdev.rig.caller)), Some(Errno::EBUSY));
    cdev.file.close();
    cdev.rig.group(0);
}

#[test]
fn a_file_of_a_group_neither_binds_nor_attaches() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    let fd = rig.caller.add_iommu(IommuFile::Iommufd(rig.hardware.context()));
    assert_eq!(errno(bind(&rig, &file, fd)), Some(Errno::EINVAL));
    for command in [vfio::DEVICE_ATTACH_IOMMUFD_PT, vfio::DEVICE_DETACH_IOMMUFD_PT] {
        assert_eq!(
            errno(file.ioctl(&rig.caller, command, ARG)),
            Some(Errno::ENOTTY),
            "{command:#x}"
        );
    }
}

#[test]
fn a_device_reads_what_it_is_attached_to() {
    let cdev = Cdev::bound();
    cdev.rig.caller.put(BASE + 0x2010, &0x1122_3344_5566_7788_u64.to_le_bytes());
    assert_eq!(cdev.fetch(0x4_0010), None, "blocked");
    let ioas = cdev.ioas();
    assert_ne!(cdev.attach(ioas).expect("attached"), ioas, "the page table used is told");
    assert_eq!(cdev.fetch(0x4_0010), Some(0x1122_3344_5566_7788));
    assert_eq!(cdev.fetch(0x5_0000), None, "not mapped");
    let empty = cdev.context.alloc_ioas().expect("an IOAS");
    cdev.attach(empty).expect("replaced");
    assert_eq!(cdev.fetch(0x4_0010), None, "moved away");
    cdev.attach(ioas).expect("replaced");
    cdev.detach().expect("detached");
    cdev.detach().expect("detached already");
    assert_eq!(cdev.fetch(0x4_0010), None, "blocked again");
}

#[test]
fn no_dma_without_bus_mastering() {
    let cdev = Cdev::bound();
    let ioas = cdev.ioas();
    cdev.attach(ioas).expect("attached");
    cdev.file.write(at(0, FETCH), &0x4_0000_u64.to_le_bytes()).expect("a register");
    let mut word = [0; 8];
    cdev.file.read(at(0, FETCH), &mut word).expect("a register");
    assert_eq!(word, [0xee; 8]);
}

#[test]
fn an_attach_is_checked_in_the_order_of_linux() {
    let cdev = Cdev::bound();
    let ioas = cdev.ioas();
    let good = DeviceAttachIommufdPt { argsz: 16, flags: 0, pt_id: ioas, pasid: 0 };
    let with_pasid = vfio::DEVICE_ATTACH_PASID;
    let rows = [
        ("argsz", DeviceAttachIommufdPt { argsz: 11, ..good }, Errno::EINVAL),
        ("an unknown flag", DeviceAttachIommufdPt { flags: 2, ..good }, Errno::EINVAL),
        (
            "a PASID without room",
            DeviceAttachIommufdPt { argsz: 15, flags: with_pasid, ..good },
            Errno::EINVAL,
        ),
        ("no such page table", DeviceAttachIommufdPt { pt_id: u32::MAX, ..good }, Errno::ENOENT),
    ];
    for (why, call, expected) in rows {
        let refused = cdev.rig.call(&cdev.file, vfio::DEVICE_ATTACH_IOMMUFD_PT, &call);
        assert_eq!(errno(refused), Some(expected), "{why}");
    }
    let detach = DeviceDetachIommufdPt { argsz: 12, flags: 0, pasid: 0 };
    for (why, call) in [
        ("argsz", DeviceDetachIommufdPt { argsz: 7, ..detach }),
        ("an unknown flag", DeviceDetachIommufdPt { flags: 2, ..detach }),
        ("a PASID without room", DeviceDetachIommufdPt { argsz: 11, flags: 1, ..detach }),
    ] {
        let refused = cdev.rig.call(&cdev.file, vfio::DEVICE_DETACH_IOMMUFD_PT, &call);
        assert_eq!(errno(refused), Some(Errno::EINVAL), "{why}");
    }
    for command in [vfio::DEVICE_ATTACH_IOMMUFD_PT, vfio::DEVICE_DETACH_IOMMUFD_PT] {
        let fault = cdev.file.ioctl(&cdev.rig.caller, command, NOWHERE);
        assert_eq!(errno(fault), Some(Errno::EFAULT), "{command:#x}");
    }
}

#[test]
fn an_attach_whose_reply_cannot_be_written_is_undone() {
    let cdev = Cdev::bound();
    let call = DeviceAttachIommufdPt { argsz: 12, pt_id: cdev.ioas(), ..Default::default() };
    cdev.rig.caller.put(READ_ONLY, call.as_bytes());
    let refused = cdev.file.ioctl(&cdev.rig.caller, vfio::DEVICE_ATTACH_IOMMUFD_PT, READ_ONLY);
    assert_eq!(errno(refused), Some(Errno::EFAULT));
    assert_eq!(cdev.fetch(0x4_0000), None);
}

/// One step on a device: a call, its PASID if it has one, Linux's answer, and whether the device
/// reaches memory afterwards.
type OnPasid = (bool, Option<u32>, Option<Errno>, bool);

/// The file keeps an account of its own of PASIDs, which does not know what was attached without
/// one (`vfio_iommufd_physical_pasid_attach_ioas`, `vfio_iommufd_physical_attach_ioas`).
#[test]
fn pasid_zero_is_the_device_by_another_account() {
    const ATTACH: bool = true;
    const DETACH: bool = false;
    let cases: [&[OnPasid]; 4] = [
        // Attached without a PASID: PASID 0 is busy, and is not there to be detached.
        &[
            (ATTACH, None, None, true),
            (ATTACH, Some(0), Some(Errno::EBUSY), true),
            (DETACH, Some(0), None, true),
            (ATTACH, None, None, true),
            (DETACH, None, None, false),
        ],
        // The other way round.
        &[
            (ATTACH, Some(0), None, true),
            (ATTACH, Some(0), None, true),
            (ATTACH, None, Some(Errno::EBUSY), true),
            (DETACH, None, None, true),
            (DETACH, Some(0), None, false),
            (ATTACH, None, None, true),
        ],
        // A refused attach leaves no account.
        &[
            (ATTACH, None, None, true),
            (ATTACH, Some(0), Some(Errno::EBUSY), true),
            (DETACH, None, None, false),
            (ATTACH, Some(0), None, true),
        ],
        // ida_alloc_range takes 31 bits.
        &[
            (ATTACH, Some(1 << 31), Some(Errno::ENOSPC), false),
            (DETACH, Some(1 << 31), None, false),
            (ATTACH, Some(1 << 20), Some(Errno::EINVAL), false),
        ],
    ];
    for steps in cases {
        let cdev = Cdev::bound();
        let pt_id = cdev.ioas();
        for (number, &(attach, pasid, answer, reaches)) in steps.iter().enumerate() {
            let (flags, pasid) = (u32::from(pasid.is_some()), pasid.unwrap_or(0));
            let answered = if attach {
                let call = DeviceAttachIommufdPt { argsz: 16, flags, pt_id, pasid };
                cdev.rig.call(&cdev.file, vfio::DEVICE_ATTACH_IOMMUFD_PT, &call).map(|_| ())
            } else {
                let call = DeviceDetachIommufdPt { argsz: 12, flags, pasid };
                cdev.rig.call(&cdev.file, vfio::DEVICE_DETACH_IOMMUFD_PT, &call).map(|_| ())
            };
            assert_eq!(errno(answered), answer, "step {number}");
            assert_eq!(cdev.fetch(0x4_0000).is_some(), reaches, "step {number}");
        }
    }
}

#[test]
fn a_closed_device_leaves_its_iommufd_empty() {
    let cdev = Cdev::bound();
    let ioas = cdev.ioas();
    cdev.attach(ioas).expect("attached");
    assert_eq!(errno(cdev.context.destroy(ioas)), Some(Errno::EBUSY));
    assert_eq!(errno(cdev.context.destroy(1)), Some(Errno::EBUSY), "the device");
    cdev.file.close();
    assert_eq!(errno(cdev.context.destroy(1)), Some(Errno::ENOENT), "the device is gone");
    cdev.context.destroy(ioas).expect("nobody holds it");
}

#[test]
fn a_second_iommufd_does_not_get_a_group_that_is_owned() {
    let rig = Rig::with(&[("0000:01:00.0", 1), ("0000:01:00.1", 1)]);
    let cdev = Cdev::on(rig);
    cdev.bind().expect("bound");
    let neighbour = cdev.rig.machine.devices()[1].open_cdev(&cdev.rig.caller).expect("an open");
    let foreign = cdev.rig.caller.add_iommu(IommuFile::Iommufd(cdev.rig.hardware.context()));
    assert_eq!(errno(bind(&cdev.rig, &neighbour, foreign)), Some(Errno::EPERM));
    bind(&cdev.rig, &neighbour, cdev.fd).expect("the same iommufd");
}

#[test]
fn a_hot_reset_of_bound_devices_needs_no_groups() {
    let places = [("0000:01:00.0", 1), ("0000:01:00.1", 1), ("0000:01:00.2", 2)];
    let cdev = Cdev::on(Rig::with(&places));
    let (rig, file) = (&cdev.rig, &cdev.file);
    let id = cdev.bind().expect("bound");
    rig.write32(file, SCRATCH, 5);
    let reset = |fds: u32| {
        rig.caller.put(ARG, PciHotReset { argsz: 12, flags: 0, count: fds }.as_bytes());
        errno(file.ioctl(&rig.caller, vfio::DEVICE_PCI_HOT_RESET, ARG))
    };
    let info = || {
        rig.caller.put(ARG, PciHotResetInfo { argsz: 36, ..Default::default() }.as_bytes());
        file.ioctl(&rig.caller, vfio::DEVICE_GET_PCI_HOT_RESET_INFO, ARG).expect("information");
        let info: PciHotResetInfo = rig.caller.get(ARG);
        let ids = [0, 1, 2].map(|i| rig.caller.get::<u32>(ARG + 12 + 8 * i));
        (info.flags, ids)
    };
    let by_id = vfio::PCI_HOT_RESET_FLAG_DEV_ID;
    assert_eq!(info(), (by_id, [id, vfio::PCI_DEVID_OWNED, vfio::PCI_DEVID_NOT_OWNED]));
    let neighbour = &rig.machine.devices()[1];
    neighbour.unbind_driver();
    neighbour.end_leaving();
    let none = vfio::PCI_DEVID_NOT_OWNED;
    assert_eq!(info(), (by_id, [id, none, none]), "without VFIO's driver it is nobody's");
    neighbour.bind_driver(Driver::Vfio).expect("a driver");
    assert_eq!(reset(1), Some(Errno::EINVAL), "group fds");
    assert_eq!(reset(0), Some(Errno::EINVAL), "a device of nobody");
    let third = rig.machine.devices()[2].open_cdev(&rig.caller).expect("an open");
    let third_id = bind(rig, &third, cdev.fd).expect("bound");
    let owned = by_id | vfio::PCI_HOT_RESET_FLAG_DEV_ID_OWNED;
    assert_eq!(info(), (owned, [id, vfio::PCI_DEVID_OWNED, third_id]));
    assert_eq!(reset(0), None);
    let mut buf = [0; 4];
    file.read(at(0, SCRATCH), &mut buf).expect("a register");
    assert_eq!(buf, [0; 4]);
}

/// Where the arguments of calls lie that are answered late; their answers lie on the page behind.
const EDGE: u64 = BASE + 0x4000;

#[test]
fn a_bind_or_attach_that_waits_for_a_page_keeps_nobody_from_its_bus() {
    let cdev = Cdev::on(Rig::with(&[("0000:01:00.0", 1), ("0000:01:00.1", 2)]));
    let (rig, file) = (&cdev.rig, &cdev.file);
    let ioas = cdev.ioas();
    let neighbour = || rig.machine.devices()[1].open_cdev(&rig.caller).expect("an open");
    let use_bus = || {
        let other = neighbour();
        bind(rig, &other, cdev.fd).expect("bound");
        other.close();
    };
    let put = |call: &[u8], before: u64| {
        rig.caller.put(EDGE - before, call);
        EDGE - before
    };
    let call = DeviceBindIommufd { argsz: 16, iommufd: cdev.fd, ..Default::default() };
    let at = put(call.as_bytes(), 12);
    let late = &rig.caller.written_late;
    let bind_late = || file.ioctl(&rig.caller, vfio::DEVICE_BIND_IOMMUFD, at);
    let second = rig.first().open_cdev(&rig.caller).expect("an open");
    late.during(EDGE, bind_late, || {
        use_bus();
        assert_eq!(errno(bind(rig, &second, cdev.fd)), Some(Errno::EBUSY), "it is being opened");
    })
    .expect("bound");
    let call = DeviceAttachIommufdPt { argsz: 12, pt_id: ioas, ..Default::default() };
    let at = put(call.as_bytes(), 8);
    let attach_late = || file.ioctl(&rig.caller, vfio::DEVICE_ATTACH_IOMMUFD_PT, at);
    late.during(EDGE, attach_late, use_bus).expect("attached");
    assert!(cdev.fetch(0x4_0000).is_some());
}

#[test]
fn a_token_that_waits_for_a_page_keeps_nobody_from_the_bus() {
    let cdev = Cdev::on(Rig::with(&[("0000:01:00.0", 1), ("0000:01:00.1", 2)]));
    let (rig, file) = (&cdev.rig, &cdev.file);
    let flags = vfio::DEVICE_BIND_FLAG_TOKEN;
    let call = DeviceBindIommufd {
        argsz: 24,
        flags,
        iommufd: cdev.fd,
        out_devid: 0,
        token_uuid_ptr: EDGE,
    };
    rig.caller.put(BASE, call.as_bytes());
    let bind_late = || file.ioctl(&rig.caller, vfio::DEVICE_BIND_IOMMUFD, BASE);
    let refused = rig.caller.read_late.during(EDGE, bind_late, || {
        let other = rig.machine.devices()[1].open_cdev(&rig.caller).expect("an open");
        bind(rig, &other, cdev.fd).expect("bound");
    });
    assert_eq!(errno(refused), Some(Errno::EINVAL), "the device wants no token");
}

#[test]
fn a_file_that_is_closed_while_it_binds_leaves_the_device_to_others() {
    let cdev = Cdev::new();
    let (rig, file) = (&cdev.rig, &cdev.file);
    let call = DeviceBindIommufd { argsz: 16, iommufd: cdev.fd, ..Default::default() };
    rig.caller.put(EDGE - 12, call.as_bytes());
    let bind_late = || file.ioctl(&rig.caller, vfio::DEVICE_BIND_IOMMUFD, EDGE - 12);
    let _answer = rig.caller.written_late.during(EDGE, bind_late, || file.close());
    let next = rig.first().open_cdev(&rig.caller).expect("an open");
    bind(rig, &next, cdev.fd).expect("nobody has it");
    next.close();
    rig.group(0).close();
}
