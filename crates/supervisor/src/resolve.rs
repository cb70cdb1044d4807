//! What a client's path leads to: the file that its own open would find, from its root, working directory or a
//! descriptor of its, with /proc/self meaning the client.
//!
//! One openat2(2) resolves nearly every path, from names the kernel has cached, so that a slow file system cannot stop
//! the receiver. What it cannot decide (a link through /proc, `..` above a directory) is walked name by name.
//!
//! A file system may be served by the client itself, and then never answers. So what is found is told by what the kernel
//! knows without asking ([`Seen::of`]), and whether a link is one of procfs is asked only where that may take long.
//! Processes are reached through the open /proc/PID of [`Process`], which cannot become another one's.
//!
//! DIFFERS: a link to /proc/self/fd/N that lies elsewhere than in /dev is not recognised when this process has no
//! descriptor N: opening it gives another descriptor of the same open file.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use ioasis_sys::process::Process;
use ioasis_sys::rights::{self, Access};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags, StatxFlags, makedev,
};
use rustix::io::Errno;

/// Symbolic links a path may have (`MAXSYMLINKS`, linux/namei.h).
const MAX_LINKS: u32 = 40;
/// Inode number of the root of a procfs (`PROC_ROOT_INO`, linux/proc_fs.h).
const PROC_ROOT: u64 = 1;

/// Who resolves a path, and from where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct From<'a> {
    /// The process.
    pub(crate) process: &'a Process,
    /// Its thread.
    pub(crate) tid: u32,
    /// The descriptor a relative path starts from; negative for the working directory (`AT_FDCWD`).
    pub(crate) dirfd: i32,
}

impl From<'_> {
    /// What /proc says of the thread: `root`, `cwd`, `fd/N`.
    fn open(&self, what: &str) -> Result<OwnedFd, Errno> {
        let path = if self.tid == self.process.pid() {
            what.to_owned()
        } else {
            format!("task/{}/{what}", self.tid)
        };
        rustix::fs::openat(self.process.proc(), path, PATH, Mode::empty())
    }
}

/// A descriptor that names a file and opens nothing.
const PATH: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// What a file is. No file system is asked for it (`AT_STATX_DONT_SYNC`), since a client may be the one that answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    /// `st_dev`.
    pub(crate) dev: u64,
    /// `st_ino`.
    pub(crate) ino: u64,
    pub(crate) kind: FileType,
    /// Major and minor number of a device node.
    pub(crate) number: (u32, u32),
}

impl Seen {
    /// What is behind `file`.
    ///
    /// # Errors
    ///
    /// The errno of statx(2).
    pub(crate) fn of(file: impl AsFd) -> Result<Self, Errno> {
        Self::at(file.as_fd(), "", AtFlags::EMPTY_PATH)
    }

    /// What `path` below `dir` leads to.
    ///
    /// # Errors
    ///
    /// The errno of statx(2).
    pub(crate) fn at(
        dir: BorrowedFd<'_>,
        path: impl rustix::path::Arg,
        flags: AtFlags,
    ) -> Result<Self, Errno> {
        let flags = flags | AtFlags::STATX_DONT_SYNC;
        let stat = rustix::fs::statx(dir, path, flags, StatxFlags::TYPE | StatxFlags::INO)?;
        Ok(Self {
            dev: makedev(stat.stx_dev_major, stat.stx_dev_minor),
            ino: stat.stx_ino,
            kind: FileType::from_raw_mode(stat.stx_mode.into()),
            number: (stat.stx_rdev_major, stat.stx_rdev_minor),
        })
    }

    /// Whether both are of one file.
    pub(crate) fn is(&self, other: &Self) -> bool {
        (self.dev, self.ino) == (other.dev, other.ino)
    }

    /// Whether the file lies on the procfs where this process looks others up.
    pub(crate) fn is_in_own_procfs(&self) -> bool {
        static OWN: OnceLock<Option<u64>> = OnceLock::new();
        let find = || {
            let root = rustix::fs::open("/proc", PATH, Mode::empty()).ok()?;
            (rustix::fs::fstatfs(&root).ok()?.f_type == PROC_SUPER_MAGIC)
                .then(|| Self::of(&root).ok().map(|seen| seen.dev))?
        };
        *OWN.get_or_init(find) == Some(self.dev)
    }
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
    File(OwnedFd, Seen),
    /// Nowhere, or to nothing that could be ours: the kernel finds the right errno.
    Nothing,
    /// It cannot be said without waiting.
    WouldWait,
    /// It cannot be said for want of descriptors or memory.
    Lacks(ioasis_uapi::Errno),
}

impl Found {
    /// What there is where `error` was met on the way.
    fn without(error: Errno, wait: Wait) -> Self {
        match error {
            Errno::AGAIN if wait == Wait::Forbidden => Self::WouldWait,
            Errno::MFILE | Errno::NFILE | Errno::NOMEM => {
                Self::Lacks(ioasis_uapi::Errno::from_raw(error.raw_os_error()))
            }
            _ => Self::Nothing,
        }
    }
}

/// Resolves `path` as `from` would.
pub(crate) fn resolve(from: From<'_>, path: &[u8], last: Last, wait: Wait) -> Found {
    match fast(from, path, last, wait) {
        Ok(file) => match Seen::of(&file) {
            // The kernel took /proc/self for this process.
            Ok(seen) if seen.is_in_own_procfs() => walk(from, path, last, wait),
            Ok(seen) => Found::File(file, seen),
            Err(error) => Found::without(error, wait),
        },
        Err(Errno::AGAIN) if wait == Wait::Forbidden => Found::WouldWait,
        // A link of procfs, or `..` or a link out of the directory; or `..` while somebody renames or mounts anything.
        Err(Errno::XDEV | Errno::LOOP | Errno::AGAIN) => walk(from, path, last, wait),
        // Our own /proc/self may lack what the client's has.
        Err(Errno::NOENT) if mentions_descriptors(path) => walk(from, path, last, wait),
        Err(error) => Found::without(error, wait),
    }
}

/// Whether a file lies on a procfs. Of a file system other than this process's own the kernel tells its kind only by
/// asking it.
fn is_in_procfs(file: &OwnedFd, seen: Seen, wait: Wait) -> Result<bool, Errno> {
    // A file system without a device has the major number 0.
    if seen.is_in_own_procfs() || rustix::fs::major(seen.dev) != 0 {
        return Ok(seen.is_in_own_procfs());
    }
    match wait {
        Wait::Allowed => Ok(rustix::fs::fstatfs(file)?.f_type == PROC_SUPER_MAGIC),
        Wait::Forbidden => Err(Errno::AGAIN),
    }
}

fn mentions_descriptors(path: &[u8]) -> bool {
    path.starts_with(b"/dev/std") || path.windows(4).any(|part| part == b"/fd/")
}

fn start(from: From<'_>) -> Result<OwnedFd, Errno> {
    if from.dirfd < 0 { from.open("cwd") } else { from.open(&format!("fd/{}", from.dirfd)) }
}

fn fast(from: From<'_>, path: &[u8], last: Last, wait: Wait) -> Result<OwnedFd, Errno> {
    let (base, within) = first(from, path)?;
    open_at(&base, path, last, within, wait)
}

/// From where one call resolves a path, and within what.
fn first(from: From<'_>, path: &[u8]) -> Result<(OwnedFd, ResolveFlags), Errno> {
    Ok(if path.first() == Some(&b'/') {
        (from.open("root")?, ResolveFlags::IN_ROOT)
    } else {
        (start(from)?, ResolveFlags::BENEATH)
    })
}

fn open_at(
    base: impl AsFd,
    path: &[u8],
    last: Last,
    within: ResolveFlags,
    wait: Wait,
) -> Result<OwnedFd, Errno> {
    let mut flags = PATH;
    flags.set(OFlags::NOFOLLOW, last == Last::Keep);
    let mut resolve = within;
    resolve.set(ResolveFlags::CACHED, wait == Wait::Forbidden);
    rustix::fs::openat2(base, path, flags, Mode::empty(), resolve)
}

/// Resolves name by name.
fn walk(from: From<'_>, path: &[u8], last: Last, wait: Wait) -> Found {
    let walked = || {
        let mut walk = Walk::new(from, path, wait)?;
        walk.run(path, last)?;
        let seen = Seen::of(&walk.here)?;
        Ok((walk.here, seen))
    };
    match walked() {
        Ok((file, seen)) => Found::File(file, seen),
        Err(error) => Found::without(error, wait),
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

/// The way to a file, for somebody else to be judged by: it is gone with the rights of whoever asks.
#[derive(Debug)]
pub(crate) struct Way<'a> {
    path: &'a [u8],
    last: Last,
    /// From where one call of the kernel's finds it.
    start: OwnedFd,
    within: ResolveFlags,
    /// What a path that the kernel does not resolve for anybody else crosses.
    crossed: Vec<Crossing>,
}

/// What a walk needs leave for.
#[derive(Debug)]
enum Crossing {
    /// A name is looked up in this directory.
    Search(OwnedFd),
    /// A link in this directory is followed (`may_follow_link`, fs/namei.c).
    Link(OwnedFd, Vec<u8>),
    /// A link of procfs leads to what another process has (`proc_pid_get_link`, fs/proc/base.c).
    Process(OwnedFd, Vec<u8>),
}

/// Directories and links that are judged on one way; each takes a descriptor meanwhile.
const MAX_CROSSED: usize = 128;

impl<'a> Way<'a> {
    /// The way of `path`.
    ///
    /// # Errors
    ///
    /// `EACCES` where the path crosses more than can be judged, or leads nowhere any more.
    pub(crate) fn of(from: From<'a>, path: &'a [u8], last: Last) -> Result<Self, Errno> {
        let (start, within) = first(from, path)?;
        let mut walk = Walk::new(from, path, Wait::Allowed)?;
        walk.crossed = Some(Vec::new());
        // Where the kernel finds it by itself, this walk need not end well.
        let walked = walk.run(path, last);
        let crossed = walk.crossed.take().unwrap_or_default();
        if walked.is_err() && crossed.len() >= MAX_CROSSED {
            return Err(Errno::ACCESS);
        }
        Ok(Self { path, last, start, within, crossed })
    }

    /// Whether the calling thread may go this way to `file`.
    ///
    /// # Errors
    ///
    /// The errno of a lookup by the calling thread; `EACCES` where the way leads to another file by now.
    pub(crate) fn go(&self, file: Seen) -> Result<(), Errno> {
        let crossed = || self.crossed.iter().try_for_each(Crossing::check);
        if file.is_in_own_procfs() {
            // The kernel would take /proc/self for the calling process.
            return crossed();
        }
        match open_at(&self.start, self.path, self.last, self.within, Wait::Allowed) {
            Ok(found) if Seen::of(&found)?.is(&file) => Ok(()),
            Ok(_) => Err(Errno::ACCESS),
            Err(Errno::XDEV | Errno::LOOP | Errno::AGAIN | Errno::NOENT) => crossed(),
            Err(errno) => Err(errno),
        }
    }
}

impl Crossing {
    fn check(&self) -> Result<(), Errno> {
        match self {
            Self::Search(directory) => {
                let search = Access { search: true, ..Access::default() };
                rights::access(directory.as_fd(), search)
                    .map_err(|errno| Errno::from_raw_os_error(errno.raw()))
            }
            Self::Link(directory, name) => {
                // Whatever else is wrong with where it leads is found there.
                let within = ResolveFlags::BENEATH;
                match open_at(directory, name, Last::Follow, within, Wait::Allowed) {
                    Err(Errno::ACCESS) => Err(Errno::ACCESS),
                    _ => Ok(()),
                }
            }
            Self::Process(directory, name) => {
                rustix::fs::openat(directory, &**name, PATH, Mode::empty()).map(drop)
            }
        }
    }
}

struct Walk<'a> {
    from: From<'a>,
    root: OwnedFd,
    here: OwnedFd,
    /// Names still to be resolved, the next one last.
    left: Vec<Vec<u8>>,
    links: u32,
    wait: Wait,
    /// What was crossed, for a [`Way`].
    crossed: Option<Vec<Crossing>>,
}

impl<'a> Walk<'a> {
    fn new(from: From<'a>, path: &[u8], wait: Wait) -> Result<Self, Errno> {
        let root = from.open("root")?;
        let here = if path.first() == Some(&b'/') { root.try_clone_to() } else { start(from) }?;
        Ok(Self { from, root, here, left: Vec::new(), links: 0, wait, crossed: None })
    }

    fn run(&mut self, path: &[u8], last: Last) -> Result<(), Errno> {
        self.push(path);
        while let Some(name) = self.left.pop() {
            let is_last = self.left.is_empty();
            self.step(&name, if is_last { last } else { Last::Follow })?;
        }
        Ok(())
    }

    /// Notes what is crossed, but for a process's own way to what it has, which nobody is asked leave for
    /// (`proc_fd_permission`, fs/proc/fd.c; `__ptrace_may_access`, kernel/ptrace.c).
    fn cross(&mut self, crossing: impl FnOnce(OwnedFd) -> Crossing) -> Result<(), Errno> {
        let Some(crossed) = &mut self.crossed else { return Ok(()) };
        if crossed.len() >= MAX_CROSSED {
            return Err(Errno::ACCESS);
        }
        let seen = Seen::of(&self.here)?;
        let From { process, tid, .. } = self.from;
        let is_own = |path: &str| {
            let flags = if path.is_empty() { AtFlags::EMPTY_PATH } else { AtFlags::empty() };
            Seen::at(process.proc(), path, flags).is_ok_and(|own| own.is(&seen))
        };
        let task = format!("task/{tid}");
        let own = ["", "fd", &task, &format!("{task}/fd")];
        if !(seen.is_in_own_procfs() && own.into_iter().any(is_own)) {
            crossed.push(crossing(self.here.try_clone_to()?));
        }
        Ok(())
    }
    fn push(&mut self, path: &[u8]) {
        let names = path.split(|&byte| byte == b'/').rev();
        self.left
            .extend(names.filter(|name| !name.is_empty() && *name != b".").map(<[u8]>::to_vec));
    }

    fn step(&mut self, name: &[u8], last: Last) -> Result<(), Errno> {
        self.cross(Crossing::Search)?;
        if name == b".." {
            if !Seen::of(&self.here)?.is(&Seen::of(&self.root)?) {
                self.here = self.open(name, Last::Follow, ResolveFlags::empty())?;
            }
            return Ok(());
        }
        let next = self.open(name, Last::Keep, ResolveFlags::empty())?;
        let seen = Seen::of(&next)?;
        if !seen.kind.is_symlink() || last == Last::Keep {
            self.here = next;
            return Ok(());
        }
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(Errno::LOOP);
        }
        if is_in_procfs(&next, seen, self.wait)? {
            return self.step_in_proc(name, &next);
        }
        self.cross(|directory| Crossing::Link(directory, name.to_vec()))?;
        self.follow(&next)
    }

    /// Follows a link of procfs. `self` is whoever looks, so it is put right; a link to an open file or a directory of
    /// a process leads there at once, whatever its text says.
    fn step_in_proc(&mut self, name: &[u8], link: &OwnedFd) -> Result<(), Errno> {
        if Seen::of(&self.here)?.ino == PROC_ROOT {
            let From { process, tid, .. } = self.from;
            let own = match name {
                b"self" => ".".to_owned(),
                b"thread-self" => format!("task/{tid}"),
                _ => return self.follow(link),
            };
            self.here = rustix::fs::openat(process.proc(), own, PATH, Mode::empty())?;
            return Ok(());
        }
        self.cross(|directory| Crossing::Process(directory, name.to_vec()))?;
        self.here = match self.open(name, Last::Follow, ResolveFlags::NO_MAGICLINKS) {
            // The kernel resolves a link of procfs only where it may wait; that one does not wait.
            Err(Errno::LOOP | Errno::AGAIN) => {
                rustix::fs::openat(&self.here, name, PATH, Mode::empty())?
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

/// The file behind the link `path`, if that is one of the /proc/PID/fd/N.
pub(crate) fn behind_descriptor_link(from: From<'_>, path: &[u8], wait: Wait) -> Found {
    let split = path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    let (directory, name) = path.split_at(split);
    if name.is_empty() || !name.iter().all(u8::is_ascii_digit) {
        return Found::Nothing;
    }
    let (directory, seen) = match walk(from, directory, Last::Follow, wait) {
        Found::File(directory, seen) => (directory, seen),
        found => return found,
    };
    let behind = || {
        if !is_in_procfs(&directory, seen, wait)? {
            return Err(Errno::NOENT);
        }
        let file = rustix::fs::openat(&directory, name, PATH, Mode::empty())?;
        let seen = Seen::of(&file)?;
        Ok((file, seen))
    };
    match behind() {
        Ok((file, seen)) => Found::File(file, seen),
        Err(error) => Found::without(error, wait),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    fn own_process() -> std::sync::Arc<Process> {
        Process::open(std::process::id()).expect("it runs")
    }

    fn own(process: &Process, dirfd: i32) -> From<'_> {
        let tid = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        From { process, tid, dirfd }
    }

    fn identity(found: Found) -> Option<(u64, u64)> {
        match found {
            Found::File(_, seen) => Some((seen.dev, seen.ino)),
            Found::Nothing => None,
            found => panic!("leave to wait was given, and descriptors: {found:?}"),
        }
    }

    /// Device and inode of what `path` leads to; `None` for nothing.
    fn found(dirfd: i32, path: &str, last: Last) -> Option<(u64, u64)> {
        identity(resolve(own(&own_process(), dirfd), path.as_bytes(), last, Wait::Allowed))
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
        let process = Process::open(pid).expect("it runs");
        for path in ["/proc/self/status", "/proc/thread-self/status"] {
            let from = From { process: &process, tid: pid, dirfd: -100 };
            let Found::File(_, seen) = resolve(from, path.as_bytes(), Last::Follow, Wait::Allowed)
            else {
                panic!("{path} is there")
            };
            let theirs = path.replace("thread-self", &format!("{pid}/task/{pid}"));
            let theirs = theirs.replace("self", &pid.to_string());
            let expected = expected(std::path::Path::new(&theirs));
            assert_eq!(Some((seen.dev, seen.ino)), expected, "{path}");
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
        let expected = Some((stat.st_dev, stat.st_ino));
        let (fd, process) = (file.as_raw_fd(), own_process());
        for path in [
            format!("/proc/self/fd/{fd}"),
            format!("/dev/fd/{fd}"),
            format!("/proc/thread-self/fd/{fd}"),
        ] {
            assert_eq!(found(-100, &path, Last::Follow), expected, "{path}");
            let behind =
                behind_descriptor_link(own(&process, -100), path.as_bytes(), Wait::Allowed);
            assert_eq!(identity(behind), expected);
        }
        let other = behind_descriptor_link(own(&process, -100), b"/etc/1", Wait::Allowed);
        assert_eq!(identity(other), None);
    }

    #[test]
    fn nothing_waits_for_a_name_that_is_not_cached() {
        let tree = Tree::new("cached");
        let path = tree.0.join("a/file");
        let path = path.to_str().expect("plain text").as_bytes();
        let process = own_process();
        let found = resolve(own(&process, -100), path, Last::Follow, Wait::Forbidden);
        assert!(matches!(found, Found::File(..)), "it was just made: {found:?}");
    }
}
