//! `ioasis torture` on a driver with a fault in each of its error paths.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn folder(test: &str) -> PathBuf {
    let name = format!("torture-{test}-{}", std::process::id());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).expect("a folder under target");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/planted.c");
    let mut gcc = Command::new("gcc");
    let built = gcc.args(["-O1", "-w", "-o"]).arg(folder.join("planted")).arg(source).status();
    assert!(built.expect("gcc is installed").success(), "planted.c does not compile");
    folder
}

/// Removes the result first, so that one of the run before is not taken for this one's.
const DRIVER: [&str; 3] = ["sh", "-c", "rm -f out; exec ./planted out"];
/// The page has one letter 4096 times.
const CHECK: &str = "test \"$(tr -d a < out | wc -c)\" = 0 && test \"$(wc -c < out)\" = 4096";

fn torture(folder: &Path, options: &[&str]) -> Output {
    let mut torture = Command::new(env!("CARGO_BIN_EXE_ioasis"));
    torture.args(["torture", "--limit", "1s", "--check", CHECK]).args(options);
    torture.args(["--device", "testdev", "--"]).args(DRIVER);
    torture.current_dir(folder).output().expect("ioasis starts")
}

/// What is found, and the rule that finds it; the numbers are those in planted.c.
const PLANTED: [(&str, &str, u32); 21] = [
    ("hung", "call=openat,errno=EMFILE,nth=1+", 1),
    ("hung", "call=openat,errno=EBUSY,nth=2+", 2),
    ("crashed, signal 11", "call=openat,errno=ENOENT,nth=1", 3),
    ("crashed, signal 6", "call=VFIO_GET_API_VERSION,errno=EINVAL,nth=1", 4),
    ("crashed, signal 8", "call=VFIO_GROUP_GET_STATUS,errno=EINVAL,nth=1", 5),
    ("crashed, signal 11", "call=VFIO_GROUP_SET_CONTAINER,errno=EPERM,nth=1", 6),
    ("hung", "call=VFIO_GROUP_SET_CONTAINER,errno=EBUSY,nth=1+", 7),
    ("crashed, signal 11", "call=VFIO_SET_IOMMU,errno=ENODEV,nth=1", 8),
    ("crashed, signal 8", "call=VFIO_IOMMU_GET_INFO,errno=EINVAL,nth=1", 9),
    ("hung", "call=VFIO_IOMMU_MAP_DMA,errno=ENOMEM,nth=1+", 10),
    ("crashed, signal 11", "call=VFIO_IOMMU_MAP_DMA,errno=EFAULT,nth=1", 11),
    ("check fails", "call=VFIO_IOMMU_MAP_DMA,errno=EINVAL,nth=1", 12),
    ("could not reach memory", "call=VFIO_IOMMU_MAP_DMA,errno=EEXIST,nth=1", 13),
    ("crashed, signal 11", "call=VFIO_GROUP_GET_DEVICE_FD,errno=EINVAL,nth=1", 14),
    ("hung", "call=VFIO_DEVICE_GET_REGION_INFO,errno=ENOMEM,nth=1+", 15),
    ("crashed, signal 11", "call=VFIO_DEVICE_GET_REGION_INFO,errno=EINVAL,nth=1", 16),
    ("crashed, signal 8", "call=VFIO_DEVICE_GET_IRQ_INFO,errno=EINVAL,nth=1", 17),
    ("crashed, signal 11", "call=VFIO_DEVICE_SET_IRQS,errno=EBUSY,nth=1+", 18),
    ("hung", "call=VFIO_DEVICE_SET_IRQS,errno=ENOSPC,nth=1", 19),
    ("hung", "call=VFIO_DEVICE_RESET,errno=EAGAIN,nth=1+", 20),
    ("check fails", "call=VFIO_IOMMU_UNMAP_DMA,errno=ENOMEM,nth=1+", 21),
];

#[test]
fn every_planted_fault_is_found_and_done_again_by_its_line() {
    let folder = folder("planted");
    let output = torture(&folder, &["--junit", "report.xml"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let missing = PLANTED.iter().filter(|(found, rule, _)| {
        !text.lines().any(|line| line.contains(found) && line.contains(&format!("{rule} --")))
    });
    let missing: Vec<_> = missing.collect();
    assert!(missing.is_empty(), "{missing:?} in\n{text}");
    let report = std::fs::read_to_string(folder.join("report.xml")).expect("a report");
    assert_eq!(report.matches("<failure").count(), text.matches(": ioasis run ").count());

    // A line does it again: the words of one that crashes, as a shell takes them.
    let line =
        text.lines().find(|line| line.contains("VFIO_SET_IOMMU,errno=ENODEV")).expect("found");
    let (_, again) = line.split_once(": ioasis ").expect("a command");
    let again = format!("{} {again}", env!("CARGO_BIN_EXE_ioasis"));
    let output = Command::new("sh").args(["-c", &again]).current_dir(&folder).output().expect("sh");
    use std::os::unix::process::ExitStatusExt;
    let code = output.status.code().unwrap_or_default();
    assert!(output.status.signal() == Some(11) || code == 139, "{output:?}");
    std::fs::remove_dir_all(folder).expect("ours");
}

#[test]
fn a_program_that_fails_by_itself_is_not_tortured() {
    let folder = folder("failing");
    let mut torture = Command::new(env!("CARGO_BIN_EXE_ioasis"));
    let output =
        torture.args(["torture", "--device", "testdev", "--", "false"]).output().expect("it");
    assert_eq!(output.status.code(), Some(125));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("with nothing failing the program ends with"), "{text}");
    std::fs::remove_dir_all(folder).expect("ours");
}
