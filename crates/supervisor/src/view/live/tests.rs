//! A view is entered and changed, and looked at after each change, as a program in it sees it.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use ioasis_sys::fuse::Connection;
use ioasis_sys::spawn::fork_with;
use rustix::event::{PollFd, PollFlags};

use super::super::tests::device;
use super::super::{GroupKind, Registration, Settings};
use super::*;

/// A view that this process has entered, and its supervisor.
struct Entered {
    live: Live,
    connection: Option<Arc<Connection>>,
    nodes: Arc<DeviceNodes>,
}

impl Entered {
    fn new(devices: &[Device]) -> Self {
        let view = View::plan(devices, &Options::default()).unwrap();
        let entered = view.enter().unwrap();
        assert_eq!(entered.lost, [""; 0]);
        let owner = entered.fuse.as_ref().map(|fuse| fuse.owner).unwrap_or_default();
        let nodes = Arc::new(match &entered.fuse {
            Some(_) => view.device_nodes(owner),
            None => DeviceNodes::default(),
        });
        let connection = entered.fuse.map(|fuse| {
            // It lives as long as the mounts in the view do.
            drop(fuse.root);
            Arc::new(Connection::new(fuse.device))
        });
        if let Some(connection) = connection.clone() {
            let nodes = Arc::clone(&nodes);
            let wait = move |connection: &Connection| {
                let _ = rustix::event::poll(&mut [PollFd::new(connection, PollFlags::IN)], None);
                false
            };
            std::thread::spawn(move || nodes.serve(&connection, || wait(&connection)));
        }
        let live = Live::new(&view, &entered.nodes, entered.covers);
        Self { live, connection, nodes }
    }

    fn show(&self, devices: &[Device]) -> Vec<String> {
        let devices = devices.to_vec();
        let machine = || Ok((devices, Options::default()));
        let shown = self.live.show(machine, Some(&self.nodes)).unwrap();
        for Changed { parent, name } in &shown.names {
            self.connection.as_ref().unwrap().forget_name(*parent, name);
        }
        shown.lost
    }

    /// What is known of the file at `path`.
    fn node(&self, path: &str) -> Option<Node> {
        let meta = fs::metadata(path).ok()?;
        let of_run = || {
            let stat = rustix::fs::stat("/dev/vfio").unwrap();
            (stat.st_dev == meta.dev()).then(|| self.nodes.node(meta.ino()))?
        };
        self.live.node((meta.dev(), meta.ino())).or_else(of_run)
    }
}

/// Runs `check` in a process of its own.
fn apart(check: impl FnOnce()) {
    let run = || catch_unwind(AssertUnwindSafe(check)).map_or(1, |()| 0);
    assert!(fork_with(run).unwrap().wait().unwrap().success(), "see above");
}

fn names(path: &str) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
    let mut names: Vec<_> =
        fs::read_dir(path).unwrap().map(|entry| name(entry).into_string().unwrap()).collect();
    names.sort();
    names
}

fn unbound(device: Device) -> Device {
    let settings = Settings::default();
    Device { driver: None, settings, registration: Registration::Absent, ..device }
}

const FIRST: &str = "0000:01:00.0";
const SECOND: &str = "0000:02:00.0";

#[test]
fn what_a_driver_leaves_goes_from_every_place_and_comes_back() {
    apart(|| {
        let [first, second] = [device(FIRST, 0), device(SECOND, 1)];
        let entered = Entered::new(&[first.clone(), second.clone()]);
        let pci = format!("/sys/bus/pci/devices/{FIRST}");
        let places = [
            "/dev/vfio/0".to_owned(),
            "/dev/vfio/devices/vfio0".to_owned(),
            "/sys/class/vfio/0/dev".to_owned(),
            "/sys/class/vfio-dev/vfio0/dev".to_owned(),
            "/sys/dev/char/511:0/dev".to_owned(),
            format!("/sys/bus/pci/drivers/vfio-pci/{FIRST}/vendor"),
            format!("{pci}/driver/bind"),
            format!("{pci}/vfio-dev/vfio0/dev"),
        ];
        for present in [true, false, true, false, true] {
            let now = if present { first.clone() } else { unbound(first.clone()) };
            assert_eq!(entered.show(&[now, second.clone()]), [""; 0]);
            for place in &places {
                assert_eq!(Path::new(place).exists(), present, "{place}");
            }
            let listed = if present {
                &["0", "1", "devices", "vfio"][..]
            } else {
                &["1", "devices", "vfio"]
            };
            assert_eq!(names("/dev/vfio"), listed);
            let uevent = fs::read_to_string(format!("{pci}/uevent")).unwrap();
            assert_eq!(uevent.starts_with("DRIVER=vfio-pci\n"), present);
            assert!(Path::new("/dev/vfio/devices/vfio1").exists(), "another stays");
        }
        let meta = fs::symlink_metadata("/dev/vfio/devices/vfio0").unwrap();
        assert!(meta.file_type().is_char_device());
        assert_eq!(entered.node("/dev/vfio/devices/vfio0"), Some(Node::Cdev(0)));
        assert_eq!(entered.node("/dev/vfio/0"), Some(Node::Group(0)));
    });
}

#[test]
fn a_device_that_is_being_closed_keeps_the_node_of_its_group_alone() {
    apart(|| {
        let entered = Entered::new(&[device(FIRST, 0)]);
        let registration = Registration::Unregistering;
        assert_eq!(entered.show(&[Device { registration, ..device(FIRST, 0) }]), [""; 0]);
        assert_eq!(names("/dev/vfio"), ["0", "devices", "vfio"]);
        assert_eq!(names("/dev/vfio/devices"), [""; 0]);
    });
}

#[test]
fn a_device_that_comes_later_is_as_one_that_was_there() {
    apart(|| {
        let [first, second] = [device(FIRST, 0), device(SECOND, 1)];
        let entered = Entered::new(std::slice::from_ref(&first));
        let pci = format!("/sys/bus/pci/devices/{SECOND}");
        assert!(!Path::new(&pci).exists());
        assert_eq!(entered.show(&[first.clone(), second]), [""; 0]);
        assert_eq!(fs::read_to_string(format!("{pci}/vendor")).unwrap(), "0x1234\n");
        let path = fs::canonicalize(&pci).unwrap();
        assert_eq!(path, Path::new("/sys/devices/pci0000:00/0000:00:02.0").join(SECOND));
        assert_eq!(names("/sys/kernel/iommu_groups/1/devices"), [SECOND]);
        assert_eq!(entered.node("/dev/vfio/1"), Some(Node::Group(1)));
        let attribute = format!("{pci}/driver_override");
        let Some(Node::Attribute(number)) = entered.node(&attribute) else { panic!("it is known") };
        let known = entered.live.attribute(number).unwrap();
        assert_eq!(Path::new(&known), fs::canonicalize(&attribute).unwrap());
        assert_eq!(entered.show(&[first]), [""; 0]);
        assert!(!path.exists() && !Path::new("/dev/vfio/1").exists());
    });
}

#[test]
fn a_plan_that_is_refused_changes_nothing() {
    apart(|| {
        let entered = Entered::new(&[device(FIRST, 0)]);
        let twice = vec![device(FIRST, 0), device(FIRST, 1)];
        let machine = || Ok((twice, Options::default()));
        let shown = entered.live.show(machine, Some(&entered.nodes));
        assert_eq!(shown.unwrap_err().errno, Errno::EEXIST);
        assert!(Path::new("/dev/vfio/devices/vfio0").exists());
        let other = Device { group_kind: GroupKind::NoIommu, ..device(FIRST, 0) };
        assert_eq!(entered.show(&[other]), [""; 0]);
        assert_eq!(names("/dev/vfio"), ["devices", "noiommu-0", "vfio"]);
    });
}

#[test]
fn what_somebody_puts_in_the_way_is_left_alone_and_told() {
    apart(|| {
        let entered = Entered::new(&[device(FIRST, 0)]);
        // As root of a run can, who makes the mount writable.
        let devices = entered
            .live
            .covers
            .iter()
            .find(|cover| Path::new("/sys/bus/pci").starts_with(&cover.path));
        let cover = devices.expect("/sys/bus/pci is covered");
        let inside = Path::new("/sys/bus/pci/devices").strip_prefix(&cover.path).unwrap();
        let outside = std::env::temp_dir();
        let name = inside.join(SECOND);
        rustix::fs::symlinkat(&outside, cover.root.as_fd(), &name).unwrap();
        let lost = entered.show(&[device(FIRST, 0), device(SECOND, 1)]);
        assert_eq!(lost, [format!("/sys/bus/pci/devices/{SECOND}")]);
        assert_eq!(fs::read_link(format!("/sys/bus/pci/devices/{SECOND}")).unwrap(), outside);
    });
}
