//! QEMU with a Linux guest: it makes a file system on our NVMe device, reboots, and finds there
//! what it wrote; the image on the host holds the same. `moves` has guests that migrate.

mod moves;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Result, ensure};

use super::bench::{Bench, DEVICE, command, ensure_says, initramfs};
use crate::debian::{self, Archive, Tree};
use crate::process;

/// Debian 12's QEMU, the kernel and the busybox of the guest, and what reads the image afterwards.
const BOOKWORM: [&str; 4] =
    ["qemu-system-x86", "linux-image-cloud-amd64", "busybox-static", "e2fsprogs"];

/// What the guest does. Debian's cloud kernel has NVMe and ext2 built in.
const INIT: &str = r#"#!/bin/busybox sh
set -e
export PATH=/bin
trap '/bin/busybox echo GUEST FAILED; /bin/busybox poweroff -f' EXIT
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
for i in $(seq 1800); do [ -b /dev/nvme0n1 ] && break; sleep 0.1; done
[ -b /dev/nvme0n1 ]
if mount -t ext2 /dev/nvme0n1 /mnt 2>/dev/null; then
    cd /mnt
    sha256sum -c SUM
    cd /
    umount /mnt
    grep nvme /proc/interrupts
    echo GUEST FOUND WHAT IT WROTE
    trap - EXIT
    poweroff -f
fi
mke2fs -F /dev/nvme0n1 > /dev/null
mount -t ext2 /dev/nvme0n1 /mnt
dd if=/dev/urandom of=/mnt/random bs=64k count=128
cd /mnt
sha256sum random > SUM
cd /
umount /mnt
echo GUEST REBOOTS
reboot -f
"#;

/// Words for the kernel of every guest. An emulated timer on a busy host fails Linux's check of it.
const KERNEL: &str = "console=ttyS0 quiet no_timer_check";

/// A guest.
struct Guest {
    name: &'static str,
    qemu: Qemu,
    /// Arguments of QEMU.
    machine: &'static [&'static str],
    /// More properties of the device.
    device: &'static str,
    /// More words for the guest's kernel.
    kernel: &'static str,
    /// What its console or the trace must have shown.
    shows: &'static str,
}

/// Which QEMU, and which interface of VFIO it uses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Qemu {
    /// Debian 12's, with the container.
    Container,
    /// That of trixie-backports, with an iommufd.
    Iommufd,
}

const PLAIN: &[&str] = &["-machine", "q35,accel=tcg"];
// Without interrupt remapping: after a reboot Linux finds no timer through that of QEMU.
const VTD: &[&str] =
    &["-machine", "q35,accel=tcg", "-device", "intel-iommu,caching-mode=on,intremap=off"];
const NESTED: &[&str] = &[
    "-machine",
    "q35,accel=tcg",
    "-device",
    "intel-iommu,caching-mode=on,intremap=off,scalable-mode=on,fsts=on",
];
const MEMFD: &[&str] = &[
    "-machine",
    "q35,accel=tcg,memory-backend=ram",
    "-object",
    "memory-backend-memfd,id=ram,size=256M,share=on",
];

const GUESTS: [Guest; 7] = [
    Guest {
        name: "QEMU of Debian 12, a container",
        qemu: Qemu::Container,
        machine: PLAIN,
        device: "",
        kernel: "",
        shows: "PCI-MSI",
    },
    Guest {
        name: "QEMU of Debian 12, the interrupt pin",
        qemu: Qemu::Container,
        machine: PLAIN,
        device: "",
        kernel: "pci=nomsi",
        shows: "IO-APIC",
    },
    Guest {
        name: "QEMU of Debian 12, no mapped registers",
        qemu: Qemu::Container,
        machine: PLAIN,
        device: ",x-no-mmap=on",
        kernel: "",
        shows: "pwrite(",
    },
    Guest {
        name: "QEMU of Debian 12, a guest that maps what it uses",
        qemu: Qemu::Container,
        machine: VTD,
        device: "",
        kernel: "intel_iommu=on",
        shows: "VFIO_IOMMU_UNMAP_DMA",
    },
    Guest {
        name: "QEMU of trixie-backports, an iommufd",
        qemu: Qemu::Iommufd,
        machine: PLAIN,
        device: "",
        kernel: "",
        shows: "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
    },
    Guest {
        name: "QEMU of trixie-backports, memory from a file",
        qemu: Qemu::Iommufd,
        machine: MEMFD,
        device: "",
        kernel: "",
        shows: "IOMMU_IOAS_MAP_FILE",
    },
    Guest {
        name: "QEMU of trixie-backports, the guest's own page tables",
        qemu: Qemu::Iommufd,
        machine: NESTED,
        device: "",
        kernel: "intel_iommu=on,sm_on iommu.passthrough=0",
        shows: "data_type=VTD_S1",
    },
];

/// What the guests are made of.
struct Parts {
    bookworm: Tree,
    backports: Tree,
    kernel: PathBuf,
    initramfs: PathBuf,
}

pub(super) fn run(bench: &mut Bench<'_>) -> Result<()> {
    let bookworm = Archive::of(bench.workspace, debian::BOOKWORM)?.tree(&BOOKWORM)?;
    let backports = Archive::of(bench.workspace, debian::BACKPORTS)?;
    let backports = backports.tree(&["qemu-system-x86"])?;
    let kernel = bookworm.one("boot", "vmlinuz-")?;
    let initramfs = initramfs(&bookworm, &bench.work, INIT)?;
    let parts = Parts { bookworm, backports, kernel, initramfs };
    for guest in &GUESTS {
        let outcome = boot(bench, &parts, guest);
        bench.note(guest.name, outcome);
    }
    let outcome = served(bench, &parts);
    bench.note(SERVED, outcome);
    moves::run(bench, &parts)
}

/// The guest whose disk `ioasis serve` is.
const SERVED: &str = "QEMU of trixie-backports, vfio-user-pci on ioasis serve";

/// Ends the server when the guest is done with.
struct Server(Child);

impl Server {
    /// What clients may connect to by now.
    fn start(bench: &Bench<'_>, image: &Path, socket: &Path) -> Result<Self> {
        let mut serve = Command::new(&bench.ioasis);
        serve.args(["serve", "--device", &format!("nvme,image={},size=64M", image.display())]);
        serve.arg("--socket").arg(socket).stdin(Stdio::null());
        let mut server = Self(serve.spawn()?);
        while !socket.exists() {
            ensure!(server.0.try_wait()?.is_none(), "ioasis serve ended at once");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a guest without a machine of ours: its QEMU connects to a server of the disk.
fn served(bench: &Bench<'_>, parts: &Parts) -> Result<()> {
    println!("\n-- {SERVED}");
    let (image, socket) = (bench.work.join("disk.img"), bench.work.join("vfio-user"));
    for old in [&image, &socket] {
        if old.exists() {
            fs::remove_file(old)?;
        }
    }
    let server = Server::start(bench, &image, &socket)?;
    let mut run = Command::new("timeout");
    run.args(["--kill-after=10", "600"]);
    qemu(&mut run, &parts.backports, MEMFD)?;
    let socket = socket.display();
    run.args([
        "-device",
        &format!(r#"{{"driver":"vfio-user-pci","socket":{{"type":"unix","path":"{socket}"}}}}"#),
    ]);
    let (succeeded, console) = process::tee(boots(run, parts, ""))?;
    ensure!(succeeded, "QEMU failed or did not come to its end");
    for shown in ["GUEST REBOOTS", "GUEST FOUND WHAT IT WROTE", "PCI-MSI"] {
        ensure_says(&console, shown)?;
    }
    drop(server);
    look(parts, &image, &bench.work)
}

/// The program of `tree` and its machine.
fn qemu(run: &mut Command, tree: &Tree, machine: &[&str]) -> Result<()> {
    run.args(tree.program("qemu-system-x86_64")?).args(machine);
    run.env("QEMU_MODULE_DIR", tree.path("usr/lib/x86_64-linux-gnu/qemu"));
    for data in ["usr/share/qemu", "usr/share/seabios"] {
        run.arg("-L").arg(tree.path(data));
    }
    Ok(())
}

/// What a guest starts from.
fn boots(mut run: Command, parts: &Parts, kernel: &str) -> Command {
    run.args(["-m", "256", "-display", "none", "-nodefaults", "-serial", "stdio"]);
    run.arg("-kernel").arg(&parts.kernel).arg("-initrd").arg(&parts.initramfs);
    run.args(["-append", &format!("{KERNEL} {kernel}")]);
    run.stdin(Stdio::null());
    run
}

/// Runs the guest to its end and looks at its image.
fn boot(bench: &Bench<'_>, parts: &Parts, guest: &Guest) -> Result<()> {
    println!("\n-- {}", guest.name);
    let (image, trace) = (bench.work.join("disk.img"), bench.work.join("trace.txt"));
    for old in [&image, &trace] {
        if old.exists() {
            fs::remove_file(old)?;
        }
    }
    let tree = match guest.qemu {
        Qemu::Container => &parts.bookworm,
        Qemu::Iommufd => &parts.backports,
    };
    let mut run = bench.ioasis(&format!("nvme,image={},size=64M", image.display()), 600);
    run.arg(format!("--trace={}", trace.display())).arg("--");
    qemu(&mut run, tree, guest.machine)?;
    let device = format!("vfio-pci,host={DEVICE}{}", guest.device);
    match guest.qemu {
        Qemu::Container => run.args(["-device", &device]),
        Qemu::Iommufd => {
            run.args(["-object", "iommufd,id=iommufd0"]);
            run.args(["-device", &format!("{device},iommufd=iommufd0")])
        }
    };
    let (succeeded, console) = process::tee(boots(run, parts, guest.kernel))?;
    ensure!(succeeded, "QEMU failed or did not come to its end");
    ensure_says(&console, "GUEST REBOOTS")?;
    ensure_says(&console, "GUEST FOUND WHAT IT WROTE")?;
    ensure_says(&(console + &fs::read_to_string(&trace)?), guest.shows)?;
    look(parts, &image, &bench.work)
}

/// What the guest wrote is in the image.
fn look(parts: &Parts, image: &Path, work: &Path) -> Result<()> {
    let e2fsprogs = |name: &str| parts.bookworm.program(name);
    process::run(command(&e2fsprogs("e2fsck")?).arg("-fn").arg(image))?;
    let random = work.join("random");
    let mut dump = command(&e2fsprogs("debugfs")?);
    dump.arg("-R").arg(format!("dump random {}", random.display())).arg(image);
    process::run(&mut dump)?;
    let mut sum = command(&e2fsprogs("debugfs")?);
    let sum = process::output(sum.args(["-R", "cat SUM"]).arg(image))?;
    let found = process::output(Command::new("sha256sum").arg(&random))?;
    let word = |text: &str| text.split_whitespace().next().map(str::to_owned);
    ensure!(fs::metadata(&random)?.len() == 8 << 20, "the file is not 8 MiB");
    ensure!(word(&sum).is_some() && word(&sum) == word(&found), "the image holds other bytes");
    Ok(())
}
