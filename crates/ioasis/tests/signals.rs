//! Signals whose handlers do not begin calls anew: no call that Linux never interrupts fails with EINTR, and what else becomes of
//! the program is as without a tracer.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder of this test's own, removed when it passes.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

impl Folder {
    fn new(name: &str) -> Self {
        let path = format!("signals-{name}-{}", std::process::id());
        let folder = Self(Path::new(env!("CARGO_TARGET_TMPDIR")).join(path));
        std::fs::create_dir_all(&folder.0).expect("a folder under target");
        folder
    }

    /// Runs a command in it.
    fn run(&self, options: &[&str], command: &[&str]) -> Output {
        let mut run = Command::new(env!("CARGO_BIN_EXE_ioasis"));
        run.args(["run", "--device", "testdev"]).args(options).arg("--").args(command);
        run.current_dir(&self.0).output().expect("ioasis starts")
    }
}

/// Runs `signals HOW` to its end, which is that of the program, and without a word of ours.
fn passes(how: &str) {
    let folder = Folder::new(how);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/signals.c");
    let mut built = Command::new("gcc");
    built.args(["-O1", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-o"]);
    built.arg(folder.0.join("signals")).arg(source);
    assert!(built.status().expect("gcc is installed").success(), "signals.c does not compile");
    let output = folder.run(&[], &["./signals", how]);
    let (text, silent) = (String::from_utf8_lossy(&output.stdout), output.stderr.is_empty());
    assert!(output.status.success() && text == "ok\n" && silent, "{output:?}");
}

#[test]
fn no_stopped_call_is_interrupted_whose_handler_does_not_begin_it_anew() {
    passes("calls");
}

#[test]
fn calls_of_threads_and_children_are_not_interrupted_either() {
    passes("inherited");
}

#[test]
fn a_call_that_waits_on_linux_is_interrupted_as_there() {
    passes("waits");
}

#[test]
fn a_program_whose_signals_are_looked_at_is_stopped_continued_and_waited_for_as_any() {
    passes("jobs");
}

#[test]
fn a_program_whose_signals_are_looked_at_can_be_traced_by_another() {
    passes("traced");
}

#[test]
fn a_program_that_is_executed_has_no_handler_and_no_tracer() {
    passes("executes");
}

#[test]
fn handlers_that_begin_calls_anew_or_are_every_shells_bring_no_tracer() {
    passes("left-alone");
}

#[test]
fn a_shell_with_a_trap_redirects_while_signals_come() {
    let folder = Folder::new("shell");
    // A signal every two milliseconds, beside redirections, children and substitutions.
    let script = "trap 'n=$((n+1))' USR1; n=0; \
        (while kill -USR1 $$ 2>/dev/null; do sleep 0.002; done) & k=$!; i=0; \
        while [ $i -lt 3000 ]; do : < /etc/passwd; i=$((i+1)); done; \
        i=0; while [ $i -lt 30 ]; do x=$(echo $i); i=$((i+1)); done; \
        kill $k; [ $n -gt 0 ] && echo ok";
    let output = folder.run(&[], &["sh", "-c", script]);
    assert!(output.status.success() && output.stdout == b"ok\n", "{output:?}");
}
