//! Opens, judged as Linux judges them: what is opened, by whom, and with which rights.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder of a test's own that everybody may enter, removed when it passes.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let path = std::env::temp_dir().join(format!("ioasis-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("its owner");
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("an UTF-8 path").to_owned()
    }

    /// A C client, built without a shared library.
    fn client(&self, name: &str) -> String {
        let program = self.path(name);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/clients/{name}.c"));
        let options = ["-O1", "-static", "-pthread", "-o", &program];
        let built = Command::new("gcc").args(options).arg(source).status();
        assert!(built.expect("gcc is installed").success(), "{name}.c does not compile");
        program
    }

    /// A file whose text nobody but its owner may read.
    fn canary(&self) -> String {
        use std::os::unix::fs::PermissionsExt;
        let path = self.path("canary");
        std::fs::write(&path, "not for everybody\n").expect("a file");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("its owner");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

fn run(options: &[&str], command: &[&str]) -> Output {
    let mut ioasis = Command::new(env!("CARGO_BIN_EXE_ioasis"));
    ioasis.arg("run").args(options).arg("--").args(command).output().expect("ioasis starts")
}

fn succeeded(output: &Output) -> String {
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\nstdout: {out}\nstderr: {err}", output.status);
    out.into_owned()
}

#[test]
fn a_file_put_over_a_status_file_is_opened_with_the_programs_rights_and_not_read_for_it() {
    let folder = Folder::new("shadowed");
    let command = [&*folder.client("status"), "shadowed", &folder.canary()];
    assert_eq!(succeeded(&run(&["--device", "testdev"], &command)), "ok\n");
}

#[test]
fn a_file_system_that_its_program_serves_is_not_asked_by_the_supervisor() {
    // Only root opens /dev/fuse and mounts in the first user namespace.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = Folder::new("served");
    let command = [&*folder.client("status"), "served", &folder.canary()];
    assert_eq!(succeeded(&run(&["--device", "testdev"], &command)), "ok\n");
}
