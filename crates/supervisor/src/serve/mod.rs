//! The notification loop: receives the client's system calls, and answers those that concern our files.
//!
//! One thread receives and answers. What may take long is decided again from the start by a worker, with leave to wait:
//! a path on a slow file system, a device reset. What takes long all the same, because a client's memory answers to a
//! userfaultfd or a FUSE file system of its own, keeps its receiver, and another takes its place
//! ([`Server::relieve`]). A call is in the supervisor's hands from the moment the kernel wrote it
//! into its slot until it has been answered and the slot is cleared.
//!
//! Nobody waits for a client's close here but a call that was received after it, and that for a bounded time, after
//! another receiver has taken its place.
//!
//! `Server::free` and `Server::places` are leaves lock.

mod absent;
mod access;
mod behind;
mod client;
mod ioctl;
mod judge;
mod kvm;
mod look;
mod open;
mod regions;
mod verify;

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ioasis_iommufd::account::Entry;
use ioasis_iommufd::type1::Container;
use ioasis_iommufd::{Backing, ClientFile, Context};
use ioasis_sys::notify::{Answer, Listener, Notification, OnExec};
use ioasis_sys::process::Thread;
use ioasis_sys::seccomp::{Arch, X32_BIT};
use ioasis_sys::sync::{Condvar, Mutex};
use ioasis_uapi::{Errno, Error, Result};
use ioasis_vfio::{DeviceFile, DeviceWatcher, GroupFile, KvmDevice};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::Machine;
use crate::files::{Behind, Files, Opened};
use crate::filter::{self, Changes, number};
use crate::injection::Injection;
use crate::launch::Launched;
use crate::memory::Memory;
use crate::notes::Notes;
use crate::queues::Queues;
use crate::removal::Note;
use crate::resolve::Wait;
use crate::task::{Task, Tasks, low, signed};
use crate::trace::{self, Trace};
use crate::view::{Identity, Node};
use crate::watchdog::{Shared, say};
use crate::workers::Workers;
use client::Caller;
use regions::Regions;
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
    /// A worker must decide: it may take long.
    Later,
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
    this: Weak<Self>,
    listener: Listener,
    shared: Arc<Shared>,
    notes: Arc<Notes>,
    files: Files<File>,
    queues: Queues,
    injection: Arc<Injection>,
    tasks: Tasks,
    memory: Arc<Memory>,
    machine: Machine,
    nodes: Vec<Identity>,
    /// Where nodes of the view lie that were opened once, `O_PATH`: their modes count for whoever opens them anew.
    places: Mutex<HashMap<Node, Arc<OwnedFd>>>,
    /// The user namespace the program was started in.
    user_namespace: Option<(u64, u64)>,
    trace: Option<Arc<Trace>>,
    workers: Workers,
    /// Which receiver is in charge: each has the number of those before it.
    receiver: AtomicU64,
    /// The id of the call the receiver in charge is deciding, or 0.
    deciding: AtomicU64,
    /// Slots that hold no call.
    free: Mutex<Vec<u32>>,
    freed: Condvar,
}

impl Server {
    pub(crate) fn new(
        launched: &Launched,
        (machine, trace): (Machine, Option<Trace>),
        shared: &Arc<Shared>,
        notes: &Arc<Notes>,
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
        let program = Thread::open(launched.child.id())?;
        let queues = Queues::new(launched.queues)?;
        Ok(Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            user_namespace: program.user_namespace().ok(),
            listener,
            shared: Arc::clone(shared),
            notes: Arc::clone(notes),
            memory: Memory::new(Some(files.dev())),
            files,
            queues,
            injection: Arc::default(),
            tasks: Tasks::default(),
            machine,
            nodes: launched.nodes.clone(),
            places: Mutex::default(),
            trace,
            workers: Workers::default(),
            receiver: AtomicU64::new(0),
            deciding: AtomicU64::new(0),
            free: Mutex::new((0..shared.slots.count()).collect()),
            freed: Condvar::new(),
        }))
    }

    /// `st_dev` of the files given to clients.
    pub(crate) fn files_dev(&self) -> u64 {
        self.files.dev()
    }

    /// Readable when a client has closed a file, or a queue.
    pub(crate) fn closes(&self) -> [BorrowedFd<'_>; 2] {
        [self.files.closes(), self.queues.closes()]
    }

    /// Begins to close what clients have closed; whether a close is still on its way.
    pub(crate) fn drain(&self) -> bool {
        self.queues.drain();
        self.files.drain();
        self.files.is_closing()
    }

    /// Undoes what was done to files without our being asked: [`Server::drain`] finds out to which.
    pub(crate) fn undo(&self) {
        let touched = self.files.take_touched();
        // What was taken from the first may be had again once the last has given up what is not his.
        let failed = touched.iter().filter(|opened| !self.undo_one(opened)).collect::<Vec<_>>();
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

    /// A program that closed a file and now asks, by the call `id`, for what the close changes finds it closed.
    fn see_closes(&self, id: u64) {
        self.drain();
        if self.files.closer.is_busy() {
            // Without another receiver, others wait as long.
            let _ = self.relieve(id);
            self.files.closer.wait();
        }
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

    /// Starts the thread that receives.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if the system has no thread left.
    pub(crate) fn start(&self) -> Result<()> {
        let me = self.receiver.load(Ordering::Acquire);
        let server = self.this.upgrade().expect("a server that is called is alive");
        let builder = std::thread::Builder::new().name("receiver".to_owned());
        let receiver = builder.spawn(move || server.receive(me));
        receiver.map(drop).map_err(|_| Error::new(Errno::EAGAIN, "no thread to receive with"))
    }

    /// The id of the call the receiver is deciding, or 0.
    pub(crate) fn deciding(&self) -> u64 {
        self.deciding.load(Ordering::Acquire)
    }

    /// Puts another receiver in the place of the one that is deciding the call `id`, if one still is.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if the system has no thread left.
    pub(crate) fn relieve(&self, id: u64) -> Result<()> {
        if !self.done_deciding(id) {
            return Ok(());
        }
        self.receiver.fetch_add(1, Ordering::AcqRel);
        self.start().inspect_err(|_| {
            self.receiver.fetch_sub(1, Ordering::AcqRel);
        })
    }

    /// Whether the call `id` was the one being decided; it is no longer.
    fn done_deciding(&self, id: u64) -> bool {
        self.deciding.compare_exchange(id, 0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn receive(&self, me: u64) {
        let mut slot = self.take_slot();
        while self.receiver.load(Ordering::Acquire) == me {
            match self.shared.slots.receive(&self.listener, slot) {
                Ok(call) => {
                    self.deciding.store(call.id, Ordering::Release);
                    if !self.settle(slot, &call, Wait::Forbidden) {
                        self.hand_over(slot, call);
                        slot = self.take_slot();
                    }
                    self.done_deciding(call.id);
                }
                // Killed before it could be received, or nobody is left.
                Err(_) if self.is_over() => return,
                Err(_) => {}
            }
        }
        self.give_slot_back(slot);
    }

    fn give_slot_back(&self, slot: u32) {
        self.free.lock().push(slot);
        self.freed.notify_one();
    }

    fn is_over(&self) -> bool {
        let mut polled = [PollFd::new(&self.listener, PollFlags::empty())];
        let _ = rustix::event::poll(&mut polled, Some(&Timespec::default()));
        polled[0].revents().contains(PollFlags::HUP)
    }

    fn hand_over(&self, slot: u32, call: Notification) {
        let server = self.this.upgrade().expect("a server that is called is alive");
        self.workers.submit(Box::new(move || {
            let settled = server.settle(slot, &call, Wait::Allowed);
            assert!(settled, "a call that may wait is decided");
            server.give_slot_back(slot);
        }));
    }

    fn take_slot(&self) -> u32 {
        let mut free = self.free.lock();
        loop {
            match free.pop() {
                Some(slot) => return slot,
                None => free = self.freed.wait(free),
            }
        }
    }

    /// Decides and answers the call in `slot`, unless it needs a worker.
    fn settle(&self, slot: u32, call: &Notification, wait: Wait) -> bool {
        let answer = match self.decide(call, wait) {
            Decision::Later => return false,
            Decision::Answer(answer) => answer,
            Decision::Give(gift) => self.give(call.id, gift),
        };
        // The task may have been killed meanwhile.
        let _ = self.listener.answer(call.id, answer);
        self.shared.slots.clear(slot);
        true
    }

    /// Puts a file among the caller's descriptors. Ours is gone before the caller goes on, so that its close is the last.
    fn give(&self, id: u64, gift: Gift) -> Answer {
        use std::os::fd::AsFd;
        let Gift { file, on_exec, line } = gift;
        let given = self.listener.add_file(id, file.as_fd(), on_exec);
        drop(file);
        self.write_line(line, given.map(i64::from));
        match given {
            Ok(fd) => Answer::Value(fd.into()),
            Err(error) => {
                self.files.drain();
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

    fn decide(&self, call: &Notification, wait: Wait) -> Decision {
        let task = match self.tasks.of(&self.listener, call) {
            Ok(task) => task,
            // What is remembered of its other threads would outlive their memory.
            Err(error) if error.errno != Errno::ESRCH && filter::changes(call).is_some() => {
                return Decision::error(Errno::EAGAIN);
            }
            Err(_) => return Decision::CONTINUE,
        };
        let caller = Caller::new(self, &task, call.id);
        match call.number {
            // Not the accesses to the setting itself.
            number::IOCTL | number::OPEN | number::OPENAT | number::OPENAT2 => {
                // What is decided once more fails then.
                let settled = |decision: &Decision| !matches!(decision, Decision::Later);
                let decide = || self.decide_for(&caller, call, wait);
                let (decision, injected) = self.injection.during(task.tid, decide, settled);
                if let (Some(injected), Some(trace)) = (injected, &self.trace) {
                    trace.injected(task.process.pid(), injected.nth, injected.step);
                }
                decision
            }
            _ => self.decide_for(&caller, call, wait),
        }
    }

    fn decide_for(&self, caller: &Caller<'_>, call: &Notification, wait: Wait) -> Decision {
        match filter::changes(call) {
            Some(Changes::Program) => {
                self.tasks.executes(caller.task);
                return Decision::CONTINUE;
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
            return match filter::widened(call) {
                Some(wide) if wide.number == number::IOCTL => foreign_ioctl(caller, &wide, wait),
                Some(wide) if filter::is_vectored(wide.number) => {
                    settled(access::vectored(caller, &wide, (wait, Words::Compat)))
                }
                Some(wide) => self.decide_for(caller, &wide, wait),
                None => Decision::CONTINUE,
            };
        }
        if call.arch != Arch::X86_64.raw() || call.number & X32_BIT != 0 {
            return foreign_ioctl(caller, call, wait);
        }
        let decided = match call.number {
            number::IOCTL if absent::is_of_all_files(low(call.args[1])) => Ok(Decision::CONTINUE),
            number::IOCTL => return ioctl::ioctl(caller, call, wait),
            number::OPEN | number::OPENAT | number::OPENAT2 | number::CREAT => {
                return open::open(caller, call, wait);
            }
            number::FSTAT | number::NEWFSTATAT | number::STATX => look::stat(caller, call),
            number::READLINK | number::READLINKAT => look::readlink(caller, call, wait),
            number::PREAD64 | number::PWRITE64 => access::access(caller, call, wait),
            number::PREADV | number::PREADV2 | number::PWRITEV | number::PWRITEV2 => {
                access::vectored(caller, call, (wait, Words::Long))
            }
            number::MMAP => access::mmap(caller, call),
            number::READ | number::WRITE => access::queue(caller, call),
            number::READV | number::WRITEV => access::queue_vectored(caller, call),
            number::MREMAP | number::MADVISE | number::REMAP_FILE_PAGES => {
                absent::mapping_call(caller, call)
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

/// The decision that a result is.
fn settled(decided: Result<Decision>) -> Decision {
    decided.unwrap_or_else(|error| match error.errno {
        // What the kernel would find out itself, it also says itself.
        Errno::EBADF | Errno::EPERM | Errno::ESRCH => Decision::CONTINUE,
        errno => Decision::error(errno),
    })
}

/// An ioctl by another entry ABI. Containers, groups and devices answer it as any (compat_ptr_ioctl), iommufd has none there.
fn foreign_ioctl(caller: &Caller<'_>, call: &Notification, wait: Wait) -> Decision {
    let Ok(Some(opened)) = caller.opened(signed(call.args[0])) else { return Decision::CONTINUE };
    match opened.file {
        File::Container(_) | File::Group(_) | File::Device { .. } => {
            ioctl::ioctl(caller, call, wait)
        }
        File::Iommufd { .. } | File::Kvm { .. } | File::Made(_) => Decision::error(Errno::ENOTTY),
    }
}
