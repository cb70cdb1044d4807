//! The device in a run, driven by an unmodified program.

use std::process::Command;

#[test]
fn a_driver_in_python_uses_ring_and_interrupt() {
    let mut program = Command::new(env!("CARGO_BIN_EXE_ringsum"));
    let driver = concat!(env!("CARGO_MANIFEST_DIR"), "/driver.py");
    let run = ["run", "--root", "--fail-on-fault", "--timeout=60s", "--device", "ringsum", "--"];
    let output = program.args(run).args(["python3", driver]).output().expect("it starts");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "12 sums are right, 12 interrupts\n");
}
