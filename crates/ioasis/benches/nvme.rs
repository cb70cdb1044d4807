//! P13: an unmodified qemu-img over `nvme://`, against the same qemu-img on the image file itself.
//!
//! Each figure is the median of nine pairs of runs, one of each kind after the other, so that whatever else the
//! machine does meets both. The image is in the page cache. Prints one line a goal.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const DISK: &str = "nvme://0000:01:00.0/1";
/// The device's thread is called by its address.
const WORKER: &str = "0000:01:00.0";
const IMAGE_BYTES: u64 = 512 << 20;
const PAIRS: usize = 9;
/// Requests of one `qemu-img bench`: how many, and how many at once.
#[derive(Clone, Copy)]
struct Requests {
    count: &'static str,
    depth: &'static str,
}

const MANY: Requests = Requests { count: "100000", depth: "64" };
const SINGLE: Requests = Requests { count: "10000", depth: "1" };

/// The folder of this run, removed at its end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn main() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("p13-{}", std::process::id()));
    fs::create_dir_all(&path).expect("a folder under target");
    let folder = Folder(path);
    let image = folder.0.join("disk.img");
    make_image(&image);

    let bench = |requests: Requests| {
        pairs(
            || bench_seconds(&mut on_file(&image, requests)),
            || bench_seconds(&mut over_nvme(&image, requests)),
        )
    };
    goal("P13.bench_4k", median(bench(MANY)), Bound::AtLeast(1.2));
    let busy = Busy::start();
    goal("P13.bench_4k_depth_1_busy", median(bench(SINGLE)), Bound::AtLeast(0.7));
    drop(busy);

    let copy = folder.0.join("copy.img");
    let ratios = pairs(
        || {
            wall_seconds(
                Command::new("qemu-img")
                    .args(["convert", "-f", "raw", "-O", "raw"])
                    .args([&image, &copy]),
            )
        },
        || wall_seconds(ioasis(&image).args(["qemu-img", "convert", "-O", "raw", DISK]).arg(&copy)),
    );
    goal("P13.convert", median(ratios), Bound::AtLeast(0.5));

    goal("P13.idle", idle_share(&image), Bound::AtMost(0.01));
}

/// `qemu-img bench` prints how long its requests took, start and end of the program not included.
fn bench_seconds(command: &mut Command) -> f64 {
    let output = command.stdin(Stdio::null()).output().expect("the program starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{text}{words}", output.status);
    let seconds = text.split("Run completed in ").nth(1).and_then(|rest| rest.split(' ').next());
    seconds.and_then(|seconds| seconds.parse().ok()).expect("qemu-img says how long it took")
}

fn wall_seconds(command: &mut Command) -> f64 {
    let begin = Instant::now();
    let output = command.stdin(Stdio::null()).output().expect("the program starts");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{words}", output.status);
    begin.elapsed().as_secs_f64()
}

fn ioasis(image: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ioasis"));
    command.args(["run", "--device", &format!("nvme,image={}", image.display()), "--"]);
    command
}

impl Requests {
    fn arguments(self) -> [&'static str; 9] {
        ["bench", "-c", self.count, "-d", self.depth, "-s", "4096", "-f", "raw"]
    }
}

fn on_file(image: &Path, requests: Requests) -> Command {
    let mut command = Command::new("qemu-img");
    command.args(requests.arguments()).arg(image);
    command
}

fn over_nvme(image: &Path, requests: Requests) -> Command {
    let mut command = ioasis(image);
    command.arg("qemu-img").args(requests.arguments()).arg(DISK);
    command
}

/// A process for each processor that never waits.
struct Busy(Vec<Child>);

impl Busy {
    fn start() -> Self {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let spin = || Command::new("sh").args(["-c", "while :; do :; done"]).spawn();
        Self((0..count).map(|_| spin().expect("sh starts")).collect())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().expect("it never ends by itself");
            child.wait().expect("it was killed");
        }
    }
}

/// How many times as fast the second is, pair by pair.
fn pairs(mut peer: impl FnMut() -> f64, mut ours: impl FnMut() -> f64) -> Vec<f64> {
    (0..PAIRS).map(|_| peer() / ours()).collect()
}

fn median(mut ratios: Vec<f64>) -> f64 {
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

/// The share of a core that the device's thread uses, from one second after the last command on.
fn idle_share(image: &Path) -> f64 {
    let mut client = ioasis(image)
        .args(["qemu-io", "-f", "raw", "-c", "read 0 4k", "-c", "sleep 4000", DISK])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("the program starts");
    std::thread::sleep(Duration::from_secs(2));
    let (before, begin) = (worker_time(&client), Instant::now());
    std::thread::sleep(Duration::from_secs(1));
    let used = worker_time(&client) - before;
    let share = used.as_secs_f64() / begin.elapsed().as_secs_f64();
    assert!(client.wait().expect("it ends").success(), "qemu-io reads a block");
    share
}

/// CPU time of the device's thread, which is somewhere under `client`.
fn worker_time(client: &Child) -> Duration {
    let processes = fs::read_dir("/proc").expect("proc").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    for pid in pids.filter(|&pid| descends(pid, client.id())) {
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.flatten().map(|task| task.path()) {
            let comm = fs::read_to_string(task.join("comm")).unwrap_or_default();
            let schedstat = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
            let ran = schedstat.split(' ').next().and_then(|field| field.parse().ok());
            if let (WORKER, Some(ran)) = (comm.trim_end(), ran) {
                return Duration::from_nanos(ran);
            }
        }
    }
    panic!("no thread is called {WORKER}: the device is not open");
}

fn descends(pid: u32, ancestor: u32) -> bool {
    let parent = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
    };
    let mut next = Some(pid);
    while let Some(pid) = next.filter(|&pid| pid > 1) {
        if pid == ancestor {
            return true;
        }
        next = parent(pid);
    }
    false
}

/// Bytes that do not compress and are in the page cache.
fn make_image(path: &Path) {
    let mut random = File::open("/dev/urandom").expect("random bytes").take(IMAGE_BYTES);
    io::copy(&mut random, &mut File::create(path).expect("an image")).expect("written");
}

enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

fn goal(name: &str, figure: f64, bound: Bound) {
    let (sign, limit, met) = match bound {
        Bound::AtLeast(limit) => (">=", limit, figure >= limit),
        Bound::AtMost(limit) => ("<=", limit, figure <= limit),
    };
    let verdict = if met { "met" } else { "missed" };
    println!("{name} {figure:.3} {sign}{limit} {verdict}");
}
