//! What calls write back into a program's memory, by a C program that checks each step.

mod bench;

use bench::{Folder, bounded, compile, ioasis};

#[test]
fn a_reply_is_written_where_it_may_be_and_nowhere_else() {
    let folder = Folder::new("replies");
    let program = compile(&folder, "replies", &["-pthread"]);
    let output = bounded(ioasis().args(["--device", "testdev", &program]));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.ends_with("ok\n"), "{text}{output:?}");
}
