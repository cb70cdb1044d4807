//! What a client does with the files it gets, by a C program that checks each step.

mod bench;

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use bench::{Folder, bounded, children, compile, finished, ioasis, kill};

/// Runs the client's part `what` on a machine with a testdev.
fn does(what: &str, flags: &[&str]) {
    let folder = Folder::new(what);
    let program = compile(&folder, "files", flags);
    let output = bounded(with_testdev(&mut ioasis()).args([&program, what, &folder.path("")]));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.ends_with("ok\n"), "{text}{output:?}");
}

fn with_testdev(command: &mut Command) -> &mut Command {
    command.args(["--device", "testdev"]).stdin(Stdio::null())
}

#[test]
fn a_file_looks_like_its_device_node() {
    does("look", &[]);
}

#[test]
fn copies_of_a_descriptor_are_the_same_file() {
    does("copies", &["-static"]);
}

#[test]
fn a_close_is_done_when_it_returns_and_comes_after_the_last_mapping() {
    does("closes", &[]);
}

#[test]
fn a_node_is_found_by_whatever_path_leads_to_it() {
    does("paths", &[]);
}

#[test]
fn a_call_that_a_signal_meets_is_executed_once() {
    does("signals", &[]);
}

#[test]
fn other_entry_abis_and_other_files_are_left_alone() {
    does("foreign", &[]);
}

#[test]
fn regions_are_read_written_and_mapped() {
    does("accesses", &[]);
}

#[test]
fn memory_that_a_client_takes_away_harms_only_itself() {
    does("hostile", &[]);
}

#[test]
fn a_client_that_fills_the_runs_file_system_takes_no_room_from_others() {
    does("fill", &[]);
}

#[test]
fn texts_that_a_client_keeps_open_take_no_room_from_devices() {
    does("texts", &[]);
}

#[test]
fn a_read_that_nobody_is_asked_about_shows_what_is_there() {
    does("rings", &[]);
}

#[test]
fn what_is_done_to_a_file_without_our_being_asked_is_undone_and_told() {
    let folder = Folder::new("undone");
    let (program, trace) = (compile(&folder, "files", &[]), folder.path("trace"));
    let command = &mut ioasis();
    let command = with_testdev(command.args(["--trace", &trace])).args([&program, "hostile"]);
    let output = bounded(command);
    assert!(output.status.success(), "{output:?}");
    let text = std::fs::read_to_string(trace).unwrap();
    let line = "/dev/vfio/devices/vfio0: changed by a call that nobody answers, and undone";
    assert!(text.lines().any(|told| told == line), "{text}");
}

#[test]
fn a_client_whose_memory_nobody_fills_keeps_nobody_else_waiting() {
    does("silent", &["-pthread"]);
}

#[test]
fn threads_open_use_and_close_at_once() {
    does("threads", &["-pthread", "-static"]);
}

#[test]
fn a_descriptor_that_cannot_be_given_leaves_nothing_open() {
    does("limits", &[]);
}

#[test]
fn a_device_opened_twice_through_its_group_is_one_device() {
    does("group", &[]);
}

#[test]
fn a_queue_is_read_written_polled_and_closed() {
    does("queue", &[]);
}

#[test]
fn a_queue_has_a_number_where_the_hard_limit_of_descriptors_is_above_the_soft_one() {
    let folder = Folder::new("limits");
    let program = compile(&folder, "files", &[]);
    // As most distributions have them, and two neighbours.
    for limits in ["1024:4096", "1024:1024", "512:1024"] {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={limits}")).arg(ioasis().get_program());
        let output = bounded(with_testdev(&mut command).args([&program, "queue"]));
        assert!(output.status.success(), "{limits}: {output:?}");
    }
}

#[test]
fn a_user_without_privileges_drives_a_device() {
    let folder = Folder::of_everybody("unprivileged");
    let program = compile(&folder, "files", &[]);
    let Some(mut command) = bench::unprivileged() else { return };
    for what in ["accesses", "look", "hidden"] {
        let output = bounded(with_testdev(&mut command).args([&program, what]));
        assert!(output.status.success(), "{output:?}");
        command = bench::unprivileged().expect("as before");
    }
}

#[test]
fn a_client_in_namespaces_of_its_own_is_served() {
    let folder = Folder::new("namespaces");
    let program = compile(&folder, "files", &["-static"]);
    let unshare =
        ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc"];
    for what in ["look", "accesses", "copies"] {
        let output = bounded(with_testdev(&mut ioasis()).args(unshare).args([&program, what]));
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn a_device_is_gone_with_its_supervisor() {
    let folder = Folder::new("gone");
    let program = compile(&folder, "files", &[]);
    let mut run = with_testdev(&mut ioasis())
        .args([&program, "gone"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(run.stdout.take().unwrap());
    let mut text = String::new();
    output.read_line(&mut text).unwrap();
    assert_eq!(text, "ready\n");
    kill(children(run.id())[0], "KILL");
    output.read_to_string(&mut text).unwrap();
    assert_eq!((finished(&mut run).code(), text.as_str()), (Some(0), "ready\nok\n"));
}

#[test]
fn a_trace_shows_the_calls_with_their_results() {
    let folder = Folder::new("trace");
    let (program, trace) = (compile(&folder, "files", &[]), folder.path("trace"));
    let output =
        bounded(with_testdev(ioasis().args(["--trace", &trace])).args([&program, "group"]));
    assert!(output.status.success(), "{output:?}");
    let text = std::fs::read_to_string(trace).unwrap();
    for part in [
        "openat(\"/dev/vfio/1\", O_RDWR) = ",
        "VFIO_GROUP_GET_DEVICE_FD, \"0000:01:00.0\") = ",
        "mmap(",
        "ENXIO",
    ] {
        assert!(text.contains(part), "no {part} in {text}");
    }
}

#[test]
fn an_attribute_of_sysfs_that_is_not_the_users_to_write_is_not_and_the_trace_says_so() {
    // One that Linux lets root write, one that it lets nobody write.
    let attributes =
        ["/sys/bus/pci/drivers/vfio-pci/new_id", "/sys/bus/pci/devices/0000:01:00.0/vendor"];
    let by_whom = |attribute: &str| {
        let by_root = attribute.ends_with("vendor").then(ioasis);
        by_root.into_iter().chain(bench::unprivileged())
    };
    let trace = std::env::temp_dir().join(format!("ioasis-attributes-{}", std::process::id()));
    let trace = trace.to_str().unwrap();
    for attribute in attributes {
        for mut command in by_whom(attribute) {
            let script = format!("echo 1 2 > {attribute}");
            let command = with_testdev(command.args(["--trace", trace]));
            let output = bounded(command.args(["sh", "-c", &script]));
            let text = std::fs::read_to_string(trace).unwrap();
            std::fs::remove_file(trace).unwrap();
            assert_ne!(output.status.code(), Some(0));
            assert!(
                String::from_utf8_lossy(&output.stderr).contains("Permission denied"),
                "{output:?}"
            );
            let line = text.lines().find(|line| line.contains(attribute));
            assert!(line.is_some_and(|line| line.contains("= -1 EACCES (")), "{text}");
        }
    }
}
