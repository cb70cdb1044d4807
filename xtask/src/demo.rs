//! `cargo xtask demo`: the main job on real input.
//!
//! An image of random bytes stands behind an NVMe device; an unmodified qemu-img reads it through
//! its own NVMe driver over VFIO, on a machine that has neither; every byte is compared.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Resource, geteuid, getrlimit};

use crate::workspace::Workspace;
use crate::{process, tools};

/// Where `ioasis run` puts the first device, and what qemu-img calls its first name space.
const DISK: &str = "nvme://0000:01:00.0/1";

/// What qemu-img convert pins with its 16 reads at once is more than this; one read at a time fits.
const LOCKED_BYTES: u64 = 64 << 20;
/// Uid and gid of nobody.
const NOBODY: u32 = 65534;

/// Arguments of the task.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Size of the image in MiB
    #[arg(long, default_value_t = 256)]
    mib: u64,
    /// Copy as nobody, without a capability; for root
    #[arg(long)]
    plain_user: bool,
}

/// Runs the task.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    tools::ensure_programs(&[&tools::QEMU_IMG])?;
    process::run(workspace.cargo().args(["build", "--release", "--locked", "-p", "ioasis"]))?;

    let program = workspace.target.join("release/ioasis");
    if args.plain_user {
        ensure!(geteuid().is_root(), "--plain-user gives privileges up, and this user has none");
        // Where nobody can reach it: a checkout may lie in a home of root's.
        let folder = std::env::temp_dir().join(format!("ioasis-demo-{}", std::process::id()));
        fs::create_dir(&folder)?;
        let copied = copy_as_nobody(&program, &folder, args.mib);
        fs::remove_dir_all(&folder)?;
        return copied;
    }
    let folder = workspace.target.join("demo");
    fs::create_dir_all(&folder)?;
    copy(Command::new(program), Locked::of_this_process(), &folder, args.mib)?;
    println!("both are in {}", folder.display());
    Ok(())
}

fn copy_as_nobody(program: &Path, folder: &Path, mib: u64) -> Result<()> {
    let own = folder.join("ioasis");
    fs::copy(program, &own)?;
    chown(folder, Some(NOBODY), Some(NOBODY))?;
    println!("as nobody (uid {NOBODY}), with no capability");
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")]);
    command.args(["--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]).arg(own);
    copy(command, Locked::Limited, folder, mib)
}

/// Whether what the program maps for DMA counts against a limit that it would reach, as on Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Locked {
    Freely,
    Limited,
}

impl Locked {
    fn of_this_process() -> Self {
        let limit = getrlimit(Resource::Memlock).current;
        if geteuid().is_root() || limit.is_none_or(|bytes| bytes >= LOCKED_BYTES) {
            Self::Freely
        } else {
            Self::Limited
        }
    }
}

/// Copies an image in `folder` with `ioasis`, compares, and says how it went.
fn copy(mut ioasis: Command, locked: Locked, folder: &Path, mib: u64) -> Result<()> {
    let (image, copy) = (folder.join("disk.img"), folder.join("copy.img"));
    make_image(&image, mib)?;
    // For whoever runs the program.
    fs::set_permissions(&image, fs::Permissions::from_mode(0o666))?;
    if copy.exists() {
        fs::remove_file(&copy)?;
    }
    ioasis.args(["run", "--device", &format!("nvme,image={}", image.display()), "--"]);
    ioasis.args(["qemu-img", "convert", "-O", "raw"]);
    if locked == Locked::Limited {
        println!("one read at a time (-m 1): RLIMIT_MEMLOCK holds for what is mapped for DMA");
        ioasis.args(["-m", "1"]);
    }
    ioasis.arg(DISK).arg(&copy);
    let start = Instant::now();
    process::run(&mut ioasis).context("the copy through NVMe over VFIO did not succeed")?;
    let seconds = start.elapsed().as_secs_f64();

    let bytes = same_bytes(&image, &copy)?;
    let megabytes = f64::from(u32::try_from(bytes / 1_000_000)?);
    println!("qemu-img read {mib} MiB from {DISK}, an NVMe device this machine does not have,");
    println!("over VFIO and an IOMMU it does not have either, and every byte is the image's:");
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
