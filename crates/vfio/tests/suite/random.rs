//! Any calls in any order: none panics, and what was opened is gone when it is closed.

use std::sync::Arc;

use ioasis_iommufd as iommufd;
use ioasis_iommufd::type1::Container;
use ioasis_uapi::Errno;
use ioasis_uapi::vfio::{self, DeviceAttachIommufdPt, DeviceBindIommufd, GroupStatus, IrqSet};
use ioasis_vfio::{DeviceFile, GroupFile, IommuFile};
use proptest::prelude::*;
use zerocopy::IntoBytes;

use crate::rig::{ARG, BASE, FETCH, LENGTH, NOWHERE, Rig, at};

/// One call; what the numbers mean is the call's business.
#[derive(Clone, Copy, Debug)]
struct Call {
    kind: u8,
    which: usize,
    small: u32,
    large: u64,
}

fn call() -> impl Strategy<Value = Call> {
    let small = prop_oneof![0..12_u32, Just(u32::MAX), any::<u32>()];
    let large = prop_oneof![
        0..0x4000_u64,
        (0..10_u64, 0..0x5000_u64).prop_map(|(index, offset)| at(index, offset)),
        any::<u64>()
    ];
    (0..14_u8, 0..8_usize, small, large).prop_map(|(kind, which, small, large)| Call {
        kind,
        which,
        small,
        large,
    })
}

/// Everything a client has open.
struct Client {
    rig: Rig,
    containers: [Arc<Container>; 2],
    contexts: [Arc<iommufd::Context>; 2],
    groups: Vec<Arc<GroupFile>>,
    files: Vec<Arc<DeviceFile>>,
    events: Vec<ioasis_sys::eventfd::EventFd>,
}

impl Client {
    fn new() -> Self {
        let rig = Rig::with(&[("0000:01:00.0", 1), ("0000:01:00.1", 1), ("0000:02:00.0", 2)]);
        let containers = [rig.hardware.container(), rig.hardware.container()];
        let contexts = [rig.hardware.context(), rig.hardware.context()];
        // Descriptors 3 to 9.
        for container in &containers {
            rig.caller.add_iommu(IommuFile::Container(Arc::clone(container)));
        }
        for context in &contexts {
            rig.caller.add_iommu(IommuFile::Iommufd(Arc::clone(context)));
            let ioas = context.alloc_ioas().expect("an IOAS");
            rig.map(context, ioas, BASE, 0x4_0000);
        }
        rig.caller.add_other();
        let events = (0..2).map(|_| rig.caller.add_event().1).collect();
        Self { rig, containers, contexts, groups: Vec::new(), files: Vec::new(), events }
    }

    fn fd(call: Call) -> i32 {
        i32::try_from(call.small % 12).expect("small") - 1
    }

    fn file(&self, call: Call) -> Option<&Arc<DeviceFile>> {
        self.files.get(call.which % self.files.len().max(1))
    }

    fn group(&self, call: Call) -> Option<&Arc<GroupFile>> {
        self.groups.get(call.which % self.groups.len().max(1))
    }

    /// An ioctl on the chosen device file, with this argument.
    fn ioctl(&self, call: Call, command: u32, arg: &[u8]) {
        let address = match call.which {
            0 => NOWHERE,
            1 => BASE + LENGTH as u64 - 20,
            _ => ARG,
        };
        if call.which != 0 {
            let room = usize::try_from(BASE + LENGTH as u64 - address).expect("small");
            self.rig.caller.put(address, &arg[..arg.len().min(room)]);
        }
        if let Some(file) = self.file(call) {
            // Whatever it answers.
            let _ = file.ioctl(&self.rig.caller, command, address);
        }
    }

    fn make(&mut self, call: Call) {
        match call.kind {
            0 => {
                let group = &self.rig.machine.groups()[call.which % 2];
                self.groups.extend(group.open(&self.rig.caller));
            }
            1 if !self.groups.is_empty() => {
                let at = call.which % self.groups.len();
                self.groups.swap_remove(at).close();
            }
            2 => self.on_group(call),
            3 => {
                let names = ["0000:01:00.0", "0000:01:00.1", "0000:02:00.0", "x"];
                let found =
                    self.group(call).map(|group| self.rig.device_fd(group, names[call.which % 4]));
                self.keep(found);
            }
            4 => {
                let device = &self.rig.machine.devices()[call.which % 3];
                let opened = device.open_cdev(&self.rig.caller);
                self.keep(Some(opened));
            }
            5 if !self.files.is_empty() => {
                let at = call.which % self.files.len();
                self.files.swap_remove(at).close();
            }
            6 => self.bind_or_attach(call),
            7 => {
                // SET_IOMMU, whose result is as good as any.
                let container = &self.containers[call.which % 2];
                let _ = container.ioctl(&self.rig.caller, vfio::SET_IOMMU, (call.small % 4).into());
            }
            8 | 9 => self.set_irqs(call),
            10 => {
                let arg =
                    [call.small, call.small >> 3, 0, call.small % 10, 7, 8, call.small % 12, 0];
                self.ioctl(call, 0x3b64 + call.small % 24, arg.as_bytes());
            }
            _ => self.access(call),
        }
    }

    fn keep(&mut self, found: Option<ioasis_uapi::Result<Arc<DeviceFile>>>) {
        let Some(Ok(file)) = found else { return };
        if !self.files.iter().any(|other| Arc::ptr_eq(other, &file)) {
            self.files.push(file);
        }
    }

    fn on_group(&self, call: Call) {
        let Some(group) = self.group(call) else { return };
        let command = [
            vfio::GROUP_SET_CONTAINER,
            vfio::GROUP_SET_CONTAINER,
            vfio::GROUP_UNSET_CONTAINER,
            vfio::GROUP_GET_STATUS,
        ][call.which % 4];
        let address = self.rig.caller.arg(&Self::fd(call));
        let _ = group.ioctl(&self.rig.caller, command, address);
    }

    fn bind_or_attach(&self, call: Call) {
        if call.large.is_multiple_of(2) {
            let bind =
                DeviceBindIommufd { argsz: 16, iommufd: Self::fd(call), ..Default::default() };
            return self.ioctl(call, vfio::DEVICE_BIND_IOMMUFD, bind.as_bytes());
        }
        let attach = DeviceAttachIommufdPt {
            argsz: 16,
            flags: call.small & 1,
            pt_id: call.small % 6,
            pasid: call.small / 2 % 3,
        };
        let commands = [vfio::DEVICE_ATTACH_IOMMUFD_PT, vfio::DEVICE_DETACH_IOMMUFD_PT];
        self.ioctl(call, commands[usize::from(call.small > 8)], attach.as_bytes());
    }

    fn set_irqs(&self, call: Call) {
        let data = 1 << (call.large % 3);
        let action = 1 << (3 + call.large / 3 % 3);
        let (start, count) = (call.small % 5, call.small % 7);
        let index = u32::try_from(call.large % 5).expect("small");
        let set = IrqSet { argsz: 20 + count * 4, flags: data | action, index, start, count };
        let fds = [Self::fd(call), 8, 9, -1, 8, 9, 7];
        self.ioctl(call, vfio::DEVICE_SET_IRQS, &[set.as_bytes(), fds.as_bytes()].concat());
    }

    fn access(&self, call: Call) {
        let Some(file) = self.file(call) else { return };
        let mut buf = [0xff; 40];
        let length = usize::try_from(call.small % 40).expect("small");
        let _ = match call.kind {
            11 => file.read(call.large, &mut buf[..length]),
            12 => file.write(call.large, &call.large.to_le_bytes()),
            _ => file.write(at(0, FETCH), &0x4_0000_u64.to_le_bytes()),
        };
        let _ = file.mmap(call.large, u64::from(call.small), call.small % 4);
    }

    /// Closes everything in this order, and looks for what is left.
    fn close(self) {
        for file in &self.files {
            file.close();
        }
        for group in &self.groups {
            group.close();
        }
        for event in &self.events {
            event.signal();
        }
        for group in self.rig.machine.groups() {
            let file = group.open(&self.rig.caller).expect("no group is left open");
            let address = self.rig.caller.arg(&GroupStatus { argsz: 8, flags: 0 });
            file.ioctl(&self.rig.caller, vfio::GROUP_GET_STATUS, address).expect("a status");
            let status: GroupStatus = self.rig.caller.get(ARG);
            assert_eq!(
                status.flags,
                vfio::GROUP_FLAGS_VIABLE,
                "nobody owns group {}",
                group.number()
            );
            file.close();
        }
        for context in &self.contexts {
            let busy =
                |id: &u32| context.destroy(*id).is_err_and(|error| error.errno != Errno::ENOENT);
            // Page tables go before what they are of.
            let left: Vec<u32> = (1..40).rev().filter(busy).collect();
            assert_eq!(left.iter().filter(|id| busy(id)).count(), 0, "objects {left:?} are held");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_calls_leaves_nothing_behind(calls in proptest::collection::vec(call(), 1..60)) {
        let mut client = Client::new();
        for call in calls {
            client.make(call);
        }
        client.close();
    }
}
