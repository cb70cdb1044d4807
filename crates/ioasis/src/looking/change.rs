//! `ioasis ctl`: what is done to a run that goes on.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;

use super::{find, split, text};
use crate::entry::meant;

/// What can be done.
pub(super) const VERBS: [&str; 3] = ["surprise-remove", "aer", "device-remove"];

#[derive(Debug, Args)]
pub(crate) struct Ctl {
    /// The run, by its name or pid, where there are several; then surprise-remove, aer or device-remove, and a device's address
    #[arg(value_name = "[RUN] WHAT DEVICE", num_args = 1.., required = true)]
    words: Vec<String>,

    /// With device-remove: how long the program may take to let go of the device before it is pulled out all the same
    #[arg(long, value_name = "TIME", value_parser = crate::cli::duration, default_value = "30s")]
    wait: Duration,
}

/// `ioasis ctl`.
pub(crate) fn ctl(ctl: &Ctl) -> Result<ExitCode> {
    let (run, words) = split(&ctl.words, &VERBS);
    let [verb, device] = words else {
        match words.first() {
            Some(word) if !VERBS.contains(&word.as_str()) => return unknown(word),
            _ => bail!("`ioasis ctl` takes what to do and a device: surprise-remove 0000:01:00.0"),
        }
    };
    if !VERBS.contains(&verb.as_str()) {
        return unknown(verb);
    }
    let run = find(run)?;
    let seconds = ctl.wait.as_secs().max(u64::from(!ctl.wait.is_zero()));
    let request = json!({ "ask": verb, "device": device, "seconds": seconds });
    let longer = if verb == "device-remove" { ctl.wait } else { Duration::ZERO };
    let answer = run.ask(request, &[], longer)?;
    let device = text::word(&answer["device"]);
    match verb.as_str() {
        "aer" if answer["heard"] == true => println!("{device}: the error interrupt was sent"),
        "aer" => println!("{device}: nobody listens to the error interrupt"),
        "device-remove" if answer["released"] == true => {
            println!("{device}: removed, nobody had it open any more")
        }
        "device-remove" => {
            println!("{device}: pulled out, the program did not let go of it in time")
        }
        _ => println!("{device}: pulled out, it was {}", text::word(&answer["was_open"])),
    }
    Ok(ExitCode::SUCCESS)
}

fn unknown(word: &str) -> Result<ExitCode> {
    bail!("there is no {word:?} to do{}; there are {}", meant(word, VERBS), VERBS.join(", "))
}
