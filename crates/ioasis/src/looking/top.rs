//! `ioasis top`: what a run does now, in calls, transfers, bytes and interrupts a second.

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use serde_json::{Value, json};

use super::{Run, find, text};

#[derive(Debug, Args)]
pub(crate) struct Top {
    /// The run, by its name or pid, where there are several
    run: Option<String>,

    /// Print one table and end
    #[arg(long)]
    once: bool,

    /// How long each table counts
    #[arg(long, value_name = "TIME", value_parser = crate::cli::duration, default_value = "1s")]
    interval: Duration,
}

/// A terminal that gives each key at once, until it is dropped.
struct Keys(Option<Termios>);

impl Keys {
    fn new() -> Self {
        let stdin = std::io::stdin();
        let Ok(before) = termios::tcgetattr(&stdin) else { return Self(None) };
        let mut raw = before.clone();
        raw.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        let set = termios::tcsetattr(&stdin, OptionalActions::Now, &raw);
        Self(set.ok().map(|()| before))
    }

    /// Waits for `time`; whether q was pressed meanwhile.
    fn wait(&self, time: Duration) -> bool {
        let stdin = std::io::stdin();
        let begun = Instant::now();
        while let Some(left) = time.checked_sub(begun.elapsed()) {
            if self.0.is_none() {
                std::thread::sleep(left);
                return false;
            }
            let timeout = Timespec::try_from(left).unwrap_or_default();
            let mut polled = [PollFd::new(&stdin, PollFlags::IN)];
            if rustix::event::poll(&mut polled, Some(&timeout)).unwrap_or_default() == 0 {
                continue;
            }
            let mut key = [0];
            if !matches!(stdin.lock().read(&mut key), Ok(1)) || key[0] == b'q' {
                return true;
            }
        }
        false
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// `ioasis top`.
pub(crate) fn top(top: &Top) -> Result<ExitCode> {
    let run = find(top.run.as_deref())?;
    let mut before = counters(&run)?;
    if top.once {
        std::thread::sleep(top.interval);
        print!("{}", table(&before, &counters(&run)?));
        return Ok(ExitCode::SUCCESS);
    }
    let keys = Keys::new();
    let clears = std::io::stdout().is_terminal();
    while !keys.wait(top.interval) {
        let now = counters(&run)?;
        let mut out = std::io::stdout();
        let clear = if clears { "\u{1b}[H\u{1b}[J" } else { "" };
        write!(out, "{clear}{}", table(&before, &now))?;
        out.flush()?;
        before = now;
    }
    Ok(ExitCode::SUCCESS)
}

fn counters(run: &Run) -> Result<Value> {
    run.ask(json!({ "ask": "counters" }), &[], Duration::ZERO)
}

/// How much more there is now, a second.
fn table(before: &Value, now: &Value) -> String {
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let time = number(&now["milliseconds"]).saturating_sub(number(&before["milliseconds"])).max(1);
    let rate = |old: &Value, new: &Value| {
        number(new).saturating_sub(number(old)).saturating_mul(1000) / time
    };
    let mut rows = vec![
        ["DEVICE", "STATE", "READS/S", "READ", "WRITES/S", "WRITTEN", "INTERRUPTS/S"]
            .map(str::to_owned),
    ];
    for device in now["devices"].as_array().into_iter().flatten() {
        let is_it = |other: &&Value| other["address"] == device["address"];
        let mut olds = before["devices"].as_array().into_iter().flatten();
        let old = olds.find(is_it).unwrap_or(&Value::Null);
        let of = |key: &str| rate(&old[key], &device[key]);
        rows.push([
            text::word(&device["address"]),
            text::word(&device["open"]),
            of("reads").to_string(),
            bytes(of("read_bytes")),
            of("writes").to_string(),
            bytes(of("write_bytes")),
            of("interrupts").to_string(),
        ]);
    }
    format!(
        "{}: {} calls/s, {} refused DMA in all\n{}",
        text::word(&now["name"]),
        rate(&before["calls"], &now["calls"]),
        text::word(&now["refused_dma"]),
        text::columns(&rows)
    )
}

/// Bytes a second.
fn bytes(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes} B/s"),
        10_240..10_485_760 => format!("{} KiB/s", bytes >> 10),
        _ => format!("{} MiB/s", bytes >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_the_time_between_two_looks() {
        let look = |milliseconds: u64, calls: u64, reads: u64| {
            json!({
                "name": "x", "milliseconds": milliseconds, "calls": calls, "refused_dma": 0,
                "devices": [{
                    "address": "0000:01:00.0", "open": "cdev", "reads": reads, "read_bytes": reads << 12,
                    "writes": 0, "write_bytes": 0, "interrupts": null,
                }],
            })
        };
        assert_eq!(
            table(&look(1000, 10, 0), &look(1500, 20, 500)),
            "x: 20 calls/s, 0 refused DMA in all
DEVICE        STATE  READS/S  READ        WRITES/S  WRITTEN  INTERRUPTS/S
0000:01:00.0  cdev   1000     4000 KiB/s  0         0 B/s    0
"
        );
    }
}
