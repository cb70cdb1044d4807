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

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The same for somebody without rights: this user, or nobody where this is root.
fn run_plainly(options: &[&str], command: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_ioasis");
    let mut ioasis = if is_root() {
        let mut ioasis = Command::new("setpriv");
        let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"];
        ioasis.args(nobody).arg(program);
        ioasis
    } else {
        Command::new(program)
    };
    let ioasis = ioasis.arg("run").args(options).arg("--").args(command).current_dir("/");
    ioasis.output().expect("ioasis starts")
}

#[test]
fn a_node_opens_to_whom_its_mode_its_way_and_its_mount_let() {
    if !is_root() {
        return;
    }
    let folder = Folder::new("root");
    let command = [&*folder.client("rights"), "root"];
    assert_eq!(succeeded(&run(&["--device", "testdev"], &command)), "ok\n");
}

#[test]
fn a_plain_users_nodes_open_as_their_modes_say() {
    let folder = Folder::new("plain");
    let command = [&*folder.client("rights"), "plain"];
    assert_eq!(succeeded(&run_plainly(&["--device", "testdev"], &command)), "ok\n");
}

#[test]
fn a_capability_opens_a_node_only_in_the_namespace_of_the_run() {
    let folder = Folder::new("capabilities");
    let program = folder.client("rights");
    let device = ["--device", "testdev"];
    assert_eq!(succeeded(&run(&device, &[&program, "nested"])), "ok\n");
    assert_eq!(succeeded(&run_plainly(&device, &[&program, "nested"])), "ok\n");
    let root = ["--root", "--device", "testdev"];
    for part in ["machine", "nested"] {
        assert_eq!(succeeded(&run(&root, &[&program, part])), "ok\n");
        assert_eq!(succeeded(&run_plainly(&root, &[&program, part])), "ok\n");
    }
}

#[test]
fn a_process_that_proc_hides_stays_hidden() {
    if !is_root() {
        return;
    }
    let folder = Folder::new("hidden");
    let script = format!(
        "mount -t proc -o hidepid=invisible none /proc && exec {} run --device testdev -- {} hidden",
        env!("CARGO_BIN_EXE_ioasis"),
        folder.client("rights")
    );
    let mut unshare = Command::new("unshare");
    let output = unshare.args(["--mount", "sh", "-c", &script]).output().expect("unshare");
    assert_eq!(succeeded(&output), "ok\n");
}

/// A folder in which anybody makes files, on a file system with devices, which /tmp need not be.
fn open_folder() -> Folder {
    use std::os::unix::fs::PermissionsExt;
    let folder = PathBuf::from(format!("/var/tmp/ioasis-nodes-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o777)).expect("its owner");
    Folder(folder)
}

#[test]
fn a_node_with_a_devices_number_is_the_device_whoever_made_it() {
    let folder = Folder::new("mknod");
    let (program, nodes) = (folder.client("mknod"), open_folder());
    let place = nodes.path("");
    let device = ["--device", "testdev"];
    let root = ["--root", "--device", "testdev"];
    if is_root() {
        assert_eq!(succeeded(&run(&device, &[&program, "root", &place])), "ok\n");
    }
    assert_eq!(succeeded(&run_plainly(&device, &[&program, "plain", &place])), "ok\n");
    assert_eq!(succeeded(&run_plainly(&root, &[&program, "machine", &place])), "ok\n");
}

#[test]
fn configuration_space_shows_its_header_to_everybody_and_the_rest_to_who_administers() {
    let config = "/sys/bus/pci/devices/0000:01:00.0/config";
    let script = format!("wc -c < {config}; head -c4 {config} | od -An -tx1; stat -c %s {config}");
    let command = ["sh", "-c", &script];
    let shown = |output: Output| {
        let text = succeeded(&output);
        let mut lines = text.lines().map(str::trim).map(str::to_owned);
        let mut next = || lines.next().expect("three lines");
        (next(), next(), next())
    };
    let device = ["--device", "testdev"];
    let (length, start, size) = shown(run_plainly(&device, &command));
    assert_eq!((&*length, &*size), ("64", "4096"));
    let root = ["--root", "--device", "testdev"];
    let (length, all, _) = shown(run_plainly(&root, &command));
    assert_eq!((&*length, all), ("4096", start));
    let without = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"];
    let without: Vec<&str> = without.into_iter().chain(command).collect();
    let (length, _, size) = shown(run_plainly(&root, &without));
    assert_eq!((&*length, &*size), ("64", "4096"));
}
