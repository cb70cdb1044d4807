//! Every call on groups and devices with each of its fallible steps failing in turn: what can be
//! seen stays as it was, and then the call succeeds.

use std::sync::Arc;

use ioasis_iommufd::account::Charges;
use ioasis_iommufd::type1::Container;
use ioasis_iommufd::{Context, Iova, Segment, inject};
use ioasis_sys::eventfd::EventFd;
use ioasis_uapi::iommufd as iommu;
use ioasis_uapi::vfio::{
    self, DeviceAttachIommufdPt, DeviceBindIommufd, DeviceDetachIommufdPt, DeviceFeature,
    DeviceFeatureDmaBuf, DeviceIoeventfd, DeviceLowPowerEntryWithWakeup, GroupStatus,
    IommuType1DmaMap, IrqSet, PciHotReset, PciHotResetInfo, RegionDmaRange,
};
use ioasis_uapi::{Errno, Result};
use ioasis_vfio::{DeviceFile, GroupFile, IommuFile, KvmDevice};
use zerocopy::IntoBytes;

use crate::rig::{ARG, BASE, FETCH, RAISE, Rig, SCRATCH, at, errno};

/// Where the memory is that devices reach.
const IOVA: u64 = 0x4_0000;
const PASID: u32 = 1;
const VECTORS: u32 = 5;

/// A client with two groups on one bus, an emulated device, and what it opened of them.
struct Scene {
    rig: Rig,
    containers: Vec<(i32, Arc<Container>)>,
    contexts: Vec<(i32, Arc<Context>)>,
    groups: Vec<Arc<GroupFile>>,
    files: Vec<Arc<DeviceFile>>,
    events: Vec<(i32, EventFd)>,
}

/// Everything that can be seen, and how many descriptors there are.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    status: Vec<u32>,
    owned: Vec<bool>,
    charges: Vec<(u32, Charges)>,
    windows: usize,
    /// Of each iommufd: the next id, and the IOAS of the compatible container.
    contexts: Vec<(u32, Option<u32>)>,
    /// What each open device reads.
    reached: Vec<Option<u64>>,
    /// What each device reads with a PASID.
    with_pasid: Vec<Option<[u8; 8]>>,
    /// Which eventfds each open device signals with its vectors.
    raised: Vec<Vec<usize>>,
    scratch: Vec<Option<[u8; 4]>>,
    descriptors: i32,
}

impl Scene {
    fn new() -> Self {
        let rig =
            Rig::with(&[("0000:01:00.0", 1), ("0000:01:00.1", 2), ("0000:02:00.0", Rig::EMULATED)]);
        rig.caller.put(BASE + 0x2000, &0x1234_5678_u64.to_le_bytes());
        let events = (0..4).map(|_| rig.caller.add_event()).collect();
        Self {
            rig,
            containers: Vec::new(),
            contexts: Vec::new(),
            groups: Vec::new(),
            files: Vec::new(),
            events,
        }
    }

    fn with_container() -> Self {
        let mut scene = Self::new();
        let container = scene.rig.hardware.container();
        let fd = scene.rig.caller.add_iommu(IommuFile::Container(Arc::clone(&container)));
        scene.containers.push((fd, container));
        scene
    }

    /// With an iommufd that has an IOAS, number 1, which is that of the compatible container.
    fn with_context() -> Self {
        let mut scene = Self::new();
        let context = scene.rig.hardware.context();
        let ioas = context.alloc_ioas().expect("an IOAS");
        context.set_compat_ioas(ioas).expect("it is there");
        scene.rig.map(&context, ioas, BASE + 0x2000, IOVA);
        let fd = scene.rig.caller.add_iommu(IommuFile::Iommufd(Arc::clone(&context)));
        scene.contexts.push((fd, context));
        scene
    }

    /// The first device open through its group, in a container that maps a page.
    fn open() -> Self {
        let mut scene = Self::with_container();
        scene.open_group(0);
        scene.set_container(0).expect("a container");
        scene.set_iommu();
        scene.map().expect("mapped");
        scene.open_device(0, 0).expect("a device");
        scene
    }

    fn open_group(&mut self, index: usize) {
        self.groups.push(self.rig.group(index));
    }

    fn open_device(&mut self, group: usize, device: usize) -> Result<()> {
        let name = self.rig.machine.devices()[device].name().to_owned();
        let file = self.rig.device_fd(&self.groups[group], &name)?;
        self.files.push(file);
        Ok(())
    }

    fn set_container(&self, group: usize) -> Result<()> {
        let fds = self.containers.iter().map(|(fd, _)| *fd);
        let fd = fds.chain(self.contexts.iter().map(|(fd, _)| *fd)).next().expect("one");
        self.rig.set_container(&self.groups[group], fd)
    }

    fn set_iommu(&self) {
        self.rig.hardware.set_iommu(&self.containers[0].1, &self.rig.caller);
    }

    fn map(&self) -> Result<()> {
        let map = IommuType1DmaMap {
            argsz: 32,
            flags: vfio::DMA_MAP_FLAG_READ | vfio::DMA_MAP_FLAG_WRITE,
            vaddr: BASE + 0x2000,
            iova: IOVA,
            size: 0x1000,
        };
        let address = self.rig.caller.arg(&map);
        self.containers[0].1.ioctl(&self.rig.caller, vfio::IOMMU_MAP_DMA, address).map(|_| ())
    }

    fn call(&self, command: u32, arg: &[u8]) -> Result<()> {
        self.rig.caller.put(ARG, arg);
        self.files[0].ioctl(&self.rig.caller, command, ARG).map(|_| ())
    }

    fn bind(&self) -> Result<()> {
        let bind =
            DeviceBindIommufd { argsz: 16, iommufd: self.contexts[0].0, ..Default::default() };
        self.call(vfio::DEVICE_BIND_IOMMUFD, bind.as_bytes())
    }

    fn attach(&self, flags: u32, pt_id: u32) -> Result<()> {
        let attach = DeviceAttachIommufdPt { argsz: 16, flags, pt_id, pasid: PASID };
        self.call(vfio::DEVICE_ATTACH_IOMMUFD_PT, attach.as_bytes())
    }

    fn detach(&self, flags: u32) -> Result<()> {
        let detach = DeviceDetachIommufdPt { argsz: 12, flags, pasid: PASID };
        self.call(vfio::DEVICE_DETACH_IOMMUFD_PT, detach.as_bytes())
    }

    /// A page table for PASIDs on the IOAS.
    fn alloc_hwpt(&self) -> u32 {
        let alloc = iommu::HwptAlloc {
            size: 48,
            flags: iommu::HWPT_ALLOC_PASID,
            dev_id: 2,
            pt_id: 1,
            ..Default::default()
        };
        let address = self.rig.caller.arg(&alloc);
        self.contexts[0].1.ioctl(&self.rig.caller, iommu::HWPT_ALLOC, address).expect("a HWPT");
        self.rig.caller.get::<iommu::HwptAlloc>(ARG).out_hwpt_id
    }

    fn set_irqs(&self, index: u32, action: u32, start: u32, events: &[usize]) -> Result<()> {
        let fds: Vec<i32> = events.iter().map(|event| self.events[*event].0).collect();
        let count = u32::try_from(fds.len()).expect("few");
        let flags = vfio::IRQ_SET_DATA_EVENTFD | action;
        let set = IrqSet { argsz: 20 + 4 * count, flags, index, start, count };
        self.call(vfio::DEVICE_SET_IRQS, &[set.as_bytes(), fds.as_bytes()].concat())
    }

    fn feature(&self, flags: u32, payload: &[u8]) -> Result<()> {
        let argsz = 8 + u32::try_from(payload.len()).expect("short");
        let flags = vfio::DEVICE_FEATURE_SET | flags;
        let flags = if flags & vfio::DEVICE_FEATURE_MASK == vfio::DEVICE_FEATURE_DMA_BUF {
            flags ^ (vfio::DEVICE_FEATURE_SET | vfio::DEVICE_FEATURE_GET)
        } else {
            flags
        };
        let head = DeviceFeature { argsz, flags };
        self.call(vfio::DEVICE_FEATURE, &[head.as_bytes(), payload].concat())
    }

    /// What a device reads through its own registers.
    fn fetch(file: &DeviceFile) -> Option<u64> {
        file.write(at(7, 4), &6_u16.to_le_bytes()).ok()?;
        file.write(at(0, FETCH), &IOVA.to_le_bytes()).expect("a register");
        let mut word = [0; 8];
        file.read(at(0, FETCH), &mut word).expect("a register");
        Some(u64::from_le_bytes(word))
    }

    fn raise(&self, file: &DeviceFile) -> Vec<usize> {
        for vector in 0..VECTORS {
            if file.write(at(0, RAISE), &vector.to_le_bytes()).is_err() {
                return Vec::new();
            }
        }
        (0..self.events.len()).filter(|event| self.events[*event].1.take().is_some()).collect()
    }

    fn seen(&self) -> Seen {
        let status = |group: &Arc<GroupFile>| {
            let address = self.rig.caller.arg(&GroupStatus { argsz: 8, flags: 0 });
            group.ioctl(&self.rig.caller, vfio::GROUP_GET_STATUS, address).expect("a status");
            self.rig.caller.get::<GroupStatus>(ARG).flags
        };
        let next_id = |(_, context): &(i32, Arc<Context>)| {
            let id = context.alloc_ioas().expect("an IOAS");
            context.destroy(id).expect("nobody uses it");
            (id, context.compat_ioas_id().ok())
        };
        let devices = self.rig.machine.devices();
        let with_pasid = devices.iter().map(|device| {
            let mut word = [0; 8];
            let segment = Segment { iova: Iova(IOVA), length: 8 };
            let read = device.endpoint().with_pasid(PASID).read([segment], &mut word);
            read.ok().map(|()| word)
        });
        let scratch = |file: &Arc<DeviceFile>| {
            let mut word = [0; 4];
            file.read(at(0, SCRATCH), &mut word).ok().map(|_| word)
        };
        let machine = &self.rig.hardware.machine;
        Seen {
            status: self.groups.iter().map(status).collect(),
            owned: devices.iter().map(|device| device.endpoint().group().is_owned()).collect(),
            charges: machine.ledger.processes(),
            windows: machine.phys.windows(),
            contexts: self.contexts.iter().map(next_id).collect(),
            reached: self.files.iter().map(|file| Self::fetch(file)).collect(),
            with_pasid: with_pasid.collect(),
            raised: self.files.iter().map(|file| self.raise(file)).collect(),
            scratch: self.files.iter().map(scratch).collect(),
            descriptors: self.rig.caller.descriptors(),
        }
    }

    /// Closes everything and looks for what is left.
    fn close(self) {
        self.files.iter().for_each(|file| file.close());
        self.groups.iter().for_each(|group| group.close());
        let machine = Arc::clone(&self.rig.hardware.machine);
        for device in self.rig.machine.devices() {
            assert!(!device.endpoint().group().is_owned());
        }
        for group in self.rig.machine.groups() {
            group.open(&self.rig.caller).expect("no group is left open").close();
        }
        drop(self);
        assert_eq!(machine.ledger.processes(), []);
        assert_eq!(machine.phys.windows(), 0);
    }
}

/// Fails each step of `call`, of which `least` are known.
fn fail_each(
    name: &str,
    mut scene: Scene,
    least: u32,
    call: impl FnMut(&mut Scene) -> Result<()>,
) -> Scene {
    // A look wakes a device, and tells of it.
    scene.seen();
    let before = scene.seen();
    let failed = |scene: &mut Scene, nth, answer: Result<()>| {
        assert_eq!(errno(answer), Some(Errno::ENOMEM), "step {nth} of {name}");
        assert_eq!(scene.seen(), before, "step {nth} of {name}");
        Ok::<_, Errno>(())
    };
    let (answer, steps) = inject::fail_each(&mut scene, call, failed).expect("asserted");
    answer.unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(steps >= least, "{name} has {steps} steps that fail, {least} were known");
    println!("{name}: {steps}");
    scene
}

#[test]
fn every_failed_step_of_a_group_leaves_everything_as_it_was() {
    let scene = Scene::new();
    let scene = fail_each("an open of a group", scene, 1, |scene| {
        let opened = scene.rig.machine.groups()[0].open(&scene.rig.caller)?;
        scene.groups.push(opened);
        Ok(())
    });
    scene.close();

    let mut scene = Scene::with_container();
    scene.open_group(0);
    let scene = fail_each("SET_CONTAINER", scene, 0, |scene| scene.set_container(0));
    scene.set_iommu();
    scene.map().expect("mapped");
    let mut scene = scene;
    scene.open_group(1);
    let scene = fail_each("SET_CONTAINER with a driver", scene, 1, |scene| scene.set_container(1));
    let scene = fail_each("GET_DEVICE_FD", scene, 2, |scene| scene.open_device(0, 0));
    let scene = fail_each("GET_DEVICE_FD again", scene, 0, |scene| scene.open_device(0, 0));
    let unset = |scene: &mut Scene| {
        scene.groups[1].ioctl(&scene.rig.caller, vfio::GROUP_UNSET_CONTAINER, 0).map(|_| ())
    };
    fail_each("UNSET_CONTAINER", scene, 0, unset).close();
}

#[test]
fn every_failed_step_of_a_group_on_an_iommufd_leaves_everything_as_it_was() {
    let mut scene = Scene::with_context();
    let context = &scene.contexts[0].1;
    context.clear_compat_ioas();
    scene.open_group(0);
    let scene = fail_each("SET_CONTAINER on an iommufd", scene, 1, |scene| scene.set_container(0));
    scene.contexts[0].1.set_compat_ioas(1).expect("it is there");
    fail_each("GET_DEVICE_FD on an iommufd", scene, 8, |scene| scene.open_device(0, 0)).close();
}

#[test]
fn every_failed_step_of_an_emulated_device_leaves_everything_as_it_was() {
    let mut scene = Scene::with_container();
    scene.open_group(2);
    let scene = fail_each("SET_CONTAINER, emulated", scene, 0, |scene| scene.set_container(0));
    scene.set_iommu();
    scene.map().expect("mapped");
    fail_each("GET_DEVICE_FD, emulated", scene, 2, |scene| scene.open_device(0, 2)).close();

    let mut scene = Scene::with_context();
    scene.open_group(2);
    scene.set_container(0).expect("a container");
    let name = "GET_DEVICE_FD on an iommufd, emulated";
    fail_each(name, scene, 4, |scene| scene.open_device(0, 2)).close();
}

#[test]
fn every_failed_step_of_a_devices_own_node_leaves_everything_as_it_was() {
    let scene = Scene::with_context();
    let scene = fail_each("an open of a node", scene, 1, |scene| {
        let file = scene.rig.machine.devices()[0].open_cdev(&scene.rig.caller)?;
        scene.files.push(file);
        Ok(())
    });
    let scene = fail_each("BIND", scene, 3, |scene| scene.bind());
    let scene = fail_each("ATTACH", scene, 4, |scene| scene.attach(0, 1));
    let hwpt = scene.alloc_hwpt();
    let scene = fail_each("ATTACH that replaces", scene, 1, |scene| scene.attach(0, hwpt));
    let pasid = vfio::DEVICE_ATTACH_PASID;
    let scene = fail_each("ATTACH of a PASID", scene, 1, |scene| scene.attach(pasid, hwpt));
    let other = scene.alloc_hwpt();
    let name = "ATTACH that replaces a PASID";
    let scene = fail_each(name, scene, 1, |scene| scene.attach(pasid, other));
    let scene = fail_each("DETACH of a PASID", scene, 0, |scene| scene.detach(pasid));
    fail_each("DETACH", scene, 0, |scene| scene.detach(0)).close();
}

#[test]
fn every_failed_step_of_interrupts_leaves_everything_as_it_was() {
    const TRIGGER: u32 = vfio::IRQ_SET_ACTION_TRIGGER;
    let set = |name, scene, least, index, action, start, events: &[usize]| {
        fail_each(name, scene, least, |scene| scene.set_irqs(index, action, start, events))
    };
    let intx = vfio::PCI_INTX_IRQ_INDEX;
    let scene = set("INTx", Scene::open(), 2, intx, TRIGGER, 0, &[0]);
    set("INTx's unmask", scene, 4, intx, vfio::IRQ_SET_ACTION_UNMASK, 0, &[1]).close();
    let msi = vfio::PCI_MSI_IRQ_INDEX;
    let scene = set("MSI", Scene::open(), 4, msi, TRIGGER, 0, &[0, 1]);
    // What a failed call names is detached, as in Linux: here it was not attached before.
    let none = IrqSet {
        argsz: 20,
        flags: vfio::IRQ_SET_DATA_NONE | TRIGGER,
        index: msi,
        start: 0,
        count: 0,
    };
    let disable = |scene: &mut Scene| scene.call(vfio::DEVICE_SET_IRQS, none.as_bytes());
    let scene = fail_each("MSI off", scene, 0, disable);
    let msix = vfio::PCI_MSIX_IRQ_INDEX;
    let scene = set("MSI-X", scene, 3, msix, TRIGGER, 0, &[2]);
    let scene = set("MSI-X that grows", scene, 3, msix, TRIGGER, 2, &[0, 1]);
    let scene = set("ERR", scene, 2, vfio::PCI_ERR_IRQ_INDEX, TRIGGER, 0, &[3]);
    set("REQ", scene, 2, vfio::PCI_REQ_IRQ_INDEX, TRIGGER, 0, &[3]).close();
}

#[test]
fn every_failed_step_of_a_reset_leaves_everything_as_it_was() {
    let scene = Scene::open();
    scene.rig.write32(&scene.files[0], SCRATCH, 5);
    let mut scene = scene;
    scene.open_group(1);
    let fds = [0, 1].map(|group: usize| scene.rig.caller.add_group(&scene.groups[group]));
    let info = PciHotResetInfo { argsz: 64, ..Default::default() };
    let name = "GET_PCI_HOT_RESET_INFO";
    let scene = fail_each(name, scene, 1, |scene| {
        scene.call(vfio::DEVICE_GET_PCI_HOT_RESET_INFO, info.as_bytes())
    });
    let hot = PciHotReset { argsz: 20, flags: 0, count: 2 };
    let scene = fail_each("PCI_HOT_RESET by groups", scene, 1, |scene| {
        scene.call(vfio::DEVICE_PCI_HOT_RESET, &[hot.as_bytes(), fds.as_bytes()].concat())
    });
    fail_each("RESET", scene, 0, |scene| scene.call(vfio::DEVICE_RESET, &[])).close();
}

#[test]
fn every_failed_step_of_kvms_device_leaves_everything_as_it_was() {
    let scene = Scene::open();
    let fd = scene.rig.caller.add_group(&scene.groups[0]);
    let kvm = KvmDevice::default();
    let add = |scene: &mut Scene| {
        let address = scene.rig.caller.arg(&fd);
        kvm.set_attr(&scene.rig.caller, 1, 1, address)
    };
    fail_each("KVM_DEV_VFIO_FILE_ADD", scene, 1, add).close();
}

#[test]
fn every_failed_step_of_a_feature_leaves_everything_as_it_was() {
    let scene = Scene::open();
    let fd = scene.events[0].0;
    let ioeventfd = DeviceIoeventfd {
        argsz: 32,
        flags: vfio::DEVICE_IOEVENTFD_32,
        offset: at(0, SCRATCH),
        data: 7,
        fd,
        ..Default::default()
    };
    let scene = fail_each("IOEVENTFD", scene, 3, |scene| {
        scene.call(vfio::DEVICE_IOEVENTFD, ioeventfd.as_bytes())
    });
    // Another than the device waits for.
    let wakeup_eventfd = scene.events[1].0;
    let entry = DeviceLowPowerEntryWithWakeup { wakeup_eventfd, ..Default::default() };
    let scene = fail_each("LOW_POWER_ENTRY_WITH_WAKEUP", scene, 1, |scene| {
        scene.feature(vfio::DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP, entry.as_bytes())
    });
    let buffer = DeviceFeatureDmaBuf { region_index: 2, open_flags: 0, flags: 0, nr_ranges: 1 };
    let range = RegionDmaRange { offset: 0, length: 0x1000 };
    fail_each("DMA_BUF", scene, 2, |scene| {
        let payload = [buffer.as_bytes(), range.as_bytes()].concat();
        scene.feature(vfio::DEVICE_FEATURE_DMA_BUF, &payload)
    })
    .close();
}
