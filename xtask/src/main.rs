//! Every habit of this repository as a command.

mod bench;
mod cache;
mod ci;
mod clients;
mod conformance;
mod coverage;
mod debian;
mod demo;
mod dist;
#[cfg(test)]
mod docs;
mod fuzz;
mod kselftest;
mod process;
mod selftests;
mod soak;
mod structure;
mod tools;
mod tsan;
mod uapi_check;
mod uml;
mod workspace;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};

use workspace::Workspace;

/// Tests, checks, benches and the demo of ioasis
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what the tests need, then run every test and check: what CI runs
    Test,
    /// Run every check, or the ones named, with the tools that are there
    Ci(ci::Args),
    /// Copy an image through NVMe over VFIO with qemu-img, compare, and say how fast it was
    Demo(demo::Args),
    /// Make what people install: a static program, a tarball and a Debian package
    Dist(dist::Args),
    /// Run the benches and say which performance goals are met
    Bench(bench::Args),
    /// Run the long tests at full counts, from where the last run stopped
    Soak(soak::Args),
    /// Check circles of modules and the width of comments
    Structure(structure::Args),
    /// Fuzz
    Fuzz(fuzz::Args),
    /// Run Linux's own VFIO selftests on our devices
    Selftests(selftests::Args),
    /// Run QEMU with a Linux guest, DPDK and user-mode Linux, unmodified, with our devices
    Clients(clients::Args),
    /// Run Linux's own IOMMUFD tests, unmodified, on the mock hardware
    Conformance(conformance::Args),
    /// Run commands beside DMA under ThreadSanitizer
    Tsan(tsan::Args),
    /// Say how many lines of a crate its tests run
    Coverage(coverage::Args),
    /// Build a user-mode Linux with drivers of our devices
    Uml(uml::Args),
    /// Compare crates/uapi with the headers of Linux 7.3
    UapiCheck(uapi_check::Args),
}

fn main() -> ExitCode {
    let done = run(Cli::parse().task);
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(task: Task) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    match task {
        Task::Test => return ci::test(&workspace),
        Task::Ci(args) => return ci::run(&workspace, &args),
        Task::Demo(args) => demo::run(&workspace, &args)?,
        Task::Dist(args) => dist::run(&workspace, &args)?,
        Task::Bench(args) => bench::run(&workspace, &args)?,
        Task::Soak(args) => soak::run(&workspace, &args)?,
        Task::Fuzz(args) => fuzz::run(&workspace, &args)?,
        Task::Conformance(args) => conformance::run(&workspace, &args)?,
        Task::Selftests(args) => {
            selftests::run(&workspace, &args)?;
        }
        Task::Clients(args) => {
            let (runs, failed) = clients::run(&workspace, &args)?;
            ensure!(failed == 0, "{failed} of {runs} failed");
        }
        Task::Structure(args) => structure::run(&workspace, &args)?,
        Task::Tsan(args) => tsan::run(&workspace, &args)?,
        Task::Coverage(args) => coverage::run(&workspace, &args)?,
        Task::Uml(args) => uml::run(&workspace, &args)?,
        Task::UapiCheck(args) => uapi_check::run(&workspace, &args)?,
    }
    Ok(ExitCode::SUCCESS)
}
