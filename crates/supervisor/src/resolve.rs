//! What a client's path leads to: the file that its own open would find, from its root, working directory or a
//! descriptor of its, with /proc/self meaning the client.
//!
//! One openat2(2) resolves nearly every path, from names the kernel has cached, so that a slow file system cannot stop
//! the receiver. What it cannot decide (a link through /proc, `..` above a directory) is walked name by name.
//!
//! DIFFERS: a link to /proc/self/fd/N that lies elsewhere than in /dev is not recognised when this process has no
//! descriptor N: opening it gives another descriptor of the same open file.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags, Stat};
use rustix::io::Errno;

/// Symbolic links a path may have (`MAXSYMLINKS`, linux/namei.h).
const MAX_LINKS: u32 = 40;
/// Inode number of the root of a procfs (`PROC_ROOT_INO`, linux/proc_fs.h).
const PROC_ROOT: u64 = 1;

/// Who resolves a path, and from where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct From {
    /// The thread.
    pub(crate) tid: u32,
    /// Its process.
    pub(crate) pid: u32,
    /// The descriptor a relative path starts from; negative for the working directory (`AT_FDCWD`).
    pub(crate) dirfd: i32,
}

/// Whether a link that the whole path leads to is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Last {
    /// It is.
    Follow,
    /// It is what was looked for (`O_NOFOLLOW`).
    Keep,
}

/// Whether resolving may wait for a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// It may.
    Allowed,
    /// Only names in the kernel's cache are used.
    Forbidden,
}

/// Where a path leads.
#[derive(Debug)]
pub(crate) enum Found {
    /// To this file (an `O_PATH` descriptor).
    File(OwnedFd),
    /// Nowhere, or to nothing that could be ours: the kernel finds the right errno.
    Nothing,
    /// It cannot be said without waiting.
    WouldWait,
}

/// Resolves `path` as `from` would.
pub(crate) fn resolve(from: From, path: &[u8], last: Last, wait: Wait) -> Found {
    match fast(from, path, last, wait) {
        // The kernel took /proc/self for this process.
        Ok(file) if in_procfs(&file) => walk(from, path, last, wait),
        Ok(file) => Found::File(file),
        Err(Errno::AGAIN) if wait == Wait::Forbidden => Found::WouldWait,
        // A link of procfs, or `..` or a link out of the directory; or `..` while somebody renames or mounts anything.
        Err(Errno::XDEV | Errno::LOOP | Errno::AGAIN) => walk(from, path, last, wait),
        // Our own /proc/self may lack what the client's has.
        Err(Errno::NOENT) if mentions_descriptors(path) => walk(from, path, last, wait),
        Err(_) => Found::Nothing,
    }
}

fn in_procfs(file: &OwnedFd) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|found| found.f_type == PROC_SUPER_MAGIC)
}

fn mentions_descriptors(path: &[u8]) -> bool {
    path.starts_with(b"/dev/std") || path.windows(4).any(|part| part == b"/fd/")
}

/// The descriptor of what /proc says of a thread: `root`, `cwd`, `fd/N`.
fn of_thread(tid: u32, what: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::open(format!("/proc/{tid}/{what}"), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

fn start(from: From) -> Result<OwnedFd, Errno> {
    if from.dirfd < 0 {
        of_thread(from.tid, "cwd")
    } else {
        of_thread(from.tid, &format!("fd/{}", from.dirfd))
    }
}

fn fast(from: From, path: &[u8], last: Last, wait: Wait) -> Result<OwnedFd, Errno> {
    let (base, within) = if path.first() == Some(&b'/') {
        (of_thread(from.tid, "root")?, ResolveFlags::IN_ROOT)
    } else {
        (start(from)?, ResolveFlags::BENEATH)
    };
    open_at(&base, path, last, within, wait)
}

fn open_at(
    base: impl AsFd,
    path: &[u8],
    last: Last,
    within: ResolveFlags,
    wait: Wait,
) -> Result<OwnedFd, Errno> {
    let mut flags = OFlags::PATH | OFlags::CLOEXEC;
    flags.set(OFlags::NOFOLLOW, last == Last::Keep);
    let mut resolve = within;
    resolve.set(ResolveFlags::CACHED, wait == Wait::Forbidden);
    rustix::fs::openat2(base, path, flags, Mode::empty(), resolve)
}

/// Resolves name by name.
fn walk(from: From, path: &[u8], last: Last, wait: Wait) -> Found {
    let walked = || -> Result<OwnedFd, Errno> {
        let root = of_thread(from.tid, "root")?;
        let here = if path.first() == Some(&b'/') { root.try_clone_to() } else { start(from) }?;
        let mut walk = Walk { from, root, here, left: Vec::new(), links: 0, wait };
        walk.push(path);
        while let Some(name) = walk.left.pop() {
            let is_last = walk.left.is_empty();
            walk.step(&name, if is_last { last } else { Last::Follow })?;
        }
        Ok(walk.here)
    };
    match walked() {
        Ok(file) => Found::File(file),
        Err(Errno::AGAIN) if wait == Wait::Forbidden => Found::WouldWait,
        Err(_) => Found::Nothing,
    }
}

/// A copy of a descriptor, with the error of this module.
trait TryCloneTo {
    fn try_clone_to(&self) -> Result<OwnedFd, Errno>;
}

impl TryCloneTo for OwnedFd {
    fn try_clone_to(&self) -> Result<OwnedFd, Errno> {
        rustix::io::fcntl_dupfd_cloexec(self, 0)
    }
}

struct Walk {
    from: From,
    root: OwnedFd,
    here: OwnedFd,
    /// Names still to be resolved, the next one last.
    left: Vec<Vec<u8>>,
    links: u32,
    wait: Wait,
}

impl Walk {
    fn push(&mut self, path: &[u8]) {
        let names = path.split(|&byte| byte == b'/').rev();
        self.left
            .extend(names.filter(|name| !name.is_empty() && *name != b".").map(<[u8]>::to_vec));
    }

    fn step(&mut self, name: &[u8], last: Last) -> Result<(), Errno> {
        if name == b".." {
            if !same(&self.here, &self.root)? {
                self.here = self.open(name, Last::Follow, ResolveFlags::empty())?;
            }
            return Ok(());
        }
        let next = self.open(name, Last::Keep, ResolveFlags::empty())?;
        let is_link =
            FileType::from_raw_mode(rustix::fs::fstat(&next)?.st_mode) == FileType::Symlink;
        if !is_link || last == Last::Keep {
            self.here = next;
            return Ok(());
        }
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(Errno::LOOP);
        }
        if in_procfs(&next) {
            return self.step_in_proc(name, &next);
        }
        self.follow(&next)
    }

    /// Follows a link of procfs. `self` is whoever looks, so it is put right; a link to an open file or a directory of
    /// a process leads there at once, whatever its text says.
    fn step_in_proc(&mut self, name: &[u8], link: &OwnedFd) -> Result<(), Errno> {
        let From { tid, pid, .. } = self.from;
        if rustix::fs::fstat(&self.here)?.st_ino == PROC_ROOT {
            let own = match name {
                b"self" => format!("/proc/{pid}"),
                b"thread-self" => format!("/proc/{pid}/task/{tid}"),
                _ => return self.follow(link),
            };
            self.here = rustix::fs::open(own, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            return Ok(());
        }
        self.here = match self.open(name, Last::Follow, ResolveFlags::NO_MAGICLINKS) {
            // The kernel resolves a link of procfs only where it may wait; that one does not wait.
            Err(Errno::LOOP | Errno::AGAIN) => {
                rustix::fs::openat(&self.here, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?
            }
            opened => opened?,
        };
        Ok(())
    }

    fn follow(&mut self, link: &OwnedFd) -> Result<(), Errno> {
        let target = rustix::fs::readlinkat(link, "", Vec::new())?.into_bytes();
        if target.first() == Some(&b'/') {
            self.here = self.root.try_clone_to()?;
        }
        self.push(&target);
        Ok(())
    }

    fn open(&self, name: &[u8], last: Last, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
        open_at(&self.here, name, last, resolve, self.wait)
    }
}

/// Whether two descriptors are of one file.
fn same(one: &OwnedFd, other: &OwnedFd) -> Result<bool, Errno> {
    let identity = |stat: Stat| (stat.st_dev, stat.st_ino);
    Ok(identity(rustix::fs::fstat(one)?) == identity(rustix::fs::fstat(other)?))
}

/// The file behind the link `path`, if that is one of the /proc/PID/fd/N.
pub(crate) fn behind_descriptor_link(
    from: From,
    path: &[u8],
    wait: Wait,
) -> Result<Option<Stat>, WouldWait> {
    let split = path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    let (directory, name) = path.split_at(split);
    if name.is_empty() || !name.iter().all(u8::is_ascii_digit) {
        return Ok(None);
    }
    let directory = match walk(from, directory, Last::Follow, wait) {
        Found::File(directory) => directory,
        Found::Nothing => return Ok(None),
        Found::WouldWait => return Err(WouldWait),
    };
    let behind = || {
        if rustix::fs::fstatfs(&directory)?.f_type != PROC_SUPER_MAGIC {
            return Err(Errno::NOENT);
        }
        let file =
            rustix::fs::openat(&directory, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        rustix::fs::fstat(file)
    };
    Ok(behind().ok())
}

/// A path cannot be resolved without waiting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WouldWait;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    fn own(dirfd: i32) -> From {
        let tid = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        From { tid, pid: std::process::id(), dirfd }
    }

    /// Device and inode of what `path` leads to; `None` for nothing.
    fn found(dirfd: i32, path: &str, last: Last) -> Option<(u64, u64)> {
        match resolve(own(dirfd), path.as_bytes(), last, Wait::Allowed) {
            Found::File(file) => {
                rustix::fs::fstat(file).ok().map(|stat| (stat.st_dev, stat.st_ino))
            }
            Found::Nothing => None,
            Found::WouldWait => panic!("leave to wait was given"),
        }
    }

    fn expected(path: &std::path::Path) -> Option<(u64, u64)> {
        let stat = rustix::fs::stat(path).expect("it is there");
        Some((stat.st_dev, stat.st_ino))
    }

    struct Tree(std::path::PathBuf);

    impl Tree {
        /// a/file, a/b/up -> ../file, a/root -> /proc/self/root, a/loop -> loop.
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("ioasis-{name}-{}", std::process::id()));
            std::fs::create_dir_all(path.join("a/b")).expect("a folder");
            std::fs::write(path.join("a/file"), b"x").expect("a file");
            for (target, link) in
                [("../file", "a/b/up"), ("/proc/self/root", "a/root"), ("loop", "a/loop")]
            {
                std::os::unix::fs::symlink(target, path.join(link)).expect("a link");
            }
            Self(path)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_path_leads_where_the_kernel_would_find_it() {
        let tree = Tree::new("paths");
        let (root, file) = (tree.0.display(), expected(&tree.0.join("a/file")));
        for path in
            ["a/file", "a/b/up", "a/b/../file", "a/./b/..//file", &format!("a/root{root}/a/file")]
        {
            assert_eq!(found(-100, &format!("{root}/{path}"), Last::Follow), file, "{path}");
            let dir = rustix::fs::open(&tree.0, OFlags::PATH, Mode::empty()).expect("a folder");
            assert_eq!(
                found(dir.as_raw_fd(), path, Last::Follow),
                file,
                "{path} from a descriptor"
            );
        }
        for path in ["a/loop", "a/none", "a/file/x", ""] {
            assert_eq!(found(-100, &format!("{root}/{path}x"), Last::Follow), None, "{path}");
        }
        assert_eq!(found(-100, &format!("{root}/a/loop"), Last::Follow), None);
        let link = found(-100, &format!("{root}/a/b/up"), Last::Keep);
        assert!(link.is_some() && link != file);
    }

    #[test]
    fn a_path_leads_there_while_others_rename_their_files() {
        let tree = Tree::new("renames");
        let path = tree.0.join("a/b/../file");
        let file = expected(&path);
        let [one, other] = ["one", "other"].map(|name| tree.0.join(name));
        std::fs::write(&one, b"").expect("a file");
        let finished = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !finished.load(std::sync::atomic::Ordering::Relaxed) {
                    std::fs::rename(&one, &other).expect("it is there");
                    std::fs::rename(&other, &one).expect("it is there");
                }
            });
            let path = path.to_str().expect("plain text");
            let lost = (0..20_000).find(|_| found(-100, path, Last::Follow) != file);
            finished.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(lost, None);
        });
    }

    #[test]
    fn the_callers_own_files_in_proc_are_not_ours() {
        let mut other = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let pid = other.id();
        let identity = |stat: Stat| (stat.st_dev, stat.st_ino);
        for path in ["/proc/self/status", "/proc/thread-self/status"] {
            let from = From { tid: pid, pid, dirfd: -100 };
            let Found::File(file) = resolve(from, path.as_bytes(), Last::Follow, Wait::Allowed)
            else {
                panic!("{path} is there")
            };
            let theirs = path.replace("thread-self", &format!("{pid}/task/{pid}"));
            let theirs = theirs.replace("self", &pid.to_string());
            let expected = identity(rustix::fs::stat(theirs).expect("it runs"));
            assert_eq!(identity(rustix::fs::fstat(file).expect("it runs")), expected, "{path}");
        }
        other.kill().expect("it runs");
        other.wait().expect("it ended");
    }

    #[test]
    fn a_descriptor_link_leads_to_the_open_file() {
        let tree = Tree::new("links");
        let file = std::fs::File::open(tree.0.join("a/file")).expect("a file");
        std::fs::remove_file(tree.0.join("a/file")).expect("it is there");
        let stat = rustix::fs::fstat(&file).expect("open");
        let identity = Some((stat.st_dev, stat.st_ino));
        let fd = file.as_raw_fd();
        for path in [
            format!("/proc/self/fd/{fd}"),
            format!("/dev/fd/{fd}"),
            format!("/proc/thread-self/fd/{fd}"),
        ] {
            assert_eq!(found(-100, &path, Last::Follow), identity, "{path}");
            let behind = behind_descriptor_link(own(-100), path.as_bytes(), Wait::Allowed);
            assert_eq!(
                behind.expect("leave to wait").map(|stat| (stat.st_dev, stat.st_ino)),
                identity
            );
        }
        let other = behind_descriptor_link(own(-100), b"/etc/1", Wait::Allowed);
        assert!(other.expect("leave to wait").is_none());
    }

    #[test]
    fn nothing_waits_for_a_name_that_is_not_cached() {
        let tree = Tree::new("cached");
        let path = tree.0.join("a/file");
        let path = path.to_str().expect("plain text").as_bytes();
        let found = resolve(own(-100), path, Last::Follow, Wait::Forbidden);
        assert!(matches!(found, Found::File(_)), "it was just made: {found:?}");
    }
}
