//! Every habit of this repository as a command.

mod debian;
mod process;
mod uapi_check;
mod workspace;

use anyhow::Result;
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
    /// Compare crates/uapi with the headers of Linux 7.2
    UapiCheck(uapi_check::Args),
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let workspace = Workspace::find()?;
    match cli.task {
        Task::UapiCheck(args) => uapi_check::run(&workspace, &args),
    }
}
