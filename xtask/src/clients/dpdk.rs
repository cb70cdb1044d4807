//! DPDK: its testpmd starts and finds the device, a program on its VFIO code has the device copy
//! DPDK's memory, and its own test of DMA devices drives ioat. Frames of a file go through a cable
//! between two igb ports, and come out as they went in.

use std::io::{Seek, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

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
    let outcome = dmadev(bench, &tree);
    bench.note("dpdk-test dmadev_autotest of Debian 12 on ioat", outcome);
    let outcome = forward(bench, &tree, "vtd");
    bench.note("dpdk-testpmd of Debian 12 between two igb ports", outcome);
    let outcome = forward(bench, &tree, "spapr");
    bench.note("dpdk-testpmd of Debian 12 between two igb ports, SPAPR", outcome);
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

/// DPDK's test of DMA devices: copies and fills in bursts, stop and start, and every count that
/// there is.
fn dmadev(bench: &Bench<'_>, tree: &Tree) -> Result<()> {
    println!("\n-- dpdk-test dmadev_autotest");
    let mut run = bench.ioasis("ioat", 600);
    run.arg("--").args(tree.program("dpdk-test")?).args(environment(tree));
    run.args(["-m", "256"]).env("DPDK_TEST", "dmadev_autotest").stdin(Stdio::null());
    let output = run.stderr(Stdio::inherit()).output()?;
    // A line for each of some thousand rounds, without a line's end: what is behind the last is of
    // interest.
    let text = String::from_utf8_lossy(&output.stdout);
    let said: Vec<&str> = text.lines().filter_map(|line| line.rsplit('\r').next()).collect();
    println!("{}", said.join("\n"));
    ensure_says(&text, &format!("Test dmadev instance 0 [{DEVICE}]"))?;
    ensure_says(&text, "DMA Dev 0: Running fill Tests")?;
    // The next device is a thread of DPDK's own, which has to keep up with a clock: it is begun
    // when ioat has passed.
    ensure_says(&text, "Test dmadev instance 1 [dma_skeleton]")
}

/// Frames that go through the cable.
const FRAMES: u32 = 20_000;
/// Bytes of a file's header and of each frame's, in the format of libpcap.
const FILE_HEADER: usize = 24;
const FRAME_HEADER: usize = 16;

/// A file of `count` frames of 60 to 1514 bytes, no two of which are alike.
fn frames(count: u32) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend(0xa1b2_c3d4_u32.to_le_bytes());
    file.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 0, 0, 0]);
    let mut state = 1_u32;
    for number in 0..count {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let length = 60 + (state >> 16) % 1455;
        file.extend([0, number, length, length].map(u32::to_le_bytes).concat());
        // To another station, of a type for experiments (IEEE 802, 9.2.4).
        file.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5]);
        file.extend(number.to_le_bytes());
        file.extend((18..length).map(|at| (at ^ state >> 8).to_le_bytes()[0]));
    }
    file
}

/// The frames of a file, without what was noted of each.
fn frames_of(file: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    let mut rest = file.get(FILE_HEADER..).unwrap_or_default();
    while let Some(header) = rest.get(..FRAME_HEADER) {
        let length = u32::from_le_bytes(header[8..12].try_into().expect("four bytes")) as usize;
        let Some(frame) = rest.get(FRAME_HEADER..FRAME_HEADER + length) else { break };
        found.push(frame);
        rest = &rest[FRAME_HEADER + length..];
    }
    found
}

/// testpmd reads frames from a file, sends them by one port, receives them by the other and writes
/// them to a file. On an SPAPR container it registers its memory, and makes a window for it in
/// place of the one that is there.
fn forward(bench: &Bench<'_>, tree: &Tree, kind: &str) -> Result<()> {
    println!("\n-- dpdk-testpmd between two igb ports, kind={kind}");
    let path = |name: &str| bench.work.join(name);
    let trace = path("forward.trace");
    let _ = std::fs::remove_file(&trace);
    let (sent, nothing, came, back) =
        (path("sent.pcap"), path("nothing.pcap"), path("came.pcap"), path("back.pcap"));
    std::fs::write(&sent, frames(FRAMES))?;
    std::fs::write(&nothing, frames(0))?;
    let _ = std::fs::remove_file(&came);
    let mut run = bench.ioasis("igb,pair=cable", 600);
    run.args(["--device", "igb,pair=cable", "--iommu", &format!("kind={kind}")]);
    run.arg(format!("--trace={}", trace.display())).arg("--");
    run.args(tree.program("dpdk-testpmd")?);
    run.args(environment(tree)).args(["-a", "0000:02:00.0", "-m", "256"]);
    let file = |number: u32, from: &Path, to: &Path| {
        format!("--vdev=net_pcap{number},rx_pcap={},tx_pcap={}", from.display(), to.display())
    };
    run.args([file(0, &sent, &back), file(1, &nothing, &came)]);
    run.args(["--", "-i", "--total-num-mbufs=8192", "--no-flush-rx"]);
    let mut child = run.stdin(Stdio::piped()).spawn()?;
    let mut typed = child.stdin.take().context("a pipe")?;
    // Ports 0 and 1 are igb's, 2 and 3 the files. A frame that finds no room is offered again.
    typed.write_all(
        b"set portlist 2,0,1,3\nset burst tx delay 100 retry 100000\nset fwd io retry\nstart\n",
    )?;
    let whole = std::fs::metadata(&sent)?.len();
    let begin = Instant::now();
    while std::fs::metadata(&came).map_or(0, |file| file.len()) < whole
        && begin.elapsed() < Duration::from_secs(300)
        && child.try_wait()?.is_none()
    {
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("{FRAMES} frames took {:.1} s", begin.elapsed().as_secs_f64());
    typed.write_all(b"stop\nquit\n")?;
    drop(typed);
    ensure!(child.wait()?.success(), "testpmd failed");
    let (sent, came) = (std::fs::read(&sent)?, std::fs::read(&came)?);
    let (sent, came) = (frames_of(&sent), frames_of(&came));
    ensure!(came.len() == sent.len(), "{} frames of {} came", came.len(), sent.len());
    let differs = sent.iter().zip(&came).position(|(sent, came)| sent != came);
    ensure!(differs.is_none(), "frame {} is another", differs.unwrap_or(0));
    let calls = std::fs::read_to_string(&trace)?;
    let spapr = [
        "VFIO_IOMMU_SPAPR_TCE_GET_INFO",
        "VFIO_IOMMU_SPAPR_TCE_REMOVE",
        "VFIO_IOMMU_SPAPR_TCE_CREATE",
        "VFIO_IOMMU_SPAPR_REGISTER_MEMORY",
    ];
    for call in spapr {
        let calls = calls.lines().filter(|line| line.contains(call)).count();
        ensure!((calls > 0) == (kind == "spapr"), "{calls} times {call}");
    }
    Ok(())
}
