//! Programs the tasks need: looked for, and installed when missing, after saying so.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::process;
use crate::workspace::Workspace;

/// A program and the Debian package it is in.
#[derive(Debug)]
pub(crate) struct Program {
    name: &'static str,
    package: &'static str,
}

/// The C compiler.
pub(crate) const GCC: Program = Program { name: "gcc", package: "gcc" };
/// What builds a kernel.
pub(crate) const MAKE: Program = Program { name: "make", package: "make" };
/// Its configuration is parsed with these.
pub(crate) const FLEX: Program = Program { name: "flex", package: "flex" };
pub(crate) const BISON: Program = Program { name: "bison", package: "bison" };
/// Its timer constants are made with this.
pub(crate) const BC: Program = Program { name: "bc", package: "bc" };
/// Its sources are packed with this.
pub(crate) const XZ: Program = Program { name: "xz", package: "xz-utils" };
/// QEMU's image tool, the client of the demo.
pub(crate) const QEMU_IMG: Program = Program { name: "qemu-img", package: "qemu-utils" };
/// QEMU's image shell.
pub(crate) const QEMU_IO: Program = Program { name: "qemu-io", package: "qemu-utils" };

/// The system calls of a program, for the tests of durability.
pub(crate) const STRACE: Program = Program { name: "strace", package: "strace" };

/// What makes a system of Debian's in a folder.
pub(crate) const DEBOOTSTRAP: Program = Program { name: "debootstrap", package: "debootstrap" };

/// What makes Debian packages.
pub(crate) const DPKG_DEB: Program = Program { name: "dpkg-deb", package: "dpkg" };

/// Installs the packages of missing programs with apt-get, if this is root on a Debian; otherwise
/// says what to install.
pub(crate) fn ensure_programs(programs: &[&Program]) -> Result<()> {
    let absent = programs.iter().filter(|program| !found(&search_path(), program.name));
    let mut packages: Vec<&str> = absent.map(|program| program.package).collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    install(&packages)
}

fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if !is_root()? || !found(&search_path(), "apt-get") {
        bail!("missing: {list}. Install it first, on Debian with: apt-get install {list}");
    }
    println!("installing with apt-get, because it is missing: {list}");
    process::run(Command::new("apt-get").args(["-q", "update"]))?;
    let mut install = Command::new("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive");
    process::run(install.args(["-q", "-y", "--no-install-recommends", "install"]).args(packages))
}

/// Installs the package of a missing C header, as [`ensure_programs`] does that of a program.
pub(crate) fn ensure_header(path: &str, package: &'static str) -> Result<()> {
    if Path::new(path).is_file() { Ok(()) } else { install(&[package]) }
}

/// Installs a cargo subcommand in the user's cache if it is not there yet.
pub(crate) fn ensure_subcommand(workspace: &Workspace, name: &str) -> Result<()> {
    if has_subcommand(workspace, name) {
        return Ok(());
    }
    let root = workspace.tools();
    println!("installing {name} with cargo into {}, because it is missing", root.display());
    let mut install = workspace.cargo();
    process::run(install.args(["install", "--quiet", "--locked", "--root"]).arg(&root).arg(name))
}

/// Whether a cargo subcommand can be run.
pub(crate) fn has_subcommand(workspace: &Workspace, name: &str) -> bool {
    let mut folders = search_path();
    folders.push(workspace.tools().join("bin"));
    found(&folders, name)
}

fn search_path() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).collect()
}

fn found(folders: &[PathBuf], name: &str) -> bool {
    folders.iter().any(|folder| Path::is_file(&folder.join(name)))
}

/// Whether this user is root.
pub(crate) fn is_root() -> Result<bool> {
    Ok(process::output(Command::new("id").arg("-u"))?.trim() == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_on_the_search_path_only() {
        assert!(found(&search_path(), "sh"));
        assert!(!found(&search_path(), "no-such-program"));
        assert!(!found(&[], "sh"));
    }

    #[test]
    fn nothing_is_installed_when_nothing_is_missing() {
        const SH: Program = Program { name: "sh", package: "no-such-package" };
        ensure_programs(&[&SH]).expect("sh is there");
    }
}
