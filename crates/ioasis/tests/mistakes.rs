//! What `--explain` says of the mistakes that beginners make, each made by a program, and `--fail-on-fault`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The program that makes mistakes.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let name = format!("mistakes-{}", std::process::id());
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/mistakes.c");
        let mut gcc = Command::new("gcc");
        let built = gcc.args(["-O1", "-w", "-o"]).arg(&program).arg(source).status();
        assert!(built.expect("gcc is installed").success(), "mistakes.c does not compile");
        program
    })
}

/// A run with a mistake; that of a limit as a plain user, since root has none.
fn run(options: &[&str], mistake: &str) -> Output {
    let ioasis = env!("CARGO_BIN_EXE_ioasis");
    let mut run = if mistake == "limit" && rustix::process::geteuid().is_root() {
        let mut run = Command::new("setpriv");
        run.args(["--bounding-set=-all", "--inh-caps=-all"]).current_dir("/");
        run.args(["--reuid=65534", "--regid=65534", "--clear-groups", ioasis]);
        run
    } else {
        Command::new(ioasis)
    };
    run.args(["run", "--device", "testdev"]).args(options).arg("--");
    run.arg(program()).arg(mistake).output().expect("ioasis starts")
}

/// A mistake, and what its line says of cause and remedy.
const MISTAKES: [(&str, &str, &str); 29] = [
    ("bus master", "bus mastering is off", "set bit 2 of COMMAND"),
    (
        "not mapped",
        "DMA read fault at iova 0x100000: nothing is mapped",
        "map what the device reads",
    ),
    (
        "write to read-only",
        "DMA write fault at iova 0x100000",
        "map what the device writes with WRITE",
    ),
    (
        "after unmap",
        "was unmapped by pid",
        "stop the device, or wait for it, before memory is unmapped",
    ),
    ("argsz", "VFIO_IOMMU_MAP_DMA on ", "set argsz or size to sizeof the struct"),
    ("flags", "VFIO_IOMMU_MAP_DMA", "READ"),
    ("misaligned", "aligned", "round vaddr and iova down"),
    ("size", "aligned", "size up to pages"),
    ("twice", "EEXIST", "unmap what is there, or take another iova"),
    ("beyond the aperture", "outside the IOMMU's aperture", "VFIO_IOMMU_GET_INFO"),
    ("reserved", "0xfee00000", "VFIO_IOMMU_GET_INFO"),
    ("vaddr", "EFAULT", "mmap"),
    ("limit", "ENOMEM", "raise it (ulimit -l"),
    ("unmap a part", "VFIO_IOMMU_UNMAP_DMA", "unmap what was mapped, as a whole"),
    ("mmap offset", "mmap on ", "VFIO_DEVICE_GET_REGION_INFO"),
    ("mmap of config space", "mmap on ", "VFIO_DEVICE_GET_REGION_INFO"),
    ("no such region", "VFIO_DEVICE_GET_REGION_INFO", "num_regions"),
    ("memory decoding", "memory decoding is off", "set bit 1 of COMMAND"),
    ("wrong file", "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO", "argsz"),
    ("group twice", "EBUSY", "close"),
    ("group with container twice", "EINVAL", "once"),
    ("device before container", "EINVAL", "VFIO_GROUP_SET_CONTAINER"),
    ("IOMMU before group", "VFIO_SET_IOMMU", "VFIO_GROUP_SET_CONTAINER"),
    ("map before IOMMU", "EINVAL", "VFIO_SET_IOMMU"),
    ("IOMMU type", "VFIO_SET_IOMMU", "VFIO_CHECK_EXTENSION"),
    ("device name", "ENODEV", "0000:01:00.0"),
    ("unknown request", "ENOTTY", "not of the kind"),
    ("no such interrupt", "VFIO_DEVICE_SET_IRQS", "VFIO_DEVICE_GET_IRQ_INFO"),
    ("vector without interrupts", "more interrupts than there are", "VFIO_DEVICE_GET_IRQ_INFO"),
];

#[test]
fn each_mistake_of_a_beginner_is_told_with_cause_and_remedy() {
    let wrong = MISTAKES.iter().filter_map(|(mistake, cause, remedy)| {
        let output = run(&["--explain"], mistake);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let is_told = text.lines().any(|line| line.contains(cause) && line.contains(remedy));
        (!is_told || output.status.code() != Some(0)).then(|| format!("{mistake}: {text}"))
    });
    let wrong: Vec<_> = wrong.collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_run_without_a_mistake_is_told_nothing() {
    let output = run(&["--explain", "--fail-on-fault"], "none");
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn a_program_that_does_not_notice_a_fault_fails_if_asked() {
    for (mistake, status) in [("not mapped", 121), ("bus master", 121), ("twice", 0)] {
        let output = run(&["--fail-on-fault"], mistake);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{mistake}: {text}");
        assert_eq!(text.contains("--explain says why"), status == 121, "{text}");
    }
}
