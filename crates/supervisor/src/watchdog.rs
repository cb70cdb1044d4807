//! The watchdog: stands beside the supervisor and answers in its place once it is gone.
//!
//! The first one is the process that was started as `ioasis run`. It passes signals on to the client and the client's
//! end on to whoever started it. Should it be killed, the supervisor forks another, which does the rest.
//!
//! Once the supervisor is dead, system calls on our files and nodes answer `ENODEV`, everything else goes on, and the
//! calls that the supervisor had received are answered first, so that none hangs.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ioasis_sys::notify::{Answer, Listener, Notification, Slots};
use ioasis_sys::seccomp::{Arch, X32_BIT};
use ioasis_sys::signal::{self, SignalFd};
use ioasis_sys::spawn;
use ioasis_uapi::{Errno, Error};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::ending::{self, Ending};
use crate::filter::{self, number};
use crate::other::{LOOK, Other};
use crate::removal::{Failure, Marks, Note, Removal};
use crate::resolve::{self, Found, Last, Seen, Wait};
use crate::run::OnFaults;
use crate::task::{OpenCall, Task, low, signed};

/// What supervisor and watchdog know of the run together: notification slots and a few words beside them.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) slots: Slots,
}

/// Calls that can be in the supervisor's hands at once.
const SLOTS: u32 = 4096;
// Words beside the slots.
const CLIENT: u32 = 0;
const STATUS: u32 = 1;
const FINISHED: u32 = 2;
const FAULTS: u32 = 3;
const WORDS: u32 = 4;
/// How long a tracer takes at most to note what it has reaped.
const NOTED: Duration = Duration::from_secs(5);
/// Says in the status word that there is one.
const KNOWN: u64 = 1 << 32;

impl Shared {
    pub(crate) fn new() -> Result<Self, Error> {
        Ok(Self { slots: Slots::new(SLOTS, WORDS)? })
    }

    /// The client's process id, once it was forked.
    pub(crate) fn client(&self) -> Option<u32> {
        u32::try_from(self.slots.word(CLIENT).load(Ordering::SeqCst)).ok().filter(|&pid| pid != 0)
    }

    pub(crate) fn set_client(&self, pid: u32) {
        self.slots.word(CLIENT).store(pid.into(), Ordering::SeqCst);
    }

    /// How the client ended. Written before it is reaped, so that it is not lost with whoever reaps.
    pub(crate) fn status(&self) -> Option<ExitStatus> {
        let word = self.slots.word(STATUS).load(Ordering::SeqCst);
        let raw = u32::try_from(word & u64::from(u32::MAX)).expect("a half");
        (word & KNOWN != 0).then(|| ExitStatus::from_raw(raw.cast_signed()))
    }

    fn set_status(&self, status: ExitStatus) {
        let raw = status.into_raw().cast_unsigned();
        self.slots.word(STATUS).store(KNOWN | u64::from(raw), Ordering::SeqCst);
    }

    /// Says that the run ended as it should.
    pub(crate) fn finish(&self) {
        self.slots.word(FINISHED).store(1, Ordering::SeqCst);
    }

    /// How many times a device could not reach memory or send a message.
    pub(crate) fn set_faults(&self, faults: u64) {
        self.slots.word(FAULTS).store(faults, Ordering::SeqCst);
    }

    fn is_finished(&self) -> bool {
        self.slots.word(FINISHED).load(Ordering::SeqCst) != 0
    }

    /// Reaps the children that ended, and notes the client's status.
    pub(crate) fn reap(&self) {
        while let Ok(Some((pid, status))) = spawn::ended() {
            self.note(pid, status);
            spawn::reap(pid);
        }
    }

    /// Notes how a process ended, if it is the client.
    pub(crate) fn note(&self, pid: u32, status: ExitStatus) {
        if self.client() == Some(pid) {
            self.set_status(status);
        }
    }

    /// Waits for the client, which has no life left, to be reapable.
    pub(crate) fn await_client(&self) {
        let (None, Some(pid)) = (self.status(), self.client()) else { return };
        if let Ok(status) = spawn::wait_for(pid) {
            self.set_status(status);
            spawn::reap(pid);
        }
        // A tracer has reaped it and is about to note its status.
        let begun = Instant::now();
        while self.status().is_none() && begun.elapsed() < NOTED {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What becomes of processes that the client leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftovers {
    /// The run goes on until the last of them has ended.
    Await,
    /// They are killed when the client ends.
    Kill,
}

/// What becomes of SIGUSR1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnUser1 {
    /// It goes to the client as every other signal.
    Pass,
    /// It makes the supervisor print the ledger.
    Report,
}

/// One watchdog.
#[derive(Debug)]
pub(crate) struct Watchdog {
    pub(crate) shared: Arc<Shared>,
    pub(crate) supervisor: Other,
    /// Where the supervisor's notes arrive.
    pub(crate) notes: OwnedFd,
    /// Signals to pass on.
    pub(crate) signals: Option<SignalFd>,
    /// What to do once the supervisor is dead.
    pub(crate) removal: Removal,
    pub(crate) leftovers: Leftovers,
    pub(crate) ending: Ending,
    /// The client was seen to end; its status may not be known yet.
    pub(crate) client_has_ended: bool,
    pub(crate) on_faults: OnFaults,
    pub(crate) on_user1: OnUser1,
}

impl Watchdog {
    /// Watches until the run is over.
    ///
    /// # Errors
    ///
    /// Why no client was started.
    pub(crate) fn watch(mut self) -> Result<ExitStatus, Failure> {
        let mut failure = None;
        let mut notes_end = false;
        loop {
            let ready = self.poll(notes_end);
            self.pass_signals_on();
            self.look_at_end();
            if self.supervisor.is_stopped() {
                self.supervisor.go_on();
            }
            if ready.note {
                match Note::receive(&self.notes) {
                    Ok(Some(Note::Failed(why))) => failure = Some(why),
                    Ok(Some(Note::Ended)) => {
                        self.await_supervisor();
                        break;
                    }
                    Ok(Some(note)) => self.removal.keep(note),
                    Ok(None) | Err(_) => notes_end = true,
                }
            } else if ready.supervisor {
                break;
            }
        }
        if let Some(failure) = failure {
            self.shared.reap();
            return Err(failure);
        }
        if !self.shared.is_finished() {
            let Some(listener) = self.removal.listener.take() else {
                return Err(Failure::before_start(
                    "the supervisor was killed before it started the program",
                ));
            };
            say(
                "ioasis: the supervisor was killed; its devices are gone, the program goes on without them\n",
            );
            self.stand_in(&listener);
        }
        self.shared.reap();
        self.shared.await_client();
        let status = self.ending.status().or_else(|| self.shared.status());
        let faults = self.shared.slots.word(FAULTS).load(Ordering::SeqCst);
        if self.on_faults == OnFaults::Fail && faults != 0 && status.is_some_and(|s| s.success()) {
            say(&format!(
                "ioasis: CMD ended with 0, and {faults} times a device could not reach memory or send its interrupt; --explain says why\n"
            ));
            return Ok(ExitStatus::from_raw(FAULTY << 8));
        }
        status.ok_or_else(|| Failure::before_start("the program's exit status is lost"))
    }

    /// Does what the end of the run takes now, once there is a client. The successor of a watchdog has nobody who
    /// waits for it; the supervisor does for it what [`Leftovers`] says.
    fn look_at_end(&mut self) {
        if self.signals.is_some() && self.removal.client.is_some() {
            self.ending.perform(self.shared.status(), Some(self.supervisor.pid()));
        }
    }

    fn poll(&mut self, notes_end: bool) -> Ready {
        let status_is_known = self.shared.status().is_some();
        let awaited = !status_is_known && !self.client_has_ended;
        let client = self.removal.client.as_ref();
        let fds: Vec<BorrowedFd<'_>> = [self.supervisor.as_fd(), self.notes.as_fd()]
            .into_iter()
            .chain(self.signals.iter().filter(|_| client.is_some()).map(AsFd::as_fd))
            .chain(client.filter(|_| awaited).map(AsFd::as_fd))
            .collect();
        let mut polled: Vec<PollFd<'_>> =
            fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        // The supervisor or a tracer notes its status a moment after its end.
        let usual = if awaited || status_is_known { LOOK } else { SOON };
        let limit = self.ending.next_look(Instant::now(), usual);
        let limit = Timespec::try_from(limit).expect("half a second");
        if rustix::event::poll(&mut polled, Some(&limit)).is_err() {
            return Ready { supervisor: false, note: false };
        }
        let ready = |index: usize| !polled[index].revents().is_empty();
        self.client_has_ended |= awaited && client.is_some() && ready(polled.len() - 1);
        Ready { supervisor: ready(0), note: ready(1) && !notes_end }
    }

    /// Waits for the supervisor to end, but not for a thread of its that the kernel does not end: one that reads a page
    /// of a FUSE file whose server has taken the request.
    fn await_supervisor(&self) {
        let mut polled = [PollFd::new(&self.supervisor, PollFlags::IN)];
        let _ = rustix::event::poll(&mut polled, Some(&LAST_THREADS));
    }

    /// A signal that the terminal sent has reached the client too; one that a process sent to us alone has not.
    ///
    /// What comes after the client's end is for what it has left behind.
    fn pass_signals_on(&mut self) {
        // Before there is a client, they wait.
        let (Some(signals), Some(client)) = (&self.signals, &self.removal.client) else { return };
        while let Some(arrived) = signals.next() {
            if arrived.signal == Signal::USR1.as_raw() && self.on_user1 == OnUser1::Report {
                // One that is gone has nothing to print.
                let _ = pidfd_send_signal(&self.supervisor, Signal::USR1);
            } else if arrived.signal == SIGCHLD {
            } else if self.shared.status().is_some() {
                let asks = self.ending.asked_by(arrived.signal);
                if asks && arrived.by_process {
                    ending::pass_on(arrived.signal, Some(self.supervisor.pid()));
                }
            } else if arrived.by_process {
                // One that has just ended has no use for it.
                let _ = signal::send(client, arrived.signal);
            }
        }
    }

    /// Answers in the place of the dead supervisor until the last task under the filter has ended.
    fn stand_in(&mut self, listener: &Listener) {
        self.removal.perform();
        let shared = Arc::clone(&self.shared);
        let slots = &shared.slots;
        for index in 0..slots.count() {
            if let Some(call) = slots.get(index) {
                self.answer(listener, &call);
                slots.clear(index);
            }
        }
        loop {
            self.pass_signals_on();
            self.shared.reap();
            self.look_at_end();
            if self.leftovers == Leftovers::Kill && self.shared.status().is_some() {
                end_descendants(&[]);
            }
            match wait_for_call(listener, &self.signals, self.supervisor.as_fd()) {
                Next::Call => {
                    if let Ok(call) = slots.receive(listener, 0) {
                        self.answer(listener, &call);
                        slots.clear(0);
                    }
                }
                Next::Nothing => {}
                Next::End => return,
            }
        }
    }

    fn answer(&self, listener: &Listener, call: &Notification) {
        let answer = orphaned(&self.removal.marks, call);
        let _ = listener.answer(call.id, answer);
    }
}

/// How long a supervisor that ends is waited for.
const LAST_THREADS: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// When to look again for what is about to be known.
const SOON: Duration = Duration::from_millis(20);
/// The status of a run with faults whose program did not notice.
const FAULTY: i32 = 121;
const SIGCHLD: i32 = Signal::CHILD.as_raw();

struct Ready {
    supervisor: bool,
    note: bool,
}

enum Next {
    Call,
    Nothing,
    End,
}

fn wait_for_call(
    listener: &Listener,
    signals: &Option<SignalFd>,
    fallback: BorrowedFd<'_>,
) -> Next {
    let signals = signals.as_ref().map_or(fallback, AsFd::as_fd);
    // Without signals to wait for, the dead supervisor's pidfd is there to be polled for nothing.
    let mut polled = [PollFd::new(listener, PollFlags::IN), PollFd::new(&signals, PollFlags::PRI)];
    let timeout = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    if rustix::event::poll(&mut polled, Some(&timeout)).is_err() {
        return Next::Nothing;
    }
    let ready = polled[0].revents();
    if ready.contains(PollFlags::IN) {
        Next::Call
    } else if ready.contains(PollFlags::HUP) {
        Next::End
    } else {
        Next::Nothing
    }
}

/// What a call of a client whose supervisor is dead is answered.
fn orphaned(marks: &Marks, call: &Notification) -> Answer {
    let Ok(task) = Task::of(call.tid) else { return Answer::Continue };
    if let Some(open) = OpenCall::of(&task, call) {
        let Ok(open) = open else { return Answer::Continue };
        let last = if open.follows() { Last::Follow } else { Last::Keep };
        let Found::File(_, seen) = resolve::resolve(open.from, &open.path, last, Wait::Allowed)
        else {
            return Answer::Continue;
        };
        let ours = seen.dev == marks.files || marks.nodes.contains(&(seen.dev, seen.ino));
        return if ours { Answer::Error(Errno::ENODEV) } else { Answer::Continue };
    }
    let Some((fd, is_surely_ours)) = file_of(call) else { return Answer::Continue };
    let ours = match task.file(signed(fd)) {
        Ok(file) => Seen::of(file).is_ok_and(|seen| seen.dev == marks.files),
        // It cannot be looked at.
        Err(error) => error.errno == Errno::EPERM && is_surely_ours,
    };
    if ours { Answer::Error(Errno::ENODEV) } else { Answer::Continue }
}

/// The descriptor that a stopped call is made on, if a file of ours answers it otherwise than the kernel does; and
/// whether no other file has such calls: an ioctl of our type, an access where our regions lie.
fn file_of(call: &Notification) -> Option<(u64, bool)> {
    let wide = (call.arch == Arch::I386.raw()).then(|| filter::widened(call)).flatten();
    let call = wide.as_ref().unwrap_or(call);
    let [first, second, _, _, fifth, sixth] = call.args;
    Some(match call.number & !X32_BIT {
        number::IOCTL | number::X32_IOCTL => (first, filter::is_our_ioctl(low(second))),
        number::PREAD64 | number::PWRITE64 => (first, true),
        number if filter::is_vectored(number) => (first, true),
        number::MMAP => (fifth, sixth >> ioasis_vfio::REGION_SHIFT != 0),
        number::SENDFILE => (second, false),
        number::FCNTL | number::MREMAP | number::MADVISE | number::REMAP_FILE_PAGES => return None,
        number if filter::is_of_a_file(number) => (first, false),
        _ => return None,
    })
}

/// Kills every process that descends from this one, except those in `but` and what descends from them only.
pub(crate) fn end_descendants(but: &[u32]) {
    end(&descendants(but), Signal::KILL.as_raw());
}

/// Sends `signal` to those of `pids` that descend from this process.
pub(crate) fn end(pids: &[u32], signal: i32) {
    for &pid in pids {
        let Some(number) = Pid::from_raw(pid.cast_signed()) else { continue };
        let Ok(process) = pidfd_open(number, PidfdFlags::empty()) else { continue };
        // The number may have passed on before: not, where it is still that of a descendant.
        if descends(pid) {
            let _ = signal::send(process, signal);
        }
    }
}

/// Every process that descends from this one, except those in `but` and what descends from them only.
pub(crate) fn descendants(but: &[u32]) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, parent(pid)?)))
        .collect();
    let mut ours = vec![std::process::id()];
    let mut at = 0;
    while let Some(&ancestor) = ours.get(at) {
        at += 1;
        let children =
            parents.iter().filter(|&&(pid, parent)| parent == ancestor && !but.contains(&pid));
        ours.extend(children.map(|&(pid, _)| pid));
    }
    ours.remove(0);
    ours
}

/// Whether a process descends from this one.
fn descends(pid: u32) -> bool {
    let ancestors = std::iter::successors(Some(pid), |&pid| parent(pid).filter(|&pid| pid > 1));
    ancestors.skip(1).any(|ancestor| ancestor == std::process::id())
}

/// The fourth field of /proc/PID/stat, behind a name that may hold anything.
fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    std::str::from_utf8(&stat[name_end + 1..]).ok()?.split_whitespace().nth(1)?.parse().ok()
}

/// Writes to standard error without its lock, which a thread that a fork left behind may have held.
pub(crate) fn say(text: &str) {
    let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
}
