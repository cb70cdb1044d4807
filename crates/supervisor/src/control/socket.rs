//! Where control sockets are, and how they are found and asked.
//!
//! A folder is used if it is the user's own and nobody else may enter it. Sockets are made, and those of runs that are dead
//! are swept, with the folder locked (flock(2)), so that nobody takes one for dead that does not listen yet. Paths begin at
//! the folder's descriptor: they are short, and lead nowhere else.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ioasis_sys::message;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::net::sockopt;

use super::ANSWER_MAX;

/// How long an answer is waited for; an orderly removal says for itself how long it takes.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long another process may have the folder locked.
const LOCKED: Duration = Duration::from_secs(2);

/// The control socket of a run that is about to begin.
#[derive(Debug)]
pub struct Socket {
    pub(super) listener: UnixListener,
    folder: Folder,
    name: String,
    identity: Identity,
}

/// Which socket it is: device, inode and when it was made, for an inode's number is used again.
type Identity = (u64, u64, i64, i64);

fn identity(seen: &std::fs::Metadata) -> Identity {
    (seen.dev(), seen.ino(), seen.mtime(), seen.mtime_nsec())
}

/// A folder with control sockets.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    fd: OwnedFd,
}

/// What was asked of a run.
#[derive(Debug)]
pub enum Asked {
    /// Its answer, a JSON object in a line.
    Answer(String),
    /// It is dead, and its socket was swept.
    Dead,
    /// It did not answer: why.
    Silent(String),
}

/// The folders where runs of this user have their sockets, the one for a new run first.
#[must_use]
pub fn folders() -> Vec<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    let is_own =
        |path: &Path| std::fs::metadata(path).is_ok_and(|seen| seen.is_dir() && seen.uid() == uid);
    let named = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let named = named.filter(|path| path.is_absolute());
    let usual = PathBuf::from(format!("/run/user/{uid}"));
    let mut folders: Vec<PathBuf> = named
        .into_iter()
        .chain([usual])
        .filter(|path| is_own(path))
        .map(|path| path.join("ioasis"))
        .collect();
    if uid == 0 {
        folders.push("/run/ioasis".into());
    }
    folders.push(format!("/tmp/ioasis-{uid}").into());
    folders.dedup();
    folders
}

/// Whether a run can be called so; why not.
///
/// # Errors
///
/// What a name is.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if name.len() > 64 || !begins || !name.chars().all(is_plain) {
        return Err(format!(
            "--name {name:?}: a name is of letters, digits and . _ -, at most 64, and begins with a letter or a digit"
        ));
    }
    if name.chars().all(|c| c.is_ascii_digit()) {
        return Err(format!("--name {name}: a name of digits alone would be taken for a process"));
    }
    Ok(())
}

impl Folder {
    /// The folder at `path`, if it is this user's own and nobody else may enter it.
    fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        let seen = rustix::fs::fstat(&fd)?;
        if seen.st_uid != rustix::process::geteuid().as_raw() || seen.st_mode & 0o077 != 0 {
            return Err(io::Error::other(format!(
                "{} is another user's, or others may enter it",
                path.display()
            )));
        }
        Ok(Self { path: path.to_owned(), fd })
    }

    /// The same, made if it is not there.
    fn make(path: &Path) -> io::Result<Self> {
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        Self::open(path)
    }

    /// A short path to `name` in it.
    fn at(&self, name: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{name}", self.fd.as_raw_fd()).into()
    }

    /// Keeps others from making or sweeping sockets until the returned copy of the folder is dropped.
    fn lock(&self) -> io::Result<OwnedFd> {
        // An open of its own: a lock is one's open file's, and a child may have a copy of the other.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, ".", flags, Mode::empty())?;
        let begun = Instant::now();
        loop {
            match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(fd),
                Err(rustix::io::Errno::WOULDBLOCK) if begun.elapsed() < LOCKED => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The names of the sockets in it.
    fn names(&self) -> Vec<String> {
        let listing = std::fs::read_dir(self.at(".")).into_iter().flatten().flatten();
        let is_socket =
            |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_socket());
        let names = listing.filter(is_socket);
        names.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Removes the socket `name` if nobody listens; whether it did.
    fn sweep(&self, name: &str) -> bool {
        let Ok(_lock) = self.lock() else { return false };
        let is_dead = matches!(UnixStream::connect(self.at(name)), Err(error) if error.kind() == io::ErrorKind::ConnectionRefused);
        is_dead && rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()).is_ok()
    }
}

impl Socket {
    /// Makes the socket of a run called `name`, or of this process's number.
    ///
    /// # Errors
    ///
    /// In words: a name that is none, or that another run has; no folder that can be used.
    pub fn open(name: Option<&str>) -> Result<Self, String> {
        if let Some(name) = name {
            check_name(name)?;
        }
        let name = name.map_or_else(|| std::process::id().to_string(), str::to_owned);
        let taken = folders().into_iter().find(|path| {
            Folder::open(path)
                .is_ok_and(|folder| folder.names().contains(&name) && !folder.sweep(&name))
        });
        if taken.is_some() {
            return Err(format!("--name {name}: another run is called so; `ioasis ps` lists them"));
        }
        let mut whys = Vec::new();
        for path in folders() {
            match Folder::make(&path).and_then(|folder| Self::listen(folder, &name)) {
                Ok(socket) => return Ok(socket),
                Err(error) => whys.push(format!("{}: {error}", path.display())),
            }
        }
        Err(format!("there is no folder for a control socket: {}", whys.join("; ")))
    }

    fn listen(folder: Folder, name: &str) -> io::Result<Self> {
        let _lock = folder.lock()?;
        let listener = UnixListener::bind(folder.at(name))?;
        let seen = std::fs::symlink_metadata(folder.at(name))?;
        let identity = identity(&seen);
        Ok(Self { listener, folder, name: name.to_owned(), identity })
    }

    /// What the run is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Listens no more, in a process that does not answer; what is returned removes the socket from its folder.
    pub(crate) fn into_place(self) -> Place {
        let Self { folder, name, identity, .. } = self;
        Place { folder, name, identity }
    }
}

/// Where the socket of a run is.
#[derive(Debug)]
pub(crate) struct Place {
    folder: Folder,
    name: String,
    identity: Identity,
}

impl Place {
    /// Removes it, if it is still that of this run.
    pub(crate) fn remove(&self) {
        let _lock = self.folder.lock();
        let seen = std::fs::symlink_metadata(self.folder.at(&self.name));
        if seen.is_ok_and(|seen| identity(&seen) == self.identity) {
            let _ = rustix::fs::unlinkat(&self.folder.fd, &self.name, AtFlags::empty());
        }
    }
}

/// The names of this user's runs, sorted, with the folder of each; those of dead ones among them, until they are asked.
#[must_use]
pub fn runs() -> Vec<(String, PathBuf)> {
    let mut runs = Vec::new();
    for folder in folders().iter().filter_map(|path| Folder::open(path).ok()) {
        runs.extend(folder.names().into_iter().map(|name| (name, folder.path.clone())));
    }
    runs.sort();
    runs
}

/// Asks the run called `name` in `folder` what the line `request` says, with descriptors, and waits for the answer:
/// `longer` than usual, for what takes its time.
#[must_use]
pub fn ask(
    (folder, name): (&Path, &str),
    request: &str,
    fds: &[BorrowedFd<'_>],
    longer: Duration,
) -> Asked {
    let folder = match Folder::open(folder) {
        Ok(folder) => folder,
        Err(error) => return Asked::Silent(error.to_string()),
    };
    if !folder.names().iter().any(|other| other == name) {
        return Asked::Dead;
    }
    match UnixStream::connect(folder.at(name)) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            folder.sweep(name);
            Asked::Dead
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Asked::Dead,
        Err(error) => Asked::Silent(error.to_string()),
        Ok(stream) => {
            let until = Instant::now() + PATIENCE + longer;
            match check_listener(&stream).and_then(|()| exchange(&stream, request, fds, until)) {
                Ok(answer) => Asked::Answer(answer),
                Err(error) => Asked::Silent(error),
            }
        }
    }
}

fn exchange(
    mut stream: &UnixStream,
    request: &str,
    fds: &[BorrowedFd<'_>],
    until: Instant,
) -> Result<String, String> {
    let mut line = request.as_bytes().to_vec();
    line.push(b'\n');
    message::send(stream.as_fd(), &line, fds).map_err(|error| error.to_string())?;
    let mut answer = Vec::new();
    let mut piece = vec![0; 64 << 10];
    while !answer.ends_with(b"\n") {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err("it does not answer in time".to_owned());
        }
        stream.set_read_timeout(Some(left)).map_err(|error| error.to_string())?;
        match stream.read(&mut piece) {
            Ok(0) => return Err("it ended the connection without an answer".to_owned()),
            Ok(count) => answer.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err("it does not answer in time".to_owned());
            }
            Err(error) => return Err(error.to_string()),
        }
        if answer.len() > ANSWER_MAX {
            return Err("its answer is longer than any answer".to_owned());
        }
    }
    String::from_utf8(answer).map_err(|_| "its answer is no text".to_owned())
}

/// Folders that a program of a run must find empty, made where they are not there: otherwise it would make them, and sockets
/// of its own in them for others to find.
pub(crate) fn hidden() -> Vec<PathBuf> {
    let is_there = |path: &PathBuf| {
        path.file_name() != Some(OsStr::new(""))
            && (Folder::make(path).is_ok()
                || std::fs::symlink_metadata(path).is_ok_and(|seen| seen.is_dir()))
    };
    folders().into_iter().filter(is_there).collect()
}

/// Whether it is a run that listens there: of this user or root's, and not a program inside a run.
fn check_listener(stream: &UnixStream) -> Result<(), String> {
    let peer = sockopt::socket_peercred(stream).map_err(|error| error.to_string())?;
    let own = rustix::process::geteuid();
    if peer.uid != own && !peer.uid.is_root() {
        return Err("another user listens there".to_owned());
    }
    // Root may be elsewhere than its runs.
    if !own.is_root() && !shares_mounts(peer.pid.as_raw_nonzero().get().unsigned_abs()) {
        return Err("a program of a run listens there, and no run".to_owned());
    }
    Ok(())
}

/// Whether `pid` sees the files that this process sees, as no process of any run does.
pub(super) fn shares_mounts(pid: u32) -> bool {
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    let (own, its) = (namespace("self"), namespace(&pid.to_string()));
    own.is_some() && own == its
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn scratch(test: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("ioasis-{test}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).expect("a folder");
        path
    }

    #[test]
    fn a_name_is_a_file_name_that_is_no_process() {
        for name in ["a", "nightly-3", "x.y_z", "7z"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        let long = "x".repeat(65);
        for name in ["", ".", "..", ".x", "-x", "a/b", "a b", "123", "ä", "a\n", &long] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_folder_that_others_may_enter_is_not_used() {
        let path = scratch("others");
        for (mode, fits) in [(0o755, false), (0o770, false), (0o700, true), (0o500, true)] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("its mode");
            assert_eq!(Folder::open(&path).is_ok(), fits, "{mode:o}");
        }
        let link = path.with_extension("link");
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        assert!(Folder::open(&link).is_err(), "a link leads anywhere");
        std::fs::remove_file(&link).expect("removed");
        std::fs::remove_dir(&path).expect("removed");
    }

    #[test]
    fn a_socket_nobody_listens_to_is_swept_and_another_is_not() {
        let path = scratch("swept").join("ioasis");
        let folder = || Folder::make(&path).expect("a folder");
        let alive = Socket::listen(folder(), "alive").expect("a socket");
        let dead = Socket::listen(folder(), "dead").expect("a socket").into_place();
        assert!(folder().sweep("dead") && !folder().sweep("alive"));
        assert_eq!(folder().names(), ["alive"]);
        // A later run has the name now: the end of the dead one leaves it alone.
        let later = Socket::listen(folder(), "dead").expect("the name is free");
        dead.remove();
        assert_eq!(folder().names().len(), 2);
        later.into_place().remove();
        alive.into_place().remove();
        assert!(folder().names().is_empty());
        std::fs::remove_dir_all(path.parent().expect("its folder")).expect("removed");
    }
}
