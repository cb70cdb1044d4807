//! What every client is run with.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::debian::Tree;
use crate::workspace::Workspace;

/// Where `ioasis run` puts the first device.
pub(super) const DEVICE: &str = "0000:01:00.0";

/// What every client is run with.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    pub(super) workspace: &'a Workspace,
    pub(super) ioasis: PathBuf,
    /// A folder for what the runs leave.
    pub(super) work: PathBuf,
    /// One line for each run.
    pub(super) lines: Vec<String>,
    pub(super) failed: u32,
}

impl Bench<'_> {
    /// `ioasis run` with a device and a limit in seconds, ready for the words of the client.
    pub(super) fn ioasis(&self, device: &str, seconds: u32) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=10", &seconds.to_string()]).arg(&self.ioasis);
        // A guest's memory is more than a plain user may lock, and locked memory is not counted for
        // root.
        command.args(["run", "--root", "--kill-on-exit", "--device", device]);
        command
    }

    /// Keeps the outcome of a run.
    pub(super) fn note(&mut self, name: &str, outcome: Result<()>) {
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
pub(super) fn command(words: &[OsString]) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
}

/// An error unless `text` has `words`.
pub(super) fn ensure_says(text: &str, words: &str) -> Result<()> {
    ensure!(text.contains(words), "it did not say {words:?}");
    Ok(())
}

/// Packs busybox and the script into the archive a kernel starts from.
pub(super) fn initramfs(tree: &Tree, work: &Path, init: &str) -> Result<PathBuf> {
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
