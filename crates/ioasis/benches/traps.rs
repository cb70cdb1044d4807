//! P19: how long a store to a trapped page takes its program, beside one that a bare tracer steps over: it waits, reads the registers,
//! sets them and lets the thread go on.
//!
//! One client makes both in turns and says the median of each, so that whatever else the machine does meets both.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Runs, of which the median counts.
const RUNS: usize = 5;
const BOUND: f64 = 1.3;

/// The folder of this run, removed at its end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn main() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("p19-{}", std::process::id()));
    fs::create_dir_all(&path).expect("a folder under target");
    let folder = Folder(path);
    let (package, client) = (Path::new(env!("CARGO_MANIFEST_DIR")), folder.0.join("traps"));
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-Wall", "-Wextra", "-Werror", "-I"]).arg(package.join("tests/clients"));
    let built = gcc.arg(package.join("benches/clients/traps.c")).arg("-o").arg(&client).status();
    assert!(built.expect("gcc is installed").success(), "traps.c does not compile");

    let mut ratios: Vec<f64> = (0..RUNS).map(|_| ratio(&client, &folder.0)).collect();
    ratios.sort_by(f64::total_cmp);
    let ratio = ratios[RUNS / 2];
    let verdict = if ratio <= BOUND { "met" } else { "missed" };
    println!("P19.trapped_store {ratio:.2} <={BOUND} {verdict}");
}

/// A trapped store of the run's device, in stores that a bare tracer steps over.
fn ratio(client: &Path, folder: &Path) -> f64 {
    let image = folder.join("disk.img");
    let device = format!("nvme,size=1M,image={}", image.to_str().expect("an UTF-8 path"));
    let mut run = Command::new(env!("CARGO_BIN_EXE_ioasis"));
    run.args(["run", "--device", &device, "--"]).arg(client).stdin(Stdio::null());
    let output = run.output().expect("ioasis starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let times: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [bare, trapped] = times[..] else { panic!("two times: {text}") };
    println!("# bare {:.1} us, trapped {:.1} us", bare / 1000.0, trapped / 1000.0);
    trapped / bare
}
