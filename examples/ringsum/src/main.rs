//! The program `ioasis` with the device `ringsum`: `ringsum run --device ringsum -- ./program`.

mod model;

use std::process::ExitCode;

fn main() -> ExitCode {
    ioasis::Cli::new().model(model::INFO).main()
}
