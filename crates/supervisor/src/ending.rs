//! How a run ends: what CMD leaves behind, signals that ask for the end, the time limit.
//!
//! Kept by the watchdog, the one process that whoever started the run can see and send signals to.
//!
//! Invariant: once CMD has ended, whoever waits for the run is told within [`GRACE`] for whom it waits, and two signals end
//! it. A limit ends a run whatever its processes do about SIGTERM, [`MERCY`] after it was reached.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::watchdog::{Leftovers, descendants, end, say};

/// How long what CMD leaves behind may take to end before it is told: a pipe's last process ends a moment after its first.
const GRACE: Duration = Duration::from_millis(100);
/// How long processes have between the SIGTERM of a limit and SIGKILL.
const MERCY: Duration = Duration::from_secs(5);
/// When to look again for processes that a kill has missed, since they were being made just then.
const AGAIN: Duration = Duration::from_millis(20);
/// How many processes a line names.
const NAMED: usize = 3;
/// Signals that ask a program to end (signal(7), action Term, sent by people and by supervisors of services).
const ASKING: [i32; 4] =
    [Signal::TERM.as_raw(), Signal::INT.as_raw(), Signal::HUP.as_raw(), Signal::QUIT.as_raw()];
/// What timeout(1) exits with.
const EXPIRED: i32 = 124;

/// What there is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Nothing.
    Wait,
    /// To tell for whom the run waits.
    Tell,
    /// To ask every process of the run to end.
    Ask,
    /// To kill every process of the run.
    Kill,
}

/// The end of one run, as far as it has come.
#[derive(Debug)]
pub(crate) struct Ending {
    leftovers: Leftovers,
    limit: Option<Duration>,
    begun: Instant,
    ended: Option<Instant>,
    told: bool,
    asked: u32,
    expired: Option<Instant>,
}

impl Ending {
    pub(crate) fn new(leftovers: Leftovers, limit: Option<Duration>, now: Instant) -> Self {
        Self { leftovers, limit, begun: now, ended: None, told: false, asked: 0, expired: None }
    }

    /// CMD has ended.
    pub(crate) fn client_ended(&mut self, now: Instant) {
        self.ended.get_or_insert(now);
    }

    /// A signal has come after CMD's end. Whether it is one that asks for the end of the run.
    pub(crate) fn asked_by(&mut self, signal: i32) -> bool {
        let asks = ASKING.contains(&signal);
        self.asked += u32::from(asks);
        asks
    }

    /// What to do at `now`.
    pub(crate) fn act(&mut self, now: Instant) -> Act {
        let over = |begun: Instant, limit: Duration| now.saturating_duration_since(begun) >= limit;
        if let Some(expired) = self.expired {
            return if over(expired, MERCY) { Act::Kill } else { Act::Wait };
        }
        if self.limit.is_some_and(|limit| over(self.begun, limit)) {
            self.expired = Some(now);
            return Act::Ask;
        }
        if self.asked > 1 {
            return Act::Kill;
        }
        match self.ended {
            Some(ended) if self.leftovers == Leftovers::Await && !self.told => {
                self.told = over(ended, GRACE);
                if self.told { Act::Tell } else { Act::Wait }
            }
            _ => Act::Wait,
        }
    }

    /// How long to wait at most before the next look.
    pub(crate) fn next_look(&self, now: Instant, usual: Duration) -> Duration {
        let until = |begun: Instant, limit: Duration| {
            limit.saturating_sub(now.saturating_duration_since(begun)).max(AGAIN)
        };
        let mut next = usual;
        if self.asked > 1 {
            next = AGAIN;
        }
        if let (Some(ended), false) = (self.ended, self.told) {
            next = next.min(until(ended, GRACE));
        }
        if let Some(limit) = self.limit {
            let until = match self.expired {
                Some(expired) => until(expired, MERCY),
                None => until(self.begun, limit),
            };
            next = next.min(until);
        }
        next
    }

    /// Does what is due. `but` is the supervisor, which ends by itself.
    pub(crate) fn perform(&mut self, status: Option<ExitStatus>, but: Option<u32>) {
        let now = Instant::now();
        if status.is_some() {
            self.client_ended(now);
        }
        match self.act(now) {
            Act::Wait => {}
            Act::Tell => {
                if let (Some(status), Some(who)) = (status, names(&left(but))) {
                    say(&format!(
                        "ioasis: CMD {}; waiting for {who}; --kill-on-exit ends what is left, and so do two SIGINT or SIGTERM\n",
                        how(status)
                    ));
                }
            }
            Act::Ask => {
                let limit = self.limit.unwrap_or_default();
                let who = names(&left(but)).unwrap_or_else(|| "nothing".to_owned());
                say(&format!(
                    "ioasis: the run's limit of {limit:?} is over; SIGTERM goes to {who}, SIGKILL {MERCY:?} later\n"
                ));
                end(&left(but), Signal::TERM.as_raw());
            }
            Act::Kill => end(&left(but), Signal::KILL.as_raw()),
        }
    }

    /// The status of a run that its limit has ended.
    pub(crate) fn status(&self) -> Option<ExitStatus> {
        use std::os::unix::process::ExitStatusExt;
        self.expired.map(|_| ExitStatus::from_raw(EXPIRED << 8))
    }
}

/// Passes a signal on to what CMD has left behind.
pub(crate) fn pass_on(signal: i32, but: Option<u32>) {
    end(&left(but), signal);
}

/// Every process of the run but the one that simulates its machine.
fn left(but: Option<u32>) -> Vec<u32> {
    let mut all = descendants(&[]);
    all.retain(|&pid| Some(pid) != but);
    all
}

/// "pid 41 (sleep), pid 42 (cat) and 3 more", of those that have not ended.
fn names(pids: &[u32]) -> Option<String> {
    let alive: Vec<_> = pids.iter().filter_map(|&pid| Some((pid, name(pid)?))).collect();
    let named: Vec<_> =
        alive.iter().take(NAMED).map(|(pid, name)| format!("pid {pid} ({name})")).collect();
    let more = alive.len().saturating_sub(NAMED);
    let rest = if more == 0 { String::new() } else { format!(" and {more} more") };
    (!alive.is_empty()).then(|| format!("{}{rest}", named.join(", ")))
}

/// What a process that has not ended is called, as it says itself: without what a terminal would take for a command.
fn name(pid: u32) -> Option<String> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let (begin, end) =
        (stat.iter().position(|&b| b == b'(')?, stat.iter().rposition(|&b| b == b')')?);
    let name = String::from_utf8_lossy(stat.get(begin + 1..end)?);
    let has_ended = matches!(stat.get(end + 2), Some(b'Z' | b'X'));
    (!has_ended).then(|| name.chars().map(|c| if c.is_control() { '?' } else { c }).collect())
}

fn how(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with {code}"),
        (None, signal) => format!("was ended by signal {}", signal.unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ending(leftovers: Leftovers, limit: Option<u64>) -> (Ending, Instant) {
        let now = Instant::now();
        (Ending::new(leftovers, limit.map(Duration::from_secs), now), now)
    }

    #[test]
    fn whoever_waits_is_told_once_and_not_at_once() {
        let (mut end, now) = ending(Leftovers::Await, None);
        assert_eq!(end.act(now + GRACE), Act::Wait, "CMD goes on");
        end.client_ended(now);
        assert_eq!(end.act(now), Act::Wait, "the last process of a pipe is about to end");
        assert_eq!(end.act(now + GRACE), Act::Tell);
        assert_eq!(end.act(now + GRACE), Act::Wait);
        let (mut killed, now) = ending(Leftovers::Kill, None);
        killed.client_ended(now);
        assert_eq!(killed.act(now + GRACE), Act::Wait, "nobody is waited for");
    }

    #[test]
    fn a_second_signal_kills_and_goes_on_killing() {
        let (mut end, now) = ending(Leftovers::Await, None);
        end.client_ended(now);
        assert!(end.asked_by(Signal::TERM.as_raw()));
        assert!(!end.asked_by(Signal::WINCH.as_raw()), "a window's size asks for nothing");
        assert_eq!(end.act(now), Act::Wait);
        assert!(end.asked_by(Signal::INT.as_raw()));
        assert_eq!((end.act(now), end.act(now)), (Act::Kill, Act::Kill));
        assert_eq!(end.next_look(now, MERCY), AGAIN);
    }

    #[test]
    fn a_limit_asks_first_and_kills_later() {
        let (mut end, now) = ending(Leftovers::Await, Some(60));
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!((end.act(at(59)), end.status()), (Act::Wait, None));
        assert_eq!(end.next_look(at(59), MERCY), Duration::from_secs(1));
        assert_eq!(end.act(at(60)), Act::Ask);
        assert_eq!(end.act(at(64)), Act::Wait);
        assert_eq!(end.act(at(65)), Act::Kill);
        assert_eq!(end.status().and_then(|status| status.code()), Some(EXPIRED));
    }

    #[test]
    fn a_process_that_has_ended_is_not_waited_for() {
        let child = std::process::Command::new("true").spawn().expect("true");
        let pid = child.id();
        while name(pid).is_some() {
            std::thread::yield_now();
        }
        let own = std::process::id();
        let text = names(&[pid, own]).expect("this process");
        assert!(text.starts_with(&format!("pid {own} (")), "{text}");
        assert_eq!(names(&[pid]), None);
        child.wait_with_output().expect("it has ended");
    }
}
