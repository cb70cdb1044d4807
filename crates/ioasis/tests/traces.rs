//! What the options of `ioasis trace` show of a program that maps the same range twice.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder with the program in it.
fn program(test: &str) -> PathBuf {
    let name = format!("traces-{test}-{}", std::process::id());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).expect("a folder under target");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/mistakes.c");
    let mut gcc = Command::new("gcc");
    let built = gcc.args(["-O1", "-w", "-o"]).arg(folder.join("mistakes")).arg(source).status();
    assert!(built.expect("gcc is installed").success(), "mistakes.c does not compile");
    folder
}

/// What `ioasis trace` with `options` writes to standard error.
fn traced(folder: &Path, options: &[&str]) -> String {
    let mut trace = Command::new(env!("CARGO_BIN_EXE_ioasis"));
    trace.arg("trace").args(options).args(["--device", "testdev", "--", "./mistakes", "twice"]);
    let output = trace.current_dir(folder).output().expect("ioasis starts");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stderr).expect("text")
}

#[test]
fn a_filter_shows_what_it_names_alone() {
    let folder = program("filter");
    let text = traced(&folder, &["-e", "map"]);
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.lines().all(|line| line.contains("VFIO_IOMMU_MAP_DMA")), "{text}");
    let text = traced(&folder, &["-e", "failed"]);
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("-1 EEXIST"), "{text}");
    let all = traced(&folder, &[]);
    let rest = traced(&folder, &["-e", "!map"]);
    assert_eq!(rest.lines().count() + 2, all.lines().count(), "{rest}");
    assert!(!rest.contains("MAP_DMA"), "{rest}");
    std::fs::remove_dir_all(folder).expect("ours");
}

#[test]
fn a_table_counts_calls_and_refusals() {
    let folder = program("count");
    let text = traced(&folder, &["-c"]);
    let row = text.lines().find(|line| line.ends_with("  VFIO_IOMMU_MAP_DMA")).expect(&text);
    let numbers: Vec<_> = row.split_whitespace().take(2).collect();
    assert_eq!(numbers, ["2", "1"], "{text}");
    assert!(text.ends_with("  in all\n") && !text.contains("[pid"), "{text}");
    std::fs::remove_dir_all(folder).expect("ours");
}

#[test]
fn each_line_of_json_is_an_object_with_its_time() {
    let folder = program("json");
    assert_eq!(traced(&folder, &["-o", "json:t.json"]), "");
    let text = std::fs::read_to_string(folder.join("t.json")).expect("it was written");
    let objects: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert!(objects.iter().all(|object| object["time"].as_f64().is_some_and(|time| time > 1e9)));
    let failed = objects.iter().find(|object| object["errno"] == "EEXIST").expect("the second map");
    assert_eq!(
        (&failed["call"], &failed["request"]),
        (&"ioctl".into(), &"VFIO_IOMMU_MAP_DMA".into())
    );
    std::fs::remove_dir_all(folder).expect("ours");
}

#[test]
fn a_line_can_begin_with_its_time() {
    let folder = program("time");
    for (option, length) in [("-t", 9), ("-tt", 16), ("-r", 14)] {
        let text = traced(&folder, &[option, "-e", "map"]);
        for line in text.lines() {
            assert!(line[length..].starts_with("[pid "), "{option}: {line}");
        }
    }
    std::fs::remove_dir_all(folder).expect("ours");
}
