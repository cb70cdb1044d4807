//! System calls, shared memory and locks: the only crate with unsafe code.

mod errno;
pub mod eventfd;
pub mod fuse;
pub mod locks;
pub mod mapping;
pub mod message;
pub mod mount;
pub mod namespace;
pub mod notify;
pub mod pace;
pub mod process;
pub mod ptrace;
pub mod published;
pub mod quiesce;
pub mod rights;
pub mod seccomp;
pub mod signal;
pub mod spawn;
pub mod sync;
pub mod turns;
pub mod userfault;

pub use errno::{because, errno};
