//! Tests of the storeys together: in any order, beside a model, from many threads.

mod any_order;
mod concurrent;
mod container;
#[cfg(feature = "mock")]
mod mock;
pub(crate) mod rig;
#[cfg(ioasis_shuttle)]
pub(crate) mod schedules;
mod storm;
