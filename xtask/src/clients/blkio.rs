//! libblkio's virtio-blk driver, in QEMU's qemu-img and in nbdkit: it opens VFIO and maps the
//! registers itself.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::bench::Bench;
use crate::debian::{self, Archive, Tree};
use crate::process;

const PACKAGES: [&str; 4] = ["qemu-utils", "qemu-block-extra", "nbdkit", "libblkio1"];
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// What the driver is told of the device.
const PATH: &str = "path=/sys/bus/pci/devices/0000:01:00.0";
/// Bytes of the image.
const BYTES: usize = 32 << 20;

pub(super) fn run(bench: &mut Bench<'_>) -> Result<()> {
    let tree = Archive::of(bench.workspace, debian::SID)?.tree(&PACKAGES)?;
    let source = bench.work.join("source.img");
    let mut state = 1_u64;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_le_bytes()[7]
    })
    .take(BYTES)
    .collect();
    fs::write(&source, bytes)?;
    let outcome = qemu_img(bench, &tree, &source);
    bench.note("qemu-img of sid, virtio-blk by libblkio", outcome);
    let outcome = nbdkit(bench, &tree, &source);
    bench.note("nbdkit of sid, virtio-blk by libblkio", outcome);
    Ok(())
}

/// `ioasis run` with a disk whose image is `image`.
fn on_disk(bench: &Bench<'_>, tree: &Tree, image: &Path) -> Command {
    let mut run = bench.ioasis(&format!("virtio-blk,image={},size=32M", image.display()), 120);
    run.env("QEMU_MODULE_DIR", tree.path(LIBRARIES).join("qemu")).arg("--");
    run
}

fn same(one: &Path, other: &Path) -> Result<()> {
    let equal = fs::read(one)? == fs::read(other)?;
    ensure!(equal, "{} and {} differ", one.display(), other.display());
    Ok(())
}

/// An image goes onto the disk and comes back, and is in the disk's image between.
fn qemu_img(bench: &Bench<'_>, tree: &Tree, source: &Path) -> Result<()> {
    println!("\n-- qemu-img by libblkio");
    let (image, copy) = (bench.work.join("blkio.img"), bench.work.join("copy.img"));
    let _ = fs::remove_file(&image);
    let disk = format!("driver=virtio-blk-vfio-pci,{PATH},cache.direct=on");
    let mut run = on_disk(bench, tree, &image);
    run.args(tree.program("qemu-img")?).args(["convert", "-n", "--target-image-opts"]);
    process::run(run.arg(source).arg(&disk))?;
    same(source, &image)?;
    let mut run = on_disk(bench, tree, &image);
    run.args(tree.program("qemu-img")?).args(["convert", "--image-opts", "-O", "raw"]);
    process::run(run.arg(&disk).arg(&copy))?;
    same(source, &copy)
}

/// nbdkit serves the disk, and qemu-img copies it out of there.
fn nbdkit(bench: &Bench<'_>, tree: &Tree, source: &Path) -> Result<()> {
    println!("\n-- nbdkit by libblkio");
    let (image, copy) = (bench.work.join("nbdkit.img"), bench.work.join("copy.img"));
    fs::copy(source, &image)?;
    let words = |words: Vec<OsString>| {
        let quote = |word: &OsString| format!("'{}'", word.to_string_lossy());
        words.iter().map(quote).collect::<Vec<_>>().join(" ")
    };
    let copies = format!(
        "{} convert -f raw -O raw \"$uri\" '{}'",
        words(tree.program("qemu-img")?),
        copy.display()
    );
    let mut run = on_disk(bench, tree, &image);
    run.args(tree.program("nbdkit")?).args(["-U", "-"]);
    run.arg(tree.path(LIBRARIES).join("nbdkit/plugins/nbdkit-blkio-plugin.so"));
    process::run(run.args(["virtio-blk-vfio-pci", PATH, "--run", &copies]))?;
    same(source, &copy)
}
