//! Fault queues as files: through every kind of descriptor, every way to wait, and as many as descriptors.
//!
//! They are files of the run's own file system where /dev/fuse opens. Here that depends on the host and on the user, so root
//! tries all four: with and without, as root and as nobody.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Every part of the client that wants a file system.
const PARTS: [&str; 7] =
    ["copies", "other-processes", "waiting", "rings", "refusals", "many", "killed"];
const DEVICES: [&str; 4] = ["--device", "testdev,ats,pri", "--device", "testdev,ats,pri"];

/// A folder of a test's own that every user may enter, with the client in it.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("ioasis-queues-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        let all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, all).expect("ours");
        let folder = Self(path);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/queues.c");
        let built = Command::new("gcc")
            .args(["-O1", "-Wall", "-Wextra", "-o", &folder.path("queues")])
            .arg(source)
            .status();
        assert!(built.expect("gcc is installed").success(), "queues.c does not compile");
        folder
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("an UTF-8 path").to_owned()
    }

    /// Runs the client's part in a process made by `command`, which gets the program and its arguments.
    fn run(&self, mut command: Command, part: &str) -> Output {
        command.args(["run"]).args(DEVICES).arg("--").args([&self.path("queues"), part]);
        command.stdin(Stdio::null()).output().expect("it starts")
    }

    fn does(&self, command: Command, part: &str) {
        let output = self.run(command, part);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text == "ok\n", "{part}: {output:?}");
    }

    /// Prepares a mount namespace by `script`, in which `ioasis` then runs by `user`.
    fn prepared(&self, script: &str, user: &[&str]) -> Command {
        let program = self.path("ioasis");
        if !Path::new(&program).exists() {
            std::fs::copy(env!("CARGO_BIN_EXE_ioasis"), &program).expect("a copy");
        }
        let script = format!("cd {} && {script} && exec \"$@\"", self.0.display());
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation=private", "sh", "-c", &script, "sh"]);
        command.args(user).arg(program);
        command
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const NOBODY: [&str; 6] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--bounding-set=-all",
    "--inh-caps=-all",
];
/// What /dev/fuse is in most distributions: everybody's.
const OF_EVERYBODY: &str = "mkdir -p dev && mount -t tmpfs -o dev none dev && \
                            mknod -m 666 dev/fuse c 10 229 && mount --bind dev/fuse /dev/fuse";
/// As in a container without it.
const ABSENT: &str = "touch nothing && mount --bind nothing /dev/fuse";

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether a run of this user has a file system of its own; a host without one has nothing to be tested here.
fn has_file_system() -> bool {
    let opened = std::fs::File::options().read(true).write(true).open("/dev/fuse");
    if let Err(error) = &opened {
        println!("/dev/fuse: {error}");
    }
    opened.is_ok()
}

fn ioasis() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ioasis"))
}

#[test]
fn a_queue_is_a_file_as_all_others() {
    if !has_file_system() {
        return;
    }
    let folder = Folder::new("own");
    PARTS.iter().for_each(|part| folder.does(ioasis(), part));
}

#[test]
fn a_queue_of_a_plain_user_is_a_file_as_all_others() {
    if !is_root() || !has_file_system() {
        return;
    }
    let folder = Folder::new("plain");
    PARTS.iter().for_each(|part| folder.does(folder.prepared(OF_EVERYBODY, &NOBODY), part));
}

#[test]
fn the_limits_that_distributions_set_leave_room_for_a_thousand_queues() {
    if !has_file_system() {
        return;
    }
    let folder = Folder::new("limits");
    for limits in ["1024:524288", "1024:1048576", "1024:4096"] {
        let mut command = Command::new("prlimit");
        command.args([&format!("--nofile={limits}"), env!("CARGO_BIN_EXE_ioasis")]);
        // Where the hard limit here is lower, prlimit says so, and there is nothing to be tried.
        let tried = Command::new("prlimit").args([&format!("--nofile={limits}"), "true"]).status();
        if tried.expect("prlimit is installed").success() {
            folder.does(command, "many");
        }
    }
}

#[test]
fn without_a_file_system_queues_have_numbers_of_their_own() {
    if !is_root() {
        return;
    }
    let folder = Folder::new("absent");
    folder.does(folder.prepared(ABSENT, &[]), "numbers");
    folder.does(folder.prepared(ABSENT, &NOBODY), "numbers");
    let mut limits = vec!["prlimit", "--nofile=1024:4096"];
    folder.does(folder.prepared(ABSENT, &limits), "numbers");
    limits.extend(NOBODY);
    folder.does(folder.prepared(ABSENT, &limits), "numbers");
}

#[test]
fn a_queue_whose_supervisor_is_killed_keeps_nobody_waiting() {
    if !has_file_system() {
        return;
    }
    let folder = Folder::new("orphan");
    let mut run = ioasis()
        .args(["run"])
        .args(DEVICES)
        .args(["--", &folder.path("queues"), "orphan"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut output = BufReader::new(run.stdout.take().expect("a pipe"));
    let mut text = String::new();
    output.read_line(&mut text).expect("a line");
    assert_eq!(text, "ready\n");
    let children = format!("/proc/{0}/task/{0}/children", run.id());
    let children = std::fs::read_to_string(children).expect("it runs");
    let supervisor = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
    let supervisor = rustix::process::Pid::from_raw(supervisor.expect("a child")).expect("a pid");
    rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).expect("killed");
    output.read_to_string(&mut text).expect("the rest");
    assert!(run.wait().expect("a child").success(), "{text}");
    assert_eq!(text, "ready\nok\n");
}
