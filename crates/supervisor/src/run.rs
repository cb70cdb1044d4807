//! A run: watchdog, supervisor and client, from the first fork to the last task's end.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ioasis_sys::signal::{self, SignalFd};
use ioasis_sys::spawn::{self, Fork};
use ioasis_sys::{because, message};
use ioasis_uapi::{Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Signal;

use crate::confine::confine;
use crate::control::{self, Control};
use crate::descriptors;
use crate::ending::Ending;
use crate::launch::{self, Inherited, Launched};
use crate::ledger::{self, Ledger};
use crate::limits::Limits;
use crate::machine::Machine;
use crate::notes::Notes;
use crate::other::{LOOK, Other};
use crate::removal::{Failure, Marks, Note, Removal};
use crate::rules::Rule;
use crate::serve::Server;
use crate::sysfs::Bus;
use crate::trace::Trace;
use crate::view::{Kept, View};
use crate::watchdog::{Leftovers, OnUser1, Shared, Watchdog, end_descendants, say};

/// What to run, and on what machine.
#[derive(Debug)]
pub struct RunOptions {
    /// The program and its arguments; not empty.
    pub command: Vec<OsString>,
    /// What becomes of processes that the program leaves behind.
    pub leftovers: Leftovers,
    /// After how long the run is ended: its processes get SIGTERM, five seconds later SIGKILL, and the status is 124.
    pub limit: Option<Duration>,
    /// What it is run on.
    pub machine: Machine,
    /// Where a line for every call on our files goes.
    pub trace: Option<Trace>,
    /// Calls that are to fail or wait.
    pub rules: Vec<Rule>,
    /// Whether it is printed at the end what went wrong.
    pub explain: Explain,
    /// Whether a run in which a device could not reach memory or send a message ends with status 121, if its program ended with 0.
    pub faults: OnFaults,
    /// Where it is printed who pinned what: at the end, and when SIGUSR1 comes.
    pub ledger: Option<Ledger>,
    /// By what it is looked into while it goes on.
    pub control: Option<control::Socket>,
}

/// Whether what went wrong is told at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Explain {
    /// No.
    #[default]
    Nothing,
    /// On standard error, at most ten lines.
    Findings,
}

/// What becomes of a run with faults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFaults {
    /// They are the program's to notice.
    #[default]
    Pass,
    /// The run fails.
    Fail,
}

/// Runs a program on a machine.
///
/// The calling process becomes the watchdog of the run and returns with the program's exit status once the last
/// process under the filter has ended. It must have one thread, and open all its descriptors with `FD_CLOEXEC`.
///
/// # Errors
///
/// Why the program was not started.
pub fn run(mut options: RunOptions) -> Result<ExitStatus, Failure> {
    let failed = |error: Error| Failure::before_start(error.why);
    if !spawn::is_single_threaded() {
        return Err(Failure::before_start("a run must be started by a process with one thread"));
    }
    let shared = Arc::new(Shared::new().map_err(failed)?);
    let (notes, supervisors) = message::pair().map_err(failed)?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|raw| failed(because("PR_SET_CHILD_SUBREAPER is refused")(raw)))?;
    let watchdog = Other::open(std::process::id()).map_err(failed)?;
    let inherited =
        Inherited { signals: signal::Inherited::take(), limits: Limits::lift().map_err(failed)? };
    // What a terminal sends to stop its foreground must stop this process, so that its shell notices.
    let passed = [&signal::BROKEN[..], &STOPPING].concat();
    let passed = signal::Set::all_but(&passed);
    let before = passed.block();
    let on_user1 = if options.ledger.is_some() { OnUser1::Report } else { OnUser1::Pass };
    let result = match spawn::fork().map_err(failed)? {
        Fork::Child => {
            drop(notes);
            supervise(options, (shared, supervisors), (watchdog, inherited))
        }
        Fork::Parent(child) => {
            let place = options.control.take().map(control::Socket::into_place);
            drop(supervisors);
            spawn::close_inherited();
            let watchdog = Watchdog {
                shared: Arc::clone(&shared),
                supervisor: Other::open(child.id()).map_err(failed)?,
                notes,
                signals: Some(SignalFd::new(&passed).map_err(failed)?),
                removal: Removal::default(),
                leftovers: options.leftovers,
                ending: Ending::new(options.leftovers, options.limit, Instant::now()),
                client_has_ended: false,
                on_faults: options.faults,
                on_user1,
            };
            let ended = watchdog.watch();
            if let Some(place) = place {
                place.remove();
            }
            ended
        }
    };
    before.block();
    result
}

const STOPPING: [i32; 3] = [Signal::TSTP.as_raw(), Signal::TTIN.as_raw(), Signal::TTOU.as_raw()];

/// Ends this process as the program ended.
pub fn exit_like(status: ExitStatus) -> ! {
    use std::os::unix::process::ExitStatusExt;
    match status.signal() {
        Some(signal) => signal::die_of(signal),
        None => std::process::exit(status.code().unwrap_or(125)),
    }
}

/// The supervisor's life.
fn supervise(
    mut options: RunOptions,
    (shared, socket): (Arc<Shared>, OwnedFd),
    (watchdog, inherited): (Other, Inherited),
) -> ! {
    signal::Set::all_but(&signal::BROKEN).block();
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    abort_on_panic();
    // A trapped store stops a thread each time.
    ioasis_sys::ptrace::tell_ends_only();
    let notes = Arc::new(Notes::new(socket));
    let leftovers = options.leftovers;
    let ledger = options.ledger.take();
    let explain = options.explain;
    if ledger.is_some() {
        options.machine.iommu.ledger.remember(ledger::name);
    }
    let control = options.control.take();
    let control = control.map(|socket| Control::new(socket, &options.command, watchdog.pid()));
    match prepare(options, (&shared, &notes), inherited) {
        Ok((server, launched)) => {
            let client = Other::open(launched.child.id());
            let client = client.unwrap_or_else(|error| {
                say(&format!("ioasis: {error}\n"));
                spawn::exit(1)
            });
            let mut supervisor = Supervisor {
                shared,
                notes,
                server,
                launched,
                leftovers,
                ledger,
                explain,
                watchdog,
                was_stopped: false,
                client,
                successor: None,
                closing: false,
                started: false,
                control,
            };
            if let Err(error) = supervisor.serve() {
                say(&format!("ioasis: {error}\n"));
                spawn::exit(1)
            }
            spawn::exit(0)
        }
        Err(failure) => {
            notes.tell(Note::Failed(failure));
            spawn::exit(1)
        }
    }
}

/// A supervisor that lost a thread would leave calls without an answer: it ends instead, and the watchdog stands in.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

fn prepare(
    options: RunOptions,
    (shared, notes): (&Arc<Shared>, &Arc<Notes>),
    inherited: Inherited,
) -> Result<(Arc<Server>, Launched), Failure> {
    let failed = |error: Error| Failure::before_start(error.why);
    let RunOptions { command, machine, trace, rules, explain, faults, .. } = options;
    let trace = if (explain, faults) == (Explain::Nothing, OnFaults::Pass) {
        trace
    } else {
        Some(trace.unwrap_or_else(Trace::quiet).with_findings())
    };
    let mut machine = machine;
    let bus = Bus::new(machine.devices.devices(), &machine.drivers).map_err(failed)?;
    let seen = machine.seen(&bus).map_err(failed)?;
    machine.view.kept = Kept::of(&seen);
    machine.view.hidden = control::hidden();
    let view = View::plan(&seen, &machine.options(&bus)).map_err(failed)?;
    let mut launched = launch::launch(&view, &command, inherited)?;
    shared.set_client(launched.child.id());
    spawn::close_inherited();
    descriptors::allow_many();
    for entry in &launched.lost {
        say(&format!("ioasis: {entry} is not in the program's view\n"));
    }
    confine().map_err(failed)?;
    let server = Server::new(&mut launched, &view, (machine, bus), (trace, rules), (shared, notes))
        .map_err(failed)?;
    let marks = Marks::new(server.files_dev(), &launched.nodes);
    let listener = launched.listener.try_clone().map_err(failed)?;
    let client = launched.child.as_fd().try_clone_to_owned();
    let client = client.map_err(|_| Failure::before_start("too many open files"))?;
    notes.tell(Note::Launched { listener, client, marks });
    Ok((server, launched))
}

/// How long the end of a run waits for devices that do not end: a page that a process outside the run holds back.
const LAST_CLOSES: Duration = Duration::from_secs(1);
/// When to look again at what is on its way.
const SOON: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// What the supervisor's main thread looks after while another receives calls.
struct Supervisor {
    shared: Arc<Shared>,
    notes: Arc<Notes>,
    server: Arc<Server>,
    launched: Launched,
    leftovers: Leftovers,
    ledger: Option<Ledger>,
    explain: Explain,
    watchdog: Other,
    /// It was seen stopped at the last look.
    was_stopped: bool,
    client: Other,
    /// The watchdog, if this process made it.
    successor: Option<u32>,
    /// A close is on its way.
    closing: bool,
    started: bool,
    /// There until it answers.
    control: Option<Control>,
}

impl Supervisor {
    /// Serves until the last task under the filter has ended.
    fn serve(&mut self) -> Result<()> {
        let signals = SignalFd::new(&signal::Set::all_but(&signal::BROKEN))?;
        self.launched.start();
        self.server.start()?;
        if let Some(control) = self.control.take()
            && control.start(&self.server).is_err()
        {
            say(
                "ioasis: no thread is left for the control socket: the run cannot be looked into\n",
            );
        }
        loop {
            if self.wait(&signals)? == Wake::End {
                break;
            }
            while let Some(arrived) = signals.next() {
                if arrived.signal == Signal::USR1.as_raw() {
                    self.print_ledger();
                }
            }
            self.shared.reap();
            if self.kills() {
                end_descendants(self.successor.as_slice());
            }
            self.closing = self.server.drain();
            self.server.undo();
            self.look_at_watchdog();
        }
        self.server.close_all(LAST_CLOSES);
        self.print_ledger();
        let (summary, faults) = self.server.findings();
        if self.explain == Explain::Findings {
            say(&summary);
        }
        self.shared.set_faults(faults);
        self.shared.reap();
        self.shared.await_client();
        self.shared.finish();
        self.notes.tell(Note::Ended);
        // One that was stopped has no life left to wait for.
        self.watchdog.go_on();
        Ok(())
    }

    /// Lets a watchdog that a client has stopped go on. One that stopped with the client, as a terminal stops both, waits
    /// for whoever lets both go on.
    fn look_at_watchdog(&mut self) {
        let was_stopped = std::mem::replace(&mut self.was_stopped, self.watchdog.is_stopped());
        if was_stopped && self.was_stopped && !self.client.is_stopped() {
            self.watchdog.go_on();
        }
    }

    /// Whether what there is of the run is to be killed: CMD has ended, or `ioasis run` itself, which whoever started it
    /// takes for the whole.
    fn kills(&self) -> bool {
        let over = self.shared.status().is_some() || self.successor.is_some();
        self.leftovers == Leftovers::Kill && over
    }

    fn print_ledger(&self) {
        if let Some(ledger) = &self.ledger {
            ledger.print(&self.server.ledger_entries());
        }
    }

    fn wait(&mut self, signals: &SignalFd) -> Result<Wake> {
        let (start, [files, queues, left]) = (self.launched.socket(), self.server.closes());
        let mut polled = vec![
            PollFd::new(&self.launched.listener, PollFlags::empty()),
            PollFd::new(&self.watchdog, PollFlags::IN),
            PollFd::new(signals, PollFlags::IN),
            PollFd::new(&files, PollFlags::IN),
            PollFd::new(&queues, PollFlags::IN),
            PollFd::new(&left, PollFlags::IN),
        ];
        if !self.started {
            polled.push(PollFd::new(&start, PollFlags::IN));
        }
        let killing = self.kills();
        let look = Timespec::try_from(LOOK).expect("half a second");
        let again = if killing || self.closing { &SOON } else { &look };
        let _ = rustix::event::poll(&mut polled, Some(again));
        let ready = |index: usize| polled.get(index).is_some_and(|fd| !fd.revents().is_empty());
        let (ended, watchdog_gone, started) = (ready(0), ready(1), ready(6));
        if started {
            self.started = true;
            if let Err(failure) = self.launched.started() {
                self.notes.tell(Note::Failed(failure));
            }
        }
        if ended {
            return Ok(Wake::End);
        }
        if watchdog_gone {
            let pid = self.notes.replace_watchdog(&self.shared, self.leftovers)?;
            (self.watchdog, self.successor) = (Other::open(pid)?, Some(pid));
        }
        Ok(Wake::Work)
    }
}

#[derive(PartialEq, Eq)]
enum Wake {
    Work,
    End,
}
