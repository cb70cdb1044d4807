//! DPDK: its testpmd starts and finds the device, and a program on its VFIO code has the device
//! copy DPDK's memory.

use std::io::{Seek, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::bench::{Bench, DEVICE, ensure_says};
use crate::debian::{self, Archive, Tree};
use crate::{cache, process, tools};

/// testpmd, the headers, and the drivers both load.
const PACKAGES: [&str; 3] = ["dpdk-dev", "librte-mempool-ring23", "librte-bus-pci23"];

/// Where DPDK looks for its drivers.
const DRIVERS: &str = "usr/lib/x86_64-linux-gnu/dpdk/pmds-23.0";

pub(super) fn run(bench: &mut Bench<'_>) -> Result<()> {
    tools::ensure_programs(&[&tools::GCC])?;
    // DPDK always looks for drivers there: one of another folder would find them loaded twice.
    let tree = match Path::new("/").join(DRIVERS).is_dir() {
        true => Tree::system(),
        false => Archive::of(bench.workspace, debian::BOOKWORM)?.tree(&PACKAGES)?,
    };
    // DPDK loads no driver from below a folder that everybody may write to (eal_common_options.c,
    // verify_perms).
    cache::ensure_trusted(&tree.path(DRIVERS))?;
    let outcome = testpmd(bench, &tree);
    bench.note("dpdk-testpmd of Debian 12", outcome);
    let outcome = copy(bench, &tree);
    bench.note("a program on DPDK of Debian 12", outcome);
    Ok(())
}

/// Arguments of the environment layer; every core it is promised is the first.
fn environment(tree: &Tree) -> Vec<String> {
    let mut arguments: Vec<String> =
        ["--lcores=0@0,1@0", "--iova-mode=va", "--no-huge", "--no-telemetry", "-a", DEVICE]
            .map(str::to_owned)
            .into();
    arguments.push(format!("--file-prefix=ioasis-{}", std::process::id()));
    let drivers = tree.path(DRIVERS);
    if drivers != Path::new("/").join(DRIVERS) {
        arguments.extend(["-d".to_owned(), drivers.display().to_string()]);
    }
    arguments
}

fn testpmd(bench: &Bench<'_>, tree: &Tree) -> Result<()> {
    println!("\n-- dpdk-testpmd");
    let mut run = bench.ioasis("testdev", 600);
    run.arg("--").args(tree.program("dpdk-testpmd")?).args(environment(tree));
    run.args(["-m", "256", "--log-level=eal,7", "--", "-i", "--total-num-mbufs=2048"]);
    let mut typed = tempfile(bench, "testpmd.txt")?;
    typed
        .write_all(format!("port attach {DEVICE}\nport attach 0000:09:00.0\nquit\n").as_bytes())?;
    typed.rewind()?;
    run.stdin(typed);
    let (succeeded, text) = process::tee(run)?;
    ensure!(succeeded, "testpmd failed");
    ensure_says(&text, "VFIO support initialized")?;
    ensure_says(&text, "Selected IOVA mode 'VA'")?;
    // It has no driver for the device, but has it on its bus, and not the other one.
    ensure_says(&text, &format!("Driver cannot attach the device ({DEVICE})"))?;
    ensure_says(&text, "Cannot find device (0000:09:00.0)")
}

fn tempfile(bench: &Bench<'_>, name: &str) -> Result<std::fs::File> {
    let path = bench.work.join(name);
    let mut options = std::fs::OpenOptions::new();
    Ok(options.read(true).write(true).create(true).truncate(true).open(path)?)
}

fn copy(bench: &Bench<'_>, tree: &Tree) -> Result<()> {
    println!("\n-- a program on DPDK");
    let program = bench.work.join("dpdk-client");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-march=corei7", "-Wall", "-Werror", "-include", "rte_config.h"]);
    for folder in ["usr/include/dpdk", "usr/include/x86_64-linux-gnu/dpdk"] {
        gcc.arg("-isystem").arg(tree.path(folder));
    }
    gcc.arg(bench.workspace.root.join("crates/ioasis/tests/clients/dpdk.c"))
        .arg("-o")
        .arg(&program);
    for folder in tree.libraries() {
        gcc.arg("-L").arg(&folder).arg(format!("-Wl,-rpath-link={}", folder.display()));
    }
    process::run(gcc.args(["-lrte_eal", "-lrte_bus_pci"]))?;

    let mut run = bench.ioasis("testdev", 600);
    run.arg("--").args(tree.with_libraries(&program)?).args(environment(tree));
    run.args(["-m", "64", "--", DEVICE]);
    let (succeeded, text) = process::tee(run)?;
    ensure!(succeeded, "the program failed");
    // What rte_pci_dump prints of a device.
    ensure_says(&text, &format!("{DEVICE} - vendor:1234 device:11e9"))?;
    ensure_says(&text, "copied")
}
