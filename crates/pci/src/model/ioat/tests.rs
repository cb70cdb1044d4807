//! What the engine promises to its drivers.

mod chain;
mod property;
mod registers;
mod rig;
