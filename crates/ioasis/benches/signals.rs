//! P27: how many of a million stopped calls a signal turns into EINTR, which Linux never answers to them, with a thousand
//! signals a second. Between the stop of a call and its receive the kernel lets a signal in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Calls of a run.
const CALLS: &str = "250000";
/// Runs, of which the median counts.
const RUNS: usize = 5;
/// Of a million calls; a call that takes 12 us meets a signal 12,000 times in a million.
const BOUND: f64 = 1000.0;

/// The folder of this run, removed at its end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn main() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("p27-{}", std::process::id()));
    fs::create_dir_all(&path).expect("a folder under target");
    let folder = Folder(path);
    let (package, client) = (Path::new(env!("CARGO_MANIFEST_DIR")), folder.0.join("signals"));
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-Wall", "-Wextra", "-Werror", "-I"]).arg(package.join("tests/clients"));
    let built = gcc.arg(package.join("benches/clients/signals.c")).arg("-o").arg(&client).status();
    assert!(built.expect("gcc is installed").success(), "signals.c does not compile");

    let mut shares: Vec<f64> = (0..RUNS).map(|_| interrupted(&client)).collect();
    shares.sort_by(f64::total_cmp);
    let share = shares[RUNS / 2];
    println!("P27.eintr {share:.0} <={BOUND} {}", if share <= BOUND { "met" } else { "missed" });
}

/// EINTR in a million calls.
fn interrupted(client: &Path) -> f64 {
    let mut run = Command::new(env!("CARGO_BIN_EXE_ioasis"));
    run.args(["run", "--device", "testdev", "--"]).arg(client).arg(CALLS).stdin(Stdio::null());
    let output = run.output().expect("ioasis starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let figures: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [calls, signals, interrupted] = figures[..] else { panic!("three figures: {text}") };
    println!("# {calls} calls, {signals} signals, {interrupted} EINTR");
    interrupted * 1e6 / calls
}
