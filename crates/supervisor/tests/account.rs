//! Capabilities, limits and /proc/PID/status, by a C program that checks each step.

mod bench;

use std::process::Command;

use bench::{Folder, bounded, compile, ioasis, unprivileged};

/// `EPERM`.
const REFUSED: i32 = 1;

/// What the call that needs CAP_SYS_RESOURCE answers the client's part `what`.
fn answer(command: &mut Command, options: &[&str], what: &str) -> Option<i32> {
    let folder = Folder::of_everybody(what);
    let program = compile(&folder, "account", &[]);
    bounded(command.args(options).args([&program, what])).status.code()
}

/// Runs the client's part `what` as root of a machine with a testdev.
fn does(what: &str) {
    let folder = Folder::new(what);
    let program = compile(&folder, "account", &[]);
    let output =
        bounded(ioasis().args(["--root", "--fail-nth", "--device", "testdev", &program, what]));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.ends_with("ok\n"), "{text}{output:?}");
}

#[test]
fn a_plain_user_has_no_capability_on_the_machine_unless_it_is_root_there() {
    let Some(mut plain) = unprivileged() else { return };
    assert_eq!(answer(&mut plain, &[], "capable"), Some(REFUSED));
    let mut root = unprivileged().expect("as before");
    assert_eq!(answer(&mut root, &["--root"], "capable"), Some(0));
}

#[test]
fn root_of_a_user_namespace_that_a_program_makes_is_nobody_on_the_machine() {
    for options in [&[][..], &["--root"]] {
        assert_eq!(answer(&mut ioasis(), options, "nested"), Some(REFUSED), "{options:?}");
    }
    let Some(mut plain) = unprivileged() else { return };
    assert_eq!(answer(&mut plain, &[], "nested"), Some(REFUSED));
}

#[test]
fn charges_by_user_show_in_vmpin_and_pass_to_another_process() {
    does("user");
}

#[test]
fn charges_by_process_show_in_vmlck_too_and_pass_to_another_process() {
    does("process");
}

#[test]
fn a_file_that_cannot_be_given_leaves_nothing_whichever_step_fails() {
    does("steps");
}

#[test]
fn charges_of_a_container_show_in_vmlck_alone() {
    does("type1");
}

#[test]
fn root_in_a_user_namespace_raises_the_limit_of_locked_memory_and_its_children_have_it() {
    let plain = unprivileged();
    for mut command in std::iter::once(ioasis()).chain(plain) {
        let folder = Folder::of_everybody("memlock");
        let program = compile(&folder, "memlock", &["-pthread"]);
        let output = bounded(command.args(["--root", "--device", "testdev", &program]));
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.ends_with("ok\n"), "{text}{output:?}");
    }
}

#[test]
fn prlimit_raises_the_limit_of_the_shell_that_starts_it() {
    let Some(mut plain) = unprivileged() else { return };
    let script =
        "prlimit --memlock=1342177280:1342177280 --pid $$ && ulimit -l && sh -c 'ulimit -H -l'";
    let output = bounded(plain.args(["--root", "--device", "testdev", "sh", "-c", script]));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(text == "1310720\n1310720\n", "{text}");
}
