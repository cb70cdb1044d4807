//! A thread of a program's that is made to ask for a userfaultfd, and ends.
//!
//! A userfaultfd belongs to the memory of whoever makes it, so the program must. But a descriptor
//! that shows in its table, even for a moment, takes a number that the program may be about to be
//! given, and goes to whatever it forks. So the thread that maps doorbells is made to make another
//! one (clone(2)), which shares its memory and has a copy of its table: that one asks, the
//! descriptor is fetched from its table by a pidfd of the thread (Linux 6.9), and it ends before
//! the first goes on. It blocks all signals and never runs an instruction of the program's but the
//! one that makes a system call; its stack pointer is none, so that it would not get far if its
//! tracer were killed.

use std::os::fd::AsFd;

use ioasis_sys::process;
use ioasis_sys::ptrace::{Event, Outcome, Resume};
use ioasis_sys::userfault::{self, Userfault};
use ioasis_uapi::{Errno, Error, Result};

use super::{Job, Known, Tracing};
use crate::descriptors;
use crate::doorbell::{Coming, Watched};

/// `CLONE_VM | CLONE_SIGHAND | CLONE_THREAD` (linux/sched.h).
const SHARED: u64 = 0x100 | 0x800 | 0x1_0000;
/// Where its stack would be: in the first page, where nothing is mapped.
const NO_STACK: u64 = 16;

/// The call that makes it: number and arguments.
pub(super) const fn clone(is_32_bit: bool) -> (u32, [u64; 6]) {
    (if is_32_bit { 120 } else { 56 }, [SHARED, NO_STACK, 0, 0, 0, 0])
}

/// The call that it is there for.
pub(super) const fn userfaultfd(is_32_bit: bool) -> (u32, [u64; 6]) {
    (if is_32_bit { 374 } else { 323 }, [userfault::FLAGS, 0, 0, 0, 0, 0])
}

/// The call that ends it.
pub(super) const fn exit(is_32_bit: bool) -> (u32, [u64; 6]) {
    (if is_32_bit { 1 } else { 60 }, [0; 6])
}

impl Tracing {
    /// A stop that has to do with who made whom: whether there is nothing else to do about it.
    pub(super) fn is_an_errand(&mut self, tid: u32, event: Event) -> Result<bool> {
        let Some(thread) = self.threads.get_mut(&tid) else { return Ok(false) };
        if std::mem::take(&mut thread.is_new) {
            let pid = thread.pid;
            if self.errands.contains_key(&tid) {
                return self.next(tid, Job::AskUserfault).map(|()| true);
            }
            let makes = |job: &Job| matches!(job, Job::MakeThread);
            let is_maker = |(maker, of): (&u32, &super::Thread)| {
                of.pid == pid
                    && of.running.as_ref().is_some_and(|(_, job)| makes(job))
                    && !self.errands.values().any(|asker| asker == maker)
            };
            let held = self.threads.iter().any(is_maker);
            if let Some(thread) = self.threads.get_mut(&tid) {
                thread.is_held = held;
            }
            return Ok(held);
        }
        let makes = thread.running.as_ref().is_some_and(|(_, job)| matches!(job, Job::MakeThread));
        if makes && matches!(event, Event::Thread | Event::Process) {
            let (made, pid) = (self.tracer.message(tid)?, thread.pid);
            self.errands.insert(made, tid);
            self.release_held(pid);
            if self.threads.get(&made).is_some_and(|thread| !thread.is_new) {
                self.next(made, Job::AskUserfault)?;
            }
        }
        Ok(false)
    }

    /// Threads of the process that were held go on, but for one that has an errand.
    fn release_held(&mut self, pid: u32) {
        for (tid, thread) in &mut self.threads {
            if thread.pid == pid
                && std::mem::take(&mut thread.is_held)
                && !self.errands.contains_key(tid)
            {
                // One that was killed does not.
                let _ = self.tracer.resume(*tid, Resume::Continue, 0);
            }
        }
    }

    /// The thread that maps doorbells has made another, or could not.
    pub(super) fn has_made_a_thread(&mut self, tid: u32, outcome: Outcome) -> Result<()> {
        let is_on_its_way = self.errands.values().any(|asker| *asker == tid);
        let Some(thread) = self.threads.get_mut(&tid) else { return Ok(()) };
        if outcome.signal != 0 {
            thread.jobs.clear();
            thread.coming = None;
            return self.go_on(tid, outcome.signal);
        }
        if is_on_its_way {
            thread.waits = true;
            return Ok(());
        }
        let pid = thread.pid;
        if let Err(errno) = outcome.result
            && let Some(coming) = thread.coming.take()
        {
            self.is_not_told(pid, &coming, Error::new(errno, "it cannot make a thread"));
        }
        self.release_held(pid);
        self.go_on_from_errand(tid)
    }

    /// The thread that was made for it has asked for a userfaultfd, or is about to end.
    pub(super) fn has_asked(
        &mut self,
        tid: u32,
        outcome: Outcome,
        is_at_its_end: bool,
    ) -> Result<()> {
        let asker = self.errands.get(&tid).and_then(|asker| self.threads.get_mut(asker));
        if is_at_its_end {
            // A filter of the program's own forbids it. It stands still from here on.
            return match self.errands.remove(&tid) {
                Some(asker) => self.errand_is_over(asker),
                None => Ok(()),
            };
        }
        if let Some(asker) = asker
            && let Some(coming) = asker.coming.take()
        {
            let got = outcome.result.map_err(|errno| Error::new(errno, "it gets no userfaultfd"));
            match got.and_then(|fd| fetch(tid, fd)) {
                Ok(fault) => {
                    coming.give(fault);
                    coming.settled();
                }
                Err(error) => {
                    let pid = asker.pid;
                    self.is_not_told(pid, &coming, error);
                }
            }
        }
        self.next(tid, Job::End)
    }

    /// The thread that was made is gone, and the one that made it goes on.
    pub(super) fn errand_is_over(&mut self, asker: u32) -> Result<()> {
        let Some(thread) = self.threads.get_mut(&asker) else { return Ok(()) };
        thread.coming = None;
        if std::mem::take(&mut thread.waits) { self.go_on_from_errand(asker) } else { Ok(()) }
    }

    fn go_on_from_errand(&mut self, tid: u32) -> Result<()> {
        let registers = self.tracer.registers(tid)?;
        self.next_job(tid, &registers)
    }

    /// Has the thread do this, whatever else it was to do.
    fn next(&mut self, tid: u32, job: Job) -> Result<()> {
        if let Some(thread) = self.threads.get_mut(&tid) {
            thread.jobs.clear();
            thread.jobs.push_back(job);
        }
        self.go_on_from_errand(tid)
    }

    fn is_not_told(&self, pid: u32, coming: &Coming, error: Error) {
        if coming.is_news() {
            self.surroundings.note(&format!(
                "[pid {pid}] doorbells of an idle device are found by polling: {} ({})",
                error.why, error.errno
            ));
        }
    }

    /// A process was forked: which doorbells it has mapped.
    pub(super) fn inherits_doorbells(&self, known: &mut Known, tid: u32, parent: u32) {
        let of_all = self.processes.values().flat_map(|process| &process.known.doorbells);
        let mut all: Vec<&Watched> = Vec::new();
        for watched in of_all.filter(|watched| watched.is_there()) {
            if !all.iter().any(|other| other.is_same(watched)) {
                all.push(watched);
            }
        }
        if all.is_empty() {
            known.doorbells.clear();
            return;
        }
        known.borrows = Watched::is_borrowed(tid, parent);
        if !known.borrows {
            // Its parent may be another than who made it.
            all.retain(|watched| watched.are_mapped_by(tid));
            known.doorbells = all.into_iter().filter_map(|watched| watched.forked(tid)).collect();
        }
    }
}

/// What the thread `tid` got as descriptor `fd`.
///
/// # Errors
///
/// `EOPNOTSUPP` before Linux 6.9, and as [`Userfault::from_fd`].
pub(super) fn fetch(tid: u32, fd: u64) -> Result<Userfault> {
    let thread = process::Thread::open(tid)?;
    if !thread.reaches_own_table() {
        return Err(Error::new(Errno::EOPNOTSUPP, "a thread's own descriptors cannot be reached"));
    }
    let fd = i32::try_from(fd).map_err(|_| Error::at(Errno::EBADF, "no descriptor", fd))?;
    let fault = thread.fd(fd)?;
    if !descriptors::are_plenty(fault.as_fd()) {
        return Err(Error::new(Errno::EMFILE, "too many descriptors are in use"));
    }
    Userfault::from_fd(fault)
}
