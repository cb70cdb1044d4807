//! Registers and interrupts as a whole program sees them.

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

fn succeeded(output: &Output) -> String {
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\nstdout: {out}\nstderr: {err}", output.status);
    out.into_owned()
}

/// A folder of the test `how`, and the static program `name` in it.
fn client(name: &str, how: &str) -> (Folder, PathBuf) {
    let path = format!("{name}-{how}-{}", std::process::id());
    let folder = Folder(Path::new(env!("CARGO_TARGET_TMPDIR")).join(path));
    std::fs::create_dir_all(&folder.0).expect("a folder under target");
    let program = folder.0.join(name);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/clients/{name}.c"));
    let mut built = Command::new("gcc");
    built.args(["-O1", "-static", "-o"]).arg(&program).arg(source);
    assert!(built.status().expect("gcc is installed").success(), "{name}.c does not compile");
    (folder, program)
}

/// Runs `registers HOW` on an NVMe device.
fn registers(how: &str) {
    on_nvme("registers", how);
}

fn on_nvme(name: &str, how: &str) {
    let (folder, program) = client(name, how);
    let image = folder.0.join("disk.img");
    let device = format!("nvme,size=1M,image={}", image.to_str().expect("an UTF-8 path"));
    let mut run = Command::new(env!("CARGO_BIN_EXE_ioasis"));
    run.args(["run", "--device", &device, "--"]).arg(&program).arg(how);
    assert_eq!(succeeded(&run.output().expect("ioasis starts")), "ok\n");
}

/// Runs `refusals HOW` on a testdev; the trace has a line that ends like this.
fn refusals(how: &str, line: &str) {
    let (_folder, program) = client("refusals", how);
    let mut run = Command::new(env!("CARGO_BIN_EXE_ioasis"));
    run.args(["run", "--device", "testdev", "--trace", "--"]).arg(&program).arg(how);
    let output = run.output().expect("ioasis starts");
    assert_eq!(succeeded(&output), "ok\n");
    let trace = String::from_utf8_lossy(&output.stderr);
    assert_eq!(trace.lines().filter(|seen| seen.ends_with(line)).count(), 1, "{trace}");
}

#[test]
fn an_unmask_eventfd_is_let_go_when_its_last_descriptor_is_closed() {
    on_nvme("eventfds", "closed");
}

#[test]
fn a_program_that_only_closes_its_unmask_eventfds_goes_on() {
    on_nvme("eventfds", "reused");
}

#[test]
fn a_signal_of_an_unmask_eventfd_is_taken_from_it() {
    on_nvme("eventfds", "taken");
}

#[test]
fn a_controller_is_reset_and_started_without_a_pause_by_system_calls() {
    registers("enable-by-call");
}

#[test]
fn a_controller_is_reset_and_started_without_a_pause_by_stores() {
    registers("enable-mapped");
}

#[test]
fn an_interrupt_without_an_eventfd_is_pending_until_there_is_one() {
    registers("pending-without-eventfd");
}

#[test]
fn an_interrupt_masked_in_the_table_is_pending_until_it_is_unmasked_or_its_cause_is_gone() {
    registers("pending-while-masked");
}

#[test]
fn a_pending_interrupt_is_gone_after_a_reset() {
    registers("pending-until-reset");
}

#[test]
fn the_bar_of_the_table_is_mapped_and_a_system_call_does_not_reach_the_table() {
    registers("table-region");
}

#[test]
fn a_copy_without_bus_mastering_has_a_line_that_says_so() {
    refusals(
        "read",
        "[0000:01:00.0] DMA read at iova 0x7000 refused: bus mastering is off; set bit 2 of COMMAND",
    );
}

#[test]
fn a_copy_after_bus_mastering_was_taken_away_has_a_line_that_says_so() {
    refusals(
        "write-after-use",
        "[0000:01:00.0] DMA write at iova 0x7000 refused: bus mastering is off; set bit 2 of COMMAND",
    );
}

#[test]
fn a_register_that_is_not_decoded_says_what_to_do() {
    refusals("memory-off", "= -1 EIO (memory decoding is off: set bit 1 of COMMAND: 0)");
}

#[test]
fn a_register_of_a_function_that_sleeps_says_what_to_do() {
    refusals(
        "asleep",
        "= -1 EIO (the function is in D3hot: write power state D0 to its power management capability, or reset it: 0)",
    );
}
