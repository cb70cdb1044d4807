//! The task behind a notification, and what it passed.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use ioasis_sys::notify::{Listener, Notification};
use ioasis_sys::process::{Credentials, Process, Thread};
use ioasis_sys::rights::Rights;
use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result};

use crate::descriptors;
use crate::filter::{O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_PATH, number};
use crate::resolve::From;

/// Longest path there is, with its NUL (`PATH_MAX`).
const PATH_MAX: usize = 4096;
const PAGE: u64 = 4096;

/// A thread of a client, while it waits for an answer.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) tid: u32,
    pub(crate) thread: Arc<Thread>,
    pub(crate) process: Arc<Process>,
    standing: Arc<OnceLock<Standing>>,
}

/// What a thread may, as far as the machine asks. It changes by system calls of the thread itself only.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) credentials: Credentials,
    /// What a file system asks of it.
    pub(crate) rights: Rights,
    /// The user namespace that its capabilities are for, where it can be looked at.
    pub(crate) user_namespace: Option<(u64, u64)>,
}

impl Task {
    /// The thread with the number `tid`.
    ///
    /// # Errors
    ///
    /// `ESRCH` if it is gone, `EMFILE`.
    pub(crate) fn of(tid: u32) -> Result<Self> {
        Self::of_known(tid, |_| None)
    }

    fn of_known(tid: u32, known: impl FnOnce(u32) -> Option<Arc<Process>>) -> Result<Self> {
        let thread = Arc::new(Thread::open_in(tid, known)?);
        let process = Arc::clone(thread.process());
        Ok(Self { tid, thread, process, standing: Arc::default() })
    }

    /// A copy of its descriptor `fd`.
    ///
    /// # Errors
    ///
    /// `EBADF` if it has none, `EPERM` if it may not be looked at, `EMFILE`.
    pub(crate) fn file(&self, fd: i32) -> Result<OwnedFd> {
        self.thread.fd(fd)
    }

    /// Fills `buf` from `address`, as a system call of the task would.
    ///
    /// # Errors
    ///
    /// `EFAULT`, with the first address that cannot be read.
    pub(crate) fn read(&self, address: u64, buf: &mut [u8]) -> Result<()> {
        self.thread.read(address, buf)
    }

    /// Copies `bytes` to `address`, as a system call of the task would.
    ///
    /// # Errors
    ///
    /// `EFAULT`, with the first address that cannot be written.
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.thread.write(address, bytes)
    }

    /// Its user, groups, capabilities and user namespace.
    ///
    /// # Errors
    ///
    /// `ESRCH` if it is gone.
    pub(crate) fn standing(&self) -> Result<&Standing> {
        if let Some(known) = self.standing.get() {
            return Ok(known);
        }
        let status = self.thread.status()?;
        let told = Credentials::of_status(&status).zip(Rights::of_status(&status));
        let gone = Error::at(Errno::ESRCH, "the task is gone", self.tid.into());
        let (credentials, rights) = told.ok_or(gone)?;
        let user_namespace = self.thread.user_namespace().ok();
        Ok(self.standing.get_or_init(|| Standing { credentials, rights, user_namespace }))
    }

    /// The text at `address` without its NUL.
    ///
    /// # Errors
    ///
    /// `EFAULT` if it cannot be read, `ENAMETOOLONG` if it is longer than a path may be.
    pub(crate) fn path(&self, address: u64) -> Result<Vec<u8>> {
        let mut path = Vec::new();
        // Most paths end within the first page that they begin in.
        let mut part = usize::try_from(PAGE - address % PAGE).expect("a page").min(256);
        while path.len() < PATH_MAX {
            let start = path.len();
            path.resize(start + part, 0);
            let from = address.checked_add(start as u64).ok_or(Error::at(
                Errno::EFAULT,
                "a path wraps",
                address,
            ))?;
            let got = self.thread.read_prefix(from, &mut path[start..])?;
            path.truncate(start + got);
            if let Some(end) = path[start..].iter().position(|&byte| byte == 0) {
                path.truncate(start + end);
                return Ok(path);
            }
            if got < part {
                return Err(Error::at(Errno::EFAULT, "a path cannot be read", address));
            }
            part = usize::try_from(PAGE - (from + got as u64) % PAGE).expect("a page");
        }
        Err(Error::at(Errno::ENAMETOOLONG, "a path has no end", address))
    }
}

/// Threads that made calls lately: opening one takes longer than answering most calls.
///
/// What is remembered of a thread is exact. Its pidfd says whether its number is still its own. Its memory changes by
/// exec only, its credentials by calls of its own only; the filter stops both, and it is forgotten then. Between the
/// stop of an exec and its end other threads of the process may make calls: they are not remembered.
///
/// `Tasks::known` is a leaf.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    threads: BTreeMap<u32, Task>,
    /// Threads that were stopped at an exec and have not been heard of since.
    executing: Vec<Arc<Thread>>,
    /// Processes that were about to become hard to look at. Without privileges the memory of one that is not dumpable
    /// cannot be opened (fs/proc/base.c, task_dump_owner), so it was opened before and is kept.
    hidden: Vec<Arc<Process>>,
}

/// Threads remembered at once. Each takes two descriptors, its process four more.
const KNOWN: usize = 128;

impl Known {
    fn process(&self, pid: u32) -> Option<Arc<Process>> {
        let of_threads = self.threads.values().map(|task| &task.process);
        self.hidden.iter().chain(of_threads).find(|process| process.pid() == pid).cloned()
    }

    /// Whether what is found out about `task` now stays so until it is stopped again.
    fn may_remember(&mut self, task: &Task) -> bool {
        // One that is back from its exec, which failed or left it the only thread. One that is gone: its exec has given
        // it the number of the first thread, or it was killed.
        self.executing.retain(|thread| thread.tid() != task.tid && thread.is_alive());
        !self.executing.iter().any(|thread| thread.process().pid() == task.process.pid())
    }

    fn remember(&mut self, task: &Task) {
        if self.threads.len() >= KNOWN {
            self.threads.retain(|_, known| known.thread.is_alive());
        }
        if self.threads.len() >= KNOWN {
            self.threads.clear();
        }
        self.threads.insert(task.tid, task.clone());
    }
}

impl Tasks {
    /// The task that made `call`.
    ///
    /// # Errors
    ///
    /// `ESRCH` if it was killed meanwhile, `EMFILE`.
    pub(crate) fn of(&self, listener: &Listener, call: &Notification) -> Result<Task> {
        let known = self.known.lock().threads.get(&call.tid).cloned();
        if let Some(task) = known.filter(|task| task.thread.is_alive()) {
            return Ok(task);
        }
        let task = Task::of_known(call.tid, |pid| self.known.lock().process(pid))?;
        if !listener.is_waiting(call.id) {
            return Err(Error::at(Errno::ESRCH, "the task is gone", call.tid.into()));
        }
        let mut known = self.known.lock();
        if known.may_remember(&task) && descriptors::are_plenty(task.thread.as_fd()) {
            known.remember(&task);
        }
        Ok(task)
    }

    /// The task is about to execute another program, which ends what is known of its whole process.
    pub(crate) fn executes(&self, task: &Task) {
        task.process.executes();
        let mut known = self.known.lock();
        known.threads.retain(|_, known| known.process.pid() != task.process.pid());
        known.hidden.retain(|process| process.pid() != task.process.pid());
        known.executing.push(Arc::clone(&task.thread));
    }

    /// Whether another thread of the task's process may be in an execve.
    pub(crate) fn is_another_executing(&self, task: &Task) -> bool {
        let is_other = |thread: &&Arc<Thread>| {
            thread.process().pid() == task.process.pid() && thread.tid() != task.tid
        };
        self.known.lock().executing.iter().filter(is_other).any(|thread| thread.is_alive())
    }

    /// The task is about to change its credentials, which may hide it.
    pub(crate) fn changes(&self, task: &Task) {
        self.hides(task);
        self.known.lock().threads.remove(&task.tid);
    }

    /// The task is about to make its process one that others may not look at.
    pub(crate) fn hides(&self, task: &Task) {
        if task.thread.mm().is_err() {
            return;
        }
        let mut known = self.known.lock();
        known.hidden.retain(|process| process.is_alive());
        if known.executing.iter().all(|thread| thread.process().pid() != task.process.pid())
            && !known.hidden.iter().any(|process| process.pid() == task.process.pid())
        {
            known.hidden.push(Arc::clone(&task.process));
        }
    }
}

/// An open that was stopped.
#[derive(Clone, Debug)]
pub(crate) struct OpenCall<'a> {
    pub(crate) from: From<'a>,
    pub(crate) path: Vec<u8>,
    /// `O_*`.
    pub(crate) flags: u32,
}

/// The low half of an argument, which is all that the kernel takes of an `unsigned int`.
pub(crate) fn low(argument: u64) -> u32 {
    u32::try_from(argument & u64::from(u32::MAX)).expect("a half")
}

/// The same of an `int`.
pub(crate) fn signed(argument: u64) -> i32 {
    low(argument).cast_signed()
}

/// The working directory, as a descriptor (`AT_FDCWD`).
const AT_FDCWD: i32 = -100;
const O_WRONLY_CREAT_TRUNC: u32 = 0o1 | O_CREAT | 0o1000;

impl<'a> OpenCall<'a> {
    /// The open that `call` is, unless it is another call.
    pub(crate) fn of(task: &'a Task, call: &Notification) -> Option<Result<Self>> {
        let [first, second, third, fourth, ..] = call.args;
        let made = |dirfd: i32, path: u64, flags: u32| {
            let from = From { process: &task.process, tid: task.tid, dirfd };
            Ok(Self { from, path: task.path(path)?, flags })
        };
        Some(match call.number {
            number::OPEN => made(AT_FDCWD, first, low(second)),
            number::CREAT => made(AT_FDCWD, first, O_WRONLY_CREAT_TRUNC),
            number::OPENAT => made(signed(first), second, low(third)),
            number::OPENAT2 => {
                flags_of(task, third, fourth).and_then(|flags| made(signed(first), second, flags))
            }
            _ => return None,
        })
    }

    /// Whether it can be an open of a device at all.
    pub(crate) const fn may_be_ours(&self) -> bool {
        self.flags & (O_DIRECTORY | O_PATH) == 0
            && self.flags & (O_CREAT | O_EXCL) != O_CREAT | O_EXCL
    }

    /// Whether a link that the path leads to is followed.
    pub(crate) const fn follows(&self) -> bool {
        self.flags & O_NOFOLLOW == 0
    }
}

/// The flags in a `struct open_how`. One with a restricted resolution is left to the kernel, which answers an open of
/// our nodes with `ENXIO`.
// DIFFERS: openat2 with RESOLVE_* flags does not open our nodes.
fn flags_of(task: &Task, how: u64, size: u64) -> Result<u32> {
    let mut words = [0; 24];
    if size < 24 {
        return Err(Error::at(
            Errno::EINVAL,
            "struct open_how is shorter than its first version",
            size,
        ));
    }
    task.read(how, &mut words)?;
    let word = |at: usize| u64::from_ne_bytes(words[at..at + 8].try_into().expect("8 bytes"));
    if word(16) != 0 {
        return Err(Error::at(Errno::EINVAL, "a restricted resolution", word(16)));
    }
    u32::try_from(word(0)).map_err(|_| Error::at(Errno::EINVAL, "unknown open flags", word(0)))
}
