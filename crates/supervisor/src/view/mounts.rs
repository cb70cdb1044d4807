//! From the planned tree to mounts.
//!
//! A directory the host has already, and whose planned entries are all directories that it has too, stays as it is.
//! Any other is covered by a memory file system that holds the planned entries, with the host's own entries bound
//! (or, if links, copied) beside them where they are kept. Binding keeps them exact: writes, ioctls and new files
//! below them reach the real thing. Each such memory file system is kept open by a second mount, which is nowhere and can be
//! written: what comes and goes later is made and removed there, and every mount namespace sees it ([`Live`](super::Live)).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use ioasis_sys::fuse::{self, Connection, Mounted, Users};
use ioasis_sys::mount::{self, Tmpfs};
use ioasis_sys::{because, namespace};
use ioasis_uapi::{Errno, Error, Result};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{AtFlags, CWD, Dir as Listing, FileType, Mode, OFlags, StatxFlags};

use super::tree::{Dir, Entry, File, Host};
use super::{DeviceNodes, Entered, Identity, Node, View};

/// More than every planned file needs, less than a client could use to fill memory.
const LIMITS: Tmpfs = Tmpfs { size: 64 << 20, inodes: 65_536, mode: 0o755 };

/// Files are at most the BARs and descriptors of one run; the rest of the limit is for their number.
const FILES: u64 = 65_536;

impl View {
    /// Enters a mount namespace (and a user namespace, unless privileged), mounts the view there and gives up the
    /// capabilities this took. For a process of one thread, after fork and before its filter and exec.
    ///
    /// # Errors
    ///
    /// What [`namespace::enter`] says when the host forbids it; `ENOENT` without /dev or /sys; the errno of the mount
    /// that failed.
    pub fn enter(&self) -> Result<Entered> {
        let cwd = std::env::current_dir();
        // Outside a user namespace, where that is allowed: for its users and for who answers them alike.
        let outside = fuse::mount(Users::Namespace).ok();
        let namespace = namespace::enter(self.user)?;
        let files =
            mount::detached_tmpfs(Tmpfs { size: self.files_size, inodes: FILES, mode: 0o700 })?;
        let for_everybody = outside.is_some() || namespace.has_one_user();
        // A run does without where it is refused: `ioasis doctor` says why.
        let fuse = outside.or_else(|| fuse::mount(Users::Own).ok());
        let umask = rustix::process::umask(Mode::empty());
        let made = match &fuse {
            Some(fuse) if for_everybody => {
                let nodes = self.device_nodes(fuse.owner);
                let devices = Devices { root: &fuse.root, nodes: &nodes };
                served(fuse, &nodes, |served| Work::all(&self.root, served.then_some(devices)))
            }
            _ => Work::all(&self.root, None),
        };
        rustix::process::umask(umask);
        // The same path again: what it leads to may be covered now. Where it led nowhere, it still does.
        let _ = cwd.and_then(std::env::set_current_dir);
        let Made { nodes, lost, covers } = made?;
        self.hidden.iter().try_for_each(|path| hide(path))?;
        namespace.drop_capabilities()?;
        Ok(Entered { nodes, files, fuse, covers, lost })
    }
}

/// A memory file system of the view.
#[derive(Debug)]
pub(crate) struct Cover {
    /// The directory that it covers.
    pub(crate) path: String,
    /// Its root, on a mount that can be written.
    pub(crate) root: OwnedFd,
}

/// What was made.
struct Made {
    nodes: Vec<Identity>,
    lost: Vec<String>,
    covers: Vec<Cover>,
}

/// Answers for `nodes` in a thread of its own as long as there is somebody to ask.
pub(super) fn serve(device: OwnedFd, nodes: DeviceNodes) -> Result<()> {
    let connection = Connection::new(device);
    let serve = move || {
        let wait = || {
            let _ = rustix::event::poll(&mut [PollFd::new(&connection, PollFlags::IN)], None);
            false
        };
        let _ = nodes.serve(&connection, wait);
    };
    let thread = std::thread::Builder::new().spawn(serve);
    thread.map(drop).map_err(|_| Error::new(Errno::EAGAIN, "no thread to serve nodes with"))
}

/// Covers a directory, which is there, with an empty one that stays so.
fn hide(path: &Path) -> Result<()> {
    mount::tmpfs(path, Tmpfs { size: 4096, inodes: 1, mode: 0o700 })?;
    mount::read_only(path)
}

/// Does `act` while a thread answers for `nodes`; it is told whether one does.
fn served<T>(fuse: &Mounted, nodes: &DeviceNodes, act: impl FnOnce(bool) -> T) -> T {
    let (Ok(device), Ok((over, end))) = (fuse.device.try_clone(), std::io::pipe()) else {
        return act(false);
    };
    let connection = Connection::new(device);
    let is_over = || {
        let mut polled =
            [PollFd::new(&connection, PollFlags::IN), PollFd::new(&over, PollFlags::IN)];
        let _ = rustix::event::poll(&mut polled, None);
        !polled[1].revents().is_empty()
    };
    std::thread::scope(|scope| {
        let end = end;
        let serve = || {
            // Where it fails, the kernel fails what is asked.
            let _ = nodes.serve(&connection, is_over);
        };
        let server = std::thread::Builder::new().spawn_scoped(scope, serve);
        let done = act(server.is_ok());
        drop(end);
        done
    })
}

/// The device nodes as files, while they are bound into the view.
#[derive(Clone, Copy)]
struct Devices<'a> {
    /// The directory that they are in, mounted nowhere.
    root: &'a OwnedFd,
    nodes: &'a DeviceNodes,
}

/// Where they are mounted meanwhile, below the directory whose nodes they become: a mount that is nowhere cannot be bound
/// from before Linux 6.15.
const MEANWHILE: &str = ".ioasis-nodes";

/// Why a step fails that only a host out of memory, or short of mounts, can fail.
const FILL: &str = "the view cannot be filled";

/// A directory of the host that a mount covers.
#[derive(Clone, Copy)]
struct Covered<'a> {
    path: &'a Path,
    original: &'a OwnedFd,
    /// Where its device nodes are files.
    source: Option<&'a Path>,
}

struct Work<'a> {
    made: Made,
    devices: Option<Devices<'a>>,
}

impl<'a> Work<'a> {
    /// Makes everything.
    fn all(root: &Dir, devices: Option<Devices<'a>>) -> Result<Made> {
        let made = Made { nodes: Vec::new(), lost: Vec::new(), covers: Vec::new() };
        let mut work = Self { made, devices };
        work.root(root)?;
        Ok(work.made)
    }

    fn root(&mut self, root: &Dir) -> Result<()> {
        for (name, entry) in &root.entries {
            let Entry::Dir(dir) = entry else { unreachable!("the root holds /dev and /sys") };
            let path = Path::new("/").join(name);
            if !is_directory(&path) {
                return Err(Error::new(
                    Errno::ENOENT,
                    "there is no /dev or no /sys to show devices in",
                ));
            }
            self.settle(&path, dir)?;
        }
        Ok(())
    }

    /// Leaves the host's directory `path` in place if only directories below it change, else covers it.
    fn settle(&mut self, path: &Path, dir: &Dir) -> Result<()> {
        let stays = |(name, entry): (&String, &Entry)| {
            matches!(entry, Entry::Dir(_)) && is_directory(&path.join(name))
        };
        if dir.host == Host::Hidden || !dir.entries.iter().all(stays) {
            return self.cover(path, dir);
        }
        for (name, entry) in &dir.entries {
            if let Entry::Dir(dir) = entry {
                self.settle(&path.join(name), dir)?;
            }
        }
        Ok(())
    }

    fn cover(&mut self, path: &Path, dir: &Dir) -> Result<()> {
        let original =
            open(CWD, path).map_err(because("a directory of /dev or /sys cannot be opened"))?;
        // A copy made after the mount would have the mount in it.
        let whole = dir.entries.iter().find(|(_, entry)| matches!(entry, Entry::Whole));
        let whole = whole
            .map(|(name, _)| Ok((path.join(name), mount::clone_recursive(&original)?)))
            .transpose()?;
        mount::tmpfs(path, LIMITS)?;
        let target = open(CWD, path).map_err(because("a mount just made cannot be opened"))?;
        // Before anything is mounted below: what is the host's cannot be copied alone.
        let root = mount::clone_alone(&target)?;
        self.made.covers.push(Cover { path: path.display().to_string(), root });
        let covered = Covered { path, original: &original, source: None };
        let source = self.devices.filter(|_| !dir.device_nodes("").is_empty());
        let source = source.and_then(|devices| place(&target, path, devices).ok());
        let covered = Covered { source: source.as_deref(), ..covered };
        let filled = self.fill(&target, path, dir, Some(&original), covered);
        if let Some(source) = &source {
            mount::detach(source)?;
            rustix::fs::unlinkat(&target, MEANWHILE, AtFlags::REMOVEDIR).map_err(because(FILL))?;
        }
        filled?;
        if let Some((place, tree)) = whole {
            mount::attach(tree, &place)?;
        }
        // Root may write whatever its mode says; on /dev it may do so on Linux too.
        if path.starts_with("/sys") { mount::read_only(path) } else { Ok(()) }
    }

    /// Fills the empty directory `target`, found at `path`, with `dir` and what it keeps of `original`.
    fn fill(
        &mut self,
        target: &OwnedFd,
        path: &Path,
        dir: &Dir,
        original: Option<&OwnedFd>,
        covered: Covered<'_>,
    ) -> Result<()> {
        if let (Host::Kept, Some(original)) = (dir.host, original) {
            self.keep(target, path, dir, original)?;
        }
        for (name, entry) in &dir.entries {
            match entry {
                Entry::Dir(below) => {
                    make_directory(target, name)?;
                    if self.directory(&path.join(name), covered.source) {
                        continue;
                    }
                    let target = open(target, Path::new(name)).map_err(because(FILL))?;
                    let original =
                        original.and_then(|original| open(original, Path::new(name)).ok());
                    self.fill(&target, &path.join(name), below, original.as_ref(), covered)?;
                }
                Entry::File(file) => self.made.nodes.extend(make_file(target, name, file)?),
                Entry::Link(link) => rustix::fs::symlinkat(link.as_str(), target, name.as_str())
                    .map_err(because(FILL))?,
                Entry::Node { node, mode, .. } => {
                    self.node(target, &path.join(name), (*node, *mode), covered.source)?;
                }
                Entry::Absent => {}
                Entry::Moved(from) => self.moved(target, &path.join(name), from, covered)?,
                Entry::Whole => make_directory(target, name)?,
            }
        }
        Ok(())
    }

    /// Mounts the directory that is to be at `path`, if that is one of device nodes; whether it is there.
    fn directory(&mut self, path: &Path, source: Option<&Path>) -> bool {
        let (Some(devices), Some(source)) = (self.devices, source) else { return false };
        let inode = path.to_str().and_then(|path| devices.nodes.inode_at(path));
        let Some(inode) = inode else { return false };
        if mount::bind_recursive(&source.join(inode.to_string()), path).is_err() {
            return false;
        }
        let look = |path: &str| {
            // Asked once for the time of birth, which it has not, the file system is not asked by whoever wants it later; and
            // the name is known when there is no supervisor any more.
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            let _ = rustix::fs::statx(CWD, path, flags, StatxFlags::BTIME);
            rustix::fs::lstat(path).ok().map(|stat| (stat.st_dev, stat.st_ino))
        };
        let all = devices.nodes.below(&path.display().to_string());
        let known = all.into_iter().filter_map(|(path, node)| Some((look(&path)?, node?)));
        let known = known.map(|((dev, ino), node)| Identity { dev, ino, node });
        self.made.nodes.extend(known);
        true
    }

    /// Makes a node at `path`, whose parent is `target`. A file bound over it leaves what is covered for nobody but who may
    /// override modes: it shows through a bind mount of its directory alone, and keeps the mode it was made with.
    fn node(
        &mut self,
        target: &OwnedFd,
        path: &Path,
        (node, mode): (Node, u32),
        source: Option<&Path>,
    ) -> Result<()> {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Ok(()) };
        let identify = || {
            rustix::fs::statat(target, name, AtFlags::SYMLINK_NOFOLLOW)
                .map(|stat| Identity { dev: stat.st_dev, ino: stat.st_ino, node })
                .map_err(because(FILL))
        };
        mount::placeholder(target, name, 0)?;
        self.made.nodes.push(identify()?);
        let inode = self.devices.and_then(|devices| devices.nodes.inode(node));
        let bound = source.zip(inode).is_some_and(|(source, inode)| {
            mount::bind_recursive(&source.join(inode.to_string()), path).is_ok()
        });
        if bound {
            self.made.nodes.push(identify()?);
            // Asked once for the time of birth, which it has not, the file system is not asked by whoever wants it later.
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            let _ = rustix::fs::statx(target, name, flags, StatxFlags::BTIME);
        } else {
            let mode = Mode::from_raw_mode(mode);
            rustix::fs::chmodat(target, name, mode, AtFlags::empty()).map_err(because(FILL))?;
        }
        Ok(())
    }

    /// Binds the host's directory `from` to `path`, whose parent is `target`.
    fn moved(
        &mut self,
        target: &OwnedFd,
        path: &Path,
        from: &Path,
        covered: Covered<'_>,
    ) -> Result<()> {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Ok(()) };
        make_directory(target, name)?;
        // Its absolute path is covered by now.
        rustix::process::fchdir(covered.original).map_err(because(FILL))?;
        let relative = from.strip_prefix(covered.path).unwrap_or(from);
        if mount::bind_recursive(&Path::new(".").join(relative), path).is_err() {
            // Better no entry than one that leads nowhere; it is reported as lost either way.
            let _ = rustix::fs::unlinkat(target, name, AtFlags::REMOVEDIR);
            self.made.lost.push(from.display().to_string());
        }
        Ok(())
    }

    /// Keeps what `original` has and `dir` does not say otherwise about.
    fn keep(&mut self, target: &OwnedFd, path: &Path, dir: &Dir, original: &OwnedFd) -> Result<()> {
        // Sources are named relative to it: its absolute path leads to `target` by now.
        rustix::process::fchdir(original).map_err(because(FILL))?;
        let Ok(listing) = Listing::read_from(original) else {
            self.made.lost.push(path.display().to_string());
            return Ok(());
        };
        for entry in listing.flatten() {
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name == "." || name == ".." || dir.entries.contains_key(name) {
                continue;
            }
            if keep_one(target.as_fd(), path, original.as_fd(), name, entry.file_type()).is_err() {
                self.made.lost.push(path.join(name).display().to_string());
            }
        }
        Ok(())
    }
}

/// Makes a file; by what it is recognised, if it is to be.
pub(super) fn make_file(target: impl AsFd, name: &str, file: &File) -> Result<Option<Identity>> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let made = rustix::fs::openat(target, name, flags, Mode::from_raw_mode(file.mode))
        .map_err(because(FILL))?;
    write_file(&made, file)?;
    let identity = |node| {
        let stat = rustix::fs::fstat(&made).map_err(because(FILL))?;
        Ok(Identity { dev: stat.st_dev, ino: stat.st_ino, node })
    };
    file.node.map(identity).transpose()
}

/// Gives an empty file its content.
pub(super) fn write_file(made: &OwnedFd, file: &File) -> Result<()> {
    let mut rest = file.bytes.as_slice();
    while !rest.is_empty() {
        let written = rustix::io::write(made, rest).map_err(because(FILL))?;
        rest = &rest[written..];
    }
    if file.size > file.bytes.len() as u64 {
        rustix::fs::ftruncate(made, file.size).map_err(because(FILL))?;
    }
    Ok(())
}

/// Mounts the device nodes in the directory `target`, found at `path`.
fn place(target: &OwnedFd, path: &Path, devices: Devices<'_>) -> Result<PathBuf> {
    make_directory(target, MEANWHILE)?;
    let place = path.join(MEANWHILE);
    mount::attach(devices.root, &place).inspect_err(|_| {
        let _ = rustix::fs::unlinkat(target, MEANWHILE, AtFlags::REMOVEDIR);
    })?;
    Ok(place)
}

/// Makes the entry `name` of `original`, which is the current directory, appear in `target`.
fn keep_one(
    target: BorrowedFd<'_>,
    path: &Path,
    original: BorrowedFd<'_>,
    name: &str,
    kind: FileType,
) -> Result<()> {
    match kind {
        FileType::Symlink => {
            let link = rustix::fs::readlinkat(original, name, Vec::new()).map_err(because(FILL))?;
            return rustix::fs::symlinkat(link, target, name).map_err(because(FILL));
        }
        FileType::Directory => make_directory(target, name)?,
        _ => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            rustix::fs::openat(target, name, flags, Mode::from_raw_mode(0o600))
                .map_err(because(FILL))?;
        }
    }
    let relative = PathBuf::from("./").join(name);
    mount::bind_recursive(&relative, &path.join(name)).inspect_err(|_| {
        let flags = if kind == FileType::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        // Better no entry than one that leads nowhere; it is reported as lost either way.
        let _ = rustix::fs::unlinkat(target, name, flags);
    })
}

pub(super) fn make_directory(target: impl AsFd, name: &str) -> Result<()> {
    rustix::fs::mkdirat(target, name, Mode::from_raw_mode(0o755)).map_err(because(FILL))
}

fn open(dir: impl AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, path, flags, Mode::empty())
}

fn is_directory(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
}
