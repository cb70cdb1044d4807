//! `cargo xtask coverage`: how many lines of a crate its own tests run, with cargo-tarpaulin.

use anyhow::{Context, Result, bail, ensure};

use crate::workspace::Workspace;
use crate::{process, tools};

/// What each crate promises, in percent of its lines.
const PROMISED: &[(&str, f64)] = &[("ioasis-iommupt", 95.0)];

/// Arguments of the task.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The crate; every crate that promises something without
    package: Option<String>,
}

/// Runs the task.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    tools::ensure_subcommand(workspace, "cargo-tarpaulin")?;
    let mut below = Vec::new();
    for (package, promised) in chosen(args.package.as_deref()) {
        let percent = measure(workspace, &package)?;
        println!("{package}: {percent} % of the lines, promised: {promised} %");
        if percent < promised {
            below.push(package);
        }
    }
    if !below.is_empty() {
        bail!("below what was promised: {}", below.join(", "));
    }
    Ok(())
}

fn chosen(package: Option<&str>) -> Vec<(String, f64)> {
    let promised = |name: &str| PROMISED.iter().find(|row| row.0 == name).map_or(0.0, |row| row.1);
    match package {
        Some(name) => vec![(name.to_owned(), promised(name))],
        None => PROMISED.iter().map(|&(name, percent)| (name.to_owned(), percent)).collect(),
    }
}

/// Runs a crate's tests, instrumented in a target folder of its own, and reads the figure.
fn measure(workspace: &Workspace, package: &str) -> Result<f64> {
    let folder = package.strip_prefix("ioasis-").unwrap_or(package);
    let mut cargo = workspace.cargo();
    cargo.args(["tarpaulin", "--engine", "llvm", "--skip-clean", "--locked", "--out", "Stdout"]);
    // Seconds: instrumented and not optimised, a crate's tests take minutes.
    cargo.args(["--timeout", "1200"]);
    cargo.arg("--target-dir").arg(workspace.target.join("tarpaulin"));
    cargo.args(["--lib", "--tests", "--package", package]);
    cargo.arg("--include-files").arg(format!("crates/{folder}/src/*"));
    // Proofs for a checker that does not run them as tests.
    cargo.args(["--exclude-files", "*/verification.rs"]);
    let (success, text) = process::tee(cargo)?;
    ensure!(success, "the tests of {package} failed");
    percent(&text).with_context(|| format!("no figure for {package}"))
}

/// Reads `97.31% coverage, 1234/1268 lines covered`.
fn percent(text: &str) -> Option<f64> {
    let line = text.lines().rfind(|line| line.contains("% coverage, "))?;
    line.trim().split_once('%')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tarpaulins_figure_is_read() {
        let text = "|| src/a.rs: 3/4 +0.00%\n|| \n97.31% coverage, 1234/1268 lines covered\n";
        assert_eq!(percent(text), Some(97.31));
        assert_eq!(percent("error: no tests"), None);
    }

    #[test]
    fn a_crate_that_promises_nothing_is_measured_all_the_same() {
        assert_eq!(chosen(Some("ioasis-pci")), [("ioasis-pci".to_owned(), 0.0)]);
        assert_eq!(chosen(None).len(), PROMISED.len());
    }
}
