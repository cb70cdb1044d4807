//! Devices that move from one run to another.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder of a test's own, removed when it passes.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder under target");
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("an UTF-8 path").to_owned()
    }

    /// A C client, built without a shared library.
    fn client(&self, name: &str) -> String {
        let program = self.path(name);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/clients/{name}.c"));
        let options = ["-O1", "-static", "-o", &program];
        let built = Command::new("gcc").args(options).arg(source).status();
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

fn run(devices: &[&str], command: &[&str]) -> Output {
    let mut ioasis = Command::new(env!("CARGO_BIN_EXE_ioasis"));
    ioasis.arg("run");
    for device in devices {
        ioasis.args(["--device", device]);
    }
    ioasis.arg("--").args(command).output().expect("ioasis starts")
}

fn succeeded(output: &Output) -> String {
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\nstdout: {out}\nstderr: {err}", output.status);
    out.into_owned()
}

#[test]
fn a_client_finds_every_arc_of_the_state_machine_as_on_linux() {
    let folder = Folder::new("migration-arcs");
    let devices = [
        "testdev",
        "testdev,migration=p2p",
        "testdev,migration=pre-copy",
        "testdev,migration=none",
    ];
    let output = run(&devices, &[&folder.client("migration"), "arcs"]);
    assert_eq!(succeeded(&output), "64 48 48 40 ok\n", "the cells of each device");
}

#[test]
fn a_data_file_is_a_file_as_on_linux() {
    let folder = Folder::new("migration-files");
    let output = run(&["testdev"], &[&folder.client("migration"), "files"]);
    assert_eq!(succeeded(&output), "ok\n");
}

#[test]
fn what_one_run_saves_another_loads() {
    let folder = Folder::new("migration-save");
    let (program, state) = (folder.client("migration"), folder.path("state"));
    succeeded(&run(&["testdev"], &[&program, "save", &state]));
    succeeded(&run(&["testdev"], &[&program, "load", &state]));
    let other = run(&["testdev,latch=on"], &[&program, "load", &state]);
    assert!(!other.status.success(), "the device of another shape takes nothing");
}
