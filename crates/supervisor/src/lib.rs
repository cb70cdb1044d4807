//! Runs a program whose IOMMUFD and VFIO calls are answered here.

mod closer;
mod confine;
mod descriptors;
pub mod doctor;
mod ending;
mod files;
mod filter;
mod fuse;
mod injection;
mod launch;
mod ledger;
mod limits;
mod machine;
mod memlock;
pub mod memory;
mod notes;
mod other;
mod parameters;
mod queues;
mod removal;
mod resolve;
mod rules;
mod run;
mod serve;
mod task;
pub mod trace;
mod trap;
pub mod view;
mod watchdog;

pub use ledger::Ledger;
pub use machine::Machine;
pub use removal::Failure;
pub use rules::Rule;
pub use run::{Explain, OnFaults, RunOptions, exit_like, run};
pub use watchdog::Leftovers;
