//! `cargo xtask clients`: Debian's own programs, unmodified, with our devices.
//!
//! They are unpacked in the user's cache with every library they need, and run from there; nothing
//! is installed.

mod blkio;
mod dpdk;
mod guest;
mod ports;
mod uml;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::debian::Tree;
use crate::process;
use crate::workspace::Workspace;

/// A program, or several versions of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Client {
    /// QEMU with a Linux guest whose disk is our NVMe device
    Qemu,
    /// dpdk-testpmd, which forwards between virtio-net cards, and a program with a driver of its own on DPDK's VFIO code
    Dpdk,
    /// qemu-img and nbdkit, which drive virtio-blk by libblkio
    Blkio,
    /// User-mode Linux, whose own drivers drive our NVMe and virtio devices
    Uml,
}

/// Run QEMU with a Linux guest, and DPDK, with our devices
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Which clients to run; all without
    clients: Vec<Client>,
}

/// Where `ioasis run` puts the first device.
const DEVICE: &str = "0000:01:00.0";

/// What every client is run with.
#[derive(Debug)]
struct Bench<'a> {
    workspace: &'a Workspace,
    ioasis: PathBuf,
    /// A folder for what the runs leave.
    work: PathBuf,
    /// One line for each run.
    lines: Vec<String>,
    failed: u32,
}

impl Bench<'_> {
    /// `ioasis run` with a device and a limit in seconds, ready for the words of the client.
    fn ioasis(&self, device: &str, seconds: u32) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=10", &seconds.to_string()]).arg(&self.ioasis);
        // A guest's memory is more than a plain user may lock, and locked memory is not counted for
        // root.
        command.args(["run", "--root", "--kill-on-exit", "--device", device]);
        command
    }

    /// Keeps the outcome of a run.
    fn note(&mut self, name: &str, outcome: Result<()>) {
        let line = match outcome {
            Ok(()) => format!("{name}: passed"),
            Err(error) => {
                self.failed += 1;
                format!("{name}: FAILED: {error:#}")
            }
        };
        println!("{line}");
        self.lines.push(line);
    }
}

/// A program that is to start with these words.
fn command(words: &[OsString]) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
}

/// Runs the task; answers how many runs there were and how many of them failed.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<(u32, u32)> {
    process::run(workspace.cargo().args(["build", "--quiet", "--release", "--package", "ioasis"]))?;
    let work = workspace.target.join("clients");
    fs::create_dir_all(&work)?;
    let ioasis = workspace.target.join("release/ioasis");
    let mut bench = Bench { workspace, ioasis, work, lines: Vec::new(), failed: 0 };
    let wanted = |client| args.clients.is_empty() || args.clients.contains(&client);
    if wanted(Client::Qemu) {
        guest::run(&mut bench)?;
    }
    if wanted(Client::Dpdk) {
        dpdk::run(&mut bench)?;
        ports::run(&mut bench)?;
    }
    if wanted(Client::Blkio) {
        blkio::run(&mut bench)?;
    }
    if wanted(Client::Uml) {
        uml::run(&mut bench)?;
    }
    println!("\n{}", bench.lines.join("\n"));
    Ok((u32::try_from(bench.lines.len())?, bench.failed))
}

/// An error unless `text` has `words`.
fn ensure_says(text: &str, words: &str) -> Result<()> {
    ensure!(text.contains(words), "it did not say {words:?}");
    Ok(())
}

/// Packs busybox and the script into the archive a kernel starts from.
fn initramfs(tree: &Tree, work: &Path, init: &str) -> Result<PathBuf> {
    let (root, path) = (work.join("initramfs"), work.join("initramfs.cpio"));
    for folder in ["bin", "proc", "sys", "dev", "mnt"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let busybox = [tree.path("bin/busybox"), tree.path("usr/bin/busybox")];
    let busybox = busybox.iter().find(|path| path.is_file()).context("no busybox")?;
    fs::copy(busybox, root.join("bin/busybox"))?;
    fs::copy(busybox, root.join("init"))?; // with its permission to be run
    fs::write(root.join("init"), init)?;
    let mut cpio = Command::new(busybox);
    cpio.args(["cpio", "-o", "-H", "newc"]).current_dir(&root).stdin(Stdio::piped());
    let mut cpio = cpio.stdout(File::create(&path)?).stderr(Stdio::null()).spawn()?;
    let list = "init\nbin\nbin/busybox\nproc\nsys\ndev\nmnt\n";
    cpio.stdin.take().context("a pipe")?.write_all(list.as_bytes())?;
    ensure!(cpio.wait()?.success(), "busybox could not pack the initramfs");
    Ok(path)
}
