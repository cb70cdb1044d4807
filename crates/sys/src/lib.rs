//! System calls, shared memory and locks: the only crate with unsafe code.
