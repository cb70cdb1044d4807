//! Runs that go on, looked into and changed from outside: `ioasis ps`, `inspect`, `top`, `ctl`.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;

const IOASIS: &str = env!("CARGO_BIN_EXE_ioasis");

fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let name = format!("looking-{}", std::process::id());
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/looking.c");
        let mut gcc = Command::new("gcc");
        let built = gcc.args(["-O1", "-Wall", "-o"]).arg(&program).arg(source).status();
        assert!(built.expect("gcc is installed").success(), "looking.c does not compile");
        program
    })
}

/// A folder of a test's own that stands for the user's at run time.
struct Runtime(PathBuf);

impl Runtime {
    fn new(test: &str) -> Self {
        let name = format!("looking-{test}-{}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::DirBuilder::new().mode(0o700).create(&path).expect("a folder under target");
        Self(path)
    }

    fn ioasis(&self, words: &[&str]) -> Command {
        let mut command = Command::new(IOASIS);
        command.args(words).env("XDG_RUNTIME_DIR", &self.0);
        command
    }

    fn output(&self, words: &[&str]) -> Output {
        self.ioasis(words).output().expect("ioasis starts")
    }

    /// What a command that succeeds prints.
    fn said(&self, words: &[&str]) -> String {
        let output = self.output(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// The same as JSON.
    fn json(&self, words: &[&str]) -> Value {
        let text = self.said(&[words, &["--json"]].concat());
        serde_json::from_str(&text).expect("JSON")
    }

    /// What a command that fails says.
    fn refused(&self, words: &[&str]) -> String {
        let output = self.output(words);
        assert!(!output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stderr).expect("text").trim_end().to_owned()
    }

    fn start(&self, name: &str, options: &[&str], words: &[&str]) -> Run {
        let mut command = self.ioasis(&["run", "--name", name]);
        command.args(options).arg("--").args(words);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("ioasis starts");
        let lines = BufReader::new(child.stdout.take().expect("a pipe"));
        Run { child, lines }
    }

    /// A run whose client has its device in use.
    fn holding(&self, name: &str, mode: &str) -> Run {
        let program = program().to_str().expect("UTF-8");
        let mut run = self.start(name, &["--device", "testdev"], &[program, mode]);
        assert_eq!(run.line(), "ready");
        run
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

struct Run {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Run {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    /// Has the client say what its device answers.
    fn look(&mut self) -> String {
        let stdin = self.child.stdin.as_mut().expect("a pipe");
        stdin.write_all(b"look\n").expect("written");
        self.line()
    }

    /// Ends the client by the end of its input.
    fn end(mut self) {
        drop(self.child.stdin.take());
        let status = self.child.wait().expect("it ends");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        if std::thread::panicking() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

#[test]
fn a_run_is_listed_while_it_goes_on_and_no_longer() {
    let runtime = Runtime::new("ps");
    let run = runtime.holding("nightly", "hold");
    let pid = run.child.id();
    let list = runtime.json(&["ps"]);
    let listed = |list: &Value| {
        list.as_array().expect("a list").iter().find(|run| run["name"] == "nightly").cloned()
    };
    let about = listed(&list).expect("it goes on");
    assert_eq!(about["pid"], pid);
    assert_eq!(about["devices"][0], "0000:01:00.0");
    assert_eq!(about["command"][1], "hold");
    let text = runtime.said(&["ps"]);
    assert!(text.lines().any(|line| line.starts_with("nightly ")), "{text}");
    run.end();
    assert!(listed(&runtime.json(&["ps"])).is_none());
    assert!(runtime.0.join("ioasis").read_dir().expect("the folder").next().is_none());
}

#[test]
fn a_run_shows_its_address_space_its_device_and_its_interrupts() {
    let runtime = Runtime::new("inspect");
    let run = runtime.holding("seen", "hold");
    let spaces = runtime.json(&["inspect", "seen", "ioas"]);
    let space = &spaces["ioas"][0];
    let map = space["map"].as_array().expect("a map");
    let area = map.iter().find(|entry| entry["what"] == "area").expect("an area");
    assert_eq!((&area["start"], &area["last"]), (&"0x100000".into(), &"0x101fff".into()));
    assert_eq!((&area["prot"], &area["memory"]), (&"rw-".into(), &"process".into()));
    assert_eq!(area["pid"], space["pid"]);
    assert!(map.iter().any(|entry| entry["what"] == "hole" && entry["start"] == "0x0"));
    let reserved = map.iter().find(|entry| entry["what"] == "reserved").expect("of the IOMMU");
    assert!(reserved["by"].is_string());
    let text = runtime.said(&["inspect", "seen", "ioas"]);
    assert!(text.contains("0x100000-0x101fff") && text.contains("rw- process 0x"), "{text}");
    let device = &runtime.json(&["inspect", "seen", "device"])["device"][0];
    assert_eq!((&device["state"], &device["bus_master"]), (&"cdev".into(), &true.into()));
    assert_eq!(device["opened"][0]["path"], "/dev/vfio/devices/vfio0");
    let irq = &runtime.json(&["inspect", "seen", "irq"])["irq"][0];
    assert_eq!((&irq["enabled"], &irq["used"][0]["armed"]), (&"msi".into(), &true.into()));
    assert_eq!((&irq["error"]["armed"], &irq["request"]["count"]), (&true.into(), &0.into()));
    let group = &runtime.json(&["inspect", "seen", "group"])["group"][0];
    assert_eq!((&group["number"], &group["bound_cdevs"]), (&1.into(), &1.into()));
    let table = &runtime.json(&["inspect", "seen", "hwpt", "--tables"])["hwpt"][0];
    assert_eq!(table["devices"][0]["device"], "0000:01:00.0");
    assert!(table["table"]["text"].as_str().expect("a tree").contains("0x100000 -> "), "{table}");
    let ledger = &runtime.json(&["inspect", "seen", "ledger"])["ledger"];
    assert_eq!(ledger["processes"][0]["pinned_kib"], 8);
    let all = runtime.said(&["inspect", "seen"]);
    assert!(all.starts_with("ioas:\n") && all.contains("\nqueues:\nnone\n"), "{all}");
    run.end();
}

#[test]
fn a_translation_is_shown_word_by_word_as_the_manual_names_its_fields() {
    let runtime = Runtime::new("translate");
    let run = runtime.holding("walk", "hold");
    let words = ["inspect", "walk", "translate", "0000:01:00.0", "0x100010"];
    let text = runtime.said(&words);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "0000:01:00.0, address 0x100010");
    assert!(text.contains("SS-PTE 256: 0x"), "{text}");
    assert!(text.contains("R[0]=0x1 W[1]=0x1") && text.contains("SNP[11]="), "{text}");
    assert!(
        lines.last().is_some_and(|line| line.starts_with("leads to 0x") && line.contains("010 of"))
    );
    let hole = runtime.json(&["inspect", "walk", "translate", "0000:01:00.0", "0"]);
    assert_eq!(hole["output"], Value::Null);
    assert_eq!(
        hole["steps"].as_array().and_then(|steps| steps.last()).map(|step| &step["entry"]),
        Some(&"nothing".into())
    );
    let pasid = runtime.said(&[&words[..], &["--pasid", "5"]].concat());
    assert!(pasid.contains("attached to nothing"), "{pasid}");
    let absent = ["inspect", "walk", "translate", "0000:09:00.0", "0"];
    assert_eq!(
        runtime.refused(&absent),
        "ioasis: there is no device 0000:09:00.0; there are 0000:01:00.0"
    );
    run.end();
}

#[test]
fn what_a_run_does_is_counted() {
    let runtime = Runtime::new("top");
    let run = runtime.holding("busy", "hold");
    let text = runtime.said(&["top", "--once", "--interval", "100ms", "busy"]);
    assert!(text.starts_with("busy: ") && text.contains("0000:01:00.0  cdev"), "{text}");
    run.end();
}

#[test]
fn a_device_that_is_pulled_out_is_gone_for_who_has_it() {
    let runtime = Runtime::new("pull");
    let mut run = runtime.holding("pull", "hold");
    assert_eq!(run.look(), "ioctl goes, pread goes, open goes, page 0");
    let pull = ["ctl", "pull", "surprise-remove", "0000:01:00.0"];
    assert_eq!(runtime.said(&pull), "0000:01:00.0: pulled out, it was cdev\n");
    let mut told = [run.line(), run.line()];
    told.sort();
    assert_eq!(told, ["ERR", "REQ"]);
    let device = &runtime.json(&["inspect", "pull", "device"])["device"][0];
    assert_eq!(device["state"], "removed");
    assert!(run.look().starts_with("ioctl ENODEV, pread ENODEV, open "));
    assert_eq!(runtime.refused(&pull), "ioasis: 0000:01:00.0: it was removed before");
    run.end();
}

#[test]
fn an_error_interrupt_is_sent_and_the_device_stays() {
    let runtime = Runtime::new("aer");
    let mut run = runtime.holding("fails", "hold");
    let said = runtime.said(&["ctl", "fails", "aer", "0000:01:00.0"]);
    assert_eq!(said, "0000:01:00.0: the error interrupt was sent\n");
    assert_eq!(run.line(), "ERR");
    assert_eq!(run.look(), "ioctl goes, pread goes, open goes, page 0");
    run.end();
}

#[test]
fn an_orderly_removal_asks_the_program_and_waits_for_it() {
    let runtime = Runtime::new("orderly");
    let mut run = runtime.holding("orderly", "polite");
    let remove = ["ctl", "orderly", "device-remove", "0000:01:00.0"];
    assert_eq!(runtime.said(&remove), "0000:01:00.0: removed, nobody had it open any more\n");
    assert_eq!([run.line(), run.line()], ["REQ", "closed"]);
    let again = run.line();
    assert!(again != "open", "nobody opens a device that is being removed: {again}");
    run.end();
}

#[test]
fn a_program_that_does_not_let_go_loses_its_device_when_the_time_is_up() {
    let runtime = Runtime::new("stubborn");
    let mut run = runtime.holding("stubborn", "hold");
    let remove = ["ctl", "--wait", "1s", "stubborn", "device-remove", "0000:01:00.0"];
    let begun = Instant::now();
    let said = runtime.said(&remove);
    assert_eq!(said, "0000:01:00.0: pulled out, the program did not let go of it in time\n");
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(run.line(), "REQ");
    let rest = [run.line(), run.line()];
    assert!(rest.iter().any(|line| line == "ERR"), "{rest:?}");
    run.end();
}

#[test]
fn no_process_of_a_run_reaches_its_control_socket() {
    let runtime = Runtime::new("hostile");
    // By its path, the folder is empty in the program's view.
    let folder = runtime.0.join("ioasis");
    let folder = folder.to_str().expect("UTF-8");
    let list =
        format!("ls -A {folder}; touch {folder}/x 2>/dev/null || echo refused; {IOASIS} ps --json");
    let mut run = runtime.start("inside", &["--device", "testdev"], &["sh", "-c", &list]);
    assert_eq!(run.line(), "refused");
    let mut list = String::new();
    std::io::Read::read_to_string(&mut run.lines, &mut list).expect("read");
    assert_eq!(list.trim(), "[]");
    run.end();
    // Where there was none, the program makes none for others to find.
    let plant = "mkdir -p /tmp/ioasis-$(id -u); (: >/tmp/ioasis-$(id -u)/x) 2>/dev/null && echo planted || echo refused";
    let mut command = Command::new(IOASIS);
    command.args(["run", "--", "sh", "-c", plant]).env_remove("XDG_RUNTIME_DIR");
    let output = as_plain_user(&mut command).output().expect("it starts");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "refused\n", "{output:?}");
    // Through a descriptor that it inherited, it is known by its ancestors.
    let program = program().to_str().expect("UTF-8");
    let ask = format!(
        "exec 9<{folder}; exec {IOASIS} run --name inside --device testdev -- {program} ask 9 inside"
    );
    let mut shell = Command::new("sh");
    let output = shell.args(["-c", &ask]).env("XDG_RUNTIME_DIR", &runtime.0).output();
    let output = output.expect("sh starts");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "{\"error\":\"a process of the run itself is not answered\",\"version\":1}\n"
    );
    // Its children are, too, whoever took them over.
    let ask = format!(
        "exec 9<{folder}; exec {IOASIS} run --name inside -- sh -c '(setsid {program} ask 9 inside &) ; sleep 0.5'"
    );
    let mut shell = Command::new("sh");
    let output = shell.args(["-c", &ask]).env("XDG_RUNTIME_DIR", &runtime.0).output();
    let output = output.expect("sh starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("a process of the run itself is not answered"), "{said}");
}

/// What a run answers to bytes.
fn answered(socket: &Path, bytes: &[u8]) -> String {
    let stream = UnixStream::connect(socket).expect("it listens");
    let _ = (&stream).write_all(bytes);
    let mut line = String::new();
    let _ = BufReader::new(&stream).read_line(&mut line);
    line
}

#[test]
fn requests_that_are_none_get_an_error_and_the_run_goes_on() {
    let runtime = Runtime::new("wrong");
    let run = runtime.holding("wrong", "hold");
    let socket = runtime.0.join("ioasis/wrong");
    for (bytes, why) in [
        (&b"\n"[..], "no request"),
        (b"{}\n", "version 1"),
        (b"{\"version\":2,\"ask\":\"about\"}\n", "version 1"),
        (b"{\"version\":1}\n", "a request says in `ask` what it wants"),
        (b"{\"version\":1,\"ask\":\"halt\"}\n", "no answer to"),
        (b"{\"version\":1,\"ask\":\"inspect\",\"what\":7}\n", "one of ioas, hwpt"),
        (b"{\"version\":1,\"ask\":\"aer\"}\n", "a device is an address"),
        (b"{\"version\":1,\"ask\":\"translate\",\"iova\":-1}\n", "iova is a number"),
        (b"\xff\xfe\n", "no request"),
    ] {
        let answer = answered(&socket, bytes);
        assert!(answer.contains("\"error\"") && answer.contains(why), "{bytes:?}: {answer}");
    }
    let long = answered(&socket, &vec![b'['; 1 << 20]);
    assert!(long.is_empty() || long.contains("at most 65536 bytes"), "{long}");
    let deep = [vec![b'['; 60_000], b"\n".to_vec()].concat();
    assert!(answered(&socket, &deep).contains("no request"));
    // More descriptors than a request has are not kept, and who says nothing keeps nobody waiting.
    let silent: Vec<_> =
        (0..6).map(|_| UnixStream::connect(&socket).expect("it listens")).collect();
    let files: Vec<_> = silent.iter().map(AsFd::as_fd).collect();
    let stream = UnixStream::connect(&socket).expect("it listens");
    ioasis_sys::message::send(stream.as_fd(), b"{\"version\":1,\"ask\":\"about\"}\n", &files)
        .expect("sent");
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).expect("an answer");
    assert!(line.contains("\"name\":\"wrong\""), "{line}");
    run.end();
}

#[test]
fn a_run_that_is_not_there_is_said_with_those_that_are() {
    let runtime = Runtime::new("absent");
    let [one, other] = ["first", "second"].map(|name| runtime.start(name, &[], &["cat"]));
    let until = Instant::now() + Duration::from_secs(30);
    while runtime.json(&["ps"]).to_string().matches("\"command\":[\"cat\"]").count() < 2 {
        assert!(Instant::now() < until, "two runs go on");
        std::thread::sleep(Duration::from_millis(20));
    }
    let none = runtime.refused(&["inspect", "thrid"]);
    assert!(none.starts_with("ioasis: there is no run \"thrid\""), "{none}");
    assert!(none.contains("first (pid ") && none.contains("second (pid "), "{none}");
    let several = runtime.refused(&["inspect", "ioas"]);
    assert!(several.starts_with("ioasis: several runs go on; name one of them: "), "{several}");
    let taken = runtime.refused(&["run", "--name", "first", "--", "true"]);
    assert_eq!(taken, "ioasis: --name first: another run is called so; `ioasis ps` lists them");
    let pid = one.child.id().to_string();
    assert!(runtime.said(&["inspect", &pid, "device"]).contains("none"));
    one.end();
    other.end();
}

#[test]
fn a_dead_runs_socket_is_swept_and_its_name_is_free() {
    let runtime = Runtime::new("dead");
    let mut run = runtime.start("killed", &["--kill-on-exit"], &["cat"]);
    let socket = runtime.0.join("ioasis/killed");
    let until = Instant::now() + Duration::from_secs(30);
    while !socket.exists() {
        assert!(Instant::now() < until, "it listens");
        std::thread::sleep(Duration::from_millis(5));
    }
    run.child.kill().expect("killed");
    run.child.wait().expect("ended");
    while runtime.json(&["ps"]).to_string().contains("\"killed\"") {
        assert!(Instant::now() < until, "it ends");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!socket.exists(), "ps has swept it");
    // One that nobody swept is in nobody's way either.
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("a socket"));
    runtime.start("killed", &[], &["true"]).end();
}

#[test]
fn a_folder_that_others_may_enter_has_no_sockets() {
    let runtime = Runtime::new("open");
    let folder = runtime.0.join("ioasis");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o755)).expect("its mode");
    let run = runtime.start("elsewhere", &[], &["cat"]);
    let until = Instant::now() + Duration::from_secs(30);
    while !runtime.json(&["ps"]).to_string().contains("\"elsewhere\"") {
        assert!(Instant::now() < until, "it goes on, with its socket in another folder");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(folder.read_dir().expect("the folder").next().is_none());
    run.end();
}

#[test]
fn a_command_that_is_wrong_is_told_what_is_right() {
    let runtime = Runtime::new("words");
    for (line, why) in [
        (
            "inspect x bogus",
            "there is no \"bogus\" to inspect; there are ioas, hwpt, device, group, irq, ledger, queues, translate",
        ),
        (
            "inspect x devcie",
            "there is no \"devcie\" to inspect (did you mean device?); there are ioas, hwpt, device, group, irq, ledger, queues, translate",
        ),
        (
            "inspect translate 0000:01:00.0",
            "`ioasis inspect translate` takes a device and an address: translate 0000:01:00.0 0x100000",
        ),
        ("inspect --pasid 1 ioas", "--pasid goes with translate"),
        (
            "ctl x remove 0000:01:00.0",
            "there is no \"remove\" to do; there are surprise-remove, aer, device-remove",
        ),
        ("ctl aer", "`ioasis ctl` takes what to do and a device: surprise-remove 0000:01:00.0"),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!(runtime.refused(&words), format!("ioasis: {why}"), "{line}");
    }
}

#[test]
fn a_device_that_goes_takes_its_files_with_it_and_leaves_all_others() {
    let runtime = Runtime::new("files");
    let script = "show() { echo $(ls /sys/bus/pci/devices /dev/vfio /dev/vfio/devices /sys/kernel/iommu_groups | grep -v /); }
        show; while read line; do show; done";
    let devices = ["--device", "testdev", "--device", "testdev"];
    let mut run = runtime.start("files", &devices, &["sh", "-c", script]);
    let before = run.line();
    for file in ["0000:01:00.0", "0000:02:00.0", "vfio0", "vfio1"] {
        assert!(before.contains(file), "{before}");
    }
    let pull = ["ctl", "files", "surprise-remove", "0000:01:00.0"];
    assert_eq!(runtime.said(&pull), "0000:01:00.0: pulled out, it was closed\n");
    let gone = ["0000:01:00.0", "1", "vfio0"];
    let mut left: Vec<&str> = before.split(' ').collect();
    for file in gone {
        let at = left.iter().position(|found| *found == file).expect("it was there");
        left.remove(at);
    }
    // A group has an entry in /dev/vfio and one below /sys.
    let group = left.iter().position(|found| *found == "1").expect("the group's other entry");
    left.remove(group);
    let after = run.look();
    assert_eq!(after.split(' ').collect::<Vec<_>>(), left, "of {before}");
    run.end();
}

/// A plain user, where this one is root.
fn as_plain_user(command: &mut Command) -> Command {
    let mut plain = Command::new("setpriv");
    if rustix::process::geteuid().is_root() {
        plain.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]);
    } else {
        plain = Command::new("env");
    }
    plain.arg(command.get_program()).args(command.get_args()).current_dir("/");
    for (name, value) in command.get_envs() {
        plain.env(name, value.unwrap_or_default());
    }
    plain
}

#[test]
fn no_process_of_another_run_of_the_user_is_answered() {
    // Where a plain user may enter.
    let folder = |name: &str| {
        let path = std::env::temp_dir().join(format!("looking-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::DirBuilder::new().mode(0o700).create(&path).expect("a folder");
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(65534), Some(65534)).expect("given away");
        }
        Runtime(path)
    };
    let (one, other) = (folder("one"), folder("other"));
    let client = std::env::temp_dir().join(format!("looking-client-{}", std::process::id()));
    std::fs::copy(program(), &client).expect("copied");
    let mut run = as_plain_user(
        other
            .ioasis(&["run", "--name", "other", "--device", "testdev", "--", "cat"])
            .stdin(Stdio::null()),
    )
    .stdin(Stdio::piped())
    .spawn()
    .expect("it starts");
    let socket = other.0.join("ioasis/other");
    let until = Instant::now() + Duration::from_secs(30);
    while !socket.exists() {
        assert!(Instant::now() < until, "it listens");
        std::thread::sleep(Duration::from_millis(5));
    }
    // The folder of the other was not known when the first run began, and is seen.
    let ask = format!("exec 9<{}/ioasis; exec {} ask 9 other", other.0.display(), client.display());
    let output =
        as_plain_user(&mut one.ioasis(&["run", "--name", "one", "--", "sh", "-c", &ask])).output();
    let output = output.expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("of another run perhaps, is not answered"), "{output:?}");
    // Its user outside of runs is answered.
    let list = as_plain_user(&mut other.ioasis(&["inspect", "other", "device"]))
        .output()
        .expect("it starts");
    assert!(String::from_utf8_lossy(&list.stdout).contains("0000:01:00.0"), "{list:?}");
    drop(run.stdin.take());
    run.wait().expect("it ends");
    std::fs::remove_file(client).expect("removed");
}
