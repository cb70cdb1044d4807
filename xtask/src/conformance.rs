//! `cargo xtask conformance`: Linux's own IOMMUFD tests, unmodified, under `ioasis run --mock`.
//!
//! What passes is what passes on Linux: of the 246 cases of `iommufd` 241, and 5 skip by design; of
//! `iommufd_fail_nth`, which fails every step of every command in turn, all 8, three times in a row.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::debian::Archive;
use crate::kselftest::{self, HugePages, Totals};
use crate::workspace::Workspace;
use crate::{process, tools, uapi_check};

/// A test program and what Linux makes of it.
struct Test {
    name: &'static str,
    passed: u32,
    skipped: u32,
    /// How often it is run.
    times: u32,
}

const TESTS: [Test; 2] = [
    Test { name: "iommufd", passed: 241, skipped: 5, times: 1 },
    Test { name: "iommufd_fail_nth", passed: 8, skipped: 0, times: 3 },
];

/// Arguments of the task.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Take the tests from this Linux source tree instead of Debian's package
    #[arg(long, value_name = "FOLDER")]
    source: Option<PathBuf>,
}

/// Runs the task.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    tools::ensure_programs(&[&tools::GCC])?;
    tools::ensure_header("/usr/include/sys/capability.h", "libcap-dev")?;
    let work = workspace.target.join("selftests");
    fs::create_dir_all(&work)?;
    let source = kselftest::source(workspace, &work, args.source.as_ref())?;
    let header = source.join("drivers/iommu/iommufd/iommufd_test.h");
    uapi_check::run(workspace, &uapi_check::Args::with_test_header(header))?;

    let headers = Archive::new(workspace)?.fetch(&uapi_check::PIN)?;
    process::run(workspace.cargo().args(["build", "--quiet", "--release", "--package", "ioasis"]))?;
    let ioasis = workspace.target.join("release/ioasis");
    let _pages = HugePages::reserve(2 << 10, 64)?;
    let mut results = Vec::new();
    let mut same = true;
    for test in &TESTS {
        let program = build(test.name, &source, &headers.root, &work)?;
        for _ in 0..test.times {
            let mut command = Command::new(&ioasis);
            command.args(["run", "--mock", "--kill-on-exit", "--"]).arg(&program);
            let (_, text) = process::tee(command)?;
            let totals = Totals::read(&text)
                .with_context(|| format!("{} ended before it counted", test.name))?;
            let failed = text.lines().filter(|line| line.starts_with("not ok "));
            results.extend(failed.map(str::to_owned));
            results.push(format!("{}: {totals}; Linux: {} passed", test.name, test.passed));
            same &=
                (totals.passed, totals.failed, totals.skipped) == (test.passed, 0, test.skipped);
        }
    }
    println!("\n{}", results.join("\n"));
    ensure!(same, "Linux's tests do not give what they give on Linux");
    Ok(())
}

/// Compiles a test as the kernel's makefile does.
fn build(name: &str, source: &Path, headers: &Path, work: &Path) -> Result<PathBuf> {
    let program = work.join(name);
    let selftests = source.join("tools/testing/selftests");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-w", "-D_GNU_SOURCE="]).arg("-I").arg(&selftests);
    for folder in ["usr/include", "usr/include/x86_64-linux-gnu"] {
        gcc.arg("-isystem").arg(headers.join(folder));
    }
    gcc.arg(selftests.join("iommu").join(format!("{name}.c"))).arg("-o").arg(&program);
    process::run(gcc.arg("-lcap"))?;
    Ok(program)
}
