//! `cargo xtask fuzz`: cargo-fuzz on the pinned toolchain.
//!
//! Inputs worth keeping are under fuzz/corpus/TARGET; what a run finds by itself goes to fuzz/corpus/generated/TARGET,
//! which git ignores, and a failing input to fuzz/artifacts/TARGET.

use std::fs;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

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
        fuzz(workspace, &target, &limits)?;
    }
    Ok(())
}

/// Gives every target this many inputs.
pub(crate) fn inputs(workspace: &Workspace, count: u64, seed: u64) -> Result<()> {
    ensure!(!workspace.fuzz_targets.is_empty(), "there are no fuzz targets");
    crate::tools::ensure_subcommand(workspace, "cargo-fuzz")?;
    for target in &workspace.fuzz_targets {
        // libFuzzer takes seed 0 for "choose one".
        fuzz(workspace, target, &[format!("-runs={count}"), format!("-seed={}", seed + 1)])?;
    }
    Ok(())
}

/// Fuzzes every target, dividing `time` among them.
pub(crate) fn share(workspace: &Workspace, time: Duration) -> Result<()> {
    let targets = u32::try_from(workspace.fuzz_targets.len())?;
    let limit = [format!("-max_total_time={}", (time / targets.max(1)).as_secs().max(1))];
    let mut failed = Vec::new();
    for target in &workspace.fuzz_targets {
        if let Err(error) = fuzz(workspace, target, &limit) {
            println!("{target}: {error:#}");
            failed.push(target.as_str());
        }
    }
    if !failed.is_empty() {
        bail!("fuzzing failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Runs one target under libFuzzer with these options.
fn fuzz(workspace: &Workspace, target: &str, options: &[String]) -> Result<()> {
    let corpus = workspace.root.join("fuzz/corpus");
    let (kept, generated) = (corpus.join(target), corpus.join("generated").join(target));
    fs::create_dir_all(&kept)?;
    fs::create_dir_all(&generated)?;

    let mut cargo = workspace.cargo();
    cargo.env("RUSTC_BOOTSTRAP", "1"); // the sanitizers' flags are not stable; the toolchain is
    cargo.args(["fuzz", "run", target]).arg(generated).arg(kept).arg("--");
    cargo.arg("-print_final_stats=1").args(options);
    process::run(&mut cargo)
}
