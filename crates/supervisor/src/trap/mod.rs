//! Pages of a device that a program maps and whose every store acts at once: the trap engine.
//!
//! A program that maps such a page is seized with all its threads, and the page is made read-only in it by an mprotect that the
//! mapping thread is made to call before its mmap returns. Loads are plain ones then, of memory in which the model shows
//! what a load would give. A store faults: the kernel stops the thread on its way to SIGSEGV, the instruction is done
//! here ([`fault`]), and the thread goes on behind it, without having seen a signal. A page of registers that loads change is made
//! inaccessible, and loads are done here as well.
//!
//! A process with a handler that does not begin calls anew is seized as well ([`Traps::watch`]): a call that is stopped and that a
//! signal interrupts before it was received would fail with EINTR, which Linux never answers there. Its tracer sees each signal
//! before it is delivered, and has the call made again after the handler.
//!
//! Linux binds tracees to the thread that seized them. Each process that is not a tracee's child has such a thread of its own,
//! which serves it and whatever it forks (a [`family`]): a program that makes its tracer wait, by memory that does
//! not come or a device that is busy with it, keeps itself waiting and nobody else. What a tracer must know of a fault it asks
//! the kernel each time: which file is mapped at its address. So munmap, mremap and fork need no help.
//!
//! A thread is let go of before it executes a program ([`Traps::executes`]): the kernel runs one that is to have more rights
//! without them, or traces it on, when it is traced (`cap_bprm_creds_from_file`, security/commoncap.c), and the number of the
//! thread may become another's in that moment. While a thread is in such a call, no other of its process is seized: seizing
//! waits for the call, and the call for the tracer to reap the others (`de_thread`, fs/exec.c).
//!
//! A tracer keeps the supervisor's user and capabilities. With a program's own user for its real one it could seize without
//! CAP_SYS_PTRACE, and that user could kill it, and the supervisor with it (`kill_ok_by_cred`, kernel/signal.c).
//!
//! No lock is held while a tracer works. `Traps::families` comes before a family's queue; `Traps::away` and `Traps::native` are
//! leaves.
//!
//! DIFFERS: a process that runs a virtual machine of KVM's is not seized, since the kernel would not let the machine store to a page
//! that the process may only read. Its registers are shared memory that the model polls.
//!
//! DIFFERS: a program that makes such a page writable again with an mprotect(2) of its own stores to shared memory, which
//! the model polls. One that makes a page inaccessible whose loads are trapped finds it as before.

mod action;
mod family;
mod fault;
mod space;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use ioasis_sys::seccomp::Call;
use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result};
use ioasis_vfio::DeviceFile;

use crate::doorbell::Coming;
pub(crate) use action::Action;
use family::{Command, Family, Known, NewMapping};

/// What a tracer asks of the rest of the supervisor.
pub(crate) trait Surroundings: fmt::Debug + Send + Sync {
    /// The device whose open file this is.
    fn device(&self, dev: u64, inode: u64) -> Option<Arc<DeviceFile>>;

    /// Whether the call of thread `tid`, which a signal interrupted, was stopped and not received.
    fn was_missed(&self, tid: u32, call: &Call) -> bool;

    /// A tracee ended and was reaped.
    fn ended(&self, pid: u32, status: ExitStatus);

    /// Says something to the user.
    fn say(&self, text: &str);

    /// Says something in the trace.
    fn note(&self, text: &str);
}

/// A mapping that is about to be made; of one that is moved nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// Of the file.
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// `PROT_*`, as asked for.
    pub(crate) protection: u64,
    /// Which of it is trapped, by offset in the file.
    pub(crate) trapped: Vec<Range<u64>>,
    /// Where of that loads are as well.
    pub(crate) trapped_loads: Vec<Range<u64>>,
}

/// Every process that has mapped a trapped page.
#[derive(Debug)]
pub(crate) struct Traps {
    surroundings: Arc<dyn Surroundings>,
    /// By process; one with the number of an ended one is found out by its tracer.
    families: Arc<Mutex<BTreeMap<u32, Arc<Family>>>>,
    /// Threads that were let go of before an execve and have not been heard of since.
    away: Mutex<BTreeMap<u32, Known>>,
    /// Whether there are any.
    is_any_away: AtomicBool,
    /// Calls of traced threads that the kernel went on with and that may be interrupted as on Linux.
    native: Mutex<BTreeMap<u32, Call>>,
    /// Whether there are any.
    is_any_native: AtomicBool,
    /// Whether a family has ever been started.
    was_any: AtomicBool,
}

/// How a thread goes on with its execve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Executes {
    /// As if nobody had looked: nobody traces it.
    Now,
    /// It makes the call again, when it has been let go of.
    Again,
}

/// Tracing threads that there are for the sake of handlers: each may be another client's.
const WATCHED: usize = 256;
/// Threads remembered that were let go of.
const AWAY: usize = 256;

/// How long a tracer is given to hear a wake before the next.
const PATIENCE: Duration = Duration::from_millis(2);
/// How often it is woken before it is given up: it is in the middle of something of its program's.
const WAKES: u32 = 500;

impl Traps {
    pub(crate) fn new(surroundings: Arc<dyn Surroundings>) -> Self {
        Self {
            surroundings,
            families: Arc::default(),
            away: Mutex::default(),
            is_any_away: AtomicBool::new(false),
            native: Mutex::default(),
            is_any_native: AtomicBool::new(false),
            was_any: AtomicBool::new(false),
        }
    }

    /// Sees to it that the thread `tid` of the process `pid`, which waits for the answer to its mmap, stops when that
    /// returns, and makes the pages inaccessible then; also that of the doorbells which are `coming` every store is told. The
    /// kernel must be let to go on with the mmap.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the process cannot be traced, `EAGAIN` when there is no thread to trace it, `EBUSY` when its tracer
    /// does not answer.
    pub(crate) fn prepare(
        &self,
        (tid, pid): (u32, u32),
        mapping: Mapping,
        coming: Option<Coming>,
        is_executing: impl Fn() -> bool,
    ) -> Result<()> {
        let (reply, answer) = mpsc::channel();
        let mapping = Box::new(NewMapping { mapping, coming });
        let map = Command::Map { tid, pid, mapping, reply };
        match self.tell(pid, map, is_executing)? {
            Some(family) => heard(&family, &answer)?,
            // The program is about to be another one. Until then its stores are found by polling.
            None => Ok(()),
        }
    }

    /// The process `pid` is about to have a handler that makes calls fail with EINTR: each signal is looked at before it is
    /// delivered, from here on. A process that somebody else traces is left alone.
    pub(crate) fn watch(&self, (tid, pid): (u32, u32), is_executing: impl Fn() -> bool) {
        if self.are_many() {
            return;
        }
        let (reply, answer) = mpsc::channel();
        if let Ok(Some(family)) = self.tell(pid, Command::Watch { tid, pid, reply }, is_executing) {
            let _ = heard(&family, &answer);
        }
    }

    /// Whether there are so many tracing threads that the next is kept for a program that maps trapped pages.
    fn are_many(&self) -> bool {
        let families = self.families.lock();
        families.len() >= WATCHED
            && families.values().map(Arc::as_ptr).collect::<BTreeSet<_>>().len() >= WATCHED
    }

    /// Somebody with the user id `uid` is about to trace the thread `tid`: lets go of its process, unless that has trapped
    /// pages. The kernel judges whether he may; of another user's process it is known that he may not.
    pub(crate) fn let_go(&self, tid: u32, uid: u32) {
        if uid != 0 && family::user(tid) != Some(uid) {
            return;
        }
        let Some(tracer) = family::status_number(tid, "TracerPid:") else { return };
        let Some(pid) = family::status_number(tid, "Tgid:") else { return };
        let families = self.families.lock().clone();
        let Some(family) = families.values().find(|family| family.is(tracer)) else { return };
        let (reply, answer) = mpsc::channel();
        if family.tell(Command::LetGo { pid, reply }).is_ok() {
            family.wake();
            let _ = heard(family, &answer);
        }
    }

    /// The thread `tid` of the process `pid` waits for the answer to an execve: it must not be traced when the kernel
    /// goes on with that. Whoever asks has it written down before, where `is_executing` of other calls finds it.
    ///
    /// # Errors
    ///
    /// `EBUSY` when its tracer does not answer, `EMFILE` where it cannot be found out who that is.
    pub(crate) fn executes(&self, tid: u32, pid: u32) -> Result<Executes> {
        let families = self.families.lock().clone();
        let family = match families.get(&pid) {
            Some(family) => family,
            None => {
                let unknown = Error::at(Errno::EMFILE, "its tracer is not found out", pid.into());
                let tracer = family::status_number(tid, "TracerPid:").ok_or(unknown)?;
                match families.values().find(|family| family.is(tracer)) {
                    Some(family) => family,
                    None => return Ok(Executes::Now),
                }
            }
        };
        let (reply, answer) = mpsc::channel();
        if family.tell(Command::Release { tid, reply }).is_err() {
            return Ok(Executes::Now);
        }
        family.wake();
        let Some(known) = heard(family, &answer)? else { return Ok(Executes::Now) };
        let mut away = self.away.lock();
        if away.len() >= AWAY {
            away.retain(|tid, _| std::fs::exists(format!("/proc/{tid}")).unwrap_or(true));
        }
        away.insert(tid, known);
        self.is_any_away.store(true, Ordering::Release);
        Ok(Executes::Again)
    }

    /// Whether nobody has ever been seized, or all have ended.
    pub(crate) fn is_idle(&self) -> bool {
        !self.was_any.load(Ordering::Acquire) || self.families.lock().is_empty()
    }

    /// The kernel goes on with the call of thread `tid`, which may wait and be interrupted as on Linux; or, with none, the thread
    /// has made another.
    pub(crate) fn goes_on(&self, tid: u32, call: Option<Call>) {
        if call.is_none() && !self.is_any_native.load(Ordering::Acquire) {
            return;
        }
        let mut native = self.native.lock();
        if native.len() >= AWAY {
            native.retain(|tid, _| std::fs::exists(format!("/proc/{tid}")).unwrap_or(true));
        }
        match call {
            Some(call) => native.insert(tid, call),
            None => native.remove(&tid),
        };
        self.is_any_native.store(!native.is_empty(), Ordering::Release);
    }

    /// Whether the kernel went on with this call of the thread's, and the thread has made no other since that was received.
    pub(crate) fn is_native(&self, tid: u32, call: &Call) -> bool {
        self.native.lock().get(&tid) == Some(call)
    }

    /// Whether the thread `tid` was let go of.
    pub(crate) fn is_away(&self, tid: u32) -> bool {
        self.is_any_away.load(Ordering::Acquire) && self.away.lock().contains_key(&tid)
    }

    /// The thread `tid` of the process `pid`, which was let go of, waits in another call: its execve has failed, or this is
    /// the program it has executed. In the first case it is seized again.
    pub(crate) fn returns(&self, tid: u32, pid: u32, is_executing: impl Fn() -> bool) {
        let known = {
            let mut away = self.away.lock();
            let known = away.remove(&tid);
            self.is_any_away.store(!away.is_empty(), Ordering::Release);
            known
        };
        let Some(known) = known.filter(|known| known.is_of(tid, &*self.surroundings)) else {
            return;
        };
        let (reply, answer) = mpsc::channel();
        let told = self.tell(pid, Command::Return { tid, pid, known, reply }, is_executing);
        if let Ok(Some(family)) = told {
            let _ = heard(&family, &answer);
        }
    }

    /// Whether stores of the process `pid` are made by the kernel as well, for a virtual machine.
    pub(crate) fn runs_a_machine(pid: u32) -> bool {
        let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        let is_machine = |path: std::path::PathBuf| path.as_os_str() == "anon_inode:kvm-vm";
        entries.flatten().any(|entry| std::fs::read_link(entry.path()).is_ok_and(is_machine))
    }

    /// A thread of the process `pid` is about to set what becomes of SIGSEGV, to what `bytes` say.
    pub(crate) fn acts(&self, pid: u32, bytes: &[u8]) {
        let family = self.families.lock().get(&pid).cloned();
        if let Some(family) = family {
            family.set_action(pid, Action::of(bytes));
        }
    }

    /// Whether `pid` is traced.
    pub(crate) fn is_traced(&self, pid: u32) -> bool {
        self.families.lock().contains_key(&pid)
    }

    /// Tells the tracer of `pid`, or a new one; nobody while another thread of it is in an execve. One that comes to it
    /// after this has looked finds the tracer and waits for it.
    fn tell(
        &self,
        pid: u32,
        command: Command,
        is_executing: impl Fn() -> bool,
    ) -> Result<Option<Arc<Family>>> {
        let mut families = self.families.lock();
        if is_executing() {
            return Ok(None);
        }
        let command = match families.get(&pid) {
            Some(family) => match family.tell(command) {
                Ok(()) => {
                    family.wake();
                    return Ok(Some(Arc::clone(family)));
                }
                Err(command) => command,
            },
            None => command,
        };
        let (surroundings, others) = (Arc::clone(&self.surroundings), Arc::clone(&self.families));
        self.was_any.store(true, Ordering::Release);
        let family = Family::start(surroundings, others, command)?;
        families.insert(pid, Arc::clone(&family));
        Ok(Some(family))
    }
}

/// What the tracer says, which may be in the middle of something of its program's.
fn heard<T>(family: &Family, answer: &mpsc::Receiver<T>) -> Result<T> {
    for _ in 0..WAKES {
        match answer.recv_timeout(PATIENCE) {
            Ok(result) => return Ok(result),
            Err(mpsc::RecvTimeoutError::Timeout) => family.wake(),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    Err(Error::new(Errno::EBUSY, "the tracer of the process does not answer"))
}
