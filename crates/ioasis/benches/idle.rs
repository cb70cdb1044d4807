//! P17: how soon a device that has been idle for a tenth of a second answers a doorbell, beside a process that has waited for
//! an eventfd as long. P18: what devices and interfaces cost that nobody uses, in hundredths of a core.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const DEVICES: usize = 64;
/// Doorbells, each a tenth of a second after the last.
const ROUNDS: &str = "100";

/// The folder of this run, removed at its end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn main() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("p18-{}", std::process::id()));
    fs::create_dir_all(&path).expect("a folder under target");
    let folder = Folder(path);
    let client = compile(&folder.0);
    doorbell(&client);

    let mut run = ioasis();
    for device in 0..DEVICES {
        let image = folder.0.join(format!("{device}.img"));
        run.args(["--device", &format!("nvme,image={},size=1M", image.display())]);
    }
    run.arg("--").arg(&client).args(["devices", &DEVICES.to_string()]);
    goal(&format!("P18.idle_{DEVICES}"), hundredths_of_a_core(&mut run), 0.1);

    let mut run = ioasis();
    run.args(["--iommu", "kind=smmuv3,cmdqv", "--device", "testdev", "--"]);
    run.arg(iommu_client()).arg("hold-cmdqv");
    goal("P18.idle_cmdqv", hundredths_of_a_core(&mut run), 1.0);
}

fn goal(name: &str, figure: f64, bound: f64) {
    println!("{name} {figure:.2} <={bound} {}", if figure <= bound { "met" } else { "missed" });
}

fn ioasis() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ioasis"));
    command.arg("run");
    command
}

fn doorbell(client: &Path) {
    let mut run = ioasis();
    run.args(["--device", "testdev", "--"]).arg(client).args(["doorbell", ROUNDS]);
    let output = run.stdin(Stdio::null()).output().expect("ioasis starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let figures = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("it says both");
        let mut words = line.split_whitespace().map(|word| word.parse::<f64>().expect("a number"));
        [words.next().expect("p50"), words.next().expect("p99")].map(|time| time / 1000.0)
    };
    let ([p50, p99], [echo_p50, echo_p99]) = (figures("device"), figures("echo"));
    println!(
        "# doorbell: p50 {p50:.0} us, p99 {p99:.0} us; eventfd: {echo_p50:.0} and {echo_p99:.0} us"
    );
    goal("P17.doorbell_after_100ms_p50", p50 / echo_p50, 3.0);
    goal("P17.doorbell_after_100ms_p99", p99 / echo_p99, 10.0);
}

/// What the supervisor of a run uses while its client, which says when it is ready, does nothing.
fn hundredths_of_a_core(run: &mut Command) -> f64 {
    let mut run = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("ioasis starts");
    let mut said = String::new();
    let mut output = BufReader::new(run.stdout.take().expect("piped"));
    output.read_line(&mut said).expect("it is text");
    assert_eq!(said, "ready\n");
    let supervisor = only_child(run.id());
    std::thread::sleep(Duration::from_secs(2));
    let (before, begin) = (time_of(supervisor), Instant::now());
    std::thread::sleep(Duration::from_secs(5));
    let share = (time_of(supervisor) - before).as_secs_f64() / begin.elapsed().as_secs_f64();
    drop(run.stdin.take());
    assert!(run.wait().expect("a child").success());
    share * 100.0
}

fn only_child(pid: u32) -> u32 {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("proc");
    list.trim().parse().expect("a watchdog has one child")
}

/// Processor time of a process, all its threads.
fn time_of(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("proc").flatten();
    let nanoseconds = tasks.filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}

fn compile(folder: &Path) -> PathBuf {
    let (package, client) = (Path::new(env!("CARGO_MANIFEST_DIR")), folder.join("idle"));
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-Wall", "-Wextra", "-Werror", "-I"]).arg(package.join("tests/clients"));
    let built = gcc.arg(package.join("benches/clients/idle.c")).arg("-o").arg(&client).status();
    assert!(built.expect("gcc is installed").success(), "idle.c does not compile");
    client
}

/// The client of IOMMUFD, built beside `ioasis`.
fn iommu_client() -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_ioasis")).parent().expect("a folder");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--release", "--package", "ioasis-iommu-client"]);
    let built = cargo.arg("--target-dir").arg(folder.parent().expect("target")).status();
    assert!(built.expect("cargo").success(), "the client does not compile");
    folder.join("ioasis-iommu-client")
}
