//! Whether a task may open a file of ours, as the VFS would find before it asks a driver.
//!
//! The kernel judges: by the supervisor's own rights where the task has the same, else by those of the task, which a
//! child of the judging thread takes on ([`Rights::lend`]). So modes, owners, groups, ACLs and capabilities count, of
//! every directory on the way and of the file. Only files found to be ours are judged, so that nobody else's open
//! takes longer.
//!
//! DIFFERS: a capability in a user namespace that a program of the run made itself is not taken on, and neither is the
//! domain of a security module (docs/view.md).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ioasis_sys::rights::{self, Access, Rights};
use ioasis_sys::{because, fuse};
use ioasis_uapi::{Errno, Error, Result};
use rustix::fs::{Mode, OFlags, StatVfsMountFlags};

use super::client::Caller;
use crate::filter::{O_ACCMODE, O_NOATIME, O_TRUNC};
use crate::resolve::{Last, Seen, Way};
use crate::task::{OpenCall, Task};

/// The capabilities that an open asks for: `CAP_DAC_OVERRIDE`, `CAP_DAC_READ_SEARCH` and `CAP_FOWNER` (linux/capability.h; fs/namei.c,
/// generic_permission and may_open). The supervisor has given up most others, and need not lend them.
const FOR_FILES: u64 = 0b1110;

/// `CAP_DAC_READ_SEARCH` of linux/capability.h.
const CAP_DAC_READ_SEARCH: u32 = 2;
/// `CAP_FOWNER` of linux/capability.h.
const CAP_FOWNER: u32 = 3;
/// `CAP_MKNOD` of linux/capability.h.
const CAP_MKNOD: u32 = 27;
/// What an open asks of its file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    access: Access,
    no_atime: bool,
}

impl Asked {
    /// By `O_*` flags (`build_open_flags`, fs/open.c: access mode 3 and `O_TRUNC` ask for more than they give).
    pub(super) const fn of(flags: u32) -> Self {
        let mode = flags & O_ACCMODE;
        let write = mode != 0 || flags & O_TRUNC != 0;
        let access = Access { read: mode != 1, write, search: false };
        Self { access, no_atime: flags & O_NOATIME != 0 }
    }

    /// To know the way only.
    pub(super) const fn way() -> Self {
        let access = Access { read: false, write: false, search: false };
        Self { access, no_atime: false }
    }
}

/// Whether the task may open `file`, which the path of `open` was found to lead to. What the file's own mode and mount
/// say is asked of `place`.
///
/// # Errors
///
/// Why not, with Linux's errno; `EAGAIN` if nobody can receive while it is found out.
pub(super) fn judge(
    caller: &Caller<'_>,
    open: &OpenCall<'_>,
    (file, place): (Seen, BorrowedFd<'_>),
    asked: Asked,
) -> Result<()> {
    let task = TaskRights::of(caller)?;
    let last = if open.follows() { Last::Follow } else { Last::Keep };
    if task.are_own() {
        // The way was gone by these rights already.
        may_access(place, asked.access)?;
    } else {
        caller.may_wait()?;
        let way = Way::of(open.from, &open.path, last).map_err(because(WAY))?;
        task.lend(|| {
            way.go(file).map_err(because(WAY))?;
            may_access(place, asked.access)
        })??;
    }
    task.may_use(caller, place, asked)
}

/// Whether the task may see what a file in /proc tells of another process, as far as ids and capabilities say
/// (`__ptrace_may_access`, kernel/ptrace.c): nobody judges that in its place, since whoever takes on a task's rights is no
/// tracer of its.
pub(super) fn may_see(caller: &Caller<'_>, file: BorrowedFd<'_>) -> bool {
    let owner = rustix::fs::fstat(file).map(|stat| stat.st_uid);
    let task = TaskRights::of(caller);
    owner.is_ok_and(|owner| {
        task.is_ok_and(|task| owner == task.rights.user || task.rights.has(CAP_DAC_READ_SEARCH))
    })
}

const WAY: &str = "a directory or link on the way is not for this user";

/// Whether the calling thread may have `access` to what `file` is, by its mode, owner, group and ACL.
fn may_access(file: BorrowedFd<'_>, access: Access) -> Result<()> {
    match rights::access(file, access) {
        Ok(()) => Ok(()),
        // Of attributes only, whose mounts are read-only where they are written through the supervisor; writing to a
        // device changes no file system (sb_permission, fs/namei.c).
        Err(Errno::EROFS) => Ok(()),
        Err(errno) => Err(Error::new(errno, "the mode of the file is not for this user")),
    }
}

/// What every thread of the supervisor may: the same from its confinement on.
#[derive(Debug)]
pub(super) struct Own {
    rights: Rights,
    user_namespace: Option<(u64, u64)>,
}

impl Own {
    /// What the calling thread may.
    ///
    /// # Errors
    ///
    /// `ESRCH` without /proc.
    pub(super) fn find() -> Result<Self> {
        let task = Task::of(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs())?;
        let standing = task.standing()?;
        let rights = for_files(&standing.rights);
        Ok(Self { rights, user_namespace: standing.user_namespace })
    }
}

fn for_files(rights: &Rights) -> Rights {
    let mut rights = rights.clone();
    rights.capabilities &= FOR_FILES;
    rights
}

/// The rights of the thread that made a call.
pub(super) struct TaskRights<'a> {
    rights: Rights,
    own: &'a Rights,
    /// To be entered for them.
    namespace: Option<OwnedFd>,
    makes_nodes: bool,
}

impl<'a> TaskRights<'a> {
    /// Those of the caller.
    ///
    /// # Errors
    ///
    /// `EACCES` where they cannot be learnt.
    pub(super) fn of(caller: &Caller<'a>) -> Result<Self> {
        let unknown = Error::new(Errno::EACCES, "the rights of the task cannot be learnt");
        let own = &caller.server.own;
        let standing = caller.task.standing().map_err(|_| unknown)?;
        let mut rights = standing.rights.clone();
        let theirs = standing.user_namespace.ok_or(unknown)?;
        if Some(theirs) != caller.server.user_namespace {
            // capable_wrt_inode_uidgid (kernel/capability.c) would count them for files of ids that the namespace has.
            rights.capabilities = 0;
        }
        let namespace = if own.user_namespace == Some(theirs) || rights.capabilities == 0 {
            None
        } else {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let proc = caller.task.thread.proc();
            let opened = rustix::fs::openat(proc, "ns/user", flags, Mode::empty());
            Some(opened.map_err(|_| unknown)?)
        };
        let makes_nodes = namespace.is_some() && rights.has(CAP_MKNOD);
        Ok(Self { rights: for_files(&rights), own: &own.rights, namespace, makes_nodes })
    }

    /// Whether the supervisor has the same.
    fn are_own(&self) -> bool {
        self.namespace.is_none() && self.rights == *self.own
    }

    /// Whether it may make device nodes in a namespace that is not the supervisor's, where the kernel lets nobody.
    pub(super) const fn make_nodes_elsewhere(&self) -> bool {
        self.makes_nodes
    }

    /// Does `act` with these rights.
    ///
    /// # Errors
    ///
    /// `EACCES` where they cannot be taken on, `EAGAIN` where there is nobody to.
    pub(super) fn lend<T>(&self, act: impl FnOnce() -> T) -> Result<T> {
        let namespace = self.namespace.as_ref().map(AsFd::as_fd);
        let lent = self.rights.lend(self.own, namespace, act);
        // Nothing is told apart by the errno: what cannot be judged is refused.
        lent.map_err(|error| match error.errno {
            Errno::EPERM | Errno::EINVAL => Error { errno: Errno::EACCES, ..error },
            _ => error,
        })
    }

    /// What is judged by more than the access: the mount, and `O_NOATIME` (`may_open`, fs/namei.c).
    ///
    /// A node that is a file of the run's own file system lies on a nodev mount anyway; one that has the flags of that
    /// mount is no mount of somebody else's.
    fn may_use(&self, caller: &Caller<'_>, file: BorrowedFd<'_>, asked: Asked) -> Result<()> {
        let unknown = because("the mount of the file cannot be looked at");
        let seen = Seen::of(file).map_err(&unknown)?;
        if seen.kind.is_char_device() {
            let mount = rustix::fs::fstatvfs(file).map_err(&unknown)?;
            let files = caller.server.queues.file_system();
            let is_own = files.is_some_and(|files| files.dev() == seen.dev)
                && mount.f_flag.contains(fuse::mount_flags());
            if mount.f_flag.contains(StatVfsMountFlags::NODEV) && !is_own {
                return Err(Error::new(Errno::EACCES, "devices are not opened on a nodev mount"));
            }
        }
        if asked.no_atime {
            let owner = rustix::fs::fstat(file).map_err(unknown)?.st_uid;
            if owner != self.rights.user && !self.rights.has(CAP_FOWNER) {
                let why = "O_NOATIME is for the owner of the file";
                return Err(Error::at(Errno::EPERM, why, self.rights.user.into()));
            }
        }
        Ok(())
    }
}

/// What the caller takes off the modes of what it makes; none where it is gone.
pub(super) fn umask(caller: &Caller<'_>) -> Option<u32> {
    let status = caller.task.thread.status().ok()?;
    let mut lines = status.split(|&byte| byte == b'\n');
    let line = lines.find_map(|line| line.strip_prefix(b"Umask:\t"))?;
    u32::from_str_radix(std::str::from_utf8(line).ok()?, 8).ok()
}
