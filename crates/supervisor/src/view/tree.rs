//! A tree of files as it shall appear to the client, held in memory until it is mounted.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::nodes::Planned;
use super::{Node, PowerControl};

/// What becomes of the host's own entries in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Host {
    /// They stay, but for those of the same name.
    Kept,
    /// They are not seen.
    Hidden,
}

/// A directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dir {
    pub(super) host: Host,
    pub(super) entries: BTreeMap<String, Entry>,
}

/// What a name in a directory stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Dir(Dir),
    File(File),
    Link(String),
    Node {
        node: Node,
        mode: u32,
        /// Its device number, where Linux has a device node there.
        number: Option<(u32, u32)>,
    },
    /// Nothing, whatever the host has.
    Absent,
    /// The host's directory of this path, with everything mounted below it.
    Moved(PathBuf),
    /// The host's directory in whose place the one with this entry stands, with everything mounted below it.
    Whole,
}

/// A regular file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File {
    /// Permissions. The file system is mounted read-only all the same: writes are the supervisor's to answer.
    pub(super) mode: u32,
    pub(super) bytes: Vec<u8>,
    /// Its size, where that is more than there are bytes.
    pub(super) size: u64,
    /// What opening it means to the supervisor: a [`Node::Attribute`], numbered later, if Linux lets root write it.
    pub(super) node: Option<Node>,
}

impl Dir {
    pub(super) const fn new(host: Host) -> Self {
        Self { host, entries: BTreeMap::new() }
    }

    /// The `power` directory of a device.
    pub(super) fn power(&mut self, control: PowerControl) {
        let power = self.dir("power");
        power.writable("control", control.text());
        power.attribute("runtime_status", "active\n");
        power.attribute("runtime_active_time", "0\n");
        power.attribute("runtime_suspended_time", "0\n");
    }

    /// The directory `path` below this one, made where it is missing. What it makes hides the host's entries.
    ///
    /// # Panics
    ///
    /// If something else than a directory stands in the way: the plan contradicts itself.
    pub(super) fn dir(&mut self, path: &str) -> &mut Self {
        let mut dir = self;
        for name in path.split('/') {
            let entry = dir
                .entries
                .entry(name.to_owned())
                .or_insert_with(|| Entry::Dir(Self::new(Host::Hidden)));
            dir = match entry {
                Entry::Dir(dir) => dir,
                other => panic!("{name} in {path} is a directory, not {other:?}"),
            };
        }
        dir
    }

    /// The directory `path` below this one, made where it is missing; along the way the host's entries stay.
    pub(super) fn kept(&mut self, path: &str) -> &mut Self {
        let mut dir = self;
        for name in path.split('/') {
            dir = dir.dir(name);
            dir.host = Host::Kept;
        }
        dir
    }

    /// An attribute that can only be read.
    pub(super) fn attribute(&mut self, name: &str, text: impl Into<Vec<u8>>) {
        self.file(name, File { mode: 0o444, bytes: text.into(), size: 0, node: None });
    }

    /// An attribute that Linux lets root write too.
    pub(super) fn writable(&mut self, name: &str, text: impl Into<Vec<u8>>) {
        let node = Some(Node::Attribute(0));
        self.file(name, File { mode: 0o644, bytes: text.into(), size: 0, node });
    }

    /// An attribute that Linux lets root write and nobody read.
    pub(super) fn write_only(&mut self, name: &str) {
        self.file(
            name,
            File { mode: 0o200, bytes: Vec::new(), size: 0, node: Some(Node::Attribute(0)) },
        );
    }

    /// A BAR as a file of `size` bytes.
    pub(super) fn resource(&mut self, name: &str, bar: u32, size: u64) {
        let node = Some(Node::Resource(bar));
        self.file(name, File { mode: 0o600, bytes: Vec::new(), size, node });
    }

    /// A module parameter, whose text the supervisor makes at each open.
    pub(super) fn parameter(&mut self, name: &str, number: u32) {
        let node = Some(Node::Parameter(number));
        self.file(name, File { mode: 0o644, bytes: Vec::new(), size: 0, node });
    }

    /// The configuration space of a function.
    pub(super) fn configuration(&mut self, name: &str, bytes: Vec<u8>) {
        self.file(name, File { mode: 0o644, bytes, size: 0, node: Some(Node::Config(0)) });
    }

    fn file(&mut self, name: &str, file: File) {
        self.insert(name, Entry::File(file));
    }

    /// A symbolic link.
    pub(super) fn link(&mut self, name: &str, target: impl Into<String>) {
        self.insert(name, Entry::Link(target.into()));
    }

    /// A device node.
    pub(super) fn node(&mut self, name: &str, node: Node, mode: u32, number: Option<(u32, u32)>) {
        self.insert(name, Entry::Node { node, mode, number });
    }

    /// Every device node that has a number; this directory is found at `path`.
    pub(super) fn device_nodes(&self, path: &str) -> Vec<Planned> {
        let below = |(name, entry): (&String, &Entry)| {
            let path = format!("{path}/{name}");
            match *entry {
                Entry::Dir(ref dir) => dir.device_nodes(&path),
                Entry::Node { node, mode, number: Some(number) } => {
                    vec![Planned { path, node, mode, number }]
                }
                _ => Vec::new(),
            }
        };
        self.entries.iter().flat_map(below).collect()
    }

    /// The host's directory in whose place this one stands; only where a mount is made, not further down.
    pub(super) fn whole(&mut self, name: &str) {
        self.insert(name, Entry::Whole);
    }

    /// Numbers the attributes that Linux lets root write, and returns their paths in that order.
    pub(super) fn number(&mut self, path: &str, paths: &mut Vec<String>) {
        for (name, entry) in &mut self.entries {
            let path = format!("{path}/{name}");
            match entry {
                Entry::Dir(dir) => dir.number(&path, paths),
                Entry::File(File {
                    node: Some(Node::Attribute(number) | Node::Config(number)),
                    ..
                }) => {
                    *number = u32::try_from(paths.len()).expect("a plan has fewer files than that");
                    paths.push(path);
                }
                _ => {}
            }
        }
    }

    fn insert(&mut self, name: &str, entry: Entry) {
        let old = self.entries.insert(name.to_owned(), entry);
        assert!(old.is_none(), "{name} is planned once");
    }
}
