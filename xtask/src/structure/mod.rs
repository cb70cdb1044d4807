//! `cargo xtask structure`: the rules of the house about how the code is laid out, computed from
//! the code.
//!
//! - No circle of modules, by their imports, has more than [`CIRCLE_MAX`] members; no circle joins
//!   two folders of a crate.
//! - Both ends of every row of docs/map.md exist.
//! - No line of comment is wider than [`WIDTH`] columns; rustfmt leaves comments alone.
//!
//! A module is a file, and code that is compiled for tests alone does not count.

mod graph;
mod map;
mod modules;
mod width;

use anyhow::{Result, bail};

use crate::workspace::Workspace;
use graph::Circle;

/// Modules that may import each other in a circle: a type, its parts, and who drives them.
const CIRCLE_MAX: usize = 4;
/// Circles that are older than the rule, by a member of each and how many it may have. They may
/// shrink, and none may come.
const OLDER: [(&str, &str, usize); 9] = [
    ("pci", "model/virtio/net/mod", 6),
    ("supervisor", "serve/mod", 30),
    ("supervisor", "serve/", 8),
    ("supervisor", "view/mod", 9),
    ("supervisor", "memory/mod", 6),
    ("sys", "process/mod", 5),
    ("vfio", "client", 11),
    ("vfio", "file/", 11),
    ("x86", "lib", 6),
];
/// Columns of a line of comment, as rustfmt has it for code.
const WIDTH: usize = 100;

/// Arguments of the task.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Print every circle, however small, with the names that tie it
    #[arg(long)]
    all: bool,
    /// Unpacked sources of Linux 7.3, to check the kernel's ends of docs/map.md too
    #[arg(long, value_name = "DIR")]
    linux: Option<std::path::PathBuf>,
}

/// Runs the task.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let mut faults = Vec::new();
    for krate in modules::crates(&workspace.root)? {
        let modules = modules::read(&krate)?;
        for circle in graph::circles(&modules) {
            let fault = is_fault(&krate, &circle);
            if args.all || fault {
                println!("{}", describe(&krate, &circle));
            }
            if fault {
                faults.push(format!("{}: a circle of {}", krate.name, circle.members.len()));
            }
        }
        for circle in graph::folder_circles(&modules) {
            let fault = is_fault(&krate, &circle) || !is_older(&krate, &circle);
            if args.all || fault {
                println!("{}", describe(&krate, &circle));
            }
            if fault {
                faults.push(format!("{}: a circle of folders", krate.name));
            }
        }
    }
    for line in width::too_wide(&workspace.root, WIDTH)? {
        println!("{line}: a comment wider than {WIDTH} columns");
        faults.push(line);
    }
    for fault in map::faults(&workspace.root, args.linux.as_deref())? {
        println!("{fault}");
        faults.push(fault);
    }
    match faults.len() {
        0 => Ok(()),
        count => bail!("{count} faults in the structure"),
    }
}

fn is_older(krate: &modules::Crate, circle: &Circle) -> bool {
    OLDER.iter().any(|&(name, member, count)| {
        let has = circle.members.iter().any(|other| other == member);
        krate.name == name && has && circle.members.len() <= count
    })
}

/// Whether a circle is too large, and not one that may stay.
fn is_fault(krate: &modules::Crate, circle: &Circle) -> bool {
    circle.members.len() > CIRCLE_MAX && !is_older(krate, circle)
}

fn describe(krate: &modules::Crate, circle: &Circle) -> String {
    use std::fmt::Write as _;
    let mut text = format!("{}: {}", krate.name, circle.members.join(", "));
    for (from, to, names) in &circle.arrows {
        let _never_fails = write!(text, "\n  {from} -> {to}: {}", names.join(", "));
    }
    text
}

/// Whether the code at `root` keeps the rules; for a test beside the command.
#[cfg(test)]
fn is_sound(root: &std::path::Path) -> Result<bool> {
    for krate in modules::crates(root)? {
        let modules = modules::read(&krate)?;
        let folders = graph::folder_circles(&modules);
        let fault = |circle: &Circle| is_fault(&krate, circle);
        if graph::circles(&modules).iter().any(fault)
            || folders.iter().any(|circle| !is_older(&krate, circle))
        {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
