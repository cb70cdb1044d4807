//! A Linux guest in QEMU that moves from run to run while it writes its disk and reads it back.
//!
//! Each run has the image only while its guest does. What the guest wrote before, between and after
//! the moves must be in the image at the end.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Parts, boots, look, qemu};
use crate::clients::bench::{Bench, DEVICE, ensure_says, initramfs};

/// Moves of a guest.
const MOVES: usize = 3;
/// How long anything may take.
const LONG: Duration = Duration::from_secs(240);

/// What the guest does: its file grows to 8 MiB, in turns that take longer than all moves do.
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
mke2fs -F /dev/nvme0n1 > /dev/null
mount -t ext2 /dev/nvme0n1 /mnt
cd /mnt
for turn in $(seq 64); do
    sleep 0.2
    dd if=/dev/urandom bs=64k count=2 2>/dev/null >> random
    sha256sum random > SUM
    sync
    echo 3 > /proc/sys/vm/drop_caches
    sha256sum -c SUM > /dev/null
    echo GUEST TURN $turn.
done
cd /
umount /mnt
dmesg | grep -i "nvme.*timeout" && exit 1
echo GUEST FOUND WHAT IT WROTE
trap - EXIT
poweroff -f
"#;

/// Which interface of VFIO QEMU uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interface {
    Container,
    Iommufd,
}

pub(super) fn run(bench: &mut Bench<'_>, parts: &Parts) -> Result<()> {
    let initramfs = initramfs(&parts.bookworm, &bench.work, INIT)?;
    ensure!(initramfs == parts.initramfs, "the guests start from the same file");
    for (interface, name) in [
        (Interface::Container, "QEMU of trixie-backports, three moves, a container"),
        (Interface::Iommufd, "QEMU of trixie-backports, three moves, an iommufd"),
    ] {
        println!("\n-- {name}");
        let outcome = travel(bench, parts, interface);
        bench.note(name, outcome);
    }
    Ok(())
}

/// Starts a guest, moves it, and looks at its image.
fn travel(bench: &Bench<'_>, parts: &Parts, interface: Interface) -> Result<()> {
    let image = bench.work.join("disk.img");
    remove(&image)?;
    let mut host = Host::start(bench, parts, (interface, 0))?;
    for number in 1..=MOVES {
        // It works here.
        host.wait_for("GUEST TURN")?;
        let next = Host::start(bench, parts, (interface, number))?;
        host.migrate_to(&next)?;
        host = next;
    }
    host.wait_for("GUEST FOUND WHAT IT WROTE")?;
    ensure!(host.wait()?, "the last QEMU failed");
    let console = host.said()?;
    print!("{console}");
    ensure_says(&console, "GUEST TURN 64.")?;
    look(parts, &image, &bench.work)
}

/// A run in which the guest is, or where it will be.
struct Host {
    ioasis: Child,
    console: PathBuf,
    /// Where QEMU takes commands, and where a guest comes in.
    control: PathBuf,
    entrance: PathBuf,
}

impl Host {
    /// The run with this number; a guest comes into all but the first.
    fn start(
        bench: &Bench<'_>,
        parts: &Parts,
        (interface, number): (Interface, usize),
    ) -> Result<Self> {
        let file = |name: &str| bench.work.join(format!("{name}-{number}"));
        let (console, control, entrance) = (file("console"), file("control"), file("entrance"));
        for old in [&console, &control, &entrance] {
            remove(old)?;
        }
        let incoming = if number == 0 { "" } else { ",incoming=on" };
        let image = bench.work.join("disk.img");
        let device = format!("nvme,image={},size=64M{incoming}", image.display());
        let mut run = Command::new(&bench.ioasis);
        run.args(["run", "--root", "--kill-on-exit", "--device", &device, "--"]);
        qemu(&mut run, &parts.backports, &["-machine", "q35,accel=tcg"])?;
        let device = format!("vfio-pci,host={DEVICE},enable-migration=on");
        match interface {
            Interface::Container => run.args(["-device", &device]),
            Interface::Iommufd => run.args([
                "-object",
                "iommufd,id=iommufd0",
                "-device",
                &format!("{device},iommufd=iommufd0"),
            ]),
        };
        run.args(["-qmp", &format!("unix:{},server=on,wait=off", control.display())]);
        if number != 0 {
            run.args(["-incoming", &format!("unix:{}", entrance.display())]);
        }
        let mut run = boots(run, parts, "");
        let output = File::create(&console)?;
        run.stderr(output.try_clone()?).stdout(output).stdin(Stdio::null());
        let mut host = Self { ioasis: run.spawn()?, console, control, entrance };
        let ready = if number == 0 { host.control.clone() } else { host.entrance.clone() };
        host.until("QEMU does not listen", |_| Ok(ready.exists()))?;
        Ok(host)
    }

    fn said(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.console)?).into_owned())
    }

    /// Waits for `is_so`, as long as the run lasts.
    fn until(&mut self, why: &str, is_so: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        let begin = Instant::now();
        while !is_so(self)? {
            let ended = self.ioasis.try_wait()?.is_some();
            // It may have come to its end by itself, a moment ago.
            if (ended && !is_so(self)?) || begin.elapsed() > LONG {
                bail!("{why}; its console says:\n{}", self.said()?);
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn wait_for(&mut self, words: &str) -> Result<()> {
        self.until(&format!("it did not say {words:?}"), |host| Ok(host.said()?.contains(words)))
    }

    /// Whether the run ended well.
    fn wait(&mut self) -> Result<bool> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.ioasis.try_wait()? {
                return Ok(status.success());
            }
            ensure!(begin.elapsed() < LONG, "QEMU does not end");
            sleep(Duration::from_millis(20));
        }
    }

    /// Moves the guest; this run is over then.
    fn migrate_to(&mut self, next: &Self) -> Result<()> {
        let mut control = Control::connect(&self.control)?;
        control.ask("qmp_capabilities", &json!({}))?;
        let target = format!("unix:{}", next.entrance.display());
        control.ask("migrate", &json!({ "uri": target }))?;
        let begin = Instant::now();
        let outcome = loop {
            let state = control.ask("query-migrate", &json!({}))?;
            match state["status"].as_str() {
                Some("completed") => break state,
                Some("failed" | "cancelled") => {
                    bail!("the migration failed: {state}\n{}\n{}", self.said()?, next.said()?)
                }
                _ => ensure!(begin.elapsed() < LONG, "the migration does not end: {state}"),
            }
            sleep(Duration::from_millis(20));
        };
        let milliseconds = |name: &str| outcome[name].as_u64().unwrap_or(0);
        println!(
            "moved in {} ms, stopped for {} ms, {} bytes of the device",
            milliseconds("total-time"),
            milliseconds("downtime"),
            outcome["vfio"]["transferred"]
        );
        control.ask("quit", &json!({}))?;
        ensure!(self.wait()?, "the QEMU that the guest has left failed:\n{}", self.said()?);
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.ioasis.kill();
        let _ = self.ioasis.wait();
    }
}

/// QEMU's machine protocol: a JSON object a line.
struct Control {
    lines: BufReader<UnixStream>,
}

impl Control {
    fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).context("QEMU takes no commands")?;
        stream.set_read_timeout(Some(LONG))?;
        let mut control = Self { lines: BufReader::new(stream) };
        control.next()?;
        Ok(control)
    }

    fn next(&mut self) -> Result<Value> {
        let mut line = String::new();
        ensure!(self.lines.read_line(&mut line)? > 0, "QEMU hung up");
        Ok(serde_json::from_str(&line)?)
    }

    /// What a command returns; events that come before are left out.
    fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments });
        writeln!(self.lines.get_mut(), "{line}")?;
        loop {
            let mut answer = self.next()?;
            if answer.get("error").is_some() {
                bail!("{command}: {answer}");
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
        }
    }
}

fn remove(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_file(path)?;
    }
    Ok(())
}
