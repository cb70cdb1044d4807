//! What the kernel checks of a call before a driver sees it, checked for our files too; a C program looks at each step.

mod bench;

use std::process::Stdio;

use bench::{Folder, bounded, compile, ioasis};

/// Runs the client's part `what` on a machine with a testdev.
fn checks(what: &str) {
    let folder = Folder::new(&format!("modes-{what}"));
    let program = compile(&folder, "modes", &[]);
    let output =
        bounded(ioasis().args(["--device", "testdev", &program, what]).stdin(Stdio::null()));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text == "ok\n", "{text}{output:?}");
}

#[test]
fn the_access_mode_of_a_descriptor_counts_before_everything_else() {
    checks("access");
}

#[test]
fn the_pieces_and_flags_of_a_vectored_call_are_checked_before_anything_moves() {
    checks("vectors");
}

#[test]
fn an_access_is_cut_or_refused_where_linux_does() {
    checks("bounds");
}

#[test]
fn a_mapping_needs_what_its_descriptor_was_opened_for() {
    checks("maps");
}

#[test]
fn shared_mappings_of_other_files_are_left_to_the_kernel() {
    checks("others");
}
