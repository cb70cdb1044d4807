//! The notification loop: receives the client's system calls, and answers those that concern our files.
//!
//! The threads that receive a call answer it themselves ([`pool`]). What may take long (a path on a slow file system, a
//! device reset) says so first, upon which another receives in its place; what takes long all the same, because a
//! client's memory answers to a userfaultfd or a FUSE file system of its own, is noticed. A call is in the supervisor's
//! hands from the moment the kernel wrote it into its slot until it has been answered and the slot is cleared.
//!
//! The kernel goes on with a call only where it is known that it does not concern our files. What could not be found
//! out for want of a descriptor, memory or a thread is an error of whoever asked.
//!
//! Nobody waits for a client's close here but a call that was received after it, and that for a bounded time, after
//! another receiver has taken its place.
//!
//! `Server::made` and `Server::places` are leaves.

mod absent;
mod access;
mod behind;
mod client;
mod fdinfo;
mod holders;
mod ioctl;
mod judge;
mod kvm;
mod limits;
mod look;
mod mknod;
mod numbers;
mod open;
mod pool;
mod regions;
mod seen;
mod sysfs;
mod verify;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ioasis_iommufd::account::Entry;
use ioasis_iommufd::type1::Container;
use ioasis_iommufd::{Backing, ClientFile, Context};
use ioasis_sys::eventfd::EventFd;
use ioasis_sys::namespace::User;
use ioasis_sys::notify::{Answer, Listener, Notification, OnExec};
use ioasis_sys::process::Thread;
use ioasis_sys::seccomp::{self, Arch, Call, Filter, X32_BIT};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result};
use ioasis_vfio::{DeviceFile, DeviceWatcher, Farewell, GroupFile, KvmDevice};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::Machine;
use crate::doorbell::Doorbells;
use crate::files::{Behind, Files, Opened};
use crate::filter::{self, Changes, number};
use crate::injection::Injection;
use crate::launch::Launched;
use crate::memlock::{INFINITY, Limit, Memlock};
use crate::memory::Memory;
use crate::notes::Notes;
use crate::queues::Queues;
use crate::removal::Note;
use crate::rules::{Rule, Rules};
use crate::sysfs::Bus;
use crate::task::{Task, Tasks, low, signed};
use crate::trace::{self, Trace};
use crate::trap::{Action, Executes, Surroundings, Traps};
use crate::view::{Live, Node, Stores, View};
use crate::watchdog::{Shared, say};
use client::Caller;
use judge::Own;
use numbers::HostNumbers;
use pool::{Admitted, Hand, Next, Pool};
use regions::Regions;
pub(crate) use seen::{OpenFile, OpenKind};
use verify::Words;

/// What stands behind a file of ours.
#[derive(Debug)]
pub(crate) enum File {
    /// `/dev/iommu`.
    Iommufd {
        context: Arc<Context>,
        /// What can be mapped of it.
        regions: Arc<Regions>,
    },
    /// `/dev/vfio/vfio`.
    Container(Arc<Container>),
    /// `/dev/vfio/N`.
    Group(Arc<GroupFile>),
    /// A device, by its own node or through its group.
    Device {
        device: Arc<DeviceFile>,
        /// Its BAR pages, for those who map them for DMA: known to [`Memory`] as long as they are here.
        #[expect(dead_code, reason = "it is held, not used")]
        bars: Arc<dyn Backing>,
        notes: Arc<Notes>,
        /// What tells of stores to its shared pages, where stores are told.
        doorbells: Option<Arc<Doorbells>>,
        /// What is read of its configuration space without us.
        config: behind::Config,
    },
    /// The VFIO device of a virtual machine.
    Kvm { device: KvmDevice, vm: kvm::Vm },
    /// What a command made for its caller.
    Made(Arc<dyn ClientFile>),
}

impl Behind for File {
    fn close(&self, inode: u64) {
        match self {
            // Dropping them is all.
            Self::Container(_) | Self::Kvm { .. } => {}
            Self::Iommufd { context, .. } => context.close(),
            Self::Made(file) => file.close(),
            Self::Group(group) => group.close(),
            Self::Device { device, notes, .. } => {
                device.close();
                notes.tell(Note::Closed { inode });
            }
        }
    }
}

/// What becomes of a call.
#[derive(Debug)]
enum Decision {
    /// This answer.
    Answer(Answer),
    /// The number of a descriptor of this file, new in the caller.
    Give(Gift),
}

impl Decision {
    const CONTINUE: Self = Self::Answer(Answer::Continue);

    const fn error(errno: Errno) -> Self {
        Self::Answer(Answer::Error(errno))
    }
}

/// A file for the caller.
#[derive(Debug)]
struct Gift {
    file: OwnedFd,
    on_exec: OnExec,
    line: Line,
}

/// A line of the trace that waits for its result.
#[derive(Debug)]
enum Line {
    /// Nobody traces.
    None,
    /// An open.
    Open { pid: u32, path: Vec<u8>, flags: u32 },
    /// An ioctl.
    Ioctl { task: Task, fd: i32, path: String, kind: trace::Kind, begun: trace::Begun },
}

/// Answers the client's system calls.
#[derive(Debug)]
pub(crate) struct Server {
    listener: Listener,
    /// What it stops.
    filter: Filter,
    shared: Arc<Shared>,
    notes: Arc<Notes>,
    files: Files<File>,
    queues: Queues,
    injection: Arc<Injection>,
    tasks: Tasks,
    memory: Arc<Memory>,
    traps: Traps,
    machine: Machine,
    /// Its functions and their drivers.
    bus: Bus,
    this: Weak<Self>,
    /// The files by which it is seen.
    live: Live,
    /// Below /sys, the directory of each device, by its address.
    directories: BTreeMap<String, String>,
    /// Nodes that programs made, by device and inode.
    made: Mutex<BTreeMap<(u64, u64), Node>>,
    host_numbers: HostNumbers,
    /// Where nodes of the view lie that were opened once, `O_PATH`: their modes count for whoever opens them anew.
    places: Mutex<HashMap<Node, Arc<OwnedFd>>>,
    /// What limits of locked memory were raised to, where the kernel does not raise them.
    memlock: Option<Memlock>,
    /// The user namespace the program was started in.
    user_namespace: Option<(u64, u64)>,
    /// What the supervisor itself may.
    own: Own,
    trace: Option<Arc<Trace>>,
    rules: Rules,
    pool: Arc<Pool>,
    /// System calls that were received.
    calls: AtomicU64,
    /// Readable when the main thread has to look at the files again.
    left: EventFd,
}

impl Server {
    pub(crate) fn new(
        launched: &mut Launched,
        view: &View,
        (machine, bus): (Machine, Bus),
        (trace, rules): (Option<Trace>, Vec<Rule>),
        (shared, notes): (&Arc<Shared>, &Arc<Notes>),
    ) -> Result<Arc<Self>> {
        let listener = launched.listener.try_clone()?;
        listener.wake_synchronously();
        let root = launched.files.try_clone();
        let root = root.map_err(|_| Error::new(Errno::EMFILE, "too many open files"))?;
        let files = Files::new(root)?;
        let trace = trace.map(Arc::new);
        if let Some(trace) = &trace {
            machine.iommu.faults.watch(Arc::clone(trace) as _);
            let watcher: Arc<dyn DeviceWatcher> = Arc::clone(trace) as _;
            machine.devices.watch(&watcher);
        }
        let tell = |device: &str, why: &str| say(&format!("ioasis: {device} is gone: {why}\n"));
        let tell: Arc<Farewell> = Arc::new(tell);
        machine.devices.remove_vanished(&tell);
        let program = Thread::open(launched.child.id())?;
        let user_namespace = program.user_namespace().ok();
        let memlock = memlock(machine.view.user, user_namespace);
        let queues = Queues::new(launched.take_fuse(), launched.queues, &files.closer)?;
        let (left, own) = (EventFd::create()?, Own::find()?);
        Ok(Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            bus,
            user_namespace,
            filter: filter::of_run(launched.queues, machine.view.user),
            own,
            listener,
            shared: Arc::clone(shared),
            notes: Arc::clone(notes),
            memory: Memory::new(Some(files.dev())),
            traps: Traps::new(Arc::new(Around {
                server: Weak::clone(this),
                shared: Arc::clone(shared),
            })),
            files,
            queues,
            injection: Arc::default(),
            tasks: Tasks::default(),
            memlock,
            machine,
            live: Live::new(view, &launched.nodes, std::mem::take(&mut launched.covers)),
            directories: launched.directories.clone(),
            places: Mutex::default(),
            made: Mutex::default(),
            host_numbers: HostNumbers::find(),
            trace,
            rules: Rules::new(rules),
            left,
            calls: AtomicU64::new(0),
            pool: Arc::new(Pool::new(0..shared.slots.count())),
        }))
    }

    /// `st_dev` of the files given to clients.
    pub(crate) fn files_dev(&self) -> u64 {
        self.files.dev()
    }

    /// Readable when a client has closed a file, or a queue, or a receiver has left something to be done of that.
    pub(crate) fn closes(&self) -> [BorrowedFd<'_>; 3] {
        let files = self.files.closes();
        [files, self.queues.closes().unwrap_or(files), self.left.as_fd()]
    }

    /// Begins to close what clients have closed; whether a close is still on its way.
    pub(crate) fn drain(&self) -> bool {
        let _ = self.left.take();
        self.queues.drain();
        self.files.drain();
        self.files.is_closing()
    }

    /// The same in a thread that has other things to do: the main thread does what is left.
    fn drain_in_passing(&self) {
        self.queues.drain();
        self.files.drain();
        if self.files.is_closing() || self.files.is_touched() {
            self.left.signal();
        }
    }

    /// Undoes what was done to files without our being asked: [`Server::drain`] finds out to which.
    pub(crate) fn undo(&self) {
        let touched = self.files.take_touched();
        // What was taken from the first may be had again once the last has given up what is not his.
        let failed = touched.iter().filter(|opened| !self.undo_one(opened)).collect::<Vec<_>>();
        for opened in &touched {
            // What was written there may be a doorbell.
            if let File::Device { device, .. } = &opened.file {
                device.device().function().wake();
            }
        }
        failed.iter().for_each(|opened| {
            self.undo_one(opened);
        });
    }

    /// Frees the memory of the run's file system that is not to be used, whoever uses it.
    fn sweep(&self) {
        for opened in self.files.all() {
            self.undo_one(&opened);
        }
    }

    /// Whether the file is as it should be.
    fn undo_one(&self, opened: &Opened<File>) -> bool {
        let undone = behind::undo(opened);
        if let (Ok(true), Some(trace)) = (&undone, &self.trace) {
            trace.undone(&opened.look.path);
        }
        undone.is_ok()
    }

    /// A program that closed a file and now asks for what the close changes finds it closed.
    fn see_closes(&self, hand: &Hand) {
        self.drain_in_passing();
        // Without another thread, whoever asks may find something open that is being closed.
        if self.files.closer.is_busy() && self.pool.may_wait(hand).is_ok() {
            self.files.closer.wait();
        }
    }

    /// Ends the trace: what went wrong, in words, and how many faults there were.
    pub(crate) fn findings(&self) -> (String, u64) {
        say(&self.rules.idle());
        let Some(trace) = &self.trace else { return Default::default() };
        trace.finish();
        (trace.summary(), trace.faults())
    }

    /// Who pinned what.
    pub(crate) fn ledger_entries(&self) -> Vec<Entry> {
        self.machine.iommu.ledger.entries()
    }

    /// Closes everything: no client is left. A close that takes longer than `limit` is left behind.
    pub(crate) fn close_all(&self, limit: Duration) {
        self.queues.close_all();
        self.files.close_all();
        self.files.closer.finish(limit);
    }

    /// Starts the threads that receive.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if the system has no thread left.
    pub(crate) fn start(self: &Arc<Self>) -> Result<()> {
        let server = Arc::clone(self);
        self.pool.start(move || server.receive())
    }

    /// The life of a thread of the pool.
    fn receive(&self) {
        let pool = &self.pool;
        let (hand, mut slot, mut next) = pool.enter();
        loop {
            match next {
                Next::End => return pool.release(slot),
                Next::Parked(parked, call) => {
                    if let Some(task) = self.task(parked, &call) {
                        self.settle(&hand, parked, (&task, &call));
                    }
                    pool.release(parked);
                }
                Next::Receive => {
                    match pool.receive(|| self.shared.slots.receive(&self.listener, slot)) {
                        Ok(call) => {
                            pool.received(&hand, call.id);
                            slot = self.take(&hand, slot, &call);
                        }
                        // Killed before it could be received, or nobody is left.
                        Err(_) if self.is_over() => return,
                        Err(_) => continue,
                    }
                }
            }
            next = pool.done(&hand);
        }
    }

    /// Answers the call received into `slot`, or parks it there; where to receive the next one.
    fn take(&self, hand: &Hand, slot: u32, call: &Notification) -> u32 {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let Some(task) = self.task(slot, call) else { return slot };
        match self.pool.admit(task.process.pid(), slot, call) {
            Ok(Admitted::Now) => {
                self.pool.begin(hand, task.process.pid());
                self.settle(hand, slot, (&task, call));
                slot
            }
            Ok(Admitted::Parked { instead }) => instead,
            Err(error) => {
                self.answer(slot, call.id, Answer::Error(error.errno));
                slot
            }
        }
    }

    /// The task that made the call in `slot`; without it, the call is answered.
    fn task(&self, slot: u32, call: &Notification) -> Option<Task> {
        match self.tasks.of(&self.listener, call) {
            Ok(task) => Some(task),
            // A task that was killed gets no answer, whatever is said. What is remembered of its other threads would
            // outlive their memory if one executed a program unnoticed.
            Err(error) => {
                let unnoticed = error.errno != Errno::ESRCH && filter::changes(call).is_some();
                let again = Answer::Error(Errno::EAGAIN);
                self.answer(slot, call.id, if unnoticed { again } else { unknown(error) });
                None
            }
        }
    }

    fn answer(&self, slot: u32, id: u64, answer: Answer) {
        // The task may have been killed meanwhile.
        let _ = self.listener.answer(id, answer);
        self.shared.slots.clear(slot);
    }

    fn is_over(&self) -> bool {
        let mut polled = [PollFd::new(&self.listener, PollFlags::empty())];
        let _ = rustix::event::poll(&mut polled, Some(&Timespec::default()));
        polled[0].revents().contains(PollFlags::HUP)
    }

    /// Decides and answers the call in `slot`.
    fn settle(&self, hand: &Hand, slot: u32, (task, call): (&Task, &Notification)) {
        let answer = match self.decide(hand, task, call) {
            Decision::Answer(answer) => answer,
            Decision::Give(gift) => self.give(call.id, gift),
        };
        self.answer(slot, call.id, answer);
    }

    /// Puts a file among the caller's descriptors. Ours is gone before the caller goes on, so that its close is the last.
    fn give(&self, id: u64, gift: Gift) -> Answer {
        let Gift { file, on_exec, line } = gift;
        let given = self.listener.add_file(id, file.as_fd(), on_exec);
        drop(file);
        self.write_line(line, given.map(i64::from));
        match given {
            Ok(fd) => Answer::Value(fd.into()),
            Err(error) => {
                self.drain_in_passing();
                Answer::Error(error.errno)
            }
        }
    }

    fn write_line(&self, line: Line, result: Result<i64>) {
        let Some(trace) = &self.trace else { return };
        match line {
            Line::None => {}
            Line::Open { pid, path, flags } => {
                trace.open(pid, &String::from_utf8_lossy(&path), flags.into(), result);
            }
            Line::Ioctl { task, fd, path, kind, begun } => {
                let file = trace::File { fd, path: &path, kind };
                let memory = |address, buf: &mut [u8]| task.read(address, buf).is_ok();
                trace.end(task.process.pid(), file, &begun, result, &memory);
            }
        }
    }

    fn decide(&self, hand: &Hand, task: &Task, call: &Notification) -> Decision {
        let caller = Caller::new(self, task, (call.id, hand));
        let executes = filter::changes(call) == Some(Changes::Program);
        if self.traps.is_away(task.tid) && !executes && caller.may_wait().is_ok() {
            let is_executing = || self.tasks.is_another_executing(task);
            self.traps.returns(task.tid, task.process.pid(), is_executing);
        }
        let decision = match call.number {
            // Not the accesses to the setting itself.
            number::IOCTL | number::OPEN | number::OPENAT | number::OPENAT2 => {
                let decide = || self.decide_for(&caller, call);
                let (decision, injected) = self.injection.during(task.tid, decide);
                if let (Some(injected), Some(trace)) = (injected, &self.trace) {
                    trace.injected(task.process.pid(), injected.nth, injected.step);
                }
                decision
            }
            _ => self.decide_for(&caller, call),
        };
        let waits = caller.waits() && self.traps.is_traced(task.process.pid());
        let Notification { arch, number, args, .. } = *call;
        self.traps.goes_on(task.tid, waits.then_some(Call { arch, number, args }));
        decision
    }

    fn decide_for(&self, caller: &Caller<'_>, call: &Notification) -> Decision {
        match filter::changes(call) {
            Some(Changes::Program) => {
                self.tasks.executes(caller.task);
                return self.let_go(caller);
            }
            Some(Changes::Credentials) => {
                self.tasks.changes(caller.task);
                return Decision::CONTINUE;
            }
            Some(Changes::Dumpable) => {
                self.tasks.hides(caller.task);
                return Decision::CONTINUE;
            }
            None => {}
        }
        if call.arch == Arch::I386.raw() {
            match call.number {
                number::I386_RT_SIGACTION => return self.acts(caller, call, ACTION_32),
                number::I386_PTRACE => return self.traced(caller, call),
                _ => {}
            }
            return match filter::widened(call) {
                Some(wide) if wide.number == number::IOCTL => foreign_ioctl(caller, &wide),
                Some(wide) if filter::is_vectored(wide.number) => {
                    settled(access::vectored(caller, &wide, Words::Compat))
                }
                Some(wide) => self.decide_for(caller, &wide),
                None => Decision::CONTINUE,
            };
        }
        if call.arch != Arch::X86_64.raw() || call.number & X32_BIT != 0 {
            return match call.number & !X32_BIT {
                number::X32_RT_SIGACTION => self.acts(caller, call, ACTION_32),
                number::X32_PTRACE => self.traced(caller, call),
                _ => foreign_ioctl(caller, call),
            };
        }
        let decided = match call.number {
            number::IOCTL if absent::is_of_all_files(low(call.args[1])) => Ok(Decision::CONTINUE),
            number::IOCTL => return may_wait_natively(caller, ioctl::ioctl(caller, call)),
            number::OPEN | number::OPENAT | number::OPENAT2 | number::CREAT => {
                return open::open(caller, call);
            }
            number::MKNOD | number::MKNODAT => mknod::mknod(caller, call),
            number::FSTAT | number::NEWFSTATAT | number::STATX => look::stat(caller, call),
            number::READLINK | number::READLINKAT => look::readlink(caller, call),
            number::PREAD64 | number::PWRITE64 => access::access(caller, call),
            number::PREADV | number::PREADV2 | number::PWRITEV | number::PWRITEV2 => {
                access::vectored(caller, call, Words::Long)
            }
            number::MMAP => access::mmap(caller, call),
            number::RT_SIGACTION => return self.acts(caller, call, ACTION),
            number::PTRACE => return self.traced(caller, call),
            number::READ | number::WRITE => access::queue(caller, call),
            number::READV | number::WRITEV => access::queue_vectored(caller, call),
            number::MREMAP | number::MADVISE | number::REMAP_FILE_PAGES => {
                absent::mapping_call(caller, call)
            }
            number::PRLIMIT64 | number::GETRLIMIT | number::SETRLIMIT => {
                limits::limit(caller, call)
            }
            number if filter::is_of_a_file(number) => absent::file_call(caller, call),
            number::SECCOMP => {
                if is_a_filter(caller, call.args[2]) {
                    self.explain_listener(caller.task);
                }
                Ok(Decision::CONTINUE)
            }
            _ => Ok(Decision::CONTINUE),
        };
        settled(decided)
    }

    /// A thread is about to execute a program, and must not be traced then.
    fn let_go(&self, caller: &Caller<'_>) -> Decision {
        if self.traps.is_idle() {
            return Decision::CONTINUE;
        }
        let task = caller.task;
        let goes = || {
            caller.may_wait()?;
            self.traps.executes(task.tid, task.process.pid())
        };
        match goes() {
            Ok(Executes::Now) => Decision::CONTINUE,
            Ok(Executes::Again) => Decision::Answer(Answer::Again),
            Err(_) => Decision::error(Errno::EAGAIN),
        }
    }

    /// A program sets what becomes of a signal. Its tracer, if it has one, must know it of SIGSEGV; a handler that lets calls
    /// fail with EINTR has the process seized.
    fn acts(&self, caller: &Caller<'_>, call: &Notification, length: usize) -> Decision {
        let ([signal, address, ..], task) = (call.args, caller.task);
        let pid = task.process.pid();
        let mut bytes = vec![0; length];
        if address == 0 || task.thread.read(address, &mut bytes).is_err() {
            return Decision::CONTINUE;
        }
        if low(signal) == filter::SIGSEGV {
            if self.traps.is_traced(pid) {
                self.traps.acts(pid, &bytes);
            }
        } else if Action::of(&bytes).interrupts()
            && self.machine.view.stores == Stores::Trapped
            && !self.traps.is_traced(pid)
            && caller.may_wait().is_ok()
            && !Traps::runs_a_machine(pid)
        {
            self.traps.watch((task.tid, pid), || self.tasks.is_another_executing(task));
        }
        Decision::CONTINUE
    }

    /// A program is about to trace another, or itself to be traced: who traces it here gives way.
    fn traced(&self, caller: &Caller<'_>, call: &Notification) -> Decision {
        if self.traps.is_idle() {
            return Decision::CONTINUE;
        }
        if low(call.args[0]) == filter::TRACEME {
            return self.let_go(caller);
        }
        if let (Ok(tid), Ok(standing)) = (u32::try_from(call.args[1]), caller.task.standing())
            && caller.may_wait().is_ok()
        {
            self.traps.let_go(tid, standing.credentials.uid);
        }
        Decision::CONTINUE
    }

    /// Says why a mapping fails that would succeed for a program nobody else traces.
    fn explain_untrapped(&self, task: &Task, error: &Error) {
        let name = task.process.comm().unwrap_or_else(|_| "a process".to_owned());
        say(&format!(
            "ioasis: {name} (pid {}) cannot map registers of a device: {}\n",
            task.process.pid(),
            error.why
        ));
    }

    /// Says why a client's own listener is about to be refused: the kernel's EBUSY says nothing.
    fn explain_listener(&self, task: &Task) {
        let name = task.process.comm().unwrap_or_else(|_| "a process".to_owned());
        say(&format!(
            "ioasis: {name} (pid {}) asks for a seccomp listener of its own and gets EBUSY: the kernel allows one, \
             and `ioasis run` has it\n",
            task.process.pid()
        ));
    }
}

/// Bytes of the kernel's `struct sigaction`, and of that of a 32-bit program (asm/signal.h).
const ACTION: usize = 32;
const ACTION_32: usize = 20;

/// The server, as a tracer needs it.
#[derive(Debug)]
struct Around {
    server: Weak<Server>,
    shared: Arc<Shared>,
}

impl Surroundings for Around {
    fn device(&self, dev: u64, inode: u64) -> Option<Arc<DeviceFile>> {
        let opened = self.server.upgrade()?.files.get(dev, inode)?;
        match &opened.file {
            File::Device { device, .. } => Some(Arc::clone(device)),
            _ => None,
        }
    }

    fn was_missed(&self, tid: u32, call: &Call) -> bool {
        let Some(server) = self.server.upgrade() else { return false };
        server.filter.decide(call) == seccomp::Action::Notify
            && !filter::may_be_interrupted(call.arch, call.number)
            && !server.traps.is_native(tid, call)
    }

    fn ended(&self, pid: u32, status: ExitStatus) {
        self.shared.note(pid, status);
    }

    fn say(&self, text: &str) {
        say(text);
    }

    fn note(&self, text: &str) {
        if let Some(server) = self.server.upgrade()
            && let Some(trace) = &server.trace
        {
            trace.note(text);
        }
    }
}

/// Where limits of locked memory are raised to, if the program is root in another user namespace than ours: the kernel
/// raises none there.
fn memlock(user: User, namespace: Option<(u64, u64)>) -> Option<Memlock> {
    let own = rustix::fs::stat("/proc/self/ns/user").ok()?;
    if user != User::Root || namespace == Some((own.st_dev, own.st_ino)) {
        return None;
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
    let value = |value: Option<u64>| value.unwrap_or(INFINITY);
    Memlock::new(Limit { current: value(limit.current), maximum: value(limit.maximum) })
}

/// Whether there is a seccomp filter at `address`. The kernel looks at that before it looks for a listener
/// (`seccomp_prepare_filter`, kernel/seccomp.c), and programs that only ask whether it knows a flag pass NULL.
fn is_a_filter(caller: &Caller<'_>, address: u64) -> bool {
    /// Most instructions of a filter (`BPF_MAXINSNS`, linux/bpf_common.h).
    const MOST: u16 = 4096;
    let mut program = [0; 16];
    if caller.task.read(address, &mut program).is_err() {
        return false;
    }
    let length = u16::from_ne_bytes([program[0], program[1]]);
    let code = u64::from_ne_bytes(program[8..].try_into().expect("8 bytes"));
    (1..=MOST).contains(&length)
        && caller.task.read(code, &mut vec![0; 8 * usize::from(length)]).is_ok()
}

/// An ioctl that is not ours is one of a driver that may wait.
fn may_wait_natively(caller: &Caller<'_>, decision: Decision) -> Decision {
    match decision {
        Decision::Answer(Answer::Continue) => caller.goes_on(),
        other => other,
    }
}

/// The decision that a result is.
fn settled(decided: Result<Decision>) -> Decision {
    decided.unwrap_or_else(|error| match error.errno {
        // What the kernel would find out itself, it also says itself.
        Errno::EBADF | Errno::EPERM | Errno::ESRCH => Decision::CONTINUE,
        errno => Decision::error(errno),
    })
}

/// The answer to a call of which it could not be found out whether it concerns our files: the kernel goes on with it only
/// where that is the task's doing, which is gone or does not let itself be looked at.
fn unknown(error: Error) -> Answer {
    match error.errno {
        errno @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::EAGAIN) => {
            Answer::Error(errno)
        }
        _ => Answer::Continue,
    }
}

/// An ioctl by another entry ABI. Containers, groups and devices answer it as any (compat_ptr_ioctl), iommufd has none there.
fn foreign_ioctl(caller: &Caller<'_>, call: &Notification) -> Decision {
    let opened = match caller.opened(signed(call.args[0])) {
        Ok(Some(opened)) => opened,
        Ok(None) => return caller.goes_on(),
        Err(error) => return Decision::Answer(unknown(error)),
    };
    match opened.file {
        File::Container(_) | File::Group(_) | File::Device { .. } => ioctl::ioctl(caller, call),
        File::Iommufd { .. } | File::Kvm { .. } | File::Made(_) => Decision::error(Errno::ENOTTY),
    }
}
