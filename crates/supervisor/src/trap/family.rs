//! The thread that traces a process and whatever it forks.

mod errand;
mod status;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::ops::{Range, RangeInclusive};
use std::sync::mpsc::{SendError, Sender};
use std::sync::{Arc, OnceLock};

use ioasis_sys::ptrace::{
    BUS_ADRERR, Event, Follow, Injection, Outcome as Injected, Registers, Resume, SEGV_ACCERR,
    SEGV_MAPERR, SignalInfo, Stop, SystemCall, Tracer, Waited, Waker,
};
use ioasis_sys::seccomp::{Arch, Call};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result};
use rustix::process::Signal;

use self::status::{found_action, is_caught, status_word, threads_of};
pub(super) use self::status::{status_number, user};
use super::action::{self, Action, Kind, Mask};
use super::fault::{self, Leave, Outcome};
use super::space::Space;
use super::{Mapping, Surroundings};
use crate::doorbell::{Coming, Watched};

/// What a family's tracer is told.
#[derive(Debug)]
pub(super) enum Command {
    /// The thread is about to make this mapping.
    Map { tid: u32, pid: u32, mapping: Box<NewMapping>, reply: Sender<Result<()>> },
    /// The process has a handler that does not begin calls anew.
    Watch { tid: u32, pid: u32, reply: Sender<()> },
    /// Somebody else is about to trace the process. The answer comes when none of its threads is traced here, if that
    /// can be.
    LetGo { pid: u32, reply: Sender<()> },
    /// The thread is about to execute a program. The answer is what is known of its process, if it is let go of.
    Release { tid: u32, reply: Sender<Option<Known>> },
    /// The thread was let go of and has not executed a program.
    Return { tid: u32, pid: u32, known: Known, reply: Sender<()> },
}

/// A mapping that a thread is about to return from.
#[derive(Debug)]
pub(super) struct NewMapping {
    pub(super) mapping: Mapping,
    /// What has doorbells in it.
    pub(super) coming: Option<Coming>,
}

/// What a tracer knows of a process.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Doorbells that it has mapped.
    doorbells: Vec<Watched>,
    /// Its memory is that of the process which made it, as after a vfork.
    borrows: bool,
    /// Trapped pages that it asked for, with what leave: another access is its own mistake. The newest last.
    asked: Vec<(RangeInclusive<u64>, Leave)>,
    /// Where a system call instruction of its own lies.
    instruction: Option<u64>,
}

impl Known {
    /// Whether the memory of thread `tid` has any of the trapped pages.
    pub(super) fn is_of(&self, tid: u32, surroundings: &dyn Surroundings) -> bool {
        let Ok(space) = Space::of(tid) else { return false };
        let is_trapped = |(range, _): &(RangeInclusive<u64>, Leave)| {
            fault::is_trapped(&space, *range.start(), surroundings)
        };
        self.asked.iter().any(is_trapped)
            || self.doorbells.iter().any(|doorbells| doorbells.are_mapped_by(tid))
    }

    /// Nobody is told of what the process forks, or is again.
    fn is_let_go(&self, goes: bool) {
        if !self.borrows {
            let tell = if goes { Watched::lose } else { Watched::regain };
            self.doorbells.iter().for_each(tell);
        }
    }

    fn watches(&mut self, watched: Watched) {
        self.doorbells.retain(|other| other.is_there() && !other.is_same(&watched));
        self.doorbells.push(watched);
    }
}

type Families = Arc<Mutex<BTreeMap<u32, Arc<Family>>>>;

/// A tracer, as others see it.
#[derive(Debug)]
pub(super) struct Family {
    queue: Mutex<Queue>,
    waker: OnceLock<Waker>,
    /// What becomes of SIGSEGV, by process.
    actions: Mutex<BTreeMap<u32, Action>>,
}

#[derive(Debug, Default)]
struct Queue {
    commands: VecDeque<Command>,
    /// The thread has ended: nobody takes from the queue.
    over: bool,
}

impl Family {
    /// Starts a tracer, which ends with its last tracee. What it is told first makes it one.
    pub(super) fn start(
        surroundings: Arc<dyn Surroundings>,
        families: Families,
        first: Command,
    ) -> Result<Arc<Self>> {
        let queue = Queue { commands: VecDeque::from([first]), over: false };
        let family = Arc::new(Self {
            queue: Mutex::new(queue),
            waker: OnceLock::new(),
            actions: Mutex::default(),
        });
        let own = Arc::clone(&family);
        let run = move || Tracing::new(own, surroundings, families).run();
        let thread = std::thread::Builder::new().name("tracer".to_owned()).spawn(run);
        thread.map_err(|_| Error::new(Errno::EAGAIN, "no thread to trace with"))?;
        Ok(family)
    }

    /// Leaves a command for the tracer; gives it back if that has ended.
    pub(super) fn tell(&self, command: Command) -> Result<(), Command> {
        let mut queue = self.queue.lock();
        if queue.over {
            return Err(command);
        }
        queue.commands.push_back(command);
        Ok(())
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake();
        }
    }

    /// Whether this is the thread that traces.
    pub(super) fn is(&self, thread: u32) -> bool {
        self.waker.get().is_some_and(|waker| waker.thread() == thread)
    }

    pub(super) fn set_action(&self, pid: u32, action: Action) {
        self.actions.lock().insert(pid, action);
    }

    fn action(&self, pid: u32) -> Action {
        self.actions.lock().get(&pid).cloned().unwrap_or_default()
    }
}

/// A process whose threads are traced.
#[derive(Debug)]
struct Process {
    space: Arc<Space>,
    known: Known,
}

/// Mappings remembered of a process.
const ASKED: usize = 64;

/// A thread that is traced.
#[derive(Debug, Default)]
struct Thread {
    pid: u32,
    mask: Mask,
    /// The mapping it is about to return from.
    mapping: Option<Box<NewMapping>>,
    /// The doorbells it has mapped, until it has a userfaultfd for them.
    coming: Option<Coming>,
    /// What it does is over when another thread's errand is.
    waits: bool,
    jobs: VecDeque<Job>,
    running: Option<(Injection, Job)>,
    /// It must be interrupted before it runs its program again.
    interrupt: bool,
    /// It is let go of at its next stop.
    leaves: bool,
    /// It has just been made, and its first stop is still to come.
    is_new: bool,
    /// It stands still until it is known who made it.
    is_held: bool,
}

/// A system call that a thread is made to make.
#[derive(Debug)]
enum Job {
    Protect {
        address: u64,
        length: u64,
        protection: u64,
    },
    /// Asks what becomes of SIGSEGV; `saved` is what lay at `at`.
    AskAction {
        at: u64,
        saved: Vec<u8>,
    },
    /// Sets it, likewise.
    SetAction {
        at: u64,
        saved: Vec<u8>,
    },
    /// Makes a thread that asks for a userfaultfd ([`errand`]).
    MakeThread,
    /// Asks for it.
    AskUserfault,
    /// Ends that thread.
    End,
}

/// `-ERESTARTSYS` (linux/errno.h): what a call that is stopped answers when a signal comes before it was received
/// (`seccomp_do_user_notification`, kernel/seccomp.c). One that was received waits for its answer, whatever comes.
const NOT_RECEIVED: i64 = -512;
const PROT_READ: u64 = 1;
const PROT_WRITE: u64 = 2;
const SIGSEGV: i32 = Signal::SEGV.as_raw();
const SIGBUS: i32 = Signal::BUS.as_raw();
/// Bytes below the stack pointer that a leaf function may use.
const RED_ZONE: u64 = 128;

struct Tracing {
    tracer: Tracer,
    family: Arc<Family>,
    surroundings: Arc<dyn Surroundings>,
    families: Families,
    processes: BTreeMap<u32, Process>,
    threads: BTreeMap<u32, Thread>,
    /// Threads that ask for a userfaultfd, and for which thread.
    errands: BTreeMap<u32, u32>,
    /// Who waits for a process to be let go of.
    waiting: Vec<(u32, Sender<()>)>,
}

impl Tracing {
    fn new(family: Arc<Family>, surroundings: Arc<dyn Surroundings>, families: Families) -> Self {
        let (processes, threads, errands, waiting) = Default::default();
        let tracer = Tracer::new();
        Self { tracer, family, surroundings, families, processes, threads, errands, waiting }
    }

    fn run(mut self) {
        let _ = self.family.waker.set(self.tracer.waker());
        loop {
            let commands = std::mem::take(&mut self.family.queue.lock().commands);
            commands.into_iter().for_each(|command| self.obey(command));
            match self.tracer.wait() {
                // A request on a tracee fails only when that was killed.
                Waited::Stop(stop) => drop(self.stopped(stop)),
                Waited::Ended(tid, status) => {
                    self.forget(tid);
                    match self.errands.remove(&tid) {
                        Some(asker) => drop(self.errand_is_over(asker)),
                        None => self.surroundings.ended(tid, status),
                    }
                }
                Waited::Interrupted => {}
                Waited::Nobody if self.ends() => return,
                Waited::Nobody => {}
            }
        }
    }

    /// Nobody is traced: whether there is nothing else to do either.
    fn ends(&self) -> bool {
        let mut families = self.families.lock();
        let mut queue = self.family.queue.lock();
        queue.over = queue.commands.is_empty();
        if queue.over {
            families.retain(|_, family| !Arc::ptr_eq(family, &self.family));
        }
        queue.over
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Map { tid, pid, mapping, reply } => {
                let _ = reply.send(self.map(tid, pid, *mapping));
            }
            Command::Watch { tid, pid, reply } => {
                if !self.threads.contains_key(&tid) {
                    let _ = self.seize_all(tid, pid);
                }
                let _ = reply.send(());
            }
            Command::LetGo { pid, reply } => self.let_go(pid, reply),
            Command::Release { tid, reply } => {
                // Nobody may have waited so long.
                if let Err(SendError(known)) = reply.send(self.release(tid))
                    && let Some(thread) = self.threads.get_mut(&tid)
                {
                    thread.leaves = false;
                    known.inspect(|known| known.is_let_go(false));
                }
            }
            Command::Return { tid, pid, known, reply } => {
                self.take_back(tid, pid, known);
                let _ = reply.send(());
            }
        }
    }

    /// Lets go of all threads of the process, unless it has trapped pages.
    fn let_go(&mut self, pid: u32, reply: Sender<()>) {
        if self.processes.get(&pid).is_none_or(|process| !process.known.asked.is_empty()) {
            return;
        }
        if let Some(process) = self.processes.get(&pid) {
            process.known.doorbells.iter().for_each(Watched::let_go);
        }
        for (tid, thread) in self.threads.iter_mut().filter(|(_, thread)| thread.pid == pid) {
            thread.leaves = self.tracer.interrupt(*tid).is_ok();
        }
        self.waiting.push((pid, reply));
    }

    /// Lets go of the thread, which waits in a call, before that returns.
    fn release(&mut self, tid: u32) -> Option<Known> {
        let thread = self.threads.get_mut(&tid)?;
        if self.tracer.interrupt(tid).is_err() {
            self.forget(tid);
            return None;
        }
        thread.leaves = true;
        let process = self.processes.get(&thread.pid);
        let known = process.map_or_else(Known::default, |process| process.known.clone());
        known.is_let_go(true);
        Some(known)
    }

    /// Seizes a thread again that was let go of.
    fn take_back(&mut self, tid: u32, pid: u32, known: Known) {
        let Ok(space) = Space::of(tid) else { return };
        if self.threads.contains_key(&tid) || self.seize(tid, pid).is_err() {
            return;
        }
        known.is_let_go(false);
        if let Entry::Vacant(process) = self.processes.entry(pid) {
            process.insert(Process { space: Arc::new(space), known });
            self.family.set_action(pid, found_action(pid));
        }
    }

    /// The thread is no tracee any more.
    fn forget(&mut self, tid: u32) {
        let Some(Thread { pid, .. }) = self.threads.remove(&tid) else { return };
        if self.threads.values().all(|other| other.pid != pid) {
            self.forget_process(pid);
        }
    }

    fn forget_process(&mut self, pid: u32) {
        self.processes.remove(&pid);
        for (_, reply) in self.waiting.extract_if(.., |(waited, _)| *waited == pid) {
            let _ = reply.send(());
        }
        self.family.actions.lock().remove(&pid);
        let mut families = self.families.lock();
        if families.get(&pid).is_some_and(|family| Arc::ptr_eq(family, &self.family)) {
            families.remove(&pid);
        }
    }

    /// Lets the thread stop behind the mmap that it waits in.
    fn map(&mut self, tid: u32, pid: u32, mapping: NewMapping) -> Result<()> {
        if !self.threads.contains_key(&tid) || self.tracer.interrupt(tid).is_err() {
            self.seize_all(tid, pid)?;
            self.tracer.interrupt(tid)?;
        }
        if let Some(thread) = self.threads.get_mut(&tid) {
            thread.mapping = Some(Box::new(mapping));
        }
        Ok(())
    }

    /// Seizes every thread of the process, `first` first.
    fn seize_all(&mut self, first: u32, pid: u32) -> Result<()> {
        self.seize(first, pid)?;
        let action = found_action(pid);
        let space = Arc::new(Space::of(first)?);
        let process = Process { space, known: Known::default() };
        self.processes.insert(pid, process);
        self.family.set_action(pid, action);
        // A thread that was seized seizes what it makes, so this ends.
        loop {
            let others = threads_of(pid).into_iter().filter(|tid| !self.threads.contains_key(tid));
            let others: Vec<u32> = others.collect();
            if others.is_empty() {
                return Ok(());
            }
            let mut seized = 0;
            for tid in others {
                match self.seize(tid, pid) {
                    Ok(()) => seized += 1,
                    Err(error) if error.errno == Errno::ESRCH => {}
                    Err(error) => return Err(error),
                }
            }
            if seized == 0 {
                return Ok(());
            }
        }
    }

    fn seize(&mut self, tid: u32, pid: u32) -> Result<()> {
        let refused = |error: Error| match error.errno {
            Errno::EPERM => Error::at(
                Errno::EINVAL,
                "its stores cannot be trapped: the process is traced by another, as by gdb or strace, or forbids it; with \
                 --trap-stores=off they are found by polling",
                pid.into(),
            ),
            _ => error,
        };
        self.tracer.seize(tid, Follow::Children).map_err(refused)?;
        let mask = status_word(pid, tid, "SigBlk:").map_or_else(Mask::default, Mask::new);
        self.threads.insert(tid, Thread { pid, mask, ..Thread::default() });
        Ok(())
    }

    fn stopped(&mut self, Stop { tid, event }: Stop) -> Result<()> {
        if event == Event::Exit && self.errands.contains_key(&tid) {
            return self.tracer.resume(tid, Resume::Continue, 0);
        }
        if event == Event::Exit {
            // Its parent hears of it as it would without us: at once, and in the order of pidfd and waitpid(2).
            self.forget(tid);
            return self.tracer.detach(tid, 0);
        }
        if !self.threads.contains_key(&tid) {
            self.adopt(tid);
        }
        if self.is_an_errand(tid, event)? {
            return Ok(());
        }
        let Some(thread) = self.threads.get_mut(&tid) else { return Ok(()) };
        if thread.leaves && thread.running.is_none() {
            let signal = if let Event::Signal(signal) = event { signal } else { 0 };
            let detached = self.tracer.detach(tid, signal);
            self.forget(tid);
            return detached;
        }
        if let Some((injection, _)) = &mut thread.running {
            return match injection.next(&self.tracer, event)? {
                Some(outcome) => self.injected(tid, outcome),
                None => Ok(()),
            };
        }
        match event {
            Event::Signal(SIGSEGV) => self.segv(tid),
            Event::Signal(signal) => {
                self.make_again(tid)?;
                self.tracer.resume(tid, Resume::Continue, signal)
            }
            Event::Interrupted | Event::Group(_) if thread.mapping.is_some() => {
                thread.interrupt = matches!(event, Event::Group(_));
                self.mapped(tid)
            }
            Event::Group(_) => self.tracer.listen(tid),
            Event::Exec => self.executes(tid),
            _ => self.tracer.resume(tid, Resume::Continue, 0),
        }
    }

    /// Takes on a thread or process that a tracee has made.
    fn adopt(&mut self, tid: u32) {
        let pid = status_number(tid, "Tgid:").unwrap_or(tid);
        let mask = self.tracer.signal_mask(tid).map_or_else(|_| Mask::default(), Mask::new);
        self.threads.insert(tid, Thread { pid, mask, is_new: true, ..Thread::default() });
        if self.processes.contains_key(&pid) {
            return;
        }
        let Ok(space) = Space::of(tid) else { return };
        let parent = status_number(tid, "PPid:").unwrap_or(0);
        let mut known =
            self.processes.get(&parent).map_or_else(Known::default, |of| of.known.clone());
        self.inherits_doorbells(&mut known, tid, parent);
        self.processes.insert(pid, Process { space: Arc::new(space), known });
        self.family.set_action(pid, self.family.action(parent));
        self.families.lock().insert(pid, Arc::clone(&self.family));
    }

    /// The thread runs another program now, which has no trapped page. It should have been let go of before.
    fn executes(&mut self, tid: u32) -> Result<()> {
        self.threads.retain(|_, thread| thread.pid != tid);
        self.forget_process(tid);
        self.tracer.detach(tid, 0)
    }

    /// The thread is behind its mmap: takes the trapped pages of it away.
    fn mapped(&mut self, tid: u32) -> Result<()> {
        let registers = self.tracer.registers(tid)?;
        let Some(thread) = self.threads.get_mut(&tid) else { return Ok(()) };
        let (Some(new), Some(process)) =
            (thread.mapping.take(), self.processes.get_mut(&thread.pid))
        else {
            return self.go_on(tid, 0);
        };
        let NewMapping { mapping, coming } = *new;
        let start = registers.rax;
        if start >= u64::MAX - 4095 {
            if let Some(coming) = coming {
                coming.failed();
            }
            return self.go_on(tid, 0);
        }
        let instruction = SystemCall::instruction_before(&registers);
        process.known.instruction = is_system_call(&process.space, instruction, &registers)
            .then_some(instruction)
            .or(process.known.instruction);
        if self.family.action(thread.pid).is_unknown()
            && let Some((at, saved)) = scratch(&process.space, &registers)
        {
            thread.jobs.push_back(Job::AskAction { at, saved });
        }
        let leave = Leave {
            load: mapping.protection & (PROT_READ | PROT_WRITE) != 0,
            store: mapping.protection & PROT_WRITE != 0,
        };
        let of =
            |range: &Range<u64>| (start + (range.start - mapping.offset), range.end - range.start);
        for (address, length) in mapping.trapped.iter().map(of) {
            process.known.asked.push((address..=address + (length - 1), leave));
            if leave.store {
                let protection = mapping.protection & !PROT_WRITE | PROT_READ;
                thread.jobs.push_back(Job::Protect { address, length, protection });
            }
        }
        for (address, length) in mapping.trapped_loads.iter().map(of) {
            if leave.load {
                thread.jobs.push_back(Job::Protect { address, length, protection: 0 });
            }
        }
        if let Some(coming) = coming {
            process.known.watches(coming.watched());
            if coming.lacks_fault() {
                thread.jobs.push_back(Job::MakeThread);
                thread.coming = Some(coming);
            } else {
                coming.settled();
            }
        }
        let surplus = process.known.asked.len().saturating_sub(ASKED);
        process.known.asked.drain(..surplus);
        self.next_job(tid, &registers)
    }

    /// The thread is about to take a signal. A call that was stopped and that the signal interrupted before it was received, which
    /// Linux never does, is made after the handler, as if the signal had come just before it.
    fn make_again(&mut self, tid: u32) -> Result<()> {
        let mut registers = self.tracer.registers(tid)?;
        if registers.rax.cast_signed() != NOT_RECEIVED || registers.orig_rax.cast_signed() < 0 {
            return Ok(());
        }
        let pid = self.threads.get(&tid).map_or(tid, |thread| thread.pid);
        let Some(process) = self.processes.get(&pid) else { return Ok(()) };
        let instruction = SystemCall::instruction_before(&registers);
        if is_system_call(&process.space, instruction, &registers)
            && self.surroundings.was_missed(tid, &call(&registers))
        {
            // As the kernel does where there is no handler (`arch_do_signal_or_restart`, arch/x86/kernel/signal.c).
            registers.rip = instruction;
            registers.rax = registers.orig_rax;
            registers.orig_rax = u64::MAX;
            self.tracer.set_registers(tid, &registers)?;
        }
        Ok(())
    }

    /// Begins the thread's next system call, or lets it go on.
    fn next_job(&mut self, tid: u32, registers: &Registers) -> Result<()> {
        let Some(thread) = self.threads.get_mut(&tid) else { return Ok(()) };
        let Some(job) = thread.jobs.pop_front() else { return self.go_on(tid, 0) };
        let process = self.processes.get(&thread.pid);
        let instruction = process.and_then(|process| {
            let instruction = process.known.instruction?;
            is_system_call(&process.space, instruction, registers).then_some(instruction)
        });
        let Some(instruction) = instruction else {
            thread.jobs.clear();
            thread.coming = None;
            let pid = thread.pid;
            self.surroundings.say(&format!(
                "ioasis: process {pid} has no system call instruction where it had one: its stores to registers are \
                 found by polling\n"
            ));
            return self.go_on(tid, 0);
        };
        let (number, args) = job.call(registers.is_32_bit());
        let call = SystemCall { instruction, number, args };
        let injection = Injection::begin(&self.tracer, tid, call)?;
        thread.running = Some((injection, job));
        Ok(())
    }

    /// A system call of the thread's is over.
    fn injected(&mut self, tid: u32, outcome: Injected) -> Result<()> {
        let Some(thread) = self.threads.get_mut(&tid) else { return Ok(()) };
        thread.interrupt |= outcome.to_interrupt;
        let Some((_, job)) = thread.running.take() else { return Ok(()) };
        if let Some(process) = self.processes.get(&thread.pid) {
            match &job {
                Job::Protect { .. } => {
                    if let Err(errno) = outcome.result {
                        self.surroundings.say(&format!(
                            "ioasis: process {} cannot protect the registers it maps ({errno:?}): its stores are found \
                             by polling\n",
                            thread.pid
                        ));
                    }
                }
                Job::AskAction { at, saved } => {
                    let mut bytes = vec![0; saved.len()];
                    if outcome.result.is_ok() && process.space.read(*at, &mut bytes).is_ok() {
                        self.family.set_action(thread.pid, Action::of(&bytes));
                    }
                    let _ = process.space.write(*at, saved);
                }
                Job::SetAction { at, saved } => drop(process.space.write(*at, saved)),
                Job::MakeThread => return self.has_made_a_thread(tid, outcome),
                Job::AskUserfault => return self.has_asked(tid, outcome, false),
                Job::End => return self.has_asked(tid, outcome, true),
            }
        }
        if outcome.signal != 0 {
            thread.jobs.clear();
            return self.go_on(tid, outcome.signal);
        }
        let registers = self.tracer.registers(tid)?;
        self.next_job(tid, &registers)
    }

    fn go_on(&mut self, tid: u32, signal: i32) -> Result<()> {
        if let Some(thread) = self.threads.get_mut(&tid)
            && std::mem::take(&mut thread.interrupt)
        {
            self.tracer.interrupt(tid)?;
        }
        self.tracer.resume(tid, Resume::Continue, signal)
    }

    /// The thread faulted.
    fn segv(&mut self, tid: u32) -> Result<()> {
        let info = self.tracer.signal_info(tid)?;
        let Some(thread) = self.threads.get(&tid) else { return Ok(()) };
        let pid = thread.pid;
        let Some(process) = self.processes.get(&pid) else { return self.go_on(tid, SIGSEGV) };
        if info.code != SEGV_ACCERR {
            return self.go_on(tid, SIGSEGV);
        }
        let asked = process.known.asked.iter().rev();
        let leave = asked.clone().find(|(range, _)| range.contains(&info.address));
        let leave = leave.map_or(Leave::ALL, |(_, leave)| *leave);
        let registers = self.tracer.registers(tid)?;
        let space = Arc::clone(&process.space);
        let vectors = || self.tracer.vectors(tid).ok();
        let peek = |address| self.tracer.peek(tid, address).ok();
        let around = (&*space, &*self.surroundings);
        match fault::fault(&registers, (info.address, leave), around, peek, vectors) {
            Outcome::Done(done) => {
                let (registers, vectors) = *done;
                self.tracer.set_registers(tid, &registers)?;
                if let Some(vectors) = vectors {
                    self.tracer.set_vectors(tid, &vectors)?;
                }
                self.repair(tid, pid, &registers)
            }
            Outcome::Again => self.repair(tid, pid, &registers),
            Outcome::Theirs => self.go_on(tid, SIGSEGV),
            Outcome::Elsewhere(address) => {
                let code = if space.vma(address).is_some() { SEGV_ACCERR } else { SEGV_MAPERR };
                let fault = SignalInfo { signal: SIGSEGV, code, address };
                self.tracer.set_signal_info(tid, fault)?;
                self.go_on(tid, SIGSEGV)
            }
            Outcome::NoDevice => self.bus_error(tid, info.address),
            Outcome::Unknown(bytes) => {
                self.surroundings.say(&format!(
                    "ioasis: process {pid} stores to a register at {:#x} with an instruction that cannot be done for it, \
                     {bytes:02x?} at {:#x}: it gets SIGSEGV\n",
                    info.address, registers.rip
                ));
                self.go_on(tid, SIGSEGV)
            }
        }
    }

    /// What the kernel does for a page that is gone (`vfio_pci_mmap_page_fault`, drivers/vfio/pci/vfio_pci_core.c).
    fn bus_error(&mut self, tid: u32, address: u64) -> Result<()> {
        let fault = SignalInfo { signal: SIGBUS, code: BUS_ADRERR, address };
        self.tracer.set_signal_info(tid, fault)?;
        // A fault's signal does not wait.
        let mask = self.tracer.signal_mask(tid)? & !(1 << (SIGBUS - 1));
        self.tracer.set_signal_mask(tid, mask)?;
        self.go_on(tid, SIGBUS)
    }

    /// Gives the thread back what the fault has cost it, and lets it go on.
    fn repair(&mut self, tid: u32, pid: u32, registers: &Registers) -> Result<()> {
        let now = self.tracer.signal_mask(tid)?;
        let Some(thread) = self.threads.get_mut(&tid) else { return Ok(()) };
        let action = self.family.action(pid);
        let before = thread.mask.before(now, action.kind(), || !is_caught(pid, tid));
        if before != now {
            self.tracer.set_signal_mask(tid, before)?;
        }
        let is_reset = match action.kind() {
            Kind::Default => false,
            Kind::Ignore => true,
            Kind::Handler => before != now,
        };
        if is_reset
            && let Some(process) = self.processes.get(&pid)
            && let Some((at, saved)) = scratch(&process.space, registers)
        {
            let mut bytes = action.bytes().to_vec();
            bytes.resize(saved.len(), 0);
            if process.space.write(at, &bytes).is_ok() {
                thread.jobs.push_back(Job::SetAction { at, saved });
                return self.next_job(tid, registers);
            }
        }
        self.go_on(tid, 0)
    }
}

impl Job {
    /// Number and arguments of the call.
    fn call(&self, is_32_bit: bool) -> (u32, [u64; 6]) {
        let segv = SIGSEGV.unsigned_abs().into();
        // mprotect and rt_sigaction (asm/unistd_32.h, unistd_64.h).
        let (protect, action) = if is_32_bit { (125, 174) } else { (10, 13) };
        match *self {
            Self::Protect { address, length, protection } => {
                (protect, [address, length, protection, 0, 0, 0])
            }
            Self::AskAction { at, .. } => (action, [segv, 0, at, 8, 0, 0]),
            Self::SetAction { at, .. } => (action, [segv, at, 0, 8, 0, 0]),
            Self::MakeThread => errand::clone(is_32_bit),
            Self::AskUserfault => errand::userfaultfd(is_32_bit),
            Self::End => errand::exit(is_32_bit),
        }
    }
}

/// The call that a thread is coming out of.
fn call(registers: &Registers) -> Call {
    let Registers { rdi, rsi, rdx, r10, r8, r9, rbx, rcx, rbp, .. } = *registers;
    let (arch, args) = if registers.is_32_bit() {
        let low = |register| register & u64::from(u32::MAX);
        (Arch::I386, [rbx, rcx, rdx, rsi, rdi, rbp].map(low))
    } else {
        (Arch::X86_64, [rdi, rsi, rdx, r10, r8, r9])
    };
    let number = u32::try_from(registers.orig_rax & u64::from(u32::MAX)).expect("a half");
    Call { arch: arch.raw(), number, args }
}

/// Room below the thread's stack for a `struct sigaction`, and what lies there.
fn scratch(space: &Space, registers: &Registers) -> Option<(u64, Vec<u8>)> {
    let length = if registers.is_32_bit() { action::BYTES_32 } else { action::BYTES };
    let at = registers.rsp.checked_sub(RED_ZONE + 64)? & !15;
    let mut saved = vec![0; length];
    space.read(at, &mut saved).ok()?;
    Some((at, saved))
}

/// Whether the instruction at `at` makes a system call, as code of this kind makes one.
fn is_system_call(space: &Space, at: u64, registers: &Registers) -> bool {
    let mut bytes = [0; 2];
    let wanted = if registers.is_32_bit() { [0xcd, 0x80] } else { [0x0f, 0x05] };
    space.read(at, &mut bytes).is_ok() && bytes == wanted
}
