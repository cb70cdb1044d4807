//! `cargo xtask bench`: runs the benches and collects the line each performance goal prints.
//!
//! A bench prints `P4.map_4k.vtdss 1.12 <=1.2 met`, or `missed`: goal, figure, bound, verdict. A
//! missed goal is a result, not a failure; a bench that cannot run is a failure.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Result, bail};

use crate::process;
use crate::workspace::Workspace;

/// Arguments of the task.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these benches; all without
    names: Vec<String>,
}

/// Runs the task.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let wanted = |name: &String| args.names.is_empty() || args.names.contains(name);
    let mut goals = Vec::new();
    let mut failed = Vec::new();
    let chosen: Vec<_> = workspace.benches.iter().filter(|(_, bench)| wanted(bench)).collect();
    if let Some(unknown) = args.names.iter().find(|name| !chosen.iter().any(|(_, b)| b == *name)) {
        bail!("no bench is called {unknown}");
    }
    for (package, bench) in chosen {
        let mut cargo = workspace.cargo();
        cargo.args(["bench", "--locked", "-p", package, "--bench", bench]);
        let (success, text) = process::tee(cargo)?;
        goals.extend(text.lines().filter(|line| is_goal(line)).map(str::to_owned));
        if !success {
            failed.push(bench.as_str());
        }
    }

    let met = goals.iter().filter(|line| line.ends_with(" met")).count();
    let mut report = machine();
    for goal in &goals {
        writeln!(report, "{goal}")?;
    }
    writeln!(report, "{met} met, {} missed", goals.len() - met)?;
    let file = workspace.target.join("bench.txt");
    fs::write(&file, &report)?;
    println!("\n{report}(also in {})", file.display());
    if !failed.is_empty() {
        bail!("these benches did not finish: {}", failed.join(", "));
    }
    Ok(())
}

/// Whether a line is `P<number>.. figure bound met|missed`.
fn is_goal(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let goal = words.next().and_then(|first| first.strip_prefix('P'));
    goal.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        && matches!(words.next_back(), Some("met" | "missed"))
}

/// The machine the figures are from.
fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    format!("# {} x {count}, Linux {}\n", model.unwrap_or("unknown processor"), kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_goal_lines_are_collected() {
        assert!(is_goal("P4.map_4k.vtdss 1.12 <=1.2 met"));
        assert!(is_goal("P11.ioctl 1.30 <=1.15 missed"));
        for line in ["", "P", "Passed met", "running 0 tests", "P4.map_4k.vtdss 1.12 ns", "met"] {
            assert!(!is_goal(line), "{line}");
        }
    }

    #[test]
    fn the_machine_is_one_comment_line() {
        let machine = machine();
        assert!(machine.starts_with("# ") && machine.ends_with('\n'), "{machine}");
        assert_eq!(machine.lines().count(), 1);
    }
}
