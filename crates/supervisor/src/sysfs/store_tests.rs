//! Writes to a bus with a testdev that has two virtual functions, both in group 2, and one that
//! starts with a driver that does nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use ioasis_iommufd as iommufd;
use ioasis_iommufd::type1::{Container, GroupKind, Member};
use ioasis_pci::{Function, Windows};
use ioasis_uapi::{Errno, Result};
use ioasis_vfio::{Device, Machine, Placement};

use super::store::store;
use super::{Attribute, Bus, BusFile, DriverFile, FunctionFile, Host};

const PHYSICAL: &str = "0000:01:00.0";
const VIRTUAL: &str = "0000:01:10.0";
const OTHER: &str = "0000:02:00.0";
/// What the virtual functions are.
const IDS: &str = "1234 11ea";

#[derive(Debug)]
struct Rig {
    iommu: Arc<iommufd::Machine>,
    machine: Machine,
    group: Arc<iommufd::Group>,
    bus: Bus,
}

impl Host for Rig {
    fn bus(&self) -> &Bus {
        &self.bus
    }

    fn devices(&self) -> &[Arc<Device>] {
        self.machine.devices()
    }

    fn show(&self) -> Result<()> {
        Ok(())
    }

    fn tell(&self, _: &str) {}

    fn text(&self, _: &str) -> Option<String> {
        None
    }
}

impl Rig {
    fn new() -> Self {
        let iommu = iommufd::Machine::new();
        let unit = Arc::new(iommufd::Iommu::new(iommufd::IommuKind::Vtd));
        let groups = [1, 2, 3].map(|number| iommufd::Group::new(&iommu, &unit, number));
        let mut windows = Windows::default();
        let model = |options: &[(String, String)]| ioasis_pci::create("testdev", options).unwrap();
        let physical = model(&[("vfs".to_owned(), "2".to_owned())]);
        let at = |address: &str| address.parse().unwrap();
        let (physical, virtuals) =
            Function::with_virtual_functions(at(PHYSICAL), physical, &mut windows).unwrap();
        let other = Function::new(at(OTHER), model(&[]), &mut windows);
        let functions = std::iter::once((physical, 0))
            .chain(virtuals.into_iter().map(|function| (function, 1)))
            .chain([(other, 2)]);
        let placements = functions.map(|(function, group): (Function, usize)| {
            let address = function.address();
            let config = iommufd::EndpointConfig {
                name: address.to_string().into(),
                requester_id: address.requester_id(),
                ..iommufd::EndpointConfig::default()
            };
            let endpoint = iommufd::Endpoint::new(&groups[group], config);
            Placement { function, endpoint, kind: GroupKind::Iommu }
        });
        let machine = Machine::new(placements.collect());
        let starts = BTreeMap::from([(OTHER.to_owned(), Some("other".to_owned()))]);
        let bus = Bus::new(machine.devices(), &starts).unwrap();
        let rig = Self { iommu, machine, group: Arc::clone(&groups[1]), bus };
        rig.function(PHYSICAL, FunctionFile::SriovNumvfs, "2").unwrap();
        rig
    }

    fn device(&self, bdf: &str) -> &Arc<Device> {
        self.devices().iter().find(|device| device.name() == bdf).unwrap()
    }

    fn function(&self, bdf: &str, file: FunctionFile, text: &str) -> Result<()> {
        store(self, &Attribute::Function(bdf.to_owned(), file), text.as_bytes())
    }

    fn driver(&self, name: &str, file: DriverFile, text: &str) -> Result<()> {
        store(self, &Attribute::Driver(name.to_owned(), file), text.as_bytes())
    }

    fn probe(&self, bdf: &str) -> Result<()> {
        store(self, &Attribute::Bus(BusFile::Probe), bdf.as_bytes())
    }

    fn bound(&self, bdf: &str) -> Option<String> {
        self.bus.function(bdf).unwrap().driver
    }

    /// Both drivers are for the first virtual function, and it has none.
    fn free(&self) {
        for name in ["other", "vfio-pci"] {
            self.driver(name, DriverFile::NewId, IDS).unwrap();
        }
        self.driver("vfio-pci", DriverFile::Unbind, VIRTUAL).unwrap();
        self.function(VIRTUAL, FunctionFile::DriverOverride, "\n").unwrap();
    }
}

fn errno(done: Result<()>) -> Errno {
    done.unwrap_err().errno
}

#[test]
fn a_driver_that_cannot_be_tried_ends_a_probe() {
    let rig = Rig::new();
    rig.free();
    let container = Container::new(&rig.iommu);
    let account = iommufd::Account {
        pid: 1,
        uid: 0,
        memlock_pages: None,
        ipc_lock: false,
        sys_resource: false,
        sys_rawio: false,
    };
    container.add_group(&account, Member::new(GroupKind::Iommu, &rig.group, &[])).unwrap();
    assert_eq!(errno(rig.driver("other", DriverFile::Bind, VIRTUAL)), Errno::EBUSY);
    assert_eq!(errno(rig.probe(VIRTUAL)), Errno::EINVAL);
    assert_eq!(rig.bound(VIRTUAL), None, "vfio-pci is not tried any more");
    drop(container);
    rig.probe(VIRTUAL).unwrap();
    assert_eq!(rig.bound(VIRTUAL).as_deref(), Some("other"));
    rig.probe(VIRTUAL).unwrap();
}

#[test]
fn virtual_functions_that_are_offered_to_nobody_have_a_driver_by_an_override_alone() {
    let rig = Rig::new();
    rig.free();
    rig.function(PHYSICAL, FunctionFile::SriovDriversAutoprobe, "disable").unwrap();
    for name in ["other", "vfio-pci"] {
        assert_eq!(errno(rig.driver(name, DriverFile::Bind, VIRTUAL)), Errno::ENODEV);
    }
    rig.probe(VIRTUAL).unwrap();
    rig.driver("vfio-pci", DriverFile::RemoveId, IDS).unwrap();
    rig.driver("vfio-pci", DriverFile::NewId, IDS).unwrap();
    assert_eq!(rig.bound(VIRTUAL), None);
    rig.function(VIRTUAL, FunctionFile::DriverOverride, "vfio-pci").unwrap();
    rig.driver("vfio-pci", DriverFile::Bind, VIRTUAL).unwrap();
    rig.driver("vfio-pci", DriverFile::Unbind, VIRTUAL).unwrap();
    rig.function(VIRTUAL, FunctionFile::DriverOverride, "").unwrap();
    rig.function(PHYSICAL, FunctionFile::SriovDriversAutoprobe, "Enable").unwrap();
    rig.probe(VIRTUAL).unwrap();
    assert_eq!(rig.bound(VIRTUAL).as_deref(), Some("other"));
}

#[test]
fn a_function_that_was_removed_is_found_by_nobody() {
    let rig = Rig::new();
    rig.free();
    rig.device(VIRTUAL).pull().unwrap();
    rig.device(PHYSICAL).pull().unwrap();
    for name in ["other", "vfio-pci"] {
        assert_eq!(errno(rig.driver(name, DriverFile::Bind, VIRTUAL)), Errno::ENODEV);
    }
    assert_eq!(errno(rig.driver("vfio-pci", DriverFile::Unbind, PHYSICAL)), Errno::ENODEV);
    assert_eq!(errno(rig.probe(VIRTUAL)), Errno::ENODEV);
    rig.driver("other", DriverFile::RemoveId, IDS).unwrap();
    rig.driver("other", DriverFile::NewId, IDS).unwrap();
    assert_eq!(rig.bound(VIRTUAL), None);
}

#[test]
fn a_reset_method_that_is_no_text_takes_none_away() {
    let rig = Rig::new();
    let attribute = Attribute::Function(PHYSICAL.to_owned(), FunctionFile::ResetMethod);
    assert_eq!(errno(store(&rig, &attribute, b"\xff")), Errno::EINVAL);
    rig.function(PHYSICAL, FunctionFile::Reset, "1").unwrap();
    store(&rig, &attribute, b"\n").unwrap();
    assert_eq!(errno(rig.function(PHYSICAL, FunctionFile::Reset, "1")), Errno::ENOTTY);
}
