//! How runs end that do not end by themselves: what is left behind is told, asked, killed.

mod bench;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use bench::{bounded, finished, ioasis, is_alive, kill, wait_until};

/// A run whose program ends with 5 and leaves a process that says its number, and whose standard error is read line by line.
struct Left {
    run: Child,
    pid: u32,
    told: BufReader<std::process::ChildStderr>,
}

/// `script` is what is left behind; it says "ready" once it is as it will be.
fn left(script: &str) -> Left {
    let script = format!("sh -c '{script}' & exit 5");
    let mut command = ioasis();
    command.args(["sh", "-c", &script]);
    let mut run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a run");
    let mut said = BufReader::new(run.stdout.take().expect("piped")).lines();
    let mut line = || said.next().expect("a line").expect("text");
    let pid = line().parse().expect("a process id");
    assert_eq!(line(), "ready");
    let told = BufReader::new(run.stderr.take().expect("piped"));
    Left { run, pid, told }
}

impl Left {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.told.read_line(&mut line).expect("text");
        line
    }
}

/// Ignores what asks it to end.
const DEAF: &str = r#"trap "" TERM INT; echo $$; echo ready; while :; do sleep 0.05; done"#;

#[test]
fn for_whom_a_run_waits_after_its_program_is_told_at_once() {
    let mut left = left("echo $$; echo ready; exec sleep 60");
    let line = left.line();
    let expected = format!("ioasis: CMD ended with 5; waiting for pid {} (sleep);", left.pid);
    assert!(line.starts_with(&expected), "{line}");
    kill(left.run.id(), "TERM");
    assert_eq!(finished(&mut left.run).code(), Some(5), "the first signal is passed on");
    // The kernel tells of a filter's end before it has done with the process.
    wait_until("the end of what was left", || !is_alive(left.pid));
}

#[test]
fn a_second_signal_ends_what_a_first_does_not() {
    let mut left = left(DEAF);
    assert!(left.line().contains(&format!("pid {}", left.pid)));
    kill(left.run.id(), "TERM");
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(is_alive(left.pid), "the first is only passed on");
    kill(left.run.id(), "TERM");
    assert_eq!(finished(&mut left.run).code(), Some(5));
    wait_until("the end of what was left", || !is_alive(left.pid));
}

#[test]
fn a_run_that_leaves_nothing_says_nothing() {
    let output = bounded(ioasis().args(["sh", "-c", "sleep 0.05 | cat; true & exit 0"]));
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn a_limit_ends_what_does_not_end_with_124() {
    let output = bounded(ioasis().args(["--limit", "1", "sleep", "60"]));
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(124), "{text}");
    assert!(text.contains("limit of 1s is over") && text.contains("(sleep)"), "{text}");
    // One that does not end when it is asked is killed.
    let output = bounded(ioasis().args(["--limit", "1", "sh", "-c", DEAF]));
    assert_eq!(output.status.code(), Some(124), "{output:?}");
    let pid = String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned);
    let pid = pid.expect("its number").parse().expect("a number");
    wait_until("the end of what was left", || !is_alive(pid));
    // What ends in time has its own status.
    let output = bounded(ioasis().args(["--limit", "50", "sh", "-c", "exit 7"]));
    assert_eq!(output.status.code(), Some(7));
}

#[test]
fn with_kill_on_exit_nothing_outlives_the_command_that_was_killed() {
    let mut command = ioasis();
    command.args(["--kill-on-exit", "sh", "-c", "echo $$; exec sleep 60"]);
    let mut run = command.stdout(Stdio::piped()).spawn().expect("a run");
    let mut said = BufReader::new(run.stdout.take().expect("piped")).lines();
    let pid: u32 = said.next().expect("a line").expect("text").parse().expect("a number");
    kill(run.id(), "KILL");
    finished(&mut run);
    wait_until("CMD's end", || !is_alive(pid));
}

#[test]
fn without_it_a_program_outlives_the_command_that_was_killed() {
    let mut run = Command::new(ioasis().get_program());
    run.args(["sh", "-c", "echo $$; sleep 0.5; exit 3"]);
    let mut run = run.stdout(Stdio::piped()).spawn().expect("a run");
    let mut said = BufReader::new(run.stdout.take().expect("piped")).lines();
    let pid: u32 = said.next().expect("a line").expect("text").parse().expect("a number");
    kill(run.id(), "KILL");
    finished(&mut run);
    assert!(is_alive(pid));
    wait_until("its own end", || !is_alive(pid));
}
