//! A process enters a view and looks at every path that VFIO clients are known to look at, once with the
//! capabilities it was started with and, where those are root's, once more as a plain user.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use ioasis_supervisor::view::{
    Bar, Device, Entered, GroupKind, HostPci, Identity, Node, Options, Registration, Reserved,
    Settings, Sriov, View,
};

type Check = fn(&View, &Entered);

/// Every check, by name.
const CHECKS: &[(&str, Check)] = &[
    ("nodes_are_character_devices_with_linux_modes", nodes_are_character_devices_with_linux_modes),
    ("each_node_is_reported_by_its_inode", each_node_is_reported_by_its_inode),
    ("a_node_nobody_answers_cannot_be_opened", a_node_nobody_answers_cannot_be_opened),
    ("the_usual_devices_go_on_working", the_usual_devices_go_on_working),
    ("a_pseudo_terminal_can_be_made", a_pseudo_terminal_can_be_made),
    ("only_the_devices_of_the_run_are_on_the_bus", only_the_devices_of_the_run_are_on_the_bus),
    ("every_link_leads_somewhere", every_link_leads_somewhere),
    ("the_last_component_of_a_real_path_is_the_bdf", the_last_component_of_a_real_path_is_the_bdf),
    ("attributes_say_what_linux_says", attributes_say_what_linux_says),
    (
        "every_machine_has_a_host_bridge_and_a_root_port_above_each_bus",
        every_machine_has_a_host_bridge_and_a_root_port_above_each_bus,
    ),
    ("a_bar_is_a_file_of_its_size", a_bar_is_a_file_of_its_size),
    ("no_function_of_the_host_is_left_in_sysfs", no_function_of_the_host_is_left_in_sysfs),
    (
        "disks_and_interfaces_of_the_host_go_on_working",
        disks_and_interfaces_of_the_host_go_on_working,
    ),
    ("groups_iommus_and_modules_are_there", groups_iommus_and_modules_are_there),
    ("the_rest_of_sysfs_stays", the_rest_of_sysfs_stays),
    ("what_linux_lets_root_write_is_refused", what_linux_lets_root_write_is_refused),
    ("files_for_the_client_are_limited", files_for_the_client_are_limited),
    ("a_plain_user_keeps_uid_and_gains_nothing", a_plain_user_keeps_uid_and_gains_nothing),
];

const BDF: &str = "0000:01:00.0";
const PCI: &str = "/sys/bus/pci/devices/0000:01:00.0";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let asked = |option: &str| arguments.iter().any(|argument| argument == option);
    if asked("--list") {
        // What cargo-nextest asks a test binary, once for each kind.
        if !asked("--ignored") {
            println!("every_path_is_there: test");
        }
        return ExitCode::SUCCESS;
    }
    match arguments.get(1).map(String::as_str) {
        Some("hidden") => {
            inside();
            return ExitCode::SUCCESS;
        }
        Some("shown") => {
            the_hosts_devices_can_be_shown_beside_ours();
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let mut good = true;
    for host in ["hidden", "shown"] {
        good &= run(&format!("as started, host {host}"), &mut inside_command(host));
        if is_root() {
            let mut command = inside_command(host);
            good &= run(&format!("as a plain user, host {host}"), command.uid(65_534).gid(65_534));
        }
    }
    assert_nothing_is_left();
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn inside_command(host: &str) -> Command {
    // A plain user may not be able to reach the test binary where it was built.
    let copy = std::env::temp_dir().join(format!("ioasis-view-{}", std::process::id()));
    if !copy.exists() {
        fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    }
    let mut command = Command::new(copy);
    command.arg(host).current_dir("/sys/bus");
    command
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn run(who: &str, command: &mut Command) -> bool {
    let status = command.status().unwrap();
    println!("view {who}: {status}");
    status.success()
}

fn assert_nothing_is_left() {
    let copy = std::env::temp_dir().join(format!("ioasis-view-{}", std::process::id()));
    fs::remove_file(copy).unwrap();
    assert!(
        !fs::read_to_string("/proc/self/mounts").unwrap().contains("ioasis"),
        "no mount is left outside"
    );
}

fn inside() {
    let view =
        View::plan(&devices(), &Options { files_size: 1 << 20, ..Options::default() }).unwrap();
    let start = Instant::now();
    let entered = view.enter().unwrap();
    println!("  entered in {} us", start.elapsed().as_micros());
    view.serve_nodes(&entered).unwrap();
    for (name, check) in CHECKS {
        println!("  {name}");
        check(&view, &entered);
    }
}

fn the_hosts_devices_can_be_shown_beside_ours() {
    let list = |path: &str| if Path::new(path).exists() { names(path) } else { Vec::new() };
    let (devices_before, drivers_before) =
        (list("/sys/bus/pci/devices"), list("/sys/bus/pci/drivers"));
    let options = Options { host_pci: HostPci::Shown, ..Options::default() };
    let view = View::plan(&devices(), &options).unwrap();
    let entered = view.enter().unwrap();
    view.serve_nodes(&entered).unwrap();
    assert_eq!(entered.lost, [""; 0]);
    let (devices_now, drivers_now) = (names("/sys/bus/pci/devices"), names("/sys/bus/pci/drivers"));
    for bdf in &devices_before {
        assert!(devices_now.contains(bdf), "{bdf} of the host stays");
        fs::canonicalize(format!("/sys/bus/pci/devices/{bdf}/subsystem")).unwrap();
    }
    assert!(drivers_before.iter().all(|driver| drivers_now.contains(driver)));
    for device in devices() {
        let vendor = text(&format!("/sys/bus/pci/devices/{}/vendor", device.bdf));
        assert_eq!(vendor, "0x1b36\n", "{} is ours, whatever the host has there", device.bdf);
    }
}

fn device(bdf: &str, vfio: u32, group: u32) -> Device {
    let mut config = vec![0; 4096];
    config[..4].copy_from_slice(&[0x36, 0x1b, 0x10, 0x00]);
    Device {
        bdf: bdf.to_owned(),
        vendor: 0x1b36,
        device: 0x0010,
        subsystem_vendor: 0x1af4,
        subsystem_device: 0x1100,
        class: 0x01_0802,
        revision: 2,
        bars: [
            Bar { start: 0xfe00_0000, last: 0xfe00_3fff, flags: 0x14_0204 },
            Bar::default(),
            Bar::default(),
            Bar::default(),
            Bar::default(),
            Bar::default(),
            Bar::default(),
        ],
        group,
        group_kind: GroupKind::Iommu,
        vfio,
        cdev: (511, vfio),
        config,
        driver: Some("vfio-pci".to_owned()),
        settings: Settings { driver_override: Some("vfio-pci".to_owned()), ..Settings::default() },
        registration: Registration::Registered,
        iommu: 0,
        reserved: vec![Reserved { start: 0xfee0_0000, last: 0xfeef_ffff, kind: "msi" }],
        sriov: Sriov::None,
    }
}

fn devices() -> Vec<Device> {
    vec![
        device(BDF, 0, 7),
        device("0000:01:00.1", 1, 7),
        // A root bus and an address that a host may well have itself.
        device("0000:00:01.0", 2, 8),
        Device { group_kind: GroupKind::NoIommu, ..device("0000:02:00.0", 3, 9) },
        Device { group_kind: GroupKind::NoIommu, cdev: (0, 4), ..device("0000:02:00.1", 4, 6) },
    ]
}

/// The root port above a bus.
fn port(bus: &str) -> String {
    let bridge = fs::canonicalize(format!("/sys/class/pci_bus/{bus}/device")).unwrap();
    bridge.file_name().unwrap().to_str().unwrap().to_owned()
}

/// The directory of a function on bus 1.
fn below(bdf: &str) -> PathBuf {
    Path::new("/sys/devices/pci0000:00").join(port("0000:01")).join(bdf)
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn names(path: impl AsRef<Path>) -> Vec<String> {
    let path = path.as_ref();
    let entries = fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn nodes_are_character_devices_with_linux_modes(_: &View, _: &Entered) {
    for (path, mode) in [
        ("/dev/iommu", 0o660),
        ("/dev/vfio/vfio", 0o666),
        ("/dev/vfio/7", 0o600),
        ("/dev/vfio/8", 0o600),
        ("/dev/vfio/noiommu-9", 0o600),
        ("/dev/vfio/devices/vfio0", 0o600),
        ("/dev/vfio/devices/vfio2", 0o600),
        ("/dev/vfio/devices/noiommu-vfio3", 0o600),
    ] {
        let meta = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(meta.file_type().is_char_device(), "{path}");
        assert_eq!(meta.mode() & 0o7777, mode, "{path}");
        assert_eq!(meta.uid(), rustix::process::geteuid().as_raw(), "{path} belongs to the client");
    }
    assert_eq!(names("/dev/vfio"), ["7", "8", "devices", "noiommu-6", "noiommu-9", "vfio"]);
    assert_eq!(names("/dev/vfio/devices"), ["noiommu-vfio3", "vfio0", "vfio1", "vfio2"]);
    for (link, target) in [
        ("10:196", "/dev/vfio/vfio"),
        ("511:1", "/dev/vfio/devices/vfio1"),
        ("511:3", "/dev/vfio/devices/noiommu-vfio3"),
        ("242:7", "/dev/vfio/7"),
    ] {
        assert_eq!(fs::canonicalize(format!("/dev/char/{link}")).unwrap(), Path::new(target));
    }
}

fn each_node_is_reported_by_its_inode(view: &View, entered: &Entered) {
    let find = |path: &str| {
        let meta = fs::metadata(path).unwrap();
        let mut found =
            entered.nodes.iter().filter(|known| (known.dev, known.ino) == (meta.dev(), meta.ino()));
        let node = found.next().unwrap_or_else(|| panic!("{path} is not reported")).node;
        assert!(found.next().is_none(), "{path} is reported once");
        node
    };
    for &known in &entered.nodes {
        assert_eq!(
            Identity::from_bytes(known.to_bytes()),
            Some(known),
            "it survives the way to the supervisor"
        );
    }
    assert_eq!(find("/dev/iommu"), Node::Iommu);
    assert_eq!(find("/dev/vfio/vfio"), Node::VfioContainer);
    assert_eq!(find("/dev/vfio/7"), Node::Group(7));
    assert_eq!(find("/dev/vfio/noiommu-9"), Node::NoIommuGroup(9));
    assert_eq!(find("/dev/vfio/devices/vfio2"), Node::Cdev(2));
    assert_eq!(find("/dev/char/511:1"), Node::Cdev(1));
    let parameter = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit";
    assert_eq!(find(parameter), Node::Parameter(1));
    let path = "/sys/bus/pci/drivers/vfio-pci/bind";
    let Node::Attribute(number) = find(path) else { panic!("{path} is an attribute") };
    assert_eq!(view.attribute(number), Some(path));
}

fn a_node_nobody_answers_cannot_be_opened(_: &View, _: &Entered) {
    for path in ["/dev/iommu", "/dev/vfio/vfio", "/dev/vfio/7"] {
        let error = fs::File::open(path).unwrap_err();
        // No such driver; or, on a file system of a user namespace, devices do not work at all.
        let errno = error.raw_os_error().unwrap();
        assert!([6, 13].contains(&errno), "{path}: {error}");
    }
}

fn the_usual_devices_go_on_working(_: &View, _: &Entered) {
    fs::write("/dev/null", "gone").unwrap();
    let mut zeros = [1; 16];
    std::io::Read::read_exact(&mut fs::File::open("/dev/zero").unwrap(), &mut zeros).unwrap();
    assert_eq!(zeros, [0; 16]);
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom").unwrap(), &mut zeros).unwrap();
    let shm = format!("/dev/shm/ioasis-view-{}", std::process::id());
    fs::write(&shm, "shared").unwrap();
    fs::remove_file(&shm).unwrap();
    let file = fs::File::open("/proc/self/status").unwrap();
    assert!(fs::metadata(format!("/dev/fd/{}", file.as_raw_fd())).is_ok());
    assert!(fs::symlink_metadata("/dev/null").unwrap().file_type().is_char_device());
}

fn a_pseudo_terminal_can_be_made(_: &View, _: &Entered) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let slave = fs::OpenOptions::new().read(true).write(true).open(&name).unwrap();
    assert_eq!(rustix::termios::ttyname(&slave, Vec::new()).unwrap().to_str(), Ok(name.as_str()));
}

fn only_the_devices_of_the_run_are_on_the_bus(_: &View, _: &Entered) {
    let (first, second) = (port("0000:01"), port("0000:02"));
    let mut expected = [
        "0000:00:00.0",
        "0000:00:01.0",
        &first,
        &second,
        BDF,
        "0000:01:00.1",
        "0000:02:00.0",
        "0000:02:00.1",
    ];
    expected.sort_unstable();
    assert_eq!(names("/sys/bus/pci/devices"), expected);
    assert_eq!(names("/sys/bus/pci/drivers"), ["pcieport", "vfio-pci"]);
    assert_eq!(names(format!("{PCI}/vfio-dev")), ["vfio0"]);
    let unguarded = "/sys/bus/pci/devices/0000:02:00.0/vfio-dev";
    assert_eq!(names(unguarded), ["noiommu-vfio3"]);
    let node = text(&format!("{unguarded}/noiommu-vfio3/uevent"));
    assert_eq!(node, "MAJOR=511\nMINOR=3\nDEVNAME=vfio/devices/noiommu-vfio3\n");
    let unnamed = "/sys/bus/pci/devices/0000:02:00.1/vfio-dev";
    assert_eq!(names(unnamed), ["vfio4"]);
    assert!(
        !Path::new(&format!("{unnamed}/vfio4/dev")).exists(),
        "before Linux 7.3 it has no cdev"
    );
}

fn every_link_leads_somewhere(_: &View, _: &Entered) {
    let mut directories: Vec<PathBuf> = [
        "/sys/bus/pci",
        "/sys/kernel/iommu_groups",
        "/sys/class/vfio",
        "/sys/class/vfio-dev",
        "/sys/class/iommu",
        "/sys/module/vfio_pci",
        "/sys/devices/pci0000:00/0000:00:00.0",
        &format!("/sys/devices/pci0000:00/{}", port("0000:01")),
        &format!("/sys/devices/pci0000:00/{}", port("0000:02")),
        "/sys/devices/pci0000:00/0000:00:01.0",
        "/sys/devices/virtual/iommu",
        "/sys/devices/virtual/vfio",
        "/sys/devices/virtual/misc/vfio",
        "/dev/char",
    ]
    .map(PathBuf::from)
    .to_vec();
    let mut links = 0;
    while let Some(directory) = directories.pop() {
        for name in names(&directory) {
            let path = directory.join(name);
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            if kind.is_dir() {
                directories.push(path);
            } else if kind.is_symlink() && !path.starts_with("/dev/char") {
                fs::canonicalize(&path)
                    .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                links += 1;
            }
        }
    }
    assert!(links > 40, "{links} links were followed");
    for name in ["511:0", "242:7", "10:196"] {
        fs::canonicalize(format!("/sys/dev/char/{name}/subsystem")).unwrap();
    }
}

fn the_last_component_of_a_real_path_is_the_bdf(_: &View, _: &Entered) {
    for bdf in [BDF, "0000:01:00.1", "0000:00:01.0", "0000:02:00.0"] {
        let real = fs::canonicalize(format!("/sys/bus/pci/devices/{bdf}")).unwrap();
        assert_eq!(real.file_name().unwrap().to_str(), Some(bdf));
        assert!(real.starts_with("/sys/devices"), "{}", real.display());
        let link = fs::read_link(format!("/sys/bus/pci/devices/{bdf}")).unwrap();
        assert_eq!(
            link,
            Path::new("../../../devices").join(real.strip_prefix("/sys/devices").unwrap())
        );
    }
    let real = |path: &str| fs::canonicalize(format!("{PCI}/{path}")).unwrap();
    assert_eq!(real("driver"), Path::new("/sys/bus/pci/drivers/vfio-pci"));
    assert_eq!(real("subsystem"), Path::new("/sys/bus/pci"));
    assert_eq!(real("iommu_group"), Path::new("/sys/kernel/iommu_groups/7"));
    assert_eq!(real("iommu_group/devices/0000:01:00.1"), below("0000:01:00.1"));
    assert_eq!(real("iommu"), Path::new("/sys/devices/virtual/iommu/dmar0"));
    assert_eq!(real("vfio-dev/vfio0/device"), below(BDF));
    assert_eq!(fs::canonicalize("/sys/class/vfio-dev/vfio0").unwrap(), real("vfio-dev/vfio0"));
}

fn attributes_say_what_linux_says(_: &View, _: &Entered) {
    for (name, value) in [
        ("vendor", "0x1b36\n"),
        ("device", "0x0010\n"),
        ("subsystem_vendor", "0x1af4\n"),
        ("subsystem_device", "0x1100\n"),
        ("class", "0x010802\n"),
        ("revision", "0x02\n"),
        ("numa_node", "-1\n"),
        ("irq", "0\n"),
        ("enable", "0\n"),
        ("modalias", "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02\n"),
        ("vfio-dev/vfio0/dev", "511:0\n"),
        ("vfio-dev/vfio0/uevent", "MAJOR=511\nMINOR=0\nDEVNAME=vfio/devices/vfio0\n"),
    ] {
        assert_eq!(text(&format!("{PCI}/{name}")), value, "{name}");
    }
    assert!(
        text(&format!("{PCI}/uevent"))
            .contains("DRIVER=vfio-pci\nPCI_CLASS=10802\nPCI_ID=1B36:0010\n")
    );
    let resource = text(&format!("{PCI}/resource"));
    assert_eq!(
        resource.lines().next(),
        Some("0x00000000fe000000 0x00000000fe003fff 0x0000000000140204")
    );
    assert!(resource.lines().count() >= 7);
    let config = fs::read(format!("{PCI}/config")).unwrap();
    assert_eq!((config.len(), &config[..4]), (4096, &[0x36, 0x1b, 0x10, 0x00][..]));
    for absent in ["sriov_numvfs", "max_vfs", "physfn", "virtfn0", "msi_irqs"] {
        assert!(!Path::new(PCI).join(absent).exists(), "{absent}");
    }
}

fn every_machine_has_a_host_bridge_and_a_root_port_above_each_bus(_: &View, _: &Entered) {
    let bridge = "/sys/bus/pci/devices/0000:00:00.0";
    assert_eq!(text(&format!("{bridge}/class")), "0x060000\n");
    assert_eq!(names("/sys/kernel/iommu_groups/0/devices"), ["0000:00:00.0"]);
    assert!(!Path::new(bridge).join("driver").exists(), "no driver is bound to a host bridge");
    assert_eq!(names("/sys/class/pci_bus"), ["0000:00", "0000:01", "0000:02"]);
    for (bus, group) in [("0000:01", "10"), ("0000:02", "11")] {
        let port = port(bus);
        let directory = format!("/sys/bus/pci/devices/{port}");
        assert_eq!(text(&format!("{directory}/class")), "0x060400\n");
        assert_eq!(names(format!("/sys/kernel/iommu_groups/{group}/devices")), [port.as_str()]);
        let number = bus.trim_start_matches("0000:0");
        assert_eq!(text(&format!("{directory}/secondary_bus_number")), format!("{number}\n"));
        let driver = fs::canonicalize(format!("{directory}/driver")).unwrap();
        assert_eq!(driver, Path::new("/sys/bus/pci/drivers/pcieport"));
        let config = fs::read(format!("{directory}/config")).unwrap();
        assert_eq!(config[0x18..0x1b], [0, number.parse().unwrap(), number.parse().unwrap()]);
        assert_eq!(config[0x100..0x102], [0x0d, 0], "ACS");
        let members = names("/sys/class/iommu/dmar0/devices");
        assert!(members.contains(&port), "{members:?}");
        assert!(!Path::new(&directory).join("vfio-dev").exists());
    }
    let resource = text(&format!("/sys/bus/pci/devices/{}/resource", port("0000:01")));
    assert_eq!(resource.lines().count(), 17, "four windows more than a device");
    assert_eq!(
        resource.lines().nth(14),
        Some("0x00000000fe000000 0x00000000fe0fffff 0x0000000000000200")
    );
}

fn a_bar_is_a_file_of_its_size(_: &View, entered: &Entered) {
    let meta = fs::metadata(format!("{PCI}/resource0")).unwrap();
    assert_eq!((meta.len(), meta.mode() & 0o7777), (0x4000, 0o600));
    assert!(!Path::new(PCI).join("resource1").exists());
    let is_it = |known: &&Identity| (known.dev, known.ino) == (meta.dev(), meta.ino());
    let node = entered.nodes.iter().find(is_it).map(|known| known.node);
    assert_eq!(node, Some(Node::Resource(0)));
}

/// Every directory below `path` that has a PCI address for a name, links not followed.
fn functions_below(path: &Path, found: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
    {
        let name = entry.file_name().into_string().unwrap();
        let mut parts = name.split([':', '.']);
        let is_address = name.len() == 12
            && parts.by_ref().count() == 4
            && name.split([':', '.']).all(|part| u32::from_str_radix(part, 16).is_ok());
        if is_address {
            found.push(name);
        }
        functions_below(&entry.path(), found);
    }
}

fn no_function_of_the_host_is_left_in_sysfs(_: &View, _: &Entered) {
    let mut found = Vec::new();
    functions_below(Path::new("/sys/devices"), &mut found);
    found.sort();
    assert_eq!(found, names("/sys/bus/pci/devices"), "those on the bus, each once");
    let roots = names("/sys/devices").into_iter().filter(|name| name.starts_with("pci0"));
    assert_eq!(roots.collect::<Vec<_>>(), ["pci0000:00"]);
    for directory in ["/sys/class", "/sys/dev", "/sys/block"] {
        let mut directories = vec![PathBuf::from(directory)];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(&directory).unwrap().flatten() {
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    directories.push(entry.path());
                } else if kind.is_symlink() {
                    let link = entry.path();
                    let real = fs::canonicalize(&link)
                        .unwrap_or_else(|error| panic!("{}: {error}", link.display()));
                    let ours = [":01", "pci_bus", "vfio-dev"];
                    let text = real.display().to_string();
                    assert!(
                        !text.contains("/pci0") || ours.iter().any(|part| text.contains(part)),
                        "{} leads to {text}",
                        link.display()
                    );
                }
            }
        }
    }
}

fn disks_and_interfaces_of_the_host_go_on_working(_: &View, _: &Entered) {
    let disks = names("/sys/block");
    let known = fs::read_to_string("/proc/partitions").unwrap();
    for disk in known.lines().skip(2).filter_map(|line| line.split_whitespace().nth(3)) {
        let number = text(&format!("/sys/class/block/{disk}/dev"));
        let by_number = fs::canonicalize(format!("/sys/dev/block/{}", number.trim())).unwrap();
        assert_eq!(by_number, fs::canonicalize(format!("/sys/class/block/{disk}")).unwrap());
        // Its own links lead where they led.
        let subsystem = fs::canonicalize(by_number.join("subsystem")).unwrap();
        assert_eq!(subsystem, Path::new("/sys/class/block"), "{disk}");
        if let Ok(device) = fs::canonicalize(by_number.join("device")) {
            assert!(device.join("subsystem").exists(), "{}", device.display());
        }
    }
    for disk in disks {
        text(&format!("/sys/block/{disk}/size"));
    }
    for interface in names("/sys/class/net") {
        let path = format!("/sys/class/net/{interface}");
        if Path::new(&path).is_dir() {
            let subsystem = fs::canonicalize(format!("{path}/subsystem")).unwrap();
            assert_eq!(subsystem, Path::new("/sys/class/net"), "{interface}");
        }
    }
    if let Ok(host) = fs::read_dir("/sys/devices/host") {
        for folder in host.flatten() {
            assert!(!folder.path().join("uevent").exists(), "the folder is no device");
            assert!(!folder.path().join("subsystem").exists(), "the folder is no device");
        }
    }
}

fn groups_iommus_and_modules_are_there(_: &View, _: &Entered) {
    assert_eq!(names("/sys/kernel/iommu_groups"), ["0", "10", "11", "6", "7", "8", "9"]);
    assert_eq!(names("/sys/kernel/iommu_groups/7/devices"), [BDF, "0000:01:00.1"]);
    assert_eq!(text("/sys/kernel/iommu_groups/7/type"), "DMA-FQ\n");
    let reserved = text("/sys/kernel/iommu_groups/7/reserved_regions");
    assert_eq!(reserved, "0x00000000fee00000 0x00000000feefffff msi\n");
    assert_eq!(text("/sys/kernel/iommu_groups/9/name"), "vfio-noiommu\n");
    assert_eq!(names("/sys/class/vfio"), ["7", "8", "noiommu-6", "noiommu-9"]);
    assert_eq!(names("/sys/class/iommu"), ["dmar0"]);
    // DPDK and SPDK read the address width here: bits 21:16, plus one.
    let cap =
        u64::from_str_radix(text(&format!("{PCI}/iommu/intel-iommu/cap")).trim(), 16).unwrap();
    assert_eq!((cap >> 16 & 0x3f) + 1, 48);
    for module in ["vfio", "vfio_pci", "vfio_iommu_type1", "iommufd"] {
        assert_eq!(text(&format!("/sys/module/{module}/initstate")), "live\n");
    }
}

fn the_rest_of_sysfs_stays(_: &View, entered: &Entered) {
    assert!(!names("/sys/devices/system/cpu").is_empty());
    assert!(names("/sys/class").len() > 4);
    assert!(names("/sys/module").len() > 5);
    for interface in names("/sys/class/net") {
        text(&format!("/sys/class/net/{interface}/address"));
    }
    assert_eq!(entered.lost, [""; 0], "nothing the host has went out of view");
    assert!(std::env::current_dir().unwrap().starts_with("/sys/bus"));
    assert!(names(".").contains(&"pci".to_owned()));
}

fn what_linux_lets_root_write_is_refused(_: &View, _: &Entered) {
    for path in [
        "/sys/bus/pci/drivers/vfio-pci/unbind",
        "/sys/bus/pci/drivers_probe",
        &format!("{PCI}/driver_override"),
    ] {
        let error = fs::OpenOptions::new().write(true).open(path).unwrap_err();
        // Without a supervisor, which answers it; the files are the user's.
        assert_eq!(error.raw_os_error(), Some(30), "{path}");
    }
    assert!(fs::create_dir("/sys/bus/pci/devices/mine").is_err());
}

fn files_for_the_client_are_limited(_: &View, entered: &Entered) {
    use rustix::fs::{Mode, OFlags, ftruncate, openat};
    let file =
        openat(&entered.files, ".", OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR)
            .unwrap();
    ftruncate(&file, 10 << 40).unwrap();
    assert_eq!(rustix::io::pwrite(&file, &[7; 4096], 1 << 40), Ok(4096));
    let full =
        (0..1024_u64).find_map(|page| rustix::io::pwrite(&file, &[7; 4096], page << 12).err());
    assert_eq!(full, Some(rustix::io::Errno::NOSPC));
}

fn a_plain_user_keeps_uid_and_gains_nothing(_: &View, _: &Entered) {
    let status = text("/proc/self/status");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].trim().to_owned()
    };
    if is_root() {
        assert!(field("Uid:").starts_with('0'));
        return;
    }
    assert_eq!(field("Uid:"), "65534\t65534\t65534\t65534");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert!(rustix::mount::unmount("/sys/bus/pci", rustix::mount::UnmountFlags::DETACH).is_err());
}
