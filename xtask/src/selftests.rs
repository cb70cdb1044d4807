//! `cargo xtask selftests`: Linux's own VFIO selftests, unmodified, on our devices.
//!
//! The exported headers are those that uapi-check compares with. Each test runs every mode it has:
//! both container types, on /dev/vfio/vfio and on /dev/iommu, and a device bound to an iommufd.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::kselftest::{Choice, HugePages, Totals, Tree};
use crate::workspace::Workspace;
use crate::{process, tools};

/// A test program.
struct Test {
    name: &'static str,
    cases: u32,
    /// Cases that do not apply to testdev, which has one page of registers and no MSI-X.
    not_for_testdev: u32,
    /// Cases that map one huge page of each size.
    huge: u32,
}

const TESTS: [Test; 5] = [
    Test { name: "vfio_iommufd_setup_test", cases: 6, not_for_testdev: 0, huge: 0 },
    Test { name: "vfio_dma_mapping_test", cases: 30, not_for_testdev: 0, huge: 5 },
    Test { name: "vfio_dma_mapping_mmio_test", cases: 15, not_for_testdev: 5, huge: 0 },
    Test { name: "vfio_pci_device_test", cases: 5, not_for_testdev: 1, huge: 0 },
    Test { name: "vfio_pci_device_init_perf_test", cases: 5, not_for_testdev: 0, huge: 0 },
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
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    choice: Choice,
}

/// Runs the task; answers how many cases passed and how many were left out.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<Totals> {
    tools::ensure_programs(&[&tools::GCC])?;
    tools::ensure_header("/usr/include/uuid/uuid.h", "uuid-dev")?;
    let tree = Tree::get(workspace, &args.choice)?;
    let programs = build(&tree)?;
    process::run(workspace.cargo().args(["build", "--quiet", "--release", "--package", "ioasis"]))?;
    let ioasis = workspace.target.join("release/ioasis");
    let image = tree.work.join("disk.img");
    let nvme = format!("nvme,image={},size=64M", image.display());
    let pages = [HugePages::reserve(2 << 10, 8)?, HugePages::reserve(1 << 20, 1)?];
    let sizes_missing: u32 = pages.iter().map(|pages| u32::from(!pages.reserved())).sum();
    let mut sum = Totals::default();
    let mut failed = Vec::new();
    for (program, test) in programs.iter().zip(&TESTS) {
        for (device, skipped) in [("testdev", test.not_for_testdev), (nvme.as_str(), 0)] {
            let mut command = Command::new(&ioasis);
            command.args(["run", "--device", device, "--"]).arg(program).arg("0000:01:00.0");
            let (succeeded, text) = process::tee(command)?;
            let run = format!("{} on {}", test.name, device.split(',').next().unwrap_or(device));
            let totals = Totals::read(&text).with_context(|| format!("{run} counted nothing"))?;
            println!("{run}: {totals}");
            if !succeeded || !totals.complete(test.cases, skipped + test.huge * sizes_missing) {
                failed.push(run);
            }
            sum.add(&totals);
        }
    }
    fs::remove_file(image).context("nvme made no image")?;
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(sum)
}

/// Compiles the tests and returns them in the order of [`TESTS`].
fn build(tree: &Tree) -> Result<Vec<PathBuf>> {
    let tests = tree.source.join("tools/testing/selftests/vfio");
    let gcc = || {
        let mut gcc = tree.gcc();
        // `calloc_assert` is defined nowhere in 7.2; the tests are compiled from where they lie.
        gcc.args(["-O1", "-w", "-pthread", "-D_GNU_SOURCE=", "-Dcalloc_assert=calloc"]);
        gcc.current_dir(&tests);
        for folder in
            ["tools/testing/selftests", "tools/testing/selftests/vfio/lib/include", "tools/include"]
        {
            gcc.arg("-I").arg(tree.source.join(folder));
        }
        gcc
    };
    let driver = |(driver, registers): (&str, &str)| {
        tree.program(&format!("{driver}.o"), |object| {
            let file = format!("lib/drivers/{driver}/{driver}.c");
            let mut gcc = gcc();
            gcc.arg("-I").arg(tree.source.join(registers));
            process::run(gcc.args(["-c", &file, "-o"]).arg(object))
        })
    };
    let drivers = [("ioat", "drivers/dma/ioat"), ("dsa", "drivers/dma/idxd")].map(driver);
    let drivers: Vec<PathBuf> = drivers.into_iter().collect::<Result<_>>()?;
    let program = |&Test { name, .. }: &Test| {
        tree.program(name, |path| {
            let library = LIBRARY.map(|file| format!("lib/{file}"));
            let mut gcc = gcc();
            gcc.arg(format!("{name}.c")).args(library).args(&drivers);
            process::run(gcc.arg("-o").arg(path).arg("-luuid"))
        })
    };
    TESTS.iter().map(program).collect()
}
