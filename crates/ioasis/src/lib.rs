//! The program `ioasis`, to be built with device models of one's own.
//!
//! `ioasis` runs a program on a machine with an IOMMU, VFIO and PCI devices that are not there. [`Cli`] is all of it: with a
//! model added, every command knows the model as it knows those of [`pci`]: `run`, `trace`, `torture`, `serve`, `models` and the
//! completions, and messages about a mistyped name.
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! use ioasis::pci::{Model, ModelError, ModelInfo, Options};
//!
//! const INFO: ModelInfo = ModelInfo { name: "mine", summary: "a device of mine", options: &[], create };
//!
//! fn create(_: &Options<'_>) -> Result<Box<dyn Model>, ModelError> {
//!     todo!("a model")
//! }
//!
//! fn main() -> ExitCode {
//!     ioasis::Cli::new().model(INFO).main()
//! }
//! ```
//!
//! `ioasis new NAME` writes a project with a complete model; docs/models.md is its tutorial.

mod cli;
mod entry;
mod hardware;
mod iommu;
mod looking;
mod machine;
mod man;
mod serve;
mod template;
mod torture;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

pub use ioasis_pci as pci;
use ioasis_pci::{ModelInfo, Models};

/// The program, before it looks at its command line.
#[derive(Debug, Default)]
pub struct Cli {
    models: Models,
}

impl Cli {
    /// The program `ioasis`, with the models of [`pci`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a device model.
    ///
    /// # Panics
    ///
    /// If another model has the name, or it cannot be written after `--device`.
    #[must_use]
    pub fn model(mut self, info: ModelInfo) -> Self {
        self.models.add(info);
        self
    }

    /// Does what the command line of this process asks for; what this returns is to be its exit status.
    #[must_use]
    pub fn main(self) -> ExitCode {
        let given: Vec<_> = std::env::args_os().collect();
        if let Some(why) = cli::misplaced(&given) {
            eprintln!("ioasis: {why}");
            return ExitCode::from(cli::FAILED_TO_START);
        }
        let program = cli::Program { name: name(given.first()), models: self.models };
        let arguments = match program.parse(given) {
            Ok(arguments) => arguments,
            Err(error) => {
                // A text that was asked for, or what is wrong: clap says 2 of it, which could be CMD's own status.
                let status = if error.use_stderr() { cli::FAILED_TO_START } else { 0 };
                let _ = error.print();
                return ExitCode::from(status);
            }
        };
        match cli::run(&program, arguments) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("ioasis: {error:#}");
                ExitCode::from(cli::FAILED_TO_START)
            }
        }
    }
}

/// What this program is called where it writes command lines: a program with models of its own has a name of its own.
fn name(program: Option<&OsString>) -> &'static str {
    let name = program.and_then(|program| Path::new(program).file_name());
    // Once a process: clap keeps names for as long as that.
    name.map_or("ioasis", |name| name.to_string_lossy().into_owned().leak())
}
