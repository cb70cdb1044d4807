//! The device in a run: an unmodified program, and what the commands of `ioasis` know of it.

use std::process::{Command, Output};

fn edu(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_edu")).args(words).output().expect("it starts")
}

#[test]
fn a_driver_that_maps_the_registers_uses_all_there_is() {
    let driver = concat!(env!("CARGO_MANIFEST_DIR"), "/driver.py");
    let run = ["run", "--root", "--fail-on-fault", "--timeout=60s", "--device", "edu", "--"];
    let output = edu(&[&run[..], &["python3", driver]].concat());
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "identification 0x10000ed, alive\n10! = 3628800, interrupt 0x1\nraised 0x40, acknowledged\n\
         2000 bytes there and back, interrupt 0x100\n"
    );
}

#[test]
fn every_command_knows_the_model() {
    let listed = edu(&["models", "edu"]);
    let text = String::from_utf8_lossy(&listed.stdout);
    assert!(text.starts_with("edu: QEMU's teaching device (1234:11e8)\n    dma_mask="), "{text}");
    let script = edu(&["completions", "bash"]);
    assert!(String::from_utf8_lossy(&script.stdout).contains("virtio-net edu"));
    for command in ["run", "trace", "torture"] {
        let wrong = edu(&[command, "--device", "eduu", "--", "true"]);
        let words = String::from_utf8_lossy(&wrong.stderr);
        assert!(words.contains("(did you mean edu?)"), "{command}: {words}");
    }
    let wrong = edu(&["serve", "--device", "edu,dma_msk=1", "--socket", "/nonexistent/socket"]);
    let words = String::from_utf8_lossy(&wrong.stderr);
    assert!(words.contains("edu has no option \"dma_msk\" (did you mean dma_mask?)"), "{words}");
    let served = edu(&["serve", "--device", "edu", "--socket", "/nonexistent/socket"]);
    let words = String::from_utf8_lossy(&served.stderr);
    assert!(words.contains("/nonexistent/socket"), "the device was made: {words}");
}
