//! `cargo xtask clients`: Debian's own programs, unmodified, with our devices.
//!
//! They are unpacked in the user's cache with every library they need, and run from there; nothing
//! is installed.

mod bench;
mod blkio;
mod dpdk;
mod guest;
mod ports;
mod uml;

use std::fs;

use anyhow::Result;

use crate::process;
use crate::workspace::Workspace;
use bench::Bench;

/// A program, or several versions of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Client {
    /// QEMU with a Linux guest whose disk is our NVMe device
    Qemu,
    /// dpdk-testpmd, which forwards between virtio-net cards, and a program with a driver of its
    /// own on DPDK's VFIO code
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
