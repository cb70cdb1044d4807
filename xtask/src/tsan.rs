//! `cargo xtask tsan`: commands and DMA at the same time, under ThreadSanitizer.
//!
//! The standard library comes without its instrumentation: with `--cfg ioasis_tsan` our locks wait
//! outside it, and what is left of it is named in xtask/tsan.txt, each with its reason. Every other
//! report fails the task.

use anyhow::Result;

use crate::workspace::Workspace;
use crate::{process, tools};

/// Arguments of the task.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Rounds of each thread
    #[arg(long, default_value_t = 200)]
    rounds: u64,
}

const TARGET: &str = "x86_64-unknown-linux-gnu";
const FLAGS: &str = "-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer --cfg ioasis_tsan";
/// Tests that start threads.
const TESTS: &str = "test(/^tests::(storm|concurrent)::/)";

/// Runs the task.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    tools::ensure_subcommand(workspace, "cargo-nextest")?;
    let suppressions = workspace.root.join("xtask/tsan.txt");
    let mut cargo = workspace.cargo();
    // The sanitizers' flags are not stable; the toolchain is.
    cargo.env("RUSTC_BOOTSTRAP", "1");
    cargo.env("RUSTFLAGS", FLAGS);
    cargo.env("TSAN_OPTIONS", format!("suppressions={}", suppressions.display()));
    cargo.env("IOASIS_SEQUENCES", args.rounds.to_string());
    cargo.args(["nextest", "run", "--target", TARGET, "--target-dir"]);
    cargo.arg(workspace.target.join("tsan"));
    cargo.args(["-p", "ioasis-iommufd", "--lib", "--locked", "--no-fail-fast", "-E", TESTS]);
    process::run(&mut cargo)
}
