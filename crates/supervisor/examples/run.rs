//! Runs its arguments as a program on a machine without devices: what the tests start.

use std::ffi::OsString;

use ioasis_supervisor::{Leftovers, RunOptions, exit_like, run, view};

fn main() {
    let mut command: Vec<OsString> = std::env::args_os().skip(1).collect();
    let kill = command.first().is_some_and(|first| first == "--kill-on-exit");
    if kill {
        command.remove(0);
    }
    let leftovers = if kill { Leftovers::Kill } else { Leftovers::Await };
    match run(RunOptions { command, leftovers, view: view::Options::default() }) {
        Ok(status) => exit_like(status),
        Err(failure) => {
            eprintln!("ioasis: {failure}");
            std::process::exit(failure.status.into())
        }
    }
}
