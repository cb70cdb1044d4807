//! A program that waits, or makes its devices wait, keeps no other.

mod bench;

use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use bench::{Folder, bounded, compile, finished, ioasis};

/// How pages are held back: by a userfaultfd, by a FUSE file.
const KINDS: [&str; 2] = ["uffd", "fuse"];

/// Runs the client's part `what` on a machine with two testdevs, once for each way to hold pages back.
fn does(what: &str) {
    does_with(what, &KINDS);
}

/// The same once for each second argument.
fn does_with(what: &str, kinds: &[&str]) {
    for kind in kinds {
        let folder = Folder::new(&format!("{what}-{kind}"));
        let program = compile(&folder, "waiting", &["-pthread"]);
        let command = &mut ioasis();
        let command = command.args(["--device", "testdev", "--device", "testdev"]);
        let output =
            bounded(command.args([&program, what, kind, &folder.path("")]).stdin(Stdio::null()));
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.ends_with("ok\n"), "{kind}: {text}{output:?}");
    }
}

#[test]
fn a_device_that_never_ends_its_dma_is_left_behind_and_keeps_nobody_waiting() {
    does("left");
}

#[test]
fn a_close_that_never_ends_keeps_nobody_waiting() {
    does("shut");
}

#[test]
fn an_unbound_device_that_never_ends_its_dma_is_busy_and_keeps_nobody_waiting() {
    does("unbound");
}

#[test]
fn what_a_waiting_device_does_not_use_is_unmapped_at_once() {
    does("unmapped");
}

#[test]
fn a_process_that_takes_all_the_files_it_gets_takes_none_from_others() {
    does_with("taken", &["1", "2"]);
}

#[test]
fn many_processes_that_take_all_the_files_they_get_take_none_from_others() {
    does_with("taken", &["40"]);
}

#[test]
fn a_run_ends_though_a_page_is_held_back_outside_of_it() {
    for kind in KINDS {
        let folder = Folder::new(&format!("outlived-{kind}"));
        let program = compile(&folder, "waiting", &["-pthread"]);
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        let mut keeper = Command::new(&program)
            .arg("keep")
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(ours)))
            .spawn()
            .expect("it starts");
        let mut run = ioasis();
        run.args(["--device", "testdev", &program, "outlived", kind, &folder.path("")]);
        let mut run = run
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let status = finished(&mut run);
        keeper.kill().expect("it keeps the page");
        keeper.wait().expect("it was killed");
        let output = run.wait_with_output().expect("its output");
        assert!(status.success(), "{kind}: {output:?}");
    }
}
