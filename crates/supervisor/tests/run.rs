//! Runs as whole: processes, signals, exit status, and what is left when any of the three processes is killed.

mod bench;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bench::{Folder, bounded, children, compile, finished, ioasis, is_alive, kill, wait_until};

#[test]
fn exit_status_and_termination_signal_pass_through() {
    let status = |script: &str| ioasis().args(["sh", "-c", script]).status().unwrap();
    assert_eq!(status("exit 7").code(), Some(7));
    assert_eq!(status("kill -TERM $$").signal(), Some(15));
    assert_eq!(status("kill -SEGV $$").signal(), Some(11));
}

#[test]
fn a_program_that_cannot_be_started_says_why() {
    for (program, code) in [("/no/such/program", 127), ("/etc/passwd", 126)] {
        let output = ioasis().arg(program).output().unwrap();
        assert_eq!(output.status.code(), Some(code));
        assert!(String::from_utf8_lossy(&output.stderr).contains(program));
    }
}

#[test]
fn input_and_output_are_the_programs() {
    let mut child =
        ioasis().arg("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"through\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"through\n");
}

#[test]
fn a_run_inside_a_run_is_refused_with_a_reason() {
    let mut outer = ioasis();
    outer.arg(ioasis().get_program());
    let output = outer.arg("true").output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("seccomp listener"));
}

#[test]
fn a_listener_of_the_programs_own_is_refused_with_a_reason() {
    let folder = Folder::new("listener");
    let output = ioasis().arg(compile(&folder, "listener", &[])).output().unwrap();
    assert_eq!(output.status.code(), Some(16), "EBUSY");
    assert!(String::from_utf8_lossy(&output.stderr).contains("listener"), "{output:?}");
}

#[test]
fn a_question_about_listeners_is_the_kernels_and_not_told() {
    let folder = Folder::new("question");
    let output = ioasis().args([&compile(&folder, "listener", &[]), "ask"]).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn a_run_lasts_as_long_as_what_the_program_left_behind() {
    let folder = Folder::new("daemon");
    let (daemon, file) = (compile(&folder, "daemon", &["-static"]), folder.path("ended"));
    let status = ioasis().args([&daemon, &file, "300"]).status().unwrap();
    assert_eq!(status.code(), Some(3));
    assert_eq!(std::fs::read(file).unwrap(), b"ended");
}

#[test]
fn what_the_program_left_behind_is_killed_if_asked() {
    let folder = Folder::new("kill");
    let (daemon, file) = (compile(&folder, "daemon", &[]), folder.path("ended"));
    // Left alone it would live for half an hour, and the run with it.
    let output = bounded(ioasis().args(["--kill-on-exit", &daemon, &file, "1800000"]));
    assert_eq!(output.status.code(), Some(3));
    assert!(!std::path::Path::new(&file).exists());
}

#[test]
fn a_signal_sent_to_the_run_reaches_the_program() {
    let script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.02; done";
    let mut run = ready(&["sh", "-c", script]);
    kill(run.child.id(), "TERM");
    assert_eq!(run.child.wait().unwrap().code(), Some(5));
    assert_eq!(run.rest(), "caught\n");
}

#[test]
fn ctrl_c_reaches_the_program_once() {
    let folder = Folder::new("terminal");
    let terminal = compile(&folder, "terminal", &["-lutil"]);
    let script = "trap 'echo caught; c=1' INT; echo ready; until [ $c ]; do sleep 0.02; done; \
                  sleep 0.3; exit 6";
    let program = ioasis().get_program().to_owned();
    let output = bounded(Command::new(terminal).arg(program).args(["sh", "-c", script]));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!((output.status.code(), text.matches("caught").count()), (Some(6), 1), "{text}");
    // And a program without a handler ends of it, as the run does.
    let program = ioasis().get_program().to_owned();
    let terminal = compile(&folder, "terminal", &["-lutil"]);
    let script = "echo ready; exec sleep 30";
    let output = bounded(Command::new(terminal).arg(program).args(["sh", "-c", script]));
    assert_eq!(output.status.code(), Some(128 + 2));
}

/// What a program finds out about the process that answers it.
const LOOKS: &str = "
    grep -E '^NoNewPrivs:' /proc/$PPID/status
    dd if=/proc/$PPID/mem count=1 2>&1 | grep -c denied
    ls /proc/$PPID/fd 2>&1 | grep -c denied
    readlink /proc/$PPID/exe || echo hidden
";

#[test]
fn the_supervisor_does_not_let_its_clients_look_at_it() {
    let Some(mut command) = bench::unprivileged() else { return };
    let output = bounded(command.args(["sh", "-c", LOOKS]));
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text, "NoNewPrivs:\t1\n1\n1\nhidden\n", "{output:?}");
}

#[test]
fn a_supervisor_of_roots_keeps_the_capabilities_that_it_uses() {
    if bench::unprivileged().is_none() {
        return;
    }
    let script = "sed -n 's/^CapEff:\t//p' /proc/$PPID/status";
    let output = bounded(ioasis().args(["sh", "-c", script]));
    let text = String::from_utf8_lossy(&output.stdout);
    let held = u64::from_str_radix(text.trim(), 16).expect("a set");
    // CAP_NET_ADMIN, CAP_SYS_MODULE, CAP_SYS_RAWIO, CAP_SYS_BOOT, CAP_BPF (linux/capability.h).
    for capability in [12, 16, 17, 22, 39] {
        assert_eq!(held & 1 << capability, 0, "capability {capability} of {text}");
    }
    assert_ne!(held & 1 << 19, 0, "CAP_SYS_PTRACE, by which other users' programs are served");
}

#[test]
fn a_user_without_privileges_can_run_programs() {
    let Some(mut command) = bench::unprivileged() else { return };
    let output = command
        .args(["sh", "-c", "id -u; ls /dev/vfio; grep CapEff /proc/self/status"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.starts_with("65534\n") && text.contains("vfio"), "{output:?}");
    assert!(text.contains("0000000000000000"), "{text}");
}

#[test]
fn a_program_that_stops_the_supervisor_or_the_watchdog_goes_on() {
    let watchdog = "$(cut -d' ' -f4 /proc/$PPID/stat)";
    for (signal, victim) in
        [("STOP", "$PPID"), ("STOP", watchdog), ("TSTP", watchdog), ("STOP", "$PPID $$")]
    {
        // Whoever stops itself too is let go on by another.
        let script = format!(
            "(sleep 1; kill -CONT $$) & kill -{signal} {victim}; cat /etc/passwd >/dev/null; \
             test -r /dev/vfio/vfio; wait; echo went on"
        );
        let output = bounded(ioasis().args(["sh", "-c", &script]));
        assert_eq!(
            (output.status.code(), output.stdout.as_slice()),
            (Some(0), &b"went on\n"[..]),
            "{signal} {victim}: {output:?}"
        );
    }
}

#[test]
fn a_watchdog_that_was_stopped_ends_with_the_run() {
    let script = "kill -STOP $(cut -d' ' -f4 /proc/$PPID/stat); exit 9";
    let output = bounded(ioasis().args(["sh", "-c", script]));
    assert_eq!(output.status.code(), Some(9));
}

#[test]
fn files_that_cannot_be_as_long_as_a_device_are_a_reason_not_to_start() {
    let output =
        bounded(wrapped(&["prlimit", "--fsize=1073741824"]).args(["sh", "-c", "ulimit -f"]));
    // With CAP_SYS_RESOURCE the limit is the program's alone.
    let lifted = output.status.success() && output.stdout == b"1048576\n";
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        lifted || output.status.code() == Some(125) && text.contains("ulimit -Hf"),
        "{output:?}"
    );
}

/// `run` under the words of `wrapper`.
fn wrapped(wrapper: &[&str]) -> Command {
    let mut command = Command::new(wrapper[0]);
    command.args(&wrapper[1..]).arg(ioasis().get_program());
    command
}

#[test]
fn blocked_and_ignored_signals_are_the_programs_and_its_status_is_not_lost() {
    let script = "grep -E '^Sig(Blk|Ign)' /proc/self/status; exit 7";
    let wrapper = ["env", "--block-signal=TERM", "--ignore-signal=CHLD"];
    let output = bounded(wrapped(&wrapper).args(["bash", "-c", script]));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let bits = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a line of it");
        u64::from_str_radix(line.trim(), 16).expect("a number")
    };
    let bit = |signal: u64| 1 << (signal - 1);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_ne!(bits("SigBlk:") & bit(15), 0, "{text}");
    assert_ne!(bits("SigIgn:") & bit(17), 0, "{text}");
}

#[test]
fn limits_are_the_programs_and_do_not_reach_its_answers() {
    let folder = Folder::new("limits");
    let client = compile(&folder, "waiting", &["-pthread"]);
    let hard = |resource: &str| format!("--{resource}");
    // A supervisor that may not raise its limit needs some 50 descriptors for two devices, and what it may keep is
    // three quarters of them all: at 64, calls answered at once are refused now and then.
    for (limit, shown) in
        [("fsize=0:", "0"), ("nofile=128", "128"), ("nofile=128:", "128"), ("cpu=30:", "30")]
    {
        let option = hard(limit);
        let wrapper = ["prlimit", &option];
        let flag = match limit.split('=').next() {
            Some("fsize") => "-f",
            Some("nofile") => "-n",
            _ => "-t",
        };
        let output = bounded(wrapped(&wrapper).args(["sh", "-c", &format!("ulimit {flag}")]));
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), shown, "{limit}: {output:?}");
        let devices = ["--device", "testdev", "--device", "testdev"];
        let command = &mut wrapped(&wrapper);
        let command = command.args(devices).args([&client, "taken", "0", "/"]);
        let output = bounded(command.stdin(Stdio::null()));
        assert!(output.status.success() && output.stdout == b"ok\n", "{limit}: {output:?}");
    }
}

#[test]
fn a_program_survives_its_supervisor() {
    let folder = Folder::new("supervisor");
    let busy = compile(&folder, "busy", &["-pthread"]);
    let mut run = ready(&[&busy, "gone", "3"]);
    std::thread::sleep(Duration::from_millis(200));
    let supervisor = run.supervisor();
    kill(supervisor, "KILL");
    let status = finished(&mut run.child);
    assert_eq!(status.code(), Some(0), "its devices are gone, its other calls go on");
    assert!(!is_alive(supervisor));
}

#[test]
fn a_program_survives_the_watchdog_and_the_next_one_stands_in_too() {
    let folder = Folder::new("watchdog");
    let busy = compile(&folder, "busy", &["-pthread"]);
    let mut run = ready(&[&busy, "gone", "2"]);
    let (supervisor, client) = (run.supervisor(), run.client());
    kill(run.child.id(), "KILL");
    run.child.wait().unwrap();
    wait_until("another watchdog", || children(supervisor).len() == 2);
    let next = children(supervisor).into_iter().find(|&pid| pid != client).unwrap();
    kill(next, "KILL");
    wait_until("a third watchdog", || {
        children(supervisor).iter().any(|&pid| pid != client && pid != next && is_alive(pid))
    });
    let third = children(supervisor).into_iter().find(|&pid| pid != client && pid != next).unwrap();
    kill(supervisor, "KILL");
    // It ends once the third watchdog has told it that its devices are gone.
    wait_until("the end of all", || ![supervisor, client, third].into_iter().any(is_alive));
    run.rest();
}

#[test]
fn killing_either_at_any_moment_hangs_nothing_and_leaves_nothing() {
    let folder = Folder::new("moments");
    let busy = compile(&folder, "busy", &["-pthread"]);
    for moment in 0..20 {
        let mut run = ready(&[&busy, "500", "2"]);
        let (supervisor, client) = (run.supervisor(), run.client());
        std::thread::sleep(Duration::from_micros(moment * 20_000));
        kill(if moment % 2 == 0 { supervisor } else { run.child.id() }, "KILL");
        let status = finished(&mut run.child);
        assert!(moment % 2 == 1 || status.code() == Some(0), "{status} at {moment}");
        run.rest();
        wait_until("the end of all", || ![supervisor, client].into_iter().any(is_alive));
    }
}

/// A run whose program has printed "ready".
struct Ready {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

fn ready(command: &[&str]) -> Ready {
    let mut child = ioasis().args(command).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    Ready { child, output }
}

impl Ready {
    fn rest(&mut self) -> String {
        let mut text = String::new();
        self.output.read_to_string(&mut text).unwrap();
        text
    }

    fn supervisor(&self) -> u32 {
        children(self.child.id())[0]
    }

    fn client(&self) -> u32 {
        children(self.supervisor())[0]
    }
}
