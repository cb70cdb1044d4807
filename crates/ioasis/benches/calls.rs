//! P26: what a program waits for when it maps or unmaps a page or reads config space, beside CHECK_EXTENSION, which the
//! supervisor answers from what it has at hand.
//!
//! One client makes the calls in turns and says the median of each, so that whatever else the machine does meets all of them.
//! It does so with private, shared and hugetlb memory, with a container and with an iommufd, while its four devices are idle
//! and while another process has all four copy (`_dma`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What is bounded, while the devices are idle.
const GOALS: [(&str, &str, &str, f64); 4] = [
    ("map_dma", "container", "map", 1.7),
    ("unmap_dma", "container", "unmap", 1.5),
    ("ioas_map", "iommufd", "map", 1.7),
    ("config_read", "container", "config_read", 1.3),
];
/// The bound of each while they copy.
const WHILE_COPYING: f64 = 2.5;

/// The folder of this run, removed at its end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn main() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("p26-{}", std::process::id()));
    fs::create_dir_all(&path).expect("a folder under target");
    let folder = Folder(path);
    let client = compile(&folder.0);
    for memory in ["private", "shared", "hugetlb"] {
        let _pages = (memory == "hugetlb").then(HugePages::reserve);
        for load in ["idle", "dma"] {
            for interface in ["container", "iommufd"] {
                report(&client, interface, memory, load);
            }
        }
    }
}

fn report(client: &Path, interface: &str, memory: &str, load: &str) {
    let medians = medians(client, interface, memory, load);
    let median = |call: &str| {
        let found = medians.iter().find(|(name, _)| name == call);
        found.expect("the client times it").1
    };
    let micros: Vec<_> =
        medians.iter().map(|(name, time)| format!("{name} {:.1} us", time / 1000.0)).collect();
    println!("# {interface}, {memory}, {load}: {}", micros.join(", "));
    for (goal, _, call, bound) in GOALS.iter().filter(|goal| goal.1 == interface) {
        let (suffix, bound) = match load {
            "dma" => ("_dma", WHILE_COPYING),
            _ => ("", *bound),
        };
        let ratio = median(call) / median("check_extension");
        let verdict = if ratio <= bound { "met" } else { "missed" };
        println!("P26.{goal}.{memory}{suffix} {ratio:.2} <={bound} {verdict}");
    }
}

/// The calls of one run and the nanoseconds each takes.
fn medians(client: &Path, interface: &str, memory: &str, load: &str) -> Vec<(String, f64)> {
    let mut run = Command::new(env!("CARGO_BIN_EXE_ioasis"));
    run.arg("run").args(["--device", "testdev"].repeat(4)).arg("--").arg(client);
    let output = run.args([interface, memory, load]).stdin(Stdio::null()).output();
    let output = output.expect("ioasis starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{interface} {memory} {load}: {output:?}");
    let line = |line: &str| {
        let (name, time) = line.split_once(' ')?;
        Some((name.to_owned(), time.parse().ok()?))
    };
    text.lines().map(|text| line(text).expect("a call and its time")).collect()
}

fn compile(folder: &Path) -> PathBuf {
    let (package, client) = (Path::new(env!("CARGO_MANIFEST_DIR")), folder.join("calls"));
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-Wall", "-Wextra", "-Werror", "-I"]).arg(package.join("tests/clients"));
    gcc.arg(package.join("benches/clients/calls.c")).arg("-o").arg(&client);
    assert!(gcc.status().expect("gcc is installed").success(), "calls.c does not compile");
    client
}

/// Huge pages for one client, given back at the end.
struct HugePages(u64);

impl HugePages {
    const FILE: &str = "/proc/sys/vm/nr_hugepages";
    /// What the client maps.
    const NEEDED: u64 = 4;

    fn reserve() -> Self {
        let text = fs::read_to_string(Self::FILE).expect("the kernel has huge pages");
        let before: u64 = text.trim().parse().expect("a number");
        let pages = Self(before);
        pages.set(before + Self::NEEDED);
        pages
    }

    /// The client says it if that did not help.
    fn set(&self, count: u64) {
        if let Err(error) = fs::write(Self::FILE, count.to_string()) {
            println!("# {}: {error}", Self::FILE);
        }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        self.set(self.0);
    }
}
