//! What every system call on a descriptor of ours answers: docs/view.md has the table, a C program makes the calls.

mod bench;

use std::collections::BTreeMap;
use std::process::Stdio;

use bench::{Folder, bounded, compile, ioasis};

/// Lines before the table, its heading and the line below that.
const HEADING: &str = "| call | container | group | device | group's device | iommufd | by whom |";

/// The rows of the table: a call, the five answers to it, and who answers.
fn documented() -> BTreeMap<String, (String, String)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/view.md");
    let text = std::fs::read_to_string(path).unwrap();
    let rows = text.lines().skip_while(|line| *line != HEADING).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|')).map(|line| {
        let cells: Vec<_> = line.trim_matches(['|', ' ']).split(" | ").collect();
        assert_eq!(cells.len(), 7, "{line}");
        (cells[0].to_owned(), (cells[1..6].join("|"), cells[6].to_owned()))
    });
    rows.collect()
}

#[test]
fn every_call_on_a_descriptor_answers_as_the_documentation_says() {
    let folder = Folder::new("descriptors");
    let program = compile(&folder, "descriptors", &[]);
    let output = bounded(ioasis().args(["--device", "testdev", &program]).stdin(Stdio::null()));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{output:?}");
    let mut documented = documented();
    assert!(documented.len() > 90, "the table is found");
    for line in text.lines() {
        let (call, answers) = line.split_once('|').unwrap();
        let Some((expected, _)) = documented.remove(call) else { panic!("{call} has no row") };
        assert_eq!(answers, expected, "{call}");
    }
    assert!(documented.is_empty(), "nobody makes these calls: {documented:?}");
}

#[test]
fn every_answer_that_is_not_linuxs_is_said_to_be_another() {
    for (call, (_, by_whom)) in documented() {
        let begins = |word| by_whom == word || by_whom.starts_with(word);
        assert!(
            by_whom == "us"
                || by_whom == "kernel"
                || begins("differs: ")
                || begins("kernel; differs "),
            "{call}: {by_whom}"
        );
    }
}
