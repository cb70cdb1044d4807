//! `ioasis ps`, `inspect`, `top` and `ctl`: runs that go on, asked over their control sockets.

mod change;
mod text;
mod top;

use std::fmt::Write as _;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use ioasis_supervisor::control::{self, Asked, VERSION};
use serde_json::{Value, json};

pub(crate) use change::{Ctl, ctl};
pub(crate) use top::{Top, top};

use crate::entry::meant;

/// What can be inspected.
const TOPICS: [&str; 7] = ["ioas", "hwpt", "device", "group", "irq", "ledger", "queues"];

/// The word before a device and an address.
const TRANSLATE: &str = "translate";

#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// As JSON: a list of objects with name, pid, command, devices, seconds
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// The run, by its name or pid, where there are several; then one of ioas, hwpt, device, group, irq, ledger, queues, or all of
    /// them without it; or: translate 0000:01:00.0 0x100000
    #[arg(value_name = "[RUN] [WHAT]", num_args = 0..)]
    words: Vec<String>,

    /// As JSON
    #[arg(long)]
    json: bool,

    /// With hwpt: the page tables themselves, as trees
    #[arg(long)]
    tables: bool,

    /// With translate: the PASID of the access
    #[arg(long, value_name = "N")]
    pasid: Option<u32>,
}

/// A run that goes on.
#[derive(Debug)]
pub(crate) struct Run {
    folder: PathBuf,
    name: String,
    /// What it says of itself, or why it does not answer.
    about: Result<Value, String>,
}

impl Run {
    /// Asks it for `request`.
    fn ask(&self, mut request: Value, fds: &[BorrowedFd<'_>], longer: Duration) -> Result<Value> {
        request["version"] = json!(VERSION);
        let asked = control::ask((&self.folder, &self.name), &request.to_string(), fds, longer);
        let name = &self.name;
        match asked {
            Asked::Dead => bail!("the run {name} has just ended"),
            Asked::Silent(why) => bail!("the run {name} does not answer: {why}"),
            Asked::Answer(line) => answer(&line).map_err(|why| anyhow!("{why}")),
        }
    }

    /// How messages call it.
    fn call(&self) -> String {
        match self.about.as_ref().map(|about| about["pid"].to_string()) {
            Ok(pid) if pid != self.name => format!("{} (pid {pid})", self.name),
            _ => self.name.clone(),
        }
    }
}

/// What stands in an answer.
fn answer(line: &str) -> Result<Value, String> {
    let mut answer: Value =
        serde_json::from_str(line).map_err(|_| "the answer is no JSON".to_owned())?;
    if answer["version"].as_u64() != Some(VERSION) {
        return Err("the run is of another version of ioasis".to_owned());
    }
    match &answer["error"] {
        Value::String(why) => Err(why.clone()),
        _ => Ok(answer["answer"].take()),
    }
}

/// The runs of this user that go on.
fn runs() -> Vec<Run> {
    let question = json!({ "version": VERSION, "ask": "about" }).to_string();
    let mut runs = Vec::new();
    for (name, folder) in control::runs() {
        let about = match control::ask((&folder, &name), &question, &[], Duration::ZERO) {
            Asked::Dead => continue,
            Asked::Silent(why) => Err(why),
            Asked::Answer(line) => answer(&line),
        };
        runs.push(Run { folder, name, about });
    }
    runs
}

/// The run that `name`, or its pid, stands for; without a name the only one.
fn find(name: Option<&str>) -> Result<Run> {
    let mut runs = runs();
    let names = runs.iter().map(Run::call).collect::<Vec<_>>().join(", ");
    let Some(name) = name else {
        return match runs.len() {
            0 => bail!("no run of yours goes on"),
            1 => Ok(runs.remove(0)),
            _ => bail!("several runs go on; name one of them: {names}"),
        };
    };
    let pid: Option<u64> = name.parse().ok();
    let is_it = |run: &Run| {
        let about = run.about.as_ref().ok();
        run.name == name || pid.is_some() && about.is_some_and(|about| about["pid"].as_u64() == pid)
    };
    match runs.iter().position(is_it) {
        Some(at) => Ok(runs.swap_remove(at)),
        None if runs.is_empty() => bail!("there is no run {name:?}: no run of yours goes on"),
        None => {
            let known = runs.iter().map(|run| run.name.as_str());
            bail!("there is no run {name:?}{}; there are {names}", meant(name, known))
        }
    }
}

/// Whether a run may be called so, for it is no word of these commands.
///
/// # Errors
///
/// Which word it is.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let words = TOPICS.iter().chain([&TRANSLATE]).chain(change::VERBS.iter());
    ensure!(
        !words.clone().any(|word| *word == name),
        "--name {name}: the word stands for something in `ioasis inspect` and `ioasis ctl`; take another"
    );
    Ok(())
}

/// The words of a command without the run they begin with, which is not among `known`.
fn split<'a>(words: &'a [String], known: &[&str]) -> (Option<&'a str>, &'a [String]) {
    match words.split_first() {
        Some((first, rest)) if !known.contains(&first.as_str()) => (Some(first), rest),
        _ => (None, words),
    }
}

/// `ioasis ps`.
pub(crate) fn ps(ps: &Ps) -> ExitCode {
    let runs = runs();
    if ps.json {
        let list = runs.iter().map(|run| match &run.about {
            Ok(about) => about.clone(),
            Err(why) => json!({ "name": run.name, "silent": why }),
        });
        println!("{:#}", Value::Array(list.collect()));
    } else {
        print!("{}", table(&runs));
    }
    ExitCode::SUCCESS
}

fn table(runs: &[Run]) -> String {
    let mut rows = vec![["NAME", "PID", "AGE", "DEVICES", "COMMAND"].map(str::to_owned)];
    for run in runs {
        rows.push(match &run.about {
            Err(why) => [&run.name, "?", "?", "?", why].map(text::plain),
            Ok(about) => [
                text::plain(&run.name),
                about["pid"].to_string(),
                text::age(about["seconds"].as_u64().unwrap_or_default()),
                text::list(&about["devices"], " "),
                text::list(&about["command"], " "),
            ],
        });
    }
    text::columns(&rows)
}

/// `ioasis inspect`.
pub(crate) fn inspect(inspect: &Inspect) -> Result<ExitCode> {
    let known = [&TOPICS[..], &[TRANSLATE]].concat();
    let (run, words) = split(&inspect.words, &known);
    let translates = words.first().is_some_and(|word| word == TRANSLATE);
    ensure!(inspect.pasid.is_none() || translates, "--pasid goes with translate");
    let mut request = if translates {
        let [_, device, iova] = words else {
            bail!(
                "`ioasis inspect translate` takes a device and an address: translate 0000:01:00.0 0x100000"
            )
        };
        json!({ "ask": "translate", "device": device, "iova": iova, "pasid": inspect.pasid })
    } else {
        match words {
            [] => json!({ "ask": "inspect" }),
            [what] if known.contains(&what.as_str()) => json!({ "ask": "inspect", "what": what }),
            [what, ..] => bail!(
                "there is no {what:?} to inspect{}; there are {}, {TRANSLATE}",
                meant(what, known.iter().copied()),
                TOPICS.join(", ")
            ),
        }
    };
    request["tables"] = json!(inspect.tables);
    let run = find(run)?;
    let answer = run.ask(request, &[], Duration::ZERO)?;
    if inspect.json {
        println!("{answer:#}");
    } else if translates {
        print!("{}", text::translation(&answer));
    } else {
        let topics = answer.as_object().context("the answer has topics")?;
        let mut all = String::new();
        for topic in TOPICS.iter().filter(|topic| topics.contains_key(**topic)) {
            if topics.len() > 1 {
                let _ = writeln!(all, "{}{topic}:", if all.is_empty() { "" } else { "\n" });
            }
            all.push_str(&text::topic(topic, &topics[*topic]));
        }
        print!("{all}");
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_ascii_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_first_word_that_is_no_word_of_the_command_names_the_run() {
        let known = ["ioas", "translate"];
        for (line, run, rest) in [
            ("", None, ""),
            ("ioas", None, "ioas"),
            ("nightly ioas", Some("nightly"), "ioas"),
            ("17", Some("17"), ""),
            ("translate 0000:01:00.0 0x1000", None, "translate 0000:01:00.0 0x1000"),
        ] {
            let all = words(line);
            assert_eq!(split(&all, &known), (run, words(rest).as_slice()), "{line}");
        }
    }

    #[test]
    fn a_run_is_not_called_like_a_word_of_a_command() {
        assert!(check_name("ioas").is_err() && check_name("aer").is_err());
        assert!(check_name("nightly").is_ok());
    }

    #[test]
    fn an_answer_of_another_version_is_not_read() {
        assert_eq!(answer("{\"version\":1,\"answer\":7}"), Ok(json!(7)));
        assert_eq!(answer("{\"version\":1,\"error\":\"no\"}"), Err("no".to_owned()));
        assert!(answer("{\"version\":2,\"answer\":7}").is_err() && answer("x").is_err());
    }

    #[test]
    fn a_run_that_does_not_answer_is_listed_all_the_same() {
        let about = json!({ "pid": 7, "seconds": 65, "devices": ["0000:01:00.0"], "command": ["a", "b\u{1b}"] });
        let run = |name: &str, about| Run { folder: "/x".into(), name: name.to_owned(), about };
        let runs = [run("one", Ok(about)), run("9", Err("why".to_owned()))];
        assert_eq!(
            table(&runs),
            "NAME  PID  AGE   DEVICES       COMMAND\none   7    1m5s  0000:01:00.0  a b\\u{1b}\n9     ?    ?     ?             why\n"
        );
    }
}
