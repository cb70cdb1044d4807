//! A view that changes while programs run in it.
//!
//! [`Live::show`] takes a new plan of the same machine and makes what differs from the last one: entries of /sys are made
//! and removed on the memory file systems that cover the host's directories, through mounts of them that nobody else has
//! ([`Cover`]); nodes in /dev/vfio come and go in the directory of the run's own file system, or, without one, on such a memory
//! file system too. Every process sees it at once, in whatever mount namespace, since no mount is made or taken away.
//!
//! Root of a run can make these file systems writable for itself. So no link is followed here, no step leads out of a
//! file system, and what cannot be done because of what somebody put in its way is left, and returned.
//!
//! A directory that the host has and that had not to be covered at the start stays as it is: what comes later in it is not
//! shown. There is none among those that devices of the domains of the start need.
//!
//! Lock order: `Live::shown` -> `Live::identities`, `Live::attributes`. It is held while the memory file systems are changed,
//! which waits for nobody.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use ioasis_sys::because;
use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};

use super::mounts::{self, Cover};
use super::nodes::{Changed, DeviceNodes, Planned};
use super::tree::{Dir, Entry, File};
use super::{Device, HostEntries, Identity, Node, Options, View};

/// The view as programs see it now.
#[derive(Debug)]
pub(crate) struct Live {
    /// Immutable.
    covers: Vec<Cover>,
    shown: Mutex<Dir>,
    /// The files on memory file systems that are known, by device and inode.
    identities: Mutex<HashMap<(u64, u64), Node>>,
    /// The paths of [`Node::Attribute`]s, by number.
    attributes: Mutex<Vec<String>>,
}

/// What a change of the view leaves to be done.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    /// Names in directories of nodes that the kernel is to forget.
    pub(crate) names: Vec<Changed>,
    /// Paths that could not be made or removed.
    pub(crate) lost: Vec<String>,
}

/// Only what is found by names, within one file system.
const WITHIN: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);

impl Live {
    /// The view as it was entered.
    pub(crate) fn new(view: &View, nodes: &[Identity], covers: Vec<Cover>) -> Self {
        let identity = |known: &Identity| ((known.dev, known.ino), known.node);
        Self {
            covers,
            shown: Mutex::new(view.own.clone()),
            identities: Mutex::new(nodes.iter().map(identity).collect()),
            attributes: Mutex::new(view.attributes.clone()),
        }
    }

    /// What the file with this device and inode stands for.
    pub(crate) fn node(&self, identity: (u64, u64)) -> Option<Node> {
        self.identities.lock().get(&identity).copied()
    }

    /// Whether files that Linux lets root write lie on the file system `dev`.
    pub(crate) fn has_attributes(&self, dev: u64) -> bool {
        let identities = self.identities.lock();
        let mut all = identities.iter();
        all.any(|(&(of, _), node)| of == dev && matches!(node, Node::Attribute(_)))
    }

    /// The path of the file known as [`Node::Attribute`] `number`.
    pub(crate) fn attribute(&self, number: u32) -> Option<String> {
        self.attributes.lock().get(usize::try_from(number).ok()?).cloned()
    }

    /// The text of the file at `path`.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        let shown = self.shown.lock();
        let (directory, name) = path.strip_prefix('/')?.rsplit_once('/')?;
        let mut dir = &*shown;
        for name in directory.split('/') {
            let Entry::Dir(below) = dir.entries.get(name)? else { return None };
            dir = below;
        }
        let Entry::File(file) = dir.entries.get(name)? else { return None };
        String::from_utf8(file.bytes.clone()).ok()
    }

    /// Lets programs see these devices.
    ///
    /// # Errors
    ///
    /// What `machine` and [`View::plan`] say; nothing has changed then.
    pub(crate) fn show(
        &self,
        machine: impl FnOnce() -> Result<(Vec<Device>, Options)>,
        nodes: Option<&DeviceNodes>,
    ) -> Result<Shown> {
        let mut shown = self.shown.lock();
        // Looked at under the lock, so that whoever comes last shows the last state.
        let (devices, options) = machine()?;
        let View { own, .. } = View::of(&devices, &options, HostEntries::Ignored)?;
        let nodes = nodes.filter(|nodes| !nodes.is_empty());
        let mut change = Change { live: self, nodes, shown: Shown::default() };
        change.directory("", (&shown, &own), None);
        *shown = own;
        Ok(change.shown)
    }
}

/// The difference of two plans, as it is made.
struct Change<'a> {
    live: &'a Live,
    /// Where nodes that have a number are files.
    nodes: Option<&'a DeviceNodes>,
    shown: Shown,
}

impl Change<'_> {
    /// The directory `path` becomes `new`. `above` is the directory that it lies in, if that can be changed.
    fn directory(&mut self, path: &str, (old, new): (&Dir, &Dir), above: Option<&OwnedFd>) {
        if old == new {
            return;
        }
        let dir = self.open(path, above);
        for (name, entry) in &old.entries {
            let goes = match new.entries.get(name) {
                None => true,
                Some(then) => is_replaced(entry, then),
            };
            if goes {
                let path = format!("{path}/{name}");
                self.take(&path, name, entry, dir.as_ref());
            }
        }
        for (name, entry) in &new.entries {
            let path = format!("{path}/{name}");
            match (old.entries.get(name), entry) {
                (Some(Entry::Dir(old)), Entry::Dir(new)) => {
                    self.directory(&path, (old, new), dir.as_ref());
                }
                (Some(Entry::File(old)), Entry::File(new)) if old.mode == new.mode => {
                    let same = (&old.bytes, old.size) == (&new.bytes, new.size);
                    if !same {
                        self.rewrite(&path, name, new, dir.as_ref());
                    }
                }
                (Some(before), now) if !is_replaced(before, now) => {}
                _ => self.put(&path, name, entry, dir.as_ref()),
            }
        }
    }

    /// The directory `path`, where it can be changed.
    fn open(&self, path: &str, above: Option<&OwnedFd>) -> Option<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let cover = self.live.covers.iter().find(|cover| cover.path == path);
        if let Some(cover) = cover {
            return rustix::fs::openat2(&cover.root, ".", flags, Mode::empty(), WITHIN).ok();
        }
        let (_, name) = path.rsplit_once('/')?;
        rustix::fs::openat2(above?, name, flags, Mode::empty(), WITHIN).ok()
    }

    /// Takes away what the view had at `path`.
    fn take(&mut self, path: &str, name: &str, entry: &Entry, dir: Option<&OwnedFd>) {
        match entry {
            Entry::Dir(below) => {
                let inside = self.open(path, dir);
                for (name, entry) in &below.entries {
                    self.take(&format!("{path}/{name}"), name, entry, inside.as_ref());
                }
                let gone = removed(dir, name, AtFlags::REMOVEDIR);
                self.note(path, gone);
            }
            Entry::Node { .. } if self.is_file_of_run(path) => {
                let gone = self.nodes.and_then(|nodes| nodes.remove(path));
                self.shown.names.extend(gone);
            }
            Entry::File(_) | Entry::Link(_) | Entry::Node { .. } => {
                self.forget(name, dir);
                let gone = removed(dir, name, AtFlags::empty());
                self.note(path, gone);
            }
            Entry::Absent | Entry::Moved(_) | Entry::Whole => {}
        }
    }

    /// Makes what the view is to have at `path`.
    fn put(&mut self, path: &str, name: &str, entry: &Entry, dir: Option<&OwnedFd>) {
        let there = dir.ok_or(Error::new(Errno::EROFS, "the directory is the host's"));
        let made = match entry {
            Entry::Dir(below) => {
                let made = there.and_then(|dir| mounts::make_directory(dir, name));
                let inside = self.open(path, dir);
                for (name, entry) in &below.entries {
                    self.put(&format!("{path}/{name}"), name, entry, inside.as_ref());
                }
                made
            }
            Entry::Node { node, mode, number: Some(number) } if self.is_file_of_run(path) => {
                let (path, node, mode, number) = (path.to_owned(), *node, *mode, *number);
                let planned = Planned { path, node, mode, number };
                self.nodes.into_iter().for_each(|nodes| nodes.add(&planned));
                Ok(())
            }
            Entry::Node { node, mode, .. } => there.and_then(|dir| {
                ioasis_sys::mount::placeholder(dir, name, *mode)?;
                self.know(name, dir, *node)
            }),
            Entry::File(file) => there.and_then(|dir| self.file(path, name, file, dir)),
            Entry::Link(target) => there.and_then(|dir| {
                rustix::fs::symlinkat(target.as_str(), dir, name)
                    .map_err(because("a link of the view cannot be made"))
            }),
            Entry::Absent | Entry::Moved(_) | Entry::Whole => Ok(()),
        };
        self.note(path, made);
    }

    fn file(&self, path: &str, name: &str, file: &File, dir: &OwnedFd) -> Result<()> {
        let mut file = file.clone();
        if let Some(Node::Attribute(number) | Node::Config(number)) = &mut file.node {
            let mut attributes = self.live.attributes.lock();
            let known = attributes.iter().position(|known| known == path);
            let at = known.unwrap_or(attributes.len());
            if known.is_none() {
                attributes.push(path.to_owned());
            }
            *number = u32::try_from(at).expect("a path is in the list once");
        }
        if let Some(made) = mounts::make_file(dir, name, &file)? {
            self.live.identities.lock().insert((made.dev, made.ino), made.node);
        }
        Ok(())
    }

    /// Another text in the same file, which who has it open reads from now on. Waits for nobody.
    fn rewrite(&mut self, path: &str, name: &str, file: &File, dir: Option<&OwnedFd>) {
        let there = dir.ok_or(Error::new(Errno::EROFS, "the directory is the host's"));
        let written = there.and_then(|dir| {
            let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NONBLOCK;
            match rustix::fs::openat2(dir, name, flags, Mode::empty(), WITHIN) {
                Ok(opened) => mounts::write_file(&opened, file),
                // A program has a lease on it (F_SETLEASE) and would make us wait: it keeps what it has.
                Err(rustix::io::Errno::AGAIN) => {
                    self.forget(name, Some(dir));
                    rustix::fs::unlinkat(dir, name, AtFlags::empty())
                        .map_err(because("a file of the view cannot be replaced"))?;
                    self.file(path, name, file, dir)
                }
                Err(raw) => Err(because("a file of the view cannot be opened")(raw)),
            }
        });
        self.note(path, written);
    }

    /// Whether a node that lies at `path` is a file of the run's own file system.
    fn is_file_of_run(&self, path: &str) -> bool {
        path.starts_with("/dev/vfio/") && self.nodes.is_some()
    }

    fn know(&self, name: &str, dir: &OwnedFd, node: Node) -> Result<()> {
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(because("a node of the view cannot be looked at"))?;
        self.live.identities.lock().insert((stat.st_dev, stat.st_ino), node);
        Ok(())
    }

    /// The file `name`, which is about to go, stands for nothing: its inode may be another file's later.
    fn forget(&self, name: &str, dir: Option<&OwnedFd>) {
        let stat = dir.map(|dir| rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW));
        if let Some(Ok(stat)) = stat {
            self.live.identities.lock().remove(&(stat.st_dev, stat.st_ino));
        }
    }

    fn note(&mut self, path: &str, done: Result<()>) {
        if done.is_err() {
            self.shown.lost.push(path.to_owned());
        }
    }
}

/// Whether what was there is taken away before what is to be there is made.
fn is_replaced(before: &Entry, now: &Entry) -> bool {
    match (before, now) {
        (Entry::Dir(_), Entry::Dir(_)) => false,
        (Entry::File(before), Entry::File(now)) => before.mode != now.mode,
        (Entry::Absent | Entry::Moved(_) | Entry::Whole, _)
        | (_, Entry::Absent | Entry::Moved(_) | Entry::Whole) => false,
        _ => before != now,
    }
}

fn removed(dir: Option<impl AsFd>, name: &str, flags: AtFlags) -> Result<()> {
    let dir = dir.ok_or(Error::new(Errno::EROFS, "the directory is the host's"))?;
    match rustix::fs::unlinkat(dir, name, flags) {
        Err(rustix::io::Errno::NOENT) => Ok(()),
        done => done.map_err(because("an entry of the view cannot be removed")),
    }
}

#[cfg(test)]
mod tests;
