//! getrlimit, setrlimit and prlimit64 of RLIMIT_MEMLOCK in a run with `--root`; [`crate::memlock`] says how.
//!
//! A process is looked at through its open directory in /proc, which shows nothing once it has ended. Its limit can be
//! set by number only, so it is made a tracee first: the number of a tracee passes to nobody before its tracer has let it
//! go, and if its directory still shows something then, the number is its own.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use ioasis_iommufd::Client as _;
use ioasis_sys::because;
use ioasis_sys::notify::{Answer, Notification};
use ioasis_sys::ptrace::{Follow, Tracer};
use ioasis_uapi::{Errno, Error, Result};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::process::{Pid, Resource, Rlimit};

use super::Decision;
use super::client::Caller;
use crate::filter::number;
use crate::memlock::{self, INFINITY, Limit};
use crate::task::signed;

/// Bytes of the text of /proc/PID/limits, and some more.
const TEXT_MAX: usize = 4096;
/// How often a thread that somebody traces is asked for again, a millisecond apart: it may be another call of ours.
const TURNS: u32 = 20;

pub(super) fn limit(caller: &Caller<'_>, call: &Notification) -> Result<Decision> {
    let [first, second, third, fourth, ..] = call.args;
    let Some(memlock) = &caller.server.memlock else { return Ok(Decision::CONTINUE) };
    let (pid, new, old) = match call.number {
        number::GETRLIMIT => (0, 0, second),
        number::SETRLIMIT => (0, second, 0),
        _ => (signed(first), third, fourth),
    };
    let Some(target) = Target::of(caller, pid)? else { return Ok(Decision::CONTINUE) };
    let kernels = target.limit()?;
    let shown = memlock.shown(kernels);
    if new == 0 {
        if shown == kernels {
            return Ok(Decision::CONTINUE);
        }
    } else {
        let wanted = read(caller, new)?;
        let next = match judge(caller, wanted, shown) {
            Ok(true) => memlock.kernels(wanted, kernels),
            Ok(false) => return Ok(Decision::CONTINUE),
            Err(error) => Err(error),
        };
        match next {
            Ok(next) if shown == kernels && next == wanted => return Ok(Decision::CONTINUE),
            Ok(next) => {
                caller.may_wait()?;
                if let Err(error) = target.set(next) {
                    return Ok(refuse(caller, error));
                }
            }
            Err(error) => return Ok(refuse(caller, error)),
        }
    }
    if old != 0 {
        let words = [shown.current, shown.maximum].map(u64::to_ne_bytes);
        caller.write(old, words.as_flattened())?;
    }
    Ok(Decision::Answer(Answer::Value(0)))
}

/// The limit that the kernel's text of /proc/PID/limits is shown with, if it was raised.
pub(super) fn text(caller: &Caller<'_>, text: &str) -> Option<String> {
    let memlock = caller.server.memlock.as_ref()?;
    let kernels = memlock::of_text(text)?;
    let shown = memlock.shown(kernels);
    (shown != kernels).then(|| memlock::with_limit(text, shown))
}

fn refuse(caller: &Caller<'_>, error: Error) -> Decision {
    if let Some(trace) = &caller.server.trace {
        trace.other(caller.task.process.pid(), "prlimit64", "RLIMIT_MEMLOCK", Err(error));
    }
    Decision::error(error.errno)
}

fn read(caller: &Caller<'_>, address: u64) -> Result<Limit> {
    let mut bytes = [0; 16];
    caller.read(address, &mut bytes)?;
    let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    Ok(Limit { current: word(0), maximum: word(8) })
}

/// Whether a limit can be at all; the kernel answers one that cannot.
///
/// # Errors
///
/// `EPERM` when the hard limit is raised without CAP_SYS_RESOURCE (`do_prlimit`, kernel/sys.c).
fn judge(caller: &Caller<'_>, wanted: Limit, shown: Limit) -> Result<bool> {
    if wanted.current > wanted.maximum {
        return Ok(false);
    }
    if wanted.maximum > shown.maximum && !caller.account().sys_resource {
        let why = "raising the hard limit needs CAP_SYS_RESOURCE";
        return Err(Error::at(Errno::EPERM, why, wanted.maximum));
    }
    Ok(true)
}

/// The process whose limit it is.
struct Target {
    tid: Pid,
    directory: OwnedFd,
}

impl Target {
    /// The caller's own for 0, else the one that the caller calls `pid`; `None` for one that is left to the kernel: in
    /// another user namespace than the program started in, or not the caller's to look at.
    ///
    /// DIFFERS: so is another process's limit for a caller with another /proc than ours, in a PID namespace of its own.
    fn of(caller: &Caller<'_>, pid: i32) -> Result<Option<Self>> {
        let own = Pid::from_raw(caller.task.tid.cast_signed()).expect("the number of a thread");
        let named = if pid == 0 { Some(own) } else { Pid::from_raw(pid).filter(|_| pid > 0) };
        let Some(tid) = named else { return Ok(None) };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let path = format!("/proc/{}", tid.as_raw_nonzero());
        let gone = Error::new(Errno::ESRCH, "no such process");
        let directory = rustix::fs::open(path, flags, Mode::empty()).map_err(|_| gone)?;
        let target = Self { tid, directory };
        if tid != own && !target.may_be_asked_about(caller) {
            return Ok(None);
        }
        let is_ours = namespace(&target.directory, "ns/user") == caller.server.user_namespace;
        Ok((is_ours && caller.is_there()).then_some(target))
    }

    /// Whether it is the caller's to ask about (`check_prlimit_permission`, kernel/sys.c), as far as its directory's owner
    /// says; and the number it was found by means the same to the caller.
    fn may_be_asked_about(&self, caller: &Caller<'_>) -> bool {
        let own = format!("/proc/{}", caller.task.tid);
        let here = namespace(rustix::fs::CWD, "/proc/self/ns/pid");
        if here.is_none() || namespace(rustix::fs::CWD, &format!("{own}/ns/pid")) != here {
            return false;
        }
        let owner = |stat: rustix::io::Result<rustix::fs::Stat>| stat.ok().map(|stat| stat.st_uid);
        let theirs = owner(rustix::fs::fstat(&self.directory));
        theirs.is_some() && theirs == owner(rustix::fs::stat(own)) || caller.account().sys_resource
    }

    /// Its limit as the kernel has it.
    ///
    /// # Errors
    ///
    /// `ESRCH` when it has ended.
    fn limit(&self) -> Result<Limit> {
        let gone = Error::new(Errno::ESRCH, "the process has ended");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.directory, "limits", flags, Mode::empty());
        let mut text = [0; TEXT_MAX];
        let length = rustix::io::read(file.map_err(|_| gone)?, &mut text).map_err(|_| gone)?;
        std::str::from_utf8(&text[..length]).ok().and_then(memlock::of_text).ok_or(gone)
    }

    /// Sets its limit.
    ///
    /// # Errors
    ///
    /// `EPERM` when somebody traces it, `ESRCH` when it has ended, `EAGAIN` without another thread.
    fn set(&self, limit: Limit) -> Result<()> {
        // A thread that ends lets go of its tracees, which need not stop for that.
        let setting = std::thread::scope(|scope| {
            let setter = std::thread::Builder::new().name("limit".to_owned());
            let thread = setter.spawn_scoped(scope, || self.set_as_tracer(limit));
            thread.ok().and_then(|thread| thread.join().ok())
        });
        setting.unwrap_or(Err(Error::new(Errno::EAGAIN, "no thread to set a limit with")))
    }

    fn set_as_tracer(&self, limit: Limit) -> Result<()> {
        let tid = self.tid.as_raw_nonzero().get().cast_unsigned();
        let (tracer, mut turns) = (Tracer::new(), 0);
        while let Err(error) = tracer.seize(tid, Follow::Alone) {
            turns += 1;
            if error.errno != Errno::EPERM || turns == TURNS {
                let why = "the process is traced by another, so that its limit cannot be set";
                return Err(Error { why, ..error });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.limit()?;
        let value = |value| (value != INFINITY).then_some(value);
        let limit = Rlimit { current: value(limit.current), maximum: value(limit.maximum) };
        rustix::process::prlimit(Some(self.tid), Resource::Memlock, limit)
            .map(drop)
            .map_err(because("the kernel refuses the limit"))
    }
}

/// Device and inode of a namespace.
fn namespace(directory: impl AsFd, path: &str) -> Option<(u64, u64)> {
    let stat = rustix::fs::statat(directory, path, AtFlags::empty()).ok()?;
    Some((stat.st_dev, stat.st_ino))
}
