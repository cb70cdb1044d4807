//! `cargo xtask selftests`: Linux's own VFIO selftests, unmodified, on our devices.
//!
//! The sources are those of Debian's linux-source-7.2, of which only the tests and the headers they include are
//! unpacked, under the target folder; the exported headers are those that uapi-check compares with. Each test runs every mode it has: both container types, on /dev/vfio/vfio and on
//! /dev/iommu, and a device bound to an iommufd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::debian::{Archive, Wanted};
use crate::workspace::Workspace;
use crate::{process, tools, uapi_check};

/// The kernel whose tests are run.
const PIN: Wanted = Wanted { package: "linux-source-7.2", pin: "7.2.13-1", series: "7.2." };

/// What is unpacked of it, relative to its root folder.
const PARTS: [&str; 7] = [
    "tools/testing/selftests/vfio",
    "tools/testing/selftests/*.h",
    "tools/include",
    "tools/arch/x86/include",
    "include/linux/pci_ids.h",
    "drivers/dma/ioat",
    "drivers/dma/idxd",
];

/// The tests: program, and how many cases it has.
const TESTS: [(&str, u32); 5] = [
    ("vfio_iommufd_setup_test", 6),
    ("vfio_dma_mapping_test", 30),
    ("vfio_dma_mapping_mmio_test", 15),
    ("vfio_pci_device_test", 5),
    ("vfio_pci_device_init_perf_test", 5),
];

/// What every test is linked with.
const LIBRARY: [&str; 6] = [
    "iommu.c",
    "iova_allocator.c",
    "libvfio.c",
    "sysfs.c",
    "vfio_pci_device.c",
    "vfio_pci_driver.c",
];

/// Run Linux's VFIO selftests
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Take the tests from this Linux source tree instead of Debian's package
    #[arg(long, value_name = "FOLDER")]
    source: Option<PathBuf>,
}

pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    tools::ensure_programs(&[&tools::GCC])?;
    tools::ensure_header("/usr/include/uuid/uuid.h", "uuid-dev")?;
    let work = workspace.target.join("selftests");
    fs::create_dir_all(&work)?;
    let source = match &args.source {
        Some(folder) => folder.canonicalize().context("the source tree is not there")?,
        None => unpack(workspace, &work)?,
    };
    let headers = Archive::new(workspace)?.fetch(&uapi_check::PIN)?;
    let programs = build(&source, &headers.root, &work)?;
    process::run(workspace.cargo().args(["build", "--quiet", "--release", "--package", "ioasis"]))?;
    let ioasis = workspace.target.join("release/ioasis");
    let image = work.join("disk.img");
    let nvme = format!("nvme,image={},size=64M", image.display());
    let mut failed = Vec::new();
    for (program, (name, cases)) in programs.iter().zip(TESTS) {
        for (model, device) in [("testdev", "testdev"), ("nvme", nvme.as_str())] {
            let mut command = Command::new(&ioasis);
            command.args(["run", "--device", device, "--"]).arg(program).arg("0000:01:00.0");
            let (succeeded, text) = process::tee(command)?;
            let totals = Totals::read(&text).with_context(|| format!("{name} counted nothing"))?;
            println!("{name} on {model}: {totals}");
            if !succeeded || !totals.complete(cases) {
                failed.push(format!("{name} on {model}"));
            }
        }
    }
    fs::remove_file(image).context("nvme made no image")?;
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// The source tree of the package, as far as it is needed.
fn unpack(workspace: &Workspace, work: &Path) -> Result<PathBuf> {
    let fetched = Archive::new(workspace)?.fetch(&PIN)?;
    let tree = work.join(format!("linux-{}", fetched.version));
    if tree.is_dir() {
        return Ok(tree);
    }
    let archive = fetched.root.join("usr/src").join(format!("{}.tar.xz", PIN.package));
    ensure!(archive.is_file(), "{} holds no {}", fetched.root.display(), archive.display());
    println!("unpacking the selftests of Linux {}", fetched.version);
    let partial = work.join("partial");
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial)?;
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(&archive).arg("-C").arg(&partial);
    tar.args(["--strip-components=1", "--wildcards"]);
    process::run(tar.args(PARTS.map(|part| format!("*/{part}"))))?;
    fs::rename(&partial, &tree)?;
    Ok(tree)
}

/// Compiles the tests and returns them in the order of [`TESTS`].
fn build(source: &Path, headers: &Path, work: &Path) -> Result<Vec<PathBuf>> {
    let tests = source.join("tools/testing/selftests/vfio");
    let gcc = || {
        let mut gcc = Command::new("gcc");
        // `calloc_assert` is defined nowhere in 7.2; the tests are compiled from where they lie.
        gcc.args(["-O1", "-w", "-pthread", "-D_GNU_SOURCE=", "-Dcalloc_assert=calloc"]);
        gcc.current_dir(&tests);
        for folder in
            ["tools/testing/selftests", "tools/testing/selftests/vfio/lib/include", "tools/include"]
        {
            gcc.arg("-I").arg(source.join(folder));
        }
        for folder in ["usr/include", "usr/include/x86_64-linux-gnu"] {
            gcc.arg("-isystem").arg(headers.join(folder));
        }
        gcc
    };
    let mut drivers = Vec::new();
    for (driver, registers) in [("ioat", "drivers/dma/ioat"), ("dsa", "drivers/dma/idxd")] {
        let object = work.join(format!("{driver}.o"));
        let file = format!("lib/drivers/{driver}/{driver}.c");
        process::run(
            gcc().arg("-I").arg(source.join(registers)).args(["-c", &file, "-o"]).arg(&object),
        )?;
        drivers.push(object);
    }
    let program = |(name, _): &(&str, u32)| {
        let path = work.join(name);
        let library = LIBRARY.map(|file| format!("lib/{file}"));
        let mut gcc = gcc();
        gcc.arg(format!("{name}.c"))
            .args(library)
            .args(&drivers)
            .arg("-o")
            .arg(&path)
            .arg("-luuid");
        process::run(&mut gcc)?;
        Ok(path)
    };
    TESTS.iter().map(program).collect()
}

/// What a test says at its end, and why it left cases out.
#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    passed: u32,
    failed: u32,
    skipped: u32,
    /// Reasons for skipping, each once.
    reasons: Vec<String>,
}

impl Totals {
    /// Reads the output of kselftest_harness.h.
    fn read(text: &str) -> Result<Self> {
        let line = text.lines().rev().find_map(|line| line.strip_prefix("# Totals: "));
        let Some(line) = line else { bail!("there is no line of totals") };
        let mut totals = Self::default();
        for word in line.split_whitespace() {
            let (key, count) = word.split_once(':').context("a total without a count")?;
            let count: u32 = count.parse().context("a count that is none")?;
            match key {
                "pass" => totals.passed += count,
                "skip" => totals.skipped += count,
                "fail" | "xfail" | "xpass" | "error" => totals.failed += count,
                other => bail!("an unknown total {other:?}"),
            }
        }
        let mut reasons: Vec<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("#      SKIP      "))
            .map(str::to_owned)
            .collect();
        reasons.sort();
        reasons.dedup();
        totals.reasons = reasons;
        Ok(totals)
    }

    /// Whether every one of `cases` passed or said why it did not run.
    fn complete(&self, cases: u32) -> bool {
        let explained = self.skipped == 0 || !self.reasons.is_empty();
        self.failed == 0 && explained && self.passed + self.skipped == cases
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)?;
        if self.reasons.is_empty() { Ok(()) } else { write!(f, " ({})", self.reasons.join("; ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "ok 1 a\n#      SKIP      no pages\nok 2 b # SKIP no pages\n#      SKIP      no pages\n\
                        # Totals: pass:1 fail:0 xfail:0 xpass:0 skip:2 error:0\n";

    #[test]
    fn totals_and_reasons_are_read() {
        let totals = Totals::read(TEXT).expect("totals");
        assert_eq!((totals.passed, totals.failed, totals.skipped), (1, 0, 2));
        assert_eq!(totals.to_string(), "1 passed, 0 failed, 2 skipped (no pages)");
        assert!(totals.complete(3));
        assert!(!totals.complete(4), "a case is missing");
    }

    #[test]
    fn a_test_that_fails_or_dies_is_not_complete() {
        let failing = TEXT.replace("fail:0", "fail:1");
        assert!(!Totals::read(&failing).expect("totals").complete(4));
        assert!(Totals::read("ok 1 a\n").is_err());
        let silent = "# Totals: pass:1 fail:0 xfail:0 xpass:0 skip:1 error:0\n";
        assert!(!Totals::read(silent).expect("totals").complete(2), "a skip without a reason");
    }
}
