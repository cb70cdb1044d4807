//! `cargo xtask ci` and `cargo xtask test`: the checks every change passes.
//!
//! Every stage runs even if one before it failed; the last line counts tests and checks, and the
//! exit status is that of the worst. A stage is a process of its own, whose output goes to a file:
//! a person reads one line a stage, and what failed.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum as _;

use crate::kselftest::Totals;
use crate::workspace::Workspace;
use crate::{clients, conformance, fuzz, process, selftests, structure, tools, uapi_check};

/// Sequences each property test runs here, unless the environment says otherwise.
const SEQUENCES: &str = "2000";
/// Where they begin.
const SEED: &str = "1";

/// How often a stage that goes on says so.
const STILL: Duration = Duration::from_secs(60);
/// How often it is looked at: of the whole run's minutes this is nothing.
const LOOK: Duration = Duration::from_millis(50);
/// Lines shown of a stage that failed. A runner names and prints its failures at its end.
const SHOWN: usize = 300;
/// Names of what failed that are said again below the summary.
const NAMED: usize = 40;

/// One kind of check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Stage {
    /// Formatting
    Fmt,
    /// Lints, warnings are errors
    Clippy,
    /// How the code is laid out: circles of modules, the width of comments
    Structure,
    /// Every test, optimised, with cargo-nextest
    Tests,
    /// The tests that run under many schedules of their threads
    Schedules,
    /// The examples in documentation
    Doctests,
    /// The projects under examples/, which are built against the crates as others build theirs
    Examples,
    /// Documentation builds without a warning
    Doc,
    /// Every crate can be packaged for a registry
    Package,
    /// crates/uapi against the kernel's headers
    UapiCheck,
    /// Linux's own VFIO selftests on our devices
    Selftests,
    /// Linux's own IOMMUFD tests, once
    Conformance,
    /// QEMU with a Linux guest, and DPDK, unmodified, with our devices
    Clients,
    /// 60 s of fuzzing, shared by all targets
    Fuzz,
}

impl Stage {
    const ALL: [Self; 14] = [
        Self::Fmt,
        Self::Clippy,
        Self::Structure,
        Self::Tests,
        Self::Schedules,
        Self::Doctests,
        Self::Examples,
        Self::Doc,
        Self::Package,
        Self::UapiCheck,
        Self::Selftests,
        Self::Conformance,
        Self::Clients,
        Self::Fuzz,
    ];
}

/// Arguments of `cargo xtask ci`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which checks to run; all without
    stages: Vec<Stage>,
    /// Show everything that the checks print, as they run
    #[arg(long, short)]
    verbose: bool,
}

/// A stage that has run.
#[derive(Debug)]
struct Ran {
    tally: Tally,
    /// What it printed, unless that was shown as it came.
    output: String,
}

/// Tests or checks counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Tally {
    const PASSED: Self = Self { passed: 1, failed: 0, skipped: 0 };
    const FAILED: Self = Self { passed: 0, failed: 1, skipped: 0 };

    fn add(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }
}

/// `cargo xtask test`: installs what is missing, then runs every check.
pub(crate) fn test(workspace: &Workspace) -> Result<ExitCode> {
    tools::ensure_programs(&[&tools::GCC, &tools::QEMU_IMG, &tools::QEMU_IO, &tools::STRACE])?;
    tools::ensure_subcommand(workspace, "cargo-nextest")?;
    if !workspace.fuzz_targets.is_empty() {
        tools::ensure_subcommand(workspace, "cargo-fuzz")?;
    }
    run(workspace, &Args { stages: Vec::new(), verbose: false })
}

/// `cargo xtask ci`: runs the chosen checks with the tools that are there.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let stages = if args.stages.is_empty() { &Stage::ALL[..] } else { &args.stages };
    let logs = workspace.target.join("ci");
    let (mut rows, mut failed, mut total) = (Vec::new(), Vec::new(), Tally::default());
    for &stage in stages {
        let start = Instant::now();
        let ran = if args.verbose { aloud(workspace, stage) } else { quietly(&logs, stage)? };
        let row = row(stage, ran.tally, start.elapsed());
        if !args.verbose {
            println!("{row}");
        }
        if ran.tally.failed > 0 {
            println!("{}", shown(&ran.output));
            failed.extend(names(&ran.output).map(|name| format!("{stage:?}: {name}")));
        }
        rows.push(row);
        total = total.add(ran.tally);
    }

    println!("\n== Summary\n{}", rows.join("\n"));
    for name in failed.iter().take(NAMED) {
        println!("{name}");
    }
    // Alone on its line, in the words that CI systems look for.
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    Ok(if total.failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Runs a stage in this process, so that what it prints is seen as it comes.
fn aloud(workspace: &Workspace, stage: Stage) -> Ran {
    println!("\n== {stage:?}");
    let tally = check(workspace, stage).unwrap_or_else(|error| {
        println!("error: {stage:?}: {error:#}");
        Tally::FAILED
    });
    Ran { tally, output: String::new() }
}

/// Runs a stage as a process of its own with a file for what it prints, and says once a minute that
/// it goes on: a CI ends what is silent for too long.
fn quietly(logs: &Path, stage: Stage) -> Result<Ran> {
    fs::create_dir_all(logs)?;
    let name = stage.to_possible_value().context("a stage has a name")?;
    let log = logs.join(format!("{}.log", name.get_name()));
    let file = File::create(&log).with_context(|| log.display().to_string())?;
    let child = Command::new(std::env::current_exe()?)
        .args(["ci", "--verbose", name.get_name()])
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()?;
    let success = waited_for(child, stage, &log)?;
    let output = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let tally = match closing_tally(&output) {
        Some(tally) if success == (tally.failed == 0) => tally,
        Some(tally) => tally.add(Tally::FAILED),
        None => Tally::FAILED,
    };
    Ok(Ran { tally, output })
}

/// Whether it succeeded.
fn waited_for(mut child: Child, stage: Stage, log: &Path) -> Result<bool> {
    let start = Instant::now();
    let mut said = start;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if said.elapsed() >= STILL {
            said = Instant::now();
            println!(
                "{:<11} .. {:>4} s, {}",
                format!("{stage:?}"),
                start.elapsed().as_secs(),
                log.display()
            );
        }
        std::thread::sleep(LOOK);
    }
}

/// The end of a failed stage's output, which is where its failures are in full.
fn shown(output: &str) -> String {
    let lines: Vec<_> = output.lines().collect();
    lines[lines.len().saturating_sub(SHOWN)..].join("\n")
}

/// The lines that name a failure, each once.
fn names(output: &str) -> impl Iterator<Item = &str> {
    let mut seen = std::collections::BTreeSet::new();
    output.lines().map(str::trim).filter(move |line| names_a_failure(line) && seen.insert(*line))
}

/// As nextest, libtest and the kernel's test programs print it, and as ours do.
fn names_a_failure(line: &str) -> bool {
    const BEGINNINGS: [&str; 7] =
        ["FAIL [", "TIMEOUT [", "SIGABRT [", "SIGSEGV [", "not ok ", "error: ", "error["];
    BEGINNINGS.iter().any(|beginning| line.starts_with(beginning))
        || line.ends_with("... FAILED")
        || line.contains(": FAILED")
}

fn row(stage: Stage, tally: Tally, took: Duration) -> String {
    let word = if tally.failed > 0 { "FAILED" } else { "ok" };
    format!(
        "{:<11} {word:<6} {:>5} passed {:>3} failed {:>3} skipped {:>5} s",
        format!("{stage:?}"),
        tally.passed,
        tally.failed,
        tally.skipped,
        took.as_secs()
    )
}

fn check(workspace: &Workspace, stage: Stage) -> Result<Tally> {
    let mut cargo = workspace.cargo();
    match stage {
        Stage::Fmt => process::run(cargo.args(["fmt", "--all", "--check"]))?,
        Stage::Clippy => {
            let scope = ["clippy", "--workspace", "--all-targets", "--locked"];
            process::run(cargo.args(scope).args(["--", "-D", "warnings"]))?;
        }
        Stage::Structure => structure::run(workspace, &structure::Args::default())?,
        Stage::Tests => {
            cargo.args(["nextest", "run", "--workspace", "--release", "--locked"]);
            cargo.args(["--no-fail-fast", "--color", "never"]);
            for (name, value) in sequences() {
                cargo.env(name, value);
            }
            return Ok(counted(process::tee(cargo)?, nextest_tally));
        }
        Stage::Schedules => return schedules(workspace),
        Stage::Doctests => {
            cargo.args(["test", "--doc", "--workspace", "--release", "--locked"]);
            return Ok(counted(process::tee(cargo)?, libtest_tally));
        }
        Stage::Examples => return examples(workspace),
        Stage::Doc => {
            cargo.env("RUSTDOCFLAGS", "-D warnings");
            process::run(cargo.args(["doc", "--workspace", "--no-deps", "--locked"]))?;
        }
        // A working copy is packaged as it is: what is not committed is checked too.
        Stage::Package => {
            cargo.args(["package", "--workspace", "--no-verify", "--allow-dirty", "--locked"]);
            process::run(cargo.args(["--quiet", "--exclude", "xtask"]))?;
        }
        Stage::UapiCheck => uapi_check::run(workspace, &uapi_check::Args::default())?,
        Stage::Selftests => {
            let totals = selftests::run(workspace, &selftests::Args::default())?;
            let Totals { passed, failed, skipped, .. } = totals;
            let [passed, failed, skipped] = [passed, failed, skipped].map(u64::from);
            return Ok(Tally { passed, failed, skipped });
        }
        Stage::Clients => {
            let (runs, failed) = clients::run(workspace, &clients::Args::default())?;
            let (passed, failed) = (u64::from(runs - failed), failed.into());
            return Ok(Tally { passed, failed, skipped: 0 });
        }
        Stage::Conformance => {
            let counts = conformance::check(workspace, &conformance::Args::once())?;
            let [passed, failed, skipped] =
                [counts.passed, counts.failed, counts.skipped].map(u64::from);
            return Ok(Tally { passed, failed, skipped });
        }
        Stage::Fuzz => {
            if workspace.fuzz_targets.is_empty() {
                println!("no fuzz targets");
                return Ok(Tally::default());
            }
            fuzz::share(workspace, Duration::from_secs(60))?;
        }
    }
    Ok(Tally::PASSED)
}

/// Formats, lints and tests of each project under examples/, with the versions of our own lock
/// file. One target folder is enough for all.
fn examples(workspace: &Workspace) -> Result<Tally> {
    let mut total = Tally::default();
    for project in &workspace.example_projects {
        fs::copy(workspace.root.join("Cargo.lock"), project.join("Cargo.lock"))?;
        let manifest = project.join("Cargo.toml");
        let cargo = |words: &[&str]| {
            let mut cargo = workspace.cargo();
            cargo.args(words).arg("--manifest-path").arg(&manifest);
            cargo.env("CARGO_TARGET_DIR", workspace.target.join("examples"));
            cargo
        };
        let mut fmt = cargo(&["fmt", "--check"]);
        process::run(fmt.args(["--", "--config-path"]).arg(&workspace.root))?;
        let mut clippy = cargo(&["clippy", "--all-targets"]);
        process::run(clippy.args(["--", "-D", "warnings"]))?;
        let tests = cargo(&["test", "--no-fail-fast", "--color", "never"]);
        total = total.add(counted(process::tee(tests)?, libtest_tally));
    }
    Ok(total)
}

/// Runs the tests whose names end in `in_any_schedule`, each with the scheduler of its package.
/// Other tests do not run under such a scheduler.
fn schedules(workspace: &Workspace) -> Result<Tally> {
    let mut total = Tally::default();
    for (scheduler, packages) in &workspace.schedulers {
        let mut cargo = workspace.cargo();
        cargo.env("RUSTFLAGS", format!("--cfg {scheduler}"));
        cargo.arg("nextest").arg("run").arg("--target-dir").arg(workspace.target.join(scheduler));
        // All packages at once: what they share is built once.
        cargo.args(packages.iter().flat_map(|package| ["-p", package]));
        cargo.args(["--lib", "--release", "--locked", "--no-fail-fast"]);
        cargo.args(["--color", "never", "-E", "test(/in_any_schedule$/)"]);
        let tally = counted(process::tee(cargo)?, nextest_tally);
        // What the filter leaves out is not skipped: it ran in the other stage.
        total = total.add(Tally { skipped: 0, ..tally });
    }
    Ok(total)
}

/// How many sequences a property test runs and from which seed, for our own tests and for
/// proptest's default configuration. The seed is the same each time, so that what fails is the
/// change; `cargo xtask soak` tries others.
fn sequences() -> [(&'static str, String); 4] {
    let number = |name, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let (count, seed) = (number("IOASIS_SEQUENCES", SEQUENCES), number("IOASIS_SEED", SEED));
    [
        ("IOASIS_SEQUENCES", count.clone()),
        ("PROPTEST_CASES", count),
        ("IOASIS_SEED", seed.clone()),
        ("PROPTEST_RNG_SEED", seed),
    ]
}

/// The runner's own counts; a runner that failed without counting one is a failure all the same.
fn counted((success, text): (bool, String), tally: fn(&str) -> Option<Tally>) -> Tally {
    match tally(&text) {
        Some(tally) if success == (tally.failed == 0) => tally,
        Some(tally) => tally.add(Tally::FAILED),
        None => Tally::FAILED,
    }
}

/// Reads `Summary [ 1.0s] 12 tests run: 9 passed (1 slow), 2 failed, 1 timed out, 3 skipped`.
fn nextest_tally(text: &str) -> Option<Tally> {
    let line = text.lines().rfind(|line| line.contains("Summary [") && line.contains(" run: "))?;
    let mut tally = Tally::default();
    let mut depth = 0usize;
    let flat: String = line
        .split_once(" run: ")?
        .1
        .chars()
        .filter(|letter| {
            match letter {
                '(' => depth += 1,
                ')' => depth = depth.saturating_sub(1),
                _ => {}
            }
            depth == 0 && *letter != ')'
        })
        .collect();
    for part in flat.split(',') {
        let (count, word) = part.trim().split_once(' ')?;
        let count: u64 = count.parse().ok()?;
        match word.trim() {
            "passed" => tally.passed += count,
            "skipped" => tally.skipped += count,
            _ => tally.failed += count,
        }
    }
    Some(tally)
}

/// Adds up `test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in
/// 0.1s`.
fn libtest_tally(text: &str) -> Option<Tally> {
    let mut tally = Tally::default();
    for line in text.lines().filter_map(|line| line.strip_prefix("test result: ")) {
        let (_, counts) = line.split_once(". ")?;
        for part in counts.split(';') {
            let Some((count, word)) = part.trim().split_once(' ') else { continue };
            match (word, count.parse::<u64>()) {
                ("passed", Ok(count)) => tally.passed += count,
                ("failed", Ok(count)) => tally.failed += count,
                ("ignored", Ok(count)) => tally.skipped += count,
                _ => {}
            }
        }
    }
    Some(tally)
}

/// Reads the last line, `12 passed, 0 failed, 3 skipped`.
fn closing_tally(text: &str) -> Option<Tally> {
    let mut counts = text.lines().next_back()?.split(", ");
    let mut count = |word| counts.next()?.strip_suffix(word)?.parse().ok();
    let (passed, failed) = (count(" passed")?, count(" failed")?);
    Some(Tally { passed, failed, skipped: count(" skipped")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stages_closing_line_is_read_and_nothing_else_is_taken_for_one() {
        let tally = Tally { passed: 12, failed: 1, skipped: 3 };
        assert_eq!(closing_tally("noise\n12 passed, 1 failed, 3 skipped\n"), Some(tally));
        assert_eq!(closing_tally("12 passed, 1 failed, 3 skipped\nkilled"), None);
        assert_eq!(closing_tally(""), None);
    }

    #[test]
    fn what_failed_is_named_once_in_each_runners_words() {
        let output = "  PASS [ 1s] (1/2) a b\n  FAIL [ 1s] (2/2) a c\nok 1 x\nnot ok 2 y\n  FAIL [ 1s] (2/2) a c\n\
                      test lib - Table (line 3) ... FAILED\nerror: test run failed\n";
        let expected = [
            "FAIL [ 1s] (2/2) a c",
            "not ok 2 y",
            "test lib - Table (line 3) ... FAILED",
            "error: test run failed",
        ];
        assert!(names(output).eq(expected));
    }

    #[test]
    fn nextests_summary_is_counted() {
        let text = "   Summary [   1.2s] 12 tests run: 9 passed (1 slow, 1 leaky), 2 failed, 1 timed out, 3 skipped\n";
        assert_eq!(nextest_tally(text), Some(Tally { passed: 9, failed: 3, skipped: 3 }));
        let text = "     Summary [   0.0s] 1 test run: 1 passed, 0 skipped";
        assert_eq!(nextest_tally(text), Some(Tally { passed: 1, failed: 0, skipped: 0 }));
        assert_eq!(nextest_tally("error: could not compile"), None);
    }

    #[test]
    fn libtests_summaries_are_added_up() {
        let text = "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n\
                    test result: FAILED. 1 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(libtest_tally(text), Some(Tally { passed: 3, failed: 4, skipped: 1 }));
    }

    #[test]
    fn a_runner_that_fails_without_a_failed_test_is_a_failure() {
        let summary = "Summary [ 1s] 1 test run: 1 passed, 0 skipped".to_owned();
        assert_eq!(counted((true, summary.clone()), nextest_tally).failed, 0);
        assert_eq!(counted((false, summary), nextest_tally).failed, 1);
        assert_eq!(counted((false, String::new()), nextest_tally).failed, 1);
        assert_eq!(counted((true, String::new()), nextest_tally).failed, 1);
    }

    #[test]
    fn every_stage_is_run_without_arguments() {
        assert_eq!(Stage::ALL.as_slice(), Stage::value_variants());
    }
}
