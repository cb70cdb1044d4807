//! `cargo xtask fuzz`: cargo-fuzz on the pinned toolchain.
//!
//! Inputs worth keeping are under fuzz/corpus/TARGET; what a run finds by itself goes to
//! fuzz/corpus/generated/TARGET, which git ignores, and a failing input to fuzz/artifacts/TARGET.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::process;
use crate::workspace::Workspace;

/// Arguments of the task.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The target; all of them one after the other without
    target: Option<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Stop after this many inputs, if that is earlier
    #[arg(long)]
    runs: Option<u64>,
}

/// Runs the task.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    ensure!(!workspace.fuzz_targets.is_empty(), "there are no fuzz targets");
    crate::tools::ensure_subcommand(workspace, "cargo-fuzz")?;
    let targets = match &args.target {
        Some(target) => vec![target.clone()],
        None => workspace.fuzz_targets.clone(),
    };
    for target in targets {
        let mut limits = vec![format!("-max_total_time={}", args.seconds)];
        limits.extend(args.runs.map(|runs| format!("-runs={runs}")));
        fuzz(workspace, &target, &limits, None)?;
    }
    Ok(())
}

/// Inputs one process of a soak is given.
const INPUTS: u64 = 20_000;

/// Goes on with every target until it has made `count` calls; one that counts none, until it had as
/// many inputs.
pub(crate) fn calls(workspace: &Workspace, count: u64, seed: u64) -> Result<()> {
    ensure!(!workspace.fuzz_targets.is_empty(), "there are no fuzz targets");
    crate::tools::ensure_subcommand(workspace, "cargo-fuzz")?;
    for target in &workspace.fuzz_targets {
        let counter = workspace.target.join("soak").join(format!("{target}.calls"));
        fs::create_dir_all(counter.parent().context("a folder")?)?;
        let mut done = 0;
        for round in 0.. {
            if done >= count {
                break;
            }
            let _ = fs::remove_file(&counter);
            // libFuzzer takes seed 0 for "choose one".
            let seed = (seed * 1000 + round) % u64::from(u32::MAX) + 1;
            let options = [format!("-runs={INPUTS}"), format!("-seed={seed}")];
            fuzz(workspace, target, &options, Some(&counter))?;
            let calls = fs::read_to_string(&counter).ok().and_then(|text| text.trim().parse().ok());
            done += calls.unwrap_or(INPUTS);
            println!("{target}: {done} of {count} calls");
        }
    }
    Ok(())
}

/// Fuzzes every target, dividing `time` among them.
pub(crate) fn share(workspace: &Workspace, time: Duration) -> Result<()> {
    let targets = u32::try_from(workspace.fuzz_targets.len())?;
    let limit = [format!("-max_total_time={}", (time / targets.max(1)).as_secs().max(1))];
    let mut failed = Vec::new();
    for target in &workspace.fuzz_targets {
        if let Err(error) = fuzz(workspace, target, &limit, None) {
            println!("{target}: {error:#}");
            failed.push(target.as_str());
        }
    }
    if !failed.is_empty() {
        bail!("fuzzing failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Runs one target under libFuzzer with these options; it leaves the number of its calls in
/// `counter`.
fn fuzz(
    workspace: &Workspace,
    target: &str,
    options: &[String],
    counter: Option<&Path>,
) -> Result<()> {
    let corpus = workspace.root.join("fuzz/corpus");
    let (kept, generated) = (corpus.join(target), corpus.join("generated").join(target));
    fs::create_dir_all(&kept)?;
    fs::create_dir_all(&generated)?;

    let mut cargo = workspace.cargo();
    cargo.env("RUSTC_BOOTSTRAP", "1"); // the sanitizers' flags are not stable; the toolchain is
    cargo.args(["fuzz", "run", target]).arg(generated).arg(kept).arg("--");
    cargo.arg("-print_final_stats=1").args(options);
    if let Some(counter) = counter {
        cargo.env("IOASIS_CALLS", counter);
    }
    process::run(&mut cargo)
}
