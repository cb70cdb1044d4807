//! Physical and virtual functions: the token, resets, and what is there when.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ioasis_uapi::vfio::{
    self, DeviceAttachIommufdPt, DeviceBindIommufd, DeviceFeature, DeviceInfo, IrqInfo, IrqSet,
    PciDependentDevice, PciHotReset, PciHotResetInfo,
};
use ioasis_uapi::{Errno, Result};
use ioasis_vfio::{Device, DeviceFile, GroupFile, IommuFile};
use zerocopy::IntoBytes;

use crate::rig::{ARG, BASE, NOWHERE, Rig, at, errno};

const ONE: &str = "52ac9bff-3a88-4fbd-901a-0d767c3b6c97";
const TWO: &str = "88594674-90a0-47a9-aea8-9d9b352ac08a";

fn bytes(uuid: &str) -> [u8; 16] {
    let digits = uuid.replace('-', "");
    let byte = |i: usize| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).expect("hexadecimal");
    std::array::from_fn(byte)
}

/// A physical function with one virtual function of two, the groups of both in one container.
struct Pair {
    rig: Rig,
    groups: [Arc<GroupFile>; 2],
}

impl Pair {
    fn new() -> Self {
        let rig = Rig::with_virtual_functions(2);
        rig.first().create_virtual_functions(1).expect("a virtual function");
        let groups = [rig.group_in_container(0), rig.group_in_container(1)];
        Self { rig, groups }
    }

    fn device(&self, index: usize) -> &Arc<Device> {
        &self.rig.machine.devices()[index]
    }

    /// The device by its group; with a token unless that is empty.
    fn open(&self, index: usize, token: &str) -> Result<Arc<DeviceFile>> {
        let mut name = self.device(index).name().to_owned();
        if !token.is_empty() {
            name = format!("{name} vf_token={token}");
        }
        self.rig.device_fd(&self.groups[index], &name)
    }

    fn set_token(&self, file: &DeviceFile, flags: u32, token: &str, argsz: u32) -> Option<Errno> {
        let flags = flags | vfio::DEVICE_FEATURE_PCI_VF_TOKEN;
        self.rig.caller.put(ARG, DeviceFeature { argsz, flags }.as_bytes());
        self.rig.caller.put(ARG + 8, &bytes(token));
        errno(file.ioctl(&self.rig.caller, vfio::DEVICE_FEATURE, ARG))
    }
}

#[test]
fn a_virtual_function_is_there_from_its_creation_to_its_end() {
    let rig = Rig::with_virtual_functions(2);
    let (physical, first) = (&rig.machine.devices()[0], &rig.machine.devices()[1]);
    assert!(physical.exists() && !first.exists() && physical.virtual_functions().is_empty());
    assert_eq!(errno(first.open_cdev(&rig.caller)), Some(Errno::ENODEV));
    assert_eq!(errno(rig.machine.groups()[1].open(&rig.caller)), Some(Errno::ENODEV));
    physical.create_virtual_functions(1).expect("one");
    let names: Vec<_> =
        physical.virtual_functions().iter().map(|device| device.name().to_owned()).collect();
    assert_eq!(names, ["0000:01:10.0"]);
    assert_eq!(first.physical_function().expect("one").name(), "0000:01:00.0");
    assert!(!rig.machine.devices()[2].exists());
    rig.group(1).close();
    assert_eq!(errno(physical.create_virtual_functions(2)), Some(Errno::EINVAL));
    physical.end_virtual_functions();
    assert!(!first.exists());
    physical.create_virtual_functions(2).expect("two");
    assert!(rig.machine.devices()[2].exists());
    assert_eq!(errno(physical.create_virtual_functions(1)), Some(Errno::EINVAL));
    assert_eq!(errno(first.create_virtual_functions(1)), Some(Errno::ENOTTY));
}

#[test]
fn a_virtual_function_opens_with_the_token_of_its_physical_one() {
    let pair = Pair::new();
    let physical = pair.open(0, ONE).expect("an idle one takes any");
    assert_eq!(errno(pair.open(1, "")), Some(Errno::EACCES));
    assert_eq!(errno(pair.open(1, TWO)), Some(Errno::EACCES));
    pair.open(1, ONE).expect("the token").close();
    // It outlives whoever set it.
    physical.close();
    assert_eq!(errno(pair.open(1, TWO)), Some(Errno::EACCES));
    pair.open(1, ONE).expect("the token");
}

#[test]
fn nobody_knows_the_token_before_it_is_set() {
    let pair = Pair::new();
    for token in ["", ONE, "00000000-0000-0000-0000-000000000000"] {
        assert_eq!(errno(pair.open(1, token)), Some(Errno::EACCES), "{token}");
    }
    pair.open(0, "").expect("no token, none set").close();
    assert_eq!(errno(pair.open(1, "00000000-0000-0000-0000-000000000000")), Some(Errno::EACCES));
}

#[test]
fn a_physical_function_with_users_opens_with_their_token_alone() {
    let pair = Pair::new();
    pair.open(0, ONE).expect("the first").close();
    let user = pair.open(1, ONE).expect("a user");
    assert_eq!(errno(pair.open(0, "")), Some(Errno::EACCES));
    assert_eq!(errno(pair.open(0, TWO)), Some(Errno::EACCES));
    let physical = pair.open(0, ONE).expect("their token");
    // A second open of what is open is one user.
    let again = pair.open(1, ONE).expect("again");
    assert!(Arc::ptr_eq(&user, &again));
    user.close();
    physical.close();
    pair.open(0, TWO).expect("no user, any token").close();
    assert_eq!(errno(pair.open(1, ONE)), Some(Errno::EACCES), "which is the token now");
}

#[test]
fn a_refused_open_is_no_user() {
    let pair = Pair::new();
    pair.open(0, ONE).expect("the first").close();
    assert_eq!(errno(pair.open(1, TWO)), Some(Errno::EACCES));
    pair.open(0, TWO).expect("nobody uses it");
}

#[test]
fn the_feature_sets_the_token_and_shows_it_to_nobody() {
    let pair = Pair::new();
    let file = pair.open(0, ONE).expect("the physical function");
    let (get, set) = (vfio::DEVICE_FEATURE_GET, vfio::DEVICE_FEATURE_SET);
    let probe = vfio::DEVICE_FEATURE_PROBE;
    for (why, flags, argsz, expected) in [
        ("no GET", get, 24, Some(Errno::EINVAL)),
        ("no GET to probe", get | probe, 8, Some(Errno::EINVAL)),
        ("SET to probe", set | probe, 8, None),
        ("no operation", 0, 24, Some(Errno::EINVAL)),
        ("too short", set, 23, Some(Errno::EINVAL)),
    ] {
        assert_eq!(pair.set_token(&file, flags, TWO, argsz), expected, "{why}");
    }
    pair.open(1, ONE).expect("nothing was set").close();
    assert_eq!(pair.set_token(&file, set, TWO, 24), None);
    assert_eq!(errno(pair.open(1, ONE)), Some(Errno::EACCES));
    let virtual_function = pair.open(1, TWO).expect("the token now");
    assert_eq!(pair.set_token(&virtual_function, set, ONE, 24), Some(Errno::ENOTTY));
    // Users or not, whoever has the physical function sets it.
    assert_eq!(pair.set_token(&file, set, ONE, 24), None);
    let flags = set | vfio::DEVICE_FEATURE_PCI_VF_TOKEN;
    let end = BASE + 0x1_0000 - 8;
    pair.rig.caller.put(end, DeviceFeature { argsz: 24, flags }.as_bytes());
    let cut = file.ioctl(&pair.rig.caller, vfio::DEVICE_FEATURE, end);
    assert_eq!(errno(cut), Some(Errno::EFAULT));
}

#[test]
fn a_bind_carries_the_token_in_memory() {
    let rig = Rig::with_virtual_functions(1);
    rig.first().create_virtual_functions(1).expect("a virtual function");
    let fd = rig.caller.add_iommu(IommuFile::Iommufd(rig.hardware.context()));
    let files = [0, 1].map(|i| rig.machine.devices()[i].open_cdev(&rig.caller).expect("open"));
    let token = vfio::DEVICE_BIND_FLAG_TOKEN;
    let bind = |index: usize, flags: u32, uuid: &str| {
        rig.caller.put(BASE, &bytes(uuid));
        let token_uuid_ptr = if flags == 0 { NOWHERE } else { BASE };
        let call = DeviceBindIommufd {
            argsz: 24,
            flags,
            iommufd: fd,
            token_uuid_ptr,
            ..Default::default()
        };
        errno(rig.call(&files[index], vfio::DEVICE_BIND_IOMMUFD, &call))
    };
    assert_eq!(bind(0, token, ONE), None);
    assert_eq!(bind(1, 0, ONE), Some(Errno::EACCES));
    assert_eq!(bind(1, token, TWO), Some(Errno::EACCES));
    let nowhere = DeviceBindIommufd {
        argsz: 24,
        flags: token,
        iommufd: 1000,
        token_uuid_ptr: NOWHERE,
        ..Default::default()
    };
    let call = rig.call(&files[1], vfio::DEVICE_BIND_IOMMUFD, &nowhere);
    assert_eq!(errno(call), Some(Errno::EFAULT), "before the iommufd is looked for");
    rig.group(1).close();
    assert_eq!(bind(1, token, ONE), None);
    files[0].close();
    let again = rig.first().open_cdev(&rig.caller).expect("open");
    let call = DeviceBindIommufd { argsz: 16, iommufd: fd, ..Default::default() };
    let refused = rig.call(&again, vfio::DEVICE_BIND_IOMMUFD, &call);
    assert_eq!(errno(refused), Some(Errno::EACCES), "there is a user");
    files[1].close();
    rig.call(&again, vfio::DEVICE_BIND_IOMMUFD, &call).expect("bound");
}

#[test]
fn a_virtual_function_has_no_pin_and_resets_alone() {
    let pair = Pair::new();
    let physical = pair.open(0, ONE).expect("the physical function");
    let file = pair.open(1, ONE).expect("the virtual function");
    let info: DeviceInfo = pair
        .rig
        .call(&file, vfio::DEVICE_GET_INFO, &DeviceInfo { argsz: 24, ..Default::default() })
        .expect("info");
    assert_ne!(info.flags & vfio::DEVICE_FLAGS_RESET, 0);
    let irq = |index| {
        let asked = IrqInfo { argsz: 16, index, ..Default::default() };
        pair.rig.call(&file, vfio::DEVICE_GET_IRQ_INFO, &asked).expect("info").count
    };
    assert_eq!((irq(vfio::PCI_INTX_IRQ_INDEX), irq(vfio::PCI_MSI_IRQ_INDEX)), (0, 1));
    for file in [&physical, &file] {
        file.write(at(0, 0), &[7]).expect("a register");
    }
    file.write(at(7, 4), &[6]).expect("COMMAND");
    file.ioctl(&pair.rig.caller, vfio::DEVICE_RESET, 0).expect("a reset");
    assert_eq!((register(&physical), register(&file)), (7, 0));
    assert_eq!(command(&file), 6, "what the host saves and puts back");
}

fn register(file: &DeviceFile) -> u8 {
    let mut byte = [0];
    file.read(at(0, 0), &mut byte).expect("a register");
    byte[0]
}

fn command(file: &DeviceFile) -> u8 {
    let mut byte = [0];
    file.read(at(7, 4), &mut byte).expect("COMMAND");
    byte[0]
}

#[test]
fn a_reset_of_the_physical_function_takes_its_virtual_ones_along() {
    let pair = Pair::new();
    let physical = pair.open(0, ONE).expect("the physical function");
    let file = pair.open(1, ONE).expect("the virtual function");
    let by_register = |file: &DeviceFile| {
        file.write(at(7, 0x79), &[0x80]).expect("device control");
    };
    let by_call = |file: &DeviceFile| {
        file.ioctl(&pair.rig.caller, vfio::DEVICE_RESET, 0).expect("a reset");
    };
    for reset in [&by_register as &dyn Fn(&DeviceFile), &by_call] {
        file.write(at(0, 0), &[7]).expect("a register");
        file.write(at(7, 4), &[6]).expect("COMMAND");
        reset(&physical);
        assert_eq!((register(&file), command(&file)), (0, 2), "it masters the bus no more");
        assert_eq!(pair.rig.first().virtual_functions().len(), 1, "it is there all the same");
    }
}

#[test]
fn a_bus_with_virtual_functions_is_not_reset() {
    let pair = Pair::new();
    let physical = pair.open(0, ONE).expect("the physical function");
    let file = pair.open(1, ONE).expect("the virtual function");
    let caller = &pair.rig.caller;
    let header = PciHotResetInfo { argsz: 12 + 16, flags: 0, count: 0 };
    for file in [&physical, &file] {
        caller.put(ARG, header.as_bytes());
        file.ioctl(caller, vfio::DEVICE_GET_PCI_HOT_RESET_INFO, ARG).expect("both");
        let devices: [PciDependentDevice; 2] = [0, 1].map(|index| caller.get(ARG + 12 + 8 * index));
        assert_eq!(devices.map(|device| (device.id, device.devfn)), [(1, 0), (2, 0x80)]);
    }
    let fds = [0, 1].map(|index| caller.add_group(&pair.groups[index]));
    let reset = |file: &DeviceFile, count: u32| {
        caller.put(ARG, PciHotReset { argsz: 12, flags: 0, count }.as_bytes());
        caller.put(ARG + 12, fds.as_bytes());
        errno(file.ioctl(caller, vfio::DEVICE_PCI_HOT_RESET, ARG))
    };
    assert_eq!(reset(&physical, 2), Some(Errno::EINVAL));
    assert_eq!(reset(&file, 2), Some(Errno::EINVAL));
    file.close();
    pair.rig.first().end_virtual_functions();
    assert_eq!(reset(&physical, 1), None, "without them it is");
}

/// Copies a page from `iova` into a testdev; whether it could be reached.
fn copies(file: &DeviceFile, iova: u64) -> bool {
    file.write(at(7, 4), &[6]).expect("bus mastering");
    file.write(at(0, 0), &iova.to_le_bytes()).expect("ADDR");
    file.write(at(0, 8), &3_u32.to_le_bytes()).expect("CMD");
    let begin = Instant::now();
    loop {
        let mut command = [0; 4];
        file.read(at(0, 8), &mut command).expect("CMD");
        match u32::from_le_bytes(command) {
            0 => return true,
            done if done & 1 == 0 => return false,
            _ => assert!(begin.elapsed() < Duration::from_secs(60), "it ends"),
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_virtual_function_does_dma_by_its_own_mappings_and_interrupts_by_its_own_messages() {
    let rig = Rig::with_virtual_functions(1);
    rig.first().create_virtual_functions(1).expect("a virtual function");
    let context = rig.hardware.context();
    let fd = rig.caller.add_iommu(IommuFile::Iommufd(Arc::clone(&context)));
    rig.caller.put(BASE, &bytes(ONE));
    let flags = vfio::DEVICE_BIND_FLAG_TOKEN;
    let call = DeviceBindIommufd {
        argsz: 24,
        flags,
        iommufd: fd,
        token_uuid_ptr: BASE,
        ..Default::default()
    };
    let spaces = [0, 1].map(|_| context.alloc_ioas().expect("an IOAS"));
    rig.map(&context, spaces[1], BASE + 0x2000, 0x4_0000);
    let files = [0, 1].map(|index| {
        let file = rig.machine.devices()[index].open_cdev(&rig.caller).expect("open");
        rig.call(&file, vfio::DEVICE_BIND_IOMMUFD, &call).expect("bound");
        let attach =
            DeviceAttachIommufdPt { argsz: 12, pt_id: spaces[index], ..Default::default() };
        rig.call(&file, vfio::DEVICE_ATTACH_IOMMUFD_PT, &attach).expect("attached");
        file
    });
    let events = [0, 1].map(|index: usize| {
        let (fd, event) = rig.caller.add_event();
        let flags = vfio::IRQ_SET_DATA_EVENTFD | vfio::IRQ_SET_ACTION_TRIGGER;
        let index_of_msi = vfio::PCI_MSI_IRQ_INDEX;
        let set = IrqSet { argsz: 24, flags, index: index_of_msi, start: 0, count: 1 };
        rig.caller.put(ARG, set.as_bytes());
        rig.caller.put(ARG + 20, fd.as_bytes());
        files[index].ioctl(&rig.caller, vfio::DEVICE_SET_IRQS, ARG).expect("an eventfd");
        event
    });
    assert!(copies(&files[1], 0x4_0000), "the virtual function has the page");
    assert!(!copies(&files[0], 0x4_0000), "the physical one has not");
    let taken = events.map(|event| {
        let begin = Instant::now();
        // The command is done before its interrupt has been sent.
        std::iter::repeat_with(|| event.take())
            .find(|taken| taken.is_some() || begin.elapsed() > Duration::from_secs(60))
            .flatten()
    });
    assert_eq!(taken, [Some(1), Some(1)], "each its own");
    let devices = rig.machine.devices();
    assert_ne!(devices[0].group().number(), devices[1].group().number());
    assert_eq!(devices[1].endpoint().config().requester_id, 0x0180);
}
