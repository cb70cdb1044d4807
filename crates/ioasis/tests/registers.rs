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

/// Runs `registers HOW` on an NVMe device.
fn registers(how: &str) {
    let path = format!("{how}-{}", std::process::id());
    let folder = Folder(Path::new(env!("CARGO_TARGET_TMPDIR")).join(path));
    std::fs::create_dir_all(&folder.0).expect("a folder under target");
    let program = folder.0.join("registers");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/registers.c");
    let mut built = Command::new("gcc");
    built.args(["-O1", "-static", "-o"]).arg(&program).arg(source);
    assert!(built.status().expect("gcc is installed").success(), "registers.c does not compile");
    let image = folder.0.join("disk.img");
    let device = format!("nvme,size=1M,image={}", image.to_str().expect("an UTF-8 path"));
    let mut run = Command::new(env!("CARGO_BIN_EXE_ioasis"));
    run.args(["run", "--device", &device, "--"]).arg(&program).arg(how);
    assert_eq!(succeeded(&run.output().expect("ioasis starts")), "ok\n");
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
