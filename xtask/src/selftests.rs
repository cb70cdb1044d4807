//! `cargo xtask selftests`: Linux's own VFIO selftests, unmodified, on our devices.
//!
//! The exported headers are those that uapi-check compares with. Each test runs every mode it has:
//! both container types, on /dev/vfio/vfio and on /dev/iommu, and a device bound to an iommufd. The
//! test of Linux's drivers runs on each device that has one, that of virtual functions on testdev.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

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

/// The test that copies and interrupts through a device's driver, on each device that has one.
const DRIVER_TEST: &str = "vfio_pci_driver_test";
const DRIVER_CASES: u32 = 35;

/// The test of virtual functions and their token, which came with the same kernel.
const SRIOV_TEST: &str = "vfio_pci_sriov_uapi_test";
const SRIOV_CASES: u32 = 45;
const SRIOV_DEVICE: &str = "testdev,vfs=4";

/// A device with a driver in the tests: 64 KiB a descriptor are 20 GiB of copies in all, where 1
/// MiB would be 320.
const DRIVEN: [(&str, &str); 2] = [("ioat", "ioat,transfer=64K"), ("igb", "igb")];

/// The drivers, and where the registers of each are.
const DRIVERS: [(&str, &str); 4] = [
    ("ioat", "drivers/dma/ioat"),
    ("dsa", "drivers/dma/idxd"),
    ("igb", "drivers/net/ethernet/intel/igb"),
    ("nv_falcon", "tools/testing/selftests/vfio/lib/drivers/nv_falcon"),
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
    /// Which tests to run, as vfio_pci_driver_test; all without
    tests: Vec<String>,
    #[command(flatten)]
    choice: Choice,
}

impl Args {
    fn wants(&self, test: &str) -> bool {
        self.tests.is_empty() || self.tests.iter().any(|wanted| wanted == test)
    }

    /// What was asked for and is no test.
    fn unknown(&self) -> Option<&String> {
        let is_one = |name: &str| {
            [DRIVER_TEST, SRIOV_TEST].contains(&name) || TESTS.iter().any(|test| test.name == name)
        };
        self.tests.iter().find(|name| !is_one(name))
    }
}

/// Runs the task; answers how many cases passed and how many were left out.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<Totals> {
    tools::ensure_programs(&[&tools::GCC])?;
    tools::ensure_header("/usr/include/uuid/uuid.h", "uuid-dev")?;
    if let Some(name) = args.unknown() {
        let all = TESTS.map(|test| test.name).join(", ");
        bail!("{name} is none of the tests: {all}, {DRIVER_TEST}, {SRIOV_TEST}");
    }
    let tree = Tree::get(workspace, &args.choice)?;
    let tests: Vec<&Test> = TESTS.iter().filter(|test| args.wants(test.name)).collect();
    let names: Vec<&str> = tests.iter().map(|test| test.name).collect();
    let programs = build(&tree, &names)?;
    process::run(workspace.cargo().args(["build", "--quiet", "--release", "--package", "ioasis"]))?;
    let ioasis = workspace.target.join("release/ioasis");
    let image = tree.work.join("disk.img");
    let nvme = format!("nvme,image={},size=64M", image.display());
    let pages = [HugePages::reserve(2 << 10, 8)?, HugePages::reserve(1 << 20, 1)?];
    let sizes_missing: u32 = pages.iter().map(|pages| u32::from(!pages.reserved())).sum();
    let mut sum = Totals::default();
    let mut failed = Vec::new();
    let mut count = |run: String, command: Command, cases: u32, skipped: u32| -> Result<()> {
        let (succeeded, text) = process::tee(command)?;
        let totals = Totals::read(&text).with_context(|| format!("{run} counted nothing"))?;
        println!("{run}: {totals}");
        if !succeeded || !totals.complete(cases, skipped) {
            failed.push(run);
        }
        sum.add(&totals);
        Ok(())
    };
    for (program, test) in programs.iter().zip(&tests) {
        for (device, skipped) in [("testdev", test.not_for_testdev), (nvme.as_str(), 0)] {
            let mut command = Command::new(&ioasis);
            command.arg("run").args(tree.options);
            command.args(["--device", device, "--"]).arg(program).arg("0000:01:00.0");
            let run = format!("{} on {}", test.name, device.split(',').next().unwrap_or(device));
            count(run, command, test.cases, skipped + test.huge * sizes_missing)?;
        }
    }
    if args.wants(DRIVER_TEST) {
        run_drivers(&tree, &ioasis, &mut count)?;
    }
    if args.wants(SRIOV_TEST) {
        if tree.source.join(format!("tools/testing/selftests/vfio/{SRIOV_TEST}.c")).is_file() {
            let program = build(&tree, &[SRIOV_TEST])?.remove(0);
            let mut command = Command::new(&ioasis);
            command.arg("run").args(tree.options);
            command.args(["--device", SRIOV_DEVICE, "--"]).arg(program).arg("0000:01:00.0");
            count(format!("{SRIOV_TEST} on testdev"), command, SRIOV_CASES, 0)?;
        } else {
            println!("these tests have no {SRIOV_TEST}");
        }
    }
    // Without a test that needs it there is no image.
    let _ = fs::remove_file(image);
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(sum)
}

/// Runs the test of drivers on each device that has one.
fn run_drivers(
    tree: &Tree,
    ioasis: &Path,
    count: &mut dyn FnMut(String, Command, u32, u32) -> Result<()>,
) -> Result<()> {
    let driver_test = build(tree, &[DRIVER_TEST])?.remove(0);
    for (driver, device) in DRIVEN {
        if !has_driver(tree, driver) {
            println!("these tests have no driver for {driver}");
            continue;
        }
        let mut command = Command::new(ioasis);
        command.arg("run").args(tree.options);
        command.args(["--device", device, "--"]).arg(&driver_test).arg("0000:01:00.0");
        count(format!("{DRIVER_TEST} on {driver}"), command, DRIVER_CASES, 0)?;
    }
    Ok(())
}

fn has_driver(tree: &Tree, driver: &str) -> bool {
    tree.source.join("tools/testing/selftests/vfio/lib/drivers").join(driver).is_dir()
}

/// Compiles tests and returns them in the order of `names`.
fn build(tree: &Tree, names: &[&str]) -> Result<Vec<PathBuf>> {
    let tests = tree.source.join("tools/testing/selftests/vfio");
    // 7.2 uses it and defines it nowhere.
    let asserts = fs::read_to_string(tests.join("lib/include/libvfio/assert.h"))?;
    let lacks_calloc = !asserts.contains("calloc_assert(");
    let gcc = || {
        let mut gcc = tree.gcc();
        gcc.args(["-O1", "-w", "-pthread", "-D_GNU_SOURCE="]);
        gcc.args(lacks_calloc.then_some("-Dcalloc_assert=calloc"));
        // The tests are compiled from where they lie.
        gcc.current_dir(&tests);
        for folder in
            ["tools/testing/selftests", "tools/testing/selftests/vfio/lib/include", "tools/include"]
        {
            gcc.arg("-I").arg(tree.source.join(folder));
        }
        gcc
    };
    let driver = |&(driver, registers): &(&str, &str)| {
        tree.program(&format!("{driver}.o"), |object| {
            let file = format!("lib/drivers/{driver}/{driver}.c");
            let mut gcc = gcc();
            gcc.arg("-I").arg(tree.source.join(registers));
            process::run(gcc.args(["-c", &file, "-o"]).arg(object))
        })
    };
    let there = DRIVERS.iter().filter(|(driver, _)| has_driver(tree, driver));
    let drivers: Vec<PathBuf> = there.map(driver).collect::<Result<_>>()?;
    let program = |name: &&str| {
        tree.program(name, |path| {
            let library = LIBRARY.map(|file| format!("lib/{file}"));
            let mut gcc = gcc();
            gcc.arg(format!("{name}.c")).args(library).args(&drivers);
            process::run(gcc.arg("-o").arg(path).arg("-luuid"))
        })
    };
    names.iter().map(program).collect()
}
