//! Stores to mapped registers, each of which the device must see, and what becomes of the program that makes them.

use std::os::unix::process::ExitStatusExt;
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

/// A run of `traps HOW` on an NVMe device, in a folder of its own.
fn run(how: &str, variables: &[(&str, &str)]) -> (Folder, Output) {
    run_with(&["--device", "nvme,size=1M,image=disk.img"], how, variables)
}

fn run_with(options: &[&str], how: &str, variables: &[(&str, &str)]) -> (Folder, Output) {
    let path = format!("traps-{how}-{}-{}", variables.len(), std::process::id());
    let folder = Folder(Path::new(env!("CARGO_TARGET_TMPDIR")).join(path));
    std::fs::create_dir_all(&folder.0).expect("a folder under target");
    let program = folder.0.join("traps");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/traps.c");
    let mut built = Command::new("gcc");
    built.args(["-O1", "-static", "-pthread", "-o"]).arg(&program).arg(source);
    assert!(built.status().expect("gcc is installed").success(), "traps.c does not compile");
    let mut run = Command::new(env!("CARGO_BIN_EXE_ioasis"));
    run.arg("run").args(options).arg("--").arg(&program).arg(how);
    run.envs(variables.iter().copied()).current_dir(&folder.0);
    let output = run.output().expect("ioasis starts");
    (folder, output)
}

/// Runs it to its end, which is that of the program, and without a word of ours.
fn passes(how: &str, variables: &[(&str, &str)]) {
    is_ok(&run(how, variables));
}

fn is_ok((_folder, output): &(Folder, Output)) {
    let text = String::from_utf8_lossy(&output.stdout);
    let silent = output.stderr.is_empty();
    assert!(output.status.success() && text == "ok\n" && silent, "{output:?}");
}

#[test]
fn the_device_sees_every_store_to_a_mapped_register_whatever_instruction_makes_it() {
    passes("every-store", &[]);
}

#[test]
fn a_controller_that_failed_is_enabled_again_without_a_pause() {
    passes("enable", &[]);
}

#[test]
fn a_load_of_a_register_that_loads_change_takes_what_is_there_once() {
    is_ok(&run_with(&["--device", "testdev,latch=on"], "latch", &[]));
}

#[test]
fn a_program_whose_stores_are_not_to_be_trapped_is_not_traced() {
    let device = ["--trap-stores=off", "--device", "nvme,size=1M,image=disk.img"];
    is_ok(&run_with(&device, "polled", &[]));
}

#[test]
fn a_thread_that_blocks_all_signals_keeps_its_mask_and_its_handler() {
    passes("blocked", &[]);
    passes("blocked", &[("EARLY", "1")]);
}

#[test]
fn a_program_that_ignores_the_signal_of_faults_goes_on_ignoring_it() {
    passes("ignored", &[]);
    passes("ignored", &[("EARLY", "1")]);
}

#[test]
fn faults_of_the_programs_own_come_to_its_handler_at_their_addresses() {
    passes("own-faults", &[]);
}

#[test]
fn a_store_while_the_device_decodes_no_memory_is_a_bus_error_also_where_that_is_blocked() {
    passes("not-there", &[]);
}

#[test]
fn the_kernel_itself_cannot_write_to_mapped_registers() {
    passes("kernel", &[]);
}

#[test]
fn threads_made_before_and_after_the_mapping_are_heard() {
    passes("threads", &[]);
}

#[test]
fn what_a_program_forks_is_heard_and_ends_as_it_would_and_what_it_executes_is_not_traced() {
    let (folder, output) = run("processes", &[]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(44), "{output:?}");
    assert!(text.starts_with("ok\ncore ") && text.ends_with("\nok\n"), "{text}");
    drop(folder);
}

#[test]
fn a_program_with_another_users_rights_gets_them_and_is_not_traced() {
    // Only root can make one.
    if rustix::process::geteuid().is_root() {
        let (_folder, output) = run("set-user-id", &[]);
        assert_eq!((output.status.code(), &*output.stderr), (Some(44), &[][..]), "{output:?}");
    }
}

#[test]
fn a_thread_executes_a_program_while_another_maps_registers() {
    passes("execute-beside-map", &[]);
}

#[test]
fn a_program_that_could_not_be_executed_leaves_the_stores_of_the_old_one_trapped() {
    passes("failed-exec", &[]);
}

#[test]
fn a_parent_that_a_pidfd_tells_of_the_end_finds_its_child_at_once() {
    passes("told", &[]);
}

#[test]
fn a_process_is_stopped_and_continued_as_without_a_tracer() {
    passes("stopped", &[]);
}

#[test]
fn signals_come_through_between_stores() {
    passes("interrupted", &[]);
}

#[test]
fn an_instruction_that_cannot_be_done_is_said_with_its_bytes_and_ends_the_program() {
    let (_folder, output) = run("unknown", &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(11), "{output:?}");
    // FSTP of 8 bytes: dd /3 (Intel SDM 2).
    assert!(said.contains("cannot be done") && said.contains("[dd, "), "{said}");
}

#[test]
fn a_process_that_somebody_else_traces_cannot_map_registers_and_is_told_why() {
    let (_folder, output) = run("watched", &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && output.stdout == b"ok\n", "{output:?}");
    assert!(said.contains("traced by another") && said.contains("--trap-stores=off"), "{said}");
}
