//! Pages of a device that a program maps and whose every store acts at once: the trap engine.
//!
//! A program that maps such a page is seized with all its threads, and the page is made read-only in it by an mprotect that the
//! mapping thread is made to call before its mmap returns. Loads are plain ones then, of memory in which the model shows
//! what a load would give. A store faults: the kernel stops the thread on its way to SIGSEGV, the instruction is done
//! here ([`fault`]), and the thread goes on behind it, without having seen a signal.
//!
//! Linux binds tracees to the thread that seized them. Each process that is not a tracee's child has such a thread of its own,
//! which serves it and whatever it forks (a [`family`]): a program that makes its tracer wait, by memory that does
//! not come or a device that is busy with it, keeps itself waiting and nobody else. What a tracer must know of a fault it asks
//! the kernel each time: which file is mapped at its address. So munmap, mremap and fork need no help.
//!
//! No lock is held while a tracer works. `Traps::families` comes before a family's queue.
//!
//! DIFFERS: a process that runs a virtual machine of KVM's is not seized, since the kernel would not let the machine store to a page
//! that the process may only read. Its registers are shared memory that the model polls.
//!
//! DIFFERS: a program that makes such a page writable again with an mprotect(2) of its own stores to shared memory, which
//! the model polls.

mod action;
mod family;
mod fault;
mod space;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::process::ExitStatus;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result};
use ioasis_vfio::DeviceFile;

use family::{Command, Family};

/// What a tracer asks of the rest of the supervisor.
pub(crate) trait Surroundings: fmt::Debug + Send + Sync {
    /// The device whose open file this is.
    fn device(&self, dev: u64, inode: u64) -> Option<Arc<DeviceFile>>;

    /// A tracee ended and was reaped.
    fn ended(&self, pid: u32, status: ExitStatus);

    /// Says something to the user.
    fn say(&self, text: &str);
}

/// A mapping that is about to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// Of the file.
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// `PROT_*`, as asked for.
    pub(crate) protection: u64,
    /// Which of it is trapped, by offset in the file.
    pub(crate) trapped: Vec<Range<u64>>,
}

/// Every process that has mapped a trapped page.
#[derive(Debug)]
pub(crate) struct Traps {
    surroundings: Arc<dyn Surroundings>,
    /// By process; one with the number of an ended one is found out by its tracer.
    families: Arc<Mutex<BTreeMap<u32, Arc<Family>>>>,
}

/// How long a tracer is given to hear a wake before the next.
const PATIENCE: Duration = Duration::from_millis(2);
/// How often it is woken before it is given up: it is in the middle of something of its program's.
const WAKES: u32 = 500;

impl Traps {
    pub(crate) fn new(surroundings: Arc<dyn Surroundings>) -> Self {
        Self { surroundings, families: Arc::default() }
    }

    /// Sees to it that the thread `tid` of the process `pid`, which waits for the answer to its mmap, stops when that
    /// returns, and makes the pages inaccessible then. The kernel must be let to go on with the mmap.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the process cannot be traced, `EAGAIN` when there is no thread to trace it, `EBUSY` when its tracer
    /// does not answer.
    pub(crate) fn prepare(&self, tid: u32, pid: u32, mapping: Mapping) -> Result<()> {
        let (reply, answer) = mpsc::channel();
        let family = self.tell(pid, Command::Map { tid, pid, mapping, reply })?;
        for _ in 0..WAKES {
            match answer.recv_timeout(PATIENCE) {
                Ok(result) => return result,
                Err(mpsc::RecvTimeoutError::Timeout) => family.wake(),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
        Err(Error::at(Errno::EBUSY, "the tracer of the process does not answer", pid.into()))
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
            family.set_action(pid, action::Action::of(bytes));
        }
    }

    /// Whether `pid` is traced.
    pub(crate) fn is_traced(&self, pid: u32) -> bool {
        self.families.lock().contains_key(&pid)
    }

    /// Tells the tracer of `pid`, or a new one.
    fn tell(&self, pid: u32, command: Command) -> Result<Arc<Family>> {
        let mut families = self.families.lock();
        let command = match families.get(&pid) {
            Some(family) => match family.tell(command) {
                Ok(()) => {
                    family.wake();
                    return Ok(Arc::clone(family));
                }
                Err(command) => command,
            },
            None => command,
        };
        let (surroundings, others) = (Arc::clone(&self.surroundings), Arc::clone(&self.families));
        let family = Family::start(surroundings, others, command)?;
        families.insert(pid, Arc::clone(&family));
        Ok(family)
    }
}
