//! Goals P1 to P10 and what large spaces cost (`scale`), one line each: what was measured, the
//! bound, and whether it is met.
//!
//! Every ratio is taken against its peer in the same run, on one core, in turns, as the median
//! of 25. Where the system lets it, the bench starts itself again with real-time priority, so that
//! other work on the machine does not cut into a round; caches and memory stay shared with it.
//! `goals P4` runs only lines that begin so. Instructions are counted by callgrind where it is
//! installed.

#![expect(clippy::cast_possible_truncation, reason = "addresses here are small")]

mod areas;
mod count;
mod dirty;
mod peers;
mod scale;
mod tables;
mod translate;

use std::process::{Command, Stdio};
use std::time::Instant;

const ROUNDS: usize = 25;

/// Which side of a bound is good.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    /// At most.
    Max(f64),
    /// At least.
    Min(f64),
}

/// Prints lines whose goal was asked for.
#[derive(Debug)]
pub(crate) struct Report {
    only: Option<String>,
}

impl Report {
    /// Whether a goal was asked for.
    pub(crate) fn wants(&self, goal: &str) -> bool {
        self.only.as_deref().is_none_or(|only| goal.starts_with(only) || only.starts_with(goal))
    }

    /// Prints one line.
    pub(crate) fn line(&self, goal: &str, value: f64, bound: Bound) {
        let (sign, limit, met) = match bound {
            Bound::Max(limit) => ("<=", limit, value <= limit),
            Bound::Min(limit) => (">=", limit, value >= limit),
        };
        println!("{goal} {value:.2} {sign}{limit} {}", if met { "met" } else { "missed" });
    }

    /// Prints a figure that a line above or below is made of.
    pub(crate) fn note(&self, what: &str, value: f64, unit: &str) {
        println!("  {what} {value:.2} {unit}");
    }
}

/// Nanoseconds per operation of each, in turns: `run` gets the number of the contestant and does
/// `operations`.
pub(crate) fn race<const N: usize>(operations: u64, mut run: impl FnMut(usize)) -> [f64; N] {
    let mut rounds = [[0.0; ROUNDS]; N];
    for contestant in 0..N {
        run(contestant);
    }
    for round in 0..ROUNDS {
        for (contestant, times) in rounds.iter_mut().enumerate() {
            let begun = Instant::now();
            run(contestant);
            times[round] = begun.elapsed().as_secs_f64() * 1e9 / operations as f64;
        }
    }
    rounds.map(|mut times| {
        times.sort_unstable_by(f64::total_cmp);
        times[ROUNDS / 2]
    })
}

/// The medians of two contestants' rounds.
pub(crate) fn medians(rounds: &[[f64; 2]]) -> [f64; 2] {
    [0, 1].map(|contestant| {
        let mut times: Vec<f64> = rounds.iter().map(|round| round[contestant]).collect();
        times.sort_unstable_by(f64::total_cmp);
        times[times.len() / 2]
    })
}

/// Numbers that look random and are the same in every run.
#[derive(Clone, Debug)]
pub(crate) struct Numbers(u64);

impl Numbers {
    /// A sequence.
    pub(crate) const fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    /// The next number below `limit`, a power of two.
    pub(crate) const fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) & (limit - 1)
    }
}

/// Set in a run that was started on a core of its own.
const ALONE: &str = "IOASIS_ALONE";

/// Runs this program again on the last core, before everything else that is there; false if the
/// system does not let it.
fn alone() -> bool {
    let core = std::thread::available_parallelism().map_or(0, |cores| cores.get() - 1).to_string();
    let prefix = ["-f", "1", "taskset", "-c", &core];
    let allowed = |mut command: Command| command.status().is_ok_and(|status| status.success());
    let mut probe = Command::new("chrt");
    probe.args(prefix).arg("true").stderr(Stdio::null());
    if !allowed(probe) {
        println!("  no real-time priority here: other work may cut into the rounds");
        return false;
    }
    let program = std::env::current_exe().expect("this program has a path");
    let mut again = Command::new("chrt");
    again.args(prefix).arg(program).args(std::env::args_os().skip(1)).env(ALONE, "1");
    assert!(allowed(again), "the run on a core of its own failed");
    true
}

fn main() {
    if let Ok(name) = std::env::var("IOASIS_COUNT") {
        return count::counted(&name);
    }
    if std::env::var_os(ALONE).is_none() && alone() {
        return;
    }
    let report = Report { only: std::env::args().skip(1).find(|arg| !arg.starts_with('-')) };
    translate::run(&report);
    tables::run(&report);
    areas::run(&report);
    dirty::run(&report);
    scale::run(&report);
    count::run(&report);
}
