//! `ioasis`: run a program on a machine with an IOMMU, VFIO and PCI devices that are not there.

mod cli;
mod hardware;
mod iommu;
mod machine;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::run(cli::Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ioasis: {error:#}");
            ExitCode::from(cli::FAILED_TO_START)
        }
    }
}
