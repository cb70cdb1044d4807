//! A device reaches the memory that was mapped for it, or nothing: never that of a process which has the number, or has taken
//! the place, of the one that mapped it.
//!
//! `strangers.c` says how. `IOASIS_RUNS` says how many rounds each test makes, `IOASIS_SEED` where its random choices begin.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder of this test's own, removed when it passes.
struct Folder(PathBuf);

impl Folder {
    fn new(ways: &[&str]) -> Self {
        let name = format!("strangers-{}-{}", ways.join("+"), std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&path).expect("a folder under target");
        Self(path)
    }

    fn compile(&self, name: &str, flags: &[&str]) -> PathBuf {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
        let program = self.0.join(name);
        let mut gcc = Command::new("gcc");
        gcc.args(["-O1", "-Wall", "-Wextra", "-Werror"]).args(flags).arg("-o").arg(&program);
        let built = gcc.arg(folder.join(format!("{name}.c"))).status();
        assert!(built.expect("gcc is installed").success(), "{name}.c does not compile");
        program
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// The value of `variable`, or what is enough beside every other test.
fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// Rounds in which the thread or process that mapped memory goes in one of these ways.
fn nobody_else_is_reached(rounds: u64, ways: &[&str]) {
    let folder = Folder::new(ways);
    let strangers = folder.compile("strangers", &["-pthread"]);
    let at = "-Wl,--section-start=.canary=0x10000000";
    let successor = folder.compile("successor", &["-static", "-no-pie", at]);
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).arg(strangers);
    command.arg(env!("CARGO_BIN_EXE_ioasis")).arg(successor);
    let rounds = number("IOASIS_RUNS", rounds).to_string();
    let seed = number("IOASIS_SEED", 1).to_string();
    let output = command.args([rounds, seed]).args(ways).output().expect("unshare is installed");
    let said = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{ways:?}: {}\n{said}{error}", output.status);
}

#[test]
fn a_thread_that_ended_passes_its_number_but_not_its_memory_on() {
    nobody_else_is_reached(36, &["thread"]);
}

#[test]
fn a_process_that_ended_passes_its_number_but_not_its_memory_on() {
    nobody_else_is_reached(36, &["process"]);
}

#[test]
fn a_process_that_shared_memory_passes_its_number_but_not_that_memory_on() {
    nobody_else_is_reached(36, &["shared"]);
}

#[test]
fn the_next_program_of_a_process_is_not_reached() {
    nobody_else_is_reached(36, &["exec"]);
}

#[test]
fn the_next_program_of_a_thread_is_not_reached_nor_who_has_its_number() {
    nobody_else_is_reached(36, &["thread-exec"]);
}

#[test]
fn four_devices_reach_nobody_else_while_all_of_it_happens_at_once() {
    nobody_else_is_reached(120, &["thread", "process", "shared", "exec", "thread-exec"]);
}
