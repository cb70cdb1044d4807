//! A program that uses IOMMUFD as a VMM does, run whole on IOMMUs of every kind.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The client, built beside `ioasis`.
fn client() -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_ioasis")).parent().expect("a folder");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--package", "ioasis-iommu-client"]);
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    let built = cargo.arg("--target-dir").arg(folder.parent().expect("target")).status();
    assert!(built.expect("cargo").success(), "the client does not compile");
    folder.join("ioasis-iommu-client")
}

/// Runs `command`, which must not take long: a device that waits for ever would hold the run.
fn output(command: &mut Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn();
    let mut child = child.expect("ioasis starts");
    let deadline = Instant::now() + Duration::from_secs(60);
    while child.try_wait().expect("a child").is_none() {
        if Instant::now() > deadline {
            // All of the run: its supervisor may be what hangs.
            let group = format!("-{}", child.id());
            let killed = Command::new("kill").args(["-KILL", "--", &group]).status();
            panic!("the run does not end: {killed:?}, {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().expect("it ended")
}

fn run(options: &[&str], arguments: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ioasis"));
    let output = output(command.arg("run").args(options).arg("--").arg(client()).args(arguments));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{options:?} {arguments:?}: {}\n{error}", output.status);
    assert_eq!(output.stdout, b"ok\n");
}

#[test]
fn every_kind_translates_and_says_what_devices_wrote() {
    for kind in ["vtd", "amd", "smmuv3", "riscv"] {
        run(&["--iommu", &format!("kind={kind}"), "--device", "testdev"], &["hwpt", kind]);
    }
}

#[test]
fn a_guests_own_table_is_walked_and_remembered_until_it_is_invalidated() {
    for kind in ["vtd", "amd", "smmuv3"] {
        run(&["--iommu", &format!("kind={kind}"), "--device", "testdev"], &["nested", kind]);
    }
}

#[test]
fn a_guest_invalidates_through_a_queue_of_its_own() {
    let options = ["--iommu", "kind=smmuv3,cmdqv", "--device", "testdev"];
    run(&options, &["nested", "cmdqv"]);
    run(&options, &["cmdqv"]);
}

#[test]
fn pasids_have_tables_of_their_own() {
    for kind in ["vtd", "amd", "smmuv3", "riscv"] {
        let iommu = format!("kind={kind}");
        run(&["--iommu", &iommu, "--device", "testdev,pasid_bits=16"], &["pasid"]);
    }
}

#[test]
fn a_device_without_an_iommu_is_used_through_its_own_node_by_who_may() {
    let options = ["--device", "testdev,iommu=none"];
    run(&[&options[..], &["--root"]].concat(), &["noiommu"]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_ioasis"));
    command.arg("run").args(options).args(["--", "setpriv", "--bounding-set=-sys_rawio"]);
    command.arg("--inh-caps=-sys_rawio").arg(client()).arg("unprivileged");
    let output = output(&mut command);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && output.stdout == b"ok\n", "{error}");
}

#[test]
fn a_device_waits_for_a_page_and_goes_on_or_is_refused_or_reset() {
    for kind in ["vtd", "amd", "smmuv3", "riscv"] {
        let iommu = format!("kind={kind}");
        run(&["--iommu", &iommu, "--device", "testdev,ats,pri"], &["faults"]);
    }
}

#[test]
fn a_program_that_ends_while_its_device_waits_for_a_page_ends() {
    run(&["--device", "testdev,ats,pri"], &["abandon"]);
}

#[test]
fn groups_move_together_and_iommus_are_apart() {
    let options = [
        "--iommu",
        "kind=vtd",
        "--iommu",
        "kind=amd",
        "--device",
        "testdev,group=4",
        "--device",
        "testdev,group=4",
        "--device",
        "testdev,iommu=1",
    ];
    run(&options, &["groups"]);
}

#[test]
fn a_refused_access_is_traced_with_what_was_there_before() {
    let trace = format!("refused-{}.trace", std::process::id());
    let trace = Path::new(env!("CARGO_TARGET_TMPDIR")).join(trace);
    run(&["--device", "testdev", &format!("--trace={}", trace.display())], &["refused"]);
    let text = std::fs::read_to_string(&trace).expect("a trace");
    let faults: Vec<_> = text.lines().filter(|line| line.starts_with("[0000:01:00.0]")).collect();
    let client =
        text.split_once("[pid ").and_then(|(_, rest)| rest.split_once(']')).expect("a pid").0;
    let expected = [
        "[0000:01:00.0] DMA read fault at iova 0x100000: the device is attached to nothing".to_owned(),
        format!(
            "[0000:01:00.0] DMA read fault at iova 0x100000: nothing is mapped; 0x100000-0x100fff was unmapped by pid {client}; \
             the nearest mapping is 0x200000-0x200fff"
        ),
        "[0000:01:00.0] DMA write fault at iova 0x210000: nothing is mapped; the nearest mapping is 0x200000-0x200fff".to_owned(),
    ];
    assert_eq!(faults, expected);
    std::fs::remove_file(&trace).expect("the trace is still there");
}

/// Asks for the text of `path` until `done` says that it is all there.
fn text_when(path: &Path, done: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        if done(&text) {
            return text;
        }
        assert!(Instant::now() < deadline, "{} holds {text:?}", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_ledger_says_who_pins_what_while_it_does_and_when_the_run_ends() {
    let ledger = format!("ledger-{}.txt", std::process::id());
    let ledger = Path::new(env!("CARGO_TARGET_TMPDIR")).join(ledger);
    let mut command = Command::new(env!("CARGO_BIN_EXE_ioasis"));
    command.args(["run", "--device", "testdev", &format!("--ledger={}", ledger.display()), "--"]);
    command.arg(client()).arg("hold").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut run = command.spawn().expect("ioasis starts");
    let mut lines = BufReader::new(run.stdout.take().expect("a pipe")).lines();
    assert_eq!(lines.next().expect("a line").expect("text"), "ready");
    let signalled = Command::new("kill").args(["-USR1", &run.id().to_string()]).status();
    assert!(signalled.expect("kill").success());
    let now = text_when(&ledger, |text| text.contains("together"));
    drop(run.stdin.take());
    assert_eq!(
        lines.next().expect("a line").expect("text"),
        "ok",
        "the signal was not the client's"
    );
    assert!(run.wait().expect("a child").success());
    let all = std::fs::read_to_string(&ledger).expect("a ledger");
    let end = all.strip_prefix(&now).expect("what was printed stays");
    // now and most, then the limit and refusals.
    let pinned = |text: &str| {
        let line = text.lines().nth(2).expect("a line of the client's").to_owned();
        assert!(line.contains(" ioasis-iommu-cl "), "{line}");
        let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        words[words.len() - 4..words.len() - 2].to_vec()
    };
    assert_eq!(pinned(&now), ["256", "256"]);
    assert_eq!(pinned(end), ["0", "256"]);
    assert!(now.ends_with("together 256 KiB now\n") && end.ends_with("together 0 KiB now\n"));
    std::fs::remove_file(&ledger).expect("the ledger is still there");
}
