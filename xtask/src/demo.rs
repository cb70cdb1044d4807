//! `cargo xtask demo`: the main job on real input.
//!
//! An image of random bytes stands behind an NVMe device; an unmodified qemu-img reads it through its own NVMe driver
//! over VFIO, on a machine that has neither; every byte is compared.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::workspace::Workspace;
use crate::{process, tools};

/// Where `ioasis run` puts the first device, and what qemu-img calls its first name space.
const DISK: &str = "nvme://0000:01:00.0/1";

/// Arguments of the task.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Size of the image in MiB
    #[arg(long, default_value_t = 256)]
    mib: u64,
}

/// Runs the task.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    tools::ensure_programs(&[&tools::QEMU_IMG])?;
    process::run(workspace.cargo().args(["build", "--release", "--locked", "-p", "ioasis"]))?;

    let folder = workspace.target.join("demo");
    fs::create_dir_all(&folder)?;
    let (image, copy) = (folder.join("disk.img"), folder.join("copy.img"));
    make_image(&image, args.mib)?;
    if copy.exists() {
        fs::remove_file(&copy)?;
    }

    let device = format!("nvme,image={}", image.display());
    let mut ioasis = Command::new(workspace.target.join("release/ioasis"));
    ioasis.args(["run", "--device", &device, "--"]);
    ioasis.args(["qemu-img", "convert", "-O", "raw", DISK]).arg(&copy);
    let start = Instant::now();
    process::run(&mut ioasis).context("the copy through NVMe over VFIO did not succeed")?;
    let seconds = start.elapsed().as_secs_f64();

    let bytes = same_bytes(&image, &copy)?;
    let megabytes = f64::from(u32::try_from(bytes / 1_000_000)?);
    println!(
        "qemu-img read {} MiB from {DISK}, an NVMe device this machine does not have,",
        args.mib
    );
    println!("over VFIO and an IOMMU it does not have either, and every byte is the image's:");
    println!("  {}\n  {}", image.display(), copy.display());
    println!(
        "{megabytes} MB in {seconds:.2} s, {:.0} MB/s, start and end included",
        megabytes / seconds
    );
    Ok(())
}

fn make_image(path: &Path, mib: u64) -> Result<()> {
    println!("making {} of {mib} MiB of random bytes", path.display());
    let mut random = File::open("/dev/urandom")?.take(mib << 20);
    io::copy(&mut random, &mut File::create(path)?)?;
    Ok(())
}

/// Compares two files and returns their length in bytes.
fn same_bytes(a: &Path, b: &Path) -> Result<u64> {
    let (length, other) = (fs::metadata(a)?.len(), fs::metadata(b)?.len());
    ensure!(length == other, "the image has {length} bytes, the copy {other}");
    let (mut a, mut b) = (File::open(a)?, File::open(b)?);
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    while at < length {
        let count = a.read(&mut left)?;
        ensure!(count > 0, "the image became shorter");
        b.read_exact(&mut right[..count])?;
        if let Some(byte) = (0..count).find(|&i| left[i] != right[i]) {
            bail!("the copy differs from the image at byte {}", at + byte as u64);
        }
        at += count as u64;
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wrong_byte_is_found() {
        let folder = std::env::temp_dir().join(format!("ioasis-xtask-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let (a, b) = (folder.join("a"), folder.join("b"));
        make_image(&a, 2).expect("an image");
        fs::copy(&a, &b).expect("a copy");
        assert_eq!(same_bytes(&a, &b).expect("equal"), 2 << 20);

        let mut bytes = fs::read(&b).expect("readable");
        bytes[1_500_000] ^= 1;
        fs::write(&b, &bytes).expect("writable");
        let error = same_bytes(&a, &b).expect_err("different");
        assert_eq!(error.to_string(), "the copy differs from the image at byte 1500000");
        bytes.pop();
        fs::write(&b, &bytes).expect("writable");
        assert!(same_bytes(&a, &b).is_err(), "shorter");
        fs::remove_dir_all(&folder).expect("it was ours");
    }
}
