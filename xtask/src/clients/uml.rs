//! User-mode Linux: the kernel's own drivers, as a program that opens VFIO, without a virtual
//! machine.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use super::bench::{Bench, DEVICE, command, ensure_says, initramfs};
use crate::debian::{self, Archive, Tree};
use crate::{process, uml};

/// The shell of the guest, and what reads its image afterwards.
const PACKAGES: [&str; 2] = ["busybox-static", "e2fsprogs"];

/// What every guest begins with.
const BEGIN: &str = r#"#!/bin/busybox sh
set -e
export PATH=/bin
trap '/bin/busybox echo GUEST FAILED; /bin/busybox poweroff -f' EXIT
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
"#;

/// How it ends.
const END: &str = r"
trap - EXIT
echo GUEST IS DONE
poweroff -f
";

/// What the guest does with a disk, which the kernel's command line names: a file system, random
/// bytes, and the same bytes when no page of them is cached any more; then the file system tells
/// the disk what it does not use.
const DISK: &str = r#"
for i in $(seq 600); do [ -b /dev/$disk ] && break; sleep 0.1; done
mke2fs -F /dev/$disk > /dev/null
mount -t ext2 /dev/$disk /mnt
dd if=/dev/urandom of=/mnt/random bs=64k count=128 2> /dev/null
cd /mnt
sha256sum random > SUM
cd /
umount /mnt
echo 3 > /proc/sys/vm/drop_caches
mount -t ext2 /dev/$disk /mnt
cd /mnt
sha256sum -c SUM
cd /
fstrim -v /mnt
umount /mnt
cat /sys/block/$disk/size
grep -E "nvme|virtio" /proc/interrupts
echo GUEST FOUND WHAT IT WROTE
"#;

/// A disk.
struct Disk {
    name: &'static str,
    device: &'static str,
    /// What the kernel calls it.
    disk: &'static str,
}

const DISKS: [Disk; 2] = [
    Disk { name: "user-mode Linux, nvme", device: "nvme", disk: "nvme0n1" },
    Disk { name: "user-mode Linux, virtio-blk", device: "virtio-blk", disk: "vda" },
];

/// What two guests do with a network: one serves random bytes over TCP, the other asks for them
/// once the first answers its pings, and compares. Packets of 9000 bytes fill several buffers of
/// the driver each.
const NETWORK: &str = r#"
if [ $role = server ]; then
    ifconfig eth0 10.0.0.1 netmask 255.255.255.0 mtu 9000 up
    dd if=/dev/urandom of=/random bs=64k count=1024 2> /dev/null
    sha256sum /random > /SUM
    nc -l -p 5000 < /random
    nc -l -p 5001 < /SUM
else
    ifconfig eth0 10.0.0.2 netmask 255.255.255.0 mtu 9000 up
    for i in $(seq 100); do ping -c 1 -W 1 10.0.0.1 > /dev/null && break; done
    ping -c 10 -i 0.01 10.0.0.1 | tail -2
    # nc would end what it reads when its input ends.
    mkfifo /open
    sleep 1000 > /open &
    exec 3< /open
    for i in $(seq 100); do nc 10.0.0.1 5000 <&3 > /random 2> /dev/null && break; sleep 0.1; done
    for i in $(seq 100); do nc 10.0.0.1 5001 <&3 > /SUM 2> /dev/null && break; sleep 0.1; done
    [ $(stat -c %s /random) = 67108864 ]
    sha256sum -c /SUM
    grep virtio /proc/interrupts
    ifconfig eth0
fi
"#;

/// Where `ioasis run` puts the second device.
const SECOND: &str = "0000:02:00.0";

pub(super) fn run(bench: &mut Bench<'_>) -> Result<()> {
    let kernel = uml::kernel(bench.workspace)?;
    let tree = Archive::of(bench.workspace, debian::BOOKWORM)?.tree(&PACKAGES)?;
    for disk in &DISKS {
        let outcome = run_disk(bench, &kernel, &tree, disk);
        bench.note(disk.name, outcome);
    }
    let outcome = run_network(bench, &kernel, &tree);
    bench.note("user-mode Linux, virtio-net", outcome);
    Ok(())
}

/// Two kernels, whose cards are connected with each other.
fn run_network(bench: &Bench<'_>, kernel: &Path, tree: &Tree) -> Result<()> {
    println!("\n-- user-mode Linux, virtio-net");
    let init = initramfs(tree, &bench.work, &format!("{BEGIN}{NETWORK}{END}"))?;
    let mut run = bench.ioasis("virtio-net,pair=a", 240);
    run.args(["--device", "virtio-net,pair=a", "--", "sh", "-c"]);
    run.arg(format!(
        "{} role=server & {} role=client; client=$?; wait $! && exit $client",
        quoted(&guest(kernel, &init, DEVICE)),
        quoted(&guest(kernel, &init, SECOND)),
    ));
    run.stdin(Stdio::null());
    let (succeeded, console) = process::tee(run)?;
    ensure!(succeeded, "a kernel failed");
    ensure_says(&console, "10 packets received")?;
    ensure_says(&console, "random: OK")?;
    ensure!(console.matches("GUEST IS DONE").count() == 2, "not both came to their end");
    ensure!(!console.contains("GUEST FAILED"), "one did not come to its end");
    Ok(())
}

/// The words for a shell.
fn quoted(words: &[OsString]) -> String {
    let quote = |word: &OsString| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"));
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

fn run_disk(bench: &Bench<'_>, kernel: &Path, tree: &Tree, disk: &Disk) -> Result<()> {
    println!("\n-- {}", disk.name);
    let init = initramfs(tree, &bench.work, &format!("{BEGIN}{DISK}{END}"))?;
    let image = bench.work.join("uml.img");
    let _ = fs::remove_file(&image);
    let mut run = bench.ioasis(&format!("{},image={},size=64M", disk.device, image.display()), 120);
    run.arg("--").args(guest(kernel, &init, DEVICE)).arg(format!("disk={}", disk.disk));
    run.stdin(Stdio::null());
    let (succeeded, console) = process::tee(run)?;
    ensure!(succeeded, "the kernel failed");
    ensure_says(&console, "random: OK")?;
    ensure_says(&console, "GUEST FOUND WHAT IT WROTE")?;
    ensure_says(&console, "GUEST IS DONE")?;
    look(tree, &image, &bench.work)
}

/// The words that start a kernel with a device.
fn guest(kernel: &Path, init: &Path, device: &str) -> Vec<OsString> {
    let words = [
        kernel.display().to_string(),
        "mem=256M".to_owned(),
        format!("initrd={}", init.display()),
        format!("vfio_uml.device={device}"),
        "con=null".to_owned(),
        "con0=null,fd:1".to_owned(),
        "panic=-1".to_owned(),
        "quiet".to_owned(),
    ];
    words.map(Into::into).into()
}

/// What the guest wrote is in the image.
fn look(tree: &Tree, image: &Path, work: &Path) -> Result<()> {
    process::run(command(&tree.program("e2fsck")?).arg("-fn").arg(image))?;
    let random: PathBuf = work.join("random");
    let mut dump = command(&tree.program("debugfs")?);
    process::run(dump.arg("-R").arg(format!("dump random {}", random.display())).arg(image))?;
    let sum =
        process::output(command(&tree.program("debugfs")?).args(["-R", "cat SUM"]).arg(image))?;
    let found = process::output(Command::new("sha256sum").arg(&random))?;
    let word = |text: &str| text.split_whitespace().next().map(str::to_owned);
    ensure!(fs::metadata(&random)?.len() == 8 << 20, "the file is not 8 MiB");
    ensure!(word(&sum).is_some() && word(&sum) == word(&found), "the image holds other bytes");
    Ok(())
}
