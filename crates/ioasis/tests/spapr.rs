//! A driver on a machine of POWER's, by either version of the SPAPR container.

use std::path::Path;
use std::process::Command;

#[test]
fn a_driver_copies_through_windows_and_recovers_from_an_error() {
    let program = format!("spapr-{}", std::process::id());
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(program);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/spapr.c");
    let mut gcc = Command::new("gcc");
    let built = gcc.args(["-O1", "-Wall", "-Werror", "-o"]).arg(&program).arg(source).status();
    assert!(built.expect("gcc is installed").success(), "spapr.c does not compile");
    // The window is more than a plain user may lock.
    for version in ["1", "2"] {
        let mut run = Command::new(env!("CARGO_BIN_EXE_ioasis"));
        run.args(["run", "--root", "--iommu", "kind=spapr,window=1G", "--device", "testdev", "--"]);
        let output = run.arg(&program).arg(version).output().expect("ioasis starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "version {version}: {}\n{error}", output.status);
        assert_eq!(output.stdout, b"ok\n");
    }
    std::fs::remove_file(&program).expect("it was built");
}
