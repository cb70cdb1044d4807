//! What the port promises to its drivers.

mod hostile;
mod links;
mod registers;
mod rig;
mod rings;
