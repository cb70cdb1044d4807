//! `ioasis`: run a program on a machine with an IOMMU, VFIO and PCI devices that are not there.

use std::process::ExitCode;

fn main() -> ExitCode {
    ioasis::Cli::new().main()
}
