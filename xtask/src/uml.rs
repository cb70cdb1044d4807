//! `cargo xtask uml`: a user-mode Linux that drives PCI devices through VFIO, built once.
//!
//! The sources are those of Debian's linux-source-7.3, whose own user-mode-linux package has no
//! CONFIG_UML_PCI_OVER_VFIO. The program is kept in the user's cache under a name made of version
//! and configuration; sources and objects are removed again.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};

use crate::debian::{Archive, Wanted};
use crate::workspace::Workspace;
use crate::{process, tools};

const PIN: Wanted<'_> =
    Wanted { package: "linux-source-7.3", pin: "7.3.4-1~bpo13+1", series: "7.3." };

/// What is set beside tinyconfig.
const CONFIGURATION: &[&str] = &[
    // A kernel that runs a shell from an initramfs and shows what it prints.
    "64BIT",
    "PRINTK",
    "BUG",
    "MULTIUSER",
    "FUTEX",
    "EPOLL",
    "SIGNALFD",
    "TIMERFD",
    "EVENTFD",
    "POSIX_TIMERS",
    "HIGH_RES_TIMERS",
    "NO_HZ_IDLE",
    "FILE_LOCKING",
    "BINFMT_ELF",
    "BINFMT_SCRIPT",
    "BLK_DEV_INITRD",
    "PROC_FS",
    "SYSFS",
    "SHMEM",
    "TMPFS",
    "DEVTMPFS",
    "STDERR_CONSOLE",
    "NULL_CHAN",
    // PCI devices through VFIO.
    "UML_PCI_OVER_VFIO",
    "PCI_MSI",
    // Disks.
    "BLOCK",
    "BLK_DEV",
    "BLK_DEV_NVME",
    "VIRTIO_MENU",
    "VIRTIO_PCI",
    "VIRTIO_BLK",
    "EXT4_FS",
    "EXT4_USE_FOR_EXT2",
    // Networks.
    "NET",
    "UNIX",
    "INET",
    "PACKET",
    "NETDEVICES",
    "NET_CORE",
    "VIRTIO_NET",
    "ETHERNET",
    "NET_VENDOR_INTEL",
    "IGB",
];

/// Build a user-mode Linux with drivers of our devices
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Take the kernel from this source tree instead of Debian's package; it is not kept
    #[arg(long, value_name = "FOLDER")]
    source: Option<PathBuf>,
}

/// Runs the task: prints where the kernel is.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let kernel = match &args.source {
        None => kernel(workspace)?,
        Some(source) => {
            let source = source.canonicalize().context("the source tree is not there")?;
            build(&source, &made(&workspace.target.join("uml"))?)?
        }
    };
    println!("{}", kernel.display());
    Ok(())
}

/// The kernel, built if it is not there yet.
pub(crate) fn kernel(workspace: &Workspace) -> Result<PathBuf> {
    let folder = made(&workspace.cache.join("uml"))?;
    let kernel = folder.join(format!("linux-{}-{:08x}", PIN.pin, configuration_hash()));
    let lock = File::create(folder.join("lock"))?;
    lock.lock().context("the folder of user-mode Linux could not be locked")?;
    if kernel.is_file() {
        return Ok(kernel);
    }
    tools::ensure_programs(&[
        &tools::GCC,
        &tools::MAKE,
        &tools::FLEX,
        &tools::BISON,
        &tools::BC,
        &tools::XZ,
    ])?;
    let fetched = Archive::new(workspace)?.fetch(&PIN)?;
    let archive = fetched.root.join("usr/src").join(format!("{}.tar.xz", PIN.package));
    let work = folder.join("partial");
    let _ = fs::remove_dir_all(&work);
    let (source, objects) = (made(&work.join("source"))?, made(&work.join("objects"))?);
    println!(
        "building a user-mode Linux {} (some minutes, 2 GB until it is done)",
        fetched.version
    );
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(&archive).arg("-C").arg(&source).arg("--strip-components=1");
    process::run(&mut tar)?;
    let built = build(&source, &objects)?;
    fs::rename(built, &kernel)?;
    fs::remove_dir_all(&work)?;
    Ok(kernel)
}

fn made(folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder)?;
    Ok(folder.to_owned())
}

fn configuration_hash() -> u64 {
    let mut hasher = DefaultHasher::new();
    CONFIGURATION.hash(&mut hasher);
    hasher.finish() & 0xffff_ffff
}

/// Builds the kernel of `source` in `objects`.
fn build(source: &Path, objects: &Path) -> Result<PathBuf> {
    let make = |target: &str| {
        let mut make = Command::new("make");
        make.args(["-s", "ARCH=um"]).arg("-C").arg(source);
        make.arg(format!("O={}", objects.display())).arg(target);
        make
    };
    process::run(&mut make("tinyconfig"))?;
    let configuration = objects.join(".config");
    let mut text = fs::read_to_string(&configuration)?;
    for name in CONFIGURATION {
        // Of two lines for a name the last counts.
        text.push_str(&format!("CONFIG_{name}=y\n"));
    }
    fs::write(&configuration, text)?;
    process::run(&mut make("olddefconfig"))?;
    let text = fs::read_to_string(&configuration)?;
    let unset = |name: &&&str| !text.lines().any(|line| line == format!("CONFIG_{name}=y"));
    let unset: Vec<_> = CONFIGURATION.iter().filter(unset).collect();
    ensure!(unset.is_empty(), "this kernel cannot be configured with {unset:?}");
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    process::run(make("linux").arg(format!("-j{jobs}")))?;
    let kernel = objects.join("linux");
    ensure!(kernel.is_file(), "make left no {}", kernel.display());
    Ok(kernel)
}
