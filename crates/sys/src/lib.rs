//! System calls, shared memory and locks: the only crate with unsafe code.

mod errno;
pub mod message;
pub mod notify;
pub mod seccomp;
pub mod signal;
pub mod spawn;

pub use errno::{because, errno};
