//! What the tests of whole runs stand on. Each of them uses a part of it.
#![expect(dead_code, reason = "a test program uses what it needs")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};
use std::time::{Duration, Instant};

/// Nothing here takes this long unless it hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// The program that runs its arguments, from this crate's examples.
pub(crate) fn ioasis() -> Command {
    Command::new(program())
}

fn program() -> PathBuf {
    let tests = std::env::current_exe().expect("a test has a path");
    let target = tests.parent().and_then(Path::parent).expect("target/PROFILE/deps");
    let program = target.join("examples/run");
    assert!(
        program.exists(),
        "cargo test builds {}; with --test, say --examples too",
        program.display()
    );
    program
}

/// The same as nobody; `None` where this user already has no privileges to give up.
pub(crate) fn unprivileged() -> Option<Command> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--bounding-set=-all",
        "--inh-caps=-all",
    ]);
    command.arg(program()).current_dir("/");
    Some(command)
}

/// A folder of a test's own.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(test: &str) -> Self {
        let path =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder under target");
        Self(path)
    }

    /// One that every user may enter: a checkout may lie in a home of root's.
    pub(crate) fn of_everybody(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ioasis-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder for temporary files");
        let all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, all).expect("ours");
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("an UTF-8 path").to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Compiles a client.
pub(crate) fn compile(folder: &Folder, name: &str, flags: &[&str]) -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/clients/{name}.c"));
    let program = folder.path(name);
    let built = Command::new("gcc")
        .args(["-O1", "-Wall", "-Wextra", "-o", &program])
        .arg(source)
        .args(flags)
        .status();
    assert!(built.expect("gcc is installed").success(), "{name}.c does not compile");
    program
}

/// Waits for something that must come.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "{what} does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for a child that must end.
pub(crate) fn finished(child: &mut Child) -> ExitStatus {
    let mut status = None;
    wait_until("the end of a run", || {
        status = child.try_wait().expect("a child");
        status.is_some()
    });
    status.expect("it ended")
}

/// The output of a command that must end.
pub(crate) fn bounded(command: &mut Command) -> Output {
    let command = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    finished(&mut child);
    child.wait_with_output().expect("its output")
}

pub(crate) fn kill(pid: u32, signal: &str) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a process id");
    let signal = match signal {
        "KILL" => rustix::process::Signal::KILL,
        _ => rustix::process::Signal::TERM,
    };
    let _ = rustix::process::kill_process(pid, signal);
}

/// Whether a process runs: a zombie does not.
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// The children of a process, eldest first.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let mut found: Vec<u32> =
        processes().into_iter().filter(|&(_, parent)| parent == pid).map(|(pid, _)| pid).collect();
    found.sort_unstable();
    found
}

fn processes() -> Vec<(u32, u32)> {
    let entries = std::fs::read_dir("/proc").expect("/proc is mounted");
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let parent = stat.rsplit_once(") ")?.1.split_whitespace().nth(1)?.parse().ok()?;
        Some((pid, parent))
    })
    .collect()
}

/// What a run could leave behind: processes of the program, mounts, files of shared memory.
pub(crate) fn census() -> (usize, usize, usize) {
    let own = program();
    let runs = processes().into_iter().filter(|(pid, _)| {
        std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == own)
    });
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let shared = std::fs::read_dir("/dev/shm").map_or(0, Iterator::count);
    (runs.count(), mounts.lines().count(), shared)
}

/// A number from the environment, for longer runs of a test.
pub(crate) fn count(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
