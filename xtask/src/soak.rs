//! `cargo xtask soak`: the long tests at full counts.
//!
//! A job runs in steps. Step number n runs its tests with `IOASIS_SEED` = seed + n and
//! `IOASIS_SEQUENCES` = the step's size; after each step the count done is written to
//! target/soak/JOB, where the next run goes on. A step that fails names its seed, which runs it
//! again alone: `cargo xtask soak JOB --seed N`.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;
use crate::{fuzz, process, tools};

/// What a job runs.
#[derive(Debug)]
enum Work {
    /// `cargo nextest run --release` with these arguments, which choose the tests.
    Tests(&'static [&'static str]),
    /// The same for tests that kill, as often as `IOASIS_KILLS` says.
    Kills(&'static [&'static str]),
    /// The same for tests that take random words, as many as `IOASIS_WORDS` says.
    Words(&'static [&'static str]),
    /// The same for tests that start runs, as many as `IOASIS_RUNS` says and `IOASIS_TOGETHER` at
    /// once.
    Runs(&'static [&'static str]),
    /// Every fuzz target.
    Fuzz,
}

/// A long test.
#[derive(Debug)]
struct Job {
    name: &'static str,
    what: &'static str,
    work: Work,
    /// Sequences, kills, runs, words or calls, in all.
    total: u64,
    /// How many of them a step runs.
    step: u64,
}

/// Every job. A crate adds its own here. Tests on proptest's default configuration take count and
/// seed from proptest's variables, others read `IOASIS_SEQUENCES` and `IOASIS_SEED`; both are set.
const JOBS: &[Job] = &[
    Job {
        name: "properties",
        what: "every test of every crate, property tests at full counts",
        work: Work::Tests(&["--workspace"]),
        total: 100_000,
        step: 10_000,
    },
    Job {
        name: "iommufd",
        what: "random commands on two opens of /dev/iommu, beside a model of byte arrays",
        work: Work::Tests(&[
            "-p",
            "ioasis-iommufd",
            "-E",
            "test(/^tests::any_order::every_command_/)",
        ]),
        total: 1_000_000,
        step: 50_000,
    },
    Job {
        name: "iommupt",
        what: "the tests of ioasis-iommupt, and hostile guests' page tables",
        work: Work::Tests(&["-p", "ioasis-iommupt", "-p", "ioasis-hostile-guest"]),
        total: 100_000,
        step: 10_000,
    },
    Job {
        name: "words",
        what: "random words of every page table format, said again",
        work: Work::Words(&["-p", "ioasis-iommupt", "-E", "test(random_words_are_said_again)"]),
        total: 1 << 28,
        step: 1 << 26,
    },
    Job {
        name: "container",
        what: "random calls on a type1 container, beside a model of arrays",
        work: Work::Tests(&["-p", "ioasis-iommufd", "-E", "test(/^tests::container::/)"]),
        total: 1_000_000,
        step: 50_000,
    },
    Job {
        name: "vfio",
        what: "the tests of ioasis-vfio",
        work: Work::Tests(&["-p", "ioasis-vfio"]),
        total: 1_000_000,
        step: 50_000,
    },
    Job {
        name: "instructions",
        what: "random instructions done for a program, beside the processor",
        work: Work::Tests(&["-p", "ioasis-x86", "-E", "test(a_random_instruction)"]),
        total: 1_000_000,
        step: 250_000,
    },
    Job {
        name: "durability",
        what: "SIGKILL of client and supervisor at random moments of a run of writes",
        work: Work::Kills(&["-p", "ioasis", "--test", "durability"]),
        total: 100,
        step: 25,
    },
    Job {
        name: "kills",
        what: "SIGKILL of supervisor and of watchdog at random moments of a qemu-img, each as often",
        work: Work::Kills(&["-p", "ioasis", "--test", "kills"]),
        total: 200,
        step: 50,
    },
    Job {
        name: "leftovers",
        what: "runs in a row; a step also starts 64 at once",
        work: Work::Runs(&["-p", "ioasis-supervisor", "--test", "leftovers"]),
        total: 1000,
        step: 1000,
    },
    Job {
        name: "strangers",
        what: "rounds in which a number passes on, or a program follows another, under DMA; a canary in every process",
        work: Work::Runs(&["-p", "ioasis", "--test", "strangers"]),
        total: 10_000,
        step: 1000,
    },
    Job {
        name: "fuzz",
        what: "calls, or inputs, of every fuzz target",
        work: Work::Fuzz,
        total: 10_000_000,
        step: 1_000_000,
    },
];

/// Arguments of the task.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which jobs; all without
    jobs: Vec<String>,
    /// List the jobs and how far each is
    #[arg(long)]
    list: bool,
    /// Start over
    #[arg(long, conflicts_with = "seed")]
    restart: bool,
    /// Start at this seed, for one step, and leave the record of where the last run stopped alone
    #[arg(long)]
    seed: Option<u64>,
    /// Stop each job after this many steps
    #[arg(long)]
    steps: Option<u64>,
}

/// Runs the task.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let jobs = choose(&args.jobs)?;
    if args.list {
        for job in jobs {
            let done = Record::of(workspace, job).done()?;
            println!("{:<12} {done:>9} of {:>9}  {}", job.name, job.total, job.what);
        }
        return Ok(());
    }
    let mut failed = Vec::new();
    for job in jobs {
        if let Err(error) = soak(workspace, job, args) {
            println!("{}: {error:#}", job.name);
            failed.push(job.name);
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn choose(names: &[String]) -> Result<Vec<&'static Job>> {
    if names.is_empty() {
        return Ok(JOBS.iter().collect());
    }
    let find = |name: &String| {
        JOBS.iter().find(|job| job.name == name).with_context(|| format!("no job is called {name}"))
    };
    names.iter().map(find).collect()
}

fn soak(workspace: &Workspace, job: &Job, args: &Args) -> Result<()> {
    let record = Record::of(workspace, job);
    if args.restart {
        record.set(0)?;
    }
    let (first, left) = match args.seed {
        Some(seed) => (seed, 1),
        None => {
            let first = record.done()? / job.step;
            (first, (job.total / job.step).saturating_sub(first))
        }
    };
    for seed in first..first.saturating_add(args.steps.unwrap_or(left)) {
        let start = Instant::now();
        step(workspace, job, seed).with_context(|| {
            format!("seed {seed} failed; again with: cargo xtask soak {} --seed {seed}", job.name)
        })?;
        let done = seed.saturating_add(1).saturating_mul(job.step);
        let seconds = start.elapsed().as_secs();
        if args.seed.is_none() {
            record.set(done)?;
            println!("{}: seed {seed} passed in {seconds} s, {done} of {}", job.name, job.total);
        } else {
            println!("{}: seed {seed} passed in {seconds} s", job.name);
        }
    }
    Ok(())
}

fn step(workspace: &Workspace, job: &Job, seed: u64) -> Result<()> {
    match job.work {
        Work::Tests(arguments)
        | Work::Kills(arguments)
        | Work::Words(arguments)
        | Work::Runs(arguments) => {
            tools::ensure_subcommand(workspace, "cargo-nextest")?;
            let mut cargo = workspace.cargo();
            cargo
                .args(["nextest", "run", "--release", "--locked", "--profile", "soak"])
                .args(arguments);
            let counts: &[&str] = match job.work {
                Work::Kills(_) => &["IOASIS_KILLS"],
                Work::Words(_) => &["IOASIS_WORDS"],
                Work::Runs(_) => &["IOASIS_RUNS"],
                _ => &["IOASIS_SEQUENCES", "PROPTEST_CASES"],
            };
            for name in counts {
                cargo.env(name, job.step.to_string());
            }
            cargo.env("IOASIS_TOGETHER", "64");
            // Each sequence frees page tables of a megabyte: glibc would give them back and fault
            // them in again.
            cargo.env("MALLOC_TOP_PAD_", (64 << 20).to_string());
            for name in ["IOASIS_SEED", "PROPTEST_RNG_SEED"] {
                cargo.env(name, seed.to_string());
            }
            process::run(&mut cargo)
        }
        Work::Fuzz => fuzz::calls(workspace, job.step, seed),
    }
}

/// How far a job is, in a file of its own.
struct Record {
    file: PathBuf,
}

impl Record {
    fn of(workspace: &Workspace, job: &Job) -> Self {
        Self { file: workspace.target.join("soak").join(job.name) }
    }

    /// How many are done.
    fn done(&self) -> Result<u64> {
        match fs::read_to_string(&self.file) {
            Ok(text) => {
                text.trim().parse().with_context(|| format!("{} is no count", self.file.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    fn set(&self, done: u64) -> Result<()> {
        fs::create_dir_all(self.file.parent().context("the record has a folder")?)?;
        Ok(fs::write(&self.file, format!("{done}\n"))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_where_to_go_on() {
        let folder = std::env::temp_dir().join(format!("ioasis-soak-{}", std::process::id()));
        let record = Record { file: folder.join("soak/job") };
        assert_eq!(record.done().expect("none yet"), 0);
        record.set(30_000).expect("writable");
        assert_eq!(record.done().expect("written"), 30_000);
        fs::write(&record.file, "many").expect("writable");
        assert!(record.done().is_err(), "a broken record is not taken for a start");
        fs::remove_dir_all(folder).expect("it was ours");
    }

    #[test]
    fn jobs_are_chosen_by_name_and_end_on_a_step() {
        assert_eq!(choose(&[]).expect("all").len(), JOBS.len());
        assert!(choose(&["no-such-job".to_owned()]).is_err());
        for job in JOBS {
            assert_eq!(choose(&[job.name.to_owned()]).expect("one")[0].name, job.name);
            assert_eq!(job.total % job.step, 0, "{}", job.name);
        }
    }
}
