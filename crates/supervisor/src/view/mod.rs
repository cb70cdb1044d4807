//! The view: the files of /dev and /sys by which a program finds an IOMMU, VFIO and the PCI devices of this run.
//!
//! [`View::plan`] decides before fork what is to be seen; [`View::enter`] runs in the launched process, mounts it
//! and reports by which inode each device node can be recognised when it is opened. Nothing is mounted outside the
//! client's own mount namespace, so nothing is left when its last process ends.
//!
//! Device nodes are files of the run's own file system where it has one (`nodes`), else character devices 0:0: an open that
//! nobody answers fails either way. Sysfs files are plain
//! files with Linux's texts, on read-only mounts; those that Linux lets root write are known to the supervisor as
//! [`Node::Attribute`].
//!
//! DIFFERS: statfs of these files says tmpfs, and the size of an attribute is that of its text. libudev refuses
//! device directories that are not on sysfs unless told otherwise: [`ENVIRONMENT`].

mod dev;
mod function;
mod host;
mod live;
mod mounts;
mod nodes;
mod proc;
mod settings;
pub mod status;
mod sysfs;
mod topology;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use ioasis_sys::fuse::{Mounted, Owner, Time};
pub use ioasis_sys::namespace::User;
use ioasis_uapi::{Errno, Error, Result};

pub(crate) use dev::{CONTAINER, MISC};
pub(crate) use function::is_numa_node;
pub(crate) use live::Live;
pub(crate) use mounts::Cover;
pub(crate) use nodes::{Changed, DeviceNodes, END, encoded, root};
pub(crate) use proc::ProcFile;
pub use settings::{PowerControl, ResetMethods, Settings};
use topology::Topology;
use tree::{Dir, Host};

/// What the client's environment needs, so that libudev (systemd 251 and newer) takes the view for a sysfs.
pub const ENVIRONMENT: &[(&str, &str)] = &[("SYSTEMD_DEVICE_VERIFY_SYSFS", "0")];

/// A PCI function, as its files in /sys and /dev describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Domain, bus, device and function, as in "0000:01:00.0".
    pub bdf: String,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem_device: u16,
    /// Class code: base class, subclass, programming interface, in the low 24 bits.
    pub class: u32,
    /// Revision id.
    pub revision: u8,
    /// BAR 0 to 5 and the expansion ROM.
    pub bars: [Bar; 7],
    /// IOMMU group.
    pub group: u32,
    /// What the group is backed by.
    pub group_kind: GroupKind,
    /// The N of /dev/vfio/devices/vfioN.
    pub vfio: u32,
    /// Major and minor number of that node; with major number 0 there is none.
    pub cdev: (u32, u32),
    /// The first 64, 256 or 4096 bytes of configuration space.
    pub config: Vec<u8>,
    /// Name of the driver it is bound to, usually "vfio-pci".
    pub driver: Option<String>,
    /// What root may set of it.
    pub settings: Settings,
    /// Whether it is a VFIO device.
    pub registration: Registration,
    /// Which of [`Options::iommus`] translates for it.
    pub iommu: usize,
    /// What it cannot use for memory.
    pub reserved: Vec<Reserved>,
    /// What SR-IOV makes of it.
    pub sriov: Sriov,
}

/// What SR-IOV makes of a function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Sriov {
    /// Nothing.
    #[default]
    None,
    /// It can have virtual functions.
    Physical(PhysicalFunction),
    /// It is a virtual function of the device with this address.
    Virtual(String),
}

/// A device that can have virtual functions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PhysicalFunction {
    /// How many it can have.
    pub total: u16,
    /// How many are enabled: as many as there are, but for those that are coming or going.
    pub enabled: u16,
    /// The addresses of those that it has, in their order.
    pub functions: Vec<String>,
    /// From its routing ID to that of the first.
    pub offset: u16,
    /// From the routing ID of one to that of the next.
    pub stride: u16,
    /// Their device ID.
    pub device: u16,
    /// Their BARs 0 to 5, each with room for all of them.
    pub bars: [Bar; 6],
}

impl Device {
    /// The address, which [`View::plan`] checks.
    fn address(&self) -> Bdf {
        Bdf::parse(&self.bdf).expect("View::plan checked it")
    }
}

/// What VFIO has of a device, which its driver registers and unregisters (drivers/vfio/vfio_main.c).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Registration {
    /// Its nodes.
    #[default]
    Registered,
    /// The node of its group, until it is closed; no node of its own any more.
    Unregistering,
    /// Nothing: another driver has it, or none.
    Absent,
}

/// An address range of a device, as a line of its `resource` file. All zero when not present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bar {
    /// First address.
    pub start: u64,
    /// Last address, which belongs to the BAR.
    pub last: u64,
    /// `IORESOURCE_*` flags of linux/ioport.h.
    pub flags: u64,
}

/// What stands behind an IOMMU group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupKind {
    /// An IOMMU: /dev/vfio/N.
    Iommu,
    /// Nothing: /dev/vfio/noiommu-N.
    NoIommu,
    /// Nothing, as its devices do no DMA: /dev/vfio/N.
    Emulated,
}

/// An IOMMU as /sys/class/iommu shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Iommu {
    /// "dmar0", "ivhd0", "smmu3.0x0000000009050000".
    pub name: String,
    /// Which attributes it has.
    pub registers: Registers,
}

/// The attributes of an IOMMU's own directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registers {
    /// `intel-iommu/{address,cap,ecap,version,domains_supported,domains_used}`.
    Intel {
        /// Where the register set lies.
        address: u64,
        /// Capability register (VT-d 11.4.2).
        cap: u64,
        /// Extended capability register (VT-d 11.4.3).
        ecap: u64,
    },
    /// `spapr-tce-iommu`, with nothing in it: the IOMMUs are POWER's, whose kernel gives devices no
    /// nodes of their own (`CONFIG_VFIO_DEVICE_CDEV` depends on `!SPAPR_TCE_IOMMU`).
    Spapr,
    /// `amd-iommu/{cap,features}`.
    Amd {
        /// Capability header of the IVRS entry.
        cap: u32,
        /// Extended feature register (AMD IOMMU 3.4.8.1).
        features: u64,
    },
    /// No attributes, as SMMUv3 and RISC-V.
    Plain,
}

/// A stretch of IOVAs that a group may not use, as a line of `reserved_regions`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reserved {
    /// First IOVA.
    pub start: u64,
    /// Last IOVA, which is reserved too.
    pub last: u64,
    /// "direct", "direct-relaxable", "reserved" or "msi".
    pub kind: &'static str,
}

/// Whether the client sees the PCI devices of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostPci {
    /// /sys/bus/pci has the devices of this run only.
    Hidden,
    /// Those of the host too, but for a BDF that this run uses.
    Shown,
}

/// What is the same for every device.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether the client sees the PCI devices of the host.
    pub host_pci: HostPci,
    /// Bytes that the files handed to the client may hold together: BAR pages.
    pub files_size: u64,
    /// The IOMMUs of the machine; not empty.
    pub iommus: Vec<Iommu>,
    /// Major number of the group nodes /dev/vfio/N, whose minor number is N.
    pub group_major: u32,
    /// Minor number of /dev/iommu; the major number is 10.
    pub iommu_minor: u32,
    /// Whether a program can make its own calls fail.
    pub fault_injection: FaultInjection,
    /// Who answers /dev/vfio/vfio.
    pub container: ContainerNode,
    /// Who the program is on the machine.
    pub user: User,
    /// How stores to mapped registers reach a device.
    pub stores: Stores,
    /// Drivers on the PCI bus beside vfio-pci, which do nothing but bind the devices that start with them.
    pub drivers: Vec<String>,
    /// Whether a function that appears is offered to the drivers.
    pub autoprobe: bool,
    /// What stays when devices go.
    pub kept: Kept,
    /// Directories that the program finds empty: those of control sockets.
    pub hidden: Vec<PathBuf>,
}

/// What was there when the first program was started, and stays where it was when devices go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The buses below root ports, by domain and number, each with the IOMMU behind which it is.
    buses: BTreeMap<(u32, u8), usize>,
    /// Numbers that no bridge's group gets.
    groups: BTreeSet<u32>,
}

impl Kept {
    /// What `devices` need.
    #[must_use]
    pub fn of(devices: &[Device]) -> Self {
        let mut kept = Self::default();
        for device in devices {
            kept.groups.insert(device.group);
            let address = device.address();
            if address.bus != 0 {
                kept.buses.entry((address.domain, address.bus)).or_insert(device.iommu);
            }
        }
        kept
    }
}

/// How a device learns of what a program stores into its mapped registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stores {
    /// It looks now and then: of two stores between two looks it sees the last.
    #[default]
    Polled,
    /// Each store stops the thread that makes it, in a tracer, and acts before the next.
    Trapped,
}

/// Who answers /dev/vfio/vfio, as the configuration of a kernel decides it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContainerNode {
    /// The type1 driver: `CONFIG_VFIO_CONTAINER`.
    #[default]
    Type1,
    /// iommufd, by the rules of its compatibility layer: `CONFIG_IOMMUFD_VFIO_CONTAINER`.
    Iommufd,
    /// Nobody: there is no such node.
    Absent,
}

/// Whether a program can make its own calls fail, for tests of IOMMUFD itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultInjection {
    /// Tasks have fail-nth files, and /sys/kernel/debug has the settings of Linux's fault injection and nothing else.
    Present,
    /// As in a kernel without it.
    Absent,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            host_pci: HostPci::Hidden,
            files_size: 64 << 20,
            iommus: vec![Iommu {
                name: "dmar0".to_owned(),
                registers: Registers::Intel {
                    address: 0xfed9_0000,
                    cap: 0x00d2_078c_106f_0466,
                    ecap: 0xf0_20df,
                },
            }],
            group_major: 242,
            iommu_minor: 126,
            fault_injection: FaultInjection::Absent,
            container: ContainerNode::Type1,
            user: User::Own,
            stores: Stores::Trapped,
            drivers: Vec::new(),
            autoprobe: true,
            kept: Kept::default(),
            hidden: Vec::new(),
        }
    }
}

/// What a file of the view stands for when it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    /// /dev/iommu.
    Iommu,
    /// /dev/vfio/vfio.
    VfioContainer,
    /// /dev/vfio/N.
    Group(u32),
    /// /dev/vfio/noiommu-N.
    NoIommuGroup(u32),
    /// /dev/vfio/devices/vfioN, or noiommu-vfioN there.
    Cdev(u32),
    /// The file [`View::attribute`] of this number, which Linux lets root write.
    Attribute(u32),
    /// A file below /sys/kernel/debug that sets up fault injection.
    FaultSetting,
    /// The module parameter of this number in `ioasis_iommufd::Params::NAMES`.
    Parameter(u32),
    /// A `resourceN` of a device's directory: BAR N.
    Resource(u32),
    /// The configuration space of a function, of which not everybody sees all: the file [`View::attribute`] of this number.
    Config(u32),
}

/// By what a file of the view is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `st_dev` of the file.
    pub dev: u64,
    /// `st_ino` of the file.
    pub ino: u64,
    /// What it stands for.
    pub node: Node,
}

impl Identity {
    /// The identity as bytes, for the way to the supervisor.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 24] {
        let (kind, number) = match self.node {
            Node::Iommu => (0, 0),
            Node::VfioContainer => (1, 0),
            Node::Group(number) => (2, number),
            Node::NoIommuGroup(number) => (3, number),
            Node::Cdev(number) => (4, number),
            Node::Attribute(number) => (5, number),
            Node::FaultSetting => (6, 0),
            Node::Parameter(number) => (7, number),
            Node::Resource(number) => (8, number),
            Node::Config(number) => (9, number),
        };
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.dev.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.ino.to_le_bytes());
        bytes[16..20].copy_from_slice(&u32::to_le_bytes(kind));
        bytes[20..].copy_from_slice(&u32::to_le_bytes(number));
        bytes
    }

    /// The reverse of [`to_bytes`](Self::to_bytes); `None` for bytes it does not make.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 24]) -> Option<Self> {
        let long = |at: usize| bytes[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        let word = |at: usize| bytes[at..at + 4].try_into().map(u32::from_le_bytes).ok();
        let number = word(20)?;
        let node = match word(16)? {
            0 => Node::Iommu,
            1 => Node::VfioContainer,
            2 => Node::Group(number),
            3 => Node::NoIommuGroup(number),
            4 => Node::Cdev(number),
            5 => Node::Attribute(number),
            6 => Node::FaultSetting,
            7 => Node::Parameter(number),
            8 => Node::Resource(number),
            9 => Node::Config(number),
            _ => return None,
        };
        Some(Self { dev: long(0)?, ino: long(8)?, node })
    }
}

/// What [`View::enter`] made.
#[derive(Debug)]
pub struct Entered {
    /// The files whose open the supervisor answers.
    pub nodes: Vec<Identity>,
    /// Root of a memory file system that is mounted nowhere, for the files handed to the client.
    pub files: OwnedFd,
    /// A file system for those that are read and written, if /dev/fuse opens.
    pub fuse: Option<Mounted>,
    /// What covers directories of the host, so that entries come and go.
    pub(crate) covers: Vec<Cover>,
    /// Entries of /dev and /sys that could not be kept in view.
    pub lost: Vec<String>,
}

/// The files a client is to see.
#[derive(Clone, Debug)]
pub struct View {
    root: Dir,
    /// The same without what the host's entries become.
    own: Dir,
    device_nodes: Vec<nodes::Planned>,
    /// When they were made.
    time: Time,
    /// Below /sys, the directory of each device, by its address.
    directories: BTreeMap<String, String>,
    attributes: Vec<String>,
    files_size: u64,
    user: User,
    hidden: Vec<PathBuf>,
}

impl View {
    /// Who the program is in it.
    pub(crate) const fn user(&self) -> User {
        self.user
    }

    /// Plans the view of `devices`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a BDF or a name that is none, `EEXIST` for two devices with one BDF or one cdev, `ENODEV` for an IOMMU
    /// that `options` lacks, `ENOSPC` for more buses than bus 0 has room for root ports.
    pub fn plan(devices: &[Device], options: &Options) -> Result<Self> {
        Self::of(devices, options, HostEntries::Rearranged)
    }

    fn of(devices: &[Device], options: &Options, host: HostEntries) -> Result<Self> {
        check(devices, options)?;
        let mut root = Dir::new(Host::Kept);
        dev::plan(root.kept("dev"), devices, options);
        let functions = match options.host_pci {
            HostPci::Shown => sysfs::host_functions(),
            HostPci::Hidden => BTreeSet::new(),
        };
        let topology = Topology::new(devices, options, &functions)?;
        let machine = Machine { devices, options, topology: &topology };
        sysfs::plan(root.kept("sys"), &machine);
        let mut attributes = Vec::new();
        root.number("", &mut attributes);
        let own = root.clone();
        if host == HostEntries::Rearranged && options.host_pci == HostPci::Hidden {
            host::hide(root.kept("sys"));
        }
        let (files_size, user) = (options.files_size, options.user);
        let device_nodes = own.device_nodes("");
        let directory = |device: &Device| (device.bdf.clone(), machine.directory(device));
        let directories = devices.iter().map(directory).collect();
        let time = Time::now();
        let hidden = options.hidden.clone();
        Ok(Self {
            root,
            own,
            device_nodes,
            time,
            directories,
            attributes,
            files_size,
            user,
            hidden,
        })
    }

    /// Below /sys, the directory of each device, by its address.
    pub(crate) const fn directories(&self) -> &BTreeMap<String, String> {
        &self.directories
    }

    /// Answers for the nodes of the view that was entered, as the supervisor does, until its file system is gone.
    ///
    /// # Errors
    ///
    /// `EMFILE`, `EAGAIN`.
    pub fn serve_nodes(&self, entered: &Entered) -> Result<()> {
        let Some(fuse) = &entered.fuse else { return Ok(()) };
        let nodes = self.device_nodes(fuse.owner);
        let device = fuse.device.try_clone();
        let device = device.map_err(|_| Error::new(Errno::EMFILE, "too many open files"))?;
        mounts::serve(device, nodes)
    }

    /// The device nodes as files of a file system of `owner`'s.
    pub(crate) fn device_nodes(&self, owner: Owner) -> DeviceNodes {
        DeviceNodes::new(&self.device_nodes, owner, self.time)
    }

    /// The path of the file known as [`Node::Attribute`] `number`.
    #[must_use]
    pub fn attribute(&self, number: u32) -> Option<&str> {
        self.attributes.get(usize::try_from(number).ok()?).map(String::as_str)
    }
}

/// Whether a plan says what becomes of the host's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HostEntries {
    /// It does.
    Rearranged,
    /// It does not, as nothing is mounted by it.
    Ignored,
}

/// What there is to be planned.
#[derive(Clone, Copy, Debug)]
struct Machine<'a> {
    devices: &'a [Device],
    options: &'a Options,
    topology: &'a Topology,
}

impl Machine<'_> {
    /// The directory of a device, below /sys.
    fn directory(&self, device: &Device) -> String {
        self.topology.directory(device.address())
    }
}

/// A PCI address in its four parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Bdf {
    domain: u32,
    bus: u8,
    slot: u8,
    function: u8,
}

impl Bdf {
    /// Reads "DDDD:BB:DD.F", the only spelling sysfs has.
    fn parse(text: &str) -> Option<Self> {
        let (domain, rest) = text.split_once(':')?;
        let (bus, rest) = rest.split_once(':')?;
        let (slot, function) = rest.split_once('.')?;
        let bdf = Self {
            domain: u32::from_str_radix(domain, 16).ok()?,
            bus: u8::from_str_radix(bus, 16).ok()?,
            slot: u8::from_str_radix(slot, 16).ok().filter(|&slot| slot < 32)?,
            function: function.parse().ok().filter(|&function| function < 8)?,
        };
        (bdf.to_string() == text).then_some(bdf)
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.domain, self.bus, self.slot, self.function)
    }
}

fn check(devices: &[Device], options: &Options) -> Result<()> {
    let is_name = |name: &str| !matches!(name, "" | "." | "..") && !name.contains(['/', '\0']);
    let names = devices
        .iter()
        .filter_map(|device| device.driver.as_ref())
        .chain(options.drivers.iter())
        .chain(options.iommus.iter().map(|iommu| &iommu.name));
    if !names.map(String::as_str).all(is_name) {
        return Err(Error::new(Errno::EINVAL, "the name of a driver or IOMMU is no file name"));
    }
    for (index, device) in devices.iter().enumerate() {
        if Bdf::parse(&device.bdf).is_none() {
            return Err(Error::new(Errno::EINVAL, "a PCI address has the form 0000:01:00.0"));
        }
        if device.iommu >= options.iommus.len() {
            return Err(Error::at(
                Errno::ENODEV,
                "a device names an IOMMU that does not exist",
                device.iommu as u64,
            ));
        }
        let earlier = &devices[..index];
        if earlier.iter().any(|other| other.bdf == device.bdf) {
            return Err(Error::new(Errno::EEXIST, "two devices have one PCI address"));
        }
        if earlier.iter().any(|other| other.vfio == device.vfio || other.cdev == device.cdev) {
            return Err(Error::at(
                Errno::EEXIST,
                "two devices have one vfio number",
                u64::from(device.vfio),
            ));
        }
        let mates = |other: &&Device| other.group == device.group;
        if earlier.iter().filter(mates).any(|other| other.group_kind != device.group_kind) {
            return Err(Error::at(
                Errno::EINVAL,
                "a group is backed by an IOMMU or it is not",
                u64::from(device.group),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn device(bdf: &str, vfio: u32) -> Device {
        Device {
            bdf: bdf.to_owned(),
            vendor: 0x1234,
            device: 0x11e9,
            subsystem_vendor: 0,
            subsystem_device: 0,
            class: 0xff_0000,
            revision: 0,
            bars: [Bar::default(); 7],
            group: vfio,
            group_kind: GroupKind::Iommu,
            vfio,
            cdev: (511, vfio),
            config: vec![0; 256],
            driver: Some("vfio-pci".to_owned()),
            settings: Settings {
                driver_override: Some("vfio-pci".to_owned()),
                ..Settings::default()
            },
            registration: Registration::Registered,
            iommu: 0,
            reserved: Vec::new(),
            sriov: Sriov::None,
        }
    }

    fn refused(devices: &[Device]) -> Errno {
        View::plan(devices, &Options::default()).unwrap_err().errno
    }

    #[test]
    fn a_bdf_has_one_spelling() {
        assert!(Bdf::parse("0000:01:1f.7").is_some());
        assert!(Bdf::parse("10000:00:00.0").is_some(), "VMD domains have five digits");
        for text in [
            "01:00.0",
            "0000:01:00",
            "0000:01:20.0",
            "0000:01:00.8",
            "0000:1:00.0",
            "0000:01:00.0 ",
            "..:/:..",
        ] {
            assert_eq!(Bdf::parse(text), None, "{text}");
        }
    }

    #[test]
    fn devices_that_contradict_each_other_are_refused() {
        assert_eq!(refused(&[device("../../etc", 0)]), Errno::EINVAL);
        assert_eq!(refused(&[device("0000:01:00.0", 0), device("0000:01:00.0", 1)]), Errno::EEXIST);
        assert_eq!(refused(&[device("0000:01:00.0", 0), device("0000:02:00.0", 0)]), Errno::EEXIST);
        assert_eq!(refused(&[Device { iommu: 1, ..device("0000:01:00.0", 0) }]), Errno::ENODEV);
        let noiommu =
            Device { group: 0, group_kind: GroupKind::NoIommu, ..device("0000:02:00.0", 1) };
        assert_eq!(refused(&[device("0000:01:00.0", 0), noiommu]), Errno::EINVAL);
    }

    #[test]
    fn a_machine_without_devices_has_its_nodes_all_the_same() {
        let view = View::plan(&[], &Options::default()).unwrap();
        let Some(tree::Entry::Dir(dev)) = view.root.entries.get("dev") else {
            panic!("/dev is planned")
        };
        assert!(matches!(
            dev.entries.get("iommu"),
            Some(tree::Entry::Node { node: Node::Iommu, .. })
        ));
    }

    #[test]
    fn every_attribute_has_a_number_and_every_number_a_path() {
        let view = View::plan(&[device("0000:01:00.0", 0)], &Options::default()).unwrap();
        let paths = (0..).map_while(|number| view.attribute(number));
        let mut paths: Vec<&str> = paths.collect();
        assert!(paths.contains(&"/sys/bus/pci/drivers/vfio-pci/bind"));
        assert!(paths.iter().any(|path| path.ends_with("/0000:01:00.0/driver_override")));
        let all = paths.len();
        paths.sort_unstable();
        paths.dedup();
        assert_eq!(paths.len(), all);
    }
}
