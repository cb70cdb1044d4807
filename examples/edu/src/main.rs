//! The program `ioasis` with QEMU's teaching device: `edu run --device edu -- ./program`.

mod model;

use std::process::ExitCode;

fn main() -> ExitCode {
    ioasis::Cli::new().model(model::INFO).main()
}
