//! The task behind a notification, and what it passed.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ioasis_sys::notify::{Listener, Notification};
use ioasis_sys::process::Process;
use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result};

use crate::filter::{O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_PATH, number};
use crate::resolve::From;

/// Longest path there is, with its NUL (`PATH_MAX`).
const PATH_MAX: usize = 4096;
const PAGE: u64 = 4096;

/// A thread of a client.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) tid: u32,
    pub(crate) process: Arc<Process>,
}

impl Task {
    /// The thread `tid`, which is waiting for an answer.
    ///
    /// # Errors
    ///
    /// `ESRCH` if it is gone.
    pub(crate) fn of(tid: u32) -> Result<Self> {
        Ok(Self { tid, process: Arc::new(Process::open(tid)?) })
    }

    /// A copy of its descriptor `fd`.
    ///
    /// # Errors
    ///
    /// `EBADF` if it has none, `EPERM` if it may not be looked at.
    pub(crate) fn file(&self, fd: i32) -> Result<OwnedFd> {
        self.process.fd(self.tid, fd)
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
            let got = self.process.read_prefix(from, &mut path[start..])?;
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

/// Processes that made calls lately: opening one takes longer than answering most calls.
///
/// What is remembered of a task may be about an earlier one with its number. Memory is reached by that number, so it is
/// the caller's all the same; a descriptor is not found, upon which the task is looked at anew ([`Tasks::renew`]).
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    known: Mutex<BTreeMap<u32, Task>>,
}

/// Processes remembered at once; each takes a few descriptors.
const KNOWN: usize = 256;

impl Tasks {
    /// The task that made `call`, as it is remembered.
    ///
    /// # Errors
    ///
    /// `ESRCH` if it was killed meanwhile.
    pub(crate) fn of(&self, listener: &Listener, call: &Notification) -> Result<Task> {
        let known = self.known.lock().get(&call.tid).cloned();
        match known {
            // A thread's number can pass to another process while its own lives on, the leader's cannot.
            Some(task) if task.process.pid() == call.tid || task.process.has_thread(call.tid) => {
                Ok(task)
            }
            _ => self.renew(listener, call),
        }
    }

    /// The task that made `call`, as it is.
    ///
    /// # Errors
    ///
    /// `ESRCH` if it was killed meanwhile.
    pub(crate) fn renew(&self, listener: &Listener, call: &Notification) -> Result<Task> {
        let task = Task::of(call.tid)?;
        if !listener.is_waiting(call.id) {
            return Err(Error::at(Errno::ESRCH, "the task is gone", call.tid.into()));
        }
        let mut known = self.known.lock();
        if known.len() >= KNOWN {
            known.clear();
        }
        known.insert(call.tid, task.clone());
        Ok(task)
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
    task.process.read(how, &mut words)?;
    let word = |at: usize| u64::from_ne_bytes(words[at..at + 8].try_into().expect("8 bytes"));
    if word(16) != 0 {
        return Err(Error::at(Errno::EINVAL, "a restricted resolution", word(16)));
    }
    u32::try_from(word(0)).map_err(|_| Error::at(Errno::EINVAL, "unknown open flags", word(0)))
}
