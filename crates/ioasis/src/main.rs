//! `ioasis`: run a program on a machine with an IOMMU, VFIO and PCI devices that are not there.

mod cli;
mod entry;
mod hardware;
mod iommu;
mod machine;
mod man;
mod serve;
mod torture;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let given: Vec<_> = std::env::args_os().collect();
    if let Some(why) = cli::misplaced(&given) {
        eprintln!("ioasis: {why}");
        return ExitCode::from(cli::FAILED_TO_START);
    }
    let arguments = match cli::Arguments::try_parse_from(given) {
        Ok(arguments) => arguments,
        Err(error) => {
            // A text that was asked for, or what is wrong: clap says 2 of it, which could be CMD's own status.
            let status = if error.use_stderr() { cli::FAILED_TO_START } else { 0 };
            let _ = error.print();
            return ExitCode::from(status);
        }
    };
    match cli::run(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ioasis: {error:#}");
            ExitCode::from(cli::FAILED_TO_START)
        }
    }
}
